"""Tables say the same wherever they are shown, and names in them are text."""

import io
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import rich.console
import torch

from msp_lens._plain import in_encoding_of
from msp_lens._tables import TableView, nats_text, to_html, to_lines, to_text
from msp_lens.beliefs import Measure
from msp_lens.experiments.over_seeds import SCORES, OverSeeds
from msp_lens.figures.edit_bars import plot_heat_map
from msp_lens.interventions import InterventionReport
from msp_lens.interventions.intervention_report import Layout

NAMES = ["[red]a[/red]", "[/b]", ":smile:", "<script>alert(1)</script>", "a\nb", "\x1b[31mred", "$x$"]


class View(TableView):
    def _display(self):
        return pd.DataFrame({"value": NAMES}, index=pd.Index(NAMES, name="name"))

    def _title(self):
        return "R² of [bold]names[/bold]"

    def summary(self):
        return ["a note " * 40]


def test_names_are_text():
    lines = repr(View()).splitlines()
    assert lines[0] == "R² of [bold]names[/bold]"
    rows = [line.split() for line in lines[3 : 3 + len(NAMES)]]
    shown = [name.replace("\n", "\\n").replace("\x1b", "\\x1b") for name in NAMES]
    assert rows == [[name, name] for name in shown]
    page = View()._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "<script>" not in to_html(pd.DataFrame({"<script>": ["<script>"]}), title="<script>", notes=["<script>"])


def test_a_notebook_gets_the_table_once(monkeypatch, capsys):
    outside = repr(View())
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    text = str(View())
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert text == outside


@pytest.mark.parametrize("width", [40, 80, 1000])
def test_the_width_of_the_terminal_is_respected(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    table = pd.DataFrame({f"column {k}": [f"{k}.{row}" * 3 for row in range(2)] for k in range(12)}, index=["a", "b"])
    text = to_text(table, title="Wide", notes=["notes " * 40])
    assert max(map(len, text.splitlines())) <= width
    for k in range(12):
        assert all(f"{k}.{row}" * 3 in text for row in range(2)), "a value was cut off"
    blocks = text.count("\na ")
    assert blocks == (1 if width == 1000 else text.count("\nb ")) >= 1
    assert (blocks > 1) == (width < 1000)


@pytest.mark.parametrize(
    ("nats", "text"),
    [
        (0.56468, "0.5647"),
        (1.0986, "1.0986"),
        (0.001, "0.0010"),
        (3.14e-5, "3.1e-05"),
        (-3.14e-5, "-3.1e-05"),
        (-0.25, "-0.2500"),
        (0, "0.0000"),
        (-1e-17, "0.0000"),
        (math.inf, "∞"),
        (-math.inf, "-∞"),
        (math.nan, "–"),
        (torch.tensor(2e-4), "2.0e-04"),
        (np.float64(2e-4), "2.0e-04"),
    ],
)
def test_one_format_for_nats(nats, text):
    assert nats_text(nats) == text


def test_a_small_regret_reads_alike_wherever_it_is_shown():
    """0.0000314 nats: not 0.00003, 3.14e-05 or 0.0000."""
    rows = [{"seed": 0, "site": "2_post", "regret": 3.14e-5} | dict.fromkeys(SCORES, 0.5)]
    assert "Mean regret 3.1e-05 to 3.1e-05 nats" in OverSeeds((0,), tuple(rows)).summary()[0]
    report = {"site": ["2_post"], "edit": ["none"], "kl_to_target": [3.14e-5]}
    layout = Layout(["site"], "edit", "kl_to_target", "KL")
    for each in (layout, None):
        found = InterventionReport("KL", pd.DataFrame(report), ("site", "edit"), (), {}, each)
        assert "3.1e-05" in repr(found).split()
    assert repr(Measure(3.14e-5, 3.1e-5, math.inf, "bounds")) == "3.1e-05 nats, between 3.1e-05 and ∞ (bounds)"
    figure = plot_heat_map([[3.14e-5, 0.25]], ["2_post"], ["0", "1"], in_nats=True)
    assert {"3.1e-05", "0.2500"} <= {text.get_text() for text in figure.axes[0].texts}


def test_a_terminal_that_lacks_characters_gets_plain_ones(monkeypatch):
    for encoding in ("ascii", "cp1252"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        print(View(), file=stream)
        stream.flush()
        text = stream.buffer.getvalue().decode(encoding)
        assert "-----" in text
        assert ("R2 of" if encoding == "ascii" else "R² of") in text
    assert in_encoding_of(io.TextIOWrapper(io.BytesIO(), "ascii"), "η₁₀ ≈ 2 – é 状") == "eta10 ~ 2 - e ?"
    assert in_encoding_of(io.TextIOWrapper(io.BytesIO(), "utf-8"), "η₁₀ ≈ 状") == "η₁₀ ≈ 状"


def test_the_plain_module_is_light():
    code = "import sys, msp_lens._plain; print('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_rows_of_several_names_are_named_by_all():
    table = pd.DataFrame({"n": [1, 2]}, index=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["who", "seed"]))
    shown = to_text(table, title="T")
    assert "who,\nseed" in shown
    assert "a, 1" in shown
    assert "(" not in shown
    assert "<th>who, seed</th>" in to_html(table, title="T")
    assert "<th>b, 2</th>" in to_html(table, title="T")


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_column_of_words_wider_than_the_terminal_is_wrapped(width):
    words = " ".join(f"word{k}" for k in range(30))
    table = pd.DataFrame({"title": [words, "short"], "n": [1, 2]}, index=pd.Index(["a", "b"], name="paper"))
    text = to_text(table, title=f"Papers, {words}", left=["title"], width=width)
    assert all(len(line) <= width for line in text.splitlines())
    assert text.count("word29") == 2
    # Numbers are not, wherever they do not fit.
    long = to_text(pd.DataFrame({"n": ["1 2 3 " * 30]}), title="Numbers", width=width)
    assert "1 2 3 " * 29 in long


def test_a_share_keeps_its_sign_and_a_path_its_parts():
    note = "steering recovers " + "99.6 % " * 20 + "and runs/my-run/report.html shows it"
    for width in range(20, 60):
        text = to_text(pd.DataFrame({"a": [1]}), title="Shares", notes=[note], width=width)
        assert not any(line.startswith("%") for line in text.splitlines())
        assert "runs/my-run/report.html" in text


def test_sentences_stand_beside_their_headings():
    text = to_lines({"regret": "small " * 12, "read": "well"}, title=["Does it carry the belief?", "Yes."], width=40)
    assert text.splitlines() == [
        "Does it carry the belief?",
        "Yes.",
        "",
        "regret   small small small small small",
        "         small small small small small",
        "         small small",
        "read     well",
    ]
