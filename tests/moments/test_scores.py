import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from msp_lens.moments.scores import CellErrors, Score, bootstrap_interval, from_json, skill


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
    assert found.variance == pytest.approx(20 / 6)


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
    assert math.isnan(skill(0.1, 0.1, 0.0))


def test_scores_survive_json():
    held_out = errors_of([1.0, 2.0, 1.0], [3.0, 3.0, 4.0], [0, 1, 2]).score()
    for found in (Score(0.5, 1.0, 3, variance=2.0), held_out):
        assert from_json(json.loads(json.dumps(dataclasses.asdict(found)))) == found
    undefined = from_json(json.loads(json.dumps(dataclasses.asdict(held_out) | {"r2_interval": [None, None]})))
    assert all(map(math.isnan, undefined.r2_interval))


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"r2": 5.0}, r"r2=5 with mse=0\.666667"),
        ({"r2": None}, "r2=nan with"),
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
