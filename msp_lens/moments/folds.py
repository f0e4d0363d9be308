"""Folds: the rows are dealt into cells, each with moments of its own, and a fold is a union of cells.

All rows are the union of the folds and the bootstrap resamples cells, so that none of it takes a second pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

from msp_lens.moments.moments import Moments, merge_all


@dataclass(frozen=True, eq=False)
class Cells:
    """The moments of sites that share a Gram, by cell and position.

    Attributes:
        parts: `parts[cell][position]`; one position where positions are not told apart.
        n_folds: Cell c belongs to fold c mod n_folds.
    """

    parts: tuple[tuple[Moments, ...], ...]
    n_folds: int

    @property
    def filled(self) -> list[int]:
        """Numbers of the cells that hold rows."""
        return [c for c, row in enumerate(self.parts) if any(part.weight > 0 for part in row)]

    @cached_property
    def cells(self) -> list[Moments]:
        """By cell, positions together; empty ones left out."""
        merged = [positions[0] if len(positions) == 1 else merge_all(positions) for positions in self.parts]
        return [cell for cell in merged if cell.weight > 0]

    @cached_property
    def fold_of_cell(self) -> Int[Tensor, "cell"]:
        """The fold of each cell that is not empty, numbered without gaps."""
        folds = [c % self.n_folds for c in self.filled]
        return torch.tensor(folds).unique(return_inverse=True)[1]

    @cached_property
    def folds(self) -> list[Moments]:
        """By fold."""
        return [
            merge_all([cell for cell, fold in zip(self.cells, self.fold_of_cell.tolist(), strict=True) if fold == k])
            for k in range(int(self.fold_of_cell.max()) + 1)
        ]

    @cached_property
    def whole(self) -> Moments:
        """All rows."""
        return merge_all(self.folds)

    def without(self, *folds: int) -> Moments:
        """All rows but some folds'."""
        return merge_all([part for k, part in enumerate(self.folds) if k not in folds])

    @cached_property
    def by_fold_and_position(self) -> list[list[Moments]]:
        """By fold and position."""
        filled = [self.parts[c] for c in self.filled]
        return [
            [
                merge_all([row[p] for row, fold in zip(filled, self.fold_of_cell.tolist(), strict=True) if fold == k])
                for p in range(len(self.parts[0]))
            ]
            for k in range(len(self.folds))
        ]
