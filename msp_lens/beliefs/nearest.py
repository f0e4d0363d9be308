"""The belief nearest to a vector that an affine probe read, which may lie off the simplex.

The Euclidean projection onto the probability simplex subtracts one number from every entry and clips at 0,

    p_i = max(y_i - s, 0),    with s such that Σ_i p_i = 1.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from msp_lens._checks import checked
from msp_lens.processes.process import Process


@checked
def nearest_distribution(points: Float[Tensor, "*batch state"]) -> Float[Tensor, "*batch state"]:
    """The distribution nearest to each point in Euclidean distance.

    Source: Duchi et al. 2008, "Efficient projections onto the l1-ball", figure 1.

    Example:
        >>> nearest_distribution(torch.tensor([1.2, -0.1, -0.1], dtype=torch.float64))
        tensor([1., 0., 0.], dtype=torch.float64)
    """
    descending = points.sort(dim=-1, descending=True).values
    count = torch.arange(1, points.shape[-1] + 1, dtype=points.dtype, device=points.device)
    shifts = (descending.cumsum(dim=-1) - 1) / count
    last = (descending > shifts).sum(dim=-1, keepdim=True) - 1
    return (points - shifts.gather(-1, last)).clamp(min=0)


@checked
def nearest_belief(process: Process, read: Float64[Tensor, "*batch state"]) -> Float64[Tensor, "*batch state"]:
    """The belief of a process nearest to what was read; unchanged for a generalized process, which has no simplex."""
    return read if process.is_generalized else nearest_distribution(read)
