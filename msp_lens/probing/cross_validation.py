"""Fit a group of sites and score the fit every way at once: a decomposition a fold, and all maps evaluated together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens.moments.folds import Cells
from msp_lens.moments.moments import Moments, merge_all
from msp_lens.moments.scores import HeldOutScore, ProbeScores, Score, cell_errors, score_of
from msp_lens.moments.solve import (
    LinearMap,
    Spectrum,
    mean_squared_errors,
    variances,
)
from msp_lens.moments.solvers import PENALTIES, Solver, choose_penalty
from msp_lens.probing.belief_probe import BELIEF

SHUFFLED = "shuffled belief"
NEXT_TOKEN = "next token"

# Ranks shown of targets wider than this are the first ones.
MAX_RANKS = 12


@dataclass(frozen=True, eq=False)
class _Bundle:
    """Several maps from the same features, side by side, so that one product evaluates them all.

    Attributes:
        maps: All columns.
        features: What they read.
        targets: What each column predicts, block by block.
        names: Which map each block of columns is.
    """

    maps: LinearMap
    features: tuple[str, ...]
    targets: tuple[str, ...]
    names: tuple[str, ...]

    def errors(self, moments: Moments) -> dict[str, Float64[Tensor, "target"]]:
        """Each map's mean squared errors on some rows."""
        found = mean_squared_errors(self.maps, moments, self.features, self.targets)
        widths = [moments.blocks[target] for target in self.targets]
        return dict(zip(self.names, found.split(widths), strict=True))


def _bundle(spectrum: Spectrum, solver: Solver, penalty: float | None, *, ranks: Sequence[int] = ()) -> _Bundle:
    """The probe's map and, with `ranks`, those it is set beside."""
    moments, sites = spectrum.moments, tuple(spectrum.features)
    maps = {"probe": (solver.solve(spectrum, BELIEF, penalty), BELIEF)}
    if ranks:
        if SHUFFLED in moments.blocks:
            maps["shuffled"] = (solver.solve(spectrum, SHUFFLED, penalty), SHUFFLED)
        maps |= {
            f"rank {r}": (each, BELIEF) for r, each in zip(ranks, spectrum.reduced_rank(BELIEF, ranks), strict=True)
        }
        if NEXT_TOKEN in moments.blocks:
            maps["with next token"] = (solver.solve_jointly(spectrum, NEXT_TOKEN, BELIEF, penalty), BELIEF)
    features = (*sites, NEXT_TOKEN) if "with next token" in maps else sites
    width = sum(moments.blocks[name] for name in features)
    weights = torch.cat(
        [torch.nn.functional.pad(each.weights, (0, 0, 0, width - len(each.weights))) for each, _ in maps.values()],
        dim=1,
    )
    bias = torch.cat([each.bias for each, _ in maps.values()])
    return _Bundle(
        LinearMap(weights, bias, spectrum.rank), features, tuple(target for _, target in maps.values()), tuple(maps)
    )


def n_ranks(moments: Moments) -> int:
    """Ranks worth showing: beliefs sum to 1, so one direction of theirs never varies."""
    covariance = moments.covariance(BELIEF, BELIEF)
    eigenvalues = torch.linalg.eigvalsh(covariance)
    return max(1, min(MAX_RANKS, int((eigenvalues > 1e-10 * float(eigenvalues[-1].clamp(min=1e-24))).sum())))


def evaluate(
    cells: Cells, sites: Sequence[str], solver: Solver, *, extras: bool = True, own_positions: bool = False
) -> tuple[LinearMap, ProbeScores]:
    """The probe of some sites, and all its scores.

    Args:
        cells: The moments of all parts of the data.
        sites: What to read.
        solver: How.
        extras: Whether to score shuffled beliefs, every rank, next-token probabilities and positions too.
        own_positions: Whether to fit each position on its own as well.
    """
    group = tuple(sites)
    choice = None
    if solver.method == "ridge" and solver.penalty is None:
        choice = choose_penalty(cells, group, BELIEF, solver)
    by_position = extras and len(cells.parts[0]) > 1
    # The same in all folds, though the beliefs of few words may span less in some.
    ranks = range(1, n_ranks(cells.whole) + 1) if extras else ()
    n_folds = len(cells.folds)
    errors: dict[str, list[Tensor]] = {}
    positional: list[list[Tensor]] = []
    for k in range(n_folds):
        spectrum = solver.decompose(cells.without(k), group)
        bundle = _bundle(spectrum, solver, choice.of_fold[k] if choice else None, ranks=ranks)
        for cell in (cells.cells[c] for c in (cells.fold_of_cell == k).nonzero().flatten().tolist()):
            for name, found in bundle.errors(cell).items():
                errors.setdefault(name, []).append(found * cell.weight)
        if by_position:
            probe = _bundle(spectrum, solver, choice.of_fold[k] if choice else None)
            positional.append([_weighted_errors(probe, part) for part in cells.by_fold_and_position[k]])

    order = cells.fold_of_cell.argsort(stable=True)
    sorted_cells, folds = [cells.cells[c] for c in order.tolist()], cells.fold_of_cell[order]
    whole = _bundle(solver.decompose(cells.whole, group), solver, choice.overall if choice else None, ranks=ranks)
    found = whole.errors(cells.whole)
    held_out, in_sample = {}, {}
    for name, target in zip(whole.names, whole.targets, strict=True):
        held_out[name] = cell_errors(torch.stack(errors[name]), sorted_cells, folds, target).score()
        in_sample[name] = score_of(found[name], variances(cells.whole, target), cells.whole.n)
    width = cells.whole.blocks[BELIEF]
    n_features = sum(cells.whole.blocks[site] for site in group)
    linear_map = LinearMap(
        whole.maps.weights[:n_features, :width].contiguous(),
        whole.maps.bias[:width].clone(),
        min(whole.maps.rank, solver.rank or whole.maps.rank),
    )
    ranked = [name for name in whole.names if name.startswith("rank ")]
    scores = ProbeScores(
        in_sample=in_sample["probe"],
        held_out=held_out["probe"],
        shuffled=in_sample.get("shuffled"),
        shuffled_held_out=held_out.get("shuffled"),
        with_next_token=held_out.get("with next token"),
        by_rank=tuple(held_out[name] for name in ranked),
        by_rank_in_sample=tuple(in_sample[name] for name in ranked),
        by_position=_position_scores(cells, positional) if by_position else (),
        by_position_own=_own_positions(cells, group, solver) if by_position and own_positions else (),
        penalty=choice.overall if choice else solver.penalty,
        mse_by_penalty=tuple(zip(PENALTIES, choice.mse, strict=True)) if choice else (),
    )
    return linear_map, scores


def _weighted_errors(bundle: _Bundle, part: Moments) -> Float64[Tensor, "target"]:
    if part.weight == 0:
        return torch.zeros(part.blocks[BELIEF], dtype=torch.float64)
    return bundle.errors(part)["probe"] * part.weight


def _position_scores(cells: Cells, errors: Sequence[Sequence[Tensor]]) -> tuple[HeldOutScore, ...]:
    """Held-out scores at each position, against the variance there; an interval over folds needs three of them."""
    scores = []
    for p in range(len(cells.parts[0])):
        parts = [row[p] for row in cells.by_fold_and_position]
        filled = [k for k, part in enumerate(parts) if part.weight > 0]
        scores.append(
            cell_errors(
                torch.stack([errors[k][p] for k in filled]),
                [parts[k] for k in filled],
                torch.tensor(filled),
                BELIEF,
            ).score()
            if filled
            else HeldOutScore(float("nan"), float("nan"), 0)
        )
    return tuple(scores)


def _own_positions(cells: Cells, group: tuple[str, ...], solver: Solver) -> tuple[HeldOutScore, ...]:
    """Held-out scores of probes fitted at one position each."""
    fixed = solver if solver.method != "ridge" or solver.penalty is not None else Solver(intercept=solver.intercept)
    scores = []
    for p in range(len(cells.parts[0])):
        parts = [row[p] for row in cells.by_fold_and_position if row[p].weight > 0]
        if len(parts) < 2:
            scores.append(HeldOutScore(float("nan"), float("nan"), sum(part.n for part in parts)))
            continue
        errors = []
        for k, part in enumerate(parts):
            spectrum = fixed.decompose(merge_all(parts[:k] + parts[k + 1 :]), group)
            errors.append(_weighted_errors(_bundle(spectrum, fixed, None), part))
        scores.append(cell_errors(torch.stack(errors), parts, torch.arange(len(parts)), BELIEF).score())
    return tuple(scores)


def next_token_score(cells: Cells, solver: Solver) -> tuple[Score, HeldOutScore] | None:
    """In-sample and held-out scores of beliefs predicted from next-token probabilities alone, by least squares."""
    if NEXT_TOKEN not in cells.whole.blocks:
        return None
    plain = Solver(intercept=solver.intercept, rank_cutoff=solver.rank_cutoff)
    _, scores = evaluate(cells, (NEXT_TOKEN,), plain, extras=False)
    return scores.in_sample, scores.held_out
