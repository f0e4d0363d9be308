"""Scores: how much of the targets' variance a map explains, on the rows it was fitted on and on others.

    R² = 1 - Σ w |t - t̂|² / Σ w |t - t̄|²

Held-out errors are kept by *cell*, a set of whole groups of rows. A fold is a union of cells; resampling cells says how
far the score would move had other groups been drawn. Skill compares with the best control:

    skill = (MSE_control - MSE_network) / MSE_control.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int
from scipy import stats
from torch import Tensor

from msp_lens.moments.moments import Moments, merge_all
from msp_lens.moments.solve import (
    RANK_CUTOFF,
    Blocks,
    LinearMap,
    least_squares,
    mean_squared_errors,
    variances,
)

# Targets that vary less than this are all alike but for rounding.
NO_VARIANCE = 1e-24
# A control that leaves less than this share of the variance leaves nothing to explain.
NOTHING_LEFT = 1e-6
CONFIDENCE = 0.95
N_RESAMPLES = 1000


@dataclass(frozen=True)
class Score:
    """How well targets are predicted on some rows.

    Attributes:
        r2: 1 - MSE / variance, both summed over target coordinates. NaN if the targets do not vary.
        mse: Mean squared error per target coordinate.
        n: Rows it is a (weighted) mean over.
        r2_by_target: R² of each coordinate.
        mse_by_target: MSE of each coordinate.
        variance: What R² is against, per target coordinate.
    """

    r2: float
    mse: float
    n: int
    r2_by_target: tuple[float, ...] = field(default=(), repr=False)
    mse_by_target: tuple[float, ...] = field(default=(), repr=False)
    variance: float = field(default=math.nan, repr=False)

    @property
    def rmse(self) -> float:
        """Square root of the MSE: the error in units of probability."""
        return math.sqrt(self.mse)


@dataclass(frozen=True)
class HeldOutScore(Score):
    """A cross-validated score: every row is predicted by a map that was fitted without its fold.

    Attributes:
        r2_interval: 95 % bootstrap interval of R²: cells of groups are drawn anew, the fitted maps stay. It covers what
            R² these very maps would have on other groups of the same kind, not the maps' own luck. Where the rows are
            all there are (a population), it says how evenly the score is spread over them.
        r2_by_fold: R² of each fold, against the common mean: how far it depends on what was fitted on.
    """

    r2_interval: tuple[float, float] = (math.nan, math.nan)
    r2_by_fold: tuple[float, ...] = field(default=(), repr=False)

    def is_within(self, width: float) -> bool:
        """Whether the interval is no wider than this; so too where there is none, as for targets that do not vary."""
        low, high = self.r2_interval
        return not high - low > width

    @property
    def fold_interval(self) -> tuple[float, float]:
        """Mean of the folds' R² ± its 95 % t-interval, as if folds were independent.

        They share most of what they are fitted on, so it is a rough guide to the spread over both fits and rows.
        """
        folds = np.asarray(self.r2_by_fold)
        if len(folds) < 2:
            return (math.nan, math.nan)
        half = stats.t.ppf((1 + CONFIDENCE) / 2, len(folds) - 1) * folds.std(ddof=1) / math.sqrt(len(folds))
        return (float(folds.mean() - half), float(folds.mean() + half))


@dataclass(frozen=True, eq=False)
class CellErrors:
    """Weighted sums of squares by cell: all that a held-out score needs.

    Attributes:
        errors: Σ w (t - t̂)².
        spread: Σ w (t - t̄)², t̄ the mean of all rows.
        weight: Σ w.
        fold: The fold that each cell belongs to.
        n: Rows in all.
    """

    errors: Float64[Tensor, "cell target"]
    spread: Float64[Tensor, "cell target"]
    weight: Float64[Tensor, "cell"]
    fold: Int[Tensor, "cell"]
    n: int

    @property
    def mse(self) -> float:
        """Mean squared error per target coordinate."""
        return float((self.errors.sum(dim=0) / self.weight.sum()).mean())

    def score(self) -> HeldOutScore:
        """R² and MSE, pooled over cells, with their interval."""
        errors, spread = self.errors.sum(dim=1), self.spread.sum(dim=1)
        by_target, spread_by_target = self.errors.sum(dim=0), self.spread.sum(dim=0)
        total = float(self.weight.sum())
        folds = [self.fold == k for k in self.fold.unique().tolist()]
        scarce = NO_VARIANCE * total * self.errors.shape[1]
        return HeldOutScore(
            r2=ratio(float(errors.sum()), float(spread.sum()), scarce),
            mse=self.mse,
            n=self.n,
            r2_by_target=tuple(
                ratio(e, s, NO_VARIANCE * total)
                for e, s in zip(by_target.tolist(), spread_by_target.tolist(), strict=True)
            ),
            mse_by_target=tuple((by_target / total).tolist()),
            variance=float(spread_by_target.mean()) / total,
            r2_interval=bootstrap_interval(errors, spread, scarce=scarce),
            r2_by_fold=tuple(ratio(float(errors[k].sum()), float(spread[k].sum()), scarce) for k in folds),
        )


def ratio(errors: float, spread: float, scarce: float = NO_VARIANCE) -> float:
    """R² from sums of squares; NaN where there is no variance to explain."""
    return 1 - errors / spread if spread > scarce else math.nan


def bootstrap_interval(
    errors: Float64[Tensor, "cell"], spread: Float64[Tensor, "cell"], *, scarce: float = NO_VARIANCE, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of R² over cells drawn with replacement.

    Percentiles are spread as the t-distribution asks for this few cells (Hesterberg 2015, section 5.3.2: plain ones
    are too narrow). NaN if there are fewer than 3 cells, or nothing varies.
    """
    n_cells = len(errors)
    if n_cells < 3 or float(spread.sum()) <= scarce:
        return (math.nan, math.nan)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n_cells, (N_RESAMPLES, n_cells), generator=generator)
    r2 = 1 - errors[drawn].sum(dim=1) / spread[drawn].sum(dim=1).clamp(min=scarce)
    tail = float(stats.norm.cdf(math.sqrt(n_cells / (n_cells - 1)) * stats.t.ppf((1 - CONFIDENCE) / 2, n_cells - 1)))
    low, high = np.quantile(r2.numpy(), [tail, 1 - tail])
    return (float(low), float(high))


def skill(network_mse: float, control_mse: float, variance: float) -> float:
    """The share of what a control leaves unexplained that the network explains; below 0 if it explains less.

    Where the control leaves nothing (under a millionth of the variance), so that there is nothing to explain, the
    network gets no credit: 0 if it too explains all, else below.
    """
    if variance <= NO_VARIANCE or math.isnan(network_mse) or math.isnan(control_mse):
        return math.nan
    return (control_mse - network_mse) / max(control_mse, NOTHING_LEFT * variance)


def score(linear_map: LinearMap, moments: Moments, features: Blocks, targets: Blocks) -> Score:
    """The map's score on the rows of `moments`, which need not be those it was fitted on."""
    return score_of(mean_squared_errors(linear_map, moments, features, targets), variances(moments, targets), moments.n)


def score_of(errors: Float64[Tensor, "target"], variance: Float64[Tensor, "target"], n: int) -> Score:
    """A score from each target's mean squared error and variance."""
    return Score(
        ratio(float(errors.mean()), float(variance.mean())),
        float(errors.mean()),
        n,
        tuple(ratio(e, v) for e, v in zip(errors.tolist(), variance.tolist(), strict=True)),
        tuple(errors.tolist()),
        float(variance.mean()),
    )


def held_out_score(
    folds: Sequence[Moments], features: Blocks, targets: Blocks, *, rank_cutoff: float = RANK_CUTOFF
) -> Score:
    """Cross-validated score of least squares: each fold is predicted by the map fitted on the others.

    R² is against the variance of all rows about their common mean.
    """
    filled = [fold for fold in folds if fold.weight > 0]
    if len(filled) < 2:
        return Score(math.nan, math.nan, merge_all(folds).n)
    errors = []
    for k, fold in enumerate(filled):
        others = merge_all(filled[:k] + filled[k + 1 :])
        fitted = least_squares(others, features, targets, rank_cutoff=rank_cutoff)
        errors.append(mean_squared_errors(fitted, fold, features, targets) * fold.weight)
    return cell_errors(torch.stack(errors), filled, torch.arange(len(filled)), targets).score()


def cell_errors(
    errors: Float64[Tensor, "cell target"],
    cells: Sequence[Moments],
    fold: Int[Tensor, "cell"],
    targets: Blocks,
) -> CellErrors:
    """Weighted squared errors by cell, beside the targets' spread about the common mean."""
    weight = torch.tensor([cell.weight for cell in cells], dtype=torch.float64)
    means = torch.stack([cell.block_mean(targets) for cell in cells])
    own = torch.stack([cell.scatter.diagonal()[cell.columns(targets)] for cell in cells])
    common = weight @ means / weight.sum()
    spread = own + weight.unsqueeze(1) * (means - common) ** 2
    return CellErrors(errors, spread, weight, fold, sum(cell.n for cell in cells))


@dataclass(frozen=True)
class ProbeScores:
    """All that is known of how well one probe reads beliefs; what was not measured is `None` or empty.

    Attributes:
        in_sample: On the rows it was fitted on.
        held_out: By cross-validation over groups of rows.
        shuffled: In-sample, of a probe fitted to shuffled beliefs: what chance alone would show.
        shuffled_held_out: The same, cross-validated.
        with_next_token: Held out, of least squares on the activations *and* the optimal next-token probabilities.
        by_rank: Held out, of reduced-rank regression of rank 1, 2, …
        by_rank_in_sample: The same in-sample.
        by_position: Held out, of this probe at each position; R² is against the variance at that position.
        by_position_own: Held out, of probes fitted at one position each.
        penalty: Ridge's penalty. Where it was chosen, `held_out` is of penalties that each fold had no say in.
        mse_by_penalty: Pairs of penalty and held-out MSE, of which `penalty` has the least: not an honest score of it.
    """

    in_sample: Score
    held_out: HeldOutScore
    shuffled: Score | None = None
    shuffled_held_out: HeldOutScore | None = None
    with_next_token: HeldOutScore | None = None
    by_rank: tuple[HeldOutScore, ...] = ()
    by_rank_in_sample: tuple[Score, ...] = ()
    by_position: tuple[HeldOutScore, ...] = ()
    by_position_own: tuple[HeldOutScore, ...] = ()
    penalty: float | None = None
    mse_by_penalty: tuple[tuple[float, float], ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ProbeScores:
        """Rebuild from what `dataclasses.asdict` made of it, read back from JSON."""
        return cls(**{key: from_json(value) for key, value in values.items()})


def from_json(value: Any) -> Any:
    """Scores again from the mappings, and tuples from the lists, that JSON gives back; other values as they are."""
    if isinstance(value, Mapping):
        fields = {key: tuple(each) if isinstance(each, list) else each for key, each in value.items()}
        kind: Any = HeldOutScore if "r2_interval" in fields else Score
        return kind(**fields)
    return tuple(from_json(each) for each in value) if isinstance(value, list) else value
