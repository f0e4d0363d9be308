"""Riechers, Elliott and Shai 2025: whatever the architecture, a network holds beliefs over the smallest generator.

Claim: with b the beliefs over the smallest generator, classical, quantum or post-quantum, and h the activations of all
layers at a token, min over W, c of E|h W + c - b|² is small in every trained network. States of the order-3 Markov
approximation, which no quantum or post-quantum generator needs, are not there in the same way.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens.beliefs.information import optimal_losses
from msp_lens.controls.markov_order import markov_beliefs, markov_regret, mean_beliefs
from msp_lens.data import BeliefDataset, LabelledTokens, words
from msp_lens.experiments.claims import Claim, Rule, Section, Table, all_of, at_least, at_most, number_text
from msp_lens.experiments.reproduction import Network, Networks, Paper
from msp_lens.figures.simplex import plot_belief_rows
from msp_lens.formation import Emergence, emergence
from msp_lens.models.architecture import RecurrentConfig, RecurrentKind
from msp_lens.models.build import ModelConfig, untrained_like
from msp_lens.models.hooked import HookedModel, find_sites
from msp_lens.moments.scores import Score
from msp_lens.probing.belief_probe import read_beliefs
from msp_lens.probing.fit import probe
from msp_lens.probing.geometry import squared_correlation
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.processes.catalog import bloch_walk, frdn, mess3, moon
from msp_lens.processes.process import Process
from msp_lens.representation.similarity import similarity
from msp_lens.training.config import TrainingConfig

PROCESSES = (mess3(x=0.05, a=0.85), bloch_walk(), frdn(), moon())
ARCHITECTURES = ("transformer", "lstm", "gru", "rnn")
IN_FIGURE_4 = ("transformer", "lstm")  # and in Figure 3; below, their R² of cosines between Markov states
MARKOV_COSINES = {"mess3": (0.5, 0.88), "bloch_walk": (0.42, 0.56), "moon": (0.36, 0.36)}
FIGURES, RELATED = "Figs. 2, 5–8", ("Abstract, Sec. IV.4", "largely independent of the architecture")
N_CTX, ORDER, RIVAL, ALL = 8, 3, "order-3 Markov", "concatenated"
FORMING = {
    "RMSE falls, by a share of the untrained network’s": "more than 0.8",
    "RMSE and loss fall together, by rank correlation": "a striking correlation",
    "later layers have lower errors; RMSE at the last over that at the first": "below 1",
}
_OfPairs = Callable[[Tensor, tuple[Tensor, Tensor]], Tensor]


def networks(small: bool) -> dict[str, Network]:
    """Four architectures on each of four processes, of the paper's sizes; at the small size trained for a minute."""
    made = {}
    for process, kind in itertools.product(PROCESSES, ARCHITECTURES):
        name = f"{process.name}_{kind}"
        training = _briefly(process, kind) if small else _at_length(process, kind)
        if process.name == "bloch_walk" and kind in IN_FIGURE_4:
            training = replace(training, checkpoints="logarithmic", n_checkpoints=11)
        made[name] = Network(process=process, model=_model(process, kind), training=training)
    return made


def _model(process: Process, kind: str) -> ModelConfig | RecurrentConfig:
    if kind == "transformer":
        return ModelConfig(d_vocab=process.n_tokens, n_heads=4, d_head=16, n_ctx=N_CTX)
    return RecurrentConfig(kind=cast(RecurrentKind, kind), d_vocab=process.n_tokens, n_layers=4, n_ctx=N_CTX)


def _briefly(process: Process, kind: str) -> TrainingConfig:
    is_transformer, is_walk = kind == "transformer", process.name == "bloch_walk"
    if is_transformer and is_walk:
        # Muon at 3e-3 leaves it with a memory of two tokens.
        return TrainingConfig(steps=3000, learning_rate=1e-3)
    # The past says little of Bloch Walk's next token, so gradients are mostly noise. FRDN has only 256 words of eight
    # tokens, and repeated words are merged, so many cost no more than few.
    batch_size = {"bloch_walk": 512, "frdn": 1024}.get(process.name, 256)
    return TrainingConfig(optimizer="muon" if is_transformer else "adamw", batch_size=batch_size)


def _at_length(process: Process, kind: str) -> TrainingConfig:
    fewer = kind == "transformer" and process.name in ("frdn", "moon")
    steps, batch_size = (400_000, 16) if fewer else (4_000_000, 128)
    adam = TrainingConfig(steps=steps, batch_size=batch_size, learning_rate=1e-4, betas=(0.9, 0.999), warmup_steps=0)
    return replace(adam, schedule="constant", log_every=1_000, save_every=10_000)


def prediction(networks: Networks, small: bool) -> Section:
    """Whether the networks predict better than a memory of three tokens allows."""
    tables, claims = {}, []
    for process in PROCESSES:
        of_markov = float(markov_regret(process, ORDER, N_CTX).mean())
        trained = {kind: networks[f"{process.name}_{kind}"] for kind in ARCHITECTURES}
        regrets = {kind: float(each.regret.mean()) for kind, each in trained.items()}
        ratios, worst = {kind: f"{each.loss_ratio:.5f}" for kind, each in trained.items()}, max(regrets.values())
        tables[process.name] = pd.DataFrame({"regret": regrets | {RIVAL: of_markov}, "loss / least": ratios})
        claims.append(
            Claim(
                says=f"{process.name}: the networks predict well; regret of the worst of the four, nats",
                source="Sec. IV, App. E",
                published="well",
                measured=worst,
                control=of_markov,
                control_is="best predictor from three tokens",
                rule=at_most(worst, of_markov / 4, "a quarter of what three tokens allow"),
            )
        )
    return Section(
        title="Sixteen networks that predict well",
        method="""
            A transformer, an LSTM, a GRU and an RNN of four layers and width 64 are trained on words of each process.
            Regret is the expected loss above that of the optimal observer, over all words of eight tokens, averaged
            over positions. Beside it stands the regret of the best predictor that uses the last three tokens alone,
            from the exact entropies: the networks must lie well below it if they hold more than a Markov model.
        """,
        claims=tuple(claims),
        tables=(Table("Regret", pd.concat(tables, names=["process", "network"])),),
        remark="The regrets are small because the processes are nearly random: a random guess costs Bloch Walk only "
        f"{number_text(math.log(4) - float(optimal_losses(bloch_walk(), N_CTX).mean()))} nats. So the ratio of losses, "
        "which is the paper’s measure, is near 1 for any network. Each token of Bloch Walk turns the Bloch vector’s "
        "part along the other axis over, by a factor of -.96, so an earlier token counts with the parity of those "
        "since. A recurrent network turns its state over; a transformer learns parities slowly"
        + (", and after 3,000 steps it does what three tokens allow, no more." if small else "."),
    )


def geometry(networks: Networks, small: bool) -> Section:
    """Beliefs in all sixteen networks, beside untrained twins and the order-3 Markov rival."""
    tables, claims, pictures, weights = {}, [], {}, {}
    for process in PROCESSES:
        dataset = words(process, n_ctx=N_CTX)
        data, rows = _targets(dataset), {}
        left = (dataset.prefix_beliefs - mean_beliefs(dataset, ORDER)).square().sum(dim=1)
        weights[process.name] = dataset.prefix_weights("probability")
        window = math.sqrt(float(weights[process.name] @ left))
        pictures[process.name] = {"true beliefs": dataset.prefix_beliefs}
        for kind in ARCHITECTURES:
            model = networks[f"{process.name}_{kind}"].model
            report = _probed(model, data, untrained=1)
            (pictures[process.name][kind],) = read_beliefs(model, dataset, [report[ALL]])
            rows[kind] = _row(report) | {"RMSE three tokens": window}
        tables[process.name] = pd.DataFrame.from_dict(rows, orient="index")
        claims += _if_learned(_geometry_claims(process.name, tables[process.name]), networks, process)
    table = pd.concat(tables, names=["process", "network"])
    return Section(
        title="The belief geometry is in every architecture (Figures 2 and 5 to 8)",
        method="""
            Beliefs after every word of up to eight tokens, weighted by probability, are read from the four layers’
            activations side by side at the word’s last token, by ridge regression with a penalty chosen by
            cross-validation, and scored on words that were not fitted. RMSE is √E|b̂ - b|², summed over coordinates.
            The same is done with an untrained network, and with another target: the belief over the states of the
            order-3 Markov approximation, which are the last three tokens.

            Each row of the picture is a process. Each point is a word, in the color of its true belief; the first
            panel is the truth.
        """,
        claims=tuple(claims),
        picture=lambda theme: plot_belief_rows(pictures, weights=weights, theme=theme),
        alt="True beliefs of four processes, and those read in a transformer, an LSTM, a GRU and an RNN",
        tables=(Table("Beliefs read, by network", table),),
        remark="R² alone says little here. An untrained recurrent network remembers recent tokens, with older ones "
        "fading, as beliefs do; its R² is in the table. So claims compare errors: with the untrained network’s, and "
        "with that of the mean belief given the last three tokens and the position, the best that a memory of three "
        "tokens can say. Errors of the two targets cannot be compared, since Markov states vary more; their R² can. "
        "Beliefs have too few dimensions for a map to so many states: who holds beliefs alone fails the rival, too.",
    )


def _if_learned(
    claims: Sequence[Claim], networks: Networks, process: Process, kinds: Sequence[str] = ARCHITECTURES
) -> list[Claim]:
    """The claims, which no run can decide whose networks predict no better than three tokens allow."""
    allowed = float(markov_regret(process, ORDER, N_CTX).mean())
    weak = [kind for kind in kinds if float(networks[f"{process.name}_{kind}"].regret.mean()) >= allowed]
    why = f"trained too briefly: three tokens would allow a prediction as good as that of the {', '.join(weak)}"
    return [replace(claim, rule=None, beyond=why) for claim in claims] if weak else list(claims)


def _row(report: ProbeReport) -> dict[str, float]:
    """What was read from a network and its untrained twin, held out by prefix."""
    *_, last = (label for label in report if label != ALL)
    rival, scores = report.parts[RIVAL], report[ALL].scores
    twin, of_twin = (each.controls.select("untrained 1", ALL).held_out for each in (report, rival))
    return {
        "RMSE": _rmse(scores.held_out),
        "RMSE in-sample": _rmse(scores.in_sample),
        "RMSE untrained": _rmse(twin),
        "R²": scores.held_out.r2,
        "R² last layer": report[last].scores.held_out.r2,
        "R² untrained": twin.r2,
        "R² Markov states": rival[ALL].scores.held_out.r2,
        "R² Markov states, untrained": of_twin.r2,
    }


def _geometry_claims(process: str, table: pd.DataFrame) -> list[Claim]:
    found = {name: table[name].to_numpy(dtype=float) for name in table}
    own = bool((found["RMSE"] <= found["RMSE untrained"] / 2).all())
    over, twins_over = ((found[name] / found["RMSE three tokens"]) ** 2 for name in ("RMSE", "RMSE untrained"))
    true, markov = float(found["R²"].min()), float(found["R² Markov states"].max())
    return [
        Claim(
            says=f"{process}: beliefs are read in all four; RMSE of the worst, held out",
            source=FIGURES,
            published="low, where untrained networks are high",
            measured=float(found["RMSE"].max()),
            control=float(found["RMSE untrained"].min()),
            control_is="best untrained",
            rule=Rule("each network’s is at most half of its own untrained twin’s", own),
        ),
        Claim(
            says=f"{process}: and better than by any memory of three tokens; largest share of its squared error",
            source=FIGURES,
            published="beliefs, not a finite memory",
            measured=float(over.max()),
            control=float(twins_over.min()),
            control_is="best untrained",
            rule=at_most(float(over.max()), 0.5),
        ),
        Claim(
            says=f"{process}: states of the order-3 Markov approximation are read worse; lowest R² of beliefs",
            source=FIGURES,
            published="beliefs fit substantially better",
            measured=true,
            control=markov,
            control_is="Markov states, highest R²",
            rule=at_least(true, markov + 0.05, "the highest R² of Markov states and .05 more"),
        ),
    ]


def relations(networks: Networks, small: bool) -> Section:
    """Whether angles between beliefs are kept, and whether the architectures have one geometry."""
    claims, rows, cosines = [], [], {}
    for process in PROCESSES:
        dataset = words(process, n_ctx=N_CTX, max_words=2_000, seed=0)
        data, pairs = _targets(dataset), _pairs(dataset)
        trained = {kind: networks[f"{process.name}_{kind}"].model for kind in ARCHITECTURES}
        twins = {kind: untrained_like(model, seed=1) for kind, model in trained.items()}
        read = {kind: _read(model, data, dataset) for kind, model in trained.items()}
        read_twins = {kind: _read(model, data, dataset) for kind, model in twins.items()}
        targets = (dataset.prefix_beliefs, markov_beliefs(dataset, ORDER))
        for kind in ARCHITECTURES:
            of_true, of_rival = (
                _agreement(each, target, pairs, _cosines) for each, target in zip(read[kind], targets, strict=True)
            )
            of_twin = _agreement(read_twins[kind][0], targets[0], pairs, _cosines)
            cosines[process.name, kind] = (of_true, of_rival, of_twin)
            rows.append({"process": process.name, "network": kind, "beliefs": of_true, "Markov states": of_rival})
            rows[-1]["beliefs, untrained"] = of_twin
        alike, alike_twins = (
            min(_agreement(a[0], b[0], pairs, _distances) for a, b in itertools.combinations(each.values(), 2))
            for each in (read, read_twins)
        )
        last = {kind: _layers(model)[-1:] for kind, model in trained.items()}
        cka, cka_twins = (similarity(each, dataset, sites=last).lowest for each in (trained, twins))
        found = [
            *_relation_claims(process.name, cosines),
            Claim(
                says=f"{process.name}: distances between beliefs read are alike in all four; lowest R² of six pairs",
                source=RELATED[0],
                published=RELATED[1],
                measured=alike,
                control=alike_twins,
                control_is="untrained",
                rule=all_of(at_least(alike, 0.95), at_least(alike, alike_twins, "the untrained networks’")),
            ),
            Claim(
                says=f"{process.name}: and so are the activations themselves, without a probe; lowest linear CKA",
                source=RELATED[0],
                published=RELATED[1],
                measured=cka,
                control=cka_twins,
                control_is="untrained",
                rule=all_of(at_least(cka, 0.8), at_least(cka, cka_twins + 0.05, "the untrained networks’ and .05")),
            ),
        ]
        claims += _if_learned(found, networks, process)
    return Section(
        title="Geometric relations are kept, and are the same in all architectures (Figure 4)",
        method="""
            For pairs of words, drawn by probability, the cosine between the beliefs read at all layers is compared with
            the cosine between the true beliefs, and likewise for states of the order-3 Markov approximation. Then two
            architectures are compared: by the distances between the beliefs that are read in each, and by linear CKA
            between the activations of their last layers, |Σ_ab|² / (|Σ_aa| |Σ_bb|), in which no probe takes part.
        """,
        claims=tuple(claims),
        tables=(Table("R² of cosines", pd.DataFrame(rows).set_index(["process", "network"])),),
        remark="Maps that are fitted to one target make whatever they are fitted to alike, so the untrained networks "
        "show what the comparison of read-outs is worth. CKA asks for more than the paper shows: that most of what "
        "varies in the last layer is the same in all architectures, not only the part that an affine map finds.",
    )


def _relation_claims(process: str, cosines: dict[tuple[str, str], tuple[float, float, float]]) -> list[Claim]:
    if process not in MARKOV_COSINES:
        return []
    found = [cosines[process, kind] for kind in IN_FIGURE_4]
    true, markov, twin = (list(each) for each in zip(*found, strict=True))
    low, high = MARKOV_COSINES[process]
    text = f"between {low:g} and {high:g}, or .1 beyond" if low < high else f"within .1 of {low:g}"
    return [
        Claim(
            says=f"{process}: cosines between beliefs are kept; lower R² of transformer and LSTM",
            source="Fig. 4",
            published="0.99 to 1.00",
            measured=min(true),
            control=max(twin),
            control_is="untrained, higher",
            rule=at_least(min(true), 0.985),
        ),
        Claim(
            says=f"{process}: cosines between order-3 Markov states are not; R² of transformer and LSTM",
            source="Fig. 4",
            published=f"{low:g} to {high:g}" if low < high else low,
            measured=" and ".join(map(number_text, markov)),
            control=min(true),
            control_is="beliefs",
            rule=Rule(text, all(low - 0.1 <= each <= high + 0.1 for each in markov)),
        ),
    ]


def over_training(networks: Networks, small: bool) -> Section:
    """How the beliefs of Bloch Walk form."""
    claims = []
    formed: dict[str, Emergence] = {}
    for kind in IN_FIGURE_4:
        trained = networks[f"bloch_walk_{kind}"]
        measured: tuple[float, ...] | None = None
        if trained.training is not None:
            dataset = words(trained.process, n_ctx=N_CTX, max_words=2_000, seed=0)
            how: dict[str, Any] = {"sites": _layers(trained.model), "controls": False, "progress": False}
            formed[kind] = emergence(trained.training, dataset, **how)
            measured = _formation(formed[kind])
        numbers = measured or (math.nan,) * 3
        rules = (at_least(numbers[0], 0.8), at_least(numbers[1], 0.8), at_most(numbers[2], 1))
        for (says, published), number, rule in zip(FORMING.items(), numbers, rules, strict=True):
            claim = Claim(says=f"{kind}: {says}", source="Fig. 3B", published=published, measured=number, rule=rule)
            lost = "the network was loaded, without the history of its training"
            if measured:
                claims += _if_learned([claim], networks, trained.process, [kind])
            else:
                claims.append(replace(claim, measured=None, rule=None, beyond=lost))
    return Section(
        title="The quantum geometry forms during training (Figure 3)",
        method="""
            Checkpoints of the transformer and the LSTM that are trained on Bloch Walk are probed alike, on the same
            words, held out by prefix. The picture is of the transformer.
        """,
        claims=tuple(claims),
        picture=(lambda theme: formed["transformer"].plot(theme=theme)) if formed else None,
        alt="R squared, squared error and regret over training",
    )


def _formation(found: Emergence) -> tuple[float, ...]:
    """The share by which RMSE falls, its rank correlation with the loss, and the last layer's over the first's."""
    errors = found.over_training("MSE held out") ** 0.5
    first, *_, last = (site for site in found.sites if site != ALL)
    fall = 1 - errors[ALL].iloc[-1] / errors[ALL].iloc[0]
    return float(fall), found.rank_correlation(ALL), float(errors[last].iloc[-1] / errors[first].iloc[-1])


def differences(small: bool) -> tuple[str, ...]:
    """What differs from the paper's setting."""
    shared = (
        "Recurrent networks read tokens through a learned embedding, not one-hot vectors, which is the same up to a "
        "linear map of the inputs.",
        "Ridge regression in five folds, where the paper cuts off small singular values in ten; pairs of words are "
        "drawn by probability.",
    )
    if not small:
        return ("The learning rate stays at 1e-4, where the paper halves it when the loss no longer falls.", *shared)
    return (
        "The networks are the paper’s, but they are trained for 1,500 steps of AdamW or, the transformers, of Muon, at "
        "a decaying rate of 3e-3 (Bloch Walk’s transformer for 3,000 of AdamW at 1e-3), instead of up to 4,000,000 "
        "steps of Adam at 1e-4.",
        *shared,
    )


def _layers(model: HookedModel) -> list[str]:
    """The output of each layer."""
    residual = [site for site in find_sites(model, None) if site.endswith("hook_resid_post")]
    return residual or list(find_sites(model, "*hook_hidden"))


def _probed(model: HookedModel, data: LabelledTokens, *, untrained: int = 0) -> ProbeReport:
    quick: dict[str, Any] = {"controls": False, "by_position": False, "progress": False}
    return probe(model, data, sites=_layers(model), solver="ridge", concatenate=True, untrained=untrained, **quick)


def _read(model: HookedModel, data: LabelledTokens, dataset: BeliefDataset) -> tuple[Tensor, ...]:
    """The beliefs and the order-3 Markov states that are read at all layers, by prefix."""
    report = _probed(model, data)
    return tuple(read_beliefs(model, dataset, [report[ALL], report.parts[RIVAL][ALL]]))


def _targets(dataset: BeliefDataset) -> LabelledTokens:
    """All prefixes, by probability, with beliefs and with states of the order-3 Markov approximation."""
    data = LabelledTokens.from_beliefs(dataset)
    return replace(data, targets={**data.targets, RIVAL: markov_beliefs(dataset, ORDER)[data.groups]})


def _rmse(score: Score) -> float:
    """√E|b̂ - b|²: the paper sums over coordinates, a score averages."""
    return math.sqrt(max(score.mse, 0.0) * len(score.mse_by_target))


def _pairs(dataset: BeliefDataset, n_pairs: int = 100_000) -> tuple[Tensor, Tensor]:
    """Pairs of different prefixes, drawn by probability."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(dataset.prefix_weights("probability"), 2 * n_pairs, replacement=True, generator=generator)
    first, second = drawn.unflatten(0, (2, n_pairs))
    return first[first != second], second[first != second]


def _cosines(values: Tensor, pairs: tuple[Tensor, Tensor]) -> Float64[Tensor, "pair"]:
    return torch.cosine_similarity(values[pairs[0]], values[pairs[1]])


def _distances(values: Tensor, pairs: tuple[Tensor, Tensor]) -> Float64[Tensor, "pair"]:
    return (values[pairs[0]] - values[pairs[1]]).norm(dim=1)


def _agreement(one: Tensor, other: Tensor, pairs: tuple[Tensor, Tensor], measure: _OfPairs) -> float:
    """R² between what two sets of vectors say of the same pairs."""
    of_one, of_other = measure(one, pairs), measure(other, pairs)
    return squared_correlation(of_one, of_other, torch.ones_like(of_one))


QUANTUM2025 = Paper(
    name="quantum2025",
    title="Neural networks leverage nominally quantum and post-quantum representations",
    authors="Riechers, Elliott and Shai, 2025",
    source="arXiv:2507.07432",
    claims="Some processes have a small generator only in quantum or post-quantum theory, and none that is finite and "
    "classical. The paper finds that transformers, LSTMs, GRUs and RNNs which predict them hold beliefs over that "
    "generator, as an affine image of their activations, and that the geometry hardly depends on the architecture.",
    networks=networks,
    sections=(prediction, geometry, relations, over_training),
    differences=differences,
    small_minutes=18,
    full_cost="some 230 hours of one core for sixteen networks, at most 50 for one (estimated from the small size)",
)
