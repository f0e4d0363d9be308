"""Targets that are classes: logistic read-outs on rows kept during the pass."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import msp_lens as msp
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


def test_the_report_tells_and_keeps_them(report, model, data, tmp_path):
    said = " ".join(repr(report).split())
    assert "Classes, by logistic read-outs (report.classes), held out: at " in said
    assert "alone is right for" in said
    assert "the target 'previous'" in said
    assert sum(report.classes.shares.values()) == pytest.approx(1)
    assert report.classes.to_dataframe().shape == (3, 6)
    assert "Logistic read-outs" in repr(report.classes)
    loaded = msp.ProbeReport.load(report.save(tmp_path / "report.safetensors"), model=model)
    assert loaded == report
    assert pickle.loads(pickle.dumps(report.classes)) == report.classes
    assert report.plot().axes
    with pytest.raises(ValueError, match=r"labelled tokens.*report\.plot\.scores\(\).*steer\(model, v\)"):
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
    assert msp.probe(model, LabelledTokens.from_tokens(data.tokens, values), progress=False).classes is None
