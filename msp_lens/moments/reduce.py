"""More than one process: each takes its share of the words, and the moments add.

Under `torchrun` or `accelerate launch` every process runs the same script. What is random (folds, shuffling,
samples) is drawn from the seed by all alike, before the words are shared out, so the number of processes changes
nothing. For the moments (Wₖ, μₖ, Sₖ) of processes k,

    W = Σ Wₖ,    μ = Σ Wₖ μₖ / W,    S = Σ Sₖ + Wₖ (μₖ - μ)(μₖ - μ)ᵀ,

two reductions and no digits canceled. Where torch.distributed is not initialized, all of this does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from msp_lens.moments.grid import MomentsGrid
from msp_lens.moments.moments import Moments, pooled_mean


def process_count() -> int:
    """How many processes share the work; 1 without torch.distributed."""
    return dist.get_world_size() if _is_initialized() else 1


def process_index() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if _is_initialized() else 0


def shard(n_words: int) -> slice:
    """The words of this process: a contiguous share, as large as the others' or one larger.

    Raises:
        ValueError: if there are fewer words than processes.
    """
    count, index = process_count(), process_index()
    if n_words < count:
        raise ValueError(f"{n_words} words for {count} processes: start at most {n_words} processes.")
    return slice(n_words * index // count, n_words * (index + 1) // count)


def own_path(path: str | Path) -> Path:
    """A path of this process's own, beside the others': `moments.0-of-2.safetensors`; as it is for one process."""
    path = Path(path)
    count = process_count()
    return path.with_suffix(f".{process_index()}-of-{count}{path.suffix}") if count > 1 else path


def reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of all processes' tensors, on this tensor's device; the tensor itself for one process."""
    if process_count() == 1:
        return tensor
    total = tensor.to(_communication_device(), copy=True)
    dist.all_reduce(total)
    return total.to(tensor.device)


def reduce_all(parts: Sequence[Moments]) -> list[Moments]:
    """Moments of all processes' rows, the same in every process; for one process, the moments themselves.

    Every process must call it, with moments of the same blocks.

    Raises:
        ValueError: if the processes' moments differ in number or width.
    """
    if process_count() == 1:
        return list(parts)
    device = _communication_device()
    widths = torch.tensor([len(parts), *(len(part.mean) for part in parts)], device=device)
    _check_alike(widths)
    return [_reduced(part, device) for part in parts]


def reduce_grid(grid: MomentsGrid) -> MomentsGrid:
    """The grid with the moments of all processes' rows; returns itself. Every process must have had a batch."""
    parts = grid.parts()
    return grid.restore(dict(zip(parts, reduce_all(list(parts.values())), strict=True)))


def _reduced(moments: Moments, device: torch.device) -> Moments:
    # n is a whole number that float64 holds exactly.
    own = torch.cat([torch.tensor([moments.n, moments.weight], dtype=torch.float64), moments.mean.cpu()]).to(device)
    gathered = [torch.empty_like(own) for _ in range(process_count())]
    dist.all_gather(gathered, own)
    table = torch.stack(gathered)
    n, weights, means = table[:, 0], table[:, 1], table[:, 2:]
    weight = float(weights.sum())
    if weight == 0:
        return Moments.of(moments.blocks, n=int(n.sum()), weight=0.0, mean=moments.mean, scatter=moments.scatter)
    mean = pooled_mean(means, weights)
    shift = means[process_index()] - mean
    scatter = moments.scatter.to(device, copy=True).addr_(shift, shift, alpha=moments.weight)
    dist.all_reduce(scatter)
    held = moments.mean.device
    return Moments.of(moments.blocks, n=int(n.sum()), weight=weight, mean=mean.to(held), scatter=scatter.to(held))


def _check_alike(numbers: Tensor) -> None:
    """Raise unless every process holds the same few numbers; tensors of different sizes would hang or corrupt."""
    size = torch.tensor([len(numbers)], device=numbers.device)
    sizes = [torch.empty_like(size) for _ in range(process_count())]
    dist.all_gather(sizes, size)
    alike = len({int(s) for s in sizes}) == 1
    if alike:
        gathered = [torch.empty_like(numbers) for _ in range(process_count())]
        dist.all_gather(gathered, numbers)
        alike = all(torch.equal(other, numbers) for other in gathered)
    if not alike:
        raise ValueError("The processes' moments differ in number or width: run the same script on the same model.")


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def _communication_device() -> torch.device:
    """Where the process group wants its tensors: NCCL takes them on the GPU only."""
    if "nccl" in dist.get_backend_config() and "gloo" not in dist.get_backend_config():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
