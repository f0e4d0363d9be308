import math
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import nn

import msp_lens as msp
from tests import brute_force


def test_regret_is_the_expected_kl_by_enumeration(small_model, mess3):
    length = 3
    dataset = msp.data.all_words(mess3, length)
    expected = [0.0] * length
    for t in range(length):
        for prefix, probability in brute_force.word_probabilities(mess3, t + 1).items():
            with torch.no_grad():
                predicted = small_model(torch.tensor([prefix]))[0, -1].double().softmax(0).tolist()
            for token in range(3):
                optimal = sum(brute_force.joint(mess3, (*prefix, token))) / probability
                expected[t] += probability * optimal * math.log(optimal / predicted[token])
    assert msp.training.regret_by_position(small_model, dataset).tolist() == pytest.approx(expected, rel=1e-5)


def test_regret_of_the_published_model(published_model, mess3):
    regret = msp.training.regret_by_position(published_model, msp.data.all_words(mess3, 10))
    assert float(regret.mean()) == pytest.approx(9.3e-5, abs=5e-7)


class OptimalObserver(nn.Module):
    """Predicts as the Bayesian filter does, over a vocabulary with two tokens to spare."""

    hook_dict: ClassVar[dict] = {}

    def __init__(self, process):
        super().__init__()
        self.process = process
        self.scale = nn.Parameter(torch.ones(()))

    def hooks(self, fwd_hooks):
        return torch.no_grad()

    def forward(self, tokens):
        predicted = msp.next_token_probabilities(self.process, msp.filter_beliefs(self.process, tokens))
        spare = torch.zeros(*predicted.shape[:2], 2, dtype=predicted.dtype)
        return torch.cat([predicted, spare], dim=-1).log()


def test_the_optimal_observer_has_none():
    z1r = msp.processes.z1r()
    regret = msp.training.regret_by_position(OptimalObserver(z1r), msp.data.all_words(z1r, 6))
    assert regret.abs().max() < 1e-12


def test_models_that_do_not_fit_are_refused(small_model, mess3):
    with pytest.raises(ValueError, match="n_ctx=6 is longer"):
        msp.training.regret_by_position(small_model, msp.data.all_words(mess3, 6))


def test_words_are_read_through_the_token_map(mess3):
    model = msp.build_model(msp.ModelConfig(d_vocab=9, n_layers=1, d_model=16, d_head=8, d_mlp=32, n_ctx=6), seed=1)
    dataset = msp.words(mess3, n_ctx=3, token_map=msp.TokenMap([5, 3, 7], bos=0, prompt=[2]))
    expected = [0.0] * 3
    for t in range(3):
        for prefix, probability in brute_force.word_probabilities(mess3, t + 1).items():
            with torch.no_grad():
                read = torch.tensor([[0, 2, *((5, 3, 7)[symbol] for symbol in prefix)]])
                predicted = model(read)[0, -1].double().softmax(0)[[5, 3, 7]].tolist()
            for symbol in range(3):
                optimal = sum(brute_force.joint(mess3, (*prefix, symbol))) / probability
                expected[t] += probability * optimal * math.log(optimal / predicted[symbol])
    regret = msp.training.regret_by_position(model, dataset, batch_size=5)
    assert regret.tolist() == pytest.approx(expected, rel=1e-5)
    probed = msp.probe(model, dataset, sites="0_post", controls=False, progress=False)
    torch.testing.assert_close(probed.regret, regret)
    for symbols, separator in (([5, 3, 7], [8]), ([5, [3, 4], 7], [])):
        spaced = replace(dataset, token_map=msp.TokenMap(symbols, separator=separator))
        with pytest.raises(ValueError, match="symbols of one token and no separator"):
            msp.training.regret_by_position(model, spaced)
    with pytest.raises(ValueError, match=r"3 symbols are 5 tokens.*context of 4"):
        msp.training.regret_by_position(msp.build_model(msp.ModelConfig(d_vocab=9, n_layers=1, n_ctx=4)), dataset)
