"""A training killed at any moment resumes as if nothing had happened: real SIGKILLs of real processes."""

import json
import os
import random
import shutil
import signal
import time
import warnings
from pathlib import Path

import pytest
import torch

import msp_lens as msp
from msp_lens.models import model_fingerprint
from msp_lens.training import load_run, loop, resume, saved_checkpoints
from msp_lens.training.folder import STATE_FOLDER

MODEL = {"n_layers": 1, "d_model": 8, "d_head": 4, "d_mlp": 8, "n_ctx": 3}
# All that a state can hold: two optimizers, an average, and a generator in the middle of a draw.
EVERYTHING = msp.TrainingConfig(
    steps=120,
    batch_size=16,
    optimizer="muon",
    momentum=0.9,
    averaging=0.9,
    clip_norm=1.0,
    warmup_steps=10,
    log_every=7,
    save_every=9,
    checkpoints="logarithmic",
    n_checkpoints=6,
)
TIMED = ("seconds", "tokens_per_second", "saved_at")


def train(out, config=EVERYTHING, **options):
    process = msp.processes.z1r()
    options = {"model": msp.ModelConfig(d_vocab=2, **MODEL), "seed": 3, "progress": False} | options
    return msp.train(process, config=config, out=out, **options)


def untimed(records):
    return [{key: value for key, value in record.items() if key not in TIMED} for record in records]


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same(folder, run, unbroken):
    """Assert equal weights, bit for bit, equal records and equal checkpoints."""
    assert model_fingerprint(run.model) == model_fingerprint(unbroken.model)
    assert untimed(run.metrics) == untimed(unbroken.metrics) == untimed(lines(folder))
    assert [c.step for c in run.checkpoints] == [c.step for c in unbroken.checkpoints] == [0, 1, 3, 11, 36, 120]
    prints = [[c.load().fingerprint for c in r.checkpoints] for r in (run, unbroken)]
    assert prints[0] == prints[1]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return train(tmp_path_factory.mktemp("unbroken"))


def start(out):
    """Start a training in another process: a fork, which has torch imported already."""
    pid = os.fork()
    if pid == 0:
        try:
            train(out)
        finally:
            os._exit(0)
    return pid


def test_killed_at_random_moments(unbroken, tmp_path):
    chance, kills = random.Random(0), 0
    while kills < 8 or not list(tmp_path.glob(f"{STATE_FOLDER}/step-*[1-9]*")):
        pid = start(tmp_path)
        # Ever later, so that a busy machine, too, comes to save a state at last.
        time.sleep(chance.uniform(0.0, 0.2 + 0.01 * kills))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            # It had ended before the signal came: start over.
            assert load_run(tmp_path).step == EVERYTHING.steps
            msp.train(
                msp.processes.coin(), config=msp.TrainingConfig(steps=1), out=tmp_path, resume=False, progress=False
            )
            (tmp_path / "model.safetensors").unlink()
            continue
        kills += 1
    run = train(tmp_path)
    assert run.resumed_from > 0
    assert_same(tmp_path, run, unbroken)
    assert not (tmp_path / STATE_FOLDER).exists()
    assert not list(tmp_path.rglob("*.partial"))


class Killed(BaseException):
    """Not an Exception, so that nothing catches it."""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a training that was stopped when it was about to make step 50."""
    folder = tmp_path_factory.mktemp("stopped")
    whole = loop.Training.advance

    def advance(self):
        if self.step == 50:
            raise Killed
        return whole(self)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop.Training, "advance", advance)
        with pytest.raises(Killed):
            train(folder)
    return folder


@pytest.fixture
def interrupted(stopped, tmp_path):
    """A copy of that folder."""
    return Path(shutil.copytree(stopped, tmp_path, dirs_exist_ok=True))


def test_it_resumes_and_says_so(unbroken, interrupted, capsys, global_state):
    assert lines(interrupted)[-1]["step"] == 49
    run = train(interrupted, progress=True)
    assert run.resumed_from == 45
    assert "resumed at step 45" in repr(run)
    assert f"Resuming at step 45 of 120, saved in {interrupted}." in capsys.readouterr().err
    assert_same(interrupted, run, unbroken)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_newest_state_is_named_and_the_one_before_used(unbroken, interrupted, damage):
    older, newest = sorted((interrupted / STATE_FOLDER).iterdir())
    assert (older.name, newest.name) == ("step-00000036.safetensors", "step-00000045.safetensors")
    content = bytearray(newest.read_bytes())
    content[-9] ^= 1
    newest.write_bytes({"cut": content[: len(content) // 2], "flipped": content}[damage])
    with pytest.warns(RuntimeWarning, match=r"step-00000045\.safetensors is damaged.*state before it"):
        run = train(interrupted)
    assert run.resumed_from == 36
    assert_same(interrupted, run, unbroken)


def test_an_ended_training_is_returned(unbroken):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = train(unbroken.folder)
    assert_same(unbroken.folder, again, unbroken)
    torch.testing.assert_close(again.regret, unbroken.regret, rtol=0, atol=0)
    assert (again.step, again.seconds, again.stopped_by) == (120, unbroken.seconds, "steps")
    assert again.config == EVERYTHING


@pytest.mark.parametrize("ended", [True, False])
def test_another_training_is_refused_with_the_difference(unbroken, stopped, ended):
    folder = unbroken.folder if ended else stopped
    other = msp.TrainingConfig(**{**vars(EVERYTHING), "learning_rate": 1e-4})
    with pytest.raises(ValueError, match=r"another training \(\S+: learning_rate=0\.003, now 0\.0001\).*resume=False"):
        train(folder, other)
    with pytest.raises(ValueError, match=r"seed=3, now 4"):
        train(folder, seed=4)
    with pytest.raises(ValueError, match=r"process='\w+', now"):
        msp.train(
            msp.processes.even(), config=EVERYTHING, out=folder, model=msp.ModelConfig(d_vocab=2, **MODEL), seed=3
        )


def test_starting_over_leaves_nothing_behind(interrupted):
    (interrupted / "notes.txt").write_text("mine")
    config = msp.TrainingConfig(steps=2, batch_size=4)
    run = train(interrupted, config, resume=False)
    assert run.resumed_from is None
    assert {file.name for file in interrupted.rglob("*") if file.is_file()} == {
        "notes.txt",
        "model.safetensors",
        "metrics.jsonl",
        ".lock",
    }


def test_more_time_resumes_where_time_ran_out(unbroken, tmp_path):
    short = msp.TrainingConfig(**{**vars(EVERYTHING), "max_seconds": 1e-9})
    run = train(tmp_path, short)
    assert (run.step, run.stopped_by) == (1, "seconds")
    assert_same(tmp_path, train(tmp_path), unbroken)


def test_a_full_disk_stops_it_and_it_resumes_later(unbroken, tmp_path, monkeypatch):
    def full(path, *content):
        if path.name == "step-00000063.safetensors":
            raise OSError(28, "No space left on device")
        write(path, *content)

    write = resume.write_tensors
    monkeypatch.setattr(resume, "write_tensors", full)
    with pytest.raises(OSError, match=r"failed at step 63 \(No space left on device\); step 54 was saved\. Make room"):
        train(tmp_path)
    with pytest.raises(ValueError, match="has not ended: call train"):
        load_run(tmp_path)
    assert msp.load_checkpoint(tmp_path).provenance["step"] == 54
    monkeypatch.undo()
    assert_same(tmp_path, train(tmp_path), unbroken)


def test_folders_that_cannot_be_written_are_refused_before_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(loop.Training, "advance", None)
    with pytest.raises(OSError, match="can't be written to"):
        train(tmp_path / "file" / "run")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(OSError, match=r"0 MiB free, and this training writes up to"):
        train(tmp_path / "run")


@pytest.mark.parametrize("look_every", [1, 16])
def test_a_loss_that_is_not_finite_leaves_the_last_good_state(tmp_path, monkeypatch, look_every):
    """On a GPU too, where losses are looked at together: before anything is saved."""
    config = msp.TrainingConfig(steps=40, batch_size=8, save_every=10, checkpoints=(28,))

    def advance(self):
        self._look_every = look_every
        if self.step == 25:
            with torch.no_grad():
                next(iter(self.model.parameters())).fill_(float("nan"))
        return whole(self)

    whole = loop.Training.advance
    monkeypatch.setattr(loop.Training, "advance", advance)
    with pytest.raises(ValueError, match="loss became nan at step 26"):
        train(tmp_path, config)
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match="There are no checkpoints"):
        saved_checkpoints(tmp_path)
    run = train(tmp_path, config)
    assert run.resumed_from == 20
    assert float(run.regret.mean()) < 1
