"""Does the network's belief behave as a belief should? Two experiments that edit nothing.

Bayes consistency: take the belief read before a token, apply the process's own update, and compare the result with the
belief read after the token,

    E |U_x(b̂_t) - b̂_{t+1}|²,    U_x(b) = b T[x] / (b T[x] 1),    with the null of a copy, E |b̂_t - b̂_{t+1}|².

Prediction consistency: compare the next-token probabilities that the belief read implies, b̂ E, with the model's own.
Nothing is fitted but the probes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pandas as pd
import torch
from einops import einsum
from jaxtyping import Float64
from torch import Tensor

from msp_lens._checks import Count, Seed, checked
from msp_lens._tables import nats_text, percent
from msp_lens.beliefs.filtering import next_token_probabilities
from msp_lens.beliefs.information import kl_divergence
from msp_lens.beliefs.nearest import nearest_belief
from msp_lens.beliefs.trajectories import follow
from msp_lens.data import BeliefDataset
from msp_lens.interventions.intervention_report import InterventionReport
from msp_lens.interventions.preparation import Probes, in_firing_order, log_probabilities, over_words, untrained_end
from msp_lens.models.activations import stream_activations
from msp_lens.models.hooked import HookedModel
from msp_lens.probing.belief_probe import BeliefProbe
from msp_lens.processes.process import Process


@checked
def bayes_consistency(
    model: HookedModel,
    data: Process | BeliefDataset,
    *,
    probes: Probes,
    n_words: Count | None = None,
    seed: Seed = 0,
    batch_size: Count | None = None,
    progress: bool = True,
) -> InterventionReport:
    """Whether updating the belief read at one position gives the belief read at the next, by site and token.

    Beliefs read are first moved to the nearest point of the simplex. If the token is impossible for the belief read,
    there is no update; such steps are omitted, and their share is given.

    Args:
        model: The model that the probes were fitted on.
        data: The process it was trained on, or a `BeliefDataset` to average over.
        probes: A report (its single sites are taken) or probes of single sites.
        n_words: Every possible word, as long as those that the probes were fitted on, if there are at most this many,
            else this many drawn; by default 20,000, or fewer of more than ten tokens.
        seed: Seed of drawn words.
        batch_size: Words in one forward pass.
        progress: Whether to show a progress bar.

    Returns:
        A row for each site and token, and for all tokens together. Mean squared errors per coordinate: `update`, of the
        updated belief; `copy`, of the belief before the token, unchanged; `read`, of the belief read after the token,
        compared with the true one. `skill` is 1 - update / copy, `undefined` the share of steps without an update,
        `weight` the share of all steps.

    Raises:
        ValueError: if an option is too small, a probe or the model does not fit, or words have one token.
        KeyError: if the model lacks a probe's site.
    """
    model, dataset, chosen, description, provenance = over_words(
        model, data, probes, n_words, seed, refuse=_without_steps
    )
    process = dataset.process
    chosen = in_firing_order(model, chosen)
    # Weighted sums by site and token: of update, copy and read errors, of defined and of all steps.
    sums = {probe.label: torch.zeros(process.n_tokens, 5, dtype=torch.float64) for probe in chosen}
    for words, read, _ in _reads(model, dataset, chosen, batch_size, predicts=False, progress=progress):
        tokens = dataset.tokens[words, 1:].flatten()
        truth = dataset.beliefs[words, 1:].flatten(0, 1)
        steps = dataset.n_ctx - 1
        weights = (dataset.word_weights[words] / steps).repeat_interleave(steps)
        for label, beliefs in read.items():
            before, after = beliefs[:, :-1].flatten(0, 1), beliefs[:, 1:].flatten(0, 1)
            updated = follow(process, before, tokens.unsqueeze(1))[:, 1]
            defined = ~updated.isnan().any(dim=1)
            differences = (updated - after, before - after, after - truth)
            columns = [torch.where(defined, each.square().mean(dim=1), 0.0) for each in differences]
            columns += [defined.double(), torch.ones_like(weights)]
            sums[label].index_add_(0, tokens, torch.stack(columns, dim=1) * weights.unsqueeze(1))
    every_token = "all"
    records = []
    for label, by_token in sums.items():
        for token, row in zip((every_token, *process.tokens), (by_token.sum(dim=0), *by_token), strict=True):
            update, copy, reading = (row[:3] / row[3]).tolist()
            skill = 1 - update / copy if copy > 0 else math.nan
            record = {"site": label, "token": token, "update": update, "copy": copy, "skill": skill, "read": reading}
            records.append(record | {"undefined": 1 - float(row[3] / row[4]), "weight": float(row[4])})
    left = {row["site"]: 1 - row["skill"] for row in records if row["token"] == every_token}
    known = [f"{percent(share)} at {site}" for site, share in left.items() if not math.isnan(share)]
    notes = (
        f"The error of the updated belief, as a share of the copy's error: {', '.join(known)}."
        if known
        else "No belief read moves at all: a copy has no error that an update could reduce.",
        f"{description}. Mean squared error per coordinate, words weighted by probability.",
        "update: the belief read before the token, moved by the process's own update, compared with the belief read "
        "after it. copy: the belief read before the token, unchanged. skill: 1 - update / copy. read: the belief read "
        "after the token, compared with the true one; an update can hardly do better than about twice that. By token "
        "in to_dataframe().",
        "Nothing is fitted but the probes. A small error shows that the beliefs read at neighboring positions agree "
        "with the process's dynamics, as they must if both are read well; it does not show that the network computes "
        "one from the other.",
    )
    title = "Bayes consistency: the belief read, then updated, and the belief read after the token"
    table, shown = pd.DataFrame(records), {"token": [every_token]}
    return InterventionReport(title, table, ("site", "token"), notes, provenance, shown=shown)


@checked
def prediction_consistency(
    model: HookedModel,
    data: Process | BeliefDataset,
    *,
    probes: Probes,
    n_words: Count | None = None,
    seed: Seed = 0,
    batch_size: Count | None = None,
    progress: bool = True,
) -> InterventionReport:
    """Whether the model's own predictions are those that the belief read at each site implies, b̂ E.

    Beliefs read are first moved to the nearest point of the simplex. Arguments and errors as for `bayes_consistency`.

    Returns:
        A row for each site, mean KL in nats: `implied_to_model`, KL(implied ‖ model); `optimal_to_implied`;
        `optimal_to_model`; and the null `average_to_model`, of a prediction by the overall frequency of each token.
    """
    model, dataset, chosen, description, provenance = over_words(model, data, probes, n_words, seed, predicts=True)
    process = dataset.process
    chosen = in_firing_order(model, chosen)
    optimal = next_token_probabilities(process, dataset.beliefs)
    average = einsum(dataset.word_weights, optimal, "word, word pos token -> token") / dataset.n_ctx
    totals = {probe.label: torch.zeros(4, dataset.n_ctx, dtype=torch.float64) for probe in chosen}
    for words, read, predicted in _reads(model, dataset, chosen, batch_size, predicts=True, progress=progress):
        weights = dataset.word_weights[words]
        for label, beliefs in read.items():
            # Beliefs read of a generalized process are left where they are, and may imply probabilities below 0.
            implied = (beliefs @ process.emissions).clamp(min=0)
            implied = implied / implied.sum(dim=-1, keepdim=True)
            # A belief read may rule out what is possible; no prediction is quite so sure.
            pairs = [(implied, predicted), (optimal[words], implied.clamp(min=1e-6).log())]
            pairs += [(optimal[words], predicted), (average.expand_as(predicted), predicted)]
            totals[label] += torch.stack([weights @ kl_divergence(p, log_q) for p, log_q in pairs])
    caution = untrained_end(totals[chosen[0].label][2])
    trained = slice(None, -1) if caution else slice(None)
    totals = {label: by_position[:, trained].mean(dim=1) for label, by_position in totals.items()}
    columns = ("implied_to_model", "optimal_to_implied", "optimal_to_model", "average_to_model")
    records = [{"site": label} | dict(zip(columns, row.tolist(), strict=True)) for label, row in totals.items()]
    nearest = min(records, key=lambda row: row["implied_to_model"])
    found, average = (nats_text(float(nearest[column])) for column in ("implied_to_model", "average_to_model"))
    notes = (
        f"At {nearest['site']} the belief read implies what the model says to within {found} nats; a prediction that "
        f"ignores the words is {average} nats away from what the model says.",
        *(f"{sentence} Here it is left out." for sentence in caution),
        f"{description}. KL in nats, mean over positions, words weighted by probability.",
        "implied_to_model: KL(b̂ E ‖ model's), 0 if the model says what the belief read there implies. "
        "optimal_to_implied and optimal_to_model: the regret of each. average_to_model: the null, of a prediction that "
        "ignores the words.",
        "Agreement shows that the belief read accounts for the predictions, not that they are made from it: intervene.",
    )
    title = "Next-token probabilities implied by the belief read, and the model's own"
    return InterventionReport(title, pd.DataFrame(records), ("site",), notes, provenance)


def _without_steps(process: Process, n_ctx: int, probes: list[BeliefProbe]) -> None:
    if n_ctx < 2:
        raise ValueError(f"n_ctx={n_ctx}: a step from one belief to the next needs words of at least 2 tokens.")


def _reads(
    model: HookedModel,
    dataset: BeliefDataset,
    probes: list[BeliefProbe],
    batch_size: int | None,
    *,
    predicts: bool,
    progress: bool,
) -> Iterator[tuple[slice, dict[str, Float64[Tensor, "word pos state"]], Tensor]]:
    """Batches of words with the beliefs that each probe reads along them, and the model's log-probabilities."""
    sites = [probe.sites[0] for probe in probes]
    wanted = partial(log_probabilities, n_tokens=dataset.process.n_tokens) if predicts else False
    how: dict[str, Any] = {"batch_size": batch_size, "progress": "Reading beliefs" if progress else None}
    for batch in stream_activations(model, dataset.tokens, sites, **how, logits=wanted):
        if predicts and batch.output is None:
            raise ValueError("The model returned no next-token logits [word, pos, token]: there is nothing to compare.")
        read = {}
        for probe in probes:
            beliefs = probe.predict(batch.activations[probe.sites[0]]).cpu()
            read[probe.label] = nearest_belief(dataset.process, beliefs)
        yield batch.words, read, batch.output
