"""Whether the belief is needed, and whether it is enough.

The regret of the network when the belief is erased at every position, and when nothing but it is kept; against
erasing as many random dimensions:

    regret = E KL(optimal next token ‖ model's),    mean over positions, in nats.

"Subtract everything that isn't the MSP: does performance stay?"
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from msp_lens.beliefs.filtering import next_token_probabilities
from msp_lens.beliefs.information import kl_divergence
from msp_lens.data import BeliefDataset
from msp_lens.interventions.edits import Edit, applying, no_edit
from msp_lens.interventions.engine import TOGETHER, OverWords, Probes
from msp_lens.interventions.erasure import erase, erase_random, keep_only, project_out, project_out_random
from msp_lens.interventions.findings import Findings
from msp_lens.models.hooked import HookedModel
from msp_lens.processes.process import Process
from msp_lens.training.regret import regret_by_position

ABLATIONS = {"erase": erase, "project out": project_out, "keep only": keep_only}
RANDOM_ABLATIONS = {"erase random": erase_random, "project out random": project_out_random}


def necessity(
    model: HookedModel,
    process: Process | BeliefDataset,
    *,
    probes: Probes,
    n_random: int = 3,
    max_words: int = 2000,
    seed: int = 0,
    batch_size: int | None = None,
) -> Findings:
    """Regret after erasing the belief, after keeping only it, and after erasing as many random dimensions.

    At each site, and at all sites at once, at every position.

    Args:
        model: The model that the probes were fitted on.
        process: What it was trained on, or a `BeliefDataset` to take the regret over.
        probes: A report (its single sites are taken) or probes of single sites.
        n_random: Draws of the random erasures; their regrets' mean and standard deviation are given.
        max_words: Every possible word of the model's context where there are at most this many, else as many drawn.
        seed: Seed of the random dimensions and, if need be, of the words.
        batch_size: Words in one forward pass.

    Returns:
        A row for each site and edit: mean regret over positions, the share of what context gives that is lost (the
        regret over that of a predictor that knows only how often each token comes), and over random draws the
        standard deviation.

    Raises:
        ValueError: if a probe has no moments or is of another model, the model does not fit the process, or its belief
            never changes.
        KeyError: if the model lacks a probe's site.
    """
    if n_random < 1:
        raise ValueError(f"n_random={n_random}: at least 1 random erasure is needed to compare with.")
    begun = OverWords.begin(model, process, probes, max_words=max_words, seed=seed)
    dataset, chosen = begun.dataset, begun.probes
    if dataset.prefix_beliefs.std(dim=0, correction=0).max() < 1e-9:
        raise ValueError(f"{begun.description}: the belief is the same after each of them, so nothing can be erased.")
    groups = [[probe] for probe in chosen] + ([chosen] if len(chosen) > 1 else [])
    generator = torch.Generator().manual_seed(seed)

    def regret(edits: Sequence[Edit]) -> float:
        with applying(model, edits):
            return float(regret_by_position(model, dataset, batch_size=batch_size).mean())

    untouched = regret([no_edit(chosen[0])])
    worth = _worth_of_context(dataset)
    records = []
    for group in groups:
        label = group[0].label if len(group) == 1 else TOGETHER
        regrets = {"none": [untouched]}
        regrets |= {name: [regret([ablate(probe) for probe in group])] for name, ablate in ABLATIONS.items()}
        for name, ablate in RANDOM_ABLATIONS.items():
            draws = ([ablate(probe, generator=generator) for probe in group] for _ in range(n_random))
            regrets[name] = [regret(edits) for edits in draws]
        for name, values in regrets.items():
            draws = torch.tensor(values, dtype=torch.float64)
            spread = float(draws.std()) if len(draws) > 1 else math.nan
            records.append(
                {
                    "site": label,
                    "edit": name,
                    "regret": float(draws.mean()),
                    "share_lost": float(draws.mean()) / worth if worth > 1e-12 else math.nan,
                    "spread": spread,
                    "draws": len(values),
                }
            )
    notes = (
        _contrast(records),
        f"{begun.description}, edited at every position. Mean regret over positions, nats; "
        f"a predictor that knows only how often each token comes has {worth:.3g}.",
        "erase: LEACE, no linear trace of the belief is left. project out: only the probe's directions; what is "
        "correlated with the belief elsewhere stays. keep only: all else becomes its mean given the belief. random: as "
        f"many random dimensions, mean of {n_random} draws.",
        "Erasing that costs shows that something linearly correlated with the belief was used, which need not be the "
        "belief. Keeping only the belief at no cost shows that it is enough at that site.",
    )
    return Findings(
        title="Regret with the belief erased, and with nothing else kept, nats",
        table=pd.DataFrame(records),
        notes=notes,
        provenance=begun.provenance | {"n_random": n_random},
        spread=(["site"], "edit", "regret"),
        shade="share_lost",
    )


def _contrast(records: Sequence[Mapping[str, Any]]) -> str:
    """The edits side by side at the site where the belief alone is most nearly enough."""
    kept = [row for row in records if row["edit"] == "keep only" and row["site"] != TOGETHER]
    site = min(kept, key=lambda row: row["regret"])["site"]

    def figure(edit: str) -> str:
        (row,) = (row for row in records if (row["site"], row["edit"]) == (site, edit))
        share = "" if math.isnan(row["share_lost"]) else f" ({100 * row['share_lost']:.1f} %)"
        return f"{row['regret']:.3g}{share}"

    return (
        f"At {site}, regret and the share of what context gives that is lost: left alone {figure('none')}, belief "
        f"erased {figure('erase')}, as much erased at random {figure('erase random')}, nothing but the belief kept "
        f"{figure('keep only')}."
    )


def _worth_of_context(dataset: BeliefDataset) -> float:
    """Regret of predicting each token by how often it comes, whatever was seen: what there is to lose."""
    optimal = next_token_probabilities(dataset.process, dataset.beliefs)
    weights = dataset.word_weights[:, None, None]
    average = (weights * optimal).sum(dim=0).mean(dim=0)
    return float((dataset.word_weights @ kl_divergence(optimal, average.log().expand_as(optimal))).mean())
