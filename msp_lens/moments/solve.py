"""The small solves: linear maps and their errors, from moments alone.

    least squares     B = Σ_ff⁺ Σ_ft,                   c = μ_t - μ_f B,    prediction  f B + c
    ridge             B = (Σ_ff + λ S²)⁻¹ Σ_ft          S: the features' standard deviations
    reduced rank      B V_r V_rᵀ                        V_r: leading eigenvectors of Bᵀ Σ_ff B  (Izenman 1975)
    their error       E|t - fB - c|² = tr(Σ_tt - 2 Bᵀ Σ_ft + Bᵀ Σ_ff B) + |μ_t - μ_f B - c|²

All start from one eigendecomposition of the features' correlations. Errors may be taken on other moments than the map
was fitted on, which is cross-validation without a second pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from msp_lens._checks import checked
from msp_lens._values import Value
from msp_lens.moments.moments import Moments

# Singular values of the standardized features below this fraction of the largest are float32 noise: inverting them
# gives huge weights that read well and steer nothing.
RANK_CUTOFF = 1e-6

Blocks: TypeAlias = str | Sequence[str]


@dataclass(frozen=True, eq=False)
class LinearMap(Value):
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

    Attributes:
        moments: The moments that were decomposed.
        features: The blocks of the features.
        intercept: Whether maps have an intercept; without one, second moments are about 0.
        scale: What each column is divided by: its standard deviation (root mean square without an intercept), or 1 if
            columns are not standardized; infinity where a column is constant.
        eigenvalues: Eigenvalues of the scaled columns' second moments, ascending.
        basis: Their eigenvectors, one a column.
        kept: Which of them are above the cutoff.
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
        """How many directions are above the cutoff."""
        return int(self.kept.sum())

    def least_squares(self, targets: Blocks) -> LinearMap:
        """The least-squares map to some targets, of least norm in the scaled features."""
        return self.ridge(targets, [0.0])[0]

    def ridge(self, targets: Blocks, penalties: Sequence[float]) -> list[LinearMap]:
        """A map for each penalty λ, the minimum of `E|t - fB - c|² + λ Σ_j (s_j |B_j|)²`, s_j being a feature's scale.

        This is scikit-learn's `Ridge(alpha=λ W)` on scaled features, W being the rows' total weight.
        """
        weights, bias = self.ridge_path(targets, penalties)
        return [LinearMap(weights[:, i], bias[i], self.rank) for i in range(len(penalties))]

    def ridge_path(
        self, targets: Blocks, penalties: Sequence[float]
    ) -> tuple[Float64[Tensor, "feature penalty target"], Float64[Tensor, "penalty target"]]:
        """The weights and the biases of the maps of `ridge`, from one product of matrices."""
        # Eigenvalues ascend: those above the cutoff are the last.
        first, scale = len(self.kept) - self.rank, self.scale.unsqueeze(1)
        basis = self.basis[:, first:]
        projected = basis.T @ (self._second(self.features, targets) / scale)
        shrunk = self.eigenvalues[first:].unsqueeze(1) + torch.tensor(penalties, dtype=torch.float64)
        in_basis = projected.unsqueeze(1) / shrunk.unsqueeze(2)
        weights = (basis @ in_basis.flatten(1) / scale).unflatten(1, in_basis.shape[1:])
        return weights, self._bias(weights.flatten(1), self.features, targets, n=len(penalties))

    def _second(self, rows: Blocks, columns: Blocks) -> Float64[Tensor, "row column"]:
        return second_moment(self.moments, rows, columns, intercept=self.intercept)

    def _map(self, weights: Tensor, features: Blocks, targets: Blocks, rank: int) -> LinearMap:
        return LinearMap(weights, self._bias(weights, features, targets)[0], rank)

    def _bias(self, weights: Tensor, features: Blocks, targets: Blocks, *, n: int = 1) -> Float64[Tensor, "map target"]:
        """The biases of `n` maps whose weights stand side by side."""
        read = (self.moments.block_mean(features) @ weights).reshape(n, -1)
        return self.moments.block_mean(targets) - read if self.intercept else torch.zeros_like(read)

    def reduced_rank(self, targets: Blocks, ranks: Sequence[int], *, penalty: float = 0.0) -> list[LinearMap]:
        """The best map of each rank: the ridge map, its fit projected on that many leading directions.

        Source: Izenman 1975, with all targets weighted alike; with a penalty, Mukherjee & Zhu 2011.
        """
        (full,) = self.ridge(targets, [penalty])
        fitted = full.weights.T @ self._second(self.features, targets)
        _, directions = torch.linalg.eigh((fitted + fitted.T) / 2)
        maps = []
        for rank in ranks:
            # Eigenvalues ascend: the leading directions are the last.
            leading = directions[:, max(0, directions.shape[1] - rank) :]
            weights = full.weights @ leading @ leading.T
            maps.append(self._map(weights, self.features, targets, min(rank, full.rank)))
        return maps

    def jointly_with(self, others: Blocks, targets: Blocks, *, penalty: float = 0.0) -> LinearMap:
        """The map from the features *and* a few other columns, whose weights come last.

        The penalty is on the features alone. By the theorem of Frisch, Waugh and Lovell, without a second
        decomposition: regress what the features leave of the targets on what they leave of the others.
        """
        of_targets, of_others = (self.ridge(columns, [penalty])[0].weights for columns in (targets, others))

        def left(rows: Blocks, columns: Blocks, weights: Tensor) -> Tensor:
            return self._second(rows, columns) - weights.T @ self._second(self.features, columns)

        own = self._second(others, others).diagonal()
        scale = torch.where(own > 0, own, math.inf).sqrt()
        # What is left of a column that follows from the features is rounding: cut it off by the column's own size.
        eigenvalues, basis = torch.linalg.eigh(left(others, others, of_others) / torch.outer(scale, scale))
        kept = eigenvalues > 1e-9
        inverse = (basis[:, kept] / eigenvalues[kept]) @ basis[:, kept].T / torch.outer(scale, scale)
        of_left = inverse @ left(others, targets, of_others)
        weights = torch.cat([of_targets - of_others @ of_left, of_left])
        features, others = ((each,) if isinstance(each, str) else tuple(each) for each in (self.features, others))
        return self._map(weights, features + others, targets, self.rank + int(kept.sum()))


@checked
def decompose(
    moments: Moments,
    features: Blocks,
    *,
    rank_cutoff: float = RANK_CUTOFF,
    intercept: bool = True,
    standardize: bool = True,
) -> Spectrum:
    """The spectrum of some features: standardize, then eigendecompose.

    Args:
        moments: Moments of rows that hold the features.
        features: Their blocks.
        rank_cutoff: Directions with a singular value below this fraction of the largest are left out.
        intercept: Whether maps have an intercept.
        standardize: Whether to scale columns to unit variance first, so that units decide no cutoff.
    """
    gram = second_moment(moments, features, features, intercept=intercept)
    squares = gram.diagonal()
    smallest = (moments.rounding * moments.block_mean(features)) ** 2 if intercept else torch.zeros_like(squares)
    varies = squares > smallest.clamp(min=torch.finfo(torch.float64).tiny)
    scale = torch.where(varies, squares if standardize else torch.ones_like(squares), math.inf).sqrt()
    eigenvalues, basis = torch.linalg.eigh(gram / scale.unsqueeze(0) / scale.unsqueeze(1))
    kept = eigenvalues > max(float(eigenvalues[-1]), 0.0) * rank_cutoff**2
    return Spectrum(moments, features, intercept, scale, eigenvalues, basis, kept)


def second_moment(
    moments: Moments, rows: Blocks, columns: Blocks, *, intercept: bool = True
) -> Float64[Tensor, "row column"]:
    """Covariance between two groups of blocks or, without an intercept, their mean product."""
    covariance = moments.covariance(rows, columns)
    return covariance if intercept else covariance + torch.outer(moments.block_mean(rows), moments.block_mean(columns))


@checked
def least_squares(
    moments: Moments, features: Blocks, targets: Blocks, *, rank_cutoff: float = RANK_CUTOFF, intercept: bool = True
) -> LinearMap:
    """The least-squares map from some blocks to others; options as for `decompose`."""
    return decompose(moments, features, rank_cutoff=rank_cutoff, intercept=intercept).least_squares(targets)


def mean_squared_errors(
    linear_map: LinearMap, moments: Moments, features: Blocks, targets: Blocks
) -> Float64[Tensor, "target"]:
    """The map's mean squared error in each target on the rows of `moments`, whether fitted on them or not."""
    weights, bias = linear_map.weights.unsqueeze(1), linear_map.bias.unsqueeze(0)
    return path_errors(weights, bias, [moments], features, targets)[0, 0]


def path_errors(
    weights: Float64[Tensor, "feature map target"],
    bias: Float64[Tensor, "map target"],
    moments: Sequence[Moments],
    features: Blocks,
    targets: Blocks,
) -> Float64[Tensor, "moments map target"]:
    """The errors of several maps to the same targets, as for `mean_squared_errors`, on the rows of each of the moments.

    What takes a product of matrices is done for each of the moments, the rest for all at once.
    """
    side_by_side, read = weights.flatten(1), []
    for each in moments:
        squared = (each.scatter_of(features, features) @ side_by_side).view_as(weights)
        crossed = each.scatter_of(features, targets).unsqueeze(1)
        read.append((weights * (squared - 2 * crossed)).sum(dim=0))
    total = torch.tensor([each.weight for each in moments], dtype=torch.float64).unsqueeze(1)
    of_targets = torch.stack([each.block_mean(targets) for each in moments])
    scatter = torch.stack([each.block_scatter(targets) for each in moments])
    residual = without_rounding(scatter / total, of_targets).unsqueeze(1) + torch.stack(read) / total.unsqueeze(2)
    means = torch.stack([each.block_mean(features) for each in moments])
    offset = of_targets.unsqueeze(1) - (means @ side_by_side).unflatten(1, bias.shape) - bias
    # Rounding may take a perfect fit slightly below zero.
    return (residual + offset**2).clamp(min=0)


def variances(moments: Moments, targets: Blocks) -> Float64[Tensor, "target"]:
    """Variance of each target about the rows' own mean; 0 if it varies by rounding alone."""
    return without_rounding(moments.block_scatter(targets) / moments.weight, moments.block_mean(targets))


def without_rounding(
    variance: Float64[Tensor, "*moments target"], mean: Float64[Tensor, "*moments target"]
) -> Float64[Tensor, "*moments target"]:
    """The variances of targets, with 0 where a deviation of 1e-12 of the mean is rounding."""
    return torch.where(variance > (1e-12 * mean) ** 2, variance, 0.0)
