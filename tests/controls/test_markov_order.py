"""The order-k Markov approximation, against enumeration of words."""

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
import torch

import msp_lens as msp
from msp_lens.controls import markov_beliefs, markov_regret, mean_beliefs

WORLDS = pytest.mark.parametrize(
    "process", [msp.mess3(), msp.processes.bloch_walk(), msp.processes.moon()], ids=lambda process: process.name
)


@WORLDS
@pytest.mark.parametrize("order", [1, 3])
def test_beliefs_are_what_the_last_tokens_say(process, order):
    dataset = msp.words(process, n_ctx=4)
    states = list(itertools.product(range(process.n_tokens), repeat=order))
    markov, means = markov_beliefs(dataset, order), mean_beliefs(dataset, order)
    weights, sums = dataset.prefix_weights("probability"), defaultdict(lambda: np.zeros(1 + process.n_states))
    prefixes = {}
    for word, place in dataset.is_first.nonzero().tolist():
        prefixes[int(dataset.prefix_ids[word, place])] = tuple(dataset.tokens[word, : place + 1].tolist())
    for prefix, seen in prefixes.items():
        # Of all states that end in what was seen of the last tokens, by their probabilities.
        ends = [state for state in states if state[order - len(seen[-order:]) :] == seen[-order:]]
        shares = process.word_log_probabilities(torch.tensor(ends)).exp()
        expected = dict(zip(ends, (shares / shares.sum()).tolist(), strict=True))
        assert markov[prefix].tolist() == pytest.approx([expected.get(each, 0.0) for each in states])
        belief = dataset.prefix_beliefs[prefix].numpy()
        sums[len(seen), seen[-order:]] += float(weights[prefix]) * np.array([1.0, *belief])
    for prefix, seen in prefixes.items():
        total = sums[len(seen), seen[-order:]]
        np.testing.assert_allclose(means[prefix], total[1:] / total[0], atol=1e-12)


@WORLDS
def test_regret_is_that_of_the_best_predictor_from_the_last_tokens(process):
    """The loss of predicting from the last two tokens, above that of all tokens, word by word."""
    n_ctx, order = 4, 2
    words = torch.cartesian_prod(*[torch.arange(process.n_tokens)] * (n_ctx + 1))
    probabilities = process.word_log_probabilities(words).exp()
    losses = np.zeros((2, n_ctx))
    for place in range(1, n_ctx + 1):
        for kind, first in enumerate((max(0, place - order), 0)):
            joint, past = defaultdict(float), defaultdict(float)
            for word, share in zip(words.tolist(), probabilities.tolist(), strict=True):
                joint[tuple(word[first : place + 1])] += share
                past[tuple(word[first:place])] += share
            terms = (share * math.log(share / past[key[:-1]]) for key, share in joint.items() if share > 1e-14)
            losses[kind, place - 1] = -sum(terms)
    np.testing.assert_allclose(markov_regret(process, order, n_ctx), losses[0] - losses[1], atol=1e-6)


def test_a_state_that_a_token_ends_in_is_its_belief():
    """A golden mean's last token decides its state, so order 1 is exact, and higher orders say the same."""
    process = msp.processes.golden_mean()
    dataset = msp.words(process, n_ctx=5)
    for order in (1, 2):
        torch.testing.assert_close(mean_beliefs(dataset, order), dataset.prefix_beliefs)
    assert float(markov_regret(process, 1, 5).abs().max()) < 1e-9


def test_too_many_states_are_refused():
    with pytest.raises((ValueError, MemoryError), match="Beliefs over 1,"):
        markov_beliefs(msp.words(msp.processes.bloch_walk(), n_ctx=3), 15)
