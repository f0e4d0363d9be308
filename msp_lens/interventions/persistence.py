"""How long the network acts on a belief that was written.

After an edit the following tokens are fed, and the model's predictions compared with the belief filtered on from the
one that was written:

    KL(b'_{t+k} E ‖ model's at t + k),    b'_{t+k} = the target after the k tokens that followed.

Once with the edit at position t alone, once with the filtered beliefs written at every later position too. Later
positions attend to the past: where that was not edited it speaks for the old belief.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens.beliefs.filtering import filter_beliefs, next_token_probabilities
from msp_lens.beliefs.information import kl_divergence
from msp_lens.beliefs.trajectories import continuations, follow
from msp_lens.interventions.engine import Probes, Writing, batches, chosen_positions, run_edited
from msp_lens.interventions.findings import Findings
from msp_lens.interventions.menu import EditMaker, Material
from msp_lens.interventions.targets import TargetMaker
from msp_lens.models.hooked import HookedModel, word_length
from msp_lens.processes.process import Process

ALONE, ONWARD = "one position", "trajectory"


def persistence(
    model: HookedModel,
    process: Process,
    *,
    probes: Probes,
    position: int | None = None,
    length: int | None = None,
    edits: str | Sequence[str] | Mapping[str, EditMaker] | None = ("none", "placebo", "steer", "patch", "donor"),
    target: str | Mapping[str, Any] | Tensor = "another word",
    n: int = 1000,
    seed: int = 0,
    batch_size: int | None = None,
) -> Findings:
    """Edit at one position, or from it onward along the filtered trajectory, and follow the predictions.

    The tokens that follow are drawn as an observer with the target belief expects them, so they are possible. They
    speak for the target themselves: compare with no edit, which they move towards it too.

    Args:
        model: The model that the probes were fitted on.
        process: What it was trained on.
        probes: A report (its single sites are taken) or probes of single sites.
        position: Where the edit is made, or begins; by default in the middle of the context.
        length: Tokens in a word; by default the model's context.
        edits: Names from `msp_lens.interventions.EDITS`, or a mapping of names to makers of one's own.
        target: A name from `msp_lens.interventions.TARGETS`, `{name: maker or belief}`, or a belief.
        n: Pairs of a word and a target.
        seed: Seed of the words, the targets, the tokens that follow and the placebo's directions.
        batch_size: Words in one forward pass.

    Returns:
        A row for each site, edit, way of editing (`edited`: "one position" or "trajectory") and number of tokens
        since (`after`), with mean KL to the target's optimum, to the actual word's, and standard errors over words;
        and `recovery`, 1 - KL to the target / that of no edit.
        KL to the actual optimum is over the words for which the tokens that followed are possible.

    Raises:
        ValueError: if no token follows the position, a probe is of another model, or a target is no belief.
        KeyError: if the model lacks a probe's site, or there is no edit or target of a name.
    """
    words_length = word_length(model, length, otherwise="length=")
    middle = max(0, min(words_length // 2, words_length - 2))
    (start,) = chosen_positions(middle if position is None else position, words_length)
    n_after = words_length - start - 1
    if n_after < 1:
        raise ValueError(f"position={start} is the last of {words_length}: no token follows. Choose an earlier one.")
    writing = Writing.begin(
        model,
        process,
        probes,
        edits=edits,
        targets=target,
        length=words_length,
        n=n,
        seed=seed,
        batch_size=batch_size,
    )
    if len(writing.targets) != 1:
        raise ValueError(f"target={list(writing.targets)}: give one target.")
    ((target_name, target_maker),) = writing.targets.items()
    course = _draw(process, start, n_after, target_maker, n=n, seed=seed)
    records = _records(_run(model, process, writing, start, course, batch_size))
    n_words = len(course.fed)
    notes = (
        _contrast(records),
        f"{n_words:,} words drawn from {process.name}, edited at position {start} towards {target_name}, then fed "
        f"{n_after} tokens drawn from the target's own future. KL in nats to the optimum of the belief filtered on "
        "from the target; after: tokens fed since the edit.",
        "one position: the edit is made at that position alone. trajectory: the filtered beliefs are written at every "
        f"later position too. Shown are 0, 1 and {n_after} tokens after; to_dataframe() has all.",
        "The tokens that follow speak for the target themselves: an edit acts for long only as far as it stays below "
        "no edit. That an edit of one position fades shows that later positions read the past anew, not that the "
        "belief is unused.",
    )
    return Findings(
        title="KL(optimum filtered on from the target ‖ model), nats",
        table=pd.DataFrame(records),
        notes=notes,
        provenance={"process": process.to_dict(), "position": start, "target": target_name, "n": n_words, "seed": seed},
        spread=(["site", "after", "edited"], "edit", "kl_to_target"),
        shown={"after": sorted({0, 1, n_after})},
        shade="recovery",
    )


@dataclass(frozen=True, eq=False)
class _Course:
    """Words fed to their end, the donors' beside them, and beliefs from the edited position on."""

    fed: Int[Tensor, "word pos"]
    donors: Int[Tensor, "word pos"]
    targets: Float64[Tensor, "word later state"]
    actual: Float64[Tensor, "word later state"]
    wrong: Float64[Tensor, "word later state"]
    generator: torch.Generator


def _draw(process: Process, start: int, n_after: int, target_maker: TargetMaker, *, n: int, seed: int) -> _Course:
    generator = torch.Generator().manual_seed(seed)
    words = process.sample(n, start + 1, generator=generator)
    made = target_maker(process, words, generator)
    words = words[made.words]
    third = process.sample(len(words), start + 1, generator=generator)
    following = continuations(process, made.beliefs, n_after, generator=generator)
    targets = follow(process, made.beliefs, following)
    actual, wrong = (follow(process, filter_beliefs(process, begun)[:, -1], following) for begun in (words, third))
    return _Course(
        fed=torch.cat([words, following], dim=1),
        donors=torch.cat([made.donors, following], dim=1),
        targets=targets,
        actual=actual,
        # A wrong belief that rules the following tokens out gives way to the one before any token.
        wrong=torch.where(wrong.isnan(), process.initial, wrong),
        generator=generator,
    )


# By site, way of editing and edit: [optimum, word, later] of each batch.
_Table = dict[tuple[str, str, str], list[Tensor]]


def _run(
    model: HookedModel,
    process: Process,
    writing: Writing,
    start: int,
    course: _Course,
    batch_size: int | None,
) -> _Table:
    """By site, way of editing and edit: KL of the target's and of the actual optimum, from the edited position on."""
    table: _Table = {}
    sites = [probe.sites[0] for probe in writing.probes]
    optima = [next_token_probabilities(process, beliefs) for beliefs in (course.targets, course.actual)]
    # Where the following tokens are impossible there is no actual belief: an edit from it makes no step.
    held = torch.where(course.actual.isnan(), course.targets, course.actual)
    for rows in batches(course.fed, batch_size):
        plain, _ = run_edited(model, course.fed[rows], (), n_tokens=process.n_tokens)
        _, donor = run_edited(model, course.donors[rows], (), n_tokens=process.n_tokens, sites=sites)
        for probe, (edited, n_edited) in product(writing.probes, ((ALONE, 1), (ONWARD, course.targets.shape[1]))):
            places = slice(start, start + n_edited)
            material = Material(
                actual=held[rows, :n_edited],
                wrong=course.wrong[rows, :n_edited],
                donor=donor[probe.sites[0]][:, places],
                centroids=writing.centroids,
                generator=course.generator,
            )
            for name, maker in writing.edits.items():
                log_predicted = plain
                if name != "none":
                    log_predicted, _ = run_edited(
                        model,
                        course.fed[rows],
                        [maker(probe, material)],
                        course.targets[rows, :n_edited],
                        position=places,
                        n_tokens=process.n_tokens,
                    )
                divergences = [kl_divergence(optimum[rows], log_predicted[:, start:]) for optimum in optima]
                table.setdefault((probe.label, edited, name), []).append(torch.stack(divergences))
    return table


def _records(table: _Table) -> list[dict[str, Any]]:
    """A row for each site, number of tokens since, way of editing and edit."""
    gathered = {key: torch.cat(parts, dim=1) for key, parts in table.items()}
    records = []
    for (site, edited, edit), (to_target, to_actual) in gathered.items():
        untouched = gathered[site, edited, "none"][0].mean(dim=0)
        for after in range(to_target.shape[1]):
            record: dict[str, Any] = {"site": site, "after": after, "edited": edited, "edit": edit}
            for name, values in (("kl_to_target", to_target[:, after]), ("kl_to_actual", to_actual[:, after])):
                possible = values[~values.isnan()]
                record[name] = float(possible.mean())
                record[f"{name}_error"] = (
                    float(possible.std()) / len(possible) ** 0.5 if len(possible) > 1 else math.nan
                )
            before = float(untouched[after])
            recovery = 1 - record["kl_to_target"] / before if before > 1e-12 else math.nan
            records.append(record | {"recovery": recovery, "n": len(to_target)})
    places = {site: place for place, site in enumerate(dict.fromkeys(record["site"] for record in records))}
    # Of one site and time the two ways of editing stand together; edits keep the menu's order.
    records.sort(key=lambda record: (places[record["site"]], record["after"], record["edited"] == ONWARD))
    return records


def _contrast(records: Sequence[Mapping[str, Any]]) -> str:
    """One position beside the trajectory, at the earliest site where the edit works about as well as anywhere."""
    kl = {(row["edit"], row["edited"], row["after"], row["site"]): row["kl_to_target"] for row in records}
    sites = list(dict.fromkeys(row["site"] for row in records))
    edit = "steer" if ("steer", ALONE, 0, sites[0]) in kl else "donor"
    best = min(kl[edit, ALONE, 0, site] for site in sites)
    allowed = best + 0.1 * max(kl["none", ALONE, 0, sites[0]] - best, 0)
    site = next(site for site in sites if kl[edit, ALONE, 0, site] <= allowed)
    untouched = [kl["none", ALONE, after, site] for after in (0, 1)]
    return (
        f"{edit} at {site}: KL {kl[edit, ALONE, 0, site]:.3g} at once (left alone {untouched[0]:.3g}); a token later "
        f"{kl[edit, ALONE, 1, site]:.3g} if one position was written, {kl[edit, ONWARD, 1, site]:.3g} along the "
        f"trajectory (left alone {untouched[1]:.3g})."
    )
