"""The pictures of a run's page, each in light and in dark."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from msp_lens.beliefs import attractor, presentation
from msp_lens.figures.curves import plot_regret, plot_training
from msp_lens.figures.simplex import plot_beliefs
from msp_lens.figures.style import ThemeName
from msp_lens.formation import Emergence
from msp_lens.inference import Inference
from msp_lens.interventions.intervention_report import InterventionReport
from msp_lens.probing.belief_probe import read_beliefs
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.processes.process import Process
from msp_lens.training.training_run import TrainingRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Presentations of up to this many mixed states are drawn as graphs.
MOST_MIXED_STATES = 24
# Dots per inch of pictures with many points; the others have more.
COARSE = 88


@dataclass(frozen=True)
class ThemedPicture:
    """One picture, for light and for dark pages."""

    light: Image.Image
    dark: Image.Image

    def embedded(self) -> dict[str, str]:
        """Both as data URLs, in WebP: a third of what PNG takes."""
        return {theme: _data_url(image) for theme, image in vars(self).items()}


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=90)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def run_pictures(
    training: TrainingRun, report: ProbeReport, interventions: InterventionReport | None, emergence: Emergence | None
) -> dict[str, ThemedPicture]:
    """The pictures by name; those that do not apply to this run are omitted.

    - `generator`: the hidden Markov chain, unless the process is generalized or too large;
    - `mixed_states`: the presentation as a graph if it is small, else `attractor`, its fractal;
    - `training`, `regret`: the network's loss compared with the optimum;
    - `fractal`: true beliefs and those read at the best site; `layers`: those read at every site;
    - `sites`: R² of probes and controls; `parts`: R² of each part of the belief, if there are any;
    - `interventions`: the effect of edits; `emergence`: curves over training.
    """
    process, drawn = training.process, {}
    if not process.is_generalized and process.n_states <= 16:
        drawn["generator"] = themed(lambda theme: process.plot(theme=theme))
    found = presentation(process, max_states=MOST_MIXED_STATES)
    if found.is_finite and len(found) <= MOST_MIXED_STATES:
        drawn["mixed_states"] = themed(lambda theme: found.plot(theme=theme))
    else:
        points = attractor(process, 500_000, even=True, seed=0)

        def fractal(theme: ThemeName) -> Figure:
            figure = plot_beliefs(points, {}, states=process.states, theme=theme)
            figure.axes[0].set_title(f"{len(points):,} reachable beliefs")
            return figure

        drawn["attractor"] = themed(fractal, COARSE)
    tokens, estimates = ([record[key] for record in training.metrics] for key in ("tokens", "regret"))
    drawn["training"] = themed(lambda theme: plot_training(tokens, estimates, theme=theme))
    regret, optimum = training.regret.tolist(), training.optimum.tolist()
    drawn["regret"] = themed(lambda theme: plot_regret(regret, optimum, theme=theme))
    drawn |= _of_beliefs(report)
    drawn["sites"] = themed(lambda theme: report.plot.scores(theme=theme))
    if report.parts:
        drawn["parts"] = themed(lambda theme: report.plot.parts(theme=theme))
    if interventions is not None:
        drawn["interventions"] = themed(lambda theme: interventions.plot(theme=theme))
    if emergence is not None:
        drawn["emergence"] = themed(lambda theme: emergence.plot(theme=theme))
    return drawn


def inference_picture(found: Inference, process: Process | None) -> ThemedPicture:
    """What was inferred, beside the process that the network was trained on, if it is known."""
    return themed(lambda theme: found.plot(against=process, theme=theme))


def _of_beliefs(report: ProbeReport) -> dict[str, ThemedPicture]:
    model, dataset = report.run_on()
    read = dict(zip(report, read_beliefs(model, dataset, report.probes), strict=True))
    weights = dataset.prefix_weights(report.provenance["weighting"])

    def drawn(sites: Sequence[str], columns: int, theme: ThemeName) -> Figure:
        shown = {f"{site}: held-out R² {report[site].scores.held_out.r2:.4f}": read[site] for site in sites}
        labels = {"states": dataset.process.states, "columns": columns, "theme": theme}
        return plot_beliefs(dataset.prefix_beliefs, shown, weights=weights, **labels)

    pictures = {"fractal": themed(lambda theme: drawn([report.best_site.label], 2, theme))}
    if len(read) > 1:
        pictures["layers"] = themed(lambda theme: drawn(list(read), 3, theme), COARSE)
    return pictures


def themed(draw: Callable[[ThemeName], Figure], dots_per_inch: int = 144) -> ThemedPicture:
    """A picture, drawn in light and in dark."""
    images = []
    for figure in map(draw, ("light", "dark")):
        figure.set_dpi(dots_per_inch)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        images.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]))
    return ThemedPicture(*images)
