"""Results as tables, in a terminal and in a notebook; rows as JSON."""

from __future__ import annotations

import html
import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import pandas as pd


class TableView:
    """A result that shows itself as a table: a `repr` in a terminal, and HTML in a notebook.

    A subclass defines the table (`_display`), the title above it (`_title`) and the notes below it (`summary`). It may
    also shade cells in HTML (`_shades`), give other notes there (`_html_notes`), to explain the shading, and name
    columns of words, which are aligned left (`_prose`).
    """

    _prose: ClassVar[tuple[str, ...]] = ()

    def _display(self) -> pd.DataFrame:
        raise NotImplementedError

    def _title(self) -> str:
        raise NotImplementedError

    def summary(self) -> list[str]:
        """Notes on what the numbers are and how to read them."""
        return []

    def _shades(self) -> pd.DataFrame | None:
        return None

    def _html_notes(self) -> list[str]:
        return self.summary()

    def __repr__(self) -> str:
        return to_text(self._display(), title=self._title(), notes=self.summary(), left=self._prose)

    def _repr_html_(self) -> str:
        return to_html(self._display(), title=self._title(), notes=self._html_notes(), shades=self._shades())


def to_text(
    table: pd.DataFrame, *, title: str, notes: Sequence[str] = (), left: Sequence[str] = (), width: int = 120
) -> str:
    """The table as plain text, for a `repr`; values are never cut off.

    The notes are wrapped to `width` characters, and the columns in `left`, such as words, are aligned left.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 2, 0, 0))
    columns = {table.index.name or "": list(table.index)} | {name: table[name].tolist() for name in table.columns}
    for position, (name, values) in enumerate(columns.items()):
        # Headings wrap where they are wider than their column's values; values never do.
        wide = max(max((len(str(value)) for value in values), default=0), *map(len, str(name).split()), 1)
        is_prose = position == 0 or str(name) in left
        heading = textwrap.fill(str(name), wide)
        grid.add_column(heading, justify="left" if is_prose else "right", no_wrap=True, vertical="bottom")
    for label, row in table.iterrows():
        grid.add_row(str(label), *(str(value) for value in row))
    # A separate console, without color and wide enough: the repr may end up in a file or a doctest.
    console = Console(file=io.StringIO(), width=10_000, color_system=None, force_terminal=False)
    console.print(grid)
    text = f"{title}\n{console.file.getvalue()}"  # pyright: ignore[reportAttributeAccessIssue]
    text += "\n".join(textwrap.fill(note, width) for note in notes)
    return "\n".join(line.rstrip() for line in text.splitlines())


def to_html(table: pd.DataFrame, *, title: str, notes: Sequence[str] = (), shades: pd.DataFrame | None = None) -> str:
    """The table as HTML, for a notebook or a page; `shades` says how dark to shade some columns' cells, 0 to 1."""
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in [table.index.name or "", *table.columns])
    body = ""
    for place, (label, row) in enumerate(table.iterrows()):
        body += f"<tr><th>{html.escape(str(label))}</th>"
        for name, value in zip(table.columns, row, strict=True):
            shade = shades[name].iloc[place] if shades is not None and name in shades else 0
            # A blue over any background, light enough for text of any color.
            blue = f' style="background: rgba(0, 114, 178, {0.4 * min(float(shade), 1):.2f})"' if shade > 0 else ""
            body += f"<td{blue}>{html.escape(str(value))}</td>"
        body += "</tr>"
    remarks = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return (
        f'<div class="msp-lens-table"><h3>{html.escape(title)}</h3>'
        # A table wider than the page scrolls within its box, by keyboard too.
        '<div class="msp-lens-scroll" style="overflow-x: auto" tabindex="0">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{remarks}</div>"
    )


def skill_text(skill: float, *, digits: int = 3) -> str:
    """A skill as tables show it: a dash where it was not measured, and only a bound where it is far below 0."""
    if math.isnan(skill):
        return "–"
    return f"{skill:.{digits}f}" if skill > -9.99 else "< -10"


def json_records(rows: Iterable[Mapping[Any, Any]]) -> list[dict[str, Any]]:
    """Rows for JSON, with null for undefined values."""

    def plain(value: Any) -> Any:
        return None if pd.api.types.is_scalar(value) and pd.isna(value) else value

    return [{str(key): plain(value) for key, value in row.items()} for row in rows]
