"""Fit the probe of some sites and score it in every way at once, by cross-validation over folds of moments.

Each fold takes one decomposition of the other folds' features, and one product evaluates all maps solved from it: the
probe, every rank, the probe of shuffled beliefs, the one with next-token probabilities.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypedDict

import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens._checks import AtLeast, Between, Count, Share
from msp_lens._values import Value
from msp_lens.data.labelled import BELIEF
from msp_lens.moments.folds import Cells
from msp_lens.moments.moments import Moments, merge_all
from msp_lens.moments.scores import HeldOutScore, SavedHeldOut, SavedScore, Score, cell_errors, from_json, score_of
from msp_lens.moments.solve import LinearMap, Spectrum, mean_squared_errors, variances
from msp_lens.moments.solvers import OLS, Auto, ReducedRank, Ridge, Solver, choose_penalty

SHUFFLED = "shuffled belief"
NEXT_TOKEN = "next token"


@dataclass(frozen=True)
class _Reading:
    """A map to fit and score in every fold: of this rank (`None`: the solver's own), from the next token too or not."""

    target: str = BELIEF
    rank: int | None = None
    with_next_token: bool = False


PROBE = _Reading()


@dataclass(frozen=True, eq=False)
class _Maps:
    """The maps of several readings, side by side, from the same blocks of features."""

    readings: tuple[_Reading, ...]
    features: tuple[str, ...]
    joined: LinearMap

    def errors(self, moments: Moments) -> dict[_Reading, Float64[Tensor, "target"]]:
        """The mean squared errors of each reading on these rows."""
        targets = [reading.target for reading in self.readings]
        found = mean_squared_errors(self.joined, moments, self.features, targets)
        return dict(zip(self.readings, found.split([moments.blocks[target] for target in targets]), strict=True))


def _solve(spectrum: Spectrum, solver: Solver, readings: Sequence[_Reading]) -> _Maps:
    ranks = [reading.rank for reading in readings if reading.rank is not None]
    of_rank = dict(zip(ranks, solver.solve_by_rank(spectrum, BELIEF, ranks), strict=True))
    has_joint = any(reading.with_next_token for reading in readings)
    features = (*spectrum.features, NEXT_TOKEN) if has_joint else tuple(spectrum.features)
    width = sum(spectrum.moments.blocks[name] for name in features)
    maps = []
    for reading in readings:
        if reading.rank is not None:
            found = of_rank[reading.rank]
        elif reading.with_next_token:
            found = solver.solve_jointly(spectrum, NEXT_TOKEN, reading.target)
        else:
            found = solver.solve(spectrum, reading.target)
        # A map that does not read the last features has weights of 0 there.
        maps.append((torch.nn.functional.pad(found.weights, (0, 0, 0, width - len(found.weights))), found.bias))
    weights, biases = (torch.cat(parts, dim=-1) for parts in zip(*maps, strict=True))
    return _Maps(tuple(readings), features, LinearMap(weights, biases, spectrum.rank))


def evaluate(
    cells: Cells, sites: Sequence[str], solver: Solver, *, extras: bool = True, own_positions: bool = False
) -> tuple[LinearMap, ProbeScores]:
    """The probe of some sites and its scores.

    With `extras`, shuffled beliefs, every rank, next-token probabilities and positions are scored too; with
    `own_positions`, each position is also fitted on its own.
    """
    group, everything = tuple(sites), cells.whole
    solver.check_targets(everything.blocks[BELIEF])
    solver = solver.choose(cells, group) if isinstance(solver, Auto) else solver
    solvers, final, mse_by_penalty = [solver] * len(cells.folds), solver, ()
    if isinstance(solver, Ridge) and solver.penalty is None:
        choice = choose_penalty(cells, group, BELIEF, solver)
        solvers = [replace(solver, penalty=penalty) for penalty in choice.of_fold]
        final, mse_by_penalty = replace(solver, penalty=choice.overall), choice.mse_by_penalty
    # The ranks are the same in all folds, though the beliefs of few words may span less in some.
    ranks = [_Reading(rank=rank) for rank in range(1, _n_ranks(everything) + 1)] if extras else []
    shuffled, joint = _Reading(SHUFFLED), _Reading(with_next_token=True)
    readings = [PROBE, *ranks]
    readings += [shuffled] if extras and SHUFFLED in everything.blocks else []
    readings += [joint] if extras and NEXT_TOKEN in everything.blocks else []
    by_position = extras and len(cells.parts[0]) > 1

    errors: dict[_Reading, list[Tensor]] = {reading: [] for reading in readings}
    at_position: list[list[Tensor]] = []
    for k, fold in enumerate(cells.cells):
        spectrum = solver.decompose(cells.without(k), group)
        maps = _solve(spectrum, solvers[k], readings)
        for cell in fold:
            for reading, found in maps.errors(cell).items():
                errors[reading].append(found * cell.weight)
        if by_position:
            probe = _solve(spectrum, solvers[k], [PROBE])
            at_position.append([probe.errors(part)[PROBE] * part.weight for part in cells.by_fold_and_position[k]])

    every_cell = [cell for fold in cells.cells for cell in fold]
    fold_of_cell = torch.tensor([k for k, fold in enumerate(cells.cells) for _ in fold])
    whole = _solve(solver.decompose(everything, group), final, readings)
    held_out, in_sample = {}, {}
    for reading, found in whole.errors(everything).items():
        of_cells = torch.stack(errors[reading])
        held_out[reading] = cell_errors(of_cells, every_cell, fold_of_cell, reading.target).score()
        in_sample[reading] = score_of(found, variances(everything, reading.target), everything.n)
    scores = ProbeScores(
        in_sample=in_sample[PROBE],
        held_out=held_out[PROBE],
        shuffled=in_sample.get(shuffled),
        shuffled_held_out=held_out.get(shuffled),
        with_next_token=held_out.get(joint),
        by_rank=tuple(held_out[reading] for reading in ranks),
        by_rank_in_sample=tuple(in_sample[reading] for reading in ranks),
        by_position=_position_scores(cells, at_position) if by_position else (),
        by_position_own=_own_positions(cells, group, solver) if by_position and own_positions else (),
        solver=solver.name,
        penalty=final.penalty if isinstance(final, Ridge) else None,
        mse_by_penalty=mse_by_penalty,
    )
    joined, width, n_features = whole.joined, everything.blocks[BELIEF], sum(everything.blocks[site] for site in group)
    rank = min(joined.rank, solver.rank) if isinstance(solver, ReducedRank) else joined.rank
    return LinearMap(joined.weights[:n_features, :width].contiguous(), joined.bias[:width].clone(), rank), scores


def _n_ranks(moments: Moments) -> int:
    """The number of ranks worth showing; beliefs sum to 1, so at least one of their directions never varies."""
    most = 12
    eigenvalues = torch.linalg.eigvalsh(moments.covariance(BELIEF, BELIEF))
    return max(1, min(most, int((eigenvalues > 1e-10 * float(eigenvalues[-1].clamp(min=1e-24))).sum())))


def _position_scores(cells: Cells, errors: Sequence[Sequence[Tensor]]) -> tuple[HeldOutScore, ...]:
    """Held-out scores at each position, against the variance there."""
    scores = []
    for p, parts in enumerate(zip(*cells.by_fold_and_position, strict=True)):
        filled = [k for k, part in enumerate(parts) if part.weight > 0]
        if not filled:
            scores.append(HeldOutScore(math.nan, math.nan, 0))
            continue
        of_folds = torch.stack([errors[k][p] for k in filled])
        scores.append(cell_errors(of_folds, [parts[k] for k in filled], torch.tensor(filled), BELIEF).score())
    return tuple(scores)


def _own_positions(cells: Cells, group: tuple[str, ...], solver: Solver) -> tuple[HeldOutScore, ...]:
    """Held-out scores of probes fitted to one position each; by least squares if ridge's penalty is not given."""
    if isinstance(solver, Ridge) and solver.penalty is None:
        solver = OLS(intercept=solver.intercept, rank_cutoff=solver.rank_cutoff)
    scores = []
    for position in zip(*cells.by_fold_and_position, strict=True):
        parts = [part for part in position if part.weight > 0]
        if len(parts) < 2:
            scores.append(HeldOutScore(math.nan, math.nan, sum(part.n for part in parts)))
            continue
        errors = []
        for k, part in enumerate(parts):
            spectrum = solver.decompose(merge_all(parts[:k] + parts[k + 1 :]), group)
            errors.append(_solve(spectrum, solver, [PROBE]).errors(part)[PROBE] * part.weight)
        scores.append(cell_errors(torch.stack(errors), parts, torch.arange(len(parts)), BELIEF).score())
    return tuple(scores)


class SavedScores(TypedDict):
    """`ProbeScores` in a file."""

    in_sample: SavedScore
    held_out: SavedHeldOut
    shuffled: SavedScore | None
    shuffled_held_out: SavedHeldOut | None
    with_next_token: SavedHeldOut | None
    by_rank: list[SavedHeldOut]
    by_rank_in_sample: list[SavedScore]
    by_position: list[SavedHeldOut]
    by_position_own: list[SavedHeldOut]
    solver: str
    penalty: float | None
    mse_by_penalty: list[tuple[float, float]]


class _SavedRows(TypedDict):
    n: Annotated[int, AtLeast(0)]
    weight: Annotated[float, Between(0, sys.float_info.max)]
    rounding: Share


class SavedProbe(TypedDict):
    """A probe in a file, without its tensors."""

    sites: list[str]
    widths: list[Count]
    provenance: dict[str, Any]
    name: str | None
    rank: Annotated[int, AtLeast(0)]
    scores: SavedScores
    rows: _SavedRows | None


@dataclass(frozen=True, eq=False)
class ProbeScores(Value):
    """How well one probe reads beliefs; what was not measured is `None` or empty.

    Attributes:
        in_sample: On the rows it was fitted on.
        held_out: By cross-validation over groups of rows.
        shuffled: In-sample score of a probe fitted to shuffled beliefs: what chance alone would show.
        shuffled_held_out: The same, held out.
        with_next_token: Held-out score of a map from the activations *and* the optimal next-token probabilities.
        by_rank: Held-out scores of reduced-rank regression of rank 1, 2, …, with ridge's penalty if there is one.
        by_rank_in_sample: The same, in-sample.
        by_position: Held-out scores of this probe at each position, against the variance at that position.
        by_position_own: Held-out scores of probes fitted to one position each.
        solver: The name of the solver, `"ols"`, `"ridge"` or `"reduced_rank"`.
        penalty: Ridge's penalty. If it was chosen, `held_out` is for penalties chosen without the fold being scored.
        mse_by_penalty: Pairs of a penalty and its held-out MSE. `penalty` has the least, so its MSE here is biased.
    """

    in_sample: Score
    held_out: HeldOutScore
    shuffled: Score | None = None
    shuffled_held_out: HeldOutScore | None = None
    with_next_token: HeldOutScore | None = None
    by_rank: tuple[HeldOutScore, ...] = ()
    by_rank_in_sample: tuple[Score, ...] = ()
    by_position: tuple[HeldOutScore, ...] = ()
    by_position_own: tuple[HeldOutScore, ...] = ()
    solver: str = "ols"
    penalty: float | None = None
    mse_by_penalty: tuple[tuple[float, float], ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ProbeScores:
        """Rebuild the scores from `dataclasses.asdict` of them, read back from JSON."""
        return cls(**{key: from_json(value) for key, value in values.items()})
