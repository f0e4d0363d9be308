"""Machines of maximum likelihood: gradients against differences, optima against the truth and against hmmlearn."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import msp_lens as msp
from msp_lens.inference import word_tree
from msp_lens.inference.likelihood import fit_machine, objective, refitted, stationary_of
from msp_lens.inference.word_probabilities import WordProbabilities, data_words, process_words
from msp_lens.inference.word_tree import WordTree
from tests.inference.worlds import CATALOG

# Processes whose machine is found within seconds.
QUICK = ("mess3", "golden mean", "even", "coin", "z1r", "sns", "rrxor", "matching parentheses", "mr name")


def random_machines(n, n_tokens, n_states, seed=0):
    made = [msp.processes.random_process(n_states, n_tokens, seed=seed + k).transitions for k in range(n)]
    return torch.stack(made)


@given(st.integers(1, 3), st.integers(2, 3), st.integers(1, 100))
def test_divergences_are_sums_over_words(n_states, n_tokens, seed):
    world = msp.processes.random_process(2, n_tokens, seed=seed, sparsity=0.3)
    words, machines = process_words(world, 4), random_machines(3, n_tokens, n_states, seed)
    found = WordTree(words).divergence(machines, stationary_of(machines))
    for machine, divergence in zip(machines, found.tolist(), strict=True):
        q = msp.Process(machine).word_probabilities(words.tokens)
        expected = float((words.probabilities * (words.probabilities / q).log()).sum()) / 4
        assert divergence == pytest.approx(expected, abs=1e-12)


@given(st.integers(1, 3), st.integers(2, 3), st.integers(1, 100))
def test_the_slope_is_that_of_small_changes(n_states, n_tokens, seed):
    tree = WordTree(process_words(msp.processes.random_process(3, n_tokens, seed=seed), 4))
    logits = random_machines(1, n_tokens, n_states, seed)[0].log()
    _, slope = objective(tree, logits)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        way, step = torch.randn(logits.shape, generator=generator, dtype=torch.float64), 1e-5
        ahead, behind = objective(tree, logits + step * way)[0], objective(tree, logits - step * way)[0]
        assert float((slope * way).sum()) == pytest.approx((ahead - behind) / (2 * step), abs=1e-8)


@pytest.mark.parametrize(
    ("most_pairs", "is_sparse"), [(0, [True] * 4), (2, [False, False, True, True]), (9, [False] * 4)]
)
def test_the_gradient_is_the_same_however_few_of_all_words_occur(monkeypatch, most_pairs, is_sparse):
    # Of 3, 6, 6 and 6 words of one to four tokens, each is lengthened by one or two of three tokens.
    monkeypatch.setattr(word_tree, "MOST_PAIRS", most_pairs)
    tokens = torch.tensor([[0, 1, 2, 2], [0, 2, 1, 1], [1, 0, 2, 0], [1, 2, 0, 2], [2, 0, 1, 0], [2, 1, 0, 1]])
    words = WordProbabilities(tokens, torch.tensor([0.1, 0.2, 0.1, 0.1, 0.2, 0.3]).double(), 3, is_population=True)
    tree = WordTree(words)
    assert [bool(level.by_token) for level in tree.levels] == is_sparse
    machines = random_machines(2, 3, 2).requires_grad_()
    initial = torch.tensor([[0.3, 0.7], [0.9, 0.1]], dtype=torch.float64, requires_grad=True)
    likelihood = 0.0
    for word, probability in zip(tokens.tolist(), words.probabilities.tolist(), strict=True):
        alpha = initial.unsqueeze(1)
        for token in word:
            alpha = alpha @ machines[:, token]
        likelihood = likelihood + probability * alpha.sum(dim=(1, 2)).log()
    divergence, *found = tree.with_gradient(machines.detach(), initial.detach())
    torch.testing.assert_close(divergence, (-likelihood.detach() - words.entropy) / 4)
    expected = torch.autograd.grad(likelihood.sum(), [machines, initial])
    torch.testing.assert_close(found, list(expected))


@pytest.mark.parametrize("name", QUICK)
def test_the_process_is_found_from_its_words(name):
    process, length = CATALOG[name]
    fit = fit_machine(process_words(process, length), process.n_states)
    assert fit.divergence < 1e-6
    # Words longer than those it was fitted to are right, too.
    longer = process.sample(200, length + 4, seed=1)
    found, expected = fit.process.word_log_probabilities(longer), process.word_log_probabilities(longer)
    assert float((expected - found).mean()) / (length + 4) < 2e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(CATALOG) - set(QUICK)))
def test_larger_processes_are_found_from_more_starts(name):
    process, length = CATALOG[name]
    # A word of days is 11 times as many for each token.
    length, n_starts = (3, 12) if name == "days of week" else (9, 64)
    fit = fit_machine(process_words(process, length), process.n_states, n_starts=n_starts)
    assert fit.divergence < 1e-6


@settings(max_examples=3)
@given(st.integers(2, 3), st.integers(2, 3), st.integers(0, 1000))
def test_random_processes_are_found(n_states, n_tokens, seed):
    process = msp.processes.random_process(n_states, n_tokens, seed=seed)
    assert fit_machine(process_words(process, 5), n_states, n_starts=8).divergence < 1e-6


def test_fewer_states_leave_more():
    words = process_words(msp.mess3(x=0.05, a=0.85), 5)
    left = [fit_machine(words, k, n_starts=8).divergence for k in (1, 2, 3)]
    assert left[0] > 2 * left[1] > 0.02
    assert left[2] < 1e-9


def test_each_step_lowers_the_divergence():
    fit = fit_machine(process_words(msp.rrxor(), 8), 5, n_starts=8)
    # The start depends on the transitions, which Baum and Welch's proof leaves out: a rise could only be tiny.
    assert (fit.history.diff() < 1e-6).all()
    assert fit.history[-1] <= fit.from_starts[0] + 1e-12
    assert fit.divergence <= float(fit.history[-1])
    assert 1 <= fit.n_agreeing <= fit.n_finished == 4
    assert len(fit.from_starts) == 8


def test_starts_follow_from_the_seed():
    words = process_words(msp.processes.z1r(), 6)
    first, again, other = (fit_machine(words, 3, n_starts=4, n_steps=20, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert not torch.equal(first.from_starts, other.from_starts)


def test_progress_is_told_step_by_step():
    steps = []
    fit_machine(process_words(msp.rrxor(), 5), 2, n_starts=3, n_steps=7, progress=steps.append)
    assert sum(steps) == 7


def test_what_is_impossible_stays_so():
    process = msp.processes.golden_mean(p=0.5)
    start = torch.where(process.transitions > 0, 0.5, 0.0).double()
    start[0, 1, 0] = 1.0
    start[:, 0] = torch.tensor([[0.9, 0.0], [0.0, 0.1]]).double()
    found = refitted(process_words(process, 6), start)
    torch.testing.assert_close(found, process.transitions, rtol=0, atol=1e-6)


def test_hmmlearn_finds_no_likelier_machine():
    hmm = pytest.importorskip("hmmlearn.hmm")
    process = msp.processes.from_moore([[0.9, 0.1], [0.3, 0.7]], [[0.8, 0.2], [0.1, 0.9]])
    data = process.sample(200, 8, seed=0)
    fit = fit_machine(data_words(data, 8, n_tokens=2), 2, n_starts=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = [
            hmm.CategoricalHMM(n_components=2, random_state=seed, n_iter=50).fit(data.reshape(-1, 1).numpy(), [8] * 200)
            for seed in range(2)
        ]
    theirs = max(each.score(data.reshape(-1, 1).numpy(), [8] * 200) for each in fitted)
    ours = float(fit.process.word_log_probabilities(data).sum())
    # Edge-emitting machines include Moore machines; hmmlearn's start is free, ours is stationary, worth a unit or two.
    assert ours > theirs - 4
    truth = float(process.word_log_probabilities(data).sum())
    assert ours > truth
    assert np.isclose(ours, truth, rtol=0.01)


def test_too_many_starts_are_refused():
    with pytest.raises(ValueError, match=r"n_starts=1000000000 machines .* Give fewer starts"):
        fit_machine(process_words(msp.processes.coin(), 4), 2, n_starts=10**9)
