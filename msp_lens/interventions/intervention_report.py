"""What an intervention found: a row for each site, position, edit, target and strength, and how to read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from msp_lens._tables import json_records, to_html, to_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.style import ThemeName

TITLE = "KL(target's optimum ‖ model), nats"
MOST_COLUMNS = 8


@dataclass(frozen=True)
class InterventionResult:
    """What one edit at one site and position did, averaged over words; KL in nats, errors standard errors over words.

    Attributes:
        site: Short label of the edited site, or `"all sites"`.
        position: The edited position, whose next-token distribution is judged.
        edit: Which edit.
        target: Which beliefs were written.
        strength: How much of the edit was made, λ.
        kl_to_target: Mean KL(target's optimum ‖ model).
        kl_to_target_error: Its error.
        kl_to_actual: Mean KL(actual optimum ‖ model).
        kl_to_actual_error: Its error.
        recovery: 1 - kl_to_target / that of no edit: 0 if nothing was gained, 1 if the model acts on the target.
        recovery_error: Its error.
        above_placebo: Recovery on a scale of the placebo (0) to the donor (1); NaN where there is nothing to recover:
            where the donor itself recovers no more than the placebo, or the model left alone is not nearer by half to
            the actual optimum than to the target's.
        displacement: How far along the way from the actual to the target belief the model's belief moved, as read at
            a later site by that site's own probe; NaN if no later site was read.
        displacement_error: Its error.
        n: Pairs of word and target.
    """

    site: str
    position: int
    edit: str
    target: str
    strength: float
    kl_to_target: float
    kl_to_target_error: float
    kl_to_actual: float
    kl_to_actual_error: float
    recovery: float
    recovery_error: float
    above_placebo: float
    displacement: float
    displacement_error: float
    n: int


@dataclass(frozen=True, eq=False)
class InterventionReport:
    """The results of an experiment, one row for each site, position, edit, target and strength.

    Attributes:
        results: The rows.
        provenance: Process, number of pairs, seed, the site that displacement was read at.
    """

    results: tuple[InterventionResult, ...]
    provenance: dict[str, Any]

    def select(
        self,
        *,
        site: str,
        edit: str,
        position: int | None = None,
        target: str | None = None,
        strength: float | None = None,
    ) -> InterventionResult:
        """The one result asked for; what is left out must be the same in all that fit.

        Raises:
            KeyError: unless exactly one row fits.
        """
        found = [
            result
            for result in self.results
            if (result.site, result.edit) == (site, edit)
            and position in (None, result.position)
            and target in (None, result.target)
            and strength in (None, result.strength)
        ]
        if len(found) != 1:
            there = {
                key: list(dict.fromkeys(getattr(r, key) for r in self.results))
                for key in ("site", "edit", "position", "target", "strength")
            }
            raise KeyError(
                f"{len(found)} results for site={site!r}, edit={edit!r}, position={position}, target={target!r}, "
                f"strength={strength}; there are "
                + "; ".join(f"{key} {', '.join(map(str, values))}" for key, values in there.items())
                + "."
            )
        return found[0]

    def map(
        self, edit: str, *, value: str = "recovery", target: str | None = None, strength: float = 1.0
    ) -> pd.DataFrame:
        """One number for each site and position, `[layer, pos]`, as in TransformerLens's patching maps.

        Args:
            edit: Which edit.
            value: Any number of `InterventionResult`: `"recovery"`, `"kl_to_target"`, `"displacement"`, …
            target: Which target; may be left out where there is one.
            strength: Which strength.

        Raises:
            KeyError: if there are no such results, or they are of several targets.
        """
        rows = [r for r in self.results if (r.edit, r.strength) == (edit, strength) and target in (None, r.target)]
        if not rows or len({r.target for r in rows}) > 1:
            raise KeyError(
                f"{len(rows)} results for edit={edit!r}, target={target!r}, strength={strength}: name one target of "
                f"{', '.join(self._values('target'))} and one edit of {', '.join(self._values('edit'))}."
            )
        table = pd.DataFrame([{"site": r.site, "position": r.position, "value": getattr(r, value)} for r in rows])
        wide = table.pivot(index="site", columns="position", values="value")
        return wide.loc[[site for site in self._values("site") if site in wide.index]]

    def curve(
        self,
        edit: str,
        *,
        site: str,
        value: str = "kl_to_target",
        position: int | None = None,
        target: str | None = None,
    ) -> pd.Series:
        """One number for each strength λ, from no edit to the whole of it and beyond.

        Raises:
            KeyError: if there are no such results, or they are of several positions or targets.
        """
        rows = [
            r
            for r in self.results
            if (r.edit, r.site) == (edit, site) and position in (None, r.position) and target in (None, r.target)
        ]
        strengths = [r.strength for r in rows]
        if not rows or len(set(strengths)) < len(strengths):
            raise KeyError(
                f"{len(rows)} results for edit={edit!r}, site={site!r}, position={position}, target={target!r}: name "
                f"one position of {self._values('position')} and one target of {', '.join(self._values('target'))}."
            )
        series = pd.Series([getattr(r, value) for r in rows], index=pd.Index(strengths, name="strength"), name=value)
        return series.sort_index()

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each result."""
        return pd.DataFrame([vars(result) for result in self.results])

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready values; undefined numbers are `None`."""
        return {"results": json_records(map(vars, self.results)), "provenance": self.provenance}

    def summary(self) -> list[str]:
        """What the numbers are, what they say, and what they do not prove."""
        given = self.provenance
        reader = given.get("reader")
        lines = [
            self._contrast(),
            f"{given['n']:,} words drawn from {given['process']['name']}, each with a target belief "
            f"({', '.join(self._values('target'))}). KL(target's optimum ‖ model) in nats after each edit: 0 if the "
            "network acts as if it held the target belief.",
            "none: left alone. placebo: as large a step in a random direction. wrong belief: steered to a third "
            "word's. donor: the activation of a run that held the target belief, the best any edit can do.",
            "An edit that works shows that the belief there is enough to change what the network says, not that "
            "nothing else is used. One that fails may be the wrong edit: the pseudo-inverse makes the least change "
            "that the probe sees, the decoder (steer, patch) moves all that varies with the belief.",
        ]
        if not all(acts_on_belief(r.kl_to_actual, r.kl_to_target) for r in self.results if r.edit == "none"):
            lines.append(
                "Left alone, the model is hardly nearer to the actual optimum than to the target's: it does not act on "
                "the belief (or the two beliefs predict alike), and recoveries say nothing, of either sign."
            )
        if reader is not None:
            lines.append(f"Displacement is read at {reader}, by its own probe.")
        return lines

    def _contrast(self) -> str:
        """The edits side by side where steering, or else the donor, recovers most."""
        whole = [r for r in self.results if r.strength == 1]
        best = min(
            (r for r in whole if r.edit == ("steer" if "steer" in self._values("edit") else "donor")),
            key=lambda r: r.kl_to_target,
        )
        beside = [r for r in whole if (r.site, r.position, r.target) == (best.site, best.position, best.target)]
        numbers = ", ".join(f"{r.edit} {_figure(r.kl_to_target)} ({_percent(r.recovery)})" for r in beside)
        return f"At {best.site}, position {best.position}, KL to the target and share recovered: {numbers}."

    def plot(self, *, position: int | None = None, target: str | None = None, theme: ThemeName = "light") -> Figure:
        """KL to the target's optimum at each site, a bar for each edit, at one position (by default the first)."""
        from msp_lens.figures.edit_bars import plot_edits

        chosen = self._values("position")[0] if position is None else position
        named = self._values("target")[0] if target is None else target
        values = {
            edit: self.map(edit, value="kl_to_target", target=named)[chosen].to_dict() for edit in self._values("edit")
        }
        return plot_edits(
            self._values("site"),
            values,
            ylabel="KL to target's optimum (nats)",
            title=f"position {chosen}, {named}",
            theme=theme,
        )

    def plot_map(
        self, edit: str = "steer", *, value: str = "recovery", target: str | None = None, theme: ThemeName = "light"
    ) -> Figure:
        """One number for each site and position as a heat map; arguments as for `map`."""
        from msp_lens.figures.edit_bars import plot_heat_map

        table = self.map(edit, value=value, target=target)
        return plot_heat_map(
            table.to_numpy(),
            [str(s) for s in table.index],
            [str(p) for p in table.columns],
            title=f"{edit}: {value}",
            theme=theme,
        )

    def plot_strengths(
        self, *, site: str, position: int | None = None, target: str | None = None, theme: ThemeName = "light"
    ) -> Figure:
        """KL to the target's optimum against the strength λ, a curve for each edit."""
        from msp_lens.figures.edit_bars import plot_strengths

        curves = {
            edit: self.curve(edit, site=site, position=position, target=target)
            for edit in self._values("edit")
            if edit != "none"
        }
        return plot_strengths(
            {name: (list(curve.index), curve.tolist()) for name, curve in curves.items()},
            ylabel="KL to target's optimum (nats)",
            title=f"edits at {site}",
            theme=theme,
        )

    def _values(self, key: str) -> list:
        return list(dict.fromkeys(getattr(result, key) for result in self.results))

    def _display(self) -> pd.DataFrame:
        """One line for each site and one column for each edit; the other way round where edits are many."""
        wide, varying = self._wide("kl_to_target", _figure)
        return wide.fillna("").reset_index(level=varying).rename_axis(columns=None)

    def _wide(self, value: str, figure: Callable[[float], Any]) -> tuple[pd.DataFrame, list[str]]:
        """A number of each result, in the display's places; and what varies beside site and edit."""
        sites, targets = self._values("site"), self._values("target")
        ordered = sorted(
            self.results, key=lambda r: (sites.index(r.site), r.position, targets.index(r.target), r.strength)
        )
        table = pd.DataFrame([vars(result) for result in ordered])
        table[value] = table[value].map(figure)
        rows, columns = ("site", "edit") if len(self._values("edit")) <= MOST_COLUMNS else ("edit", "site")
        # What does not vary is said once, with the table.
        varying = [key for key in ("position", "target", "strength") if len(self._values(key)) > 1]
        index = [rows, *varying]
        wide = pd.DataFrame(table.set_index([*index, columns])[value].unstack(columns))
        return wide.reindex(index=table.set_index(index).index.unique(), columns=self._values(columns)), varying

    def _title(self) -> str:
        constant = [f"{key} {self._values(key)[0]}" for key in ("position", "target") if len(self._values(key)) == 1]
        return "; ".join([TITLE, *constant])

    def __repr__(self) -> str:
        return to_text(self._display(), title=self._title(), notes=self.summary())

    def _repr_html_(self) -> str:
        notes = ["Shaded by the share recovered.", *self.summary()]
        return to_html(self._display(), title=self._title(), notes=notes, shades=self._wide("recovery", float)[0])


def acts_on_belief(kl_to_actual: float, kl_to_target: float) -> bool:
    """Whether a model left alone is nearer by half to the actual optimum than to another: else nothing is to recover.

    A network with random weights is so by chance only: its predictions lie about as far from either.
    """
    return kl_to_actual < 0.5 * kl_to_target


def _figure(value: float) -> str:
    return f"{value:.4f}"


def _percent(value: float) -> str:
    return "–" if pd.isna(value) else f"{100 * value:.1f} %"
