"""The command line as a user meets it: a process of its own."""

import functools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module

import pytest
from typer.testing import CliRunner

import msp_lens as msp
from msp_lens.beliefs import description
from msp_lens.cli import app
from msp_lens.training import PRESETS, Recipe

COMMAND = [sys.executable, "-m", "msp_lens.cli"]


def call(*arguments, cwd=None):
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, cwd=cwd, timeout=300, check=False)


def call_here(*arguments):
    """Without a process of its own, which costs seconds."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True, scope="module")
def quick_is_tiny():
    """Networks of the default preset's depth, but narrow and with a short context."""

    def tiny(process):
        model = msp.ModelConfig(d_vocab=process.n_tokens, d_model=8, d_head=4, d_mlp=8, n_ctx=6)
        return Recipe(model, msp.TrainingConfig(steps=10, batch_size=32))

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(PRESETS, "quick", tiny)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "z1r"
    result = call_here("train", "z1r", "-p", "p=0.4", "--steps", 30, "--checkpoints", 3, "--out", folder, "--json")
    assert result.exit_code == 0, result.stderr
    return folder, json.loads(result.stdout)


def test_a_model_is_trained_and_can_be_loaded(trained):
    folder, result = trained
    assert result["folder"] == str(folder)
    assert len(result["regret_nats"]) == 6
    loaded = msp.load_checkpoint(folder)
    assert loaded.process == msp.processes.z1r(p=0.4)
    assert loaded.provenance["step"] == 30


def test_a_trained_model_is_probed(trained, tmp_path):
    saved, picture = tmp_path / "report.safetensors", tmp_path / "fractal.png"
    result = call_here(
        "probe", trained[0], "--site", "*_post", "--solver", "ridge", "--out", saved, "--plot", picture, "--json"
    )
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert [row["site"] for row in found["sites"]] == ["0_post", "1_post", "2_post", "3_post", "concatenated"]
    loaded = msp.ProbeReport.load(saved)
    assert loaded["1_post"].scores.held_out.r2 == found["sites"][1]["R² held out"]
    assert loaded.provenance["solver"]["name"] == "ridge"
    assert picture.read_bytes().startswith(b"\x89PNG")
    other = call_here("probe", trained[0], "--process", "even", "--site", "3_post")
    assert "even(p=0.5)" in other.stdout


def test_beliefs_are_written_into_a_trained_model(trained):
    result = call_here(
        "intervene", trained[0], "-s", "3_post", "--position", 4, "--edit", "patch", "--n-words", 50, "--json"
    )
    assert result.exit_code == 0, result.stderr
    assert {"patch", "none", "placebo", "donor"} <= {row["edit"] for row in json.loads(result.stdout)["results"]}


def test_a_trained_model_is_asked_for_its_world(trained, tmp_path):
    folder, saved, picture = shutil.copytree(trained[0], tmp_path / "run"), tmp_path / "found.json", tmp_path / "f.png"
    quick = ("--states", "1,2", "--starts", 2)
    result = call_here("infer", folder, *quick, "--out", saved, "--plot", picture, "--json")
    assert result.exit_code == 0, result.stderr
    values, found = json.loads(result.stdout), msp.Inference.load(saved)
    assert msp.Inference.load(folder / "inference.json") == found
    assert [each["states"] for each in values["candidates"] if each["candidate"] == "machine"] == [1, 2]
    assert msp.Process.from_dict(values["process"]) == found.process
    assert values["doubts"] == found.doubts
    assert values["compared"]["z1r"]["states"] == 3
    assert picture.read_bytes().startswith(b"\x89PNG")
    # Of one file, what is found is only shown; another process may stand beside it.
    model = shutil.copy(folder / "model.safetensors", tmp_path / "model.safetensors")
    before = sorted(tmp_path.rglob("*"))
    shown = call_here("infer", model, *quick, "--process", "even")
    assert shown.exit_code == 0, shown.stderr
    assert "Which process? Inferred from a network" in shown.stdout
    assert "inferred from a network and even" in shown.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_one_part_of_the_belief_is_shown(tmp_path):
    process = msp.processes.mixture([msp.processes.golden_mean(), msp.processes.z1r()], [0.5, 0.5])
    model = msp.build_model(msp.ModelConfig(d_vocab=2, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=5), seed=0)
    path = tmp_path / "mixture"
    msp.save_checkpoint(path, model, process=process)
    result = call_here("probe", path, "--site", "0_post", "--part", "component", "--json")
    found = json.loads(result.stdout)
    expected = msp.probe(model, process, sites="0_post", progress=False).parts["component"].to_dict()
    assert found["provenance"]["part"] == "component"
    assert found["sites"][0]["R² held out"] == pytest.approx(expected["sites"][0]["R² held out"])


def test_checkpoints_are_probed(trained, tmp_path):
    result = call_here("emergence", trained[0], "-s", "3_post", "--gif", tmp_path / "forming.gif", "--json")
    assert result.exit_code == 0, result.stderr
    assert sorted({row["step"] for row in json.loads(result.stdout)}) == [0, 1, 30]
    assert (tmp_path / "forming.gif").read_bytes().startswith(b"GIF8")


@pytest.mark.parametrize(
    ("command", "room", "function"),
    [
        ("probe", "msp_lens.probing", "probe"),
        ("intervene", "msp_lens.probing", "probe"),
        ("emergence", "msp_lens.formation", "emergence"),
    ],
)
def test_commands_use_the_weighting_and_seed_of_the_run(trained, tmp_path, monkeypatch, command, room, function):
    folder = shutil.copytree(trained[0], tmp_path / "run")
    config = {"process": {}, "preset": None, "model": {}, "training": {}, "versions": {}, "started": None}
    (folder / "config.json").write_text(json.dumps(config | {"weighting": "sequence", "seed": 3}))
    module, used = import_module(room), []
    original = getattr(module, function)

    def spy(*args, **options):
        used.append((options["weighting"], options["seed"]))
        return original(*args, **options)

    monkeypatch.setattr(module, function, spy)
    for arguments in ([folder], [folder, "--weighting", "prefix", "--seed", 4], [trained[0]]):
        result = call_here(command, *arguments, "-s", "3_post")
        assert result.exit_code == 0, result.stderr
    assert used == [("sequence", 3), ("prefix", 4), ("probability", 0)]


@pytest.mark.slow
def test_a_report_made_again_is_that_of_the_run(tmp_path, monkeypatch, small_reports):
    def tiny(process):
        model = msp.ModelConfig(d_vocab=process.n_tokens, n_layers=1, d_model=8, d_head=4, d_mlp=16, n_ctx=4)
        return Recipe(model, msp.TrainingConfig(steps=2, batch_size=32))

    monkeypatch.setitem(PRESETS, "tiny", tiny)
    options = ("--preset", "tiny", "--weighting", "sequence", "--seed", 3)
    result = call_here("run", "mess3", *options, "--out", tmp_path / "run", "--json")
    assert result.exit_code == 0, result.stderr
    first = json.loads(result.stdout)
    assert first["probes"]["provenance"]["weighting"] == "sequence"
    again = json.loads(call_here("report", tmp_path / "run", "--json").stdout)
    assert again == first
    other = json.loads(call_here("report", tmp_path / "run", "--weighting", "probability", "--json").stdout)
    assert other["probes"]["provenance"]["weighting"] == "probability"
    assert other["probes"]["sites"] != first["probes"]["sites"]


def test_theory_is_told_and_drawn(tmp_path):
    result = call_here("msp", "z1r", "--plot", tmp_path / "z1r.svg", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["mixed_states"] == 7
    # Matplotlib draws letters as outlines and names each text in a comment.
    drawn = (tmp_path / "z1r.svg").read_text(encoding="utf-8")
    assert {"η", "η₀", "η₁", "η₁₀", "η₀₀", "η₀₁", "η₁₁"} <= set(re.findall("<!-- (.*?) -->", drawn))
    assert "7 mixed states, 3 of them recurrent" in call_here("msp", "z1r").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["probe", "nowhere"], "There is no file or folder nowhere"),
        (["probe", "{trained}", "-p", "x=1"], "--param without --process"),
        (["probe", "{trained}", "--site", "9_post"], "no site '9_post'; the nearest are 3_post, 2_post, 1_post"),
        (["probe", "{trained}", "--site", "9_post"], "msp-lens probe RUN --site all probes "),
        (["probe", "{trained}", "--rank", "0"], "--rank 0: "),
        (["probe", "{trained}", "--rank", "2"], "--rank 2 with --solver auto"),
        (["probe", "{trained}", "--solver", "reduced_rank"], "needs a rank"),
        (["probe", "{trained}", "--solver", "lasso"], "--solver lasso: "),
        (["probe", "{trained}", "--split", "half"], "--split half: "),
        (["probe", "{trained}", "--solver", "reduced"], "Did you mean reduced_rank?"),
        (["probe", "{trained}", "--sitee", "2_post"], "No such option: --sitee. Did you mean --site?"),
        (["probe", "{trained}x"], "Did you mean {trained}?"),
        (["intervene", "{trained}", "--edit", "ster"], "Did you mean steer?"),
        (["prob", "{trained}"], "Did you mean 'probe'?"),
        (["probe", "{trained}", "--untrained", "-1"], "--untrained -1: "),
        (["probe", "{trained}", "--plot", "fractal.doc"], "pictures are .png"),
        (["probe", "{trained}", "--plot", "/nowhere/fractal.png"], "there is no folder /nowhere"),
        (["probe", "{trained}", "--out", "/nowhere/report"], "--out /nowhere/report: there is no folder /nowhere"),
        (["probe", "{trained}", "--out", "{trained}"], "is a folder: give the name of a file"),
        (["probe", "{trained}", "--part", "factor"], "--part factor: z1r has no parts"),
        (["probe", "{trained}", "--device", "gpu"], "--device 'gpu': give a device"),
        (["intervene", "{trained}", "--edit", "zap"], "zap"),
        (["intervene", "{trained}", "--target", "zap"], "zap"),
        (["intervene", "{trained}", "--position", "10"], "10"),
        (["intervene", "{trained}", "--n-words", "0"], "--n-words 0: "),
        (["intervene", "{trained}", "--n-words", "many"], "--n-words many: "),
        (["emergence", "{trained}", "--site", "3_past"], "no site '3_past'"),
        (["emergence", "{trained}", "--gif", "/nowhere/x.gif"], "--gif /nowhere/x.gif: there is no folder"),
        (["infer", "nowhere"], "There is no file or folder nowhere"),
        (["infer", "{trained}", "--states", "2,x"], "--states 2,x: give numbers from 1, such as 2,3,4"),
        (["infer", "{trained}", "--states", "0"], "--states 0: "),
        (["infer", "{trained}", "--starts", "0"], "--starts 0: "),
        (["infer", "{trained}", "--process", "mess3"], "--process mess3: it has 3 tokens, the model 2"),
        (["infer", "{trained}", "-p", "x=1"], "--param without --process"),
        (["infer", "{trained}", "--out", "/nowhere/found.json"], "--out /nowhere/found.json: there is no folder"),
        (["report", "nowhere"], "There is no file or folder nowhere"),
        (["msp", "mess4"], "No process 'mess4'"),
        (["msp", "mess3", "-p", "x=0.1", "-p", "x=0.2"], "x is given twice"),
        (["msp", "mess3", "-p", "x=nan"], "x"),
        (["train", "z1r", "--steps", "-1"], "--steps -1: "),
        (["train", "z1r", "--steps", "2.5"], "--steps 2.5: "),
        (["train", "z1r", "--checkpoints", "few"], "--checkpoints few: "),
        (["train", "z1r", "--preset", "slow"], "No preset 'slow'"),
        (["train", "z1r", "--seed", "-1"], "--seed -1: "),
        (["train", "z1r", "--out", "{trained}/model.safetensors"], "is a file"),
        (["run", "z1r", "--seed", str(2**70)], "--seed 1180591620717411303424: "),
        (["run", "z1r", "--weighting", "uniform"], "--weighting uniform: "),
        (["run", "z1r", "--device", "cud", "--overwrite", "--out", "{trained}"], "--device 'cud'"),
        (["run", "z1r", "--zap"], "--zap"),
        (["run", "z1r", "--seeds", "0"], "--seeds 0: "),
        (["zap"], "zap"),
    ],
)
def test_wrong_usage_is_one_line_before_any_work(trained, arguments, message, monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise AssertionError("work was done")

    for room, verb in (("training", "train"), ("probing", "probe"), ("formation", "emergence"), ("inference", "infer")):
        monkeypatch.setattr(import_module(f"msp_lens.{room}"), verb, refuse)
    monkeypatch.setattr(import_module("msp_lens.experiments.study"), "train", refuse)
    monkeypatch.chdir(tmp_path)
    before = sorted(trained[0].rglob("*"))
    result = call_here(*(argument.format(trained=trained[0]) for argument in arguments))
    assert result.exit_code == 2, result.exception
    assert result.stdout == ""
    assert message.format(trained=trained[0]) in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("msp-lens: ")
    assert len(result.stderr) < 500
    # Options are called what they are called here.
    assert not re.search(r"\b[a-z_]+=(?!nan|number)", result.stderr.replace("x=0.05", "").replace("x=0.2", ""))
    assert list(tmp_path.iterdir()) == []
    assert sorted(trained[0].rglob("*")) == before


@pytest.mark.parametrize("arguments", [["emergence", "."], ["probe", "{damaged}"], ["report", "."]])
def test_a_failure_is_one_line(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    damaged = tmp_path / "model.safetensors"
    damaged.write_bytes(b"x" * 100)
    result = call_here(*(argument.format(damaged=damaged) for argument in arguments))
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("msp-lens: ")
    assert len(result.stderr.splitlines()) == 1


def test_an_error_can_be_looked_into(trained):
    result = call_here("probe", trained[0], "--rank", 2, "--debug")
    assert isinstance(result.exception, ValueError)


def test_help_teaches_by_example():
    result = call("run", "--help")
    assert result.returncode == 0
    assert "--overwrite" in result.stdout
    assert "msp-lens run mess3 --param x=0.05" in " ".join(result.stdout.split())


@pytest.mark.slow
def test_processes_are_listed(monkeypatch):
    # The table is made once and shown twice.
    monkeypatch.setattr(description, "catalog_table", functools.cache(description.catalog_table))
    result = call_here("processes")
    assert result.exit_code == 0, result.stderr
    rows = {line.split("(")[0].strip(): line.split() for line in result.stdout.splitlines() if "(" in line}
    assert set(msp.processes.CATALOG) <= set(rows)
    assert rows["rrxor"][-4:] == ["36", "1", "of", "4"]
    assert rows["rrxor"][-5] == "0.4621"
    assert rows["mess3"][-6:] == ["0.7935", ">", "3,280", "2", "of", "2"]
    # Counted in one way everywhere.
    assert "> 3,280" in call_here("msp", "mess3").stdout
    assert "more than 3,280 mixed states, perhaps infinitely many" in call_here("msp", "mess3").stdout
    table = {row["process"].split("(")[0]: row for row in json.loads(call_here("processes", "--json").stdout)}
    assert table["rrxor"]["mixed states"] == 36
    assert table["rrxor"]["h, nats"] == pytest.approx(2 / 3 * math.log(2), abs=1e-6)
    assert table["mess3"]["mixed states"] is None
    assert table["mess3"]["mixed states found"] == 3280
    words = {key for row in table.values() for key, value in row.items() if isinstance(value, str)}
    assert words == {"process", "kind"}


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
    ],
)
def test_a_run_is_refused_before_anything_is_written(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call_here("run", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [], "something was written"


def test_a_folder_that_holds_a_run_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"precious")
    result = call_here("run", "mess3", "--out", tmp_path)
    assert result.exit_code == 2
    assert "already holds a run (model.safetensors)" in result.stderr
    assert "or overwrite it with --overwrite." in result.stderr
    assert (tmp_path / "model.safetensors").read_bytes() == b"precious"
    (tmp_path / "report.html").write_text("precious")
    result = call_here("run", "mess3", "--out", tmp_path)
    assert result.exit_code == 2
    assert f"open {tmp_path}/report.html, give another folder (--out {tmp_path}-2)" in result.stderr


def test_names_of_processes_become_safe_folders(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    process = msp.processes.z1r()
    monkeypatch.setattr("msp_lens.cli.named_process", lambda *_: msp.Process(process.transitions, name="../../z1r <b>"))
    result = call_here("train", "z1r", "--steps", 1)
    assert result.exit_code == 0, result.stderr
    assert [path.relative_to(tmp_path).parts[:2] for path in tmp_path.glob("*/*")] == [("runs", "z1r_b")]


def test_a_run_passes_its_options_on(monkeypatch, tmp_path):
    asked = {}

    def run(process, **options):
        asked.update(options, process=repr(process))
        raise ValueError("n_words=0: enough was seen.")

    monkeypatch.setattr(import_module("msp_lens.experiments.study"), "run", run)
    options = ("--seed", 4, "--seeds", 3, "--weighting", "prefix", "--preset", "paper")
    result = call_here("run", "mess3", "-p", "x=0.1", *options, "--out", tmp_path / "new")
    assert (result.exit_code, result.stderr) == (1, "msp-lens: --n-words 0: enough was seen.\n")
    expected = {"seed": 4, "seeds": 3, "weighting": "prefix", "preset": "paper", "out": tmp_path / "new"}
    assert {key: asked[key] for key in expected} == expected
    assert asked["process"].startswith("mess3(x=0.1")
    assert asked["progress"] is False


def test_the_version_and_the_module():
    asked = call_here("--version")
    assert (asked.exit_code, asked.stdout) == (0, f"msp-lens {msp.__version__}\n")
    module = subprocess.run([sys.executable, "-m", "msp_lens", "--version"], capture_output=True, text=True, check=True)
    assert module.stdout == asked.stdout


def test_a_closed_pipe_is_a_quiet_success():
    """As in `msp-lens msp mess3 | true`."""
    running = subprocess.Popen([*COMMAND, "msp", "z1r"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    running.stdout.close()
    assert running.stderr.read() == b""
    assert running.wait(timeout=100) == 0


# All in one process, which takes seconds to start.
SEVERAL = """
import json, sys
from msp_lens.cli import app
for arguments in json.loads(sys.argv[1]):
    try:
        app(arguments)
    except SystemExit as ended:
        print("exit code", ended.code or 0, flush=True)
"""


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_without_unicode_gets_plain_characters(encoding):
    commands = json.dumps([["msp", "z1r"], ["msp", "z1r", "--json"], ["msp", "η"]])
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    result = subprocess.run(
        [sys.executable, "-c", SEVERAL, commands], capture_output=True, env=environment, check=True, timeout=100
    )
    assert b"Traceback" not in result.stderr
    shown, error = result.stdout.decode(encoding), result.stderr.decode(encoding)
    assert re.findall(r"exit code (\d)", shown) == ["0", "0", "2"]
    assert "----------" in shown.partition("exit code")[0]
    assert "No process" in error


def test_progress_bars_do_not_go_to_files(trained):
    result = call_here("probe", trained[0], "--site", "3_post")
    assert result.exit_code == 0
    assert result.stderr == ""


def test_paths_may_begin_at_home(trained, monkeypatch):
    monkeypatch.setenv("HOME", str(trained[0].parent))
    result = call_here(
        "probe", f"~/{trained[0].name}", "-s", "3_post", "--plot=~/fractal.svg", "--out=~/report.safetensors"
    )
    assert result.exit_code == 0, result.stderr
    assert (trained[0].parent / "fractal.svg").exists()
    assert (trained[0].parent / "report.safetensors").exists()


@pytest.mark.slow
def test_ctrl_c_leaves_what_is_whole(tmp_path):
    out = tmp_path / "run"
    # A small network that is trained for hours.
    program = """
import sys, msp_lens as msp
from msp_lens.cli import main
from msp_lens.training import PRESETS, Recipe
model = msp.ModelConfig(d_vocab=2, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=4)
PRESETS["quick"] = lambda process: Recipe(model, msp.TrainingConfig(steps=10**6, batch_size=8, save_every=10))
main()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, "run", "z1r", "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever started the tests in the background had them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
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
    assert f"Interrupted. Complete files in {out}: config.json, metrics.jsonl, model.safetensors" in stderr
    assert "Traceback" not in stderr
    assert msp.load_checkpoint(out).provenance["step"] >= 1


def test_a_folder_that_holds_no_whole_training_is_refused_in_one_line(tmp_path, mess3):
    """Its files are named, and the remedy is the command line's."""
    config = msp.ModelConfig(d_vocab=3, n_layers=1, d_model=16, d_head=8, d_mlp=32, n_ctx=4)
    msp.save_checkpoint(tmp_path / "model.safetensors", msp.build_model(config), process=mess3)
    result = call_here("report", tmp_path)
    assert result.exit_code == 1
    assert result.stderr.endswith(f"has not ended: run msp-lens train … --out {tmp_path} once more to resume it.\n")
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    result = call_here("report", tmp_path)
    assert result.exit_code == 1
    assert str(tmp_path / "model.safetensors") in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_training_of_something_else_is_refused_in_a_few_lines(tmp_path):
    made = call_here("train", "z1r", "--steps", "2", "--out", tmp_path / "z1r")
    assert made.exit_code == 0, made.stderr
    result = call_here("train", "mess3", "--preset", "paper", "--seed", "3", "--out", tmp_path / "z1r")
    assert result.exit_code == 1
    assert "--fresh" in result.stderr
    assert "resume=" not in result.stderr
    assert len(result.stderr) < 900


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [None, "5000"]),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ["ACTIVE", None]),
        ({"GOMP_SPINCOUNT": "7"}, [None, "7"]),
    ],
)
def test_threads_spin_briefly_unless_the_user_says_otherwise(given, expected):
    """Set before torch is loaded, or it would have no effect."""
    program = (
        "import os, sys\nfrom msp_lens import cli\nassert 'torch' not in sys.modules\n"
        "cli.app = lambda: print([os.environ.get(name) for name in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')])\ncli.main()"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment | given, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == str(expected)
