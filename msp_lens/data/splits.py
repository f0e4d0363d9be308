"""What is held out together: rows belong to groups that stay whole, and groups are dealt into the cells of folds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from msp_lens._checks import Between, Count, checked, converted
from msp_lens.data.belief_dataset import BeliefDataset, Weighting
from msp_lens.data.labelled import LabelledTokens, label_rows

SplitName = Literal["prefix", "sequence", "subtree"]
# How many folds there may be.
Folds = Annotated[int, Between(2, 10_000, "cross-validation needs at least two folds, and takes a fit for each")]

# Cells in each fold: enough for a bootstrap over cells.
CELLS_PER_FOLD = 4


@checked
@dataclass(frozen=True)
class Split:
    """What is held out together, and in how many folds.

    - `"prefix"`: every distinct prefix is one row, in a group by itself. Two rows with the same prefix are the same
      activation, so no held-out row has been fitted on; its neighbors in the tree of words have.
    - `"sequence"`: every position of every word is a row, and a word is a group: the usual split of data into
      sequences. Words share their beginnings, so held-out rows at early positions *have* been fitted on.
    - `"subtree"`: every distinct prefix is one row, held out with all words that begin with the same `subtree_depth`
      tokens: the strictest split, since whole regions of the belief simplex may be unseen. A shorter prefix belongs to
      the first subtree below it.

    Attributes:
        by: `"prefix"`, `"sequence"` or `"subtree"`.
        n_folds: Number of folds of the cross-validation.
        subtree_depth: Number of first tokens that a subtree's words share; by default the least with enough subtrees.

    Raises:
        ValueError: if there is no such split, or an option is out of range or belongs to another split.
    """

    by: SplitName = "prefix"
    n_folds: Folds = 5
    subtree_depth: Count | None = None

    def __post_init__(self) -> None:
        if self.subtree_depth is not None and self.by != "subtree":
            raise ValueError(f"subtree_depth={self.subtree_depth}: only split='subtree' takes a depth.")


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
        weights: How much each row counts; the weights of all rows sum to 1.
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
    if split.by == "sequence":
        if weighting == "prefix":
            weights = weights / torch.bincount(ids.flatten(), minlength=dataset.n_prefixes)[ids]
        else:
            by_word = dataset.word_weights if weighting == "probability" else torch.ones_like(dataset.word_weights)
            weights = (by_word / by_word.sum() / dataset.n_ctx).unsqueeze(1).expand_as(tokens)
        groups = torch.arange(len(dataset)).unsqueeze(1).expand_as(tokens)
        rows = SplitRows(torch.ones_like(dataset.is_first), weights, groups, len(dataset), "word", prior)
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
        raise ValueError(f"{problem}: give longer words or another split.")
    return rows


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
