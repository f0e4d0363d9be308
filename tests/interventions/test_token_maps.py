"""Experiments on models that read symbols through a vocabulary of their own."""

import pandas as pd
import pytest
import torch

import msp_lens as msp
from tests.interventions.experiments import EXPERIMENTS

SIZES = {"n_layers": 2, "d_model": 16, "d_head": 8, "d_mlp": 32, "n_ctx": 5}
RENAMED = msp.TokenMap([5, 3, 7])


def in_double(model):
    return model.to(torch.float64)


@pytest.fixture(scope="module")
def small():
    return in_double(msp.build_model(msp.ModelConfig(d_vocab=3, **SIZES), seed=1))


@pytest.fixture(scope="module")
def large(small):
    """The same network with six more tokens, which it never predicts, and its own three under other numbers."""
    model = in_double(msp.build_model(msp.ModelConfig(d_vocab=9, **SIZES), seed=2))
    own, state = small.state_dict(), model.state_dict()
    for name, values in own.items():
        if values.shape == state[name].shape:
            state[name] = values
            continue
        (axis,) = [k for k, (a, b) in enumerate(zip(values.shape, state[name].shape, strict=True)) if a != b]
        state[name].index_copy_(axis, torch.tensor([5, 3, 7]), values)
        if values.ndim == 1:
            # The bias of the unembedding.
            state[name].index_fill_(0, torch.tensor([0, 1, 2, 4, 6, 8]), -1e4)
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_numbers_are_those_of_the_same_network_without_a_map(name, small, large, mess3):
    plain = msp.words(mess3, n_ctx=5)
    mapped = msp.words(mess3, n_ctx=5, token_map=RENAMED)
    expected = EXPERIMENTS[name](
        small, plain, probes=msp.probe(small, plain, controls=False, progress=False), n_words=40
    )
    report = msp.probe(large, mapped, controls=False, progress=False)
    found = EXPERIMENTS[name](large, mapped, probes=report, n_words=40)
    pd.testing.assert_frame_equal(found.table, expected.table, rtol=1e-7, atol=1e-9)
    assert found.provenance["token_map"] == RENAMED.to_dict()
    # The probes know the map, too.
    again = EXPERIMENTS[name](large, mess3, probes=report, n_words=40)
    assert again.provenance["token_map"] == RENAMED.to_dict()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_separators_prompts_and_symbols_of_several_tokens(name, mess3):
    model = msp.build_model(msp.ModelConfig(d_vocab=9, **SIZES | {"n_ctx": 16}), seed=1)
    spaced = msp.TokenMap([(5, 1), 3, 7], bos=0, prompt=(2,), separator=(8,), include_prior=True)
    data = msp.words(mess3, n_ctx=4, token_map=spaced)
    report = msp.probe(model, data, solver="ridge", controls=False, progress=False)
    found = EXPERIMENTS[name](model, data, probes=report, n_words=20)
    assert found.provenance["token_map"] == spaced.to_dict()
    assert len(found.table) > 0


def test_probes_of_another_map_are_refused(large, mess3):
    report = msp.probe(large, msp.words(mess3, n_ctx=5, token_map=RENAMED), controls=False, progress=False)
    other = msp.words(mess3, n_ctx=5, token_map=msp.TokenMap([5, 3, 8]))
    with pytest.raises(ValueError, match="give a dataset with the probes' token map"):
        msp.intervene(large, other, probes=report)


def test_an_edit_is_seen_by_the_prediction_after_the_separator(mess3):
    """By hand: the hook at the symbol's last token, the logits after the separator."""
    model = in_double(msp.build_model(msp.ModelConfig(d_vocab=9, **SIZES | {"n_ctx": 16}), seed=1))
    spaced = msp.TokenMap([5, 3, 7], bos=0, separator=(8,))
    data = msp.words(mess3, n_ctx=4, token_map=spaced)
    report = msp.probe(model, data, solver="ridge", controls=False, progress=False)
    target = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    found = msp.intervene(
        model, data, probes=report["0_post"], targets={"given": target}, positions=2, n_words=10, edits="steer"
    )
    generator = torch.Generator().manual_seed(0)
    words = mess3.sample(10, 3, generator=generator)
    optimum = msp.next_token_probabilities(mess3, target.expand(10, -1))
    tokens = torch.tensor(
        [[0, *(token for x in word for token in (spaced.symbols[x][0], 8))] for word in words.tolist()]
    )
    with report["0_post"].steer(model, target, position=5):
        predicted = model(tokens)[:, -1].detach().double().log_softmax(dim=-1)[:, [5, 3, 7]]
    among = predicted.log_softmax(dim=1)
    within = float((optimum * (optimum.log() - among)).sum(dim=1).mean())
    expected = float((optimum * (optimum.log() - predicted)).sum(dim=1).mean())
    steered = found.select(edit="steer")
    assert steered["kl_to_target"] == pytest.approx(expected, rel=1e-9)
    assert steered["kl_to_target"] - steered["outside"] == pytest.approx(within, rel=1e-9)
    assert any("other tokens than symbols" in note for note in found.notes)
