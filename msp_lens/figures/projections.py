"""Where beliefs lie in a picture, and what color they are.

Three states: an equilateral triangle. Four: a tetrahedron, seen from the side. More, or fewer: the principal axes of
the *true* beliefs, the same for all panels, so that a represented belief is drawn where it is and not where its own
axes would put it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from msp_lens.figures.style import Theme

# Corners of the triangle and of the tetrahedron, sides of length 1, in the order of the states.
TRIANGLE = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 3**0.5 / 2]], dtype=torch.float64)
TETRAHEDRON = torch.tensor(
    [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.5, 3**0.5 / 2, 0.0], [0.5, 3**0.5 / 6, (2 / 3) ** 0.5]], dtype=torch.float64
)
# Degrees around the tetrahedron and above its base: no corner hides another, no edge is seen end on.
VIEW = (-72.0, 14.0)
MARGIN = 0.08
Bounds = tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True, eq=False)
class Projection:
    """An affine map from beliefs to the plane; call it with beliefs.

    Attributes:
        axes: `[state, xy]`.
        center: The belief drawn at the origin.
        corners: Where the states lie, if the whole simplex is drawn.
        hidden: Pairs of corners whose edge lies behind the simplex.
        variance: The share of the true beliefs' variance along each axis, if these are principal axes.
    """

    axes: Float64[Tensor, "state xy"]
    center: Float64[Tensor, "state"]
    corners: Float64[Tensor, "state xy"] | None = None
    hidden: frozenset[tuple[int, int]] = frozenset()
    variance: tuple[float, ...] = ()

    def __call__(self, beliefs: Float[Tensor, "prefix state"]) -> Float64[Tensor, "prefix xy"]:
        """Where the beliefs lie in the plane."""
        return (beliefs.double() - self.center) @ self.axes

    @property
    def edges(self) -> list[tuple[int, int]]:
        """Pairs of corners that the simplex's edges join; none where it is not drawn."""
        return list(itertools.combinations(range(0 if self.corners is None else len(self.corners)), 2))


def projection(
    true: Float[Tensor, "prefix state"], weights: Float64[Tensor, "prefix"], *, view: tuple[float, float] = VIEW
) -> Projection:
    """The map to the plane for these true beliefs.

    Args:
        true: The optimal observer's beliefs.
        weights: How much each counts for principal axes.
        view: Degrees around and above a tetrahedron's base, for four states.
    """
    n_states = true.shape[1]
    origin = torch.zeros(n_states, dtype=torch.float64)
    if n_states == 3:
        return Projection(TRIANGLE, origin, TRIANGLE)
    if n_states == 4:
        seen, towards = _seen_from(view)
        corners = TETRAHEDRON @ seen
        return Projection(corners, origin, corners, _hidden_edges(towards))
    true = true.double()
    center = weights @ true / weights.sum()
    axes, variance = principal_axes(true, weights, 2)
    padding = (0, 2 - axes.shape[1])
    return Projection(torch.nn.functional.pad(axes, padding), center, variance=variance)


def belief_colors(
    beliefs: Float[Tensor, "prefix state"], *, among: Float[Tensor, "other state"] | None = None
) -> Float64[Tensor, "prefix rgb"]:
    """Red, green and blue in [0, 1]: the belief itself for three states, else its place on three principal axes.

    Args:
        beliefs: What is colored.
        among: The beliefs whose axes and ranges they are; by default their own. Give the same for every picture in
            which a color is to mean the same belief.
    """
    beliefs = beliefs.double()
    if beliefs.shape[1] == 3:
        return beliefs.clamp(0, 1)
    reference = beliefs if among is None else among.double()
    axes, _ = principal_axes(reference, torch.ones(len(reference), dtype=torch.float64), 3)
    center = reference.mean(dim=0)
    known = (reference - center) @ axes
    low, high = known.amin(dim=0), known.amax(dim=0)
    spread = (high - low).clamp(min=1e-12)
    scaled = torch.where(high - low > 1e-9, (((beliefs - center) @ axes - low) / spread).clamp(0, 1), 0.5)
    # Kept off white, which is the background.
    return 0.9 * torch.nn.functional.pad(scaled, (0, 3 - scaled.shape[1]), value=0.5)


def lifted(colors: Float64[Tensor, "prefix rgb"], theme: Theme) -> Float64[Tensor, "prefix rgb"]:
    """The colors as they are seen on the theme's paper: nearer to white where it is dark."""
    return theme.lift + (1 - theme.lift) * colors


def state_places(project: Projection) -> list[tuple[float, float]]:
    """Where the states' names go: just outside the corners, if the simplex is drawn."""
    if project.corners is None:
        return []
    center = project.corners.mean(dim=0)
    return [tuple((center + (corner - center) * 1.09).tolist()) for corner in project.corners]


def principal_axes(
    beliefs: Float64[Tensor, "prefix state"], weights: Float64[Tensor, "prefix"], count: int
) -> tuple[Float64[Tensor, "state axis"], tuple[float, ...]]:
    """The directions in which beliefs vary most, `count` of them at most, and their shares of the variance."""
    centered = beliefs - weights @ beliefs / weights.sum()
    sizes, vectors = torch.linalg.eigh(centered.T @ (centered * weights.unsqueeze(1)))
    axes = vectors.flip(1)[:, :count]
    # An eigenvector's sign is arbitrary: fix it, so that a picture does not flip from run to run.
    leading = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    shares = sizes.flip(0).clamp(min=0) / sizes.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return axes * leading.sign(), tuple(shares[:count].tolist())


def bounds_of(project: Projection, panels: Sequence[Float64[Tensor, "prefix xy"]]) -> Bounds:
    """The area that all panels show: the whole simplex, or all true points and nearly all represented ones."""
    true, *represented = panels
    corners = project.corners
    if corners is None:
        corners = torch.cat([true, *(without_outliers(points) for points in represented)])
    else:
        # The beliefs of a generalized process may lie outside the simplex.
        corners = torch.cat([corners, true])
    return area_around(corners)


def area_around(points: Float64[Tensor, "corner xy"], *, margin: float = MARGIN) -> Bounds:
    """The area that shows all these points, and a margin: a share of their extent."""
    low, high = points.amin(dim=0), points.amax(dim=0)
    # A line or a single point still needs an area to be drawn in.
    extent = float((high - low).amax().clamp(min=1e-3))
    center = (low + high) / 2
    half = torch.maximum((high - low) / 2, torch.tensor(0.15 * extent, dtype=torch.float64)) + margin * extent
    (left, bottom), (right, top) = (center - half).tolist(), (center + half).tolist()
    return (left, right), (bottom, top)


def without_outliers(points: Float64[Tensor, "prefix xy"]) -> Float64[Tensor, "corner xy"]:
    """Opposite corners of the box that holds all but the outermost percent of the points, per axis."""
    return torch.from_numpy(np.quantile(points.numpy(), [0.005, 0.995], axis=0))


def _seen_from(view: tuple[float, float]) -> tuple[Float64[Tensor, "xyz xy"], Float64[Tensor, "xyz"]]:
    """What an observer far off sees as right and up, and the direction towards them."""
    around, above = (math.radians(angle) for angle in view)
    right = [-math.sin(around), math.cos(around), 0.0]
    up = [-math.cos(around) * math.sin(above), -math.sin(around) * math.sin(above), math.cos(above)]
    towards = [math.cos(around) * math.cos(above), math.sin(around) * math.cos(above), math.sin(above)]
    return torch.tensor([right, up], dtype=torch.float64).T, torch.tensor(towards, dtype=torch.float64)


def _hidden_edges(towards: Float64[Tensor, "xyz"]) -> frozenset[tuple[int, int]]:
    """Edges of the tetrahedron between two faces that both face away."""
    # The normal of the face opposite a corner points away from that corner.
    away = [bool(float((TETRAHEDRON.mean(dim=0) - corner) @ towards) < 0) for corner in TETRAHEDRON]
    pairs = itertools.combinations(range(4), 2)
    return frozenset(pair for pair in pairs if all(away[face] for face in range(4) if face not in pair))
