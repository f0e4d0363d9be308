"""Any number of colored points as one image: each cell the mean color of its points.

So ten points or ten million stay crisp, and a file's size does not grow with them.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

PIXELS = 900
FAINTEST = 0.15
# Where points fall on fewer cells than this, they are drawn as large as so few can be.
FEW = 2_000


def density_image(
    points: Float64[Tensor, "prefix xy"],
    colors: Float64[Tensor, "prefix rgb"],
    weights: Float64[Tensor, "prefix"],
    bounds: tuple[tuple[float, float], tuple[float, float]],
    *,
    pixels: int = PIXELS,
) -> np.ndarray:
    """An RGBA image, `[row, column, 4]`: each cell the mean color of its points, the more opaque the more they weigh.

    Opacity follows the logarithm of the cell's weight, from faint at its 2nd percentile to full at its 80th: rare
    words show where they are without hiding the common ones. Few points are drawn as discs, many as single cells,
    so that neither vanish nor smear. Points outside the bounds are left out.
    """
    (left, right), (bottom, top) = bounds
    height = max(1, round(pixels * (top - bottom) / (right - left)))
    column = ((points[:, 0] - left) / (right - left) * pixels).floor().long()
    row = ((points[:, 1] - bottom) / (top - bottom) * height).floor().long()
    distinct = len(torch.unique(row * pixels + column))
    radius = _radius(distinct if distinct < FEW else len(points), pixels)
    channels = torch.cat([colors * weights[:, None], weights[:, None]], dim=1)
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


def png(image: np.ndarray) -> bytes:
    """An image `[row, column, rgba]` in [0, 1], its first row at the bottom, as a PNG file."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, image, origin="lower", format="png")
    return buffer.getvalue()
