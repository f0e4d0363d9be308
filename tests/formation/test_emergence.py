"""Checkpoints of a run, probed on the same words: what is read, what is used, and in what order."""

import copy
import dataclasses
import math
import pickle
from importlib import import_module

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import msp_lens as msp
from msp_lens.formation import Emergence
from msp_lens.models import model_fingerprint

SMALL = {"n_layers": 2, "d_model": 16, "d_head": 8, "d_mlp": 32, "n_ctx": 5}


def trained(folder, process, *, steps=60, checkpoints=(0, 10, 30), **changes):
    model = msp.ModelConfig(d_vocab=process.n_tokens, **{**SMALL, **changes})
    config = msp.TrainingConfig(
        steps=steps, batch_size=64, learning_rate=1e-2, warmup_steps=5, checkpoints=tuple(checkpoints)
    )
    return msp.train(process, model, config=config, out=folder, progress=False).folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, mess3):
    return trained(tmp_path_factory.mktemp("run"), mess3)


@pytest.fixture(scope="module")
def found(run):
    return msp.emergence(run, interventions=True, n_words=200, progress=False)


def test_each_row_is_what_probing_that_checkpoint_gives(run, found, mess3):
    table = found.to_dataframe().set_index(["step", "site"])
    assert list(table.index.unique("step")) == [0, 10, 30, 60]
    assert list(table.loc[0].index) == ["0_pre", "0_post", "1_post", "ln_final", "concatenated"]
    for saved in msp.training.saved_checkpoints(run)[::3]:
        report = msp.probe(saved.load().model, mess3, progress=False)
        expected = report.to_dataframe()
        rows = table.loc[saved.step]
        for column in ("R² held out", "R² in-sample", "MSE held out", "MSE in-sample", "skill"):
            np.testing.assert_allclose(rows[column], expected[column], rtol=1e-6)
        assert rows["tokens"].unique() == [saved.step * 64 * 5]
        assert rows["regret"].iloc[0] == pytest.approx(float(report.regret.mean()), rel=1e-9)
        np.testing.assert_allclose(found.regret_by_position().loc[saved.step], report.regret, rtol=1e-9)


def test_recoveries_are_those_of_the_experiment(run, found, mess3):
    last = msp.training.saved_checkpoints(run)[-1].load().model
    report = msp.probe(last, mess3, progress=False)
    expected = msp.intervene(last, mess3, probes=report, edits="steer", n_words=200)
    rows = found.to_dataframe().query("step == 60").set_index("site")
    for edit in ("steer", "placebo", "donor"):
        assert rows.loc["1_post", edit] == pytest.approx(expected.select(site="1_post", edit=edit).recovery, rel=1e-6)
    assert rows.loc["1_post", "used"] == pytest.approx(
        expected.select(site="1_post", edit="steer").above_placebo, rel=1e-6, nan_ok=True
    )
    assert math.isnan(rows.loc["concatenated", "steer"])


def test_words_are_made_once_and_shared(run, monkeypatch):
    # The function has the module's name in the package.
    module = import_module("msp_lens.formation.emergence")
    probed = []
    monkeypatch.setattr(module, "probe", lambda model, data, **k: probed.append(data) or msp.probe(model, data, **k))
    found = msp.emergence(run, controls=False, progress=False)
    assert len(probed) == len(found) == 4
    assert all(data is found.dataset for data in probed)
    assert found.dataset.n_ctx == 5


def test_a_given_dataset_and_some_checkpoints(run, mess3):
    dataset = msp.data.sampled_words(mess3, 200, 4, seed=0)
    found = msp.emergence(
        msp.training.saved_checkpoints(run)[::-2], dataset, sites="*_post", controls=False, progress=False
    )
    assert [snapshot.step for snapshot in found.snapshots] == [10, 60]
    assert found.dataset is dataset
    assert found.sites == ("0_post", "1_post", "concatenated")
    assert math.isnan(found.rank_correlation())
    assert not math.isnan(
        msp.emergence(run, msp.data.all_words(mess3, 2), controls=False, progress=False).rank_correlation()
    )


def test_onset_is_the_first_step_from_which_on_it_holds(found):
    values = found.over_training("R² held out", "1_post")["1_post"]
    highest = values.max()
    assert found.onset("R² held out", -10, "1_post") == 0
    assert found.onset("R² held out", highest + 1e-9, "1_post") is None
    # What holds for a while only is no onset.
    values = found.over_training("placebo", "1_post")["1_post"]
    threshold = values.iloc[-1]
    since = found.onset("placebo", threshold, "1_post")
    assert (values.loc[since:] >= threshold).all()
    assert since == 0 or values.loc[:since].iloc[-2] < threshold
    with pytest.raises(KeyError, match="No column 'speed'"):
        found.onset("speed", 1)


def test_save_and_load(run, found, tmp_path):
    loaded = Emergence.load(found.save(tmp_path / "emergence"))
    assert loaded.to_dataframe().equals(found.to_dataframe())
    assert repr(loaded) == repr(found)
    assert np.array_equal(loaded.plot.movie("1_post").frames, found.plot.movie("1_post").frames)
    with pytest.raises(FileNotFoundError, match="Emergence"):
        Emergence.load(tmp_path)


def test_the_table_says_what_it_is(found):
    text, page = repr(found), found._repr_html_()
    for shown in (text, page):
        assert "Emergence of beliefs: mess3" in shown
        assert "every possible word" in shown
        assert "Spearman" in shown
        assert "steer" in shown
    assert text.count("\n") > 4 + len(found)


def test_figures(found):
    for figure, n_axes in (
        (found.plot(), 3),
        (found.plot("1_post", in_sample=True), 3),
        (found.plot.regret("1_post"), 2),
        (found.plot.use(), 4),
    ):
        assert len(figure.axes) == n_axes
    lines = found.plot("1_post").axes[0].get_lines()
    assert lines[0].get_ydata() == pytest.approx(found.over_training("R² held out", "1_post")["1_post"].tolist())


def test_the_movie_has_a_frame_for_each_checkpoint(found):
    movie = found.plot.movie("1_post", "concatenated")
    assert len(movie) == 4
    assert movie.captions[0].startswith("step 0 ")
    assert (movie.frames[0] != movie.frames[-1]).any()
    with pytest.raises(KeyError, match="No probe for '7_post'"):
        found.plot.movie("7_post")


def test_a_movie_of_models_that_changed_is_refused(run, found, tmp_path):
    others = msp.training.saved_checkpoints(trained(tmp_path, msp.mess3(), steps=60, checkpoints=(0, 10, 30)))
    assert model_fingerprint(others[0].load().model) == model_fingerprint(found.checkpoints[0].load().model)
    mixed = dataclasses.replace(found, checkpoints=(*found.checkpoints[:-1], others[1]))
    with pytest.raises(ValueError, match="has changed since it was probed"):
        mixed.plot.movie()
    with pytest.raises(ValueError, match="no words or models"):
        dataclasses.replace(found, dataset=None).plot.movie()


def test_bad_requests(run, tmp_path, mess3):
    with pytest.raises(FileNotFoundError, match="no checkpoints"):
        msp.emergence(tmp_path)
    with pytest.raises(ValueError, match="run holds no checkpoints"):
        msp.emergence([])
    checkpoints = msp.training.saved_checkpoints(run)
    with pytest.raises(ValueError, match="are both of step 10"):
        msp.emergence([checkpoints[0], checkpoints[1], checkpoints[1]])
    with pytest.raises(ValueError, match="n_ctx=6 is longer"):
        msp.emergence(run, msp.data.all_words(mess3, 6))
    with pytest.raises(ValueError, match="n_words=1: give at least 2"):
        msp.emergence(run, n_words=1)
    with pytest.raises(KeyError, match="no site '9_post'"):
        msp.emergence(run, sites="9_post")
    with pytest.raises(ValueError, match="No beliefs were written"):
        msp.emergence(checkpoints[:1], msp.data.all_words(mess3, 2), controls=False, progress=False).plot.use()


@pytest.mark.parametrize(
    ("process", "changes", "message"),
    [
        (msp.mess3(x=0.15, a=0.6), {}, r"was trained on mess3\(x=0\.15.*one training"),
        (msp.mess3(), {"d_model": 8}, r"another architecture .*d_model is 8, not 16"),
    ],
)
def test_checkpoints_of_several_runs_are_refused_before_any_is_loaded(run, process, changes, message, tmp_path):
    other = trained(tmp_path, process, steps=2, checkpoints=(1,), **changes)
    # Damaged weights are noticed only if they are read.
    for saved in msp.training.saved_checkpoints(other):
        content = bytearray(saved.path.read_bytes())
        content[-1] ^= 1
        saved.path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        msp.emergence([msp.training.saved_checkpoints(run)[0], *msp.training.saved_checkpoints(other)])


def loaded(run):
    return {saved.step: saved.load().model for saved in msp.training.saved_checkpoints(run)}


def test_models_and_files_by_step_are_a_series(run, found, mess3):
    models = loaded(run)
    files = {saved.step: saved.path for saved in msp.training.saved_checkpoints(run)}
    mixed = {60: models[60], 0: str(files[0]), np.int64(10): msp.load_checkpoint(files[10]), 30.0: files[30]}
    expected = found.to_dataframe()
    for series in (models, files, mixed):
        again = msp.emergence(series, mess3, progress=False)
        table = again.to_dataframe()
        assert list(again.snapshots[0].report) == list(found.sites)
        for column in ("step", "site", "regret", "R² held out", "skill"):
            assert table[column].tolist() == expected[column].tolist()
    # A file of ours says how many tokens it has seen; a model does not.
    again = msp.emergence(files, controls=False, progress=False)
    assert again.to_dataframe()["tokens"].tolist() == expected["tokens"].tolist()


def test_a_series_of_others_is_shown_and_saved(run, tmp_path):
    found = msp.emergence(loaded(run), msp.data.all_words(msp.mess3(), 2), controls=False, progress=False)
    assert [snapshot.tokens for snapshot in found.snapshots] == [None] * 4
    assert "tokens" not in repr(found).splitlines()[1]
    assert [axis.get_xlabel() for axis in found.plot().axes] == ["steps"] * 3
    assert found.plot.regret("1_post").axes[-1].get_ylabel() == "steps"
    movie = found.plot.movie("1_post")
    assert len(movie) == 4
    assert "tokens" not in "".join(movie.captions)
    again = Emergence.load(found.save(tmp_path / "emergence"))
    assert again.to_dataframe().equals(found.to_dataframe())
    with pytest.raises(ValueError, match="no words or models"):
        again.plot.movie()


def test_what_is_no_series_is_refused(run, tmp_path, mess3):
    models = loaded(run)
    # Where calls are type-checked, the check comes first.
    with pytest.raises(TypeError, match=r"HookedTransformer|TransformerBridge"):
        msp.emergence(list(models.values()), mess3)
    for value in (models[0], 3, None):
        with pytest.raises(TypeError, match="run"):
            msp.emergence(value, mess3)
    with pytest.raises(ValueError, match="one model object at several steps"):
        msp.emergence({0: models[0], 10: models[0]}, mess3)
    with pytest.raises(ValueError, match=r"step=-1: give at least 0"):
        msp.emergence({-1: models[0]}, mess3)
    with pytest.raises(ValueError, match="give data="):
        msp.emergence({0: models[0]})
    other = msp.build_model(msp.ModelConfig(d_vocab=3, **SMALL | {"d_model": 8}))
    with pytest.raises(ValueError, match=r"the model of step 7 is of another architecture.*d_model is 8, not 16"):
        msp.emergence({0: models[0], 7: other}, mess3)
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match=r"run\[5\]=.*foreign\.safetensors' was not saved by msp_lens: build"):
        msp.emergence({0: models[0], 5: tmp_path / "foreign.safetensors"}, mess3)
    with pytest.raises(ValueError, match="position=5: words have positions 0 to 4"):
        msp.emergence(run, interventions=True, position=5)


def test_emergences_are_plain_values(run, found, tmp_path):
    assert found == copy.deepcopy(found) == pickle.loads(pickle.dumps(found))
    assert found == Emergence.load(found.save(tmp_path / "emergence"))
    assert found != dataclasses.replace(found, snapshots=found.snapshots[:-1])


DAMAGES = {
    "half": (lambda text: text[: len(text) // 2], "is not valid JSON"),
    "nested": (lambda text: "[" * 100_000, "is not valid JSON"),
    "no snapshots": (lambda text: text.replace('"snapshots"', '"shots"'), "snapshots"),
    "step": (lambda text: text.replace('"step": 10', '"step": -10'), r"step=-10"),
    "weighting": (lambda text: text.replace('"weighting": "prob', '"weighting": "im'), "weighting='im.*choose one of"),
    "interventions": (lambda text: text.replace('"results"', '"result"'), "interventions of step 0 are damaged"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_named(found, damage, message, tmp_path):
    file = found.save(tmp_path) / "emergence.json"
    file.write_text(damage(file.read_text()))
    with pytest.raises(ValueError, match=message) as raised:
        Emergence.load(tmp_path)
    assert str(file) in str(raised.value)


def test_saving_again_leaves_nothing_of_before(found, tmp_path):
    found.save(tmp_path)
    dataclasses.replace(found, snapshots=found.snapshots[:1]).save(tmp_path)
    assert [path.name for path in tmp_path.glob("probes-*")] == ["probes-00000000.safetensors"]
    with pytest.raises(ValueError, match="is a file's name"):
        found.save(tmp_path / "found.json")


@pytest.mark.slow
def test_the_papers_order(tmp_path, mess3):
    """The coarse triangle within tens of steps, the fractal's detail late, and regret and MSE falling together."""
    config = msp.TrainingConfig(
        steps=300, batch_size=128, learning_rate=5e-3, warmup_steps=30, checkpoints=(0, 5, 10, 20, 40, 80, 150)
    )
    model = msp.ModelConfig(d_vocab=3, n_layers=2, n_ctx=7)
    run = msp.train(mess3, model, config=config, out=tmp_path, progress=False)
    found = msp.emergence(
        run, sites=["0_post", "1_post"], weighting="sequence", interventions=True, n_words=500, progress=False
    )
    # The triangle: most of the beliefs' variance, held out, within tens of steps.
    assert found.over_training("R² held out", "1_post")["1_post"][40] > 0.85
    # The fractal: in the paper's measure, all words in-sample, most of what is then left goes later. (Held out, early
    # networks' 64 features on 3,279 prefixes are scored too noisily for it.)
    error = found.over_training("MSE in-sample", "1_post")["1_post"]
    assert error[300] < 0.4 * error[40]
    assert error[300] < 0.6 * error[80]
    assert found.rank_correlation("1_post", in_sample=True) > 0.8
    # The belief is used long before its detail is there.
    used = found.onset("used", 0.5, "1_post")
    assert used is not None
    assert 0 < used <= 80
