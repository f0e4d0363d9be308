"""Ctrl-C during long work: the message says how to go on, and the same call does."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import msp_lens as msp
from msp_lens.cli import app
from msp_lens.experiments import run_folder
from msp_lens.experiments import study as studies
from msp_lens.training import PRESETS, Recipe, loop

STEPS = 20


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch, tmp_path):
    def tiny(process):
        model = msp.ModelConfig(d_vocab=process.n_tokens, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=4)
        return Recipe(model, msp.TrainingConfig(steps=STEPS, batch_size=16, warmup_steps=2, log_every=5, save_every=5))

    monkeypatch.setitem(PRESETS, "tiny", tiny)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def ctrl_c(monkeypatch):
    """Interrupt the training at a step."""

    def at(step):
        advance = loop.Training.advance

        def advance_or_stop(training):
            if training.step == step:
                monkeypatch.setattr(loop.Training, "advance", advance)
                raise KeyboardInterrupt
            return advance(training)

        monkeypatch.setattr(loop.Training, "advance", advance_or_stop)

    return at


def leftovers():
    return list(Path().rglob("*.partial"))


def test_a_run_goes_on_where_it_was_stopped(ctrl_c, monkeypatch):
    ctrl_c(12)
    call = {"preset": "tiny", "emergence": False, "progress": False}
    with pytest.raises(KeyboardInterrupt) as caught:
        msp.run(msp.processes.z1r(), **call)
    assert caught.value.__notes__ == [
        "To go on, call run again with out='runs/z1r' and the same options: what is done there is kept."
    ]
    assert leftovers() == []
    # A run of something else does not touch it, nor does one with other options.
    config = studies.run_config(msp.processes.z1r(), preset="tiny", weighting="probability", seed=1, seeds=1)
    assert run_folder.choose_folder(None, "z1r", config=config) == Path("runs/z1r-2")
    # The folder need not be named.
    trained = []
    monkeypatch.setattr(studies, "_report", lambda trainings, *_: trained.extend(trainings))
    msp.run(msp.processes.z1r(), **call)
    assert (trained[0].resumed_from, trained[0].step, trained[0].folder) == (10, STEPS, Path("runs/z1r"))
    assert [path.name for path in Path("runs").iterdir()] == ["z1r"]


def test_a_training_says_so_if_it_has_a_folder(ctrl_c):
    config = msp.TrainingConfig(steps=9, batch_size=4)
    ctrl_c(3)
    with pytest.raises(KeyboardInterrupt) as caught:
        msp.train(msp.processes.z1r(), config=config, out="z1r", progress=False)
    assert "call train again with out='z1r'" in caught.value.__notes__[0]
    ctrl_c(3)
    with pytest.raises(KeyboardInterrupt) as caught:
        msp.train(msp.processes.z1r(), config=config, progress=False)
    assert not hasattr(caught.value, "__notes__")


def test_a_sweep_goes_on_where_it_was_stopped(ctrl_c):
    settings = {"d_model": [2, 4], "n_layers": 1, "n_ctx": 3, "steps": 6, "batch_size": 8}

    def sweep():
        return msp.sweep(msp.processes.z1r(), settings, out="widths", n_jobs=1, controls=False, progress=False)

    ctrl_c(3)
    with pytest.raises(KeyboardInterrupt) as caught:
        sweep()
    assert "call sweep again with out='widths'" in caught.value.__notes__[0]
    assert sorted(sweep().to_dataframe()["status"]) == ["done", "done"]


def test_the_same_command_goes_on(ctrl_c, monkeypatch):
    def call(*arguments):
        return CliRunner().invoke(app, [*arguments, "--preset", "tiny"])

    ctrl_c(12)
    stopped = call("run", "z1r")
    kept = "config.json, metrics.jsonl, model.safetensors"
    told = f"Interrupted. Complete files in runs/z1r: {kept}. To go on, run the same command again."
    assert (stopped.exit_code, stopped.stdout) == (130, "")
    assert stopped.stderr.splitlines()[-1] == told
    # Interrupted once more, after the training.
    resumed = []

    def stop(trainings, *_):
        resumed.extend(trainings)
        raise KeyboardInterrupt

    monkeypatch.setattr(studies, "_report", stop)
    assert call("run", "z1r").exit_code == 130
    assert (resumed[0].resumed_from, resumed[0].step) == (10, STEPS)
    assert [path.name for path in Path("runs").iterdir()] == ["z1r"]
    ctrl_c(3)
    assert "run the same command again without --fresh." in call("train", "even", "--fresh").stderr
    assert json.loads(call("train", "even", "--json").stdout)["folder"] == "runs/even"


def test_an_interruption_before_anything_was_written_says_so(monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("msp_lens.beliefs.describe", stop)
    stopped = CliRunner().invoke(app, ["msp", "z1r"])
    assert (stopped.exit_code, stopped.stderr) == (130, "\nInterrupted. No file was written.\n")
