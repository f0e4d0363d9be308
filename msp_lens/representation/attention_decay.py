"""How attention decays with lag: the mean at each lag, and the rate of a fit that leaves each key its own height.

    A[d, s] ≈ α_s ρ^(d - s),    d > s,

by least squares over all queries after each key but the first position. The heights α_s are free, since theory says how
attention to one key falls, A[d + m, s] = ζ^m A[d, s], and a softmax gives early keys more than late ones.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float64
from scipy.optimize import minimize_scalar
from torch import Tensor

# Rates are searched for between these; attention that grows with age has one above 1.
_LOWEST, _HIGHEST, _STEP = -1.2, 1.6, 0.02


def by_lag(matrix: Float64[Tensor, "query key"], first_key: int) -> Float64[Tensor, "lag"]:
    """The mean over queries and keys of each lag d - s = 0, 1, …; keys before `first_key` are left out."""
    n_lags = matrix.shape[1]
    kept = matrix[:, first_key:]
    # At the longest lags only keys that are left out may remain.
    means = [kept.diagonal(offset=-(lag + first_key)) for lag in range(n_lags)]
    return torch.stack([each.mean() if len(each) else each.new_tensor(math.nan) for each in means])


def fit_decay(matrix: Float64[Tensor, "query key"], first_key: int) -> tuple[float, float]:
    """The rate ρ, and the share of the squares that it accounts for; NaN where nothing is attended to."""
    keys = range(first_key, matrix.shape[0] - 2)
    after = np.zeros((len(keys), matrix.shape[0] - 1 - first_key))
    for row, key in enumerate(keys):
        after[row, : matrix.shape[0] - 1 - key] = matrix[key + 1 :, key].numpy()
    lags = np.arange(after.shape[1])
    is_there = lags < after.shape[1] - np.arange(len(keys))[:, None]
    total = float((after**2).sum())
    if not total > 0:
        return math.nan, math.nan

    def unexplained(rate: float) -> float:
        powers = np.where(is_there, rate**lags, 0.0)
        squares = (powers**2).sum(axis=1)
        return 1 - float(((after * powers).sum(axis=1) ** 2 / squares).sum()) / total

    grid = [_LOWEST + _STEP * k for k in range(round((_HIGHEST - _LOWEST) / _STEP) + 1)]
    best = min(grid, key=unexplained)
    found = minimize_scalar(unexplained, bounds=(best - _STEP, best + _STEP), method="bounded", options={"xatol": 1e-9})
    return float(found.x), 1 - float(found.fun)
