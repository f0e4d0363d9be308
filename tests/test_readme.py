import inspect
import re
import tomllib
from pathlib import Path

import pytest
import typer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import msp_lens as msp
from msp_lens.cli import app
from msp_lens.training import PRESETS, Recipe

README = Path(__file__).parents[1] / "README.md"


def test_the_readmes_python_runs(tmp_path, monkeypatch, capsys):
    """As written, but for the length of training."""

    def brief(process):
        return Recipe(msp.ModelConfig(d_vocab=process.n_tokens), msp.TrainingConfig(steps=2, batch_size=8))

    monkeypatch.setitem(PRESETS, "quick", brief)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    exec(compile(code, str(README), "exec"), {})
    printed = capsys.readouterr().out
    assert "Belief probes" in printed
    assert "donor" in printed
    assert (tmp_path / "fractal.png").stat().st_size > 10_000


def test_the_first_lines_are_the_two_commands():
    lines = README.read_text().splitlines()
    assert [line.split("#")[0].strip() for line in lines[3:5]] == ["make demo", "make test"]


def test_the_readmes_commands_are_commands():
    commands = [
        line.split("#")[0].split()[1:] for line in README.read_text().splitlines() if line.startswith("msp-lens ")
    ]
    assert len(commands) >= 7
    group = typer.main.get_command(app)
    for name, *arguments in commands:
        group.commands[name].make_context(name, arguments)


def test_the_readmes_links_lead_somewhere():
    text = README.read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")]
    assert links
    assert [link for link in links if not (README.parent / link).exists()] == []
    for module in re.findall(r"^\| `(msp_lens/[^`]+)`", text, flags=re.MULTILINE):
        assert (README.parent / module).exists(), module


def test_every_name_in_the_readme_exists():
    """`msp.probing.cache_rows`, `msp_lens.__version__`, and options such as `preset=` in a call."""
    text = README.read_text()
    names = set(re.findall(r"\b(?:msp|msp_lens)((?:\.[A-Za-z_]\w*)+)(?!\w)", text))
    assert {".probe", ".probing.cache_rows", ".__version__", ".moments.OLS"} <= names
    for name in names:
        found = msp
        for part in name.split(".")[1:]:
            assert hasattr(found, part), f"msp{name}"
            found = getattr(found, part)
    calls = re.findall(r"`(?:msp\.)?([\w.]*[A-Za-z]\w*)\(([^`]*)\)`", text)
    checked = []
    for name, arguments in calls:
        function = msp
        for part in name.split("."):
            function = getattr(function, part, None)
        if callable(function):
            options = set(re.findall(r"\b(\w+)=", arguments))
            assert options <= set(inspect.signature(function).parameters), f"{name}({arguments})"
            checked.append(name)
    assert {"words", "Ridge", "Split", "sweep", "TrainingConfig"} <= set(checked)
    # A recipe that stands there can be made.
    assert msp.TrainingConfig(steps=1500, checkpoints="logarithmic").steps == 1500


def test_names_in_lists_of_the_readme_exist():
    text = README.read_text()
    (processes,) = re.findall(r"`msp.processes` has them all and makes more: (.*?)\.\s", text, flags=re.DOTALL)
    (beliefs,) = re.findall(r"`msp.beliefs` computes what theory says about one:(.*?), which", text, flags=re.DOTALL)
    for room, listed in ((msp.processes, processes), (msp.beliefs, beliefs)):
        names = re.findall(r"`(\w+)`", listed)
        assert len(names) >= 5
        assert [name for name in names if not hasattr(room, name)] == []


@pytest.mark.slow
def test_the_numbers_of_the_published_model_are_those_of_the_default_call(published_model, mess3):
    less_work = {"concatenate": False, "controls": False, "by_position": False, "progress": False}
    report = msp.probe(published_model, mess3, weighting="sequence", **less_work)
    found = msp.intervene(published_model, mess3, probes=report)
    kl = {edit: found.select(site="3_post", edit=edit).kl_to_target for edit in ("none", "steer", "placebo")}
    text = " ".join(README.read_text().split())
    pattern = (
        r"takes KL\(target's optimum ‖ model\) from (\.\d+) to (\.\d+); a random step of the same size leaves (\.\d+)"
    )
    ((none, steer, placebo),) = re.findall(pattern, text)
    for shown, measured in ((none, kl["none"]), (steer, kl["steer"]), (placebo, kl["placebo"])):
        digits = len(shown) - 1
        assert shown == f"{measured:.{digits}f}".removeprefix("0")


def test_the_readmes_labels_are_read(capsys):
    """With a small network that has a tokenizer of words."""
    words = {word: number for number, word in enumerate(["[BOS]", "cat", "on", "mat", "a", "dog", "or"])}
    level = Tokenizer(models.WordLevel(words))
    level.pre_tokenizer = pre_tokenizers.Whitespace()
    model = msp.build_model(msp.ModelConfig(d_vocab=7, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=6), seed=1)
    model.tokenizer = PreTrainedTokenizerFast(tokenizer_object=level, bos_token="[BOS]")
    (code,) = re.findall(r"```py\n(.*?)```", README.read_text(), flags=re.DOTALL)
    texts = [
        f"{first} {link} {last}"
        for first in ("cat", "a dog", "mat")
        for link in ("on", "or")
        for last in ("cat", "mat")
    ]
    spans = [[(each.start(), each.end(), "animal") for each in re.finditer("cat|dog", text)] for text in texts]
    found = {"msp": msp, "model": model, "texts": texts, "spans": spans}
    exec(compile(code, str(README), "exec"), found)
    assert "Logistic read-outs" in capsys.readouterr().out
    data = found["data"]
    classes = [data.classes["label"][k] for k in data.targets["label"].argmax(dim=1)]
    assert classes == ["animal" if word in ("cat", "dog") else "other" for text in texts for word in text.split()]


def test_what_the_two_commands_install_is_locked():
    """Every dependency has a version in constraints.txt, and none an address."""
    root = README.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert extras["dev"][0] == "msp-lens[lm,notebook]"
    wanted = [*project["dependencies"], *extras["lm"], *extras["notebook"], *extras["dev"][1:]]
    names = {re.split(r"[<>=~ ;]", each)[0] for each in wanted} - {"transformer-lens"}
    lines = [line for line in (root / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+( ; .*)?", line) for line in lines)
    assert names <= {line.partition("==")[0] for line in lines}
    assert "transformer-lens" not in {line.partition("==")[0] for line in lines}, "both versions are installed"
