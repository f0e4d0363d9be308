"""Pictures of interventions: edits side by side, maps by layer and position, and curves over strength or time."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from msp_lens._checks import checked
from msp_lens._tables import nats_text
from msp_lens.figures.formation_curves import positive
from msp_lens.figures.style import (
    PHONE_WIDTH,
    ThemeName,
    Values,
    drawable,
    finished,
    is_for_phones,
    legend_beside,
    marker,
    name_places,
    new_figure,
    one_for_each,
    say_if_empty,
    series_label,
    write_centered,
)

# An axis's label is broken into lines no longer than the axis, which is shorter on phones.
LABEL_WIDTH, PHONE_LABEL_WIDTH = 40, 26


def _broken(label: str) -> str:
    return textwrap.fill(label, PHONE_LABEL_WIDTH if is_for_phones() else LABEL_WIDTH)


@checked
def plot_edits(
    sites: Sequence[str],
    values: Mapping[str, Mapping[str, float | Any]],
    *,
    ylabel: str,
    title: str = "",
    placebo: str | None = None,
    errors: Mapping[str, Mapping[str, float | Any]] | None = None,
    is_share: bool = False,
    theme: ThemeName = "light",
) -> Figure:
    """A group of bars for each site, a bar for each edit; `values` maps edit to site to height.

    Heights are distances from a goal or, with `is_share`, shares of the way to it, of which 1 is all. Shares far below
    0 are marked at the foot. `placebo` may name one of the edits: where one that is named after it does worse, its bar
    is hatched. `errors` are standard errors.

    Raises:
        ValueError: if there is no site or no edit.
    """
    one_for_each(sites=sites)
    one_for_each(values=values)
    figure, (axis,), look = new_figure(wide := max(6.4, 1.7 * len(sites) + 2), 3.6, theme)
    place = np.arange(len(sites))
    width, shown, worse = 0.8 / len(values), [], []
    bar_to_beat, lowest = np.full(len(sites), np.nan), -0.25
    for index, (edit, by_site) in enumerate(values.items()):
        heights = drawable([by_site.get(site, np.nan) for site in sites])
        shown.append(heights)
        at = place + (index - (len(values) - 1) / 2) * width
        bars = axis.bar(at, heights, width=0.92 * width, color=look.color(index), label=series_label(edit))
        if errors is not None and edit in errors:
            spread = np.abs(drawable([errors[edit].get(site, np.nan) for site in sites]))
            axis.errorbar(at, heights, yerr=np.nan_to_num(spread), fmt="none", ecolor=look.ink, elinewidth=0.8)
        if is_share and len(below := np.flatnonzero(heights < lowest)):
            foot: Any = {"color": look.color(index), "clip_on": False, "zorder": 3}
            axis.plot(at[below], np.full(len(below), lowest), "v", **foot)
        if edit == placebo:
            bar_to_beat = heights
        beaten = heights < bar_to_beat if is_share else heights > bar_to_beat
        for bar, is_worse in zip(bars, beaten, strict=True):
            if is_worse:
                bar.set(hatch="xxx", edgecolor=look.paper)
                worse = [Patch(facecolor=look.soft, edgecolor=look.paper, hatch="xxx")]
    axis.set(ylabel=_broken(ylabel), title=title)
    name_places(axis, place, sites, width=PHONE_WIDTH - 0.8 if is_for_phones() else wide - 2)
    if is_share:
        least = np.fmin.reduce([*np.concatenate(shown), 0.0])
        axis.set_ylim(max(lowest, least) - 0.02, 1.06)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.axhline(1, color=look.soft, linewidth=0.8, linestyle="--", zorder=0)
        axis.axhline(0, color=look.soft, linewidth=0.8, zorder=0)
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
    axis.set(xlabel=xlabel, ylabel=_broken(ylabel), title=title)
    say_if_empty(axis, *shown)
    legend_beside(axis)
    return finished(figure, look)


@checked
def plot_persistence(
    panels: Mapping[str, Mapping[str, tuple[Values, Values]]],
    *,
    ylabel: str,
    xlabel: str = "tokens after the edit",
    title: str = "",
    theme: ThemeName = "light",
) -> Figure:
    """How long edits last: a panel for each way of editing, in it a curve for each edit over the tokens since.

    `panels` maps the way to the edit's name to places and heights. Heights that span more than a factor of 30 get a
    logarithmic axis; a curve called `"none"` is dashed.

    Raises:
        ValueError: if there is no panel or no curve, or not a height for each place.
    """
    one_for_each(panels=panels)
    for way, curves in panels.items():
        one_for_each(**{f"panels[{way!r}]": curves})
        for name, (places, heights) in curves.items():
            one_for_each(**{f"the places of {name!r}": places, "its heights": heights})
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    figure, axes, look = new_figure(1.8 + 4.1 * len(panels), 3.6, theme, columns=len(panels), sharey=True)
    every = drawable([y for curves in panels.values() for _, heights in curves.values() for y in heights])
    above = every[every > 0]
    is_logarithmic = len(above) > 0 and above.max() > 30 * above.min()
    for axis, (way, curves) in zip(axes, panels.items(), strict=True):
        for name, (places, heights) in curves.items():
            index, y = names.index(name), positive(heights) if is_logarithmic else drawable(heights)
            style: Any = {"color": look.soft, "linestyle": "--"} if name == "none" else {"color": look.color(index)}
            style |= {"marker": marker(index), "markersize": 5, "linewidth": 1.4, "label": series_label(name)}
            axis.plot(drawable(places), y, **style)
        say_if_empty(axis, *(heights for _, heights in curves.values()))
        axis.set(xlabel=xlabel, title=way)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if is_logarithmic:
            axis.set_yscale("log")
    for axis in axes if is_for_phones() else axes[:1]:
        axis.set_ylabel(_broken(ylabel))
    legend_beside(axes[-1])
    if title:
        figure.suptitle(title)
    return finished(figure, look)
