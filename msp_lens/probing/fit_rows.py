"""Probe rows from anywhere: one pass over them, then every site, every group of sites and the controls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from tqdm.auto import tqdm

from msp_lens.data import BeliefDataset
from msp_lens.models.hooked import HookedModel, site_label
from msp_lens.moments.folds import Cells
from msp_lens.moments.grid import MAX_BYTES
from msp_lens.moments.pass_progress import PassCheckpoint, PassProgress
from msp_lens.moments.reduction import FeatureReduction
from msp_lens.moments.scores import ProbeScores
from msp_lens.moments.solve import LinearMap
from msp_lens.moments.solvers import Solver
from msp_lens.probing.belief_probe import BeliefProbe, fit_probe
from msp_lens.probing.controls import Controls, ControlScore
from msp_lens.probing.cross_validation import NEXT_TOKEN, evaluate, next_token_score
from msp_lens.probing.one_pass import Accumulator, Observer, accumulate
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.probing.probe_tables import Increment
from msp_lens.probing.rows import RowBatch, Rows
from msp_lens.probing.windows import TokenWindows

CONCATENATED = "concatenated"


def probe_rows(
    batches: Rows | Iterable[RowBatch],
    sites: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    *,
    solver: Solver | None = None,
    n_folds: int = 5,
    n_groups: int | None = None,
    n_positions: int | None = None,
    own_positions: bool = False,
    concatenate: bool = True,
    reduction: FeatureReduction | None = None,
    max_bytes: int = MAX_BYTES,
    extras: bool = True,
    windows: TokenWindows | None = None,
    observers: Sequence[Observer] = (),
    checkpoint: PassCheckpoint | None = None,
    resume_from: PassProgress | None = None,
    seed: int = 0,
    progress: bool = False,
    model: HookedModel | None = None,
    dataset: BeliefDataset | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> ProbeReport:
    """Probe rows from anywhere: one pass over the batches, then all solves from their moments.

    Args:
        batches: Rows, of `model_rows`, `sampled_rows`, `cache_rows`, `batch_rows` or of one's own making, with the
            beliefs (or whatever is to be read) under `targets["belief"]`. With `targets["shuffled belief"]` and
            `targets["next token"]` the report has those controls too.
        sites: Which features to probe, in the order of the forward pass; or groups of them to concatenate, by name. By
            default those of the `Rows`.
        solver: How to solve; least squares by default.
        n_folds: Folds of the cross-validation, over the rows' groups; no more than there are groups.
        n_groups: How many groups there are, numbered from 0: then they are dealt evenly. By default by hash.
        n_positions: Score the probes at each of this many positions.
        own_positions: Whether to fit probes at each position on its own too.
        concatenate: Whether to probe all sites together too, and each site with all before it.
        reduction: Makes the sites' features fewer before they are concatenated; probes of single sites stay whole.
        max_bytes: Refuse moments that take more memory than this.
        extras: Whether to score more than the probes themselves: controls, ranks, positions, increments.
        windows: Token windows to set the probes beside, over the words that the rows are numbered by.
        observers: Sum up something else in the same pass.
        checkpoint: Where the sums are saved from time to time.
        resume_from: Of an interrupted pass, whose remaining rows these are.
        seed: Seed of the folds.
        progress: Whether to show a progress bar while solving.
        model: The model the rows came from, for the report.
        dataset: The words they came from, for the report.
        provenance: What else the report should carry; by default what the `Rows` say of themselves.

    Raises:
        ValueError: if numbers are not finite, sites too wide to concatenate, or groups too few.
    """
    if sites is None:
        if not isinstance(batches, Rows):
            raise ValueError("sites=None: name the features to probe; only Rows know their own.")
        sites = batches.sites
    groups = _groups(sites)
    names = tuple(dict.fromkeys(site for group in groups.values() for site in group))
    if not names:
        raise ValueError("sites is empty: name at least one.")
    solver = solver or Solver()
    if n_folds < 2:
        raise ValueError(f"n_folds={n_folds}: cross-validation needs at least 2.")
    if n_groups is not None:
        n_folds = max(2, min(n_folds, n_groups))
    if concatenate and len(names) > 1:
        groups.setdefault(CONCATENATED, names)
    # Blocks of a concatenation: the sites' own, or their reduced ones.
    blocks = {
        label: group if len(group) == 1 or reduction is None else tuple(_reduced(site) for site in group)
        for label, group in groups.items()
    }
    accumulator = Accumulator(
        list(blocks.values()),
        n_folds=n_folds,
        n_groups=n_groups,
        n_positions=n_positions,
        seed=seed,
        max_bytes=max_bytes,
        progress=resume_from,
    )
    stream = batches if reduction is None else _with_reduced(batches, names, reduction)
    watching = [*observers, *([windows] if windows else [])]
    by_panel = accumulate(stream, accumulator, watching, checkpoint=checkpoint)
    given = dict(provenance if provenance is not None else getattr(batches, "description", {})) | {
        "n_folds": n_folds,
        "method": solver.method,
        "rank": solver.rank,
        "penalty": solver.penalty,
        "intercept": solver.intercept,
        "rank_cutoff": solver.rank_cutoff,
        "reduction": repr(reduction) if reduction is not None else None,
        "n_cells": len(next(iter(by_panel.values())).cells),
        "seed": seed,
    }
    probes: dict[str, BeliefProbe] = {}
    for label in tqdm(groups, desc="Solving", disable=not progress, leave=False):
        group = blocks[label]
        cells = _holding(by_panel, group)
        linear_map, scores = evaluate(cells, group, solver, extras=extras, own_positions=own_positions)
        fitted = fit_probe(
            cells.whole, group, scores, provenance=given, read_map=linear_map, rank_cutoff=solver.rank_cutoff
        )
        if reduction is not None and len(group) > 1:
            fitted = _unfolded(fitted, groups[label], by_panel, reduction)
        is_usual = fitted.label == label
        probes[label] = fitted if is_usual else replace(fitted, name=label)
    found = windows.scores(n_folds) if windows else []
    first = next(iter(by_panel.values()))
    rival = next_token_score(first, solver) if extras else None
    if rival:
        found.append(ControlScore(NEXT_TOKEN, "next token", None, *rival))
    cumulative: tuple[Increment, ...] = ()
    if extras and CONCATENATED in probes and reduction is None:
        cumulative = _increments(_holding(by_panel, names), names, probes[CONCATENATED].scores, solver)
    return ProbeReport(
        probes=tuple(probes.values()),
        regret=None,
        provenance=given,
        model=model,
        dataset=dataset,
        controls=Controls(tuple(found)),
        cumulative=cumulative,
    )


def _groups(sites: Sequence[str] | Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Label to sites; a site alone is a group."""
    if isinstance(sites, Mapping):
        return {label: tuple(group) for label, group in sites.items()}
    return {site_label(site): (site,) for site in sites}


def _reduced(site: str) -> str:
    return f"{site}, reduced"


def _with_reduced(batches: Iterable[RowBatch], sites: Sequence[str], reduction: FeatureReduction) -> Iterator[RowBatch]:
    for batch in batches:
        reduced = {_reduced(site): reduction.transform(site, batch.features[site]) for site in sites}
        yield replace(batch, features={**batch.features, **reduced})


def _holding(by_panel: Mapping[tuple[str, ...], Cells], group: Sequence[str]) -> Cells:
    """The cells of the first panel that has all these blocks side by side."""
    return next(cells for panel, cells in by_panel.items() if set(group) <= set(panel))


def _unfolded(
    fitted: BeliefProbe, sites: tuple[str, ...], by_panel: Mapping[tuple[str, ...], Cells], reduction: FeatureReduction
) -> BeliefProbe:
    """A probe of reduced features as one of the whole sites: h P W reads what the reduced h P was fitted to."""
    singles = [_holding(by_panel, (site,)).whole for site in sites]
    widths = tuple(whole.blocks[site] for site, whole in zip(sites, singles, strict=True))
    basis = torch.block_diag(*(reduction.matrix(site, width) for site, width in zip(sites, widths, strict=True)))
    return replace(
        fitted,
        sites=sites,
        widths=widths,
        read_map=LinearMap(basis @ fitted.read_map.weights, fitted.read_map.bias, fitted.read_map.rank),
        decoder=fitted.decoder @ basis.T,
        activation_mean=torch.cat([whole.block_mean(site) for site, whole in zip(sites, singles, strict=True)]),
        moments=None,
    )


def _increments(cells: Cells, names: Sequence[str], whole: ProbeScores, solver: Solver) -> tuple[Increment, ...]:
    """Each site together with all before it; the last, all together, is probed already."""
    found = []
    for count in range(1, len(names)):
        _, scores = evaluate(cells, names[:count], solver, extras=False)
        found.append(Increment(site_label(names[count - 1]), scores.in_sample, scores.held_out))
    return (*found, Increment(site_label(names[-1]), whole.in_sample, whole.held_out))
