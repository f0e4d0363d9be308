"""The pictures of a run's page, each in light and in dark."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from PIL import Image

from msp_lens._files import write_atomically
from msp_lens.beliefs import attractor, presentation
from msp_lens.figures.curves import plot_regret, plot_training
from msp_lens.figures.simplex import plot_beliefs
from msp_lens.figures.style import ThemeName, data_url, for_phones, rendered
from msp_lens.formation import Emergence
from msp_lens.inference import Inference
from msp_lens.interventions.intervention_report import InterventionReport
from msp_lens.probing.belief_probe import read_beliefs
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.processes.process import Process
from msp_lens.representation.logit_lens import LogitLens
from msp_lens.training.training_run import TrainingRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Presentations of up to this many mixed states are drawn as graphs.
MOST_MIXED_STATES = 24
# Dots per inch: of pictures with many points, of those for phones, of what a vector file holds as pixels, of print.
COARSE, PHONE_DOTS, VECTOR_DOTS, PRINT_DOTS = 100, 160, 150, 300
# Beside the page.
PICTURES_FOLDER = "pictures"


@dataclass(frozen=True)
class ThemedPicture:
    """One picture, for light and for dark pages.

    Attributes:
        light: For light pages.
        dark: For dark ones.
        inches: How wide it was drawn: its text is then as large as on paper.
        narrow: The same for phones, whose panels stand one below the other.
        files: The light one as files, by their ending.
    """

    light: Image.Image
    dark: Image.Image
    inches: float = 0.0
    narrow: ThemedPicture | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)

    def embedded(self, name: str | None = None) -> dict[str, Any]:
        """All versions as data URLs. Under that name its files are linked."""
        urls = {theme: data_url(getattr(self, theme), quality=90) for theme in ("light", "dark")}
        narrow = self.narrow.embedded() if self.narrow is not None else None
        return {**urls, "narrow": narrow, "inches": round(self.inches, 2), "name": name if self.files else None}


def save_files(pictures: Mapping[str, ThemedPicture], folder: Path) -> None:
    """Write every picture into its folder as SVG and PDF, where the page's links lead; what was there is replaced."""
    place = folder / PICTURES_FOLDER
    place.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        for ending in ("svg", "pdf"):
            if ending in picture.files:
                write_atomically(place / f"{name}.{ending}", picture.files[ending])


def run_pictures(
    training: TrainingRun,
    report: ProbeReport,
    experiments: Mapping[str, InterventionReport],
    emergence: Emergence | None,
    lens: LogitLens | None = None,
) -> dict[str, ThemedPicture]:
    """The pictures by name; those that do not apply to this run are omitted.

    - `generator`: the hidden Markov chain, unless the process is generalized or too large;
    - `mixed_states`: the presentation as a graph if it is small, else `attractor`, its fractal;
    - `training`, `regret`: the network's loss compared with the optimum;
    - `fractal`: true beliefs and those read at the best site; `layers`: those read at every site;
    - `sites`: R² of probes and controls; `parts`: R² of each part of the belief, if there are any;
    - `interventions`: the effect of edits; `persistence`: how long it lasts;
    - `logit_lens`: what each layer would predict; `emergence`: curves over training.
    """
    process, drawn = training.process, {}
    if not process.is_generalized and process.n_states <= 16:
        drawn["generator"] = themed(lambda theme: process.plot(theme=theme), is_narrow=False)
    found = presentation(process, max_states=MOST_MIXED_STATES)
    if found.is_finite and len(found) <= MOST_MIXED_STATES:
        drawn["mixed_states"] = themed(lambda theme: found.plot(theme=theme), is_narrow=False)
    else:
        points = attractor(process, 500_000, even=True, seed=0)

        def fractal(theme: ThemeName) -> Figure:
            figure = plot_beliefs(points, {}, states=process.states, theme=theme)
            figure.axes[0].set_title(f"{len(points):,} reachable beliefs")
            return figure

        drawn["attractor"] = themed(fractal, COARSE)
    tokens, estimates = ([record[key] for record in training.metrics] for key in ("tokens", "regret"))
    drawn["training"] = themed(lambda theme: plot_training(tokens, estimates, theme=theme), png=True)
    regret, optimum = training.regret.tolist(), training.optimum.tolist()
    drawn["regret"] = themed(lambda theme: plot_regret(regret, optimum, theme=theme))
    drawn |= _of_beliefs(report)
    drawn["sites"] = themed(lambda theme: report.plot.scores(theme=theme), png=True)
    if report.parts:
        drawn["parts"] = themed(lambda theme: report.plot.parts(theme=theme))
    for name in ("interventions", "persistence"):
        if name in experiments:
            drawn[name] = themed(lambda theme, found=experiments[name]: found.plot(theme=theme))
    if lens is not None:
        drawn["logit_lens"] = themed(lambda theme: lens.plot(theme=theme))
    if emergence is not None:
        drawn["emergence"] = themed(lambda theme: emergence.plot(theme=theme))
    return drawn


def inference_picture(found: Inference, process: Process | None) -> ThemedPicture:
    """What was inferred, beside the process that the network was trained on, if it is known."""
    return themed(lambda theme: found.plot(against=process, theme=theme), png=True)


def _of_beliefs(report: ProbeReport) -> dict[str, ThemedPicture]:
    model, dataset = report.run_on()
    read = dict(zip(report, read_beliefs(model, dataset, report.probes), strict=True))
    weights = dataset.prefix_weights(report.provenance["weighting"])

    def drawn(sites: Sequence[str], columns: int, theme: ThemeName) -> Figure:
        shown = {f"{site}: held-out R² {report[site].scores.held_out.r2:.4f}": read[site] for site in sites}
        labels = {"states": dataset.process.states, "columns": columns, "theme": theme}
        return plot_beliefs(dataset.prefix_beliefs, shown, weights=weights, **labels)

    pictures = {"fractal": themed(lambda theme: drawn([report.best_site.label], 2, theme), png=True)}
    if len(read) > 1:
        pictures["layers"] = themed(lambda theme: drawn(list(read), 3, theme), COARSE)
    return pictures


def themed(
    draw: Callable[[ThemeName], Figure], dots_per_inch: int = 144, *, is_narrow: bool = True, png: bool = False
) -> ThemedPicture:
    """A picture in light and in dark, and narrow for phones too; also as files, among them a PNG for print if asked."""
    light, dark = map(draw, ("light", "dark"))
    images = [rendered(figure, dots_per_inch) for figure in (light, dark)]
    narrow = None
    if is_narrow:
        with for_phones():
            slim = [draw("light"), draw("dark")]
        narrow = ThemedPicture(*(rendered(figure, PHONE_DOTS) for figure in slim), inches=float(slim[0].get_figwidth()))
    # What was laid out once stays so: saving is then quick.
    light.set_layout_engine("none")
    return ThemedPicture(*images, inches=float(light.get_figwidth()), narrow=narrow, files=_files(light, png))


def _files(figure: Figure, png: bool) -> dict[str, bytes]:
    """The figure as SVG and PDF, the same bytes each time, and as PNG for print."""
    # The canvases' own methods draw once; `savefig` would draw twice. Without dates, and with identifiers in the SVG
    # that are otherwise random, the bytes are the same each time.
    files = {"svg": io.BytesIO(), "pdf": io.BytesIO()}
    with rc_context({"svg.hashsalt": "msp_lens"}):
        figure.set_dpi(VECTOR_DOTS)
        FigureCanvasSVG(figure).print_svg(files["svg"], metadata={"Date": None})
        figure.set_dpi(VECTOR_DOTS)
        FigureCanvasPdf(figure).print_pdf(files["pdf"], metadata={"CreationDate": None})
        if png:
            figure.set_dpi(PRINT_DOTS)
            # Compressing more would take seconds and save a tenth.
            FigureCanvasAgg(figure).print_png(files.setdefault("png", io.BytesIO()), pil_kwargs={"compress_level": 3})
    return {ending: file.getvalue() for ending, file in files.items()}
