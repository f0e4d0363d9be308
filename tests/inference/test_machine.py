"""Machines made simpler, named and compared: what they mean stays, and what they are called does not matter."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import msp_lens as msp
from msp_lens.inference.machine import divergence_rate, named_by_words, simplified
from msp_lens.inference.process_comparison import compare_processes
from tests.inference.worlds import CATALOG, GENERALIZED

processes = msp.processes
MESS3 = msp.mess3(x=0.05, a=0.85)


def relabeled(process, seed=0):
    """The same machine with its states in another order and under other names."""
    order = torch.randperm(process.n_states, generator=torch.Generator().manual_seed(seed))
    states = [f"q{k}" for k in range(process.n_states)]
    return msp.Process(process.transitions[:, order][:, :, order], states=states, tokens=process.tokens)


def with_leaks(process, size=1e-4):
    """The same machine with every transition a little possible."""
    leaky = process.transitions + size
    return msp.Process(leaky / leaky.sum(dim=(0, 2)).reshape(1, -1, 1), tokens=process.tokens)


def with_a_double(process):
    """The same words from a machine in which the first state is two, each entered half of the times."""
    n = process.n_states
    transitions = torch.zeros(process.n_tokens, n + 1, n + 1, dtype=torch.float64)
    transitions[:, :n, :n] = process.transitions
    transitions[:, n, :n] = process.transitions[:, 0]
    transitions[:, :, n] = transitions[:, :, 0] / 2
    transitions[:, :, 0] /= 2
    return msp.Process(transitions, tokens=process.tokens)


@pytest.mark.parametrize("name", ["golden mean", "even", "z1r", "rrxor"])
def test_leaks_and_doubles_go_and_the_machine_stays(name):
    process, _ = CATALOG[name]
    found = simplified(with_leaks(with_a_double(process)), tolerance=1e-2)
    assert found.n_states == process.n_states
    assert found.is_unifilar
    beside = compare_processes(found, process)
    assert set(beside.matching.values()) == set(process.states)
    assert beside.largest_deviation < 2e-3


@pytest.mark.parametrize("name", ["mess3", "sns", "mr name"])
def test_what_matters_stays(name):
    process, _ = CATALOG[name]
    found = simplified(process, tolerance=1e-9)
    assert found.n_states == process.n_states
    assert divergence_rate(process, found) < 1e-9
    assert simplified(with_a_double(process), tolerance=1e-9).n_states == process.n_states


def test_the_tolerance_is_kept():
    process = msp.processes.random_process(3, 2, seed=1)
    for tolerance in (1e-8, 1e-4, 1e-2, 1.0):
        assert divergence_rate(simplified(process, tolerance=tolerance), process) <= tolerance
    assert simplified(process, tolerance=1.0).n_states == 1


def test_parameters_that_cost_more_than_they_give_go():
    leaky = with_leaks(processes.even(p=0.5), 1e-3)
    kept, simpler = (simplified(leaky, tolerance=1e-6, per_parameter=price) for price in (0.0, 2e-3))
    assert not kept.is_unifilar
    assert simpler.is_unifilar
    # Six parameters have become one, and each may cost this much.
    assert 1e-6 < divergence_rate(simpler, leaky) < 5 * 2e-3


def test_states_are_named_by_the_words_that_lead_there():
    process = named_by_words(processes.z1r())
    for state, name in enumerate(process.states):
        belief = msp.filter_beliefs(process, name)[0, -1]
        assert float(belief[state]) == pytest.approx(1)
        # No shorter word leads there.
        for length in range(1, len(name)):
            words = msp.inference.process_words(process, max(length, 2)).part(0, length).tokens
            assert float(msp.filter_beliefs(process, words)[:, -1, state].max()) < 0.9


def test_states_without_a_word_have_a_name_all_the_same():
    blurred = msp.mess3(x=0.3, a=0.4)
    assert named_by_words(blurred).states == ("s0", "s1", "s2")


def test_a_divergence_is_the_sum_over_words():
    first, second = processes.golden_mean(p=0.3), processes.golden_mean(p=0.6)
    words = first.sample(50_000, 10, seed=0)
    sampled = (first.word_log_probabilities(words) - second.word_log_probabilities(words)).mean() / 10
    assert divergence_rate(first, second) == pytest.approx(float(sampled), abs=3e-3)
    assert divergence_rate(processes.coin(p=0.5), first) == math.inf


@given(st.integers(0, 1000), st.integers(2, 4))
def test_a_process_is_the_same_whatever_its_states_are_called(seed, n_states):
    process = processes.random_process(n_states, 2, seed=seed)
    beside = compare_processes(process, relabeled(process, seed), length=5)
    assert beside.divergence < 1e-12
    assert beside.reverse < 1e-12
    assert beside.first.rank == beside.second.rank
    assert beside.first.entropy_rate.value == pytest.approx(beside.second.entropy_rate.value, abs=1e-9)
    # Random beliefs may vary so little that the fit is one of rounding.
    assert beside.r2_first == pytest.approx(1, abs=1e-4)
    assert beside.r2_second == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", ["golden mean", "even", "z1r", "rrxor", "matching parentheses"])
def test_states_of_unifilar_machines_are_matched(name):
    process, _ = CATALOG[name]
    other = relabeled(process)
    beside = compare_processes(process, other)
    order = torch.randperm(process.n_states, generator=torch.Generator().manual_seed(0)).tolist()
    assert beside.matching == {process.states[k]: f"q{order.index(k)}" for k in range(process.n_states)}
    assert beside.largest_deviation < 1e-12


def test_mess3_has_other_machines_with_the_same_beliefs_up_to_an_affine_map():
    # A gauge that keeps probabilities: states mixed among one another.
    mixing = 0.9 * torch.eye(3, dtype=torch.float64) + 0.1 / 3
    inverse = torch.linalg.inv(mixing)
    moved = inverse @ MESS3.transitions @ mixing
    assert (moved > -1e-12).all()
    other = msp.Process(moved.clamp_min(0), tokens=MESS3.tokens)
    beside = compare_processes(MESS3, other)
    assert beside.divergence < 1e-12
    assert beside.r2_first == pytest.approx(1, abs=1e-9)
    assert beside.matching is None
    assert np.isnan(beside.largest_deviation)
    torch.testing.assert_close(beside.first.eigenvalues, beside.second.eigenvalues, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", GENERALIZED)
def test_generalized_processes_are_compared_too(name):
    process, length = GENERALIZED[name]
    operators = msp.inference.spectral_operators(msp.inference.process_words(process, length), process.n_states)
    beside = compare_processes(process, operators.to_process(), length=6)
    assert beside.divergence < 1e-9
    assert beside.r2_first == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(beside.first.eigenvalues, beside.second.eigenvalues, rtol=0, atol=1e-6)


def test_redundant_states_do_not_change_the_eigenvalues():
    doubled = with_a_double(processes.golden_mean(p=0.5))
    beside = compare_processes(doubled, processes.golden_mean(p=0.5))
    assert (beside.first.n_states, beside.first.rank, beside.second.n_states) == (3, 2, 2)
    torch.testing.assert_close(beside.first.eigenvalues, beside.second.eigenvalues, rtol=0, atol=1e-9)


def test_a_comparison_is_shown_as_a_table():
    beside = compare_processes(processes.even(), relabeled(processes.even()))
    table = beside.to_dataframe()
    assert list(table.columns) == ["even", "process"]
    assert table.loc["states"].tolist() == [2, 2]
    assert "no transition differs by more than" in repr(beside)
    assert "<table>" in beside._repr_html_()
    assert list(compare_processes(MESS3, MESS3).to_dataframe().columns) == ["mess3 (1)", "mess3 (2)"]


def test_processes_over_other_tokens_are_refused():
    with pytest.raises(ValueError, match="mess3 has 3 tokens, even 2: only processes over the same tokens"):
        compare_processes(MESS3, processes.even())
