"""Curves and bars: training against the optimum, regret by position, error by site beside its control."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito's palette: told apart by readers with any kind of colour vision.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "0.6"


def plot_training(tokens: Sequence[float], regret: Sequence[float], by_position: Sequence[float]) -> Figure:
    """Regret over training, estimated on each batch's own tokens, and at the end by position; in nats.

    Args:
        tokens: Tokens seen at each record.
        regret: Loss minus the optimal observer's loss on the same tokens.
        by_position: Exact regret at each position after training.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 3.4), layout="constrained")
    over_time, over_position = figure.subplots(1, 2)
    # An estimate of a small regret may fall below 0, where a logarithmic axis ends.
    positive = np.where(np.asarray(regret) > 0, regret, np.nan)
    over_time.plot(tokens, positive, color=BLUE, linewidth=1.2)
    over_time.set(xscale="log", yscale="log", xlabel="tokens seen", ylabel="regret (nats)")
    over_time.set_title("Loss above the optimum, while training")
    over_position.bar(range(len(by_position)), by_position, color=BLUE)
    over_position.set(xlabel="position", ylabel="regret (nats)", xticks=range(len(by_position)))
    over_position.set_title("At the end, over every possible word")
    _plain(figure)
    return figure


def plot_sites(
    labels: Sequence[str],
    held_out: Sequence[float],
    in_sample: Sequence[float],
    shuffled: Sequence[float],
    *,
    control: Sequence[float] | None = None,
    intervals: Sequence[tuple[float, float]] | None = None,
) -> Figure:
    """R² at each site, held out and in-sample, beside a probe of shuffled beliefs.

    Args:
        labels: The sites'.
        held_out: R² held out.
        in_sample: R² in-sample.
        shuffled: R² of a probe of shuffled beliefs, in-sample.
        control: R² held out of the best control at each site, a mark across its bars.
        intervals: Ends of each held-out R²'s interval.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 3.4), layout="constrained")
    axis = figure.subplots()
    place = np.arange(len(labels))
    series = {
        "held out": (held_out, BLUE),
        "in-sample": (in_sample, ORANGE),
        "shuffled beliefs, in-sample": (shuffled, GREY),
    }
    for index, (name, (values, colour)) in enumerate(series.items()):
        heights = np.nan_to_num(np.asarray(values, dtype=float))
        axis.bar(place + (index - 1) * 0.27, heights, width=0.25, color=colour, label=name)
    if intervals is not None:
        low, high = np.asarray(intervals, dtype=float).T
        middle = np.asarray(held_out, dtype=float)
        reach = np.clip(np.nan_to_num([middle - low, high - middle]), 0, None)
        axis.errorbar(
            place - 0.27, np.nan_to_num(middle), yerr=reach, fmt="none", ecolor="0.2", elinewidth=1, capsize=2
        )
    if control is not None and not np.isnan(control).all():
        marks = np.asarray(control, dtype=float)
        axis.hlines(marks, place - 0.45, place + 0.45, color="0.1", linewidth=1.6, label="best control, held out")
    lowest = np.nanmin([*held_out, *shuffled, 0.0])
    axis.set(xticks=place, xticklabels=labels, ylabel="R² of beliefs", ylim=(max(lowest, -0.5), 1.02))
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    _plain(figure)
    return figure


def _plain(figure: Figure) -> None:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
