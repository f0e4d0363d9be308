"""Arrows between nodes: bent where a straight one would meet its counterpart or another node, labelled in the clear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from msp_lens.figures.labels import Box, first_free, text_box
from msp_lens.figures.style import Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patches import Patch

LABEL_SIZE = 8
BENDS = (0.0, *(sign * bend for bend in (0.16, 0.22, 0.3, 0.38, 0.46, 0.56, 0.68) for sign in (1, -1)))
# Where along its arrow a label may stand, the best first.
ALONG = (0.5, 0.42, 0.58, 0.34, 0.66, 0.26, 0.74, 0.2, 0.8)
# A label more of which than this would lie on another, or on a node, is left out.
MOST_COVERED = 0.12
LOOP, LOOP_ANGLE = 0.5, 0.5


@dataclass(frozen=True)
class Arrow:
    """From a state to another.

    Attributes:
        source: Number of the node it starts at.
        target: Number of the node it leads to.
        label: Its tokens with their probabilities, a line each.
        weight: How likely it is.
    """

    source: int
    target: int
    label: str
    weight: float


@dataclass(frozen=True)
class Node:
    """A state as it is drawn.

    Attributes:
        name: Written in it.
        x: Center, in inches.
        y: Center.
        width: Its ellipse's.
        height: Its ellipse's.
        is_recurrent: Whether the process comes back to it for ever.
        is_open: Whether its arrows are not there because the graph was cut off.
    """

    name: str
    x: float
    y: float
    width: float
    height: float
    is_recurrent: bool = False
    is_open: bool = False

    @property
    def box(self) -> Box:
        """What it covers."""
        return Box(self.x, self.y, self.width, self.height)


def draw_arrow(
    axis: Axes,
    arrow: Arrow,
    nodes: Sequence[Node],
    patches: Sequence[Patch],
    arrows: Sequence[Arrow],
    taken: list[Box],
    look: Theme,
) -> bool:
    """Draw an arrow, and its label where there is room for it; add what they cover to `taken`.

    Returns:
        Whether there was room.
    """
    if arrow.source == arrow.target:
        curve = _draw_loop(axis, arrow, nodes, arrows, look)
    else:
        curve = _draw_bent(axis, arrow, nodes, patches, arrows, look)
    label = text_box(arrow.label, LABEL_SIZE)
    if arrow.source == arrow.target:
        node, tip = nodes[arrow.source], curve[len(curve) // 2]
        outward = (tip - [node.x, node.y]) / np.linalg.norm(tip - [node.x, node.y])
        reach = abs(outward[0]) * label.width / 2 + abs(outward[1]) * label.height / 2
        candidates = [label.moved_to(*(tip + outward * (step * reach))) for step in (0.6, 1.0, 1.5)]
    else:
        points = curve[[round(t * (len(curve) - 1)) for t in ALONG]]
        candidates = [label.moved_to(float(x), float(y)) for x, y in points]
    box = candidates[first_free(candidates, taken)]
    if sum(box.overlap(other) for other in taken) > MOST_COVERED * box.width * box.height:
        return False
    taken.append(box)
    axis.text(
        box.x,
        box.y,
        arrow.label,
        ha="center",
        va="center",
        fontsize=LABEL_SIZE,
        parse_math=False,
        color=look.ink,
        linespacing=1.0,
        zorder=5,
        bbox={"facecolor": look.paper, "edgecolor": "none", "pad": 0.8, "alpha": 0.9},
    )
    return True


def _strength(arrow: Arrow, look: Theme) -> dict:
    """Likely arrows are heavier."""
    return {
        "arrowstyle": "-|>",
        "mutation_scale": 11,
        "linewidth": 0.7 + 0.9 * min(abs(arrow.weight), 1.0),
        "color": look.soft,
        "alpha": 0.35 + 0.65 * min(abs(arrow.weight), 1.0) ** 0.5,
        "zorder": 2,
    }


def _draw_bent(
    axis: Axes,
    arrow: Arrow,
    nodes: Sequence[Node],
    patches: Sequence[Patch],
    arrows: Sequence[Arrow],
    look: Theme,
) -> np.ndarray:
    from matplotlib.patches import FancyArrowPatch

    start, end = (np.array([nodes[k].x, nodes[k].y]) for k in (arrow.source, arrow.target))
    has_counterpart = any((other.source, other.target) == (arrow.target, arrow.source) for other in arrows)
    # Two arrows to and fro bend the same way as seen along each, and so lie apart.
    bends = [bend for bend in BENDS if bend > 0] if has_counterpart else BENDS
    others = [node for k, node in enumerate(nodes) if k not in (arrow.source, arrow.target)]
    curves = [_bent(start, end, bend) for bend in bends]
    hits = [sum(int(_within(curve, node, room=0.06).sum()) for node in others) for curve in curves]
    chosen = hits.index(min(hits))
    axis.add_patch(
        FancyArrowPatch(
            tuple(start),
            tuple(end),
            connectionstyle=f"arc3,rad={bends[chosen]}",
            patchA=patches[arrow.source],
            patchB=patches[arrow.target],
            shrinkA=0,
            shrinkB=1,
            **_strength(arrow, look),
        )
    )
    curve = curves[chosen]
    outside = ~(_within(curve, nodes[arrow.source]) | _within(curve, nodes[arrow.target]))
    return curve[outside] if outside.sum() > 2 else curve


def _draw_loop(axis: Axes, arrow: Arrow, nodes: Sequence[Node], arrows: Sequence[Arrow], look: Theme) -> np.ndarray:
    """An arrow from a node to itself, on the side where the fewest others leave."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    node = nodes[arrow.source]
    middle = _freest_direction(arrow.source, nodes, arrows)
    ends = []
    for turn in (LOOP_ANGLE, -LOOP_ANGLE):
        across, along = math.cos(middle + turn), math.sin(middle + turn)
        rim = 1 / math.hypot(across / (node.width / 2), along / (node.height / 2))
        ends.append((np.array([node.x, node.y]) + rim * np.array([across, along]), np.array([across, along])))
    (start, leave), (end, arrive) = ends
    points = np.stack([start, start + LOOP * leave, end + LOOP * arrive, end])
    axis.add_patch(FancyArrowPatch(path=Path(points, [Path.MOVETO, *[Path.CURVE4] * 3]), **_strength(arrow, look)))
    t = np.linspace(0, 1, 41)[:, None]
    weights = [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3]
    return sum((w * p for w, p in zip(weights, points, strict=True)), start=np.zeros((41, 2)))


def _freest_direction(node: int, nodes: Sequence[Node], arrows: Sequence[Arrow]) -> float:
    """The middle of the widest gap between the directions of the node's neighbors; up if it has none."""
    beside = {arrow.target if arrow.source == node else arrow.source for arrow in arrows if node in _ends(arrow)}
    angles = sorted(math.atan2(nodes[k].y - nodes[node].y, nodes[k].x - nodes[node].x) for k in beside if k != node)
    if not angles:
        return math.pi / 2
    gaps = [
        (after - before, before) for before, after in zip(angles, [*angles[1:], angles[0] + 2 * math.pi], strict=True)
    ]
    # Of gaps alike, the upper one.
    return max((round(gap, 3), math.sin(before + gap / 2), before + gap / 2) for gap, before in gaps)[2]


def _ends(arrow: Arrow) -> tuple[int, int]:
    return arrow.source, arrow.target


def _bent(start: np.ndarray, end: np.ndarray, bend: float) -> np.ndarray:
    """Points of matplotlib's arc3: a quadratic curve whose control point lies `bend` of the distance to the right."""
    step = end - start
    control = (start + end) / 2 + bend * np.array([step[1], -step[0]])
    t = np.linspace(0, 1, 61)[:, None]
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end


def _within(curve: np.ndarray, node: Node, *, room: float = 0.0) -> np.ndarray:
    across = (curve[:, 0] - node.x) / (node.width / 2 + room)
    along = (curve[:, 1] - node.y) / (node.height / 2 + room)
    return across**2 + along**2 < 1
