"""Word probabilities against sums over everything: of processes, of networks, of data."""

import itertools
import math

import pytest
import torch

import msp_lens as msp
from msp_lens.inference.predictor import network_predictor
from msp_lens.inference.word_probabilities import data_words, network_words, process_words, sampled_from_network
from tests.hooked_models import Observer, build

MESS3 = msp.mess3(x=0.05, a=0.85)


def test_all_words_of_a_process():
    process = msp.processes.even(p=0.3)
    words = process_words(process, 5)
    expected = {
        word: float(process.initial @ torch.linalg.multi_dot([process.transitions[x] for x in word]).sum(dim=1))
        for word in itertools.product(range(2), repeat=5)
    }
    found = dict(zip(map(tuple, words.tokens.tolist()), words.probabilities.tolist(), strict=True))
    assert found == pytest.approx({word: p for word, p in expected.items() if p > 0}, abs=1e-14)
    assert words.is_population


def test_parts_of_words_are_the_words_of_that_length():
    words = process_words(MESS3, 5)
    for start, stop in ((0, 3), (1, 4), (2, 5)):
        part = words.part(start, stop)
        # A stationary process says the same at every place.
        torch.testing.assert_close(part.probabilities, MESS3.word_probabilities(part.tokens), rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", ["hooked transformer", "bridge", "own"])
def test_all_words_of_a_network(kind):
    if kind not in ("bridge", "own") and not msp.models.build.has_hooked_transformer():
        pytest.skip("TransformerLens 4 has no HookedTransformer")
    model, first = build(kind), [0.5, 0.2, 0.1, 0.1, 0.1]
    predictor = network_predictor(model, token_map=msp.TokenMap.identity(5), n_ctx=3, first=first)
    words = network_words(predictor, 3)
    assert len(words.tokens) == 125
    assert float(words.probabilities.sum()) == pytest.approx(1, abs=1e-12)
    with torch.no_grad():
        logits = model(torch.tensor([[3, 1]]))[0].double().log_softmax(dim=1)
    expected = 0.1 * math.exp(logits[0, 1] + logits[1, 4])
    (place,) = (words.tokens == torch.tensor([3, 1, 4])).all(dim=1).nonzero()
    assert float(words.probabilities[place]) == pytest.approx(expected, rel=1e-6)


def test_a_network_without_a_first_token_is_taken_to_be_stationary():
    process = msp.processes.random_process(3, 3, seed=4)
    token_map = msp.TokenMap.identity(3)
    predictor = network_predictor(Observer(process), token_map=token_map, n_ctx=5)
    # The observer knows where words begin; its first token is inferred from what follows others.
    torch.testing.assert_close(predictor.first, process.initial @ process.emissions, rtol=0, atol=1e-7)
    assert "stationary" in predictor.notes[0]
    words = network_words(predictor, 4)
    torch.testing.assert_close(words.probabilities, process.word_probabilities(words.tokens), rtol=0, atol=1e-7)


def test_a_network_with_a_first_token_says_what_comes_first():
    model = msp.build_model(msp.ModelConfig(d_vocab=4, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=6), seed=3)
    token_map = msp.TokenMap((2, 0), bos=3)
    predictor = network_predictor(model, token_map=token_map)
    assert predictor.longest == 5
    with torch.no_grad():
        logits = model(torch.tensor([[3, 0, 2]]))[0].double()
    expected = [logits[0, [2, 0]].softmax(dim=0), logits[1, [2, 0]].softmax(dim=0), logits[2, [2, 0]].softmax(dim=0)]
    found = predictor.along(torch.tensor([[1, 0]]))[0]
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-6)
    # The other tokens of its vocabulary get some of its probability.
    assert any("no symbols" in note for note in predictor.notes)


def test_words_are_drawn_as_the_network_predicts():
    predictor = network_predictor(Observer(MESS3), token_map=msp.TokenMap.identity(3), n_ctx=4)
    drawn = sampled_from_network(predictor, 40_000, 3, seed=1)
    exact = process_words(MESS3, 3)
    codes = torch.bincount(drawn @ torch.tensor([9, 3, 1]), minlength=27) / 40_000
    # Four standard errors.
    assert (codes - exact.probabilities).abs().max() < 4 * math.sqrt(0.25 / 40_000)
    sampled = network_words(predictor, 4, max_words=50, seed=1)
    assert not sampled.is_population
    assert len(sampled.tokens) <= 50


def test_a_network_reads_symbols_of_several_tokens_with_separators():
    model, token_map = build("bridge"), msp.TokenMap(symbols=((3, 2), (1,)), bos=0, separator=(4,))
    predictor = network_predictor(model, token_map=token_map, n_ctx=2)
    found = predictor.along(torch.tensor([[0, 1]]))[0]
    for read, probabilities in zip(([0], [0, 3, 2, 4], [0, 3, 2, 4, 1, 4]), found, strict=True):
        expected = model(torch.tensor([read]))[0, -1].detach().double().softmax(dim=0)[[3, 1]]
        torch.testing.assert_close(probabilities, expected / expected.sum(), rtol=0, atol=1e-6)
    assert "went to tokens that are no symbols" in predictor.notes[-1]


def test_words_of_data_are_counted_at_every_place():
    words = data_words([[0, 1, 1, 0, 1]], 2, n_tokens=2)
    assert words.tokens.tolist() == [[0, 1], [1, 0], [1, 1]]
    assert words.probabilities.tolist() == [0.5, 0.25, 0.25]
    assert words.n_seen == 5
    first, second = words.halves
    assert first.tokens.tolist() == [[0, 1], [1, 1]]
    assert second.tokens.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: network_predictor(Observer(MESS3)), r"how many tokens it has \(cfg.d_vocab\): give token_map="),
        (
            lambda: network_predictor(build("bridge"), token_map=msp.TokenMap([[0, 1], [0, 3]])),
            "both begin with token 0",
        ),
        (lambda: network_predictor(build("bridge"), n_ctx=9), "n_ctx=9 is longer than the model's context of 8"),
        (lambda: network_predictor(build("bridge"), first=[0.5, 0.5]), "first has shape"),
        (lambda: network_words(network_predictor(build("bridge")), 10), "at most 9 tokens"),
        (lambda: process_words(MESS3, 1), "length=1: give at least 2"),
        (lambda: data_words([[0, 1]], 3), "hold no two words"),
        (lambda: data_words([[0, 2, 1]], 2, n_tokens=2), "give numbers from 0 to 1"),
    ],
)
def test_bad_input(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()
