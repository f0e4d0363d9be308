import re
from pathlib import Path

import typer

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
