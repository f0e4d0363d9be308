"""A trained model and how it got there, in memory and read back from its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens.beliefs.information import optimal_losses
from msp_lens.models.hooked import HookedModel, context_length
from msp_lens.models.model_files import load_checkpoint
from msp_lens.processes.process import Process
from msp_lens.training.checkpoints import SavedCheckpoint, saved_checkpoints
from msp_lens.training.config import TrainingConfig
from msp_lens.training.loggers import flat

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.style import ThemeName

METRICS_FILE = "metrics.jsonl"
StoppedBy = Literal["steps", "seconds", "regret"]


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """A trained model and how it got there.

    Attributes:
        model: The trained model, in evaluation mode.
        process: What it was trained on.
        config: How.
        metrics: One record every `log_every` steps, of the steps since the last: step, tokens, loss and regret (nats),
            regret_by_position, loss_ratio (to the optimum), learning_rate, gradient_norm (of the last step, before
            clipping), weight_norm, tokens_per_second, seconds; where a target was set, evaluated_regret.
        regret: E KL(optimal ‖ model) at each position at the end, in nats, over the population of words.
        optimum: The least possible loss at each position, in nats.
        seed: Of the initial weights and the data.
        seconds: Wall time of the training steps, those before an interruption included.
        step: Optimizer steps made.
        stopped_by: What ended it: all its steps, or a target of seconds or regret.
        resumed_from: The step at which an interrupted training was taken up again, if it was.
        folder: Where it lies, if anywhere.
    """

    model: HookedModel
    process: Process
    config: TrainingConfig
    metrics: tuple[dict[str, Any], ...]
    regret: Float64[Tensor, "pos"]
    optimum: Float64[Tensor, "pos"]
    seed: int
    seconds: float
    step: int
    stopped_by: StoppedBy = "steps"
    resumed_from: int | None = None
    folder: Path | None = None

    @property
    def loss_ratio(self) -> float:
        """The expected loss over the least possible one, both means over positions."""
        return float((self.optimum + self.regret).mean() / self.optimum.mean())

    @property
    def checkpoints(self) -> tuple[SavedCheckpoint, ...]:
        """The models kept as training went on, by step.

        Raises:
            FileNotFoundError: if none were.
        """
        if self.folder is None:
            raise FileNotFoundError("This training kept no checkpoints: give train() a folder, out=.")
        return saved_checkpoints(self.folder)

    def to_dataframe(self) -> pd.DataFrame:
        """The metrics, one row a record; lists by position in a column for each entry."""
        return pd.DataFrame([flat(record) for record in self.metrics])

    def plot(self, *, theme: ThemeName = "light") -> Figure:
        """Regret over the tokens seen, and at the end by position."""
        from msp_lens.figures.curves import plot_training

        tokens, regret = ([record[key] for record in self.metrics] for key in ("tokens", "regret"))
        return plot_training(tokens, regret, self.regret.tolist(), theme=theme)

    def __repr__(self) -> str:
        resumed = f", gone on with at step {self.resumed_from}" if self.resumed_from is not None else ""
        return (
            f"TrainingRun({self.process.name}: {self.step} steps in {self.seconds:.0f} s{resumed}, "
            f"regret {float(self.regret.mean()):.2g} nats, optimum {float(self.optimum.mean()):.5f})"
        )


def load_run(folder: str | Path, *, device: str | torch.device = "cpu") -> TrainingRun:
    """The training in a folder, as `train(..., out=folder)` left it.

    Raises:
        FileNotFoundError: if the folder holds no model.
        ValueError: if its model is damaged, or its training has not ended: call `train` again to go on with it.
    """
    folder = Path(folder)
    checkpoint = load_checkpoint(folder, device=device)
    provenance = checkpoint.provenance
    if "stopped_by" not in provenance or checkpoint.process is None:
        raise ValueError(
            f"The training in {folder} has not ended: call train(..., out={str(folder)!r}) again to go on with it."
        )
    return TrainingRun(
        checkpoint.model,
        checkpoint.process,
        TrainingConfig.from_dict(provenance["training"]),
        tuple(json.loads(line) for line in (folder / METRICS_FILE).read_text(encoding="utf-8").splitlines()),
        torch.tensor(provenance["regret"], dtype=torch.float64),
        optimal_losses(checkpoint.process, context_length(checkpoint.model) or 1),
        provenance["seed"],
        provenance["seconds"],
        provenance["step"],
        provenance["stopped_by"],
        None,
        folder,
    )
