"""The page of a run: one self-contained HTML file with what was found and how far to trust it."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from typing import Any, Literal

from PIL import Image

from msp_lens._templates import render_template
from msp_lens.beliefs import entropy_rate, presentation
from msp_lens.figures.movie import Movie
from msp_lens.formation import Emergence
from msp_lens.interventions.intervention_report import InterventionReport
from msp_lens.models.model_files import model_fingerprint
from msp_lens.page.caveats import LITTLE_SKILL, caveats, of_words, untrained_snapshot
from msp_lens.page.pictures import ThemedPicture
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.processes.process import Process
from msp_lens.training.training_run import TrainingRun

Answer = Literal["nothing to carry", "yes", "read only", "used only", "read, use unknown", "no"]


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
        experiments: By name: interventions, persistence, necessity, bayes_consistency, prediction_consistency.
        skipped: Why an experiment is missing, by name.
        pictures: From `run_pictures`; embedded in the page.
        config: The settings of the run.
        emergence: How beliefs formed, if the run kept checkpoints.
        movie: Its movie.
        model_file: Name of the checkpoint in the page's folder.
    """
    steered = experiments.get("interventions")
    best, first = report.best_site, untrained_snapshot(emergence)
    shuffled = best.scores.shuffled_held_out
    tables: dict[str, Any] = {"probes": report, "controls": report.controls, **experiments}
    tables |= {"emergence": emergence} if emergence is not None else {}
    images = {name: {"light": _embedded(both.light), "dark": _embedded(both.dark)} for name, both in pictures.items()}
    kl = None
    if steered is not None:
        edits = ("steer", "none", "placebo", "donor")
        kl = {edit: float(steered.select(site=best.label, edit=edit).kl_to_target) for edit in edits}
    return render_template(
        "msp_lens.page",
        "report.html",
        process=training.process,
        facts=_facts(training.process),
        training=training,
        regret=float(training.regret.mean()),
        optimum=float(training.optimum.mean()),
        report=report,
        best=best,
        control=report.controls.best(best.label),
        skill=report.skill(best.label),
        answer=answer(training, report, steered),
        little_skill=LITTLE_SKILL,
        untrained_r2=first.report[best.label].scores.held_out.r2 if first is not None else None,
        untrained_regret=first.regret if first is not None else None,
        of_words=of_words(report, emergence),
        shuffled_r2=shuffled.r2 if shuffled is not None else None,
        kl=kl,
        steer_position=steered.provenance["positions"][0] if steered is not None else None,
        tables={name: table._repr_html_() for name, table in tables.items()},
        emergence=emergence,
        movie=movie._repr_html_() if movie is not None else None,
        skipped=skipped,
        caveats=caveats(training, report, steered, emergence, skipped),
        pictures=images,
        config=config,
        fingerprint=model_fingerprint(training.model),
        model_file=model_file,
    )


def answer(training: TrainingRun, report: ProbeReport, interventions: InterventionReport | None) -> Answer:
    """The answer to the page's question, at the site where the belief is read best.

    The belief is read if the probe explains more, held out, than the best control; without controls, if it explains
    more than half of the variance. It is used if steering recovers more than half of the difference between a random
    step (0) and the activation of a run that held the belief (1).
    """
    if training.process.degeneracy().belief_dimensions == 0:
        return "nothing to carry"
    best, skill = report.best_site, report.skill(report.best_site.label)
    reads = best.scores.held_out.r2 > 0.5 if math.isnan(skill) else skill > 0
    above = math.nan
    if interventions is not None:
        above = float(interventions.select(site=best.label, edit="steer").above_placebo)
    if math.isnan(above):
        return "read, use unknown" if reads else "no"
    if above > 0.5:
        return "yes" if reads else "used only"
    return "read only" if reads else "no"


def _facts(process: Process) -> dict[str, str]:
    """Properties of the process, by name."""
    # Followed this far, an entropy rate has the four decimals that the page shows.
    rate = entropy_rate(process, max_level=30_000)
    return {
        "coordinates" if process.is_generalized else "hidden states": ", ".join(process.states),
        "tokens": ", ".join(process.tokens),
        "beliefs": presentation(process).description,
        "entropy rate": f"{rate.value:.4f} nats per token, the lowest possible loss in the long run",
        "next token": str(process.degeneracy()),
    }


def _embedded(image: Image.Image) -> str:
    """The picture as a data URL, in WebP: a third of what PNG takes."""
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=90)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
