"""How a probe is solved for: least squares, ridge with its penalty chosen on held-out folds, or reduced rank."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens.moments.folds import Cells
from msp_lens.moments.moments import Moments
from msp_lens.moments.solve import (
    RANK_CUTOFF,
    Blocks,
    LinearMap,
    Spectrum,
    decompose,
    mean_squared_errors,
)

Method = Literal["ols", "ridge", "reduced_rank"]

# Multiples of the standardized features' variance.
PENALTIES = tuple(float(10**exponent) for exponent in np.arange(-12, 2.1, 0.5))


@dataclass(frozen=True)
class Solver:
    """A method and its options.

    Attributes:
        method: `"ols"`, `"ridge"` or `"reduced_rank"`.
        rank: Rank of the map, for `"reduced_rank"` alone.
        penalty: Ridge's λ, in units of the standardized features' variance; `None` chooses it on held-out folds.
        intercept: Whether the map has one.
        rank_cutoff: Directions of the standardized features with a singular value below this fraction of the largest
            are left out.

    Raises:
        ValueError: if an option is out of range or goes with another method.
    """

    method: str = "ols"
    rank: int | None = None
    penalty: float | None = None
    intercept: bool = True
    rank_cutoff: float = RANK_CUTOFF

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(f"method={self.method!r}: choose one of {', '.join(map(repr, get_args(Method)))}.")
        if (self.rank is not None) != (self.method == "reduced_rank"):
            raise ValueError(
                f"rank={self.rank} with method={self.method!r}: method='reduced_rank' needs a rank, and only it has "
                "one (report.by_rank() shows every rank, whatever the method)."
            )
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank={self.rank}: at least 1.")
        if self.penalty is not None and (self.method != "ridge" or not self.penalty >= 0):
            raise ValueError(f"penalty={self.penalty} with method={self.method!r}: a number ≥ 0, for method='ridge'.")
        if not 0 <= self.rank_cutoff < 1:
            raise ValueError(f"rank_cutoff={self.rank_cutoff}: a fraction of the largest singular value, in [0, 1).")

    def decompose(self, moments: Moments, features: Blocks) -> Spectrum:
        """The spectrum to solve from."""
        return decompose(moments, features, rank_cutoff=self.rank_cutoff, intercept=self.intercept)

    def solve(self, spectrum: Spectrum, targets: Blocks, penalty: float | None = None) -> LinearMap:
        """The map to some targets; `penalty` is for ridge, where it was chosen."""
        if self.method == "ridge":
            return spectrum.ridge(targets, [self.penalty_in_force(penalty)])[0]
        if self.rank is not None:
            return spectrum.reduced_rank(targets, [self.rank])[0]
        return spectrum.least_squares(targets)

    def solve_jointly(
        self, spectrum: Spectrum, others: Blocks, targets: Blocks, penalty: float | None = None
    ) -> LinearMap:
        """The map from the features and a few other columns, which no penalty or rank restricts."""
        in_force = self.penalty_in_force(penalty) if self.method == "ridge" else None
        return spectrum.jointly_with(others, targets, penalty=in_force)

    def penalty_in_force(self, chosen: float | None) -> float:
        """Ridge's penalty: the one given, else the one chosen."""
        return (self.penalty if chosen is None else chosen) or 0.0


@dataclass(frozen=True, eq=False)
class PenaltyChoice:
    """Penalties chosen on held-out folds.

    Attributes:
        of_fold: For each fold, the best penalty by cross-validation *among the other folds*: a score of this fold under
            it is honest, since the fold had no say in the choice.
        overall: The best by cross-validation over all folds: the probe's own.
        mse: Held-out mean squared error of each of `PENALTIES`, which `overall` minimizes.
    """

    of_fold: tuple[float, ...]
    overall: float
    mse: tuple[float, ...]


def choose_penalty(
    cells: Cells, features: Blocks, targets: str, solver: Solver, penalties: Sequence[float] = PENALTIES
) -> PenaltyChoice:
    """Choose ridge's penalty by nested cross-validation over folds; never on training error.

    Raises:
        ValueError: if there are fewer than 3 folds.
    """
    folds = cells.folds
    if len(folds) < 3:
        raise ValueError(
            f"{len(folds)} folds: choosing a penalty and scoring the choice honestly takes at least 3. Give more "
            "folds, or penalty=."
        )

    def errors(left_out: Sequence[int]) -> dict[int, Float64[Tensor, "penalty"]]:
        """Squared error on each fold left out, under each penalty."""
        maps = solver.decompose(cells.without(*left_out), features).ridge(targets, penalties)
        # Side by side, so that one product evaluates the whole path.
        weights, bias = torch.cat([each.weights for each in maps], dim=1), torch.cat([each.bias for each in maps])
        path, repeated = LinearMap(weights, bias, maps[0].rank), [targets] * len(penalties)
        return {
            k: folds[k].weight
            * mean_squared_errors(path, folds[k], features, repeated).reshape(len(penalties), -1).mean(dim=1)
            for k in left_out
        }

    inner = torch.zeros(len(folds), len(penalties), dtype=torch.float64)
    for pair in itertools.combinations(range(len(folds)), 2):
        of_fold = errors(pair)
        inner[pair[0]] += of_fold[pair[1]]
        inner[pair[1]] += of_fold[pair[0]]
    outer = torch.stack([errors([k])[k] for k in range(len(folds))]).sum(dim=0)
    return PenaltyChoice(
        tuple(penalties[i] for i in inner.argmin(dim=1).tolist()),
        penalties[int(outer.argmin())],
        tuple((outer / cells.whole.weight).tolist()),
    )
