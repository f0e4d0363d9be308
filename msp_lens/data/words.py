"""Token datasets aligned with beliefs and weights: every possible word, or sampled ones.

A causal model's activation at a position depends on the prefix alone, so a row of data is a distinct *prefix*,
found at (word, position); words are kept in lexicographic order, so a prefix's words are neighbors. Three
weightings say how much a row counts:

- `"probability"`: by the prefix's probability (its frequency, in sampled words). The population answer.
- `"sequence"`: every distinct full-length word alike, so a prefix counts as often as words begin with it. The
  convention of Shai et al. 2024.
- `"prefix"`: every distinct prefix alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

import torch
import torch.utils.data
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from msp_lens._random import resolve_generator
from msp_lens.beliefs.filtering import filter_beliefs
from msp_lens.beliefs.mixed_states import walk_levels
from msp_lens.processes.process import Process

if TYPE_CHECKING:
    import datasets

Weighting = Literal["probability", "sequence", "prefix"]

# Beyond this many words of full length, enumeration costs more than sampling is worth.
MAX_WORDS = 500_000
# Words drawn where there are too many to enumerate.
SAMPLED_WORDS = 100_000
# Tokens of words held at once when they are streamed.
TOKENS_PER_DRAW = 500_000


class TooManyWordsError(ValueError):
    """There are more words than can sensibly be enumerated."""


@dataclass(frozen=True, eq=False)
class BeliefDataset:
    """Distinct words with their beliefs; build it with `all_words` or `sampled_words`.

    Attributes:
        process: What emits the words.
        tokens: Distinct words in lexicographic order.
        beliefs: The belief after each token.
        word_weights: Each word's probability, or its frequency in a sample; sums to 1.
        is_population: Whether these are all the words there are, with their exact probabilities.
        n_draws: How many were drawn, where they were: the distinct ones among them may be fewer.
    """

    process: Process
    tokens: Int[Tensor, "word pos"]
    beliefs: Float64[Tensor, "word pos state"]
    word_weights: Float64[Tensor, "word"]
    is_population: bool
    n_draws: int | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def n_ctx(self) -> int:
        """Tokens in each word."""
        return self.tokens.shape[1]

    @cached_property
    def is_first(self) -> Bool[Tensor, "word pos"]:
        """Where each distinct prefix is met for the first time: the rows that stand for all its repetitions."""
        changed = self.tokens[1:] != self.tokens[:-1]
        first_word = torch.ones(1, self.n_ctx, dtype=torch.bool)
        return torch.cat([first_word, changed.cumsum(dim=1) > 0])

    @cached_property
    def prefix_ids(self) -> Int[Tensor, "word pos"]:
        """A number for each distinct prefix, 0 … n_prefixes - 1, shorter prefixes first."""
        within_position = self.is_first.cumsum(dim=0)
        per_position = within_position[-1]
        return within_position - 1 + (per_position.cumsum(dim=0) - per_position)

    @property
    def n_prefixes(self) -> int:
        """How many distinct prefixes there are, of all lengths."""
        return int(self.is_first.sum())

    def prefix_weights(self, weighting: Weighting) -> Float64[Tensor, "prefix"]:
        """How much each distinct prefix counts, by `prefix_ids`; see the module's docstring. Sums to 1.

        Raises:
            ValueError: if there is no such weighting.
        """
        check_weighting(weighting)
        if weighting == "prefix":
            return torch.full((self.n_prefixes,), 1 / self.n_prefixes, dtype=torch.float64)
        per_word = (
            self.word_weights if weighting == "probability" else torch.full_like(self.word_weights, 1 / len(self))
        )
        per_row = per_word.unsqueeze(1).expand_as(self.tokens) / self.n_ctx
        totals = torch.zeros(self.n_prefixes, dtype=torch.float64)
        return totals.index_add_(0, self.prefix_ids.flatten(), per_row.flatten())

    @cached_property
    def prefix_beliefs(self) -> Float64[Tensor, "prefix state"]:
        """The belief after each distinct prefix, by `prefix_ids`."""
        beliefs = torch.empty(self.n_prefixes, self.process.n_states, dtype=torch.float64)
        beliefs[self.prefix_ids[self.is_first]] = self.beliefs[self.is_first]
        return beliefs

    def __repr__(self) -> str:
        origin = "every possible word" if self.is_population else "sampled words"
        size = f"{len(self)} × {self.n_ctx}, {self.n_prefixes} distinct prefixes"
        return f"BeliefDataset({self.process.name}, {origin}: {size})"


def all_words(process: Process, length: int, *, max_words: int = MAX_WORDS) -> BeliefDataset:
    """Every word of `length` tokens that has a probability above 0, with it and the beliefs along it.

    Raises:
        TooManyWordsError: a `ValueError`, if there are more than `max_words` of them.

    Example:
        >>> from msp_lens.processes.catalog import mess3
        >>> all_words(mess3(x=0.05, a=0.85), 4)
        BeliefDataset(mess3, every possible word: 81 × 4, 120 distinct prefixes)
    """
    if length < 1:
        raise ValueError(f"length={length}: words have at least 1 token.")
    levels = []
    for level in walk_levels(process, length):
        levels.append(level)
        if len(level) > max_words:
            raise TooManyWordsError(
                f"{process.name} has more than {max_words} words of {length} tokens: sample them with sampled_words(), "
                "or raise max_words."
            )
    tokens = torch.empty(len(levels[-1]), length, dtype=torch.int64)
    beliefs = torch.empty(len(levels[-1]), length, process.n_states, dtype=torch.float64)
    node = torch.arange(len(levels[-1]))
    for position in reversed(range(length)):
        tokens[:, position] = levels[position].tokens[node]
        beliefs[:, position] = levels[position].beliefs[node]
        node = levels[position].parents[node]
    return BeliefDataset(process, tokens, beliefs, levels[-1].probabilities, is_population=True)


def sampled_words(
    process: Process,
    n_words: int,
    length: int,
    *,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> BeliefDataset:
    """Words drawn from the process, repetitions merged: a word's weight is its frequency in the sample.

    Args:
        process: What to draw from.
        n_words: How many draws; the dataset holds the distinct ones.
        length: Tokens in each.
        seed: Give this or `generator`.
        generator: Source of the randomness.
    """
    draws = process.sample(n_words, length, seed=seed, generator=generator).cpu()
    tokens, counts = torch.unique(draws, dim=0, return_counts=True)
    beliefs = filter_beliefs(process, tokens)
    return BeliefDataset(process, tokens, beliefs, counts.double() / n_words, is_population=False, n_draws=n_words)


def stream_words(
    process: Process,
    n_words: int,
    length: int,
    *,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> Iterator[BeliefDataset]:
    """`sampled_words` a chunk at a time, so that memory does not grow with their number; stop when it is enough.

    Repetitions are merged within a chunk, not across chunks. A chunk's word weights are its share of the whole: over
    all chunks they sum to 1.

    Args:
        process: What to draw from.
        n_words: How many draws in all.
        length: Tokens in each.
        seed: Give this or `generator`.
        generator: Source of the randomness.
        chunk_size: Draws in a chunk, on which the words drawn depend; by default some 500,000 tokens' worth.

    Raises:
        ValueError: if a number is below 1, before the first word is drawn.

    Example:
        >>> from msp_lens.processes.catalog import mess3
        >>> [len(chunk) for chunk in stream_words(mess3(x=0.05, a=0.85), 50, 100, seed=0, chunk_size=20)]
        [20, 20, 10]
    """
    if chunk_size is None:
        chunk_size = max(1, TOKENS_PER_DRAW // max(1, length))
    if min(n_words, length, chunk_size) < 1:
        raise ValueError(f"n_words={n_words}, length={length}, chunk_size={chunk_size}: each must be at least 1.")
    generator = resolve_generator(seed, generator)

    def chunks() -> Iterator[BeliefDataset]:
        for start in range(0, n_words, chunk_size):
            size = min(chunk_size, n_words - start)
            drawn = sampled_words(process, size, length, generator=generator)
            yield replace(drawn, word_weights=drawn.word_weights * size / n_words)

    return chunks()


def prefix_hashes(tokens: Int[Tensor, "word pos"]) -> Int[Tensor, "word pos"]:
    """A number for each prefix, the same wherever it is met, from 0 to 2⁶³ - 1; two prefixes hardly ever share one.

    Groups the same prefix in chunks of words that are never held together.
    """
    hashes = torch.empty_like(tokens, dtype=torch.int64)
    state = torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)
    for position, column in enumerate(tokens.long().T):
        # A linear congruential step (Knuth), its high bits folded into the low ones; int64 wraps around.
        state = state * 6364136223846793005 + column + 1442695040888963407
        state = (state ^ (state >> 29)) * 0x5851F42D4C957F2D
        hashes[:, position] = (state ^ (state >> 32)) & 0x7FFFFFFFFFFFFFFF
    return hashes


def words_for(process: Process, n_ctx: int, *, seed: int, max_words: int = SAMPLED_WORDS) -> BeliefDataset:
    """Every word of `n_ctx` tokens where there are at most `max_words` of them, else that many sampled ones."""
    try:
        return all_words(process, n_ctx, max_words=max_words)
    except TooManyWordsError:
        return sampled_words(process, max_words, n_ctx, seed=seed)


class TokenDataset(torch.utils.data.Dataset):
    """Words in the form training loops take: item i is `{"tokens": words[i]}`.

    Fits a torch `DataLoader` and TransformerLens's own `train`.
    """

    def __init__(self, tokens: Int[Tensor, "word pos"]) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Int[Tensor, "pos"]]:
        return {"tokens": self.tokens[index]}

    def to_huggingface(self) -> datasets.Dataset:
        """The same as a Hugging Face dataset with a `tokens` column, in torch format."""
        import datasets

        return datasets.Dataset.from_dict({"tokens": self.tokens.cpu().numpy()}).with_format("torch")


def token_dataset(
    process: Process,
    n_words: int,
    n_ctx: int,
    *,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> TokenDataset:
    """Training words of `n_ctx + 1` tokens: a model that reads the first `n_ctx` has a target at every position.

    Example:
        >>> from msp_lens.processes.catalog import z1r
        >>> token_dataset(z1r(), n_words=100, n_ctx=10, seed=0)[3]["tokens"].shape
        torch.Size([11])
    """
    return TokenDataset(process.sample(n_words, n_ctx + 1, seed=seed, generator=generator))


def check_weighting(weighting: str) -> None:
    """Raise `ValueError` unless `weighting` is one of the three."""
    if weighting not in get_args(Weighting):
        raise ValueError(f"weighting={weighting!r}: choose one of {', '.join(map(repr, get_args(Weighting)))}.")
