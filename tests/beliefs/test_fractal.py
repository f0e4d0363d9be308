import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.stats import chisquare

import msp_lens as msp
from msp_lens.beliefs import attractor, box_counting_dimension, correlation_dimension, fractal, myopic_entropies
from tests import brute_force


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
    extent = float(torch.pdist(beliefs.unique(dim=0)).max())
    # However small boxes and distances are, they hold the same five points.
    for found, finest in (
        (box_counting_dimension(beliefs), 2**23.5),
        (correlation_dimension(beliefs, max_points=500), 2**16),
    ):
        assert found.value == pytest.approx(0, abs=1e-9)
        assert extent / 2 / finest <= min(found.scales) <= extent / finest
    for measure, kind in ((box_counting_dimension, "box-counting"), (correlation_dimension, "correlation")):
        one = measure(torch.full((10, 2), 0.5, dtype=torch.float64))
        assert one == fractal.Dimension(0.0, 0.0, (), (), kind, 10)


def test_attractor_is_visited_as_the_process_visits_it(mess3, global_state):
    """The expected entropy of the next token over the attractor is the entropy rate."""
    points = attractor(mess3, 60_000, seed=1)
    expected = torch.special.entr(points @ mess3.emissions).sum(dim=1)
    standard_error = float(expected.std()) / 60_000**0.5
    assert float(expected.mean()) == pytest.approx(float(myopic_entropies(mess3, 10)[-1]), abs=5 * standard_error)
    torch.testing.assert_close(points.sum(dim=1), torch.ones(len(points)).double())
    assert torch.equal(points, attractor(mess3, 60_000, seed=1))
    assert not torch.equal(points, attractor(mess3, 60_000, seed=2))


def test_evenly_visited_it_is_the_same_set(mess3):
    """Beliefs of the even walk are beliefs of words, rare ones more often."""
    even = attractor(mess3, 20_000, seed=0, even=True, burn_in=12)
    plain = attractor(mess3, 20_000, seed=0)
    assert (even.max(dim=1).values < 0.9).double().mean() > 2 * (plain.max(dim=1).values < 0.9).double().mean()
    golden_mean = attractor(msp.processes.golden_mean(), 100, seed=0, even=True)
    assert len(golden_mean.unique(dim=0)) == 2, "an impossible token was followed"


@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize(
    "process", [msp.mess3(x=0.05, a=0.85), msp.processes.golden_mean(p=0.3)], ids=["mess3", "golden"]
)
def test_observers_have_seen_the_burn_in_and_one_token(process, even, monkeypatch):
    """After two tokens of burn-in, the first points are the beliefs of words of three, as frequent as these are."""
    asked = []
    monkeypatch.setattr(fractal, "check_memory", lambda what, n_bytes, remedy: asked.append(n_bytes))
    points = attractor(process, 20_000, burn_in=2, even=even, seed=0)
    assert asked == [points.numel() * points.element_size()]
    words = brute_force.word_probabilities(process, 3)
    if even:
        words = dict.fromkeys(words, 0.0)
        for word in words:
            # Each token that may follow is drawn alike often.
            n_next = [len({other[k] for other in words if other[:k] == word[:k]}) for k in range(3)]
            words[word] = 1 / math.prod(n_next)
    expected: dict[tuple, float] = {}
    for word, probability in words.items():
        joint = brute_force.joint(process, word)
        belief = tuple(np.round(np.asarray(joint) / sum(joint), 9).tolist())
        expected[belief] = expected.get(belief, 0.0) + probability
    found, counts = np.unique(points.numpy().round(9), axis=0, return_counts=True)
    np.testing.assert_allclose(found, sorted(expected), atol=2e-9)
    frequencies = [p for _, p in sorted(expected.items())]
    assert chisquare(counts, np.array(frequencies) / sum(frequencies) * 20_000).pvalue > 1e-3


def test_more_points_come_from_later_tokens():
    """Beliefs of a clock are known: 50,000 observers are followed at once, so point 50,000 is one token later."""
    clock = msp.Process([[[0, 1.0, 0], [0, 0, 1.0], [1.0, 0, 0]]], initial=[1.0, 0, 0])
    points = attractor(clock, 100_001, burn_in=1, seed=0)
    assert points.argmax(dim=1).unique_consecutive(return_counts=True)[0].tolist() == [2, 0, 1]
    assert (points.max(dim=1).values == 1).all()
    assert attractor(clock, 1, seed=0).argmax() == 101 % 3, "100 tokens to forget the start, and one"
    generator = torch.Generator().manual_seed(3)
    golden = msp.processes.golden_mean()
    assert torch.equal(attractor(golden, 50, generator=generator), attractor(golden, 50, seed=3))


def slope_and_uncertainty(scales, counts):
    """Least squares in logarithms, by numpy: the slope, and the larger of its standard error and half the bend."""
    x, y = np.log(scales), np.log(counts)
    (slope, intercept), half = np.polyfit(x, y, 1), len(x) // 2
    residual = y - slope * x - intercept
    error = math.sqrt((residual**2).sum() / (len(x) - 2) / ((x - x.mean()) ** 2).sum())
    bend = np.polyfit(x[: half + 1], y[: half + 1], 1)[0] - np.polyfit(x[half:], y[half:], 1)[0]
    return slope, max(error, abs(bend) / 2)


@pytest.mark.parametrize("sides", [[0.5, 0.25, 0.125, 0.0625], [0.4, 0.03, 0.11, 0.01, 0.2]])
def test_boxes_are_counted_and_fitted(sides):
    """On a grid in the plane, turned by no angle: boxes by brute force."""
    across, along = np.meshgrid(np.arange(17) / 64, np.arange(65) / 64)
    grid = np.stack([along.ravel(), across.ravel()], axis=1)
    found = box_counting_dimension(torch.from_numpy(grid), scales=sides)
    assert found.scales == tuple(sorted(sides))
    assert all(type(count) is float for count in found.counts)
    # The grid is its own mirror image, so the signs of its axes do not matter.
    brute = [len({tuple(np.floor((point + 1e-12) / side).astype(int)) for point in grid}) for side in sorted(sides)]
    near = [len({tuple(np.floor((point - 1e-12) / side).astype(int)) for point in grid}) for side in sorted(sides)]
    assert all(min(a, b) <= count <= max(a, b) for a, b, count in zip(brute, near, found.counts, strict=True))
    slope, uncertainty = slope_and_uncertainty(found.scales, found.counts)
    assert (found.value, found.uncertainty) == pytest.approx((-slope, uncertainty))
    assert repr(found) == f"box-counting dimension {-slope:.3f} ± {uncertainty:.3f} (1,105 points)"


def test_boxes_too_many_to_number_are_counted_too():
    """Of boxes of a ten-millionth in space there are 10^21; 60 points with two doubled and two close fill 57."""
    points = torch.rand(60, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    points[1], points[2], points[4] = points[0], points[0], points[3] + 1e-12
    found = box_counting_dimension(points, scales=[1e-7, 1e-6, 1e-5])
    assert found.counts[2] <= 57
    assert found.counts == pytest.approx([57, 57, 57], abs=1)
    assert found.value == pytest.approx(0, abs=1e-2)


def test_two_points_are_a_set():
    two = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    assert box_counting_dimension(two, scales=[0.1, 0.2, 0.3]).counts == (2, 2, 2)


def test_pairs_are_counted_and_fitted():
    points = torch.rand(80, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    # No pair is within the smallest distance, which is left out.
    scales = [1e-9, 0.4, 0.05, 0.1, 0.2, 0.3]
    found = correlation_dimension(points, scales=scales)
    assert found.scales == (0.05, 0.1, 0.2, 0.3, 0.4)
    distances = pdist(points.numpy())
    assert found.counts == pytest.approx([(distances <= scale).mean() for scale in found.scales])
    assert (found.value, found.uncertainty) == pytest.approx(slope_and_uncertainty(found.scales, found.counts))
    assert (found.kind, found.n_points) == ("correlation", 80)


def test_scales_go_from_the_sets_extent_down():
    """A diagonal of length √2 / 4 in three coordinates: boxes from an eighth of it, pairs from a quarter."""
    line = torch.linspace(0, 0.25, 2_001, dtype=torch.float64, requires_grad=True)
    points = torch.stack([line, 0.5 - line, torch.full_like(line, 0.5)], dim=1)
    length, boxes, pairs = math.sqrt(2) / 4, box_counting_dimension(points), correlation_dimension(points)
    assert boxes.scales == pytest.approx([length / 8 / 2 ** (k / 2) for k in range(len(boxes.scales))])
    # 8 √2^k boxes, each with 10 points or more of 2,001: k = 0 … 9.
    assert len(boxes.counts) == 10
    assert boxes.counts == pytest.approx([8 * 2 ** (k / 2) for k in range(10)], abs=1.5)
    assert pairs.scales == pytest.approx([length / 4 / 2 ** (k / 2) for k in reversed(range(len(pairs.scales)))])
    # At least 1,000 ordered pairs, of neighbors on both sides: from the distance of neighbors, L / 2,000, on.
    assert pairs.scales[0] / math.sqrt(2) < length / 2_000 <= pairs.scales[0]
    assert boxes.value == pytest.approx(1, abs=0.05)
    assert pairs.value == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("n_points", "finest"), [(501, 2**8.5), (500, 2**7.5)])
def test_a_thousand_pairs_are_enough(n_points, finest):
    """On a line of 501 points 1,000 neighbors, counted from both sides, are within a 362nd; of 500 points, 998."""
    found = correlation_dimension(torch.linspace(0, 1, n_points, dtype=torch.float64).unsqueeze(1))
    assert found.scales[0] == pytest.approx(1 / finest)


def test_pairs_are_counted_among_some_points():
    points = torch.rand(3_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = correlation_dimension(points, max_points=500)
    assert found.n_points == 500
    assert correlation_dimension(points, max_points=500) == found
    assert correlation_dimension(points, max_points=500, seed=1) != found
    exact = correlation_dimension(points, scales=found.scales)
    assert exact.n_points == 3_000
    assert found.counts[-1] == pytest.approx(exact.counts[-1], rel=0.1)


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
    for scales in ([0.1, -0.2, 0.3], [0.0, 0.1, 0.2], [0.1, 0.2], [0.1, 0.2, 0.2]):
        with pytest.raises(ValueError, match="at least 3 different distances above 0"):
            correlation_dimension(points, scales=scales)


def test_three_scales_are_enough_and_two_are_not():
    line = torch.linspace(0, 1, 500, dtype=torch.float64).unsqueeze(1)
    assert correlation_dimension(line, scales=[0.1, 0.2, 0.3]).scales == (0.1, 0.2, 0.3)
    # A line of 170 points fills 8 and 12 and 17 boxes with at least ten each; one of 130 fills only 8 and 12.
    assert len(box_counting_dimension(line[:170] / line[169]).scales) == 3
    with pytest.raises(ValueError, match="130 points fill too few scales for a box-counting dimension"):
        box_counting_dimension(line[:130] / line[129])
