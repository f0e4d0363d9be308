"""What an experiment says of its numbers: whether the network uses the belief, what is worse than a placebo, and which
position was never trained. Reports are plain values.
"""

import copy
import json
import math
import pickle

import pandas as pd
import pytest
import torch

import msp_lens as msp
from msp_lens._tables import nats_text
from msp_lens.interventions import InterventionReport
from msp_lens.interventions.intervention_report import Layout, effect, effect_text, worse_than_placebo
from msp_lens.interventions.preparation import untrained_end
from tests.hooked_models import Observer


@pytest.fixture(scope="module")
def observer(mess3):
    """Predicts as the optimal observer does, but at the last position of its context nonsense."""

    class Untrained(Observer):
        def forward(self, tokens):
            logits = super().forward(tokens)
            logits[:, 4:] = 10 * logits[:, 4:].flip(-1)
            return logits

    return Untrained(mess3)


@pytest.fixture(scope="module")
def reports(random_model, random_report, mess3):
    names = {"$x$ <b>": [1.0, 0, 0], "_a_{": [0, 1.0, 0], "\\frac": [0, 0, 1.0]}
    own = {"$y$ & <i>": msp.interventions.EDITS["steer"], "_z^": msp.interventions.EDITS["patch"]}
    options = {"probes": [random_report["0_post"], random_report["1_post"]], "n_words": 10}
    return [
        msp.intervene(random_model, mess3, targets=names, edits=own, **options),
        msp.persistence(random_model, mess3, target={"$t$_": [1.0, 0, 0]}, edits=own, **options),
        msp.necessity(random_model, mess3, n_random=1, **options),
        msp.interventions.bayes_consistency(random_model, mess3, **options),
        msp.interventions.prediction_consistency(random_model, mess3, **options),
    ]


def made(kl, *, regret, error=0.01, above=0.5, site="1_post", marked=(), away=1.0):
    """A report of one place with these KLs to the target."""
    rows = [
        {
            **{"site": site, "position": 5, "edit": edit, "target": "another word", "strength": 1.0},
            **{"kl_to_target": value, "kl_to_actual": regret if edit == "none" else value},
            **{"recovery": 1 - value / kl["none"], "recovery_error": error, "above_placebo": above},
            **{"worse_than_placebo": edit in marked, "off_manifold": away},
        }
        for edit, value in kl.items()
    ]
    keys = ("site", "position", "edit", "target", "strength")
    layout = Layout(["site"], "edit", "kl_to_target", "KL", shade="recovery", mark="worse_than_placebo")
    return InterventionReport("Made up", pd.DataFrame(rows), keys, ("A note.",), {"positions": [5]}, layout)


# A network for z1r after thirty steps: it has learned next to nothing.
HARDLY_TRAINED = {"none": 0.617, "placebo": 0.574, "wrong belief": 0.601, "steer": 0.503, "donor": 0.526}
TRAINED = {"none": 0.6303, "placebo": 0.5228, "wrong belief": 0.6239, "steer": 0.0023, "donor": 0.0006}


def test_a_claim_of_use_needs_more_than_to_beat_the_donor():
    found = made(HARDLY_TRAINED, regret=0.23, above=2.4)
    assert effect(found, site="1_post") == "cannot tell"
    text = effect_text(found, site="1_post")
    assert "cannot be told" in text
    assert "18.5 %" in text
    assert "(KL 0.2300)" in text
    # Did it predict well, the same numbers would be an effect in part: less than half of the way.
    found = made(HARDLY_TRAINED, regret=0.001, above=2.4)
    assert effect(found, site="1_post") == "in part"
    assert "only in part" in effect_text(found, site="1_post")


def test_a_trained_network_acts_on_the_belief():
    found = made(TRAINED, regret=0.002)
    assert effect(found, site="1_post") == "acts"
    text = effect_text(found, site="1_post")
    assert text.startswith("The network acts on the belief written: steer at 1_post recovers 99.6 %")
    assert "placebo 17.1 %, wrong belief 1.0 %" in text


@pytest.mark.parametrize(
    ("changed", "error", "regret", "expected"),
    [
        ({}, 0.01, 0.0629, "acts"),
        ({}, 0.01, 0.0640, "cannot tell"),
        ({"steer": 0.31}, 0.001, 0.002, "acts"),
        # Half of the way, but not by two standard errors.
        ({"steer": 0.31}, 0.01, 0.002, "in part"),
        ({"steer": 0.32}, 0.001, 0.002, "in part"),
        # A placebo, or a wrong belief, does as much.
        ({"placebo": 0.01}, 0.01, 0.002, "nothing to recover"),
        ({"placebo": 0.0021, "donor": 0.0}, 0.001, 0.002, "none"),
        ({"wrong belief": 0.01}, 0.01, 0.002, "none"),
        ({"wrong belief": 0.02}, 0.01, 0.002, "none"),
        ({"wrong belief": 0.03}, 0.01, 0.002, "acts"),
        ({"steer": 0.6, "placebo": 0.61, "donor": 0.615}, 0.01, 0.002, "nothing to recover"),
        # No donor is needed for a claim.
        ({"donor": 0.7}, 0.01, 0.002, "acts"),
        ({"none": math.nan}, 0.01, 0.002, "cannot tell"),
    ],
)
def test_where_the_lines_are(changed, error, regret, expected):
    found = made(TRAINED | changed, error=error, regret=regret)
    assert effect(found, site="1_post") == expected
    assert effect_text(found, site="1_post")


def test_an_experiment_says_what_it_found(random_model, random_report, mess3):
    """Random weights: recoveries are quoted, and nothing is claimed."""
    notes = msp.intervene(random_model, mess3, probes=random_report, n_words=50).summary()
    assert notes[0].startswith("At ")
    assert notes[1].startswith("It cannot be told whether the network acts on the belief")
    text = " ".join(notes)
    assert "a natural reference but no bound" in text
    assert "best any" not in text


def test_what_is_worse_than_the_placebo_is_seen(random_model, random_report, mess3):
    """An edit that writes the target and sets the network back, and the ones that are not meant to help."""

    # So far along the direction that the unembedding reads most that the logits are far from any optimum.
    unembedding = random_model.W_U.detach()
    direction = 20 * torch.linalg.svd(unembedding - unembedding.mean(dim=1, keepdim=True)).U[:, 0]

    def backwards(probe, material):
        return msp.interventions.Edit("backwards", probe, lambda h, belief: direction.expand_as(h))

    def erases(probe, material):
        return msp.interventions.Edit("erases", probe, lambda h, belief: direction.expand_as(h), writes=False)

    probes = [random_report["0_post"], random_report["1_post"]]
    chosen = {"backwards": backwards, "erases": erases}
    found = msp.intervene(random_model, mess3, probes=probes, edits=chosen, n_words=100)
    for site in ("0_post", "1_post"):
        rows = {edit: found.select(site=site, edit=edit) for edit in (*chosen, "placebo", "none")}
        assert rows["backwards"].kl_to_target == pytest.approx(rows["erases"].kl_to_target)
        assert rows["backwards"].kl_to_target > rows["placebo"].kl_to_target + 0.05
        assert [bool(row.worse_than_placebo) for row in rows.values()] == [True, False, False, False]
        starred = f"{rows['backwards'].kl_to_target:.4f}*"
        assert starred in repr(found)
        assert starred in found._repr_html_()
    (note,) = [note for note in found.summary() if note.startswith("* Worse than the placebo")]
    assert "backwards at 0_post, 1_post" in note
    lasting = msp.persistence(random_model, mess3, probes=probes, edits=chosen, n_words=100)
    assert lasting.table.query("edit == 'backwards' and after == 0")["worse_than_placebo"].all()
    assert "backwards at 0_post, 1_post" in " ".join(lasting.summary())
    assert "*" in repr(lasting)


def test_nothing_is_said_to_be_worse_that_is_not():
    assert worse_than_placebo(made(TRAINED, regret=0.002)) == []
    found = made(TRAINED | {"steer": 0.6}, regret=0.002, marked=["steer"])
    assert worse_than_placebo(found) == ["* Worse than the placebo by more than two standard errors: steer at 1_post."]
    assert "0.6000*" in repr(found)


class TestALastPositionThatWasNeverTrained:
    @pytest.mark.parametrize(
        ("regret", "named"),
        [
            ([0.001, 0.004, 0.002, 0.9], True),
            ([0.001, 0.004, 0.002, 0.039], False),
            ([0.1, 0.2, 0.15, 1.9], False),
            ([1e-6, 1e-6, 1e-6, 1e-3], False),
            ([0.1, 0.2, 1.9], False),
            ([0.1, 0.15, 0.1, 1.6], True),
            ([1e-4, 1e-4, 1e-4, 0.02], True),
            ([0.001, 0.9], True),
            ([0.5, 5.0], False),
            ([0.5, 5.01], True),
            ([0.9, 0.001, 0.001], False),
            ([0.9], False),
        ],
    )
    def test_it_is_known_by_its_regret(self, regret, named):
        found = untrained_end(torch.tensor(regret, dtype=torch.float64))
        assert bool(found) == named
        if named:
            last, others = nats_text(regret[-1]), nats_text(max(regret[:-1]))
            expected = f"The last position, {len(regret) - 1}, was probably never trained: regret there is {last} nats"
            assert found[0].startswith(f"{expected}, and at most {others} before it.")
            assert f"msp.words(process, n_ctx={len(regret) - 1})" in found[0]

    def test_every_experiment_names_it_and_leaves_it_out_or_not(self, observer, mess3):
        words, shorter = (msp.data.all_words(mess3, n_ctx) for n_ctx in (5, 4))
        report = msp.probe(observer, words, sites="hook_beliefs", progress=False)
        remedy = "msp.words(process, n_ctx=4)"
        for experiment in (msp.necessity, msp.interventions.prediction_consistency):
            found = experiment(observer, words, probes=report)
            assert remedy in " ".join(found.summary())
            assert "left out" in " ".join(found.summary())
            alike = experiment(observer, shorter, probes=report)
            assert remedy not in " ".join(alike.summary())
            row, other = (each.to_dataframe().iloc[0] for each in (found, alike))
            column = "regret" if "regret" in row else "optimal_to_model"
            numbers = list(found.to_dataframe().select_dtypes("float"))
            assert row[numbers].tolist() == pytest.approx(other[numbers].tolist(), abs=1e-6, nan_ok=True)
            assert row[column] < 1e-6
        options = {"probes": report["hook_beliefs"], "n_words": 50}
        assert remedy in " ".join(msp.intervene(observer, words, positions=[2, 4], **options).summary())
        assert remedy not in " ".join(msp.intervene(observer, words, positions=[2, 3], **options).summary())
        assert remedy in " ".join(msp.persistence(observer, words, **options).summary())
        assert remedy not in " ".join(msp.persistence(observer, shorter, **options).summary())


class TestAReportIsAPlainValue:
    def test_it_is_copied_pickled_saved_and_compared(self, reports):
        for report in reports:
            saved = json.loads(json.dumps(report.to_dict(), allow_nan=False))
            copies = [copy.copy(report), copy.deepcopy(report), pickle.loads(pickle.dumps(report))]
            for again in (*copies, InterventionReport.from_dict(saved)):
                assert again == report
                assert repr(again) == repr(report)
                assert again._repr_html_() == report._repr_html_()
            changed = copy.deepcopy(report)
            changed.table.loc[0, changed.table.columns[-1]] = 99
            assert changed != report
        assert reports[0] != reports[1]
        assert reports[0] != "a report"

    def test_it_is_drawn_whatever_its_labels_contain(self, reports, tmp_path):
        choices = ({"target": "$x$ <b>"}, {"site": "0_post", "edited": "trajectory"}, {}, {"token": "all"}, {})
        for report, choice in zip(reports, choices, strict=True):
            report.plot(**choice).savefig(tmp_path / "picture.svg")
        drawn = reports[0].plot.strengths(site="0_post", target="\\frac")
        drawn.savefig(tmp_path / "picture.png")
        reports[0].plot.map("$y$ & <i>", target="_a_{").savefig(tmp_path / "map.svg")
        assert "<b>" not in reports[0]._repr_html_()
        assert "$x$ &lt;b&gt;" in reports[0]._repr_html_()

    @pytest.mark.parametrize(
        ("path", "value", "match"),
        [
            (("title",), 3, r"saved\.title=3: give text"),
            (("title",), None, r"saved\.title=None"),
            (("results",), "none", r"saved\.results='none'"),
            (("results", 0, "kl_to_target"), [1], r"saved\.results\[0\]\.kl_to_target: give text, a number or null"),
            (("results", 1), {"site": "0_post"}, r"saved\.results\[1\]: give the fields of every row"),
            (("keys",), ["layer"], r"saved\.keys: 'layer' is no field of the results; there are site"),
            (("notes",), {}, r"saved\.notes"),
            (("provenance",), [], r"saved\.provenance"),
            (("layout", "value"), "score", r"saved\.layout\.value: 'score' is no field"),
            (("layout", "shade"), "score", r"saved\.layout\.shade: 'score' is no field"),
            (("layout", "mark"), "score", r"saved\.layout\.mark: 'score' is no field"),
            (("layout", "rows"), ["score"], r"saved\.layout\.rows: 'score' is no field"),
            (("layout", "font"), "Arial", r"saved\.layout\.font"),
            (("shown",), {"layer": [1]}, r"saved\.shown: 'layer' is no field"),
            (("extra",), 1, r"saved\.extra"),
        ],
    )
    def test_a_damaged_one_is_refused_by_the_name_of_the_field(self, reports, path, value, match):
        saved = json.loads(json.dumps(reports[0].to_dict()))
        *place, last = path
        part = saved
        for step in place:
            part = part[step]
        part[last] = value
        with pytest.raises(ValueError, match=match):
            InterventionReport.from_dict(saved)

    def test_a_missing_field_is_named(self, reports):
        for field in reports[0].to_dict():
            saved = reports[0].to_dict()
            del saved[field]
            with pytest.raises(ValueError, match=rf"saved\.{field}"):
                InterventionReport.from_dict(saved)
        with pytest.raises(TypeError, match="saved="):
            InterventionReport.from_dict([])
