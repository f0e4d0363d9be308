"""One number against one setting of many runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from msp_lens.figures.style import ThemeName, finish, legend_beside, new_figure, theme_named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A setting that spans more than this factor is drawn on a logarithmic axis.
WIDE = 8


def plot_sweep(
    curves: Mapping[str, tuple[Sequence[Any], Sequence[float]]],
    *,
    xlabel: str,
    ylabel: str,
    theme: ThemeName = "light",
) -> Figure:
    """A dot a run, and a line through the means where several lie over one place.

    Args:
        curves: Name to the places and heights of its runs; places are numbers, or names in the order met.
        xlabel: What the places are.
        ylabel: What the heights are. Errors and regrets are drawn on a logarithmic axis.
        theme: `"light"` or `"dark"`.
    """
    from matplotlib.ticker import FixedLocator, NullLocator

    look = theme_named(theme)
    figure = new_figure(6.8, 3.9, look)
    axis = figure.subplots()
    met = list(dict.fromkeys(place for places, _ in curves.values() for place in places))
    numeric = all(isinstance(place, int | float) and not isinstance(place, bool) for place in met)
    at = {place: float(place) if numeric else float(index) for index, place in enumerate(met)}
    for index, (name, (places, heights)) in enumerate(curves.items()):
        color = look.color(index)
        x, y = np.array([at[place] for place in places]), np.asarray(heights, dtype=float)
        along = np.unique(x)
        means = [y[x == place].mean() for place in along]
        axis.plot(along, means, color=color, linewidth=1.6, label=name)
        axis.scatter(x, y, color=color, s=22, alpha=0.7, edgecolor=look.paper, linewidth=0.5, zorder=3)
    ordered = sorted(at.values())
    if numeric and ordered[0] > 0 and ordered[-1] / ordered[0] > WIDE:
        axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(ordered))
    axis.xaxis.set_minor_locator(NullLocator())
    names = {value: f"{place:g}" if numeric else str(place) for place, value in at.items()}
    axis.set_xticklabels([names[value] for value in ordered])
    positive = all(height > 0 for _, heights in curves.values() for height in heights)
    if positive and ylabel.startswith(("MSE", "regret")):
        axis.set_yscale("log")
    axis.set(xlabel=xlabel, ylabel=ylabel)
    if len(curves) > 1:
        legend_beside(axis)
    finish(figure, look)
    return figure
