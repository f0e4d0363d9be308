import json
import threading
import time

import pytest

from msp_lens.experiments import runs_bar
from msp_lens.experiments.runs_bar import RunsBar, logged_step


def log(folder, *steps, rest=""):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in steps) + rest)


def test_the_last_whole_record_counts(tmp_path):
    assert logged_step(tmp_path / "nowhere") == 0
    log(tmp_path / "a", 10, 20)
    assert logged_step(tmp_path / "a") == 20
    log(tmp_path / "a", 10, 20, rest='{"step": 3')
    assert logged_step(tmp_path / "a") == 20
    log(tmp_path / "a", rest="{}\n[]\n")
    assert logged_step(tmp_path / "a") == 0
    # A long history is not read.
    log(tmp_path / "a", *range(20_000))
    assert logged_step(tmp_path / "a") == 19_999


def test_runs_in_flight_count_by_their_steps(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    with RunsBar({a: 100, b: 50}, title="Sweep", unit="run", n_done=3, progress=False) as bar:
        assert bar.look() == 3
        log(a, 50)
        assert bar.look() == pytest.approx(3 + 0.95 / 2)
        log(b, 50)
        assert bar.look() == pytest.approx(3 + 0.95 * 1.5)
        bar.done(a)
        assert bar.look() == pytest.approx(4 + 0.95)
        bar.done(b)
        assert bar.look() == 5


def test_the_bar_moves_by_itself_and_ends_with_its_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runs_bar, "_SECONDS_BETWEEN_LOOKS", 0.01)
    folder = tmp_path / "a"
    until, shown = time.monotonic() + 20, ""
    with RunsBar({folder: 4}, title="Sweep", unit="run", n_done=0, progress=True):
        log(folder, 2)
        while "0.5/1 runs" not in shown and time.monotonic() < until:
            time.sleep(0.01)
            shown += capsys.readouterr().err
    assert "Sweep:  48%" in shown
    assert not any(thread.name == "runs-bar" for thread in threading.enumerate())
