"""Beliefs on the simplex: the fractal of the true beliefs, and what a network makes of it.

A belief over three states is a point of an equilateral triangle, its color the belief itself as (red, green, blue); for
other numbers of states see `projections`.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor

from msp_lens._checks import Count, checked
from msp_lens._names import meant
from msp_lens.figures.placement import Box, around, first_free, subscript, text_box
from msp_lens.figures.projections import Beliefs, Panels, Projection, arranged, density_image
from msp_lens.figures.style import (
    LONGEST_NAME,
    PHONE_WIDTH,
    THEMES,
    Picture,
    Theme,
    ThemeName,
    finished,
    is_for_phones,
    new_figure,
    one_for_each,
    shortened,
    write_centered,
)

# Width of a panel of `plot_beliefs`, in inches, where there are few, and how finely its points are drawn.
PANEL, DOTS_PER_INCH = 5.2, 300


@checked
def plot_beliefs(
    true: Beliefs,
    represented: Mapping[str, Beliefs],
    *,
    weights: Float[Tensor, "prefix"] | None = None,
    states: Sequence[str] | None = None,
    path: Sequence[int] = (),
    path_tokens: Sequence[str] = (),
    columns: Count = 4,
    title: str | None = None,
    theme: ThemeName = "light",
) -> Figure:
    """True beliefs next to represented ones, a panel each, every point in the color of its *true* belief.

    A represented fractal is right where its colors lie as in the true one, and blurred where they mix.

    Args:
        true: The optimal observer's beliefs.
        represented: Panel title (a layer, say) to the beliefs read in a network, each row the same prefix as in `true`.
        weights: How much each row counts where rows share a grid cell; all alike by default.
        states: Names of the states, for the corners.
        path: Rows of the prefixes of one word, shortest first: its path is drawn in every panel.
        path_tokens: The word's tokens, to label the path; each gets its position as a subscript.
        columns: Panels in a row.
        title: Over the whole figure.
        theme: `"light"` or `"dark"`.

    Raises:
        ValueError: if there is no belief, or one is not finite; if `path_tokens` and `path` differ in length, or
            represented and true beliefs in shape.

    Returns:
        A matplotlib figure that belongs to no window.
    """
    if path_tokens and len(path_tokens) != len(path):
        raise ValueError(f"path has {len(path)} rows and path_tokens {len(path_tokens)}: give one token for each row.")
    if outside := [row for row in path if not 0 <= row < len(true)]:
        raise ValueError(f"path has the row {outside[0]}: give rows of the true beliefs, 0 to {len(true) - 1}.")
    beliefs_of = {f"True beliefs: {len(true):,} prefixes": true} | dict(represented)
    panels = arranged(beliefs_of, weights, states, THEMES[theme])
    across = min(columns, len(beliefs_of))
    side, size = (PANEL, 12) if across <= 2 else (3.6, 10)
    if is_for_phones():
        across = min(len(beliefs_of), 1 if len(beliefs_of) <= 2 else 2)
        side, size = PHONE_WIDTH / across, 11 if across == 1 else 9
    down = -(-len(beliefs_of) // across)
    height = (side * panels.aspect + 0.3) * down
    figure, axes, look = new_figure(side * across, height, theme, rows=down, columns=across)
    for axis, name in zip(axes, panels.points, strict=False):
        _draw_panel(axis, panels, name, look, pixels=round(DOTS_PER_INCH * side))
        axis.set_title(textwrap.fill(name, 24) if size == 9 else name, fontsize=size)
        if len(path):
            _draw_path(axis, panels, name, torch.as_tensor(path), path_tokens, look)
    for axis in axes[len(panels.points) :]:
        axis.set_axis_off()
    return _completed(figure, panels.project, title, look)


@checked
def plot_positions(
    true: Beliefs,
    represented: Mapping[str, Beliefs],
    positions: Int[Tensor, "prefix"],
    *,
    shown: Sequence[int] | None = None,
    weights: Float[Tensor, "prefix"] | None = None,
    states: Sequence[str] | None = None,
    title: str | None = None,
    theme: ThemeName = "light",
) -> Figure:
    """Beliefs by position: a column each, the true ones in the first row and represented ones below.

    Args as for `plot_beliefs`; `positions` has the position of each prefix's last token, and `shown` says which of them
    are drawn, by default up to six, evenly spaced from the first to the last.

    Raises:
        ValueError: if a position in `shown` has no prefix, or there is not a position for each.
    """
    if len(positions) != len(true):
        raise ValueError(f"positions has {len(positions)} entries and true {len(true)} rows: give one for each.")
    there = positions.unique().tolist()
    if shown is None:
        places = np.linspace(0, len(there) - 1, min(6, len(there))).round().astype(int)
        shown = [there[place] for place in places]
    if missing := [position for position in shown if position not in there]:
        raise ValueError(f"shown has position {missing[0]}; prefixes end at positions {there[0]} to {there[-1]}.")
    panels = arranged({"true": true} | dict(represented), weights, states, THEMES[theme])
    if not len(shown):
        raise ValueError("shown=[]: give at least one position.")
    side, down, across = 2.5, len(panels.points), len(shown)
    width, height = side * across + 0.4, (side * panels.aspect + 0.2) * down + 0.4
    figure, axes, look = new_figure(width, height, theme, rows=down, columns=across)
    for axis, (name, position) in zip(axes, itertools.product(panels.points, shown), strict=True):
        _draw_panel(axis, panels, name, look, rows=positions == position, pixels=500)
    for axis, name in zip(axes[::across], panels.points, strict=True):
        _name_row(axis, name)
    for axis, position in zip(axes[:across], shown, strict=True):
        axis.set_title(f"position {position}: {int((positions == position).sum()):,}", fontsize=10)
    return _completed(figure, panels.project, title, look)


@checked
def plot_belief_rows(
    rows: Mapping[str, Mapping[str, Beliefs]],
    *,
    weights: Mapping[str, Float[Tensor, "_"]] | None = None,
    title: str | None = None,
    theme: ThemeName = "light",
) -> Figure:
    """Beliefs of several processes, a row each: the true ones, and beside them those read in each of several networks.

    Args:
        rows: For each process, the beliefs by panel title, the true ones first; the titles are the same for all.
        weights: How much each prefix of a process counts; all alike by default.
        title: Over the whole figure.
        theme: `"light"` or `"dark"`.

    Raises:
        ValueError: if there is no process, titles differ between processes, or beliefs cannot be drawn.
        KeyError: if there are weights of something else.
    """
    one_for_each(rows=rows)
    titles = list(next(iter(rows.values())))
    for name, beliefs in rows.items():
        if list(beliefs) != titles or not titles:
            raise ValueError(f"rows[{name!r}] has {list(beliefs)}, the first row {titles}: give the same titles.")
    if unknown := [name for name in weights or {} if name not in rows]:
        there_are = ", ".join(map(repr, rows))
        raise KeyError(f"weights names {unknown[0]!r}; there are the rows {there_are}.{meant(unknown[0], rows)}")
    found = {name: arranged(each, (weights or {}).get(name), None, THEMES[theme]) for name, each in rows.items()}
    side, heights = 2.6, [max(0.3, each.aspect) for each in found.values()]
    width, height = side * len(titles) + 0.4, sum(side * each + 0.1 for each in heights) + 0.4
    layout = {"rows": len(found), "columns": len(titles), "gridspec_kw": {"height_ratios": heights}}
    figure, axes, look = new_figure(width, height, theme, **layout)
    for axis, (name, column) in zip(axes, itertools.product(found, titles), strict=True):
        _draw_panel(axis, found[name], column, look, pixels=600)
    for axis, column in zip(axes[: len(titles)], titles, strict=True):
        axis.set_title(column, fontsize=11)
    for axis, name in zip(axes[:: len(titles)], found, strict=True):
        _name_row(axis, name)
    if title:
        figure.suptitle(title)
    return finished(figure, look)


@checked
def plot_belief_columns(
    columns: Mapping[str, Mapping[str, Beliefs]],
    *,
    weights: Mapping[str, Float[Tensor, "_"]] | None = None,
    states: Mapping[str, Sequence[str]] | None = None,
    title: str | None = None,
    theme: ThemeName = "light",
) -> Figure:
    """Beliefs of several processes side by side, a column each: the true ones on top, and those read in networks below.

    Args:
        columns: For each process, its beliefs by panel title, the true ones first; some may have fewer.
        weights: How much each prefix of a process counts; all alike by default.
        states: Names of a process's states, for the corners.
        title: Over the whole figure.
        theme: `"light"` or `"dark"`.

    Raises:
        ValueError: if there is no process, one has no beliefs, or beliefs cannot be drawn.
        KeyError: if there are weights or states of something else.
    """
    one_for_each(columns=columns)
    for name, beliefs in columns.items():
        one_for_each(**{f"columns[{name!r}]": beliefs})
    for what, given in {"weights": weights or {}, "states": states or {}}.items():
        if unknown := [name for name in given if name not in columns]:
            raise KeyError(f"{what} names {unknown[0]!r}; there are the columns {', '.join(map(repr, columns))}.")
    found = {
        name: arranged(each, (weights or {}).get(name), (states or {}).get(name), THEMES[theme])
        for name, each in columns.items()
    }
    down, side = max(map(len, columns.values())), 3.4
    tallest = max(each.aspect for each in found.values())
    size = (side * len(found), (side * tallest + 0.3) * down + 0.3)
    # One process for each row of a phone's screen.
    turned = is_for_phones() and len(found) > 1 and down > 1
    if turned:
        side = PHONE_WIDTH / down
        size = (PHONE_WIDTH, (side * tallest + 0.4) * len(found))
    rows, across = (len(found), down) if turned else (down, len(found))
    figure, axes, look = new_figure(*size, theme, rows=rows, columns=across)
    for place, (name, panels) in enumerate(found.items()):
        for row in range(down):
            axis = axes[place * down + row if turned else row * len(found) + place]
            axis.set_axis_off()
            if row >= len(panels.points):
                continue
            of = list(panels.points)[row]
            _draw_panel(axis, panels, of, look, pixels=round(DOTS_PER_INCH * side))
            shown = f"{shortened(name, LONGEST_NAME)}\n{of}" if row == 0 else of
            axis.set_title(shown, fontsize=9 if turned else 11)
    if title:
        figure.suptitle(title)
    return finished(figure, look)


def draw_simplex(axis: Axes, project: Projection, states: Sequence[str], look: Theme) -> None:
    """The edges and the states' names, where the whole simplex is drawn."""
    if project.corners is None:
        return
    for pair in project.edges:
        style = ":" if pair in project.hidden else "-"
        axis.plot(*project.corners[list(pair)].T, color=look.faint, linewidth=0.8, linestyle=style, zorder=0)
    for place, name in zip(project.state_places, states, strict=True):
        write_centered(axis, place, shortened(name, LONGEST_NAME), size=10, color=look.soft)


def _draw_panel(
    axis: Axes, panels: Panels, name: str, look: Theme, *, rows: Tensor | slice = slice(None), pixels: int = 900
) -> None:
    (x, y), points = panels.bounds, panels.points[name][rows]
    image = density_image(points, panels.colors[rows], panels.weights[rows], panels.bounds, pixels=pixels)
    axis.imshow(image, extent=(*x, *y), origin="lower", interpolation="antialiased")
    draw_simplex(axis, panels.project, panels.states, look)
    axis.set(xlim=x, ylim=y, aspect="equal")
    axis.set_axis_off()


def _name_row(axis: Axes, name: str) -> None:
    place = {"transform": axis.transAxes, "rotation": 90, "ha": "right", "va": "center"}
    axis.text(-0.04, 0.5, shortened(name, LONGEST_NAME), **place)


def _draw_path(axis: Axes, panels: Panels, name: str, rows: Tensor, tokens: Sequence[str], look: Theme) -> None:
    """The points joined by arrows, each labeled by its token with the position as a subscript."""
    points, colors = panels.points[name][rows].numpy(), panels.colors[rows].numpy()
    halo = [withStroke(linewidth=2.5, foreground=look.paper)]
    unit = (panels.bounds[0][1] - panels.bounds[0][0]) / PANEL
    arrow = {"arrowstyle": "-|>", "color": look.ink, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 3.5}
    for start, end in itertools.pairwise(points):
        if np.linalg.norm(end - start) > 0.01 * unit:
            axis.annotate("", xy=tuple(end), xytext=tuple(start), arrowprops=arrow | {"path_effects": halo})
    axis.scatter(points[:, 0], points[:, 1], c=colors, s=34, edgecolors=look.ink, linewidths=1.1, zorder=4)
    taken = [Box(x, y, 0.1 * unit, 0.1 * unit) for x, y in points]
    taken += [Box(x, y, 0.2 * unit, 0.2 * unit) for x, y in panels.project.state_places]
    center = (float(points[:, 0].mean()), float(points[:, 1].mean()))
    for index, (point, token) in enumerate(zip(points, tokens, strict=False)):
        text = f"{shortened(token, LONGEST_NAME)}{subscript(index)}"
        places = around(point, text_box(text, 10, unit=unit), gap=0.07 * unit, away_from=center)
        box = places[first_free(places, taken)]
        taken.append(box)
        write_centered(axis, (box.x, box.y), text, size=10, color=look.ink, path_effects=halo, zorder=5)


def _completed(figure: Picture, project: Projection, title: str | None, look: Theme) -> Picture:
    """The figure with its title, and with a name for its axes where the simplex is not drawn."""
    if project.corners is None and project.axes.shape[0] > 2:
        first, second = (f"{share:.0%}" for share in project.variance)
        label = f"principal axes of the true beliefs, {first} and {second} of their variance"
        figure.supxlabel(label, fontsize=9, color=look.soft)
    if title:
        figure.suptitle(title)
    return finished(figure, look)
