"""A briefly trained RRXOR model: its beliefs do not follow from next-token probabilities."""

import pytest

import msp_lens as msp
from tests.trained import make


@pytest.fixture(scope="module")
def trained():
    process, model = msp.rrxor(), make.load("rrxor_adamw")
    return process, model, msp.probe(model, process, split=msp.probing.Split(n_folds=2), progress=False)


def test_edits_work_at_the_last_layer_and_before(trained):
    process, model, report = trained
    results = msp.intervene(model, process, probes=report, positions=7, n_words=500)
    for site in ("1_post", "0_post"):
        none, placebo, inverse, steer = (
            results.select(site=site, edit=edit) for edit in ("none", "placebo", "pseudo-inverse", "steer")
        )
        assert none.kl_to_target > 0.2
        assert steer.kl_to_target < 0.75 * min(placebo.kl_to_target, inverse.kl_to_target)
        assert steer.recovery - 3 * steer.recovery_error > placebo.recovery
    assert results.select(site="1_post", edit="steer").recovery > 0.65
    assert results.select(site="1_post", edit="patch").recovery > 0.9
    # The least change that the probe sees does nothing at all here.
    assert results.select(site="1_post", edit="pseudo-inverse").recovery < 0.1


def test_moves_in_the_emission_kernel_show_only_later(trained):
    process, model, report = trained
    results = msp.intervene(
        model,
        process,
        probes=report["1_post"],
        positions=6,
        targets="emission kernel",
        edits=["steer", "patch"],
        n_words=300,
    )
    for edit in ("steer", "patch"):
        row = results.select(site="1_post", edit=edit)
        # Target and actual belief have one optimum; the model keeps saying it.
        assert row.kl_to_target == pytest.approx(row.kl_to_actual, abs=1e-9)
        assert row.kl_to_target < 0.05
    found = msp.persistence(model, process, probes=report, position=6, target="emission kernel", n_words=300)

    def row(edit, after, site="1_post", edited="trajectory"):
        return found.select(site=site, edit=edit, edited=edited, after=after)

    for edit in ("steer", "patch"):
        assert row(edit, 0)["kl_to_target"] < 0.05
        # A token later the model acts on the target's update, and no longer on the actual one's.
        assert row(edit, 1)["kl_to_target"] < 0.4 * row("none", 1)["kl_to_target"]
        assert row(edit, 1)["kl_to_actual"] > 2.5 * row("none", 1)["kl_to_actual"]
        assert row(edit, 1)["kl_to_target"] < 0.5 * row("placebo", 1)["kl_to_target"]
    # Written earlier too, where later layers must make something of it.
    assert row("steer", 1, "0_post")["kl_to_target"] < 0.8 * row("none", 1)["kl_to_target"]


def test_a_belief_read_may_rule_out_what_comes(trained):
    process, model, report = trained
    found = msp.interventions.bayes_consistency(model, process, probes=report).to_dataframe()
    whole = found[found["token"] == "all"].set_index("site")
    assert (whole["undefined"] >= 0).all()
    assert (whole["undefined"] < 0.2).all()
    assert whole.loc["1_post", "skill"] > whole.loc["0_pre", "skill"]
