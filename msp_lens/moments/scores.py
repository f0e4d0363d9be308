"""Scores: how much of the targets' variance a map explains, on the rows it was fitted on and on others.

    R² = 1 - Σ w |t - t̂|² / Σ w |t - t̄|²

Held-out errors are kept by *cell*, a set of whole groups of rows; resampling cells shows how much a score would vary
with other groups. Skill compares a map with a control:

    skill = (MSE_control - MSE_network) / MSE_control.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, NotRequired, TypedDict

import numpy as np
import torch
from jaxtyping import Float64, Int
from scipy import stats
from torch import Tensor

from msp_lens._checks import AtLeast, checked
from msp_lens._values import Value
from msp_lens.moments.moments import Moments, pooled_mean
from msp_lens.moments.solve import Blocks, LinearMap, mean_squared_errors, variances, without_rounding

# Below this a sum of squares is 0.
SMALLEST = 1e-200
# A control that leaves less than this share of the variance leaves nothing to explain.
NOTHING_LEFT = 1e-6


class SavedScore(TypedDict):
    """A `Score` in a file; numbers that are not defined are `None`."""

    r2: float | None
    mse: float | None
    n: Annotated[int, AtLeast(0)]
    r2_by_target: list[float | None]
    mse_by_target: list[float | None]
    variance: float | None


class SavedHeldOut(SavedScore):
    """A `HeldOutScore` in a file."""

    r2_interval: tuple[float | None, float | None]
    r2_by_fold: list[float | None]
    mse_by_cell: list[float | None]
    # Files of earlier versions lack it.
    variance_by_cell: NotRequired[list[float | None]]


@dataclass(frozen=True, eq=False)
class Score(Value):
    """How well targets are predicted on some rows.

    Attributes:
        r2: 1 - MSE / variance, both summed over target coordinates. NaN if the targets do not vary.
        mse: Mean squared error per target coordinate.
        n: Number of rows in the (weighted) mean.
        r2_by_target: R² of each coordinate.
        mse_by_target: MSE of each coordinate.
        variance: The variance that R² is measured against, per target coordinate.
    """

    r2: float
    mse: float
    n: int
    r2_by_target: tuple[float, ...] = field(default=(), repr=False)
    mse_by_target: tuple[float, ...] = field(default=(), repr=False)
    variance: float = field(default=math.nan, repr=False)

    @property
    def rmse(self) -> float:
        """The square root of the MSE: the error in units of the targets."""
        return math.sqrt(self.mse)


@dataclass(frozen=True, eq=False)
class HeldOutScore(Score):
    """A cross-validated score: every row is predicted by a map that was fitted without its fold.

    Attributes:
        r2_interval: 95 % bootstrap interval of R² over cells, with the fitted maps fixed: the R² that these maps would
            have on other groups of the same kind, not the variation of the maps themselves. If the rows are the whole
            population, it shows how evenly the score is spread over them.
        r2_by_fold: R² of each fold, against the common mean.
        mse_by_cell: What each cell adds to the MSE, fold by fold.
        variance_by_cell: What each cell adds to the variance: the same for all maps that were scored on these cells.
    """

    r2_interval: tuple[float, float] = (math.nan, math.nan)
    r2_by_fold: tuple[float, ...] = field(default=(), repr=False)
    mse_by_cell: tuple[float, ...] = field(default=(), repr=False)
    variance_by_cell: tuple[float, ...] = field(default=(), repr=False)

    @property
    def width(self) -> float:
        """The width of the interval; 0 if there is none, as for targets that do not vary."""
        low, high = self.r2_interval
        return 0.0 if math.isnan(high - low) else high - low


@dataclass(frozen=True, eq=False)
class CellErrors:
    """Weighted sums of squares by cell, from which a held-out score follows.

    Attributes:
        errors: Σ w (t - t̂)².
        spread: Σ w (t - t̄)², t̄ the mean of all rows.
        weight: Σ w.
        fold: The fold of each cell.
        n: Total number of rows.
    """

    errors: Float64[Tensor, "cell target"]
    spread: Float64[Tensor, "cell target"]
    weight: Float64[Tensor, "cell"]
    fold: Int[Tensor, "cell"]
    n: int

    def score(self) -> HeldOutScore:
        """R² and MSE, pooled over cells, with their interval."""
        errors, spread = self.errors.sum(dim=1), self.spread.sum(dim=1)
        by_target, spread_by_target = self.errors.sum(dim=0), self.spread.sum(dim=0)
        total = float(self.weight.sum())
        folds = [self.fold == k for k in self.fold.unique().tolist()]
        targets = zip(by_target.tolist(), spread_by_target.tolist(), strict=True)
        return HeldOutScore(
            r2=ratio(float(errors.sum()), float(spread.sum())),
            mse=float((by_target / self.weight.sum()).mean()),
            n=self.n,
            r2_by_target=tuple(ratio(e, s) for e, s in targets),
            mse_by_target=tuple((by_target / total).tolist()),
            variance=float(spread_by_target.mean()) / total,
            r2_interval=bootstrap_interval(errors, spread),
            r2_by_fold=tuple(ratio(float(errors[k].sum()), float(spread[k].sum())) for k in folds),
            mse_by_cell=tuple((errors / total / self.errors.shape[1]).tolist()),
            variance_by_cell=tuple((spread / total / self.errors.shape[1]).tolist()),
        )


def ratio(errors: float, spread: float) -> float:
    """R² from sums of squares; NaN if there is no variance to explain."""
    return 1 - errors / spread if spread > SMALLEST else math.nan


def bootstrap_interval(
    errors: Float64[Tensor, "cell"], spread: Float64[Tensor, "cell"], *, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of R² over cells drawn with replacement.

    Percentiles are expanded by the t-distribution, since plain ones are too narrow with few cells (Hesterberg 2015,
    section 5.3.2). NaN if there are fewer than 3 cells or nothing varies.
    """
    n_cells = len(errors)
    if n_cells < 3 or float(spread.sum()) <= SMALLEST:
        return (math.nan, math.nan)
    drawn, tail = _resamples(n_cells, seed)
    of_errors, of_spread = errors[drawn].sum(dim=1), spread[drawn].sum(dim=1)
    # A resample in which nothing varies has no R².
    r2 = torch.where(of_spread > SMALLEST, 1 - of_errors / of_spread, math.nan)
    low, high = np.nanquantile(r2.numpy(), [tail, 1 - tail])
    return (float(low), float(high))


@lru_cache(maxsize=16)
def _resamples(n_cells: int, seed: int) -> tuple[Int[Tensor, "resample cell"], float]:
    """The cells of each resample, and the expanded percentile at which an interval of 95 % begins."""
    confidence, n_resamples = 0.95, 1000
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n_cells, (n_resamples, n_cells), generator=generator)
    expanded = math.sqrt(n_cells / (n_cells - 1)) * stats.t.ppf((1 - confidence) / 2, n_cells - 1)
    return drawn, float(stats.norm.cdf(expanded))


def skill(network_mse: float, control_mse: float, variance: float) -> float:
    """The share of what a control leaves unexplained that the network explains; below 0 if it explains less.

    If the control leaves less than a millionth of the variance, there is nothing to explain and the network gets no
    credit: 0 if it explains everything too, else below 0.
    """
    if variance <= SMALLEST:
        return math.nan
    return (control_mse - network_mse) / max(control_mse, NOTHING_LEFT * variance)


def skill_interval(network: HeldOutScore, control: HeldOutScore) -> tuple[float, float]:
    """95 % bootstrap interval of the skill over cells, as for R²; NaN if the two were not scored on the same cells.

    It is of other groups of rows for one network. Networks of other seeds may differ by far more.
    """
    ours, theirs = network.mse_by_cell, control.mse_by_cell
    if len(ours) != len(theirs) or control.mse <= NOTHING_LEFT * network.variance:
        return (math.nan, math.nan)
    return bootstrap_interval(torch.tensor(ours, dtype=torch.float64), torch.tensor(theirs, dtype=torch.float64))


def r2_difference(first: HeldOutScore, second: HeldOutScore) -> tuple[float, tuple[float, float]]:
    """R² of the second map less that of the first, with its 95 % paired bootstrap interval over cells.

    Each resample draws the same cells for both maps, which stay fixed, so that what is hard for both cancels. NaN ends
    if the two were not scored on the same cells of the same rows.
    """
    ours, theirs, spread, other = (
        torch.tensor(values, dtype=torch.float64)
        for values in (second.mse_by_cell, first.mse_by_cell, first.variance_by_cell, second.variance_by_cell)
    )
    is_whole = len(ours) == len(theirs) == len(spread) == len(other) > 0
    is_paired = is_whole and bool(torch.allclose(spread, other, rtol=1e-6, atol=SMALLEST))
    # 1 - (s - (e₁ - e₂)) / s = R²₂ - R²₁
    interval = bootstrap_interval(spread - (theirs - ours), spread) if is_paired else (math.nan, math.nan)
    return second.r2 - first.r2, interval


@checked
def score(linear_map: LinearMap, moments: Moments, features: Blocks, targets: Blocks) -> Score:
    """The map's score on the rows of `moments`, whether fitted on them or not."""
    return score_of(mean_squared_errors(linear_map, moments, features, targets), variances(moments, targets), moments.n)


def score_of(errors: Float64[Tensor, "target"], variance: Float64[Tensor, "target"], n: int) -> Score:
    """A score from each target's mean squared error and variance."""
    mse, mean_variance = float(errors.mean()), float(variance.mean())
    by_target = tuple(ratio(e, v) for e, v in zip(errors.tolist(), variance.tolist(), strict=True))
    return Score(ratio(mse, mean_variance), mse, n, by_target, tuple(errors.tolist()), mean_variance)


def cell_errors(
    errors: Float64[Tensor, "cell target"], cells: Sequence[Moments], fold: Int[Tensor, "cell"], targets: Blocks
) -> CellErrors:
    """Weighted squared errors by cell, with the targets' spread about the common mean."""
    weight = torch.tensor([cell.weight for cell in cells], dtype=torch.float64)
    means = torch.stack([cell.block_mean(targets) for cell in cells])
    own = torch.stack([cell.block_scatter(targets) for cell in cells])
    common = pooled_mean(means, weight)
    spread = own + weight.unsqueeze(1) * (means - common) ** 2
    varies = without_rounding(spread.sum(dim=0) / weight.sum(), common) > 0
    spread = torch.where(varies, spread, 0.0)
    return CellErrors(errors, spread, weight, fold, sum(cell.n for cell in cells))


def from_json(value: Any) -> Any:
    """Scores from the mappings, and tuples from the lists, that JSON returns; other values unchanged.

    Numbers that are not defined are `None` in JSON.

    Raises:
        ValueError: if a score is impossible; the message names the field.
    """
    if isinstance(value, Mapping):
        fields: Any = {key: _numbers(each) for key, each in value.items()}
        found = HeldOutScore(**fields) if "r2_interval" in fields else Score(**fields)
        _check_possible(found)
        return found
    return tuple(from_json(each) for each in value) if isinstance(value, list | tuple) else value


def _numbers(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_numbers, value))
    return math.nan if value is None else value


def _check_possible(found: Score) -> None:
    """Raise `ValueError` unless R² follows from the errors and the variance, with NaN only where nothing varies."""
    # Without a variance on record, as where there are no rows, there is nothing to compare with.
    expected = found.r2 if math.isnan(found.variance) else ratio(found.mse, found.variance)
    if found.mse < 0 or found.variance < 0 or not _alike(found.r2, expected):
        given = f"r2={found.r2:g} with mse={found.mse:g} and variance={found.variance:g}"
        raise ValueError(f"{given} is impossible: R² is 1 - mse / variance")
    rest = [*found.r2_by_target, *(found.r2_by_fold + found.r2_interval if isinstance(found, HeldOutScore) else ())]
    if any(r2 > 1 + 1e-9 for r2 in (found.r2, *rest)) or any(not mse >= 0 for mse in found.mse_by_target):
        raise ValueError(f"a part of r2={found.r2:g} is above 1, or of mse={found.mse:g} below 0")


def _alike(a: float, b: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or abs(a - b) <= 1e-6 * max(1.0, abs(b))
