"""What a paper says, and whether a run bears it out: claims, each with the rule that decides.

A claim is *reproduced* if the numbers measured in this run satisfy its rule, else *not reproduced*; if the run measured
nothing that could decide, it is *beyond what was run*, with the reason.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from msp_lens._tables import TableView
from msp_lens._values import Value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.style import ThemeName

Verdict = Literal["reproduced", "not reproduced", "beyond what was run"]
VERDICTS: tuple[Verdict, ...] = ("reproduced", "not reproduced", "beyond what was run")


@dataclass(frozen=True)
class Rule:
    """When a claim counts as reproduced, in words, and whether it does."""

    text: str
    holds: bool


def within(measured: float, published: float, tolerance: float) -> Rule:
    """The measured number is at most `tolerance` away from the published one; NaN never is.

    Example:
        >>> within(0.97, 0.95, 0.05)
        Rule(text='within 0.05 of what is published', holds=True)
    """
    return Rule(f"within {tolerance:g} of what is published", abs(measured - published) <= tolerance)


def within_factor(measured: float, published: float, factor: float) -> Rule:
    """The measured number is at most `factor` times the published one, and at least that fraction of it."""
    holds = published / factor <= measured <= published * factor
    return Rule(f"within a factor of {factor:g} of what is published", holds)


def at_most(measured: float, bound: float, what: str = "") -> Rule:
    """The measured number is at most `bound`; `what` says what a bound is that was itself measured.

    Example:
        >>> at_most(0.02, 0.05, "half of the control").text
        'at most half of the control, 0.05'
    """
    return Rule(f"at most {_bound_text(bound, what)}", measured <= bound)


def at_least(measured: float, bound: float, what: str = "") -> Rule:
    """The measured number is at least `bound`; `what` says what a bound is that was itself measured."""
    return Rule(f"at least {_bound_text(bound, what)}", measured >= bound)


def _bound_text(bound: float, what: str) -> str:
    return f"{what}, {number_text(bound)}" if what else f"{bound:g}"


def all_of(*rules: Rule) -> Rule:
    """Every one of the rules holds."""
    return Rule("; ".join(rule.text for rule in rules), all(rule.holds for rule in rules))


@dataclass(frozen=True, kw_only=True)
class Claim(Value):
    """One statement of a paper, beside what this run measured and a control.

    Attributes:
        says: The claim in one sentence.
        source: Where the paper says it, such as `"Fig. 6"`.
        published: The paper's number, or its words.
        measured: The same quantity in this run; `None` if it was not measured.
        control: The same quantity of something that should not show the effect.
        control_is: What the control is, such as `"shuffled beliefs"`.
        rule: When the claim counts as reproduced.
        beyond: Why the run cannot decide; then there is no rule.
    """

    says: str
    source: str
    published: float | str
    measured: float | str | None = None
    control: float | str | None = None
    control_is: str = ""
    rule: Rule | None = None
    beyond: str = ""

    def __post_init__(self) -> None:
        if (self.rule is None) != bool(self.beyond):
            raise ValueError(f"claim {self.says!r}: give either a rule, or the reason why the run cannot decide.")

    @property
    def verdict(self) -> Verdict:
        """Reproduced, not reproduced, or beyond what was run."""
        if self.rule is None:
            return "beyond what was run"
        return "reproduced" if self.rule.holds else "not reproduced"

    def to_dict(self) -> dict[str, Any]:
        """The claim as JSON-ready values."""
        values = {name: value for name, value in vars(self).items() if name != "rule"}
        return values | {"rule": self.rule.text if self.rule is not None else None, "verdict": self.verdict}


@dataclass(frozen=True, kw_only=True)
class Section(Value):
    """One experiment of a paper: what was done, what it claims, and a picture.

    Attributes:
        title: What is shown, with the paper's figure.
        method: What was done, and how to read the picture; a blank line begins a paragraph.
        claims: What the paper says of it.
        picture: Draws the figure in a theme, light or dark.
        alt: What the picture shows, for those who cannot see it.
        tables: Results in full.
        remark: What this run adds, such as a control that the paper lacks, or why a claim fails.
    """

    title: str
    method: str
    claims: tuple[Claim, ...]
    picture: Callable[[Any], Figure] | None = None
    alt: str = ""
    tables: tuple[TableView, ...] = ()
    remark: str = ""

    @property
    def paragraphs(self) -> list[str]:
        """The method's paragraphs, each in one line."""
        return [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", self.method.strip())]

    def plot(self, *, theme: ThemeName = "light") -> Figure:
        """Draw the section's picture.

        Raises:
            ValueError: if it has none.
        """
        if self.picture is None:
            raise ValueError(f"section {self.title!r} has no picture.")
        return self.picture(theme)


@dataclass(frozen=True, eq=False, repr=False)
class Table(Value, TableView):
    """Numbers in full, to stand below a section's claims."""

    title: str
    values: pd.DataFrame

    def to_dataframe(self) -> pd.DataFrame:
        """The numbers."""
        return self.values

    def _title(self) -> str:
        return self.title

    def _display(self) -> pd.DataFrame:
        return self.values.map(number_text)


def number_text(value: float | str | None) -> str:
    """A number with three digits (before the point, all), words as they are, and a dash for nothing.

    Example:
        >>> [number_text(value) for value in (0.000386, 0.951234, 12.0, 1046, "1/(2ℓ)", None)]
        ['0.000386', '0.951', '12', '1,046', '1/(2ℓ)', '–']
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
