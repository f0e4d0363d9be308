import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression, Ridge

from msp_lens.moments import Moments, Solver, decompose, held_out_score, score
from msp_lens.moments.folds import Cells
from msp_lens.moments.moments import merge_all
from msp_lens.moments.solvers import choose_penalty
from msp_lens.probing.cross_validation import evaluate

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
    parts = [(moments_of(features[c::n_cells], targets[c::n_cells], weights[c::n_cells]),) for c in range(n_cells)]
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
    reference = Ridge(alpha=penalty * float(weights.sum()), fit_intercept=intercept)
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


def test_exactly_linear_targets_at_an_offset_of_a_million_score_one():
    features, targets, weights = problem(200, 0, offset=1e6, noise=0.0)
    parts = [moments_of(features[k::5], targets[k::5] + 1e6, weights[k::5]) for k in range(5)]
    assert held_out_score(parts, "h", "belief").r2 == pytest.approx(1, abs=1e-9)


@given(st.integers(0, 10_000))
def test_duplicated_features_change_nothing(seed):
    features, targets, weights = problem(60, seed, noise=0.5)
    doubled = torch.cat([features, 3 * features[:, [4, 0, 1, 2, 3]] - 7], dim=1)
    widths = [{"h": 5, "belief": 3}, {"h": 10, "belief": 3}]
    scores = [
        held_out_score(
            [Moments(blocks).update(torch.cat([rows[k::4], targets[k::4]], dim=1), weights[k::4]) for k in range(4)],
            "h",
            "belief",
        )
        for blocks, rows in zip(widths, [features, doubled], strict=True)
    ]
    assert scores[0].r2 == pytest.approx(scores[1].r2, abs=1e-9)


def test_pure_noise_is_never_held_out():
    """12 data sets of noise: below 0 on average, as theory has it, and never high."""
    found = []
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(100, 8, generator=generator, dtype=torch.float64)
        cells = cells_of(rows[:, :5], rows[:, 5:], torch.ones(100, dtype=torch.float64))
        for solver in (Solver(), Solver("ridge"), Solver("reduced_rank", rank=1)):
            found.append(evaluate(cells, ["h"], solver)[1].held_out.r2)
    by_method = np.asarray(found).reshape(12, 3)
    assert (by_method.mean(axis=0) < 0).all()
    assert by_method.max() < 0.15


def test_ridges_penalty_is_chosen_on_held_out_folds_and_scored_on_others():
    """Against nested cross-validation by scikit-learn, fold by fold."""
    features, targets, weights = problem(40, 5, noise=4.0)
    cells = cells_of(features, targets, weights, n_folds=4, n_cells=4)
    penalties = [1e-6, 1e-2, 1e-1, 1.0, 10.0]
    choice = choose_penalty(cells, ["h"], "belief", Solver("ridge"), penalties)
    fold = np.arange(40) % 4

    def error(penalty, train, test):
        w = weights[train]
        center = w @ features[train] / w.sum()
        unit = (w @ (features[train] - center) ** 2 / w.sum()).sqrt()
        ridge = Ridge(alpha=penalty * float(w.sum())).fit(features[train] / unit, targets[train], sample_weight=w)
        residual = ridge.predict((features[test] / unit).numpy()) - targets[test].numpy()
        return float(weights[test].numpy() @ (residual**2).mean(axis=1))

    def cross_validated(penalty, folds):
        return sum(error(penalty, np.isin(fold, folds) & (fold != k), fold == k) for k in folds)

    expected = [
        min(penalties, key=lambda p, k=k: cross_validated(p, [j for j in range(4) if j != k])) for k in range(4)
    ]
    assert list(choice.of_fold) == expected
    overall = [cross_validated(p, [0, 1, 2, 3]) / float(weights.sum()) for p in penalties]
    np.testing.assert_allclose(choice.mse, overall, rtol=1e-8)
    assert choice.overall == penalties[int(np.argmin(overall))]
    assert choice.overall > 1e-6, "on training error the least penalty would have won"
    with pytest.raises(ValueError, match="takes at least 3"):
        choose_penalty(Cells(cells.parts[:2], 2), ["h"], "belief", Solver("ridge"))


def test_the_curve_by_rank_and_positions_agree_with_fits_one_by_one():
    features, targets, weights = problem(90, 2, noise=1.0)
    cells = cells_of(features, targets, weights)
    _, scores = evaluate(cells, ["h"], Solver())
    assert len(scores.by_rank) == 3
    assert scores.by_rank[-1].r2 == pytest.approx(scores.held_out.r2, abs=1e-12)
    _, of_rank_1 = evaluate(cells, ["h"], Solver("reduced_rank", rank=1))
    assert scores.by_rank[0].r2 == pytest.approx(of_rank_1.held_out.r2, abs=1e-12)
    assert scores.held_out.r2 == pytest.approx(held_out_score(cells.folds, "h", "belief").r2, abs=1e-12)
    assert merge_all(cells.cells).n == 90


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "lasso"}, "method='lasso': choose one of 'ols'"),
        ({"method": "reduced_rank"}, "needs a rank"),
        ({"rank": 2}, "needs a rank"),
        ({"method": "reduced_rank", "rank": 0}, "at least 1"),
        ({"penalty": 1.0}, "for method='ridge'"),
        ({"method": "ridge", "penalty": -1.0}, "≥ 0"),
        ({"rank_cutoff": 1.5}, r"in \[0, 1\)"),
    ],
)
def test_solvers_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Solver(**options)
