"""Tables worth reading, in a terminal and in a notebook."""

from __future__ import annotations

import html
import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import pandas as pd

# A skill below this says no more than "worse than the control".
LOWEST_SKILL = -9.99


class TableView:
    """A result that shows itself as a table: a `repr` in a terminal, and HTML in a notebook.

    A subclass says what is shown: `_display` the table, `_title` what stands above it and `summary` the notes below;
    `_shades` may shade cells in HTML, and `_html_notes` may say what the shading means; `_prose`
    names columns of words, which are aligned left.
    """

    _prose: ClassVar[tuple[str, ...]] = ()

    def _display(self) -> pd.DataFrame:
        raise NotImplementedError

    def _title(self) -> str:
        raise NotImplementedError

    def summary(self) -> list[str]:
        """What the numbers are and how to read them, one note each."""
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
    """The table with its title and notes as plain text, for a `repr`.

    Args:
        table: Its values are shown as they are, whole.
        title: Above it.
        notes: Beneath it, a line each or more.
        left: Columns of words, which begin at the left.
        width: Of the notes.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 2, 0, 0))
    columns = {table.index.name or "": list(table.index)} | {name: table[name].tolist() for name in table.columns}
    for position, (name, values) in enumerate(columns.items()):
        # Headings fold where they are wider than what stands below them; values never do.
        wide = max(max((len(str(value)) for value in values), default=0), *map(len, str(name).split()), 1)
        is_prose = position == 0 or str(name) in left
        heading = textwrap.fill(str(name), wide)
        grid.add_column(heading, justify="left" if is_prose else "right", no_wrap=True, vertical="bottom")
    for label, row in table.iterrows():
        grid.add_row(str(label), *(str(value) for value in row))
    # A console of its own, without color and with room: the repr may end up in a file or a doctest.
    console = Console(file=io.StringIO(), width=10_000, color_system=None, force_terminal=False)
    console.print(grid)
    text = f"{title}\n{console.file.getvalue()}"  # pyright: ignore[reportAttributeAccessIssue]
    text += "\n".join(textwrap.fill(note, width) for note in notes)
    return "\n".join(line.rstrip() for line in text.splitlines())


def to_html(table: pd.DataFrame, *, title: str, notes: Sequence[str] = (), shades: pd.DataFrame | None = None) -> str:
    """The same as HTML, for a notebook or a page.

    Args:
        table: What to show.
        title: Above it.
        notes: Below it.
        shades: How dark the cells of some columns are, 0 to 1, row by row; NaN leaves one as it is.
    """
    dark = {} if shades is None else {name: shades[name].tolist() for name in shades}
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in [table.index.name or "", *table.columns])
    body = "".join(
        f"<tr><th>{html.escape(str(label))}</th>"
        + "".join(
            f"<td{_shade(dark[name][place]) if name in dark else ''}>{html.escape(str(value))}</td>"
            for name, value in zip(table.columns, row, strict=True)
        )
        + "</tr>"
        for place, (label, row) in enumerate(table.iterrows())
    )
    remarks = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return (
        f'<div class="msp-lens-table"><h3>{html.escape(title)}</h3>'
        # A table wider than the page scrolls in a box of its own, by keyboard too.
        '<div class="msp-lens-scroll" style="overflow-x: auto" tabindex="0">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{remarks}</div>"
    )


def _shade(value: float) -> str:
    if pd.isna(value) or value <= 0:
        return ""
    # Blue over whatever the page's own background is, light enough for text of any color.
    return f' style="background: rgba(0, 114, 178, {0.4 * min(float(value), 1):.2f})"'


def skill_text(skill: float, *, digits: int = 3) -> str:
    """A skill as tables show it: a dash where it was not measured, and no more than a bound where it is far below 0."""
    if math.isnan(skill):
        return "–"
    return f"{skill:.{digits}f}" if skill > LOWEST_SKILL else f"< {LOWEST_SKILL:.0f}"


def json_records(rows: Iterable[Mapping[Any, Any]]) -> list[dict[str, Any]]:
    """Rows as JSON has them: what is undefined is null."""
    return [{str(key): None if _is_undefined(value) else value for key, value in row.items()} for row in rows]


def _is_undefined(value: Any) -> bool:
    return pd.api.types.is_scalar(value) and bool(pd.isna(value))
