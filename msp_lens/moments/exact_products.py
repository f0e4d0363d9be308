"""Gram matrices on devices where float64 is slow or missing, by exact products in float32.

The errors of a float32 Gram matrix, 1e-7 of its largest entry, bury every direction whose singular value is below 3e-4
of the largest. So round the centered rows y once, to a fixed point 32 bits below their column's largest, and cut the
bits into four slices of eight:

    y ≈ s Σₖ 2^(-7-8k) qₖ,      qₖ integers, |qₖ| ≤ 128,
    YᵀY ≈ s sᵀ Σₖₗ 2^(-14-8(k+l)) Qₖᵀ Qₗ.

Each QₖᵀQₗ over 1,024 rows is a sum of integers below 2²⁴, which float32 holds exactly (and so do TensorFloat-32 and
bfloat16 inputs). The result is the exact Gram matrix of the rounded rows. An error in the *rows*, far below the float32
noise of the activations, preserves rank and small directions.

Source: Ozaki, Ogita, Oishi & Rump 2012, "Error-free transformations of matrix multiplication".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from msp_lens._arrays import moved

Accumulation = Literal["float64", "split"]

N_SLICES = 4
# 1,024 products of two integers up to 2⁷ sum to at most 2²⁴.
ROWS_PER_PRODUCT = 1_024
# At most four products per level in each of 32 chunks stay below 2³¹, in int32.
ROWS_PER_SCATTER = 32 * ROWS_PER_PRODUCT


def has_float64(device: torch.device) -> bool:
    """Whether the device supports float64."""
    return device.type != "mps"


def accumulation_for(device: torch.device) -> Accumulation:
    """How to accumulate moments on a device: `"float64"` where it is fast, else `"split"`."""
    if device.type == "cuda" and torch.version.hip is None:
        # Compute capabilities of the NVIDIA cards whose float64 runs at half their float32 speed or better.
        fast = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}
        return "float64" if torch.cuda.get_device_capability(device) in fast else "split"
    return "float64" if has_float64(device) else "split"


def split_scatters(
    rows: Float[Tensor, "row column"], weights: Float[Tensor, "row"]
) -> Iterator[tuple[float, Float64[Tensor, "column"], Float64[Tensor, "column column"]]]:
    """Weight, mean and centered scatter of at most 32,768 rows at a time, without a float64 product.

    Computed in the rows' dtype on their device; the results are on the CPU if the device has no float64.
    """
    for span, weight in zip(rows.split(ROWS_PER_SCATTER), weights.split(ROWS_PER_SCATTER), strict=True):
        total = float(weight.sum())
        if total == 0:
            continue
        weight = moved(weight.to(span.dtype), span.device)
        share, root = weight / total, weight.sqrt().unsqueeze(1)
        reference = share @ span
        # A mean far from zero is off by rounding; the mean of the remainder corrects it.
        reference = reference + share @ (span - reference)
        centered = (span - reference) * root
        if span.dtype == torch.float64:
            yield total, reference, _exact_gram(centered)
            continue
        # The same products give a float32 reference's offset from the mean: the root weights are a last column.
        gram = _exact_gram(torch.cat([centered, root], dim=1))
        offset = gram[-1, :-1] / gram[-1, -1]
        scatter = gram[:-1, :-1] - torch.outer(offset, offset) * gram[-1, -1]
        yield total, reference.to(gram.device).double() + offset, scatter


def _exact_gram(rows: Float[Tensor, "row column"]) -> Float64[Tensor, "column column"]:
    """`rows.T @ rows`, of rows rounded to 2⁻³² of their column's largest."""
    largest = rows.abs().amax(dim=0)
    # A power of two just above the column's largest, but not below 2⁻⁹⁰, where its reciprocal would overflow float32.
    exponent = torch.where(largest > 0, largest.log2().floor() + 1, 0.0).clamp(min=-90)
    scale, width = torch.exp2(-exponent), rows.shape[1]
    levels = torch.zeros(2 * N_SLICES - 1, width, width, dtype=torch.int32, device=rows.device)
    for chunk in (rows * scale).split(ROWS_PER_PRODUCT):
        slices = _slices(chunk)
        for k, left in enumerate(slices):
            for l, right in enumerate(slices[k:], start=k):  # noqa: E741
                product = (left.T @ right).to(torch.int32)
                levels[k + l] += product if k == l else product + product.T
    exact = levels if has_float64(rows.device) else levels.cpu()
    gram = torch.zeros(width, width, dtype=torch.float64, device=exact.device)
    # Add the smallest first.
    for level in reversed(range(len(exact))):
        gram += exact[level].double() * 2.0 ** (-14 - 8 * level)
    unscale = scale.to(exact.device).double()
    return gram / torch.outer(unscale, unscale)


def _slices(rows: Float[Tensor, "row column"]) -> list[Float[Tensor, "row column"]]:
    """Integers up to 128 in float32, each slice eight bits finer than the one before; `|rows| ≤ 1`."""
    slices, rest, bits = [], rows, 7
    for _ in range(N_SLICES):
        rest = rest * 2.0**bits
        whole = rest.round()
        slices.append(whole.float())
        rest, bits = rest - whole, 8
    return slices
