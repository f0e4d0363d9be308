"""The forward and backward pass of several processes, through accelerate; `_distributed` does the rest.

Under `accelerate launch` or `torchrun` every process draws the same words and takes its share of each batch; gradients
are summed, and only the main process writes. A single process does not touch accelerate, and its model is not wrapped.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from msp_lens._distributed import is_initialized, process_count
from msp_lens.models.hooked import HookedModel, model_device

if TYPE_CHECKING:
    from accelerate import Accelerator


class Workers:
    """The processes that train one model together; making it starts torch.distributed where that is needed.

    Args:
        model: The model to train; with several processes it moves to this process's own device.

    Attributes:
        forward: The model to call in training.
    """

    def __init__(self, model: HookedModel) -> None:
        together = process_count() if is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
        self._accelerator = _accelerator(model_device(model)) if together > 1 else None
        self.forward: Any = self._accelerator.prepare(cast(Any, model)) if self._accelerator else model

    def backward(self, loss: Tensor) -> None:
        """Set the gradients of the sum of all processes' losses."""
        if self._accelerator:
            # Gradients are averaged over processes, and each has only its part of the loss.
            self._accelerator.backward(loss * process_count())
        else:
            loss.backward()


def _accelerator(device: torch.device) -> Accelerator:
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    # A transformer's buffers follow from its config, so they need not be sent at every step.
    options = DistributedDataParallelKwargs(broadcast_buffers=False)
    return Accelerator(cpu=device.type == "cpu", kwargs_handlers=[options])
