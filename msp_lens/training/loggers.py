"""Where metrics go besides `metrics.jsonl`, when asked: a function that takes each record, `train(..., log_to=…)`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

Record: TypeAlias = dict[str, Any]
Logger: TypeAlias = Callable[[Record], None]


def tensorboard_logger(folder: str | Path) -> Logger:
    """Write records as TensorBoard scalars to the folder; lists, such as the regret by position, one curve an entry.

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
    """Log records to Weights & Biases, in a run begun with `wandb.init(**options)`.

    Raises:
        ImportError: if wandb is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise ImportError("wandb_logger needs Weights & Biases: pip install wandb.") from error
    run = wandb.init(**options)

    def log(record: Record) -> None:
        run.log(flat(record), step=record["step"])

    return log


def flat(record: Record) -> dict[str, float]:
    """The record's numbers, each entry of a list under a name of its own; what could not be measured is left out.

    Example:
        >>> flat({"step": 5, "regret_by_position": [0.1, 0.2]})
        {'step': 5, 'regret_by_position/0': 0.1, 'regret_by_position/1': 0.2}
    """
    numbers = {}
    for name, value in record.items():
        entries = {f"{name}/{index}": entry for index, entry in enumerate(value)} if isinstance(value, list) else {}
        numbers |= entries or {name: value}
    return {name: value for name, value in numbers.items() if value is not None}
