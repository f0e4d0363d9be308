"""Pictures of interventions: edits side by side, maps by layer and position, and curves over strength or time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito's palette, then greys, for readers with any kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "0.35", "0.6", "0.8")


def plot_edits(
    sites: Sequence[str], values: Mapping[str, Mapping[str, float]], *, ylabel: str, title: str = ""
) -> Figure:
    """A group of bars for each site, a bar for each edit.

    Args:
        sites: The groups.
        values: Edit to site to height.
        ylabel: What the heights are.
        title: Over the figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.4, 1.7 * len(sites) + 2), 3.6), layout="constrained")
    axis = figure.subplots()
    place = np.arange(len(sites))
    width = 0.8 / len(values)
    for index, (edit, by_site) in enumerate(values.items()):
        heights = [by_site.get(site, np.nan) for site in sites]
        offset = (index - (len(values) - 1) / 2) * width
        axis.bar(place + offset, heights, width=0.92 * width, color=COLOURS[index % len(COLOURS)], label=edit)
    axis.set(xticks=place, xticklabels=sites, ylabel=ylabel, title=title)
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def plot_heat_map(
    values: np.ndarray, rows: Sequence[str], columns: Sequence[str], *, title: str = "", xlabel: str = "position"
) -> Figure:
    """Numbers by row (site, the first at the bottom) and column (position), each written in its cell.

    Args:
        values: `[row, column]`; colours span 0 to 1, or the values' range where that is wider.
        rows: Their labels.
        columns: Their labels.
        title: Over the figure.
        xlabel: What the columns are.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.7 * len(columns) + 2.4, 0.42 * len(rows) + 1.4), layout="constrained")
    axis = figure.subplots()
    finite = values[np.isfinite(values)]
    low, high = min(0.0, finite.min(initial=0.0)), max(1.0, finite.max(initial=1.0))
    image = axis.imshow(values, origin="lower", aspect="auto", cmap="viridis", vmin=low, vmax=high)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = (value - low) / (high - low) < 0.6
            axis.text(
                column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if dark else "black"
            )
    axis.set(xticks=range(len(columns)), xticklabels=columns, yticks=range(len(rows)), yticklabels=rows)
    axis.set(xlabel=xlabel, title=title)
    figure.colorbar(image, ax=axis)
    return figure


def plot_strengths(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    ylabel: str,
    xlabel: str = "strength λ",
    title: str = "",
) -> Figure:
    """A curve for each edit, over the strength it was made with (or over tokens since).

    Args:
        curves: Name to places and heights.
        ylabel: What the heights are.
        xlabel: What the places are.
        title: Over the figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.subplots()
    for index, (name, (places, heights)) in enumerate(curves.items()):
        axis.plot(places, heights, marker="o", markersize=4, color=COLOURS[index % len(COLOURS)], label=name)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axis.spines[["top", "right"]].set_visible(False)
    return figure
