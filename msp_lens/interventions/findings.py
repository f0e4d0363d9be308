"""Findings: the table that an experiment found, with its title and how to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from msp_lens._tables import json_records, to_html, to_text

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
        shown: Of some columns the values that the display keeps to, where the table has more than a reader wants.
        shade: A number from 0 to 1 in the table that the notebook's cells are shaded by, where it is spread.
    """

    title: str
    table: pd.DataFrame
    notes: tuple[str, ...]
    provenance: dict[str, Any]
    spread: tuple[list[str], str, str] | None = None
    shown: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    shade: str | None = None

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each result."""
        return self.table.copy()

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready values; undefined numbers are `None`."""
        rows = json_records(self.table.to_dict(orient="records"))
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
        from msp_lens.figures.edit_bars import plot_edits, plot_strengths

        table = self._where(where)
        if self.spread is None:
            place, heights = table.columns[0], list(table.select_dtypes("float"))
            keys = [place]
            series = {name: dict(zip(table[place], table[name], strict=True)) for name in heights}
        else:
            rows, columns, value = self.spread
            place = next((row for row in rows if pd.api.types.is_numeric_dtype(table[row])), rows[-1])
            keys = [place, columns]
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

    def _shown(self) -> pd.DataFrame:
        kept = pd.Series(True, index=self.table.index)
        for column, values in self.shown.items():
            kept &= self.table[column].isin(values)
        return self.table.loc[kept]

    def _display(self) -> pd.DataFrame:
        table = self._shown().copy()
        for column in table.select_dtypes("float"):
            table[column] = table[column].map(lambda value: "" if pd.isna(value) else f"{value:.3g}")
        if self.spread is None:
            # What is the same in all rows needs no column.
            table = table.drop(columns=[column for column, values in self.shown.items() if len(values) == 1])
            return table.set_index(table.columns[0])
        rows, _, value = self.spread
        return self._wide(table, value).fillna("").reset_index(level=rows[1:]).rename_axis(columns=None)

    def _shades(self) -> pd.DataFrame | None:
        return None if self.spread is None or self.shade is None else self._wide(self._shown(), self.shade)

    def _wide(self, table: pd.DataFrame, value: str) -> pd.DataFrame:
        assert self.spread is not None
        rows, columns, _ = self.spread
        wide = pd.DataFrame(table.set_index([*rows, columns])[value].unstack(columns))
        return wide.reindex(index=table.set_index(rows).index.unique(), columns=table[columns].unique())

    def __repr__(self) -> str:
        return to_text(self._display(), title=self.title, notes=self.summary())

    def _repr_html_(self) -> str:
        return to_html(self._display(), title=self.title, notes=self.summary(), shades=self._shades())
