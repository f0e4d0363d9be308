"""What is held out together: rows fall into groups that are never torn apart, and groups are dealt into cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens.data import BeliefDataset, LabelledTokens, Weighting, label_rows

Split = Literal["prefix", "sequence", "subtree"]

# Cells for each fold: enough for a bootstrap over cells.
CELLS_PER_FOLD = 4


@dataclass(frozen=True, eq=False)
class SplitRows:
    """Which rows of a dataset there are, how much each counts, and what each is held out with.

    Attributes:
        is_row: Where there is a row. Without repetition of prefixes, except where whole words are held out.
        weights: How much each counts; they sum to 1 over the rows.
        groups: A number for each row's group, 0 … n_groups - 1.
        n_groups: How many there are.
        words: What a group is, in words.
    """

    is_row: Tensor
    weights: Float64[Tensor, "word pos"]
    groups: Int[Tensor, "word pos"]
    n_groups: int
    words: str


def split_rows(
    dataset: BeliefDataset, split: str, weighting: Weighting, *, subtree_depth: int | None = None, n_folds: int = 5
) -> SplitRows:
    """The rows of a dataset and their groups.

    - `"prefix"`: every distinct prefix once, each a group of its own. Two rows with the same prefix are the same
      activation, so nothing held out has been seen; its neighbors in the tree of words have.
    - `"sequence"`: every position of every word, a word a group: the usual split of data into sequences. Words share
      their beginnings, so held-out rows at early positions *have* been seen.
    - `"subtree"`: every distinct prefix once, held out with all words that begin with the same `subtree_depth` tokens:
      the strictest, since whole regions of the belief simplex may be unseen. A shorter prefix belongs to the first
      subtree below it.

    Raises:
        ValueError: if there is no such split, or it has fewer than two groups.
    """
    if split not in get_args(Split):
        raise ValueError(f"split={split!r}: choose one of {', '.join(map(repr, get_args(Split)))}.")
    if subtree_depth is not None and (split != "subtree" or not 1 <= subtree_depth <= dataset.n_ctx):
        raise ValueError(
            f"subtree_depth={subtree_depth} with split={split!r}: it is the number of first tokens, from 1 to "
            f"{dataset.n_ctx}, that words of a subtree share, and goes with split='subtree'."
        )
    weights = dataset.prefix_weights(weighting)[dataset.prefix_ids]
    if split == "sequence":
        counts = torch.bincount(dataset.prefix_ids.flatten(), minlength=dataset.n_prefixes)
        if weighting == "prefix":
            weights = weights / counts[dataset.prefix_ids]
        else:
            by_word = dataset.word_weights if weighting == "probability" else torch.full_like(dataset.word_weights, 1.0)
            weights = (by_word / by_word.sum() / dataset.n_ctx).unsqueeze(1).expand_as(dataset.tokens)
        groups = torch.arange(len(dataset)).unsqueeze(1).expand_as(dataset.tokens)
        rows = SplitRows(torch.ones_like(dataset.is_first), weights, groups, len(dataset), "word")
    elif split == "subtree":
        # Words that begin alike are neighbors: a subtree begins where one of its first tokens is new.
        within = dataset.is_first.cumsum(dim=0) - 1
        sizes = within[-1] + 1
        enough = (sizes >= CELLS_PER_FOLD * n_folds).nonzero().flatten().tolist()
        depth = subtree_depth or (enough[0] + 1 if enough else dataset.n_ctx)
        groups = within[:, depth - 1].unsqueeze(1).expand_as(dataset.tokens)
        rows = SplitRows(dataset.is_first, weights, groups, int(sizes[depth - 1]), f"subtree of {depth} tokens")
    else:
        rows = SplitRows(dataset.is_first, weights, dataset.prefix_ids, dataset.n_prefixes, "prefix")
    if rows.n_groups < 2:
        raise ValueError(
            f"split={split!r} leaves {rows.n_groups} group ({rows.words}): nothing can be held out. Give longer words "
            "or another split."
        )
    return rows


def deal(groups: Int[Tensor, "row"], n_cells: int, *, n_groups: int | None, seed: int) -> Int[Tensor, "row"]:
    """The cell of each group: dealt evenly where their number is known, else by a hash of the group's number.

    Either way it depends on the group and the seed alone, not on the order or the batches in which rows come.
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
) -> LabelledTokens:
    """The rows as a model reads them; see `label_rows`. The prior counts as often as words begin."""
    return label_rows(
        dataset,
        is_row=rows.is_row,
        weights=rows.weights,
        groups=rows.groups,
        targets=targets,
        prior=prior,
        prior_weight=float(rows.weights[:, 0][rows.is_row[:, 0]].sum()),
        description={"draws": dataset.n_draws},
    )
