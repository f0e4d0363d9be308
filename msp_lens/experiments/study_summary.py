"""The answer of a run in some ten lines: what was trained, whether it carries the belief, where, and if it is used."""

from __future__ import annotations

import math
from pathlib import Path

from msp_lens._tables import nats_text, percent, skill_text
from msp_lens.formation import Emergence
from msp_lens.inference import Inference
from msp_lens.interventions.intervention_report import InterventionReport
from msp_lens.models.architecture import is_of_recurrent
from msp_lens.models.build import config_fields
from msp_lens.page.caveats import caveats, of_words, untrained_snapshot
from msp_lens.page.render import Answer, answer
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.training.training_run import TrainingRun

_ANSWERS: dict[Answer, str] = {
    "yes": "Yes, and its predictions follow the belief.",
    "read, used in part": "Yes, but its predictions follow the belief only in part.",
    "read only": "The belief can be read, but the network does not act on it.",
    "read, use unknown": "The belief can be read. Whether the network uses it is unknown.",
    "used only": "In part: it acts on a belief written into it, but a probe reads no more than a control does.",
    "used in part only": "These results do not show that it does.",
    "no": "These results do not show that it does.",
    "nothing to carry": "There is nothing to carry: the belief is the same after every word.",
}


def question_and_answer(
    training: TrainingRun, report: ProbeReport, interventions: InterventionReport | None
) -> tuple[str, str]:
    """What a run asks, and what it found, in a sentence each."""
    asked = f"Does a network trained on {training.process.title} carry the optimal observer's belief?"
    return asked, _ANSWERS[answer(training, report, interventions)]


def key_results(
    training: TrainingRun,
    report: ProbeReport,
    interventions: InterventionReport | None,
    *,
    emergence: Emergence | None,
    inference: Inference | None,
    skipped: dict[str, str],
    several_seeds: bool,
    folder: Path,
) -> dict[str, str]:
    """The numbers that the answer rests on, each beside what it is to be compared with, under a heading."""
    best, first = report.best_site, untrained_snapshot(emergence)
    optimum, regret = float(training.optimum.mean()), float(training.regret.mean())
    before = f"; before training {nats_text(first.regret)}" if first is not None else ""
    found = {
        "trained": f"{_network_text(training)}, {training.step:,} steps in {training.seconds:.0f} s",
        "regret": f"{nats_text(regret)} nats per token above the least possible loss of {nats_text(optimum)}{before}",
    }
    compared = []
    if (control := report.controls.best(best.label)) is not None:
        compared.append(f"{control.held_out.r2:.4f} for the best control ({control.name})")
    if first is not None:
        on = of_words(report, emergence)
        compared.append(f"{first.report[best.label].scores.held_out.r2:.4f} before training{on}")
    beside = f"; {', '.join(compared)}" if compared else ""
    found["belief read"] = f"R² {best.scores.held_out.r2:.4f} held out, best at {best.label}{beside}"
    if not math.isnan(skill := report.skill(best.label)):
        share = "the share of what that control leaves unexplained that the network explains"
        less = "below 0, as that control reads the belief better than the network does"
        found["skill"] = f"{skill_text(skill, digits=2)}: {share if skill > 0 else less}"
    if interventions is not None:
        edits = ("steer", "placebo", "donor")
        share = {edit: percent(interventions.select(site=best.label, edit=edit).recovery) for edit in edits}
        found["belief used"] = (
            f"writing another belief at {best.label} moves predictions {share['steer']} of the way; a random step of "
            f"the same length {share['placebo']}, the activation of a run that held the belief {share['donor']}"
        )
    else:
        found["belief used"] = f"not measured: {skipped.get('interventions', 'it was not run')}"
    asked = f"not asked yet; to infer it from the network alone: msp-lens infer {folder}"
    found["its world"] = inference.summary()[0].removeprefix("Found: ") if inference is not None else asked
    remarks = caveats(training, report, interventions, emergence, skipped, several_seeds=several_seeds)
    found["caution"] = remarks[0] + (f" ({len(remarks) - 1} more in the report.)" if len(remarks) > 1 else "")
    return found


def _network_text(training: TrainingRun) -> str:
    """The network in a few words."""
    fields = config_fields(training.model)
    kind = str(fields.get("kind", "")).upper() if is_of_recurrent(fields) else "transformer"
    n_layers = fields["n_layers"]
    return f"{kind} of {n_layers} layer{'s' * (n_layers != 1)}, width {fields['d_model']}"
