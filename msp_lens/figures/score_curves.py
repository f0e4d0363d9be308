"""Scores of probes as curves: R² by rank and by position, the crossover with windows, and distances kept or lost.

Near 1 an R² is read by what is missing from it: where scores are high, equal steps up the axis divide the share that
is left unexplained, 1 - R², by equal factors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from msp_lens.figures.labels import spread_out
from msp_lens.figures.style import (
    Theme,
    ThemeName,
    finish,
    legend_beside,
    marker,
    new_figure,
    ordered_colors,
    theme_named,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What is left unexplained below this is rounding: the axis reaches 1 there.
LEAST_LEFT = 1e-7
# Scores below this say no more than "worse than nothing", and would squeeze the others.
LOWEST = -1.0
NINES = (-1.0, 0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999, 1.0)
BETWEEN_NINES = (0.2, 0.7, 0.8, 0.95, 0.98, 0.995, 0.998, 0.9995, 0.9998)
HEXAGONS = 120


def plot_r2(
    places: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    *,
    xlabel: str,
    title: str = "",
    ylabel: str = "R² of beliefs, held out",
    theme: ThemeName = "light",
) -> Figure:
    """R² over ranks or positions, a curve for each site in the order of the forward pass.

    Args:
        places: Ranks, or positions.
        curves: Site to R² at each place; NaN where there is none.
        xlabel: What the places are.
        title: Over the figure.
        ylabel: Which R² it is.
        theme: `"light"` or `"dark"`.
    """
    look = theme_named(theme)
    figure = new_figure(6.8, 3.8, look)
    axis = figure.subplots()
    for index, ((name, values), color) in enumerate(
        zip(curves.items(), ordered_colors(len(curves), look), strict=True)
    ):
        axis.plot(places, values, color=color, marker=marker(index), markersize=5, linewidth=1.3, label=name)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title, xticks=places)
    scale_r2(axis, [value for values in curves.values() for value in values])
    axis.grid(axis="y", color=look.faint, linewidth=0.4)
    legend_beside(axis)
    finish(figure, look)
    return figure


def plot_crossover(
    lengths: Sequence[int],
    windows: Mapping[str, Sequence[float]],
    sites: Mapping[str, float],
    *,
    title: str = "Where a window of the last k tokens overtakes the network",
    theme: ThemeName = "light",
) -> Figure:
    """R² of windows over their length, and that of each site as a level; a ring where the first window overtakes it.

    Args:
        lengths: How many of the last tokens the windows see, k.
        windows: Kind of window to R² held out at each length; NaN where there is none.
        sites: Site to R² held out.
        title: Over the figure.
        theme: `"light"` or `"dark"`.
    """
    look = theme_named(theme)
    figure = new_figure(7.6, 4.4, look)
    axis = figure.subplots()
    for index, (name, values) in enumerate(windows.items()):
        axis.plot(lengths, values, color=look.color(index), marker=marker(index), markersize=6, label=name)
    scale_r2(axis, [*sites.values(), *(value for values in windows.values() for value in values)])
    best = np.nanmax(np.asarray(list(windows.values()), dtype=float), axis=0)
    for value in sites.values():
        if value < LOWEST:
            continue
        axis.axhline(value, color=look.faint, linewidth=0.9, zorder=0)
        overtaken = np.flatnonzero(best >= value)
        if len(overtaken):
            axis.plot(
                [lengths[overtaken[0]]], [value], "o", markersize=11, markerfacecolor="none", markeredgecolor=look.ink
            )
    _name_levels(axis, sites, look)
    axis.set(xlabel="tokens in the window, k", ylabel="R² of beliefs, held out", xticks=lengths, title=title)
    axis.legend(frameon=False, loc="lower right")
    finish(figure, look)
    return figure


def plot_distances(
    represented: np.ndarray,
    against: Mapping[str, tuple[np.ndarray, float]],
    *,
    weights: np.ndarray | None = None,
    ylabel: str = "distance between represented beliefs",
    theme: ThemeName = "light",
) -> Figure:
    """Distances between represented beliefs over other distances of the same pairs, the darker the more pairs.

    Args:
        represented: `[pair]`, distance in the network.
        against: What the other distances are between, to their values `[pair]` and the R² to be written over them.
        weights: `[pair]`, how much each counts; all alike by default.
        ylabel: What the distances in the network are between.
        theme: `"light"` or `"dark"`.

    Source: Shai et al. 2024 (arXiv 2405.15943), figure 7D.
    """
    from matplotlib.colors import LogNorm

    look = theme_named(theme)
    counts = np.ones(len(represented)) if weights is None else weights / weights.mean()
    figure = new_figure(4.6 * len(against), 4.2, look)
    axes = figure.subplots(1, len(against), squeeze=False, sharey=True)[0]
    for axis, (name, (distances, r2)) in zip(axes, against.items(), strict=True):
        density, xs, ys = np.histogram2d(distances, represented, bins=HEXAGONS, weights=counts)
        shown = np.ma.masked_less_equal(density.T, 0)
        norm = LogNorm(vmin=max(shown.min(), 1e-4 * shown.max()), vmax=shown.max())
        # Dark on light paper and light on dark: the most pairs stand out most.
        color_map = "Blues" if theme == "light" else "Blues_r"
        axis.pcolormesh(xs, ys, shown, cmap=color_map, norm=norm, rasterized=True)
        slope, intercept = _line(distances, represented, counts)
        ends = np.array([xs[0], xs[-1]])
        axis.plot(ends, intercept + slope * ends, color=look.color(1), linewidth=1.2)
        axis.set(xlabel=f"distance between {name}", title=f"R² {r2:.4f}", xlim=(0, None), ylim=(0, None))
    axes[0].set_ylabel(ylabel)
    finish(figure, look)
    return figure


def _line(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Slope and intercept of weighted least squares."""
    share = weights / weights.sum()
    mean_x, mean_y = share @ x, share @ y
    spread = share @ (x - mean_x) ** 2
    slope = float(share @ ((x - mean_x) * (y - mean_y)) / spread) if spread > 0 else 0.0
    return slope, float(mean_y - slope * mean_x)


def scale_r2(axis: Axes, values: Sequence[float]) -> None:
    """Stretch the axis towards 1 where scores come near it, and let it end where they do."""
    finite = np.asarray([value for value in values if np.isfinite(value)])
    if len(finite) == 0:
        return
    low, high = max(float(finite.min()), LOWEST), float(finite.max())
    if high <= 0.9:
        pad = 0.06 * max(high - low, 0.05)
        axis.set_ylim(low - pad, high + pad)
        return
    axis.set_yscale("function", functions=(_stretched, _unstretched))
    ends = _stretched(np.array([low, high]))
    pad = 0.06 * (ends[1] - ends[0]) + 0.02
    bottom, top = _unstretched(np.array([ends[0] - pad, ends[1] + pad]))
    axis.set_ylim(bottom, top)
    axis.set_yticks(_ticks(float(bottom), float(top)))
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.7g}")


def _ticks(bottom: float, top: float) -> list[float]:
    """Round scores within the axis, those between the nines only where there is room for them."""
    nines = [tick for tick in NINES if bottom <= tick <= top]
    more = [tick for tick in BETWEEN_NINES if bottom <= tick <= top]
    return nines if len(nines) > 3 else sorted(nines + more)


def _stretched(r2: np.ndarray) -> np.ndarray:
    return -np.log10(np.maximum(1 + LEAST_LEFT - np.asarray(r2, dtype=float), 0.1 * LEAST_LEFT))


def _unstretched(height: np.ndarray) -> np.ndarray:
    return 1 + LEAST_LEFT - 10 ** -np.asarray(height, dtype=float)


def _name_levels(axis: Axes, levels: Mapping[str, float], look: Theme) -> None:
    """Each level's name at the right edge, pushed apart where levels lie close together."""
    # A level that lies below the axis is named at its foot.
    low, high = axis.get_ylim()
    shown = {name: min(max(value, low), high) for name, value in levels.items() if not np.isnan(value)}
    to_axes = axis.get_yaxis_transform(which="grid")
    heights = axis.transAxes.inverted().transform(
        axis.transData.transform([(axis.get_xlim()[0], value) for value in shown.values()])
    )[:, 1]
    for (name, value), height in zip(shown.items(), spread_out(heights, gap=0.045), strict=True):
        axis.annotate(
            f"{name} {levels[name]:.4f}",
            xy=(1.0, value),
            xycoords=to_axes,
            xytext=(1.04, height),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            arrowprops={
                "arrowstyle": "-",
                "color": look.faint,
                "linewidth": 0.7,
                "shrinkA": 0,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )
