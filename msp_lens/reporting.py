"""The page of a run: one self-contained HTML file that says what was found, and how far to trust it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import jinja2

from msp_lens.interventions.experiment import InterventionReport
from msp_lens.models.checkpoints import model_fingerprint
from msp_lens.probing.report import ProbeReport
from msp_lens.training.run import TrainingRun


def render_page(
    training: TrainingRun,
    report: ProbeReport,
    interventions: InterventionReport,
    pictures: Mapping[str, bytes],
    config: Mapping[str, Any],
    *,
    model_file: str,
) -> str:
    """The page as HTML; pictures are PNG bytes by name, embedded in it."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("msp_lens", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    best = report.best_site
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
        steered={
            edit: interventions.select(site=best.label, edit=edit) for edit in ("none", "placebo", "steer", "donor")
        },
        interventions_table=interventions._repr_html_(),
        pictures={name: base64.b64encode(image).decode() for name, image in pictures.items()},
        config=config,
        fingerprint=model_fingerprint(training.model),
        model_file=model_file,
    )
