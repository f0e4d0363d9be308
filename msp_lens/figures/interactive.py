"""The simplex to explore: the image of all beliefs, and the prefixes with the largest weight on hover.

Plotly figures, saved by `write_html`. Three states lie on the same image as in `plot_beliefs`; four in a tetrahedron
that can be turned.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Int
from torch import Tensor

from msp_lens._checks import Count, checked
from msp_lens._extras import from_extra
from msp_lens.figures.projections import TETRAHEDRON, Beliefs, Panels, arranged, density_image, png
from msp_lens.figures.style import THEMES, Theme, ThemeName

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@checked
def explore_beliefs(
    true: Beliefs,
    represented: Mapping[str, Beliefs],
    words: Int[Tensor, "prefix pos"],
    positions: Int[Tensor, "prefix"],
    *,
    weights: Float[Tensor, "prefix"] | None = None,
    states: Sequence[str] | None = None,
    tokens: Sequence[str] | None = None,
    max_points: Count = 4_000,
    theme: ThemeName = "light",
) -> Figure:
    """True beliefs next to represented ones; hovering over a point shows its prefix and both beliefs.

    Args as for `plot_beliefs`; `words` has a word that begins with each prefix, `positions` the position of that
    prefix's last token. The image shows all prefixes; the `max_points` of largest weight can be hovered over, and many
    make a browser sluggish.

    Raises:
        ValueError: if `max_points` is less than 1, or there is not a word and a position for each prefix.
        ImportError: if plotly is not installed.
    """
    with from_extra("notebook", purpose="A picture to explore", packages=("plotly",)):
        from plotly.graph_objects import Scatter3d, Scattergl
        from plotly.subplots import make_subplots

    for name, rows in {"words": words, "positions": positions}.items():
        if len(rows) != len(true):
            raise ValueError(f"{name} has {len(rows)} rows and true {len(true)}: give one for each prefix.")
    look = THEMES[theme]
    beliefs_of = {f"True beliefs: {len(true):,} prefixes": true} | dict(represented)
    panels = arranged(beliefs_of, weights, states, look)
    symbols = [_as_text(symbol) for symbol in tokens or map(str, range(int(words.max()) + 1))]
    # Tokens that are single letters need no spaces between them.
    between = "" if all(len(symbol) == 1 for symbol in tokens or symbols) else " "
    kept = panels.weights.argsort(descending=True, stable=True)[:max_points].sort().values
    heads = []
    for word, last, belief in zip(words[kept].tolist(), positions[kept].tolist(), true[kept].tolist(), strict=True):
        prefix = between.join(symbols[token] for token in word[: last + 1])
        heads.append(f"<b>{prefix}</b><br>belief {_listed(belief, panels.states)}")
    colors = [f"rgb({','.join(str(round(255 * c)) for c in color)})" for color in panels.colors[kept].tolist()]
    is_solid = true.shape[1] == 4 and panels.project.corners is not None
    across = min(3, len(beliefs_of))
    down = -(-len(beliefs_of) // across)
    kinds = [[{"type": "scene" if is_solid else "xy"}] * across] * down
    grid: Any = {"rows": down, "cols": across, "horizontal_spacing": 0.02, "vertical_spacing": 0.12 / down}
    figure = make_subplots(subplot_titles=list(map(_as_text, beliefs_of)), specs=kinds, **grid)
    for index, (name, beliefs) in enumerate(beliefs_of.items()):
        read = [f"<br>read {_listed(belief, panels.states)}" if index else "" for belief in beliefs[kept].tolist()]
        hover = [head + here for head, here in zip(heads, read, strict=True)]
        where: Any = {"row": index // across + 1, "col": index % across + 1}
        shared = {"mode": "markers", "hovertext": hover, "hoverinfo": "text", "showlegend": False}
        if is_solid:
            x, y, z = (beliefs[kept].double() @ TETRAHEDRON).T.tolist()
            figure.add_trace(_tetrahedron(panels.states, look), **where)
            figure.add_trace(Scatter3d(x=x, y=y, z=z, marker={"size": 2.5, "color": colors}, **shared), **where)
        else:
            _draw_plane(figure, panels, name, look, where)
            x, y = panels.points[name][kept].T.tolist()
            # The image shows the points; these are only there to be found by the pointer.
            invisible = Scattergl(x=x, y=y, marker={"size": 9, "color": colors, "opacity": 0.0}, **shared)
            figure.add_trace(invisible, **where)
            axes: Any = {"visible": False, "constrain": "domain", **where}
            figure.update_xaxes(range=panels.bounds[0], **axes)
            figure.update_yaxes(range=panels.bounds[1], scaleanchor=f"x{index + 1}" if index else "x", **axes)
    hidden = {f"{axis}axis_visible": False for axis in "xyz"}
    figure.update_scenes(**hidden, aspectmode="data", camera_eye={"x": 0.65, "y": -2.1, "z": 0.65})
    # A panel's size in pixels of the page.
    panel = 460 if len(beliefs_of) <= 2 else 350
    height = (panel * (1.0 if is_solid else panels.aspect) + 40) * down + 30
    figure.update_layout(width=panel * across + 40, height=height, margin={"l": 20, "r": 20, "t": 50, "b": 20})
    figure.update_layout(paper_bgcolor=look.paper, plot_bgcolor="rgba(0,0,0,0)", font_color=look.ink)
    figure.update_layout(hoverlabel={"bgcolor": look.paper, "font": {"color": look.ink}})
    return figure


def _draw_plane(figure: Figure, panels: Panels, name: str, look: Theme, where: Mapping[str, Any]) -> None:
    """The image of a panel's points, and the simplex where it is drawn."""
    (left, right), (bottom, top) = panels.bounds
    image = png(density_image(panels.points[name], panels.colors, panels.weights, panels.bounds, pixels=700))
    source = "data:image/png;base64," + base64.b64encode(image).decode()
    place: Any = {"x": left, "y": top, "sizex": right - left, "sizey": top - bottom, **where}
    figure.add_layout_image(source=source, sizing="stretch", layer="below", **place)
    project = panels.project
    if project.corners is None:
        return
    line = {"color": look.faint, "width": 1}
    for pair in project.edges:
        (x0, y0), (x1, y1) = project.corners[list(pair)].tolist()
        figure.add_shape(type="line", x0=x0, y0=y0, x1=x1, y1=y1, line=line, layer="below", **where)
    for (x, y), state in zip(project.state_places, panels.states, strict=True):
        figure.add_annotation(x=x, y=y, text=_as_text(state), showarrow=False, font_color=look.soft, **where)


def _tetrahedron(names: Sequence[str], look: Theme) -> Any:
    """All edges in one stroke, and the states' names at the corners."""
    from plotly.graph_objects import Scatter3d

    stroke = [0, 1, 2, 0, 3, 1, 3, 2]
    x, y, z = TETRAHEDRON[stroke].T.tolist()
    text = [_as_text(names[corner]) if stroke.index(corner) == i else "" for i, corner in enumerate(stroke)]
    look_of: Any = {"textfont": {"color": look.soft}, "line": {"color": look.faint, "width": 2}}
    return Scatter3d(x=x, y=y, z=z, text=text, mode="lines+text", hoverinfo="skip", showlegend=False, **look_of)


def _listed(belief: Sequence[float], names: Sequence[str], *, most: int = 6) -> str:
    """The probability of each state, or of the likeliest if there are more than `most`."""
    shown, rest = range(len(names)), ""
    if len(names) > most:
        shown, rest = sorted(shown, key=lambda state: -belief[state])[:most], ", …"
    return ", ".join(f"{_as_text(names[state])} {belief[state]:.3f}" for state in shown) + rest


def _as_text(name: str) -> str:
    """The name as plotly shows it as it stands: neither as HTML, nor as mathematics."""
    return html.escape(name).replace("$", "&#36;")
