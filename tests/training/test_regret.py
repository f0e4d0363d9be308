import math
from typing import ClassVar

import pytest
import torch
from torch import nn

import msp_lens as msp
from msp_lens.models.symbol_reader import symbol_log_probabilities
from msp_lens.training import regret as regrets
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
    with pytest.raises(ValueError, match=r"3 symbols are 5 tokens.*context of 4"):
        msp.training.regret_by_position(msp.build_model(msp.ModelConfig(d_vocab=9, n_layers=1, n_ctx=4)), dataset)


@pytest.mark.parametrize(("symbols", "separator"), [([5, 3, 7], [8, 1]), ([5, [3, 4], 7], [])])
def test_regret_splits_into_the_alphabet_and_the_process(mess3, symbols, separator):
    """By the definition, from the model's logits after each prefix and the separator."""
    model = msp.build_model(msp.ModelConfig(d_vocab=9, n_layers=1, d_model=16, d_head=8, d_mlp=32, n_ctx=12), seed=1)
    token_map = msp.TokenMap(symbols, separator=separator)
    dataset = msp.words(mess3, n_ctx=3, token_map=token_map)
    whole, within = [0.0] * 3, [0.0] * 3
    for t in range(3):
        for prefix, probability in brute_force.word_probabilities(mess3, t + 1).items():
            read = [token for symbol in prefix for token in (*token_map.symbols[symbol], *separator)]
            with torch.no_grad():
                predicted = model(torch.tensor([read]))[0, -1].double().softmax(0)[[5, 3, 7]]
            for symbol in range(3):
                optimal = sum(brute_force.joint(mess3, (*prefix, symbol))) / probability
                whole[t] += probability * optimal * math.log(optimal / predicted[symbol])
                within[t] += probability * optimal * math.log(optimal / (predicted[symbol] / predicted.sum()))
    regret = msp.training.regret_by_position(model, dataset, batch_size=5)
    outside = msp.training.outside_by_position(model, dataset, batch_size=4)
    assert regret.tolist() == pytest.approx(whole, rel=1e-5)
    assert (regret - outside).tolist() == pytest.approx(within, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_large_vocabulary_is_compared_in_parts(dtype, monkeypatch):
    process = msp.processes.random_process(3, 40, seed=0)
    dataset = msp.words(process, n_ctx=4, n_words=25)
    logits = 3 * torch.randn(len(dataset), 4, 40, dtype=dtype, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(regrets, "_AT_ONCE", 7 * 40)
    optimal = msp.next_token_probabilities(process, dataset.beliefs)
    expected = (optimal * (optimal.log() - logits.double().log_softmax(-1))).sum(-1)
    answers = symbol_log_probabilities(logits.flatten(0, 1), torch.arange(40)).unflatten(0, (-1, 4))
    found, outside = regrets.batch_regret(answers, dataset, slice(0, len(dataset)))
    assert outside.abs().max() < 1e-12
    torch.testing.assert_close(found, dataset.word_weights @ expected, rtol=1e-12, atol=0)


def test_impossible_tokens_cost_nothing_and_missed_ones_everything():
    process = msp.processes.golden_mean(p=0.5)
    dataset = msp.data.all_words(process, 2)
    optimal = msp.next_token_probabilities(process, dataset.beliefs)
    everything, others = slice(0, len(dataset)), torch.full((len(dataset), 2, 1), -math.inf).double()
    right, wrong = (torch.cat([each.log(), others], dim=-1) for each in (optimal, optimal.flip(-1)))
    assert regrets.batch_regret(right, dataset, everything).abs().max() < 1e-12
    assert regrets.batch_regret(wrong, dataset, everything)[0].isinf().all()


def test_the_final_regret_of_a_large_vocabulary_visits_fewer_words():
    few = regrets.evaluation_words(msp.processes.random_process(2, 4000, seed=0), 10, seed=0)
    assert few.n_draws == 5_000
    assert regrets.evaluation_words(msp.mess3(), 10, seed=0).is_population


def test_a_large_vocabulary_is_drawn_a_few_steps_at_a_time():
    from msp_lens.training.batches import Batches

    small, large = (Batches(msp.processes.random_process(2, n, seed=0), 256, 10, seed=0) for n in (3, 1000))
    assert (small.steps_per_draw, large.steps_per_draw) == (50, 5)
