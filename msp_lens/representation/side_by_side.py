"""Several processes or networks in one picture: their beliefs, or how well each site reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from msp_lens._checks import checked
from msp_lens.beliefs import attractor
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.processes.process import Process

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.style import ThemeName

Subject = ProbeReport | Process
# Points of a process's fractal.
N_POINTS = 100_000


@checked
def side_by_side(
    subjects: Mapping[str, Subject] | Sequence[Subject],
    *,
    show: Literal["beliefs", "scores"] = "beliefs",
    title: str | None = None,
    theme: ThemeName = "light",
) -> Figure:
    """Several processes or reports in one figure, a column each.

    Of a report, its true beliefs and below them those read at its best site, or with `show="scores"` held-out R² at
    every site with the best control; of a process alone, the beliefs that an observer can reach.

    Args:
        subjects: Reports of `probe`, or processes; by name, or in order, named by their process.
        show: `"beliefs"` or `"scores"`, of which processes alone have none.
        title: Over the whole figure.
        theme: `"light"` or `"dark"`.

    Raises:
        ValueError: if there is no subject, a process alone is asked for scores, or a report of labelled tokens for
            beliefs.

    Example:
        >>> import msp_lens as msp
        >>> figure = side_by_side([msp.mess3(), msp.processes.mess3(x=0.15, a=0.6)])
        >>> len(figure.axes)
        2
    """
    from msp_lens.figures.score_curves import plot_score_columns
    from msp_lens.figures.simplex import plot_belief_columns

    named = dict(subjects) if isinstance(subjects, Mapping) else _named(subjects)
    if not named:
        raise ValueError("subjects=[]: give at least one report or process.")
    if show == "scores":
        if alone := [name for name, each in named.items() if isinstance(each, Process)]:
            raise ValueError(
                f"{alone[0]} is a process and has no scores: give the report of msp.probe(model, process)."
            )
        columns = {name: _scores(each) for name, each in named.items() if isinstance(each, ProbeReport)}
        return plot_score_columns(columns, title=title, theme=theme)
    beliefs: dict[str, dict[str, Tensor]] = {}
    options: dict[str, dict[str, Any]] = {"weights": {}, "states": {}}
    for name, each in named.items():
        if isinstance(each, Process):
            beliefs[name] = {"beliefs that can be reached": attractor(each, N_POINTS, even=True, seed=0)}
            options["states"][name] = each.states
            continue
        if each.process is None:
            raise ValueError(
                f"{name} is a report of labelled tokens and has no picture of beliefs: choose show='scores'."
            )
        beliefs[name], weights, states = each.plot.best_beliefs()
        options["weights"][name], options["states"][name] = weights, states
    return plot_belief_columns(beliefs, **options, title=title, theme=theme)


def _named(subjects: Sequence[Subject]) -> dict[str, Subject]:
    """Each under its process's name, numbered where several share it."""
    names = []
    for each in subjects:
        process = each if isinstance(each, Process) else each.process
        name = "labelled tokens" if process is None else process.title
        count = sum(known == name or known.startswith(f"{name} (") for known in names)
        names.append(name if count == 0 else f"{name} ({count + 1})")
    return dict(zip(names, subjects, strict=True))


def _scores(report: ProbeReport) -> dict[str, Any]:
    table = report.to_dataframe()
    return {
        "labels": list(table.index),
        "held_out": table["R² held out"].tolist(),
        "control": table["R² best control"].tolist(),
        "intervals": list(zip(table["low"], table["high"], strict=True)),
    }
