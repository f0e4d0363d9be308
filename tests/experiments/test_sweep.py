"""Many networks in one call: each as it would be alone, in parallel, again and again, and in spite of failures."""

import copy
import dataclasses
import importlib
import json
import math
import pickle
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

import msp_lens as msp
from msp_lens.experiments.sweep import RESULT_FILE

FIXED = {"n_layers": 1, "d_head": 4, "d_mlp": 16, "n_ctx": 4, "steps": 20, "batch_size": 32, "warmup_steps": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def found(folder):
    """A width that is too small for the belief, one that is not; two processes; by two workers."""
    settings = FIXED | {"d_model": [1, 8], "learning_rate": 1e-2}
    return msp.sweep([msp.mess3(), msp.processes.z1r()], settings, out=folder, seeds=1, n_jobs=2, progress=False)


def test_a_row_for_each_combination(found):
    table = found.to_dataframe()
    assert len(found) == len(table) == 4
    assert (table["status"] == "done").all()
    assert table.groupby(["process", "d_model", "seed"]).size().tolist() == [1] * 4
    assert set(table["process"]) == {"mess3(x=0.05, a=0.85)", "z1r(p=0.5)"}
    assert set(found.to_dataframe("site").groupby(["process", "d_model", "seed"]).size()) == {4}


def test_each_run_is_what_it_would_be_alone(found, mess3):
    (run,) = [
        run for run in found.runs if run.settings["d_model"] == 8 and run.settings["seed"] == 1 and "mess3" in str(run)
    ]
    fields = {key: run.settings[key] for key in ("n_layers", "d_head", "d_mlp", "n_ctx", "d_model")}
    given = {"steps": 20, "batch_size": 32, "warmup_steps": 2, "learning_rate": 1e-2}
    config = dataclasses.replace(msp.training.recipe("quick", mess3).training, **given)
    alone = msp.train(mess3, msp.ModelConfig(d_vocab=3, **fields), config=config, seed=1, progress=False)
    report = msp.probe(alone.model, mess3, seed=1, progress=False)
    row = found.to_dataframe().set_index(["process", "d_model", "seed"]).loc[("mess3(x=0.05, a=0.85)", 8, 1)]
    assert row["regret"] == pytest.approx(float(alone.regret.mean()), rel=1e-4)
    best = report.best_site
    assert row["best site"] == best.label
    assert row["R² held out"] == pytest.approx(best.scores.held_out.r2, abs=1e-4)
    assert row["skill"] == pytest.approx(report.skill(best.label), rel=1e-2)
    assert row["parameters"] == sum(weight.numel() for weight in alone.model.parameters())
    # What was trained and probed lies in the run's folder.
    loaded = msp.load_checkpoint(run.folder)
    assert loaded.process == mess3
    saved = msp.ProbeReport.load(run.folder / "probes.safetensors", model=loaded.model)
    assert saved[best.label].scores.held_out.r2 == pytest.approx(row["R² held out"], abs=1e-9)


def test_one_dimension_cannot_hold_a_belief_of_two(found):
    table = found.to_dataframe("site")
    here = table[table["process"].str.startswith("mess3") & (table["site"] == "0_post")]
    r2 = here.groupby("d_model")["R² held out"].max()
    assert r2[8] > r2[1] + 0.1


def test_what_is_done_is_not_done_again(found, folder):
    before = {path: path.stat().st_mtime_ns for path in folder.glob(f"*/{RESULT_FILE}")}
    settings = FIXED | {"d_model": [8, 1], "learning_rate": 1e-2}
    again = msp.sweep([msp.processes.z1r(), msp.mess3()], settings, out=folder, seeds=[1], n_jobs=1, progress=False)
    assert {path: path.stat().st_mtime_ns for path in folder.glob(f"*/{RESULT_FILE}")} == before
    assert again.runs[0].settings["process"].startswith("z1r")
    key = ["process", "d_model", "seed"]
    assert (
        again.to_dataframe()
        .sort_values(key, ignore_index=True)
        .equals(found.to_dataframe().sort_values(key, ignore_index=True))
    )


def test_a_half_done_sweep_goes_on(tmp_path, monkeypatch):
    settings = FIXED | {"d_model": [2, 3, 4]}
    whole = msp.sweep(msp.processes.z1r(), settings, out=tmp_path / "whole", n_jobs=1, progress=False)
    sweeps = importlib.import_module("msp_lens.experiments.sweep")

    trained = []

    def train(*args, **options):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(args[1].d_model)
        return msp.train(*args, **options)

    monkeypatch.setattr(sweeps, "train", train)
    with pytest.raises(KeyboardInterrupt):
        msp.sweep(msp.processes.z1r(), settings, out=tmp_path / "half", n_jobs=1, progress=False)
    assert trained == [2, 3]
    assert len(msp.SweepResult.load(tmp_path / "half")) == 2
    trained.clear()
    rest = msp.sweep(msp.processes.z1r(), settings, out=tmp_path / "half", n_jobs=1, progress=False)
    assert trained == [4]
    columns = ["d_model", "regret", "R² held out", "MSE held out"]
    assert rest.to_dataframe()[columns].equals(whole.to_dataframe()[columns])
    assert msp.SweepResult.load(tmp_path / "half").to_dataframe()[columns].equals(whole.to_dataframe()[columns])


def test_a_failed_run_is_recorded_and_the_others_go_on(tmp_path):
    """A learning rate at which the loss stops being a number."""
    settings = FIXED | {"d_model": 4, "normalization_type": None, "learning_rate": [1e20, 1e-3]}
    found = msp.sweep(msp.processes.z1r(), settings, out=tmp_path, n_jobs=2, progress=False)
    assert [run.status for run in found.runs] == ["failed", "done"]
    assert found.failed[0].error.startswith("ValueError: ")
    written = json.loads((found.failed[0].folder / RESULT_FILE).read_text())
    assert "Traceback" in written["error"]["traceback"]
    table = found.to_dataframe()
    assert math.isnan(table["regret"][0])
    assert table["error"][0] == found.failed[0].error
    assert "1 failed" in repr(found)
    assert "ValueError" in found._repr_html_()
    assert found.plot("learning_rate", "regret").axes
    # Asked for again, it is tried again.
    stamp = (found.failed[0].folder / RESULT_FILE).stat().st_mtime_ns
    again = msp.sweep(msp.processes.z1r(), settings, out=tmp_path, n_jobs=1, progress=False)
    assert len(again.failed) == 1
    assert (found.failed[0].folder / RESULT_FILE).stat().st_mtime_ns > stamp


def test_interventions_and_emergence(tmp_path, mess3):
    settings = FIXED | {"d_model": 8, "checkpoints": [(0, 5)], "learning_rate": 1e-2}
    found = msp.sweep(
        mess3, settings, out=tmp_path, interventions=True, emergence=True, sites="*_post", n_jobs=1, progress=False
    )
    assert not found.failed
    row = found.to_dataframe().iloc[0]
    assert {"steer", "placebo", "donor", "used"} <= set(row.index)
    over = found.to_dataframe("checkpoint")
    assert over["step"].unique().tolist() == [0, 5, 20]
    last = over[(over["step"] == 20) & (over["site"] == "0_post")].iloc[0]
    assert last["steer"] == pytest.approx(row["steer"], rel=1e-6)
    assert last["R² held out"] == pytest.approx(row["R² held out"], rel=1e-6)
    assert msp.Emergence.load(found.runs[0].folder / "emergence").sites == ("0_post",)


def test_threads_and_seeds_of_this_process_stay(tmp_path, global_state):
    before = torch.get_num_threads()
    msp.sweep(msp.processes.z1r(), FIXED | {"d_model": [2, 3]}, out=tmp_path, n_jobs=2, progress=False)
    assert torch.get_num_threads() == before


def test_threads_give_what_processes_give(tmp_path, found, folder):
    """Initial weights are drawn from a generator that threads share."""
    import joblib

    settings = FIXED | {"d_model": [1, 8], "learning_rate": 1e-2}
    with joblib.parallel_config("threading", n_jobs=2):
        threaded = msp.sweep(msp.mess3(), settings, out=tmp_path, seeds=range(2), n_jobs=2, progress=False)
    columns = ["regret", "MSE held out"]
    table = threaded.to_dataframe()
    expected = found.to_dataframe().query("process.str.startswith('mess3')", engine="python")
    np.testing.assert_allclose(table[table["seed"] == 1][columns], expected[columns], rtol=1e-3)
    assert table["regret"].nunique() == 4


def test_on_a_local_dask_cluster(tmp_path, found):
    distributed = pytest.importorskip("distributed")
    import joblib

    settings = FIXED | {"d_model": [1, 8], "learning_rate": 1e-2}
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with (
        distributed.LocalCluster(**options) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config("dask"),
    ):
        clustered = msp.sweep(msp.mess3(), settings, out=tmp_path, seeds=1, progress=False)
    expected = found.to_dataframe().query("process.str.startswith('mess3')", engine="python")
    columns = ["regret", "MSE held out"]
    np.testing.assert_allclose(clustered.to_dataframe()[columns], expected[columns], rtol=1e-3)


def test_plots(found):
    figure = found.plot("d_model", "MSE held out")
    (axis,) = figure.axes
    assert [line.get_label() for line in axis.get_lines()] == ["mess3(x=0.05, a=0.85)", "z1r(p=0.5)"]
    table = found.to_dataframe()
    means = table[table["process"].str.startswith("mess3")].groupby("d_model")["MSE held out"].mean()
    np.testing.assert_allclose(axis.get_lines()[0].get_ydata(), means)
    assert found.plot("process", "regret").axes[0].get_xticklabels()[0].get_text() == "mess3(x=0.05, a=0.85)"
    assert found.plot("d_model", site="concatenated").axes
    with pytest.raises(KeyError, match="No 'width' here; there are process"):
        found.plot("width")
    with pytest.raises(KeyError, match="No site '9_post'"):
        found.plot("d_model", site="9_post")


@pytest.mark.parametrize(
    ("settings", "options", "error", "message"),
    [
        ({"width": [1]}, {}, KeyError, "No setting 'width'; there are d_vocab, n_layers"),
        ({"d_model": []}, {}, ValueError, "d_model=\\[\\]: give at least one value"),
        ({"d_model": [4, 0]}, {}, ValueError, "d_model=0: give at least 1"),
        ({"d_model": [4, 4]}, {}, ValueError, "is asked for twice"),
        ({}, {"preset": "slow"}, KeyError, "No preset 'slow'"),
        ({}, {"n_jobs": 0}, ValueError, "n_jobs=0"),
        ({}, {"n_jobs": 1.5}, ValueError, r"n_jobs=1\.5: give a whole number"),
        ({}, {"device": "gpu"}, ValueError, "device='gpu'"),
        ({}, {"seeds": 2**70}, ValueError, "seeds="),
        ({}, {"seeds": [0, -1]}, ValueError, "seeds"),
        ({}, {"seeds": "0"}, TypeError, "seeds='0'"),
        ({}, {"weighting": "words"}, ValueError, "weighting='words': choose one of"),
        ({"batch_size": "64"}, {}, TypeError, "batch_size='64'"),
        ({"d_model": "64"}, {}, TypeError, "d_model='64'"),
        ({"steps": [5, 2.5]}, {}, ValueError, r"steps=2\.5: give a whole number"),
        ({"n_layers": [1, 2]}, {"sites": "2_pots"}, KeyError, "2_pots"),
        ({"n_layers": [3, 1]}, {"sites": ["0_post", "2_post"]}, KeyError, "2_post"),
        ({"steps": 10, "checkpoints": [(0, 11)]}, {}, ValueError, "each must be from 0 to steps=10"),
        (["d_model"], {}, TypeError, "settings="),
    ],
)
def test_bad_requests_are_refused_before_any_work(settings, options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        msp.sweep(msp.processes.z1r(), settings, out=tmp_path / "sweep", **options)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="is a file's name"):
        msp.sweep(msp.processes.z1r(), {}, out=tmp_path / "table.json")
    with pytest.raises(FileNotFoundError, match="no run of a sweep"):
        msp.SweepResult.load(tmp_path)


GRIDS = {
    "array": (np.array([2, 3]), np.int64(20)),
    "tensor": (torch.tensor([2, 3]), torch.tensor(20)),
    "column": (pd.Series([2, 3]), 20.0),
    "numbers of NumPy": ([np.int32(2), np.float64(3)], np.float32(20)),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return msp.sweep(
        msp.processes.z1r(), FIXED | {"d_model": 2, "log_every": [2, 3]}, out=folder, n_jobs=1, progress=False
    )


@pytest.mark.parametrize(("every", "steps"), GRIDS.values(), ids=GRIDS)
def test_the_same_grid_in_another_container_is_the_same_sweep(every, steps, plain):
    settings = FIXED | {"d_model": 2, "log_every": every, "steps": steps}
    seeds = np.array([0])
    again = msp.sweep(msp.processes.z1r(), settings, out=plain.runs[0].folder.parent, seeds=seeds, progress=False)
    assert again == plain
    assert [type(run.settings["log_every"]) for run in again.runs] == [int, int]


def test_results_are_plain_values(plain):
    assert plain == pickle.loads(pickle.dumps(plain)) == copy.deepcopy(plain)
    assert plain == msp.SweepResult.load(plain.runs[0].folder.parent)
    assert plain != dataclasses.replace(plain, runs=plain.runs[::-1])


DAMAGES = {
    "half": (lambda text: text[: len(text) // 2], "is not valid JSON"),
    "nested": (lambda text: "[" * 100_000, "is not valid JSON"),
    "a list": (lambda text: "[]", r"give a mapping"),
    "no status": (lambda text: text.replace('"status"', '"stat"'), "stat"),
    "status": (lambda text: text.replace('"done"', '"well"'), r"status='well': choose one of 'done', 'failed'"),
    "score": (lambda text: re.sub(r'"R² held out": [^,]*', '"R² held out": 5.0', text), r"R² held out=5\.0"),
    "text": (lambda text: re.sub(r'"MSE held out": [^,]*', '"MSE held out": "low"', text), "MSE held out='low'"),
    "no sites": (lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "sites"}), "lacks sites"),
    "another run's": (lambda text: re.sub(r'"fingerprint": "[^"]*', '"fingerprint": "0000', text), "of another run"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_result_is_named(damage, message, plain, tmp_path):
    folder = shutil.copytree(plain.runs[0].folder.parent, tmp_path / "sweep")
    file = folder / plain.runs[0].folder.name / RESULT_FILE
    file.write_text(damage(file.read_text()))
    with pytest.raises(ValueError, match=message) as raised:
        msp.sweep(
            msp.processes.z1r(), FIXED | {"d_model": 2, "log_every": [2, 3]}, out=folder, n_jobs=1, progress=False
        )
    assert str(file) in str(raised.value)


def test_a_sweep_in_use_is_refused(plain, in_use):
    folder = plain.runs[0].folder.parent
    with in_use(folder), pytest.raises(ValueError, match=f"process is writing to {folder}"):
        msp.sweep(
            msp.processes.z1r(), FIXED | {"d_model": 2, "log_every": [2, 3]}, out=folder, n_jobs=1, progress=False
        )
