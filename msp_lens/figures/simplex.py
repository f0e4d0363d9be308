"""Beliefs on the simplex: the fractal as it is, and as a network represents it.

A belief over three states is a point of an equilateral triangle, its colour the belief itself as (red, green, blue).
Points are gathered on a fine grid, each cell taking the mean colour of its points, so that ten points or ten million
stay crisp. Beliefs over more states are projected on the principal axes of the *true* beliefs, the same for all
panels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Corners of the triangle, in the order of the states.
TRIANGLE = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 3**0.5 / 2]], dtype=torch.float64)
MARGIN = 0.06
PIXELS = 900
FAINTEST = 0.15


def plot_beliefs(
    true: Float[Tensor, "prefix state"],
    represented: Mapping[str, Float[Tensor, "prefix state"]],
    *,
    weights: Float[Tensor, "prefix"] | None = None,
    states: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """True beliefs beside represented ones, a panel each, every point in the colour of its *true* belief.

    So a represented fractal is right where each colour lies where the true one has it, and blurred where not.

    Args:
        true: The optimal observer's beliefs.
        represented: Panel title to the beliefs read in a network, row by row those of `true`.
        weights: How much each row counts where rows share a grid cell; all alike by default.
        states: Names of the states, for the corners.
        title: Over the whole figure.

    Returns:
        A matplotlib figure that belongs to no window.
    """
    from matplotlib.figure import Figure

    n_states = true.shape[1]
    names = tuple(states) if states is not None else tuple(str(i) for i in range(n_states))
    counts = torch.ones(len(true), dtype=torch.float64) if weights is None else weights.double()
    colours = belief_colours(true)
    project = projection(true, counts)
    true_points = project(true)
    panels = {f"True beliefs: {len(true):,} prefixes": true_points}
    panels |= {name: project(beliefs) for name, beliefs in represented.items()}
    bounds = _bounds(list(panels.values()), is_simplex=n_states == 3)

    figure = Figure(figsize=(5.2 * len(panels), 5.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (name, points) in zip(axes, panels.items(), strict=True):
        image = density_image(points, colours, counts, bounds)
        axis.imshow(image, extent=(*bounds[0], *bounds[1]), origin="lower", interpolation="antialiased")
        if n_states == 3:
            _draw_triangle(axis, names)
        axis.set(title=name, xlim=bounds[0], ylim=bounds[1], aspect="equal")
        axis.set_axis_off()
    if title:
        figure.suptitle(title)
    return figure


def belief_colours(beliefs: Float[Tensor, "prefix state"]) -> Float64[Tensor, "prefix rgb"]:
    """Red, green and blue in [0, 1]: the belief itself for three states, else its place on three principal axes."""
    beliefs = beliefs.double()
    if beliefs.shape[1] == 3:
        return beliefs.clamp(0, 1)
    axes = _principal_axes(beliefs, torch.ones(len(beliefs), dtype=torch.float64), 3)
    scores = (beliefs - beliefs.mean(dim=0)) @ axes
    low, high = scores.amin(dim=0), scores.amax(dim=0)
    spread = (high - low).clamp(min=1e-12)
    scaled = torch.where(high - low > 1e-9, (scores - low) / spread, 0.5)
    # Kept off white, which is the background.
    return 0.9 * torch.nn.functional.pad(scaled, (0, 3 - scaled.shape[1]), value=0.5)


def projection(true: Float[Tensor, "prefix state"], weights: Float64[Tensor, "prefix"]) -> Any:
    """The map from beliefs to the plane: the triangle for three states, else the true beliefs' principal axes."""
    if true.shape[1] == 3:
        return lambda beliefs: beliefs.double() @ TRIANGLE
    true = true.double()
    centre = weights @ true / weights.sum()
    axes = _principal_axes(true, weights, 2)
    return lambda beliefs: torch.nn.functional.pad((beliefs.double() - centre) @ axes, (0, 2 - axes.shape[1]))


def _principal_axes(
    beliefs: Float64[Tensor, "prefix state"], weights: Float64[Tensor, "prefix"], count: int
) -> Float64[Tensor, "state axis"]:
    centred = beliefs - weights @ beliefs / weights.sum()
    _, vectors = torch.linalg.eigh(centred.T @ (centred * weights.unsqueeze(1)))
    axes = vectors.flip(1)[:, :count]
    # An eigenvector's sign is arbitrary: fix it, so that a picture does not flip from run to run.
    leading = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    return axes * leading.sign()


def density_image(
    points: Float64[Tensor, "prefix xy"],
    colours: Float64[Tensor, "prefix rgb"],
    weights: Float64[Tensor, "prefix"],
    bounds: tuple[tuple[float, float], tuple[float, float]],
    *,
    pixels: int = PIXELS,
) -> np.ndarray:
    """An RGBA image, `[row, column, 4]`: each cell the mean colour of its points, the more opaque the more they weigh.

    Opacity follows the logarithm of the cell's weight, from faint at its 2nd percentile to full at its 80th: rare
    words show where they are without hiding the common ones. Few points are drawn as discs, many as single cells,
    so that neither vanish nor smear. Points outside the bounds are left out.
    """
    (left, right), (bottom, top) = bounds
    height = max(1, round(pixels * (top - bottom) / (right - left)))
    radius = _radius(len(points), pixels)
    column = ((points[:, 0] - left) / (right - left) * pixels).floor().long()
    row = ((points[:, 1] - bottom) / (top - bottom) * height).floor().long()
    channels = torch.cat([colours * weights[:, None], weights[:, None]], dim=1)
    total = torch.zeros(height * pixels, 4, dtype=torch.float64)
    for shift_row in range(-radius, radius + 1):
        for shift_column in range(-radius, radius + 1):
            if shift_row**2 + shift_column**2 > radius**2 + 0.5:
                continue
            r, c = row + shift_row, column + shift_column
            inside = (r >= 0) & (r < height) & (c >= 0) & (c < pixels)
            total.index_add_(0, (r * pixels + c)[inside], channels[inside])
    filled = total[:, 3] > 0
    image = torch.zeros(height * pixels, 4, dtype=torch.float64)
    image[filled, :3] = total[filled, :3] / total[filled, 3:4]
    image[filled, 3] = _opacity(total[filled, 3])
    return image.reshape(height, pixels, 4).numpy()


def _opacity(cell_weights: Float64[Tensor, "cell"]) -> Float64[Tensor, "cell"]:
    if len(cell_weights) == 0:
        return cell_weights
    logs = cell_weights.log()
    faint, full = torch.from_numpy(np.quantile(logs.numpy(), [0.02, 0.8]))
    if full - faint < 1e-9:
        return torch.ones_like(logs)
    return (FAINTEST + (1 - FAINTEST) * (logs - faint) / (full - faint)).clamp(FAINTEST, 1)


def _radius(n_points: int, pixels: int) -> int:
    """Radius in cells of a point's disc: about six for a hundred points, none from some hundred thousand on."""
    return int(np.clip(round(pixels / 45 / max(n_points, 1) ** 0.25), 1, 8)) if n_points < 200_000 else 0


def _bounds(
    panels: Sequence[Float64[Tensor, "prefix xy"]], *, is_simplex: bool
) -> tuple[tuple[float, float], tuple[float, float]]:
    """The area that all panels show: the triangle, or all true points and nearly all represented ones."""
    true, *represented = panels
    corners = TRIANGLE if is_simplex else torch.cat([true, *(_without_outliers(points) for points in represented)])
    low, high = corners.amin(dim=0), corners.amax(dim=0)
    # A line or a single point still needs an area to be drawn in.
    extent = float((high - low).amax().clamp(min=1e-3))
    centre = (low + high) / 2
    half = torch.maximum((high - low) / 2, torch.tensor(0.15 * extent, dtype=torch.float64)) + MARGIN * extent
    (left, bottom), (right, top) = (centre - half).tolist(), (centre + half).tolist()
    return (left, right), (bottom, top)


def _without_outliers(points: Float64[Tensor, "prefix xy"]) -> Float64[Tensor, "corner xy"]:
    """Opposite corners of the box that holds all but the outermost percent of the points, per axis."""
    return torch.from_numpy(np.quantile(points.numpy(), [0.005, 0.995], axis=0))


def _draw_triangle(axis: Axes, names: Sequence[str]) -> None:
    outline = torch.cat([TRIANGLE, TRIANGLE[:1]])
    axis.plot(outline[:, 0], outline[:, 1], color="0.75", linewidth=0.8, zorder=0)
    centre = TRIANGLE.mean(dim=0)
    for corner, name in zip(TRIANGLE, names, strict=True):
        x, y = (centre + (corner - centre) * 1.06).tolist()
        axis.text(x, y, name, ha="center", va="center", color="0.35", fontsize=10)
