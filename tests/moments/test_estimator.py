import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from msp_lens.moments import Moments, least_squares, merge_all, score
from msp_lens.moments.estimator import BeliefRegressor
from msp_lens.moments.scores import cell_errors


@parametrize_with_checks(
    [BeliefRegressor(), BeliefRegressor(alpha=1.0, rank=1), BeliefRegressor(fit_intercept=False)],
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def problem(seed, *, n=60, scale=1.0, offset=0.0):
    generator = np.random.default_rng(seed)
    X = generator.normal(size=(n, 6)) @ generator.normal(size=(6, 6)) * scale + offset
    y = X / scale @ generator.normal(size=(6, 3)) + generator.normal(size=(n, 3))
    return X, y, generator.uniform(0.01, 1, size=n)


@given(
    st.integers(0, 10_000),
    st.sampled_from([1e-6, 1.0, 1e6]),
    st.sampled_from([0.0, 1e3]),
    st.sampled_from([0.0, 0.1, 10.0]),
    st.booleans(),
)
def test_predictions_are_scikit_learns(seed, scale, offset, alpha, fit_intercept):
    X, y, weights = problem(seed, scale=scale, offset=offset * scale)
    reference = Ridge(alpha * scale**2, fit_intercept=fit_intercept, solver="svd") if alpha else LinearRegression()
    reference.set_params(fit_intercept=fit_intercept)
    fitted = BeliefRegressor(alpha=alpha * scale**2, fit_intercept=fit_intercept).fit(X, y, weights)
    expected = reference.fit(X, y, weights).predict(X)
    np.testing.assert_allclose(fitted.predict(X), expected, atol=1e-5)
    np.testing.assert_allclose(fitted.coef_ * scale, reference.coef_ * scale, atol=1e-4)


@given(st.integers(0, 10_000), st.lists(st.integers(1, 59), max_size=4))
def test_fitted_in_parts_is_fitted_at_once(seed, cuts):
    X, y, weights = problem(seed, offset=100.0)
    streamed = BeliefRegressor(alpha=0.5)
    for rows in np.split(np.arange(60), sorted(set(cuts))):
        streamed.partial_fit(X[rows], y[rows], weights[rows])
    whole = BeliefRegressor(alpha=0.5).fit(X, y, weights)
    np.testing.assert_allclose(streamed.predict(X), whole.predict(X), rtol=1e-9)
    assert streamed.moments_.n == 60


def test_columns_of_very_different_units_are_all_used():
    X, y, _ = problem(0)
    units = np.array([1e-6, 1e6, 1.0, 1e-3, 1e3, 1.0])
    fitted = BeliefRegressor().fit(X * units, y)
    assert fitted.rank_ == 6
    np.testing.assert_allclose(fitted.predict(X * units), LinearRegression().fit(X, y).predict(X), atol=1e-7)


@pytest.mark.parametrize("ratio", [1e3, 1e8, 1e11])
def test_a_feature_far_from_zero_is_used(ratio):
    """Mean over deviation up to 1e11: what float64 still resolves is no rounding."""
    generator = np.random.default_rng(0)
    whole = generator.integers(-500, 500, size=(200, 3))
    X = whole.astype(np.float64)
    X[:, 0] += ratio * 300
    y = X @ [1.0, 2.0, -1.0] - ratio * 300
    fitted = BeliefRegressor().fit(X, y)
    assert fitted.rank_ == 3
    assert fitted.score(X, y) == pytest.approx(LinearRegression().fit(X, y).score(X, y), abs=1e-6)
    assert fitted.score(X, y) > 0.999999


def test_targets_and_features_of_any_size_and_offset_are_scored_as_scikit_learn_does():
    """Neither tiny numbers nor numbers far from zero count as constant; only rounding does."""
    generator = np.random.default_rng(0)
    X = generator.normal(size=(100, 3))
    y = X @ generator.normal(size=(3, 2)) + 0.1 * generator.normal(size=(100, 2))
    for scale, offset in ((1e-14, 0.0), (1.0, 1e6), (1e-20, 0.0), (1e12, 1e12)):
        moved = y * scale + offset
        moments = Moments({"X": 3, "y": 2}).update(torch.from_numpy(np.c_[X, moved]), torch.ones(100))
        expected = LinearRegression().fit(X, moved)
        found = score(least_squares(moments, "X", "y"), moments, "X", "y")
        reference = r2_score(moved, expected.predict(X), multioutput="variance_weighted")
        assert found.r2 == pytest.approx(reference, abs=1e-6)


@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1, 1e8 / 3])
def test_a_constant_target_has_no_r2(constant):
    X = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.rand(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cells = []
    for rows, weight in zip(X.split(10), weights.split(10), strict=True):
        y = torch.full((10, 1), constant, dtype=torch.float64)
        cells.append(Moments({"X": 3, "y": 1}).update(torch.cat([rows, y], dim=1), weight))
    whole = merge_all(cells)
    linear_map = least_squares(whole, "X", "y")
    assert math.isnan(score(linear_map, whole, "X", "y").r2)
    errors = torch.full((5, 1), 1e-20, dtype=torch.float64)
    held_out = cell_errors(errors, cells, torch.arange(5), "y").score()
    assert math.isnan(held_out.r2)
    assert all(map(math.isnan, (*held_out.r2_interval, *held_out.r2_by_fold, *held_out.r2_by_target)))
    assert np.isclose(BeliefRegressor().fit(X, np.full(50, constant)).predict(X), constant).all()


def test_duplicated_and_constant_columns_change_nothing():
    X, y, _ = problem(1)
    widened = np.concatenate([X, X[:, :3], np.full((60, 1), 7.1e5), np.zeros((60, 1))], axis=1)
    fitted = BeliefRegressor().fit(widened, y)
    assert fitted.rank_ == 6
    np.testing.assert_allclose(fitted.predict(widened), LinearRegression().fit(X, y).predict(X), atol=1e-7)


def test_a_reduced_rank_fit_is_the_best_of_its_rank():
    """Eckart–Young: the fit's own leading principal directions, from an SVD of the fitted values."""
    X, y, _ = problem(2)
    fit = LinearRegression().fit(X, y).predict(X)
    left, values, right = np.linalg.svd(fit - y.mean(axis=0), full_matrices=False)
    for rank in (1, 2, 3):
        expected = (left[:, :rank] * values[:rank]) @ right[:rank] + y.mean(axis=0)
        fitted = BeliefRegressor(rank=rank).fit(X, y)
        np.testing.assert_allclose(fitted.predict(X), expected, atol=1e-8)
        assert np.linalg.matrix_rank(fitted.coef_, tol=1e-8) == rank


def test_one_column_of_targets_comes_back_as_one():
    X, y, _ = problem(3)
    single, table = BeliefRegressor().fit(X, y[:, 0]), BeliefRegressor().fit(X, y[:, :1])
    assert (single.predict(X).shape, table.predict(X).shape) == ((60,), (60, 1))
    assert (single.coef_.shape, table.coef_.shape) == ((6,), (1, 6))
    np.testing.assert_array_equal(single.predict(X), table.predict(X)[:, 0])


def test_it_works_with_scikit_learns_tools():
    X, y, _ = problem(4, n=120)
    groups = np.arange(120) // 10
    pipeline = make_pipeline(StandardScaler(), BeliefRegressor())
    reference = make_pipeline(StandardScaler(), LinearRegression())
    ours = cross_val_score(pipeline, X, y, groups=groups, cv=GroupKFold(4))
    np.testing.assert_allclose(ours, cross_val_score(reference, X, y, groups=groups, cv=GroupKFold(4)))
    search = GridSearchCV(BeliefRegressor(), {"alpha": [0.0, 1.0, 1e4], "rank": [1, None]}, cv=GroupKFold(4))
    assert search.fit(X, y, groups=groups).best_params_ == {"alpha": 0.0, "rank": None} or search.best_score_ > 0.5
    assert clone(BeliefRegressor(alpha=2.0, rank=1)).get_params()["alpha"] == 2.0


def test_bad_parameters_and_rows_are_refused():
    X, y, weights = problem(5)
    for parameters, message in (
        ({"alpha": -1.0}, r"alpha=-1\.0"),
        ({"rank": 0}, "rank=0"),
        ({"rank_cutoff": 1.5}, r"rank_cutoff=1\.5"),
    ):
        with pytest.raises(ValueError, match=message):
            BeliefRegressor(**parameters).fit(X, y)
    with pytest.raises(ValueError, match="finite and ≥ 0"):
        BeliefRegressor().fit(X, y, -weights)
    with pytest.raises(ValueError, match="weights are zero"):
        BeliefRegressor().fit(X, y, 0 * weights)
    with pytest.raises(ValueError, match="60 rows: give one per row"):
        BeliefRegressor().fit(X, y, weights[:5])
    with pytest.raises(ValueError, match="2 targets; in earlier rows it had 3"):
        BeliefRegressor().fit(X, y).partial_fit(X, y[:, :2])
