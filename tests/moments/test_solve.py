import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_squared_error, r2_score

from msp_lens.moments import Moments, least_squares, score


def problem(n, seed, *, noise=0.1, offset=0.0):
    """Features, targets and weights of a noisy linear problem."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, 6, generator=generator, dtype=torch.float64) + offset
    mixing = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    targets = features @ mixing + noise * torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return features, targets, torch.rand(n, generator=generator, dtype=torch.float64) + 0.01


def moments_of(features, targets, weights):
    blocks = {"h": features.shape[1], "b": targets.shape[1]}
    return Moments(blocks).update(torch.cat([features, targets], dim=1), weights)


@given(st.integers(10, 80), st.integers(0, 10_000), st.sampled_from([0.0, 1e3]))
def test_predictions_and_scores_are_those_of_scikit_learn(n, seed, offset):
    features, targets, weights = problem(n, seed, offset=offset)
    moments = moments_of(features, targets, weights)
    fitted = least_squares(moments, "h", "b")
    expected = LinearRegression().fit(features, targets, sample_weight=weights).predict(features)
    np.testing.assert_allclose(features @ fitted.weights + fitted.bias, expected, atol=1e-6)

    result = score(fitted, moments, "h", "b")
    assert result.mse == pytest.approx(mean_squared_error(targets, expected, sample_weight=weights), rel=1e-6)
    assert result.rmse == pytest.approx(math.sqrt(result.mse))
    r2 = r2_score(targets, expected, sample_weight=weights, multioutput="variance_weighted")
    assert result.r2 == pytest.approx(r2, abs=1e-9)
    assert result.n == n


def test_duplicated_features_are_cut_and_harm_nothing():
    features, targets, weights = problem(50, 3)
    doubled = torch.cat([features, features + 1e-9 * targets[:, [0, 1, 2, 0, 1, 2]]], dim=1)
    fitted = least_squares(moments_of(doubled, targets, weights), "h", "b")
    expected = LinearRegression().fit(features, targets, sample_weight=weights).predict(features)
    assert fitted.rank == 6
    assert fitted.weights.abs().max() < 10
    np.testing.assert_allclose(doubled @ fitted.weights + fitted.bias, expected, atol=1e-6)


def test_constant_features_predict_the_mean():
    targets = torch.tensor([[1.0], [3.0]])
    moments = moments_of(torch.ones(2, 4), targets, torch.tensor([1.0, 3.0]))
    fitted = least_squares(moments, "h", "b")
    assert fitted.rank == 0
    assert fitted.bias.tolist() == [2.5]
    assert score(fitted, moments, "h", "b").r2 == pytest.approx(0)


def test_constant_targets_have_no_r2():
    moments = moments_of(torch.randn(9, 2, generator=torch.Generator().manual_seed(0)), torch.ones(9, 1), torch.ones(9))
    result = score(least_squares(moments, "h", "b"), moments, "h", "b")
    assert math.isnan(result.r2)
    assert result.mse == pytest.approx(0)
