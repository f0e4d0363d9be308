"""X 2026: write a hidden state into a transformer, and it predicts as if it were in that state.

Claim: with μ_k the mean activation of the prefixes taken to be in hidden state k, and E[k] the next token's
probabilities given that state, KL(E[k] ‖ model with μ_k written at a position) is far below KL(E[k] ‖ model).

The hidden state of a position is the one that emitted its token, as the belief after a token is about that state; so
E[k] = Σ_j A[k, j] B[j], with A the transitions and B the emissions of the hidden Markov model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise, product
from statistics import fmean
from typing import Any

import pandas as pd
import torch

from msp_lens.data import words
from msp_lens.experiments.claims import Claim, Rule, Section, all_of, at_least, at_most, number_text, within_factor
from msp_lens.experiments.papers.recovered_states import SITE, recover, state_edits, transition_signal
from msp_lens.experiments.reproduction import Network, Networks, Paper, Trained
from msp_lens.figures.edit_bars import plot_edits
from msp_lens.interventions.intervene import intervene
from msp_lens.interventions.intervention_report import InterventionReport, Layout
from msp_lens.interventions.menu import EDITS
from msp_lens.models.build import ModelConfig
from msp_lens.models.hooked import word_length
from msp_lens.probing.fit import probe
from msp_lens.processes.construct import from_moore
from msp_lens.processes.process import Process
from msp_lens.training.config import TrainingConfig

# By family: states, tokens, the probability of the likeliest next state, whether that is the state itself (else the
# next in a cycle), and the probability that a state emits the token of its own.
FAMILIES: Mapping[str, tuple[int, int, float, bool, float]] = {
    "two_states": (2, 4, 0.9, True, 0.62),
    "persistent": (3, 4, 0.9, True, 0.62),
    "cyclic": (4, 4, 0.8, False, 0.62),
    "fast_mixing": (3, 4, 0.6, True, 0.62),
    "ambiguous": (4, 4, 0.85, True, 0.38),
    "six_states": (6, 6, 0.8, True, 0.62),
}
# By difficulty: the probability that a state emits its own token, and what is published of KL left alone and forced.
LEVELS: Mapping[str, tuple[float, float, float]] = {
    "clear": (0.83, 0.785, 0.323),
    "blurred": (0.675, 0.385, 0.188),
    "faint": (0.4, 0.0393, 0.0223),
}
CONTROLS = ("wrong state", "mean activation", "random activation", "shuffled labels")
FORCING = ("none", "recovered state", "likeliest state", *CONTROLS, "donor")
STEERING = ("none", "recovered state", "steer", "patch", "placebo", "wrong belief", "donor")


def hidden_markov(name: str, n_states: int, n_tokens: int, likeliest: float, stays: bool, own: float) -> Process:
    """A hidden Markov model in which every state has a likeliest successor and a token of its own; all else is even."""
    states = torch.arange(n_states)
    transitions = torch.full((n_states, n_states), (1 - likeliest) / (n_states - 1), dtype=torch.float64)
    transitions[states, states if stays else states.roll(-1)] = likeliest
    emissions = torch.full((n_states, n_tokens), (1 - own) / (n_tokens - 1), dtype=torch.float64)
    emissions[states, states] = own
    return from_moore(transitions, emissions, name=name)


def networks(small: bool) -> dict[str, Network]:
    """Six families and three levels of difficulty; at the small size one seed of each, and smaller networks."""
    processes = [hidden_markov(name, *numbers) for name, numbers in FAMILIES.items()]
    processes += [hidden_markov(name, 3, 4, 0.9, True, own) for name, (own, *_) in LEVELS.items()]
    width, steps = (32, 600) if small else (64, 3000)
    made = {}
    for process in processes:
        sizes: dict[str, Any] = {"d_model": width, "n_heads": 2, "d_head": width // 2, "d_mlp": 4 * width}
        model = ModelConfig(d_vocab=process.n_tokens, n_layers=2, n_ctx=10, **sizes)
        for seed in range(1 if small else 3):
            name = f"{process.name}_{seed}" if seed else process.name
            made[name] = Network(process=process, model=model, training=TrainingConfig(steps=steps), seed=seed)
    return made


def predictors(networks: Networks, small: bool) -> Section:
    """How well the networks predict."""
    of_families = _of(networks, FAMILIES)
    excess = fmean(float(each.regret.mean()) for each in of_families)
    untrained = fmean(float(each.untrained_regret().mean()) for each in of_families)
    worst = max(of_families, key=lambda each: float(each.regret.mean()))
    return Section(
        title="Tiny transformers predict almost as well as Bayes",
        method="""
            One network is trained on each of six hidden Markov models. Its excess loss is its expected loss minus the
            least possible one, E KL(optimum ‖ model), averaged over the positions of words drawn anew.
        """,
        claims=(
            Claim(
                says="Excess loss over Bayes in nats, averaged over six families",
                source="abstract",
                published=0.0138,
                measured=excess,
                control=untrained,
                control_is="untrained",
                rule=all_of(at_most(excess, 0.0138), at_most(excess, untrained / 10, "a tenth of the untrained one’s")),
            ),
        ),
        remark=f"The largest, of {worst.name}, is {number_text(float(worst.regret.mean()))}.",
    )


def recovered_states(networks: Networks, small: bool) -> Section:
    """Whether states recovered from activations follow one another as the hidden ones do."""
    rows = []
    for each in _of(networks, FAMILIES):
        states, twin = recover(each.model, each.process), recover(_as_untrained(each).model, each.process)
        labels = {"recovered": states.recovered, "likeliest by true belief": states.likeliest}
        labels |= {"recovered, untrained": twin.recovered}
        rows += [
            {"name": name, "family": each.process.name, "signal": transition_signal(values, each.process)}
            for name, values in labels.items()
        ]
    signals = _by_family(rows, "signal")
    of_trained, of_untrained = signals["recovered"], signals["recovered, untrained"]
    easy, hard, untrained_easy = (
        fmean(values[family] for family in families)
        for values, families in (
            (of_trained, ("two_states", "persistent")),
            (of_trained, ("ambiguous", "six_states")),
            (of_untrained, ("two_states", "persistent")),
        )
    )
    return Section(
        title="States recovered from activations follow one another in part as the hidden ones do",
        method="""
            Activations after the last layer, of all positions of 2,000 words, are clustered by k-means into as many
            clusters as there are hidden states. Each cluster is matched to a state so that the true beliefs in that
            state, averaged over the clusters, are as large as possible.

            Transitions between recovered states at neighboring positions are counted and compared with the hidden
            ones: the signal is 1 - d / d₀, with d the total variation distance between the rows of the two matrices,
            averaged over states, and d₀ that of a matrix that knows only how frequent the recovered states are. It is 1
            if the transitions are the hidden ones, and 0 if they tell no more than frequencies.
        """,
        claims=(
            Claim(
                says="The transition signal of recovered states is stronger in the two-state and persistent families "
                "than in the ambiguous and six-state ones",
                source="abstract",
                published="strongest in persistent and lower-state regimes",
                measured=f"{number_text(easy)} against {number_text(hard)}",
                control=untrained_easy,
                control_is="untrained, two-state and persistent",
                rule=all_of(
                    at_least(easy, hard, "that of the ambiguous and six-state families"),
                    at_least(easy, untrained_easy, "that of untrained networks"),
                ),
            ),
        ),
        picture=lambda theme: plot_edits(list(FAMILIES), signals, ylabel="transition signal", theme=theme),
        alt="Transition signal by family, of states recovered from trained and untrained networks and true beliefs",
        remark="Even the state that is likeliest by the true belief is often not the hidden one: its signal is what a "
        "perfect reading of the belief would give.",
    )


def forcing(networks: Networks, small: bool) -> Section:
    """Force states upon the networks of six families."""
    found = force(_of(networks, FAMILIES), FORCING)
    alone, forced, likeliest = (average(found, edit) for edit in ("none", "recovered state", "likeliest state"))
    controls = {name: average(found, name) for name in CONTROLS}
    best = min(controls, key=lambda name: controls[name])
    ahead = sum(
        _kl(found, "recovered state", family) < min(_kl(found, name, family) for name in CONTROLS)
        for family in FAMILIES
    )
    untrained = force([_as_untrained(each) for each in _of(networks, FAMILIES)], ("none", "recovered state"))
    return Section(
        title="Forcing a recovered state",
        method="""
            At position 7 of 2,000 words, the activation after the last layer is replaced, and the next token’s
            probabilities are compared with E[k], those given a hidden state k drawn uniformly for each word:
            KL(E[k] ‖ model) in nats. The state is the one that emitted the token at that position, as the belief after
            the token is about it. So the target is a vertex of the simplex of beliefs.

            Recovered state: the mean activation of the cluster matched to k, from other words. Likeliest state: the
            mean activation of the prefixes whose true belief is largest in k. Wrong state: the mean activation of
            another cluster. Mean activation: that of all prefixes. Random activation: a random direction as long as
            the recovered state’s mean. Shuffled labels: as for recovered states, with rows dealt to clusters at random.
            Donor, the oracle: the activation after a word that leads to the belief nearest to the vertex.
        """,
        claims=(
            Claim(
                says="KL to E[k] of networks left alone, averaged over six families",
                source="abstract",
                published=0.1957,
                measured=alone,
                rule=within_factor(alone, 0.1957, 1.25),
            ),
            Claim(
                says="KL to E[k] with a recovered state’s mean activation written",
                source="abstract",
                published=0.0532,
                measured=forced,
                control=controls[best],
                control_is=f"{best}, the best of four controls",
                rule=within_factor(forced, 0.0532, 2),
            ),
            Claim(
                says="Forcing a recovered state beats a wrong state, the mean, random activations and shuffled labels",
                source="abstract",
                published="beats each",
                measured=forced,
                control=controls[best],
                control_is=f"{best}, the best of four controls",
                rule=at_most(forced, controls[best] / 2, "half of the best control"),
            ),
        ),
        picture=lambda theme: found.plot(theme=theme),
        alt="KL to the forced state’s prediction, by family and edit",
        tables=(found,),
        remark=f"It beats all four controls in {ahead} of {len(FAMILIES)} families. With states by the true belief KL "
        f"is {number_text(likeliest)}, with a donor’s activation {number_text(average(found, 'donor'))}. In untrained "
        f"networks the same edit takes KL from {number_text(average(untrained, 'none'))} to "
        f"{number_text(average(untrained, 'recovered state'))}. That networks left alone are as far from E[k] as the "
        "paper’s is no finding: the emissions were chosen for it. Less is left than in the paper after forcing. Its "
        "networks predict less well, and clusters of their activations may fit hidden states less well, too.",
    )


def difficulty(networks: Networks, small: bool) -> Section:
    """Force states at three levels of difficulty."""
    found = force(_of(networks, LEVELS), FORCING)
    claims, shares = [], []
    for name, (_, published_alone, published) in LEVELS.items():
        alone, forced = (_kl(found, edit, name) for edit in ("none", "recovered state"))
        best = min(CONTROLS, key=lambda control: _kl(found, control, name))
        shares.append(forced / alone)
        claims.append(
            Claim(
                says=f"KL to E[k] left alone and with a recovered state forced, {name} emissions",
                source="text",
                published=f"{published_alone} → {published}",
                measured=f"{number_text(alone)} → {number_text(forced)}",
                control=_kl(found, best, name),
                control_is=f"{best}, the best of four controls",
                rule=all_of(
                    at_most(forced / alone, published / published_alone, "the share left in the paper"),
                    at_most(forced, _kl(found, best, name) / 2, "half of the best control"),
                ),
            )
        )
    rises = all(before < after for before, after in pairwise(shares))
    shown = ", ".join(map(number_text, shares))
    claims.append(
        Claim(
            says="The harder the level, the larger the share of KL that is left",
            source="text",
            published="0.41, 0.49, 0.57",
            measured=shown,
            rule=Rule("rising from level to level", rises),
        )
    )
    return Section(
        title="Forcing at three levels of difficulty",
        method="""
            The persistent family with three kinds of emissions, the more alike the harder: a state emits its own one of
            four tokens with probability .83, .675 or .4. They were chosen so that an optimal predictor left alone is as
            far from E[k] as the paper’s networks are. The rest is as before.
        """,
        claims=tuple(claims),
        picture=lambda theme: found.plot(theme=theme),
        alt="KL to the forced state’s prediction, by level of difficulty and edit",
        tables=(found,),
    )


def steering(networks: Networks, small: bool) -> Section:
    """Write the same targets along the decoder of a belief probe."""
    found = force(_of(networks, FAMILIES), STEERING)
    forced, steered, patched, wrong = (
        average(found, edit) for edit in ("recovered state", "steer", "patch", "wrong belief")
    )
    ahead = sum(_kl(found, "steer", family) < _kl(found, "recovered state", family) for family in FAMILIES)
    return Section(
        title="The same targets, written along the decoder",
        method="""
            A probe reads the belief from the activation by least squares, and its decoder D is the regression of
            activations on beliefs. Steer adds (e_k - b̂) D, with e_k certainty of state k and b̂ the belief read. Patch
            replaces the activation by its regression at e_k. Neither needs a cluster, and both reach for the vertex
            itself, where the mean of a cluster stops at that of its beliefs. Placebo: a step in a random
            direction, as large as steer’s.
            Wrong belief: steered to the belief after another word.
        """,
        claims=(
            Claim(
                says="After steering along the decoder, KL to E[k] is at most half of that with a recovered state",
                source="not in the paper",
                published="–",
                measured=steered,
                control=forced,
                control_is="recovered state",
                rule=at_most(steered, forced / 2, "half of the recovered state’s"),
            ),
            Claim(
                says="So is KL after patching, which keeps nothing else of the activation",
                source="not in the paper",
                published="–",
                measured=patched,
                control=forced,
                control_is="recovered state",
                rule=at_most(patched, forced / 2, "half of the recovered state’s"),
            ),
        ),
        picture=lambda theme: found.plot(theme=theme),
        alt="KL to the forced state’s prediction, by family: recovered states, steering, patching and references",
        tables=(found,),
        remark=f"Steering beats the recovered state in {ahead} of {len(FAMILIES)} families. Steered to the belief of "
        f"another word, KL is {number_text(wrong)}; a donor’s activation leaves "
        f"{number_text(average(found, 'donor'))}.",
    )


def probes(networks: Networks, small: bool) -> Section:
    """Whether probes read more from trained networks than from untrained ones, and than four tokens tell."""
    rows = []
    for each in _of(networks, FAMILIES):
        dataset = words(each.process, n_ctx=word_length(each.model), max_words=5_000, seed=0)
        report = probe(each.model, dataset, concatenate=False, untrained=1, progress=False)
        twins = [control.held_out.r2 for control in report.controls if control.kind == "untrained"]
        scores = {
            "trained": max(site.scores.held_out.r2 for site in report.values()),
            "untrained": max(twins),
            "last four tokens": report.controls.select("window 4").held_out.r2,
        }
        rows += [{"name": name, "family": each.process.name, "r2": r2} for name, r2 in scores.items()]
    r2 = _by_family(rows, "r2")
    trained, untrained, history = (fmean(values.values()) for values in r2.values())
    beats = [family for family in FAMILIES if r2["trained"][family] > r2["last four tokens"][family]]
    return Section(
        title="Probes of trained networks, of untrained ones, and four tokens",
        method="""
            At each site of the residual stream, beliefs are regressed on activations by least squares; the best site
            counts. R² is held out by prefix, prefixes weighted by probability. The untrained network has the same
            architecture. The history predicts the mean belief of each window of the last four tokens.
        """,
        claims=(
            Claim(
                says="Probes of trained networks read beliefs no better than those of untrained ones, R²",
                source="text",
                published="not better",
                measured=trained,
                control=untrained,
                control_is="untrained",
                rule=at_most(trained, untrained + 0.01, "untrained plus 0.01"),
            ),
            Claim(
                says="The last four tokens by themselves tell beliefs better than the probes, R²",
                source="text",
                published="better",
                measured=history,
                control=trained,
                control_is="probes of trained networks",
                rule=at_least(history, trained, "that of probes"),
            ),
        ),
        picture=lambda theme: plot_edits(list(FAMILIES), r2, ylabel="R² held out", theme=theme),
        alt="R squared by family, of probes of trained and untrained networks and of the last four tokens",
        remark=f"Probes beat four tokens in {len(beats)} of {len(FAMILIES)} families. Words have only ten tokens, and "
        "most of what tells the state is in the last few, so a window does well however good the network is.",
    )


def differences(small: bool) -> tuple[str, ...]:
    """What differs from the paper's setting, as far as it is known."""
    shared = (
        "The matrices of the six families are ours, of the kinds that the paper names (fewer states, persistent, "
        "ambiguous emissions, six states) and two more. How distinctly states emit was chosen so that an optimal "
        "predictor left alone is as far from E[k] as the paper’s networks are; so were the three levels of difficulty.",
        "Networks have 2 layers and words 10 tokens, and states are written after the last layer, at one position. "
        "Sizes, training and sites of the paper’s networks are not known to us.",
    )
    return (*shared, "One seed a family instead of three.") if small else shared


def force(networks: Sequence[Trained], edits: Sequence[str]) -> InterventionReport:
    """KL(E[k] ‖ model) after each of these edits, by process; k is drawn uniformly for each word.

    Networks of one process, from several seeds, are averaged.
    """
    tables, position = [], 0
    for each in networks:
        dataset = words(each.process, n_ctx=word_length(each.model), max_words=5_000, seed=0)
        reader = probe(each.model, dataset, sites=SITE, controls=False, progress=False)
        makers = {**EDITS, **state_edits(each.model, each.process)}
        asked = {name: makers[name] for name in edits}
        found = intervene(each.model, each.process, probes=reader, edits=asked, targets="vertex", progress=False)
        tables.append(found.table.assign(site=each.process.name))
        position = found.provenance["positions"][0]
    means = pd.concat(tables).groupby(["site", "edit"], sort=False, as_index=False)["kl_to_target"].mean()
    wanted = pd.DataFrame(product(dict.fromkeys(each.process.name for each in networks), edits))
    table = wanted.set_axis(["site", "edit"], axis=1).merge(pd.DataFrame(means), how="left")
    label = "KL(E[k] ‖ model), nats"
    layout = Layout(["site"], "edit", "kl_to_target", label)
    notes = (f"2,000 words a network, position {position}, states drawn uniformly.",)
    return InterventionReport(label, table, ("site", "edit"), notes, {"edits": list(edits)}, layout)


def average(found: InterventionReport, edit: str) -> float:
    """KL after an edit, averaged over processes."""
    return float(found.table.loc[found.table["edit"] == edit, "kl_to_target"].mean())


def _of(networks: Networks, names: Mapping[str, object]) -> list[Trained]:
    """The networks of these processes."""
    return [each for each in networks.values() if each.process.name in names]


def _as_untrained(trained: Trained) -> Trained:
    """The network with new weights; its regret is not measured."""
    return replace(trained, model=trained.untrained(), origin="untrained", training=None)


def _kl(found: InterventionReport, edit: str, process: str) -> float:
    return float(found.select(site=process, edit=edit).kl_to_target)


def _by_family(rows: Sequence[Mapping[str, Any]], value: str) -> dict[str, dict[str, float]]:
    """By name and family, the average over seeds."""
    table = pd.DataFrame(rows).pivot_table(value, "name", "family", sort=False)
    return {str(name): {str(family): float(mean) for family, mean in row.items()} for name, row in table.iterrows()}


FORCING2026 = Paper(
    name="forcing2026",
    title="Markovian circuit tracing for transformer state dynamics",
    authors="Abdullah X, 2026",
    source="arXiv:2605.20824",
    claims="Tiny transformers are trained on hidden Markov models. States recovered by clustering their activations "
    "follow one another in part as the hidden ones do, and a cluster’s mean activation, written in place of another, "
    "moves the prediction toward that of the hidden state. Probes of trained networks read the beliefs no better than "
    "those of untrained ones.",
    networks=networks,
    sections=(predictors, recovered_states, forcing, difficulty, steering, probes),
    differences=differences,
    small_minutes=10,
    full_cost="an hour on two cores (an estimate)",
)
