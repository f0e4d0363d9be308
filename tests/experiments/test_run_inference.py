"""What the network of a run predicts, inferred into its folder and onto its page."""

import re
import shutil

import pytest
from PIL import Image

import msp_lens as msp
from msp_lens.experiments import infer_run, report
from msp_lens.experiments import run_inference as inferring
from msp_lens.experiments import study as studies
from msp_lens.training import PRESETS, Recipe

QUICK = {"n_states": [1, 2], "n_starts": 2, "progress": False}
SECTION = re.compile(r'<section id="inference">.*?</section>', re.DOTALL)


@pytest.fixture(scope="module")
def tiny(small_reports):
    """Less than a second to train."""

    def recipe_of(process):
        model = msp.ModelConfig(d_vocab=process.n_tokens, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=4)
        return Recipe(model, msp.TrainingConfig(steps=20, batch_size=16, warmup_steps=2))

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(PRESETS, "smallest", recipe_of)
        yield {"preset": "smallest", "progress": False, "emergence": False}


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    return msp.run(msp.processes.z1r(), seed=3, out=tmp_path_factory.mktemp("finished"), **tiny)


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished.folder, tmp_path / "run")


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_a_runs_network_is_asked_for_its_world(copied):
    before = contents(copied)
    found = infer_run(copied, **QUICK)
    model = msp.load_checkpoint(copied).model
    alone = msp.infer(model, **QUICK, seed=3)
    assert found == alone, "the run's seed"
    assert msp.Inference.load(copied / "inference.json") == found
    with Image.open(copied / "inference.png") as picture:
        assert picture.format == "PNG"
    after = contents(copied)
    assert set(after) - set(before) == {"inference.json", "inference.png"}
    assert {name for name in before if after[name] != before[name]} == {"report.html"}
    # Of the page, only its section is another.
    old, new = (each["report.html"].decode() for each in (before, after))
    assert SECTION.sub("", new) == SECTION.sub("", old)
    assert "Not inferred yet" in SECTION.search(old)[0]
    section = SECTION.search(new)[0]
    assert "Not inferred yet" not in section
    assert "No process can be named with confidence" in section
    assert section.count("<li>") == len(found.doubts) >= 1
    assert section.count("data:image/webp;base64,") == 2
    assert "inferred from a network and z1r" in section
    # A second inference takes the place of the first.
    again = infer_run(copied, **QUICK | {"n_states": [1, 2, 3]})
    assert len(again.candidates) > len(found.candidates)
    assert len(SECTION.findall((copied / "report.html").read_text())) == 1
    assert msp.Inference.load(copied / "inference.json") == again


def test_a_report_made_again_has_what_was_inferred(copied, finished):
    assert finished.inference is None
    found = infer_run(copied, **QUICK)
    renewed = SECTION.search((copied / "report.html").read_text())[0]
    study = report(copied, progress=False)
    assert study.inference == found
    assert repr(found) in study.details()
    assert SECTION.search((copied / "report.html").read_text())[0] == renewed


def test_a_page_without_the_section_is_made_again(copied, monkeypatch):
    page, made = copied / "report.html", []
    page.write_text(SECTION.sub("", page.read_text()))
    monkeypatch.setattr(inferring, "report", lambda folder, **_: made.append((folder / "inference.json").exists()))
    infer_run(copied, **QUICK)
    assert made == [True]


def test_a_training_gets_files_and_no_page(tmp_path, small_reports):
    model = msp.build_model(msp.ModelConfig(d_vocab=2, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=4))
    config = msp.TrainingConfig(steps=2, batch_size=4)
    msp.train(msp.processes.z1r(), model, config=config, out=tmp_path, progress=False)
    found = infer_run(tmp_path, seed=5, **QUICK)
    assert found.provenance["seed"] == 5
    assert msp.Inference.load(tmp_path / "inference.json") == found
    assert (tmp_path / "inference.png").exists()
    assert not (tmp_path / "report.html").exists()
    assert report(tmp_path, progress=False, emergence=False).inference == found


def test_another_run_in_the_folder_has_not_been_inferred(copied, tiny):
    infer_run(copied, **QUICK)
    study = msp.run(msp.processes.z1r(), seed=4, out=copied, overwrite=True, **tiny)
    assert study.inference is None
    assert not (copied / "inference.json").exists()
    assert not (copied / "inference.png").exists()
    assert "Not inferred yet" in study.page.read_text()


def refuse(*_, **__):
    raise AssertionError("work was done")


@pytest.mark.parametrize("content", [b"{", b"{}", b"\xff", b"[" * 100_000])
def test_a_damaged_inference_is_named_before_any_work(content, copied, monkeypatch):
    (copied / "inference.json").write_bytes(content)
    before = contents(copied)
    monkeypatch.setattr(studies, "probe", refuse)
    with pytest.raises(ValueError, match=r"inference\.json"):
        report(copied, progress=False)
    assert contents(copied) == before


def test_what_cannot_be_is_refused_before_any_work(copied, tmp_path, monkeypatch, in_use):
    monkeypatch.setattr(inferring, "infer", refuse)
    before = contents(copied)
    with in_use(copied), pytest.raises(ValueError, match=f"process is writing to {copied}"):
        infer_run(copied, **QUICK)
    with pytest.raises(ValueError, match="n_starts=0"):
        infer_run(copied, n_starts=0)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        infer_run(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    assert contents(copied) == before


def test_an_inference_of_another_network_is_refused(copied):
    other = msp.build_model(msp.ModelConfig(d_vocab=2, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=4), seed=9)
    msp.infer(other, **QUICK).save(copied / "inference.json")
    with pytest.raises(ValueError, match=r"inference\.json is of another network .*: remove it, or infer again"):
        report(copied, progress=False)
    infer_run(copied, **QUICK)
    report(copied, progress=False)
