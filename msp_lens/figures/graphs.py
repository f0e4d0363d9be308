"""Hidden Markov chains and mixed-state presentations as graphs: states as nodes, arrows `token:probability`.

A generator's states lie at distances like those in the graph. A presentation is read from left to right: from the
start through the transient states, column by column as words grow, to the recurrent ones. Arrows bend where a straight
one would meet its counterpart or another node. Coordinates are inches, so that the room that texts take is known and no
label lies on another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from msp_lens.figures.labels import Box, first_free, text_box
from msp_lens.figures.layouts import layered_layout, spring_layout
from msp_lens.figures.style import Picture, Theme, ThemeName, theme_named, write_centered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

# Font sizes of an arrow's label and of a state's name.
LABEL_SIZE, NAME_SIZE = 8, 10


@dataclass(frozen=True)
class Arrow:
    """From one state to another.

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
    """A state as an ellipse.

    Attributes:
        name: Written in it.
        box: Its center and size, in inches.
        is_recurrent: Whether the process returns to it forever.
        is_open: Whether its arrows are missing because the graph was cut off.
    """

    name: str
    box: Box
    is_recurrent: bool
    is_open: bool

    @property
    def center(self) -> np.ndarray:
        """`[xy]`."""
        return np.array([self.box.x, self.box.y])

    def contains(self, points: np.ndarray, *, room: float = 0.0) -> np.ndarray:
        """Which of the points `[point, xy]` lie in it, or within `room` of it."""
        radii = np.array([self.box.width, self.box.height]) / 2 + room
        return (((points - self.center) / radii) ** 2).sum(axis=1) < 1


def plot_generator(
    transitions: np.ndarray,
    *,
    states: Sequence[str],
    tokens: Sequence[str],
    is_recurrent: Sequence[bool] | None = None,
    title: str = "",
    theme: ThemeName = "light",
) -> Figure:
    """A hidden Markov chain: an arrow `token:probability` for everything that can happen in each state.

    Args:
        transitions: `[token, state, state]`, P(emit x, go to j | in i).
        states: Names of the states.
        tokens: Names of the tokens.
        is_recurrent: Which states the chain returns to forever; by default all.
        title: Over the figure.
        theme: `"light"` or `"dark"`.

    Raises:
        ValueError: if there are more states than can be told apart.
    """
    _check_size(len(states), "states")
    token, source, target = np.nonzero(np.abs(transitions) > 0)
    arrows = merged_arrows(source, target, [tokens[x] for x in token.tolist()], transitions[token, source, target])
    edges = [(arrow.source, arrow.target) for arrow in arrows]
    places = spring_layout(len(states), edges, gap=_gap(arrows))
    recurrent = is_recurrent if is_recurrent is not None else [True] * len(states)
    return _draw(_nodes(states, places, recurrent), arrows, title=title, theme=theme)


def plot_presentation(
    names: Sequence[str],
    sources: Sequence[int] | np.ndarray,
    targets: Sequence[int] | np.ndarray,
    tokens: Sequence[str],
    probabilities: Sequence[float] | np.ndarray,
    *,
    depths: Sequence[int],
    classes: Sequence[int],
    is_expanded: Sequence[bool] | None = None,
    title: str = "",
    theme: ThemeName = "light",
) -> Figure:
    """A mixed-state presentation: from the start on the left, through transient states, to the recurrent ones.

    Args:
        names: The mixed states' (η with a word), the start first.
        sources: Where each edge starts.
        targets: Where it leads.
        tokens: The token it emits.
        probabilities: Its probability, given its source.
        depths: The length of a shortest word to each state: its column, unless it is recurrent.
        classes: Which recurrent class each state is in, from 0; -1 for transient ones.
        is_expanded: Whether a state's edges are given; other states are drawn with a dashed outline.
        title: Over the figure.
        theme: `"light"` or `"dark"`.

    Raises:
        ValueError: if there are more states than can be told apart.
    """
    _check_size(len(names), "mixed states")
    arrows = merged_arrows(np.asarray(sources), np.asarray(targets), tokens, np.asarray(probabilities))
    edges = [(arrow.source, arrow.target) for arrow in arrows]
    label = np.asarray(classes)
    places = np.zeros((len(names), 2))
    transient = np.flatnonzero(label < 0)
    left, across = 0.0, 1.75
    if len(transient):
        columns = [depths[state] for state in transient.tolist()]
        places[transient] = layered_layout(columns, _among(edges, transient), across=across, along=0.8)
        left = places[transient, 0].max() + across
    gap = _gap([arrow for arrow in arrows if label[arrow.source] >= 0])
    rings = []
    for k in range(int(label.max()) + 1):
        members = np.flatnonzero(label == k)
        rings.append((members, spring_layout(len(members), _among(edges, members), gap=gap)))
    top = sum(float(np.ptp(ring[:, 1])) for _, ring in rings) / 2 + gap * max(len(rings) - 1, 0) / 2
    for members, ring in rings:
        places[members] = ring + np.array([left - ring[:, 0].min(), top - ring[:, 1].max()])
        top -= float(np.ptp(ring[:, 1])) + gap
    nodes = _nodes(names, places, label >= 0, is_expanded)
    return _draw(nodes, arrows, title=title, theme=theme, has_start=True)


def merged_arrows(
    sources: np.ndarray, targets: np.ndarray, tokens: Sequence[str], probabilities: np.ndarray
) -> list[Arrow]:
    """One arrow for each pair of states, labeled by all tokens that lead from one to the other."""
    found: dict[tuple[int, int], list[tuple[str, float]]] = {}
    for *pair, token, probability in zip(
        sources.tolist(), targets.tolist(), tokens, probabilities.tolist(), strict=True
    ):
        found.setdefault((pair[0], pair[1]), []).append((token, probability))
    return [
        Arrow(*pair, "\n".join(f"{token}:{p:.3g}" for token, p in lines), sum(p for _, p in lines))
        for pair, lines in found.items()
    ]


def _check_size(count: int, what: str) -> None:
    most = 100
    if count > most:
        raise ValueError(
            f"{count:,} {what} are more than a picture can tell apart (up to {most}): of a presentation, draw one "
            "with a lower max_states, or with a coarser tolerance."
        )


def _gap(arrows: Sequence[Arrow]) -> float:
    """How far apart neighbors must be for the labels between them; more where arrows run both ways."""
    pairs = {(arrow.source, arrow.target) for arrow in arrows if arrow.source != arrow.target}
    boxes = [text_box(arrow.label, LABEL_SIZE) for arrow in arrows if arrow.source != arrow.target]
    width, height = max((box.width for box in boxes), default=0.0), max((box.height for box in boxes), default=0.0)
    is_two_way = any((b, a) in pairs for a, b in pairs)
    return 1.1 + 1.4 * (width + height if is_two_way else max(width, height))


def _among(edges: Sequence[tuple[int, int]], members: np.ndarray) -> list[tuple[int, int]]:
    """The edges between these nodes, renumbered in their order."""
    place = {int(node): k for k, node in enumerate(members)}
    return [(place[a], place[b]) for a, b in edges if a in place and b in place]


def _nodes(
    names: Sequence[str],
    places: np.ndarray,
    is_recurrent: Sequence[bool] | np.ndarray,
    is_expanded: Sequence[bool] | None = None,
) -> list[Node]:
    expanded = is_expanded if is_expanded is not None else [True] * len(names)
    height = 0.46
    return [
        Node(name, Box(x, y, max(height, text_box(name, NAME_SIZE).width + 0.14), height), bool(recurrent), not whole)
        for name, (x, y), recurrent, whole in zip(names, places.tolist(), is_recurrent, expanded, strict=True)
    ]


def _draw(
    nodes: Sequence[Node], arrows: Sequence[Arrow], *, title: str, theme: ThemeName, has_start: bool = False
) -> Figure:
    look = theme_named(theme)
    figure = Picture(facecolor=look.paper)
    drawing = _Drawing(figure.add_axes((0.0, 0.0, 1.0, 1.0)), nodes, arrows, look)
    if has_start:
        drawing.mark_start()
    has_label = [drawing.draw_arrow(arrow) for arrow in sorted(arrows, key=lambda arrow: -arrow.weight)]
    kinds = []
    if len({node.is_recurrent for node in nodes}) == 2:
        kinds.append("bold: recurrent; thin: transient")
    if any(node.is_open for node in nodes):
        kinds.append("dashed outline: arrows not computed")
    if missing := has_label.count(False):
        kinds.append(f"no room for labels: {missing} of {len(arrows)} arrows")
    figure.set_size_inches(*drawing.frame(title, "; ".join(kinds)))
    return figure


class _Drawing:
    """A graph while it is drawn, with what is covered already, so that labels keep clear of it."""

    def __init__(self, axis: Axes, nodes: Sequence[Node], arrows: Sequence[Arrow], look: Theme) -> None:
        self.axis, self.nodes, self.arrows, self.look = axis, nodes, arrows, look
        self.taken = [node.box for node in nodes]
        self.patches = [self._draw_node(node) for node in nodes]

    def _draw_node(self, node: Node) -> Patch:
        from matplotlib.colors import to_rgb
        from matplotlib.patches import Ellipse

        look, box = self.look, node.box
        main, paper = np.asarray(to_rgb(look.color(0))), np.asarray(to_rgb(look.paper))
        patch = Ellipse(
            (box.x, box.y),
            box.width,
            box.height,
            facecolor=tuple(0.25 * main + 0.75 * paper) if node.is_recurrent else look.paper,
            edgecolor=look.color(0) if node.is_recurrent else look.soft,
            linewidth=2.0 if node.is_recurrent else 1.0,
            linestyle="--" if node.is_open else "-",
            zorder=3,
        )
        self.axis.add_patch(patch)
        write_centered(self.axis, (box.x, box.y), node.name, size=NAME_SIZE, color=look.ink, zorder=4)
        return patch

    def mark_start(self) -> None:
        """Point to the first node with a short arrow that starts nowhere."""
        from matplotlib.patches import FancyArrowPatch

        box = self.nodes[0].box
        x = box.x - box.width / 2 - 0.4
        style = {"arrowstyle": "-|>", "mutation_scale": 12, "color": self.look.ink}
        self.axis.add_patch(FancyArrowPatch((x, box.y), (box.x, box.y), patchB=self.patches[0], **style))
        self.taken.append(Box(x + 0.2, box.y, 0.4, 0.1))

    def draw_arrow(self, arrow: Arrow) -> bool:
        """Draw an arrow, and its label unless there is no room for it.

        Returns:
            Whether there was room.
        """
        label = text_box(arrow.label, LABEL_SIZE)
        if arrow.source == arrow.target:
            curve = self._draw_loop(arrow)
            node, tip = self.nodes[arrow.source], curve[len(curve) // 2]
            outward = (tip - node.center) / np.linalg.norm(tip - node.center)
            reach = abs(outward[0]) * label.width / 2 + abs(outward[1]) * label.height / 2
            candidates = [label.moved_to(*(tip + outward * (step * reach))) for step in (0.6, 1.0, 1.5)]
        else:
            curve = self._draw_bent(arrow)
            # Where along its arrow a label may stand, the best first.
            along = (0.5, 0.42, 0.58, 0.34, 0.66, 0.26, 0.74, 0.2, 0.8)
            points = curve[[round(t * (len(curve) - 1)) for t in along]]
            candidates = [label.moved_to(float(x), float(y)) for x, y in points]
        box = candidates[first_free(candidates, self.taken)]
        # A label that would lie on others, or on nodes, with more than this share of it is omitted.
        if sum(box.overlap(other) for other in self.taken) > 0.12 * box.width * box.height:
            return False
        self.taken.append(box)
        behind = {"facecolor": self.look.paper, "edgecolor": "none", "pad": 0.8, "alpha": 0.9}
        more = {"linespacing": 1.0, "zorder": 5, "bbox": behind}
        write_centered(self.axis, (box.x, box.y), arrow.label, size=LABEL_SIZE, color=self.look.ink, **more)
        return True

    def _style(self, arrow: Arrow) -> dict[str, Any]:
        """Likely arrows are heavier."""
        strength = min(abs(arrow.weight), 1.0)
        return {
            "arrowstyle": "-|>",
            "mutation_scale": 11,
            "linewidth": 0.7 + 0.9 * strength,
            "color": self.look.soft,
            "alpha": 0.35 + 0.65 * strength**0.5,
            "zorder": 2,
        }

    def _draw_bent(self, arrow: Arrow) -> np.ndarray:
        """An arrow between two nodes, as straight as it can be without meeting other nodes; its points outside both."""
        from matplotlib.bezier import BezierSegment
        from matplotlib.patches import FancyArrowPatch

        source, target = self.nodes[arrow.source], self.nodes[arrow.target]
        bends = [0.0, *(sign * bend for bend in (0.16, 0.22, 0.3, 0.38, 0.46, 0.56, 0.68) for sign in (1, -1))]
        if any((other.source, other.target) == (arrow.target, arrow.source) for other in self.arrows):
            # Two opposite arrows bend the same way as seen along each, and so lie apart.
            bends = [bend for bend in bends if bend > 0]
        # Matplotlib's arc3: a quadratic curve whose control point lies `bend` of the distance to the right.
        step, middle = target.center - source.center, (source.center + target.center) / 2
        right = np.array([step[1], -step[0]])
        times = np.linspace(0, 1, 61)
        curves = [BezierSegment([source.center, middle + bend * right, target.center])(times) for bend in bends]
        others = [node for node in self.nodes if node is not source and node is not target]
        hits = [sum(int(node.contains(curve, room=0.06).sum()) for node in others) for curve in curves]
        chosen = hits.index(min(hits))
        self.axis.add_patch(
            FancyArrowPatch(
                tuple(source.center),
                tuple(target.center),
                connectionstyle=f"arc3,rad={bends[chosen]}",
                patchA=self.patches[arrow.source],
                patchB=self.patches[arrow.target],
                shrinkA=0,
                shrinkB=1,
                **self._style(arrow),
            )
        )
        curve = curves[chosen]
        outside = ~(source.contains(curve) | target.contains(curve))
        return curve[outside] if outside.sum() > 2 else curve

    def _draw_loop(self, arrow: Arrow) -> np.ndarray:
        """An arrow from a node to itself, on the side where the fewest others leave; its points."""
        from matplotlib.bezier import BezierSegment
        from matplotlib.patches import FancyArrowPatch
        from matplotlib.path import Path

        node = self.nodes[arrow.source]
        middle, reach = self._freest_direction(arrow.source), 0.5
        ends = []
        for angle in (middle + 0.5, middle - 0.5):
            direction = np.array([math.cos(angle), math.sin(angle)])
            rim = 1 / np.linalg.norm(direction / (np.array([node.box.width, node.box.height]) / 2))
            ends.append((node.center + rim * direction, direction))
        (start, leave), (end, arrive) = ends
        points = np.stack([start, start + reach * leave, end + reach * arrive, end])
        path = Path(points, [Path.MOVETO, *[Path.CURVE4] * 3])
        self.axis.add_patch(FancyArrowPatch(path=path, **self._style(arrow)))
        return BezierSegment(points)(np.linspace(0, 1, 41))

    def _freest_direction(self, index: int) -> float:
        """The middle of the widest gap between the directions of the node's neighbors; up if it has none."""
        node = self.nodes[index]
        neighbors = {arrow.target for arrow in self.arrows if arrow.source == index}
        neighbors |= {arrow.source for arrow in self.arrows if arrow.target == index}
        ways = [self.nodes[k].center - node.center for k in neighbors if k != index]
        angles = sorted(math.atan2(y, x) for x, y in ways)
        if not angles:
            return math.pi / 2
        following = [*angles[1:], angles[0] + 2 * math.pi]
        gaps = [(after - before, before) for before, after in zip(angles, following, strict=True)]
        # Of equal gaps, the upper one.
        return max((round(gap, 3), math.sin(before + gap / 2), before + gap / 2) for gap, before in gaps)[2]

    def frame(self, title: str, caption: str) -> tuple[float, float]:
        """Write title and caption, and fit the axes to what is drawn; its width and height in inches."""
        margin, title_size, caption_size = 0.25, 12, 8
        left = min(box.x - box.width / 2 for box in self.taken) - margin
        right = max(box.x + box.width / 2 for box in self.taken) + margin
        bottom = min(box.y - box.height / 2 for box in self.taken) - margin
        top = max(box.y + box.height / 2 for box in self.taken) + margin
        widest = max(text_box(title, title_size).width, text_box(caption, caption_size).width) + 2 * margin
        spare = max(0.0, widest - (right - left)) / 2
        left, right = left - spare, right + spare
        middle = (left + right) / 2
        if title:
            self.axis.text(middle, top, title, ha="center", va="bottom", fontsize=title_size, color=self.look.ink)
            top += 0.35
        if caption:
            self.axis.text(middle, bottom, caption, ha="center", va="top", fontsize=caption_size, color=self.look.soft)
            bottom -= 0.25
        self.axis.set(xlim=(left, right), ylim=(bottom, top))
        self.axis.set_axis_off()
        return right - left, top - bottom
