"""Targets that are classes: logistic read-outs on rows kept during the pass."""

import json
import pickle

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import msp_lens as msp
from msp_lens._files import read_tensors, write_tensors
from msp_lens.data import LabelledTokens
from msp_lens.models.activations import stream_activations


@pytest.fixture(scope="module")
def model():
    return msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=1, d_model=16, d_head=8, d_mlp=32, n_ctx=5), seed=1)


@pytest.fixture(scope="module")
def data():
    """The previous token, by name: an untrained network's attention carries something of it."""
    tokens = torch.randint(0, 3, (120, 5), generator=torch.Generator().manual_seed(0))
    names = np.array(["ant", "bee", "cat"])[torch.cat([tokens[:, :1], tokens[:, :-1]], dim=1)]
    return LabelledTokens.from_tokens(tokens, {"previous": names}, positions=slice(1, None))


@pytest.fixture(scope="module")
def report(model, data):
    return msp.probe(model, data, progress=False)


def test_read_outs_are_scikit_learns_on_all_rows(model, data, report):
    for site in ("0_pre", "0_post"):
        (name,) = report[site].sites
        batches = stream_activations(model, data.tokens, name)
        rows = torch.cat([batch.activations[name] for batch in batches])[data.words, data.columns].double()
        labels = data.targets["previous"].argmax(dim=1)
        reference = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(rows.numpy(), labels.numpy())
        found = report.classes[site]
        assert found.in_sample.n == len(data)
        assert found.in_sample.accuracy == pytest.approx(reference.score(rows.numpy(), labels.numpy()), abs=0.01)
        expected = reference.predict_proba(rows.numpy())
        np.testing.assert_allclose(found.read_map.predict(rows), expected, atol=0.01)
        assert found.held_out.cross_entropy >= found.in_sample.cross_entropy
    assert report.classes["0_post"].read_map.classes == ("ant", "bee", "cat")
    # The embedding knows nothing of the token before; the attention layer does. Prefixes are held out together, so what
    # is seen of one token beside some others is not seen beside this one: less than chance.
    assert report.classes["0_post"].held_out.auc > report.classes["0_pre"].held_out.auc + 0.1
    assert report.classes["0_pre"].held_out.auc < 0.55


def assert_drawn(report):
    """The picture shows the table's numbers, the baselines, and the reliability of the best site or those named."""
    table = report.classes.to_dataframe()
    accuracy, cost, calibration = report.plot.classes().axes
    for axis, name, baseline in (
        (accuracy, "accuracy", max(report.classes.shares.values())),
        (cost, "cross-entropy", report.classes.entropy),
    ):
        drawn = {line.get_label(): list(line.get_ydata()) for line in axis.lines}
        assert drawn["held out"] == table[f"{name} held out"].tolist()
        assert drawn["in-sample"] == table[f"{name} in-sample"].tolist()
        assert [baseline] * 2 in [list(line.get_ydata()) for line in axis.lines]
    best = table["cross-entropy held out"].idxmin()
    assert [text.get_text() for text in calibration.get_legend().get_texts()] == [
        f"{best}, held out",
        f"{best}, in-sample",
    ]
    bins = report.classes.reliability().loc[best]
    assert calibration.lines[1].get_ydata().tolist() == pytest.approx(bins["accuracy"].tolist())
    named = report.plot.classes("0_pre", "0_post", theme="dark").axes[2].get_legend().get_texts()
    assert [text.get_text() for text in named] == ["0_pre, held out", "0_post, held out"]
    with pytest.raises(KeyError, match="No read-out at '7_post'"):
        report.plot.classes("7_post")


def test_damaged_scores_are_refused(report, tmp_path):
    path = report.save(tmp_path / "report.safetensors")
    tensors, metadata = read_tensors(path)
    for key, value in (("accuracy", 1.5), ("reliability", [{"low": 0.0}]), ("balanced_accuracy", None)):
        saved = json.loads(metadata["msp_lens_report"])
        saved["classes"]["readouts"][0]["held_out"][key] = value
        write_tensors(path, tensors, {"msp_lens_report": json.dumps(saved)})
        with pytest.raises(ValueError, match=key):
            msp.ProbeReport.load(path)


def test_the_report_tells_and_keeps_them(report, model, data, tmp_path):
    said = " ".join(repr(report).split())
    assert "Classes, by logistic read-outs (report.classes), held out: at " in said
    assert "alone is right for" in said
    assert said.startswith("Probes of the label 'previous'")
    assert "; the label 'previous'." in said
    assert sum(report.classes.shares.values()) == pytest.approx(1)
    assert "Calibration error" in said
    table = report.classes.to_dataframe()
    assert [*table.index, "concatenated"] == list(report)
    share, entropy = max(report.classes.shares.values()), report.classes.entropy
    assert (table["accuracy of the commonest class"] == share).all()
    assert (table["entropy of the shares"] == entropy).all()
    truth = data.targets["previous"].mean(dim=0)
    assert share == pytest.approx(float(truth.max()))
    assert entropy == pytest.approx(float(-(truth * truth.log()).sum()))
    for name in ("accuracy", "cross-entropy"):
        assert (table[f"{name} low"] < table[f"{name} held out"]).all()
        assert (table[f"{name} held out"] < table[f"{name} high"]).all()
    assert (table["n"] == len(data)).all()
    # Beside R², in the report's own table, too.
    beside = report.to_dataframe().loc[table.index]
    for name in ("accuracy", "cross-entropy", "calibration error"):
        assert beside[f"{name} held out"].tolist() == table[f"{name} held out"].tolist()
    assert len(report.to_dict()["classes"]) == 3
    bins = report.classes.reliability().loc["0_post"]
    assert bins["share of rows"].sum() == pytest.approx(1)
    error = float((bins["share of rows"] * (bins["accuracy"] - bins["confidence"]).abs()).sum())
    assert error == pytest.approx(table.loc["0_post", "calibration error held out"])
    assert "Logistic read-outs" in repr(report.classes)
    loaded = msp.ProbeReport.load(report.save(tmp_path / "report.safetensors"), model=model)
    assert loaded == report
    assert pickle.loads(pickle.dumps(report.classes)) == report.classes
    assert report.plot().axes
    assert_drawn(report)
    with pytest.raises(
        ValueError, match=r"labelled tokens.*report\.plot\.scores\(\).*steer\(model, 'ant', position=-1\)"
    ):
        report.run_on()


def test_a_resumed_pass_keeps_the_rows(report, model, data, tmp_path, monkeypatch):
    monkeypatch.setattr("msp_lens.moments.pass_progress.PassCheckpoint.is_due", property(lambda self: True))
    options = {"resume": tmp_path / "pass.safetensors", "batch_size": 50, "progress": False}
    passes = []

    def dying(activation, hook):
        passes.append(1)
        if len(passes) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), model.hooks(fwd_hooks=[("hook_embed", dying)]):
        msp.probe(model, data, **options)
    found = msp.probe(model, data, **options)
    assert found.classes["0_post"].held_out.accuracy == report.classes["0_post"].held_out.accuracy


def test_numbers_are_no_classes(model, data):
    values = torch.randn(120, 5, generator=torch.Generator().manual_seed(1))
    numbers = msp.probe(model, LabelledTokens.from_tokens(data.tokens, values), progress=False)
    assert numbers.classes is None
    with pytest.raises(ValueError, match="no classes: probe labelled tokens"):
        numbers.plot.classes()
