"""Pictures of interventions: edits side by side, maps by layer and position, and curves over strength or time."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from msp_lens.figures.style import ThemeName, Values, finished, legend_beside, marker, new_figure, write_centered

# An axis's label is broken into lines no longer than the axis.
LABEL_WIDTH = 40


def plot_edits(
    sites: Sequence[str],
    values: Mapping[str, Mapping[str, float]],
    *,
    ylabel: str,
    title: str = "",
    theme: ThemeName = "light",
) -> Figure:
    """A group of bars for each site, a bar for each edit; `values` maps edit to site to height."""
    figure, (axis,), look = new_figure(max(6.4, 1.7 * len(sites) + 2), 3.6, theme)
    place = np.arange(len(sites))
    width = 0.8 / len(values)
    for index, (edit, by_site) in enumerate(values.items()):
        heights = [by_site.get(site, np.nan) for site in sites]
        offset = (index - (len(values) - 1) / 2) * width
        axis.bar(place + offset, heights, width=0.92 * width, color=look.color(index), label=edit)
    axis.set(xticks=place, xticklabels=sites, ylabel=textwrap.fill(ylabel, LABEL_WIDTH), title=title)
    legend_beside(axis)
    return finished(figure, look)


def plot_heat_map(
    values: np.ndarray, rows: Sequence[str], columns: Sequence[str], *, title: str = "", theme: ThemeName = "light"
) -> Figure:
    """Numbers `[row, column]` by site (the first at the bottom) and position, each written in its cell.

    Colors span 0 to 1, or the values' range where that is wider.
    """
    figure, (axis,), look = new_figure(0.7 * len(columns) + 2.4, 0.42 * len(rows) + 1.4, theme)
    finite = values[np.isfinite(values)]
    low, high = min(0.0, finite.min(initial=0.0)), max(1.0, finite.max(initial=1.0))
    image = axis.imshow(values, origin="lower", aspect="auto", cmap="viridis", vmin=low, vmax=high)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            color = "#ffffff" if (value - low) / (high - low) < 0.6 else "#000000"
            write_centered(axis, (column, row), f"{value:.2f}", size=8, color=color)
    axis.set(xticks=range(len(columns)), xticklabels=columns, yticks=range(len(rows)), yticklabels=rows)
    axis.set(xlabel="position", title=title)
    figure.colorbar(image, ax=axis)
    return finished(figure, look)


def plot_strengths(
    curves: Mapping[str, tuple[Values, Values]],
    *,
    ylabel: str,
    xlabel: str = "strength λ",
    title: str = "",
    theme: ThemeName = "light",
) -> Figure:
    """A curve for each edit over its strength, or over the tokens since; `curves` maps name to places and heights."""
    figure, (axis,), look = new_figure(6.4, 3.6, theme)
    for index, (name, curve) in enumerate(curves.items()):
        size = max(8 - index, 3)
        axis.plot(*curve, marker=marker(index), markersize=size, color=look.color(index), label=name)
    axis.set(xlabel=xlabel, ylabel=textwrap.fill(ylabel, LABEL_WIDTH), title=title)
    legend_beside(axis)
    return finished(figure, look)
