"""What theory says about a process, in one table: its size, its beliefs, and how predictable it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from msp_lens._checks import Count, checked
from msp_lens._tables import TableView, nats_text
from msp_lens._values import Value
from msp_lens.beliefs.fractal import attractor
from msp_lens.beliefs.information import Measure, entropy_rate, excess_entropy, first_entropies, statistical_complexity
from msp_lens.beliefs.presentation import Presentation, presentation
from msp_lens.processes.chains import Degeneracy
from msp_lens.processes.process import Process
from msp_lens.processes.registry import CATALOG, catalog_entry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.style import ThemeName


_MEASURES = ("entropy_rate", "excess_entropy", "statistical_complexity")


@dataclass(frozen=True, eq=False, repr=False)
class Description(TableView, Value):
    """What theory says about a process; made by `describe`. A notebook shows it as a table.

    Attributes:
        process: The process.
        presentation: Its mixed states, or the first of them if there are infinitely many.
        entropy_rate: Nats per token that no observer can predict.
        excess_entropy: Nats of information that the past carries about the future.
        statistical_complexity: Entropy of an optimal observer's belief, in nats.
        myopic_entropies: h_1, h_2, …: entropy of the next token after none, one, … tokens, in nats. There are fewer
            than asked for where words lead to too many beliefs.
        degeneracy: How much of the beliefs the next-token probabilities show.
    """

    _prose = ("value", "more")

    process: Process
    presentation: Presentation
    entropy_rate: Measure
    excess_entropy: Measure
    statistical_complexity: Measure
    myopic_entropies: tuple[float, ...]
    degeneracy: Degeneracy

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each quantity."""
        found = self.presentation
        rows = {
            "hidden states": (f"{self.process.n_states}", _listed(self.process.states)),
            "tokens": (f"{self.process.n_tokens}", _listed(self.process.tokens)),
            "mixed states": (found.count, found.description),
        }
        rows |= {name.replace("_", " "): _measure(getattr(self, name)) for name in _MEASURES}
        columns = pd.Index(["value", "more"])
        return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("quantity")

    _display = to_dataframe

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready values; infinite numbers are `None`."""
        found = self.presentation
        return {
            "process": self.process.to_dict(),
            "mixed_states": len(found) if found.is_finite else None,
            "recurrent_mixed_states": int(found.is_recurrent.sum()) if found.is_finite else None,
            **{name: getattr(self, name).to_dict() for name in _MEASURES},
            "myopic_entropies_nats": list(self.myopic_entropies),
            "belief_dimensions": self.degeneracy.belief_dimensions,
            "next_token_dimensions": self.degeneracy.next_token_dimensions,
            "emission_rank": self.degeneracy.emission_rank,
        }

    def plot(self, *, theme: ThemeName = "light") -> Figure:
        """The mixed states: a graph of up to 60 states, otherwise the set of beliefs."""
        if self.presentation.is_finite and len(self.presentation) <= 60:
            return self.presentation.plot(theme=theme)
        from msp_lens.figures.simplex import plot_beliefs

        points, states = attractor(self.process, 300_000, seed=0), self.process.states
        title = f"{self.process!r}: beliefs of observers who follow it"
        return plot_beliefs(points, {}, states=states, title=title, theme=theme)

    def summary(self) -> list[str]:
        """The myopic entropies, what the quantities mean, and the degeneracy."""
        return [
            "Myopic entropies, of the next token after none, one, two, … tokens: "
            f"{' '.join(map(nats_text, self.myopic_entropies))} nats.",
            "Entropy rate: what nobody can predict of a token. Excess entropy: what the past tells about the future. "
            "Statistical complexity: what an optimal observer must remember.",
            f"{self.degeneracy}",
        ]

    def _title(self) -> str:
        return repr(self.process).partition(":")[0]


@checked
def describe(process: Process, *, n_ctx: Count = 10) -> Description:
    """What theory says about a process, with `n_ctx` myopic entropies, or as many as a second or two allow.

    Example:
        >>> from msp_lens.processes.catalog import rrxor
        >>> found = describe(rrxor())
        >>> len(found.presentation), round(found.entropy_rate.bits, 6)
        (36, 0.666667)
    """
    max_level = 50_000  # About four decimals of the bounds, in a second or two.
    measures = (entropy_rate, excess_entropy, statistical_complexity)
    return Description(
        process,
        presentation(process),
        *(measure(process, max_level=max_level) for measure in measures),
        myopic_entropies=tuple(first_entropies(process, n_ctx, max_level=1_000_000).tolist()),
        degeneracy=process.degeneracy(),
    )


def catalog_table() -> pd.DataFrame:
    """One row for each named process, at its default parameters, in numbers.

    GHMM means generalized; h, the entropy rate, lies between `h low` and `h high`; the mixed states are NaN where they
    are more than those found, perhaps infinitely many; the last two columns tell how many of the dimensions of the
    reachable beliefs next-token probabilities show.

    Example:
        >>> int(catalog_table().loc["rrxor(p1=0.5, p2=0.5)", "mixed states"])
        36
    """
    rows = {}
    for name in CATALOG:
        process = catalog_entry(name).process
        degeneracy = process.degeneracy()
        found = presentation(process)
        rate = entropy_rate(process, max_level=30_000)  # Four decimals of most entropy rates.
        rows[repr(process).partition(":")[0]] = {
            "kind": "GHMM" if process.is_generalized else "HMM",
            "states": process.n_states,
            "tokens": process.n_tokens,
            "h, nats": rate.value,
            "h low": rate.lower,
            "h high": rate.upper,
            "mixed states": len(found) if found.is_finite else math.nan,
            "mixed states found": len(found),
            "next-token dimensions": degeneracy.next_token_dimensions,
            "belief dimensions": degeneracy.belief_dimensions,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("process")


def catalog_text(table: pd.DataFrame) -> pd.DataFrame:
    """The catalog's table as text; ≈ where the bounds of an entropy rate leave its fourth decimal open."""
    is_known = table["h high"] - table["h low"] < 1e-4
    rates = [nats_text(h) if known else f"≈{h:.2f}" for h, known in zip(table["h, nats"], is_known, strict=True)]
    found = zip(table["mixed states"], table["mixed states found"], strict=True)
    counts = [f"> {least:,}" if math.isnan(count) else f"{count:,.0f}" for count, least in found]
    seen = zip(table["next-token dimensions"], table["belief dimensions"], strict=True)
    dimensions = [f"{shown} of {there_are}" for shown, there_are in seen]
    numbers = {"h, nats": rates, "mixed states": counts, "seen in next token": dimensions}
    return table[["kind", "states", "tokens"]].assign(**numbers)


def _listed(names: tuple[str, ...], most: int = 12) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def _measure(measure: Measure) -> tuple[str, str]:
    if math.isinf(measure.value):
        return "∞", measure.method
    value = f"{nats_text(measure.value)} nats = {nats_text(measure.bits)} bits"
    low, high = nats_text(measure.lower), nats_text(measure.upper)
    if low == high:
        return value, measure.method
    upper = f"at most {high}" if math.isfinite(measure.upper) else "no upper bound known"
    return value, f"at least {low}, {upper}; {measure.method}"
