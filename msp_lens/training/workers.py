"""The forward and backward pass of several processes, through accelerate; `_distributed` does the rest.

Under `accelerate launch` or `torchrun` every process draws the same words and takes its share of each batch; gradients
are summed, and only the main process writes. A single process does not touch accelerate, and its model is not wrapped.
"""

from __future__ import annotations

import os
from typing import Any, cast

from torch import Tensor

from msp_lens._distributed import is_initialized, process_count
from msp_lens.models.hooked import HookedModel, model_device


class Workers:
    """The processes that train one model together; making it starts torch.distributed where that is needed.

    With several processes the model moves to this one's own device. In training, call it as `forward`.
    """

    def __init__(self, model: HookedModel) -> None:
        self.model, self.forward = model, cast(Any, model)
        self._accelerator: Any = None
        if (process_count() if is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))) > 1:
            from accelerate import Accelerator
            from accelerate.utils import DistributedDataParallelKwargs

            # A transformer's buffers follow from its config, so they need not be sent at every step.
            options = DistributedDataParallelKwargs(broadcast_buffers=False)
            self._accelerator = Accelerator(cpu=model_device(model).type == "cpu", kwargs_handlers=[options])
            self.forward = self._accelerator.prepare(model)

    def backward(self, loss: Tensor) -> None:
        """Set the gradients of the sum of all processes' losses."""
        if self._accelerator is None:
            loss.backward()
        else:
            # Gradients are averaged over processes, and each has only its part of the loss.
            self._accelerator.backward(loss * process_count())
