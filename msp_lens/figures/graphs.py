"""Hidden Markov chains and mixed-state presentations as graphs: states as nodes, arrows `token:probability`.

A generator's states lie at distances like those in the graph. A presentation reads from left to right: from the start
through the transient states, a column for each length of word, to the recurrent ones. Coordinates are inches, because
labels can keep clear of each other only where the size of text is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.bezier import BezierSegment
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, FancyArrowPatch
from matplotlib.path import Path

from msp_lens._checks import checked
from msp_lens.figures.placement import Box, first_free, layered_layout, spring_layout, text_box
from msp_lens.figures.style import (
    LONGEST_LINE,
    LONGEST_NAME,
    THEMES,
    Picture,
    Theme,
    ThemeName,
    plain_text,
    shortened,
    write_centered,
)

# Font sizes of an arrow's label and of a state's name.
LABEL_SIZE, NAME_SIZE = 8, 10
# With more arrows than this, labels on them would hide each other. Up to so many tokens are then told apart by color;
# of more, only arrows at least so probable are labeled.
MOST_LABELED, MOST_COLORED, LIKELY = 40, 4, 0.25


@dataclass(frozen=True)
class Arrow:
    """From node `source` to node `target`, of probability `weight`; its label has a line for each token."""

    source: int
    target: int
    label: str
    weight: float
    tokens: tuple[str, ...]


@checked
def plot_generator(
    transitions: np.ndarray,
    *,
    states: Sequence[str],
    tokens: Sequence[str],
    is_recurrent: Sequence[bool],
    title: str = "",
    theme: ThemeName = "light",
) -> Figure:
    """A hidden Markov chain: an arrow `token:probability` for everything that can happen in each state.

    `transitions` is `[token, state, state]`, P(emit x, go to j | in i); recurrent states are drawn bold. Where there
    are too many arrows for labels, few tokens have a color each; of many, only probable arrows are labeled.

    Raises:
        ValueError: if there are more states than can be told apart.
    """
    _check_size(len(states), "states")
    token, source, target = np.nonzero(np.abs(transitions) > 0)
    arrows = _merged(source, target, [tokens[x] for x in token.tolist()], transitions[token, source, target])
    # Where nearly every state leads to every other, the probable arrows give the graph its shape.
    likely = [arrow for arrow in arrows if arrow.weight >= LIKELY]
    shaping = likely if len(arrows) > MOST_LABELED and len(likely) >= len(states) else arrows
    places = spring_layout(len(states), _edges(shaping), gap=_gap(shaping))
    return _Drawing(states, places, is_recurrent, arrows, THEMES[theme]).finished(title)


@checked
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
        is_expanded: Whether a state's edges are given (default: all are); other states get a dashed outline.
        title: Over the figure.
        theme: `"light"` or `"dark"`.

    Raises:
        ValueError: if there are more states than can be told apart.
    """
    _check_size(len(names), "mixed states")
    arrows = _merged(np.asarray(sources), np.asarray(targets), tokens, np.asarray(probabilities))
    label, places = np.asarray(classes), np.zeros((len(names), 2))
    transient = np.flatnonzero(label < 0)
    left, across = 0.0, 1.75
    if len(transient):
        columns = [depths[state] for state in transient.tolist()]
        places[transient] = layered_layout(columns, _edges(arrows, transient), across=across, along=0.8)
        left = places[transient, 0].max() + across
    gap = _gap([arrow for arrow in arrows if label[arrow.source] >= 0])
    groups = [np.flatnonzero(label == k) for k in range(int(label.max()) + 1)]
    rings = [spring_layout(len(members), _edges(arrows, members), gap=gap) for members in groups]
    top = sum(float(np.ptp(ring[:, 1])) for ring in rings) / 2 + gap * max(len(rings) - 1, 0) / 2
    for members, ring in zip(groups, rings, strict=True):
        places[members] = ring + np.array([left - ring[:, 0].min(), top - ring[:, 1].max()])
        top -= float(np.ptp(ring[:, 1])) + gap
    drawing = _Drawing(names, places, label >= 0, arrows, THEMES[theme], is_expanded)
    drawing.mark_start()
    return drawing.finished(title)


def _check_size(count: int, what: str) -> None:
    most = 100
    if count > most:
        raise ValueError(
            f"{count:,} {what} are more than a picture can tell apart (up to {most}): of a presentation, draw one "
            "with a lower max_states, or with a coarser tolerance."
        )


def _merged(sources: np.ndarray, targets: np.ndarray, tokens: Sequence[str], probabilities: np.ndarray) -> list[Arrow]:
    """One arrow for each pair of states, labeled by all tokens that lead from one to the other."""
    found: dict[tuple[int, int], list[tuple[str, float]]] = {}
    edges = zip(sources.tolist(), targets.tolist(), tokens, probabilities.tolist(), strict=True)
    for a, b, token, probability in edges:
        found.setdefault((a, b), []).append((token, probability))
    return [
        Arrow(
            *pair,
            "\n".join(f"{shortened(token, LONGEST_NAME)}:{p:.3g}" for token, p in lines),
            sum(p for _, p in lines),
            tuple(token for token, _ in lines),
        )
        for pair, lines in found.items()
    ]


def _edges(arrows: Sequence[Arrow], members: np.ndarray | None = None) -> list[tuple[int, int]]:
    """The arrows' pairs of nodes; of these members alone, if given, renumbered in their order."""
    pairs = [(arrow.source, arrow.target) for arrow in arrows]
    if members is None:
        return pairs
    place = {int(node): k for k, node in enumerate(members)}
    return [(place[a], place[b]) for a, b in pairs if a in place and b in place]


def _gap(arrows: Sequence[Arrow]) -> float:
    """How far apart neighbors must be for the labels between them; more where arrows run both ways."""
    between = [arrow for arrow in arrows if arrow.source != arrow.target]
    boxes, pairs = [text_box(arrow.label, LABEL_SIZE) for arrow in between], _edges(between)
    width, height = max((box.width for box in boxes), default=0.0), max((box.height for box in boxes), default=0.0)
    is_two_way = any((b, a) in pairs for a, b in pairs)
    return 1.1 + 1.4 * (width + height if is_two_way else max(width, height))


class _Drawing:
    """A graph while it is drawn, with the boxes taken so far, which labels keep clear of."""

    def __init__(
        self,
        names: Sequence[str],
        places: np.ndarray,
        is_recurrent: Sequence[bool] | np.ndarray,
        arrows: Sequence[Arrow],
        look: Theme,
        is_expanded: Sequence[bool] | None = None,
    ) -> None:
        self.figure, self.arrows, self.look = Picture(facecolor=look.paper), arrows, look
        self.axis = self.figure.add_axes((0.0, 0.0, 1.0, 1.0))
        expanded = [True] * len(names) if is_expanded is None else is_expanded
        kinds = {"bold: recurrent; thin: transient": len(set(map(bool, is_recurrent))) == 2}
        kinds["dashed outline: arrows not computed"] = not all(expanded)
        self.legend = [text for text, is_needed in kinds.items() if is_needed]
        every = list(dict.fromkeys(token for arrow in arrows for token in arrow.tokens))
        self.is_crowded = len(arrows) > MOST_LABELED
        is_colored = self.is_crowded and len(every) <= MOST_COLORED
        self.token_colors = {token: look.color(index) for index, token in enumerate(every)} if is_colored else {}
        main, paper = np.asarray(to_rgb(look.color(0))), np.asarray(to_rgb(look.paper))
        bold = {"facecolor": tuple(0.25 * main + 0.75 * paper), "edgecolor": look.color(0), "linewidth": 2.0}
        thin = {"facecolor": look.paper, "edgecolor": look.soft, "linewidth": 1.0}
        self.nodes, self.patches, height = [], [], 0.46
        names = [shortened(name, LONGEST_NAME) for name in names]
        for name, (x, y), recurrent, whole in zip(names, places.tolist(), is_recurrent, expanded, strict=True):
            box = Box(x, y, max(height, text_box(name, NAME_SIZE).width + 0.14), height)
            style: Any = (bold if recurrent else thin) | {"linestyle": "-" if whole else "--"}
            self.nodes.append(box)
            self.patches.append(self.axis.add_patch(Ellipse((x, y), box.width, height, zorder=3, **style)))
            write_centered(self.axis, (x, y), name, size=NAME_SIZE, color=look.ink, zorder=4)
        self.taken = list(self.nodes)

    def mark_start(self) -> None:
        """Point to the first node with a short arrow that starts nowhere."""
        box = self.nodes[0]
        x = box.x - box.width / 2 - 0.4
        style = {"arrowstyle": "-|>", "mutation_scale": 12, "color": self.look.ink}
        self.axis.add_patch(FancyArrowPatch((x, box.y), (box.x, box.y), patchB=self.patches[0], **style))
        self.taken.append(Box(x + 0.2, box.y, 0.4, 0.1))

    def finished(self, title: str) -> Picture:
        """Draw the arrows, likely ones first, then title and caption; the figure is as large as what it shows."""
        has_label = [self._draw_arrow(arrow) for arrow in sorted(self.arrows, key=lambda arrow: -arrow.weight)]
        missing = has_label.count(False)
        if self.token_colors:
            self.legend.append("the wider an arrow, the more probable")
        elif self.is_crowded:
            self.legend.append(f"{missing} arrows without labels: those of probability below {LIKELY:g}")
        elif missing:
            self.legend.append(f"no room for labels: {missing} of {len(has_label)} arrows")
        caption, title = "; ".join(self.legend), shortened(title, LONGEST_LINE)
        margin, title_size, caption_size = 0.25, 12, 8
        ends = np.array([(box.x, box.y, box.width / 2, box.height / 2) for box in self.taken])
        left, bottom = (ends[:, :2] - ends[:, 2:]).min(axis=0) - margin
        right, top = (ends[:, :2] + ends[:, 2:]).max(axis=0) + margin
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
        if self.token_colors:
            bottom -= 0.3
            self._name_colors(middle, bottom + 0.2)
        self.axis.set(xlim=(left, right), ylim=(bottom, top))
        self.axis.set_axis_off()
        self.figure.set_size_inches(right - left, top - bottom)
        plain_text(self.figure)
        return self.figure

    def _name_colors(self, middle: float, y: float) -> None:
        """The tokens in their colors, in a line below the graph."""
        colors = self.token_colors | ({"any of these": self.look.ink} if self._has_shared() else {})
        names = [f"→ {shortened(token, LONGEST_NAME)}" for token in colors]
        widths = [text_box(name, NAME_SIZE).width + 0.3 for name in names]
        x = middle - sum(widths) / 2
        for name, width, color in zip(names, widths, colors.values(), strict=True):
            write_centered(self.axis, (x + width / 2, y), name, size=NAME_SIZE, color=color)
            x += width

    def _has_shared(self) -> bool:
        return any(len(arrow.tokens) > 1 for arrow in self.arrows)

    def _draw_arrow(self, arrow: Arrow) -> bool:
        """Draw an arrow, and its label unless there is no room for it; whether there was."""
        label = text_box(arrow.label, LABEL_SIZE)
        strength = min(abs(arrow.weight), 1.0)
        style = {"arrowstyle": "-|>", "mutation_scale": 11, "zorder": 2, "color": self.look.soft}
        style |= {"linewidth": 0.7 + 0.9 * strength, "alpha": 0.35 + 0.65 * strength**0.5}
        is_labeled = not self.is_crowded or (not self.token_colors and arrow.weight >= LIKELY)
        if self.token_colors:
            is_shared = len(arrow.tokens) > 1
            style["color"] = self.look.ink if is_shared else self.token_colors[arrow.tokens[0]]
        elif not is_labeled:
            style |= {"alpha": 0.15 + 0.35 * strength, "zorder": 1}
        if arrow.source == arrow.target:
            curve = self._draw_loop(arrow.source, style)
            node, tip = self.nodes[arrow.source], curve[len(curve) // 2]
            outward = (tip - node.center) / np.linalg.norm(tip - node.center)
            reach = abs(outward[0]) * label.width / 2 + abs(outward[1]) * label.height / 2
            points = np.stack([tip + outward * (step * reach) for step in (0.6, 1.0, 1.5)])
        else:
            curve = self._draw_bent(arrow, style)
            # Where along its arrow a label may stand, the best first.
            along = (0.5, 0.42, 0.58, 0.34, 0.66, 0.26, 0.74, 0.2, 0.8)
            points = curve[[round(t * (len(curve) - 1)) for t in along]]
        if not is_labeled:
            return False
        candidates = [label.moved_to(x, y) for x, y in points.tolist()]
        box = candidates[first_free(candidates, self.taken)]
        # A label is omitted if more than this share of it would lie on others or on nodes.
        if sum(box.overlap(other) for other in self.taken) > 0.12 * box.width * box.height:
            return False
        self.taken.append(box)
        behind = {"facecolor": self.look.paper, "edgecolor": "none", "pad": 0.8, "alpha": 0.9}
        more = {"linespacing": 1.0, "zorder": 5, "bbox": behind}
        write_centered(self.axis, (box.x, box.y), arrow.label, size=LABEL_SIZE, color=self.look.ink, **more)
        return True

    def _draw_bent(self, arrow: Arrow, style: dict[str, Any]) -> np.ndarray:
        """An arrow between two nodes, as straight as it can be without meeting other nodes; its points outside both."""
        source, target = self.nodes[arrow.source], self.nodes[arrow.target]
        bends = [0.0, *(sign * bend for bend in (0.16, 0.22, 0.3, 0.38, 0.46, 0.56, 0.68) for sign in (1, -1))]
        if (arrow.target, arrow.source) in _edges(self.arrows):
            # Two opposite arrows each bend to their own right, and so lie apart.
            bends = [bend for bend in bends if bend > 0]
        # Matplotlib's arc3: a quadratic curve whose control point lies `bend` of the distance to the right.
        step, middle = target.center - source.center, (source.center + target.center) / 2
        right = np.array([step[1], -step[0]])
        times = np.linspace(0, 1, 61)
        curves = [BezierSegment([source.center, middle + bend * right, target.center])(times) for bend in bends]
        others = [node for node in self.nodes if node is not source and node is not target]
        hits = [sum(int(_inside(node, curve, room=0.06).sum()) for node in others) for curve in curves]
        curve, bend = curves[hits.index(min(hits))], bends[hits.index(min(hits))]
        style = style | {"patchA": self.patches[arrow.source], "patchB": self.patches[arrow.target], "shrinkA": 0}
        ends = (source.x, source.y), (target.x, target.y)
        self.axis.add_patch(FancyArrowPatch(*ends, connectionstyle=f"arc3,rad={bend}", shrinkB=1, **style))
        outside = ~(_inside(source, curve) | _inside(target, curve))
        return curve[outside] if outside.sum() > 2 else curve

    def _draw_loop(self, index: int, style: dict[str, Any]) -> np.ndarray:
        """An arrow from a node to itself, on the side where the fewest others leave; its points."""
        node, middle, reach = self.nodes[index], self._freest_direction(index), 0.5
        ends = []
        for angle in (middle + 0.5, middle - 0.5):
            direction = np.array([math.cos(angle), math.sin(angle)])
            rim = 1 / np.linalg.norm(direction / (np.array([node.width, node.height]) / 2))
            ends.append((node.center + rim * direction, direction))
        (start, leave), (end, arrive) = ends
        points = np.stack([start, start + reach * leave, end + reach * arrive, end])
        path = Path(points, [Path.MOVETO, *[Path.CURVE4] * 3])
        self.axis.add_patch(FancyArrowPatch(path=path, **style))
        return BezierSegment(points)(np.linspace(0, 1, 41))

    def _freest_direction(self, index: int) -> float:
        """The middle of the widest gap between the directions of the node's neighbors; up if it has none."""
        neighbors = {node for edge in _edges(self.arrows) if index in edge for node in edge} - {index}
        ways = [self.nodes[k].center - self.nodes[index].center for k in neighbors]
        angles = sorted(math.atan2(y, x) for x, y in ways)
        if not angles:
            return math.pi / 2
        following = [*angles[1:], angles[0] + 2 * math.pi]
        gaps = [(after - before, before) for before, after in zip(angles, following, strict=True)]
        # Of equal gaps, the upper one.
        return max((round(gap, 3), math.sin(before + gap / 2), before + gap / 2) for gap, before in gaps)[2]


def _inside(box: Box, points: np.ndarray, *, room: float = 0.0) -> np.ndarray:
    """Which of the points `[point, xy]` lie in the ellipse of this size, or within `room` of it."""
    radii = np.array([box.width, box.height]) / 2 + room
    return (((points - box.center) / radii) ** 2).sum(axis=1) < 1
