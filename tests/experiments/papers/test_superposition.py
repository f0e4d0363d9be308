"""The experiments on the width of the residual stream, with tiny networks that are hardly trained."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import msp_lens as msp
from msp_lens.data import all_words
from msp_lens.experiments.papers.superposition import (
    SUPERPOSITION,
    WIDTHS,
    geometry,
    inert_past,
    networks,
    prediction,
)
from msp_lens.experiments.reproduction import Trained

N_CTX = 6


@pytest.fixture(scope="module")
def tiny():
    """Every network of the small size, shorter and trained for a moment."""
    found = {}
    for name, network in networks(True).items():
        model = dataclasses.replace(network.model, d_head=4, d_mlp=16, n_ctx=N_CTX)
        training = dataclasses.replace(network.training, steps=3, batch_size=32, warmup_steps=1)
        run = msp.train(network.process, model, config=training, progress=False)
        found[name] = Trained(name=name, model=run.model, process=run.process, regret=run.regret, origin="a test")
    return found


def test_networks_differ_in_width_alone():
    for small in (True, False):
        made = networks(small)
        assert [network.model.d_model for network in made.values()] == [*WIDTHS, *WIDTHS]
        alike = {
            (network.process.name, dataclasses.replace(network.model, d_model=1), network.training, network.seed)
            for network in made.values()
        }
        assert len(alike) == 2


def regretting(trained, share):
    """The same network with this share of what context is worth as its regret, whatever it predicts."""
    dataset = all_words(trained.process, N_CTX)
    optimal = (dataset.beliefs @ trained.process.emissions).numpy()
    average = np.einsum("w,wpz->z", dataset.word_weights.numpy(), optimal) / N_CTX
    with np.errstate(divide="ignore", invalid="ignore"):
        divergence = np.where(optimal > 0, optimal * np.log(optimal / average), 0).sum(axis=-1)
    worth = dataset.word_weights.numpy() @ divergence
    return dataclasses.replace(trained, regret=torch.full((N_CTX,), share * worth.mean(), dtype=torch.float64))


def test_regret_is_a_share_of_what_context_is_worth(tiny):
    section = prediction(tiny, True)
    assert {claim.verdict for claim in section.claims} == {"not reproduced"}, "they were hardly trained"
    shares = dict(zip(WIDTHS, (0.5, 0.05, 0.019, 0.01, 0.001), strict=True))
    made = {name: regretting(each, shares[int(name.partition("_")[2])]) for name, each in tiny.items()}
    enough, wider = prediction(made, True).claims
    assert enough.measured == pytest.approx(0.019)
    assert enough.control == pytest.approx(0.5)
    assert enough.verdict == "reproduced"
    assert (wider.measured, wider.control, wider.verdict) == (8.0, 8.0, "not reproduced")
    made["rrxor_8"] = regretting(tiny["rrxor_8"], 0.021)
    wider = prediction(made, True).claims[1]
    assert (wider.measured, wider.control, wider.verdict) == (16.0, 8.0, "reproduced")
    assert prediction(made, True).plot().axes


def test_geometry_is_that_of_the_last_layer(tiny):
    section = geometry(tiny, True)
    held, narrow = section.claims
    (table,) = section.tables
    assert held.verdict == "not reproduced"
    dataset = all_words(tiny["mess3_4"].process, N_CTX)
    weights = np.repeat(dataset.word_weights.numpy(), N_CTX) / N_CTX
    beliefs = dataset.beliefs.flatten(0, 1).numpy()
    beliefs = beliefs - weights @ beliefs

    def moved(name):
        with torch.no_grad():
            _, cache = tiny[name].model.run_with_cache(dataset.tokens)
        rows = cache["blocks.1.hook_resid_post"].flatten(0, 1).double().numpy()
        rows = rows - weights @ rows
        slopes = np.linalg.lstsq(np.sqrt(weights)[:, None] * beliefs, np.sqrt(weights)[:, None] * rows, rcond=1e-8)[0]
        return rows, beliefs @ slopes, slopes

    for name, measured in (("mess3_4", narrow.measured), ("mess3_64", narrow.control)):
        rows, with_belief, _ = moved(name)
        assert measured == pytest.approx((weights @ with_belief**2).sum() / (weights @ rows**2).sum(), rel=1e-5)
    for name, width in (("mess3_64", 64), ("mess3_4", 4)):
        rows, with_belief, slopes = moved(name)
        basis = np.linalg.svd(slopes)[2][:2]
        rest = rows - with_belief
        share = (weights @ (rest @ basis.T) ** 2).sum() / (weights @ rest**2).sum()
        assert table.of("mess3", width).overlap == pytest.approx(share, rel=1e-4)
        assert table.of("mess3", width).chance == 2 / width
    assert len(table._display()) == 2 * len(WIDTHS)
    assert section.plot(theme="dark").axes


def test_what_is_hardly_trained_carries_the_past_at_every_width(tiny):
    section = inert_past(tiny, True)
    wide, narrow, trend, inert, oldest = section.claims
    found = msp.representation.beyond_belief(
        tiny["mess3_64"].model, tiny["mess3_64"].process, ["0_post", "1_post"], n_words=6_000
    )
    (newest,) = (each for each in found.decodable if (each.site, each.what, each.lag) == ("1_post", "token", 0))
    assert wide.measured == newest.partial
    assert narrow.verdict == "not reproduced", "without training nothing is removed"
    assert -1 <= trend.measured <= 1
    assert inert.measured >= 0
    assert oldest.verdict == "beyond what was run"
    assert not math.isnan(oldest.measured)
    assert section.plot().axes
    assert list(section.tables[0]._display().index) == list(WIDTHS[1:])


def test_it_is_found_where_it_was_published():
    assert SUPERPOSITION.url == "https://www.lesswrong.com/posts/gTZ2SxesbHckJ3CkF"
    assert "two layers" in SUPERPOSITION.differences(True)[1]
    assert "two layers" not in SUPERPOSITION.differences(False)[1]
