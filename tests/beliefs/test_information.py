import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given

import msp_lens as msp
from msp_lens.beliefs import (
    block_entropies,
    entropy,
    entropy_rate,
    excess_entropy,
    information,
    kl_divergence,
    regret_floor,
    statistical_complexity,
    synchronization,
)
from msp_lens.beliefs.information import Measure, long_run_state
from tests import brute_force


def block_entropy(process, length):
    return -sum(p * math.log(p) for p in brute_force.word_probabilities(process, length).values())


@given(brute_force.random_processes())
def test_myopic_entropies_are_differences_of_block_entropies(process):
    blocks = [0.0, *(block_entropy(process, length) for length in (1, 2, 3))]
    expected = [after - before for before, after in itertools.pairwise(blocks)]
    assert msp.beliefs.myopic_entropies(process, 3).tolist() == pytest.approx(expected, abs=1e-12)


def test_mess3_entropies(mess3):
    expected = [1.09861, 0.85772, 0.81336, 0.79812, 0.79474, 0.79378, 0.79354, 0.79348, 0.79346, 0.79346]
    assert msp.beliefs.myopic_entropies(mess3, 10).tolist() == pytest.approx(expected, abs=5e-6)
    assert float(msp.beliefs.optimal_losses(mess3, 10).mean()) == pytest.approx(0.802512, abs=5e-7)


def test_other_known_entropies():
    assert float(msp.beliefs.optimal_losses(msp.rrxor(), 10).mean()) == pytest.approx(0.578185, abs=5e-7)
    # The golden mean process is Markov: its entropy rate of 2/3 bit is reached with one token's context.
    rate = msp.beliefs.myopic_entropies(msp.processes.golden_mean(p=0.5), 4)[1:]
    assert rate.tolist() == pytest.approx([2 / 3 * math.log(2)] * 3)
    assert msp.beliefs.myopic_entropies(msp.mess3(x=0.15, a=0.6), 10)[-1].item() == pytest.approx(1.08889, abs=5e-6)


def test_entropies_need_a_length(mess3):
    for length, message in ((0, "length=0"), (1.5, "length=1.5: give a whole number"), (10**30, "fits 64 bits")):
        with pytest.raises(ValueError, match=message):
            msp.beliefs.myopic_entropies(mess3, length)
    for length in ("3", None, True):
        with pytest.raises(TypeError, match="give a whole number"):
            msp.beliefs.myopic_entropies(mess3, length)


def test_how_long_the_words_were_is_said(mess3):
    """3, 9, 27, 81 words of 1, 2, 3, 4 tokens: with at most 100 beliefs there are none of 5."""
    with pytest.raises(ValueError, match="After words of more than 4 tokens mess3 may have more than 100 different"):
        msp.beliefs.myopic_entropies(mess3, 10, max_level=100)
    with pytest.raises(ValueError, match="After words of more than 4 tokens mess3 may have more than 100 different"):
        synchronization(mess3, 10, max_level=100)
    rate = entropy_rate(mess3, max_level=100)
    assert rate.method.startswith("bounds from words of 4 tokens, value ±")
    assert rate.upper == pytest.approx(float(msp.beliefs.myopic_entropies(mess3, 4)[-1]), abs=1e-12)
    assert len(msp.beliefs.information.first_entropies(mess3, 10, 100)) == 5
    # Of a product, as far as the factor with the most beliefs.
    both = msp.processes.product([mess3, msp.processes.coin(p=0.5)])
    expected = msp.beliefs.myopic_entropies(mess3, 5) + math.log(2)
    torch.testing.assert_close(msp.beliefs.information.first_entropies(both, 10, 100), expected)
    assert excess_entropy(mess3, max_level=100).method == "summed over words of 4 tokens"


def belief_entropy_rate(process, n_cells=4_000):
    """The entropy rate of a process of two states: beliefs b = P(state 1) move mass between cells until it settles."""
    T = process.transitions.numpy()
    b = (np.arange(n_cells) + 0.5) / n_cells
    beliefs = np.stack([1 - b, b], axis=1)
    moves = []
    for matrix in T:
        joint = beliefs @ matrix
        probability = joint.sum(axis=1)
        place = np.clip(joint[:, 1] / probability * n_cells - 0.5, 0, n_cells - 1)
        low = np.minimum(place.astype(int), n_cells - 2)
        moves.append((probability, low, place - low))
    mass = np.full(n_cells, 1 / n_cells)
    for _ in range(2_000):
        new = np.zeros(n_cells)
        for probability, low, share in moves:
            new += np.bincount(low, mass * probability * (1 - share), n_cells)
            new += np.bincount(low + 1, mass * probability * share, n_cells)
        mass = new
    return float(sum(-(mass * p * np.log(p)).sum() for p, _, _ in moves))


@pytest.mark.parametrize(("leave", "say"), [(0.02, 0.6), (0.005, 0.7)])
def test_the_rate_of_a_slowly_mixing_process_is_not_the_middle_of_wide_bounds(leave, say):
    stay = torch.tensor([[1 - leave, leave], [leave, 1 - leave]], dtype=torch.float64)
    process = msp.Process(
        torch.stack([torch.tensor([say, 1 - say]).diag(), torch.tensor([1 - say, say]).diag()]) @ stay.float()
    )
    expected, found = belief_entropy_rate(process), entropy_rate(process, max_level=300)
    assert found.lower < expected < found.upper
    assert abs((found.lower + found.upper) / 2 - expected) > 1e-3
    assert found.value == pytest.approx(expected, abs=4e-4)
    assert "from 3,000 sampled pasts" in repr(found)
    assert found == entropy_rate(process, max_level=300)


@given(brute_force.random_processes(max_states=2, max_tokens=2))
def test_entropies_of_independent_factors_add(process):
    both = msp.processes.product([process, msp.processes.golden_mean(p=0.3)])
    flat = msp.Process(both.transitions, initial=both.initial)
    measured = msp.beliefs.myopic_entropies(flat, 4)
    torch.testing.assert_close(msp.beliefs.myopic_entropies(both, 4), measured, rtol=0, atol=1e-10)
    for measure in (entropy_rate, excess_entropy, statistical_complexity):
        whole, parts = measure(flat, max_level=100), measure(both, max_level=100)
        if whole.is_exact and parts.is_exact:
            assert parts.value == pytest.approx(whole.value, abs=1e-7)
        assert parts.lower <= whole.upper + 1e-9
        assert parts.upper >= whole.lower - 1e-9


def test_factors_in_step_are_not_taken_as_independent_in_the_long_run():
    """Two clocks that start together stay together: their joint state has the entropy of one."""
    clock = msp.Process([[[0, 1.0], [0, 0]], [[0, 0], [1.0, 0]]], initial=[1.0, 0.0])
    assert statistical_complexity(msp.processes.product([clock, clock])).value == pytest.approx(math.log(2))


def test_kl_divergence_ignores_tokens_that_never_come():
    optimal = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64)
    log_predicted = torch.tensor([[math.log(0.25), math.log(0.75), -math.inf]], dtype=torch.float64)
    expected = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    assert kl_divergence(optimal, log_predicted).item() == pytest.approx(expected)
    assert kl_divergence(optimal, optimal.log()).item() == pytest.approx(0)
    assert entropy(optimal).item() == pytest.approx(math.log(2))
    # Any axes before that of the tokens.
    many = optimal.expand(2, 4, 3), log_predicted.expand(2, 4, 3)
    assert kl_divergence(*many).tolist() == [[pytest.approx(expected)] * 4] * 2


def renewal_entropies(p, q, terms=400):
    """Entropy rate and complexity of the simple nonunifilar source in nats, from first principles.

    A 1 starts it afresh, so gaps between 1s are independent, and there is a causal state for each number of 0s since.
    """
    # P(gap of n zeros): leave A after i ≥ 1 zeros (the last of them emitted on leaving), then n - i more in B, then 1.
    gaps = [sum((1 - p) ** (i - 1) * p * (1 - q) ** (n - i) * q for i in range(1, n + 1)) for n in range(terms)]
    survival = [sum(gaps[n:]) for n in range(terms)]
    mean_length = sum((n + 1) * gap for n, gap in enumerate(gaps))
    gap_entropy = -sum(gap * math.log(gap) for gap in gaps if gap > 0)
    stationary = [alive / mean_length for alive in survival]
    return gap_entropy / mean_length, -sum(v * math.log(v) for v in stationary if v > 0)


@pytest.mark.parametrize(("p", "q"), [(0.5, 0.5), (0.3, 0.6), (0.9, 0.4)])
def test_simple_nonunifilar_source_is_a_renewal_process(p, q):
    rate, complexity = renewal_entropies(p, q)
    found = entropy_rate(msp.processes.sns(p=p, q=q))
    assert found.is_exact
    assert found.value == pytest.approx(rate, abs=1e-9)
    settled = statistical_complexity(msp.processes.sns(p=p, q=q))
    # A lower bound: where beliefs near their limit fast (the last case), floating point ends before the states do.
    assert complexity - 1e-3 <= settled.value <= complexity + 1e-9
    assert not settled.is_exact


def test_entropy_rates_in_closed_form():
    assert entropy_rate(msp.processes.golden_mean(p=0.5)).bits == pytest.approx(2 / 3)
    assert entropy_rate(msp.processes.even(p=0.5)).bits == pytest.approx(2 / 3)
    assert entropy_rate(msp.rrxor()).bits == pytest.approx(2 / 3)
    assert entropy_rate(msp.rrxor()).value == pytest.approx(0.46210, abs=5e-6)
    assert entropy_rate(msp.processes.z1r()).bits == pytest.approx(1 / 3)
    assert entropy_rate(msp.processes.coin(p=0.3)).value == pytest.approx(-0.3 * math.log(0.3) - 0.7 * math.log(0.7))


@given(brute_force.random_processes())
def test_bounds_hold_the_entropy_rate(process):
    found = entropy_rate(process, max_level=200)
    assert found.lower <= found.value <= found.upper
    later = float(msp.beliefs.myopic_entropies(process, 7)[-1])
    assert found.lower <= later + 1e-12
    # Followed deeper, the bounds only tighten.
    deeper = entropy_rate(process, max_level=2_000)
    assert found.lower - 1e-12 <= deeper.lower <= deeper.upper <= found.upper + 1e-12


def test_mess3_bounds_close_in(mess3):
    rough, fine = entropy_rate(mess3, max_level=300), entropy_rate(mess3)
    assert rough.lower < fine.lower <= 0.7934577 <= fine.upper < rough.upper
    assert fine.upper - fine.lower < 1e-5
    assert "between" in repr(rough)


def test_unifilar_and_presentation_agree():
    """The same sum over hidden states, and over the mixed states of a nonunifilar presentation of the same process."""
    # The golden mean with its state A split in two that behave alike: not unifilar, the same words.
    split = msp.Process(
        [
            [[0.25, 0.25, 0], [0.1, 0.4, 0], [0.5, 0.5, 0]],
            [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]],
        ]
    )
    assert not split.is_unifilar
    assert entropy_rate(split).value == pytest.approx(entropy_rate(msp.processes.golden_mean()).value)
    assert excess_entropy(split).value == pytest.approx(excess_entropy(msp.processes.golden_mean()).value)
    # Its two mixed states for A promise the same future, so they are one causal state.
    assert statistical_complexity(split).value == pytest.approx(
        statistical_complexity(msp.processes.golden_mean()).value
    )
    # With twin states for A there are three mixed states: the start, A and B.
    twins = msp.Process(
        [
            [[0.25, 0.25, 0], [0.25, 0.25, 0], [0.5, 0.5, 0]],
            [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]],
        ]
    )
    assert not twins.is_unifilar
    assert (entropy_rate(twins).bits, entropy_rate(twins).method) == (pytest.approx(2 / 3), "3 mixed states")


def test_excess_entropy_and_complexity_in_closed_form():
    third = -1 / 3 * math.log(1 / 3) - 2 / 3 * math.log(2 / 3)
    # A Markov chain's excess entropy is the entropy of one token less the rate.
    assert excess_entropy(msp.processes.golden_mean(p=0.5)).value == pytest.approx(third - 2 / 3 * math.log(2))
    assert statistical_complexity(msp.processes.golden_mean(p=0.5)).value == pytest.approx(third)
    # The even process hides its state for ever but gives it away at each 0: all that it remembers shows.
    assert excess_entropy(msp.processes.even(p=0.5)).value == pytest.approx(third)
    assert statistical_complexity(msp.processes.even(p=0.5)).value == pytest.approx(third)
    assert excess_entropy(msp.processes.coin()).value == pytest.approx(0)
    assert statistical_complexity(msp.processes.coin()).value == pytest.approx(0)
    assert excess_entropy(msp.processes.z1r()).value == pytest.approx(math.log(3))


def test_excess_entropy_is_the_sum_above_the_rate(mess3):
    for process in (msp.rrxor(), msp.processes.even(p=0.3), msp.processes.golden_mean(p=0.2)):
        h = msp.beliefs.myopic_entropies(process, 200)
        assert excess_entropy(process).value == pytest.approx(float((h - entropy_rate(process).value).sum()), abs=1e-6)
    summed = excess_entropy(mess3)
    assert summed.lower < summed.value
    assert summed.value == pytest.approx(float((msp.beliefs.myopic_entropies(mess3, 11) - 0.7934575).sum()), abs=1e-4)


def test_mess3_needs_infinite_memory(mess3):
    found = statistical_complexity(mess3)
    assert found.value == math.inf
    assert found.lower > 8


def test_what_cannot_be_followed_exactly_is_bounded(mess3):
    exact = msp.beliefs.myopic_entropies(mess3, 11)[1:]
    bounded = msp.beliefs.optimal_losses(mess3, 10, max_level=3_000)
    torch.testing.assert_close(bounded[:6], exact[:6], atol=1e-12, rtol=0)
    torch.testing.assert_close(bounded, exact, atol=1e-4, rtol=0)
    assert msp.beliefs.optimal_losses(mess3, 100)[-1].item() == pytest.approx(entropy_rate(mess3).value, abs=1e-5)
    with pytest.raises(ValueError, match=r"more than 100 different beliefs.*lower length=10"):
        msp.beliefs.myopic_entropies(mess3, 10, max_level=100)


def test_regret_floor_is_what_a_short_memory_costs():
    floor = regret_floor(msp.rrxor(), 30)
    assert (floor.diff() <= 1e-12).all()
    assert floor[-1] < 2e-3 < floor[0]


@given(brute_force.random_processes())
def test_synchronization_is_the_expected_entropy_of_beliefs(process):
    expected = [float(entropy(process.initial))]
    for length in (1, 2, 3):
        total = 0.0
        for word, probability in brute_force.word_probabilities(process, length).items():
            joint = brute_force.joint(process, word)
            total += sum(-v * math.log(v / probability) for v in joint if v > 0)
        expected.append(total)
    assert synchronization(process, 3).tolist() == pytest.approx(expected, abs=1e-9)


def test_block_entropies_are_of_words():
    assert block_entropies(msp.rrxor(), 4).tolist() == pytest.approx(
        [block_entropy(msp.rrxor(), n) for n in range(1, 5)]
    )


def test_a_start_that_is_not_stationary_is_forgotten():
    walk = msp.Process(
        [[[0, 1.0, 0], [0, 0.5, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0.5], [0, 1.0, 0]]], initial=[1, 0, 0]
    )
    assert long_run_state(walk).tolist() == pytest.approx([0, 2 / 3, 1 / 3])
    assert entropy_rate(walk).bits == pytest.approx(2 / 3)
    # Two worlds, one of which is entered for good: each counts as often as it is.
    two = msp.Process([[[0.5, 0], [0, 0.9]], [[0.5, 0], [0, 0.1]]], initial=[0.25, 0.75])
    expected = 0.25 * math.log(2) + 0.75 * -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert entropy_rate(two).value == pytest.approx(expected)


@pytest.mark.parametrize(("rare", "mixes"), [(1e-6, True), (1e-11, True), (5e-13, False)])
def test_an_exchange_as_rare_as_rounding_is_none(rare, mixes):
    walk = torch.tensor([[1 - rare, rare], [rare, 1 - rare]], dtype=torch.float64)
    expected = torch.full((2, 2), 0.5) if mixes else torch.eye(2)
    torch.testing.assert_close(information.long_run_projection(walk), expected.double(), rtol=0, atol=1e-4)


def test_measures_as_values():
    bounded = Measure(0.5, 0.4, math.inf, "a method")
    assert bounded.to_dict() == {"nats": 0.5, "lower": 0.4, "upper": None, "method": "a method"}
    assert repr(bounded) == "0.5000 nats, between 0.4000 and ∞ (a method)"
    assert repr(Measure(1 / 3, 1 / 3, 1 / 3, "unifilar")) == "0.3333 nats (unifilar)"
    assert repr(Measure(0.5, 0.499999, 0.500001, "two bounds")) == "0.5000 nats (two bounds)"
    assert [Measure(1.0, 1.0, 1.0 + gap, "").is_exact for gap in (5e-10, 2e-9)] == [True, False]


MEASURES = (entropy_rate, excess_entropy, statistical_complexity)


@pytest.mark.parametrize("measure", MEASURES)
def test_measures_of_a_product_are_sums(mess3, measure):
    """Of bounds too, each factor followed as far as `max_level` allows."""
    golden = msp.processes.golden_mean(p=0.3)
    found = measure(msp.processes.product([mess3, golden]), max_level=27)
    first, second = measure(mess3, max_level=27), measure(golden)
    assert found.method == f"sum over factors: {first.method}; {second.method}"
    for field in ("value", "lower", "upper"):
        assert getattr(found, field) == pytest.approx(getattr(first, field) + getattr(second, field))


def test_losses_beyond_the_last_exact_one_are_midway_to_the_lower_bound(mess3):
    """81 beliefs after 4 tokens: h_1 … h_5 are exact."""
    exact, rate = msp.beliefs.myopic_entropies(mess3, 5).tolist(), entropy_rate(mess3, max_level=81)
    rest = (exact[4] + rate.lower) / 2
    for n_ctx in (1, 3, 4):
        assert msp.beliefs.optimal_losses(mess3, n_ctx, max_level=81).tolist() == pytest.approx(exact[1 : n_ctx + 1])
    for n_ctx in (5, 7):
        expected = [*exact[1:], *[rest] * (n_ctx - 4)]
        assert msp.beliefs.optimal_losses(mess3, n_ctx, max_level=81).tolist() == pytest.approx(expected)
    for measure in (block_entropies, msp.beliefs.myopic_entropies):
        assert len(measure(mess3, 5, max_level=81)) == 5
        with pytest.raises(ValueError, match="After words of more than 4 tokens"):
            measure(mess3, 6, max_level=81)
    assert len(synchronization(mess3, 4, max_level=81)) == 5
    with pytest.raises(ValueError, match="After words of more than 4 tokens"):
        synchronization(mess3, 5, max_level=81)


def test_words_that_lead_to_one_belief_are_followed_as_one():
    """2^60 words of 60 tokens, but a handful of beliefs."""
    assert synchronization(msp.processes.z1r(), 60)[-1] == pytest.approx(0, abs=1e-9)
    assert msp.beliefs.myopic_entropies(msp.processes.z1r(), 60)[-1] == pytest.approx(math.log(2) / 3, abs=1e-9)


def slow():
    """Two states that show themselves by the token that they say more often; in the long run (0.6, 0.4)."""
    stay = torch.tensor([[0.98, 0.02], [0.03, 0.97]], dtype=torch.float64)
    says = torch.tensor([[0.6, 0.4], [0.35, 0.65]], dtype=torch.float64)
    return msp.Process(says.T.unsqueeze(2) * stay)


def test_bounds_are_entropies_given_the_first_state_or_not():
    """Of words of 5 tokens, as 4 lead to 16 beliefs: what a known state emits first says nothing about the next."""
    process = slow()
    found = entropy_rate(process, max_level=16)
    assert found.method.startswith("bounds from words of 5 tokens, value ± ")
    assert found.method.endswith(" from 160 sampled pasts")
    assert entropy_rate(process, max_level=4).method.endswith(" from 100 sampled pasts")
    informed = 0.0
    for state, probability in enumerate((0.6, 0.4)):
        start = msp.Process(process.transitions, initial=torch.eye(2)[state].double())
        informed += probability * (block_entropy(start, 5) - block_entropy(start, 4))
    assert found.lower == pytest.approx(informed)
    assert found.upper == pytest.approx(block_entropy(process, 5) - block_entropy(process, 4))
    narrow = entropy_rate(msp.processes.sns(p=0.5, q=0.5), max_level=16)
    assert narrow.value == pytest.approx((narrow.lower + narrow.upper) / 2)
    assert 1e-9 < narrow.upper - narrow.lower < 2e-3
    assert narrow.method == f"bounds from words of {narrow.method.split()[4]} tokens"


@pytest.mark.parametrize("gain", [0.002, 10.0, -10.0])
def test_a_sampled_rate_stays_within_its_bounds(monkeypatch, gain):
    spread = torch.tensor([-1e-3, 1e-3], dtype=torch.float64).repeat(50)
    monkeypatch.setattr(information, "_gains_of_a_long_past", lambda *given: gain + spread)
    found = entropy_rate(slow(), max_level=16)
    assert found.value == pytest.approx(min(max(found.upper - gain, found.lower), found.upper))
    # Two standard errors of a mean of 100 numbers 1e-3 from it.
    assert "value ± 0.0002 from 100 sampled pasts" in found.method


def test_a_long_past_gains_what_is_left_of_the_rate():
    """E KL = h_depth - h; without what depth - 1 tokens say, nothing is known and h_1 is the entropy of one token."""
    process, expected = slow(), belief_entropy_rate(slow())
    exact = msp.beliefs.myopic_entropies(process, 4)
    for depth in (1, 4):
        gains = information._gains_of_a_long_past(process, process.initial, depth, 1_000)
        error = float(gains.std()) / 1_000**0.5
        assert len(gains) == 1_000
        assert float(gains.mean()) == pytest.approx(float(exact[depth - 1]) - expected, abs=4 * error)


def test_a_long_past_gains_nothing_over_the_tokens_that_tell_the_state():
    """The last token of the golden mean process tells its state; before it, h_1 - h is missing."""
    process = msp.processes.golden_mean(p=0.5)
    assert information._gains_of_a_long_past(process, process.initial, 2, 50).abs().max() < 1e-12
    gains = information._gains_of_a_long_past(process, process.initial, 1, 4_000)
    expected = float(entropy(process.initial @ process.emissions)) - 2 / 3 * math.log(2)
    assert float(gains.mean()) == pytest.approx(expected, abs=4 * float(gains.std()) / 4_000**0.5)


def test_pasts_are_as_many_as_time_and_memory_allow(monkeypatch):
    asked = []
    monkeypatch.setattr(information, "WIDE", 0.0)
    monkeypatch.setattr(
        information, "_gains_of_a_long_past", lambda *given: asked.append(given[-1]) or torch.zeros(2).double()
    )
    for n_states, max_level in ((2, 4), (2, 1_999), (2, 3_000), (20, 2_000), (250, 8)):
        entropy_rate(msp.processes.random_process(n_states, 2, seed=0), max_level=max_level)
    assert asked == [100, 19_990, 20_000, 2**22 // 400, 100]


def turned(process):
    """The same process with its states in another basis, where they are no longer probabilities."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.eye(process.n_states).double() + 0.3 * torch.rand(
        process.n_states, process.n_states, generator=generator
    )
    return msp.Process(basis @ process.transitions @ torch.linalg.inv(basis), generalized=True)


def test_a_generalized_process_has_the_rate_of_its_words(mess3):
    h = msp.beliefs.myopic_entropies(mess3, 6)
    for max_level, length in ((1, 1), (3, 2), (9, 3), (300, 6)):
        found = entropy_rate(turned(mess3), max_level=max_level)
        assert found.upper == pytest.approx(float(h[length - 1]), abs=1e-9)
        assert found.lower == 0
        assert found.method == f"upper bounds from words of up to {length} tokens"
        if length < 3:
            assert found.value == found.upper
        else:
            # Steps that shrink by one ratio add up to those seen, and a geometric series.
            before, last = (float(h[length - k - 1] - h[length - k]) for k in (2, 1))
            assert found.value == pytest.approx(float(h[length - 1]) - last * (last / before) / (1 - last / before))
    assert entropy_rate(turned(mess3), max_level=3_000).value == pytest.approx(0.7934577, abs=1e-5)


def test_bounds_that_no_longer_fall_are_the_rate():
    renewal = msp.processes.sns(p=0.5, q=0.5)
    found, h = entropy_rate(turned(renewal)), msp.beliefs.myopic_entropies(renewal, 100).tolist()
    length = next(k for k in range(31, 100) if h[k - 30] - h[k - 1] <= 1e-10)
    assert found.method == f"upper bounds from words of up to {length} tokens"
    assert found.value == pytest.approx(renewal_entropies(0.5, 0.5)[0], abs=1e-9)
