"""The processes that share the work under `torchrun` or `accelerate launch`, and how they talk to each other.

Every process runs the same script and makes the same random draws; only then are the words divided, so the number of
processes changes no draw. Without torch.distributed there is one process, number 0, and nothing communicates.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor


def is_initialized() -> bool:
    """Whether torch.distributed has a process group."""
    return dist.is_available() and dist.is_initialized()


def process_count() -> int:
    """How many processes share the work; 1 without torch.distributed."""
    return dist.get_world_size() if is_initialized() else 1


def process_index() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if is_initialized() else 0


def is_main() -> bool:
    """Whether this is process 0, the one that writes files and shows progress."""
    return process_index() == 0


def share(n: int) -> slice:
    """The part of `n` words that this process takes: contiguous, of even size; `ValueError` if some would be empty."""
    count, index = process_count(), process_index()
    if n < count:
        raise ValueError(f"{n} words for {count} processes: start at most {n} processes.")
    return slice(n * index // count, n * (index + 1) // count)


def own_path(path: str | Path) -> Path:
    """A path for this process alone, `moments.0-of-2.safetensors`; the path itself if there is one process."""
    path, count = Path(path), process_count()
    return path.with_suffix(f".{process_index()}-of-{count}{path.suffix}") if count > 1 else path


def total(tensor: Tensor) -> Tensor:
    """The sum of all processes' tensors, on this tensor's device; the tensor itself if there is one process."""
    if process_count() == 1:
        return tensor
    summed = tensor.to(communication_device(), copy=True)
    dist.all_reduce(summed)
    return summed.to(tensor.device)


def gathered(tensor: Tensor) -> Tensor:
    """The tensors of all processes, stacked by process on the communication device; all have one shape."""
    own = tensor.to(communication_device())
    each = [torch.empty_like(own) for _ in range(process_count())]
    dist.all_gather(each, own)
    return torch.stack(each)


def concatenated(tensor: Tensor) -> Tensor:
    """The rows of all processes' tensors, in the order of the processes; each may have its own number of rows."""
    if process_count() == 1:
        return tensor
    counts = gathered(torch.tensor([len(tensor)])).flatten().tolist()
    padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    rows = zip(gathered(padded), counts, strict=True)
    return torch.cat([own[:count] for own, count in rows]).to(tensor.device)


def agreed(value: bool) -> bool:
    """The main process's answer, in all processes."""
    return bool(total(torch.tensor(float(value and is_main()))) > 0)


def wait() -> None:
    """Return once every process has called this."""
    if process_count() > 1:
        # A sum needs all processes. A barrier would have to be told its GPU under NCCL.
        float(total(torch.zeros(())))


def communication_device() -> torch.device:
    """Where the process group wants its tensors: NCCL takes them only on the GPU."""
    backends = dist.get_backend_config()
    if "nccl" in backends and "gloo" not in backends:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
