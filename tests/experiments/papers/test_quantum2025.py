"""Riechers, Elliott and Shai 2025: on networks that are small and hardly trained, every number is what it says."""

import dataclasses
import math

import pytest

import msp_lens as msp
from msp_lens.controls import markov_regret, mean_beliefs
from msp_lens.experiments import reproduce
from msp_lens.experiments.papers import quantum2025 as paper
from msp_lens.representation import similarity

N_CTX, WORLDS = 4, paper.PROCESSES[1:2]
NAMES = [f"{world}_{kind}" for world in ("mess3", "bloch_walk", "frdn", "moon") for kind in paper.ARCHITECTURES]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    def networks(small):
        made = {}
        for name, network in paper.networks(small).items():
            size = {"n_layers": 2, "d_model": 8, "n_ctx": N_CTX}
            size |= {"n_heads": 1, "d_head": 4, "d_mlp": 8} if name.endswith("transformer") else {}
            made[name] = dataclasses.replace(
                network,
                model=dataclasses.replace(network.model, **size),
                training=dataclasses.replace(network.training, steps=6, batch_size=16, n_checkpoints=3),
            )
        return made

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(paper, "N_CTX", N_CTX)
        patched.setattr(paper, "PROCESSES", WORLDS)
        changed = dataclasses.replace(paper.QUANTUM2025, networks=networks)
        patched.setitem(msp.experiments.papers.PAPERS, "quantum2025", changed)
        yield reproduce("quantum2025", small=True, out=tmp_path_factory.mktemp("out"), n_jobs=1, progress=False)


def claim(found, *words):
    (one,) = (each for each in found.claims if all(word in each.says for word in words))
    return one


def test_networks_have_the_papers_sizes_at_both_sizes():
    small, full = (paper.networks(each) for each in (True, False))
    assert list(small) == list(full) == NAMES
    for name in NAMES:
        assert small[name].model == full[name].model
        assert (full[name].model.n_layers, full[name].model.d_model, full[name].model.n_ctx) == (4, 64, 8)
    words = {name: network.training.steps * network.training.batch_size for name, network in full.items()}
    assert words["mess3_rnn"] == 20_000 * 200 * 128
    assert words["moon_transformer"] == 20_000 * 20 * 16


def test_regret_is_beside_that_of_the_best_memory_of_three_tokens(found):
    for process in WORLDS:
        one = claim(found, f"{process.name}:", "regret")
        assert one.control == pytest.approx(float(markov_regret(process, 3, N_CTX).mean()), abs=1e-9)
        regrets = [found.networks[f"{process.name}_{kind}"].regret.mean() for kind in paper.ARCHITECTURES]
        assert one.measured == pytest.approx(float(max(regrets)))


def test_errors_and_likeness_are_those_of_the_library(found):
    (process,) = WORLDS
    dataset = msp.words(process, n_ctx=N_CTX)
    rows = msp.LabelledTokens.from_beliefs(dataset)
    table = found.sections[1].tables[0].values
    error = dataset.prefix_beliefs - mean_beliefs(dataset, 3)
    window = float(dataset.prefix_weights("probability") @ error.square().sum(dim=1))
    for kind in ("transformer", "gru"):
        model = found.networks[f"bloch_walk_{kind}"].model
        stem = "hook_resid_post" if kind == "transformer" else "hook_hidden"
        sites = [f"blocks.{layer}.{stem}" for layer in range(2)]
        report = msp.probe(
            model, rows, sites=sites, solver="ridge", untrained=1, concatenate=True, controls=False, progress=False
        )
        scores = report["concatenated"].scores.held_out
        assert table.loc[("bloch_walk", kind), "RMSE"] == pytest.approx(math.sqrt(3 * scores.mse), rel=1e-6)
        assert table.loc[("bloch_walk", kind), "R² last layer"] == pytest.approx(
            report.probes[1].scores.held_out.r2, abs=1e-8
        )
        assert table.loc[("bloch_walk", kind), "RMSE three tokens"] == pytest.approx(math.sqrt(window))
        twin = report.controls.select("untrained 1", "concatenated").held_out
        assert table.loc[("bloch_walk", kind), "R² untrained"] == pytest.approx(twin.r2, abs=1e-8)
    models = {kind: found.networks[f"bloch_walk_{kind}"].model for kind in paper.ARCHITECTURES}
    sites = {kind: "1_post" if kind == "transformer" else "1_hidden" for kind in models}
    one = claim(found, "bloch_walk:", "CKA")
    assert one.measured == pytest.approx(similarity(models, dataset, sites=sites).lowest, abs=1e-6)


def test_networks_that_were_hardly_trained_decide_nothing(found):
    assert {each.says for each in found.claims if each.verdict == "not reproduced"} == {
        "bloch_walk: the networks predict well; regret of the worst of the four, nats"
    }
    beyond = claim(found, "bloch_walk:", "are read in all four").beyond
    assert beyond.endswith("as good as that of the transformer, lstm, gru, rnn")
    assert claim(found, "lstm: RMSE falls").beyond.endswith("as good as that of the lstm")


def test_networks_that_predict_well_but_hold_no_beliefs_fail(found):
    """Had these networks learned to predict, the claims would be decided, and against the paper."""
    zero = {name: dataclasses.replace(each, regret=0 * each.regret) for name, each in found.networks.items()}
    verdicts = [each.verdict for each in paper.geometry(zero, True).claims]
    assert verdicts[:2] == ["not reproduced"] * 2
    formed = paper.over_training(zero, True).claims
    assert formed[0].verdict == "not reproduced"


def test_every_claim_has_a_source_and_every_picture_draws(found):
    assert len(found.claims) == 1 + 3 + 2 + 2 + 6
    assert all(each.source for each in found.claims)
    assert [section.picture is not None for section in found.sections] == [False, True, False, True]
    assert [section.alt != "" for section in found.sections] == [False, True, False, True]


def test_without_a_training_how_beliefs_form_is_beyond_the_run(found):
    loaded = {name: dataclasses.replace(each, training=None) for name, each in found.networks.items()}
    section = paper.over_training(loaded, True)
    assert [each.verdict for each in section.claims] == ["beyond what was run"] * 6
    assert section.picture is None
