"""The experiments on worlds of parts, with tiny networks that are hardly trained: they must not reproduce much."""

import dataclasses

import numpy as np
import pytest

import msp_lens as msp
from msp_lens.experiments.papers.factored2026 import (
    SITE,
    cost_of_factoring,
    dimensions,
    hypotheses,
    networks,
    noise,
    overlap,
    world,
)
from msp_lens.experiments.reproduction import Trained
from msp_lens.representation import factor_geometry

N_CTX = 4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Every network of the small size, shorter, narrower and trained for a moment."""
    found = {}
    for name, network in networks(True).items():
        model = dataclasses.replace(network.model, n_layers=1, d_model=24, d_head=4, d_mlp=16, n_ctx=N_CTX)
        training = dataclasses.replace(network.training, steps=10, batch_size=16, warmup_steps=1, n_checkpoints=3)
        out = tmp_path_factory.mktemp(name)
        run = msp.train(network.process, model, config=training, out=out, progress=False)
        shown = {"model": run.model, "process": run.process, "regret": run.regret}
        found[name] = Trained(name=name, origin="a test", training=run, **shown)
    return found


@pytest.fixture(scope="module")
def loaded(tiny):
    return {name: dataclasses.replace(each, training=None) for name, each in tiny.items()}


def test_the_networks_are_what_the_paper_asks_for():
    small, full = networks(True), networks(False)
    assert {name: (each.process.process.noise, each.process.n_tokens) for name, each in small.items()} == {
        "clean": (0.0, 28),
        "noise_0": (0.0, 10),
        "noise_0.2": (0.2, 10),
        "noise_0.5": (0.5, 10),
    }
    assert {name: each.process.process.noise for name, each in full.items()} == {
        "clean": 0.0,
        "noise_0.2": 0.2,
        "noise_0.3": 0.3,
        "noise_0.5": 0.5,
    }
    for network in full.values():
        assert (network.process.n_tokens, network.model.d_vocab) == (433, 433)
        assert (network.model.n_layers, network.model.d_model, network.model.n_heads, network.model.n_ctx) == (
            4,
            120,
            3,
            9,
        )
        assert (network.training.steps, network.training.batch_size) == (500_000, 25_000)


@pytest.mark.parametrize("name", ["clean", "noise_0.5"])
def test_the_full_size_can_be_built_and_read(name):
    network = networks(False)[name]
    model, drawn = msp.build_model(network.model), network.process.sample(2, 9, seed=0)
    assert model(drawn).shape == (2, 9, 433)
    parts = network.process.parts(msp.filter_beliefs(network.process, drawn))
    assert [part.shape[-1] for part in parts.values()] == [3] * 5


def test_what_the_hypotheses_predict_is_that_of_the_beliefs(tiny):
    """By singular values of the beliefs of all words at once."""
    section = hypotheses(tiny, True)
    five = world(3, 2)
    beliefs = msp.filter_beliefs(five, five.sample(4_000, 9, seed=0))
    side_by_side = np.concatenate([part.numpy() for part in five.parts(beliefs).values()], axis=-1)
    for claim, values in zip(section.claims, (side_by_side, beliefs.numpy()), strict=True):
        centered = (values - values.mean(axis=0)).reshape(-1, values.shape[-1])
        variances = np.linalg.svd(centered, compute_uv=False) ** 2
        assert claim.measured == int((variances.cumsum() / variances.sum() < 0.95).sum()) + 1
    assert [claim.verdict for claim in section.claims] == ["reproduced"] * 2
    section.plot()


def test_untrained_networks_do_not_hold_factors_apart(tiny):
    section = dimensions(tiny, True)
    found = factor_geometry(tiny["clean"].model, tiny["clean"].process).select(SITE)
    total, own, union = section.claims
    assert total.measured == found.total
    assert own.measured == ", ".join(str(n) for n in found.dimensions.values())
    assert union.measured == f"{found.union} / {sum(found.dimensions.values())}"
    assert [claim.verdict for claim in section.claims] == ["not reproduced"] * 3
    section.plot()


def test_untrained_subspaces_overlap(tiny):
    after, before, apart = overlap(tiny, True).claims
    assert after.measured > after.control / 2
    assert apart.measured == after.measured / before.measured
    assert [after.verdict, apart.verdict] == ["not reproduced"] * 2
    overlap(tiny, True).plot(theme="dark")


def test_noise_is_compared_with_untrained_networks(tiny):
    section = noise(tiny, True)
    grown, lost, late = section.claims
    assert len(grown.measured.split(", ")) == 3
    assert grown.published == "11, 19, 38"
    assert grown.verdict == "not reproduced"
    assert late.verdict == "not reproduced"
    assert lost.verdict == "reproduced"
    section.plot()


def test_what_factoring_costs_is_that_of_all_words():
    """Over all words of two tokens: the joint belief after the first, and the product of its marginals."""
    noisy = world(2, 0, 0.5)
    joint = noisy.process
    cost = 0.0
    for matrix in joint.transitions:
        unnormalized = joint.initial @ matrix
        belief = (unnormalized / unnormalized.sum()).reshape(3, 3)
        product = np.outer(belief.sum(dim=1), belief.sum(dim=0)).reshape(-1)
        optimal, factored = (values @ joint.emissions.numpy() for values in (belief.numpy().reshape(-1), product))
        cost += float(unnormalized.sum()) * float((optimal * np.log(optimal / factored)).sum())
    # Of two tokens the first is predicted from the prior, at no loss.
    assert cost_of_factoring(noisy, n_words=20_000, length=2) == pytest.approx(cost / 2, rel=0.05)
    assert cost_of_factoring(world(2, 0), n_words=100) < 1e-12


def test_loaded_networks_have_no_history(loaded):
    section = overlap(loaded, True)
    assert section.picture is None
    assert len(section.claims) == 3
    assert noise(loaded, True).claims[-1].verdict == "beyond what was run"
