"""Ranges of numbers for annotations, such as `Annotated[float, Above(0)]`, with the rule that a message quotes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from msp_lens._arrays import LARGEST_INTEGER, MismatchError


@dataclasses.dataclass(frozen=True)
class AtLeast:
    """For `Annotated`: the number is at least the minimum; the reason is for the message."""

    minimum: float
    reason: str = ""

    def check(self, value: Any) -> None:
        """Raise `MismatchError` if the value breaks the rule."""
        if not value >= self.minimum:
            raise MismatchError(value, f"give at least {self.minimum:g}{f' ({self.reason})' if self.reason else ''}")


@dataclasses.dataclass(frozen=True)
class Above:
    """For `Annotated`: the number is greater than the bound."""

    bound: float

    def check(self, value: Any) -> None:
        """Raise `MismatchError` if the value breaks the rule."""
        if not value > self.bound:
            raise MismatchError(value, f"give a number above {self.bound:g}")


@dataclasses.dataclass(frozen=True)
class Below:
    """For `Annotated`: the number is less than the bound; infinity as the bound asks for a finite number."""

    bound: float

    def check(self, value: Any) -> None:
        """Raise `MismatchError` if the value breaks the rule."""
        if not value < self.bound:
            rule = "that is not infinite" if math.isinf(self.bound) else f"below {self.bound:g}"
            raise MismatchError(value, f"give a number {rule}")


@dataclasses.dataclass(frozen=True)
class Between:
    """For `Annotated`: the number is in the closed interval; the reason is for the message."""

    low: float
    high: float
    reason: str = ""

    def check(self, value: Any) -> None:
        """Raise `MismatchError` if the value breaks the rule."""
        if not self.low <= value <= self.high:
            high = "2**63 - 1" if self.high == LARGEST_INTEGER else f"{self.high:g}"
            because = f" ({self.reason})" if self.reason else ""
            raise MismatchError(value, f"give a number from {self.low:g} to {high}{because}")
