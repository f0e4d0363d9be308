"""A run's folder is one training's alone, and every file in it is checked when it is read."""

import copy
import dataclasses
import json
import multiprocessing
import shutil

import pytest
import torch

import msp_lens as msp
from msp_lens._files import write_tensors
from msp_lens.training import load_run, loop, resume
from msp_lens.training.folder import STATE_FOLDER

MODEL = {"n_layers": 1, "d_model": 8, "d_head": 4, "d_mlp": 8, "n_ctx": 3}
CONFIG = msp.TrainingConfig(steps=6, batch_size=8, log_every=2, save_every=2, checkpoints=(0, 3))


def train(out, config=CONFIG, **options):
    options = {"model": msp.ModelConfig(d_vocab=2, **MODEL), "progress": False} | options
    return msp.train(msp.processes.z1r(), config=config, out=out, **options)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    return train(tmp_path_factory.mktemp("ended")).folder


@pytest.fixture
def folder(ended, tmp_path):
    """A copy of an ended training, to be damaged."""
    return shutil.copytree(ended, tmp_path / "run")


class Killed(BaseException):
    """Not an Exception, so that nothing catches it."""


def interrupted(out, monkeypatch, step=5, **options):
    def advance(self):
        if self.step == step:
            raise Killed
        return whole(self)

    whole = loop.Training.advance
    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "advance", advance)
        with pytest.raises(Killed):
            train(out, **options)


@pytest.mark.parametrize("name", ["model.safetensors", "metrics.jsonl", "REPORT.HTML"])
def test_a_files_name_is_no_folder(name, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.Training, "advance", None)
    with pytest.raises(ValueError, match="is a file's name: give a folder, such as"):
        train(tmp_path / name)
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ValueError, match="is a file: give a folder"):
        train(tmp_path / "notes")
    assert [file.name for file in tmp_path.iterdir()] == ["notes"]


def test_a_model_that_no_file_can_hold_is_refused_before_the_first_step(tmp_path, monkeypatch):
    model = msp.build_model(msp.ModelConfig(d_vocab=2, **MODEL), seed=0)
    # Its config now says something else than it does.
    model.cfg.act_fn = "gelu"
    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "advance", None)
        with pytest.raises(ValueError, match="A file can't hold this"):
            train(tmp_path / "run", model=model)
    assert not (tmp_path / "run").exists()
    assert train(None, msp.TrainingConfig(steps=1, batch_size=8), model=model).step == 1


def test_the_home_folder_has_a_short_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert train("~/run").folder == tmp_path / "run"
    assert load_run("~/run").step == 6
    assert len(msp.training.saved_checkpoints("~/run")) == 3


def hold(folder, is_held, may_end):
    from msp_lens._files import locked

    with locked(folder):
        is_held.set()
        may_end.wait(60)


def test_a_folder_in_use_is_refused(tmp_path):
    context = multiprocessing.get_context("fork")
    is_held, may_end = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, is_held, may_end))
    other.start()
    assert is_held.wait(60)
    with pytest.raises(ValueError, match=f"process is writing to {tmp_path}"):
        train(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]
    other.kill()
    other.join()
    assert train(tmp_path).step == 6


@pytest.mark.parametrize("resumed", [True, False])
def test_checkpoints_of_another_training_are_refused_or_cleared(ended, tmp_path, resumed):
    file = tmp_path / "checkpoints" / "step-00000002.safetensors"
    file.parent.mkdir()
    shutil.copy(ended / "checkpoints" / "step-00000003.safetensors", file)
    if resumed:
        with pytest.raises(ValueError, match=r"another training \(checkpoints/step-00000002\S+: seed=0, now 1\)"):
            train(tmp_path, seed=1)
        assert file.exists()
    else:
        assert [each.step for each in train(tmp_path, seed=1, resume=False).checkpoints] == [0, 3, 6]
        assert not file.exists()


def test_metrics_of_nobody_are_not_overwritten(ended, tmp_path):
    shutil.copy(ended / "metrics.jsonl", tmp_path)
    with pytest.raises(ValueError, match=r"holds metrics\.jsonl of a training that left nothing else: .*resume=False"):
        train(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == (ended / "metrics.jsonl").read_text()
    assert train(tmp_path, resume=False).step == 6


def test_an_interruption_before_the_first_save_is_resumed(tmp_path, monkeypatch):
    interrupted(tmp_path, monkeypatch, step=1)
    assert [path.name for path in (tmp_path / STATE_FOLDER).iterdir()] == ["step-00000000.safetensors"]
    with pytest.raises(ValueError, match=r"another training.*seed=0, now 1"):
        train(tmp_path, seed=1)
    assert train(tmp_path).resumed_from is None


def test_lost_metrics_of_an_interrupted_training_are_written_again(ended, tmp_path, monkeypatch):
    interrupted(tmp_path, monkeypatch)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    assert [record["step"] for record in train(tmp_path).metrics] == [2, 4, 6]
    assert [record["step"] for record in load_run(tmp_path).metrics] == [2, 4, 6]


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    train(tmp_path)
    left = [tmp_path / f"{name}.safetensors.abc.partial" for name in (".model", "checkpoints/.step-3")]
    for path in left:
        path.write_bytes(b"half")
    train(tmp_path)
    assert not any(path.exists() for path in left)


def _lines(folder):
    return (folder / "metrics.jsonl").read_text().splitlines(keepends=True)


DAMAGES = {
    "deleted": (lambda lines: None, FileNotFoundError, "no file"),
    "a line deleted": (lambda lines: lines[1:], ValueError, "was changed, or is of another training"),
    "half a last line": (lambda lines: [*lines[:-1], lines[-1][:30]], ValueError, "was changed"),
    "half a line": (lambda lines: [lines[0][:30] + "\n", *lines[1:]], ValueError, "line 1 is not valid JSON"),
    "text": (lambda lines: [lines[0].replace('"step": 2', '"step": "two"'), *lines[1:]], ValueError, r"step='two'"),
    "no loss": (lambda lines: [lines[0].replace('"loss"', '"lost"'), *lines[1:]], ValueError, r"loss"),
    "not a number": (lambda lines: ['{"step": NaN}\n'], ValueError, "NaN is no JSON number"),
    "nested": (lambda lines: ["[" * 100_000 + "\n"], ValueError, "line 1 is not valid JSON"),
}


@pytest.mark.parametrize(("damage", "error", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_metrics_are_named(folder, damage, error, message):
    changed = damage(_lines(folder))
    (folder / "metrics.jsonl").unlink()
    if changed is not None:
        (folder / "metrics.jsonl").write_text("".join(changed))
    for read in (load_run, train):
        with pytest.raises(error, match=message) as raised:
            read(folder)
        assert str(folder / "metrics.jsonl") in str(raised.value)


PROVENANCE = {
    "a field of the config": ({"training": {"steps": "many"}}, r"provenance\.training: .*steps='many'"),
    "an unknown field": ({"training": {"stepz": 3}}, r"provenance\.training: .*stepz"),
    "seed": ({"seed": -1}, r"provenance\.seed=-1"),
    "stopped by": (
        {"stopped_by": "hand"},
        r"provenance\.stopped_by='hand': choose one of 'steps', 'seconds', 'regret'",
    ),
    "regret": ({"regret": [0.1, "a", 0.2]}, r"provenance\.regret\[1\]='a'"),
    "positions": ({"regret": [0.1]}, "1 regrets for 3 positions"),
}


@pytest.mark.parametrize(("changes", "message"), PROVENANCE.values(), ids=PROVENANCE)
def test_an_edited_header_is_named(folder, changes, message):
    loaded = msp.load_checkpoint(folder)
    provenance = loaded.provenance | changes
    msp.save_checkpoint(folder, loaded.model, process=loaded.process, provenance=provenance)
    with pytest.raises(ValueError, match=message) as raised:
        load_run(folder)
    assert str(folder / "model.safetensors") in str(raised.value)


@pytest.mark.parametrize(
    "progress", [{"step": "3", "tokens": 5}, {"step": 3, "tokens": -1}, {"step": 2.5, "tokens": 1}]
)
def test_an_edited_checkpoint_is_named(folder, progress):
    loaded = msp.load_checkpoint(folder)
    path = folder / "checkpoints" / "step-00000004.safetensors"
    msp.save_checkpoint(path, loaded.model, process=loaded.process, provenance=loaded.provenance | progress)
    with pytest.raises(ValueError, match=r"step-00000004\.safetensors: provenance\.(step|tokens)="):
        msp.training.saved_checkpoints(folder)


def test_a_state_with_another_description_is_not_resumed_from(tmp_path, monkeypatch):
    interrupted(tmp_path, monkeypatch)
    newest = max((tmp_path / STATE_FOLDER).iterdir())
    state, identity = resume.read_state(newest)
    description = {"identity": identity, "step": "four", "seconds": 1.0, "metrics": []}
    write_tensors(newest, state.tensors, {"msp_lens_training": json.dumps(description)})
    with pytest.warns(RuntimeWarning, match=r"step='four': give a whole number.*state before it"):
        assert train(tmp_path).resumed_from == 2


def test_many_differences_are_a_few_lines(ended):
    wide = msp.ModelConfig(d_vocab=2, **MODEL | {"d_model": 16, "d_mlp": 32, "n_layers": 2, "act_fn": "gelu"})
    other = msp.TrainingConfig(steps=7, batch_size=9, betas=(0.5, 0.5))
    with pytest.raises(ValueError, match="model") as raised:
        train(ended, other, model=wide, seed=7)
    message = str(raised.value)
    assert "batch_size=8, now 9" in message
    assert "more" in message
    assert len(message) < 500
    with pytest.raises(ValueError, match=r"\(\S+: model\.n_ctx=3, now 4\)"):
        train(ended, model=msp.ModelConfig(d_vocab=2, **MODEL | {"n_ctx": 4}))


def test_a_read_only_folder_is_refused_before_work(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    monkeypatch.setattr(loop.Training, "advance", None)
    with pytest.raises(OSError, match=r"can't be written to \(Permission denied\): give another folder"):
        train(tmp_path / "run")


@pytest.mark.parametrize("what", ["folder", "metrics"])
def test_a_folder_that_vanishes_is_not_written_to_in_part(tmp_path, monkeypatch, what):
    def advance(self):
        if self.step == 4:
            shutil.rmtree(tmp_path / "run") if what == "folder" else (tmp_path / "run" / "metrics.jsonl").unlink()
        return whole(self)

    whole = loop.Training.advance
    monkeypatch.setattr(loop.Training, "advance", advance)
    left = {"folder": "nothing is saved there", "metrics": "step 4 was saved"}[what]
    with pytest.raises(OSError, match=f"failed at step 6 .*the folder or its metrics.jsonl was removed.*; {left}"):
        train(tmp_path / "run")
    monkeypatch.undo()
    again = train(tmp_path / "run")
    assert again.resumed_from == {"folder": None, "metrics": 4}[what]
    assert [record["step"] for record in again.metrics] == [2, 4, 6]


def test_results_are_plain_values(ended):
    first, second = load_run(ended), load_run(ended)
    assert first == second == copy.copy(first)
    assert first != dataclasses.replace(second, regret=second.regret + 1e-9)
    with torch.no_grad():
        next(iter(second.model.parameters())).add_(1)
    assert first != second
    assert json.loads(json.dumps(first.metrics)) == list(first.metrics)
