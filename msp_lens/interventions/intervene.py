"""The experiment: push the residual stream to another belief, and see whether the network follows.

Words are drawn from the process, each with a target belief. After an edit at one position of the word, the network's
next-token distribution there is compared with what an optimal observer would say

- who holds the *target* belief: KL(target's optimum ‖ model), small if the network acts on what was written;
- who holds the word's *actual* belief: KL(actual optimum ‖ model), small if it takes no notice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens.beliefs.filtering import filter_beliefs, next_token_probabilities
from msp_lens.beliefs.information import kl_divergence
from msp_lens.interventions.edits import Edit
from msp_lens.interventions.engine import TOGETHER, Probes, Writing, batches, chosen_positions, ratio, run_edited
from msp_lens.interventions.intervention_report import InterventionReport, InterventionResult, acts_on_belief
from msp_lens.interventions.menu import REFERENCES, EditMaker, Material
from msp_lens.interventions.targets import TargetMaker
from msp_lens.models.hooked import HookedModel, context_length
from msp_lens.probing.belief_probe import BeliefProbe
from msp_lens.processes.process import Process

__all__ = ["InterventionReport", "InterventionResult", "intervene"]


def intervene(
    model: HookedModel,
    process: Process,
    *,
    probes: Probes,
    positions: int | Sequence[int] | None = None,
    edits: str | Sequence[str] | Mapping[str, EditMaker] | None = None,
    targets: str | Sequence[str] | Mapping[str, Any] | Tensor = "another word",
    strengths: float | Sequence[float] = 1.0,
    together: bool = False,
    n: int = 2000,
    seed: int = 0,
    batch_size: int | None = None,
) -> InterventionReport:
    """Write beliefs into the residual stream and measure whether the network acts on them: layer × position × edit.

    Beside whatever is asked for stand no edit, a placebo of `steer`'s length and a donor.

    Args:
        model: The model that the probes were fitted on.
        process: What it was trained on.
        probes: A report (its single sites are taken) or probes of single sites. The probe of the latest site reads
            the displacement of the others.
        positions: Positions to edit, one at a time; by default one three quarters into the context.
        edits: Names from `msp_lens.interventions.EDITS`, or a mapping of names to makers of one's own.
        targets: Names from `msp_lens.interventions.TARGETS`, a mapping of names to makers or to beliefs, or a belief.
        strengths: How much of each edit to make, λ; several for curves.
        together: Whether also to edit all the sites at once.
        n: Pairs of a word and a target, drawn from the process.
        seed: Seed of the words, the targets and the placebo's directions.
        batch_size: Words in one forward pass.

    Raises:
        ValueError: if a position is outside the context, a probe reads several sites or is of another model, a target
            is no belief, or the model does not fit the process.
        KeyError: if the model lacks a probe's site, or there is no edit or target of a name.
    """
    wanted = chosen_positions(positions, context_length(model))
    scales = _strengths(strengths)
    writing = Writing.begin(
        model,
        process,
        probes,
        edits=edits,
        targets=targets,
        length=max(wanted) + 1,
        n=n,
        seed=seed,
        batch_size=batch_size,
    )
    chosen = writing.probes
    groups = [[probe] for probe in chosen] + ([chosen] if together and len(chosen) > 1 else [])
    results = []
    for position in wanted:
        for name, target_maker in writing.targets.items():
            setting = _draw(process, position, target_maker, n=n, seed=seed)
            table = _run(model, process, groups, writing, scales, setting, batch_size)
            results += _summarized(table, position, name)
    provenance = {
        "process": process.to_dict(),
        "n": n,
        "seed": seed,
        "positions": wanted,
        "edits": list(writing.edits),
        "targets": list(writing.targets),
        "strengths": scales,
        "reader": chosen[-1].label if len(chosen) > 1 else None,
    }
    return InterventionReport(tuple(results), provenance)


def _strengths(strengths: float | Sequence[float]) -> list[float]:
    scales = [float(s) for s in ([strengths] if isinstance(strengths, int | float) else strengths)]
    if not scales or not all(math.isfinite(s) for s in scales) or len(set(scales)) < len(scales):
        raise ValueError(f"strengths={scales}: give at least one finite number, and none twice.")
    return scales


@dataclass(frozen=True, eq=False)
class _Setting:
    """Words with what is to be written after each, and what edits are made of."""

    words: Int[Tensor, "word pos"]
    donors: Int[Tensor, "word pos"]
    actual: Float64[Tensor, "word state"]
    target: Float64[Tensor, "word state"]
    wrong: Float64[Tensor, "word state"]
    generator: torch.Generator


# By site, edit and strength: [quantity, word] of each batch, quantities KL to target, KL to actual, moved, way.
_Key = tuple[str, str, float]
_Table = dict[_Key, list[Tensor]]


def _draw(
    process: Process,
    position: int,
    target_maker: TargetMaker,
    *,
    n: int,
    seed: int,
) -> _Setting:
    generator = torch.Generator().manual_seed(seed)
    words = process.sample(n, position + 1, generator=generator)
    made = target_maker(process, words, generator)
    third = process.sample(len(made.words), position + 1, generator=generator)
    words = words[made.words]
    actual, wrong = (filter_beliefs(process, tokens)[:, -1] for tokens in (words, third))
    return _Setting(words, made.donors, actual, made.beliefs, wrong, generator)


def _run(
    model: HookedModel,
    process: Process,
    groups: Sequence[Sequence[BeliefProbe]],
    writing: Writing,
    strengths: Sequence[float],
    setting: _Setting,
    batch_size: int | None,
) -> _Table:
    """Every edit at every group of sites, made at the words' last position."""
    table: _Table = {}
    optimal_target = next_token_probabilities(process, setting.target)
    optimal_actual = next_token_probabilities(process, setting.actual)
    probes = [group[0] for group in groups if len(group) == 1]
    sites = [probe.sites[0] for probe in probes]
    reader = probes[-1]
    for rows in batches(setting.words, batch_size):
        words, target = setting.words[rows], setting.target[rows]
        _, donor = run_edited(model, setting.donors[rows], (), n_tokens=process.n_tokens, sites=sites)
        plain, held = run_edited(model, words, (), n_tokens=process.n_tokens, sites=sites[-1:])
        read = reader.predict(held[sites[-1]][:, -1]).cpu().double()
        for group in groups:
            label = group[0].label if len(group) == 1 else TOGETHER
            # Only a later site's probe tells what became of an edit.
            watched = sites[-1:] if reader not in group else []
            for name, strength, edits in _edits(group, writing, strengths, setting, donor, rows):
                log_predicted, after = (plain, held)
                if name != "none":
                    log_predicted, after = run_edited(
                        model, words, edits, target, position=-1, n_tokens=process.n_tokens, sites=watched
                    )
                predicted = log_predicted[:, -1]
                way = target - read
                now = (
                    reader.predict(after[sites[-1]][:, -1]).cpu().double()
                    if watched
                    else torch.full_like(read, math.nan)
                )
                quantities = [
                    kl_divergence(optimal_target[rows], predicted),
                    kl_divergence(optimal_actual[rows], predicted),
                    ((now - read) * way).sum(dim=1),
                    (way * way).sum(dim=1),
                ]
                table.setdefault((label, name, strength), []).append(torch.stack(quantities))
    return table


def _edits(
    group: Sequence[BeliefProbe],
    writing: Writing,
    strengths: Sequence[float],
    setting: _Setting,
    donor: Mapping[str, Tensor],
    rows: slice,
) -> Iterator[tuple[str, float, list[Edit]]]:
    """Each edit of the group's sites at each strength, for a batch of words."""
    for name, maker in writing.edits.items():
        whole = [
            maker(
                probe,
                Material(
                    actual=setting.actual[rows].unsqueeze(1),
                    wrong=setting.wrong[rows].unsqueeze(1),
                    donor=donor[probe.sites[0]][:, -1:],
                    centroids=writing.centroids,
                    generator=setting.generator,
                ),
            )
            for probe in group
        ]
        # The references are always made whole, too; no edit has no parts.
        scales = [1.0] if name == "none" else [*strengths]
        scales = scales if 1.0 in scales or name not in REFERENCES else [*scales, 1.0]
        for strength in scales:
            yield name, strength, [edit.scaled(strength) for edit in whole]


def _summarized(table: _Table, position: int, target: str) -> list[InterventionResult]:
    gathered = {key: torch.cat(parts, dim=1) for key, parts in table.items()}
    recoveries = {key: _recovery(values[0], gathered[key[0], "none", 1.0][0]) for key, values in gathered.items()}
    results = []
    for (site, edit, strength), (to_target, to_actual, moved, way) in gathered.items():
        untouched = gathered[site, "none", 1.0]
        predicts = acts_on_belief(float(untouched[1].mean()), float(untouched[0].mean()))
        placebo, donor = recoveries[site, "placebo", 1.0], recoveries[site, "donor", 1.0]
        recovery, recovery_error = recoveries[site, edit, strength]
        displacement, displacement_error = ratio(moved, way)
        n = len(to_target)
        results.append(
            InterventionResult(
                site=site,
                position=position,
                edit=edit,
                target=target,
                strength=strength,
                kl_to_target=float(to_target.mean()),
                kl_to_target_error=float(to_target.std() / n**0.5),
                kl_to_actual=float(to_actual.mean()),
                kl_to_actual_error=float(to_actual.std() / n**0.5),
                recovery=recovery,
                recovery_error=recovery_error,
                above_placebo=_above(recovery, placebo, donor, predicts=predicts),
                displacement=displacement,
                displacement_error=displacement_error,
                n=n,
            )
        )
    return results


def _recovery(after: Float64[Tensor, "word"], before: Float64[Tensor, "word"]) -> tuple[float, float]:
    return ratio(before - after, before)


def _above(recovery: float, placebo: tuple[float, float], donor: tuple[float, float], *, predicts: bool) -> float:
    """Recovery from placebo (0) to donor (1), where the model predicts and the donor surely recovers more."""
    gain = donor[0] - placebo[0]
    sure = predicts and gain > 2 * math.hypot(placebo[1], donor[1])
    return (recovery - placebo[0]) / gain if sure else math.nan
