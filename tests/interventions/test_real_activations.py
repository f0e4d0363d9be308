"""How far edits leave the cloud of real activations, compared with distances computed pair by pair."""

import math

import pytest
import torch

import msp_lens as msp
from msp_lens.interventions import EDITS, edits
from msp_lens.interventions.real_activations import Cloud, cloud_words
from tests.hooked_models import Observer

POSITION = 3


def off_manifold(results, **where) -> float:
    return dict(results.select(**where))["off_manifold"]


def by_hand(model, site, words, donors, held):
    """For each word, the distance from what is held to the nearest activation of another prefix than these two."""
    with torch.no_grad(), model.hooks(fwd_hooks=[(site, lambda h, hook: real.append(h[:, POSITION].double()))]):
        real = []
        model(words)
    found = []
    for row, (word, donor) in enumerate(zip(words, donors, strict=True)):
        others = [k for k, each in enumerate(words) if not torch.equal(each, word) and not torch.equal(each, donor)]
        found.append(min(float((held[row].double() - real[0][k]).norm()) for k in others))
    return torch.tensor(found)


def test_it_is_the_distance_to_the_nearest_other_word_in_units_of_a_donors(random_model, random_report, mess3):
    probe = random_report["1_post"]
    results = msp.intervene(random_model, mess3, probes=probe, positions=POSITION, n_words=40, edits="steer", seed=2)
    generator = torch.Generator().manual_seed(2)
    words = mess3.sample(40, POSITION + 1, generator=generator)
    made = msp.interventions.TARGETS["another word"](mess3, words, generator)
    seen = {}
    with torch.no_grad():
        for name, tokens in (("word", words), ("donor", made.donors)):
            hook = (probe.sites[0], lambda h, hook, name=name: seen.update({name: h[:, POSITION]}))
            with random_model.hooks(fwd_hooks=[hook]):
                random_model(tokens)
    held = {**seen, "steered": edits.steer(probe)(seen["word"], made.beliefs)}
    site, edited = probe.sites[0], {"none": "word", "donor": "donor", "steer": "steered"}
    distance = {name: by_hand(random_model, site, words, made.donors, held[which]) for name, which in edited.items()}
    for name, away in distance.items():
        assert off_manifold(results, edit=name) == pytest.approx(
            float(away.mean() / distance["donor"].mean()), rel=1e-4
        )
    assert off_manifold(results, edit="donor") == pytest.approx(1, abs=1e-12)
    assert results.select(edit="donor").off_manifold_error == pytest.approx(0, abs=1e-9)


def test_a_random_step_leaves_the_cloud_and_real_activations_do_not(random_model, random_report, mess3):
    results = msp.intervene(random_model, mess3, probes=random_report, positions=4, n_words=1_500, together=True)
    for site in ("0_post", "1_post", "all sites"):
        edited = ("none", "placebo", "steer", "donor")
        ratio = {name: off_manifold(results, site=site, edit=name) for name in edited}
        assert ratio["none"] == pytest.approx(1, abs=0.2)
        assert ratio["placebo"] > 1.5
        assert ratio["placebo"] > ratio["steer"]
    text = "\n".join(results.summary())
    assert "off_manifold" in text
    assert "none 1.0" in text or "none 0.9" in text


def test_beliefs_written_into_an_observer_are_where_its_beliefs_are(mess3):
    """Its activations are its beliefs, so that steering to a reachable belief lands on a real activation."""
    model, dataset = Observer(mess3), msp.words(mess3, n_ctx=6)
    report = msp.probe(model, dataset, sites="hook_beliefs", controls=False, progress=False)
    results = msp.intervene(model, dataset, probes=report, positions=5, n_words=500, edits=["steer", "patch"])
    for edit in ("steer", "patch"):
        assert off_manifold(results, edit=edit) == pytest.approx(1, abs=1e-3)
    assert off_manifold(results, edit="placebo") > 5


def test_an_edit_of_ones_own_is_measured_too(random_model, random_report, mess3):
    far = {"far": lambda probe, _: edits.Edit("far", probe, lambda h, belief: h + 100)}
    probes = [random_report["0_post"], random_report["ln_final"]]
    results = msp.intervene(random_model, mess3, probes=probes, positions=4, n_words=100, edits=far)
    assert off_manifold(results, site="0_post", edit="far") > 50
    half = msp.intervene(random_model, mess3, probes=probes, positions=4, n_words=100, edits=far, strengths=(0.5, 1.0))
    curve = half.curve("far", site="0_post", value="off_manifold")
    half_way, whole = curve.tolist()
    assert half_way == pytest.approx(whole / 2, rel=0.05)


def test_where_there_is_no_other_word_there_is_no_distance():
    held = torch.tensor([[[0.0], [3.0]], [[4.0], [9.0]]])
    cloud = Cloud(torch.tensor([[1, 10], [2, 20]]), {"site": held.double()})
    words, donors = torch.tensor([[1, 10], [1, 10]]), torch.tensor([[2, 10], [1, 10]])
    found = cloud.distance({"site": held}, ["site"], slice(0, 2), words, donors)
    assert found[0, 0].isnan()
    assert found[1, 0] == 0
    assert found[:, 1].tolist() == [6.0, 0.0]
    assert cloud.distance({"site": held}, ["site"], slice(0, 1), words, donors)[:, 1].isnan().all()
    assert cloud.distance({"site": held}, ["site", "site"], slice(0, 2), words, donors)[0, 1] == 12


def test_a_trajectory_is_measured_where_it_is_written(random_model, random_report, mess3):
    table = msp.persistence(random_model, mess3, probes=random_report["0_post"], position=1, n_words=200).table
    alone = table[(table["edited"] == "one position") & (table["edit"] == "donor")]
    onward = table[(table["edited"] != "one position") & (table["edit"] == "donor")]
    assert [math.isnan(each) for each in alone["off_manifold"]] == [False, True, True, True]
    assert onward["off_manifold"].tolist() == pytest.approx([1] * 4, nan_ok=True)


def test_a_cloud_is_made_of_distinct_words(mess3):
    words = mess3.sample(5_000, 8, seed=0)
    chosen = cloud_words(words, torch.Generator().manual_seed(0))
    assert len(chosen) == 1_000 == len(chosen.unique(dim=0))
    assert {tuple(each) for each in chosen.tolist()} <= {tuple(each) for each in words.tolist()}
    assert len(cloud_words(words[:, :2], torch.Generator())) == 9


def test_the_menu_is_measured_whole(random_model, random_report, mess3):
    results = msp.intervene(
        random_model, mess3, probes=random_report["0_post"], positions=4, n_words=60, edits=list(EDITS)
    )
    assert not any(map(math.isnan, results.table["off_manifold"]))
