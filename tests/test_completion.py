"""What Tab completes: the names of the registries, and the models and sites that are there."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

import msp_lens as msp
from msp_lens import _completion as completion
from msp_lens._names import spelled
from msp_lens.experiments.papers import PAPERS
from msp_lens.interventions import EDITS, TARGETS
from msp_lens.models import find_sites
from msp_lens.models.sites import site_label
from msp_lens.processes.registry import CATALOG, catalog_entry
from msp_lens.training import PRESETS


def asked(**given):
    """What the shell knows of the command so far."""
    return SimpleNamespace(params=given, args=[], command=SimpleNamespace(params=[]))


def names(candidates):
    return [name for name, _ in candidates]


@pytest.mark.parametrize(
    ("complete", "expected"),
    [
        (completion.complete_process, list(CATALOG)),
        (completion.complete_preset, list(PRESETS)),
        (completion.complete_paper, list(PAPERS)),
        (completion.complete_edit, [spelled(name) for name in EDITS]),
        (completion.complete_target, [spelled(name) for name in TARGETS]),
    ],
)
def test_names_are_those_of_the_registries(complete, expected):
    assert sorted(names(complete(""))) == sorted(expected)
    start = expected[0][:2]
    assert sorted(names(complete(start))) == sorted(name for name in expected if name.startswith(start))
    assert names(complete("no such name")) == []


def test_processes_come_with_what_they_are():
    found = dict(completion.complete_process("even"))
    assert found == {"even": catalog_entry("even").summary}


def test_parameters_are_those_of_the_process_named():
    def complete(incomplete, **given):
        return names(completion.complete_parameter(asked(**given), incomplete))

    for name in CATALOG:
        defaults = {pair.partition("=")[0] for pair in complete("", process=name)}
        assert defaults == set(catalog_entry(name).defaults), name
    assert complete("", process="mess3") == ["x=0.05", "a=0.85"]
    assert complete("a", process="mess3") == ["a=0.85"]
    assert complete("", process="mess3", param=["x=0.1"]) == ["a=0.85"]
    assert complete("", process="zap") == complete("", process=None) == []


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    transformer = msp.ModelConfig(d_vocab=2, n_layers=2, d_model=4, d_head=2, d_mlp=4, n_ctx=3)
    recurrent = msp.models.RecurrentConfig(kind="lstm", d_vocab=2, d_model=4, n_layers=2, n_ctx=3)
    for name, config in (("transformer", transformer), ("lstm", recurrent)):
        msp.save_checkpoint(folder / "runs" / name / "model.safetensors", msp.build_model(config, seed=0))
    (folder / "runs" / "empty").mkdir()
    return folder


@pytest.mark.parametrize("name", ["transformer", "lstm"])
def test_sites_are_those_of_the_model_named(models, name):
    path = models / "runs" / name
    labels = {site_label(site) for site in find_sites(msp.load_checkpoint(path).model, None)} - {"embed", "hook_embed"}
    for given in ({"model": path}, {"run": str(path)}, {"model": path / "model.safetensors"}):
        found = names(completion.complete_site(asked(**given), ""))
        assert labels <= set(found)
        # Each of them is a site.
        assert find_sites(msp.load_checkpoint(path).model, [each for each in found if each != "all"])
    found = names(completion.complete_site(asked(model=path), "1_"))
    assert found
    assert all(each.startswith("1_") for each in found)


def test_there_are_no_sites_of_a_model_that_cannot_be_read(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    for given in ({}, {"model": tmp_path}, {"model": tmp_path / "nowhere"}):
        assert completion.complete_site(asked(**given), "") == []


def test_folders_that_hold_a_model_are_found(models, monkeypatch):
    monkeypatch.chdir(models)
    both = ["runs/lstm", "runs/transformer"]
    assert names(completion.complete_model("")) == both
    assert names(completion.complete_model("ru")) == both
    assert names(completion.complete_model("runs/")) == both
    assert names(completion.complete_model("runs/t")) == ["runs/transformer"]
    assert names(completion.complete_model("nowhere/")) == []


def test_a_shell_gets_completions_without_torch(models):
    """As bash asks for them, and without the imports that take seconds."""
    program = (
        "import sys\nfrom msp_lens import cli\n"
        "try:\n    cli.app(prog_name='msp-lens')\nfinally:\n    assert 'torch' not in sys.modules"
    )
    for words, expected in (
        ("msp-lens run mess", "mess3"),
        ("msp-lens run mess3 --param a", "a=0.85"),
        ("msp-lens msp mess3 --param x=0.1 -p ", "a=0.85"),
        ("msp-lens probe runs/x --process mess3 --param x", "x=0.05"),
        ("msp-lens intervene runs/x --edit wro", "wrong-belief"),
        (f"msp-lens probe {models / 'runs' / 'transformer'} --site 1_p", "1_post"),
        ("msp-lens probe runs/x --solver rid", "ridge"),
    ):
        wanted = {"_MSP_LENS_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        done = subprocess.run([sys.executable, "-c", program], env=wanted, capture_output=True, text=True, check=False)
        assert done.stdout.split() == [expected], done.stderr
