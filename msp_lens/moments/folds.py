"""Folds of cross-validation, from moments: rows are dealt into cells, and a fold is a union of cells.

    moments of the training rows of fold k = merge of the moments of all other folds

The bootstrap resamples cells, so none of this takes a second pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from msp_lens.moments.moments import Moments, merge_all


@dataclass(frozen=True, eq=False)
class Cells:
    """The moments of blocks that share a Gram matrix, by cell and, of the same rows, by fold and position.

    Attributes:
        parts: The moments of each cell.
        n_folds: Cell c belongs to fold c mod n_folds.
        n_groups: Number of groups of rows that were dealt into cells; `None` if it is not known.
        positions: `positions[fold][position]`; empty if positions are not kept apart.
    """

    parts: tuple[Moments, ...]
    n_folds: int
    n_groups: int | None = None
    positions: tuple[tuple[Moments, ...], ...] = ()

    @cached_property
    def _filled(self) -> dict[int, list[Moments]]:
        """The cells that hold rows, by the number of their fold; folds without rows are left out."""
        by_fold: dict[int, list[Moments]] = {}
        for number, part in enumerate(self.parts):
            if part.weight > 0:
                by_fold.setdefault(number % self.n_folds, []).append(part)
        return dict(sorted(by_fold.items()))

    @property
    def cells(self) -> list[list[Moments]]:
        """The moments by fold and cell; empty cells and folds are left out."""
        return list(self._filled.values())

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

    @property
    def by_fold_and_position(self) -> list[Sequence[Moments]]:
        """The moments by fold and position, without the folds that `folds` leaves out."""
        return [self.positions[k] for k in self._filled] if self.positions else []
