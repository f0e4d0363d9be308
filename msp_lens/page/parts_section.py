"""The page's tables of the parts of the belief, and of the rivals that each site might follow instead."""

from __future__ import annotations

import pandas as pd

from msp_lens._tables import skill_text
from msp_lens.controls.control_scores import interval_text, named_r2_texts, r2_text
from msp_lens.page.folding import ShownTable, made_table
from msp_lens.probing.probe_report import ProbeReport


def parts_table(report: ProbeReport) -> ShownTable | None:
    """How well each part of the belief is read at each site; `None` if there are no parts."""
    if not report.parts:
        return None
    table = report.by_part().reset_index("part")
    shown = pd.DataFrame({"part": table["part"]}, index=table.index)
    shown["R² held out"] = table["R² held out"].map(r2_text)
    shown["95 %"] = [interval_text(*ends) for ends in zip(table["low"], table["high"], strict=True)]
    shown["in-sample"] = table["R² in-sample"].map(r2_text)
    shown["shuffled"] = table["R² shuffled"].map(lambda r2: r2_text(r2, 3))
    for what in ("best control", "best rival"):
        shown[what] = named_r2_texts(table[f"R² {what}"], table[what])
    shown["MSE"] = table["MSE held out"].map("{:.6f}".format)
    notes = [
        "Shuffled: in-sample. A rival is another part's true belief, next-token probabilities or constrained beliefs."
    ]
    return made_table(shown, title="Parts of the belief", notes=notes)


def rivals_table(report: ProbeReport) -> ShownTable | None:
    """How well each site reads the rivals, beside the belief; `None` if they were not measured."""
    table = report.rivals()
    if not len(table):
        return None
    table = table.reset_index("rival")
    shown = pd.DataFrame({"rival": table["rival"]}, index=table.index)
    for name in ("R² of the belief", "R² of the rival", "R² of the belief from the rival"):
        shown[name] = table[name].map(lambda r2: r2_text(r2, 4))
    shown["follows"] = table["follows"]
    shown["beyond the rival"] = table["beyond the rival"].map(skill_text)
    notes = [
        "All held out. A site follows what it reads better; –: the rival determines the belief, and the two cannot be "
        "told apart. Beyond the rival: the share of what it leaves of the belief that the activations add."
    ]
    return made_table(shown, title="Rivals", notes=notes)
