"""Curves and bars: training and regret, R² by site with its controls, a number over a setting, what was inferred."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator

from msp_lens._checks import Count, checked
from msp_lens.figures.formation_curves import positive
from msp_lens.figures.score_curves import scale_r2
from msp_lens.figures.style import (
    PHONE_WIDTH,
    Curves,
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
    rendered,
    say_if_empty,
    series_label,
)

# A singular value below this share of the largest is drawn there: it is rounding.
_LOWEST = 1e-6
# Fewer nats than these are nothing but the rounding of sums.
_NOTHING = 1e-12


@checked
def plot_training(tokens: Values, regret: Values, by_position: Values = (), *, theme: ThemeName = "light") -> Figure:
    """Regret in nats over the tokens seen, and exact regret by position after training, if given.

    During training it is each batch's loss minus the optimal observer's loss on the same tokens.

    Raises:
        ValueError: if there is not one regret for each number of tokens.
    """
    if len(tokens) or len(regret):
        one_for_each(tokens=tokens, regret=regret)
    width, columns = (10.4, 2) if len(by_position) else (6.8, 1)
    figure, (over_time, *more), look = new_figure(width, 3.4, theme, columns=columns)
    # An estimate of a small regret may fall below 0, which has no place on a logarithmic axis.
    heights, seen = positive(regret), positive(tokens)
    if np.isfinite(heights).any():
        over_time.set_yscale("log")
    else:
        heights = drawable(regret)
    draw_curve(over_time, seen, heights, color=look.color(0), linewidth=1.2)
    say_if_empty(over_time, seen + heights)
    over_time.set(xlabel="tokens seen", ylabel="regret (nats)", title="Regret during training")
    if np.isfinite(seen).any():
        over_time.set_xscale("log")
        # A run may span less than a decade of tokens, so two ticks per decade are named.
        over_time.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        over_time.xaxis.set_major_formatter(EngFormatter())
        over_time.xaxis.set_minor_formatter(NullFormatter())
    for axis in more:
        place = range(len(by_position))
        axis.bar(place, drawable(by_position), color=look.color(0))
        say_if_empty(axis, by_position)
        axis.set(xlabel="position", ylabel="regret (nats)", xticks=place, title="Regret after training, by position")
    return finished(figure, look)


@checked
def plot_regret(regret: Values, floor: Values, *, theme: ThemeName = "light") -> Figure:
    """The model's loss at each position, the optimal loss, and their difference; in nats.

    `regret` is E KL(optimal next token ‖ model's) at each position, `floor` the optimal observer's loss there.

    Raises:
        ValueError: if there is no regret, or not one floor for each.
    """
    one_for_each(regret=regret, floor=floor)
    place, least, excess = np.arange(len(regret)), drawable(floor), drawable(regret)
    figure, (losses, above), look = new_figure(10.4, 3.4, theme, columns=2)
    reached = least + excess
    known = reached[np.isfinite(reached)]
    lowest = np.fmin.reduce(least)
    bottom = (lowest if np.isfinite(lowest) else 0.0) - 0.4 * max(np.ptp(known) if len(known) else 0.0, 0.05)
    losses.fill_between(place, bottom, least, color=look.wash, linewidth=0, label="optimal loss")
    losses.plot(place, least, color=look.soft, linewidth=1)
    losses.plot(place, reached, color=look.color(0), marker="o", markersize=5, label="model's loss")
    losses.set(xlabel="position", ylabel="loss (nats)", xticks=place, ylim=(bottom, None), title="Next-token loss")
    losses.legend(frameon=False, loc="upper right")
    say_if_empty(losses, reached)
    above.bar(place, excess, color=look.color(0))
    say_if_empty(above, excess)
    above.set(xlabel="position", ylabel="regret (nats)", xticks=place, title="Regret: loss above the optimum")
    if np.fmin.reduce(excess) > 0 and np.fmax.reduce(excess) > 30 * np.fmin.reduce(excess):
        above.set_yscale("log")
    else:
        above.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4))
    return finished(figure, look)


@checked
def plot_learning(
    entropies: Values,
    oracle: Values,
    limit: Values = (),
    *,
    networks: Curves | None = None,
    title: str = "",
    theme: ThemeName = "light",
) -> Figure:
    """What an observer of a mixture and one who knows the component lose at each token, and the difference; in nats.

    `limit`, if given, is what the difference is compared with, 1/(2ℓ); `networks` what networks lose more than the one
    who knows, by name, NaN where one predicts nothing.

    Raises:
        ValueError: if there is no entropy, or not one of the oracle's, or of the others given, for each.
    """
    networks = networks or {}
    named = {f"networks[{name!r}]": values for name, values in networks.items()}
    one_for_each(entropies=entropies, oracle=oracle, **named, **({"limit": limit} if len(limit) else {}))
    place, informed, learning = np.arange(1, len(entropies) + 1), drawable(oracle), drawable(entropies)
    figure, (losses, above), look = new_figure(10.4, 3.4, theme, columns=2)
    losses.plot(place, learning, color=look.color(0), linewidth=1.6, label="observer of the mixture")
    losses.plot(place, informed, color=look.color(1), linewidth=1.6, label="who knows the component")
    losses.set(xlabel="token ℓ", ylabel="entropy of the token (nats)", title=title)
    losses.xaxis.set_major_locator(MaxNLocator(integer=True))
    losses.legend(frameon=False, loc="best")
    say_if_empty(losses, learning)
    excess = learning - informed
    excess = positive(np.where(excess > _NOTHING, excess, np.nan).tolist())
    above.plot(place, excess, color=look.color(0), linewidth=1.6, label="excess")
    if len(limit):
        above.plot(place, positive(limit), color=look.soft, linewidth=1.2, linestyle="--", label="1/(2ℓ)")
    for index, (name, values) in enumerate(networks.items(), start=2):
        dots: Any = {"marker": marker(index), "markersize": 5, "linestyle": "none", "label": series_label(name)}
        above.plot(place, positive(values), color=look.color(index), **dots)
    if len(limit) or networks:
        above.legend(frameon=False, loc="best")
    above.set(xlabel="token ℓ", ylabel="excess (nats)", xscale="log", title="What not knowing costs")
    above.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    above.xaxis.set_major_formatter("{x:g}")
    above.xaxis.set_minor_formatter(NullFormatter())
    if np.isfinite(excess).any():
        above.set_yscale("log")
    say_if_empty(above, excess)
    return finished(figure, look)


@checked
def plot_sites(
    labels: Sequence[str],
    held_out: Values,
    in_sample: Values,
    shuffled: Values,
    *,
    control: Values | None = None,
    intervals: Sequence[tuple[float | Any, float | Any]] | None = None,
    rivals: Mapping[str, Values] | None = None,
    of: str = "beliefs",
    theme: ThemeName = "light",
) -> Figure:
    """R² at each site with its controls; where scores come near 1, the axis is stretched there.

    `shuffled` is the in-sample R² of a probe of shuffled beliefs, `control` the held-out R² of the best control (a wide
    bar behind the site's marks), `intervals` the ends of each held-out R²'s interval, `rivals` by name the held-out R²
    with which each site reads a rival (a diamond): a site follows the rival where it reads that better. A score below
    the axis is marked at its foot. `of` is what is read.

    Raises:
        ValueError: if there is no site, or not one of everything for each.
    """
    given = {"control": control, "intervals": intervals}
    more_values = {name: values for name, values in given.items() if values is not None}
    more_values |= {f"rivals[{name!r}]": values for name, values in (rivals or {}).items()}
    one_for_each(labels=labels, held_out=held_out, in_sample=in_sample, shuffled=shuffled, **more_values)
    held, inside, chance = map(drawable, (held_out, in_sample, shuffled))
    width = max(6.4, 1.05 * len(labels) + 3)
    figure, (axis,), look = new_figure(width, 4.2, theme)
    place, unknown = np.arange(len(labels)), np.full(len(labels), np.nan)
    marks = unknown if control is None else drawable(control)
    low, high = (unknown, unknown) if intervals is None else drawable(np.asarray(intervals)).T
    reach = np.clip(np.nan_to_num([held - low, high - held]), 0, None)
    if np.isfinite(marks).any():
        # The bars begin below the panel.
        axis.bar(place, marks + 9, bottom=-9, width=0.9, color=look.wash, label="best control, held out")
        axis.hlines(marks, place - 0.45, place + 0.45, color=look.ink, linewidth=1.2)
    axis.errorbar(place - 0.12, held, yerr=reach, fmt="none", ecolor=look.ink, elinewidth=1, capsize=2)
    read = {f"{name}, as read there": drawable(values) for name, values in (rivals or {}).items()}
    series: dict[str, tuple[np.ndarray, float, str, str]] = {
        "held out": (held, -0.12, look.color(0), "o"),
        "in-sample": (inside, 0.12, look.color(1), "s"),
        f"shuffled {of}, in-sample": (chance, 0.0, look.color(8), "^"),
    }
    series |= {name: (values, 0.0, look.color(2 + index), "D") for index, (name, values) in enumerate(read.items())}
    every = [value for values, *_ in series.values() for value in values]
    scale_r2(axis, [*every, *marks, *np.where(np.isfinite(low), low, held)])
    foot = axis.get_ylim()[0]
    for name, (values, shift, color, shape) in series.items():
        style: Any = {"color": color, "markersize": 7, "linestyle": "none", "zorder": 4, "markeredgecolor": look.paper}
        axis.plot(place + shift, values, shape, label=series_label(name), **style)
        if len(below := np.flatnonzero(values < foot)):
            axis.plot(place[below] + shift, np.full(len(below), foot), "v", clip_on=False, **style)
    say_if_empty(axis, every)
    is_stretched = axis.get_yscale() != "linear"
    axis.set(ylabel=f"R² of {of} (stretched near 1)" if is_stretched else f"R² of {of}")
    axis.set_xlim(-0.6, len(labels) - 0.4)
    axis.grid(axis="y", color=look.faint, linewidth=0.4)
    axis.set_axisbelow(True)
    name_places(axis, place, labels, width=PHONE_WIDTH - 0.8 if is_for_phones() else width - 3)
    legend_beside(axis)
    return finished(figure, look)


@checked
def plot_sweep(
    curves: Mapping[str, tuple[Sequence[Any], Values]],
    *,
    xlabel: str,
    ylabel: str,
    is_error: bool = False,
    theme: ThemeName = "light",
) -> Figure:
    """One number over one setting of many runs: a dot for each run and a line through the means.

    `curves` maps a name to the places and heights of its runs. Places are names in the order met, or numbers, which get
    a logarithmic axis if they span more than a factor of 8; so do the heights if `is_error` and all are positive.

    Raises:
        ValueError: if there is no run, or not one height for each place.
    """
    one_for_each(curves=curves)
    for name, (places, heights) in curves.items():
        one_for_each(**{f"the places of {name!r}": places, "its heights": heights})
    figure, (axis,), look = new_figure(6.8, 3.9, theme)
    met = list(dict.fromkeys(place for places, _ in curves.values() for place in places))
    numeric = all(isinstance(place, int | float) and not isinstance(place, bool) for place in met)
    numeric = numeric and bool(np.isfinite(drawable(met)).all())
    at = {place: float(place) if numeric else float(index) for index, place in enumerate(met)}
    shown: list[np.ndarray] = []
    for index, (name, (places, heights)) in enumerate(curves.items()):
        color = look.color(index)
        x, y = np.array([at[place] for place in places]), drawable(heights)
        along = np.unique(x)
        axis.plot(
            along, [y[x == place].mean() for place in along], color=color, linewidth=1.6, label=series_label(name)
        )
        shown.append(y)
        axis.scatter(x, y, color=color, s=22, alpha=0.7, edgecolor=look.paper, linewidth=0.5, zorder=3)
    ordered = sorted(at.values())
    if numeric and ordered[0] > 0 and ordered[-1] / ordered[0] > 8:
        axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(ordered))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticklabels([f"{place:g}" if numeric else str(place) for place in sorted(at, key=at.__getitem__)])
    if is_error and all((heights > 0).all() for heights in shown):
        axis.set_yscale("log")
    say_if_empty(axis, *shown)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    if len(curves) > 1:
        legend_beside(axis)
    return finished(figure, look)


@checked
def plot_inference(
    singular_values: Values,
    noise: float,
    rank: Count,
    divergence: Mapping[int, float | Any],
    *,
    chosen: int | None = None,
    ylabel: str = "KL per token (nats)",
    machines: Sequence[Figure] = (),
    theme: ThemeName = "light",
) -> Figure:
    """The singular values of the predictive states, the divergence by number of states, and drawings of machines.

    Args:
        singular_values: From the largest.
        noise: Below this they mean nothing.
        rank: How many count.
        divergence: For each number of states, what its machine leaves.
        chosen: The number of states chosen, if one was.
        ylabel: What the divergence is.
        machines: Figures of machines, such as `process.plot()`, to be shown beside; in the same theme.
        theme: `"light"` or `"dark"`.

    Raises:
        ValueError: if there are no singular values or no numbers of states.
    """
    sizes, left = drawable(singular_values), drawable(list(divergence.values()))
    one_for_each(singular_values=sizes)
    one_for_each(divergence=divergence)
    columns = 2 + len(machines)
    figure, axes, look = new_figure(3.6 * columns, 3.4, theme, columns=columns)
    largest = np.nanmax(sizes) if np.isfinite(sizes).any() else 1.0
    relative = np.maximum(sizes / largest if largest > 0 else sizes, _LOWEST)[: max(rank + 6, 8)]
    places = np.arange(1, len(relative) + 1)
    colors = [look.color(0) if place <= rank else look.soft for place in places.tolist()]
    axes[0].scatter(places, relative, color=colors, zorder=3)
    axes[0].axhspan(_LOWEST / 2, max(noise / largest if largest > 0 else 0.0, _LOWEST), color=look.wash, linewidth=0)
    axes[0].set(yscale="log", ylim=(_LOWEST / 2, 2), xlabel="dimension", ylabel="singular value (relative)")
    axes[0].set_title(f"Predictive states: rank {rank}; shaded: noise", fontsize=10)
    # What an exact machine leaves is 0, which a logarithmic axis has no place for: it is drawn at the bottom.
    numbers, positive = np.array(list(divergence)), np.where(left < _NOTHING, _NOTHING, left)
    draw_curve(axes[1], numbers, positive, color=look.soft, marker="o", markersize=4, markevery=None)
    if chosen is not None and chosen in divergence:
        axes[1].scatter([chosen], [positive[list(divergence).index(chosen)]], color=look.color(1), s=60, zorder=4)
    axes[1].set(xlabel="states", ylabel=ylabel)
    if np.isfinite(positive).any() and np.nanmax(positive) > 10 * np.nanmin(positive):
        axes[1].set_yscale("log")
    axes[1].set_title("Machines by number of states", fontsize=10)
    for axis in axes[:2]:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis, machine in zip(axes[2:], machines, strict=True):
        axis.imshow(np.asarray(rendered(machine, 200)), aspect="equal", interpolation="antialiased")
        axis.set_axis_off()
    return finished(figure, look)
