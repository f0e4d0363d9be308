import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import msp_lens as msp
from tests import brute_force


@given(brute_force.random_processes())
def test_beliefs_are_posteriors_of_the_full_joint(process):
    table = brute_force.word_probabilities(process, 3)
    beliefs = msp.filter_beliefs(process, torch.tensor(list(table)))
    for word, belief in zip(table, beliefs, strict=True):
        for t in range(3):
            posterior = torch.tensor(brute_force.joint(process, word[: t + 1]), dtype=torch.float64)
            torch.testing.assert_close(belief[t], posterior / posterior.sum(), atol=1e-12, rtol=1e-9)


@given(brute_force.random_processes())
def test_next_token_probabilities_are_ratios_of_word_probabilities(process):
    table = brute_force.word_probabilities(process, 2)
    predicted = msp.next_token_probabilities(process, msp.filter_beliefs(process, torch.tensor(list(table))))[:, -1]
    for word, distribution in zip(table, predicted, strict=True):
        for token, probability in enumerate(distribution.tolist()):
            longer = sum(brute_force.joint(process, (*word, token)))
            assert probability == pytest.approx(longer / table[word])


def test_belief_is_held_after_the_token():
    z1r = msp.processes.z1r()
    beliefs = msp.filter_beliefs(z1r, torch.tensor([[1, 1]]))[0]
    torch.testing.assert_close(beliefs[0], torch.tensor([1 / 3, 0, 2 / 3], dtype=torch.float64))
    torch.testing.assert_close(beliefs[1], torch.tensor([1.0, 0, 0], dtype=torch.float64))


def test_impossible_words_are_refused_by_position():
    with pytest.raises(ValueError, match=r"Word 1, \[0, 0, 0\], is impossible for z1r: token 0 at position 2"):
        msp.filter_beliefs(msp.processes.z1r(), torch.tensor([[0, 1, 0], [0, 0, 0]]))


def test_tokens_outside_the_vocabulary_are_refused_by_position(mess3):
    with pytest.raises(ValueError, match=r"Token 3 at word 0, position 1 .*tokens are 0 to 2"):
        msp.filter_beliefs(mess3, torch.tensor([[0, 3]]))
    with pytest.raises(ValueError, match="Token -1"):
        mess3.word_probabilities(torch.tensor([[-1]]))


@pytest.mark.parametrize(
    ("beliefs", "error", "message"),
    [
        ([[0.5, 0.5, 0.5]], ValueError, r"beliefs holds \[0.5, 0.5, 0.5\], which is no belief.*sum to 1"),
        ([[1.2, -0.1, -0.1]], ValueError, "must be ≥ 0.*nearest_belief"),
        ([[float("nan")] * 3], ValueError, "without NaN"),
        ([0.5, 0.5], ValueError, r"shape \(2,\), but mess3 has 3 states"),
        ([[1j, 0, 0]], ValueError, "not complex ones"),
        ("A", TypeError, "beliefs='A': give real numbers"),
        (None, TypeError, "beliefs=None"),
    ],
)
def test_what_is_no_belief_predicts_nothing(mess3, beliefs, error, message):
    with pytest.raises(error, match=message):
        msp.next_token_probabilities(mess3, beliefs)
    if beliefs != [0.5, 0.5]:
        with pytest.raises(error, match=message):
            msp.beliefs.filter_from(mess3, beliefs, [[0]])
        with pytest.raises(error, match=message):
            msp.beliefs.continuations(mess3, beliefs, 2, generator=torch.Generator())


def test_beliefs_of_a_generalized_process_are_normalized_by_its_right_eigenvector():
    process = msp.processes.moon()
    beliefs = msp.filter_beliefs(process, process.sample(20, 5, seed=0))
    assert float(beliefs.min()) < -0.5
    assert msp.next_token_probabilities(process, beliefs).sum(dim=-1).flatten().tolist() == pytest.approx([1.0] * 100)
    with pytest.raises(ValueError, match="right_eigenvector is not 1"):
        msp.next_token_probabilities(process, beliefs * 2)


def test_what_is_impossible_has_probability_0_in_a_generalized_process_too():
    """Rounding leaves ±1e-17, whose logarithm made a training's regret NaN."""
    process = msp.processes.moon()
    tokens = process.sample(500, 9, seed=0)
    predicted = msp.next_token_probabilities(process, msp.filter_beliefs(process, tokens))
    assert (predicted[tokens == 0][:, 0] == 0).all(), "a 0 never follows a 0"
    assert float(predicted.min()) == 0
    torch.testing.assert_close(predicted, msp.filter_beliefs(process, tokens) @ process.emissions, atol=1e-12, rtol=0)


def test_beliefs_in_any_container_predict_the_same(mess3):
    beliefs = msp.filter_beliefs(mess3, "ABC")[0]
    expected = msp.next_token_probabilities(mess3, beliefs)
    for same in (beliefs.numpy(), beliefs.tolist(), list(beliefs), beliefs.clone().requires_grad_().detach()):
        assert torch.equal(msp.next_token_probabilities(mess3, same), expected)
    single = msp.next_token_probabilities(mess3, beliefs.float())
    assert single.dtype == torch.float64
    torch.testing.assert_close(single, expected, rtol=0, atol=1e-6)
    start = [mess3.initial.tolist()]
    torch.testing.assert_close(msp.beliefs.filter_from(mess3, start, "ABC")[0, 1:], beliefs)
    with pytest.raises(ValueError, match="1 beliefs for 2 words"):
        msp.beliefs.filter_from(mess3, start, ["ABC", "CBA"])


def step_by_step(process, tokens):
    """Bayes' rule, one token after another."""
    belief, found = process.initial.expand(len(tokens), -1), []
    for token in tokens.T:
        belief, _ = process.bayes_step(belief, token)
        found.append(belief)
    return torch.stack(found, dim=1)


@given(brute_force.random_processes(), st.integers(1, 3), st.integers(64, 300), st.integers(0, 5))
def test_long_words_are_filtered_in_stretches(process, n_words, length, seed):
    tokens = process.sample(n_words, length, seed=seed)
    torch.testing.assert_close(
        msp.filter_beliefs(process, tokens), step_by_step(process, tokens), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("rare", [1e-3, 1e-30, 1e-200])
def test_stretches_hold_what_is_very_unlikely(rare):
    """The states' evidence differs by more than a float64 can hold, and turns round in the middle."""
    emissions = torch.tensor([[1 - rare, rare], [0.5, 0.5]], dtype=torch.float64)
    stays = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64)
    process = msp.processes.from_moore(stays, emissions)
    tokens = torch.cat([torch.zeros(1, 100), torch.ones(1, 100), torch.zeros(1, 100)], dim=1).long()
    found = msp.filter_beliefs(process, tokens)
    torch.testing.assert_close(found, step_by_step(process, tokens), rtol=1e-9, atol=0)


@pytest.mark.parametrize("position", [0, 63, 64, 150, 199])
def test_an_impossible_token_in_a_long_word_is_named(position):
    process = msp.processes.golden_mean()
    tokens = torch.zeros(2, 200, dtype=torch.int64)
    tokens[1, max(0, position - 1) : position + 1] = 1
    if position == 0:
        tokens[1, 1] = 1
    with pytest.raises(ValueError, match=rf"Word 1, .*token 1 at position {max(1, position)} has probability 0"):
        msp.filter_beliefs(process, tokens)
