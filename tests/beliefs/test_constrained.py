"""Constrained beliefs against their formula, term by term, and against figures computed elsewhere."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression

import msp_lens as msp
from msp_lens.beliefs import attention_heads_needed, constrained_beliefs, decay_rates
from tests import brute_force

small = brute_force.random_processes(max_states=4, max_tokens=3)


def by_the_formula(process, word):
    """r(z1 … zd) = π + Σ_s (π T[zs] / (π T[zs] w) - π) T^(d-s), for a process that starts in its stationary state."""
    matrices, prior, weights = process.transitions.numpy(), process.initial.numpy(), process.right_eigenvector.numpy()
    total = prior.copy()
    for s, token in enumerate(word):
        alone = prior @ matrices[token]
        evidence = alone / (alone @ weights) - prior
        total += evidence @ np.linalg.matrix_power(matrices.sum(axis=0), len(word) - 1 - s)
    return total


def agrees_with_the_formula(process, length):
    occur = (process.initial @ process.emissions > 1e-9).nonzero().squeeze(1)
    words = torch.cartesian_prod(*[occur] * length).reshape(-1, length)
    found = constrained_beliefs(process, words)
    for word, beliefs in zip(words.tolist(), found.numpy(), strict=True):
        for position in range(length):
            np.testing.assert_allclose(
                beliefs[position], by_the_formula(process, word[: position + 1]), rtol=0, atol=1e-12
            )


@given(small)
def test_every_words_constrained_beliefs_are_those_of_the_formula(process):
    agrees_with_the_formula(process, 3)


@pytest.mark.parametrize(
    "process",
    [
        msp.rrxor(),
        msp.processes.bloch_walk(),
        msp.processes.frdn(),
        msp.processes.product([msp.processes.coin(p=0.3), msp.mess3()]),
        msp.processes.mixture([msp.mess3(), msp.mess3(x=0.15, a=0.6)], [0.5, 0.5]),
    ],
    ids=lambda process: process.name,
)
def test_so_are_those_of_any_kind_of_process(process):
    agrees_with_the_formula(process, 3)


@given(small)
def test_the_first_token_is_weighed_as_bayes_does(process):
    words = torch.tensor([[token] for token in range(process.n_tokens) if (process.initial @ process.emissions)[token]])
    torch.testing.assert_close(constrained_beliefs(process, words), msp.filter_beliefs(process, words))


@given(small, st.integers(0, 2**32))
def test_after_one_token_evidence_only_decays_towards_the_prior(process, seed):
    # Averaged over what may come, a token more leaves the average belief: each c(z) averages to 0.
    words = process.sample(5, 3, seed=seed)
    last = process.initial @ process.emissions
    extended = [
        torch.cat([words, torch.full((5, 1), token)], dim=1) for token in range(process.n_tokens) if last[token] > 0
    ]
    after = torch.stack([constrained_beliefs(process, each)[:, -1] for each in extended])
    averaged = torch.einsum("x,xws->ws", last[last > 0], after)
    before = constrained_beliefs(process, words)[:, -1] @ process.state_transitions
    torch.testing.assert_close(averaged, before, rtol=0, atol=1e-12)


def test_a_start_that_is_not_stationary_predicts_before_each_token():
    process = msp.Process(msp.processes.z1r().transitions, initial=[0.2, 0.5, 0.3])
    T, w = process.transitions, process.right_eigenvector
    S, word = T.sum(dim=0), [1, 0, 1]
    expected = process.initial @ S @ S @ S
    for s, token in enumerate(word):
        before = process.initial @ torch.linalg.matrix_power(S, s)
        alone = before @ T[token]
        expected = expected + (alone / (alone @ w) - before @ S) @ torch.linalg.matrix_power(S, 2 - s)
    torch.testing.assert_close(constrained_beliefs(process, [word])[0, -1], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("process", [msp.mess3(x=0.15, a=0.6), msp.processes.frdn()], ids=["mess3", "frdn"])
def test_bos_leaves_the_prior_and_changes_nothing_after_it(process):
    begun, words = msp.processes.with_bos(process), process.sample(20, 5, seed=0)
    bos = torch.full((20, 1), process.n_tokens)
    found = constrained_beliefs(begun, torch.cat([bos, words], dim=1))
    torch.testing.assert_close(found[:, 0, :-1], process.initial.expand(20, -1))
    torch.testing.assert_close(found[:, 1:, :-1], constrained_beliefs(process, words))
    assert (found[..., -1] == 0).all()
    with pytest.raises(ValueError, match=r"Word 0: token 0 never occurs at position 0 of .*_with_bos"):
        constrained_beliefs(begun, [[0, 1]])


def test_a_word_impossible_as_a_whole_is_not_refused_but_a_token_that_never_occurs_is():
    golden = msp.processes.golden_mean(p=0.5)
    assert constrained_beliefs(golden, "11").isfinite().all()
    never = torch.cat([golden.transitions, torch.zeros(1, 2, 2, dtype=torch.float64)])
    with pytest.raises(ValueError, match="Word 1: token 2 never occurs at position 1 of process"):
        constrained_beliefs(msp.Process(never), [[0, 1], [0, 2]])


def explained(process, longest):
    """R² of the beliefs after all words of up to `longest` tokens, each by its probability, affine in the rival's."""
    words = msp.words(process, n_ctx=longest).tokens
    rows = constrained_beliefs(process, words).flatten(0, 1).numpy()
    targets = msp.filter_beliefs(process, words).flatten(0, 1).numpy()
    weights = process.word_probabilities(words).repeat_interleave(longest).numpy()
    fitted = LinearRegression().fit(rows, targets, sample_weight=weights).predict(rows)
    spread = targets - np.average(targets, axis=0, weights=weights)
    return 1 - (weights @ (targets - fitted) ** 2).sum() / (weights @ spread**2).sum()


@pytest.mark.parametrize(
    ("process", "longest", "expected"),
    [
        # The figures computed elsewhere are of words of up to 9 tokens for Mess3, and of up to 10 for RRXOR.
        (msp.mess3(x=0.05, a=0.85), 9, 0.798),
        (msp.mess3(x=0.15, a=0.6), 9, 0.979),
        (msp.rrxor(), 10, 0.149),
    ],
    ids=["mess3(.05, .85)", "mess3(.15, .6)", "rrxor"],
)
def test_how_much_of_the_true_beliefs_they_explain(process, longest, expected):
    assert explained(process, longest) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize(
    ("process", "rates", "heads"),
    [
        (msp.mess3(x=0.05, a=0.85), [0.85], 1),
        (msp.mess3(x=0.15, a=0.6), [0.55], 1),
        (msp.mess3(x=0.45, a=0.6), [-0.35], 2),
        (msp.processes.golden_mean(p=0.5), [-0.5], 2),
        (msp.processes.z1r(), [-0.5 + 0.75**0.5 * 1j, -0.5 - 0.75**0.5 * 1j], 3),
        (msp.processes.coin(), [], 0),
        (msp.rrxor(), [], 0),  # What a token says of the phase is nothing; of the rest it is gone at the next step.
        (msp.processes.mixture([msp.processes.coin(p=0.1), msp.processes.coin(p=0.7)], [0.5, 0.5]), [1.0], 1),
        (msp.processes.with_bos(msp.mess3()), [0.85], 1),
        # The positive rate is the slowest: its pattern can carry the alternating ones.
        (msp.processes.product([msp.mess3(), msp.processes.golden_mean(p=0.5)]), [0.85, -0.5, -0.425], 3),
        # The negative rate is the slowest: no pattern of these two alone stays positive.
        (msp.processes.product([msp.mess3(x=0.25, a=0.6), msp.processes.golden_mean(p=0.5)]), [-0.5, 0.25, -0.125], 4),
    ],
    ids=lambda value: repr(value).partition(":")[0] if isinstance(value, msp.Process) else None,
)
def test_rates_and_heads(process, rates, heads):
    found = decay_rates(process)
    assert sorted(found.tolist(), key=str) == pytest.approx(sorted(map(complex, rates), key=str), abs=1e-9)
    assert attention_heads_needed(process) == heads


def test_rates_of_a_delay_are_steps_that_end():
    # A shift register of the last two fair bits, which shows the newest.
    shifts = torch.zeros(2, 4, 4, dtype=torch.float64)
    for old, new, drawn in [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)]:
        shifts[drawn, 2 * old + new, 2 * new + drawn] = 0.5
    register = msp.Process(shifts)
    # What is shown is held for one step more, and then lost: the defective eigenvalue 0 costs one head.
    assert decay_rates(register).abs().tolist() == pytest.approx([0.0], abs=1e-6)
    assert attention_heads_needed(register) == 1


@given(small)
def test_the_rates_span_every_decay_of_evidence(process):
    """Σ_m c(z) T^m combined with the coefficients of Π (T - ζ) vanishes after any first step."""
    rates, S = decay_rates(process), process.state_transitions
    occur = process.initial @ process.emissions > 0
    alone = (process.initial @ process.transitions)[occur]
    left = (alone / alone.sum(dim=1, keepdim=True) - process.initial) @ S
    residual, size = left.to(torch.complex128), float(left.norm())
    for rate in rates:
        residual = residual @ S.to(residual) - rate * residual
    assert float(residual.abs().max()) <= 1e-6 * max(size, 1e-3)
    eigenvalues = torch.linalg.eigvals(S)
    for rate in rates:
        assert float((eigenvalues - rate).abs().min()) < 1e-3
