"""The set of beliefs as a fractal: millions of its points, and its dimension.

Beliefs follow the maps b → b T[x] / (b T[x] 1), each chosen with probability b T[x] 1: a place-dependent iterated
function system. Its attractor is where beliefs live once the start is forgotten (Jurgens & Crutchfield 2021, "Shannon
entropy rate of hidden Markov processes").

    box-counting dimension     N(ε) ~ ε^-D       N boxes of side ε hold all the points
    correlation dimension      C(ε) ~ ε^D        C of all pairs lie within ε (Grassberger & Procaccia 1983)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, cast

import numpy as np
import torch
from jaxtyping import Float64
from scipy.spatial import KDTree
from scipy.stats import linregress
from torch import Tensor

from msp_lens._checks import AtLeast, Count, Seed, check_memory, checked
from msp_lens._random import resolve_generator
from msp_lens._values import Value
from msp_lens.processes.bayes import normalized
from msp_lens.processes.process import Process


@checked
def attractor(
    process: Process,
    n_points: Count,
    *,
    burn_in: Annotated[int, AtLeast(0)] = 100,
    even: bool = False,
    seed: Seed | None = None,
    generator: torch.Generator | None = None,
) -> Float64[Tensor, "point state"]:
    """Beliefs of observers who follow the process: points of its fractal, distributed as beliefs are.

    Args:
        process: The process observed.
        n_points: How many beliefs.
        burn_in: Tokens that each observer sees before the first point, to forget the start.
        even: Draw each possible token equally often, whatever its probability: the same set, but its rare parts are
            visited too, for pictures of the whole set and for box counting.
        seed: Seed of a fresh CPU generator; give this or `generator`.
        generator: Source of the tokens.

    Example:
        >>> from msp_lens.processes.catalog import mess3
        >>> attractor(mess3(x=0.05, a=0.85), 1_000_000, seed=0).shape
        torch.Size([1000000, 3])
    """
    check_memory(f"n_points={n_points}", 8 * n_points * process.n_states, "Give fewer points.")
    generator = resolve_generator(seed, generator)
    device, chains = generator.device, min(50_000, n_points)  # Observers followed in parallel.
    transitions, right_eigenvector = process.transitions.to(device), process.right_eigenvector.to(device)
    emissions = process.emissions.to(device)
    beliefs = process.initial.to(device).expand(chains, -1)
    points = torch.empty(n_points, process.n_states, dtype=torch.float64)
    for step in range(burn_in + math.ceil(n_points / chains)):
        expected = beliefs @ emissions
        is_possible = expected > process.negligible
        cumulative = torch.where(is_possible, torch.ones_like(expected) if even else expected, 0.0).cumsum(dim=1)
        uniform = torch.rand(chains, 1, dtype=torch.float64, device=device, generator=generator)
        # Scaled by the last sum, so that rounding never places a draw past the last possible token.
        tokens = (uniform * cumulative[:, -1:] >= cumulative).sum(dim=1)
        # One product for each token, not `bayes_step`, which would gather a matrix for every one of many points.
        joint = torch.empty_like(beliefs)
        for token, matrix in enumerate(transitions):
            mine = tokens == token
            joint[mine] = beliefs[mine] @ matrix
        beliefs, _ = normalized(joint, right_eigenvector)
        start = (step - burn_in) * chains
        if start >= 0:
            points[start : start + chains] = beliefs[: n_points - start].cpu()
    return points


@dataclass(frozen=True, eq=False)
class Dimension(Value):
    """An estimated dimension.

    Attributes:
        value: The slope of the logarithm of the counts against that of the scale.
        uncertainty: The larger of the slope's standard error and half the difference between the slopes over the
            coarser and the finer half of the scales.
        scales: Sides of the boxes, or distances of the pairs, in units of the belief's coordinates.
        counts: Boxes that hold a point, or share of pairs within the distance, at each scale.
        kind: `"box-counting"` or `"correlation"`.
        n_points: How many points it was estimated from.
    """

    value: float
    uncertainty: float
    scales: tuple[float, ...]
    counts: tuple[float, ...]
    kind: str
    n_points: int

    def __repr__(self) -> str:
        return f"{self.kind} dimension {self.value:.3f} ± {self.uncertainty:.3f} ({self.n_points:,} points)"


@checked
def box_counting_dimension(
    points: Float64[Tensor, "point state"], *, scales: Sequence[float] | None = None
) -> Dimension:
    """The box-counting dimension of a set of points.

    Args:
        points: Beliefs, or any other points; a million give about two decimals for a fractal in the plane.
        scales: Sides of the boxes; by default from an eighth of the set's extent down, as long as the points fill them.

    Example:
        >>> line = torch.linspace(0, 1, 100_001, dtype=torch.float64)
        >>> round(box_counting_dimension(torch.stack([line, 1 - line], dim=1)).value, 1)
        1.0
    """
    flat, extent = _flat(points)
    if extent == 0:
        return Dimension(0.0, 0.0, (), (), "box-counting", len(points))
    sides = _checked_scales(scales) if scales is not None else extent / 2.0 ** np.arange(3, 24, 0.5)
    counts: list[int] = []
    for side in sides:
        count = _count_boxes(np.floor(flat / side).astype(np.int64))
        # With fewer than about ten points for each box, some boxes are missed by chance.
        if scales is None and count > len(flat) / 10:
            break
        counts.append(count)
    return _fitted(sides[: len(counts)], np.array(counts, dtype=float), -1, "box-counting", len(points))


@checked
def correlation_dimension(
    points: Float64[Tensor, "point state"],
    *,
    scales: Sequence[float] | None = None,
    max_points: Annotated[int, AtLeast(2)] = 20_000,
    seed: Seed = 0,
) -> Dimension:
    """The correlation dimension of the measure that the points sample: dense parts count more.

    Args:
        points: Beliefs, or any other points.
        scales: Distances of pairs; by default from a quarter of the set's extent down to where pairs become few.
        max_points: Pairs are counted among at most this many points.
        seed: Seed with which these are drawn.
    """
    flat, extent = _flat(points)
    if extent == 0:
        return Dimension(0.0, 0.0, (), (), "correlation", len(points))
    if len(flat) > max_points:
        chosen = torch.randperm(len(flat), generator=torch.Generator().manual_seed(seed))[:max_points]
        flat = flat[chosen.numpy()]
    distances = _checked_scales(scales) if scales is not None else extent / 2.0 ** np.arange(16, 1.5, -0.5)
    tree = KDTree(flat)
    pairs = tree.count_neighbors(tree, distances) - len(flat)
    enough = pairs >= (1 if scales is not None else 1_000)
    share = pairs[enough] / (len(flat) * (len(flat) - 1))
    return _fitted(distances[enough], share, 1, "correlation", len(flat))


def _flat(points: Float64[Tensor, "point state"]) -> tuple[np.ndarray, float]:
    """The points in coordinates of the affine space that they span, and their largest extent."""
    if len(points) < 2:
        raise ValueError(f"points of shape {tuple(points.shape)}: give at least 2, [point, state].")
    centered = (points - points.mean(dim=0)).detach().cpu()
    sizes, axes = torch.linalg.eigh(centered.T @ centered)
    flat = (centered @ axes[:, sizes > 1e-18 * len(points)]).numpy()
    flat -= flat.min(axis=0)
    return flat, float(flat.max(initial=0))


def _count_boxes(boxes: np.ndarray) -> int:
    spans = tuple(int(span) + 1 for span in boxes.max(axis=0))
    if math.prod(spans) >= 2**62:
        return len(np.unique(boxes, axis=0))
    # One number for each box sorts faster than a row.
    return len(np.unique(np.ravel_multi_index(tuple(boxes.T), spans)))


def _checked_scales(scales: Sequence[float]) -> np.ndarray:
    distinct = np.unique(np.array(scales))
    if len(distinct) < 3 or not (distinct > 0).all():
        raise ValueError(f"scales={list(scales)}: give at least 3 different distances above 0.")
    return distinct


def _fitted(scales: np.ndarray, counts: np.ndarray, sign: int, kind: str, n_points: int) -> Dimension:
    if len(counts) < 3:
        few = f"{n_points:,} points fill too few scales for a {kind} dimension"
        raise ValueError(f"{few}: give more points, or give scales.")
    x, y = np.log(scales), np.log(counts)
    middle = len(x) // 2
    # scipy's stubs do not tell the fields of its result.
    parts = (slice(None), slice(middle + 1), slice(middle, None))
    whole, coarse, fine = (cast(Any, linregress(x[part], y[part])) for part in parts)
    value, uncertainty = sign * float(whole.slope), max(float(whole.stderr), abs(float(coarse.slope - fine.slope)) / 2)
    return Dimension(value, uncertainty, tuple(scales.tolist()), tuple(counts.tolist()), kind, n_points)
