"""The published Mess3 model: ranges are those of two independent computations, a little widened for the draw."""

import pytest

import msp_lens as msp


@pytest.fixture(scope="module")
def results(published_model, published_report, mess3):
    return msp.intervene(
        published_model,
        mess3,
        probes=published_report,
        positions=7,
        edits=[
            *("wrong belief", "pseudo-inverse", "covariance", "steer", "steer from true", "patch", "centroid"),
            *("donor belief", "placebo off belief", "keep only"),
        ],
    )


@pytest.mark.parametrize(
    ("edit", "layer_4", "layer_2"),
    [
        ("none", (0.60, 0.68), (0.60, 0.68)),
        ("placebo", (0.43, 0.50), (0.43, 0.50)),
        ("placebo off belief", (0.40, 0.50), (0.40, 0.50)),
        ("wrong belief", (0.60, 0.66), (0.60, 0.66)),
        ("pseudo-inverse", (0.21, 0.29), (0.38, 0.46)),
        ("covariance", (0.0, 0.005), (0.0, 0.01)),
        ("steer", (0.0, 0.005), (0.0, 0.008)),
        ("steer from true", (0.0, 0.005), (0.0, 0.01)),
        ("patch", (0.0, 0.003), (0.0, 0.005)),
        ("centroid", (0.0, 0.001), (0.0, 0.002)),
        ("donor belief", (0.0, 0.005), (0.0, 0.01)),
        ("donor", (0.0, 0.0003), (0.0, 0.001)),
    ],
)
def test_kl_to_the_targets_optimum(results, edit, layer_4, layer_2):
    for site, (low, high) in (("3_post", layer_4), ("1_post", layer_2)):
        assert low <= results.select(site=site, edit=edit).kl_to_target <= high, site


def test_the_report_makes_the_contrast_plain(results):
    steer, inverse = (results.select(site="3_post", edit=edit) for edit in ("steer", "pseudo-inverse"))
    assert steer.recovery > 0.99
    assert steer.above_placebo > 0.98
    assert 0.55 < inverse.recovery < 0.7
    assert steer.recovery_error < 0.002
    assert "does not act on the belief" not in " ".join(results.summary())
    assert "steer" in results.summary()[0]
    assert "placebo" in results.summary()[0]
    # In a notebook a cell is as dark as the share that the edit recovers.
    shades = {
        edit: f"rgba(0, 114, 178, {0.4 * min(results.select(site='3_post', edit=edit).recovery, 1):.2f})"
        for edit in ("steer", "pseudo-inverse", "placebo", "donor")
    }
    assert len(set(shades.values())) >= 3
    assert all(shade in results._repr_html_() for shade in shades.values())
    text = repr(results)
    for row in (steer, inverse):
        assert f"{row.kl_to_target:.4f}" in text
    # An independent probe downstream reads that the belief was moved all the way, or hardly.
    early = {edit: results.select(site="1_post", edit=edit) for edit in ("steer", "patch", "placebo", "pseudo-inverse")}
    assert early["steer"].displacement > 0.95
    assert early["patch"].displacement > 0.97
    assert early["placebo"].displacement < 0.35
    assert early["pseudo-inverse"].displacement < 0.4
    assert results.select(site="3_post", edit="none").kl_to_actual == pytest.approx(1e-4, abs=1e-4)
    assert results.select(site="3_post", edit="steer").kl_to_actual > 0.6
    assert results.select(site="3_post", edit="keep only").kl_to_actual < 0.005


def test_one_early_position_does_not_carry_forward_and_the_trajectory_does(published_model, published_report, mess3):
    found = msp.persistence(
        published_model,
        mess3,
        probes=[published_report[site] for site in ("1_post", "3_post")],
        position=5,
        n_words=500,
    )

    def kl(edit, edited, after, site="1_post"):
        return found.select(site=site, edit=edit, edited=edited, after=after)["kl_to_target"]

    for edit in ("steer", "patch", "donor"):
        assert kl(edit, "one position", 0) == kl(edit, "trajectory", 0) < 0.01
        # The token that follows moves the model by itself; the edit of one position adds next to nothing.
        assert kl(edit, "one position", 1) > 0.9 * kl("none", "one position", 1) > 0.1
        assert kl(edit, "trajectory", 1) < 0.01
        # At the last layer nothing can be carried: no later position attends to it.
        for after in (1, 4):
            assert kl(edit, "one position", after, "3_post") == pytest.approx(
                kl("none", "one position", after, "3_post"), rel=1e-6
            )
    for after in range(5):
        assert kl("steer", "trajectory", after) < 0.01
    assert kl("placebo", "trajectory", 1) > 0.1


def test_necessity_and_sufficiency(published_model, published_report, mess3):
    found = msp.necessity(
        published_model, mess3, probes=[published_report["1_post"], published_report["3_post"]], n_words=1000
    )

    def regret(site, edit):
        return found.select(site=site, edit=edit)["regret"]

    assert regret("3_post", "none") == pytest.approx(9.3e-5, rel=0.15)
    for site in ("1_post", "3_post"):
        assert regret(site, "erase") == pytest.approx(0.30, abs=0.02)
        assert found.select(site=site, edit="erase")["share_lost"] == pytest.approx(1, abs=0.1)
        assert regret(site, "erase random") < 0.05
        assert regret(site, "project out random") < 0.005
    assert regret("3_post", "project out") == pytest.approx(0.036, rel=0.1)
    assert regret("1_post", "project out") == pytest.approx(0.007, rel=0.15)
    assert regret("3_post", "keep only") == pytest.approx(0.0019, rel=0.15)
    assert regret("1_post", "keep only") == pytest.approx(0.0041, rel=0.15)
    assert regret("all sites", "erase") > 0.28
    assert regret("all sites", "keep only") < 0.03


def test_the_two_consistencies(published_model, published_report, mess3):
    found = msp.interventions.bayes_consistency(published_model, mess3, probes=published_report, n_words=2000)
    late, early = (found.select(site=site, token="all") for site in ("3_post", "0_pre"))
    assert late["skill"] > 0.99
    assert late["update"] < 0.05 * early["update"]
    implied = msp.interventions.prediction_consistency(published_model, mess3, probes=published_report, n_words=2000)
    assert implied.select(site="3_post")["implied_to_model"] < 1e-3
    assert implied.select(site="3_post")["optimal_to_model"] == pytest.approx(9.3e-5, rel=0.2)
    assert implied.select(site="3_post")["average_to_model"] > 0.28


def test_a_fresh_probe_finds_nothing_after_leace(published_model, mess3):
    site, words = "blocks.1.hook_resid_post", msp.data.all_words(mess3, 6)
    probe = msp.probe(published_model, words, sites=site, progress=False)[site]
    with msp.applying(published_model, msp.interventions.erase(probe)):
        fresh = msp.probe(published_model, words, sites=site, progress=False)[site]
    assert fresh.scores.in_sample.r2 <= 1e-6
    assert fresh.scores.held_out.r2 <= 0
    with msp.applying(published_model, msp.interventions.project_out(probe)):
        fresh = msp.probe(published_model, words, sites=site, progress=False)[site]
    # The probe's own directions are gone, the belief is not.
    assert fresh.scores.held_out.r2 > 0.9
