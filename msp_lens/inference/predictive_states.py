"""In how many dimensions an optimal predictor of some words would live: the rank of the predictive states.

The predictive state of a context u is what it says of the future,

    F[u, v] = P(v | u)    for all futures v of some length.

For a process, the rank of F over all contexts is the number of dimensions of its smallest generalized presentation
(`processes.structure.minimal_dimension`). F is estimated, so its singular values stand beside a noise level: how far
two estimates of F differ that ought to agree. For a network these are the futures of the same context at the beginning
of a word and one token later; in a stationary process they are equal. For data they are those in either half.

Source: Jaeger 2000 ("Observable operator models for discrete stochastic time series"); Hsu, Kakade & Zhang 2012
(arXiv 0811.4413).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens._checks import Count, Seed, checked
from msp_lens._random import derived_generator
from msp_lens._values import Value
from msp_lens.inference.word_probabilities import WordProbabilities

# The most futures that stand side by side.
_MOST_FUTURES = 256
# A singular value below this share of the largest is rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class PredictiveStates(Value):
    """The predictive states of contexts.

    Attributes:
        futures: P(v | u); futures v of one length in lexicographic order.
        steps: P(x v | u), for the token x that comes first.
        weights: P(u), for contexts of each length.
    """

    futures: Float64[Tensor, "context future"]
    steps: Float64[Tensor, "token context future"]
    weights: Float64[Tensor, "context"]

    @property
    def weighted(self) -> Float64[Tensor, "context future"]:
        """Each row times the square root of its context's probability."""
        return self.weights.sqrt().unsqueeze(1) * self.futures


@dataclass(frozen=True, eq=False, repr=False)
class PredictiveRank(Value):
    """The singular values of the predictive states, and how many are more than noise.

    Attributes:
        singular_values: From the largest.
        noise: The largest singular value of what two estimates that ought to agree differ by.
        rank: How many singular values are above it.
        samples: How many of the bootstrap's samples of contexts had rank 0, 1, 2, ….
        is_growing: Whether longer contexts or futures still raise the rank, so that it is only a lower bound.
        context_length: The longest contexts.
        future_length: The length of the futures.
        n_contexts: How many contexts there are.
    """

    singular_values: Float64[Tensor, "dimension"]
    noise: float
    rank: int
    samples: Int[Tensor, "rank"]
    is_growing: bool
    context_length: int
    future_length: int
    n_contexts: int

    @property
    def interval(self) -> tuple[int, int]:
        """The least and the largest rank of the middle 95 % of the bootstrap's samples."""
        share = self.samples.cumsum(dim=0) / self.samples.sum()
        return int((share > 0.025).nonzero()[0]), int((share >= 0.975).nonzero()[0])

    @property
    def gap(self) -> float:
        """The last singular value that counts over the largest that does not, or over the noise if that is larger."""
        below = self.singular_values[self.rank : self.rank + 1].tolist()
        return float(self.singular_values[self.rank - 1]) / max(self.noise, *below, 1e-300)

    def __repr__(self) -> str:
        low, high = self.interval
        sizes = ", ".join(f"{each:.2g}" for each in (self.singular_values / self.singular_values[0])[: self.rank + 2])
        bound = "at least " if self.is_growing else ""
        between = f", {low} to {high} over samples of contexts" if low < high else ""
        return (
            f"PredictiveRank({bound}{self.rank}{between}: singular values {sizes}, noise "
            f"{self.noise / float(self.singular_values[0]):.2g}; contexts of up to {self.context_length} tokens, "
            f"futures of {self.future_length})"
        )


@checked
def predictive_rank(words: WordProbabilities, *, n_samples: Count = 200, seed: Seed = 0) -> PredictiveRank:
    """The rank of the predictive states, with its uncertainty.

    Args:
        words: Word probabilities of a process, a network or data.
        n_samples: Samples of contexts in the bootstrap.
        seed: Of the bootstrap.

    Example:
        >>> from msp_lens.inference.word_probabilities import process_words
        >>> from msp_lens.processes.catalog import rrxor
        >>> predictive_rank(process_words(rrxor(), 10)).rank
        5
    """
    context_length, future_length = block_lengths(words)
    states = predictive_states(words, context_length, future_length)
    sizes = torch.linalg.svdvals(states.weighted)
    difference, weights = _disagreement(words, context_length, future_length)
    noise = float(torch.linalg.matrix_norm(weights.sqrt().unsqueeze(1) * difference, 2))
    rank = _above(sizes, noise)
    generator, drawn = derived_generator(seed, "contexts"), []
    for _ in range(n_samples):
        resampled, noisy = (_resampled(each, generator) for each in (states.weights, weights))
        level = float(torch.linalg.matrix_norm(noisy.sqrt().unsqueeze(1) * difference, 2))
        values = torch.linalg.svdvals(resampled.sqrt().unsqueeze(1) * states.futures)
        drawn.append(_above(values, level))
    # Words one token shorter, with either of the two ways to divide them.
    shorter = [(context_length - 1, future_length), (context_length, future_length - 1)]
    before = [
        _above(torch.linalg.svdvals(predictive_states(words, *each).weighted), noise)
        for each in shorter
        if min(each) >= 1
    ]
    is_growing = rank > max(before, default=1)
    counts = torch.bincount(torch.tensor(drawn))
    return PredictiveRank(sizes, noise, rank, counts, is_growing, context_length, future_length, len(states.weights))


def block_lengths(words: WordProbabilities) -> tuple[int, int]:
    """How long contexts and futures are: about alike, one token less than a word together, and not too many futures."""
    future = max(1, (words.length - 1) // 2)
    while future > 1 and words.n_tokens**future > _MOST_FUTURES:
        future -= 1
    return max(1, words.length - 1 - future), future


def predictive_states(words: WordProbabilities, context_length: int, future_length: int) -> PredictiveStates:
    """The predictive states of all contexts of 1 to `context_length` tokens at the beginning of the words."""
    found = [_conditional([words], n, future_length + 1) for n in range(1, context_length + 1)]
    n_futures = words.n_tokens**future_length
    # Columns are words x v: the future alone is v with x summed over the last token.
    rows = torch.cat([each[0] for each, _ in found]).unflatten(1, (words.n_tokens, n_futures))
    futures = torch.cat([each[0] for each, _ in found]).unflatten(1, (n_futures, words.n_tokens)).sum(dim=2)
    weights = torch.cat([each[0] for _, each in found])
    return PredictiveStates(futures, rows.transpose(0, 1).contiguous(), weights)


@checked
def stationarity_gap(words: WordProbabilities) -> float:
    """How far words at the beginning differ from the same words one token later, as KL in nats per token.

    It is 0 for a stationary process. What a network has here, no process can explain.
    """
    first, later = words.part(0, words.length - 1), words.part(1, words.length)
    tokens, number = torch.unique(torch.cat([first.tokens, later.tokens]), dim=0, return_inverse=True)
    sums = torch.zeros(2, len(tokens), dtype=torch.float64)
    for row, (part, ids) in enumerate(
        zip((first, later), number.split([len(first.tokens), len(later.tokens)]), strict=True)
    ):
        sums[row].index_add_(0, ids, part.probabilities)
    # Against their mean, so that a word which only one of them has costs a finite amount (Jensen & Shannon).
    mean = sums.mean(dim=0)
    return float(torch.special.xlogy(sums, sums / mean).sum() / 2 / first.length)


def _disagreement(
    words: WordProbabilities, context_length: int, future_length: int
) -> tuple[Float64[Tensor, "context future"], Float64[Tensor, "context"]]:
    """What two estimates of the predictive states that ought to agree differ by, and the contexts' probabilities."""
    pair = list(words.halves or (words.part(0, words.length - 1), words.part(1, words.length)))
    rows, weights = [], []
    for n in range(1, context_length + 1):
        futures, probabilities = _conditional(pair, n, future_length)
        is_seen = (probabilities > 0).all(dim=0)
        rows.append((futures[0] - futures[1])[is_seen])
        weights.append(probabilities.mean(dim=0)[is_seen])
    return torch.cat(rows), torch.cat(weights)


def _conditional(
    parts: Sequence[WordProbabilities], context_length: int, future_length: int
) -> tuple[Float64[Tensor, "part context future"], Float64[Tensor, "part context"]]:
    """P(v | u) and P(u) in each part, for all contexts of one length at the beginning of the words."""
    stop, base = context_length + future_length, parts[0].n_tokens
    contexts = torch.cat([each.tokens[:, :context_length] for each in parts])
    distinct, number = torch.unique(contexts, dim=0, return_inverse=True)
    powers = base ** torch.arange(future_length).flip(0)
    joint = torch.zeros(len(parts), len(distinct) * base**future_length, dtype=torch.float64)
    for row, (each, ids) in enumerate(zip(parts, number.split([len(each.tokens) for each in parts]), strict=True)):
        future = each.tokens[:, context_length:stop] @ powers
        joint[row].index_add_(0, ids * base**future_length + future, each.probabilities)
    joint = joint.unflatten(1, (len(distinct), base**future_length))
    probabilities = joint.sum(dim=2)
    return joint / probabilities.clamp_min(1e-300).unsqueeze(2), probabilities


def _resampled(weights: Float64[Tensor, "context"], generator: torch.Generator) -> Float64[Tensor, "context"]:
    drawn = torch.multinomial(weights, len(weights), replacement=True, generator=generator)
    return torch.bincount(drawn, minlength=len(weights)).double() / len(weights) * weights.sum()


def _above(sizes: Float64[Tensor, "dimension"], noise: float) -> int:
    """How many singular values count: one at least, since futures have probabilities whatever the context."""
    return max(1, int((sizes > max(noise, _ROUNDING * float(sizes[0]))).sum()))
