"""Linear CKA equals its definition by Gram matrices, and does not depend on rotation, scale or architecture."""

import pytest
import torch

import msp_lens as msp
from msp_lens.models.activations import stream_activations
from msp_lens.moments import Moments
from msp_lens.representation import similarity
from msp_lens.representation.similarity import linear_cka

TRANSFORMER = msp.ModelConfig(d_vocab=3, n_layers=1, d_model=16, d_head=8, d_mlp=16, n_ctx=5)


def recurrent(kind, **options):
    return msp.build_model(msp.models.RecurrentConfig(kind=kind, d_vocab=3, d_model=12, n_ctx=4, **options), seed=1)


def activations(model, dataset, site):
    parts = [batch.activations[site] for batch in stream_activations(model, dataset.tokens, site)]
    return torch.cat(parts)[dataset.is_first].double()


@pytest.mark.parametrize("weighting", ["probability", "prefix"])
def test_it_is_cka_of_weighted_gram_matrices(mess3, weighting):
    """Kornblith et al.'s definition, HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)), with centered Gram matrices of rows."""
    models = {"transformer": msp.build_model(TRANSFORMER, seed=0), "gru": recurrent("gru"), "lstm": recurrent("lstm")}
    dataset = msp.words(mess3, n_ctx=4)
    sites = {"transformer": "0_post", "lstm": ["0_hidden", "0_cell"]}
    found = similarity(models, dataset, sites=sites, weighting=weighting, batch_size=7)
    weights = dataset.prefix_weights(weighting)[dataset.prefix_ids[dataset.is_first]]
    weights = weights / weights.sum()
    names = (["blocks.0.hook_resid_post"], ["blocks.0.hook_hidden"], ["blocks.0.hook_hidden", "blocks.0.hook_cell"])
    grams = []
    for model, read in zip(models.values(), names, strict=True):
        rows = torch.cat([activations(model, dataset, site) for site in read], dim=1)
        rows = (rows - weights @ rows) * weights.sqrt().unsqueeze(1)
        grams.append(rows @ rows.T)
    expected = [[float((a * b).sum() / (a.norm() * b.norm())) for b in grams] for a in grams]
    torch.testing.assert_close(found.cka, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=1e-5)
    assert found.sites == {"transformer": ("0_post",), "gru": ("0_hidden",), "lstm": ("0_hidden", "0_cell")}
    assert found.lowest == pytest.approx(min(expected[0][1], expected[0][2], expected[1][2]), abs=1e-6)
    assert found.n == dataset.n_prefixes
    assert found.to_dataframe().loc["gru", "lstm"] == pytest.approx(expected[1][2], abs=1e-6)
    assert "lstm at 0_hidden, 0_cell" in " ".join(repr(found).split())
    found.plot(theme="dark")


def test_rotation_scale_and_offset_change_nothing_and_noise_does():
    generator = torch.Generator().manual_seed(0)
    a, noise = (torch.randn(5_000, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    turn, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=generator))
    blocks = {"a": a, "turned": 3 * a @ turn + 7, "noise": noise, "constant": torch.ones(5_000, 2).double()}
    moments = Moments({name: values.shape[1] for name, values in blocks.items()})
    moments.update(torch.cat(list(blocks.values()), dim=1), torch.ones(5_000))
    found = linear_cka(moments)
    assert float(found[0, 1]) == pytest.approx(1)
    assert float(found[0, 2]) < 0.01
    assert found[3].isnan().all()


def test_a_process_is_read_in_the_shortest_context(mess3):
    models = {"transformer": msp.build_model(TRANSFORMER, seed=0), "rnn": recurrent("rnn")}
    assert similarity(models, mess3).n == sum(3**length for length in range(1, 5))


def test_what_cannot_be_compared_is_refused(mess3):
    models = {"gru": recurrent("gru"), "rnn": recurrent("rnn")}
    with pytest.raises(ValueError, match="models names 1: give at least two"):
        similarity({"gru": models["gru"]}, mess3)
    with pytest.raises(KeyError, match="sites names 'lstm'; there are the models 'gru', 'rnn'"):
        similarity(models, mess3, sites={"lstm": None})
    with pytest.raises(KeyError, match="5_post"):
        similarity(models, mess3, sites={"gru": "5_post"})
    with pytest.raises(ValueError, match="4"):
        similarity(models, msp.processes.bloch_walk())
