"""Does the network's belief move as beliefs do? Two experiments that edit nothing.

Commutation. Take the belief read before a token, apply the process's own update, compare with the belief read after:

    E |U_x(b̂_t) - b̂_{t+1}|²,    U_x(b) = b T[x] / (b T[x] 1),    against the null of a copy, E |b̂_t - b̂_{t+1}|².

Nothing is fitted beside the probes. The unembedding. Compare the next-token probabilities that the read belief implies,
b̂ E, with the model's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from einops import einsum
from jaxtyping import Float64
from torch import Tensor

from msp_lens.beliefs.filtering import next_token_probabilities
from msp_lens.beliefs.information import kl_divergence
from msp_lens.beliefs.nearest import nearest_belief
from msp_lens.beliefs.trajectories import follow
from msp_lens.data import BeliefDataset
from msp_lens.interventions.engine import OverWords, Probes
from msp_lens.interventions.findings import Findings
from msp_lens.models.activations import stream_activations
from msp_lens.models.hooked import HookedModel
from msp_lens.probing.belief_probe import BeliefProbe
from msp_lens.processes.process import Process

EVERY_TOKEN = "all"


def bayes_consistency(
    model: HookedModel,
    process: Process | BeliefDataset,
    *,
    probes: Probes,
    max_words: int = 20_000,
    seed: int = 0,
    batch_size: int | None = None,
) -> Findings:
    """Whether updating the belief read at a position gives the belief read at the next, by site and token.

    Read beliefs are first taken to the nearest point of the simplex. Steps at which the token is impossible for the
    belief read have no update; they are left out, and their share given.

    Args:
        model: The model that the probes were fitted on.
        process: What it was trained on, or a `BeliefDataset` to average over.
        probes: A report (its single sites are taken) or probes of single sites.
        max_words: Every possible word of the model's context where there are at most this many, else as many drawn.
        seed: Seed of the words, if need be.
        batch_size: Words in one forward pass.

    Returns:
        A row for each site and token, and for all tokens together: mean squared error per coordinate of the update,
        of the copy-last-belief null, and of the read belief itself against the true one; `skill`, 1 - update / copy.

    Raises:
        ValueError: if a probe is of another model, the model does not fit the process, or words have one token.
        KeyError: if the model lacks a probe's site.
    """
    begun = OverWords.begin(model, process, probes, max_words=max_words, seed=seed)
    dataset, chosen, process = begun.dataset, begun.probes, begun.dataset.process
    if dataset.n_ctx < 2:
        raise ValueError(f"n_ctx={dataset.n_ctx}: a step from one belief to the next needs words of at least 2 tokens.")
    # Weighted sums by site and token: of update, copy and read errors, of defined and of all steps.
    sums = {probe.label: torch.zeros(process.n_tokens, 5, dtype=torch.float64) for probe in chosen}
    for words, read, _ in _reads(model, dataset, chosen, batch_size):
        tokens = dataset.tokens[words, 1:].flatten()
        truth = dataset.beliefs[words, 1:].flatten(0, 1)
        steps = dataset.n_ctx - 1
        weights = (dataset.word_weights[words] / steps).repeat_interleave(steps)
        for probe, beliefs in zip(chosen, read, strict=True):
            before, after = beliefs[:, :-1].flatten(0, 1), beliefs[:, 1:].flatten(0, 1)
            updated = follow(process, before, tokens.unsqueeze(1))[:, 1]
            defined = ~updated.isnan().any(dim=1)
            columns = torch.stack(
                [
                    torch.where(defined, _squared(updated, after), 0.0),
                    torch.where(defined, _squared(before, after), 0.0),
                    torch.where(defined, _squared(after, truth), 0.0),
                    defined.double(),
                    torch.ones_like(weights),
                ],
                dim=1,
            )
            sums[probe.label].index_add_(0, tokens, columns * weights.unsqueeze(1))
    records = []
    for label, by_token in sums.items():
        for token, row in zip((EVERY_TOKEN, *process.tokens), (by_token.sum(dim=0), *by_token), strict=True):
            update, copy, reading = (row[:3] / row[3]).tolist()
            records.append(
                {
                    "site": label,
                    "token": token,
                    "update": update,
                    "copy": copy,
                    "skill": 1 - update / copy if copy > 0 else torch.nan,
                    "read": reading,
                    "undefined": 1 - float(row[3] / row[4]),
                    "weight": float(row[4]),
                }
            )
    left = {row["site"]: 1 - row["skill"] for row in records if row["token"] == EVERY_TOKEN}
    known = [f"{100 * share:.1f} % at {site}" for site, share in left.items() if not math.isnan(share)]
    notes = (
        f"The process's own update leaves of the copy's error {', '.join(known)}."
        if known
        else "No belief read moves at all: a copy has no error that an update could spare.",
        f"{begun.description}. Mean squared error per coordinate, words weighted by probability.",
        "update: the belief read before the token, moved by the process's own update, against the belief read after. "
        "copy: the belief read before as it is. skill: 1 - update / copy. read: the belief read after against the true "
        "one; an update can hardly do better than about twice that. By token in to_dataframe().",
        "Nothing is fitted but the probes. A small error shows that the beliefs read at neighboring positions agree "
        "with the process's dynamics, as they must where both are read well; not that the network computes one from "
        "the other.",
    )
    return Findings(
        title="Commutation: read, then update, or update, then read",
        table=pd.DataFrame(records),
        notes=notes,
        provenance=begun.provenance,
        shown={"token": [EVERY_TOKEN]},
    )


def prediction_consistency(
    model: HookedModel,
    process: Process | BeliefDataset,
    *,
    probes: Probes,
    max_words: int = 20_000,
    seed: int = 0,
    batch_size: int | None = None,
) -> Findings:
    """Whether the model's own predictions are those that the belief read at each site implies, b̂ E.

    Read beliefs are first taken to the nearest point of the simplex. Arguments as for `bayes_consistency`.

    Returns:
        A row for each site: mean KL(implied ‖ model), KL(optimal ‖ implied), KL(optimal ‖ model), and as a null
        KL(average ‖ model), the average being how often each token comes whatever was seen; nats.

    Raises:
        ValueError: if a probe is of another model, or the model does not fit the process.
        KeyError: if the model lacks a probe's site.
    """
    begun = OverWords.begin(model, process, probes, max_words=max_words, seed=seed)
    dataset, chosen, process = begun.dataset, begun.probes, begun.dataset.process
    optimal = next_token_probabilities(process, dataset.beliefs)
    average = einsum(dataset.word_weights, optimal, "word, word pos token -> token") / dataset.n_ctx
    totals = torch.zeros(len(chosen), 4, dtype=torch.float64)
    for words, read, logits in _reads(model, dataset, chosen, batch_size):
        weights = dataset.word_weights[words] / dataset.n_ctx
        predicted = logits.cpu().double().log_softmax(dim=-1)[..., : process.n_tokens]
        for index, beliefs in enumerate(read):
            implied = _distribution(next_token_probabilities(process, beliefs))
            divergences = (
                kl_divergence(implied, predicted),
                # A read belief may rule out what is possible; no prediction is quite so sure.
                kl_divergence(optimal[words], implied.clamp(min=1e-6).log()),
                kl_divergence(optimal[words], predicted),
                kl_divergence(average.expand_as(predicted), predicted),
            )
            totals[index] += torch.stack([weights @ kl.sum(dim=1) for kl in divergences])
    columns = ("implied_to_model", "optimal_to_implied", "optimal_to_model", "average_to_model")
    records = [
        {"site": probe.label} | dict(zip(columns, row, strict=True))
        for probe, row in zip(chosen, totals.tolist(), strict=True)
    ]
    nearest = min(records, key=lambda row: row["implied_to_model"])
    notes = (
        f"At {nearest['site']} the belief read implies what the model says to within {nearest['implied_to_model']:.3g} "
        f"nats; a prediction that takes no notice of the words is {nearest['average_to_model']:.3g} away.",
        f"{begun.description}. KL in nats, mean over positions, words weighted by probability.",
        "implied_to_model: KL(b̂ E ‖ model's), 0 if the model says what the belief read there implies. "
        "optimal_to_implied and optimal_to_model: the regret of each. average_to_model: the null, of a prediction that "
        "takes no notice of the words.",
        "Agreement shows that the belief read accounts for the predictions, not that they are made from it: intervene.",
    )
    return Findings(
        title="Next-token probabilities implied by the belief read, and the model's own",
        table=pd.DataFrame(records),
        notes=notes,
        provenance=begun.provenance,
    )


def _reads(
    model: HookedModel, dataset: BeliefDataset, probes: Sequence[BeliefProbe], batch_size: int | None
) -> Iterator[tuple[slice, list[Float64[Tensor, "word pos state"]], Tensor]]:
    """Batches of words with the beliefs that each probe reads along them, and the model's logits."""
    sites = list(dict.fromkeys(probe.sites[0] for probe in probes))
    for batch in stream_activations(model, dataset.tokens, sites, batch_size=batch_size):
        read = [
            nearest_belief(dataset.process, probe.predict(batch.activations[probe.sites[0]]).cpu().double())
            for probe in probes
        ]
        yield batch.words, read, batch.output


def _distribution(implied: Float64[Tensor, "word pos token"]) -> Float64[Tensor, "word pos token"]:
    # What is read of a generalized process's belief may imply probabilities below 0.
    positive = implied.clamp(min=0)
    return positive / positive.sum(dim=-1, keepdim=True)


def _squared(first: Float64[Tensor, "step state"], second: Float64[Tensor, "step state"]) -> Float64[Tensor, "step"]:
    return (first - second).square().mean(dim=1)
