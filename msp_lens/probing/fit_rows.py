"""Probe rows from any source: one pass over them, then every site, every group of sites and the controls."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from tqdm.auto import tqdm

from msp_lens._checks import Count, Seed, checked
from msp_lens.controls.control_scores import ControlKind, Controls, ControlScore
from msp_lens.controls.token_windows import TokenWindows
from msp_lens.data.labelled import BELIEF
from msp_lens.data.splits import Folds
from msp_lens.models.sites import site_label
from msp_lens.moments.grid import MAX_BYTES, check_memory, moments_bytes
from msp_lens.moments.moments import Moments
from msp_lens.moments.pass_progress import PassCheckpoint, PassProgress
from msp_lens.moments.reduction import FeatureReduction
from msp_lens.moments.solve import LinearMap
from msp_lens.moments.solvers import OLS, Solver, as_solver
from msp_lens.probing.belief_probe import BeliefProbe, fit_probe
from msp_lens.probing.cross_validation import ProbeScores, Target, evaluate_all
from msp_lens.probing.one_pass import (
    EVERYTHING,
    Accumulator,
    ClassRows,
    Observer,
    Stratum,
    Sums,
    accumulate,
    modest,
)
from msp_lens.probing.parts import Part
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.probing.probe_tables import Increment
from msp_lens.probing.rows import RowBatch, Rows

CONCATENATED = "concatenated"


@checked
def probe_rows(
    rows: Rows | Iterable[RowBatch],
    sites: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    *,
    solver: Solver | str = "auto",
    n_folds: Folds = 5,
    n_groups: Count | None = None,
    n_positions: Count | None = None,
    concatenate: bool | FeatureReduction | None = None,
    parts: Sequence[str] = (),
    extras: bool = True,
    windows: TokenWindows | None = None,
    max_bytes: Count = MAX_BYTES,
    seed: Seed = 0,
    progress: bool = False,
) -> ProbeReport:
    """Probe rows from any source: one pass over the batches, then all solves from their moments.

    Args:
        rows: Rows from `model_rows`, `sampled_rows`, `cache_rows` or `batch_rows`, or your own, with what is read in
            `targets["belief"]`, and optionally the controls `"shuffled belief"` and `"next token"`.
        sites: Features to probe, in the order of the forward pass, or named groups to concatenate; by default those of
            the `Rows`.
        solver: `"auto"`, `"ols"`, `"ridge"`, or a solver with options.
        n_folds: Number of folds of the cross-validation over the rows' groups.
        n_groups: Number of groups, numbered from 0, to deal them evenly; by default groups are dealt by hash.
        n_positions: Number of positions to score the probes at.
        concatenate: Whether to probe all sites together too, and each with all before it; or a reduction of each first.
            By default if that takes at most a quarter of `max_bytes`.
        parts: Other targets to probe in the same pass, each with the other ones as rivals: `report.parts`.
        extras: Whether to score controls, ranks, positions and increments too.
        windows: Token windows to compare the probes with, over the words that the rows are numbered by.
        max_bytes: Largest memory that the moments may take.
        seed: Seed of the folds.
        progress: Whether to show a progress bar while solving.

    Raises:
        ValueError: if a number is not finite, the sites are too wide to concatenate, or there are too few groups.
    """
    if sites is None:
        if not isinstance(rows, Rows):
            raise ValueError("sites=None: name the features to probe; only Rows know their own.")
        sites = rows.sites
    check_concatenate(concatenate)
    by_label = sites if isinstance(sites, Mapping) else {site_label(site): (site,) for site in sites}
    own_parts = [Part(name, Target(name, f"shuffled {name}", ())) for name in parts]
    if concatenate is None:
        # The first batch shows how wide the sites are.
        batches = iter(rows)
        first = next(batches, None)
        description = dict(getattr(rows, "description", {}))
        if first is not None:
            widths = {name: values.shape[1] for name, values in (*first.features.items(), *first.targets.items())}
            dealt = n_folds if n_groups is None else max(2, min(n_folds, n_groups))
            chosen = chosen_concatenation(None, by_label, widths, n_cells=dealt, max_bytes=max_bytes)
            concatenate = chosen.concatenate
            description |= chosen.left_out
            batches = itertools.chain([first], batches)
        names = tuple(dict.fromkeys(site for group in by_label.values() for site in group))
        rows = Rows(names, description, lambda: iter(batches))
    fitted = partial(fit_report, solver=as_solver(solver), n_folds=n_folds, n_groups=n_groups, n_positions=n_positions)
    fitted = partial(fitted, concatenate=concatenate, extras=extras, max_bytes=max_bytes, seed=seed, parts=own_parts)
    given = [windows] if windows else []
    return fitted(rows, by_label, windows=given, observers=given, progress=progress)


def fit_report(
    rows: Rows | Iterable[RowBatch],
    sites: Mapping[str, Sequence[str]],
    *,
    solver: Solver,
    n_folds: int,
    n_groups: int | None,
    concatenate: bool | FeatureReduction | None,
    max_bytes: int,
    seed: int,
    n_positions: int | None = None,
    own_positions: bool = False,
    extras: bool = True,
    parts: Sequence[Part] = (),
    strata: tuple[Stratum, ...] = EVERYTHING,
    group_count: int | None = None,
    windows: Sequence[TokenWindows] = (),
    classes: ClassRows | None = None,
    observers: Sequence[Observer] = (),
    checkpoint: PassCheckpoint | None = None,
    resume_from: PassProgress | None = None,
    progress: bool = False,
) -> ProbeReport:
    """What `probe` and `probe_rows` share; options of one name are alike.

    `own_positions` fits each position on its own too; `observers`, windows and classes among them, sum over the same
    pass. Sums are saved to `checkpoint` from time to time; `resume_from` is an interrupted pass whose remaining rows
    these are. `group_count` is the number of groups where they are dealt by hash. `parts` are other targets, which are
    not defined in some of the `strata` of rows.
    """
    groups = {label: tuple(group) for label, group in sites.items()}
    names = tuple(dict.fromkeys(site for group in groups.values() for site in group))
    if not names:
        raise ValueError("sites is empty: name at least one.")
    if n_groups is not None:
        n_folds = max(2, min(n_folds, n_groups))
    reduction = None if isinstance(concatenate, bool) else concatenate
    if concatenate and len(names) > 1:
        groups.setdefault(CONCATENATED, names)
    # A concatenation reads the sites' own blocks, or their reduced ones.
    blocks = {
        label: group if len(group) == 1 or reduction is None else tuple(map(_reduced, group))
        for label, group in groups.items()
    }
    panels = list(blocks.values())
    accumulator = Accumulator(
        panels,
        n_folds,
        n_groups,
        n_positions,
        seed,
        max_bytes,
        progress=resume_from,
        strata=strata,
        group_count=group_count,
    )
    stream = rows if reduction is None else _with_reduced(rows, names, reduction)
    sums = accumulate(stream, accumulator, observers, checkpoint=checkpoint)
    if n_positions is not None and accumulator.n_positions is None:
        left_out = {"positions_left_out": {"bytes": accumulator.n_bytes_by_position}}
    else:
        left_out = {}
    provenance = (
        dict(getattr(rows, "description", {}))
        | left_out
        | {
            "n_folds": n_folds,
            "solver": solver.to_dict(),
            "reduction": repr(reduction) if reduction is not None else None,
            "n_cells": sum(map(len, sums.cells().cells)),
            "n_groups": sums.n_groups,
            "seed": seed,
        }
    )
    whole, undefined = Part(BELIEF), []
    for part in parts:
        try:
            sums.cells(targets=[part.target.block])
        except ValueError:
            undefined.append(part.name)
    if undefined:
        provenance["parts_left_out"] = undefined
    read = [whole, *(part for part in parts if part.name not in undefined)]
    described = {part: provenance | part.description() for part in read}
    probes: dict[Part, dict[str, BeliefProbe]] = {part: {} for part in read}
    for label in tqdm(groups, desc="Solving", disable=not progress, leave=False):
        group = blocks[label]
        scored = _scored(sums, group, read, solver, extras=extras, own_positions=own_positions)
        for part, (read_map, scores) in scored.items():
            block, cells = part.target.block, sums.cells(group, [part.target.block])
            # A probe calls what it reads its belief.
            moments = cells.whole if part is whole else cells.whole.select([*group, block]).renamed({block: BELIEF})
            how = {"provenance": described[part], "read_map": read_map, "rank_cutoff": solver.rank_cutoff}
            fitted = fit_probe(moments, group, scores, **how)
            if reduction is not None and len(group) > 1:
                singles = {site: sums.cells([site], [block]).whole for site in groups[label]}
                fitted = _unreduced(fitted, groups[label], singles, reduction)
            probes[part][label] = fitted if fitted.label == label else replace(fitted, name=label)
    cumulative: dict[Part, list[Increment]] = {part: [] for part in read}
    if extras and CONCATENATED in groups and reduction is None:
        for count, name in enumerate(names, start=1):
            if count < len(names):
                scored = _scored(sums, names[:count], read, solver, extras=False)
                found = {part: scores for part, (_, scores) in scored.items()}
            else:
                # The scores of all sites together are known already.
                found = {part: of_part[CONCATENATED].scores for part, of_part in probes.items()}
            for part, scores in found.items():
                cumulative[part].append(Increment(site_label(name), scores.in_sample, scores.held_out))
    own_groups = {label: group for label, group in groups.items() if label != CONCATENATED}
    reports = {}
    for part in read:
        controls = [each for own in windows if own.target == part.target.block for each in own.scores(n_folds)]
        controls += _rivals(sums, part, read[1:], solver) if extras else []
        reports[part] = ProbeReport(
            probes=tuple(probes[part].values()),
            classes=classes.readouts(own_groups, n_folds) if classes is not None and part is whole else None,
            controls=Controls(tuple(controls)),
            cumulative=tuple(cumulative[part]),
            regret=None,
            provenance=described[part],
            model=None,
            dataset=None,
        )
    return replace(reports.pop(whole), parts={part.name: report for part, report in reports.items()})


def _scored(
    sums: Sums, sites: Sequence[str], parts: Sequence[Part], solver: Solver, **options: Any
) -> dict[Part, tuple[LinearMap, ProbeScores]]:
    """The map and the scores of each part at some sites; parts of the same rows share their decompositions."""
    found: dict[Part, tuple[LinearMap, ProbeScores]] = {}
    for kept in dict.fromkeys(sums.kept([part.target.block]) for part in parts):
        own = [part for part in parts if sums.kept([part.target.block]) == kept]
        cells = sums.cells(sites, [own[0].target.block])
        found |= zip(own, evaluate_all(cells, sites, solver, [part.target for part in own], **options), strict=True)
    return {part: found[part] for part in parts}


def _rivals(sums: Sums, part: Part, parts: Sequence[Part], solver: Solver) -> list[ControlScore]:
    """What an affine map of each rival explains: of next-token probabilities, constrained beliefs, the other parts."""
    plain, known = OLS(intercept=solver.intercept, rank_cutoff=solver.rank_cutoff), sums.cells().whole.blocks
    rivals: dict[str, tuple[ControlKind, str]] = {kind: (kind, block) for kind, block in part.target.rivals}
    for other in parts if part in parts else ():
        if other != part:
            rivals[other.title] = ("other part", other.target.block)
    found = []
    for name, (kind, block) in rivals.items():
        if block not in known:
            continue
        try:
            cells = sums.of_targets([part.target.block, block])
        except ValueError:
            # The two are hardly ever defined together.
            continue
        ((_, scores),) = evaluate_all(cells, (block,), plain, [part.target], extras=False)
        found.append(ControlScore(name, kind, None, scores.in_sample, scores.held_out))
    return found


def check_concatenate(value: Any) -> None:
    """Raise `TypeError` unless this says whether, or how reduced, sites are concatenated."""
    if value is not None and not isinstance(value, bool | FeatureReduction):
        raise TypeError(
            f"concatenate={value!r}: give True, False, or a reduction such as msp.moments.RandomProjection(64, seed=0)."
        )


@dataclass(frozen=True)
class Concatenation:
    """Whether sites are concatenated, or how reduced; what to note if they are not; and the least that moments take."""

    concatenate: bool | FeatureReduction
    left_out: dict[str, Any]
    n_bytes: int


def chosen_concatenation(
    concatenate: bool | FeatureReduction | None,
    groups: Mapping[str, Sequence[str]],
    widths: Mapping[str, int],
    *,
    n_cells: int,
    max_bytes: int,
) -> Concatenation:
    """Whether sites are concatenated, from their widths.

    Args:
        concatenate: What was asked for; `None` leaves the concatenation out if it takes over a quarter of `max_bytes`.
        groups: The groups of sites to read, by label.
        widths: Features of each site and coordinates of each target.
        n_cells: The least number of cells of moments.
        max_bytes: Largest memory that the moments may take.

    Raises:
        TooWideError: if what was asked for does not fit.
    """
    names = tuple(dict.fromkeys(site for group in groups.values() for site in group))
    targets = [name for name in widths if name not in names]
    asked = [tuple(group) for group in groups.values()]
    if not isinstance(concatenate, bool) and concatenate is not None:
        reduced = {site: concatenate.transform(site, torch.zeros(1, widths[site])).shape[1] for site in names}
        widths = {**widths, **{_reduced(site): width for site, width in reduced.items()}}
        asked = [group if len(group) == 1 else tuple(map(_reduced, group)) for group in (*asked, names)]
    elif concatenate:
        asked.append(names)
    least = check_memory(asked, widths, targets=targets, n_cells=n_cells, max_bytes=max_bytes)
    if concatenate is not None:
        return Concatenation(concatenate, {}, least)
    needed = moments_bytes([*asked, names], widths, targets=targets, n_cells=n_cells)
    # Sites that were asked for together take as much anyway.
    if len(names) < 2 or needed <= max(modest(max_bytes), least):
        return Concatenation(True, {}, needed)
    noted = {"sites": len(names), "features": sum(widths[site] for site in names), "bytes": needed}
    return Concatenation(False, {"concatenation_left_out": noted}, least)


def _reduced(site: str) -> str:
    return f"{site}, reduced"


def _with_reduced(rows: Iterable[RowBatch], sites: Sequence[str], reduction: FeatureReduction) -> Iterator[RowBatch]:
    for batch in rows:
        reduced = {_reduced(site): reduction.transform(site, batch.features[site]) for site in sites}
        yield replace(batch, features={**batch.features, **reduced})


def _unreduced(
    fitted: BeliefProbe, sites: tuple[str, ...], singles: Mapping[str, Moments], reduction: FeatureReduction
) -> BeliefProbe:
    """The probe of reduced features h P, with map W, as a probe of the whole sites with map P W."""
    widths = tuple(whole.blocks[site] for site, whole in singles.items())
    basis = torch.block_diag(*(reduction.matrix(site, width) for site, width in zip(sites, widths, strict=True)))
    read_map = replace(fitted.read_map, weights=basis @ fitted.read_map.weights)
    mean = torch.cat([whole.block_mean(site) for site, whole in singles.items()])
    decoder = fitted.decoder @ basis.T
    # At once: a probe whose mean and decoder differ in width is none.
    features = {"read_map": read_map, "decoder": decoder, "activation_mean": mean, "moments": None}
    return replace(fitted, sites=sites, widths=widths, **features)
