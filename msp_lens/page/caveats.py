"""The caveats of a run: for each reason not to overread its numbers that applies, one sentence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from msp_lens._tables import nats_text, percent
from msp_lens.formation import Emergence, Snapshot
from msp_lens.interventions.intervention_report import (
    InterventionReport,
    effect,
    effect_text,
    worse_than_placebo,
)
from msp_lens.interventions.necessity import worth_of_context
from msp_lens.interventions.preparation import untrained_end
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.training.training_run import TrainingRun

# A skill below this leaves most of what is read to the best control.
LITTLE_SKILL = 0.5
# An edited activation that is more times as far from real ones as a donor's is unlike any that a word leads to.
FAR_AWAY = 3.0


def caveats(
    training: TrainingRun,
    report: ProbeReport,
    interventions: InterventionReport | None,
    emergence: Emergence | None,
    skipped: Mapping[str, str],
    *,
    several_seeds: bool = False,
) -> list[str]:
    """The caveats that apply to this run, the most serious first."""
    if training.process.degeneracy().belief_dimensions == 0:
        # Scores and effects mean nothing, and so would remarks on them.
        return list(_training(training, report, emergence))
    return [
        *_training(training, report, emergence),
        *(report.model_check.problems if report.model_check is not None else ()),
        *_words(report),
        *_skill(report, emergence),
        *_scores(report),
        *(_interventions(report, interventions) if interventions is not None else ()),
        *(f"Not run: {name.replace('_', ' ')}. {reason}" for name, reason in skipped.items()),
        _of_one_seed(training.seed, several_seeds),
    ]


def _of_one_seed(seed: int, several_seeds: bool) -> str:
    if several_seeds:
        return f"All but the scores over seeds is of one network (seed {seed})."
    return (
        f"This is one network, trained once (seed {seed}): how results vary with the seed is unknown. Skill in "
        "particular can change severalfold from one training to the next."
    )


def untrained_snapshot(emergence: Emergence | None) -> Snapshot | None:
    """What was found before the first training step, if that was kept."""
    return None if emergence is None or emergence.snapshots[0].step > 0 else emergence.snapshots[0]


def of_words(report: ProbeReport, emergence: Emergence | None) -> str:
    """The length of the words that checkpoints were probed on, if it is not the report's."""
    if emergence is None or emergence.provenance["n_ctx"] == report.provenance["n_ctx"]:
        return ""
    return f" (on words of {emergence.provenance['n_ctx']} tokens)"


def _training(training: TrainingRun, report: ProbeReport, emergence: Emergence | None) -> Iterator[str]:
    degeneracy, name = training.process.degeneracy(), training.process.name
    if degeneracy.belief_dimensions == 0:
        yield f"{name} has a single reachable belief: there is nothing to read, and no score is meaningful."
        return
    if degeneracy.beliefs_follow_from_next_token:
        yield (
            f"The beliefs of {name} are an affine function of its next-token probabilities: a probe alone cannot tell "
            "a network that represents beliefs from one that represents its own next prediction, and an edit changes "
            "both at once."
        )
    yield from untrained_end(training.regret)
    regret, first = float(training.regret.mean()), untrained_snapshot(emergence)
    untrained = first.regret if first is not None else math.nan
    worth = float(worth_of_context(report.dataset).mean()) if report.dataset is not None else math.nan
    # Up to this share of either, a regret is small.
    little = 0.1
    if regret > worth:
        yield (
            f"The network predicts worse than one that knows only how often each token comes: its regret is "
            f"{nats_text(regret)} nats, that one's {nats_text(worth)}. It has not learned the process, and a random "
            "network can reach a high R² too."
        )
    elif regret > little * worth:
        yield (
            f"The network has not learned to predict well: its regret of {nats_text(regret)} nats is "
            f"{percent(regret / worth)} of that of predicting each token by its frequency. More training may change "
            "what it represents."
        )
    elif regret > little * untrained:
        yield (
            f"The network has not learned to predict well: its regret of {nats_text(regret)} nats is "
            f"{percent(regret / untrained)} of the untrained network's. More training may change what it represents."
        )


def _words(report: ProbeReport) -> Iterator[str]:
    """What the words on which the network was probed leave out."""
    dataset = report.dataset
    if dataset is None:
        return
    process, seen = dataset.process, set(dataset.tokens.unique().tolist())
    if unseen := [token for number, token in enumerate(process.tokens) if number not in seen]:
        named = f"Token {unseen[0]} never occurs" if len(unseen) == 1 else f"Tokens {_listed(unseen)} never occur"
        yield f"{named} in these words, so no belief after {_it(unseen)} was read or written."
    constant = dataset.prefix_beliefs.std(dim=0, correction=0) < 1e-9
    if fixed := [state for state, is_constant in zip(process.states, constant, strict=True) if is_constant]:
        yield (
            f"The probability of {_listed(fixed)} is the same in every belief: there is nothing to read in it, and it "
            "adds nothing to R²."
        )


def _skill(report: ProbeReport, emergence: Emergence | None) -> Iterator[str]:
    best = report.best_site.label
    if worse := [label for label, probe in report.items() if probe.scores.held_out.r2 < 0]:
        yield (
            f"Held-out R² is below 0 at {_listed(worse)}: there, the probe reads the belief worse than the mean belief "
            "would. It fits rows that it was not held out from, and nothing general."
        )
    if below := [label for label in report if report.skill(label) <= 0]:
        yield (
            f"At {_listed(below)}, a control that sees only the last tokens or the position reads the belief at least "
            "as well as the probe (skill of 0 or less)."
        )
    control, skill = report.controls.best(best), report.skill(best)
    if control is not None and 0 < skill < LITTLE_SKILL:
        yield (
            f"At {best}, where the belief is read best, {control.name} alone reaches R² {control.held_out.r2:.4f} held "
            f"out. The probe explains only {percent(skill)} of what this control leaves unexplained (its skill), so "
            "reading the belief there shows little more than that the network remembers the last tokens."
        )
    if any(each.kind == "untrained" for each in report.controls):
        return
    first = untrained_snapshot(emergence)
    if first is None:
        yield (
            "No untrained network was probed, and one can reach a high R² too. Keep the checkpoint of step 0, or call "
            "probe(…, untrained=3)."
        )
        return
    r2, on = first.report[best].scores.held_out.r2, of_words(report, emergence)
    # Above this, little is left for training to explain.
    if r2 > 0.5:
        yield (
            f"The untrained network already reaches R² {r2:.4f} at {best}, held out{on}: only the difference is due to "
            "training."
        )
    elif r2 < 0:
        yield (
            f"Before training, held-out R² at {best} is below 0{on}: the probe reads the belief worse than the mean "
            "belief would. How far below says nothing about the network."
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
            f"In-sample errors are less than {100 * share:.0f} % of the held-out errors at {_listed(optimistic)}: "
            "in-sample scores are too optimistic there, and only held-out scores should be quoted."
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
    if effect(found, site=site) == "acts":
        yield (
            f"A successful edit shows that the belief written at {site} is sufficient to set the next prediction. It "
            "does not show that the network uses nothing else."
        )
    else:
        yield effect_text(found, site=site)
    away = float(found.select(site=site, edit="steer").off_manifold)
    if away > FAR_AWAY:
        yield (
            f"Steering at {site} leaves the activation {away:.1f} times as far from the nearest real one as a donor's "
            "is. It is unlike those that words lead to, and the network may treat it differently."
        )
    yield from (f"{note.removeprefix('* ')}" for note in worse_than_placebo(found))


def _it(names: list[str]) -> str:
    return "it" if len(names) == 1 else "them"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
