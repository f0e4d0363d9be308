"""Findings: the table that an experiment found, with its title and how to read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from msp_lens._tables import to_html, to_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.style import ThemeName


@dataclass(frozen=True, eq=False)
class Findings:
    """What an experiment found, as a table.

    Attributes:
        title: What the numbers are, with their unit.
        table: One row for each result.
        notes: What they are of, what they say and what they do not prove, a sentence or two each.
        provenance: Process, words, seed.
        spread: `(rows, columns, value)` of the display: columns that name the rows, the column whose values stand side
            by side, and the number shown; `None` shows the table as it is.
    """

    title: str
    table: pd.DataFrame
    notes: tuple[str, ...]
    provenance: dict[str, Any]
    spread: tuple[list[str], str, str] | None = None

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each result."""
        return self.table.copy()

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready values; undefined numbers are `None`."""
        rows = [
            {key: None if pd.isna(value) else value for key, value in row.items()}
            for row in self.table.to_dict(orient="records")
        ]
        return {"title": self.title, "results": rows, "provenance": self.provenance}

    def select(self, **where: Any) -> pd.Series:
        """The one row in which these columns have these values.

        Raises:
            KeyError: unless exactly one row fits.
        """
        found = self._where(where)
        if len(found) != 1:
            there = "; ".join(f"{column} {', '.join(map(str, self.table[column].unique()))}" for column in where)
            raise KeyError(f"{len(found)} results for {where}; there are {there}.")
        return found.iloc[0]

    def summary(self) -> list[str]:
        """What the numbers are of, what they say and what they do not prove."""
        return list(self.notes)

    def plot(self, *, theme: ThemeName = "light", **where: Any) -> Figure:
        """The numbers side by side: bars over sites, or curves over tokens since an edit.

        Args:
            theme: `"light"` or `"dark"`.
            where: Columns that must have these values, where the table has more than a picture can show.

        Raises:
            KeyError: if several rows would fall on one place; the message names the columns to choose by.
        """
        from msp_lens.figures.interventions import plot_edits, plot_strengths

        table = self._where(where)
        if self.spread is None:
            place, heights = table.columns[0], list(table.select_dtypes("float"))
            keys = [place]
            series = {name: dict(zip(table[place], table[name], strict=True)) for name in heights}
        else:
            rows, columns, value = self.spread
            place, keys = rows[-1], [rows[-1], columns]
            series = {
                str(name): dict(zip(part[place], part[value], strict=True))
                for name, part in table.groupby(columns, sort=False)
            }
        if table.duplicated(keys).any():
            others = [key for key in table.columns if not pd.api.types.is_numeric_dtype(table[key]) and key not in keys]
            raise KeyError(f"Several rows for each {' and '.join(keys)}: choose by {', '.join(others)}.")
        title = ", ".join(str(value) for value in where.values())
        if pd.api.types.is_numeric_dtype(table[place]):
            curves = {name: (list(heights), list(heights.values())) for name, heights in series.items()}
            return plot_strengths(curves, ylabel=self.title, xlabel=f"tokens {place}", title=title, theme=theme)
        return plot_edits(list(table[place].unique()), series, ylabel=self.title, title=title, theme=theme)

    def _where(self, where: Mapping[str, Any]) -> pd.DataFrame:
        found = self.table
        for column, value in where.items():
            if column not in found:
                raise KeyError(f"No column {column!r}; there are {', '.join(self.table.columns)}.")
            found = found.loc[found[column] == value]
        return found

    def _display(self) -> pd.DataFrame:
        table = self.table.copy()
        for column in table.select_dtypes("float"):
            table[column] = table[column].map(lambda value: "" if pd.isna(value) else f"{value:.3g}")
        if self.spread is None:
            return table.set_index(table.columns[0])
        rows, columns, value = self.spread
        wide = table.pivot_table(index=rows, columns=columns, values=value, aggfunc="first", sort=False).fillna("")
        wide = wide[list(self.table[columns].unique())]
        return wide.reset_index(level=rows[1:]).rename_axis(columns=None)

    def __repr__(self) -> str:
        return to_text(self._display(), title=self.title, notes=self.summary())

    def _repr_html_(self) -> str:
        return to_html(self._display(), title=self.title, notes=self.summary())
