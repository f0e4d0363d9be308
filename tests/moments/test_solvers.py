import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression
from sklearn.linear_model import Ridge as ScikitRidge

from msp_lens.moments import OLS, Auto, Moments, ReducedRank, Ridge, as_solver, choose_penalty, decompose, score
from msp_lens.moments.folds import Cells

BLOCKS = {"h": 5, "belief": 3}
exponents = st.floats(-6, 6)


def problem(n, seed, *, scales=(0.0,) * 5, offset=0.0, rank=5, noise=0.1):
    """Features of a given rank, each column in a unit and at an offset of its own, targets and weights."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, rank, generator=generator, dtype=torch.float64)
    targets = features @ torch.randn(rank, 3, generator=generator, dtype=torch.float64)
    targets = targets + noise * torch.randn(n, 3, generator=generator, dtype=torch.float64)
    mixing = torch.randn(rank, 5, generator=generator, dtype=torch.float64) if rank < 5 else torch.eye(5).double()
    unit = 10.0 ** torch.tensor(scales, dtype=torch.float64)
    return (features @ mixing + offset) * unit, targets, torch.rand(n, generator=generator, dtype=torch.float64) + 0.01


def moments_of(features, targets, weights):
    return Moments(BLOCKS).update(torch.cat([features, targets], dim=1), weights)


def cells_of(features, targets, weights, n_folds=5, n_cells=10):
    parts = [moments_of(features[c::n_cells], targets[c::n_cells], weights[c::n_cells]) for c in range(n_cells)]
    return Cells(tuple(parts), n_folds)


@given(
    st.integers(12, 60),
    st.integers(0, 10_000),
    st.lists(exponents, min_size=5, max_size=5),
    st.sampled_from([0.0, 10.0, 1e3]),
    st.integers(1, 5),
)
def test_least_squares_is_scikit_learns_in_any_unit_at_any_offset_and_rank(n, seed, scales, offset, rank):
    features, targets, weights = problem(n, seed, scales=scales, offset=offset, rank=rank)
    fitted = decompose(moments_of(features, targets, weights), "h").least_squares("belief")
    # Scikit-learn's own cut-off is on columns as they are: give it them in one unit.
    standard = (features - features.mean(dim=0)) / features.std(dim=0)
    expected = LinearRegression().fit(standard, targets, sample_weight=weights).predict(standard)
    assert fitted.rank == rank
    np.testing.assert_allclose(features @ fitted.weights + fitted.bias, expected, atol=1e-5)


@given(st.integers(8, 40), st.integers(0, 10_000), exponents, st.integers(1, 5))
def test_least_squares_through_the_origin_is_scikit_learns(n, seed, scale, rank):
    features, targets, weights = problem(n, seed, scales=[scale] * 5, rank=rank, offset=0.5)
    fitted = decompose(moments_of(features, targets, weights), "h", intercept=False).least_squares("belief")
    reference = LinearRegression(fit_intercept=False).fit(features, targets, sample_weight=weights)
    np.testing.assert_allclose(features @ fitted.weights, reference.predict(features), atol=1e-6)
    assert fitted.bias.tolist() == [0, 0, 0]


@given(
    st.integers(8, 40),
    st.integers(0, 10_000),
    st.lists(exponents, min_size=5, max_size=5),
    st.floats(-5, 2),
    st.booleans(),
)
def test_ridge_is_scikit_learns_on_standardized_features(n, seed, scales, exponent, intercept):
    features, targets, weights = problem(n, seed, scales=scales)
    penalty = 10.0**exponent
    (fitted,) = decompose(moments_of(features, targets, weights), "h", intercept=intercept).ridge("belief", [penalty])
    center = weights @ features / weights.sum() if intercept else 0.0
    unit = (weights @ (features - center) ** 2 / weights.sum()).sqrt()
    reference = ScikitRidge(alpha=penalty * float(weights.sum()), fit_intercept=intercept)
    expected = reference.fit(features / unit, targets, sample_weight=weights).predict(features / unit)
    np.testing.assert_allclose(features @ fitted.weights + fitted.bias, expected, atol=1e-6)


@given(st.integers(0, 10_000))
def test_reduced_rank_is_least_squares_projected_on_its_fits_principal_axes(seed):
    features, targets, weights = problem(40, seed, noise=1.0)
    moments = moments_of(features, targets, weights)
    fitted = LinearRegression().fit(features, targets, sample_weight=weights).predict(features)
    center = np.average(fitted, axis=0, weights=weights)
    _, _, axes = np.linalg.svd((fitted - center) * np.sqrt(weights.numpy())[:, None], full_matrices=False)
    maps = decompose(moments, "h").reduced_rank("belief", [1, 2, 3])
    for rank, found in enumerate(maps, start=1):
        expected = (fitted - center) @ axes[:rank].T @ axes[:rank] + center
        np.testing.assert_allclose(features @ found.weights + found.bias, expected, atol=1e-8)
        assert np.linalg.matrix_rank(found.weights.numpy(), tol=1e-9) == rank
    errors = [score(found, moments, "h", "belief").mse for found in maps]
    assert errors == sorted(errors, reverse=True)


@given(st.integers(0, 10_000), st.booleans())
def test_a_few_more_columns_cost_no_second_decomposition(seed, follows):
    """Also where the further columns follow from the features, so that nothing is left of them."""
    features, targets, weights = problem(60, seed, noise=1.0)
    generator = torch.Generator().manual_seed(seed + 1)
    others = features[:, :2] if follows else torch.randn(60, 2, generator=generator, dtype=torch.float64)
    moments = Moments({"h": 5, "n": 2, "belief": 3}).update(torch.cat([features, others, targets], dim=1), weights)
    found = decompose(moments, "h").jointly_with("n", "belief")
    joint = torch.cat([features, others], dim=1)
    expected = LinearRegression().fit(joint, targets, sample_weight=weights).predict(joint)
    np.testing.assert_allclose(joint @ found.weights + found.bias, expected, atol=1e-6)


def test_a_penalty_spares_the_few_more_columns():
    """As least squares with a row of zeros for each feature that is penalized."""
    features, targets, weights = problem(60, 3, noise=1.0)
    others = torch.randn(60, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    moments = Moments({"h": 5, "n": 2, "belief": 3}).update(torch.cat([features, others, targets], dim=1), weights)
    found = decompose(moments, "h").jointly_with("n", "belief", penalty=0.3)

    share = weights / weights.sum()
    rows = [block - share @ block for block in (features, others, targets)]
    deviations = (share @ rows[0] ** 2).sqrt()
    penalized = torch.cat([torch.diag((0.3**0.5) * deviations), torch.zeros(5, 2, dtype=torch.float64)], dim=1)
    design = torch.cat([torch.cat(rows[:2], dim=1) * share.sqrt().unsqueeze(1), penalized])
    wanted = torch.cat([rows[2] * share.sqrt().unsqueeze(1), torch.zeros(5, 3, dtype=torch.float64)])
    expected = torch.linalg.lstsq(design, wanted).solution
    np.testing.assert_allclose(found.weights, expected, atol=1e-9)


def test_ridges_penalty_is_chosen_on_held_out_folds_and_scored_on_others():
    """Against nested cross-validation by scikit-learn, fold by fold."""
    features, targets, weights = problem(40, 5, noise=4.0)
    cells = cells_of(features, targets, weights, n_folds=4, n_cells=4)
    penalties = [1e-6, 1e-2, 1e-1, 1.0, 10.0]
    choice = choose_penalty(cells, ["h"], "belief", Ridge(), penalties)
    fold = np.arange(40) % 4

    def error(penalty, train, test):
        w = weights[train]
        center = w @ features[train] / w.sum()
        unit = (w @ (features[train] - center) ** 2 / w.sum()).sqrt()
        ridge = ScikitRidge(alpha=penalty * float(w.sum())).fit(features[train] / unit, targets[train], sample_weight=w)
        residual = ridge.predict((features[test] / unit).numpy()) - targets[test].numpy()
        return float(weights[test].numpy() @ (residual**2).mean(axis=1))

    def cross_validated(penalty, folds):
        return sum(error(penalty, np.isin(fold, folds) & (fold != k), fold == k) for k in folds)

    expected = [
        min(penalties, key=lambda p, k=k: cross_validated(p, [j for j in range(4) if j != k])) for k in range(4)
    ]
    assert list(choice.of_fold) == expected
    overall = [cross_validated(p, [0, 1, 2, 3]) / float(weights.sum()) for p in penalties]
    assert [penalty for penalty, _ in choice.mse_by_penalty] == penalties
    np.testing.assert_allclose([mse for _, mse in choice.mse_by_penalty], overall, rtol=1e-8)
    assert choice.overall == penalties[int(np.argmin(overall))]
    assert choice.overall > 1e-6, "on training error the least penalty would have won"
    with pytest.raises(ValueError, match="takes at least 3"):
        choose_penalty(Cells(cells.parts[:2], 2), ["h"], "belief", Ridge())


def test_ridge_needs_a_penalty_to_solve():
    features, targets, weights = problem(20, 0)
    spectrum = Ridge().decompose(moments_of(features, targets, weights), "h")
    with pytest.raises(ValueError, match="penalty=None: choose one"):
        Ridge().solve(spectrum, "belief")


@pytest.mark.parametrize(("n", "n_folds", "expected"), [(99, 5, Ridge()), (100, 5, OLS()), (99, 2, OLS())])
def test_least_squares_takes_many_rows_a_feature_and_ridge_three_folds(n, n_folds, expected):
    """20 rows for each of 5 features."""
    assert Auto().choose(cells_of(*problem(n, 0), n_folds=n_folds), "h") == expected
    assert Auto(ratio=0).choose(cells_of(*problem(n, 0), n_folds=n_folds), "h") == OLS()


@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_of_full_rank_a_reduced_map_is_the_solvers_own(penalty):
    spectrum = Ridge(penalty).decompose(moments_of(*problem(40, 0)), "h")
    (full,) = Ridge(penalty).solve_by_rank(spectrum, "belief", [3])
    torch.testing.assert_close(full.weights, Ridge(penalty).solve(spectrum, "belief").weights)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: as_solver("lasso"), "solver='lasso': choose 'auto', 'ols', 'ridge'"),
        (lambda: as_solver("reduced_rank"), r"solver such as ReducedRank\(2\)"),
        (lambda: ReducedRank(0), "rank=0: give at least 1"),
        (lambda: Ridge(-1.0), "penalty=-1.0: give a number from 0 to"),
        (lambda: Ridge(float("nan")), "penalty=nan: give a number"),
        (lambda: OLS(rank_cutoff=1.5), "a fraction of the largest singular value"),
        (lambda: Ridge(rank_cutoff=-0.1), "a fraction of the largest singular value"),
    ],
)
def test_impossible_solvers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_string_stands_for_a_solvers_defaults():
    assert as_solver("ols") == OLS()
    assert as_solver("ridge") == Ridge()
    assert as_solver("auto") == Auto()
    assert as_solver(ReducedRank(2)) == ReducedRank(2)
    for solver in (OLS(), Auto(ratio=3.0), Ridge(0.1), ReducedRank(2, intercept=False)):
        found = json.loads(json.dumps(solver.to_dict()))
        assert found.pop("name") == solver.name
        assert type(solver)(**found) == solver


def test_rows_that_are_held_out_together_count_as_one():
    cells = cells_of(*problem(200, 0))
    features, n = cells.whole.blocks["h"], cells.whole.n
    for n_groups, rows in ((None, n), (n, n), (10**9, n), (7, 7)):
        counted = replace(cells, n_groups=n_groups)
        assert isinstance(Auto(ratio=rows / features).choose(counted, ["h"]), OLS)
        assert isinstance(Auto(ratio=1.01 * rows / features).choose(counted, ["h"]), Ridge)
