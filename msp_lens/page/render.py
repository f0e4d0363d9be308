"""The page of a run: one self-contained HTML file that says what was found, and how far to trust it."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from typing import Any, Literal

import jinja2
import pandas as pd
from PIL import Image

from msp_lens._tables import to_html
from msp_lens.beliefs import entropy_rate, presentation
from msp_lens.figures.movie import Movie
from msp_lens.formation import Emergence
from msp_lens.interventions.intervention_report import InterventionReport
from msp_lens.models.model_files import model_fingerprint
from msp_lens.page.caveats import LITTLE_SKILL, caveats, of_words
from msp_lens.page.pictures import MOST_MIXED_STATES, ThemedPicture
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.processes.process import Process
from msp_lens.training.training_run import TrainingRun

Answer = Literal["nothing to carry", "yes", "read only", "used only", "read, use unknown", "no"]
# On the scale from placebo (0) to donor (1), where writing a belief counts as working.
WORKS = 0.5
# Where no control stands beside it, an R² from here on counts as reading.
READS = 0.5
# Followed this far, an entropy rate has the four decimals that the page shows.
ENTROPY_LEVEL = 30_000
WEBP_QUALITY = 90


def render_page(
    training: TrainingRun,
    report: ProbeReport,
    experiments: Mapping[str, InterventionReport],
    skipped: Mapping[str, str],
    pictures: Mapping[str, ThemedPicture],
    config: Mapping[str, Any],
    *,
    emergence: Emergence | None = None,
    movie: Movie | None = None,
    model_file: str,
) -> str:
    """The page as HTML.

    Args:
        training: The trained model and its regret.
        report: What the probes read.
        experiments: What was found, by name: interventions, persistence, necessity, bayes_consistency,
            prediction_consistency.
        skipped: Why an experiment is missing, by name.
        pictures: From `run_pictures`; embedded in the page.
        config: What the run was asked for.
        emergence: How beliefs formed, if the run kept checkpoints.
        movie: Its movie.
        model_file: Name of the checkpoint beside the page.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("msp_lens.page", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    steered = experiments.get("interventions")
    return environment.get_template("report.html").render(
        process=training.process,
        facts=_facts(training.process),
        training=training,
        regret=float(training.regret.mean()),
        optimum=float(training.optimum.mean()),
        report=report,
        best=report.best_site,
        control=report.controls.best(report.best_site.label),
        answer=answer(training, report, steered),
        is_little=0 < report.skill(report.best_site.label) < LITTLE_SKILL,
        numbers=_numbers(training, report, steered, emergence),
        steer_position=steered.provenance["positions"][0] if steered else None,
        tables=_tables(report, experiments, emergence),
        emergence=emergence,
        movie=movie._repr_html_() if movie is not None else None,
        skipped=skipped,
        caveats=caveats(training, report, steered, emergence, skipped),
        pictures={
            name: {"light": _embedded(picture.light), "dark": _embedded(picture.dark)}
            for name, picture in pictures.items()
        },
        config=config,
        fingerprint=model_fingerprint(training.model),
        model_file=model_file,
    )


def answer(training: TrainingRun, report: ProbeReport, interventions: InterventionReport | None) -> Answer:
    """What the numbers say to the question of the page, at the site that is read best.

    Read: the probe explains more, held out, than the best control. Used: steering does more than half of what lies
    between a random step and the activation of a run that held the belief.
    """
    if training.process.degeneracy().belief_dimensions == 0:
        return "nothing to carry"
    best = report.best_site
    skill = report.skill(best.label)
    reads = best.scores.held_out.r2 > READS if math.isnan(skill) else skill > 0
    above = math.nan
    if interventions is not None:
        above = interventions.select(site=best.label, edit="steer").above_placebo
    if math.isnan(above):
        return "read, use unknown" if reads else "no"
    if reads:
        return "yes" if above > WORKS else "read only"
    return "used only" if above > WORKS else "no"


def _numbers(
    training: TrainingRun,
    report: ProbeReport,
    interventions: InterventionReport | None,
    emergence: Emergence | None,
) -> str:
    """The numbers that the answer stands on, a line each beside what they are to be compared with."""
    best = report.best_site
    first = emergence.snapshots[0] if emergence is not None and emergence.snapshots[0].step == 0 else None
    beside = []
    if control := report.controls.best(best.label):
        beside.append(f"{control.held_out.r2:.4f} best control ({control.name})")
    if first is not None:
        untrained = first.report[best.label].scores.held_out.r2
        beside.append(f"{_r2(untrained)} before training{of_words(report, emergence)}")
    if best.scores.shuffled_held_out is not None:
        beside.append(f"{_r2(best.scores.shuffled_held_out.r2)} from shuffled beliefs")
    skill = report.skill(best.label)
    beyond = f"; explains {max(skill, 0):.0%} of what the best control leaves" if not math.isnan(skill) else ""
    rows = [
        (
            "Can the belief be read?",
            f"R² {best.scores.held_out.r2:.4f} at {best.label}, held out{beyond}",
            "; ".join(beside),
        )
    ]
    if interventions is not None:
        edits = ("none", "placebo", "donor")
        names = ("left alone", "a random step as long", "a run that held it")
        kl = {e: interventions.select(site=best.label, edit=e).kl_to_target for e in ("steer", *edits)}
        rows.append(
            (
                "Does writing another belief change what it says?",
                f"KL {kl['steer']:.4f} nats to what that belief predicts",
                "; ".join(f"{kl[edit]:.4f} {name}" for edit, name in zip(edits, names, strict=True)),
            )
        )
    before = f"; {first.regret:.2g} before training" if first is not None else ""
    rows.append(
        (
            "Does it predict as well as can be?",
            f"{float(training.regret.mean()):.2g} nats of regret",
            f"least possible loss {float(training.optimum.mean()):.4f}{before}",
        )
    )
    table = pd.DataFrame(rows, columns=["question", "this network", "for comparison"]).set_index("question")
    return to_html(table, title="In numbers")


def _r2(value: float) -> str:
    """An R² to compare with; how far below 0 it lies says nothing."""
    return f"{value:.4f}" if value > 0 else "0 or less"


def _tables(
    report: ProbeReport, experiments: Mapping[str, InterventionReport], emergence: Emergence | None
) -> dict[str, str]:
    found = {name: each._repr_html_() for name, each in experiments.items()}
    found |= {"probes": report._repr_html_(), "controls": report.controls._repr_html_()}
    return found | ({"emergence": emergence._repr_html_()} if emergence is not None else {})


def _facts(process: Process) -> dict[str, str]:
    """What there is to know about the process, by name."""
    mixed, rate = presentation(process, max_states=MOST_MIXED_STATES), entropy_rate(process, max_level=ENTROPY_LEVEL)
    finite = mixed.is_finite and len(mixed) <= MOST_MIXED_STATES
    return {
        "coordinates" if process.is_generalized else "hidden states": ", ".join(process.states),
        "tokens": ", ".join(process.tokens),
        "beliefs": f"{len(mixed)} mixed states"
        if finite
        else f"more than {MOST_MIXED_STATES} mixed states, perhaps without end",
        "entropy rate": f"{rate.value:.4f} nats a token, the least loss there is in the long run",
        "next token": str(process.degeneracy()),
    }


def _embedded(image: Image.Image) -> str:
    """The picture as a URL that holds it: WebP, a third of what PNG takes."""
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=WEBP_QUALITY)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
