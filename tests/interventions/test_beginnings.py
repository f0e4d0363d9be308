"""Edits of late positions: the same numbers whether what comes before is read once or with every edit."""

import functools
import itertools

import pandas as pd
import pytest
import torch

import msp_lens as msp
from msp_lens.interventions import engine, targets
from msp_lens.models import activations, beginning
from msp_lens.models.build import has_hooked_transformer
from tests.hooked_models import activation_at, hugging_face_bridge
from tests.interventions.experiments import EXPERIMENTS

SIZES = {"d_vocab": 3, "n_layers": 2, "d_model": 16, "d_head": 8, "d_mlp": 32}
SPACED = msp.TokenMap([(2, 1), 3, 4], bos=0)


@pytest.fixture(scope="module")
def made(mess3):
    """Models in double precision with probes of a late site and a middle one, and their words."""
    models = {"GPT-2": hugging_face_bridge.__wrapped__().to(torch.float64)}
    models["own"] = msp.build_model(msp.ModelConfig(**SIZES, n_ctx=60), seed=1).to(torch.float64)
    found = {}
    for name, model in models.items():
        words = msp.words(mess3, n_ctx=8, token_map=SPACED if name == "GPT-2" else None)
        options = {"sites": ["0_post", "1_post"], "concatenate": False, "controls": False, "progress": False}
        found[name] = model, words, msp.probe(model, words, solver="ridge", **options)
    return found


def plainly(monkeypatch):
    monkeypatch.setattr(beginning, "_kind", lambda model: None)


OPTIONS = {
    "intervene": [
        {"edits": ["steer", "centroid"], "positions": [0, 6], "together": True},
        {"edits": ["steer from true", "donor belief"], "spans": [1, 3], "positions": 7, "batch_size": 7},
        {"targets": ["vertex", "counterfactual"], "context": torch.arange(8) % 3, "spans": 2},
    ],
    "persistence": [{"position": 5, "edits": ["steer", "placebo off belief"]}],
}
CASES = [(name, options) for name, each in OPTIONS.items() for options in each]


@pytest.mark.parametrize("name", ["GPT-2", "own"])
@pytest.mark.parametrize(("experiment", "options"), CASES)
def test_numbers_do_not_depend_on_how_the_beginning_is_read(name, experiment, options, made, monkeypatch):
    model, words, report = made[name]
    run = EXPERIMENTS[experiment]
    found = run(model, words, probes=report, n_words=10, **options)
    plainly(monkeypatch)
    expected = run(model, words, probes=report, n_words=10, **options)
    pd.testing.assert_frame_equal(found.table, expected.table, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["GPT-2", "own"] if has_hooked_transformer() else ["GPT-2"])
def test_each_word_is_read_whole_once(name, made, mess3, monkeypatch):
    model, words, report = made[name]
    if name == "GPT-2":
        words = msp.words(mess3, n_ctx=8, token_map=msp.TokenMap([2, 3, 4], bos=0))
        report = msp.probe(model, words, sites=["0_post"], solver="ridge", controls=False, progress=False)
    read, forward = [], model.forward

    @functools.wraps(forward)
    def counted(tokens, *arguments, **options):
        read.append(tokens.numel())
        return forward(tokens, *arguments, **options)

    monkeypatch.setattr(model, "forward", counted)

    def total(edits):
        read.clear()
        msp.intervene(model, words, probes=report["0_post"], n_words=20, positions=7, edits=edits)
        return sum(read)

    few, many = total("steer"), total(["steer", "patch", "pseudo-inverse", "donor belief"])
    # Three more edits read the last symbol alone.
    assert many - few == 3 * 20
    plainly(monkeypatch)
    assert total(["steer", "patch"]) - total("steer") >= 20 * 8


def test_spans_are_edited_as_by_hand(made, mess3):
    model, words, report = made["own"]
    probe, target, n = report["0_post"], torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64), 12
    options = {"probes": probe, "targets": target, "positions": 6, "n_words": n, "edits": ["steer", "patch"]}
    found = msp.intervene(model, words, spans=[1, 4], **options)
    tokens = mess3.sample(n, 7, generator=torch.Generator().manual_seed(0))
    optimum = (target @ mess3.emissions).expand(n, -1)
    for (edit, write), span in itertools.product({"steer": probe.steer, "patch": probe.patch}.items(), (1, 4)):
        with write(model, target, position=slice(7 - span, 7)):
            predicted = model(tokens)[:, -1].detach().log_softmax(dim=-1)
        expected = float(msp.beliefs.kl_divergence(optimum, predicted).mean())
        assert found.select(edit=edit, span=span)["kl_to_target"] == pytest.approx(expected, rel=1e-9)
    one = msp.intervene(model, words, **options)
    assert "span" not in one.table
    pd.testing.assert_frame_equal(
        one.table, found.table.query("span == 1").drop(columns="span").reset_index(drop=True), rtol=1e-9
    )
    only = msp.intervene(model, words, spans=4, **options)
    assert set(only.table["span"]) == {4}


def test_donors_of_a_context_are_other_endings_of_it(made, mess3):
    model, _, report = made["own"]
    context, n = mess3.sample(1, 50, seed=3)[0], 30
    probe = report["1_post"]
    found = msp.intervene(model, mess3, probes=probe, context=context, n_words=n, edits="steer")
    assert set(found.table["position"]) == {49}
    drawn = engine.Engine(model, mess3, probe, None, "another word", 50, n, 0, None, contexts=context[None]).draw(
        49, "another word"
    )
    assert (drawn.words == context).all()
    assert (drawn.donors[:, :30] == context[:30]).all()
    assert len(drawn.donors.unique(dim=0)) == n
    torch.testing.assert_close(drawn.written[:, 0], msp.filter_beliefs(mess3, drawn.donors)[:, -1])
    # The donor's activation in the context's place, by hand.
    donor = activation_at(model, drawn.donors, probe.sites[0])[:, -1]
    with msp.models.editing(model, {probe.sites[0]: lambda h: torch.cat([h[:, :-1], donor[:, None]], dim=1)}):
        predicted = model(drawn.words)[:, -1].detach().log_softmax(dim=-1)
    expected = float(msp.beliefs.kl_divergence(drawn.written[:, 0] @ mess3.emissions, predicted).mean())
    assert found.select(edit="donor")["kl_to_target"] == pytest.approx(expected, rel=1e-9)
    assert "One context of 50 tokens of mess3, 30 times" in " ".join(found.summary())
    # Real activations are those of the donors.
    assert found.select(edit="donor")["off_manifold"] == pytest.approx(1)
    assert found.table["off_manifold"].notna().all()


def test_tokens_after_a_beginning_come_as_often_as_after_it(mess3):
    """Endings are drawn from the belief to which the beginning leads."""
    context = torch.tensor([0] * 30)
    after = engine._After(mess3, context[:10])
    first = after.sample(20_000, 1, seed=0)[:, 0].bincount(minlength=3).double() / 20_000
    expected = msp.next_token_probabilities(mess3, msp.filter_beliefs(mess3, context[None, :10])[:, -1])[0]
    torch.testing.assert_close(first, expected, rtol=0, atol=0.015)
    assert (first - mess3.stationary @ mess3.emissions).abs().max() > 0.1


def test_several_contexts_share_the_words(made, mess3):
    model, _, report = made["own"]
    contexts = mess3.sample(3, 30, seed=5)
    run = engine.Engine(model, mess3, report, None, "another word", 30, 8, 0, None, contexts=contexts)
    drawn = run.draw(29, "another word")
    assert [int((drawn.words == each).all(dim=1).sum()) for each in contexts] == [3, 3, 2]
    found = msp.intervene(model, mess3, probes=report, context=contexts, n_words=8)
    assert set(found.table["n"]) == {8}
    assert found.provenance["contexts"] == 3


def test_a_part_of_a_mixture_is_exchanged_within_a_context():
    coins = msp.processes.mixture([msp.processes.coin(p=p) for p in (0.2, 0.7)], [0.5, 0.5])
    context = coins.sample(1, 30, seed=0)[0]
    made = targets.another_part(engine._After(coins, context[:10]), context[None, 10:].expand(4, -1), generator())
    assert made.beliefs.shape == (4, 2)


def generator():
    return torch.Generator().manual_seed(0)


def test_moves_in_the_kernel_of_the_emission_map_are_invisible_at_once():
    """The observer's next-token predictions stay, whatever network: the targets of one context, too."""
    process = msp.rrxor()
    context = process.sample(1, 40, seed=1)
    after = engine._After(process, context[0, :20])
    made = targets.emission_kernel(after, context[:, 20:].expand(5, -1), generator())
    actual = msp.filter_beliefs(process, context)[:, -1].expand_as(made.beliefs)
    torch.testing.assert_close(made.beliefs @ process.emissions, actual @ process.emissions)
    assert (made.beliefs - actual).abs().max() > 0.01


WRONG = {
    "a span of nothing": ({"spans": 0}, "spans=0: give at least 1"),
    "no span": ({"spans": []}, r"spans=\[\]: give at least one"),
    "a span twice": ({"spans": [2, 2]}, "none twice"),
    "a span too long": ({"spans": 7, "positions": [5, 6]}, "each at most 6, the number of positions up to 5"),
    "a token that is none": ({"context": [0, 1, 3]}, "Token 3 at word 0, position 2 is outside"),
    "no context": ({"context": torch.zeros(0, dtype=torch.int64)}, r"context has shape \(0,\)"),
    "contexts of contexts": ({"context": torch.zeros(1, 1, 4, dtype=torch.int64)}, r"context has shape \(1, 1, 4\)"),
    "a position after the context": ({"context": [0, 1, 2], "positions": 3}, "outside the context"),
    "a context too long": ({"context": [0] * 61}, "n_ctx=61 is longer"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_requests(name, made, mess3, monkeypatch):
    options, match = WRONG[name]
    model, _, report = made["own"]
    monkeypatch.setattr(model, "forward", lambda *_, **__: pytest.fail("The model was run."))
    with pytest.raises(ValueError, match=match):
        msp.intervene(model, mess3, probes=report, n_words=4, **options)


def test_an_impossible_context_is_refused(monkeypatch):
    process = msp.processes.golden_mean(p=0.5)
    model = msp.build_model(msp.ModelConfig(**SIZES | {"d_vocab": 2}, n_ctx=6))
    report = msp.probe(model, process, controls=False, progress=False)
    ones = [0, 1, 1] if (process.word_probabilities([[1, 1]]) == 0).all() else [1, 0, 0]
    with pytest.raises(ValueError, match=r"impossible|probability 0|never"):
        msp.intervene(model, process, probes=report, context=ones)


@pytest.mark.parametrize("name", ["GPT-2", "own"])
def test_logits_are_taken_in_parts(name, made, monkeypatch):
    """Never all of a batch's in float64, with a cache and without."""
    model, words, report = made[name]
    seen, softmax = [], torch.Tensor.log_softmax

    def noted(logits, *arguments, **options):
        seen.append(logits.numel())
        return softmax(logits, *arguments, **options)

    options = {"probes": report, "n_words": 20, "positions": 6}
    expected = msp.intervene(model, words, **options).table
    monkeypatch.setattr(activations, "_AT_ONCE", 30)
    monkeypatch.setattr(torch.Tensor, "log_softmax", noted)
    for plain in (False, True):
        if plain:
            plainly(monkeypatch)
        found = msp.intervene(model, words, **options).table
        pd.testing.assert_frame_equal(found, expected, rtol=1e-7, atol=1e-9)
        assert max(seen) <= 30
