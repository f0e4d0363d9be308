"""The metrics of a training: sums over the steps since the last record, and loggers that records can be sent to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Float64
from torch import Tensor

Record: TypeAlias = dict[str, Any]
Logger: TypeAlias = Callable[[Record], None]


class MetricSums:
    """Loss and regret of the steps since the last record, in float64.

    Args:
        n_ctx: Number of positions that the model predicts from.
    """

    def __init__(self, n_ctx: int) -> None:
        self.loss = torch.zeros((), dtype=torch.float64)
        self.regret: Float64[Tensor, "pos"] = torch.zeros(n_ctx, dtype=torch.float64)
        self.steps = torch.zeros((), dtype=torch.int64)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The sums, to be saved."""
        return {"loss": self.loss, "regret": self.regret, "steps": self.steps}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from saved `tensors`."""
        self.loss, self.regret, self.steps = (tensors[name].clone() for name in ("loss", "regret", "steps"))

    def add(self, loss: Float[Tensor, ""], regret: Float[Tensor, "pos"]) -> None:
        """Add one step's loss and regret."""
        self.loss += loss.cpu()
        self.regret += regret.cpu()
        self.steps += 1

    def record(self, optimum: float) -> Record:
        """Means over the steps; the loss ratio is (least possible loss + regret) / least possible loss."""
        n_steps = int(self.steps)
        by_position = self.regret / n_steps
        regret = float(by_position.mean())
        return {
            "loss": float(self.loss) / n_steps,
            "regret": regret,
            "regret_by_position": by_position.tolist(),
            "loss_ratio": (optimum + regret) / optimum if optimum > 0 else None,
        }


def total_norm(tensors: Iterable[Tensor | None]) -> float:
    """The norm of all tensors together, such as a model's weights or gradients; `None` is skipped."""
    # torch.nn.utils.get_total_norm does the same, but only from torch 2.6 on.
    norms = [torch.linalg.vector_norm(tensor.detach()) for tensor in tensors if tensor is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0


def tensorboard_logger(folder: str | Path) -> Logger:
    """A logger that writes TensorBoard scalars to the folder, for `train(..., log_to=…)`.

    A list, such as the regret by position, becomes one curve for each entry.

    Raises:
        ImportError: if TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("tensorboard_logger needs TensorBoard: pip install tensorboard.") from error
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
    """The record's numbers, each entry of a list under its own name; numbers that could not be measured are left out.

    Example:
        >>> flat({"step": 5, "regret_by_position": [0.1, 0.2], "loss_ratio": None})
        {'step': 5, 'regret_by_position/0': 0.1, 'regret_by_position/1': 0.2}
    """
    numbers = {}
    for name, value in record.items():
        entries = {f"{name}/{index}": entry for index, entry in enumerate(value)} if isinstance(value, list) else {}
        numbers |= entries or {name: value}
    return {name: value for name, value in numbers.items() if value is not None}
