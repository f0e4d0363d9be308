"""What is held out together, and the moments of every part of the data.

Rows fall into *groups* that are never torn apart: a prefix, a word, a subtree of words. Groups are dealt into *cells*,
and a *fold* is a union of cells. The moments of each cell (and position) are kept, so that fitting on all folds but one
is an addition:

    fold k's complement = Σ of the other cells,        S = Σ_i S_i + Σ_i W_i (μ_i - μ)(μ_i - μ)ᵀ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, get_args

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens.data import BeliefDataset, Weighting
from msp_lens.probing.moments import Moments
from msp_lens.probing.rows import RowBatch

Split = Literal["prefix", "sequence", "subtree"]

# Cells for each fold: enough for a bootstrap over cells.
CELLS_PER_FOLD = 4
# Above this many bytes of moments, positions and then cells are given up.
MOMENTS_BUDGET = 2**29
# Rows wait until they fill this many bytes: moments of a few rows cost as much as those of many.
BUFFER_BYTES = 2**27
# A Gram of more columns than this takes minutes to decompose and gigabytes to keep by fold.
MAX_WIDTH = 6_144


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
      activation, so nothing held out has been seen; its neighbours in the tree of words have.
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
        # Words that begin alike are neighbours: a subtree begins where one of its first tokens is new.
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
    # SplitMix64's finaliser, on wrapping 64-bit integers.
    start = ((seed + 1) * 0x9E3779B97F4A7C15 + 2**63) % 2**64 - 2**63
    mixed = groups.cpu().long() + start
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        mixed = (mixed ^ ((mixed >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return (mixed ^ ((mixed >> 31) & ((1 << 33) - 1))) % n_cells


@lru_cache(maxsize=2)
def _shuffled(n: int, seed: int) -> Int[Tensor, "group"]:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def pooled(parts: Sequence[Moments]) -> Moments:
    """The moments of all the parts' rows together, in one sum."""
    filled = [part for part in parts if part.weight > 0]
    result = Moments(parts[0].blocks)
    result.n = sum(part.n for part in parts)
    if not filled:
        return result
    weights = torch.tensor([part.weight for part in filled], dtype=torch.float64)
    means = torch.stack([part.mean.cpu() for part in filled])
    result.weight = float(weights.sum())
    result.mean = weights @ means / result.weight
    shifts = means - result.mean
    result.scatter = (shifts * weights.unsqueeze(1)).T @ shifts
    for part in filled:
        result.scatter += part.scatter.cpu()
    return result


@dataclass(frozen=True, eq=False)
class Cells:
    """The moments of sites that share a Gram, by cell and position.

    Attributes:
        parts: `parts[cell][position]`; one position where positions are not told apart.
        n_folds: Cell c belongs to fold c mod n_folds.
    """

    parts: tuple[tuple[Moments, ...], ...]
    n_folds: int

    @cached_property
    def cells(self) -> list[Moments]:
        """By cell, positions together; empty ones left out."""
        merged = [positions[0] if len(positions) == 1 else pooled(positions) for positions in self.parts]
        return [cell for cell in merged if cell.weight > 0]

    @cached_property
    def fold_of_cell(self) -> Int[Tensor, "cell"]:
        """The fold of each cell that is not empty, numbered without gaps."""
        folds = [c % self.n_folds for c, row in enumerate(self.parts) if any(part.weight > 0 for part in row)]
        return torch.tensor(folds).unique(return_inverse=True)[1]

    @cached_property
    def folds(self) -> list[Moments]:
        """By fold."""
        return [
            pooled([cell for cell, fold in zip(self.cells, self.fold_of_cell.tolist(), strict=True) if fold == k])
            for k in range(int(self.fold_of_cell.max()) + 1)
        ]

    @cached_property
    def whole(self) -> Moments:
        """All rows."""
        return pooled(self.folds)

    def without(self, *folds: int) -> Moments:
        """All rows but some folds'."""
        return pooled([part for k, part in enumerate(self.folds) if k not in folds])

    @cached_property
    def by_fold_and_position(self) -> list[list[Moments]]:
        """By fold and position."""
        filled = [row for row in self.parts if any(part.weight > 0 for part in row)]
        return [
            [
                pooled([row[p] for row, fold in zip(filled, self.fold_of_cell.tolist(), strict=True) if fold == k])
                for p in range(len(self.parts[0]))
            ]
            for k in range(len(self.folds))
        ]


class Accumulator:
    """Takes in batches of rows, a buffer at a time, and keeps the moments of every cell.

    Args:
        panels: Groups of sites that share a Gram.
        n_folds: Folds of the cross-validation.
        n_groups: How many groups of rows there are, if that is known.
        n_positions: Tell apart this many positions, if memory allows.
        seed: Seed of the dealing.
    """

    def __init__(
        self,
        panels: Sequence[Sequence[str]],
        *,
        n_folds: int,
        n_groups: int | None,
        n_positions: int | None,
        seed: int,
    ) -> None:
        self.panels = [tuple(panel) for panel in panels]
        self.n_folds = n_folds
        self.n_groups = n_groups
        self.n_positions = n_positions
        self.seed = seed
        self.n_cells = 0
        self._parts: list[list[list[Moments]]] = []
        self._waiting: list[tuple[RowBatch, Tensor]] = []
        self._bytes = 0
        self._n_batches = 0

    def update(self, batch: RowBatch) -> Int[Tensor, "row"]:
        """Take in a batch; returns the cell of each of its rows.

        Raises:
            ValueError: if an activation or a target is NaN or infinite; the message names the site and the batch.
        """
        sites = list(dict.fromkeys(site for panel in self.panels for site in panel))
        self._check(batch, sites)
        if not self._parts:
            self._start(batch)
        cells = deal(batch.groups, self.n_cells, n_groups=self.n_groups, seed=self.seed)
        kept = RowBatch(
            {site: batch.features[site] for site in sites},
            batch.targets,
            batch.weights,
            batch.groups,
            batch.words,
            batch.positions,
        )
        self._waiting.append((kept, cells))
        self._bytes += sum(batch.features[site].numel() * batch.features[site].element_size() for site in sites)
        self._n_batches += 1
        if self._bytes >= BUFFER_BYTES:
            self._flush()
        return cells

    def finish(self) -> dict[tuple[str, ...], Cells]:
        """The cells of each panel.

        Raises:
            ValueError: if there were no rows, or only one group of them.
        """
        self._flush()
        filled = {
            c % self.n_folds
            for parts in self._parts
            for c, row in enumerate(parts)
            if any(part.weight > 0 for part in row)
        }
        if len(filled) < 2:
            raise ValueError(
                f"The rows fall into {len(filled)} fold: there are too few groups with weight to hold any out. Give "
                "more rows, or groups that tell them apart."
            )
        return {
            panel: Cells(tuple(tuple(row) for row in parts), self.n_folds)
            for panel, parts in zip(self.panels, self._parts, strict=True)
        }

    def _start(self, batch: RowBatch) -> None:
        targets = {name: values.shape[1] for name, values in batch.targets.items()}
        blocks = [{site: batch.features[site].shape[1] for site in panel} | targets for panel in self.panels]
        widest = max(sum(b.values()) for b in blocks)
        if widest > MAX_WIDTH:
            sizes = ", ".join(f"{site} {batch.features[site].shape[1]}" for site in max(self.panels, key=len))
            raise ValueError(
                f"The concatenation has {widest:,} columns ({sizes}), more than {MAX_WIDTH:,}: its moments would take "
                f"{widest**2 * 8 / 2**30:.1f} GiB for each fold. Give fewer sites, or concatenate=False."
            )
        size = sum(sum(b.values()) ** 2 * 8 for b in blocks)
        n_cells = self.n_folds * CELLS_PER_FOLD
        positions = self.n_positions or 1
        if n_cells * positions * size > MOMENTS_BUDGET:
            n_cells = self.n_folds * 2
        if n_cells * positions * size > MOMENTS_BUDGET:
            positions, self.n_positions = 1, None
        if n_cells * size > MOMENTS_BUDGET:
            n_cells = self.n_folds
        self.n_cells = n_cells
        self._parts = [[[Moments(b) for _ in range(positions)] for _ in range(n_cells)] for b in blocks]

    def _flush(self) -> None:
        if not self._waiting:
            return
        batches = [batch for batch, _ in self._waiting]
        n_positions = self.n_positions or 1
        positions = torch.cat([b.positions.cpu() for b in batches]) if self.n_positions else 0
        key = torch.cat([cells for _, cells in self._waiting]) * n_positions + positions
        order = key.argsort(stable=True)
        present, counts = key[order].unique_consecutive(return_counts=True)
        weights = torch.cat([b.weights for b in batches])[order]
        targets = {name: torch.cat([b.targets[name] for b in batches])[order] for name in batches[0].targets}
        for panel, parts in zip(self.panels, self._parts, strict=True):
            features = [torch.cat([b.features[site] for b in batches]) for site in panel]
            device = features[0].device
            columns = [values[order.to(device)] for values in features] + [v.to(device) for v in targets.values()]
            start = 0
            for k, count in zip(present.tolist(), counts.tolist(), strict=True):
                rows = slice(start, start + count)
                start += count
                joint = torch.cat([values[rows].double() for values in columns], dim=1)
                parts[k // n_positions][k % n_positions].update(joint, weights[rows].to(device))
        self._waiting, self._bytes = [], 0

    def _check(self, batch: RowBatch, sites: Sequence[str]) -> None:
        for site in sites:
            # One reduction: a sum is finite only if all its terms are, short of overflow, which is as bad.
            if not torch.isfinite(batch.features[site].sum()) and not torch.isfinite(batch.features[site]).all():
                words = f" (words {int(batch.words.min())} to {int(batch.words.max())})" if len(batch) else ""
                raise ValueError(
                    f"Activations at {site} hold NaN or infinity in batch {self._n_batches}{words}: the model has "
                    "diverged, or overflows in its dtype. Check its weights, or run it in float32."
                )
        for name, values in batch.targets.items():
            if not torch.isfinite(values).all():
                raise ValueError(
                    f"The target {name!r} holds NaN or infinity in batch {self._n_batches}: check the data."
                )


def accumulate(
    batches: Iterable[RowBatch],
    accumulator: Accumulator,
    observers: Sequence[Callable[[RowBatch, Tensor, int], None]] = (),
) -> Mapping[tuple[str, ...], Cells]:
    """One pass: every batch to the accumulator, and to observers with its rows' cells and the number of cells."""
    for batch in batches:
        cells = accumulator.update(batch)
        for observe in observers:
            observe(batch, cells, accumulator.n_cells)
    return accumulator.finish()
