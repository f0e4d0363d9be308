"""What is held out together: rows belong to groups that stay whole, and groups are dealt into the cells of folds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from msp_lens._checks import AtLeast, Between, Count, checked, converted
from msp_lens.data.belief_dataset import BeliefDataset, Weighting
from msp_lens.data.labelled import LabelledTokens, label_rows
from msp_lens.data.row_positions import position_mask

SplitName = Literal["prefix", "sequence", "subtree", "block", "position"]
# How many folds there may be.
Folds = Annotated[int, Between(2, 10_000, "cross-validation needs at least two folds, and takes a fit for each")]

# Cells in each fold: enough for a bootstrap over cells.
CELLS_PER_FOLD = 4


@checked
@dataclass(frozen=True)
class Split:
    """What is held out together, and in how many folds.

    - `"prefix"`: every distinct prefix is one row, in a group by itself. Two rows with the same prefix are the same
      activation, so no held-out row has been fitted on; prefixes one token longer or shorter may have been.
    - `"sequence"`: every position of every word is a row, and a word is a group: the usual split of data into
      sequences. Words share their beginnings, so held-out rows at early positions *have* been fitted on.
    - `"subtree"`: every distinct prefix is one row, held out with all words that begin with the same `subtree_depth`
      tokens: the strictest split, since whole regions of the belief simplex may be unseen. A shorter prefix belongs to
      the first subtree below it.

    In a long word neighboring positions are nearly the same row. Two splits are for long words:

    - `"block"`: a block of consecutive positions of a word is a group. The positions of the gap between two blocks are
      no rows at all, so that every held-out row is more than `gap` positions from any that was fitted on, on both
      sides, and one pass suffices for all folds. Blocks begin at other positions in other words. Every distinct prefix
      is one row.
    - `"position"`: every position of every word is a row, in a group by itself: the usual random split of one long
      context (arXiv 2609.17376). It is optimistic, as both neighbors of a held-out row may have been fitted on.

    Attributes:
        by: `"prefix"`, `"sequence"`, `"subtree"`, `"block"` or `"position"`.
        n_folds: Number of folds of the cross-validation.
        subtree_depth: Number of first tokens that a subtree's words share; by default the least with enough subtrees.
        block_length: Positions in a block; by default four times the gap, at most 80, and fewer where there would be
            less than two blocks for each of four cells of every fold, or less than four in a word.
        gap: Positions left out between two blocks; by default a quarter of a block.

    Raises:
        ValueError: if there is no such split, or an option is out of range or belongs to another split.
    """

    by: SplitName = "prefix"
    n_folds: Folds = 5
    subtree_depth: Count | None = None
    block_length: Count | None = None
    gap: Annotated[int, AtLeast(0)] | None = None

    def __post_init__(self) -> None:
        if self.subtree_depth is not None and self.by != "subtree":
            raise ValueError(f"subtree_depth={self.subtree_depth}: only split='subtree' takes a depth.")
        for name in ("block_length", "gap"):
            if getattr(self, name) is not None and self.by != "block":
                raise ValueError(f"{name}={getattr(self, name)}: only split='block' has blocks and gaps.")


def as_split(value: Split | str) -> Split:
    """The split itself, or the one with default options that a name stands for."""
    if isinstance(value, Split):
        return value
    return Split(converted(value, SplitName, "split"))


@dataclass(frozen=True, eq=False)
class SplitRows:
    """Which rows a dataset has, how much each counts, and what each is held out with.

    Attributes:
        is_row: Where there is a row. Prefixes are not repeated, except if whole words are held out.
        weights: How much each row counts; the weights of all rows sum to 1, those in gaps between blocks included.
        groups: The number of each row's group, 0 … n_groups - 1.
        n_groups: Number of groups.
        group: What a group is, for the report.
        prior_weight: How much the belief before any symbol counts, if it is a row.
    """

    is_row: Bool[Tensor, "word pos"]
    weights: Float64[Tensor, "word pos"]
    groups: Int[Tensor, "word pos"]
    n_groups: int
    group: str
    prior_weight: float


def split_rows(dataset: BeliefDataset, split: Split | str, weighting: Weighting) -> SplitRows:
    """The rows of a dataset and their groups.

    Raises:
        ValueError: if the subtree depth exceeds the words, or there are fewer than two groups.
    """
    split = as_split(split)
    ids, tokens = dataset.prefix_ids, dataset.tokens
    weights, prior = dataset.prefix_weights(weighting)[ids], dataset.prior_weight(weighting)
    if split.by in ("sequence", "position"):
        if weighting == "prefix":
            weights = weights / torch.bincount(ids.flatten(), minlength=dataset.n_prefixes)[ids]
        else:
            by_word = dataset.word_weights if weighting == "probability" else torch.ones_like(dataset.word_weights)
            weights = (by_word / by_word.sum() / dataset.n_ctx).unsqueeze(1).expand_as(tokens)
        everywhere = torch.ones_like(dataset.is_first)
        if split.by == "sequence":
            groups = torch.arange(len(dataset)).unsqueeze(1).expand_as(tokens)
            rows = SplitRows(everywhere, weights, groups, len(dataset), "word", prior)
        else:
            groups = torch.arange(tokens.numel()).reshape(tokens.shape)
            rows = SplitRows(everywhere, weights, groups, tokens.numel(), "position", prior)
    elif split.by == "block":
        is_row = dataset.is_first & position_mask(dataset.positions, tokens)
        words, positions = is_row.nonzero(as_tuple=True)
        is_kept, blocks, block = _blocks(words, positions, split)
        groups = torch.zeros_like(tokens)
        groups[words, positions] = blocks
        is_row[words, positions] = is_kept
        rows = SplitRows(is_row, weights, groups, int(blocks.max()) + 1, block, prior)
    elif split.by == "subtree":
        # Words that begin alike are neighbors: a subtree begins where one of its first tokens is new.
        within = dataset.is_first.cumsum(dim=0) - 1
        sizes = within[-1] + 1
        enough = (sizes >= CELLS_PER_FOLD * split.n_folds).nonzero().flatten().tolist()
        depth = split.subtree_depth or (enough[0] + 1 if enough else dataset.n_ctx)
        if depth > dataset.n_ctx:
            raise ValueError(f"subtree_depth={depth}: give at most {dataset.n_ctx}, the number of tokens in a word.")
        groups = within[:, depth - 1].unsqueeze(1).expand_as(tokens)
        subtree = f"subtree of {depth} tokens"
        rows = SplitRows(dataset.is_first, weights, groups, int(sizes[depth - 1]), subtree, prior)
    else:
        rows = SplitRows(dataset.is_first, weights, ids, dataset.n_prefixes, "prefix", prior)
    if rows.n_groups < 2:
        problem = f"split={split.by!r} leaves {rows.n_groups} group ({rows.group}), so nothing can be held out"
        raise ValueError(f"{problem}: give longer words, {'shorter blocks, ' * (split.by == 'block')}or another split.")
    return rows


def split_labelled(labelled: LabelledTokens, split: Split) -> tuple[LabelledTokens, int | None]:
    """The rows of labelled tokens in the groups of a split by block or position, and the number of these groups.

    Under another split they stay in their own groups, whose number is not known.

    Raises:
        ValueError: if there are fewer than two blocks.
    """
    if split.by not in ("block", "position"):
        return labelled, None
    is_kept = torch.ones(len(labelled), dtype=torch.bool)
    groups, group = torch.arange(len(labelled)), "position"
    if split.by == "block":
        is_kept, groups, group = _blocks(labelled.words, labelled.positions, split)
    n_groups = int(groups.max()) + 1
    if n_groups < 2:
        problem = f"split='block' leaves 1 group ({group}), so nothing can be held out"
        raise ValueError(f"{problem}: give longer words, shorter blocks, or another split.")
    by_row = {name: getattr(labelled, name)[is_kept] for name in ("words", "columns", "positions", "weights")}
    for name in ("targets", "undefined"):
        by_row[name] = {key: values[is_kept] for key, values in getattr(labelled, name).items()}
    described = {**labelled.description, "groups": group, "rows": int(is_kept.sum())}
    return replace(labelled, **by_row, groups=groups[is_kept], description=described), n_groups


def _blocks(
    words: Int[Tensor, "row"], positions: Int[Tensor, "row"], split: Split
) -> tuple[Bool[Tensor, "row"], Int[Tensor, "row"], str]:
    """Which rows are in blocks and not in gaps, the block of each row, numbered from 0, and what a block is.

    The blocks of a word and the gaps between them repeat from its first row on. Each word begins further on in the
    first block by a gap, so that the gaps are not at the same positions in all words.
    """
    numbers, of_word = words.unique(return_inverse=True)
    first, last = (
        positions.new_zeros(len(numbers)).scatter_reduce(0, of_word, positions, which, include_self=False)
        for which in ("amin", "amax")
    )
    length, gap = split.block_length, split.gap
    if length is None:
        spans = last - first + 1
        shortest, longest, enough = 5, 100, 2 * CELLS_PER_FOLD * split.n_folds
        period = max(shortest, min(longest, int(spans.sum()) // enough, int(spans.max()) // 4))
        length = 4 * gap if gap else period - period // 5
    gap = -(-length // 4) if gap is None else gap
    shifted = positions - first[of_word] + of_word * gap % (length + gap)
    number = shifted // (length + gap)
    is_kept = shifted % (length + gap) < length
    places = of_word * (int(number.max()) + 1) + number
    blocks = torch.zeros_like(places)
    blocks[is_kept] = places[is_kept].unique(return_inverse=True)[1]
    return is_kept, blocks, f"block of {length} positions with gaps of {gap}"


def deal(groups: Int[Tensor, "row"], n_cells: int, *, n_groups: int | None, seed: int) -> Int[Tensor, "row"]:
    """The cell of each group: dealt evenly if the number of groups is known, else by a hash of the group's number.

    It depends on the group and the seed alone, not on the order or the batches of the rows.
    """
    if n_groups is not None:
        return (_shuffled(n_groups, seed) % n_cells)[groups.cpu()]
    # SplitMix64's finalizer, on wrapping 64-bit integers.
    start = ((seed + 1) * 0x9E3779B97F4A7C15 + 2**63) % 2**64 - 2**63
    mixed = groups.cpu().long() + start
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        mixed = (mixed ^ ((mixed >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return (mixed ^ ((mixed >> 31) & ((1 << 33) - 1))) % n_cells


@lru_cache(maxsize=2)
def _shuffled(n: int, seed: int) -> Int[Tensor, "group"]:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def labelled_rows(
    dataset: BeliefDataset,
    rows: SplitRows,
    targets: Mapping[str, Float64[Tensor, "prefix target"]],
    prior: Mapping[str, Float64[Tensor, "target"]],
    undefined: Mapping[str, Bool[Tensor, "prefix"]] | None = None,
) -> LabelledTokens:
    """The rows as a model reads them; see `label_rows`."""
    labels = partial(label_rows, dataset, is_row=rows.is_row, weights=rows.weights, groups=rows.groups)
    description = {"draws": dataset.n_draws, "groups": rows.group}
    values = {"targets": targets, "prior": prior, "undefined": undefined}
    return labels(**values, prior_weight=rows.prior_weight, description=description)
