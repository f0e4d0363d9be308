import json
import math

import pandas as pd
import pytest
import torch

import msp_lens as msp
from msp_lens.interventions import EDITS, edits
from msp_lens.interventions.engine import ratio


def kl_to(process, belief, log_predicted):
    optimal = msp.next_token_probabilities(process, belief)
    return float((optimal * (optimal.log() - log_predicted)).sum(-1).mean())


def test_no_edit_and_donor_are_what_they_say(random_model, random_report, mess3):
    """Against runs of the plain model: nothing edited, and the targets' own words."""
    results = msp.intervene(random_model, mess3, probes=random_report, positions=3, n_words=200, seed=4)
    generator = torch.Generator().manual_seed(4)
    words, targets = (mess3.sample(200, 4, generator=generator) for _ in range(2))

    def mean_kl(optimum_of, run_on):
        with torch.no_grad():
            log_predicted = random_model(run_on)[:, -1].double().log_softmax(-1)
        return kl_to(mess3, msp.filter_beliefs(mess3, optimum_of)[:, -1], log_predicted)

    untouched = results.select(site="1_post", edit="none")
    assert untouched.kl_to_target == pytest.approx(mean_kl(targets, words), rel=1e-5)
    assert untouched.kl_to_actual == pytest.approx(mean_kl(words, words), rel=1e-5)
    # At the last layer the last position's activation is all that its prediction depends on.
    donor = results.select(site="1_post", edit="donor")
    assert donor.kl_to_target == pytest.approx(mean_kl(targets, targets), rel=1e-4)
    assert donor.recovery == pytest.approx(1 - donor.kl_to_target / untouched.kl_to_target)
    # The donor is one end of the scale, the placebo the other.
    assert untouched.recovery == 0
    placebo = results.select(site="1_post", edit="placebo")
    steer = results.select(site="1_post", edit="steer")
    if not math.isnan(steer.above_placebo):
        assert steer.above_placebo == pytest.approx(
            (steer.recovery - placebo.recovery) / (donor.recovery - placebo.recovery)
        )


def test_an_edits_row_is_that_of_its_context(random_model, random_report, mess3):
    """Every edit that needs no second run, made by hand through the probe, with displacement read by hand."""
    chosen = ("steer", "patch", "pseudo-inverse", "covariance", "erase", "keep only", "project out")
    makers = {
        "steer": edits.steer,
        "patch": edits.patch,
        "pseudo-inverse": edits.pseudo_inverse_shift,
        "covariance": edits.covariance_shift,
        "erase": msp.interventions.erase,
        "keep only": msp.interventions.keep_only,
        "project out": msp.interventions.project_out,
    }
    belief = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)
    probes = [random_report["ln_final"], random_report["0_post"]]
    results = msp.intervene(
        random_model, mess3, probes=probes, positions=2, edits=chosen, targets=belief, strengths=(0.5, 1.0), n_words=50
    )
    words = mess3.sample(50, 3, generator=torch.Generator().manual_seed(0))
    actual = msp.filter_beliefs(mess3, words)[:, -1]
    reader = random_report["ln_final"]

    def run():
        seen = {}
        with (
            torch.no_grad(),
            random_model.hooks(fwd_hooks=[(reader.sites[0], lambda h, hook: seen.update(h=h[:, -1]))]),
        ):
            log_predicted = random_model(words)[:, -1].double().log_softmax(-1)
        return log_predicted, reader.predict(seen["h"]).double()

    _, before = run()
    for name, make in makers.items():
        for strength in (0.5, 1.0):
            edit = make(random_report["0_post"]).scaled(strength)
            with msp.applying(random_model, edit, belief, position=-1):
                log_predicted, after = run()
            row = results.select(site="0_post", edit=name, strength=strength)
            assert row.kl_to_target == pytest.approx(kl_to(mess3, belief.expand(50, -1), log_predicted), rel=1e-5)
            assert row.kl_to_actual == pytest.approx(kl_to(mess3, actual, log_predicted), rel=1e-5)
            way = belief - before
            displacement = float(((after - before) * way).sum() / (way * way).sum())
            assert row.displacement == pytest.approx(displacement, abs=1e-4)
    assert math.isnan(results.select(site="ln_final", edit="steer", strength=1.0).displacement)
    curve = results.curve("steer", site="0_post")
    assert list(curve.index) == [0.5, 1.0]
    assert curve[1.0] == results.select(site="0_post", edit="steer", strength=1.0).kl_to_target


def test_batches_make_no_difference(random_model, random_report, mess3):
    chosen = [name for name in EDITS if "placebo" not in name]
    for options in ({}, {"together": True, "targets": ["counterfactual", "simplex"]}):
        results = [
            msp.intervene(
                random_model,
                mess3,
                probes=[random_report["0_post"], random_report["ln_final"]],
                positions=3,
                edits=chosen,
                n_words=12,
                batch_size=batch_size,
                **options,
            )
            for batch_size in (None, 7)
        ]
        tables = [report.to_dataframe().query("edit != 'placebo'").drop(columns="above_placebo") for report in results]
        for column in tables[0].select_dtypes("number"):
            torch.testing.assert_close(
                torch.tensor(tables[0][column].to_numpy()),
                torch.tensor(tables[1][column].to_numpy()),
                atol=1e-5,
                rtol=1e-4,
                equal_nan=True,
            )


def test_all_sites_at_once_is_their_edits_nested(random_model, random_report, mess3):
    results = msp.intervene(
        random_model,
        mess3,
        probes=random_report,
        positions=3,
        edits=["steer"],
        targets="vertex",
        together=True,
        n_words=40,
    )
    generator = torch.Generator().manual_seed(0)
    words = mess3.sample(40, 4, generator=generator)
    made = msp.interventions.TARGETS["vertex"](mess3, words, generator)
    probes = [probe for probe in random_report.values() if len(probe.sites) == 1]
    with torch.no_grad(), msp.applying(random_model, [edits.steer(p) for p in probes], made.beliefs, position=3):
        log_predicted = random_model(words)[:, -1].double().log_softmax(-1)
    optimal = msp.next_token_probabilities(mess3, made.beliefs)
    expected = float((optimal * (optimal.log() - log_predicted)).sum(-1).mean())
    assert results.select(site="all sites", edit="steer").kl_to_target == pytest.approx(expected, rel=1e-5)


def test_random_weights_show_no_recovery_beyond_their_placebo(mess3):
    """The experiment can fail: the belief can be read and written here, but nothing acts on it.

    One random network's predictions go with the belief by chance, with either sign; over many nothing is left.
    """
    beyond = []
    for seed in range(10):
        config = msp.ModelConfig(d_vocab=3, n_layers=2, d_model=32, d_head=8, d_mlp=64, n_ctx=5)
        model = msp.build_model(config, seed=seed)
        report = msp.probe(model, mess3, sites=["0_post", "1_post"], split=msp.probing.Split(n_folds=2), progress=False)
        assert report["1_post"].scores.in_sample.r2 > 0.7
        results = msp.intervene(model, mess3, probes=report, positions=4, n_words=200)
        assert results.to_dataframe()["above_placebo"].isna().all()
        assert "it does not act on the belief" in " ".join(results.summary())
        beyond.append(
            [
                results.select(site=site, edit=edit).recovery - results.select(site=site, edit="placebo").recovery
                for site in ("0_post", "1_post")
                for edit in ("steer", "patch", "pseudo-inverse")
            ]
        )
    excess = torch.tensor(beyond)
    assert (excess.mean(dim=0) <= 2 * excess.std(dim=0) / 10**0.5).all()


def test_results_are_reproducible_and_leave_the_model_alone(
    random_model, random_report, mess3, untouched, global_state
):
    probes = random_report["0_post"]
    first, again = (msp.intervene(random_model, mess3, probes=probes, n_words=50, seed=1) for _ in range(2))
    assert first.to_dict() == again.to_dict()
    other = msp.intervene(random_model, mess3, probes=probes, n_words=50, seed=2)
    assert other.to_dict() != first.to_dict()
    random_model.train()
    msp.intervene(random_model, mess3, probes=probes, n_words=10)
    assert all(module.training for module in random_model.modules())


def test_tables_maps_and_figures(random_model, random_report, mess3):
    results = msp.intervene(random_model, mess3, probes=random_report, positions=[1, -1], n_words=20)
    table = results.to_dataframe()
    assert len(table) == 4 * 2 * 7
    assert sorted(table["position"].unique()) == [1, 4]
    text = repr(results)
    for expected in ("placebo", "donor", "1_post", "pseudo-inverse", "nats", "share recovered", "not that"):
        assert expected in text
        assert expected in results._repr_html_()
    # First of all the contrast; in a notebook cells are as dark as the share recovered.
    assert results.summary()[0].startswith("At ")
    assert results._repr_html_().count("background: rgba") == (table["recovery"] > 0).sum() > 0
    with pytest.raises(KeyError, match="2 results for site='1_post'"):
        results.select(site="1_post", edit="steer")
    assert results.select(site="1_post", edit="steer", position=4).position == 4
    wide = results.map("steer", value="kl_to_target")
    assert wide.shape == (4, 2)
    assert list(wide.index) == ["0_pre", "0_post", "1_post", "ln_final"]
    assert wide.loc["1_post", 4] == results.select(site="1_post", edit="steer", position=4).kl_to_target
    with pytest.raises(KeyError, match="0 results for edit='erase'"):
        results.map("erase")
    with pytest.raises(KeyError, match="2 results for edit='steer', site='1_post'"):
        results.curve("steer", site="1_post")
    assert len(results.plot(position=4).axes[0].patches) == 4 * 6
    assert results.plot.map("steer").axes[0].get_title() == "steer: recovery"
    assert results.plot.strengths(site="0_post", position=1).axes[0].lines
    # Many edits stand one below the other.
    many = msp.intervene(random_model, mess3, probes=random_report["0_post"], edits=list(EDITS), n_words=5)
    assert "donor belief" in repr(many)
    assert list(many._display().index) == list(EDITS)


def test_a_report_survives_json(random_model, random_report, mess3):
    """Undefined numbers, display and pictures included."""
    found = msp.intervene(random_model, mess3, probes=random_report, strengths=(0.5, 1.0), n_words=20)
    assert found.table["displacement"].isna().any()
    again = msp.InterventionReport.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    pd.testing.assert_frame_equal(again.table, found.table)
    assert again.to_dict() == found.to_dict()
    assert repr(again) == repr(found)
    assert again._repr_html_() == found._repr_html_()
    assert len(again.plot().axes[0].patches) == len(found.plot().axes[0].patches) == 4 * 6


def test_edits_made_only_in_part_are_shown_too(random_model, random_report, mess3):
    found = msp.intervene(random_model, mess3, probes=random_report["0_post"], edits="steer", strengths=0.5, n_words=20)
    assert found.select(site="0_post", edit="steer").strength == 0.5
    assert found.select(site="0_post", edit="donor", strength=1.0).n == 20
    assert "donor" in found.summary()[0]


def test_a_dataset_stands_for_its_process_and_the_length_of_its_words(random_model, random_report, mess3):
    dataset = msp.data.all_words(mess3, 4)
    found = msp.intervene(random_model, dataset, probes=random_report["0_post"], n_words=20)
    by_process = msp.intervene(random_model, mess3, probes=random_report["0_post"], positions=3, n_words=20)
    pd.testing.assert_frame_equal(found.table, by_process.table)
    lasting = msp.persistence(random_model, dataset, probes=random_report["0_post"], n_words=20)
    # Three quarters into the words, but no later than the last position but one.
    assert lasting.provenance["position"] == 2


def test_one_target_for_each_kind(random_model, random_report, mess3):
    results = msp.intervene(
        random_model,
        mess3,
        probes=random_report["0_post"],
        targets={"certain": [1.0, 0, 0], "changed": msp.interventions.TARGETS["counterfactual"]},
        n_words=10,
    )
    assert results.provenance["targets"] == ["certain", "changed"]
    assert results.select(site="0_post", edit="steer", target="certain").n == 10


def test_bad_requests_are_refused(random_model, random_report, mess3):
    def refused(error, match, **options):
        with pytest.raises(error, match=match):
            msp.intervene(random_model, mess3, **{"probes": random_report} | options)

    refused(ValueError, "position=5 is outside the context", positions=5)
    refused(ValueError, "reads 4 sites", probes=random_report["concatenated"])
    refused(ValueError, "n_words=1: give at least 2", n_words=1)
    refused(ValueError, "probes is empty", probes=[])
    refused(ValueError, "positions=\\[\\]", positions=[])
    refused(KeyError, "No edit 'stear'; there are none, placebo", edits="stear")
    refused(KeyError, "No target 'x'", targets="x")
    refused(ValueError, "sums to 0.9", targets=torch.tensor([0.5, 0.2, 0.2]))
    refused(ValueError, "strengths=\\[\\]", strengths=[])
    refused(ValueError, "strengths=nan: give a number, not NaN", strengths=float("nan"))


def test_the_error_of_a_ratio():
    """Against the spread of the ratio over many samples."""
    generator = torch.Generator().manual_seed(0)

    def draw():
        x = torch.rand(200, dtype=torch.float64, generator=generator) + 0.5
        return x * 0.3 + 0.2 * torch.randn(200, dtype=torch.float64, generator=generator), x

    values, errors = zip(*[ratio(*draw()) for _ in range(2000)], strict=True)
    assert torch.tensor(values).std().item() == pytest.approx(sum(errors) / 2000, rel=0.06)
    assert sum(values) / 2000 == pytest.approx(0.3, abs=0.002)
    nothing = torch.zeros(5, dtype=torch.float64)
    assert all(math.isnan(number) for number in ratio(nothing, nothing))
