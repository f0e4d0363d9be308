"""The command line as a user meets it: a process of its own."""

import os
import signal
import subprocess
import sys
import time

import pytest

import msp_lens as msp

COMMAND = [sys.executable, "-m", "msp_lens.cli"]


def call(*arguments, cwd=None):
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, cwd=cwd, timeout=300, check=False)


def test_help_teaches_by_example():
    result = call("run", "--help")
    assert result.returncode == 0
    assert "--overwrite" in result.stdout
    assert "msp-lens run mess3 --param x=0.05" in " ".join(result.stdout.split())


def test_processes_are_listed():
    result = call("processes")
    assert result.returncode == 0, result.stderr
    rows = {line.split("(")[0].strip(): line.split() for line in result.stdout.splitlines() if "(" in line}
    assert set(msp.processes.CATALOG) <= set(rows)
    assert rows["rrxor"][-4:] == ["36", "1", "of", "4"]
    assert rows["rrxor"][-5] == "0.4621"
    assert rows["mess3"][-5:] == ["0.7935", "∞", "2", "of", "2"]


def test_help_needs_no_heavy_imports():
    code = "import sys, msp_lens.cli; print([m for m in ('torch', 'transformer_lens', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mess4"], "No process 'mess4' in the catalog; there are bloch_walk, coin"),
        (["mess3", "--param", "x=0.6"], "mess3(x=0.6): x must lie in (0, 0.5]"),
        (["mess3", "--param", "y=1"], "mess3 has no parameter 'y'; it has x, a"),
        (["mess3", "--param", "x"], "--param x: give name=number"),
        (["mess3", "--preset", "slow"], "No preset 'slow'"),
        (["mess3", "--weights", "uniform"], "weights='uniform'"),
    ],
)
def test_errors_are_one_line_with_the_remedy(arguments, message, tmp_path):
    result = call("run", *arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stdout == ""
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [], "something was written"


def test_a_folder_that_holds_a_run_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"precious")
    result = call("run", "mess3", "--out", str(tmp_path))
    assert result.returncode == 1
    assert "already holds a run (model.safetensors)" in result.stderr
    assert (tmp_path / "model.safetensors").read_bytes() == b"precious"


def test_ctrl_c_leaves_what_is_whole(tmp_path):
    out = tmp_path / "run"
    with subprocess.Popen(
        [*COMMAND, "run", "z1r", "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        deadline = time.monotonic() + 240
        while not (out / "model.safetensors").exists():
            assert running.poll() is None, running.stderr.read()
            assert time.monotonic() < deadline, "no checkpoint within four minutes"
            time.sleep(0.1)
        os.kill(running.pid, signal.SIGINT)
        stdout, stderr = running.communicate(timeout=60)
    assert running.returncode == 130
    assert stdout == ""
    assert f"Interrupted. Whole and kept in {out}: config.json, metrics.jsonl, model.safetensors." in stderr
    assert "Traceback" not in stderr
    assert msp.load_checkpoint(out).provenance["step"] >= 1
