"""Products of rows where float64 is slow or missing: exact, in float32.

A device without fast float64 (Apple's, a consumer's graphics card) multiplies float32 matrices at speed, but a float32
Gram loses what probes live on: its errors, 1e-7 of the largest entry, bury every direction whose singular value is
below 3e-4 of the largest. So round the centered rows y instead, once, to fixed point, 32 bits below their column's
largest, and cut the bits into four slices of eight:

    y ≈ s Σₖ 2^(-7-8k) qₖ,      qₖ whole numbers, |qₖ| ≤ 128,
    YᵀY ≈ s sᵀ Σₖₗ 2^(-14-8(k+l)) Qₖᵀ Qₗ.

Each QₖᵀQₗ over 1,024 rows is a sum of whole numbers below 2²⁴, which float32 holds exactly (TensorFloat-32 and
bfloat16 inputs too). The result is the exact Gram of rows rounded by 2⁻³² of their column's largest: an error in the
*rows*, far beneath the float32 noise of the activations, so that rank and small directions stay what they were.

Source: Ozaki, Ogita, Oishi & Rump 2012, "Error-free transformations of matrix multiplication".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

Accumulation = Literal["float64", "split"]

N_SLICES = 4
# 1,024 products of two whole numbers up to 2⁷ sum to at most 2²⁴.
ROWS_PER_PRODUCT = 1_024
# At most four products of a level in each of 32 chunks stay below 2³¹, in int32.
ROWS_PER_SCATTER = 32 * ROWS_PER_PRODUCT

# Compute capabilities of NVIDIA's cards whose float64 runs at half their float32 speed or better.
_FAST_FLOAT64 = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}


def has_float64(device: torch.device) -> bool:
    """Whether the device holds float64 numbers at all."""
    return device.type != "mps"


def accumulation_for(device: torch.device) -> Accumulation:
    """How moments are best accumulated on a device: `"float64"` where it is fast, else `"split"`."""
    if device.type == "cuda" and torch.version.hip is None:
        return "float64" if torch.cuda.get_device_capability(device) in _FAST_FLOAT64 else "split"
    return "float64" if has_float64(device) else "split"


def split_scatters(
    rows: Float[Tensor, "row column"], weights: Float[Tensor, "row"]
) -> Iterator[tuple[float, Float64[Tensor, "column"], Float64[Tensor, "column column"]]]:
    """Weight, mean and centered scatter of the rows, at most 32,768 rows at a time, without a float64 product.

    Computes in the rows' own dtype, float32 or float64, on their device. The means and scatters come on that
    device if it holds float64, else on the CPU.
    """
    for span, weight in zip(rows.split(ROWS_PER_SCATTER), weights.split(ROWS_PER_SCATTER), strict=True):
        total = float(weight.sum())
        if total > 0:
            mean, scatter = _split_scatter(span, weight.to(span), total)
            yield total, mean, scatter


def _split_scatter(
    rows: Float[Tensor, "row column"], weights: Float[Tensor, "row"], total: float
) -> tuple[Float64[Tensor, "column"], Float64[Tensor, "column column"]]:
    share = weights / total
    reference = share @ rows
    # A mean far from zero is off by rounding; the mean of what is left is less so.
    reference = reference + share @ (rows - reference)
    root = weights.sqrt().unsqueeze(1)
    centered = (rows - reference) * root
    if rows.dtype == torch.float64:
        return reference, _exact_gram(centered)
    # How far a float32 reference is off the mean, from the same products: the root weights are one column more.
    gram = _exact_gram(torch.cat([centered, root], dim=1))
    offset = gram[-1, :-1] / gram[-1, -1]
    scatter = gram[:-1, :-1] - torch.outer(offset, offset) * gram[-1, -1]
    return reference.to(gram.device).double() + offset, scatter


def _exact_gram(rows: Float[Tensor, "row column"]) -> Float64[Tensor, "column column"]:
    """`rows.T @ rows` of the rows rounded to 2⁻³² of their column's largest."""
    largest = rows.abs().amax(dim=0)
    # A power of two just above the column's largest; below 2⁻⁹⁰ a float32 would overflow, and nothing is there.
    exponent = torch.where(largest > 0, largest.log2().floor() + 1, 0.0).clamp(min=-90)
    scale = torch.exp2(-exponent)
    width = rows.shape[1]
    levels = torch.zeros(2 * N_SLICES - 1, width, width, dtype=torch.int32, device=rows.device)
    for chunk in (rows * scale).split(ROWS_PER_PRODUCT):
        slices = _slices(chunk)
        for k, left in enumerate(slices):
            for l, right in enumerate(slices[k:], start=k):  # noqa: E741
                product = (left.T @ right).to(torch.int32)
                levels[k + l] += product if k == l else product + product.T
    exact = levels if has_float64(rows.device) else levels.cpu()
    gram = torch.zeros(width, width, dtype=torch.float64, device=exact.device)
    # Smallest first.
    for level in reversed(range(len(exact))):
        gram += exact[level].double() * 2.0 ** (-14 - 8 * level)
    unscale = scale.to(exact.device).double()
    return gram / torch.outer(unscale, unscale)


def _slices(rows: Float[Tensor, "row column"]) -> list[Float[Tensor, "row column"]]:
    """Whole numbers up to 128 in float32, each slice eight bits finer than the one before; `|rows| ≤ 1`."""
    slices = []
    rest, bits = rows, 7
    for _ in range(N_SLICES):
        rest = rest * 2.0**bits
        whole = rest.round()
        slices.append(whole.float())
        rest, bits = rest - whole, 8
    return slices
