"""Fit the probes of some sites and score them in every way at once, by cross-validation over folds of moments.

Each fold takes one decomposition of the other folds' features, and one product evaluates all maps solved from it: the
probes of the belief and of its parts, every rank, probes of shuffled values and of rivals, and those with rivals.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypedDict

import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens._checks import AtLeast, Between, Count, Share
from msp_lens._values import Value
from msp_lens.controls.control_scores import ControlKind
from msp_lens.data.labelled import BELIEF
from msp_lens.moments.folds import Cells
from msp_lens.moments.moments import Moments, merge_all
from msp_lens.moments.scores import HeldOutScore, SavedHeldOut, SavedScore, Score, cell_errors, from_json, score_of
from msp_lens.moments.solve import LinearMap, Spectrum, path_errors, variances
from msp_lens.moments.solvers import OLS, Auto, PenaltyChoice, ReducedRank, Ridge, Solver, choose_penalties

SHUFFLED = "shuffled belief"
NEXT_TOKEN: ControlKind = "next token"
CONSTRAINED: ControlKind = "constrained belief"


@dataclass(frozen=True)
class Target:
    """What probes read: names of blocks of the moments, of which only the first must be there.

    Attributes:
        block: The target itself.
        shuffled: Its values, shuffled.
        rivals: Other accounts of what a network might represent: what each is called, and its block.
    """

    block: str = BELIEF
    shuffled: str = SHUFFLED
    rivals: tuple[tuple[ControlKind, str], ...] = ((NEXT_TOKEN, NEXT_TOKEN), (CONSTRAINED, CONSTRAINED))


@dataclass(frozen=True)
class _Reading:
    """A map to fit and score in every fold: of this rank (`None`: the solver's own), from a rival too or not."""

    target: str
    rank: int | None = None
    beside: str | None = None


@dataclass(frozen=True, eq=False)
class _Maps:
    """The maps of several readings, side by side, from the same blocks of features."""

    by_reading: dict[_Reading, LinearMap]
    features: tuple[str, ...]
    joined: LinearMap

    def errors(self, parts: Sequence[Moments]) -> dict[_Reading, Float64[Tensor, "part target"]]:
        """The weighted sums of each reading's squared errors on the rows of each part."""
        targets = [reading.target for reading in self.by_reading]
        weights, bias = self.joined.weights.unsqueeze(1), self.joined.bias.unsqueeze(0)
        found = path_errors(weights, bias, parts, self.features, targets).squeeze(1)
        found = found * torch.tensor([part.weight for part in parts], dtype=torch.float64).unsqueeze(1)
        widths = [parts[0].blocks[target] for target in targets]
        return dict(zip(self.by_reading, found.split(widths, dim=1), strict=True))


def _solve(spectrum: Spectrum, solver_of: Callable[[str], Solver], readings: Sequence[_Reading]) -> _Maps:
    blocks, found = spectrum.moments.blocks, {}
    others = tuple(dict.fromkeys(reading.beside for reading in readings if reading.beside is not None))
    features = (*spectrum.features, *others)
    for target in dict.fromkeys(reading.target for reading in readings):
        own, solver = [reading for reading in readings if reading.target == target], solver_of(target)
        ranks = [reading.rank for reading in own if reading.rank is not None]
        of_rank = dict(zip(ranks, solver.solve_by_rank(spectrum, target, ranks), strict=True))
        for reading in own:
            if reading.rank is not None:
                found[reading] = of_rank[reading.rank]
            elif reading.beside is not None:
                found[reading] = solver.solve_jointly(spectrum, reading.beside, target)
            else:
                found[reading] = solver.solve(spectrum, target)
    width = sum(blocks[name] for name in spectrum.features)
    weights = []
    for reading, each in found.items():
        parts = [each.weights[:width]]
        for other in others:
            # A map that does not read a rival has weights of 0 there.
            own = each.weights[width:] if other == reading.beside else each.weights.new_zeros(blocks[other], 1)
            parts.append(own.expand(-1, each.weights.shape[1]))
        weights.append(torch.cat(parts))
    biases = [each.bias for each in found.values()]
    return _Maps(found, features, LinearMap(torch.cat(weights, dim=1), torch.cat(biases), spectrum.rank))


def evaluate(
    cells: Cells, sites: Sequence[str], solver: Solver, *, extras: bool = True, own_positions: bool = False
) -> tuple[LinearMap, ProbeScores]:
    """The probe of the belief at some sites and its scores; see `evaluate_all`."""
    return evaluate_all(cells, sites, solver, [Target()], extras=extras, own_positions=own_positions)[0]


def evaluate_all(
    cells: Cells,
    sites: Sequence[str],
    solver: Solver,
    targets: Sequence[Target],
    *,
    extras: bool = True,
    own_positions: bool = False,
) -> list[tuple[LinearMap, ProbeScores]]:
    """The probes of several targets at some sites and their scores, from the same decompositions.

    With `extras`, shuffled values, every rank, rivals and positions are scored too; with `own_positions`, each position
    is also fitted on its own.
    """
    group, everything = tuple(sites), cells.whole
    solver.check_targets(everything.blocks[targets[0].block])
    solver = solver.choose(cells, group) if isinstance(solver, Auto) else solver
    wanted = {target: _readings(target, everything) if extras else [_Reading(target.block)] for target in targets}
    readings = list(dict.fromkeys(reading for own in wanted.values() for reading in own))
    probes = [_Reading(target.block) for target in targets]
    # Values and their shuffled ones are read with the same penalty.
    owner = {target.shuffled: target.block for target in targets}
    chosen: dict[str, PenaltyChoice] = {}
    if isinstance(solver, Ridge) and solver.penalty is None:
        blocks = list(dict.fromkeys(owner.get(reading.target, reading.target) for reading in readings))
        chosen = dict(zip(blocks, choose_penalties(cells, group, blocks, solver), strict=True))

    def solver_of(block: str, fold: int | None = None) -> Solver:
        choice = chosen.get(owner.get(block, block))
        if choice is None:
            return solver
        return Ridge(
            intercept=solver.intercept,
            rank_cutoff=solver.rank_cutoff,
            penalty=choice.overall if fold is None else choice.of_fold[fold],
        )

    by_position = extras and bool(cells.positions)
    errors: dict[_Reading, list[Tensor]] = {reading: [] for reading in readings}
    at_position: dict[_Reading, list[Tensor]] = {probe: [] for probe in probes}
    for k, fold in enumerate(cells.cells):
        spectrum = solver.decompose(cells.without(k), group)
        maps = _solve(spectrum, lambda block, k=k: solver_of(block, k), readings)
        for reading, found in maps.errors(fold).items():
            errors[reading].append(found)
        if by_position:
            found = maps.errors(cells.by_fold_and_position[k])
            for probe, of_folds in at_position.items():
                of_folds.append(found[probe])

    every_cell = [cell for fold in cells.cells for cell in fold]
    fold_of_cell = torch.tensor([k for k, fold in enumerate(cells.cells) for _ in fold])
    whole = _solve(solver.decompose(everything, group), solver_of, readings)
    held_out, in_sample = {}, {}
    for reading, found in whole.errors([everything]).items():
        of_cells = torch.cat(errors[reading])
        held_out[reading] = cell_errors(of_cells, every_cell, fold_of_cell, reading.target).score()
        in_sample[reading] = score_of(found[0] / everything.weight, variances(everything, reading.target), everything.n)
    own = _own_positions(cells, group, solver, probes) if by_position and own_positions else {}

    results = []
    for target, probe in zip(targets, probes, strict=True):
        shuffled, ranks = _Reading(target.shuffled), [each for each in wanted[target] if each.rank is not None]
        final, choice = solver_of(target.block), chosen.get(target.block)
        rivals = [
            RivalScores(name, in_sample[of_rival], held_out[of_rival], held_out[_Reading(target.block, beside=block)])
            for name, block in target.rivals
            if (of_rival := _Reading(block)) in wanted[target]
        ]
        scores = ProbeScores(
            in_sample=in_sample[probe],
            held_out=held_out[probe],
            shuffled=in_sample.get(shuffled),
            shuffled_held_out=held_out.get(shuffled),
            rivals=tuple(rivals),
            by_rank=tuple(held_out[reading] for reading in ranks),
            by_rank_in_sample=tuple(in_sample[reading] for reading in ranks),
            by_position=_position_scores(cells, at_position[probe], target.block) if by_position else (),
            by_position_own=own.get(probe, ()),
            solver=solver.name,
            penalty=final.penalty if isinstance(final, Ridge) else None,
            mse_by_penalty=choice.mse_by_penalty if choice is not None else (),
        )
        read_map = whole.by_reading[probe]
        rank = min(read_map.rank, solver.rank) if isinstance(solver, ReducedRank) else read_map.rank
        results.append((replace(read_map, rank=rank), scores))
    return results


def _readings(target: Target, moments: Moments) -> list[_Reading]:
    """The readings of a target: itself, each rank, its shuffled values, its rivals, and itself beside each rival."""
    rivals = [block for _, block in target.rivals if block in moments.blocks]
    # The ranks are the same in all folds, though the beliefs of few words may span less in some.
    ranks = [_Reading(target.block, rank=rank) for rank in range(1, _n_ranks(moments, target.block) + 1)]
    shuffled = [_Reading(target.shuffled)] if target.shuffled in moments.blocks else []
    beside = [_Reading(target.block, beside=rival) for rival in rivals]
    return [_Reading(target.block), *ranks, *shuffled, *map(_Reading, rivals), *beside]


def _n_ranks(moments: Moments, block: str) -> int:
    """The number of ranks worth showing; beliefs sum to 1, so at least one of their directions never varies."""
    most = 12
    eigenvalues = torch.linalg.eigvalsh(moments.covariance(block, block))
    return max(1, min(most, int((eigenvalues > 1e-10 * float(eigenvalues[-1].clamp(min=1e-24))).sum())))


def _position_scores(cells: Cells, errors: Sequence[Tensor], block: str) -> tuple[HeldOutScore, ...]:
    """Held-out scores at each position, against the variance there."""
    scores = []
    for p, parts in enumerate(zip(*cells.by_fold_and_position, strict=True)):
        filled = [k for k, part in enumerate(parts) if part.weight > 0]
        if not filled:
            scores.append(HeldOutScore(math.nan, math.nan, 0))
            continue
        of_folds = torch.stack([errors[k][p] for k in filled])
        scores.append(cell_errors(of_folds, [parts[k] for k in filled], torch.tensor(filled), block).score())
    return tuple(scores)


def _own_positions(
    cells: Cells, group: tuple[str, ...], solver: Solver, probes: Sequence[_Reading]
) -> dict[_Reading, tuple[HeldOutScore, ...]]:
    """Held-out scores of probes fitted to one position each; by least squares if ridge's penalty is not given."""
    if isinstance(solver, Ridge) and solver.penalty is None:
        solver = OLS(intercept=solver.intercept, rank_cutoff=solver.rank_cutoff)
    scores: dict[_Reading, list[HeldOutScore]] = {probe: [] for probe in probes}
    for position in zip(*cells.by_fold_and_position, strict=True):
        parts = [part for part in position if part.weight > 0]
        errors: dict[_Reading, list[Tensor]] = {probe: [] for probe in probes}
        if len(parts) >= 2:
            for k, part in enumerate(parts):
                spectrum = solver.decompose(merge_all(parts[:k] + parts[k + 1 :]), group)
                for probe, found in _solve(spectrum, lambda _: solver, probes).errors([part]).items():
                    errors[probe].append(found)
        for probe, of_parts in errors.items():
            unknown = HeldOutScore(math.nan, math.nan, sum(part.n for part in parts))
            folds = torch.arange(len(parts))
            scores[probe].append(
                cell_errors(torch.cat(of_parts), parts, folds, probe.target).score() if of_parts else unknown
            )
    return {probe: tuple(found) for probe, found in scores.items()}


def evaluate_positions(cells: Cells, sites: Sequence[str], solver: Solver) -> tuple[HeldOutScore, ...]:
    """The held-out scores of probes of the belief at some sites that are fitted to one position each."""
    probe = _Reading(BELIEF)
    return _own_positions(cells, tuple(sites), solver, [probe])[probe]


class SavedRival(TypedDict):
    """`RivalScores` in a file."""

    name: str
    in_sample: SavedScore
    held_out: SavedHeldOut
    beside: SavedHeldOut


class SavedScores(TypedDict):
    """`ProbeScores` in a file."""

    in_sample: SavedScore
    held_out: SavedHeldOut
    shuffled: SavedScore | None
    shuffled_held_out: SavedHeldOut | None
    rivals: list[SavedRival]
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
class RivalScores(Value):
    """How well the probed features read a rival, and what they read of the target beside it.

    Attributes:
        name: The rival.
        in_sample: Score of a probe of the rival itself.
        held_out: The same, held out.
        beside: Held-out score of a map to the target from the features *and* the rival.
    """

    name: str
    in_sample: Score
    held_out: HeldOutScore
    beside: HeldOutScore


@dataclass(frozen=True, eq=False)
class ProbeScores(Value):
    """How well one probe reads beliefs; what was not measured is `None` or empty.

    Attributes:
        in_sample: On the rows it was fitted on.
        held_out: By cross-validation over groups of rows.
        shuffled: In-sample score of a probe fitted to shuffled beliefs: what chance alone would show.
        shuffled_held_out: The same, held out.
        rivals: How well each rival is read, and the belief beside it: next-token probabilities, constrained beliefs.
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
    rivals: tuple[RivalScores, ...] = ()
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
        rivals = [RivalScores(**{key: from_json(value) for key, value in each.items()}) for each in values["rivals"]]
        rest = {key: from_json(value) for key, value in values.items() if key != "rivals"}
        return cls(**rest, rivals=tuple(rivals))

    def rival(self, name: str) -> RivalScores | None:
        """The scores beside one rival, if they were measured."""
        return next((each for each in self.rivals if each.name == name), None)
