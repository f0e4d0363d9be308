"""Learning curves against counts of coins, closed forms, and words enumerated one by one."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom

import msp_lens as msp
from msp_lens.beliefs import learning_curve
from msp_lens.processes import coin, coins, mixture
from tests import brute_force


def binary_entropy(q):
    return -(q * np.log(q) + (1 - q) * np.log1p(-q))


def by_counts(n_coins, length):
    """h_ℓ of coins: the count k of ℓ-1 tokens is binomial for each coin, and predicts with their mean."""
    biases = np.arange(1, n_coins + 1) / (n_coins + 1)
    found = []
    for seen in range(length):
        joint = binom.pmf(np.arange(seen + 1)[:, None], seen, biases) / n_coins
        counted = joint.sum(axis=1)
        found.append(counted @ binary_entropy(joint @ biases / counted))
    return np.array(found), binary_entropy(biases).mean()


def of_infinitely_many_coins(length):
    """log(ℓ+1) - 2 log(1¹ 2² … ℓ^ℓ) / (ℓ (ℓ+1)) for each ℓ: the mean entropy of Laplace's (k+1)/(ℓ+1)."""
    steps = np.arange(1, length + 1)
    return np.log(steps + 1) - 2 * (steps * np.log(steps)).cumsum() / (steps * (steps + 1))


@pytest.mark.parametrize("n_coins", [1, 2, 7, 60])
def test_coins_are_learned_as_their_counts_tell(n_coins):
    curve, (expected, known) = learning_curve(coins(n_coins), 40), by_counts(n_coins, 40)
    np.testing.assert_allclose(curve.entropies, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(curve.oracle, known, rtol=0, atol=1e-12)
    np.testing.assert_allclose(curve.excess, expected - known, rtol=0, atol=1e-12)


def test_ever_more_coins_are_learned_as_a_parameter_is():
    """Their excess tends to that of a uniform prior, with an error of order 1/N, and that to 1/(2ℓ)."""
    length = 30
    expected = of_infinitely_many_coins(length) - 0.5
    coarse, fine = (learning_curve(coins(n), length).excess.numpy() for n in (100, 200))
    # N coins cost 1/(2ℓN) less than all biases do: the priors differ by their ends.
    np.testing.assert_allclose(expected - fine, 1 / (2 * 200 * np.arange(1, length + 1)), rtol=0.1)
    np.testing.assert_allclose(2 * fine - coarse, expected, rtol=0, atol=1e-4)
    steps, log_glaisher = np.arange(2, 2_000), 0.2487544770337843
    difference = of_infinitely_many_coins(1_999)[1:] - 0.5 - 1 / (2 * steps)
    derived = -(np.log(steps) / 6 + 2 * log_glaisher) / steps**2
    assert (np.abs(difference - derived) < (1 + np.log(steps)) / steps**3).all()
    # What Laplace's rule loses after ℓ - 1 tokens is what one who knows which of ℓ coins it is must lose.
    assert of_infinitely_many_coins(12)[-1] == pytest.approx(float(learning_curve(coins(12), 1).oracle[0]))


def test_a_few_coins_are_soon_known():
    excess = learning_curve(coins(3), 300).excess
    assert float(excess[-1]) < 1e-3 / (2 * 300)
    assert float(excess.sum()) == pytest.approx(math.log(3), abs=1e-4)


def test_any_mixture_against_enumerated_words():
    parts, weights = [msp.processes.golden_mean(p=0.4), msp.processes.z1r(), coin(p=0.3)], [0.2, 0.5, 0.3]
    mixed = mixture(parts, weights)
    curve = learning_curve(mixed, 4)

    def block_entropy(process, length):
        return (
            sum(-p * math.log(p) for p in brute_force.word_probabilities(process, length).values()) if length else 0.0
        )

    for length in range(1, 5):
        expected = [block_entropy(each, length) - block_entropy(each, length - 1) for each in (mixed, *parts)]
        assert float(curve.entropies[length - 1]) == pytest.approx(expected[0], abs=1e-12)
        known = sum(weight * each for weight, each in zip(weights, expected[1:], strict=True))
        assert float(curve.oracle[length - 1]) == pytest.approx(known, abs=1e-12)
    assert curve.limit is None
    # All that words of 4 tokens tell of the component: the mutual information, from their posteriors.
    words = torch.tensor(list(brute_force.word_probabilities(mixed, 4)))
    posterior = mixed.component_beliefs(msp.filter_beliefs(mixed, words)[:, -1])
    left = mixed.word_probabilities(words) @ msp.beliefs.entropy(posterior)
    assert float(curve.excess.sum()) == pytest.approx(float(msp.beliefs.entropy(mixed.weights) - left), abs=1e-12)


def test_what_a_curve_shows():
    curve = learning_curve(coins(9), 12)
    table = curve.to_dataframe()
    assert list(table.columns) == ["h, nats", "oracle", "excess", "1/(2ℓ)"]
    assert (table.index[0], table.index.name, len(table)) == (1, "token ℓ", 12)
    assert table["1/(2ℓ)"].iloc[4] == pytest.approx(0.1)
    assert f"{float(curve.excess.sum()):.4f} nats in 12 tokens" in curve.summary()[0]
    assert "2.1972 nats in all" in " ".join(repr(curve).split())
    left, right = curve.plot().axes
    assert np.asarray(left.lines[0].get_ydata()).tolist() == curve.entropies.tolist()
    np.testing.assert_allclose(right.lines[1].get_ydata(), table["1/(2ℓ)"])
    assert len(learning_curve(mixture([coin(p=0.2), msp.mess3()], [0.5, 0.5]), 3).plot(theme="dark").axes[1].lines) == 1
    assert curve == learning_curve(coins(9), 12)


def test_repr_of_many_coins_is_short():
    assert repr(coins(100)) == (
        "coins(0.01 coin(p=0.00990099), 0.01 coin(p=0.019802), … 97 more …, 0.01 coin(p=0.990099)): "
        "100 states, 2 tokens"
    )


def test_too_many_beliefs_are_refused():
    with pytest.raises(ValueError, match="more than 100 different beliefs"):
        learning_curve(mixture([msp.mess3(), coin(p=0.5)], [0.5, 0.5]), 9, max_level=100)
