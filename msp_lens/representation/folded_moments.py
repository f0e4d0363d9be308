"""Moments of sites and targets by fold and position, from one pass, and what each position reads by itself.

A map that is fitted to all positions at once has to serve them all. Where attention's patterns differ from position to
position, as a softmax over more and more tokens does, what a position holds is seen only by a map of its own:

    R² = 1 - Σ_d E|t_d - t̂_d|² / Σ_d E|t_d - t̄_d|²,    t̂_d fitted at position d without the prefix's fold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens.data import BeliefDataset, LabelledTokens, words
from msp_lens.data.belief_dataset import default_count
from msp_lens.data.splits import deal
from msp_lens.models.hooked import HookedModel, check_fits, word_length
from msp_lens.moments import Moments, MomentsGrid, Ridge
from msp_lens.moments.folds import Cells
from msp_lens.moments.moments import merge_all
from msp_lens.moments.solve import LinearMap, mean_squared_errors, variances
from msp_lens.moments.solvers import Solver
from msp_lens.probing.rows import model_rows
from msp_lens.processes.process import Process

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
        apart = [tuple(parts[k * positions : (k + 1) * positions]) for k in range(n_folds)]
        found[group[0]] = Cells(tuple(map(merge_all, apart)), n_folds, positions=tuple(apart) if by_position else ())
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
    return positions_with(cells, _ROWS_PER_FEATURE * cells.whole.blocks[site])


def positions_with(cells: Cells, n_prefixes: int) -> list[list[Moments]]:
    """The folds of each position that has this many distinct prefixes, and some in two folds at least."""
    by_position = [[part for part in each if part.weight > 0] for each in zip(*cells.by_fold_and_position, strict=True)]
    return [parts for parts in by_position if len(parts) > 1 and sum(part.n for part in parts) >= n_prefixes]


def at_positions(cells: Cells) -> list[Moments]:
    """The moments of each position, all folds together."""
    return [merge_all(list(each)) for each in zip(*cells.by_fold_and_position, strict=True)]


def within_positions(positions: Sequence[Moments]) -> Moments:
    """The moments of rows about the mean of their own position: what varies from prefix to prefix, not by position."""
    whole = merge_all(positions)
    scatter = torch.stack([part.scatter for part in positions]).sum(dim=0)
    known = {"n": whole.n, "weight": whole.weight, "rounding": whole.rounding}
    return Moments.of(whole.blocks, mean=torch.zeros_like(whole.mean), scatter=scatter, **known)


def errors_within_positions(
    positions: Sequence[Sequence[Moments]], features: Sequence[str], targets: Sequence[str], *, solver: Solver = SOLVER
) -> Float64[Tensor, "target"]:
    """Squared errors of one map of what varies within positions, with a mean for each position, held out by fold.

    `positions` are the folds of each position, as `positions_read` gives them. Without features they are the errors of
    the means alone. Errors are summed over rows by their weight, for each column of the targets.
    """
    n_folds = max(len(parts) for parts in positions)
    errors = torch.zeros(sum(positions[0][0].blocks[target] for target in targets), dtype=torch.float64)
    for k in range(n_folds):
        rest = [merge_all([part for j, part in enumerate(parts) if j != k]) for parts in positions]
        if features:
            weights = solver.solve(solver.decompose(within_positions(rest), list(features)), list(targets)).weights
        else:
            weights = torch.zeros(0, len(errors), dtype=torch.float64)
        for parts, known in zip(positions, rest, strict=True):
            if k < len(parts):
                read = known.block_mean(features) @ weights if features else 0.0
                fitted = LinearMap(weights, known.block_mean(targets) - read, len(weights))
                errors += parts[k].weight * _errors(fitted, parts[k], features, targets)
    return errors


def _errors(
    fitted: LinearMap, moments: Moments, features: Sequence[str], targets: Sequence[str]
) -> Float64[Tensor, "target"]:
    if features:
        return mean_squared_errors(fitted, moments, list(features), list(targets))
    return variances(moments, list(targets)) + (moments.block_mean(targets) - fitted.bias) ** 2


def symbol_columns(dataset: BeliefDataset) -> tuple[Int[Tensor, "word column"], Int[Tensor, "pos"]]:
    """The words as the model reads them, and the column of each symbol; `ValueError` if these differ between words."""
    tokens, columns = dataset.encoded()
    token_map = dataset.token_map
    if token_map is not None and (token_map.separator or any(len(ids) > 1 for ids in token_map.symbols)):
        raise ValueError(
            f"{token_map!r} writes symbols with several tokens or separators, so that they have no columns of their "
            "own: give a map with one token for each symbol."
        )
    return tokens, columns[0]


def checked_length(data: Process | BeliefDataset, model: HookedModel) -> int:
    """How many tokens each word will have; a `ValueError` if they do not fit the model. Nothing is drawn."""
    if isinstance(data, BeliefDataset):
        check_fits(model, data.process, data.n_ctx, token_map=data.token_map)
        return data.n_ctx
    n_ctx = word_length(model, None, otherwise="a dataset: msp.words(process, n_ctx=…)")
    check_fits(model, data, n_ctx)
    return n_ctx


def words_of(
    data: Process | BeliefDataset, model: HookedModel, n_words: int | None, seed: int, *, most: int = 20_000
) -> tuple[BeliefDataset, str]:
    """The words to average over, checked to fit the model, and what they are in words.

    Of a process, all words or `n_words` drawn if there are more: by default `most`, or fewer long ones.
    """
    dataset, n_ctx = data, checked_length(data, model)
    if not isinstance(dataset, BeliefDataset):
        dataset = words(dataset, n_ctx=n_ctx, max_words=n_words or default_count(n_ctx, most), seed=seed)
    count = "every possible word" if dataset.is_population else f"{len(dataset):,} distinct sampled words"
    return dataset, f"{dataset.process.name}, {count} of {dataset.n_ctx} tokens, weighted by probability"
