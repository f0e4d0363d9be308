"""Beliefs as colored points in the plane: where they lie, their color, and the image that any number of them makes.

Three states: an equilateral triangle. Four: a tetrahedron seen from the side. More, or fewer, or those of a generalized
process, which lie on no simplex: the principal axes of the *true* beliefs. All panels share their projection.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from matplotlib.image import imsave
from torch import Tensor

from msp_lens.figures.style import LARGEST, Theme, shortened

# Corners of the triangle and of the tetrahedron, with sides of length 1, in the order of the states.
TRIANGLE = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 3**0.5 / 2]], dtype=torch.float64)
TETRAHEDRON = torch.tensor(
    [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.5, 3**0.5 / 2, 0.0], [0.5, 3**0.5 / 6, (2 / 3) ** 0.5]], dtype=torch.float64
)
# Of the disc that a point is drawn as, in cells of the image.
LARGEST_RADIUS = 8
Beliefs = Float[Tensor, "prefix state"]
Bounds = tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True, eq=False)
class Projection:
    """An affine map from beliefs to the plane; call it with beliefs."""

    axes: Float64[Tensor, "state xy"]
    center: Float64[Tensor, "state"]  # the belief drawn at the origin
    corners: Float64[Tensor, "state xy"] | None = None  # where the states lie, if the whole simplex is drawn
    hidden: frozenset[tuple[int, int]] = frozenset()  # pairs of corners whose edge lies behind the simplex
    variance: tuple[float, ...] = ()  # the share of the true beliefs' variance along each axis, for principal axes

    def __call__(self, beliefs: Beliefs) -> Float64[Tensor, "prefix xy"]:
        """Where the beliefs lie in the plane."""
        return (beliefs.double() - self.center) @ self.axes

    @property
    def edges(self) -> list[tuple[int, int]]:
        """Pairs of corners joined by an edge of the simplex; none where it is not drawn."""
        return list(itertools.combinations(range(0 if self.corners is None else len(self.corners)), 2))

    @property
    def state_places(self) -> list[tuple[float, float]]:
        """Where the states' names go, just outside the corners; none where the simplex is not drawn."""
        if self.corners is None:
            return []
        center = self.corners.mean(dim=0)
        return [tuple((center + (corner - center) * 1.09).tolist()) for corner in self.corners]


@dataclass(frozen=True, eq=False)
class Panels:
    """What all panels of a figure share, and the points of each by its title; a row is the same prefix in all."""

    points: dict[str, Float64[Tensor, "prefix xy"]]
    project: Projection
    bounds: Bounds  # the area that is shown
    colors: Float64[Tensor, "prefix rgb"]  # by true belief
    weights: Float64[Tensor, "prefix"]  # how much each row counts where rows share a grid cell
    states: tuple[str, ...]

    @property
    def aspect(self) -> float:
        """Height over width of the area shown."""
        (left, right), (bottom, top) = self.bounds
        return (top - bottom) / (right - left)


def arranged(
    beliefs: Mapping[str, Beliefs], weights: Float[Tensor, "prefix"] | None, states: Sequence[str] | None, look: Theme
) -> Panels:
    """The panels of these beliefs, by title; the first are the true ones, which set projection, area and colors.

    The area holds the whole simplex, or all true points and nearly all represented ones. It raises `ValueError` for
    beliefs that cannot be drawn, or unless there is a row of each for every prefix and a name for every state.
    """
    true = next(iter(beliefs.values()))
    for title, each in beliefs.items():
        check_drawable(title, each)
        if each.shape != true.shape:
            shapes = f"{tuple(each.shape)}; the true beliefs are {tuple(true.shape)}"
            raise ValueError(f"{title}: {shapes}: give a row for each.")
    check_states(states, true.shape[1])
    counts = torch.ones(len(true), dtype=torch.float64) if weights is None else weights.double()
    if len(counts) != len(true) or not bool((counts >= 0).all()) or not 0 < float(counts.sum()) < LARGEST:
        raise ValueError(
            f"weights={shortened(str(counts.tolist()), 60)}: give one for each of the {len(true)} prefixes: at least "
            "0, finite, and not all 0."
        )
    project = projection(true, counts)
    points = {title: project(each) for title, each in beliefs.items()}
    seen, *represented = points.values()
    # The beliefs of a generalized process may lie outside the simplex.
    around = map(without_outliers, represented) if project.corners is None else [project.corners]
    # Colors are nearer to white on dark paper.
    colors = look.lift + (1 - look.lift) * belief_colors(true)
    names = tuple(states) if states is not None else tuple(map(str, range(true.shape[1])))
    return Panels(points, project, area_around(torch.cat([seen, *around])), colors, counts, names)


def check_drawable(name: str, beliefs: Beliefs) -> None:
    """Raise `ValueError` if these beliefs have no place in a picture: no row, no state, or far too large."""
    if beliefs.ndim != 2 or not beliefs.numel():
        raise ValueError(
            f"{name}: beliefs of shape {tuple(beliefs.shape)}, give at least one row over at least one state."
        )
    if float(beliefs.abs().max()) > LARGEST:
        raise ValueError(
            f"{name}: a belief of {float(beliefs.abs().max()):g} has no place in a picture; give probabilities."
        )


def check_states(states: Sequence[str] | None, n_states: int) -> None:
    """Raise `ValueError` unless there is a name for every state, if any."""
    if states is not None and len(states) != n_states:
        raise ValueError(
            f"states has {len(states)} names and the beliefs are over {n_states} states: give one for each."
        )


def projection(
    true: Beliefs, weights: Float64[Tensor, "prefix"], *, view: tuple[float, float] = (-72.0, 14.0)
) -> Projection:
    """The map to the plane for these true beliefs, weighted for principal axes.

    Four states are seen from `view`, degrees around the tetrahedron and above its base; by default no corner hides
    another and no edge is seen end on.
    """
    n_states = true.shape[1]
    origin = torch.zeros(n_states, dtype=torch.float64)
    if n_states == 3 and on_simplex(true):
        return Projection(TRIANGLE, origin, TRIANGLE)
    if n_states == 4 and on_simplex(true):
        around, above = map(math.radians, view)
        # What a distant observer sees as right and up; their cross product points to the observer.
        right = [-math.sin(around), math.cos(around), 0.0]
        up = [-math.cos(around) * math.sin(above), -math.sin(around) * math.sin(above), math.cos(above)]
        seen = torch.tensor([right, up], dtype=torch.float64).T
        corners, depth = TETRAHEDRON @ seen, TETRAHEDRON @ torch.linalg.cross(*seen.unbind(1))
        # A face looks away if the corner opposite is nearer to the observer than the center.
        away = (depth > depth.mean()).tolist()
        # An edge is hidden if both its faces look away: those opposite the two corners that it does not join.
        pairs = itertools.combinations(range(4), 2)
        hidden = frozenset(pair for pair in pairs if all(away[k] for k in range(4) if k not in pair))
        return Projection(corners, origin, corners, hidden)
    true = true.double()
    axes, variance = principal_axes(true, weights, 2)
    padded = torch.nn.functional.pad(axes, (0, 2 - axes.shape[1]))
    return Projection(padded, weights @ true / weights.sum(), variance=variance)


def on_simplex(beliefs: Beliefs) -> bool:
    """Whether these are distributions, as the beliefs of a generalized process are not."""
    # As accurate as beliefs in float32 are.
    tolerance = 1e-5
    return bool((beliefs >= -tolerance).all()) and bool(((beliefs.sum(dim=1) - 1).abs() < tolerance).all())


def belief_colors(
    beliefs: Beliefs, *, among: Float[Tensor, "other state"] | None = None
) -> Float64[Tensor, "prefix rgb"]:
    """Red, green and blue in [0, 1]: the belief itself over three states, else its place on three principal axes.

    The axes and their ranges are those of the beliefs `among`, by default of `beliefs`: give the same for all pictures
    in which a color should mean the same belief.
    """
    beliefs = beliefs.double()
    reference = beliefs if among is None else among.double()
    # Read-outs of distributions lie beside the simplex, but in its plane.
    if beliefs.shape[1] == 3 and bool(((reference.sum(dim=1) - 1).abs() < 1e-3).all()):
        return beliefs.clamp(0, 1)
    axes, _ = principal_axes(reference, torch.ones(len(reference), dtype=torch.float64), 3)
    center = reference.mean(dim=0)
    known = (reference - center) @ axes
    low, high = known.amin(dim=0), known.amax(dim=0)
    spread = (high - low).clamp(min=1e-12)
    scaled = torch.where(high - low > 1e-9, (((beliefs - center) @ axes - low) / spread).clamp(0, 1), 0.5)
    # Kept off white, which is the background.
    return 0.9 * torch.nn.functional.pad(scaled, (0, 3 - scaled.shape[1]), value=0.5)


def principal_axes(
    beliefs: Float64[Tensor, "prefix state"], weights: Float64[Tensor, "prefix"], count: int
) -> tuple[Float64[Tensor, "state axis"], tuple[float, ...]]:
    """The directions in which beliefs vary most, at most `count` of them, and their shares of the variance."""
    centered = beliefs - weights @ beliefs / weights.sum()
    sizes, vectors = torch.linalg.eigh(centered.T @ (centered * weights.unsqueeze(1)))
    axes = vectors.flip(1)[:, :count]
    # An eigenvector's sign is arbitrary: fixed, it does not flip a picture from run to run.
    leading = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    shares = sizes.flip(0).clamp(min=0) / sizes.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return axes * leading.sign(), tuple(shares[:count].tolist())


def area_around(points: Float64[Tensor, "corner xy"], *, margin: float = 0.08) -> Bounds:
    """The area that shows all these points, with a margin that is a share of their extent."""
    low, high = points.amin(dim=0), points.amax(dim=0)
    # A line or a single point needs an area too.
    extent = float((high - low).amax().clamp(min=1e-3))
    center = (low + high) / 2
    half = torch.maximum((high - low) / 2, torch.tensor(0.15 * extent, dtype=torch.float64)) + margin * extent
    (left, bottom), (right, top) = (center - half).tolist(), (center + half).tolist()
    return (left, right), (bottom, top)


def without_outliers(points: Float64[Tensor, "prefix xy"]) -> Float64[Tensor, "corner xy"]:
    """Opposite corners of the box that holds all but the outermost percent of the points, axis by axis."""
    return torch.from_numpy(np.quantile(points.numpy(), [0.005, 0.995], axis=0))


def density_image(
    points: Float64[Tensor, "prefix xy"],
    colors: Float64[Tensor, "prefix rgb"],
    weights: Float64[Tensor, "prefix"],
    bounds: Bounds,
    *,
    pixels: int = 900,
) -> np.ndarray:
    """An RGBA image, `[row, column, 4]`: each cell the mean color of its points, the more opaque the more they weigh.

    Opacity follows the logarithm of the cell's weight, from faint at its 2nd percentile to full at its 80th: rare words
    are visible without hiding the common ones. Few points are drawn as discs, many as single cells. Points outside the
    bounds are not drawn.
    """
    (left, right), (bottom, top) = bounds
    height = max(1, round(pixels * (top - bottom) / (right - left)))
    column = ((points[:, 0] - left) / (right - left) * pixels).floor().long()
    row = ((points[:, 1] - bottom) / (top - bottom) * height).floor().long()
    # Points of one cell are added up first. The image has a margin, from which discs reach into it.
    margin = LARGEST_RADIUS
    row, column, stride = row + margin, column + margin, pixels + 2 * margin
    near = (row >= 0) & (row < height + 2 * margin) & (column >= 0) & (column < stride)
    cells, cell_of_point = torch.unique(row[near] * stride + column[near], return_inverse=True)
    row, column = cells // stride - margin, cells % stride - margin
    channels = torch.cat([colors * weights[:, None], weights[:, None]], dim=1)[near]
    channels = torch.zeros(len(cells), 4, dtype=torch.float64).index_add_(0, cell_of_point, channels)
    # Many points on few cells are drawn as large as those few cells allow.
    n_points = len(cells) if len(cells) < 2_000 else len(points)
    # Radius of a disc in cells: about six for a hundred points, none from 200,000 on.
    radius = int(np.clip(round(pixels / 45 / max(n_points, 1) ** 0.25), 1, LARGEST_RADIUS)) if n_points < 200_000 else 0
    total = torch.zeros(height * pixels, 4, dtype=torch.float64)
    for shift_row, shift_column in itertools.product(range(-radius, radius + 1), repeat=2):
        if shift_row**2 + shift_column**2 > radius**2 + 0.5:
            continue
        r, c = row + shift_row, column + shift_column
        inside = (r >= 0) & (r < height) & (c >= 0) & (c < pixels)
        total.index_add_(0, (r * pixels + c)[inside], channels[inside])
    filled, faintest = total[:, 3] > 0, 0.15
    image = torch.zeros(height * pixels, 4, dtype=torch.float64)
    image[filled, :3] = total[filled, :3] / total[filled, 3:4]
    image[filled, 3] = 1.0
    if filled.any():
        logs = total[filled, 3].log()
        faint, full = torch.from_numpy(np.quantile(logs.numpy(), [0.02, 0.8]))
        if full - faint >= 1e-9:
            opacity = faintest + (1 - faintest) * (logs - faint) / (full - faint)
            image[filled, 3] = opacity.clamp(faintest, 1)
    return image.reshape(height, pixels, 4).numpy()


def png(image: np.ndarray) -> bytes:
    """An image `[row, column, rgba]` in [0, 1], its first row at the bottom, as a PNG file."""
    buffer = io.BytesIO()
    imsave(buffer, image, origin="lower", format="png")
    return buffer.getvalue()
