"""Curves over training: how well beliefs are read, how far predictions are from the optimum, when beliefs are used."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from msp_lens.figures.style import Curves, ThemeName, Values, finished, legend_beside, new_figure, ordered_colors


def plot_emergence(
    tokens: Values, r2: Curves, mse: Curves, regret: Values, *, scored: str = "held out", theme: ThemeName = "light"
) -> Figure:
    """R² and MSE of beliefs at each site, and the mean regret in nats, over the tokens seen at each checkpoint.

    `scored` says which R² and MSE these are: held out, or in-sample.
    """
    figure, axes, look = new_figure(13.2, 3.8, theme, columns=3)
    explained, error, predicted = axes
    # From dark to light along the forward pass; all sites concatenated stand out.
    single = [site for site in r2 if site != "concatenated"]
    colors = dict(zip(single, ordered_colors(len(single), look), strict=True))
    style: Any = {"marker": "o", "markersize": 3, "linewidth": 1.3}
    for site, values in r2.items():
        color = colors.get(site, look.color(1))
        explained.plot(tokens, values, color=color, label=site, **style)
        plot_positive(error, tokens, mse[site], color=color, **style)
    plot_positive(predicted, tokens, regret, color=look.ink, **style)
    known = [value for values in r2.values() for value in values if math.isfinite(value)]
    explained.set_ylim(max(min(known, default=0.0) - 0.05, -0.5), 1.01)
    titles = ("Beliefs: variance explained", "Beliefs: error", "Predictions: regret")
    labels = (f"R² of beliefs, {scored}", f"MSE of beliefs, {scored}", "regret (nats)")
    for axis, title, label in zip(axes, titles, labels, strict=True):
        scale_tokens(axis, tokens)
        axis.set(xlabel="tokens seen", ylabel=label, title=title)
    explained.legend(frameon=False, fontsize=8, loc="lower right")
    return finished(figure, look)


def plot_regret_against_error(
    tokens: Values, regret: Values, mse: Curves, *, scored: str = "held out", theme: ThemeName = "light"
) -> Figure:
    """Mean regret in nats against the MSE of beliefs at each checkpoint, a panel for each site, colored by tokens seen.

    `scored` says which MSE this is: held out, or in-sample.

    Source: Shai et al. 2024 (arXiv 2405.15943), figure S2.
    """
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
        axis.set(xlabel=f"MSE of beliefs, {scored}", title=site)
        if np.isfinite(places).any():
            axis.set_xscale("log")
    axes[0].set_ylabel("regret (nats)")
    if np.isfinite(heights).any():
        axes[0].set_yscale("log")
    figure.colorbar(axes[0].collections[0], ax=axes, label="tokens seen")
    return finished(figure, look)


def plot_use(
    tokens: Values, read: Curves, steer: Curves, placebo: Curves, donor: Curves, *, theme: ThemeName = "light"
) -> Figure:
    """When a belief can be read and when writing it begins to steer the network, a panel for each site.

    Over the tokens seen: the held-out R² of the site's probe (`read`), and the share of the KL to the target's optimum
    that is recovered by steering (`steer`), by a random step of equal norm (`placebo`), and by the activation of a run
    that held the target belief (`donor`).
    """
    figure, axes, look = new_figure(1.4 + 3.2 * len(steer), 3.6, theme, columns=len(steer), sharey=True)
    series = (
        ("probe: R² held out", read, look.color(0), "-"),
        ("steering: KL recovered", steer, look.color(1), "-"),
        ("donor: KL recovered", donor, look.color(2), ":"),
        ("placebo: KL recovered", placebo, look.soft, "--"),
    )
    for axis, site in zip(axes, steer, strict=True):
        for name, values, color, style in series:
            axis.plot(tokens, values[site], color=color, linestyle=style, marker="o", markersize=3.5, label=name)
        axis.axhline(0, color=look.faint, linewidth=0.8, zorder=0)
        scale_tokens(axis, tokens)
        axis.set(title=site, xlabel="tokens seen", ylim=(-0.55, 1.05))
    axes[0].set_ylabel("R², or share of KL recovered")
    legend_beside(axes[-1])
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
    heights = np.asarray(values, dtype=float)
    return np.where(heights > 0, heights, np.nan)


def plot_positive(axis: Axes, tokens: Values, values: Values, **style: Any) -> None:
    """Draw a curve on a logarithmic axis, with gaps where values are not positive."""
    heights = positive(values)
    axis.plot(tokens, heights, **style)
    if np.isfinite(heights).any():
        axis.set_yscale("log")
