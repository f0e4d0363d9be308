"""How a network holds beliefs, as curves: attention by lag, what else it holds, curvature, the geometry of factors."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from msp_lens._checks import checked
from msp_lens.figures.formation_curves import positive
from msp_lens.figures.score_curves import scale_r2
from msp_lens.figures.style import (
    PHONE_WIDTH,
    Curves,
    Theme,
    ThemeName,
    Values,
    draw_curve,
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
)


@checked
def plot_attention_by_lag(
    attention: Curves,
    effective: Curves,
    asked: Values,
    sites: Mapping[str, tuple[float | Any, float | Any]],
    *,
    rate: float | Any = None,
    theme: ThemeName = "light",
) -> Figure:
    """Attention over lag, what it adds beside what constrained beliefs ask for, and which beliefs each site follows.

    Args:
        attention: Mean attention of each head at lag 0, 1, …
        effective: What is added at each lag, in units of what a token says by itself.
        asked: What constrained beliefs ask for at each lag.
        sites: R² of the constrained and of the true beliefs at each site.
        rate: A rate to draw beside attention, from the greatest height at lag 1; only from 0 to 1 is it drawn.
        theme: `"light"` or `"dark"`.

    Raises:
        ValueError: if there is no head, site or lag, or not a value for each lag.
    """
    one_for_each(attention=attention)
    one_for_each(sites=sites)
    named = {f"attention[{name!r}]": values for name, values in attention.items()}
    named |= {f"effective[{name!r}]": values for name, values in effective.items()}
    one_for_each(asked=asked, **named)
    figure, (left, middle, right), look = new_figure(12.6, 3.8, theme, columns=3)
    lags = np.arange(len(asked))
    for index, (name, values) in enumerate(attention.items()):
        heights, color = drawable(values), look.color(index)
        # Lag 0 is apart, and a logarithmic axis has no place for what is not positive.
        shown = np.where(heights > 0, heights, np.nan)
        left.plot(lags, shown, marker=marker(index), markersize=5, color=color, label=series_label(name))
    if any((drawable(values) > 0).any() for values in attention.values()):
        left.set_yscale("log")
    highest = np.fmax.reduce([drawable(values)[1:2] for values in attention.values()])
    if rate is not None and 0 < rate <= 1 and (highest > 0).any():
        decaying = highest * rate ** (lags[1:] - 1.0)
        left.plot(lags[1:], decaying, color=look.ink, linestyle="--", linewidth=1.2, label=f"falling by {rate:.3g}")
    left.set(xlabel="lag", ylabel="mean attention", title="Attention", xticks=lags)
    left.legend(frameon=False, fontsize=8)
    middle.axhline(0, color=look.faint, linewidth=0.8)
    for index, (name, values) in enumerate(effective.items()):
        look_of = {"marker": marker(index), "color": look.color(index), "markersize": 5}
        middle.plot(lags, drawable(values), label=series_label(name), **look_of)
    middle.plot(lags, drawable(asked), color=look.ink, linestyle="--", linewidth=1.2, label="asked for")
    middle.set(xlabel="lag", ylabel="added, per unit of evidence", title="Effective attention", xticks=lags)
    middle.legend(frameon=False, fontsize=8)
    _compare(right, sites, ("constrained beliefs", "true beliefs"), look)
    right.set(ylabel="R², held out, each position by itself", title="Which beliefs each site follows")
    right.legend(frameon=False, fontsize=8)
    for axis, values in ((left, attention.values()), (middle, [asked, *effective.values()]), (right, sites.values())):
        say_if_empty(axis, *(drawable(each).flatten() for each in values))
    return finished(figure, look)


@checked
def plot_compared(
    sites: Mapping[str, Sequence[float | Any]],
    names: Sequence[str],
    *,
    intervals: Mapping[str, Sequence[tuple[float | Any, float | Any]]] | None = None,
    ylabel: str,
    title: str = "",
    theme: ThemeName = "light",
) -> Figure:
    """Several R² of each site side by side, one for each of the names, with the ends of their intervals if given.

    Raises:
        ValueError: if there is no site, or not a score and an interval for each name.
    """
    one_for_each(sites=sites)
    one_for_each(names=names, **{f"sites[{name!r}]": values for name, values in sites.items()})
    figure, (axis,), look = new_figure(max(6.4, 1.3 * len(sites) + 3), 3.8, theme)
    _compare(axis, sites, names, look, intervals)
    axis.set(ylabel=ylabel, title=title)
    say_if_empty(axis, *(drawable(values) for values in sites.values()))
    legend_beside(axis)
    return finished(figure, look)


def _compare(
    axis: Axes,
    sites: Mapping[str, Sequence[float | Any]],
    names: Sequence[str],
    look: Theme,
    intervals: Mapping[str, Sequence[tuple[float | Any, float | Any]]] | None = None,
) -> None:
    """A dot for each name at each site."""
    place, scores = np.arange(len(sites)), drawable(list(sites.values()))
    shown = scores.flatten().tolist()
    for index, name in enumerate(names):
        at = place + 0.2 * (index - (len(names) - 1) / 2)
        if intervals is not None:
            low, high = drawable([intervals[site][index] for site in sites]).T
            reach = np.clip(np.nan_to_num([scores[:, index] - low, high - scores[:, index]]), 0, None)
            axis.errorbar(at, scores[:, index], yerr=reach, fmt="none", ecolor=look.soft, elinewidth=1, capsize=2)
            shown += [*low.tolist(), *high.tolist()]
        axis.plot(at, scores[:, index], marker(index), color=look.color(index), markersize=7, label=series_label(name))
    scale_r2(axis, shown)
    axis.set_xticks(place, list(sites), rotation=25 if len(sites) > 4 else 0)
    axis.set_xlim(-0.5, len(sites) - 0.5)
    axis.grid(axis="y", color=look.faint, linewidth=0.4)


@checked
def plot_beyond_belief(
    lags: Sequence[int],
    curves: Mapping[str, Curves],
    regrets: Mapping[str, tuple[float | Any, float | Any]],
    *,
    alone: float | Any,
    worth: float | Any,
    theme: ThemeName = "light",
) -> Figure:
    """Partial R² of the past over lag, a panel for each kind of thing, and what erasing all of it costs at each site.

    Args:
        lags: How many tokens ago.
        curves: For each kind of thing, a curve for each site; NaN leaves a gap.
        regrets: For each site, the regret with it erased, and with as many random directions erased; nats.
        alone: The regret of the network left alone.
        worth: The regret of a predictor without context.
        theme: `"light"` or `"dark"`.

    Raises:
        ValueError: if there is no kind, site or lag, or not a value for each lag.
    """
    one_for_each(curves=curves)
    one_for_each(regrets=regrets)
    for sites in curves.values():
        one_for_each(lags=lags, **{f"the curve of {name!r}": values for name, values in sites.items()})
    figure, (*panels, costs), look = new_figure(4.2 * (len(curves) + 1), 3.8, theme, columns=len(curves) + 1)
    for axis, (kind, sites) in zip(panels, curves.items(), strict=True):
        colors = ordered_colors(len(sites), look)
        for index, ((name, values), color) in enumerate(zip(sites.items(), colors, strict=True)):
            style = {"marker": marker(index), "markersize": 5, "color": color}
            axis.plot(lags, drawable(values), label=series_label(name), **style)
        axis.axhline(0, color=look.faint, linewidth=0.8)
        axis.set(xlabel="tokens ago", ylabel="partial R², held out", title=f"The {kind}, given the belief", xticks=lags)
        say_if_empty(axis, *(drawable(values) for values in sites.values()))
        axis.legend(frameon=False, fontsize=8)
    place, heights = np.arange(len(regrets)), drawable(list(regrets.values()))
    for index, name in enumerate(("erased", "as many at random")):
        costs.plot(place + 0.1 * (2 * index - 1), heights[:, index], marker(index), color=look.color(index), label=name)
    levels = drawable([alone, worth])
    for level, name, dashes in zip(levels, ("left alone", "without context"), ("--", ":"), strict=True):
        if level > 0:
            costs.axhline(level, color=look.ink, linestyle=dashes, linewidth=1, label=name)
    known = np.array([*heights.flatten(), *levels])
    known = known[known > 0]
    if len(known):
        # Two decades at least: a small change should look small.
        costs.set_yscale("log", nonpositive="mask")
        costs.set_ylim(known.min() / 2, max(known.max() * 2, 100 * known.min()))
    costs.set(ylabel="regret (nats)", title="Erased beyond the belief", xlim=(-0.5, len(regrets) - 0.5))
    costs.set_xticks(place, list(regrets), rotation=25 if len(regrets) > 3 else 0)
    say_if_empty(costs, heights.flatten())
    legend_beside(costs)
    return finished(figure, look)


@checked
def plot_factor_geometry(
    explained: Curves,
    predicted: Curves,
    sites: Sequence[str],
    overlaps: Curves,
    *,
    chance: Values,
    share: float = 0.95,
    theme: ThemeName = "light",
) -> Figure:
    """Left, the share of variance in the first principal components; right, the overlap of factors' subspaces by site.

    Args:
        explained: For each network, the cumulated shares.
        predicted: The same of beliefs, drawn broken.
        sites: Labels of the sites.
        overlaps: For each network, the mean overlap at each site.
        chance: That of random subspaces, at each site.
        share: The share whose number of components is compared, drawn as a line.
        theme: `"light"` or `"dark"`.

    Raises:
        ValueError: if there is no network or site, or not an overlap for each site.
    """
    one_for_each(explained=explained)
    one_for_each(sites=sites, chance=chance, **{f"overlaps[{name!r}]": values for name, values in overlaps.items()})
    figure, (left, right), look = new_figure(10.5, 3.8, theme, columns=2)
    for index, (name, values) in enumerate(explained.items()):
        heights, label = drawable(values), series_label(name)
        draw_curve(left, list(range(1, len(heights) + 1)), heights, color=look.color(index), label=label)
    for (name, values), style in zip(predicted.items(), ("--", ":", "-."), strict=False):
        heights = drawable(values)
        places = list(range(1, len(heights) + 1))
        draw_curve(left, places, heights, color=look.ink, linestyle=style, label=f"predicted: {name}")
    left.axhline(share, color=look.faint, linewidth=1)
    most = max(
        (int((drawable(values) < 0.99).sum()) for values in (*explained.values(), *predicted.values())), default=1
    )
    left.set(xlabel="principal components", ylabel="share of the variance", xlim=(0.5, most + 1.5), ylim=(0, 1.02))
    left.legend(frameon=False, fontsize=8, loc="lower right")
    for index, (name, values) in enumerate(overlaps.items()):
        style: Any = {"color": look.color(index), "marker": marker(index), "label": series_label(name)}
        right.plot(range(len(sites)), _between_0_and_1(values), **style)
    right.plot(range(len(sites)), _between_0_and_1(chance), color=look.ink, linestyle=":", label="random subspaces")
    right.set_xticks(range(len(sites)), list(sites), rotation=45, ha="right")
    right.set_ylabel("overlap of factors' subspaces")
    shown = np.concatenate([_between_0_and_1(values) for values in (chance, *overlaps.values())])
    if np.isfinite(shown).any():
        right.set(yscale="log", ylim=(0.5 * np.nanmin(shown), 1.5))
    say_if_empty(right, shown)
    legend_beside(right)
    return finished(figure, look)


def _between_0_and_1(values: Values) -> np.ndarray:
    """The values that a logarithmic axis of shares has a place for; the others leave gaps."""
    heights = drawable(values)
    return np.where((heights > 1e-30) & (heights <= 1), heights, np.nan)


@checked
def plot_lens(
    sites: Sequence[str],
    predictions: Curves,
    beliefs: Curves,
    *,
    levels: Mapping[str, float | Any] | None = None,
    theme: ThemeName = "light",
) -> Figure:
    """What each layer would predict and believe: KL to the optimal prediction in nats, and R² of the belief, by site.

    `levels` are drawn across the first panel.

    Raises:
        ValueError: if there is no site or no curve, or not a value for each site.
    """
    one_for_each(predictions=predictions)
    one_for_each(beliefs=beliefs)
    named = {f"predictions[{name!r}]": values for name, values in predictions.items()}
    named |= {f"beliefs[{name!r}]": values for name, values in beliefs.items()}
    one_for_each(sites=sites, **named)
    width = max(10.4, 2 * (0.7 * len(sites) + 2.6))
    figure, (left, right), look = new_figure(width, 3.8, theme, columns=2)
    place = np.arange(len(sites))
    distances = {name: positive(values) for name, values in predictions.items()}
    scores = {name: drawable(values) for name, values in beliefs.items()}
    for axis, curves in ((left, distances), (right, scores)):
        for index, (name, heights) in enumerate(curves.items()):
            style: Any = {"marker": marker(index), "markersize": 6, "linewidth": 1.3, "label": series_label(name)}
            draw_curve(axis, place, heights, color=look.color(index), **style, markevery=None)
        name_places(axis, place, sites, width=PHONE_WIDTH - 0.8 if is_for_phones() else width / 2 - 1)
        axis.grid(axis="y", color=look.faint, linewidth=0.4)
        say_if_empty(axis, *curves.values())
    for (name, level), dashes in zip((levels or {}).items(), itertools.cycle(("--", ":", "-."))):
        (height,) = positive([level])
        if np.isfinite(height):
            left.axhline(height, color=look.soft, linewidth=1.2, linestyle=dashes, label=series_label(name))
    drawn = np.concatenate([*distances.values(), positive(list((levels or {}).values()))])
    if np.isfinite(drawn).any():
        left.set_yscale("log")
        # Lines across the panel leave no free corner, so there is room for the legend above them.
        left.set_ylim(np.nanmin(drawn) / 2, 5 * np.nanmax(drawn))
    scale_r2(right, [value for heights in scores.values() for value in heights])
    left.set(ylabel="KL to the optimal prediction (nats)", title="Prediction, if the network ended there")
    right.set(ylabel="R² of beliefs", title="Belief, read there")
    left.legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
    right.legend(frameon=False, fontsize=8, loc="best")
    return finished(figure, look)
