import re
from pathlib import Path

import msp_lens as msp
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
