"""What keeps the numbers of one run from meaning more than they do: a sentence for each caveat that applies to it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from msp_lens.formation import Emergence
from msp_lens.interventions.intervention_report import InterventionReport
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.training.training_run import TrainingRun

# In-sample errors below this share of the held-out ones flatter.
FLATTERING = 0.8
# Skill below this leaves most of what is read to the best control.
LITTLE_SKILL = 0.5
# Fewer rows than this for each feature are few.
ROWS_PER_FEATURE = 10
# An untrained network that reads this much leaves little for training to have done.
MUCH_UNTRAINED = 0.5
# Regrets above this share of the untrained network's, or of the optimum, are large.
MUCH_REGRET = 0.1


def caveats(
    training: TrainingRun,
    report: ProbeReport,
    interventions: InterventionReport | None,
    emergence: Emergence | None,
    skipped: Mapping[str, str],
) -> list[str]:
    """The caveats of this run, the gravest first; each is there because its numbers call for it."""
    found = [
        *_beliefs(training),
        *_regret(training, emergence),
        *_skill(report),
        *_untrained(report, emergence),
        *_overfitted(report),
        *_rows(report),
        *(_interventions(report, interventions) if interventions is not None else ()),
    ]
    found += [f"Not asked: {name}. {reason}" for name, reason in skipped.items()]
    found.append(
        f"One network, trained once (seed {training.seed}): how much another seed would change this is not known."
    )
    return found


def _beliefs(training: TrainingRun) -> Iterator[str]:
    degeneracy = training.process.degeneracy()
    name = training.process.name
    if degeneracy.belief_dimensions == 0:
        yield f"{name} leads to one belief only: there is nothing to read, and no score means anything."
    elif degeneracy.beliefs_follow_from_next_token:
        yield (
            f"Beliefs of {name} are an affine function of its next-token probabilities: a probe alone cannot tell a "
            "network that holds beliefs from one that holds its own next prediction, and an edit writes both at once."
        )


def _regret(training: TrainingRun, emergence: Emergence | None) -> Iterator[str]:
    regret = float(training.regret.mean())
    first = emergence.snapshots[0] if emergence is not None else None
    untrained = first.regret if first is not None and first.step == 0 else math.nan
    if regret > MUCH_REGRET * untrained:
        yield (
            f"The network has not learned to predict well: its regret, {regret:.2g} nats, is {regret / untrained:.0%} "
            "of the untrained network's. What it does not carry yet it may carry after more training."
        )
    elif math.isnan(untrained) and regret > MUCH_REGRET * float(training.optimum.mean()):
        yield f"The network predicts far from as well as it could: its regret is {regret:.2g} nats."


def _skill(report: ProbeReport) -> Iterator[str]:
    below = [label for label in report if report.skill(label) <= 0]
    if below:
        yield (
            f"Skill is not above 0 at {_listed(below)}: there a control, which knows only the last tokens or the "
            "position, reads the belief as well or better."
        )
    best = report.best_site
    control, skill = report.controls.best(best.label), report.skill(best.label)
    if control is not None and 0 < skill < LITTLE_SKILL:
        yield (
            f"Skill is {skill:.2f} at {best.label}, where the belief is read best: {control.name} alone gives R² "
            f"{control.held_out.r2:.4f}, so that reading it there shows little more than that the network keeps "
            "the last tokens in mind."
        )


def _untrained(report: ProbeReport, emergence: Emergence | None) -> Iterator[str]:
    if any(each.kind == "untrained" for each in report.controls):
        return
    first = emergence.snapshots[0] if emergence is not None else None
    if first is None or first.step != 0:
        yield (
            "No untrained network was probed; one can reach a high R² too. Keep the checkpoint of step 0, or "
            "probe(…, untrained=3)."
        )
        return
    best = report.best_site.label
    r2 = first.report[best].scores.held_out.r2
    if r2 > MUCH_UNTRAINED:
        yield (
            f"Untrained, the network gives R² {r2:.3f} at {best}{of_words(report, emergence)} already: only what lies "
            "above that is training's doing."
        )


def _overfitted(report: ProbeReport) -> Iterator[str]:
    best = report.best_site
    worse = [
        probe for probe in report.probes if len(probe.sites) > 1 and probe.scores.held_out.r2 < best.scores.held_out.r2
    ]
    for probe in worse:
        yield (
            f"All sites together ({sum(probe.widths)} features) read held-out rows worse than {best.label} alone "
            f"({sum(best.widths)}): the larger probe is overfitted, and its in-sample score flatters."
        )
    flattered = [
        probe.label
        for probe in report.probes
        if probe not in worse and probe.scores.in_sample.mse < FLATTERING * probe.scores.held_out.mse
    ]
    if flattered:
        yield (
            f"In-sample errors are less than {FLATTERING:.0%} of the held-out ones at {_listed(flattered)}: quote the "
            "held-out scores."
        )


def _rows(report: ProbeReport) -> Iterator[str]:
    widest = max(report.probes, key=lambda probe: sum(probe.widths))
    n, width = widest.scores.in_sample.n, sum(widest.widths)
    if n < ROWS_PER_FEATURE * width:
        yield f"Few rows: {n:,} distinct prefixes for the {width} features of {widest.label}."
    dataset = report.dataset
    if dataset is not None and not dataset.is_population:
        yield (
            f"Probes and regret are estimates from {len(dataset):,} sampled words, not from every possible word: they "
            "vary with the sample."
        )
    if (weighting := report.provenance["weighting"]) != "probability":
        yield f"Prefixes are weighted by {weighting}, not by how often the process brings them about."


def _interventions(report: ProbeReport, found: InterventionReport) -> Iterator[str]:
    site = report.best_site.label
    above: float = found.select(site=site, edit="steer").loc["above_placebo"]
    if math.isnan(above):
        yield (
            f"At {site} there was nothing for an edit to recover: not even the activation of a run that held the "
            "target belief brings the network nearer to it. Whether the belief is used there is not known."
        )
    elif above < 0.5:
        yield (
            f"Steering at {site} recovers only {above:.0%} of what lies between a random step and a donor: the belief "
            "can be read there, but this way of writing it is not how the network uses it."
        )
    else:
        yield (
            f"An edit that works shows that the belief written at {site} is enough to set the next prediction; it does "
            "not show that the network uses nothing else."
        )


def of_words(report: ProbeReport, emergence: Emergence | None) -> str:
    """How long the words are that checkpoints were probed on, where they are others than the report's."""
    if emergence is None or emergence.provenance["n_ctx"] == report.provenance["n_ctx"]:
        return ""
    return f" (on words of {emergence.provenance['n_ctx']} tokens)"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
