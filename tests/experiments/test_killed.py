"""Runs and sweeps killed at any moment go on as if nothing had happened: real SIGKILLs of real processes."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

import msp_lens as msp
from msp_lens.experiments.sweep import STARTED_FILE
from msp_lens.training import PRESETS, Recipe

TIMED = ("seconds", "tokens_per_second")


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch, small_reports):
    def tiny(process):
        model = msp.ModelConfig(d_vocab=process.n_tokens, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=3)
        return Recipe(model, msp.TrainingConfig(steps=40, batch_size=16, log_every=5, save_every=5))

    monkeypatch.setitem(PRESETS, "tiny", tiny)


def run(out, **options):
    return msp.run(msp.processes.z1r(), preset="tiny", out=out, seeds=2, emergence=False, progress=False, **options)


def killed_after(seconds, work):
    """Start work in another process, a fork, and kill it; whether it was still at work."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def untimed(value):
    if isinstance(value, dict):
        return {key: untimed(each) for key, each in value.items() if key not in TIMED}
    return [untimed(each) for each in value] if isinstance(value, list) else value


def findings(folder):
    return untimed(json.loads((folder / "report.json").read_text()))


def test_a_run_killed_at_random_moments(tmp_path):
    unbroken, chance, kills = run(tmp_path / "unbroken"), random.Random(0), 0
    broken = tmp_path / "broken"
    while kills < 4:
        if not killed_after(chance.uniform(0.05, 1.5), lambda: run(broken)):
            # It had ended before the signal came: start over, in the place of what is there.
            assert (broken / "report.html").is_file()
            break
        kills += 1
    if not (broken / "report.html").exists():
        run(broken)
    assert findings(broken) == findings(unbroken.folder)
    assert msp.load_checkpoint(broken).fingerprint == msp.load_checkpoint(unbroken.folder).fingerprint
    assert not list(broken.rglob("*.partial"))

    # Overwriting keeps what is there until the new run is complete.
    before = (broken / "report.html").read_bytes()
    assert killed_after(0.2, lambda: run(broken, overwrite=True, seed=1))
    assert (broken / "report.html").read_bytes() == before
    assert findings(broken) == findings(unbroken.folder)


SETTINGS = {"n_layers": 1, "d_model": [2, 3], "d_head": 4, "d_mlp": 8, "n_ctx": 3, "batch_size": 16, "save_every": 20}
SWEEP = """
import sys, msp_lens as msp
from tests.experiments.test_killed import SETTINGS
settings = SETTINGS | {"steps": int(sys.argv[2])}
msp.sweep(msp.processes.z1r(), settings, out=sys.argv[1], n_jobs=2, progress=False)
"""


def sweep(out, steps):
    """A sweep by two workers, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", SWEEP, str(out), str(steps)], env=environment)


def sweep_alone(out, steps):
    """A sweep without workers, in a fork."""
    settings = SETTINGS | {"steps": steps}
    work = partial(msp.sweep, msp.processes.z1r(), settings, out=out, n_jobs=1, progress=False)
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def test_workers_end_with_the_sweep_that_started_them(tmp_path):
    """Trainings of a million steps, which would go on for an hour."""
    parent = sweep(tmp_path, 1_000_000)
    workers = []
    try:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("*/training_state/step-*[1-9]*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(list(tmp_path.glob(f"*/{STARTED_FILE}"))) == 2
        workers = psutil.Process(parent.pid).children(recursive=True)
        assert len(workers) >= 2
        parent.kill()
        parent.wait()
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert not alive
    finally:
        for process in (parent, *workers):
            if process.poll() is None if isinstance(process, subprocess.Popen) else process.is_running():
                process.kill()
    # The restart takes the folders over at once.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/training_state/step-*")}
    assert before
    again = sweep_alone(tmp_path, 1_000_000)
    try:
        deadline = time.monotonic() + 120
        while set(before) >= set(tmp_path.glob("*/training_state/step-*")) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert set(tmp_path.glob("*/training_state/step-*")) - set(before)
        assert not list(tmp_path.glob("*/result.json"))
    finally:
        again.kill()
        again.join()


def test_a_killed_sweep_goes_on(tmp_path):
    parent = sweep_alone(tmp_path / "broken", 500)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "broken").glob("*/training_state/step-*[1-9]*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    parent.kill()
    parent.join()
    broken, unbroken = (
        msp.sweep(msp.processes.z1r(), SETTINGS | {"steps": 500}, out=tmp_path / folder, n_jobs=1, progress=False)
        for folder in ("broken", "unbroken")
    )
    kept = ["d_model", "status", "regret", "R² held out", "MSE held out", "skill"]
    assert broken.to_dataframe()[kept].equals(unbroken.to_dataframe()[kept])
