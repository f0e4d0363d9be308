import itertools
import math

import pytest
import torch
from hypothesis import given

import msp_lens as msp
from msp_lens.beliefs import entropy, kl_divergence
from tests import brute_force


def block_entropy(process, length):
    return -sum(p * math.log(p) for p in brute_force.word_probabilities(process, length).values())


@given(brute_force.random_processes())
def test_myopic_entropies_are_differences_of_block_entropies(process):
    blocks = [0.0, *(block_entropy(process, length) for length in (1, 2, 3))]
    expected = [after - before for before, after in itertools.pairwise(blocks)]
    assert msp.myopic_entropies(process, 3).tolist() == pytest.approx(expected, abs=1e-12)


def test_mess3_entropies(mess3):
    expected = [1.09861, 0.85772, 0.81336, 0.79812, 0.79474, 0.79378, 0.79354, 0.79348, 0.79346, 0.79346]
    assert msp.myopic_entropies(mess3, 10).tolist() == pytest.approx(expected, abs=5e-6)
    assert float(msp.optimal_losses(mess3, 10).mean()) == pytest.approx(0.802512, abs=5e-7)


def test_other_known_entropies():
    assert float(msp.optimal_losses(msp.rrxor(), 10).mean()) == pytest.approx(0.578185, abs=5e-7)
    # The golden mean process is Markov: its entropy rate of 2/3 bit is reached with one token's context.
    rate = msp.myopic_entropies(msp.golden_mean(p=0.5), 4)[1:]
    assert rate.tolist() == pytest.approx([2 / 3 * math.log(2)] * 3)
    assert msp.myopic_entropies(msp.mess3(x=0.15, a=0.6), 10)[-1].item() == pytest.approx(1.08889, abs=5e-6)


def test_entropies_need_a_length(mess3):
    with pytest.raises(ValueError, match="length=0"):
        msp.myopic_entropies(mess3, 0)


def test_kl_divergence_ignores_tokens_that_never_come():
    optimal = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64)
    log_predicted = torch.tensor([[math.log(0.25), math.log(0.75), -math.inf]], dtype=torch.float64)
    expected = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    assert kl_divergence(optimal, log_predicted).item() == pytest.approx(expected)
    assert kl_divergence(optimal, optimal.log()).item() == pytest.approx(0)
    assert entropy(optimal).item() == pytest.approx(math.log(2))
