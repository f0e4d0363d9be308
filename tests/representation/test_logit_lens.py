"""The logit lens is TransformerLens's own; what it says of beliefs is what the probes read."""

import math

import pytest
import torch

import msp_lens as msp
from msp_lens.beliefs.filtering import next_token_probabilities
from msp_lens.beliefs.information import kl_divergence
from msp_lens.representation import LogitLens, logit_lens

CONFIG = msp.ModelConfig(d_vocab=3, n_layers=2, d_model=16, d_head=8, d_mlp=16, n_ctx=4)


@pytest.fixture(scope="module")
def probed(mess3):
    model = msp.build_model(CONFIG, seed=0)
    return model, msp.probe(model, mess3, controls=False, progress=False)


def test_it_is_that_of_transformer_lens(probed, mess3):
    """`accumulated_resid` with the final LayerNorm, and the unembedding, on every word."""
    model, report = probed
    dataset = msp.words(mess3, n_ctx=4)
    found = logit_lens(model, mess3, probes=report, batch_size=7)
    _, cache = model.run_with_cache(dataset.tokens)
    residuals, labels = cache.accumulated_resid(apply_ln=True, return_labels=True)
    assert labels == ["0_pre", "1_pre", "final_post"]
    optimal = next_token_probabilities(mess3, dataset.beliefs)
    for layer, residual in zip(found.layers, residuals, strict=True):
        predicted = model.unembed(residual).detach().double().log_softmax(dim=-1)
        expected = (dataset.word_weights @ kl_divergence(optimal, predicted)).mean()
        assert layer.lens == pytest.approx(float(expected), rel=1e-5)
    assert [layer.site for layer in found.layers] == ["0_pre", "0_post", "1_post"]
    assert found.layers[-1].lens == pytest.approx(found.model) == pytest.approx(float(report.regret.mean()), rel=1e-5)
    assert model.hook_dict["blocks.1.hook_resid_post"].fwd_hooks == []


def test_beliefs_are_read_by_the_last_probe_and_by_each_sites_own(probed, mess3):
    model, report = probed
    dataset = msp.words(mess3, n_ctx=4)
    found = logit_lens(model, dataset, probes=report)
    last = report["1_post"]
    for layer in found.layers:
        own = report[layer.site]
        activations = dict(model.run_with_cache(dataset.tokens)[1])[own.sites[0]]
        for probe, r2 in ((last, layer.r2_last_probe), (own, layer.r2_own_probe)):
            left = (probe.predict(activations) - dataset.beliefs).square().sum(dim=-1)
            spread = dataset.beliefs - (dataset.word_weights @ dataset.beliefs.flatten(1)).unflatten(0, (4, 3)).mean(
                dim=0
            )
            whole = spread.square().sum(dim=-1)
            expected = 1 - float((dataset.word_weights @ left).sum() / (dataset.word_weights @ whole).sum())
            assert r2 == pytest.approx(expected, rel=1e-6)
        assert layer.r2_own_probe == pytest.approx(own.scores.in_sample.r2, rel=1e-3)
    assert found.layers[-1].r2_last_probe == found.layers[-1].r2_own_probe


def test_a_network_that_predicts_without_context_has_nothing_to_add(probed, mess3):
    found = logit_lens(*probed[:1], mess3, probes=probed[1])
    assert found.average > 0
    text = repr(found)
    assert "If the network ended at 0_pre" in text
    assert "ignores the words" in text
    table = found.to_dataframe()
    assert list(table.columns) == ["site", "lens", "implied", "r2_last_probe", "r2_own_probe"]
    assert found.to_dict()["layers"][0]["lens"] == table["lens"][0]
    left, _ = found.plot(theme="dark").axes
    assert [line.get_label() for line in left.lines][-1] == "ignoring the words"
    assert isinstance(found, LogitLens)
    assert not math.isnan(found.layers[0].implied)


def test_through_a_token_map_whole_sequences_are_replaced(mess3):
    """Symbols of two tokens, after a BOS: the residual stream at every token takes the last layer's place."""
    model = msp.build_model(msp.ModelConfig(d_vocab=7, n_layers=2, d_model=16, d_head=8, d_mlp=16, n_ctx=8), seed=0)
    token_map = msp.data.TokenMap(symbols=((1, 2), (3, 2), (4, 2)), bos=0)
    dataset = msp.words(mess3, n_ctx=3, token_map=token_map)
    report = msp.probe(model, dataset, controls=False, progress=False)
    found = logit_lens(model, dataset, probes=report)
    assert found.model == pytest.approx(float(report.regret.mean()), rel=1e-5)
    assert found.layers[0].lens != pytest.approx(found.model, rel=1e-3)


def test_what_it_takes(mess3, probed):
    model, report = probed
    with pytest.raises(ValueError, match="none of the last layer's output, final_post"):
        logit_lens(model, mess3, probes=[report["0_post"]])
    recurrent = msp.build_model(msp.models.RecurrentConfig(kind="gru", d_vocab=3, d_model=12, n_ctx=4), seed=0)
    probes = msp.probe(recurrent, mess3, controls=False, progress=False)
    with pytest.raises(ValueError, match="no layers with a residual stream"):
        logit_lens(recurrent, mess3, probes=probes)
    assert torch.is_grad_enabled()
