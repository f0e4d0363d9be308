"""Moments by cell: the rows are dealt into cells of groups, a cell to a fold, and every cell keeps moments of its own.

Folds are unions of cells, all rows the union of folds, and the bootstrap resamples cells: no second pass for any of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from msp_lens.moments.folds import Cells
from msp_lens.moments.grid import MAX_BYTES, MomentsGrid, check_memory
from msp_lens.moments.pass_progress import PassCheckpoint, PassProgress
from msp_lens.moments.reduce import reduce_grid
from msp_lens.probing.rows import RowBatch, check_finite
from msp_lens.probing.splits import CELLS_PER_FOLD, deal

# Above this many bytes of moments, positions and then cells are given up.
MOMENTS_BUDGET = 2**29
# Rows wait until they fill this many bytes: moments of a few rows cost as much as those of many.
BUFFER_BYTES = 2**27


@runtime_checkable
class Observer(Protocol):
    """What else is summed up in the same pass."""

    def update(self, batch: RowBatch, cells: Int[Tensor, "row"], n_cells: int) -> None:
        """Take in a batch and the cell of each of its rows."""
        ...

    def state(self) -> dict[str, Tensor]:
        """The sums so far, to be saved."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from sums that `state` gave."""
        ...

    def reduce(self) -> None:
        """Add the sums of all processes, where there are several."""
        ...


class Accumulator:
    """Takes in batches of rows, a buffer at a time, and keeps the moments of every cell.

    Args:
        panels: Groups of sites that share a Gram.
        n_folds: Folds of the cross-validation.
        n_groups: How many groups of rows there are, if that is known.
        n_positions: Tell apart this many positions, if memory allows.
        seed: Seed of the dealing.
        max_bytes: Refuse to hold more than this.
        progress: Of an interrupted pass, to go on from.
    """

    def __init__(
        self,
        panels: Sequence[Sequence[str]],
        *,
        n_folds: int,
        n_groups: int | None,
        n_positions: int | None,
        seed: int,
        max_bytes: int = MAX_BYTES,
        progress: PassProgress | None = None,
    ) -> None:
        self.panels = [tuple(panel) for panel in panels]
        self.n_folds = n_folds
        self.n_groups = n_groups
        self.n_positions = n_positions
        self.seed = seed
        self.max_bytes = max_bytes
        self.progress = progress
        self.n_cells = 0
        self.grid: MomentsGrid | None = None
        self._waiting: list[tuple[RowBatch, Tensor]] = []
        self._bytes = 0
        self._n_batches = 0

    def update(self, batch: RowBatch) -> Int[Tensor, "row"]:
        """Take in a batch; returns the cell of each of its rows.

        Raises:
            ValueError: if an activation or a target is NaN or infinite; the message names the site and the batch.
            TooWideError: at the first batch, if the moments would take more than `max_bytes`.
        """
        sites = list(dict.fromkeys(site for panel in self.panels for site in panel))
        self._check(batch, sites)
        if self.grid is None:
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
            self.flush()
        return cells

    def finish(self) -> dict[tuple[str, ...], Cells]:
        """The cells of each panel, all processes' rows in them.

        Raises:
            ValueError: if there were no rows, or only one group of them.
        """
        self.flush()
        grid = None if self.grid is None else reduce_grid(self.grid)
        n_positions = self.n_positions or 1
        panels = {
            group: Cells(
                tuple(
                    tuple(part.cpu() for part in row[cell * n_positions : (cell + 1) * n_positions])
                    for cell in range(self.n_cells)
                ),
                self.n_folds,
            )
            for group, row in zip(grid.groups if grid else (), grid.moments if grid else (), strict=True)
        }
        n_filled = min((len({c % self.n_folds for c in cells.filled}) for cells in panels.values()), default=0)
        if n_filled < 2:
            raise ValueError(
                f"The rows fall into {n_filled} fold: there are too few groups with weight to hold any out. Give "
                "more rows, or groups that tell them apart."
            )
        return panels

    def _start(self, batch: RowBatch) -> None:
        widths = {name: values.shape[1] for name, values in {**batch.features, **batch.targets}.items()}
        targets = tuple(batch.targets)
        size = sum(sum(widths[name] for name in (*panel, *targets)) ** 2 * 8 for panel in self.panels)
        n_cells = self.n_folds * CELLS_PER_FOLD
        positions = self.n_positions or 1
        if n_cells * positions * size > MOMENTS_BUDGET:
            n_cells = self.n_folds * 2
        if n_cells * positions * size > MOMENTS_BUDGET:
            positions, self.n_positions = 1, None
        if n_cells * size > MOMENTS_BUDGET:
            n_cells = self.n_folds
        check_memory(self.panels, widths, targets=targets, n_cells=n_cells, max_bytes=self.max_bytes)
        self.n_cells = n_cells
        self.grid = MomentsGrid(self.panels, targets=targets, n_cells=n_cells * positions, max_bytes=self.max_bytes)
        if self.progress is not None:
            self.grid.restore(self.progress.moments, n_batches=self.progress.n_batches)

    def flush(self) -> None:
        """Take the waiting rows into the moments."""
        if not self._waiting or self.grid is None:
            return
        batches = [batch for batch, _ in self._waiting]
        keys = torch.cat([cells for _, cells in self._waiting])
        if self.n_positions is not None:
            # What precedes the first symbol (-1) counts with the first.
            positions = torch.cat([batch.positions.cpu() for batch in batches]).clamp(min=0)
            keys = keys * self.n_positions + positions
        blocks = {site: torch.cat([b.features[site] for b in batches]) for site in batches[0].features}
        blocks |= {name: torch.cat([b.targets[name] for b in batches]) for name in batches[0].targets}
        self._waiting, self._bytes = [], 0
        self.grid.update(blocks, torch.cat([batch.weights for batch in batches]), keys)

    def _check(self, batch: RowBatch, sites: Sequence[str]) -> None:
        words = f" (words {int(batch.words.min())} to {int(batch.words.max())})" if len(batch) else ""
        place = f"batch {self._n_batches}{words}"
        for site in sites:
            check_finite(batch.features[site], f"{site} in {place}")
        for name, values in batch.targets.items():
            check_finite(values, f"the target {name!r} in {place}", remedy="check the data.")


def accumulate(
    batches: Iterable[RowBatch],
    accumulator: Accumulator,
    observers: Sequence[Observer] = (),
    *,
    checkpoint: PassCheckpoint | None = None,
) -> Mapping[tuple[str, ...], Cells]:
    """One pass: every batch to the accumulator, and to observers with its rows' cells and the number of cells.

    With a checkpoint, what has been summed is saved from time to time; batches then say which words they are of.
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
