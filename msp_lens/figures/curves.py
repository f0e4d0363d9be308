"""Curves and bars: training against the optimum, regret by position, R² by site beside its controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from msp_lens.figures.score_curves import scale_r2
from msp_lens.figures.style import ThemeName, finish, legend_beside, new_figure, theme_named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Site labels longer than this are turned, so as not to run into one another.
LONG = 8


def plot_training(
    tokens: Sequence[float], regret: Sequence[float], by_position: Sequence[float] = (), *, theme: ThemeName = "light"
) -> Figure:
    """Regret over training, estimated on each batch's own tokens, and at the end by position; in nats.

    Args:
        tokens: Tokens seen at each record.
        regret: Loss minus the optimal observer's loss on the same tokens.
        by_position: Exact regret at each position after training, in a panel of its own.
        theme: `"light"` or `"dark"`.
    """
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    look = theme_named(theme)
    figure = new_figure(10.4 if len(by_position) else 6.8, 3.4, look)
    over_time, *beside = figure.subplots(1, 2 if len(by_position) else 1, squeeze=False)[0]
    # An estimate of a small regret may fall below 0, where a logarithmic axis ends.
    positive = np.where(np.asarray(regret) > 0, regret, np.nan)
    over_time.plot(tokens, positive, color=look.color(0), linewidth=1.2)
    over_time.set(xscale="log", yscale="log", xlabel="tokens seen", ylabel="regret (nats)")
    # A training may see less than a decade of tokens: some marks within one are named, but not all.
    over_time.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    over_time.xaxis.set_major_formatter(EngFormatter())
    over_time.xaxis.set_minor_formatter(NullFormatter())
    over_time.set_title("Loss above the optimum, while training")
    for over_position in beside:
        over_position.bar(range(len(by_position)), by_position, color=look.color(0))
        over_position.set(xlabel="position", ylabel="regret (nats)", xticks=range(len(by_position)))
        over_position.set_title("At the end, over every possible word")
    finish(figure, look)
    return figure


def plot_regret(regret: Sequence[float], floor: Sequence[float], *, theme: ThemeName = "light") -> Figure:
    """The model's loss at each position on top of the least possible, and what lies between them; in nats.

    Args:
        regret: E KL(optimal next token ‖ model's) at each position.
        floor: The optimal observer's loss at each position.
        theme: `"light"` or `"dark"`.

    Raises:
        ValueError: if there is not one floor for each regret.
    """
    if len(regret) != len(floor):
        raise ValueError(f"{len(regret)} regrets and {len(floor)} floors: give one of each for every position.")
    look = theme_named(theme)
    place, least = np.arange(len(regret)), np.asarray(floor, dtype=float)
    figure = new_figure(10.4, 3.4, look)
    losses, above = figure.subplots(1, 2)
    reached = least + np.asarray(regret, dtype=float)
    bottom = least.min() - 0.4 * max(float(np.ptp(reached)), 0.05)
    losses.fill_between(place, bottom, least, color=look.wash, linewidth=0, label="least possible loss")
    losses.plot(place, least, color=look.soft, linewidth=1)
    losses.plot(place, reached, color=look.color(0), marker="o", markersize=5, label="model's loss")
    losses.set(xlabel="position", ylabel="loss (nats)", xticks=place, ylim=(bottom, None))
    losses.set_title("Loss on the next token")
    losses.legend(frameon=False, loc="upper right")
    above.bar(place, regret, color=look.color(0))
    above.set(xlabel="position", ylabel="regret (nats)", xticks=place)
    above.set_title("Above the floor")
    if np.min(regret) > 0 and np.max(regret) > 30 * np.min(regret):
        above.set_yscale("log")
    else:
        above.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4))
    finish(figure, look)
    return figure


def plot_sites(
    labels: Sequence[str],
    held_out: Sequence[float],
    in_sample: Sequence[float],
    shuffled: Sequence[float],
    *,
    control: Sequence[float] | None = None,
    intervals: Sequence[tuple[float, float]] | None = None,
    theme: ThemeName = "light",
) -> Figure:
    """R² at each site, held out and in-sample, beside shuffled beliefs, the best control behind them.

    Where scores come near 1, a second panel stretches the axis there.

    Args:
        labels: The sites'.
        held_out: R² held out.
        in_sample: R² in-sample.
        shuffled: R² of a probe of shuffled beliefs, in-sample.
        control: R² held out of the best control at each site, a broad bar behind its bars.
        intervals: Ends of each held-out R²'s interval.
        theme: `"light"` or `"dark"`.
    """
    look = theme_named(theme)
    is_crowded = np.nanmax([*held_out, 0.0]) > 0.9
    figure = new_figure(max(6.4, 0.95 * len(labels) + 2.6) * (1.75 if is_crowded else 1), 3.8, look)
    axis, *more = figure.subplots(1, 2 if is_crowded else 1, squeeze=False, width_ratios=(4, 3)[: 1 + is_crowded])[0]
    place = np.arange(len(labels))
    held, inside, chance = (np.asarray(values, dtype=float) for values in (held_out, in_sample, shuffled))
    marks = np.full(len(labels), np.nan) if control is None else np.asarray(control, dtype=float)
    low, high = np.full((len(labels), 2), np.nan).T if intervals is None else np.asarray(intervals, dtype=float).T
    reach = np.clip(np.nan_to_num([held - low, high - held]), 0, None)
    error = {"fmt": "none", "ecolor": look.ink, "elinewidth": 1, "capsize": 2, "zorder": 4}

    if not np.isnan(marks).all():
        axis.bar(place, np.nan_to_num(marks), width=0.92, color=look.wash, label="best control, held out")
        axis.hlines(marks, place - 0.46, place + 0.46, color=look.ink, linewidth=1.2, zorder=3)
    series = {
        "held out": (held, look.color(0)),
        "in-sample": (inside, look.color(1)),
        "shuffled beliefs, in-sample": (chance, look.palette[8]),
    }
    for index, (name, (values, color)) in enumerate(series.items()):
        axis.bar(place + (index - 1) * 0.24, np.nan_to_num(values), width=0.22, color=color, label=name)
    axis.errorbar(place - 0.24, np.nan_to_num(held), yerr=reach, **error)
    lowest = max(np.nanmin([*held, *chance, 0.0]), -0.5)
    axis.set(xticks=place, ylabel="R² of beliefs", ylim=(lowest, 1.02))
    axis.set_xticks(place, labels, rotation=25 if is_crowded or max(map(len, labels)) > LONG else 0)

    if more:
        near = more[0]
        near.bar(place, marks + 9, bottom=-9, width=0.92, color=look.wash)
        near.hlines(marks, place - 0.46, place + 0.46, color=look.ink, linewidth=1.2)
        near.errorbar(place - 0.12, held, yerr=reach, **error)
        near.plot(place - 0.12, held, "o", color=look.color(0), markersize=7)
        near.plot(place + 0.12, inside, "s", color=look.color(1), markersize=6)
        scale_r2(near, [*held, *inside, *marks, *np.where(np.isfinite(low), low, held)])
        near.set_xticks(place, labels, rotation=25)
        near.set_title("The same near 1")
    legend_beside((more or [axis])[0], *axis.get_legend_handles_labels())
    finish(figure, look)
    return figure
