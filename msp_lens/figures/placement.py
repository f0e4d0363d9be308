"""Where things go: labels that hide nothing, and the nodes of a graph near those they lead to, or in columns."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import networkx

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


def spring_layout(n_nodes: int, edges: Sequence[tuple[int, int]], *, gap: float) -> np.ndarray:
    """Places `[node, xy]` at distances like those in the graph, neighbors about `gap` apart; centered.

    By Kamada & Kawai's energy, from the start that leads to the fewest crossings; components stand side by side.
    """
    import networkx

    graph = networkx.Graph()
    graph.add_nodes_from(range(n_nodes))
    graph.add_edges_from((a, b) for a, b in edges if a != b)
    places, left = np.zeros((n_nodes, 2)), 0.0
    for part in networkx.connected_components(graph):
        members = sorted(part)
        found = _part_layout(graph.subgraph(members), gap)
        places[members] = found + np.array([left - found[:, 0].min(), 0.0])
        left += float(np.ptp(found[:, 0])) + gap
    return places - (places.max(axis=0) + places.min(axis=0)) / 2


def _part_layout(graph: networkx.Graph, gap: float) -> np.ndarray:
    """Places of a connected graph's nodes in order of their numbers: the first on top, or in the middle."""
    import networkx

    members, n_nodes = sorted(graph), len(graph)
    if n_nodes <= 2:
        return gap * np.array([[float(k), 0.0] for k in range(n_nodes)])
    generator, candidates = np.random.default_rng(0), []
    angles = 2 * math.pi * np.arange(n_nodes) / n_nodes
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    # Small graphs are laid out from several starts.
    for attempt in range(16 if n_nodes <= 12 else 1):
        order = list(members) if attempt == 0 else generator.permutation(members).tolist()
        found = networkx.kamada_kawai_layout(graph, pos=dict(zip(order, ring, strict=True)))
        candidates.append(np.array([found[node] for node in members]))
    number = {node: k for k, node in enumerate(members)}
    lines = [(number[a], number[b]) for a, b in graph.edges]
    places = min(candidates, key=lambda each: crossings(each, lines))
    places = places - places.mean(axis=0)
    upper = 0 if np.linalg.norm(places[0]) > 0.1 else 1
    angle = math.pi / 2 - math.atan2(places[upper, 1], places[upper, 0])
    sine, cosine = math.sin(angle), math.cos(angle)
    places = places @ np.array([[cosine, sine], [-sine, cosine]])
    if np.ptp(places[:, 1]) > 1.3 * np.ptp(places[:, 0]):
        places = np.stack([-places[:, 1], places[:, 0]], axis=1)
    apart = np.linalg.norm(places[:, None] - places[None], axis=2) + np.diag(np.full(n_nodes, np.inf))
    nearest = apart.min(axis=1)
    # No two nodes are nearer than .8 inch.
    return places * max(gap / float(np.median(nearest)), 0.8 / max(float(nearest.min()), 1e-3))


def crossings(places: np.ndarray, edges: Sequence[tuple[int, int]]) -> int:
    """How many pairs of straight edges cross or touch; pairs that share a node do not count.

    Example:
        >>> square = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
        >>> crossings(square, [(0, 2), (1, 3)]), crossings(square, [(0, 1), (2, 3)])
        (1, 0)
    """

    def side(a: int, b: int, c: int) -> float:
        (x, y), (u, v) = places[b] - places[a], places[c] - places[a]
        return float(np.sign(round(x * v - y * u, 6)))

    return sum(
        side(a, b, c) * side(a, b, d) <= 0 and side(c, d, a) * side(c, d, b) <= 0
        for (a, b), (c, d) in itertools.combinations(edges, 2)
        if len({a, b, c, d}) == 4
    )


def layered_layout(
    columns: Sequence[int], edges: Sequence[tuple[int, int]], *, across: float, along: float
) -> np.ndarray:
    """Places `[node, xy]` in columns (0 is leftmost) `across` apart, with at least `along` between a column's nodes.

    In sweeps to and fro, each column's nodes move to the mean height of their neighbors in other columns (Sugiyama's
    barycenters) and are spread out, which leaves few crossings. Centered in height.
    """
    column = np.asarray(columns)
    neighbors: list[list[int]] = [[] for _ in columns]
    for a, b in edges:
        if column[a] != column[b]:
            neighbors[a].append(b)
            neighbors[b].append(a)
    order = [list(np.flatnonzero(column == k)) for k in range(int(column.max(initial=-1)) + 1)]
    height = np.zeros(len(column))
    for members in order:
        height[members] = along * ((len(members) - 1) / 2 - np.arange(len(members)))
    for sweep in range(8):
        forth = sweep % 2 == 0
        for k in range(len(order)) if forth else reversed(range(len(order))):
            seen = [[n for n in neighbors[node] if (column[n] < k) == forth] for node in order[k]]
            pull = [float(np.mean(height[b])) if b else height[n] for n, b in zip(order[k], seen, strict=True)]
            # Of nodes drawn to the same height, the first goes on top.
            height[order[k][::-1]] = spread_out(np.array(pull[::-1]), gap=along)
            order[k] = sorted(order[k], key=lambda node: -height[node])
    height -= (height.max(initial=0.0) + height.min(initial=0.0)) / 2
    return np.stack([across * column, height], axis=1).astype(float)
