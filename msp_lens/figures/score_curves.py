"""Scores of probes as curves: R² by rank and by position, those of classes, the crossover with windows, distances.

Where scores come near 1, equal steps up the axis divide the unexplained share, 1 - R², by equal factors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from msp_lens._checks import checked
from msp_lens.figures.placement import spread_out
from msp_lens.figures.style import (
    LONGEST_NAME,
    Curves,
    Theme,
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
    ordered_colors,
    say_if_empty,
    series_label,
    shortened,
)

# An unexplained share below this is rounding: the axis reaches 1 there.
LEAST_LEFT = 1e-7
# Lower scores all say "worse than the mean", and would squeeze the others.
LOWEST = -1.0


@checked
def plot_r2(
    places: Values,
    curves: Curves,
    *,
    xlabel: str,
    title: str = "",
    ylabel: str = "R² of beliefs, held out",
    theme: ThemeName = "light",
) -> Figure:
    """R² over ranks or positions, a curve for each site in the order of the forward pass; NaN leaves a gap.

    Raises:
        ValueError: if there is no curve or no place, or not a score for each place.
    """
    one_for_each(curves=curves)
    one_for_each(places=places, **{f"curves[{name!r}]": values for name, values in curves.items()})
    heights = {name: drawable(values) for name, values in curves.items()}
    figure, (axis,), look = new_figure(6.8, 3.8, theme)
    colors = ordered_colors(len(curves), look)
    for index, ((name, values), color) in enumerate(zip(heights.items(), colors, strict=True)):
        axis.plot(
            places, values, color=color, marker=marker(index), markersize=5, linewidth=1.3, label=series_label(name)
        )
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title, xticks=places)
    scale_r2(axis, [value for values in heights.values() for value in values])
    say_if_empty(axis, *heights.values())
    axis.grid(axis="y", color=look.faint, linewidth=0.4)
    legend_beside(axis)
    return finished(figure, look)


@checked
def plot_learning_curves(
    ranges: Sequence[tuple[int | Any, int | Any]],
    curves: Curves,
    *,
    intervals: Mapping[str, Sequence[tuple[float | Any, float | Any]]] | None = None,
    title: str = "Frozen probes, by position",
    ylabel: str = "R² of beliefs",
    theme: ThemeName = "light",
) -> Figure:
    """R² over ranges of positions, each from its first to its last, and the ends of each score's interval as a band.

    Where ranges are wider than one position, the axis is logarithmic in the number of tokens read, the position + 1.

    Raises:
        ValueError: if there is no curve or no range, not a score for each range, or a first position below 0 or above
            the last.
    """
    one_for_each(curves=curves)
    named = {f"curves[{name!r}]": values for name, values in curves.items()}
    named |= {f"intervals[{name!r}]": values for name, values in (intervals or {}).items()}
    one_for_each(ranges=ranges, **named)
    first, last = drawable(np.asarray(ranges, dtype=float).reshape(-1, 2)).T
    if not ((first >= 0) & (last >= first)).all():
        raise ValueError(f"ranges={list(ranges)}: give pairs of a first position, at least 0, and a last one.")
    is_wide = bool((last > first).any())
    places = np.sqrt((first + 1) * (last + 1)) if is_wide else first
    figure, (axis,), look = new_figure(7.2, 4.0, theme)
    shown: list[float] = []
    for index, ((name, values), color) in enumerate(
        zip(curves.items(), ordered_colors(len(curves), look), strict=True)
    ):
        heights = drawable(values)
        shown += heights.tolist()
        style: Any = {"marker": marker(index), "markersize": 4, "linewidth": 1.3, "label": series_label(name)}
        axis.plot(places, heights, color=color, **style)
        if intervals is not None and name in intervals:
            ends = drawable(np.asarray(intervals[name], dtype=float).reshape(-1, 2))
            axis.fill_between(places, *ends.T, color=color, alpha=0.18, linewidth=0)
    finite = np.minimum([value for value in shown if np.isfinite(value)], 1.0)
    if len(finite) and np.median(finite) > 0.9:
        scale_r2(axis, shown)
    elif len(finite):
        # One token is often read exactly: an axis stretched for it would squeeze the rest of the curve.
        low, high = max(float(finite.min()), LOWEST), max(float(finite.max()), LOWEST)
        pad = 0.06 * max(high - low, 0.05)
        axis.set_ylim(low - pad, high + pad)
    if is_wide:
        axis.set_xscale("log")
        # Without a finite score, the axis would find no place for its limits.
        axis.set_xlim(0.9 * places[0], places[-1] / 0.9)
        axis.xaxis.set_major_formatter(_seven_digits)
    else:
        axis.set_xticks(places)
    axis.set(xlabel="tokens read" if is_wide else "position", ylabel=ylabel, title=title)
    say_if_empty(axis, shown)
    axis.grid(axis="y", color=look.faint, linewidth=0.4)
    legend_beside(axis)
    return finished(figure, look)


@checked
def plot_parts(
    labels: Sequence[str],
    held_out: Curves,
    *,
    controls: Curves | None = None,
    intervals: Mapping[str, Sequence[tuple[float | Any, float | Any]]] | None = None,
    title: str = "Parts of the belief by site; bars: best control",
    theme: ThemeName = "light",
) -> Figure:
    """Held-out R² of several things at each site: points side by side, each with its best control as a bar.

    They are the parts of a belief, or several networks. `held_out` and `controls` have a curve for each over the sites,
    `intervals` the ends of each score's interval.

    Raises:
        ValueError: if there is no site or no part, or not a score for each site.
    """
    one_for_each(held_out=held_out)
    named = {f"held_out[{name!r}]": values for name, values in held_out.items()}
    named |= {f"controls[{name!r}]": values for name, values in (controls or {}).items()}
    named |= {f"intervals[{name!r}]": values for name, values in (intervals or {}).items()}
    one_for_each(labels=labels, **named)
    heights = {name: drawable(values) for name, values in held_out.items()}
    figure, (axis,), look = new_figure(max(6.4, 1.1 * len(labels) + 2.6), 3.8, theme)
    place, step = np.arange(len(labels)), 0.7 / len(heights)
    shown = [value for values in heights.values() for value in values]
    for index, (name, values) in enumerate(heights.items()):
        at, color = place + (index - (len(heights) - 1) / 2) * step, look.color(index)
        if controls is not None and name in controls:
            marks = drawable(controls[name])
            axis.hlines(marks, at - 0.4 * step, at + 0.4 * step, color=color, linewidth=2.5, alpha=0.45, zorder=2)
            shown += marks.tolist()
        if intervals is not None and name in intervals:
            ends = drawable(np.asarray(intervals[name], dtype=float).reshape(-1, 2))
            axis.vlines(at, *ends.T, color=look.ink, linewidth=1, zorder=3)
        axis.plot(
            at, values, linestyle="none", marker=marker(index), color=color, markersize=7, label=series_label(name)
        )
    scale_r2(axis, shown)
    say_if_empty(axis, *heights.values())
    axis.set(ylabel="R², held out", title=title)
    axis.set_xticks(place, labels, rotation=25 if max(map(len, labels)) > 8 else 0)
    axis.grid(axis="y", color=look.faint, linewidth=0.4)
    legend_beside(axis)
    return finished(figure, look)


@checked
def plot_score_columns(
    columns: Mapping[str, Mapping[str, Sequence[Any]]], *, title: str | None = None, theme: ThemeName = "light"
) -> Figure:
    """Held-out R² at each site of several networks, a panel each, with the best control as a bar behind.

    A column has `labels` of sites, `held_out` and, if known, `control` and the ends of `intervals`. All share one axis.

    Raises:
        ValueError: if there is no column or no site, or not a score for each site.
    """
    one_for_each(columns=columns)
    for name, each in columns.items():
        one_for_each(**{f"columns[{name!r}] {what}": values for what, values in each.items()})
    figure, axes, look = new_figure(1.2 + 3.4 * len(columns), 4.0, theme, columns=len(columns), sharey=True)
    shown: list[float] = []
    for axis, (name, each) in zip(axes, columns.items(), strict=True):
        held, place = drawable(each["held_out"]), np.arange(len(each["labels"]))
        if "control" in each and np.isfinite(marks := drawable(each["control"])).any():
            # The bars begin below the panel.
            axis.bar(place, marks + 9, bottom=-9, width=0.9, color=look.wash, label="best control")
            axis.hlines(marks, place - 0.45, place + 0.45, color=look.ink, linewidth=1.2)
            shown += marks.tolist()
        if "intervals" in each:
            ends = drawable(np.asarray(each["intervals"], dtype=float).reshape(-1, 2))
            axis.vlines(place, *ends.T, color=look.ink, linewidth=1, zorder=3)
            shown += ends.flatten().tolist()
        axis.plot(place, held, "o", color=look.color(0), markersize=7, zorder=4, label="held out")
        shown += held.tolist()
        say_if_empty(axis, held)
        axis.set_title(shortened(name, LONGEST_NAME), fontsize=11)
        axis.set_xlim(-0.6, len(place) - 0.4)
        axis.grid(axis="y", color=look.faint, linewidth=0.4)
        axis.set_axisbelow(True)
        name_places(axis, place, each["labels"], width=2.8)
    for axis in axes:
        scale_r2(axis, shown)
    for axis in axes if is_for_phones() else axes[:1]:
        axis.set_ylabel("R², held out")
    legend_beside(axes[-1])
    if title:
        figure.suptitle(title)
    return finished(figure, look)


@checked
def plot_classes(
    labels: Sequence[str],
    accuracy: Curves,
    cross_entropy: Curves,
    reliability: Mapping[str, Sequence[tuple[float | Any, float | Any, float | Any]]],
    *,
    accuracy_intervals: Sequence[Sequence[float | Any]] = (),
    cross_entropy_intervals: Sequence[Sequence[float | Any]] = (),
    commonest: float | Any = math.nan,
    entropy: float | Any = math.nan,
    theme: ThemeName = "light",
) -> Figure:
    """Accuracy and cross-entropy of classes at each site, and how often predictions of some confidence are right.

    `accuracy` and `cross_entropy` have a curve for each kind of rows over the sites; intervals are the first curve's.
    `reliability` maps names to bins of (confidence, accuracy, share of rows); a point's area is its share. Lines show
    what needs no network: the accuracy of the commonest class, the entropy of the classes' shares; for calibration, a
    confidence that holds.

    Raises:
        ValueError: if there is no site, no curve, or not a score for each site.
    """
    given = {"accuracy": (accuracy, accuracy_intervals), "cross_entropy": (cross_entropy, cross_entropy_intervals)}
    for name, (curves, intervals) in given.items():
        one_for_each(**{name: curves})
        named = {f"{name}[{key!r}]": values for key, values in curves.items()}
        named |= {f"{name}_intervals": intervals} if len(intervals) else {}
        one_for_each(labels=labels, **named)
    figure, axes, look = new_figure(max(12.5, 1.2 * len(labels) + 9), 3.6, theme, columns=3)
    place = np.arange(len(labels))
    titles = ("Accuracy; dashed: the commonest class", "Cross-entropy; dashed: the classes' entropy")
    panels = zip(axes, given.values(), titles, ("accuracy", "nats"), (commonest, entropy), strict=False)
    for axis, (curves, intervals), title, unit, baseline in panels:
        (level,) = drawable([baseline])
        if np.isfinite(level):
            axis.axhline(level, color=look.soft, linewidth=1, linestyle="--")
        for index, (name, values) in enumerate(curves.items()):
            style = {"color": look.color(index), "marker": marker(index), "markersize": 6, "linewidth": 1.2}
            axis.plot(place, drawable(values), label=series_label(name), **style)
        if len(intervals):
            ends = drawable(np.asarray(intervals, dtype=float).reshape(-1, 2))
            axis.vlines(place, *ends.T, color=look.color(0), linewidth=1.2)
        say_if_empty(axis, *map(drawable, curves.values()))
        axis.set(ylabel=unit, title=title)
        axis.set_xticks(place, labels, rotation=25 if max(map(len, labels)) > 4 or len(labels) > 5 else 0)
        axis.grid(axis="y", color=look.faint, linewidth=0.4)
    legend_beside(axes[1])
    axis = axes[2]
    axis.plot([0, 1], [0, 1], color=look.soft, linewidth=1, linestyle="--")
    for index, (name, bins) in enumerate(reliability.items()):
        confidence, right, share = drawable(np.asarray(bins, dtype=float).reshape(-1, 3)).T
        axis.plot(confidence, right, color=look.color(index), linewidth=1.2, zorder=2)
        size = 8 + 180 * np.nan_to_num(np.clip(share, 0, 1))
        style = {"color": look.color(index), "marker": marker(index), "alpha": 0.8, "zorder": 3}
        axis.scatter(confidence, right, s=size, label=series_label(name), **style)
    axis.set(xlabel="confidence", ylabel="accuracy", title="Calibration; area: share of rows")
    axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.05))
    if reliability:
        legend_beside(axis)
    return finished(figure, look)


@checked
def plot_crossover(
    lengths: Sequence[int],
    windows: Curves,
    sites: Mapping[str, float | Any],
    *,
    of: str = "beliefs",
    theme: ThemeName = "light",
) -> Figure:
    """Held-out R² of windows over their length k, and of each site as a level, ringed where a window first reaches it.

    `windows` has a curve for each kind of window, NaN where there is none; `of` is what is read.

    Raises:
        ValueError: if there is no window, or not a score for each length.
    """
    one_for_each(windows=windows)
    one_for_each(lengths=lengths, **{f"windows[{name!r}]": values for name, values in windows.items()})
    heights = {name: drawable(values) for name, values in windows.items()}
    sites = dict(zip(sites, drawable(list(sites.values())).tolist(), strict=True))
    figure, (axis,), look = new_figure(7.6, 4.4, theme)
    for index, (name, values) in enumerate(heights.items()):
        axis.plot(
            lengths, values, color=look.color(index), marker=marker(index), markersize=6, label=series_label(name)
        )
    scale_r2(axis, [*sites.values(), *(value for values in heights.values() for value in values)])
    best = np.fmax.reduce(list(heights.values()))
    for value in sites.values():
        if not value >= LOWEST:
            continue
        axis.axhline(value, color=look.faint, linewidth=0.9, zorder=0)
        overtaken = np.flatnonzero(best >= value)
        if len(overtaken):
            axis.plot(lengths[overtaken[0]], value, "o", markersize=11, mfc="none", mec=look.ink)
    _name_levels(axis, sites, look)
    axis.set(xlabel="tokens in the window, k", ylabel=f"R² of {of}, held out", xticks=lengths)
    axis.set_title("Probes of the network and windows of the last k tokens")
    axis.legend(frameon=False, loc="lower right")
    return finished(figure, look)


@checked
def plot_distances(
    represented: np.ndarray,
    against: Mapping[str, tuple[np.ndarray, float | None]],
    *,
    weights: np.ndarray | None = None,
    ylabel: str = "distance between represented beliefs",
    theme: ThemeName = "light",
) -> Figure:
    """Distances between represented beliefs over other distances of the same pairs; the more pairs, the darker.

    Arrays are `[pair]`. `against` maps what the other distances are between to their values and the R² in the panel's
    title (`None` where it is not defined); `weights` says how much each pair counts (default: all alike), `ylabel` what
    the represented distances are. Pairs without finite distances are not drawn.

    Raises:
        ValueError: if there is no pair of finite distances, or not one of everything for each pair.

    Source: Shai et al. 2024 (arXiv 2405.15943), figure 7D.
    """
    one_for_each(against=against)
    counts = np.ones(len(represented)) if weights is None else weights / weights.mean()
    named = {f"against[{name!r}]": distances for name, (distances, _) in against.items()}
    one_for_each(represented=represented, weights=counts, **named)
    figure, axes, look = new_figure(4.6 * len(against), 4.2, theme, columns=len(against), sharey=True)
    for axis, (name, (distances, r2)) in zip(axes, against.items(), strict=True):
        x, y = drawable(distances), drawable(represented)
        known = np.isfinite(x + y + drawable(counts))
        if not counts[known].any():
            raise ValueError(f"represented and against[{name!r}]: no pair has finite distances, give one at least.")
        x, y, weight = x[known], y[known], counts[known]
        density, xs, ys = np.histogram2d(x, y, bins=120, weights=weight)
        shown = np.ma.masked_less_equal(density.T, 0)
        norm = LogNorm(vmin=max(shown.min(), 1e-4 * shown.max()), vmax=shown.max())
        # The densest cells stand out most: dark on light paper, light on dark.
        axis.pcolormesh(xs, ys, shown, cmap="Blues" if theme == "light" else "Blues_r", norm=norm, rasterized=True)
        # A slope needs two different distances; polyfit weighs residuals, not their squares.
        degree = int(np.ptp(x) > 1e-9 * np.abs(x).max())
        line = np.polyfit(x, y, degree, w=np.sqrt(weight))
        axis.plot(xs[[0, -1]], np.polyval(line, xs[[0, -1]]), color=look.color(1), linewidth=1.2)
        title = "R² not defined" if r2 is None else f"R² {r2:.4f}"
        axis.set(xlabel=f"distance between {name}", title=title, xlim=(0, None), ylim=(0, None))
    axes[0].set_ylabel(ylabel)
    return finished(figure, look)


def scale_r2(axis: Axes, values: Values) -> None:
    """Fit the axis to the scores, and stretch it toward 1 where they come near it."""
    # No score is above 1 but by rounding.
    finite = np.minimum([value for value in values if np.isfinite(value)], 1.0)
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
    nines = np.array([-1.0, 0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999, 1.0])
    between = np.array([0.2, 0.7, 0.8, 0.95, 0.98, 0.995, 0.998, 0.9995, 0.9998])
    # Scores between the nines are named only where there is room.
    is_sparse = ((nines >= bottom) & (nines <= top)).sum() <= 3
    ticks = np.concatenate([nines, between]) if is_sparse else nines
    axis.set_yticks(sorted(ticks[(ticks >= bottom) & (ticks <= top)]))
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(_seven_digits)


def _seven_digits(value: float, _: float | None) -> str:
    return f"{value:.7g}"


def _stretched(r2: np.ndarray) -> np.ndarray:
    return -np.log10(np.maximum(1 + LEAST_LEFT - np.asarray(r2, dtype=float), 0.1 * LEAST_LEFT))


def _unstretched(height: np.ndarray) -> np.ndarray:
    # Matplotlib also asks for places far below the axis.
    return 1 + LEAST_LEFT - 10 ** np.minimum(-np.asarray(height, dtype=float), 300)


def _name_levels(axis: Axes, levels: Mapping[str, float], look: Theme) -> None:
    """Write each level's name at the right edge, spread out where levels lie close together."""
    # A level below the axis is named at its foot.
    low, high = axis.get_ylim()
    shown = {name: min(max(value, low), high) for name, value in levels.items() if not np.isnan(value)}
    if not shown:
        return
    places = axis.transData.transform([(axis.get_xlim()[0], value) for value in shown.values()])
    heights = spread_out(axis.transAxes.inverted().transform(places)[:, 1], gap=0.045)
    line = {"arrowstyle": "-", "color": look.faint, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0.5)}
    style: Any = {"xycoords": axis.get_yaxis_transform(which="grid"), "textcoords": "axes fraction", "arrowprops": line}
    for (name, value), height in zip(shown.items(), heights, strict=True):
        text = f"{name} {levels[name]:.4f}"
        axis.annotate(text, xy=(1.0, value), xytext=(1.04, height), va="center", fontsize=8, **style)
