"""What must be remembered: excess entropy and complexity where there are infinitely many mixed states."""

import math

import numpy as np
import pytest

import msp_lens as msp
from msp_lens.beliefs import entropy_rate, excess_entropy, statistical_complexity
from msp_lens.beliefs.information import Measure
from tests import brute_force


def block_entropy(process, length):
    return -sum(p * math.log(p) for p in brute_force.word_probabilities(process, length).values())


def renewal_states(p, q, terms=400):
    """The stationary probability of n zeros since the last 1."""
    gaps = [sum((1 - p) ** (i - 1) * p * (1 - q) ** (n - i) * q for i in range(1, n + 1)) for n in range(terms)]
    survival = np.cumsum(gaps[::-1])[::-1]
    return (survival / survival.sum()).tolist()


@pytest.mark.parametrize(("max_level", "length"), [(100, 4), (27, 3)])
def test_excess_entropy_is_summed_as_far_as_levels_go(mess3, max_level, length):
    h = msp.beliefs.myopic_entropies(mess3, length).tolist()
    found = excess_entropy(mess3, max_level=max_level)
    assert found.value == pytest.approx(sum(h) - length * entropy_rate(mess3, max_level=max_level).value)
    # What one or two tokens tell about as many that follow.
    half = length // 2
    assert found.lower == pytest.approx(2 * sum(h[:half]) - sum(h[: 2 * half]))
    assert found.upper == math.inf
    assert found.method == f"summed over words of {length} tokens"


@pytest.mark.parametrize(("p", "max_level"), [(0.5, None), (0.7, None), (0.8, 8), (0.9, 8)])
def test_belief_entropy_of_a_renewal_process_after_some_tokens(p, max_level):
    """The belief tells how many 0s came since the last 1, or that there was no 1."""
    stationary = renewal_states(p, p)

    def after(length):
        parts = [*stationary[:length], sum(stationary[length:])]
        return -sum(part * math.log(part) for part in parts if part > 0)

    process = msp.processes.sns(p=p, q=p)
    found = statistical_complexity(process, **({} if max_level is None else {"max_level": max_level}))
    if max_level is None:
        length = next(n for n in range(1, 99) if abs(after(n) - after(n - 1)) <= 1e-5)
        method = "settled belief entropy"
    else:
        # At most 4 beliefs of which each may have 2 children: after 3 tokens there are 4, after 4 there are 5.
        length, method = 4, "belief entropy after 4 tokens"
    assert found == Measure(found.value, found.value, math.inf, method)
    assert found.value == pytest.approx(after(length), abs=1e-6)


@pytest.mark.parametrize(
    ("x", "a", "max_level", "length"),
    [(0.05, 0.85, 81, 4), (0.05, 0.85, 3, 1), (0.005, 0.98, 27, 3), (0.005, 0.98, 9, 2)],
)
def test_belief_entropy_that_grows_is_that_of_words(x, a, max_level, length):
    """All words of Mess3 lead to beliefs of their own."""
    process = msp.mess3(x=x, a=a)
    found = statistical_complexity(process, max_level=max_level)
    assert found == Measure(math.inf, found.lower, math.inf, "belief entropy grows with every token")
    assert found.lower == pytest.approx(block_entropy(process, length))


def test_where_no_token_can_be_followed_nothing_is_known(mess3):
    assert statistical_complexity(mess3, max_level=1) == Measure(0.0, 0.0, math.inf, "belief entropy after 0 tokens")
    assert entropy_rate(mess3, max_level=1).upper == pytest.approx(math.log(3))
    assert excess_entropy(mess3, max_level=1).lower == 0


def test_a_unifilar_process_with_infinitely_many_mixed_states():
    """Two states left by a 1 alone; a run of 0s never quite tells which one it is. π = (2/7, 5/7)."""
    process = msp.Process([[[0.5, 0], [0, 0.8]], [[0, 0.5], [0.2, 0]]])

    def binary(p):
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    rate = entropy_rate(process)
    assert (rate.value, rate.method) == (pytest.approx(2 / 7 * binary(0.5) + 5 / 7 * binary(0.2)), "unifilar")
    found = statistical_complexity(process)
    assert (found.value, found.method) == (pytest.approx(binary(2 / 7)), "unifilar")
    excess = excess_entropy(process)
    # All that it remembers shows in the end.
    assert excess.lower <= found.value
    assert excess.value == pytest.approx(found.value, abs=1e-6)
