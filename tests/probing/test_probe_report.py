import json

import numpy as np
import pytest
import torch

import msp_lens as msp
from msp_lens._files import read_tensors, write_tensors
from msp_lens.moments import OLS, ReducedRank, Ridge


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


def _edited(path, key, change):
    """A file whose header or tensors were changed, and its checksum made anew."""
    tensors, header = read_tensors(path)
    content = json.loads(header[key])
    change(content, tensors)
    write_tensors(path, tensors, {key: json.dumps(content)})
    return path


def _set(*keys, to):
    def change(content, _):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    return change


DAMAGE = [
    (_set("scores", "held_out", "r2", to=5.0), "r2=5 with mse="),
    (_set("scores", "held_out", "r2", to=None), "r2=nan with mse="),
    (_set("scores", "in_sample", "mse", to=-0.1), r"mse=-0\.1"),
    (_set("scores", "in_sample", "n", to="363"), r"in_sample\.n='363': give a whole number"),
    (_set("scores", "by_rank", to=3), r"by_rank=3: give a list"),
    (_set("scores", to=[]), r"\.scores=\[\]: give a mapping"),
    (_set("rows", to={"n": 3}), r"rows\.rounding='missing'"),
    (_set("widths", to=[17]), r"'.*weights' has shape \(16, 3\), not \(17, 3\)"),
    (_set("widths", to=[-16]), r"widths\[0\]=-16: give at least 1"),
    (_set("sites", to=[]), r"sites=\(\)"),
    (_set("rank", to=2.5), r"rank=2\.5: give a whole number"),
    (_set("name", to=7), r"name=7: give text"),
]
OF_TENSORS = [
    (lambda tensor: torch.full_like(tensor, float("nan")), "holds NaN or infinity"),
    (lambda tensor: tensor.new_zeros(2, 7), r"has shape"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGE)
def test_an_edited_probe_or_report_names_the_field(report, tmp_path, change, message):
    def of_report(content, tensors):
        place = next(i for i, each in enumerate(content["probes"]) if each["sites"] == ["blocks.1.hook_resid_post"])
        change(content["probes"][place], tensors)

    probe = _edited(report["1_post"].save(tmp_path / "probe.safetensors"), "msp_lens_probe", change)
    whole = _edited(report.save(tmp_path / "report.safetensors"), "msp_lens_report", of_report)
    for load, path in ((msp.BeliefProbe.load, probe), (msp.ProbeReport.load, whole)):
        with pytest.raises(ValueError, match=message) as raised:
            load(path)
        assert str(path) in str(raised.value)
        assert "copy or create it again" in str(raised.value)


@pytest.mark.parametrize("name", ["weights", "bias", "decoder", "activation_mean", "belief_mean", "scatter"])
@pytest.mark.parametrize(("change", "message"), OF_TENSORS)
def test_edited_weights_are_refused_by_name(report, tmp_path, name, change, message):
    path = report["1_post"].save(tmp_path / "probe.safetensors")
    _edited(path, "msp_lens_probe", lambda _, tensors: tensors.update({name: change(tensors[name])}))
    with pytest.raises(ValueError, match=message):
        msp.BeliefProbe.load(path)
    path = report["1_post"].save(tmp_path / "probe.safetensors")
    _edited(path, "msp_lens_probe", lambda _, tensors: tensors.pop(name))
    with pytest.raises(ValueError, match=f"'{name}' is missing|has shape"):
        msp.BeliefProbe.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("provenance", "n_folds", to="5"), "n_folds='5': give a whole number"),
        (lambda content, _: content["provenance"].pop("solver"), "solver='missing'"),
        (_set("provenance", "process", to={}), "provenance.process"),
        (_set("provenance", "process_fingerprint", to="0"), "provenance.process is not that of its fingerprint"),
        (_set("controls", 0, "kind", to="guess"), r"controls\[0\]\.kind='guess': choose one of"),
        (_set("controls", 0, "held_out", "r2", to=1.5), "r2=1.5 with"),
        (_set("cumulative", 0, "site", to=None), r"cumulative\[0\]\.site=None"),
        (_set("probes", to=[]), "holds a report without probes"),
        (lambda _, tensors: tensors["regret"].fill_(float("inf")), "'regret' holds NaN or infinity"),
    ],
)
def test_an_edited_report_names_the_field(report, tmp_path, change, message):
    path = _edited(report.save(tmp_path / "report.safetensors"), "msp_lens_report", change)
    with pytest.raises(ValueError, match=message) as raised:
        msp.ProbeReport.load(path)
    assert str(path) in str(raised.value)


def test_a_flipped_bit_of_a_report_is_found(report, tmp_path):
    path = report.save(tmp_path / "report.safetensors")
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match="does not match its checksum"):
        msp.ProbeReport.load(path)


def test_the_table_shows_what_matters_at_a_glance(report):
    text = repr(report)
    assert max(map(len, text.splitlines())) <= 120
    assert "…" not in text
    for expected in ("R² held out", "95 %", "best control", "untrained=3", "folds by prefix"):
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
        split: msp.probe(
            model, mess3, sites="1_post", split=split, solver="ols", by_position=False, controls=False, progress=False
        )
        for split in ("sequence", "prefix", "subtree")
    }
    in_sample = [report["1_post"].scores.in_sample.r2 for report in reports.values()]
    assert in_sample == pytest.approx([in_sample[0]] * 3, abs=1e-9)
    held_out = [report["1_post"].scores.held_out.r2 for report in reports.values()]
    assert held_out[0] > held_out[1] > 0
    assert held_out[0] > held_out[2]
    assert reports["sequence"]["1_post"].scores.held_out.n == 5 * 243
    assert "subtree of 3 tokens" in repr(reports["subtree"])
    assert "both fitted and scored" in " ".join(repr(reports["sequence"]).split())


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
    found = msp.probe(
        model, mess3, sites=["0_post", "1_post"], solver=solver, by_position=False, controls=False, progress=False
    )
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


def test_a_probe_says_that_it_was_fitted_on_another_checkpoint(report, model, mess3):
    probe = report["1_post"]
    assert probe.check_applies(model, mess3) == []
    other = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=2, d_model=16, d_head=8, d_mlp=32, n_ctx=5), seed=2)
    (note,) = probe.check_applies(other, mess3)
    assert "not those the probe was fitted on" in note
    assert "msp.probing.transfer(model, probe, dataset) scores it" in note


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
