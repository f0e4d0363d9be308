"""The caveats of a run: for each reason not to overread its numbers that applies, one sentence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from msp_lens.formation import Emergence, Snapshot
from msp_lens.interventions.intervention_report import InterventionReport
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.training.training_run import TrainingRun

# A skill below this leaves most of what is read to the best control.
LITTLE_SKILL = 0.5


def caveats(
    training: TrainingRun,
    report: ProbeReport,
    interventions: InterventionReport | None,
    emergence: Emergence | None,
    skipped: Mapping[str, str],
) -> list[str]:
    """The caveats that apply to this run, the most serious first."""
    return [
        *_training(training, emergence),
        *_skill(report, emergence),
        *_scores(report),
        *(_interventions(report, interventions) if interventions is not None else ()),
        *(f"Not run: {name}. {reason}" for name, reason in skipped.items()),
        f"This is one network, trained once (seed {training.seed}): how results vary with the seed is unknown.",
    ]


def untrained_snapshot(emergence: Emergence | None) -> Snapshot | None:
    """What was found before the first training step, if that was kept."""
    return None if emergence is None or emergence.snapshots[0].step > 0 else emergence.snapshots[0]


def of_words(report: ProbeReport, emergence: Emergence | None) -> str:
    """The length of the words that checkpoints were probed on, if it is not the report's."""
    if emergence is None or emergence.provenance["n_ctx"] == report.provenance["n_ctx"]:
        return ""
    return f" (on words of {emergence.provenance['n_ctx']} tokens)"


def _training(training: TrainingRun, emergence: Emergence | None) -> Iterator[str]:
    degeneracy, name = training.process.degeneracy(), training.process.name
    if degeneracy.belief_dimensions == 0:
        yield f"{name} has a single reachable belief: there is nothing to read, and no score is meaningful."
    elif degeneracy.beliefs_follow_from_next_token:
        yield (
            f"The beliefs of {name} are an affine function of its next-token probabilities: a probe alone cannot tell "
            "a network that represents beliefs from one that represents its own next prediction, and an edit changes "
            "both at once."
        )
    # A regret above this share of the untrained network's, or of the optimal loss, is large.
    much = 0.1
    regret, first = float(training.regret.mean()), untrained_snapshot(emergence)
    untrained = first.regret if first is not None else math.nan
    if regret > much * untrained:
        yield (
            f"The network has not learned to predict well: its regret of {regret:.2g} nats is {regret / untrained:.0%} "
            "of the untrained network's. More training may change what it represents."
        )
    elif math.isnan(untrained) and regret > much * float(training.optimum.mean()):
        yield f"The network's predictions are far from optimal: its regret is {regret:.2g} nats."


def _skill(report: ProbeReport, emergence: Emergence | None) -> Iterator[str]:
    best = report.best_site.label
    if below := [label for label in report if report.skill(label) <= 0]:
        yield (
            f"Skill is not positive at {_listed(below)}: there, a control that sees only the last tokens or the "
            "position reads the belief at least as well."
        )
    control, skill = report.controls.best(best), report.skill(best)
    if control is not None and 0 < skill < LITTLE_SKILL:
        yield (
            f"Skill is only {skill:.2f} at {best}, where the belief is read best: {control.name} alone reaches "
            f"R² {control.held_out.r2:.4f}, so reading the belief there shows little more than that the network "
            "remembers the last tokens."
        )
    if any(each.kind == "untrained" for each in report.controls):
        return
    first = untrained_snapshot(emergence)
    if first is None:
        yield (
            "No untrained network was probed, and one can reach a high R² too. Keep the checkpoint of step 0, or call "
            "probe(…, untrained=3)."
        )
    # Above this, little is left for training to explain.
    elif (r2 := first.report[best].scores.held_out.r2) > 0.5:
        yield (
            f"The untrained network already reaches R² {r2:.3f} at {best}{of_words(report, emergence)}: only the "
            "difference is due to training."
        )


def _scores(report: ProbeReport) -> Iterator[str]:
    best, wide = report.best_site, [probe for probe in report.probes if len(probe.sites) > 1]
    worse = [probe for probe in wide if probe.scores.held_out.r2 < best.scores.held_out.r2]
    for probe in worse:
        yield (
            f"All sites together ({sum(probe.widths)} features) read held-out rows worse than {best.label} alone "
            f"({sum(best.widths)} features): the larger probe overfits, and its in-sample score is too optimistic."
        )
    # In-sample errors below this share of the held-out ones are too optimistic.
    share = 0.8
    others = [probe for probe in report.probes if probe not in worse]
    optimistic = [each.label for each in others if each.scores.in_sample.mse < share * each.scores.held_out.mse]
    if optimistic:
        yield (
            f"In-sample errors are less than {share:.0%} of the held-out errors at {_listed(optimistic)}: quote the "
            "held-out scores."
        )
    widest = max(report.probes, key=lambda probe: sum(probe.widths))
    n, width = widest.scores.in_sample.n, sum(widest.widths)
    if n < 10 * width:
        yield f"There are few rows: {n:,} distinct prefixes for the {width} features of {widest.label}."
    if report.dataset is not None and not report.dataset.is_population:
        yield (
            f"Scores and regret are estimated from {len(report.dataset):,} sampled words, not computed from every "
            "possible word: they vary with the sample."
        )
    if (weighting := report.provenance["weighting"]) != "probability":
        yield f"Prefixes are weighted by {weighting}, not by their probability under the process."


def _interventions(report: ProbeReport, found: InterventionReport) -> Iterator[str]:
    site = report.best_site.label
    above = float(found.select(site=site, edit="steer").above_placebo)
    if math.isnan(above):
        yield (
            f"At {site} there was nothing for an edit to recover: not even the activation of a run that held the "
            "target belief moves the network's prediction towards it. Whether the network uses the belief there is "
            "unknown."
        )
    elif above < 0.5:
        yield (
            f"Steering at {site} recovers only {above:.0%} of the difference between a random step and a donor: the "
            "belief can be read there, but the network does not use it in the form in which this edit writes it."
        )
    else:
        yield (
            f"A successful edit shows that the belief written at {site} is sufficient to set the next prediction. It "
            "does not show that the network uses nothing else."
        )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
