import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_squared_error, r2_score

from msp_lens.moments import OLS, Moments, ReducedRank, Ridge
from msp_lens.moments.folds import Cells
from msp_lens.probing.cross_validation import ProbeScores, evaluate


def problem(n, seed, *, offset=0.0, noise=0.1):
    """Features, targets and weights of a noisy linear problem."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, 5, generator=generator, dtype=torch.float64) + offset
    targets = features @ torch.randn(5, 3, generator=generator, dtype=torch.float64)
    targets = targets + noise * torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return features, targets, torch.rand(n, generator=generator, dtype=torch.float64) + 0.01


def cells_of(features, targets, weights, *, n_folds=5, n_cells=10, n_positions=1):
    """Row i in cell i mod n_cells, and at position (i // n_cells) mod n_positions."""
    blocks, rows = {"h": features.shape[1], "belief": targets.shape[1]}, torch.cat([features, targets], dim=1)
    numbers = torch.arange(len(rows))

    def part(inside):
        return Moments(blocks).update(rows[inside], weights[inside])

    fold, position = numbers % n_cells % n_folds, numbers // n_cells % n_positions
    cells = tuple(part(numbers % n_cells == c) for c in range(n_cells))
    apart = [tuple(part((fold == k) & (position == p)) for p in range(n_positions)) for k in range(n_folds)]
    return Cells(cells, n_folds, positions=tuple(apart) if n_positions > 1 else ())


def held_out(features, targets, weights, solver=None, **options):
    return evaluate(cells_of(features, targets, weights, **options), ["h"], solver or OLS())[1].held_out


def predicted_by_others(features, targets, weights, fold):
    """Scikit-learn's prediction of each fold from the others."""
    predicted = np.empty_like(targets)
    for k in range(int(fold.max()) + 1):
        train = fold != k
        model = LinearRegression().fit(features[train], targets[train], sample_weight=weights[train])
        predicted[~train] = model.predict(features[~train])
    return predicted


@given(st.integers(0, 10_000))
def test_held_out_scores_are_those_of_explicit_cross_validation(seed):
    features, targets, weights = problem(60, seed, noise=2.0)
    predicted = predicted_by_others(features, targets, weights, torch.arange(60) % 4)
    found = held_out(features, targets, weights, n_folds=4, n_cells=8)
    assert found.mse == pytest.approx(mean_squared_error(targets, predicted, sample_weight=weights), rel=1e-7)
    r2 = r2_score(targets, predicted, sample_weight=weights, multioutput="variance_weighted")
    assert found.r2 == pytest.approx(r2, abs=1e-8)


def test_positions_are_scored_with_the_common_probe_and_with_their_own():
    features, targets, weights = problem(120, 1, noise=2.0)
    cells = cells_of(features, targets, weights, n_folds=4, n_cells=8, n_positions=3)
    scores = evaluate(cells, ["h"], OLS(), own_positions=True)[1]
    fold, position = torch.arange(120) % 4, torch.arange(120) // 8 % 3
    common = predicted_by_others(features, targets, weights, fold)
    for p in range(3):
        here = position == p
        own = predicted_by_others(features[here], targets[here], weights[here], fold[here])
        for found, predicted in ((scores.by_position[p], common[here]), (scores.by_position_own[p], own)):
            expected = r2_score(targets[here], predicted, sample_weight=weights[here], multioutput="variance_weighted")
            assert found.r2 == pytest.approx(expected, abs=1e-8)
            assert found.n == int(here.sum())


def test_noise_is_fitted_in_sample_and_not_held_out():
    generator = torch.Generator().manual_seed(0)
    features, targets = torch.randn(60, 40, generator=generator), torch.randn(60, 2, generator=generator)
    scores = evaluate(cells_of(features, targets, torch.ones(60), n_cells=5), ["h"], OLS())[1]
    assert scores.in_sample.r2 > 0.5
    assert scores.held_out.r2 < 0


def test_exactly_linear_targets_at_an_offset_of_a_million_score_one():
    features, targets, weights = problem(200, 0, offset=1e6, noise=0.0)
    assert held_out(features, targets + 1e6, weights).r2 == pytest.approx(1, abs=1e-9)


@given(st.integers(0, 10_000))
def test_duplicated_features_change_nothing(seed):
    features, targets, weights = problem(60, seed, noise=0.5)
    doubled = torch.cat([features, 3 * features[:, [4, 0, 1, 2, 3]] - 7], dim=1)
    once, twice = (held_out(rows, targets, weights, n_folds=4, n_cells=4) for rows in (features, doubled))
    assert once.r2 == pytest.approx(twice.r2, abs=1e-9)


def test_pure_noise_is_never_held_out():
    """On 12 data sets of noise, R² is below 0 on average, as theory has it, and never high."""
    found = []
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(100, 8, generator=generator, dtype=torch.float64)
        for solver in (OLS(), Ridge(), ReducedRank(1)):
            found.append(held_out(rows[:, :5], rows[:, 5:], torch.ones(100), solver).r2)
    by_solver = np.asarray(found).reshape(12, 3)
    assert (by_solver.mean(axis=0) < 0).all()
    assert by_solver.max() < 0.15


def test_the_curve_by_rank_agrees_with_fits_one_by_one():
    features, targets, weights = problem(90, 2, noise=1.0)
    scores = evaluate(cells_of(features, targets, weights), ["h"], OLS())[1]
    assert len(scores.by_rank) == 3
    assert scores.by_rank[-1].r2 == pytest.approx(scores.held_out.r2, abs=1e-12)
    of_rank_1 = held_out(features, targets, weights, ReducedRank(1))
    assert scores.by_rank[0].r2 == pytest.approx(of_rank_1.r2, abs=1e-12)
    assert scores.by_rank[0].r2 < scores.held_out.r2 - 0.01


def test_scores_survive_json():
    features, targets, weights = problem(90, 2, noise=1.0)
    scores = evaluate(cells_of(features, targets, weights, n_positions=2), ["h"], Ridge())[1]
    assert scores.mse_by_penalty
    assert scores.by_position
    assert ProbeScores.from_dict(json.loads(json.dumps(dataclasses.asdict(scores)))) == scores
