"""Tables as pages show them: long ones are folded, and say in one line what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from msp_lens._tables import TableView, to_html


@dataclass(frozen=True)
class ShownTable:
    """A table of a page.

    Attributes:
        title: What it holds.
        html: The table with its caption and notes.
        rows: How many there are.
        first: The first of its notes, which states the result; empty if there is none.
    """

    title: str
    html: str
    rows: int
    first: str = ""


def shown_table(table: TableView) -> ShownTable:
    """A result as a table of a page."""
    first = next(iter(table.summary()), "")
    return ShownTable(table._title(), table._repr_html_(), len(table._display()), first[:1].upper() + first[1:])


def made_table(table: pd.DataFrame, *, title: str, notes: Sequence[str] = ()) -> ShownTable:
    """Rows as a table of a page."""
    return ShownTable(title, to_html(table, title=title, notes=notes), len(table))
