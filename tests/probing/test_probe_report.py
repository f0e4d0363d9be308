import json

import numpy as np
import pytest
import torch

import msp_lens as msp
from msp_lens.moments import OLS, ReducedRank, Ridge
from msp_lens.probing import score_probe


@pytest.fixture(scope="module")
def model():
    return msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=2, d_model=16, d_head=8, d_mlp=32, n_ctx=5), seed=1)


@pytest.fixture(scope="module")
def report(model, mess3):
    return msp.probe(model, mess3, by_position="own", progress=False)


def test_save_and_load(report, model, mess3, tmp_path):
    path = report.save(tmp_path / "report.safetensors")
    loaded = msp.ProbeReport.load(path, model=model, process=mess3)
    assert loaded.to_dataframe().equals(report.to_dataframe())
    assert loaded.controls.to_dataframe().equals(report.controls.to_dataframe())
    assert loaded.increments().equals(report.increments())
    assert loaded.by_position().equals(report.by_position())
    assert loaded.by_position(own=True).equals(report.by_position(own=True))
    assert loaded.by_rank().equals(report.by_rank())
    assert repr(loaded) == repr(report)
    assert torch.equal(loaded.regret, report.regret)
    activations = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded["1_post"].predict(activations), report["1_post"].predict(activations))
    assert loaded.plot("1_post").axes
    assert loaded.geometry().to_dataframe().equals(report.geometry().to_dataframe())


def test_words_that_a_seed_drew_are_drawn_again(model, mess3, tmp_path):
    options = {"sites": "1_post", "controls": False, "by_position": False, "progress": False}
    drawn = msp.words(mess3, n_ctx=5, n_words=60, seed=7)
    path = msp.probe(model, drawn, seed=1, **options).save(tmp_path / "seeded.safetensors")
    again = msp.ProbeReport.load(path, model=model).dataset
    assert torch.equal(again.tokens, drawn.tokens)
    assert torch.equal(again.word_weights, drawn.word_weights)
    unknown = msp.data.sampled_words(mess3, 60, 5, generator=torch.Generator().manual_seed(7))
    path = msp.probe(model, unknown, **options).save(tmp_path / "unknown.safetensors")
    assert msp.ProbeReport.load(path, model=model).dataset is None
    assert msp.ProbeReport.load(path, model=model, process=unknown).plot().axes


def test_a_report_of_another_model_or_process_is_refused(report, model, mess3, tmp_path):
    path = report.save(tmp_path / "report.safetensors")
    other = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=2, d_model=16, d_head=8, d_mlp=32, n_ctx=5), seed=2)
    with pytest.raises(ValueError, match=r"is a report on model .*; the model given"):
        msp.ProbeReport.load(path, model=other)
    with pytest.raises(ValueError, match=r"is a report on process .*mess3\(x=0\.15"):
        msp.ProbeReport.load(path, process=msp.mess3(x=0.15, a=0.6))
    alone = msp.ProbeReport.load(path)
    assert alone.process == mess3
    with pytest.raises(ValueError, match="load it with ProbeReport"):
        alone.plot()
    with pytest.raises(ValueError, match="load it with ProbeReport"):
        alone.geometry()
    with pytest.raises(ValueError, match="is not a probe report"):
        msp.ProbeReport.load(report["1_post"].save(tmp_path / "probe.safetensors"))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="is damaged"):
        msp.ProbeReport.load(path)


def test_the_table_shows_what_matters_at_a_glance(report):
    text = repr(report)
    assert max(map(len, text.splitlines())) <= 120
    assert "…" not in text
    for expected in ("R² held out", "95 %", "best control", "skill", "untrained=3", "folds by prefix"):
        assert expected in " ".join(text.split())
    table = report.to_dataframe()
    assert ((table["low"] <= table["R² held out"]) & (table["R² held out"] <= table["high"])).all()
    assert max(map(len, repr(report.controls).splitlines())) <= 120
    assert len(json.dumps(report.to_dict(), allow_nan=False)) > 1000


def test_scores_by_state_are_those_the_whole_is_made_of(report):
    by_state = report.by_state()
    assert list(by_state.columns) == ["A", "B", "C"]
    for label in report:
        scores = report[label].scores
        assert np.mean(scores.held_out.mse_by_target) == pytest.approx(scores.held_out.mse)
        assert by_state.loc[label].tolist() == list(scores.held_out.r2_by_target)


def test_positions_are_scored_by_the_one_probe_and_on_their_own(report, model, mess3):
    pooled, own = report.by_position(), report.by_position(own=True)
    assert pooled.shape == own.shape == (len(report), 5)
    n = [score.n for score in report["1_post"].scores.by_position]
    assert n == [3, 9, 27, 81, 243]
    # The weighted mean of the positions' errors is the whole error.
    mse = [score.mse for score in report["1_post"].scores.by_position]
    assert np.mean(mse) == pytest.approx(report["1_post"].scores.held_out.mse)
    in_order = msp.probe(model, msp.data.all_words(mess3, 5), by_position=False, progress=False)
    assert in_order["1_post"].scores.held_out.r2 == pytest.approx(report["1_post"].scores.held_out.r2, abs=1e-9)


def test_splits_from_lenient_to_strict(model, mess3):
    reports = {
        split: msp.probe(model, mess3, split=split, by_position=False, progress=False)
        for split in ("sequence", "prefix", "subtree")
    }
    in_sample = [report["1_post"].scores.in_sample.r2 for report in reports.values()]
    assert in_sample == pytest.approx([in_sample[0]] * 3, abs=1e-9)
    held_out = [report["1_post"].scores.held_out.r2 for report in reports.values()]
    assert held_out[0] > held_out[1] > 0
    assert held_out[0] > held_out[2]
    assert reports["sequence"]["1_post"].scores.held_out.n == 5 * 243
    assert "subtree of 3 tokens" in repr(reports["subtree"])
    assert "have been seen" in " ".join(repr(reports["sequence"]).split())


@pytest.mark.parametrize(
    ("solver", "says"),
    [
        ("ridge", "chosen on held-out folds"),
        (Ridge(0.1), "ridge with penalty 0.1"),
        (ReducedRank(1), "rank 1, by reduced-rank"),
        (OLS(intercept=False), "mess3"),
    ],
)
def test_other_ways_to_solve(model, mess3, report, solver, says):
    found = msp.probe(model, mess3, sites=["0_post", "1_post"], solver=solver, by_position=False, progress=False)
    assert says in " ".join(repr(found).split())
    ordinary, other = report["1_post"].scores, found["1_post"].scores
    assert other.in_sample.r2 <= ordinary.in_sample.r2 + 1e-9
    assert other.held_out.r2 > (0 if solver == ReducedRank(1) else 0.2)
    if solver == "ridge":
        table = found.by_penalty()
        assert table.loc["1_post"].idxmin() == other.penalty
        assert other.held_out.r2 > ordinary.held_out.r2 - 0.05
    if solver == ReducedRank(1):
        assert found["1_post"].read_map.rank == 1
        assert other.held_out.r2 == pytest.approx(found.by_rank().loc["1_post", 1])


def test_a_probe_reads_another_checkpoint_and_says_so(report, model, mess3):
    probe, dataset = report["1_post"], report.dataset
    assert probe.check_applies(model, mess3) == []
    same = score_probe(probe, model, dataset)
    assert same.r2 == pytest.approx(probe.scores.in_sample.r2, abs=1e-5)
    assert same.notes == ()
    other = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=2, d_model=16, d_head=8, d_mlp=32, n_ctx=5), seed=2)
    found = score_probe(probe, other, dataset)
    assert found.r2 < same.r2 - 0.1
    assert "not those the probe was fitted on" in found.notes[0]


def test_a_probe_says_when_it_should_not_be_applied(report, model):
    probe = report["1_post"]
    wider = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=2, d_model=32, n_ctx=5), seed=1)
    with pytest.raises(ValueError, match="has 32 features in this model and had 16"):
        probe.check_applies(wider)
    shallower = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=1, d_model=16, n_ctx=5), seed=1)
    with pytest.raises(KeyError, match="no site"):
        probe.check_applies(shallower)
    with pytest.raises(ValueError, match="reads beliefs of process"):
        probe.check_applies(model, msp.mess3(x=0.15, a=0.6))


def test_sites_may_be_left_apart(model, mess3, report):
    apart = msp.probe(model, mess3, concatenate=False, progress=False)
    assert list(apart) == list(report)[:-1]
    for label in apart:
        assert apart[label].scores.held_out.r2 == pytest.approx(report[label].scores.held_out.r2, abs=1e-9)


def test_activations_that_are_not_finite_name_the_site(model, mess3):
    broken = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=1, n_ctx=3), seed=1)
    with torch.no_grad():
        broken.W_E[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"NaN or infinity at blocks\.0\.hook_resid_pre in batch 0 \(words"):
        msp.probe(broken, mess3, progress=False)
