"""Results as tables, in a terminal and in a notebook; rows as JSON."""

from __future__ import annotations

import html
import io
import math
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, SupportsFloat

import pandas as pd

from msp_lens._plain import in_encoding_of

# Notes are wrapped to the terminal, but to no more characters than can be read.
MOST_CHARACTERS = 120


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

    def as_text(self, notes: Sequence[str] | None = None) -> str:
        """The table as plain text, with these notes below it, by default all of `summary()`."""
        below = self.summary() if notes is None else notes
        text = to_text(self._display(), title=self._title(), notes=below, left=self._prose)
        return in_encoding_of(sys.stdout, text)

    def __repr__(self) -> str:
        return self.as_text()

    def _repr_html_(self) -> str:
        return to_html(self._display(), title=self._title(), notes=self._html_notes(), shades=self._shades())


def to_text(
    table: pd.DataFrame, *, title: str, notes: Sequence[str] = (), left: Sequence[str] = (), width: int | None = None
) -> str:
    """The table as plain text, for a `repr`; values are never cut off, and no name is taken for markup.

    A table wider than `width` characters (by default those of the terminal, or of COLUMNS, if any) continues below, and
    the notes are wrapped. The columns in `left`, such as words, are aligned left, and wrapped where one alone is wider.
    """
    there_are = width or shutil.get_terminal_size(fallback=(10_000, 24)).columns
    columns = {_visible(name): [_visible(value) for value in table[name]] for name in table.columns}
    index = (_visible(_index_name(table)), [_visible(_label(label)) for label in table.index])
    blocks, block, used, gap = [], {}, 0, 3
    for name, values in columns.items():
        if name in left and gap + _width(name, values) + _width(*index) + 1 > there_are:
            room = max(there_are - _width(*index) - gap - 1, 10)
            values = [textwrap.fill(value, room) for value in values]
        wide = gap + _width(name, values)
        if block and _width(*index) + used + wide + 1 >= there_are:
            blocks.append(block)
            block, used = {}, 0
        used += wide
        block[name] = values
    tables = [_grid({index[0]: index[1]} | each, left) for each in [*blocks, block]]
    wrapped = [_filled(note, min(there_are, MOST_CHARACTERS)) for note in notes]
    text = "\n".join([_filled(_visible(title), there_are), "\n\n".join(tables), *wrapped])
    return "\n".join(line.rstrip() for line in text.splitlines())


def to_lines(lines: Mapping[str, str], *, title: Sequence[str] = (), width: int | None = None) -> str:
    """Sentences under headings of a word or two, which stand to their left; wrapped as notes are."""
    there_are = min(width or shutil.get_terminal_size(fallback=(10_000, 24)).columns, MOST_CHARACTERS)
    indent = max(map(len, lines), default=0) + 3
    wrapped = [_filled(line, there_are) for line in title] + [""] * bool(title)
    for heading, line in lines.items():
        wrapped.append(heading.ljust(indent) + _filled(line, there_are, indent)[indent:])
    return "\n".join(_visible(line) for text in wrapped for line in text.split("\n"))


def _filled(text: str, width: int, indent: int = 0) -> str:
    """The text in lines; what belongs together stays so: paths and commands, to be copied, and numbers with their %."""
    how: dict[str, Any] = {"initial_indent": " " * indent, "subsequent_indent": " " * indent}
    how |= {"break_long_words": False, "break_on_hyphens": False}
    kept = "\N{NO-BREAK SPACE}%"
    return textwrap.fill(text.replace(" %", kept), width, **how).replace(kept, " %")


def _grid(columns: Mapping[str, Sequence[str]], left: Sequence[str]) -> str:
    """Columns under their headings; the first, and those in `left`, are aligned left."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 2, 0, 0))
    for position, (name, values) in enumerate(columns.items()):
        heading = textwrap.fill(name, _width(name, values))
        side = "left" if position == 0 or name in left else "right"
        grid.add_column(heading, justify=side, no_wrap=True, vertical="bottom")
    for row in zip(*columns.values(), strict=True):
        grid.add_row(*row)
    # A separate console, without color and wide enough: the text may end up in a file or a doctest. In a notebook rich
    # would otherwise display the table itself, and give no text.
    plain: Any = {"color_system": None, "force_terminal": False, "force_jupyter": False}
    file = io.StringIO()
    Console(file=file, width=10_000, markup=False, emoji=False, highlight=False, **plain).print(grid)
    return file.getvalue().rstrip("\n")


def _width(name: str, values: Sequence[str]) -> int:
    """Characters across a column: headings wrap where they are wider than the values below, which never do."""
    lines = (line for value in values for line in value.splitlines())
    return max(max(map(len, lines), default=0), *map(len, name.split()), 1)


def _visible(value: Any) -> str:
    """The value as text in one line, with codes for the characters that would move a terminal's cursor."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in str(value))


def to_html(table: pd.DataFrame, *, title: str, notes: Sequence[str] = (), shades: pd.DataFrame | None = None) -> str:
    """The table as HTML, for a notebook or a page; `shades` says how dark to shade some columns' cells, 0 to 1."""
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in [_index_name(table), *table.columns])
    body = ""
    for place, (label, row) in enumerate(table.iterrows()):
        body += f"<tr><th>{html.escape(_label(label))}</th>"
        for name, value in zip(table.columns, row, strict=True):
            shade = shades[name].iloc[place] if shades is not None and name in shades else 0
            # A blue over any background, light enough for text of any color.
            blue = f' style="background: rgba(0, 114, 178, {0.4 * min(float(shade), 1):.2f})"' if shade > 0 else ""
            body += f"<td{blue}>{html.escape(str(value))}</td>"
        body += "</tr>"
    remarks = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return (
        '<div class="msp-lens-table">'
        # A table wider than the page scrolls within its box, by keyboard too.
        '<div class="msp-lens-scroll" style="overflow-x: auto" tabindex="0">'
        f'<table><caption style="caption-side: top; text-align: left"><span>{html.escape(title)}</span></caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{remarks}</div>"
    )


def _index_name(table: pd.DataFrame) -> str:
    """What the rows are, in one heading."""
    return ", ".join(str(name) for name in table.index.names if name is not None)


def _label(label: Any) -> str:
    """What a row is called, by several names or by one."""
    return ", ".join(map(str, label)) if isinstance(label, tuple) else str(label)


def nats_text(nats: SupportsFloat) -> str:
    """An amount of information or regret as tables, notes, pages and figures show it, in nats or bits.

    Four decimals; below 0.001 two digits instead, so that a small regret is readable. What lies within the rounding of
    float64 sums is 0, and a dash is shown where nothing was measured.

    Example:
        >>> [nats_text(nats) for nats in (0.5646833, 0.00412, 0.000031, 1.4e-17, float("inf"), float("nan"))]
        ['0.5647', '0.0041', '3.1e-05', '0.0000', '∞', '–']
    """
    number = float(nats)
    if math.isnan(number):
        return "–"
    if math.isinf(number):
        return "∞" if number > 0 else "-∞"
    if abs(number) < 1e-12:
        return "0.0000"
    return f"{number:.1e}" if abs(number) < 1e-3 else f"{number:.4f}"


def skill_text(skill: float, *, digits: int = 3) -> str:
    """A skill as tables show it: a dash where it was not measured, and only a bound where it is far below 0."""
    if math.isnan(skill):
        return "–"
    return f"{skill:.{digits}f}" if skill > -9.99 else "< -10"


def percent(share: float) -> str:
    """A share as notes quote it, such as "99.6 %"; a dash if it is not known."""
    return "–" if math.isnan(share) else f"{100 * share:.1f} %"


def json_records(rows: Iterable[Mapping[Any, Any]]) -> list[dict[str, Any]]:
    """Rows for JSON, with null for undefined values."""

    def plain(value: Any) -> Any:
        return None if pd.api.types.is_scalar(value) and pd.isna(value) else value

    return [{str(key): plain(value) for key, value in row.items()} for row in rows]
