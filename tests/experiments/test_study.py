import json
import re

import pytest
from PIL import Image

import msp_lens as msp
from msp_lens.experiments import study as studies
from msp_lens.training import PRESETS, Recipe


@pytest.fixture(scope="module", autouse=True)
def tiny_preset():
    """Seconds instead of minutes; everything else is the real thing."""

    def tiny(process):
        model = msp.ModelConfig(d_vocab=process.n_tokens, n_layers=2, d_model=16, d_head=8, d_mlp=32, n_ctx=5)
        return Recipe(model, msp.TrainingConfig(steps=150, batch_size=64, learning_rate=1e-2, warmup_steps=10))

    PRESETS["tiny"] = tiny
    yield
    del PRESETS["tiny"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return msp.run(msp.mess3(), preset="tiny", out=tmp_path_factory.mktemp("run") / "mess3", progress=False)


def test_everything_is_there(study):
    assert {file.name for file in study.folder.iterdir()} == {*studies.RUN_FILES, "checkpoints"}
    assert "Report: " in repr(study)
    assert "Emergence of beliefs" in repr(study)


def test_beliefs_are_followed_along_the_training(study):
    steps = [snapshot.step for snapshot in study.emergence.snapshots]
    assert steps == [checkpoint.step for checkpoint in study.training.checkpoints]
    assert (steps[0], steps[-1], len(steps)) == (0, 150, studies.CHECKPOINTS)
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
        assert found.title in repr(study)
    again = msp.necessity(loaded.model, loaded.process, probes=again, n_words=500).to_dataframe()
    assert again["regret"].tolist() == pytest.approx(study.necessity.to_dataframe()["regret"].tolist(), rel=1e-4)

    config = json.loads((study.folder / "config.json").read_text())
    assert msp.Process.from_dict(config["process"]) == msp.mess3()
    assert config["versions"].keys() >= {"torch", "transformer_lens", "msp_lens"}


def test_the_page_stands_alone(study):
    page = study.page.read_text()
    # Each picture in light and in dark, and the movie's frames.
    assert page.count("data:image/webp;base64,") == 2 * 9
    assert page.count("data:image/png;base64,") == len(study.emergence)
    assert not re.findall(r'(?:src|srcset|href)="(?!data:|#)', page), "the page fetches something"
    for heading in (
        "Whether the network uses the belief",
        "How long does an edit last?",
        "Is the belief necessary and sufficient?",
        "Do the beliefs follow Bayes’ rule?",
        "Do the beliefs imply the network’s predictions?",
    ):
        assert re.search(f"<h[23]>{re.escape(heading)}</h[23]>.*?<table>", page, re.DOTALL), heading
    assert "Not run for this network" not in page
    for expected in ("mess3(x=0.05, a=0.85)", "R² held out", "placebo", "msp.load_checkpoint", "fingerprint"):
        assert expected in page
    assert len(page) < 10e6


def test_pictures_are_pngs(study):
    for name in studies.PICTURES.values():
        assert (study.folder / name).read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_holds_a_run_is_refused_unless_overwritten(study):
    with pytest.raises(ValueError, match=r"already holds a run .*overwrite"):
        msp.run(msp.mess3(), preset="tiny", out=study.folder, progress=False)
    # Refused before any work: nothing of the former run is gone.
    assert {file.name for file in study.folder.iterdir()} == {*studies.RUN_FILES, "checkpoints"}


@pytest.mark.slow
def test_overwriting_leaves_files_of_others(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "model.safetensors").write_bytes(b"of a former run")
    (tmp_path / "movie.gif").write_bytes(b"of a former run")
    study = msp.run(msp.processes.coin(), preset="tiny", out=tmp_path, overwrite=True, emergence=False, progress=False)
    assert not (tmp_path / "movie.gif").exists()
    assert not (tmp_path / "checkpoints").exists()
    assert study.emergence is None
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert msp.load_checkpoint(tmp_path).process == msp.processes.coin()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == len(study.training.metrics)


def test_a_new_folder_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(studies.choose_folder(None, "mess3")) == "runs/mess3"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs" / "mess3").mkdir(parents=True)
    assert str(studies.choose_folder(None, "mess3")) == "runs/mess3-2"


def test_bad_requests_write_nothing(tmp_path):
    with pytest.raises(KeyError, match="No preset 'slow'"):
        msp.run(msp.mess3(), preset="slow", out=tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        msp.run(msp.mess3(), out=tmp_path / "file")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("process", "skipped"),
    [
        (msp.rrxor(), {}),
        (msp.processes.z1r(), {}),
        (msp.processes.golden_mean(), {}),
        (msp.processes.even(), {}),
        (msp.processes.coin(), {"necessity": "the belief is the same"}),
        (msp.processes.bloch_walk(), {"interventions": "no distributions", "persistence": "no distributions"}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_other_processes_run_to_the_end(process, skipped, tmp_path):
    study = msp.run(process, preset="tiny", out=tmp_path, emergence=process.name == "rrxor", progress=False)
    page = study.page.read_text()
    assert {name for name in studies.EXPERIMENTS if getattr(study, name) is None} == skipped.keys()
    assert study.skipped.keys() == skipped.keys()
    for name, reason in skipped.items():
        assert reason in study.skipped[name]
        assert reason in repr(study)
    assert page.count("Not run for this network") == len(skipped)
    n_answers = page.count("Does writing a different belief change the predictions accordingly?")
    assert n_answers == len({"interventions"} - skipped.keys())
    assert json.loads((study.folder / "report.json").read_text())["skipped"] == study.skipped


@pytest.mark.slow
def test_a_context_of_one_token_runs_to_the_end(tmp_path, monkeypatch):
    def short(process):
        model = msp.ModelConfig(d_vocab=process.n_tokens, n_layers=1, d_model=16, d_head=8, d_mlp=32, n_ctx=1)
        return Recipe(model, msp.TrainingConfig(steps=5, batch_size=8))

    monkeypatch.setitem(PRESETS, "short", short)
    study = msp.run(msp.mess3(), preset="short", out=tmp_path, progress=False)
    assert "no token follows" in study.skipped["persistence"]
    assert "at least 2 tokens" in study.skipped["bayes_consistency"]
    assert study.interventions is not None
    assert study.prediction_consistency is not None
