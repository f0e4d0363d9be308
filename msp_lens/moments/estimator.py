"""The moments and their solves as a scikit-learn estimator, for pipelines and `cross_val_score`.

Least squares with a ridge penalty α and at most r directions:

    B = (S_xx + α I)⁺ S_xy,    B_r = B V Vᵀ,    V the r leading eigenvectors of Bᵀ S_xy,

where S is centered if there is an intercept. As in scikit-learn's `Ridge`, α counts against the sum over rows, and
features are not standardized.

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
from msp_lens.moments.solve import RANK_CUTOFF, decompose
from msp_lens.moments.solvers import OLS, ReducedRank


class BeliefRegressor(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Affine map to beliefs, or to any targets, fitted to rows in memory or one batch at a time.

    Args:
        alpha: Ridge penalty, as in scikit-learn's `Ridge`; 0 is least squares.
        rank: The most directions of the targets to predict; `None` for all. Beliefs over n states span n - 1.
        fit_intercept: Whether the map has an intercept.
        rank_cutoff: With `alpha=0`, as for `OLS`.

    Attributes:
        coef_: `[target, feature]`, or `[feature]` if the targets are a single column.
        intercept_: `[target]`, or a number.
        rank_: Number of directions of the features that the map was solved in.
        moments_: Moments of all rows seen, with blocks `"X"` and `"y"`.

    Example:
        >>> X, y = np.arange(6.0).reshape(-1, 1), 2 * np.arange(6.0) + 1
        >>> BeliefRegressor().fit(X, y).predict([[10.0]]).round(6)
        array([21.])
    """

    # scikit-learn's rule: the constructor takes anything and `fit` complains, so nothing here has a type to check.
    def __init__(self, *, alpha=0.0, rank=None, fit_intercept=True, rank_cutoff=RANK_CUTOFF) -> None:
        self.alpha, self.rank = alpha, rank
        self.fit_intercept, self.rank_cutoff = fit_intercept, rank_cutoff

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> BeliefRegressor:
        """Fit to these rows alone, `[row, feature]` and `[row, target]` or `[row]`; returns the estimator.

        Raises:
            ValueError: if a number is not finite, a weight is negative, all are 0, or a parameter is out of range.
        """
        return self._update(X, y, sample_weight, reset=True)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> BeliefRegressor:
        """Fit to these rows and all rows seen before, as if they had come at once; arguments as for `fit`."""
        return self._update(X, y, sample_weight, reset=not hasattr(self, "moments_"))

    def predict(self, X: Any) -> np.ndarray:
        """`[row, target]`, or `[row]` if the targets were a single column."""
        check_is_fitted(self)
        rows: Any = validate_data(self, X, reset=False, dtype=np.float64)
        return rows @ self.coef_.T + self.intercept_

    def _update(self, X: Any, y: Any, sample_weight: Any, *, reset: bool) -> BeliefRegressor:
        if not 0 <= self.alpha < math.inf:
            raise ValueError(f"alpha={self.alpha}: give a finite number ≥ 0.")
        cutoff = OLS(rank_cutoff=self.rank_cutoff).rank_cutoff
        dtypes = [np.float64, np.float32]
        checked: Any = validate_data(self, X, y, reset=reset, multi_output=True, y_numeric=True, dtype=dtypes)
        features, targets = checked
        columns = targets.reshape(len(targets), -1)
        if self.rank is not None:
            ReducedRank(self.rank).check_targets(columns.shape[1])
        if reset:
            self.moments_ = Moments({"X": features.shape[1], "y": columns.shape[1]})
            self._single_target = targets.ndim == 1
        elif columns.shape[1] != self.moments_.blocks["y"]:
            raise ValueError(f"y has {columns.shape[1]} targets; in earlier rows it had {self.moments_.blocks['y']}.")
        weights = np.ones(len(features)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        if weights.shape != (len(features),):
            raise ValueError(f"sample_weight has shape {weights.shape}; X has {len(features)} rows: give one per row.")
        rows = np.concatenate([features, columns], axis=1, dtype=np.float64)
        self.moments_.update(torch.from_numpy(rows), torch.tensor(weights))
        if self.moments_.weight == 0:
            raise ValueError("All sample weights are zero: give at least one row a positive weight.")
        cutoff, standardize, intercept = 0.0 if self.alpha else cutoff, not self.alpha, self.fit_intercept
        spectrum = decompose(self.moments_, "X", rank_cutoff=cutoff, intercept=intercept, standardize=standardize)
        penalty = self.alpha / self.moments_.weight
        if self.rank is None or self.rank >= columns.shape[1]:
            (fitted,) = spectrum.ridge("y", [penalty])
        else:
            (fitted,) = spectrum.reduced_rank("y", [self.rank], penalty=penalty)
        self.coef_, self.intercept_, self.rank_ = fitted.weights.T.numpy(), fitted.bias.numpy(), spectrum.rank
        if self._single_target:
            self.coef_, self.intercept_ = self.coef_[0], float(self.intercept_[0])
        return self
