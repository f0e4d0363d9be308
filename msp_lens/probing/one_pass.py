"""One pass over rows: groups of rows are dealt into cells, and every cell has its own moments.

Where a target is not defined in some rows, those rows have moments of their own too: moments add, so each target is
scored on its own rows, still from one pass.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from msp_lens._arrays import moved
from msp_lens._checks import check_all_finite
from msp_lens._distributed import total
from msp_lens.data import LabelledTokens
from msp_lens.data.splits import CELLS_PER_FOLD, deal
from msp_lens.moments.folds import Cells
from msp_lens.moments.grid import MAX_BYTES, MomentsGrid, check_memory, moments_bytes
from msp_lens.moments.logistic import fit_logistic
from msp_lens.moments.moments import Moments, merge_all
from msp_lens.moments.pass_progress import PassCheckpoint, PassProgress
from msp_lens.moments.reduce import reduce_grid
from msp_lens.probing.probe_tables import ClassReadout, ClassReadouts
from msp_lens.probing.rows import CHECK_THE_MODEL, RowBatch


@runtime_checkable
class Observer(Protocol):
    """Other sums over the same pass."""

    def update(self, batch: RowBatch, cells: Int[Tensor, "row"], n_cells: int) -> None:
        """Add a batch, given the cell of each of its rows."""

    def state(self) -> dict[str, Tensor]:
        """The sums so far, to be saved."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from sums that `state` returned."""

    def reduce(self) -> None:
        """Add the sums of all processes."""


# The targets that are not defined in a row.
Stratum: TypeAlias = frozenset[str]
EVERYTHING: tuple[Stratum, ...] = (frozenset(),)


def strata_of(undefined: Mapping[str, Bool[Tensor, "row"]]) -> tuple[Stratum, ...]:
    """The distinct sets of targets that are not defined in the same row."""
    if not undefined:
        return EVERYTHING
    patterns = torch.stack(list(undefined.values()), dim=1).unique(dim=0)
    return tuple(frozenset(itertools.compress(undefined, pattern)) for pattern in patterns.tolist())


@dataclass(frozen=True, eq=False)
class Sums:
    """The moments of one pass.

    Attributes:
        by_panel: By sites that share a Gram matrix, cell and stratum.
        strata: The targets that are not defined in each stratum.
        n_folds: Cell c belongs to fold c mod n_folds.
        n_groups: Number of groups of rows, about.
        at_positions: The same rows by panel, fold, position and stratum; empty if positions are not kept apart.
    """

    by_panel: Mapping[tuple[str, ...], Sequence[Sequence[Moments]]]
    strata: tuple[Stratum, ...]
    n_folds: int
    n_groups: int | None = None
    at_positions: Mapping[tuple[str, ...], Sequence[Sequence[Sequence[Moments]]]] = field(default_factory=dict)
    _merged: dict[Any, Cells] = field(default_factory=dict, init=False, repr=False)

    def kept(self, targets: Iterable[str] = ()) -> tuple[int, ...]:
        """The strata where all these targets are defined."""
        return tuple(k for k, missing in enumerate(self.strata) if not missing.intersection(targets))

    def cells(self, sites: Sequence[str] = (), targets: Iterable[str] = ()) -> Cells:
        """The cells of the first panel that has these sites jointly, with the rows where all these targets are defined.

        Raises:
            ValueError: if the rows with weight fall into fewer than two folds.
        """
        panel = next(panel for panel in self.by_panel if set(sites) <= set(panel))
        kept = self.kept(targets)
        if any(known != panel for known, _ in self._merged):
            # The merged moments of all panels would take as much again as the moments.
            self._merged.clear()
        if (panel, kept) not in self._merged:

            def defined(parts: Sequence[Sequence[Moments]]) -> tuple[Moments, ...]:
                """Each part's rows in the strata that are kept."""
                return tuple(
                    strata[0] if len(strata) == 1 else merge_all([strata[k] for k in kept]) for strata in parts if kept
                )

            positions = tuple(map(defined, self.at_positions.get(panel, ())))
            found = Cells(defined(self.by_panel[panel]), self.n_folds, self.n_groups, positions)
            if len(found.folds) < 2:
                problem = f"The rows fill {len(found.folds)} of {self.n_folds} folds: there are too few groups"
                raise ValueError(f"{problem} with weight to hold any out. Give more rows, or more groups.")
            self._merged[panel, kept] = found
        return self._merged[panel, kept]

    def of_targets(self, names: Sequence[str]) -> Cells:
        """The moments of some targets alone, with the rows where all are defined; errors as for `cells`."""
        parts = tuple(part.select(names) for part in self.cells(targets=names).parts)
        return Cells(parts, self.n_folds, self.n_groups)


@dataclass(frozen=True)
class MomentsPlan:
    """What the moments of a pass keep apart, and what that takes.

    Attributes:
        targets: The blocks that are no sites.
        n_cells: Number of cells that groups of rows are dealt into.
        n_positions: Number of positions kept apart; `None` if none were to be, or they would take too much.
        n_bytes_by_position: What they would take with all positions kept apart.
    """

    targets: tuple[str, ...]
    n_cells: int
    n_positions: int | None
    n_bytes_by_position: int


def plan_moments(
    panels: Sequence[Sequence[str]],
    widths: Mapping[str, int],
    *,
    n_folds: int,
    n_positions: int | None = None,
    n_strata: int = 1,
    max_bytes: int = MAX_BYTES,
) -> MomentsPlan:
    """What the moments of these panels and all other blocks may keep apart; `TooWideError` if even folds do not fit.

    More cells than folds, and positions, are kept apart only while the moments take at most a quarter of `max_bytes`.
    """
    sites = {site for panel in panels for site in panel}
    targets = tuple(name for name in widths if name not in sites)
    size = n_strata * moments_bytes(panels, widths, targets=targets)
    n_cells, budget = n_folds * CELLS_PER_FOLD, modest(max_bytes)
    n_apart = n_folds * (n_positions or 0)
    # Above the budget, some cells, then positions, then more cells are given up.
    if (n_cells + n_apart) * size > budget:
        n_cells = n_folds * 2
    by_position = (n_cells + n_apart) * size
    if by_position > budget:
        n_positions = None
    if n_cells * size > budget:
        n_cells = n_folds
    check_memory(panels, widths, targets=targets, n_cells=n_cells * n_strata, max_bytes=max_bytes)
    return MomentsPlan(targets, n_cells, n_positions, by_position)


def modest(max_bytes: int) -> int:
    """What moments may take that nobody asked for by name."""
    return max_bytes // 4


class _Waiting(NamedTuple):
    """A batch to be added: the rest of it, its activations by site, and the cell of each row."""

    batch: RowBatch
    features: dict[str, Tensor]
    cells: Int[Tensor, "row"]


@dataclass(eq=False)
class Accumulator:
    """Sums batches of rows, one buffer at a time, into the moments of every cell.

    Attributes:
        panels: Groups of sites that share a Gram matrix.
        n_folds: Number of folds of the cross-validation.
        n_groups: Number of groups of rows, numbered from 0, to deal them evenly; else they are dealt by hash.
        n_positions: Number of positions to keep apart, if memory allows.
        seed: Seed for dealing groups into cells.
        max_bytes: Largest memory that the moments may take.
        progress: An interrupted pass to continue.
        strata: The sets of targets that are not defined in the same row.
        group_count: Number of groups that are dealt by hash, if known; else it is estimated.
        n_cells: Number of cells; known from the first batch on, like the grid.
        grid: The moments.
        n_bytes_by_position: What the moments would take, or take, with positions kept apart.
    """

    panels: Sequence[tuple[str, ...]]
    n_folds: int
    n_groups: int | None
    n_positions: int | None
    seed: int
    max_bytes: int = MAX_BYTES
    progress: PassProgress | None = None
    strata: tuple[Stratum, ...] = EVERYTHING
    group_count: int | None = None
    n_cells: int = 0
    grid: MomentsGrid | None = None
    n_bytes_by_position: int = 0
    _waiting: list[_Waiting] = field(default_factory=list)
    _bytes: int = 0
    _n_batches: int = 0
    _groups_seen: Tensor = field(default_factory=lambda: torch.zeros(2**20, dtype=torch.bool))

    def __post_init__(self) -> None:
        if self.progress is not None and self.progress.moments:
            # The sums saved may be of all rows: then no batch is left to show how wide the blocks are.
            saved = self.progress.moments.values()
            self._start({name: width for moments in saved for name, width in moments.blocks.items()})

    def update(self, batch: RowBatch) -> Int[Tensor, "row"]:
        """Add a batch; returns the cell of each of its rows.

        Raises:
            ValueError: if an activation or a target is not finite; the message names the site, the batch and its words.
            TooWideError: at the first batch, if the moments would take more than `max_bytes`.
        """
        sites = list(dict.fromkeys(site for panel in self.panels for site in panel))
        words = f" (words {int(batch.words.min())} to {int(batch.words.max())})" if len(batch) else ""
        place = f"batch {self._n_batches}{words}"
        features = {site: batch.features[site] for site in sites}
        check_all_finite([(f"{site} in {place}", values) for site, values in features.items()], CHECK_THE_MODEL)
        targets = [(f"the target {name!r} in {place}", values) for name, values in batch.targets.items()]
        check_all_finite(targets, "Check the data.")
        if self.grid is None:
            self._start({name: values.shape[1] for name, values in {**features, **batch.targets}.items()})
        cells = deal(batch.groups, self.n_cells, n_groups=self.n_groups, seed=self.seed)
        if self.group_count is None and self.n_groups is None:
            self._groups_seen[deal(batch.groups, len(self._groups_seen), n_groups=None, seed=self.seed)] = True
        self._waiting.append(_Waiting(replace(batch, features={}, output=None), features, cells))
        self._bytes += sum(values.nbytes for values in features.values())
        self._n_batches += 1
        # Moments of a few rows cost as much as those of many, so rows wait until they fill this many bytes.
        if self._bytes >= 2**25:
            self.flush()
        return cells

    def finish(self) -> Sums:
        """The sums, with the rows of all processes.

        Raises:
            ValueError: if there were no rows.
        """
        self.flush()
        if self.grid is None:
            raise ValueError("There are no rows to hold any out: give more.")
        grid, by_panel, at_positions = reduce_grid(self.grid), {}, {}
        for panel, row in zip(grid.groups, grid.moments, strict=True):
            parts = _batched([part.cpu() for part in row], len(self.strata))
            by_panel[panel] = parts[: self.n_cells]
            if self.n_positions is not None:
                at_positions[panel] = _batched(parts[self.n_cells :], self.n_positions)
        return Sums(by_panel, self.strata, self.n_folds, self._count_groups(), at_positions)

    def _count_groups(self) -> int:
        """The number of groups, or an estimate of it: random bits were set, one for each, and (1 - 1 / m)ⁿ are not."""
        if (known := self.group_count or self.n_groups) is not None:
            return known
        is_set = total(self._groups_seen.double()) > 0
        free = max(1, int((~is_set).sum()))
        return round(-len(is_set) * math.log(free / len(is_set)))

    def _start(self, widths: Mapping[str, int]) -> None:
        plan = plan_moments(
            self.panels,
            widths,
            n_folds=self.n_folds,
            n_positions=self.n_positions,
            n_strata=len(self.strata),
            max_bytes=self.max_bytes,
        )
        self.n_cells, self.n_positions = plan.n_cells, plan.n_positions
        self.n_bytes_by_position = plan.n_bytes_by_position
        by_position = () if plan.n_positions is None else (self.n_folds * plan.n_positions,)
        n_cells = tuple(n * len(self.strata) for n in (plan.n_cells, *by_position))
        self.grid = MomentsGrid(self.panels, targets=plan.targets, n_cells=n_cells, max_bytes=self.max_bytes)
        if self.progress is not None:
            self.grid.restore(self.progress.moments, n_batches=self.progress.n_batches)

    def flush(self) -> None:
        """Add the waiting rows to the moments."""
        if not self._waiting or self.grid is None:
            return
        batches = [waiting.batch for waiting in self._waiting]
        cells = torch.cat([waiting.cells for waiting in self._waiting])
        keys = [cells]
        if self.n_positions is not None:
            # The prior, before the first symbol (-1), counts as the first position.
            positions = torch.cat([batch.positions.cpu() for batch in batches]).clamp(min=0)
            keys.append(cells % self.n_folds * self.n_positions + positions)
        if len(self.strata) > 1:
            strata = torch.cat([self._stratum(batch) for batch in batches])
            keys = [key * len(self.strata) + strata for key in keys]
        targets = {name: torch.cat([b.targets[name] for b in batches]) for name in batches[0].targets}
        weights = torch.cat([batch.weights for batch in batches])
        # The batches let go of a site's activations as they are joined.
        sites = list(self._waiting[0].features)
        features = {site: torch.cat([waiting.features.pop(site) for waiting in self._waiting]) for site in sites}
        self.grid.update(features | targets, weights, torch.stack(keys, dim=1), are_finite=True)
        self._waiting, self._bytes = [], 0

    def _stratum(self, batch: RowBatch) -> Int[Tensor, "row"]:
        """The stratum of each row."""
        found = torch.zeros(len(batch), dtype=torch.int64)
        for number, missing in enumerate(self.strata):
            matches = [gone if name in missing else ~gone for name, gone in batch.undefined.items()]
            found[torch.stack(matches).all(dim=0)] = number
        return found


def _batched(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def accumulate(
    batches: Iterable[RowBatch],
    accumulator: Accumulator,
    observers: Sequence[Observer] = (),
    *,
    checkpoint: PassCheckpoint | None = None,
) -> Sums:
    """One pass: every batch goes to the accumulator and, with its rows' cells, to the observers.

    With a checkpoint, the sums so far are saved from time to time; batches must then know their words.
    """
    for batch in batches:
        cells = accumulator.update(batch)
        for observer in observers:
            observer.update(batch, cells, accumulator.n_cells)
        if checkpoint is not None and checkpoint.is_due and batch.batch_words is not None:
            accumulator.flush()
            sums = {name: tensor for observer in observers for name, tensor in observer.state().items()}
            assert accumulator.grid is not None
            checkpoint.save(accumulator.grid, n_done=batch.batch_words.stop, sums=sums)
    for observer in observers:
        observer.reduce()
    return accumulator.finish()


class ClassRows:
    """Keeps a sample of the rows of a target that is classes, for logistic read-outs, which sums do not suffice for.

    Args:
        data: The labelled tokens that are read.
        labels: The class of each row.
        classes: The classes' names.
        sites: The sites whose features are kept.
        seed: Seed of the sample.
    """

    def __init__(
        self,
        data: LabelledTokens,
        labels: Int[Tensor, "row"],
        classes: Sequence[str],
        sites: Sequence[str],
        *,
        seed: int,
    ) -> None:
        self.data, self.labels, self.classes, self.sites, self.seed = data, labels, tuple(classes), tuple(sites), seed
        self.rows = torch.empty(0, dtype=torch.int64)
        # By site, and the cell of each row.
        self._kept: dict[str, Tensor] = {}
        self._cells = torch.empty(0, dtype=torch.int64)

    def _start(self, widths: Mapping[str, int]) -> None:
        most_rows, most_bytes = 10_000, 2**28
        n_rows = min(most_rows, max(100, most_bytes // (4 * sum(widths.values()))), len(self.labels))
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(self.seed))
        self.rows = order[:n_rows].sort().values
        self._kept = {site: torch.zeros(n_rows, width) for site, width in widths.items()}
        self._cells = torch.zeros(n_rows, dtype=torch.int64)

    def update(self, batch: RowBatch, cells: Int[Tensor, "row"], n_cells: int) -> None:
        """Keep those rows of a batch of words that are in the sample."""
        if not self._kept:
            self._start({site: batch.features[site].shape[1] for site in self.sites})
        assert batch.batch_words is not None
        rows = self.data.rows_of(batch.batch_words)
        ends = torch.searchsorted(self.rows, torch.tensor([rows.start, rows.stop]))
        here = slice(int(ends[0]), int(ends[1]))
        inside = self.rows[here] - rows.start
        there = cache(partial(moved, inside))
        for site, kept in self._kept.items():
            features = batch.features[site]
            # Rows stay where they are until the pass ends.
            self._kept[site] = kept = kept.to(features.device)
            kept[here] = features[there(features.device)].float()
        self._cells[here] = cells[inside]

    def state(self) -> dict[str, Tensor]:
        """The rows so far, to be saved."""
        return {f"classes.{site}": kept for site, kept in self._kept.items()} | {"classes.cells": self._cells}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from rows that `state` returned."""
        if len(state.get("classes.cells", ())):
            self._start({site: state[f"classes.{site}"].shape[1] for site in self.sites})
            self._kept, self._cells = {site: state[f"classes.{site}"] for site in self.sites}, state["classes.cells"]

    def reduce(self) -> None:
        """Gather the rows of all processes: each row is kept by one of them, and 0 in the others."""
        self._kept = {site: total(kept).cpu() for site, kept in self._kept.items()}
        self._cells = total(self._cells)

    def readouts(self, groups: Mapping[str, Sequence[str]], n_folds: int) -> ClassReadouts:
        """The logistic read-outs of some sites or groups of sites, scored on the folds of the probes."""
        labels, weights = self.labels[self.rows], self.data.weights[self.rows]
        counted = weights > 0
        labels, weights, cell = labels[counted], weights[counted], self._cells[counted]
        found = []
        for label, group in groups.items():
            features = torch.cat([self._kept[site] for site in group], dim=1)[counted]
            fitted = fit_logistic(features, labels, self.classes, weights=weights, fold=cell % n_folds, cell=cell)
            found.append(ClassReadout(label, *fitted))
        shares = torch.zeros(len(self.classes), dtype=torch.float64).index_add_(0, labels, weights / weights.sum())
        return ClassReadouts(tuple(found), dict(zip(self.classes, shares.clamp(max=1).tolist(), strict=True)))
