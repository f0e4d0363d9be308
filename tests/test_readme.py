import re
import tomllib
from pathlib import Path

import pytest
import typer

import msp_lens as msp
from msp_lens.cli import app
from msp_lens.training import PRESETS, Recipe

README = Path(__file__).parents[1] / "README.md"


def test_the_readmes_python_runs(tmp_path, monkeypatch, capsys):
    """As written, but for the length of training and the width of the network."""

    def brief(process):
        model = msp.ModelConfig(d_vocab=process.n_tokens, d_model=8, d_head=4, d_mlp=8)
        return Recipe(model, msp.TrainingConfig(steps=2, batch_size=8))

    monkeypatch.setitem(PRESETS, "paper", brief)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    exec(compile(code, str(README), "exec"), {})
    printed = capsys.readouterr().out
    assert "Belief probes" in printed
    assert "donor" in printed
    assert (tmp_path / "fractal.png").stat().st_size > 10_000


def test_what_it_is_comes_before_the_two_commands():
    text = README.read_text()
    before, _, code = text.partition("```sh\n")
    assert [line.split("#")[0].strip() for line in code.splitlines()[:2]] == ["make demo", "make test"]
    assert before.index("**reads**") < before.index("![") < len(before)
    assert len(text.splitlines()) <= 200


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


def test_where_things_are():
    """Every room has a line among the contributor's notes."""
    rooms = re.findall(r"^\| `(msp_lens/[^`]+)`", (README.parent / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)
    assert set(rooms) == {
        f"{folder.parent.relative_to(README.parent)}/" for folder in README.parent.glob("msp_lens/**/__init__.py")
    } - {"msp_lens/"} | {"msp_lens/cli.py"}


def test_every_name_in_the_readme_exists():
    """`msp.processes.z1r`, `msp_lens.__version__`."""
    names = set(re.findall(r"\b(?:msp|msp_lens)((?:\.[A-Za-z_]\w*)+)(?!\w)", README.read_text()))
    assert {".probe", ".processes.z1r", ".__version__"} <= names
    for name in names:
        found = msp
        for part in name.split(".")[1:]:
            assert hasattr(found, part), f"msp{name}"
            found = getattr(found, part)


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
