"""Controls: what can be read where there is nothing to read, or without the network's training.

- *Shuffled beliefs*: what a linear map memorizes.
- *Windows*: what the position and the last k tokens say, without a network.
- *Untrained twins*: what the architecture carries before it has learned anything.

Rivals are no controls, but other accounts of what a trained network might represent: next-token probabilities, the
constrained beliefs of one attention layer and, for a part of the belief, the beliefs about the other parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import pandas as pd

from msp_lens._names import meant
from msp_lens._tables import TableView
from msp_lens._values import Value
from msp_lens.moments.scores import HeldOutScore, SavedHeldOut, SavedScore, Score

ControlKind = Literal[
    "position",
    "window",
    "positioned window",
    "additive window",
    "next token",
    "constrained belief",
    "other part",
    "untrained",
]
# Other accounts of a trained network, by their kind.
RIVAL_KINDS: tuple[ControlKind, ...] = ("next token", "constrained belief", "other part")


class SavedControl(TypedDict):
    """A `ControlScore` in a file."""

    name: str
    kind: ControlKind
    site: str | None
    in_sample: SavedScore
    held_out: SavedHeldOut
    length: int | None


@dataclass(frozen=True, eq=False)
class ControlScore(Value):
    """How well a control predicts the beliefs, on the same rows and folds as the probes.

    Attributes:
        name: The control's name in tables.
        kind: What the control sees.
        site: The label of the site it is compared with; `None` for all sites.
        in_sample: Score on all rows.
        held_out: Score by the same cross-validation.
        length: Number of tokens in the window, for windows.
    """

    name: str
    kind: ControlKind
    site: str | None
    in_sample: Score
    held_out: HeldOutScore
    length: int | None = None

    @property
    def is_rival(self) -> bool:
        """Whether it is another account of a trained network, not a control: skill leaves rivals out."""
        return self.kind in RIVAL_KINDS


@dataclass(frozen=True, eq=False, repr=False)
class Controls(Value, TableView, Sequence[ControlScore]):
    """The controls of a report: a sequence, and a table.

    Attributes:
        scores: One score for each control, and for each site if the control has one score per site.
    """

    scores: tuple[ControlScore, ...] = ()

    def __getitem__(self, index: Any) -> Any:
        return self.scores[index]

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, name: str, site: str | None = None) -> ControlScore:
        """The score of one control.

        Raises:
            KeyError: if there is none with this name and site.
        """
        for each in self.scores:
            if each.name == name and each.site in (None, site):
                return each
        there_are = ", ".join(self.names) or "none"
        raise KeyError(f"No control {name!r} for site {site!r}; there are {there_are}.{meant(name, self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the controls."""
        return tuple(dict.fromkeys(each.name for each in self.scores))

    @property
    def rivals(self) -> tuple[ControlScore, ...]:
        """The scores of the rivals: how well each predicts the belief."""
        return tuple(each for each in self.scores if each.is_rival)

    @property
    def rival(self) -> ControlScore | None:
        """The score of next-token probabilities, if it was measured."""
        return next((each for each in self.scores if each.kind == "next token"), None)

    def best(self, site: str) -> ControlScore | None:
        """The control with the highest held-out R² at a site, without rivals; `None` if there are no controls."""
        here = [each for each in self.scores if each.site in (None, site) and not each.is_rival]
        scored = [each for each in here if not math.isnan(each.held_out.r2)]
        return max(scored, key=lambda each: each.held_out.r2, default=None)

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each control and site."""
        columns: dict[str, list] = {
            "control": [each.name for each in self.scores],
            "site": [each.site or "any" for each in self.scores],
            "R² held out": [each.held_out.r2 for each in self.scores],
            "low": [each.held_out.r2_interval[0] for each in self.scores],
            "high": [each.held_out.r2_interval[1] for each in self.scores],
            "R² in-sample": [each.in_sample.r2 for each in self.scores],
            "MSE held out": [each.held_out.mse for each in self.scores],
            "MSE in-sample": [each.in_sample.mse for each in self.scores],
            "is rival": [each.is_rival for each in self.scores],
        }
        return pd.DataFrame(columns).set_index("control")

    def _title(self) -> str:
        return "Controls"

    def _display(self) -> pd.DataFrame:
        table = self.to_dataframe()
        shown = pd.DataFrame({"site": table["site"]})
        shown["R² held out"] = table["R² held out"].map(r2_text)
        shown["95 %"] = [interval_text(*ends) for ends in zip(table["low"], table["high"], strict=True)]
        shown["R² in-sample"] = table["R² in-sample"].map(r2_text)
        shown["MSE held out"] = table["MSE held out"].map("{:.6f}".format)
        shown["rival"] = ["rival" if each.is_rival else "" for each in self.scores]
        return shown


def named_r2_texts(r2: Iterable[float], names: Iterable[str | None]) -> list[str]:
    """R² of controls or rivals with their names, as tables show them; a dash where there is none."""
    return ["–" if math.isnan(value) else f"{value:.4f} {name}" for value, name in zip(r2, names, strict=True)]


def r2_text(r2: float, digits: int = 5) -> str:
    """An R² as tables show it: a dash where nothing varies, and only a bound where it is far below 0."""
    if math.isnan(r2):
        return "–"
    return f"{r2:.{digits}f}" if r2 > -9.99 else "< -10"


def interval_text(low: float, high: float) -> str:
    """An interval of R², in the numbers of digits of its table; far below 0 fewer say as much."""
    if math.isnan(low):
        return "–"
    return " to ".join(f"{end:.4f}" if abs(end) <= 1 else f"{end:.2f}" for end in (low, high))
