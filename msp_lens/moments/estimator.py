"""The same moments and solve as a scikit-learn estimator, for pipelines, `GroupKFold` and `cross_val_score`.

Least squares with a ridge α and at most r directions:

    B = (S_xx + α I)⁺ S_xy,    B_r = B V Vᵀ,    V the r leading eigenvectors of Bᵀ S_xy,

S being centered where there is an intercept. α counts as in scikit-learn's `Ridge`: against the sum over rows.

Source: reduced rank, Izenman 1975; with a ridge, Mukherjee & Zhu 2011.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from msp_lens.moments.moments import Moments
from msp_lens.moments.solve import RANK_CUTOFF, LinearMap, pseudo_inverse

# A column whose deviation is this small beside its mean is constant, but for rounding.
CONSTANT = 1e-7


class BeliefRegressor(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Affine probe of beliefs, or of any targets, from rows in memory or a batch at a time.

    Args:
        alpha: Strength of the ridge, as in scikit-learn's `Ridge`; 0 is least squares.
        rank: Most directions of the targets that are read; `None` for all. Beliefs over n states span n - 1.
        fit_intercept: Whether the map is affine; else it is linear.
        rank_cutoff: Without a ridge, directions of the standardized features with a singular value below this fraction
            of the largest are left out.

    Attributes:
        coef_: `[target, feature]`, or `[feature]` for targets given as one column.
        intercept_: `[target]`, or a number.
        rank_: Directions of the features that it was solved in.
        moments_: Of all rows seen, blocks `"X"` and `"y"`.
        n_features_in_: Features.

    Example:
        >>> X, y = np.arange(6.0).reshape(-1, 1), 2 * np.arange(6.0) + 1
        >>> BeliefRegressor().fit(X, y).predict([[10.0]]).round(6)
        array([21.])
    """

    # scikit-learn's rule: the constructor takes anything and `fit` complains, so nothing here has a type to check.
    def __init__(self, *, alpha=0.0, rank=None, fit_intercept=True, rank_cutoff=RANK_CUTOFF) -> None:
        self.alpha = alpha
        self.rank = rank
        self.fit_intercept = fit_intercept
        self.rank_cutoff = rank_cutoff

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> BeliefRegressor:
        """Fit to these rows alone; returns itself.

        Args:
            X: `[row, feature]`.
            y: `[row, target]` or `[row]`.
            sample_weight: How much each row counts; all alike by default.

        Raises:
            ValueError: if a number is not finite, a weight negative or all of them 0, or a parameter out of range.
        """
        return self._update(X, y, sample_weight, reset=True)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> BeliefRegressor:
        """Fit to these rows and all those seen before, as if they had come at once; arguments as for `fit`."""
        return self._update(X, y, sample_weight, reset=not hasattr(self, "moments_"))

    def predict(self, X: Any) -> np.ndarray:
        """`[row, target]`, or `[row]` for targets given as one column."""
        check_is_fitted(self)
        rows: Any = validate_data(self, X, reset=False, dtype=np.float64)
        return rows @ self.coef_.T + self.intercept_

    def _update(self, X: Any, y: Any, sample_weight: Any, *, reset: bool) -> BeliefRegressor:
        self._check_parameters()
        checked: Any = validate_data(
            self, X, y, reset=reset, multi_output=True, y_numeric=True, dtype=[np.float64, np.float32]
        )
        features, targets = checked
        columns = targets.reshape(len(targets), -1)
        if reset:
            self.moments_ = Moments({"X": features.shape[1], "y": columns.shape[1]})
            self._single_target = targets.ndim == 1
        elif columns.shape[1] != self.moments_.blocks["y"]:
            raise ValueError(f"y has {columns.shape[1]} targets; in earlier rows it had {self.moments_.blocks['y']}.")
        weights = np.ones(len(features)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        if weights.shape != (len(features),):
            raise ValueError(f"sample_weight has shape {weights.shape}; X has {len(features)} rows: give one a row.")
        rows = np.concatenate([features, columns], axis=1, dtype=np.float64)
        self.moments_.update(torch.from_numpy(rows), torch.tensor(weights))
        if self.moments_.weight == 0:
            raise ValueError("All sample weights are zero: give some row a weight above it.")
        fitted = _solve(self.moments_, self.alpha, self.rank, self.fit_intercept, self.rank_cutoff)
        coefficients, intercept = fitted.weights.T.numpy(), fitted.bias.numpy()
        self.coef_ = coefficients[0] if self._single_target else coefficients
        self.intercept_ = float(intercept[0]) if self._single_target else intercept
        self.rank_ = fitted.rank
        return self

    def _check_parameters(self) -> None:
        if not 0 <= self.alpha < math.inf:
            raise ValueError(f"alpha={self.alpha}: a ridge is finite and ≥ 0.")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank={self.rank}: read at least 1 direction, or None for all.")
        if not 0 <= self.rank_cutoff < 1:
            raise ValueError(f"rank_cutoff={self.rank_cutoff}: give a fraction of the largest singular value.")


def _solve(moments: Moments, alpha: float, rank: int | None, fit_intercept: bool, rank_cutoff: float) -> LinearMap:
    gram, cross = moments.covariance("X", "X"), moments.covariance("X", "y")
    feature_mean, target_mean = moments.block_mean("X"), moments.block_mean("y")
    if not fit_intercept:
        gram = gram + torch.outer(feature_mean, feature_mean)
        cross = cross + torch.outer(feature_mean, target_mean)
    # Least squares is the same in any units: standardized, no feature is cut off for its unit. A ridge is not.
    variances = gram.diagonal()
    varies = variances > ((CONSTANT * feature_mean) ** 2 if fit_intercept else 0)
    scale = torch.where(varies, variances, math.inf).sqrt() if alpha == 0 else torch.ones_like(variances)
    ridge = torch.full_like(scale, alpha / moments.weight).diag()
    inverse, solved_in = pseudo_inverse(gram / torch.outer(scale, scale) + ridge, rank_cutoff if alpha == 0 else 0.0)
    weights = (inverse @ (cross / scale.unsqueeze(1))) / scale.unsqueeze(1)
    if rank is not None and rank < weights.shape[1]:
        _, directions = torch.linalg.eigh(weights.T @ cross)
        leading = directions[:, -rank:]
        weights = weights @ leading @ leading.T
    bias = target_mean - feature_mean @ weights if fit_intercept else torch.zeros_like(target_mean)
    return LinearMap(weights, bias, solved_in)
