"""Smoothing, compared with sums over every path of hidden states."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import msp_lens as msp
from msp_lens.beliefs import smoothed_beliefs


def by_brute_force(process, word, lag):
    """P(state `lag` steps before the end | word), by summing over all paths; a path is the states before and after."""
    totals = torch.zeros(process.n_states, dtype=torch.float64)
    for path in itertools.product(range(process.n_states), repeat=len(word) + 1):
        probability = float(process.initial[path[0]])
        for step, token in enumerate(word):
            probability *= float(process.transitions[token, path[step], path[step + 1]])
        # Entry t + 1 of the path is the state after token t.
        totals[path[len(word) - lag]] += probability
    return totals / totals.sum()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), n_states=st.integers(1, 3), length=st.integers(1, 4))
def test_it_is_the_sum_over_paths(seed, n_states, length):
    process = msp.processes.random_process(n_states, 2, seed=seed)
    words = process.sample(3, length, seed=seed)
    for lag in range(length):
        found = smoothed_beliefs(process, words, lag)
        assert found[:, :lag].isnan().all()
        for word, rows in zip(words.tolist(), found, strict=True):
            for position in range(lag, length):
                expected = by_brute_force(process, word[: position + 1], lag)
                torch.testing.assert_close(rows[position], expected, atol=1e-12, rtol=0)


def test_no_lag_is_the_belief_and_a_long_one_is_nothing(mess3):
    words = mess3.sample(5, 6, seed=0)
    torch.testing.assert_close(smoothed_beliefs(mess3, words, 0), msp.filter_beliefs(mess3, words))
    assert smoothed_beliefs(mess3, words, 6).isnan().all()


def test_long_lags_do_not_underflow(mess3):
    found = smoothed_beliefs(mess3, mess3.sample(2, 1_500, seed=0), 1_400)
    torch.testing.assert_close(found[:, 1_400:].sum(dim=-1), torch.ones(2, 100, dtype=torch.float64))


def test_states_without_probabilities_are_refused():
    process = msp.processes.bloch_walk()
    with pytest.raises(ValueError, match="generalized"):
        smoothed_beliefs(process, process.sample(2, 3, seed=0), 1)
