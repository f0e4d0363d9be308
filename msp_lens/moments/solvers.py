"""How a map is solved for: least squares, ridge with a penalty chosen on held-out folds, or reduced rank.

ridge's penalty:  λ* = argmin_λ Σ_k (squared error on fold k of the map fitted on the other folds with λ)
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens._checks import Between, Count, checked
from msp_lens._names import meant
from msp_lens.moments.folds import Cells
from msp_lens.moments.moments import Moments
from msp_lens.moments.solve import RANK_CUTOFF, Blocks, LinearMap, Spectrum, decompose, path_errors

# Choosing a penalty and scoring the choice honestly takes one fold to fit, one to choose and one to score.
MIN_FOLDS = 3


@checked
@dataclass(frozen=True, kw_only=True)
class Solver:
    """What `OLS`, `Ridge` and `ReducedRank` have in common.

    Attributes:
        intercept: Whether maps have an intercept.
        rank_cutoff: Directions of the standardized features with a singular value below this fraction of the largest
            are left out.
    """

    name: ClassVar[str]

    intercept: bool = True
    rank_cutoff: Annotated[float, Between(0, 0.999, "a fraction of the largest singular value")] = RANK_CUTOFF

    def to_dict(self) -> dict[str, Any]:
        """The name and the options, JSON-ready."""
        return {"name": self.name} | asdict(self)

    def decompose(self, moments: Moments, features: Blocks) -> Spectrum:
        """The spectrum that `solve` and `solve_jointly` start from."""
        return decompose(moments, features, rank_cutoff=self.rank_cutoff, intercept=self.intercept)

    def solve(self, spectrum: Spectrum, targets: Blocks) -> LinearMap:
        """The map from the spectrum's features to some targets."""
        return spectrum.ridge(targets, [self._penalty()])[0]

    def solve_jointly(self, spectrum: Spectrum, others: Blocks, targets: Blocks) -> LinearMap:
        """The map from the features and a few other columns, which no penalty or rank restricts."""
        return spectrum.jointly_with(others, targets, penalty=self._penalty())

    def check_targets(self, n_targets: int) -> None:
        """Raise `ValueError` if the solver does not suit this number of targets."""

    def solve_by_rank(self, spectrum: Spectrum, targets: Blocks, ranks: Sequence[int]) -> list[LinearMap]:
        """The reduced-rank map of each rank, with this solver's penalty; of full rank, it is the solver's own."""
        return spectrum.reduced_rank(targets, ranks, penalty=self._penalty()) if ranks else []

    def _penalty(self) -> float:
        return 0.0


@checked
@dataclass(frozen=True)
class OLS(Solver):
    """Ordinary least squares."""

    name = "ols"


@checked
@dataclass(frozen=True)
class Ridge(Solver):
    """Ridge regression on standardized features.

    Attributes:
        penalty: λ ≥ 0, in units of the standardized features' variance; `None` leaves it to `choose_penalty`.
    """

    name = "ridge"

    penalty: Annotated[float, Between(0, sys.float_info.max)] | None = None

    def _penalty(self) -> float:
        if self.penalty is None:
            raise ValueError("penalty=None: choose one with choose_penalty() before solving.")
        return self.penalty


@checked
@dataclass(frozen=True)
class ReducedRank(Solver):
    """Reduced-rank regression: the least-squares map of at most this rank (Izenman 1975).

    Attributes:
        rank: Rank of the map, at least 1. `report.by_rank()` shows every rank, whatever the solver.
    """

    name = "reduced_rank"

    rank: Count

    def check_targets(self, n_targets: int) -> None:
        """Raise `ValueError` if the rank is above the number of targets."""
        if self.rank > n_targets:
            raise ValueError(f"rank={self.rank}: a map to {n_targets} targets has a rank of at most {n_targets}.")

    def solve(self, spectrum: Spectrum, targets: Blocks) -> LinearMap:
        """The map from the spectrum's features to some targets."""
        return spectrum.reduced_rank(targets, [self.rank])[0]


@checked
@dataclass(frozen=True)
class Auto(Solver):
    """Least squares where groups of rows are many times the features, else ridge with a penalty from held-out folds.

    Least squares fits p features to n rows at the price of about p / n of the noise's variance, held out: 5 % at the
    default ratio. With few rows a feature it may be far worse than the mean, where ridge is not. Rows that are held out
    together count as one: the positions of one long context are nearly one row, and held-out contexts are other ones.

    Attributes:
        ratio: Groups of rows for each feature from which least squares is used.
    """

    name = "auto"

    ratio: Annotated[float, Between(0, sys.float_info.max)] = 20.0

    def choose(self, cells: Cells, features: Blocks) -> Solver:
        """The solver for these features; `OLS` too where there are fewer folds than a choice of penalty takes."""
        n_features = len(cells.whole.columns(features))
        options = {"intercept": self.intercept, "rank_cutoff": self.rank_cutoff}
        n = cells.whole.n if cells.n_groups is None else min(cells.whole.n, cells.n_groups)
        is_ols = n >= self.ratio * n_features or len(cells.folds) < MIN_FOLDS
        return OLS(**options) if is_ols else Ridge(**options)


@checked
def as_solver(solver: Solver | str) -> Solver:
    """The solver itself, or the one with default options that a name stands for.

    Example:
        >>> as_solver("ridge")
        Ridge(intercept=True, rank_cutoff=1e-06, penalty=None)
    """
    if isinstance(solver, Solver):
        return solver
    named = {"auto": Auto, "ols": OLS, "ridge": Ridge}
    if solver not in named:
        rule = "choose 'auto', 'ols', 'ridge', or a solver such as ReducedRank(2)"
        raise ValueError(f"solver={solver!r}: {rule}.{meant(solver, named)}")
    return named[solver]()


@dataclass(frozen=True, eq=False)
class PenaltyChoice:
    """Penalties chosen on held-out folds.

    Attributes:
        of_fold: The best penalty by cross-validation *among the other folds*, so that a fold's own score is honest.
        overall: The best penalty by cross-validation over all folds.
        mse_by_penalty: Pairs of a penalty and its held-out mean squared error, of which `overall` has the least.
    """

    of_fold: tuple[float, ...]
    overall: float
    mse_by_penalty: tuple[tuple[float, float], ...]


@checked
def choose_penalty(
    cells: Cells, features: Blocks, targets: str, solver: Ridge, penalties: Sequence[float] | None = None
) -> PenaltyChoice:
    """Choose ridge's penalty by nested cross-validation over folds, never by training error.

    Args:
        cells: The moments of all folds, at least 3.
        features: Blocks to map from.
        targets: Block to map to.
        solver: Whose penalty is chosen.
        penalties: Those to choose from; by default 10⁻¹² to 10², two a decade.
    """
    (choice,) = choose_penalties(cells, features, [targets], solver, penalties)
    return choice


def choose_penalties(
    cells: Cells, features: Blocks, targets: Sequence[str], solver: Ridge, penalties: Sequence[float] | None = None
) -> list[PenaltyChoice]:
    """The choice for each of several targets, from the same decompositions."""
    folds = cells.folds
    if len(folds) < MIN_FOLDS:
        rule = "choosing a penalty and scoring the choice honestly takes at least 3"
        raise ValueError(f"{len(folds)} folds: {rule}. Give more folds, or a penalty: Ridge(penalty).")
    if penalties is None:
        penalties = [float(10**exponent) for exponent in np.arange(-12, 2.1, 0.5)]
    widths = [cells.whole.blocks[target] for target in targets]

    def errors(left_out: Sequence[int]) -> dict[int, Float64[Tensor, "target penalty"]]:
        """Squared error on each fold left out, under each penalty."""
        spectrum = solver.decompose(cells.without(*left_out), features)
        weights, bias = spectrum.ridge_path(targets, penalties)
        found = {}
        by_fold = path_errors(weights, bias, [folds[k] for k in left_out], features, targets)
        for k, by_column in zip(left_out, by_fold, strict=True):
            by_target = torch.stack([each.mean(dim=1) for each in by_column.split(widths, dim=1)])
            found[k] = folds[k].weight * by_target
        return found

    inner = torch.zeros(len(folds), len(targets), len(penalties), dtype=torch.float64)
    for first, second in itertools.combinations(range(len(folds)), 2):
        of_fold = errors((first, second))
        inner[first] += of_fold[second]
        inner[second] += of_fold[first]
    outer = torch.stack([errors([k])[k] for k in range(len(folds))]).sum(dim=0)
    return [
        PenaltyChoice(
            of_fold=tuple(penalties[i] for i in of_target.argmin(dim=1).tolist()),
            overall=penalties[int(total.argmin())],
            mse_by_penalty=tuple(zip(penalties, (total / cells.whole.weight).tolist(), strict=True)),
        )
        for of_target, total in zip(inner.unbind(dim=1), outer, strict=True)
    ]
