"""Ranks against the smallest dimension of the process, and noise against what a network cannot mean."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import msp_lens as msp
from msp_lens.inference.operators import eigenvalues_text, sorted_eigenvalues, spectral_operators
from msp_lens.inference.predictive_states import PredictiveRank, predictive_rank, predictive_states, stationarity_gap
from msp_lens.inference.word_probabilities import WordProbabilities, data_words, process_words
from msp_lens.processes.structure import minimal_dimension
from tests.inference.worlds import CATALOG, EVERYTHING


@pytest.mark.parametrize("name", EVERYTHING)
def test_the_rank_is_the_smallest_dimension_of_the_process(name):
    process, length = EVERYTHING[name]
    words = process_words(process, length)
    rank = predictive_rank(words, n_samples=20)
    assert rank.rank == minimal_dimension(process)
    # A few samples of a few contexts may miss a direction, and none finds one too many.
    assert int(rank.samples.argmax()) == rank.rank == len(rank.samples) - 1
    assert abs(stationarity_gap(words)) < 1e-12
    assert rank.gap > 1e6


def test_predictive_states_are_quotients():
    process = msp.processes.even(p=0.3)
    states = predictive_states(process_words(process, 4), 2, 1)
    # Contexts 0, 1, 00, 01, 10, 11; futures 0 and 1.
    for row, context in enumerate(["0", "1", "00", "01", "10", "11"]):
        whole = process.word_probabilities([context])
        for token in "01":
            expected = process.word_probabilities([context + token]) / whole
            assert float(states.futures[row, int(token)]) == pytest.approx(float(expected), abs=1e-14)
            two = process.word_probabilities([f"{context}1{token}"]) / whole
            assert float(states.steps[1, row, int(token)]) == pytest.approx(float(two), abs=1e-14)
        assert float(states.weights[row]) == pytest.approx(float(whole), abs=1e-14)


@given(st.integers(2, 4), st.integers(2, 3), st.integers(0, 10_000))
def test_operators_reproduce_random_processes(n_states, n_tokens, seed):
    process = msp.processes.random_process(n_states, n_tokens, seed=seed)
    words = process_words(process, {2: 10, 3: 7}[n_tokens])
    rank = predictive_rank(words, n_samples=5)
    relative = rank.singular_values / rank.singular_values[0]
    # Directions near rounding are lost to any method in floating point.
    assume(minimal_dimension(process) == n_states and relative[n_states - 1] > 1e-5)
    assert rank.rank == n_states
    operators = spectral_operators(words, n_states)
    assert operators.word_error < 1e-9
    # Longer words, too, than it was made from.
    longer = process.sample(50, 15, seed=0)
    expected = process.word_probabilities(longer)
    torch.testing.assert_close(operators.word_probabilities(longer), expected, rtol=0, atol=1e-9)
    expected = sorted_eigenvalues(process.state_transitions)
    assert (operators.eigenvalues - expected).abs().max() < 1e-4


@pytest.mark.parametrize("name", EVERYTHING)
def test_operators_reproduce_all_words(name):
    process, length = EVERYTHING[name]
    operators = spectral_operators(process_words(process, length), minimal_dimension(process))
    assert operators.word_error < 1e-9
    made = operators.to_process()
    assert made.is_generalized
    longer = process.sample(100, length + 4, seed=0)
    expected = process.word_probabilities(longer)
    torch.testing.assert_close(made.word_probabilities(longer), expected, rtol=0, atol=1e-9)


def test_eigenvalues_of_a_period():
    operators = spectral_operators(process_words(CATALOG["z1r"][0], 8), 3)
    assert eigenvalues_text(operators.eigenvalues) == "1.000, -0.500 ± 0.866i"


def test_words_too_short_for_the_rank_say_so():
    long, short = (predictive_rank(process_words(msp.rrxor(), n), n_samples=5) for n in (10, 5))
    assert not long.is_growing
    assert short.rank < 5
    assert short.is_growing
    assert "at least" in repr(short)


def test_noise_hides_what_it_could_have_made():
    words = process_words(msp.mess3(x=0.05, a=0.85), 7)
    generator = torch.Generator().manual_seed(0)
    factors = 1 + 0.05 * torch.randn(len(words.tokens), generator=generator, dtype=torch.float64)
    noisy = words.probabilities * factors
    found = predictive_rank(WordProbabilities(words.tokens, noisy / noisy.sum(), 3, True))
    assert found.rank == 3
    # All of the many further directions are noise, and are seen to be.
    assert found.singular_values[3] > 1e-3
    assert found.noise > found.singular_values[3]
    assert found.interval == (3, 3)


def test_the_noise_of_data_is_what_its_halves_disagree_by():
    process = msp.processes.golden_mean(p=0.5)
    noise = []
    for n_words in (200, 20_000):
        rank = predictive_rank(data_words(process.sample(n_words, 12, seed=1), 6, n_tokens=2))
        assert rank.rank == 2
        noise.append(rank.noise)
    # A hundred times as many: a tenth of the noise.
    assert noise[0] / noise[1] == pytest.approx(10, rel=0.8)


def test_the_interval_is_of_the_middle_samples():
    samples = torch.tensor([0, 0, 2, 90, 8])
    sizes = torch.tensor([1.0, 0.5, 0.1, 0.01], dtype=torch.float64)
    rank = PredictiveRank(sizes, 0.02, 3, samples, False, 3, 3, 10)
    assert rank.interval == (3, 4)
    assert rank.gap == pytest.approx(5)
    assert repr(rank).startswith("PredictiveRank(3, 3 to 4 over samples of contexts: singular values 1, 0.5, 0.1, 0.01")


def test_a_network_that_depends_on_the_position_has_a_gap():
    first, later = process_words(msp.processes.coin(p=0.5), 2), process_words(msp.processes.coin(p=0.1), 2)
    tokens = torch.cartesian_prod(*[torch.arange(2)] * 2)
    probabilities = first.part(0, 1).probabilities[tokens[:, 0]] * later.part(0, 1).probabilities[tokens[:, 1]]
    p, q = first.part(0, 1).probabilities, later.part(0, 1).probabilities
    assert (p - q).abs().max() == pytest.approx(0.4)
    mean = (p + q) / 2
    expected = float((p * (p / mean).log()).sum() + (q * (q / mean).log()).sum()) / 2
    assert stationarity_gap(WordProbabilities(tokens, probabilities, 2, True)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("length", "dimension", "message"), [(2, 1, "too short"), (4, 9, "dimension=9: there are only 6 contexts")]
)
def test_bad_input(length, dimension, message):
    words = process_words(msp.processes.coin(), length)
    with pytest.raises(ValueError, match=message):
        spectral_operators(words, dimension)
