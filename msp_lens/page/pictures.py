"""The pictures of a run's page: what each shows, in light and in dark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from torch import Tensor

from msp_lens.beliefs import attractor, presentation
from msp_lens.figures.curves import plot_regret, plot_training
from msp_lens.figures.simplex import plot_beliefs
from msp_lens.figures.style import ThemeName
from msp_lens.formation import Emergence
from msp_lens.interventions.intervention_report import InterventionReport
from msp_lens.probing.belief_probe import read_beliefs
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.processes.process import Process
from msp_lens.training.training_run import TrainingRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Presentations of up to so many mixed states, and generators of up to so many states, are drawn as graphs.
MOST_MIXED_STATES, MOST_STATES = 24, 16
ATTRACTOR_POINTS = 500_000
# Sites side by side in the picture of all of them.
ACROSS = 3
DOTS_PER_INCH, SMALL_DOTS_PER_INCH = 144, 88


@dataclass(frozen=True)
class ThemedPicture:
    """One picture for light and for dark pages."""

    light: Image.Image
    dark: Image.Image


def run_pictures(
    training: TrainingRun,
    report: ProbeReport,
    interventions: InterventionReport | None,
    emergence: Emergence | None,
) -> dict[str, ThemedPicture]:
    """The pictures by name; those that would show nothing of this run are left out.

    - `generator`: the hidden Markov chain, where it is one and not too large;
    - `mixed_states`: the presentation as a graph, where it is small, else `attractor`, its fractal;
    - `training`, `regret`: predictions against the optimum;
    - `fractal`: true beliefs beside those read where they are read best; `layers`: at every site;
    - `sites`: R² beside its controls; `interventions`: what edits did; `emergence`: curves over training.
    """
    drawn = _of_process(training.process) | _of_training(training) | _of_beliefs(report)
    drawn["sites"] = _themed(lambda theme: report.plot.scores(theme=theme))
    if interventions is not None:
        drawn["interventions"] = _themed(lambda theme: interventions.plot(theme=theme))
    if emergence is not None:
        drawn["emergence"] = _themed(lambda theme: emergence.plot(theme=theme))
    return drawn


def _of_process(process: Process) -> dict[str, ThemedPicture]:
    drawn = {}
    if not process.is_generalized and process.n_states <= MOST_STATES:
        drawn["generator"] = _themed(lambda theme: process.plot(theme=theme))
    found = presentation(process, max_states=MOST_MIXED_STATES)
    if found.is_finite and len(found) <= MOST_MIXED_STATES:
        drawn["mixed_states"] = _themed(lambda theme: found.plot(theme=theme))
    else:
        points = attractor(process, ATTRACTOR_POINTS, even=True, seed=0)
        drawn["attractor"] = _themed(lambda theme: _attractor_figure(process, points, theme), SMALL_DOTS_PER_INCH)
    return drawn


def _attractor_figure(process: Process, points: Float64[Tensor, "point state"], theme: ThemeName) -> Figure:
    figure = plot_beliefs(points, {}, states=process.states, theme=theme)
    figure.axes[0].set_title(f"{len(points):,} beliefs that an optimal observer can come to hold")
    return figure


def _of_training(training: TrainingRun) -> dict[str, ThemedPicture]:
    regret, optimum = training.regret.tolist(), training.optimum.tolist()
    tokens, estimates = ([record[key] for record in training.metrics] for key in ("tokens", "regret"))
    return {
        "training": _themed(lambda theme: plot_training(tokens, estimates, theme=theme)),
        "regret": _themed(lambda theme: plot_regret(regret, optimum, theme=theme)),
    }


def _of_beliefs(report: ProbeReport) -> dict[str, ThemedPicture]:
    model, dataset = report.run_on()
    read = dict(zip(report, read_beliefs(model, dataset, report.probes), strict=True))
    best = report.best_site.label

    def drawn(sites: Sequence[str], columns: int, theme: ThemeName) -> Figure:
        return plot_beliefs(
            dataset.prefix_beliefs,
            {f"{site}: held-out R² {report[site].scores.held_out.r2:.4f}": read[site] for site in sites},
            weights=dataset.prefix_weights(report.provenance["weighting"]),
            states=dataset.process.states,
            columns=columns,
            theme=theme,
        )

    pictures = {"fractal": _themed(lambda theme: drawn([best], 2, theme), DOTS_PER_INCH)}
    if len(read) > 1:
        pictures["layers"] = _themed(lambda theme: drawn(list(read), ACROSS, theme), SMALL_DOTS_PER_INCH)
    return pictures


def _themed(draw: Callable[[ThemeName], Figure], dots_per_inch: int = DOTS_PER_INCH) -> ThemedPicture:
    return ThemedPicture(_rendered(draw("light"), dots_per_inch), _rendered(draw("dark"), dots_per_inch))


def _rendered(figure: Figure, dots_per_inch: int) -> Image.Image:
    figure.set_dpi(dots_per_inch)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
