"""The page of a run: one self-contained HTML file with what was found and how far to trust it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from msp_lens._tables import TableView, nats_text, percent
from msp_lens._templates import render_template
from msp_lens.beliefs import Measure, entropy_rate, presentation
from msp_lens.figures.movie import Movie
from msp_lens.formation import Emergence
from msp_lens.inference import Inference
from msp_lens.interventions.intervention_report import Effect, InterventionReport, effect, effect_text
from msp_lens.models.model_files import model_fingerprint
from msp_lens.page.caveats import caveats, of_words, untrained_snapshot
from msp_lens.page.folding import shown_table
from msp_lens.page.inference_section import inference_section
from msp_lens.page.parts_section import parts_table, rivals_table
from msp_lens.page.pictures import ThemedPicture
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.processes.process import Process
from msp_lens.representation.logit_lens import LogitLens
from msp_lens.training.training_run import TrainingRun

# Whether the belief is read, and what writing another did.
Answer = Literal[
    "nothing to carry",
    "yes",
    "read, used in part",
    "read only",
    "read, use unknown",
    "used only",
    "used in part only",
    "no",
]


def render_page(
    training: TrainingRun,
    report: ProbeReport,
    experiments: Mapping[str, InterventionReport],
    skipped: Mapping[str, str],
    pictures: Mapping[str, ThemedPicture],
    config: Mapping[str, Any],
    *,
    emergence: Emergence | None = None,
    inference: Inference | None = None,
    over_seeds: TableView | None = None,
    movie: Movie | None = None,
    lens: LogitLens | None = None,
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
        inference: The process inferred from the network, if it was.
        over_seeds: The scores of networks trained from other seeds, if there are any.
        movie: Its movie.
        lens: What each layer would predict, if it was measured.
        model_file: Name of the checkpoint in the page's folder.
    """
    steered = experiments.get("interventions")
    best, first = report.best_site, untrained_snapshot(emergence)
    shuffled = best.scores.shuffled_held_out
    tables: dict[str, TableView] = {"probes": report, "controls": report.controls, **experiments}
    more = {"emergence": emergence, "over_seeds": over_seeds, "logit_lens": lens}
    tables |= {name: table for name, table in more.items() if table is not None}
    images = {name: picture.embedded(name) for name, picture in pictures.items()}
    skill_low, skill_high = report.skill_interval(best.label)
    kl = None
    if steered is not None:
        edits = ("steer", "none", "placebo", "donor")
        rows = {edit: steered.select(site=best.label, edit=edit) for edit in edits}
        kl = {edit: float(row.kl_to_target) for edit, row in rows.items()}
        kl |= {"recovered": percent(rows["steer"].recovery), "said": effect_text(steered, site=best.label)}
    return render_template(
        "msp_lens.page",
        "report.html",
        process=training.process,
        facts=_facts(training.process),
        training=training,
        nats=nats_text,
        regret=float(training.regret.mean()),
        optimum=float(training.optimum.mean()),
        report=report,
        best=best,
        control=report.controls.best(best.label),
        skill=report.skill(best.label),
        skill_low=skill_low,
        skill_high=skill_high,
        beliefs_follow=training.process.degeneracy().beliefs_follow_from_next_token,
        answer=answer(training, report, steered),
        untrained_r2=first.report[best.label].scores.held_out.r2 if first is not None else None,
        untrained_regret=first.regret if first is not None else None,
        of_words=of_words(report, emergence),
        shuffled_r2=shuffled.r2 if shuffled is not None else None,
        kl=kl,
        steer_position=steered.provenance["positions"][0] if steered is not None else None,
        tables={name: shown_table(table) for name, table in tables.items()},
        parts=parts_table(report),
        rivals=rivals_table(report),
        to_oracle=float(to_oracle.mean()) if (to_oracle := report.regret_to_oracle) is not None else None,
        emergence=emergence,
        inference=inference_section(inference, training.process, pictures.get("inference")),
        movie=movie._repr_html_() if movie is not None else None,
        skipped=skipped,
        caveats=caveats(training, report, steered, emergence, skipped, several_seeds=over_seeds is not None),
        pictures=images,
        config=config,
        fingerprint=model_fingerprint(training.model),
        model_file=model_file,
    )


def answer(training: TrainingRun, report: ProbeReport, interventions: InterventionReport | None) -> Answer:
    """The answer to the page's question, at the site where the belief is read best.

    The belief is read if the probe explains more, held out, than the best control; without controls, if it explains
    more than half of the variance. What `interventions.intervention_report.effect` says of steering tells whether it is
    used.
    """
    if training.process.degeneracy().belief_dimensions == 0:
        return "nothing to carry"
    best, skill = report.best_site, report.skill(report.best_site.label)
    reads = best.scores.held_out.r2 > 0.5 if math.isnan(skill) else skill > 0
    did = effect(interventions, site=best.label) if interventions is not None else "cannot tell"
    read: dict[Effect, Answer] = {"acts": "yes", "in part": "read, used in part", "none": "read only"}
    unread: dict[Effect, Answer] = {"acts": "used only", "in part": "used in part only"}
    return read.get(did, "read, use unknown") if reads else unread.get(did, "no")


def _facts(process: Process) -> dict[str, str]:
    """Properties of the process, by name."""
    # Followed this far, an entropy rate has the four decimals that the page shows.
    rate = entropy_rate(process, max_level=30_000)
    return {
        "coordinates" if process.is_generalized else "hidden states": ", ".join(process.states),
        "tokens": ", ".join(process.tokens),
        "reachable beliefs": presentation(process).description,
        "entropy rate": f"{rate_text(rate)} nats per token, the lowest possible loss after a long context",
        "next token": _next_token_text(process),
    }


def _next_token_text(process: Process) -> str:
    """What the probabilities of the next token say about the belief."""
    degeneracy = process.degeneracy()
    if degeneracy.belief_dimensions == 0:
        return "its probabilities are the same after every word"
    if degeneracy.beliefs_follow_from_next_token:
        return (
            "its probabilities determine the belief by an affine map, so a probe alone cannot tell whether a network "
            "represents the belief or only its own prediction"
        )
    return (
        f"its probabilities show only {degeneracy.next_token_dimensions} of the {degeneracy.belief_dimensions} "
        "dimensions of the beliefs, so a probe can tell a network that represents the belief from one that represents "
        "only its own prediction"
    )


def rate_text(rate: Measure) -> str:
    """An entropy rate to four decimals; its bounds, where they differ in those."""
    low, high = nats_text(rate.lower), nats_text(rate.upper)
    return low if low == high else f"between {low} and {high}"
