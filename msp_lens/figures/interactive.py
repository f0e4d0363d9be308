"""The simplex to explore: the picture of all beliefs, and the weightiest of them with their words on hover.

Plotly figures: they show in a notebook, are saved by `write_html`, and need no browser to be made. Three states lie on
the same image as in `plot_beliefs`; four in a tetrahedron that can be turned.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from msp_lens.figures.density import density_image, png
from msp_lens.figures.projections import (
    TETRAHEDRON,
    Projection,
    belief_colors,
    bounds_of,
    lifted,
    projection,
    state_places,
)
from msp_lens.figures.style import Theme, ThemeName, theme_named

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# More than this many points make a browser sluggish; the image shows the others.
MAX_POINTS = 4_000
# Size in a page, in its pixels: of two panels side by side, and of more.
WIDE_PANEL, PANEL, COLUMNS = 460, 350, 3
PIXELS = 700
# A belief over more states than this is told by its likeliest ones.
STATES_TOLD = 6


def explore_beliefs(
    true: Float[Tensor, "prefix state"],
    represented: Mapping[str, Float[Tensor, "prefix state"]],
    words: Int[Tensor, "prefix pos"],
    positions: Int[Tensor, "prefix"],
    *,
    weights: Float[Tensor, "prefix"] | None = None,
    states: Sequence[str] | None = None,
    tokens: Sequence[str] | None = None,
    max_points: int = MAX_POINTS,
    theme: ThemeName = "light",
) -> Figure:
    """True beliefs beside represented ones, to be explored: hover shows a prefix, its true belief and the one read.

    Args:
        true: The optimal observer's beliefs.
        represented: Panel title to the beliefs read in a network, row by row those of `true`.
        words: A word that begins with each prefix.
        positions: The position of each prefix's last token.
        weights: How much each prefix counts; all alike by default.
        states: Names of the states.
        tokens: Names of the tokens.
        max_points: How many prefixes can be hovered over, the weightiest; the image shows all of them.
        theme: `"light"` or `"dark"`.

    Raises:
        ValueError: if `max_points` is less than 1.
    """
    from plotly import graph_objects
    from plotly.subplots import make_subplots

    if max_points < 1:
        raise ValueError(f"max_points={max_points}: at least 1 point must be there to hover over.")
    look = theme_named(theme)
    n_states = true.shape[1]
    names = list(states) if states is not None else [str(i) for i in range(n_states)]
    symbols = list(tokens) if tokens is not None else [str(i) for i in range(int(words.max()) + 1)]
    counts = torch.ones(len(true), dtype=torch.float64) if weights is None else weights.double()
    colors = lifted(belief_colors(true), look)
    kept = counts.argsort(descending=True, stable=True)[:max_points].sort().values
    panels = {f"True beliefs: {len(true):,} prefixes": true} | dict(represented)
    prefixes = [
        _spelled(word[: position + 1], symbols)
        for word, position in zip(words[kept].tolist(), positions[kept].tolist(), strict=True)
    ]
    told = [_told(belief, names) for belief in true[kept].tolist()]
    marks = {"size": 5, "color": [_rgb(color) for color in colors[kept].tolist()]}

    is_solid = n_states == 4
    across = min(COLUMNS, len(panels))
    down = -(-len(panels) // across)
    figure = make_subplots(
        rows=down,
        cols=across,
        subplot_titles=list(panels),
        specs=[[{"type": "scene" if is_solid else "xy"}] * across] * down,
        horizontal_spacing=0.02,
        vertical_spacing=0.12 / down,
    )
    project = projection(true, counts)
    placed = [project(beliefs) for beliefs in panels.values()]
    bounds = bounds_of(project, placed)
    for index, (beliefs, points) in enumerate(zip(panels.values(), placed, strict=True)):
        read = [_told(belief, names) for belief in beliefs[kept].tolist()]
        hover = [
            f"<b>{prefix}</b><br>belief {truth}" + (f"<br>read {here}" if index > 0 else "")
            for prefix, truth, here in zip(prefixes, told, read, strict=True)
        ]
        where: Any = {"row": index // across + 1, "col": index % across + 1}
        shared = {"mode": "markers", "hovertext": hover, "hoverinfo": "text", "showlegend": False}
        if is_solid:
            x, y, z = (beliefs[kept].double() @ TETRAHEDRON).T.tolist()
            figure.add_trace(_tetrahedron(names, look), **where)
            figure.add_trace(graph_objects.Scatter3d(x=x, y=y, z=z, marker=marks | {"size": 2.5}, **shared), **where)
            continue
        (left, right), (bottom, top) = bounds
        image = png(density_image(points, colors, counts, bounds, pixels=PIXELS))
        figure.add_layout_image(
            source="data:image/png;base64," + base64.b64encode(image).decode(),
            **{"x": left, "y": top, "sizex": right - left, "sizey": top - bottom},
            sizing="stretch",
            layer="below",
            **where,
        )
        x, y = points[kept].T.tolist()
        # The image shows the points; these are only there to be found by the pointer.
        invisible = graph_objects.Scattergl(x=x, y=y, marker=marks | {"size": 9, "opacity": 0.0}, **shared)
        figure.add_trace(invisible, **where)
        _outline(figure, project, names, look, where)
        figure.update_xaxes(range=[left, right], visible=False, constrain="domain", **where)
        figure.update_yaxes(
            range=[bottom, top],
            visible=False,
            scaleanchor=f"x{index + 1}" if index else "x",
            constrain="domain",
            **where,
        )
    panel = WIDE_PANEL if len(panels) <= 2 else PANEL
    (left, right), (bottom, top) = bounds
    aspect = (top - bottom) / (right - left)
    figure.update_scenes(
        xaxis_visible=False, yaxis_visible=False, zaxis_visible=False, aspectmode="data", camera_eye=_eye()
    )
    figure.update_layout(
        width=panel * across + 40,
        height=(panel * (1.0 if is_solid else aspect) + 40) * down + 30,
        margin={"l": 20, "r": 20, "t": 50, "b": 20},
        paper_bgcolor=look.paper,
        plot_bgcolor="rgba(0,0,0,0)",
        font_color=look.ink,
        hoverlabel={"bgcolor": look.paper, "font": {"color": look.ink}},
    )
    return figure


def _outline(figure: Figure, project: Projection, names: Sequence[str], look: Theme, where: Mapping[str, Any]) -> None:
    if project.corners is None:
        return
    for pair in project.edges:
        (x0, y0), (x1, y1) = project.corners[list(pair)].tolist()
        figure.add_shape(
            type="line", x0=x0, y0=y0, x1=x1, y1=y1, line={"color": look.faint, "width": 1}, layer="below", **where
        )
    for (x, y), name in zip(state_places(project), names, strict=True):
        figure.add_annotation(x=x, y=y, text=name, showarrow=False, font_color=look.soft, **where)


def _tetrahedron(names: Sequence[str], look: Theme) -> Any:
    """All edges in one stroke, and the states' names at the corners."""
    from plotly import graph_objects

    stroke = [0, 1, 2, 0, 3, 1, 3, 2]
    x, y, z = TETRAHEDRON[stroke].T.tolist()
    first = {corner: stroke.index(corner) for corner in range(4)}
    text = [names[corner] if first[corner] == i else "" for i, corner in enumerate(stroke)]
    return graph_objects.Scatter3d(
        **{"x": x, "y": y, "z": z},
        mode="lines+text",
        text=text,
        textfont={"color": look.soft},
        line={"color": look.faint, "width": 2},
        hoverinfo="skip",
        showlegend=False,
    )


def _eye() -> dict[str, float]:
    return {"x": 0.65, "y": -2.1, "z": 0.65}


def _spelled(word: Sequence[int], symbols: Sequence[str]) -> str:
    """The prefix in its tokens' names, run together where each is a single letter."""
    return ("" if all(len(symbol) == 1 for symbol in symbols) else " ").join(
        html.escape(symbols[token]) for token in word
    )


def _told(belief: Sequence[float], names: Sequence[str]) -> str:
    likeliest = sorted(range(len(names)), key=lambda state: -belief[state])[:STATES_TOLD]
    shown = sorted(likeliest) if len(names) <= STATES_TOLD else likeliest
    rest = ", …" if len(names) > STATES_TOLD else ""
    return ", ".join(f"{html.escape(names[state])} {belief[state]:.3f}" for state in shown) + rest


def _rgb(color: Sequence[float]) -> str:
    return "rgb(" + ",".join(str(round(255 * channel)) for channel in color) + ")"
