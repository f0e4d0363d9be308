import copy
import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

import msp_lens as msp
from msp_lens.experiments import run_folder
from msp_lens.experiments import study as studies
from msp_lens.page import pictures
from msp_lens.training import PRESETS, Recipe, loop
from tests.conftest import laid_out


@pytest.fixture(scope="module", autouse=True)
def tiny_preset(small_reports):
    """Seconds instead of minutes; everything else is the real thing."""

    def tiny(process):
        model = msp.ModelConfig(d_vocab=process.n_tokens, n_layers=2, d_model=16, d_head=8, d_mlp=32, n_ctx=5)
        return Recipe(model, msp.TrainingConfig(steps=60, batch_size=64, learning_rate=1e-2, warmup_steps=10))

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(PRESETS, "tiny", tiny)
        yield


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return msp.run(msp.mess3(), preset="tiny", out=tmp_path_factory.mktemp("run") / "mess3", progress=False)


def test_everything_is_there(study):
    assert {file.name for file in study.folder.iterdir()} == {*run_folder.RUN_FILES, "checkpoints", "pictures", ".lock"}
    assert "Report: " in study.details()
    assert "Emergence of beliefs" in study.details()


def test_the_answer_is_told_in_some_ten_lines(study, monkeypatch):
    found, best = study.summary(), study.report.best_site
    control, first = study.report.controls.best(best.label), study.emergence.snapshots[0].report[best.label]
    said = f"R² {best.scores.held_out.r2:.4f} held out, best at {best.label}; {control.held_out.r2:.4f} for the best"
    assert found["belief read"].startswith(said)
    assert f"{first.scores.held_out.r2:.4f} before training" in found["belief read"]
    skill = study.report.skill(best.label)
    assert found["skill"].startswith(f"{skill:.2f}: " if skill > -9 else "< -10: ")
    assert ("better than the network" in found["skill"]) == (skill <= 0)
    steered = study.interventions.select(site=best.label, edit="steer")
    assert f"moves predictions {100 * steered.recovery:.1f} % of the way" in found["belief used"]
    assert found["trained"].startswith(f"transformer of 2 layers, width 16, {study.training.step} steps")
    assert f"msp-lens infer {study.folder}" in found["its world"]
    assert found["report"] == str(study.page)
    for width, most in ((120, 18), (80, 24)):
        monkeypatch.setenv("COLUMNS", str(width))
        lines = repr(study).splitlines()
        assert len(lines) <= most
        assert all(len(line) <= width or str(study.folder) in line for line in lines)


def test_beliefs_are_followed_along_the_training(study):
    steps = [snapshot.step for snapshot in study.emergence.snapshots]
    assert steps == [checkpoint.step for checkpoint in study.training.checkpoints]
    assert (steps[0], steps[-1], len(steps)) == (0, 60, studies.CHECKPOINTS)
    rows = json.loads((study.folder / "report.json").read_text())["emergence"]
    assert len(rows) == len(steps) * len(study.report)
    assert [row["R² held out"] for row in rows] == study.emergence.to_dataframe()["R² held out"].tolist()
    # The last checkpoint is the trained model, here probed on the same words.
    last = study.emergence.snapshots[-1].report.best_site
    assert last.scores.held_out.r2 == pytest.approx(study.report[last.label].scores.held_out.r2, abs=1e-6)
    with Image.open(study.folder / "movie.gif") as movie:
        assert movie.n_frames == len(steps)


def test_results_can_be_loaded_and_agree(study):
    findings = json.loads((study.folder / "report.json").read_text())
    loaded = msp.load_checkpoint(study.folder)
    assert findings["model_fingerprint"] == loaded.fingerprint
    again = msp.probe(loaded.model, loaded.process, progress=False)
    expected = [row["R² held out"] for row in findings["probes"]["sites"]]
    assert [probe.scores.held_out.r2 for probe in again.probes] == pytest.approx(expected, abs=1e-6)
    assert len(findings["interventions"]["results"]) == 4 * 7
    assert findings["skipped"] == study.skipped == {}
    for name in ("persistence", "necessity", "bayes_consistency", "prediction_consistency"):
        found = getattr(study, name)
        assert findings[name] == found.to_dict()
        assert {row["site"] for row in findings[name]["results"]} >= {"0_pre", "0_post", "1_post", "ln_final"}
        assert found.title in study.details()
    again = msp.necessity(loaded.model, loaded.process, probes=again, n_words=50).to_dataframe()
    assert again["regret"].tolist() == pytest.approx(study.necessity.to_dataframe()["regret"].tolist(), rel=1e-4)

    lens = msp.representation.logit_lens(loaded.model, loaded.process, probes=study.report, n_words=2000)
    assert [row["lens"] for row in findings["logit_lens"]["layers"]] == pytest.approx(
        lens.to_dataframe()["lens"].tolist(), rel=1e-4
    )

    config = json.loads((study.folder / "config.json").read_text())
    assert msp.Process.from_dict(config["process"]) == msp.mess3()
    assert config["versions"].keys() >= {"torch", "transformer_lens", "msp_lens"}


def test_the_page_stands_alone(study):
    page = study.page.read_text()
    # Each picture and the movie's frames, in light and in dark.
    assert page.count("data:image/webp;base64,") == 2 * (11 + len(study.emergence))
    assert not re.findall(r'(?:src|srcset)="(?!data:)', page), "the page fetches something"
    links = re.findall(r'href="(?!#)([^"]*)"', page)
    assert {link.partition("/")[0] for link in links} == {"pictures", "https:"}
    for heading in (
        "Whether the network uses the belief",
        "How long does an edit last?",
        "Is the belief necessary and sufficient?",
        "Do the beliefs follow Bayes’ rule?",
        "Do the beliefs imply the network’s predictions?",
    ):
        assert re.search(f"<h[23][^>]*>{re.escape(heading)}</h[23]>.*?<table>", page, re.DOTALL), heading
    assert "Not run for this network" not in page
    for expected in ("mess3(x=0.05, a=0.85)", "R² held out", "placebo", "msp.load_checkpoint", "fingerprint"):
        assert expected in page
    assert len(page) < 10e6


def test_pictures_are_pngs(study):
    for name in run_folder.PICTURES.values():
        with Image.open(study.folder / name) as picture:
            assert picture.format == "PNG"


def test_a_folder_that_holds_a_run_is_refused_unless_overwritten(study):
    with pytest.raises(ValueError, match=r"already holds a run .*overwrite"):
        msp.run(msp.mess3(), preset="tiny", out=study.folder, progress=False)
    # Refused before any work: nothing of the former run is gone.
    assert {file.name for file in study.folder.iterdir()} == {*run_folder.RUN_FILES, "checkpoints", "pictures", ".lock"}


@pytest.fixture(scope="module")
def tinier():
    """Less than a second to train."""

    def recipe_of(process):
        model = msp.ModelConfig(d_vocab=process.n_tokens, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=4)
        return Recipe(model, msp.TrainingConfig(steps=20, batch_size=16, warmup_steps=2, log_every=5, save_every=5))

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(PRESETS, "tinier", recipe_of)
        yield {"preset": "tinier", "progress": False, "emergence": False}


@pytest.fixture(scope="module")
def finished(tinier, tmp_path_factory):
    return msp.run(msp.processes.z1r(), out=tmp_path_factory.mktemp("finished"), **tinier)


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of a finished run, to be damaged or overwritten."""
    return shutil.copytree(finished.folder, tmp_path / "run")


def contents(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_overwriting_leaves_files_of_others(tmp_path, tinier):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "model.safetensors").write_bytes(b"of a former run")
    (tmp_path / "movie.gif").write_bytes(b"of a former run")
    (tmp_path / "checkpoints").mkdir()
    study = msp.run(msp.processes.z1r(), out=tmp_path, overwrite=True, **tinier)
    assert not (tmp_path / "movie.gif").exists()
    assert not (tmp_path / "checkpoints").exists()
    assert not (tmp_path / run_folder.NEW_RUN_FOLDER).exists()
    assert study.emergence is None
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert msp.load_checkpoint(tmp_path).process == msp.processes.z1r()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == len(study.training.metrics)
    assert (study.folder, study.training.folder) == (tmp_path, tmp_path)


@pytest.mark.parametrize(
    "options",
    [{"device": "gpu"}, {"device": "cuda:99"}, {"seed": 2**70}, {"seed": -1}, {"seeds": 0}, {"weighting": "words"}],
    ids=str,
)
def test_what_is_refused_costs_the_old_run_nothing(options, copied, tinier):
    before = contents(copied)
    with pytest.raises((ValueError, TypeError), match=next(iter(options))):
        msp.run(msp.processes.z1r(), out=copied, overwrite=True, **tinier | options)
    assert contents(copied) == before


class Killed(BaseException):
    """Not an Exception, so that nothing catches it."""


def interrupted(monkeypatch, *args, at="intervene", **options):
    def stop(*args, **options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setitem(studies.EXPERIMENTS, "interventions", stop)
        with pytest.raises(Killed):
            msp.run(*args, **options)


def test_an_old_run_stays_until_the_new_one_is_complete(copied, tinier, monkeypatch):
    before = contents(copied)
    again = {"out": copied, "overwrite": True, "seed": 1, **tinier}
    interrupted(monkeypatch, msp.processes.z1r(), **again)
    after = contents(copied)
    assert {name: after[name] for name in before} == before
    # The training that was made is not made again.
    monkeypatch.setattr(loop.Training, "advance", None)
    study = msp.run(msp.processes.z1r(), **again)
    assert study.training.seed == 1
    assert msp.load_checkpoint(copied).provenance["seed"] == 1
    assert not (copied / run_folder.NEW_RUN_FOLDER).exists()


def test_another_new_run_starts_afresh(copied, tinier, monkeypatch):
    interrupted(monkeypatch, msp.processes.z1r(), out=copied, overwrite=True, seed=1, **tinier)
    assert msp.run(msp.processes.z1r(), out=copied, overwrite=True, seed=2, **tinier).training.seed == 2


def test_an_interrupted_run_goes_on(tmp_path, tinier, monkeypatch):
    options = {"out": tmp_path, **tinier}
    interrupted(monkeypatch, msp.processes.z1r(), **options)
    with pytest.raises(ValueError, match=r"unfinished run of another seed: .*overwrite=True"):
        msp.run(msp.processes.z1r(), seed=1, **options)
    monkeypatch.setattr(loop.Training, "advance", None)
    assert msp.run(msp.processes.z1r(), **options).page.is_file()
    with pytest.raises(ValueError, match="already holds a run"):
        msp.run(msp.processes.z1r(), **options)


def test_a_full_disk_leaves_the_training(tmp_path, tinier, monkeypatch):
    def full(path, content):
        if path.name == "sites.png":
            raise OSError(28, "No space left on device")
        write(path, content)

    write = studies.write_atomically
    monkeypatch.setattr(studies, "write_atomically", full)
    with pytest.raises(OSError, match=rf"Writing to {tmp_path} failed \(No space.*what was trained is saved.*report"):
        msp.run(msp.processes.z1r(), out=tmp_path, **tinier)
    monkeypatch.undo()
    assert studies.report(tmp_path, progress=False).page.is_file()


def test_a_folder_in_use_is_refused(copied, tinier, in_use):
    before = contents(copied)
    with in_use(copied):
        with pytest.raises(ValueError, match=f"process is writing to {copied}"):
            msp.run(msp.processes.z1r(), out=copied, overwrite=True, **tinier)
        with pytest.raises(ValueError, match=f"process is writing to {copied}"):
            studies.report(copied, progress=False)
    assert contents(copied) == before


def test_scores_over_seeds(tmp_path, tinier):
    study = msp.run(msp.processes.z1r(), out=tmp_path, seeds=2, seed=5, **tinier)
    found = study.over_seeds
    assert found.seeds == (5, 6)
    assert "5, 6" in study.details()
    table = found.to_dataframe().set_index(["seed", "site"])
    for seed in found.seeds:
        run = msp.train(msp.processes.z1r(), preset="tinier", seed=seed, progress=False)
        report = msp.probe(run.model, run.process, seed=seed, progress=False)
        assert table.loc[(seed, "0_post"), "R² held out"] == pytest.approx(
            report["0_post"].scores.held_out.r2, abs=1e-6
        )
        assert table.loc[(seed, "0_post"), "skill"] == pytest.approx(report.skill("0_post"), abs=1e-4)
        assert table.loc[(seed, "0_post"), "regret"] == pytest.approx(float(run.regret.mean()), abs=1e-6)
    spread = found.spread().set_index(["site", "score"]).loc[("0_post", "skill")]
    values = table.xs("0_post", level="site")["skill"].to_numpy()
    assert spread["mean"] == pytest.approx(values.mean())
    assert spread["std"] == pytest.approx(values.std(ddof=1))
    assert (spread["lowest"], spread["highest"]) == (values.min(), values.max())
    written = json.loads((tmp_path / "report.json").read_text())["over_seeds"]
    assert written == found.to_dict()
    assert written["seeds"] == [5, 6]
    # The report made again from the folder knows the other networks.
    assert studies.report(tmp_path, emergence=False, progress=False).over_seeds == found


def test_one_seed_has_no_spread(study):
    assert study.over_seeds is None
    assert json.loads((study.folder / "report.json").read_text())["over_seeds"] is None


@pytest.mark.parametrize(
    ("process", "why"),
    [
        (msp.processes.coin(), "it has one hidden state"),
        (msp.processes.mixture([msp.processes.coin(), msp.processes.coin()], [0.5, 0.5]), "say nothing about"),
    ],
    ids=["coin", "two coins alike"],
)
def test_a_process_without_beliefs_is_refused_before_training(process, why, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.Training, "advance", None)
    with pytest.raises(ValueError, match=f"no belief to find: .*{why}.* such as mess3"):
        msp.run(process, preset="tiny", out=tmp_path / "run")
    with pytest.raises(ValueError, match="no belief to find"):
        msp.sweep(process, {"steps": 5}, out=tmp_path / "sweep")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a\nb", "x" * 300, "..", "<b>", "CON", "$x"])
def test_a_name_stays_in_its_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = run_folder.choose_folder(None, name)
    folder.mkdir(parents=True)
    assert [path.resolve().parent for path in Path("runs").iterdir()] == [tmp_path / "runs"]


def test_a_run_stays_in_its_folder(tmp_path, tinier, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    process = msp.Process.from_dict(msp.processes.z1r().to_dict() | {"name": "../../x"})
    assert msp.run(process, **tinier).folder == Path("runs/x")
    msp.sweep(process, {"steps": 2, "n_layers": 1}, out="sweep", n_jobs=1, progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {"here"}
    assert {path.name for path in Path().iterdir()} == {"runs", "sweep"}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", r"config\.json is not valid JSON"),
        ("config.json", "[" * 100_000, r"config\.json is not valid JSON"),
        ("config.json", b"\xff", r"config\.json is not valid JSON"),
        ("config.json", {"seed": "0"}, r"config\.json: \$\.seed='0': give a whole number"),
        ("config.json", {"weighting": "words"}, r"config\.json: \$\.weighting='words': choose one of"),
        ("config.json", {"versions": None}, r"config\.json: \$\.versions=None"),
        ("config.json", {"process": msp.mess3().to_dict()}, r"config\.json is of another process than model\.safe"),
        ("config.json", {"seed": 3}, r"config\.json is of another seed than model\.safetensors beside it"),
        ("metrics.jsonl", "{}\n", r"metrics\.jsonl, line 1.*required"),
        ("model.safetensors", b"half", r"model\.safetensors is damaged"),
    ],
)
def test_report_names_the_damaged_file(file, content, message, copied):
    if isinstance(content, dict):
        content = json.dumps(json.loads((copied / file).read_text()) | content)
    (copied / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        studies.report(copied, progress=False)


def test_report_names_the_missing_file(tmp_path, copied):
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        studies.report(tmp_path / "nothing", progress=False)
    assert not (tmp_path / "nothing").exists()
    (copied / "metrics.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
        studies.report(copied, progress=False)


def test_studies_are_plain_values(study, tmp_path):
    assert copy.copy(study) == study
    assert study != dataclasses.replace(study, skipped={"necessity": "no"})


def test_a_new_folder_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(run_folder.choose_folder(None, "mess3")) == "runs/mess3"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs" / "mess3").mkdir(parents=True)
    assert str(run_folder.choose_folder(None, "mess3")) == "runs/mess3-2"


def test_bad_requests_write_nothing(tmp_path):
    with pytest.raises(KeyError, match="No preset 'slow'"):
        msp.run(msp.mess3(), preset="slow", out=tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        msp.run(msp.mess3(), out=tmp_path / "file")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("process", "skipped"),
    [
        (msp.rrxor(), {}),
        (msp.processes.even(), {}),
        (msp.processes.bloch_walk(), {"interventions": "no distributions", "persistence": "no distributions"}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_other_processes_run_to_the_end(process, skipped, tmp_path, tinier, monkeypatch):
    monkeypatch.setattr(pictures, "themed", laid_out)
    study = msp.run(process, out=tmp_path, **tinier)
    page = study.page.read_text()
    assert {name for name in studies.EXPERIMENTS if getattr(study, name) is None} == skipped.keys()
    assert study.skipped.keys() == skipped.keys()
    for name, reason in skipped.items():
        assert reason in study.skipped[name]
        assert reason in study.details()
    assert page.count("Not run for this network") == len(skipped)
    n_answers = page.count("Does writing a different belief change the predictions accordingly?")
    assert n_answers == len({"interventions"} - skipped.keys())
    assert json.loads((study.folder / "report.json").read_text())["skipped"] == study.skipped


def test_a_context_of_one_token_runs_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "themed", laid_out)

    def short(process):
        model = msp.ModelConfig(d_vocab=process.n_tokens, n_layers=1, d_model=16, d_head=8, d_mlp=32, n_ctx=1)
        return Recipe(model, msp.TrainingConfig(steps=5, batch_size=8))

    monkeypatch.setitem(PRESETS, "short", short)
    study = msp.run(msp.mess3(), preset="short", out=tmp_path, progress=False)
    assert "no token follows" in study.skipped["persistence"]
    assert "at least 2 tokens" in study.skipped["bayes_consistency"]
    assert study.interventions is not None
    assert study.prediction_consistency is not None
