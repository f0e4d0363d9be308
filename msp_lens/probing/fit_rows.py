"""Probe rows from any source: one pass over them, then every site, every group of sites and the controls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from tqdm.auto import tqdm

from msp_lens._checks import Count, Seed, checked
from msp_lens.data.splits import Folds
from msp_lens.models.sites import site_label
from msp_lens.moments.folds import Cells
from msp_lens.moments.grid import MAX_BYTES
from msp_lens.moments.pass_progress import PassCheckpoint, PassProgress
from msp_lens.moments.reduction import FeatureReduction
from msp_lens.moments.solvers import OLS, Solver, as_solver
from msp_lens.probing.belief_probe import BeliefProbe, fit_probe
from msp_lens.probing.controls import Controls, ControlScore, TokenWindows
from msp_lens.probing.cross_validation import NEXT_TOKEN, evaluate
from msp_lens.probing.one_pass import Accumulator, ClassRows, Observer, accumulate
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
    concatenate: bool | FeatureReduction = True,
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
    fitted = partial(fit_report, solver=as_solver(solver), n_folds=n_folds, n_groups=n_groups, n_positions=n_positions)
    fitted = partial(fitted, concatenate=concatenate, extras=extras, windows=windows, max_bytes=max_bytes, seed=seed)
    return fitted(rows, by_label, observers=[windows] if windows else [], progress=progress)


def fit_report(
    rows: Rows | Iterable[RowBatch],
    sites: Mapping[str, Sequence[str]],
    *,
    solver: Solver,
    n_folds: int,
    n_groups: int | None,
    concatenate: bool | FeatureReduction,
    max_bytes: int,
    seed: int,
    n_positions: int | None = None,
    own_positions: bool = False,
    extras: bool = True,
    windows: TokenWindows | None = None,
    classes: ClassRows | None = None,
    observers: Sequence[Observer] = (),
    checkpoint: PassCheckpoint | None = None,
    resume_from: PassProgress | None = None,
    progress: bool = False,
) -> ProbeReport:
    """What `probe` and `probe_rows` share; options of one name are alike.

    `own_positions` fits each position on its own too; `observers`, windows and classes among them, sum over the same
    pass. Sums are saved to `checkpoint` from time to time; `resume_from` is an interrupted pass whose remaining rows
    these are.
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
    accumulator = Accumulator(panels, n_folds, n_groups, n_positions, seed, max_bytes, progress=resume_from)
    stream = rows if reduction is None else _with_reduced(rows, names, reduction)
    by_panel = accumulate(stream, accumulator, observers, checkpoint=checkpoint)
    provenance = dict(getattr(rows, "description", {})) | {
        "n_folds": n_folds,
        "solver": solver.to_dict(),
        "reduction": repr(reduction) if reduction is not None else None,
        "n_cells": sum(map(len, next(iter(by_panel.values())).cells)),
        "seed": seed,
    }
    probes: dict[str, BeliefProbe] = {}
    for label in tqdm(groups, desc="Solving", disable=not progress, leave=False):
        group = blocks[label]
        cells = _holding(by_panel, group)
        read_map, scores = evaluate(cells, group, solver, extras=extras, own_positions=own_positions)
        fitted = fit_probe(
            cells.whole, group, scores, provenance=provenance, read_map=read_map, rank_cutoff=solver.rank_cutoff
        )
        if reduction is not None and len(group) > 1:
            fitted = _unreduced(fitted, groups[label], by_panel, reduction)
        probes[label] = fitted if fitted.label == label else replace(fitted, name=label)
    controls = windows.scores(n_folds) if windows else []
    cells = next(iter(by_panel.values()))
    if extras and NEXT_TOKEN in cells.whole.blocks:
        plain = OLS(intercept=solver.intercept, rank_cutoff=solver.rank_cutoff)
        _, scores = evaluate(cells, (NEXT_TOKEN,), plain, extras=False)
        controls.append(ControlScore(NEXT_TOKEN, "next token", None, scores.in_sample, scores.held_out))
    cumulative = []
    if extras and CONCATENATED in probes and reduction is None:
        cells = _holding(by_panel, names)
        # The scores of all sites together are known already.
        found = [evaluate(cells, names[:count], solver, extras=False)[1] for count in range(1, len(names))]
        found.append(probes[CONCATENATED].scores)
        cumulative = [
            Increment(site_label(name), s.in_sample, s.held_out) for name, s in zip(names, found, strict=True)
        ]
    own_groups = {label: group for label, group in groups.items() if label != CONCATENATED}
    return ProbeReport(
        probes=tuple(probes.values()),
        classes=classes.readouts(own_groups, n_folds) if classes is not None else None,
        controls=Controls(tuple(controls)),
        cumulative=tuple(cumulative),
        regret=None,
        provenance=provenance,
        model=None,
        dataset=None,
    )


def check_concatenate(value: Any) -> None:
    """Raise `TypeError` unless this says whether, or how reduced, sites are concatenated."""
    if not isinstance(value, bool | FeatureReduction):
        raise TypeError(
            f"concatenate={value!r}: give True, False, or a reduction such as RandomProjection(64, seed=0)."
        )


def _reduced(site: str) -> str:
    return f"{site}, reduced"


def _with_reduced(rows: Iterable[RowBatch], sites: Sequence[str], reduction: FeatureReduction) -> Iterator[RowBatch]:
    for batch in rows:
        reduced = {_reduced(site): reduction.transform(site, batch.features[site]) for site in sites}
        yield replace(batch, features={**batch.features, **reduced})


def _holding(by_panel: Mapping[tuple[str, ...], Cells], group: Sequence[str]) -> Cells:
    """The cells of the first panel that has all these blocks jointly."""
    return next(cells for panel, cells in by_panel.items() if set(group) <= set(panel))


def _unreduced(
    fitted: BeliefProbe, sites: tuple[str, ...], by_panel: Mapping[tuple[str, ...], Cells], reduction: FeatureReduction
) -> BeliefProbe:
    """The probe of reduced features h P, with map W, as a probe of the whole sites with map P W."""
    singles = {site: _holding(by_panel, (site,)).whole for site in sites}
    widths = tuple(whole.blocks[site] for site, whole in singles.items())
    basis = torch.block_diag(*(reduction.matrix(site, width) for site, width in zip(sites, widths, strict=True)))
    read_map = replace(fitted.read_map, weights=basis @ fitted.read_map.weights)
    mean = torch.cat([whole.block_mean(site) for site, whole in singles.items()])
    decoder = fitted.decoder @ basis.T
    # At once: a probe whose mean and decoder differ in width is none.
    features = {"read_map": read_map, "decoder": decoder, "activation_mean": mean, "moments": None}
    return replace(fitted, sites=sites, widths=widths, **features)
