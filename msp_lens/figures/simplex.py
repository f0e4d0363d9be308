"""Beliefs on the simplex: the fractal as it is, and as a network represents it.

A belief over three states is a point of an equilateral triangle, its color the belief itself as (red, green, blue).
Points are gathered on a fine grid, each cell taking the mean color of its points, so that ten points or ten million
stay crisp. Four states make a tetrahedron; beliefs over more are projected on the principal axes of the *true*
beliefs, the same for all panels.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from msp_lens.figures.density import density_image
from msp_lens.figures.labels import Box, around, first_free, text_box
from msp_lens.figures.projections import Bounds, Projection, belief_colors, bounds_of, lifted, projection, state_places
from msp_lens.figures.style import Theme, ThemeName, finish, new_figure, theme_named

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL, SMALL_PANEL = 5.2, 2.5
COLUMNS = 4
# Panels of `plot_positions` side by side, where it is not said which.
POSITIONS = 6
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def plot_beliefs(
    true: Float[Tensor, "prefix state"],
    represented: Mapping[str, Float[Tensor, "prefix state"]],
    *,
    weights: Float[Tensor, "prefix"] | None = None,
    states: Sequence[str] | None = None,
    path: Sequence[int] = (),
    path_tokens: Sequence[str] = (),
    columns: int = COLUMNS,
    title: str | None = None,
    theme: ThemeName = "light",
) -> Figure:
    """True beliefs beside represented ones, a panel each, every point in the color of its *true* belief.

    So a represented fractal is right where each color lies where the true one has it, and blurred where not.

    Args:
        true: The optimal observer's beliefs.
        represented: Panel title (a layer's, say) to the beliefs read in a network, row by row those of `true`.
        weights: How much each row counts where rows share a grid cell; all alike by default.
        states: Names of the states, for the corners.
        path: Rows of one word's prefixes, shortest first: its way is drawn through every panel.
        path_tokens: The word's tokens, to label the way with; each gets its position as an index.
        columns: Panels side by side before the next row begins.
        title: Over the whole figure.
        theme: `"light"` or `"dark"`.

    Raises:
        ValueError: if `path_tokens` are not as many as the rows of `path`, or represented beliefs not of the true
            ones' shape.

    Returns:
        A matplotlib figure that belongs to no window.
    """
    if path_tokens and len(path_tokens) != len(path):
        raise ValueError(f"path has {len(path)} rows and path_tokens {len(path_tokens)}: give one token for each row.")
    for name, beliefs in represented.items():
        if beliefs.shape != true.shape:
            raise ValueError(
                f"{name}: {tuple(beliefs.shape)}; the true beliefs are {tuple(true.shape)}: give a row each."
            )
    look = theme_named(theme)
    names = _names(states, true.shape[1])
    counts = torch.ones(len(true), dtype=torch.float64) if weights is None else weights.double()
    colors = lifted(belief_colors(true), look)
    project = projection(true, counts)
    panels = {f"True beliefs: {len(true):,} prefixes": project(true)}
    panels |= {name: project(beliefs) for name, beliefs in represented.items()}
    bounds = bounds_of(project, list(panels.values()))

    across = min(columns, len(panels))
    down = -(-len(panels) // across)
    height = PANEL * _aspect(bounds)
    figure = new_figure(PANEL * across, (height + 0.3) * down, look)
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for axis, (name, points) in zip(axes, panels.items(), strict=False):
        _draw_panel(axis, points, colors, counts, bounds, project, names, look)
        axis.set_title(name)
        if len(path):
            rows = torch.as_tensor(path)
            kept_free = state_places(project)
            _draw_path(axis, points[rows].numpy(), colors[rows].numpy(), path_tokens, kept_free, bounds, look)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    _say_axes(figure, project, look)
    if title:
        figure.suptitle(title)
    finish(figure, look)
    return figure


def plot_positions(
    true: Float[Tensor, "prefix state"],
    represented: Mapping[str, Float[Tensor, "prefix state"]],
    positions: Int[Tensor, "prefix"],
    *,
    shown: Sequence[int] | None = None,
    weights: Float[Tensor, "prefix"] | None = None,
    states: Sequence[str] | None = None,
    title: str | None = None,
    theme: ThemeName = "light",
) -> Figure:
    """Beliefs by position: a column each, the true ones in the first row and represented ones below.

    Args:
        true: The optimal observer's beliefs.
        represented: Row title to the beliefs read in a network, row by row those of `true`.
        positions: The position of each prefix's last token.
        shown: Which positions; by default up to six, from the first to the last.
        weights: How much each prefix counts; all alike by default.
        states: Names of the states, for the corners.
        title: Over the whole figure.
        theme: `"light"` or `"dark"`.

    Raises:
        ValueError: if a position has no prefix.
    """
    there = positions.unique().tolist()
    chosen = list(shown) if shown is not None else _evenly(there, POSITIONS)
    if missing := [position for position in chosen if position not in there]:
        raise ValueError(f"shown has position {missing[0]}; prefixes end at positions {there[0]} to {there[-1]}.")
    look = theme_named(theme)
    names = _names(states, true.shape[1])
    counts = torch.ones(len(true), dtype=torch.float64) if weights is None else weights.double()
    colors = lifted(belief_colors(true), look)
    project = projection(true, counts)
    rows = {"true": project(true)} | {name: project(beliefs) for name, beliefs in represented.items()}
    bounds = bounds_of(project, list(rows.values()))

    height = SMALL_PANEL * _aspect(bounds)
    figure = new_figure(SMALL_PANEL * len(chosen) + 0.4, (height + 0.2) * len(rows) + 0.4, look)
    axes = figure.subplots(len(rows), len(chosen), squeeze=False)
    for line, (name, points) in zip(axes, rows.items(), strict=True):
        for axis, position in zip(line, chosen, strict=True):
            here = positions == position
            _draw_panel(axis, points[here], colors[here], counts[here], bounds, project, names, look, pixels=500)
        line[0].text(-0.04, 0.5, name, transform=line[0].transAxes, rotation=90, ha="right", va="center")
    for axis, position in zip(axes[0], chosen, strict=True):
        axis.set_title(f"position {position}: {int((positions == position).sum()):,}", fontsize=10)
    _say_axes(figure, project, look)
    if title:
        figure.suptitle(title)
    finish(figure, look)
    return figure


def _names(states: Sequence[str] | None, n_states: int) -> tuple[str, ...]:
    return tuple(states) if states is not None else tuple(str(i) for i in range(n_states))


def _evenly(values: Sequence[int], count: int) -> list[int]:
    """As many of the values, from the first to the last, about evenly spaced."""
    places = np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int)
    return [values[place] for place in places]


def _aspect(bounds: Bounds) -> float:
    (left, right), (bottom, top) = bounds
    return (top - bottom) / (right - left)


def _draw_panel(
    axis: Axes,
    points: Float64[Tensor, "prefix xy"],
    colors: Float64[Tensor, "prefix rgb"],
    counts: Float64[Tensor, "prefix"],
    bounds: Bounds,
    project: Projection,
    names: Sequence[str],
    look: Theme,
    *,
    pixels: int = 900,
) -> None:
    image = density_image(points, colors, counts, bounds, pixels=pixels)
    axis.imshow(image, extent=(*bounds[0], *bounds[1]), origin="lower", interpolation="antialiased")
    if project.corners is not None:
        draw_simplex(axis, project, names, look)
    axis.set(xlim=bounds[0], ylim=bounds[1], aspect="equal")
    axis.set_axis_off()


def draw_simplex(axis: Axes, project: Projection, names: Sequence[str], look: Theme) -> None:
    """The edges and the states' names."""
    assert project.corners is not None
    for pair in project.edges:
        ends = project.corners[list(pair)]
        style = ":" if pair in project.hidden else "-"
        axis.plot(ends[:, 0], ends[:, 1], color=look.faint, linewidth=0.8, linestyle=style, zorder=0)
    for (x, y), name in zip(state_places(project), names, strict=True):
        axis.text(x, y, name, ha="center", va="center", color=look.soft, fontsize=10, parse_math=False)


def _draw_path(
    axis: Axes,
    points: np.ndarray,
    colors: np.ndarray,
    tokens: Sequence[str],
    kept_free: Sequence[tuple[float, float]],
    bounds: Bounds,
    look: Theme,
) -> None:
    """The points joined by arrows, each labelled by its token with the position as an index."""
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=2.5, foreground=look.paper)]
    unit = (bounds[0][1] - bounds[0][0]) / PANEL
    for start, end in itertools.pairwise(points):
        if np.linalg.norm(end - start) > 0.01 * unit:
            axis.annotate(
                "",
                xy=tuple(end),
                xytext=tuple(start),
                arrowprops={
                    "arrowstyle": "-|>",
                    "color": look.ink,
                    "linewidth": 1.1,
                    "shrinkA": 0,
                    "shrinkB": 3.5,
                    "path_effects": halo,
                },
            )
    axis.scatter(points[:, 0], points[:, 1], c=colors, s=34, edgecolors=look.ink, linewidths=1.1, zorder=4)
    taken = [Box(x, y, 0.1 * unit, 0.1 * unit) for x, y in points]
    taken += [Box(x, y, 0.2 * unit, 0.2 * unit) for x, y in kept_free]
    center = (float(points[:, 0].mean()), float(points[:, 1].mean()))
    for index, ((x, y), token) in enumerate(zip(points, tokens, strict=False)):
        text = f"{token}{str(index).translate(SUBSCRIPTS)}"
        places = around((x, y), text_box(text, 10, unit=unit), gap=0.07 * unit, away_from=center)
        box = places[first_free(places, taken)]
        taken.append(box)
        axis.text(
            box.x,
            box.y,
            text,
            ha="center",
            va="center",
            fontsize=10,
            color=look.ink,
            path_effects=halo,
            zorder=5,
            parse_math=False,
        )


def _say_axes(figure: Figure, project: Projection, look: Theme) -> None:
    """What the axes are, where the simplex itself is not drawn."""
    if project.corners is None and project.axes.shape[0] > 2:
        first, second = (f"{100 * share:.0f} %" for share in project.variance)
        figure.supxlabel(
            f"principal axes of the true beliefs, {first} and {second} of their variance", fontsize=9, color=look.soft
        )
