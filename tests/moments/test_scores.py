import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from msp_lens.moments import Moments
from msp_lens.moments.scores import (
    CellErrors,
    HeldOutScore,
    Score,
    bootstrap_interval,
    cell_errors,
    from_json,
    score_of,
    skill,
    skill_interval,
)


def errors_of(errors, spread, fold):
    n_cells = len(errors)
    return CellErrors(
        torch.tensor(errors, dtype=torch.float64).reshape(n_cells, -1),
        torch.tensor(spread, dtype=torch.float64).reshape(n_cells, -1),
        torch.ones(n_cells, dtype=torch.float64),
        torch.tensor(fold),
        n_cells,
    )


def test_scores_pool_cells_and_folds():
    found = errors_of([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], [[4.0, 4.0], [2.0, 6.0], [2.0, 2.0]], [0, 1, 1]).score()
    assert found.r2 == pytest.approx(1 - 5 / 20)
    assert found.r2_by_target == pytest.approx((1 - 2 / 8, 1 - 3 / 12))
    assert found.mse_by_target == pytest.approx((2 / 3, 1.0))
    assert found.r2_by_fold == pytest.approx((1 - 1 / 8, 1 - 4 / 12))
    assert found.mse == pytest.approx(5 / 6)
    assert found.mse_by_cell == pytest.approx((1 / 6, 2 / 6, 2 / 6))
    assert found.variance == pytest.approx(20 / 6)
    low, high = found.r2_interval
    assert 1 - 2 / 4 <= low < found.r2 < high <= 1 - 1 / 8, "cells score between 1 - 2 / 4 and 1 - 1 / 8"


def test_a_score_pools_its_targets():
    found = score_of(torch.tensor([1.0, 3.0]).double(), torch.tensor([4.0, 0.0]).double(), 7)
    assert (found.r2, found.mse, found.variance, found.n) == (1 - 4 / 4, 2.0, 2.0, 7)
    assert found.mse_by_target == (1.0, 3.0)
    assert found.r2_by_target == pytest.approx((0.75, math.nan), nan_ok=True)
    assert found.rmse == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("weight", [1.0, 1e8])
def test_targets_that_vary_by_rounding_alone_have_no_r2(weight):
    """One target varies, the other is 1/3 in all rows, whatever their weights."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(4, 50, 2, generator=generator, dtype=torch.float64)
    rows[..., 1] = 1 / 3
    weights = weight * torch.rand(4, 50, generator=generator, dtype=torch.float64)
    cells = [Moments({"belief": 2}).update(*part) for part in zip(rows, weights, strict=True)]
    found = cell_errors(torch.ones(4, 2).double(), cells, torch.arange(4), "belief").score()
    flat = rows[..., 0].flatten()
    variance = np.cov(flat, aweights=weights.flatten(), ddof=0)
    assert found.variance == pytest.approx(variance / 2)
    assert found.r2_by_target[0] == pytest.approx(1 - 4 / float(weights.sum()) / variance)
    assert math.isnan(found.r2_by_target[1])


def test_the_width_of_an_interval():
    assert HeldOutScore(0.5, 0.5, 9, r2_interval=(0.25, 0.5)).width == 0.25
    assert HeldOutScore(math.nan, 0.5, 9).width == 0


def test_intervals_cover_what_the_maps_score_on_other_groups():
    """400 simulated studies of 20 groups whose errors vary from group to group: 95 % hold the population's R²."""
    generator = np.random.default_rng(0)
    held = 0
    n_studies = 400
    for _ in range(n_studies):
        spread = generator.gamma(4, 1.0, size=20)
        errors = spread * generator.gamma(2, 0.1, size=20)
        low, high = bootstrap_interval(torch.from_numpy(errors), torch.from_numpy(spread), seed=1)
        held += low <= 1 - 0.2 <= high
    # Three standard errors of a proportion of 400 are .033; narrow intervals (a factor 1.5) would hold some 80 %.
    assert 0.90 <= held / n_studies <= 0.985


@pytest.mark.parametrize("n_cells", [3, 5, 20])
def test_intervals_are_expanded_by_the_t_distribution(n_cells):
    """The percentiles are those of Hesterberg's table for n cells: wider than 2.5 and 97.5 %, most with few cells."""
    generator = torch.Generator().manual_seed(2)
    errors, spread = torch.rand(2, n_cells, generator=generator, dtype=torch.float64)
    # The resamples themselves, drawn as the function draws them.
    drawn = torch.randint(n_cells, (1000, n_cells), generator=torch.Generator().manual_seed(0))
    r2 = 1 - errors[drawn].sum(dim=1) / spread[drawn].sum(dim=1)
    # Hesterberg 2015, section 5.3.2: 95 % takes these tails with n cells, α'/2 = Φ(√(n / (n-1)) t_{α/2, n-1}).
    tail = {3: 6.8e-8, 5: 0.000954, 20: 0.01588}[n_cells]
    expected = torch.quantile(r2, torch.tensor([tail, 1 - tail], dtype=torch.float64))
    assert bootstrap_interval(errors, spread) == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_resample_in_which_nothing_varies_is_left_out():
    """Of three cells one varies: without it a resample has no R², which is not minus infinity."""
    errors, spread = torch.tensor([0.5, 1e-9, 1e-9]).double(), torch.tensor([1.0, 0.0, 0.0]).double()
    low, high = bootstrap_interval(errors, spread)
    assert (low, high) == pytest.approx((0.5, 0.5), abs=1e-6)


def test_intervals_of_few_cells_or_none_to_explain_are_unknown():
    two = torch.ones(2, dtype=torch.float64)
    assert all(map(math.isnan, bootstrap_interval(two, two)))
    assert all(map(math.isnan, bootstrap_interval(torch.ones(9).double(), torch.zeros(9).double())))


def test_skill_is_the_share_of_what_the_control_leaves():
    assert skill(0.1, 0.4, 1.0) == pytest.approx(0.75)
    assert skill(0.8, 0.4, 1.0) == pytest.approx(-1)
    assert skill(0.0, 0.0, 1.0) == 0
    assert skill(0.1, 1e-12, 1.0) < -1e4
    assert skill(2e-6, 0.0, 4.0) == pytest.approx(-0.5), "a millionth of the variance is left to explain"
    for unknown in ((0.1, 0.1, 0.0), (math.nan, 0.1, 1.0), (0.1, math.nan, 1.0)):
        assert math.isnan(skill(*unknown))


def test_the_interval_of_skill_is_that_of_its_resamples():
    """Skill is 1 - MSE / MSE of the control: its interval holds the skill of cells drawn alike from both."""
    generator = np.random.default_rng(3)
    ours, theirs = generator.gamma(2, 0.1, size=(2, 12, 2))
    theirs += 1
    network, control = (errors_of(each, np.ones_like(each), [0, 1, 2] * 4).score() for each in (ours, theirs))
    low, high = skill_interval(network, control)
    drawn = generator.integers(12, size=(20_000, 12))
    skills = [skill(ours[cells].mean(), theirs[cells].mean(), 1.0) for cells in drawn]
    # The tails of 12 cells, 2.5 % expanded: Φ(√(12 / 11) t_{.025, 11}) = .0108.
    assert (low, high) == pytest.approx(np.quantile(skills, [0.0108, 0.9892]), abs=0.01)
    assert (low, high) == pytest.approx(
        bootstrap_interval(torch.from_numpy(ours.sum(axis=1)), torch.from_numpy(theirs.sum(axis=1))), abs=1e-12
    )
    assert low < skill(network.mse, control.mse, network.variance) < high


def test_skill_has_no_interval_without_common_cells_or_anything_to_explain():
    network = errors_of([0.1] * 4, [4.0] * 4, [0, 1, 0, 1]).score()
    fewer = errors_of([0.1] * 3, [4.0] * 3, [0, 1, 0]).score()
    perfect = errors_of([2e-6] * 4, [4.0] * 4, [0, 1, 0, 1]).score()
    for control in (fewer, perfect):
        assert all(map(math.isnan, skill_interval(network, control)))
    assert skill_interval(perfect, network) == pytest.approx((1 - 2e-5, 1 - 2e-5))


def test_scores_survive_json():
    held_out = errors_of([1.0, 2.0, 1.0], [3.0, 3.0, 4.0], [0, 1, 2]).score()
    for found in (
        Score(0.5, 1.0, 3, variance=2.0),
        Score(0.5, 1.0, 3),
        Score(1.0, 0.0, 3, r2_by_target=(1.0,), mse_by_target=(0.0,), variance=0.5),
        Score(math.nan, 0.1, 3, variance=0.0),
        # Rounding of a large number is not a contradiction.
        Score(-1e6 - 0.5, 1e6 + 1, 3, variance=1.0),
        HeldOutScore(math.nan, math.nan, 0),
        held_out,
    ):
        assert from_json(json.loads(json.dumps(dataclasses.asdict(found)))) == found
    undefined = from_json(json.loads(json.dumps(dataclasses.asdict(held_out) | {"r2_interval": [None, None]})))
    assert all(map(math.isnan, undefined.r2_interval))


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"r2": 5.0}, r"r2=5 with mse=0\.666667"),
        ({"r2": None}, "r2=nan with"),
        ({"r2": 0.8 + 1e-3}, r"r2=0\.801 with"),
        ({"r2": 0.8 + 1.5e-6}, r"r2=0\.800002 with"),
        ({"r2": 0.5, "mse": -1.0, "variance": None}, "mse=-1"),
        ({"r2": None, "variance": -1.0}, "variance=-1"),
        ({"mse": -1.0}, "mse=-1"),
        ({"variance": 0.0}, "variance=0 is impossible"),
        ({"r2_interval": [0.5, 2.0]}, "above 1"),
        ({"r2_by_fold": [0.5, 2.0, 0.1]}, "above 1"),
        ({"mse_by_target": [-0.1]}, "below 0"),
    ],
)
def test_impossible_scores_are_refused(changed, problem):
    held_out = dataclasses.asdict(errors_of([1.0, 0.0, 1.0], [3.0, 3.0, 4.0], [0, 1, 2]).score())
    with pytest.raises(ValueError, match=problem):
        from_json(json.loads(json.dumps(held_out | changed)))
