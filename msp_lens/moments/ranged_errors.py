"""Squared errors of several read-outs of the same targets, by cell and by range (of positions), from one pass.

Scores of any range, and of all rows together, follow from the same sums:

    Σ w |t - r|²,    Σ w t,    Σ w t²,    Σ w        in each cell and range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens._distributed import total
from msp_lens.moments.scores import CellErrors, HeldOutScore, Score
from msp_lens.moments.solve import without_rounding


class RangedErrors:
    """Sums of squared errors, of which scores are made; `update` adds a batch.

    Args:
        reference: The targets' mean, about: the squares of values far from 0 would cancel. The same in all processes.
        n_readouts: How many read-outs of the targets there are.
        n_ranges: How many ranges rows are in.
        n_cells: How many cells rows are dealt into.
        n_folds: Cell c belongs to fold c mod n_folds.

    Example:
        >>> errors = RangedErrors(torch.zeros(1).double(), n_readouts=1, n_ranges=2, n_cells=4, n_folds=2)
        >>> targets, ranges = torch.arange(4.0).double().unsqueeze(1), torch.tensor([0, 1, 1, 1])
        >>> errors.update(targets, [targets + 0.1], torch.ones(4).double(), ranges=ranges, cells=torch.arange(4))
        >>> round(errors.score(0).mse, 12), errors.score(0, 1).n
        (0.01, 3)
    """

    def __init__(
        self,
        reference: Float64[Tensor, "target"],
        *,
        n_readouts: int,
        n_ranges: int,
        n_cells: int,
        n_folds: int,
    ) -> None:
        self.reference, self.n_ranges, self.n_folds = reference, n_ranges, n_folds
        size, width = n_cells * n_ranges, len(reference)
        self._errors = torch.zeros(n_readouts, size, width, dtype=torch.float64)
        self._sums, self._squares = torch.zeros(2, size, width, dtype=torch.float64)
        self._weight, self._n = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.int64)

    def update(
        self,
        targets: Float64[Tensor, "row target"],
        readouts: Sequence[Float64[Tensor, "row target"]],
        weights: Float64[Tensor, "row"],
        *,
        ranges: Int[Tensor, "row"],
        cells: Int[Tensor, "row"],
    ) -> None:
        """Add a batch of rows, given the range and the cell of each."""
        key, weight, centered = cells * self.n_ranges + ranges, weights.unsqueeze(1), targets - self.reference
        self._weight.index_add_(0, key, weights)
        self._sums.index_add_(0, key, weight * centered)
        self._squares.index_add_(0, key, weight * centered**2)
        self._n.index_add_(0, key, torch.ones_like(key))
        for errors, read in zip(self._errors, readouts, strict=True):
            errors.index_add_(0, key, weight * (targets - read) ** 2)

    def reduce(self) -> None:
        """Add the sums of all processes."""
        for name in ("_errors", "_sums", "_squares", "_weight", "_n"):
            setattr(self, name, total(getattr(self, name)))

    def _by_cell(self, values: Tensor) -> Tensor:
        """Sums `[cell and range, …]` as `[cell, range, …]`."""
        return values.unflatten(0, (-1, self.n_ranges))

    @property
    def shares(self) -> Float64[Tensor, "range"]:
        """The share of the rows' weight in each range."""
        weight = self._by_cell(self._weight).sum(dim=0)
        return weight / weight.sum()

    def score(self, readout: int, number: int | None = None) -> HeldOutScore:
        """The score of a read-out on all rows, or against the variance in one range about its own mean, on its rows."""
        return self._scored(self._by_cell(self._errors[readout]), number)

    def _scored(self, errors: Float64[Tensor, "cell range target"], number: int | None) -> HeldOutScore:
        chosen = slice(None) if number is None else slice(number, number + 1)
        named = {"weight": self._weight, "sums": self._sums, "squares": self._squares, "n": self._n}
        of_cells = {name: self._by_cell(values)[:, chosen].sum(dim=1) for name, values in named.items()}
        filled = (of_cells["weight"] > 0).nonzero().flatten()
        if len(filled) == 0:
            return HeldOutScore(math.nan, math.nan, 0)
        # Fold by fold, as other scores are.
        filled = filled[(filled % self.n_folds).argsort(stable=True)]
        weight, sums, squares = (of_cells[name][filled] for name in ("weight", "sums", "squares"))
        mean = sums.sum(dim=0) / weight.sum()
        spread = squares - 2 * mean * sums + mean**2 * weight.unsqueeze(1)
        varies = without_rounding(spread.sum(dim=0) / weight.sum(), self.reference + mean) > 0
        spread = torch.where(varies, spread.clamp(min=0), 0.0)
        own, n = errors[filled][:, chosen].sum(dim=1), int(of_cells["n"].sum())
        return CellErrors(own, spread, weight, filled % self.n_folds, n).score()

    def score_of_means(self) -> tuple[Score, HeldOutScore]:
        """What the range alone predicts, by the targets' mean in it: on the same rows, and of the other folds."""
        weight, sums, squares = map(self._by_cell, (self._weight, self._sums, self._squares))
        fold = torch.arange(len(weight)) % self.n_folds

        def errors(fitted: Tensor) -> Float64[Tensor, "cell range target"]:
            """The errors of the means of some cells; in a range that they lack, of their mean over all."""
            of_ranges, rows = weight[fitted].sum(dim=0).unsqueeze(1), sums[fitted].sum(dim=0)
            means = torch.where(of_ranges > 0, rows / of_ranges, rows.sum(dim=0) / of_ranges.sum())
            return (squares - 2 * means * sums + means**2 * weight.unsqueeze(2)).clamp(min=0)

        held_out = torch.zeros_like(sums)
        for k in fold[weight.sum(dim=1) > 0].unique().tolist():
            held_out[fold == k] = errors(fold != k)[fold == k]
        whole = self._scored(errors(fold >= 0), None)
        in_sample = Score(whole.r2, whole.mse, whole.n, whole.r2_by_target, whole.mse_by_target, whole.variance)
        return in_sample, self._scored(held_out, None)
