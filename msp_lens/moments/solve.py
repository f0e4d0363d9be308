"""The small solves: linear maps and their errors, from moments alone.

    least squares     B = Σ_ff⁺ Σ_ft,                   c = μ_t - μ_f B,    prediction  f B + c
    ridge             B = (Σ_ff + λ S²)⁻¹ Σ_ft          S: the features' standard deviations
    reduced rank      B V_r V_rᵀ                        V_r: leading eigenvectors of Bᵀ Σ_ff B  (Izenman 1975)
    their error       E|t - fB - c|² = tr(Σ_tt - 2 Bᵀ Σ_ft + Bᵀ Σ_ff B) + |μ_t - μ_f B - c|²

All of them start from one eigendecomposition of the features' correlations. The error may be taken on other moments
than the map was fitted on: that is cross-validation without a second pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from msp_lens.moments.moments import Moments

# Singular values of the standardized features below this fraction of the largest are float32 noise: inverting them
# gives huge weights that read well and steer nothing.
RANK_CUTOFF = 1e-6
# A column that varies by less than this fraction of its mean varies by rounding alone.
CONSTANT = 1e-7

Blocks: TypeAlias = str | Sequence[str]


@dataclass(frozen=True, eq=False)
class LinearMap:
    """An affine map, `f @ weights + bias`.

    Attributes:
        weights: `[feature, target]`.
        bias: `[target]`.
        rank: How many directions of the features it was solved in; of a reduced-rank map, its rank.
    """

    weights: Float64[Tensor, "feature target"]
    bias: Float64[Tensor, "target"]
    rank: int


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The eigendecomposition of some features' correlations, from which every solve on them starts.

    Columns are standardized first, so that no feature is cut off for the unit it is measured in.

    Attributes:
        moments: What it was taken from.
        features: The blocks.
        intercept: Whether the maps have one; without, moments are about 0.
        scale: Standard deviation of each column (root mean square without intercept), infinite for constant ones.
        eigenvalues: Of the correlations, ascending.
        basis: Eigenvectors, a column each.
        kept: Which of them are above the cut-off.
    """

    moments: Moments
    features: Blocks
    intercept: bool
    scale: Float64[Tensor, "feature"]
    eigenvalues: Float64[Tensor, "feature"]
    basis: Float64[Tensor, "feature feature"]
    kept: Bool[Tensor, "feature"]

    @property
    def rank(self) -> int:
        """Directions above the cut-off."""
        return int(self.kept.sum())

    def least_squares(self, targets: Blocks) -> LinearMap:
        """The affine least-squares map to some targets, of least norm in standardized features."""
        return self.ridge(targets, [0.0])[0]

    def ridge(self, targets: Blocks, penalties: Sequence[float]) -> list[LinearMap]:
        """A map for each penalty λ: the least of `E|t - fB - c|² + λ Σ_j (s_j |B_j|)²`, s_j a feature's deviation.

        Scikit-learn's `Ridge(alpha=λ W)` on standardized features, W being the rows' total weight.
        """
        eigenvalues, basis = self.eigenvalues[self.kept], self.basis[:, self.kept]
        cross = second_moment(self.moments, self.features, targets, intercept=self.intercept)
        projected = basis.T @ (cross / self.scale.unsqueeze(1))
        weights = [
            (basis @ (projected / (eigenvalues + penalty).unsqueeze(1))) / self.scale.unsqueeze(1)
            for penalty in penalties
        ]
        return [LinearMap(each, self._bias(each, targets), self.rank) for each in weights]

    def _bias(self, weights: Float64[Tensor, "feature target"], targets: Blocks) -> Float64[Tensor, "target"]:
        if not self.intercept:
            return torch.zeros(weights.shape[1], dtype=torch.float64)
        return self.moments.block_mean(targets) - self.moments.block_mean(self.features) @ weights

    def reduced_rank(self, targets: Blocks, ranks: Sequence[int]) -> list[LinearMap]:
        """The best map of each rank: least squares, its fit projected on that many leading directions.

        Source: Izenman 1975 (J. Multivariate Anal. 5), with all targets weighted alike.
        """
        full = self.least_squares(targets)
        fitted = full.weights.T @ second_moment(self.moments, self.features, targets, intercept=self.intercept)
        _, directions = torch.linalg.eigh((fitted + fitted.T) / 2)
        maps = []
        for rank in ranks:
            # Eigenvalues ascend: the leading directions are the last.
            leading = directions[:, max(0, directions.shape[1] - rank) :]
            weights = full.weights @ leading @ leading.T
            maps.append(LinearMap(weights, self._bias(weights, targets), min(rank, full.rank)))
        return maps

    def jointly_with(self, others: Blocks, targets: Blocks, *, penalty: float | None = None) -> LinearMap:
        """The map from the features *and* a few other columns, the latter's weights last.

        By Frisch, Waugh and Lovell: what the features leave of the targets, on what they leave of the others. So it
        costs no second decomposition.

        Args:
            others: The other columns.
            targets: What is predicted.
            penalty: Ridge's, on the features alone; least squares if `None`.
        """

        def alone(columns: Blocks) -> LinearMap:
            return self.least_squares(columns) if penalty is None else self.ridge(columns, [penalty])[0]

        of_targets, of_others = alone(targets).weights, alone(others).weights

        def left(rows: Blocks, columns: Blocks, weights: Tensor) -> Tensor:
            cross = second_moment(self.moments, self.features, columns, intercept=self.intercept)
            return second_moment(self.moments, rows, columns, intercept=self.intercept) - weights.T @ cross

        own = second_moment(self.moments, others, others, intercept=self.intercept).diagonal()
        scale = torch.where(own > 0, own, math.inf).sqrt()
        # What is left of a column that follows from the features is rounding: cut against its own size.
        eigenvalues, basis = torch.linalg.eigh(left(others, others, of_others) / torch.outer(scale, scale))
        kept = eigenvalues > 1e-9
        inverse = (basis[:, kept] / eigenvalues[kept]) @ basis[:, kept].T / torch.outer(scale, scale)
        of_left = inverse @ left(others, targets, of_others)
        weights = torch.cat([of_targets - of_others @ of_left, of_left])
        mean = self.moments.block_mean([*_names(self.features), *_names(others)])
        bias = self.moments.block_mean(targets) - mean @ weights
        return LinearMap(weights, bias if self.intercept else torch.zeros_like(bias), self.rank + int(kept.sum()))


def decompose(
    moments: Moments, features: Blocks, *, rank_cutoff: float = RANK_CUTOFF, intercept: bool = True
) -> Spectrum:
    """The spectrum of some features: standardize, then eigendecompose.

    Args:
        moments: Of rows that hold them.
        features: Blocks.
        rank_cutoff: Directions of the standardized features with a singular value below this fraction of the largest
            are left out.
        intercept: Whether maps have one.
    """
    gram = second_moment(moments, features, features, intercept=intercept)
    variances = gram.diagonal()
    smallest = (CONSTANT * moments.block_mean(features)) ** 2 if intercept else torch.zeros_like(variances)
    scale = torch.where(variances > smallest.clamp(min=torch.finfo(torch.float64).tiny), variances, math.inf).sqrt()
    eigenvalues, basis = torch.linalg.eigh(gram / scale.unsqueeze(0) / scale.unsqueeze(1))
    kept = eigenvalues > max(float(eigenvalues[-1]), 0.0) * rank_cutoff**2
    return Spectrum(moments, features, intercept, scale, eigenvalues, basis, kept)


def second_moment(
    moments: Moments, rows: Blocks, columns: Blocks, *, intercept: bool = True
) -> Float64[Tensor, "row column"]:
    """Covariance between two groups of blocks, or, without intercept, their mean product."""
    covariance = moments.covariance(rows, columns)
    return covariance if intercept else covariance + torch.outer(moments.block_mean(rows), moments.block_mean(columns))


def least_squares(
    moments: Moments,
    features: Blocks,
    targets: Blocks,
    *,
    rank_cutoff: float = RANK_CUTOFF,
    intercept: bool = True,
) -> LinearMap:
    """The affine least-squares map from some blocks to others.

    Args:
        moments: Of rows that hold both.
        features: Blocks to map from.
        targets: Blocks to map to.
        rank_cutoff: Directions of the standardized features with a singular value below this fraction of the largest
            are left out.
        intercept: Whether the map has one.
    """
    return decompose(moments, features, rank_cutoff=rank_cutoff, intercept=intercept).least_squares(targets)


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


def mean_squared_errors(
    linear_map: LinearMap, moments: Moments, features: Blocks, targets: Blocks
) -> Float64[Tensor, "target"]:
    """The map's mean squared error in each target on the rows of `moments`, fitted on them or not."""
    weights = linear_map.weights
    cross = moments.covariance(features, targets)
    residual = (
        variances(moments, targets)
        - 2 * (weights * cross).sum(dim=0)
        + (weights * (moments.covariance(features, features) @ weights)).sum(dim=0)
    )
    offset = moments.block_mean(targets) - moments.block_mean(features) @ weights - linear_map.bias
    # Rounding may leave a perfect fit a hair below zero.
    return (residual + offset**2).clamp(min=0)


def variances(moments: Moments, targets: Blocks) -> Float64[Tensor, "target"]:
    """Variance of each target about the rows' own mean."""
    return moments.scatter.diagonal()[moments.columns(targets)] / moments.weight


def _names(blocks: Blocks) -> tuple[str, ...]:
    return (blocks,) if isinstance(blocks, str) else tuple(blocks)
