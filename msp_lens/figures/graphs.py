"""Hidden Markov chains and mixed-state presentations as graphs: states as nodes, arrows `token:probability`.

A generator's states lie at distances like those in the graph. A presentation is read from left to right: from the
start through the states that are only passed through, column by column as words grow, to the recurrent ones.
Coordinates are inches, so that the room that texts need is known and no label lies on another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from msp_lens.figures.arrows import LABEL_SIZE, Arrow, Node, draw_arrow
from msp_lens.figures.labels import Box, text_box
from msp_lens.figures.layouts import layered_layout, spring_layout
from msp_lens.figures.style import Theme, ThemeName, theme_named

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# More nodes than this are a thicket.
MOST_NODES = 100
# Distances between columns, and between nodes of one; between neighbors, besides the room for labels.
ACROSS, ALONG = 1.75, 0.8
GAP, ROOM_FOR_LABELS = 1.1, 1.4
NAME_SIZE, TITLE_SIZE = 10, 12
MARGIN = 0.25


@dataclass
class _Canvas:
    """What has been drawn, so that the rest keeps clear of it."""

    axis: Axes
    look: Theme
    taken: list[Box] = field(default_factory=list)


def plot_generator(
    transitions: np.ndarray,
    *,
    states: Sequence[str],
    tokens: Sequence[str],
    is_recurrent: Sequence[bool] | None = None,
    title: str = "",
    theme: ThemeName = "light",
) -> Figure:
    """A hidden Markov chain: an arrow `token:probability` for whatever can happen in each state.

    Args:
        transitions: `[token, state, state]`, P(emit x, go to j | in i).
        states: Names of the states.
        tokens: Names of the tokens.
        is_recurrent: Which states the chain comes back to for ever; by default all.
        title: Over the figure.
        theme: `"light"` or `"dark"`.

    Raises:
        ValueError: if there are more states than can be told apart.
    """
    token, source, target = np.nonzero(np.abs(transitions) > 0)
    arrows = merged_arrows(source, target, [tokens[x] for x in token.tolist()], transitions[token, source, target])
    _check_size(len(states), "states")
    edges = [(arrow.source, arrow.target) for arrow in arrows]
    places = spring_layout(len(states), edges, gap=_gap(arrows))
    recurrent = is_recurrent if is_recurrent is not None else [True] * len(states)
    nodes = _nodes(states, places, recurrent, [False] * len(states))
    return _draw(nodes, arrows, title=title, theme=theme)


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
        is_expanded: Whether a state's edges are there; others are drawn with a broken outline.
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
    if len(transient):
        places[transient] = layered_layout(
            [depths[state] for state in transient.tolist()], _among(edges, transient), across=ACROSS, along=ALONG
        )
    left = places[transient, 0].max() + ACROSS if len(transient) else 0.0
    gap = _gap([arrow for arrow in arrows if label[arrow.source] >= 0])
    rings = []
    for k in range(int(label.max()) + 1):
        members = np.flatnonzero(label == k)
        rings.append((members, spring_layout(len(members), _among(edges, members), gap=gap)))
    total = sum(float(np.ptp(ring[:, 1])) for _, ring in rings) + gap * max(len(rings) - 1, 0)
    top = total / 2
    for members, ring in rings:
        middle = top - float(ring[:, 1].max())
        places[members] = ring + np.array([left - ring[:, 0].min(), middle])
        top -= float(np.ptp(ring[:, 1])) + gap
    is_open = [not expanded for expanded in is_expanded] if is_expanded is not None else [False] * len(names)
    return _draw(_nodes(names, places, label >= 0, is_open), arrows, title=title, theme=theme, has_start=True)


def merged_arrows(
    sources: np.ndarray, targets: np.ndarray, tokens: Sequence[str], probabilities: np.ndarray
) -> list[Arrow]:
    """One arrow for each pair of states, labelled by all tokens that lead from the one to the other."""
    lines: dict[tuple[int, int], list[str]] = {}
    weights: dict[tuple[int, int], float] = {}
    for source, target, token, probability in zip(
        sources.tolist(), targets.tolist(), tokens, probabilities.tolist(), strict=True
    ):
        pair = (source, target)
        lines.setdefault(pair, []).append(f"{token}:{probability:.3g}")
        weights[pair] = weights.get(pair, 0.0) + probability
    return [Arrow(*pair, "\n".join(lines[pair]), weights[pair]) for pair in lines]


def _gap(arrows: Sequence[Arrow]) -> float:
    """How far apart neighbors must be for the labels between them; twice the room where arrows lead to and fro."""
    pairs = {(arrow.source, arrow.target) for arrow in arrows if arrow.source != arrow.target}
    boxes = [text_box(arrow.label, LABEL_SIZE) for arrow in arrows if arrow.source != arrow.target]
    width, height = max((box.width for box in boxes), default=0.0), max((box.height for box in boxes), default=0.0)
    is_to_and_fro = any((b, a) in pairs for a, b in pairs)
    return GAP + ROOM_FOR_LABELS * (width + height if is_to_and_fro else max(width, height))


def _check_size(count: int, what: str) -> None:
    if count > MOST_NODES:
        raise ValueError(
            f"{count:,} {what} are more than a picture can tell apart (up to {MOST_NODES}): of a presentation, draw "
            "one with a lower max_states, or with a coarser tolerance."
        )


def _among(edges: Sequence[tuple[int, int]], members: np.ndarray) -> list[tuple[int, int]]:
    """The edges between these nodes, renumbered in their order."""
    place = {int(node): k for k, node in enumerate(members)}
    return [(place[a], place[b]) for a, b in edges if a in place and b in place]


def _nodes(
    names: Sequence[str], places: np.ndarray, is_recurrent: Sequence[bool] | np.ndarray, is_open: Sequence[bool]
) -> list[Node]:
    nodes = []
    for name, (x, y), recurrent, cut in zip(names, places.tolist(), is_recurrent, is_open, strict=True):
        room = text_box(name, NAME_SIZE)
        nodes.append(Node(name, x, y, max(0.46, room.width + 0.14), 0.46, bool(recurrent), bool(cut)))
    return nodes


def _draw(
    nodes: Sequence[Node], arrows: Sequence[Arrow], *, title: str, theme: ThemeName, has_start: bool = False
) -> Figure:
    from matplotlib.patches import Ellipse

    from msp_lens.figures.style import Picture

    look = theme_named(theme)
    figure = Picture(facecolor=look.paper)
    axis = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    canvas = _Canvas(axis, look, [node.box for node in nodes])
    recurrent_fill = _mixed(look.color(0), look.paper, 0.25)
    patches = []
    for node in nodes:
        patch = Ellipse(
            (node.x, node.y),
            node.width,
            node.height,
            facecolor=recurrent_fill if node.is_recurrent else look.paper,
            edgecolor=look.color(0) if node.is_recurrent else look.soft,
            linewidth=2.0 if node.is_recurrent else 1.0,
            linestyle="--" if node.is_open else "-",
            zorder=3,
        )
        axis.add_patch(patch)
        axis.text(
            node.x,
            node.y,
            node.name,
            ha="center",
            va="center",
            fontsize=NAME_SIZE,
            color=look.ink,
            zorder=4,
            parse_math=False,
        )
        patches.append(patch)
    if has_start:
        _mark_start(canvas, nodes[0], patches[0])
    ordered = sorted(arrows, key=lambda arrow: -arrow.weight)
    has_label = [draw_arrow(axis, arrow, nodes, patches, arrows, canvas.taken, look) for arrow in ordered]
    left_out = has_label.count(False)
    notes = [f"{left_out} of the {len(arrows)} arrows go without a label, for want of room"] if left_out else []
    _frame(canvas, nodes, title, notes)
    return figure


def _mark_start(canvas: _Canvas, node: Node, patch: object) -> None:
    """A short arrow from nowhere."""
    from matplotlib.patches import FancyArrowPatch, Patch

    assert isinstance(patch, Patch)
    x = node.x - node.width / 2 - 0.4
    canvas.axis.add_patch(
        FancyArrowPatch(
            (x, node.y), (node.x, node.y), patchB=patch, arrowstyle="-|>", mutation_scale=12, color=canvas.look.ink
        )
    )
    canvas.taken.append(Box(x + 0.2, node.y, 0.4, 0.1))


def _frame(canvas: _Canvas, nodes: Sequence[Node], title: str, notes: Sequence[str]) -> None:
    """Size the figure to what is in it; above it the title, below it what the outlines mean."""
    look, axis = canvas.look, canvas.axis
    kinds = []
    if any(node.is_recurrent for node in nodes) and not all(node.is_recurrent for node in nodes):
        kinds.append("bold: recurrent; thin: transient")
    if any(node.is_open for node in nodes):
        kinds.append("broken outline: not followed further")
    caption = "; ".join([*kinds, *notes])
    left = min(box.x - box.width / 2 for box in canvas.taken) - MARGIN
    right = max(box.x + box.width / 2 for box in canvas.taken) + MARGIN
    bottom = min(box.y - box.height / 2 for box in canvas.taken) - MARGIN
    top = max(box.y + box.height / 2 for box in canvas.taken) + MARGIN
    widest = max(text_box(title, TITLE_SIZE).width, text_box(caption, 8).width) + 2 * MARGIN
    spare = max(0.0, widest - (right - left)) / 2
    left, right = left - spare, right + spare
    if title:
        axis.text((left + right) / 2, top, title, ha="center", va="bottom", fontsize=TITLE_SIZE, color=look.ink)
        top += 0.35
    if caption:
        axis.text((left + right) / 2, bottom, caption, ha="center", va="top", fontsize=8, color=look.soft)
        bottom -= 0.25
    axis.set(xlim=(left, right), ylim=(bottom, top))
    axis.set_axis_off()
    axis.figure.set_size_inches(right - left, top - bottom)  # pyright: ignore[reportAttributeAccessIssue]


def _mixed(color: str, with_color: str, share: float) -> tuple[float, ...]:
    from matplotlib.colors import to_rgb

    return tuple(share * np.asarray(to_rgb(color)) + (1 - share) * np.asarray(to_rgb(with_color)))
