"""Folds of cross-validation, from moments: rows are dealt into cells, and a fold is a union of cells.

    moments of the training rows of fold k = merge of the moments of all other folds

The bootstrap resamples cells, so none of this takes a second pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from msp_lens.moments.moments import Moments, merge_all


@dataclass(frozen=True, eq=False)
class Cells:
    """The moments of blocks that share a Gram matrix, by cell and position.

    Attributes:
        parts: `parts[cell][position]`; there is one position if positions are not kept apart.
        n_folds: Cell c belongs to fold c mod n_folds.
        n_groups: Number of groups of rows that were dealt into cells; `None` if it is not known.
    """

    parts: tuple[tuple[Moments, ...], ...]
    n_folds: int
    n_groups: int | None = None

    @cached_property
    def _filled(self) -> list[list[tuple[Moments, ...]]]:
        """The parts of the cells that hold rows, by fold; folds without rows are left out."""
        by_fold: dict[int, list[tuple[Moments, ...]]] = {}
        for number, positions in enumerate(self.parts):
            if any(part.weight > 0 for part in positions):
                by_fold.setdefault(number % self.n_folds, []).append(positions)
        return [by_fold[k] for k in sorted(by_fold)]

    @cached_property
    def cells(self) -> list[list[Moments]]:
        """The moments by fold and cell; empty cells and folds are left out."""
        return [[parts[0] if len(parts) == 1 else merge_all(parts) for parts in fold] for fold in self._filled]

    @cached_property
    def folds(self) -> list[Moments]:
        """The moments of each fold."""
        return [merge_all(fold) for fold in self.cells]

    @cached_property
    def whole(self) -> Moments:
        """The moments of all rows."""
        return merge_all(self.folds)

    def without(self, *folds: int) -> Moments:
        """The moments of all rows outside these folds; merged, since subtracting from the whole would lose digits."""
        return merge_all([part for k, part in enumerate(self.folds) if k not in folds])

    @cached_property
    def by_fold_and_position(self) -> list[list[Moments]]:
        """The moments by fold and position."""
        return [[merge_all(cells) for cells in zip(*fold, strict=True)] for fold in self._filled]
