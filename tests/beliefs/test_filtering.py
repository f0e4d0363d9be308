import pytest
import torch
from hypothesis import given

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
