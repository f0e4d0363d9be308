"""Whether the belief is needed, and whether it is enough.

The regret of the network is measured with the belief erased at every position, with nothing else kept, and, for
comparison, with as many random dimensions erased:

    regret = E KL(optimal next token ‖ model's),    mean over positions, in nats.

"Subtract everything that isn't the MSP: does performance stay?"
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens._checks import Count, Seed, checked
from msp_lens._random import derived_generator
from msp_lens._tables import nats_text
from msp_lens.beliefs.filtering import next_token_probabilities
from msp_lens.beliefs.information import kl_divergence
from msp_lens.data import BeliefDataset
from msp_lens.interventions.edits import Edit, applying, moments_of, no_edit
from msp_lens.interventions.engine import bar_of_edits
from msp_lens.interventions.erasure import erase, erase_random, keep_only, project_out, project_out_random
from msp_lens.interventions.intervention_report import InterventionReport, Layout
from msp_lens.interventions.preparation import (
    ALL_SITES,
    Probes,
    group_label,
    in_firing_order,
    over_words,
    untrained_end,
)
from msp_lens.models.hooked import HookedModel
from msp_lens.probing.belief_probe import BeliefProbe
from msp_lens.processes.process import Process
from msp_lens.training.regret import regret_by_position


@checked
def necessity(
    model: HookedModel,
    data: Process | BeliefDataset,
    *,
    probes: Probes,
    n_random: Count = 3,
    n_words: Count | None = None,
    seed: Seed = 0,
    batch_size: Count | None = None,
    progress: bool = True,
) -> InterventionReport:
    """Regret with the belief erased, with only the belief kept, and with as many random dimensions erased.

    Edits are made at every position, at each site and at all sites at once. Each random erasure is drawn `n_random`
    times, from `seed`. Of words, every possible one is read if there are at most `n_words`, else so many drawn, by
    default 2,000. The other arguments are as for `bayes_consistency`.

    Returns:
        A row for each site and edit: `regret`, the mean over positions, without a last one that was never trained;
        `share_lost`, its ratio to that of a predictor that knows only token frequencies; `spread`, the standard
        deviation of the regret over the `draws` of a random erasure (the other two are then means).

    Raises:
        ValueError: if an option is too small, a probe has no moments or belongs to another model, the model does not
            fit the process, or the belief never changes.
        KeyError: if the model lacks a probe's site.
    """
    model, dataset, chosen, description, provenance = over_words(
        model, data, probes, n_words, seed, most=2000, predicts=True, refuse=_nothing_to_erase
    )
    if dataset.prefix_beliefs.std(dim=0, correction=0).max() < 1e-9:
        raise ValueError(
            f"{description}: the belief is the same after each of them, so nothing can be erased. Choose a "
            "process with more than one belief."
        )
    chosen = in_firing_order(model, chosen)

    def regret(edits: Sequence[Edit]) -> Float64[Tensor, "pos"]:
        with applying(model, edits):
            return regret_by_position(model, dataset, batch_size=batch_size)

    left_alone = regret([no_edit(chosen[0])])
    caution = untrained_end(left_alone)
    trained = slice(None, -1) if caution else slice(None)
    worth = float(worth_of_context(dataset)[trained].mean())
    records = []
    groups = [[probe] for probe in chosen] + ([chosen] if len(chosen) > 1 else [])
    bar = bar_of_edits("Erasing beliefs" if progress else None, len(groups))
    for group in groups:
        for name, draws in {"none": [], **_ablations(group, n_random, seed)}.items():
            values = torch.stack([each[trained].mean() for each in [*map(regret, draws)] or [left_alone]])
            row = {"site": group_label(group), "edit": name, "regret": float(values.mean())}
            row["share_lost"] = row["regret"] / worth if worth > 1e-12 else math.nan
            row["spread"] = float(values.std()) if len(values) > 1 else math.nan
            records.append(row | {"draws": len(values)})
        bar.update()
    bar.close()
    table = pd.DataFrame(records)
    title = "Regret with the belief erased, and with nothing else kept, nats"
    notes = (
        _contrast(table, worth),
        *(f"{sentence} Here it is left out of every mean." for sentence in caution),
        f"{description}, edited at every position. Mean regret over positions, nats; "
        f"a predictor that knows only how often each token comes has {nats_text(worth)}.",
        "erase: LEACE, no linear trace of the belief is left. project out: only the probe's directions are removed; "
        "what is correlated with the belief in other directions stays. keep only: everything else becomes its mean "
        f"given the belief. random: as many random dimensions, mean of {n_random} draws.",
        "If erasing costs, something linearly correlated with the belief was used, which need not be the belief. If "
        "keeping only the belief costs nothing, the belief is enough at that site.",
    )
    layout = Layout(["site"], "edit", "regret", title, shade="share_lost")
    return InterventionReport(title, table, ("site", "edit"), notes, provenance | {"n_random": n_random}, layout)


def _nothing_to_erase(process: Process, n_ctx: int, probes: list[BeliefProbe]) -> None:
    for probe in probes:
        moments_of(probe)
    if process.degeneracy().belief_dimensions == 0:
        raise ValueError(
            f"{process!r}: the belief never changes, so nothing can be erased. Choose a process with more than one "
            "belief."
        )


def worth_of_context(dataset: BeliefDataset) -> Float64[Tensor, "pos"]:
    """The most that can be lost, at each position: the regret in nats of predicting each token by its frequency."""
    optimal = next_token_probabilities(dataset.process, dataset.beliefs)
    average = (dataset.word_weights[:, None, None] * optimal).sum(dim=0).mean(dim=0)
    return dataset.word_weights @ kl_divergence(optimal, average.log().expand_as(optimal))


def _ablations(group: Sequence[BeliefProbe], n_random: int, seed: int) -> dict[str, list[list[Edit]]]:
    """The edits of a group's sites by name: each ablation once, each random one `n_random` times."""
    ablations = {"erase": erase, "project out": project_out, "keep only": keep_only}
    at_random = {"erase random": erase_random, "project out random": project_out_random}
    made = {name: [[ablate(probe) for probe in group]] for name, ablate in ablations.items()}
    for name, ablate in at_random.items():
        # What is drawn for a site does not depend on the other sites asked for.
        sources = [derived_generator(seed, group_label(group), probe.label, name) for probe in group]
        pairs = list(zip(group, sources, strict=True))
        made[name] = [[ablate(probe, generator=source) for probe, source in pairs] for _ in range(n_random)]
    return made


def _contrast(table: pd.DataFrame, worth: float) -> str:
    """The edits side by side at the single site where the belief alone is most nearly enough."""
    rows = table.set_index(["site", "edit"])
    kept = rows["regret"].xs("keep only", level="edit").drop(ALL_SITES, errors="ignore")
    site = kept.idxmin()

    def figure(edit: str) -> str:
        return nats_text(rows.loc[(site, edit), "regret"])

    return (
        f"Regret at {site} is {figure('none')} left alone, {figure('erase')} with the belief erased, "
        f"{figure('erase random')} with as many random dimensions erased, and {figure('keep only')} with nothing but "
        f"the belief kept. A prediction that ignores the words has {nats_text(worth)}."
    )
