"""Words of a process with their beliefs: every possible word with its probability, or sampled ones.

A causal model's activation at a position depends on the prefix alone, so a row of data is a distinct *prefix*, found at
(word, position). Words are in lexicographic order: those with a common prefix are neighbors. Rows count by a weighting:

- `"probability"`: by the prefix's probability, or its frequency in a sample. The population answer.
- `"sequence"`: once for each distinct word that begins with the prefix. The convention of Shai et al. 2024.
- `"prefix"`: every distinct prefix alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Literal

import torch
import torch.utils.data
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from msp_lens._checks import Count, Seed, check_memory, checked
from msp_lens._random import resolve_generator
from msp_lens._values import Value
from msp_lens.beliefs.filtering import filter_beliefs
from msp_lens.beliefs.mixed_states import walk_levels
from msp_lens.data.row_positions import Positions, as_positions, position_mask
from msp_lens.data.token_map import TokenMap
from msp_lens.processes.process import Process

if TYPE_CHECKING:
    import datasets

Weighting = Literal["probability", "sequence", "prefix"]


class TooManyWordsError(ValueError):
    """There are more possible words than may be enumerated."""


@checked
@dataclass(frozen=True, eq=False)
class BeliefDataset(Value):
    """Distinct words with their beliefs, and how a model reads them; build it with `words`.

    Attributes:
        process: What emits the words.
        tokens: Distinct words in lexicographic order.
        beliefs: The belief after each token.
        word_weights: Each word's probability, or its frequency in a sample; sums to 1.
        is_population: Whether these are all possible words, with their exact probabilities.
        n_draws: Number of words drawn, of which the distinct ones are kept; `None` if none were drawn.
        seed: Seed of the draws, by which they can be drawn again; `None` if a generator drew them, or nobody.
        positions: Positions that are rows: a slice, numbers, or a mask `[pos]` or `[word, pos]`; all by default.
        token_map: How a model with its own vocabulary reads the tokens; by default token 0 as token 0, and so on.

    Raises:
        ValueError: if a position is outside the words, or the token map is for another number of tokens.
    """

    process: Process
    tokens: Int[Tensor, "word pos"]
    beliefs: Float64[Tensor, "word pos state"]
    word_weights: Float64[Tensor, "word"]
    is_population: bool
    n_draws: int | None = None
    seed: int | None = None
    positions: Positions = None
    token_map: TokenMap | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "positions", as_positions(self.positions))
        position_mask(self.positions, self.tokens)
        if self.token_map is not None:
            self.token_map.check_reads(self.process)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def n_ctx(self) -> int:
        """Tokens in each word."""
        return self.tokens.shape[1]

    @cached_property
    def is_first(self) -> Bool[Tensor, "word pos"]:
        """Where each distinct prefix occurs first: the rows that stand for all its repetitions."""
        changed = (self.tokens[1:] != self.tokens[:-1]).cumsum(dim=1) > 0
        return torch.cat([torch.ones(1, self.n_ctx, dtype=torch.bool), changed])

    @cached_property
    def prefix_ids(self) -> Int[Tensor, "word pos"]:
        """A number for each distinct prefix, 0 … n_prefixes - 1, shorter prefixes first."""
        within = self.is_first.cumsum(dim=0)
        return within - 1 + within[-1].cumsum(dim=0) - within[-1]

    def encoded(self) -> tuple[Int[Tensor, "word column"], Int[Tensor, "word pos"]]:
        """The words as a model reads them, and the column of each belief; see `TokenMap.encode`."""
        return (self.token_map or TokenMap.identity(self.process.n_tokens)).encode(self.tokens)

    @property
    def n_prefixes(self) -> int:
        """Number of distinct prefixes, of all lengths."""
        return int(self.is_first.sum())

    @checked
    def prefix_weights(self, weighting: Weighting) -> Float64[Tensor, "prefix"]:
        """How much each distinct prefix counts, by `prefix_ids`; the weights sum to 1."""
        if weighting == "prefix":
            return torch.full((self.n_prefixes,), 1 / self.n_prefixes, dtype=torch.float64)
        alike = torch.full_like(self.word_weights, 1 / len(self))
        per_word = self.word_weights if weighting == "probability" else alike
        per_row = per_word.unsqueeze(1).expand_as(self.tokens) / self.n_ctx
        totals = torch.zeros(self.n_prefixes, dtype=torch.float64)
        return totals.index_add_(0, self.prefix_ids.flatten(), per_row.flatten())

    @checked
    def prior_weight(self, weighting: Weighting) -> float:
        """How much the belief before any token counts as a row: as one more prefix, or as the prefixes of one token."""
        weights = self.prefix_weights(weighting)
        return float(weights[0] if weighting == "prefix" else weights[: int(self.is_first[:, 0].sum())].sum())

    @cached_property
    def prefix_beliefs(self) -> Float64[Tensor, "prefix state"]:
        """The belief after each distinct prefix, by `prefix_ids`."""
        beliefs = torch.empty(self.n_prefixes, self.process.n_states, dtype=torch.float64)
        beliefs[self.prefix_ids[self.is_first]] = self.beliefs[self.is_first]
        return beliefs

    @cached_property
    def prefix_parts(self) -> dict[str, Float64[Tensor, "prefix part_state"]]:
        """What the belief after each distinct prefix says of each part of the process, by name; see `Process.parts`.

        All zeros where a part has no belief: within a component that is ruled out.
        """
        return self.process.parts(self.prefix_beliefs)

    def __repr__(self) -> str:
        origin = f"{self.process.name}, {'every possible word' if self.is_population else 'sampled words'}"
        return f"BeliefDataset({origin}: {len(self)} × {self.n_ctx}, {self.n_prefixes} distinct prefixes)"


@checked
def words(
    process: Process,
    *,
    n_ctx: Count,
    n_words: Count | None = None,
    positions: Positions = None,
    token_map: TokenMap | None = None,
    max_words: Count = 100_000,
    seed: Seed = 0,
) -> BeliefDataset:
    """Words of a process with their beliefs: every possible word if there are not too many, else a sample.

    Args:
        process: What emits the words.
        n_ctx: Tokens in each word.
        n_words: Number of words to draw, even if all could be visited.
        positions: Positions that are rows: a slice, numbers, or a mask; all by default.
        token_map: How a model with its own vocabulary reads the tokens.
        max_words: If there are more possible words than this, draw this many.
        seed: Seed of the draws.

    Raises:
        ValueError: if a number is below 1, a position is outside the words, or the token map does not fit the process.

    Example:
        >>> from msp_lens.processes.catalog import mess3
        >>> words(mess3(x=0.05, a=0.85), n_ctx=4)
        BeliefDataset(mess3, every possible word: 81 × 4, 120 distinct prefixes)
        >>> words(mess3(x=0.05, a=0.85), n_ctx=4, max_words=50).n_draws
        50
    """
    draw = partial(sampled_words, process, n_ctx=n_ctx, seed=seed)
    try:
        dataset = draw(n_words) if n_words else all_words(process, n_ctx, max_words=max_words)
    except TooManyWordsError:
        dataset = draw(max_words)
    return replace(dataset, positions=positions, token_map=token_map)


@checked
def all_words(process: Process, n_ctx: Count, *, max_words: Count = 500_000) -> BeliefDataset:
    """Every possible word of `n_ctx` tokens, with its probability and the beliefs along it.

    Raises:
        TooManyWordsError: a `ValueError`, if there are more than `max_words`.
    """
    check_memory(f"n_ctx={n_ctx}", 8 * n_ctx * (process.n_states + 1), "Give shorter words.")
    levels = []
    for level in walk_levels(process, n_ctx):
        levels.append(level)
        if len(level) > max_words:
            many = f"{process.name} has more than {max_words} words of {n_ctx} tokens"
            raise TooManyWordsError(f"{many}: sample them with sampled_words(), or raise max_words.")
    node = torch.arange(len(levels[-1]))
    tokens = torch.empty(len(node), n_ctx, dtype=torch.int64)
    beliefs = torch.empty(len(node), n_ctx, process.n_states, dtype=torch.float64)
    for position in reversed(range(n_ctx)):
        tokens[:, position] = levels[position].tokens[node]
        beliefs[:, position] = levels[position].beliefs[node]
        node = levels[position].parents[node]
    return BeliefDataset(process, tokens, beliefs, levels[-1].probabilities, is_population=True)


@checked
def sampled_words(
    process: Process,
    n_words: Count,
    n_ctx: Count,
    *,
    seed: Seed | None = None,
    generator: torch.Generator | None = None,
) -> BeliefDataset:
    """The distinct ones of `n_words` words drawn by `seed` or `generator`, weighted by their frequency."""
    draws = process.sample(n_words, n_ctx, seed=seed, generator=generator).cpu()
    tokens, counts = torch.unique(draws, dim=0, return_counts=True)
    beliefs, weights = filter_beliefs(process, tokens), counts.double() / n_words
    return BeliefDataset(process, tokens, beliefs, weights, is_population=False, n_draws=n_words, seed=seed)


@checked
def stream_words(
    process: Process,
    n_words: Count,
    n_ctx: Count,
    *,
    seed: Seed | None = None,
    generator: torch.Generator | None = None,
    chunk_size: Count | None = None,
) -> Iterator[BeliefDataset]:
    """`sampled_words` in chunks, in memory that does not grow with their number; you may stop at any chunk.

    Repetitions are merged within a chunk, not across chunks. Word weights sum to 1 over all chunks.

    Args:
        process: What to draw from.
        n_words: Draws in all.
        n_ctx: Tokens in each word.
        seed: Give this or `generator`.
        generator: Source of the randomness.
        chunk_size: Draws in a chunk, by default about 500,000 tokens' worth; the words drawn depend on it.

    Raises:
        ValueError: if a number is below 1; before the first word is drawn.

    Example:
        >>> from msp_lens.processes.catalog import mess3
        >>> [len(chunk) for chunk in stream_words(mess3(x=0.05, a=0.85), 50, 100, seed=0, chunk_size=20)]
        [20, 20, 10]
    """
    size = max(1, 500_000 // n_ctx) if chunk_size is None else chunk_size
    generator = resolve_generator(seed, generator)

    def chunks() -> Iterator[BeliefDataset]:
        for start in range(0, n_words, size):
            n_drawn = min(size, n_words - start)
            drawn = sampled_words(process, n_drawn, n_ctx, generator=generator)
            yield replace(drawn, word_weights=drawn.word_weights * n_drawn / n_words)

    return chunks()


def default_count(n_ctx: int, most: int, n_tokens: int = 200_000, fewest: int = 20) -> int:
    """How many words to draw unless told: `most`, but of long words only so many as have `n_tokens` tokens together."""
    return min(most, max(fewest, n_tokens // n_ctx))


def prefix_hashes(tokens: Int[Tensor, "word pos"]) -> Int[Tensor, "word pos"]:
    """A number in [0, 2⁶³) that identifies each prefix, even across chunks of words; collisions are very unlikely."""
    hashes = torch.empty_like(tokens, dtype=torch.int64)
    state = torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)
    for position, column in enumerate(tokens.long().T):
        # A linear congruential step (Knuth), its high bits folded into the low ones; int64 wraps around.
        state = state * 6364136223846793005 + column + 1442695040888963407
        state = (state ^ (state >> 29)) * 0x5851F42D4C957F2D
        hashes[:, position] = (state ^ (state >> 32)) & 0x7FFFFFFFFFFFFFFF
    return hashes


class TokenDataset(torch.utils.data.Dataset):
    """Words for a torch `DataLoader` or TransformerLens's own `train`: item i is `{"tokens": words[i]}`."""

    @checked
    def __init__(self, tokens: Int[Tensor, "word pos"]) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Int[Tensor, "pos"]]:
        return {"tokens": self.tokens[index]}

    def to_huggingface(self) -> datasets.Dataset:
        """The words as a Hugging Face dataset with a `tokens` column, in torch format."""
        import datasets

        return datasets.Dataset.from_dict({"tokens": self.tokens.cpu().numpy()}).with_format("torch")


@checked
def token_dataset(
    process: Process,
    n_words: Count,
    n_ctx: Count,
    *,
    seed: Seed | None = None,
    generator: torch.Generator | None = None,
) -> TokenDataset:
    """Training words of `n_ctx + 1` tokens, for a target at every position of a model that reads the first `n_ctx`.

    Example:
        >>> from msp_lens.processes.catalog import z1r
        >>> token_dataset(z1r(), n_words=100, n_ctx=10, seed=0)[3]["tokens"].shape
        torch.Size([11])
    """
    return TokenDataset(process.sample(n_words, n_ctx + 1, seed=seed, generator=generator))
