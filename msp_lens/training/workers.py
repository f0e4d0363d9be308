"""One process or several, through accelerate: `accelerate launch` or `torchrun` of a script shares out its batches.

Every process draws the same words and takes its share; gradients are averaged, and only the main process writes. Where
one process was started, accelerate is left out, and nothing is wrapped.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from msp_lens.models.hooked import HookedModel, model_device

if TYPE_CHECKING:
    from accelerate import Accelerator


class Workers:
    """The processes that train together.

    Args:
        model: What they train; with several processes it moves to this process's own device.

    Attributes:
        forward: The model as it is to be called in training.
    """

    def __init__(self, model: HookedModel) -> None:
        self._accelerator = _accelerator(model_device(model)) if _launched_together() else None
        self.forward: Any = self._accelerator.prepare(cast(Any, model)) if self._accelerator else model

    @property
    def count(self) -> int:
        """How many there are."""
        return self._accelerator.num_processes if self._accelerator else 1

    @property
    def index(self) -> int:
        """Which of them this is, from 0."""
        return self._accelerator.process_index if self._accelerator else 0

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes."""
        return self.index == 0

    def share(self, batch_size: int) -> slice:
        """The words of a step that this process takes.

        Raises:
            ValueError: if there are fewer words than processes.
        """
        if batch_size < self.count:
            raise ValueError(f"batch_size={batch_size} for {self.count} processes: give each at least one word.")
        return slice(batch_size * self.index // self.count, batch_size * (self.index + 1) // self.count)

    def backward(self, loss: Tensor) -> None:
        """Gradients of the sum of all processes' losses."""
        if self._accelerator:
            # Gradients are averaged over processes, and each has only its part of the loss.
            self._accelerator.backward(loss * self.count)
        else:
            loss.backward()

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over processes."""
        return cast(Tensor, self._accelerator.reduce(tensor, "sum")) if self._accelerator else tensor

    def agreed(self, value: bool) -> bool:
        """The main process's answer, in all of them."""
        if self._accelerator is None:
            return value
        answer = torch.tensor([float(value and self.is_main)], device=self._accelerator.device)
        return bool(self.total(answer).item() > 0)

    def wait(self) -> None:
        """Until all processes are here."""
        if self._accelerator:
            self._accelerator.wait_for_everyone()


def _launched_together() -> bool:
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size() > 1
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _accelerator(device: torch.device) -> Accelerator:
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    # A transformer's buffers follow from its config: there is nothing to send at every step.
    options = DistributedDataParallelKwargs(broadcast_buffers=False)
    return Accelerator(cpu=device.type == "cpu", kwargs_handlers=[options])
