"""Generalized processes: negative entries, probabilities all the same."""

import ast
import itertools
import re

import pytest
import torch
from scipy.stats import chisquare

import msp_lens as msp
from tests import brute_force


def rotation(p=0.5):
    """A renewal process whose hazard turns: probabilities p^n sin²(n/2) need negative entries in few dimensions."""
    cos, sin = torch.tensor(1.0, dtype=torch.float64).cos(), torch.tensor(1.0, dtype=torch.float64).sin()
    turn = torch.eye(3, dtype=torch.float64)
    turn[1:, 1:] = torch.stack([torch.stack([cos, -sin]), torch.stack([sin, cos])])
    ones = torch.ones(3, dtype=torch.float64)
    stay = p * turn
    stop = ones - stay @ ones
    # The vector before each run, with 1/2 of weight on the constant and -1/2 on the turning part.
    reset = torch.tensor([1.5, -0.25, -0.25], dtype=torch.float64)
    return torch.stack([torch.outer(stop, reset), stay])


@pytest.fixture(scope="module")
def process():
    return msp.Process(rotation(), generalized=True)


def test_the_two_eigenvectors_are_found(process):
    chain = process.state_transitions
    torch.testing.assert_close(chain @ process.right_eigenvector, process.right_eigenvector)
    torch.testing.assert_close(process.initial @ chain, process.initial)
    assert float(process.initial @ process.right_eigenvector) == pytest.approx(1)
    torch.testing.assert_close(process.right_eigenvector, torch.ones(3, dtype=torch.float64))
    assert process.is_generalized
    assert (process.initial < 0).any(), "a process with a negative belief was meant"


def test_word_probabilities_are_matrix_products_and_sum_to_1(process):
    for length in (1, 2, 5):
        table = brute_force.matrix_products(process, length)
        assert process.word_probabilities(torch.tensor(list(table))).tolist() == pytest.approx(
            list(table.values()), abs=1e-14
        )
        assert sum(table.values()) == pytest.approx(1, abs=1e-12)


def test_a_belief_times_the_emissions_predicts_the_next_token(process):
    table = brute_force.matrix_products(process, 3)
    beliefs = process.initial.expand(len(table), -1)
    for position in range(3):
        tokens = torch.tensor(list(table))[:, position]
        joint = torch.einsum("wi,wij->wj", beliefs, process.transitions[tokens])
        beliefs = joint / (joint @ process.right_eigenvector)[:, None]
    longer = brute_force.matrix_products(process, 4)
    for word, predicted in zip(table, beliefs @ process.emissions, strict=True):
        expected = [longer[(*word, token)] / table[word] for token in range(2)]
        assert predicted.tolist() == pytest.approx(expected, abs=1e-12)


def test_samples_have_the_word_frequencies(process, global_state):
    table = brute_force.matrix_products(process, 4)
    n = 40_000
    observed = brute_force.Counter(map(tuple, process.sample(n, 4, seed=5).tolist()))
    possible = {word: p for word, p in table.items() if p > 1e-12}
    assert set(observed) <= set(possible), "an impossible word was drawn"
    expected = [p * n for p in possible.values()]
    assert chisquare([observed[word] for word in possible], expected).pvalue > 1e-3


def test_the_scale_of_the_eigenvectors_does_not_matter(process):
    scaled = msp.Process(
        process.transitions, right_eigenvector=3 * process.right_eigenvector, initial=process.initial / 3
    )
    words = torch.tensor(list(itertools.product(range(2), repeat=4)))
    torch.testing.assert_close(scaled.word_probabilities(words), process.word_probabilities(words))
    assert torch.equal(scaled.sample(100, 5, seed=1), process.sample(100, 5, seed=1))
    assert msp.Process(
        process.transitions, right_eigenvector=3 * process.right_eigenvector
    ).stationary.sum().item() == (pytest.approx(1 / 3))


def test_an_ordinary_process_may_be_held_as_a_generalized_one(mess3):
    held = msp.Process(mess3.transitions, generalized=True)
    words = torch.tensor(list(itertools.product(range(3), repeat=4)))
    torch.testing.assert_close(held.word_probabilities(words), mess3.word_probabilities(words))
    assert held != mess3, "a generalized process has no hidden states: it isn't the same thing"
    assert mess3.right_eigenvector.tolist() == [1, 1, 1]
    assert (mess3.is_generalized, mess3.negligible) == (False, 0.0)


def test_impossible_words_have_probability_0_in_spite_of_rounding():
    golden = msp.processes.golden_mean(p=0.3).transitions
    basis = torch.tensor([[1.0, 2.0], [0.3, -1.7]], dtype=torch.float64)
    turned = msp.Process(basis @ golden @ torch.linalg.inv(basis), generalized=True)
    words = torch.tensor([[0, 1, 1], [1, 1, 0], [1, 0, 1]])
    assert turned.word_log_probabilities(words)[:2].tolist() == [-torch.inf, -torch.inf]
    torch.testing.assert_close(
        turned.word_probabilities(words), msp.processes.golden_mean(p=0.3).word_probabilities(words)
    )
    assert not ((turned.sample(5000, 4, seed=0).unfold(1, 2, 1) == 1).all(-1)).any()


def test_round_trip_is_exact(process):
    for copy in (msp.Process.from_dict(process.to_dict()), msp.Process.from_json(process.to_json())):
        assert copy == process
        assert copy.is_generalized
        for name in ("transitions", "initial", "right_eigenvector"):
            assert torch.equal(getattr(copy, name), getattr(process, name))


@pytest.mark.parametrize(
    ("transitions", "options", "message"),
    [
        ([[[0.5]], [[0.4]]], {}, r"no eigenvalue 1.*spectral radius is 0\.9: divide"),
        ([[[float("inf")]]], {}, r"transitions=.*without NaN and infinity"),
        ([[[1.0, 0], [0, 1]]], {}, "2 right eigenvectors"),
        ([[[1.0, 1], [0, 1]]], {}, "not simple"),
        ([[[1.5]], [[-0.5]]], {}, r"word \[1\] the probability -0\.5"),
        ([[[0.5]], [[0.5]]], {"right_eigenvector": [0.0]}, "w ≠ 0"),
        ([[[0.5, 0], [0, 0.5]], [[0.5, 0], [0, 0]]], {"right_eigenvector": [1.0, 1.0]}, r"off by 5\.0e-01"),
        ([[[0.5]], [[0.5]]], {"initial": [2.0]}, "is 2, not 1"),
        ([[[0.5]], [[0.5]]], {"initial": [float("nan")]}, "initial=.*without NaN and infinity"),
    ],
)
def test_what_is_no_process_is_refused(transitions, options, message):
    with pytest.raises(ValueError, match=message):
        msp.Process(transitions, generalized=True, **options)


def test_the_first_word_of_negative_probability_is_named():
    """All shorter words have a positive one."""
    matrices = rotation()
    matrices[0] += 0.3 * torch.outer(matrices[1].sum(dim=1), torch.tensor([-1.0, 1.0, 0.0], dtype=torch.float64))
    chain = matrices.sum(dim=0)
    balance = torch.cat([chain.T - torch.eye(3), torch.ones(1, 3, dtype=torch.float64)])
    initial = torch.linalg.lstsq(balance, torch.tensor([[0.0], [0], [0], [1]], dtype=torch.float64)).solution[:, 0]

    def probability(word):
        vector = initial
        for token in word:
            vector = vector @ matrices[token]
        return float(vector.sum())

    with pytest.raises(ValueError, match=r"gives the word \[.*\] the probability -0\.") as error:
        msp.Process(matrices, generalized=True)
    word = ast.literal_eval(re.findall(r"\[.*?\]", str(error.value))[0])
    assert probability(word) < -1e-9
    for length in range(1, len(word)):
        assert min(probability(shorter) for shorter in itertools.product(range(2), repeat=length)) > 0
