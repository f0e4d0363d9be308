"""The moments of several processes added, each having seen its own share of the words.

For the moments (Wₖ, μₖ, Sₖ) of processes k,

    W = Σ Wₖ,    μ = Σ Wₖ μₖ / W,    S = Σ Sₖ + Wₖ (μₖ - μ)(μₖ - μ)ᵀ:

two reductions, and no digits are lost to cancellation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from msp_lens._distributed import communication_device, gathered, process_count, process_index
from msp_lens.moments.grid import MomentsGrid
from msp_lens.moments.moments import Moments, pooled_mean


def reduce_all(parts: Sequence[Moments]) -> list[Moments]:
    """Each of the moments over the rows of all processes, the same in every process.

    Every process must call this with moments of the same blocks, in the same order.

    Raises:
        ValueError: if the processes' moments differ in number or width.
    """
    if process_count() == 1:
        return list(parts)
    numbers = torch.tensor([len(parts), *(len(part.mean) for part in parts)])
    # Tensors of different sizes would hang or corrupt, so their number is compared first.
    sizes = gathered(torch.tensor([len(numbers)]))
    if not bool((sizes == sizes[0]).all()) or not bool((gathered(numbers) == numbers.to(sizes.device)).all()):
        raise ValueError("The processes' moments differ in number or width: run the same script on the same model.")
    return [_reduced(part) for part in parts]


def reduce_grid(grid: MomentsGrid) -> MomentsGrid:
    """The grid with the moments of all processes' rows; returns itself. Every process must have had a batch."""
    parts = grid.parts()
    return grid.restore(dict(zip(parts, reduce_all(list(parts.values())), strict=True)))


def _reduced(moments: Moments) -> Moments:
    # n is a whole number that float64 holds exactly.
    table = gathered(torch.cat([torch.tensor([moments.n, moments.weight], dtype=torch.float64), moments.mean.cpu()]))
    n, weights, means = int(table[:, 0].sum()), table[:, 1], table[:, 2:]
    weight = float(weights.sum())
    if weight == 0:
        empty = {"mean": moments.mean, "scatter": moments.scatter, "rounding": moments.rounding}
        return Moments.of(moments.blocks, n=n, weight=0.0, **empty)
    mean = pooled_mean(means, weights)
    shift = means[process_index()] - mean
    scatter = moments.scatter.to(communication_device(), copy=True).addr_(shift, shift, alpha=moments.weight)
    dist.all_reduce(scatter)
    held = moments.mean.device
    sums = {"mean": mean.to(held), "scatter": scatter.to(held), "rounding": moments.rounding}
    return Moments.of(moments.blocks, n=n, weight=weight, **sums)
