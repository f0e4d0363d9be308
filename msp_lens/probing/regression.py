"""The small solves: a linear map and its scores, from moments alone.

    least squares     B = Σ_ff⁺ Σ_ft,    c = μ_t - μ_f B,    prediction  f B + c
    its error         E|t - fB - c|² = tr(Σ_tt - 2 Bᵀ Σ_ft + Bᵀ Σ_ff B) + |μ_t - μ_f B - c|²

The error may be taken on other moments than the map was fitted on: that is cross-validation without a second pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens.probing.moments import Moments, merge_all

# Singular values of the centred features below this fraction of the largest are float32 noise: inverting them
# gives huge weights that read well and steer nothing.
RANK_CUTOFF = 1e-6


@dataclass(frozen=True, eq=False)
class LinearMap:
    """An affine map, `f @ weights + bias`.

    Attributes:
        weights: `[feature, target]`.
        bias: `[target]`.
        rank: How many directions of the features it was solved in.
    """

    weights: Float64[Tensor, "feature target"]
    bias: Float64[Tensor, "target"]
    rank: int


@dataclass(frozen=True)
class Score:
    """How well a linear map predicts its targets on some rows.

    Attributes:
        r2: 1 - MSE / variance, both summed over target coordinates. NaN if the targets do not vary.
        mse: Mean squared error per target coordinate.
        n: Rows it is a (weighted) mean over.
    """

    r2: float
    mse: float
    n: int

    @property
    def rmse(self) -> float:
        """Square root of the MSE: the error in units of probability."""
        return math.sqrt(self.mse)


def least_squares(
    moments: Moments,
    features: str | Sequence[str],
    targets: str | Sequence[str],
    *,
    rank_cutoff: float = RANK_CUTOFF,
) -> LinearMap:
    """The affine least-squares map from some blocks to others.

    Args:
        moments: Of rows that hold both.
        features: Blocks to map from.
        targets: Blocks to map to.
        rank_cutoff: Feature directions with a singular value below this fraction of the largest are left out.
    """
    inverse, rank = pseudo_inverse(moments.covariance(features, features), rank_cutoff)
    weights = inverse @ moments.covariance(features, targets)
    bias = moments.block_mean(targets) - moments.block_mean(features) @ weights
    return LinearMap(weights, bias, rank)


def pseudo_inverse(
    covariance: Float64[Tensor, "feature feature"], rank_cutoff: float = RANK_CUTOFF
) -> tuple[Float64[Tensor, "feature feature"], int]:
    """Moore–Penrose inverse of a covariance, and its rank after the cut-off.

    The cut-off is on singular values of the rows; the covariance's eigenvalues are their squares.
    """
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
    kept = eigenvalues > max(float(eigenvalues[-1]), 0.0) * rank_cutoff**2
    basis = eigenvectors[:, kept]
    return (basis / eigenvalues[kept]) @ basis.T, int(kept.sum())


def score(
    linear_map: LinearMap, moments: Moments, features: str | Sequence[str], targets: str | Sequence[str]
) -> Score:
    """The map's score on the rows of `moments`, which need not be those it was fitted on."""
    mse = _mean_squared_error(linear_map, moments, features, targets)
    return Score(_r2(mse, _variance(moments, targets)), mse, moments.n)


def held_out_score(
    folds: Sequence[Moments],
    features: str | Sequence[str],
    targets: str | Sequence[str],
    *,
    rank_cutoff: float = RANK_CUTOFF,
) -> Score:
    """Cross-validated score: each fold is predicted by the map fitted on the others; errors are pooled.

    R² is against the variance of all rows about their common mean.
    """
    filled = [fold for fold in folds if fold.weight > 0]
    whole = merge_all(filled)
    if len(filled) < 2:
        return Score(math.nan, math.nan, whole.n)
    squared_error = 0.0
    for k, fold in enumerate(filled):
        others = merge_all(filled[:k] + filled[k + 1 :])
        fitted = least_squares(others, features, targets, rank_cutoff=rank_cutoff)
        squared_error += fold.weight * _mean_squared_error(fitted, fold, features, targets)
    mse = squared_error / whole.weight
    return Score(_r2(mse, _variance(whole, targets)), mse, whole.n)


def _mean_squared_error(
    linear_map: LinearMap, moments: Moments, features: str | Sequence[str], targets: str | Sequence[str]
) -> float:
    cross = moments.covariance(features, targets)
    residual = (
        moments.covariance(targets, targets).diagonal()
        - 2 * (linear_map.weights * cross).sum(dim=0)
        + (linear_map.weights * (moments.covariance(features, features) @ linear_map.weights)).sum(dim=0)
    )
    offset = moments.block_mean(targets) - moments.block_mean(features) @ linear_map.weights - linear_map.bias
    # Rounding may leave a perfect fit a hair below zero.
    return float((residual + offset**2).mean().clamp(min=0))


def _variance(moments: Moments, targets: str | Sequence[str]) -> float:
    return float(moments.covariance(targets, targets).diagonal().mean())


def _r2(mse: float, variance: float) -> float:
    # Beliefs that are all alike have a variance of rounding errors.
    return 1 - mse / variance if variance > 1e-24 else math.nan
