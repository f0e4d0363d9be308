"""Labels that hide neither each other nor what they label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Point = tuple[float, float] | np.ndarray


@dataclass(frozen=True)
class Box:
    """A rectangle: its center (x, y), whole width and whole height."""

    x: float
    y: float
    width: float
    height: float

    @property
    def center(self) -> np.ndarray:
        """`[xy]`."""
        return np.array([self.x, self.y])

    def overlap(self, other: Box) -> float:
        """The area that both cover."""
        across = (self.width + other.width) / 2 - abs(self.x - other.x)
        along = (self.height + other.height) / 2 - abs(self.y - other.y)
        across = max(0.0, min(across, self.width, other.width))
        return across * max(0.0, min(along, self.height, other.height))

    def moved_to(self, x: float, y: float) -> Box:
        """The same rectangle elsewhere."""
        return Box(x, y, self.width, self.height)


def text_box(text: str, fontsize: float, *, unit: float = 1.0) -> Box:
    """About how much room text takes, centered at the origin, in inches times `unit`."""
    lines, size = text.split("\n"), unit * fontsize / 72
    # A character is about .62 of the font's size wide, a line 1.25 of it high.
    return Box(0, 0, 0.62 * size * max(map(len, lines)), 1.25 * size * len(lines))


def subscript(text: str | int) -> str:
    """The text with its digits as subscripts.

    Example:
        >>> subscript(10)
        '₁₀'
    """
    return str(text).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def first_free(candidates: Sequence[Box], taken: Sequence[Box]) -> int:
    """Which candidate covers the least of what is taken; the first if several do."""
    covered = [sum(candidate.overlap(other) for other in taken) for candidate in candidates]
    return covered.index(min(covered))


def around(point: Point, label: Box, *, gap: float, away_from: Point) -> list[Box]:
    """Places for a label around a point: nearest first, and among these those that face away from another point."""
    x, y = point
    outward = math.atan2(y - away_from[1], x - away_from[0])
    turns = sorted((k * math.pi / 8 for k in range(-8, 8)), key=abs)
    places = []
    for reach in (1.0, 1.8, 2.8):
        for turn in turns:
            across = math.cos(outward + turn) * (reach * gap + label.width / 2)
            along = math.sin(outward + turn) * (reach * gap + label.height / 2)
            places.append(label.moved_to(x + across, y + along))
    return places


def spread_out(heights: np.ndarray, *, gap: float) -> np.ndarray:
    """The heights, moved as little as possible (least squares) to lie `gap` apart in the same order.

    By isotonic regression of the heights less their rank times the gap.

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
