"""Moments of sites and targets by fold and position, from one pass, and what each position reads by itself.

A map that is fitted to all positions at once has to serve them all. Where attention's patterns differ from position to
position, as a softmax over more and more tokens does, what a position holds is seen only by a map of its own:

    R² = 1 - Σ_d E|t_d - t̂_d|² / Σ_d E|t_d - t̄_d|²,    t̂_d fitted at position d without the prefix's fold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens.data import LabelledTokens
from msp_lens.data.splits import deal
from msp_lens.models.hooked import HookedModel
from msp_lens.models.sites import site_label
from msp_lens.moments import Moments, MomentsGrid, Ridge
from msp_lens.moments.folds import Cells
from msp_lens.moments.moments import merge_all
from msp_lens.moments.solve import mean_squared_errors, variances
from msp_lens.moments.solvers import Solver
from msp_lens.probing.rows import model_rows

# Distinct prefixes for each feature from which a position is read by itself.
_ROWS_PER_FEATURE = 3
# Enough to keep what float32 rounds off from being read, and nothing against what is read.
SOLVER = Ridge(penalty=1e-6)


def folded_moments(
    model: HookedModel,
    data: LabelledTokens,
    sites: Sequence[str],
    *,
    n_folds: int,
    seed: int,
    by_position: bool = False,
    batch_size: int | None = None,
) -> dict[str, Cells]:
    """The moments of `[site | targets]` for each site, by fold and, if asked for, position.

    Raises:
        ValueError: if a fold has no rows, or an activation is not finite.
    """
    positions = int(data.positions.max()) + 1 if by_position else 1
    n_groups = int(data.groups.max()) + 1
    if n_groups < n_folds:
        raise ValueError(f"n_folds={n_folds}: there are only {n_groups} distinct prefixes. Give fewer folds.")
    grid = MomentsGrid([(site,) for site in sites], targets=tuple(data.targets), n_cells=n_folds * positions)
    for batch in model_rows(model, data, list(sites), batch_size=batch_size):
        cells = deal(batch.groups, n_folds, n_groups=n_groups, seed=seed)
        if by_position:
            cells = cells * positions + batch.positions.clamp(min=0)
        grid.update({**batch.features, **batch.targets}, batch.weights, cells)
    found = {}
    for group, row in zip(grid.groups, grid.moments, strict=True):
        parts = [part.cpu() for part in row]
        cells = Cells(tuple(tuple(parts[k * positions : (k + 1) * positions]) for k in range(n_folds)), n_folds)
        found[group[0]] = cells
    return {site: found[site] for site in sites}


def held_out_r2(cells: Cells, site: str, target: str, *, solver: Solver = SOLVER) -> float:
    """R² of a target read from a site by one map for all positions, held out by fold."""
    errors = torch.zeros((), dtype=torch.float64)
    for k, fold in enumerate(cells.folds):
        found = solver.solve(solver.decompose(cells.without(k), site), target)
        errors += fold.weight * mean_squared_errors(found, fold, site, target).sum()
    spread = cells.whole.weight * variances(cells.whole, target).sum()
    return float(1 - errors / spread) if spread > 0 else math.nan


def held_out_r2_by_position(cells: Cells, site: str, target: str, *, solver: Solver = SOLVER) -> float:
    """R² of a target read from a site by a map for each position, held out by fold, of what varies at each.

    Positions with too few distinct prefixes to fit a map to are left out; NaN if none is left.
    """
    errors = spread = torch.zeros((), dtype=torch.float64)
    for parts in positions_read(cells, site):
        for k, part in enumerate(parts):
            rest = merge_all(parts[:k] + parts[k + 1 :])
            found = solver.solve(solver.decompose(rest, site), target)
            errors = errors + part.weight * mean_squared_errors(found, part, site, target).sum()
        whole = merge_all(parts)
        spread = spread + whole.weight * variances(whole, target).sum()
    return float(1 - errors / spread) if spread > 0 else math.nan


def positions_read(cells: Cells, site: str) -> list[list[Moments]]:
    """The folds of each position that has prefixes enough to be read by itself."""
    found = []
    for position in zip(*cells.by_fold_and_position, strict=True):
        parts = [part for part in position if part.weight > 0]
        enough = _ROWS_PER_FEATURE * parts[0].blocks[site] if parts else math.inf
        if len(parts) > 1 and sum(part.n for part in parts) >= enough:
            found.append(parts)
    return found


def within_positions(cells: Cells) -> Moments:
    """The moments of rows about the mean of their own position: what varies from prefix to prefix, not by position."""
    whole = cells.whole
    at_each = [merge_all(list(position)) for position in zip(*cells.by_fold_and_position, strict=True)]
    scatter = torch.stack([part.scatter for part in at_each]).sum(dim=0)
    mean = torch.zeros_like(whole.mean)
    known = {"n": whole.n, "weight": whole.weight, "rounding": whole.rounding}
    return Moments.of(whole.blocks, mean=mean, scatter=scatter, **known)


def cumulated_variance(moments: Moments, site: str, most: int = 6) -> Float64[Tensor, "component"]:
    """The share of a site's variance in its first 1, 2, … principal components."""
    eigenvalues = torch.linalg.eigvalsh(moments.covariance(site, site)).flip(0).clamp(min=0)
    return (eigenvalues.cumsum(dim=0) / eigenvalues.sum())[:most]


def labels_of(sites: Sequence[str]) -> Mapping[str, str]:
    """Each site's short label."""
    return {site: site_label(site) for site in sites}
