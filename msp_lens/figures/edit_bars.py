"""Pictures of interventions: edits side by side, maps by layer and position, and curves over strength or time."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from msp_lens._checks import checked
from msp_lens._tables import nats_text
from msp_lens.figures.style import (
    ThemeName,
    Values,
    drawable,
    finished,
    legend_beside,
    marker,
    new_figure,
    one_for_each,
    say_if_empty,
    series_label,
    write_centered,
)

# An axis's label is broken into lines no longer than the axis.
LABEL_WIDTH = 40


@checked
def plot_edits(
    sites: Sequence[str],
    values: Mapping[str, Mapping[str, float | Any]],
    *,
    ylabel: str,
    title: str = "",
    placebo: str | None = None,
    theme: ThemeName = "light",
) -> Figure:
    """A group of bars for each site, a bar for each edit; `values` maps edit to site to height.

    If heights are distances from a goal, `placebo` may name one of the edits: where one that is named after it does
    worse, its bar is hatched.

    Raises:
        ValueError: if there is no site or no edit.
    """
    one_for_each(sites=sites)
    one_for_each(values=values)
    figure, (axis,), look = new_figure(max(6.4, 1.7 * len(sites) + 2), 3.6, theme)
    place = np.arange(len(sites))
    width, shown, worse = 0.8 / len(values), [], []
    bar_to_beat = np.full(len(sites), np.nan)
    for index, (edit, by_site) in enumerate(values.items()):
        heights = drawable([by_site.get(site, np.nan) for site in sites])
        shown.append(heights)
        offset = (index - (len(values) - 1) / 2) * width
        bars = axis.bar(place + offset, heights, width=0.92 * width, color=look.color(index), label=series_label(edit))
        if edit == placebo:
            bar_to_beat = heights
        for bar, is_worse in zip(bars, heights > bar_to_beat, strict=True):
            if is_worse:
                bar.set(hatch="xxx", edgecolor=look.paper)
                worse = [Patch(facecolor=look.soft, edgecolor=look.paper, hatch="xxx")]
    axis.set(xticks=place, xticklabels=sites, ylabel=textwrap.fill(ylabel, LABEL_WIDTH), title=title)
    say_if_empty(axis, *shown)
    handles, names = axis.get_legend_handles_labels()
    legend_beside(axis, [*handles, *worse], [*names, *(f"worse than {placebo}" for _ in worse)])
    return finished(figure, look)


@checked
def plot_heat_map(
    values: np.ndarray | Sequence[Values],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    xlabel: str = "position",
    ylabel: str = "",
    title: str = "",
    lowest: float | Any = None,
    in_nats: bool = False,
    theme: ThemeName = "light",
) -> Figure:
    """Numbers `[row, column]` by site (the first at the bottom) and position, each written in its cell.

    Colors span 0 to 1, or the values' range where that is wider; all below `lowest`, if it is given, have one color.
    Numbers `in_nats` are written as tables write them.

    Raises:
        ValueError: if there is no number, or not a name for each row and column.
    """
    one_for_each(rows=rows, values=values)
    one_for_each(columns=columns, **{"a row of values": values[0]})
    values = drawable(values)
    figure, (axis,), look = new_figure(0.7 * len(columns) + 2.4, 0.42 * len(rows) + 1.4, theme)
    finite = values[np.isfinite(values)]
    low, high = min(0.0, finite.min(initial=0.0)), max(1.0, finite.max(initial=1.0))
    if lowest is not None:
        low = min(max(low, lowest), high - 1)
    image = axis.imshow(values, origin="lower", aspect="auto", cmap="viridis", vmin=low, vmax=high)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            color = "#ffffff" if (value - low) / (high - low) < 0.6 else "#000000"
            text = nats_text(value) if in_nats else f"{value:.2f}" if abs(value) < 1e4 else f"{value:.1e}"
            write_centered(axis, (column, row), text, size=8, color=color)
    axis.set(xticks=range(len(columns)), xticklabels=columns, yticks=range(len(rows)), yticklabels=rows)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if max(map(len, columns)) > 6:
        axis.tick_params(axis="x", rotation=45)
    figure.colorbar(image, ax=axis)
    return finished(figure, look)


@checked
def plot_strengths(
    curves: Mapping[str, tuple[Values, Values]],
    *,
    ylabel: str,
    xlabel: str = "strength λ",
    title: str = "",
    theme: ThemeName = "light",
) -> Figure:
    """A curve for each edit over its strength, or over the tokens since; `curves` maps name to places and heights.

    Raises:
        ValueError: if there is no curve, or not a height for each place.
    """
    one_for_each(curves=curves)
    figure, (axis,), look = new_figure(6.4, 3.6, theme)
    shown = []
    for index, (name, (places, heights)) in enumerate(curves.items()):
        one_for_each(**{f"the places of {name!r}": places, "its heights": heights})
        size = max(8 - index, 3)
        x, y = drawable(places), drawable(heights)
        shown.append(x + y)
        axis.plot(x, y, marker=marker(index), markersize=size, color=look.color(index), label=series_label(name))
    axis.set(xlabel=xlabel, ylabel=textwrap.fill(ylabel, LABEL_WIDTH), title=title)
    say_if_empty(axis, *shown)
    legend_beside(axis)
    return finished(figure, look)
