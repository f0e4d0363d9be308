"""The probabilities of words: what a process, a network or data say of every word of some length.

Everything that can be inferred follows from P(w). With all words of L tokens, the probability that the future v follows
the context u is a quotient of sums,

    P(v | u) = Σ_{w = …uv…} P(w) / Σ_{w = …u…} P(w),

for u and v at any place in the word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens._checks import AtLeast, Count, Seed, check_memory, checked
from msp_lens._random import derived_generator
from msp_lens._values import Value
from msp_lens.beliefs.information import entropy
from msp_lens.beliefs.trajectories import draw_tokens
from msp_lens.data import TooManyWordsError, all_words, sampled_words
from msp_lens.inference.predictor import Predictor
from msp_lens.processes.process import Process

Length = Annotated[int, AtLeast(2, "a word has a context and a future")]


@dataclass(frozen=True, eq=False)
class WordProbabilities(Value):
    """Words of one length with their probabilities.

    Attributes:
        tokens: Distinct words.
        probabilities: Their probabilities, which sum to 1.
        n_tokens: Size of the alphabet.
        is_population: Whether these are all words that have a probability above 0.
        n_seen: Tokens that were counted, if the words are data.
        halves: The words of either half of the data, if the words are data: what the halves disagree by is noise.
        notes: What was assumed.
    """

    tokens: Int[Tensor, "word pos"]
    probabilities: Float64[Tensor, "word"]
    n_tokens: int
    is_population: bool
    n_seen: int | None = None
    halves: tuple[WordProbabilities, WordProbabilities] | None = None
    notes: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """Tokens in each word."""
        return self.tokens.shape[1]

    @property
    def entropy(self) -> float:
        """Of the words, in nats."""
        return float(entropy(self.probabilities))

    def part(self, start: int, stop: int) -> WordProbabilities:
        """The words from one position to another, whatever stands around them."""
        tokens, number = torch.unique(self.tokens[:, start:stop], dim=0, return_inverse=True)
        sums = torch.zeros(len(tokens), dtype=torch.float64).index_add_(0, number, self.probabilities)
        return WordProbabilities(tokens, sums, self.n_tokens, self.is_population)

    def __repr__(self) -> str:
        which = "every possible word" if self.is_population else "counted or sampled"
        return f"WordProbabilities({len(self.tokens):,} words of {self.length} tokens, {which})"


@checked
def process_words(process: Process, length: Length, *, max_words: Count = 20_000, seed: Seed = 0) -> WordProbabilities:
    """The words of a process: all of them, or a sample of `max_words` if there are more.

    Example:
        >>> from msp_lens.processes.catalog import golden_mean
        >>> process_words(golden_mean(p=0.5), 5)
        WordProbabilities(13 words of 5 tokens, every possible word)
    """
    try:
        found = all_words(process, length, max_words=max_words)
    except TooManyWordsError:
        found = sampled_words(process, max_words, length, seed=seed)
    return WordProbabilities(found.tokens, found.word_weights, process.n_tokens, found.is_population)


@checked
def network_words(
    predictor: Predictor, length: Length, *, max_words: Count = 20_000, seed: Seed = 0
) -> WordProbabilities:
    """The words of a network: all of them, in one pass over all but their last tokens, or a sample if there are more.

    Raises:
        ValueError: if the network can't predict the last token of words of this length.
    """
    if predictor.longest is not None and length > predictor.longest + 1:
        raise ValueError(f"length={length}: the network predicts words of at most {predictor.longest + 1} tokens.")
    if predictor.n_tokens**length > max_words:
        words = sampled_from_network(predictor, max_words, length, seed=seed)
        tokens, counts = torch.unique(words, dim=0, return_counts=True)
        probabilities = counts.double() / len(words)
        return WordProbabilities(tokens, probabilities, predictor.n_tokens, False, notes=predictor.notes)
    contexts = every_word(predictor.n_tokens, length - 1)
    along = predictor.along(contexts)
    before = along[:, :-1].gather(2, contexts.unsqueeze(2)).squeeze(2).prod(dim=1)
    probabilities = (before.unsqueeze(1) * along[:, -1]).flatten()
    tokens = every_word(predictor.n_tokens, length)
    possible = probabilities > 0
    return WordProbabilities(tokens[possible], probabilities[possible], predictor.n_tokens, True, notes=predictor.notes)


@checked
def data_words(tokens: Int[Tensor, "word pos"], length: Length, *, n_tokens: Count | None = None) -> WordProbabilities:
    """How often each word of `length` tokens occurs in data, at any place.

    Args:
        tokens: Sequences of one length, at least two, or one long sequence.
        length: Tokens in a word.
        n_tokens: Size of the alphabet; by default the largest token plus 1.

    Raises:
        ValueError: if the sequences are too short, or a token is outside the alphabet.

    Example:
        >>> data_words([[0, 1, 0, 1, 0, 1, 0]], 2).probabilities
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    size = int(tokens.max()) + 1 if n_tokens is None else n_tokens
    if int(tokens.min()) < 0 or int(tokens.max()) >= size:
        raise ValueError(
            f"tokens run from {int(tokens.min())} to {int(tokens.max())}: give numbers from 0 to {size - 1}."
        )
    n_places = tokens.shape[1] - length + 1
    if n_places < 1 or len(tokens) * n_places < 2:
        raise ValueError(f"length={length}: sequences of {tokens.shape[1]} tokens hold no two words of that length.")
    check_memory(f"Words of {length} tokens", 8 * len(tokens) * n_places * length, "Give shorter words or fewer data.")
    windows = tokens.unfold(1, length, 1)
    # Sequences are independent, places within one are not: halves are of different sequences, or of a long one's ends.
    if len(tokens) > 1:
        parts = windows[: len(tokens) // 2], windows[len(tokens) // 2 :]
    else:
        parts = windows[:, : n_places // 2], windows[:, n_places // 2 :]
    halves = _counted(parts[0], size), _counted(parts[1], size)
    whole = _counted(windows, size)
    return WordProbabilities(whole.tokens, whole.probabilities, size, False, n_seen=tokens.numel(), halves=halves)


def _counted(windows: Int[Tensor, "word place pos"], n_tokens: int) -> WordProbabilities:
    found, counts = torch.unique(windows.flatten(0, 1), dim=0, return_counts=True)
    return WordProbabilities(found, counts.double() / counts.sum(), n_tokens, False)


@checked
def sampled_from_network(
    predictor: Predictor, n_words: Count, length: Count, *, seed: Seed = 0
) -> Int[Tensor, "word pos"]:
    """Words drawn from a network's own predictions, token by token; each distinct prefix is read once."""
    generator = derived_generator(seed, "words of the network")
    words = draw_tokens(predictor.first.expand(n_words, -1), generator).unsqueeze(1)
    for _ in range(length - 1):
        prefixes, number = torch.unique(words, dim=0, return_inverse=True)
        distribution = predictor.after(prefixes)[:, -1][number]
        words = torch.cat([words, draw_tokens(distribution, generator).unsqueeze(1)], dim=1)
    return words


def every_word(n_tokens: int, length: int) -> Int[Tensor, "word pos"]:
    """All words over an alphabet, in lexicographic order."""
    if length == 0:
        return torch.empty(1, 0, dtype=torch.int64)
    return torch.cartesian_prod(*[torch.arange(n_tokens)] * length).reshape(-1, length)
