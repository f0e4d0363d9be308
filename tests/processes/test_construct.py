"""Ordinary hidden Markov models, against hmmlearn; random processes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hmmlearn.hmm import CategoricalHMM
from hypothesis import given
from hypothesis import strategies as st

import msp_lens as msp
from tests import brute_force


def random_model(n_states, n_tokens, seed, *, starts_stationary):
    """A CategoricalHMM with random parameters, some of them 0."""
    generator = np.random.default_rng(seed)
    model = CategoricalHMM(n_components=n_states, n_features=n_tokens)
    emissions = generator.dirichlet(np.ones(n_tokens), size=n_states)
    emissions[0] = np.eye(n_tokens)[0]
    model.emissionprob_ = emissions
    model.transmat_ = generator.dirichlet(np.ones(n_states), size=n_states)
    model.startprob_ = generator.dirichlet(np.ones(n_states))
    if starts_stationary:
        model.startprob_ = msp.processes.from_moore(model.transmat_, emissions).stationary.numpy()
    return model


def forward_filter(model, word):
    """hmmlearn's posteriors over the last state of each prefix: its smoother has seen nothing further there."""
    observed = np.array(word)[:, None]
    return np.stack([model.predict_proba(observed[: t + 1])[-1] for t in range(len(word))])


@given(st.integers(1, 4), st.integers(2, 4), st.integers(0, 10_000), st.booleans())
def test_hmmlearn_agrees(n_states, n_tokens, seed, starts_stationary):
    model = random_model(n_states, n_tokens, seed, starts_stationary=starts_stationary)
    process = msp.processes.from_moore(model)
    assert process.n_states == n_states + (not starts_stationary and n_states > 1)
    words = process.sample(3, 8, seed=seed)
    log_likelihoods = process.word_log_probabilities(words)
    beliefs = msp.filter_beliefs(process, words)
    for word, log_likelihood, belief in zip(words.tolist(), log_likelihoods.tolist(), beliefs, strict=True):
        assert log_likelihood == pytest.approx(model.score(np.array(word)[:, None]), abs=1e-9)
        expected = torch.from_numpy(forward_filter(model, word))
        torch.testing.assert_close(belief[:, :n_states], expected, atol=1e-9, rtol=0)
        assert (belief[:, n_states:] == 0).all(), "the start state is left at once"


def test_the_first_token_is_the_start_states():
    """All words, over the hidden paths of the ordinary model itself."""
    A, B = np.array([[0.9, 0.1], [0.3, 0.7]]), np.array([[1.0, 0.0], [0.25, 0.75]])
    start = np.array([0.2, 0.8])
    process = msp.processes.from_moore(A, B, startprob=start, states=("P", "Q"), tokens=("no", "yes"))
    assert process.states == ("P", "Q", "START")
    for word in brute_force.words(process, 3):
        alpha = start * B[:, word[0]]
        for token in word[1:]:
            alpha = (alpha @ A) * B[:, token]
        assert float(process.word_probabilities(torch.tensor([word]))) == pytest.approx(alpha.sum(), abs=1e-14)


def test_the_default_start_is_stationary():
    A, B = [[0.9, 0.1], [0.3, 0.7]], [[1.0, 0.0], [0.25, 0.75]]
    process = msp.processes.from_moore(A, B)
    torch.testing.assert_close(process.initial, torch.tensor([0.75, 0.25], dtype=torch.float64))
    torch.testing.assert_close(process.transitions[1], torch.tensor([[0, 0.075], [0, 0.525]], dtype=torch.float64))
    assert msp.processes.from_moore(A, B, startprob=[0.75, 0.25]) == process
    elsewhere = msp.processes.from_moore(A, B, initial=[1.0, 0.0])
    assert float(elsewhere.word_probabilities(torch.tensor([[1]]))) == pytest.approx(0.1 * 0.75)


@pytest.mark.parametrize("off", [1e-5, 1e-9])
def test_a_start_that_is_nearly_stationary_is_kept_exactly(off):
    A, B = [[0.9, 0.1], [0.3, 0.7]], [[1.0, 0.0], [0.25, 0.75]]
    process = msp.processes.from_moore(A, B, startprob=[0.75 + off, 0.25 - off])
    first = float(process.word_probabilities(torch.tensor([[1]])))
    assert first == pytest.approx((0.25 - off) * 0.75, rel=1e-12)


def test_a_fitted_model_may_start_elsewhere():
    model = random_model(3, 2, seed=1, starts_stationary=False)
    A, B = model.transmat_, model.emissionprob_
    for start in ({"initial": [0.2, 0.3, 0.5]}, {"startprob": [0.2, 0.3, 0.5]}):
        process = msp.processes.from_moore(model, **start)
        assert process == msp.processes.from_moore(A, B, **start)
        assert process != msp.processes.from_moore(model)


@pytest.mark.parametrize("start", [{}, {"initial": [1.0, 0.0]}, {"startprob": [0.75, 0.25]}, {"startprob": [0, 1]}])
def test_a_model_keeps_its_names(start):
    A, B = [[0.9, 0.1], [0.3, 0.7]], [[1.0, 0.0], [0.25, 0.75]]
    named = msp.processes.from_moore(A, B, name="weather", states=("P", "Q"), tokens=("no", "yes"), **start)
    assert (named.name, named.states[:2], named.tokens) == ("weather", ("P", "Q"), ("no", "yes"))
    plain = msp.processes.from_moore(A, B, **start)
    assert (plain.name, plain.states[:2], plain.tokens) == ("moore", ("0", "1"), ("0", "1"))
    assert plain.states[2:] == named.states[2:] == (("START",) if start == {"startprob": [0, 1]} else ())


def test_a_reducible_model_starts_where_it_says():
    process = msp.processes.from_moore(np.eye(2), np.eye(2), startprob=[0.3, 0.7])
    assert process.word_probabilities(torch.tensor([[0, 0], [1, 1], [0, 1]])).tolist() == pytest.approx([0.3, 0.7, 0])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([[1.0]],), {}, TypeError, r"from_moore\(list\): give transitions and emissions, or a fitted model"),
        ((SimpleNamespace(transmat_=[[1.0]]),), {}, TypeError, r"from_moore\(SimpleNamespace\): give transitions"),
        (([[]], [[1.0]]), {}, ValueError, r"^transitions has shape \(1, 0\); it needs two axes"),
        (([], [[1.0]]), {}, ValueError, r"^transitions has shape \(0,\); it needs two axes"),
        ((np.ones((0, 2)), [[1.0]]), {}, ValueError, r"^transitions has shape \(0, 2\); it needs two axes"),
        (([[1.0]], [[0.5, 0.4]]), {}, ValueError, r"^emissions\[0\]=.* sums to 0\.9"),
        (([[0.5, 0.6]] * 2, [[1.0]] * 2), {}, ValueError, r"^transitions\[0\]=.* sums to 1\.1"),
        (([[0.5, 0.5]], [[1.0]]), {}, ValueError, r"shape \(1, 2\) and emissions of shape \(1, 1\) do not fit"),
        (([[1.0]], [[1.0]] * 2), {}, ValueError, "do not fit"),
        (([1.0], [[1.0]]), {}, ValueError, "^transitions has shape .* needs two axes"),
        (([[1.0]], [[np.nan]]), {}, ValueError, r"^emissions=\[\[nan\]\]"),
        (([[1.0]], [[1.0]]), {"initial": [1.0], "startprob": [1.0]}, ValueError, "give one of them"),
        (([[1.0]], [[1.0]]), {"startprob": [0.5]}, ValueError, r"^startprob=.* sums to 0\.5"),
    ],
)
def test_what_is_no_model_is_refused(arguments, options, error, message):
    with pytest.raises(error, match=message):
        msp.processes.from_moore(*arguments, **options)


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 1000), st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_random_processes_are_irreducible(n_states, n_tokens, seed, sparsity):
    process = msp.processes.random_process(n_states, n_tokens, seed=seed, sparsity=sparsity)
    assert (process.n_states, process.n_tokens) == (n_states, n_tokens)
    assert process.is_irreducible
    assert process == msp.processes.random_process(n_states, n_tokens, seed=seed, sparsity=sparsity)


def test_random_processes_are_as_sparse_as_wanted(global_state):
    shares = {
        s: float((msp.processes.random_process(40, 5, seed=0, sparsity=s).transitions > 0).double().mean())
        for s in (0, 0.8)
    }
    assert shares[0] == 1
    assert shares[0.8] == pytest.approx(0.2 + 0.8 / 200, abs=0.02)
    assert int((msp.processes.random_process(40, 5, seed=0, sparsity=1.0).transitions > 0).sum()) == 40
    assert msp.processes.random_process(3, 2, seed=0) != msp.processes.random_process(3, 2, seed=1)


def test_random_processes_have_every_outcome_by_default():
    process = msp.processes.random_process(6, 4, seed=0)
    assert bool((process.transitions > 0).all())
    assert process.parameters == {"seed": 0, "sparsity": 0}
    assert process == msp.processes.random_process(6, 4, seed=0, sparsity=0.0)


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_a_seed_gives_the_same_process_whatever_the_default_dtype(default):
    before = torch.get_default_dtype()
    expected = msp.processes.random_process(4, 2, seed=0, sparsity=0.5)
    try:
        torch.set_default_dtype(default)
        process = msp.processes.random_process(4, 2, seed=0, sparsity=0.5)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(process.transitions, expected.transitions)
    assert process.name == "random"


def test_a_random_process_that_does_not_fit_says_how_large_it_is():
    expected = r"^3 matrices of 1000000 × 1000000 states would take 24,000\.0 GB; .* Give fewer states or tokens\.$"
    with pytest.raises(ValueError, match=expected):
        msp.processes.random_process(10**6, 3, seed=0)
