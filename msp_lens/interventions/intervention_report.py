"""The result of an experiment: a table with its title and notes, and ways to select from it and to draw it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

import pandas as pd

from msp_lens._checks import checked, converted, value_errors
from msp_lens._names import meant
from msp_lens._tables import TableView, json_records, nats_text, percent
from msp_lens._values import Value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.style import ThemeName

_IN_NATS = ("kl_to_target", "kl_to_actual")


@dataclass(frozen=True)
class Layout:
    """How one measure of a table is laid out, as text and in pictures.

    Attributes:
        rows: The keys that name the rows.
        columns: The key whose values stand side by side.
        value: The measure shown.
        label: What it is, for an axis.
        shade: A measure from 0 to 1 that shades a notebook's cells.
        mark: A truth value; numbers for which it holds are followed by an asterisk.
        across: The key along a picture's axis.
        xlabel: The label of curves over `across`; if `None`, pictures show bars.
        panels: A key whose values each get a panel of such curves.
        chosen: Values of keys that a picture shows unless told otherwise.
    """

    rows: list[str]
    columns: str
    value: str
    label: str
    shade: str | None = None
    mark: str | None = None
    across: str = "site"
    xlabel: str | None = None
    panels: str | None = None
    chosen: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, repr=False)
class InterventionReport(Value, TableView):
    """What an experiment found, one row for each result; KL and regrets in nats.

    Where beliefs were written, the measures are averages over words, each with its standard error (`…_error`):

    - `kl_to_target`: KL(target's optimum ‖ model), 0 if the model acts on the target.
    - `kl_to_actual`: KL(actual optimum ‖ model), over the words whose actual belief allows the tokens that followed.
    - `recovery`: 1 - kl_to_target / that of no edit: 0 if nothing was gained, 1 if the model acts on the target.
    - `above_placebo`: recovery on the scale from the placebo (0) to the donor (1), a reference and no bound. It is NaN
      if there is nothing to recover: if the donor recovers no more than the placebo, or the model left alone is not at
      least twice as near to the actual optimum as to the target's.
    - `worse_than_placebo`: whether an edit that writes the target leaves the model farther from its optimum than as
      much of the placebo does, by more than two standard errors. Tables mark it with an asterisk.
    - `displacement`: how far along the way from the belief read to the target belief the edit moved the belief that a
      later site's own probe reads; NaN if no later site was read.
    - `off_manifold`: how far the edited activations are from the nearest real ones, those of other words at the same
      site and position, in units of a donor's distance: 1 if no farther than real ones, large if the edit leaves their
      cloud. Several sites count by the sum of their distances. NaN where nothing was edited, or there is no other word.
    - `outside`: -log P(any symbol), if the model has other tokens. The KLs are over its whole vocabulary; without this
      much of them they are over the symbols alone.
    - `n`: words, each with its target.

    The other experiments describe their measures themselves.

    Attributes:
        title: What the numbers are, with their unit.
        table: One row for each result.
        keys: The columns that tell results apart; the others are measures.
        notes: What the numbers cover, what they say and what they do not prove.
        provenance: Process, words, seed and options.
        layout: How the table is laid out; `None` shows it row by row.
        shown: For some keys, the only values displayed.
    """

    title: str
    table: pd.DataFrame
    keys: Sequence[str]
    notes: Sequence[str]
    provenance: dict[str, Any]
    layout: Layout | None = None
    shown: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each result."""
        return self.table.copy()

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready values; undefined numbers are `None`."""
        rows, layout = json_records(self.table.to_dict(orient="records")), asdict(self.layout) if self.layout else None
        found = {"title": self.title, "results": rows, "keys": list(self.keys), "notes": list(self.notes)}
        return {**found, "provenance": self.provenance, "layout": layout, "shown": dict(self.shown)}

    @classmethod
    @checked
    def from_dict(cls, saved: Mapping[str, Any]) -> InterventionReport:
        """Rebuild a report from its `to_dict()`, also after a detour through JSON.

        Raises:
            ValueError: if a field is missing, unknown or not what `to_dict` writes; the message names the field.
        """
        with value_errors():
            fields = converted(saved, _Saved, "saved")
        rows = [{key: math.nan if value is None else value for key, value in row.items()} for row in fields["results"]]
        table, layout = pd.DataFrame(rows), Layout(**fields["layout"]) if fields["layout"] else None
        _check_layout(fields, layout)
        named = {name: tuple(fields[name]) for name in ("keys", "notes")}
        rest = {name: fields[name] for name in ("title", "provenance", "shown")}
        return cls(table=table, layout=layout, **named, **rest)

    @checked
    def select(self, **where: Any) -> pd.Series:
        """The one result with these values (else `KeyError`); its measures are attributes, as `.kl_to_target`."""
        return pd.Series(self._rows(where, ()).iloc[0])

    @checked
    def map(
        self, edit: str, *, value: str = "recovery", target: str | None = None, strength: float = 1.0
    ) -> pd.DataFrame:
        """A measure of an edit at each site and position, `[layer, pos]`, as in TransformerLens's patching maps.

        `KeyError` if there are no such results, or they have several targets.
        """
        rows = self._rows({"edit": edit, "target": target, "strength": strength}, ("site", "position"))
        return _wide(rows, ["site"], "position", value)

    @checked
    def curve(
        self,
        edit: str,
        *,
        site: str,
        value: str = "kl_to_target",
        position: int | None = None,
        target: str | None = None,
    ) -> pd.Series:
        """A measure by strength λ, ascending; `KeyError` if there are no results, or several positions or targets."""
        where = {"edit": edit, "site": site, "position": position, "target": target}
        return pd.Series(self._rows(where, ("strength",)).set_index("strength")[value]).sort_index()

    @property
    def plot(self) -> InterventionPlots:
        """Pictures: `plot(...)` shows the numbers side by side; see also `plot.map(...)` and `plot.strengths(...)`."""
        return InterventionPlots(self)

    def values(self, key: str) -> list[Any]:
        """The values of a column, each once, in order of appearance."""
        return self.table[key].unique().tolist()

    def summary(self) -> list[str]:
        """What the numbers cover, what they say and what they do not prove."""
        return list(self.notes)

    def _rows(self, where: Mapping[str, Any], by: Sequence[str]) -> pd.DataFrame:
        """The rows with these values (`None` allows any), told apart by the columns `by`."""
        where = {column: value for column, value in where.items() if value is not None}
        for column in (*where, *by):
            if column not in self.table:
                there_are = ", ".join(self.table.columns)
                raise KeyError(f"No column {column!r}; there are {there_are}.{meant(column, self.table.columns)}")
        found = self.table
        for column, value in where.items():
            found = found.loc[found[column] == value]
        undecided = [key for key in self.keys if key not in (*where, *by) and len(set(found[key])) > 1]
        if undecided or found.empty:
            asked = ", ".join(f"{column}={value!r}" for column, value in where.items())
            there = "; ".join(f"{key} {', '.join(map(str, self.values(key)))}" for key in self.keys)
            remedy = f"; choose by {', '.join(undecided)}" if undecided else ""
            raise KeyError(f"{len(found)} results for {asked or 'the whole table'}{remedy}; there are {there}.")
        return found

    def _shown(self) -> pd.DataFrame:
        found = self.table
        for column, values in self.shown.items():
            found = found.loc[found[column].isin(values)]
        return found

    def _display(self) -> pd.DataFrame:
        layout = self.layout

        def text(value: Any) -> Any:
            return "" if pd.isna(value) else nats_text(value) if isinstance(value, float) else value

        if layout is None:
            # A column with the same value in every row is not shown.
            constant = [column for column, values in self.shown.items() if len(values) == 1]
            table = self._shown().drop(columns=constant)
            return table.map(text).set_index(table.columns[0])
        found = self._shown()
        marks = ["*" if marked else "" for marked in found[layout.mark]] if layout.mark else ""
        cells = found.assign(**{layout.value: found[layout.value].map(text) + marks})
        wide = _wide(cells, layout.rows, layout.columns, layout.value).fillna("")
        return wide.reset_index(level=layout.rows[1:]).rename_axis(columns=None)

    def _shades(self) -> pd.DataFrame | None:
        layout = self.layout
        return _wide(self._shown(), layout.rows, layout.columns, layout.shade) if layout and layout.shade else None

    def _html_notes(self) -> list[str]:
        shade = self.layout.shade if self.layout else None
        return ([f"Cells are shaded by {shade.replace('_', ' ')}."] if shade else []) + self.summary()

    def _title(self) -> str:
        return self.title


@dataclass(frozen=True, eq=False)
class InterventionPlots:
    """The pictures of a report; call it for the main one."""

    report: InterventionReport

    def __call__(self, *, value: str | None = None, theme: ThemeName = "light", **where: Any) -> Figure:
        """The numbers side by side: bars over sites, or curves over the tokens since an edit.

        Args:
            value: The measure to draw. By default bars show the share of the KL to the target's optimum that each edit
                recovers, if it was measured, and curves the measure of the table.
            theme: `"light"` or `"dark"`.
            **where: Values of keys, if the table holds more than a picture can show.

        Raises:
            KeyError: if several rows would fall on one place, the message names the keys to choose by; or if there is
                no such measure.
        """
        from msp_lens.figures.edit_bars import plot_edits

        report, layout = self.report, self.report.layout
        measures = list(report.table.select_dtypes("float"))
        if value is not None and value not in measures:
            raise KeyError(f"value={value!r} is no measure of this table; choose one of {', '.join(measures)}.")
        where = {**layout.chosen, **where} if layout else where
        chosen = (f"{key} {each:g}" if isinstance(each, int | float) else str(each) for key, each in where.items())
        options: dict[str, Any] = {"title": ", ".join(chosen), "theme": theme}
        if layout is None:
            rows = report._rows(where, ("site",)).set_index("site")
            series = {name: rows[name].to_dict() for name in measures if value in (None, name)}
            return plot_edits(list(rows.index), series, ylabel=value or report.title, **options)
        if layout.xlabel is not None:
            return self._over_time(layout, value or layout.value, where, options)
        default = "recovery" if layout.value == "kl_to_target" and "recovery" in measures else layout.value
        measure = value or default
        is_share = measure == "recovery"
        rows = report._rows(where, (layout.across, layout.columns))
        series = _by_series(rows, layout, measure)
        options |= {"errors": _by_series(rows, layout, f"{measure}_error")} if f"{measure}_error" in rows else {}
        # Only of these is it known whether more or less is better.
        options |= {"placebo": "placebo"} if measure in ("kl_to_target", "recovery") and "placebo" in series else {}
        label = "share of the KL to the target recovered" if is_share else _label(layout, measure)
        if is_share:
            # No edit recovers nothing, by definition.
            series.pop("none", None)
        return plot_edits(rows[layout.across].unique().tolist(), series, ylabel=label, is_share=is_share, **options)

    def _over_time(self, layout: Layout, value: str, where: Mapping[str, Any], options: dict[str, Any]) -> Figure:
        """Curves over the tokens since an edit, in a panel for each way of editing unless one is chosen."""
        from msp_lens.figures.edit_bars import plot_persistence, plot_strengths

        options |= {"ylabel": _label(layout, value), "xlabel": layout.xlabel}
        by = (layout.across, layout.columns)
        if layout.panels is None or layout.panels in where:
            return plot_strengths(_curves(self.report._rows(where, by), layout, value), **options)
        ways = self.report._rows(where, (layout.panels, *by)).groupby(layout.panels, sort=False)
        return plot_persistence({str(way): _curves(part, layout, value) for way, part in ways}, **options)

    def map(
        self, edit: str = "steer", *, value: str = "recovery", target: str | None = None, theme: ThemeName = "light"
    ) -> Figure:
        """One number for each site and position as a heat map; arguments as for `InterventionReport.map`."""
        from msp_lens.figures.edit_bars import plot_heat_map

        table = self.report.map(edit, value=value, target=target)
        sites, positions = ([str(label) for label in axis] for axis in (table.index, table.columns))
        return plot_heat_map(
            table.to_numpy(), sites, positions, title=f"{edit}: {value}", in_nats=value in _IN_NATS, theme=theme
        )

    def strengths(
        self, *, site: str, position: int | None = None, target: str | None = None, theme: ThemeName = "light"
    ) -> Figure:
        """KL to the target's optimum against the strength λ, a curve for each edit."""
        from msp_lens.figures.edit_bars import plot_strengths

        curves = {}
        for edit in self.report.values("edit"):
            if edit != "none":
                curve = self.report.curve(edit, site=site, position=position, target=target)
                curves[edit] = (list(curve.index), curve.tolist())
        label = "KL to the target's optimum (nats)"
        return plot_strengths(curves, ylabel=label, title=f"edits at {site}", theme=theme)


def _label(layout: Layout, measure: str) -> str:
    return layout.label if measure == layout.value else measure.replace("_", " ")


def _by_series(rows: pd.DataFrame, layout: Layout, value: str) -> dict[str, dict[Any, float]]:
    """One measure by what stands side by side, and then by place."""
    groups = rows.set_index(layout.across).groupby(layout.columns, sort=False)[value]
    return {str(name): heights.to_dict() for name, heights in groups}


def _curves(rows: pd.DataFrame, layout: Layout, value: str) -> dict[str, tuple[list[Any], list[float]]]:
    """One measure as curves: places and heights by name."""
    series = _by_series(rows, layout, value)
    return {name: (list(heights), list(heights.values())) for name, heights in series.items()}


def _wide(table: pd.DataFrame, rows: Sequence[str], columns: str, value: str) -> pd.DataFrame:
    """One measure by rows and columns; numbers ascend, and names keep their order of appearance."""
    keys = [*rows, columns]
    names = [key for key in keys if not pd.api.types.is_numeric_dtype(table[key])]
    ordered = table.assign(**{name: pd.Categorical(table[name], table[name].unique()) for name in names})
    wide = ordered.set_index(keys)[value].sort_index().unstack(columns)
    return pd.DataFrame(wide).set_axis(wide.columns.tolist(), axis=1)


class _SavedLayout(TypedDict):
    rows: list[str]
    columns: str
    value: str
    label: str
    shade: NotRequired[str | None]
    mark: NotRequired[str | None]
    across: NotRequired[str]
    xlabel: NotRequired[str | None]
    panels: NotRequired[str | None]
    chosen: NotRequired[dict[str, Any]]


class _Saved(TypedDict):
    title: str
    results: list[dict[str, Any]]
    keys: list[str]
    notes: list[str]
    provenance: dict[str, Any]
    layout: _SavedLayout | None
    shown: dict[str, list[Any]]


def _check_layout(saved: Mapping[str, Any], layout: Layout | None) -> None:
    """Raise `ValueError` if rows differ in their fields or hold no plain values, or a name is not a field of theirs."""
    columns = list(saved["results"][0]) if saved["results"] else []
    for number, row in enumerate(saved["results"]):
        wrong = [key for key, value in row.items() if not isinstance(value, str | int | float | None)]
        if wrong or list(row) != columns:
            field = f".{wrong[0]}" if wrong else ""
            rule = "give text, a number or null" if wrong else f"give the fields of every row, {', '.join(columns)}"
            raise ValueError(f"saved.results[{number}]{field}: {rule}, as to_dict() writes them.")
    named = {"keys": saved["keys"], "shown": list(saved["shown"])}
    if layout is not None:
        named |= {"layout.rows": layout.rows, "layout.columns": [layout.columns], "layout.value": [layout.value]}
        named |= {"layout.shade": [layout.shade], "layout.mark": [layout.mark], "layout.across": [layout.across]}
        named |= {"layout.panels": [layout.panels]}
        named |= {"layout.chosen": list(layout.chosen)}
    for field, names in named.items():
        if unknown := [name for name in names if name is not None and name not in columns]:
            raise ValueError(
                f"saved.{field}: {unknown[0]!r} is no field of the results; there are {', '.join(columns)}."
            )


# What an edit did: the network acts on the belief written; it follows it in part, or not at all; it predicts too badly
# to tell; or not even a donor moves it.
Effect = Literal["acts", "in part", "none", "cannot tell", "nothing to recover"]


def effect(found: InterventionReport, edit: str = "steer", **where: Any) -> Effect:
    """What a whole edit did at the one place with these values of keys (else `KeyError`).

    The network acts on the belief if the edit recovers at least half of the KL to the target's optimum, and more than a
    placebo and a wrong belief, each by two standard errors, and if the network predicts well by itself: left alone, it
    is at least ten times as near to the actual optimum as to the target's.
    """

    def beyond(name: str, other: str) -> bool:
        more, less = row(name), row(other)
        error = math.hypot(more["recovery_error"], less["recovery_error"])
        return bool(more["recovery"] - less["recovery"] > 2 * error)

    def row(name: str) -> dict[str, Any]:
        return _made_whole(found, name, where)

    if not row("none")["kl_to_actual"] <= 0.1 * row("none")["kl_to_target"]:
        return "cannot tell"
    if beyond(edit, "placebo") and beyond(edit, "wrong belief"):
        return "acts" if row(edit)["recovery"] - 2 * row(edit)["recovery_error"] >= 0.5 else "in part"
    return "none" if beyond("donor", "placebo") else "nothing to recover"


def effect_text(found: InterventionReport, edit: str = "steer", **where: Any) -> str:
    """A sentence on what `effect` says, with its numbers."""
    rows = {name: _made_whole(found, name, where) for name in (edit, "placebo", "wrong belief", "donor")}
    recovered = {name: percent(row["recovery"]) for name, row in rows.items()}
    alone = _made_whole(found, "none", where)
    place = f"{edit} at {alone['site']}"
    compared = f"(placebo {recovered['placebo']}, wrong belief {recovered['wrong belief']})"
    share = f"{recovered[edit]} of the way to the target's optimum"
    near, far = (nats_text(alone[column]) for column in ("kl_to_actual", "kl_to_target"))
    told = {
        "acts": f"The network acts on the belief written: {place} recovers {share} {compared}.",
        "in part": f"The network follows the belief written only in part: {place} recovers {share} {compared}.",
        "none": f"The network does not follow the belief written: {place} recovers {share}, hardly more than edits "
        f"that do not write it {compared}.",
        "cannot tell": "It cannot be told whether the network acts on the belief: left alone, it is not ten times as "
        f"near to the actual optimum (KL {near}) as to the target's ({far}), because it predicts badly or the two "
        f"beliefs predict alike. {place} recovers {share} {compared}.",
        "nothing to recover": f"There is nothing to recover at {alone['site']}: even a donor, the activation of a run "
        f"that held the target belief, does no better than a placebo ({recovered['donor']} and "
        f"{recovered['placebo']}).",
    }
    return told[effect(found, edit, **where)]


def _made_whole(found: InterventionReport, edit: str, where: Mapping[str, Any]) -> dict[str, Any]:
    return dict(found.select(edit=edit, strength=1.0, **where))


def worse_than_placebo(found: InterventionReport) -> list[str]:
    """A sentence that names the edits and sites marked in the table, if there are any."""
    sites: dict[str, dict[str, None]] = {}
    for row in found.table.to_dict(orient="records"):
        if row["worse_than_placebo"]:
            sites.setdefault(row["edit"], {})[row["site"]] = None
    named = "; ".join(f"{edit} at {', '.join(where)}" for edit, where in sites.items())
    return [f"* Worse than the placebo by more than two standard errors: {named}."] if named else []


def acts_on_belief(kl_to_actual: float, kl_to_target: float) -> bool:
    """Whether a model left alone is at least twice as near to the actual optimum as to the target's.

    Otherwise there is nothing to recover. A network with random weights passes by chance only: its predictions are
    about as far from the one as from the other.
    """
    return kl_to_actual < 0.5 * kl_to_target
