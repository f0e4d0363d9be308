"""Labels that hide neither each other nor what they label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Box:
    """A rectangle, by its center.

    Attributes:
        x: Center.
        y: Center.
        width: Whole width.
        height: Whole height.
    """

    x: float
    y: float
    width: float
    height: float

    def overlap(self, other: Box) -> float:
        """The area that both cover."""
        across = (self.width + other.width) / 2 - abs(self.x - other.x)
        along = (self.height + other.height) / 2 - abs(self.y - other.y)
        inside = (min(self.width, other.width), min(self.height, other.height))
        return max(0.0, min(across, inside[0])) * max(0.0, min(along, inside[1]))

    def moved_to(self, x: float, y: float) -> Box:
        """The same rectangle elsewhere."""
        return Box(x, y, self.width, self.height)


def text_box(text: str, fontsize: float, *, unit: float = 1.0) -> Box:
    """About how much room a text takes, centered at the origin, in inches times `unit`."""
    lines = text.split("\n")
    # A character is about .62 of the font's size wide and a line 1.25 of it high; a point is 1/72 inch.
    size = unit * fontsize / 72
    return Box(0, 0, 0.62 * size * max(map(len, lines)), 1.25 * size * len(lines))


def subscript(text: str | int) -> str:
    """The text with its digits as subscripts.

    Example:
        >>> subscript(10)
        '₁₀'
    """
    return str(text).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def first_free(candidates: Sequence[Box], taken: Sequence[Box]) -> int:
    """Which candidate covers least of what is taken; the first of those that tie."""
    covered = [sum(candidate.overlap(other) for other in taken) for candidate in candidates]
    return covered.index(min(covered))


def around(point: tuple[float, float], label: Box, *, gap: float, away_from: tuple[float, float]) -> list[Box]:
    """Places for a label around a point, the nearest first, and first of these the ones that face away from another."""
    x, y = point
    outward = math.atan2(y - away_from[1], x - away_from[0])
    turns = sorted((k * math.pi / 8 for k in range(-8, 8)), key=abs)
    places = []
    for reach in (1.0, 1.8, 2.8):
        for turn in turns:
            across, along = math.cos(outward + turn), math.sin(outward + turn)
            places.append(
                label.moved_to(
                    x + across * (reach * gap + label.width / 2), y + along * (reach * gap + label.height / 2)
                )
            )
    return places


def spread_out(heights: np.ndarray, *, gap: float) -> np.ndarray:
    """The heights, moved as little as possible to lie `gap` apart in the same order.

    Least squares under the order constraint: isotonic regression of the heights less their rank times the gap.

    Example:
        >>> spread_out(np.array([0.0, 0.5, 0.5]), gap=0.1).round(3).tolist()
        [0.0, 0.45, 0.55]
    """
    from sklearn.isotonic import isotonic_regression

    order = np.argsort(heights, kind="stable")
    steps = gap * np.arange(len(heights))
    placed = np.empty(len(heights))
    placed[order] = isotonic_regression(np.asarray(heights, dtype=float)[order] - steps) + steps
    return placed
