"""The metrics of a training: sums over the steps since the last record, and loggers that records can be sent to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from msp_lens._checks import checked
from msp_lens._extras import from_extra
from msp_lens.moments.exact_products import has_float64

Record: TypeAlias = dict[str, Any]


class _AlwaysRecorded(TypedDict):
    step: int
    tokens: int
    loss: float
    regret: float
    regret_by_position: list[float]
    loss_ratio: float | None
    learning_rate: float
    gradient_norm: float | None
    weight_norm: float | None
    tokens_per_second: float
    seconds: float


class SavedRecord(_AlwaysRecorded, total=False):
    """A line of `metrics.jsonl`; what was not finite or not measured is null."""

    evaluated_regret: float


Logger: TypeAlias = Callable[[Record], None]


class MetricSums:
    """Loss and regret, at each of `n_ctx` positions, of the steps since the last record, in float64.

    They are summed on the device, if it has float64, so that no step waits for it.
    """

    def __init__(self, n_ctx: int, device: torch.device, tensors: Mapping[str, Tensor] | None = None) -> None:
        self._device = device if has_float64(device) else torch.device("cpu")
        sums = {name: torch.zeros(size, dtype=torch.float64) for name, size in (("loss", ()), ("regret", n_ctx))}
        sums = dict(tensors or sums | {"steps": torch.zeros((), dtype=torch.int64)})
        self.tensors = sums | {name: sums[name].to(self._device) for name in ("loss", "regret")}

    def add(self, loss: Float[Tensor, ""], regret: Float[Tensor, "pos"]) -> None:
        """Add one step's loss and regret."""
        for name, value in (("loss", loss), ("regret", regret)):
            self.tensors[name] += value.to(self._device)
        self.tensors["steps"] += 1

    def record(self, optimum: float) -> Record:
        """Means over the steps; the loss ratio is (least possible loss + regret) / least possible loss."""
        n_steps = int(self.tensors["steps"])
        by_position = self.tensors["regret"] / n_steps
        loss, regret = float(self.tensors["loss"]) / n_steps, float(by_position.mean())
        ratio = (optimum + regret) / optimum if optimum > 0 else None
        return {"loss": loss, "regret": regret, "regret_by_position": by_position.tolist(), "loss_ratio": ratio}


def total_norm(tensors: Iterable[Tensor | None]) -> float:
    """The norm of all tensors together, such as a model's weights or gradients; `None` is skipped."""
    # torch.nn.utils.get_total_norm does the same, but only from torch 2.6 on.
    norms = [torch.linalg.vector_norm(tensor.detach()) for tensor in tensors if tensor is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0


def metrics_fingerprint(records: Iterable[Record]) -> str:
    """Sixteen hexadecimal digits that identify the records of a training, as they are and as read back from JSON."""
    return hashlib.sha256(json.dumps(list(records), sort_keys=True).encode()).hexdigest()[:16]


@checked
def tensorboard_logger(folder: str | Path) -> Logger:
    """A logger of TensorBoard scalars in the folder, for `train(..., log_to=…)`; a list becomes a curve for each entry.

    Raises:
        ImportError: if TensorBoard is not installed.
    """
    with from_extra("tensorboard", purpose="This logger", packages=("tensorboard",)):
        from torch.utils.tensorboard import SummaryWriter
    writer = SummaryWriter(str(folder))

    def log(record: Record) -> None:
        for name, value in flat(record).items():
            writer.add_scalar(name, value, global_step=record["step"])
        writer.flush()

    return log


def wandb_logger(**options: Any) -> Logger:
    """A logger to Weights & Biases, in a run started with `wandb.init(**options)`, for `train(..., log_to=…)`.

    Raises:
        ImportError: if wandb is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise ImportError("wandb_logger needs Weights & Biases: pip install wandb.") from error
    run = wandb.init(**options)
    return lambda record: run.log(flat(record), step=record["step"])


def flat(record: Record) -> dict[str, float]:
    """The record's numbers, each entry of a list under its own name, without those that could not be measured.

    Example:
        >>> flat({"step": 5, "regret_by_position": [0.1, 0.2], "loss_ratio": None})
        {'step': 5, 'regret_by_position/0': 0.1, 'regret_by_position/1': 0.2}
    """
    numbers = {}
    for name, value in record.items():
        is_list = isinstance(value, list)
        numbers |= {f"{name}/{index}": entry for index, entry in enumerate(value)} if is_list else {name: value}
    return {name: value for name, value in numbers.items() if value is not None}
