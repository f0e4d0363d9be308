"""The page of a run: one self-contained HTML file that says what was found, and how far to trust it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import jinja2

from msp_lens.interventions.experiment import InterventionReport
from msp_lens.interventions.findings import Findings
from msp_lens.models.checkpoints import model_fingerprint
from msp_lens.probing.report import ProbeReport
from msp_lens.training.run import TrainingRun


def render_page(
    training: TrainingRun,
    report: ProbeReport,
    experiments: Mapping[str, InterventionReport | Findings],
    skipped: Mapping[str, str],
    pictures: Mapping[str, bytes],
    config: Mapping[str, Any],
    *,
    model_file: str,
) -> str:
    """The page as HTML.

    Args:
        training: The trained model and its regret.
        report: What the probes read.
        experiments: What was found, by name: interventions, persistence, necessity, commutation, unembedding.
        skipped: Why an experiment is missing, by name.
        pictures: PNG bytes by name, embedded in the page.
        config: What the run was asked for.
        model_file: Name of the checkpoint beside the page.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("msp_lens", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    best = report.best_site
    interventions = experiments.get("interventions")
    steered = None
    if isinstance(interventions, InterventionReport):
        edits = ("none", "placebo", "steer", "donor")
        steered = {edit: interventions.select(site=best.label, edit=edit) for edit in edits}
    return environment.get_template("report.html").render(
        process=training.process,
        training=training,
        regret=float(training.regret.mean()),
        optimum=float(training.optimum.mean()),
        report=report,
        report_table=report._repr_html_(),
        controls_table=report.controls._repr_html_(),
        skill=report.skill(best.label),
        control=report.controls.best(best.label),
        best=best,
        steered=steered,
        tables={name: found._repr_html_() for name, found in experiments.items()},
        skipped=skipped,
        pictures={name: base64.b64encode(image).decode() for name, image in pictures.items()},
        config=config,
        fingerprint=model_fingerprint(training.model),
        model_file=model_file,
    )
