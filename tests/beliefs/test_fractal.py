import math

import pytest
import torch

import msp_lens as msp
from msp_lens.beliefs import attractor, box_counting_dimension, correlation_dimension, myopic_entropies


def chaos_game(maps, n, seed=0, steps=40):
    """Points of the attractor of maps that each halve or third the plane, chosen alike often."""
    generator = torch.Generator().manual_seed(seed)
    shifts = torch.tensor(maps[1], dtype=torch.float64)
    points = torch.rand(n, shifts.shape[1], generator=generator, dtype=torch.float64)
    for _ in range(steps):
        points = maps[0] * points + shifts[torch.randint(0, len(shifts), (n,), generator=generator)]
    return points


SETS = {
    "Cantor": ((1 / 3, [[0.0], [2 / 3]]), math.log(2) / math.log(3)),
    "Sierpinski": ((1 / 2, [[0.0, 0.0], [0.5, 0.0], [0.25, 0.433]]), math.log(3) / math.log(2)),
    "segment": ((1 / 2, [[0.0, 0.0], [0.5, 0.25]]), 1.0),
}


@pytest.mark.parametrize("name", SETS)
def test_dimensions_of_sets_whose_dimension_is_known(name):
    maps, dimension = SETS[name]
    points = chaos_game(maps, 200_000)
    for found in (box_counting_dimension(points), correlation_dimension(points, max_points=8_000)):
        assert abs(found.value - dimension) <= max(0.03, 2 * found.uncertainty)
        assert found.uncertainty < 0.1
        assert len(found.scales) == len(found.counts) >= 3


def test_a_few_points_have_no_dimension():
    beliefs = attractor(msp.rrxor(), 5_000, seed=0)
    assert len(beliefs.unique(dim=0)) == 5
    assert box_counting_dimension(beliefs).value == pytest.approx(0, abs=1e-9)
    one = box_counting_dimension(torch.full((10, 2), 0.5, dtype=torch.float64))
    assert (one.value, one.uncertainty) == (0, 0)


def test_attractor_is_visited_as_the_process_visits_it(mess3, global_state):
    """The expected entropy of the next token over the attractor is the entropy rate."""
    points = attractor(mess3, 200_000, seed=1)
    expected = torch.special.entr(points @ mess3.emissions).sum(dim=1)
    standard_error = float(expected.std()) / 200_000**0.5
    assert float(expected.mean()) == pytest.approx(float(myopic_entropies(mess3, 10)[-1]), abs=5 * standard_error)
    torch.testing.assert_close(points.sum(dim=1), torch.ones(len(points)).double())
    assert torch.equal(points, attractor(mess3, 200_000, seed=1))
    assert not torch.equal(points, attractor(mess3, 200_000, seed=2))


def test_evenly_visited_it_is_the_same_set(mess3):
    """Beliefs of the even walk are beliefs of words, rare ones more often."""
    even = attractor(mess3, 20_000, seed=0, even=True, burn_in=12)
    plain = attractor(mess3, 20_000, seed=0)
    assert (even.max(dim=1).values < 0.9).double().mean() > 2 * (plain.max(dim=1).values < 0.9).double().mean()
    golden_mean = attractor(msp.processes.golden_mean(), 100, seed=0, even=True)
    assert len(golden_mean.unique(dim=0)) == 2, "an impossible token was followed"


def test_bad_requests_are_refused(mess3):
    with pytest.raises(ValueError, match="n_points=0"):
        attractor(mess3, 0, seed=0)
    with pytest.raises(ValueError, match="exactly one"):
        attractor(mess3, 10)
    with pytest.raises(ValueError, match="without NaN and infinity"):
        box_counting_dimension(torch.tensor([[math.nan, 1.0], [0.0, 1.0]], dtype=torch.float64))
    with pytest.raises(ValueError, match="give at least 2"):
        box_counting_dimension([[0.5, 0.5]])
    points = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)).double()
    with pytest.raises(ValueError, match="too few scales"):
        box_counting_dimension(points)
    for scales in ([0.1, -0.2, 0.3], [0.1, 0.2], [0.1, 0.2, 0.2]):
        with pytest.raises(ValueError, match="at least 3 different distances above 0"):
            correlation_dimension(points, scales=scales)


def test_three_scales_are_enough_and_two_are_not():
    line = torch.linspace(0, 1, 500, dtype=torch.float64).unsqueeze(1)
    assert correlation_dimension(line, scales=[0.1, 0.2, 0.3]).scales == (0.1, 0.2, 0.3)
    # A line of 175 points fills 8 and 12 and 17 boxes with at least ten each; one of 130 fills only 8 and 12.
    assert len(box_counting_dimension(line[::1][:175] / line[174]).scales) == 3
    with pytest.raises(ValueError, match="130 points fill too few scales for a box-counting dimension"):
        box_counting_dimension(line[:130] / line[129])
