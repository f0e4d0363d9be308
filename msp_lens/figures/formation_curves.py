"""Curves over training: how well beliefs are read, how good predictions are, when beliefs are used, in which world.

Over the tokens seen at each checkpoint, or whatever else was `counted`, such as steps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from msp_lens._checks import checked
from msp_lens.figures.score_curves import scale_r2
from msp_lens.figures.style import (
    LARGEST,
    Curves,
    ThemeName,
    Values,
    draw_curve,
    drawable,
    finished,
    legend_beside,
    marker,
    new_figure,
    one_for_each,
    ordered_colors,
    say_if_empty,
    series_label,
)


@checked
def plot_emergence(
    tokens: Values,
    r2: Curves,
    mse: Curves,
    regret: Values,
    *,
    scored: str = "held out",
    counted: str = "tokens seen",
    theme: ThemeName = "light",
) -> Figure:
    """R² and MSE of beliefs at each site, and the mean regret in nats, over the tokens seen at each checkpoint.

    `scored` says which R² and MSE these are: held out, or in-sample.

    Raises:
        ValueError: if there is no site or no checkpoint, or not one of everything for each.
    """
    one_for_each(r2=r2)
    one_for_each(tokens=tokens, regret=regret, **_named("r2", r2, r2), **_named("mse", mse, r2))
    figure, axes, look = new_figure(13.2, 3.8, theme, columns=3)
    explained, error, predicted = axes
    # From dark to light along the forward pass; all sites concatenated stand out.
    single = [site for site in r2 if site != "concatenated"]
    colors = dict(zip(single, ordered_colors(len(single), look), strict=True))
    style: Any = {"marker": "o", "markersize": 3, "linewidth": 1.3}
    for site, values in r2.items():
        color = colors.get(site, look.color(1))
        explained.plot(tokens, drawable(values), color=color, label=series_label(site), **style)
        plot_positive(error, tokens, mse[site], color=color, **style)
    plot_positive(predicted, tokens, regret, color=look.ink, **style)
    scale_r2(explained, drawable(list(r2.values())).ravel().tolist())
    for axis, shown in zip(axes, (r2.values(), map(positive, mse.values()), [positive(regret)]), strict=True):
        say_if_empty(axis, *shown)
    titles = ("Beliefs: variance explained", "Beliefs: error", "Predictions: regret")
    labels = (f"R² of beliefs, {scored}", f"MSE of beliefs, {scored}", "regret (nats)")
    for axis, title, label in zip(axes, titles, labels, strict=True):
        scale_tokens(axis, tokens)
        axis.set(xlabel=counted, ylabel=label, title=title)
    explained.legend(frameon=False, fontsize=8, loc="lower right")
    return finished(figure, look)


@checked
def plot_regret_against_error(
    tokens: Values,
    regret: Values,
    mse: Curves,
    *,
    scored: str = "held out",
    counted: str = "tokens seen",
    theme: ThemeName = "light",
) -> Figure:
    """Mean regret in nats against the MSE of beliefs at each checkpoint, a panel for each site, colored by tokens seen.

    `scored` says which MSE this is: held out, or in-sample.

    Raises:
        ValueError: if there is no site or no checkpoint, or not one of everything for each.

    Source: Shai et al. 2024 (arXiv 2405.15943), figure S2.
    """
    one_for_each(mse=mse)
    one_for_each(tokens=tokens, regret=regret, **_named("mse", mse, mse))
    seen = np.asarray(tokens, dtype=float)
    lowest = min(seen[seen > 0], default=1.0)
    norm = LogNorm(lowest, max(seen.max(initial=lowest), 1.01 * lowest))
    figure, axes, look = new_figure(1.2 + 3.6 * len(mse), 3.8, theme, columns=len(mse), sharey=True)
    heights = positive(regret)
    for axis, (site, values) in zip(axes, mse.items(), strict=True):
        places = positive(values)
        axis.plot(places, heights, color=look.faint, linewidth=1, zorder=1)
        colors = {"c": np.maximum(seen, lowest), "cmap": "viridis", "norm": norm, "edgecolor": look.paper}
        axis.scatter(places, heights, s=34, zorder=2, **colors)
        say_if_empty(axis, places + heights)
        axis.set(xlabel=f"MSE of beliefs, {scored}", title=site)
        if np.isfinite(places).any():
            axis.set_xscale("log")
    axes[0].set_ylabel("regret (nats)")
    if np.isfinite(heights).any():
        axes[0].set_yscale("log")
    figure.colorbar(axes[0].collections[0], ax=axes, label=counted)
    return finished(figure, look)


@checked
def plot_use(
    tokens: Values,
    read: Curves,
    steer: Curves,
    placebo: Curves,
    donor: Curves,
    *,
    counted: str = "tokens seen",
    theme: ThemeName = "light",
) -> Figure:
    """When a belief can be read and when writing it begins to steer the network, a panel for each site.

    Over the tokens seen: the held-out R² of the site's probe (`read`), and the share of the KL to the target's optimum
    that is recovered by steering (`steer`), by a random step of equal norm (`placebo`), and by the activation of a run
    that held the target belief (`donor`).

    Raises:
        ValueError: if there is no site or no checkpoint, or not one of everything for each.
    """
    one_for_each(steer=steer)
    named = {"steer": steer, "read": read, "placebo": placebo, "donor": donor}
    curves = {name: values for kind, sites in named.items() for name, values in _named(kind, sites, steer).items()}
    one_for_each(tokens=tokens, **curves)
    figure, axes, look = new_figure(1.4 + 3.2 * len(steer), 3.6, theme, columns=len(steer), sharey=True)
    lowest = -0.55
    series = (
        ("probe: R² held out", read, look.color(0), "-"),
        ("steering: KL recovered", steer, look.color(1), "-"),
        ("donor: KL recovered", donor, look.color(2), ":"),
        ("placebo: KL recovered", placebo, look.soft, "--"),
    )
    for axis, site in zip(axes, steer, strict=True):
        for name, values, color, style in series:
            heights = drawable(values[site])
            axis.plot(tokens, heights, color=color, linestyle=style, marker="o", markersize=3.5, label=name)
            # What lies below the panel is marked at its foot.
            below = np.flatnonzero(heights < lowest)
            if len(below):
                foot = {"color": color, "clip_on": False, "zorder": 3}
                axis.plot(np.asarray(tokens)[below], np.full(len(below), lowest), "v", **foot)
        say_if_empty(axis, *(values[site] for _, values, *_ in series))
        axis.axhline(0, color=look.faint, linewidth=0.8, zorder=0)
        scale_tokens(axis, tokens)
        axis.set(title=site, xlabel=counted, ylim=(lowest, 1.05))
    axes[0].set_ylabel("R², or share of KL recovered")
    legend_beside(axes[-1])
    return finished(figure, look)


@checked
def plot_inferred(
    tokens: Values,
    states: Values,
    rank: Values,
    divergence: Values,
    by_states: Mapping[int, Values],
    *,
    is_trusted: Sequence[bool],
    counted: str = "tokens seen",
    theme: ThemeName = "light",
) -> Figure:
    """The process inferred at each checkpoint, over the tokens seen: its size, and what it leaves of the predictions.

    Left: its number of `states`, and the `rank` of the predictions. Right: its `divergence` in nats per token, and that
    of the best machine of each number of states. Processes that can be trusted are filled, others hollow.

    Raises:
        ValueError: if there is no checkpoint or no number of states, or not one of everything for each.
    """
    one_for_each(by_states=by_states)
    curves = {f"by_states[{number}]": values for number, values in by_states.items()}
    one_for_each(tokens=tokens, states=states, rank=rank, divergence=divergence, is_trusted=is_trusted, **curves)
    figure, (sizes, left), look = new_figure(10.4, 3.8, theme, columns=2)
    count, dimensions, reached = drawable(states), drawable(rank), positive(divergence)
    draw_curve(sizes, tokens, dimensions, color=look.soft, linestyle="--", label="rank of the predictions")
    draw_curve(sizes, tokens, count, color=look.color(0), linewidth=1.2, label="states of the inferred process")
    machines = {number: positive(values) for number, values in by_states.items()}
    for color, (number, heights) in zip(ordered_colors(len(machines), look), machines.items(), strict=True):
        label = f"{number} state{'s' * (number != 1)}"
        draw_curve(left, tokens, heights, color=color, linewidth=1.2, label=label)
    for axis, heights in ((sizes, count), (left, reached)):
        for trusted, label in ((True, "trusted"), (False, "in doubt")):
            shown = np.where(np.asarray(is_trusted, dtype=bool) == trusted, heights, np.nan)
            face = look.color(1) if trusted else look.paper
            style: Any = {"s": 46, "linewidth": 1.4, "zorder": 4, "edgecolor": look.color(1), "facecolor": face}
            axis.scatter(tokens, shown, label=label if np.isfinite(shown).any() else None, **style)
        scale_tokens(axis, tokens)
        legend_beside(axis)
    if any(np.isfinite(heights).any() for heights in (reached, *machines.values())):
        left.set_yscale("log")
    say_if_empty(sizes, count, dimensions)
    say_if_empty(left, reached, *machines.values())
    sizes.yaxis.set_major_locator(MaxNLocator(integer=True))
    sizes.set(xlabel=counted, ylabel="states", title="The world that the network believes in")
    left.set(xlabel=counted, ylabel="KL per token (nats)", title="What machines leave unexplained")
    return finished(figure, look)


@checked
def plot_measures(
    tokens: Values,
    panels: Mapping[str, Curves],
    *,
    levels: Mapping[str, Mapping[str, float | Any]] | None = None,
    logarithmic: Collection[str] = (),
    counted: str = "tokens seen",
    theme: ThemeName = "light",
) -> Figure:
    """Any measures over training, a panel for each, with the levels that they are compared with.

    Args:
        tokens: The tokens seen at each checkpoint, or whatever else is `counted`.
        panels: The curves of each panel, by what it measures; NaN leaves a gap.
        levels: Lines to draw across panels.
        logarithmic: The panels whose heights are on a logarithmic axis.
        counted: What the horizontal axis counts.
        theme: `"light"` or `"dark"`.

    Raises:
        ValueError: if there is no panel, curve or checkpoint, or not a value for each checkpoint.
    """
    one_for_each(panels=panels)
    for name, curves in panels.items():
        one_for_each(**{f"panels[{name!r}]": curves})
    every = {f"{kind}: {name}": values for kind, curves in panels.items() for name, values in curves.items()}
    one_for_each(tokens=tokens, **every)
    figure, axes, look = new_figure(1.6 + 5.0 * len(panels), 3.8, theme, columns=len(panels))
    for axis, (kind, curves) in zip(axes, panels.items(), strict=True):
        shown = {name: positive(each) if kind in logarithmic else drawable(each) for name, each in curves.items()}
        for index, (name, heights) in enumerate(shown.items()):
            # Where there are many, markers hide the curve.
            shape = marker(index) if len(heights) <= 40 else "none"
            style: Any = {"marker": shape, "markersize": 4, "label": series_label(name)}
            axis.plot(tokens, heights, color=look.color(index), **style)
        for (name, level), dashes in zip((levels or {}).get(kind, {}).items(), itertools.cycle((":", "--", "-."))):
            height = float(positive([level])[0] if kind in logarithmic else drawable([level])[0])
            if math.isfinite(height):
                axis.axhline(height, color=look.ink, linestyle=dashes, linewidth=1.2, label=series_label(name))
        if kind in logarithmic and any(np.isfinite(heights).any() for heights in shown.values()):
            axis.set_yscale("log")
        say_if_empty(axis, *shown.values())
        scale_tokens(axis, tokens)
        axis.set(xlabel=counted, ylabel=kind)
        axis.legend(frameon=False, fontsize=8, loc="best")
    return finished(figure, look)


def scale_tokens(axis: Axes, tokens: Values) -> None:
    """Put tokens on a logarithmic axis, linear from 0 to the first checkpoint after it if there is one at 0."""
    beyond_zero = [seen for seen in tokens if seen > 0]
    least, most = min(beyond_zero, default=1), max(beyond_zero, default=10)
    if min(tokens) > 0:
        axis.set_xscale("log")
        axis.set_xlim(0.8 * least, 1.25 * most)
    else:
        axis.set_xscale("symlog", linthresh=least, linscale=0.5)
        axis.set_xlim(-0.1 * least, 1.25 * most)
        # Ticks at 0 and at every power of ten that keeps clear of it.
        powers = [10.0**k for k in range(math.ceil(math.log10(least)), math.floor(math.log10(most)) + 1)]
        axis.set_xticks([0, *(power for power in powers if power > least)])
    axis.xaxis.set_minor_locator(NullLocator())


def positive(values: Values) -> np.ndarray:
    """The values, with a gap where a logarithmic axis has no place for them."""
    heights = drawable(values)
    return np.where(heights > 1 / LARGEST, heights, np.nan)


def plot_positive(axis: Axes, tokens: Values, values: Values, **style: Any) -> None:
    """Draw a curve on a logarithmic axis, with gaps where values are not positive."""
    heights = positive(values)
    axis.plot(tokens, heights, **style)
    if np.isfinite(heights).any():
        axis.set_yscale("log")


def _named(kind: str, curves: Curves, sites: Iterable[str]) -> dict[str, Values]:
    """The curves of these sites, by what a message calls them."""
    if missing := [site for site in sites if site not in curves]:
        raise ValueError(f"{kind} has no curve of {missing[0]!r}: give one for each site.")
    return {f"{kind}[{site!r}]": curves[site] for site in sites}
