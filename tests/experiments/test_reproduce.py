"""Reproducing a paper: here one whose networks take a second."""

import dataclasses
import json
import pickle
import re
import shutil
from importlib import import_module

import pytest
from typer.testing import CliRunner

import msp_lens as msp
from msp_lens.cli import app
from msp_lens.experiments import papers_to_reproduce, reproduce
from msp_lens.experiments.claims import Claim, Section, at_least, at_most
from msp_lens.experiments.papers import PAPERS
from msp_lens.experiments.reproduction import Network, Paper
from msp_lens.probing import probe

MODEL = msp.ModelConfig(d_vocab=2, n_layers=1, d_model=8, d_head=4, d_mlp=16, n_ctx=4)


def networks(small):
    steps = 20 if small else 40
    training = msp.TrainingConfig(steps=steps, batch_size=32, warmup_steps=2, learning_rate=1e-2)
    processes = (msp.processes.z1r(), msp.processes.golden_mean())
    return {process.name: Network(process=process, model=MODEL, training=training, seed=3) for process in processes}


def beliefs(networks, small):
    report = probe(networks["z1r"].model, networks["z1r"].process, progress=False)
    r2 = report.best_site.scores.held_out.r2
    return Section(
        title="Beliefs <are> read",
        method="First.\n\nSecond.",
        claims=(
            Claim(says="R²", source="Fig. 1", published=0.9, measured=r2, control=0.1, rule=at_least(r2, -1)),
            Claim(says="R²", source="Fig. 2", published="perfect", measured=r2, rule=at_least(r2, 1.1)),
            Claim(says="more", source="Fig. 3", published=12.0, beyond="it takes the full size"),
        ),
        picture=lambda theme: report.plot.scores(theme=theme),
        alt="scores",
        tables=(report,),
    )


def losses(networks, small):
    ratio = networks["golden_mean"].loss_ratio
    claim = Claim(says="Loss", source="text", published="1", measured=ratio, rule=at_most(ratio, 100))
    return Section(title="Losses", method="As trained.", claims=(claim,), remark="A remark.")


PAPER = Paper(
    name="invented",
    title="A paper of nobody’s",
    authors="Nobody",
    source="arXiv:0000.00000",
    claims="It claims little.",
    networks=networks,
    sections=(beliefs, losses),
    differences=lambda small: ("Fewer steps.",) if small else (),
    small_minutes=1,
    full_cost="two minutes",
)


@pytest.fixture(autouse=True, scope="module")
def listed():
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(PAPERS, PAPER.name, PAPER)
        yield


def sent_to_workers(function, items, *, n_jobs, was_started):
    """What two workers would do, each item there and each result back through a pickle; sweeps have real workers."""
    assert n_jobs == 2
    for item in items:
        assert not was_started(item)
        sent, received = pickle.loads(pickle.dumps((function, item)))
        yield item, pickle.loads(pickle.dumps(sent(received)))
        assert was_started(item)


@pytest.fixture(scope="module")
def found(listed, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(import_module("msp_lens.experiments.reproduce"), "run_each", sent_to_workers)
        return reproduce("invented", small=True, out=tmp_path_factory.mktemp("out"), n_jobs=2, progress=False)


@pytest.fixture
def folder(found, tmp_path):
    """A copy of what was made, to be changed."""
    return shutil.copytree(found.folder, tmp_path / "copy")


def test_networks_are_those_that_training_gives(found):
    assert list(found.networks) == ["z1r", "golden_mean"]
    for name, network in networks(True).items():
        alone = msp.train(network.process, MODEL, config=network.training, seed=3, progress=False)
        assert found.networks[name].regret.tolist() == pytest.approx(alone.regret.tolist(), rel=1e-4)
        assert found.networks[name].loss_ratio == pytest.approx(alone.loss_ratio, rel=1e-6)
        assert "20 steps of 32 words with adamw from seed 3" in found.networks[name].origin


def test_claims_and_verdicts(found):
    assert found.verdicts == {"reproduced": 2, "not reproduced": 1, "beyond what was run": 1}
    table = found.to_dataframe()
    assert table["verdict"].tolist() == ["reproduced", "not reproduced", "beyond what was run", "reproduced"]
    assert table["section"].tolist() == ["Beliefs <are> read"] * 3 + ["Losses"]
    assert len(found._display()) == 4, "claims of one wording are rows of their own"
    assert "4 claims: 2 reproduced, 1 not reproduced, 1 beyond what was run." in repr(found)
    assert found.sections[0].plot(theme="dark").axes


def test_the_page_holds_every_number(found):
    page = found.page.read_text()
    assert "2 of 4 claims reproduced, 1 not reproduced, 1 beyond what was run." in page
    assert "Beliefs &lt;are&gt; read" in page, "text is escaped"
    measured = found.claims[0].measured
    assert f'<td data-name="measured">{measured:.3g}</td>' in page
    for text in ("Fewer steps.", "A remark.", "it takes the full size", "msp-lens reproduce invented --small", "0.9"):
        assert text in page
    assert not re.search(r'(src|srcset)="http', page), "nothing is fetched"
    saved = json.loads((found.folder / "reproduction.json").read_text())
    assert saved["size"] == "small"
    assert [claim["measured"] for claim in saved["claims"]] == [claim.measured for claim in found.claims]
    assert saved["networks"]["z1r"]["regret_nats"] == found.networks["z1r"].regret.tolist()


def test_called_again_it_only_measures(found, folder):
    files = sorted(folder.glob("networks/*/model.safetensors"))
    before = [file.stat().st_mtime_ns for file in files]
    shutil.rmtree(folder / "networks" / "golden_mean")
    again = reproduce("invented", small=True, out=folder, n_jobs=1, progress=False)
    assert [file.stat().st_mtime_ns for file in files[1:]] == before[1:]
    assert files[0].stat().st_mtime_ns > before[0], "what is missing is trained"
    assert [claim.measured for claim in again.claims] == pytest.approx(
        [claim.measured for claim in found.claims], nan_ok=True
    )


def test_a_full_run_does_not_take_the_small_one_for_its_own(found):
    with pytest.raises(ValueError, match="steps"):
        reproduce("invented", out=found.folder, n_jobs=1, progress=False)


@pytest.mark.parametrize("spelling", ["z1r", "z1r.safetensors", "invented_z1r.safetensors"])
def test_networks_come_from_a_folder(folder, tmp_path, spelling):
    given = tmp_path / "given"
    given.mkdir()
    model = msp.build_model(MODEL, seed=9)
    path = given / spelling
    if path.suffix:
        msp.save_checkpoint(path, model, process=msp.processes.z1r())
    else:
        path.mkdir()
        msp.save_checkpoint(path / "model.safetensors", model, process=msp.processes.z1r())
    used = reproduce("invented", small=True, out=folder, checkpoints=given, n_jobs=1, progress=False)
    assert msp.models.model_fingerprint(used.networks["z1r"].model) == msp.models.model_fingerprint(model)
    assert used.networks["z1r"].training is None
    assert used.networks["z1r"].origin == f"loaded from {path}"
    words = msp.words(msp.processes.z1r(), n_ctx=4)
    expected = msp.training.regret_by_position(model, words)
    assert used.networks["z1r"].regret.tolist() == pytest.approx(expected.tolist())
    assert used.networks["golden_mean"].training is not None


def test_what_cannot_be_is_refused_before_any_work(tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("work was begun")

    monkeypatch.setitem(PAPERS, "invented", dataclasses.replace(PAPER, sections=(never,)))
    monkeypatch.setattr(import_module("msp_lens.experiments.reproduce"), "_trained", never)
    out = tmp_path / "out"
    with pytest.raises(KeyError, match="No paper 'unknown' to reproduce; there are shai2024"):
        reproduce("unknown", out=out)
    with pytest.raises(ValueError, match="n_jobs=0"):
        reproduce("invented", out=out, n_jobs=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file: give a folder"):
        reproduce("invented", out=tmp_path / "file")
    with pytest.raises(FileNotFoundError, match="holds none of the networks z1r, golden_mean"):
        reproduce("invented", out=out, checkpoints=tmp_path)
    wide = msp.build_model(dataclasses.replace(MODEL, d_vocab=1))
    msp.save_checkpoint(tmp_path / "z1r.safetensors", wide)
    with pytest.raises(ValueError, match=r"z1r\.safetensors does not fit z1r"):
        reproduce("invented", out=out, checkpoints=tmp_path)
    assert not out.exists()


def test_a_training_that_fails_does_not_stop_the_others(monkeypatch, tmp_path):
    def one_too_fast(small):
        made = networks(small)
        far = dataclasses.replace(made["z1r"].training, learning_rate=1e30, optimizer="sgd", warmup_steps=0)
        return made | {"z1r": dataclasses.replace(made["z1r"], training=far)}

    monkeypatch.setitem(PAPERS, "invented", dataclasses.replace(PAPER, networks=one_too_fast))
    with pytest.raises(ValueError, match="The loss became nan"):
        reproduce("invented", small=True, out=tmp_path, n_jobs=1, progress=False)
    assert (tmp_path / "networks" / "golden_mean" / "model.safetensors").exists()
    assert not (tmp_path / "reproduction.html").exists()


def test_papers_are_listed():
    table = papers_to_reproduce()
    assert table.index.tolist() == list(PAPERS)
    assert table.loc["invented"].tolist() == ["A paper of nobody’s", "arXiv:0000.00000", "1 minutes", "two minutes"]
    listed = CliRunner().invoke(app, ["reproduce"])
    assert listed.exit_code == 0
    assert all(name in listed.stdout for name in PAPERS)
    rows = json.loads(CliRunner().invoke(app, ["reproduce", "--json"]).stdout)
    assert [row["name"] for row in rows] == list(PAPERS)


def test_the_command_prints_what_was_found(folder):
    arguments = ["reproduce", "invented", "--small", "--out", str(folder), "--n-jobs", "1", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    values = json.loads(result.stdout)
    assert values["verdicts"]["reproduced"] == 2
    assert values["page"] == str(folder / "reproduction.html")
    unknown = CliRunner().invoke(app, ["reproduce", "unknown"])
    assert (unknown.exit_code, unknown.stdout) == (2, "")
    assert "No paper 'unknown'" in unknown.stderr


def test_every_paper_says_what_it_costs():
    for paper in PAPERS.values():
        for small in (True, False):
            made = paper.networks(small)
            assert made
            assert all(isinstance(network, Network) for network in made.values())
            assert paper.differences(small) is not None
        assert paper.small_minutes <= (10 if paper.name == "shai2024" else 20)
        assert paper.url.startswith("https://")
