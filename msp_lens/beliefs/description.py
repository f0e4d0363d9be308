"""What theory says of one process, in one table: its size, its beliefs, how well it can be predicted."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from msp_lens._files import without_nan
from msp_lens._tables import to_html, to_text
from msp_lens.beliefs.fractal import attractor
from msp_lens.beliefs.information import (
    Measure,
    entropy_rate,
    excess_entropy,
    myopic_entropies,
    statistical_complexity,
)
from msp_lens.beliefs.presentation import Presentation, presentation
from msp_lens.processes.process import Process
from msp_lens.processes.structure import Degeneracy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.style import ThemeName

# Nodes of the levels followed for bounds: enough for some four decimals in a second or two.
LEVEL = 50_000
# Presentations of up to this many states are drawn as graphs, others as the set of their beliefs.
DRAWN_STATES = 60
ATTRACTOR_POINTS = 300_000


@dataclass(frozen=True, eq=False)
class Description:
    """What theory says of a process; made by `describe`. In a notebook it shows itself as a table.

    Attributes:
        process: Of which.
        presentation: Its mixed states; the first ones, where there are infinitely many.
        entropy_rate: Nats a token that no observer can predict.
        excess_entropy: Nats that the past tells about the future.
        statistical_complexity: Nats that an optimal observer's belief holds.
        myopic_entropies: h_1, h_2, …: nats of the next token to one who has seen none, one, … tokens.
        degeneracy: What of the beliefs next-token probabilities show.
    """

    process: Process
    presentation: Presentation
    entropy_rate: Measure
    excess_entropy: Measure
    statistical_complexity: Measure
    myopic_entropies: tuple[float, ...]
    degeneracy: Degeneracy = field(repr=False)

    def to_dataframe(self) -> pd.DataFrame:
        """One row a quantity."""
        found = self.presentation
        count = f"{len(found)}" if found.is_finite else f"> {len(found):,}"
        rows = {
            "hidden states": (f"{self.process.n_states}", _listed(self.process.states)),
            "tokens": (f"{self.process.n_tokens}", _listed(self.process.tokens)),
            "mixed states": (count, repr(found).partition(": ")[2].removesuffix(")")),
            "entropy rate": _measure(self.entropy_rate),
            "excess entropy": _measure(self.excess_entropy),
            "statistical complexity": _measure(self.statistical_complexity),
        }
        columns = pd.Index(["value", "more"])
        return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("quantity")

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready values; what is unbounded is `None`."""
        return {
            "process": self.process.to_dict(),
            "mixed_states": len(self.presentation) if self.presentation.is_finite else None,
            "recurrent_mixed_states": int(self.presentation.is_recurrent.sum())
            if self.presentation.is_finite
            else None,
            **{
                name: {
                    "nats": without_nan(measure.value),
                    "lower": without_nan(measure.lower),
                    "upper": without_nan(measure.upper),
                    "method": measure.method,
                }
                for name, measure in (
                    ("entropy_rate", self.entropy_rate),
                    ("excess_entropy", self.excess_entropy),
                    ("statistical_complexity", self.statistical_complexity),
                )
            },
            "myopic_entropies_nats": list(self.myopic_entropies),
            "belief_dimensions": self.degeneracy.belief_dimensions,
            "next_token_dimensions": self.degeneracy.next_token_dimensions,
            "emission_rank": self.degeneracy.emission_rank,
        }

    def plot(self, *, theme: ThemeName = "light") -> Figure:
        """The mixed states: as a graph where they are few, else as the set of beliefs they draw."""
        if self.presentation.is_finite and len(self.presentation) <= DRAWN_STATES:
            return self.presentation.plot(theme=theme)
        from msp_lens.figures.simplex import plot_beliefs

        points = attractor(self.process, ATTRACTOR_POINTS, seed=0)
        title = f"{self.process!r}: beliefs of observers who follow it"
        return plot_beliefs(points, {}, states=self.process.states, title=title.replace("\n", " "), theme=theme)

    def _notes(self) -> list[str]:
        return [
            f"Myopic entropies, of the next token having seen none, one, two … before it: "
            f"{' '.join(f'{h:.4f}' for h in self.myopic_entropies)} nats.",
            "Entropy rate: what nobody can predict of a token. Excess entropy: what the past says of the future. "
            "Statistical complexity: what an optimal observer must remember.",
            f"{self.degeneracy}",
        ]

    def __repr__(self) -> str:
        return to_text(
            self.to_dataframe(), title=repr(self.process).partition(":")[0], notes=self._notes(), left=["value", "more"]
        )

    def _repr_html_(self) -> str:
        return to_html(self.to_dataframe(), title=repr(self.process).partition(":")[0], notes=self._notes())


def describe(process: Process, *, n_ctx: int = 10) -> Description:
    """What theory says of a process.

    Args:
        process: Which.
        n_ctx: How many myopic entropies to give (fewer where there are too many words).

    Example:
        >>> from msp_lens.processes.catalog import rrxor
        >>> found = describe(rrxor())
        >>> len(found.presentation), round(found.entropy_rate.bits, 6)
        (36, 0.666667)
    """
    return Description(
        process=process,
        presentation=presentation(process),
        entropy_rate=entropy_rate(process, max_level=LEVEL),
        excess_entropy=excess_entropy(process, max_level=LEVEL),
        statistical_complexity=statistical_complexity(process, max_level=LEVEL),
        myopic_entropies=tuple(myopic_entropies(process, n_ctx).tolist()),
        degeneracy=process.degeneracy(),
    )


def _listed(names: tuple[str, ...], most: int = 12) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def _measure(measure: Measure) -> tuple[str, str]:
    if math.isinf(measure.value):
        return "∞", measure.method
    value = f"{measure.value:.6g} nats = {measure.bits:.6g} bits"
    if measure.is_exact:
        return value, measure.method
    upper = f"at most {measure.upper:.6g}" if math.isfinite(measure.upper) else "no upper bound known"
    return value, f"at least {measure.lower:.6g}, {upper}; {measure.method}"
