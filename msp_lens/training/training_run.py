"""The result of a training, in memory or read back from its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens._checks import AtLeast, Seed, checked
from msp_lens._files import as_saved, read_lines
from msp_lens._hub import local_path
from msp_lens._tables import nats_text
from msp_lens._values import Value
from msp_lens.beliefs.information import optimal_losses
from msp_lens.models.hooked import HookedModel, context_length
from msp_lens.models.model_files import MODEL_FILE, load_checkpoint
from msp_lens.processes.process import Process
from msp_lens.training.checkpoints import SavedCheckpoint, saved_checkpoints
from msp_lens.training.config import TrainingConfig
from msp_lens.training.metrics import SavedRecord, flat, metrics_fingerprint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.style import ThemeName

METRICS_FILE = "metrics.jsonl"
StoppedBy = Literal["steps", "seconds", "regret"]


@dataclass(frozen=True, eq=False)
class TrainingRun(Value):
    """A trained model and the record of its training.

    Attributes:
        model: The trained model, in evaluation mode.
        process: The process it was trained on.
        config: How it was trained.
        metrics: One record every `log_every` steps, over the steps since the last: step, tokens, loss and regret
            (nats), regret_by_position, loss_ratio (to the optimum), learning_rate, gradient_norm (of the last step,
            before clipping), weight_norm, tokens_per_second, seconds; with a target regret, evaluated_regret.
        regret: E KL(optimal ‖ model) at each position at the end, in nats, over the population of words.
        optimum: The least possible loss at each position, in nats.
        seed: Seed of the initial weights and the data.
        seconds: Wall time of the steps, including those before an interruption.
        step: Number of optimizer steps made.
        stopped_by: Why it ended: all `"steps"` were made, or the limit of `"seconds"` or the target `"regret"` was met.
        resumed_from: The step from which an interrupted training was resumed.
        folder: The run's folder.
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
        """The expected loss over the least possible one, both averaged over positions."""
        return loss_ratio(self.regret, self.optimum)

    @property
    def checkpoints(self) -> tuple[SavedCheckpoint, ...]:
        """The models saved during the training, by step; raises `FileNotFoundError` if there are none."""
        if self.folder is None:
            raise FileNotFoundError("This training has no folder and kept no checkpoints: give train() a folder, out=.")
        return saved_checkpoints(self.folder)

    def to_dataframe(self) -> pd.DataFrame:
        """The metrics, one row a record; a list by position becomes one column for each entry."""
        return pd.DataFrame([flat(record) for record in self.metrics])

    def plot(self, *, theme: ThemeName = "light") -> Figure:
        """Plot the regret over the tokens seen, and by position at the end."""
        from msp_lens.figures.curves import plot_training

        tokens, regret = ([record[key] for record in self.metrics] for key in ("tokens", "regret"))
        return plot_training(tokens, regret, self.regret.tolist(), theme=theme)

    def __repr__(self) -> str:
        resumed = f", resumed at step {self.resumed_from}" if self.resumed_from is not None else ""
        steps = f"{self.process.name}: {self.step} steps in {self.seconds:.0f} s{resumed}"
        regret, optimum = float(self.regret.mean()), float(self.optimum.mean())
        return f"TrainingRun({steps}, regret {nats_text(regret)} nats, optimum {nats_text(optimum)})"


def loss_ratio(regret: Float64[Tensor, "pos"], optimum: Float64[Tensor, "pos"]) -> float:
    """The expected loss over the least possible one, both averaged over positions."""
    return float((optimum + regret).mean() / optimum.mean())


class _Ending(TypedDict):
    """What a finished training adds to the provenance of its model."""

    training: dict[str, Any]
    seed: Seed
    seconds: Annotated[float, AtLeast(0)]
    step: Annotated[int, AtLeast(0)]
    stopped_by: StoppedBy
    regret: list[float]
    metrics: str | None


@checked
def load_run(folder: str | Path, *, device: str | torch.device = "cpu") -> TrainingRun:
    """The finished training in a folder, as `train(..., out=folder)` left it, or in one shared as `"hf://user/name"`.

    Raises:
        FileNotFoundError: if the folder holds no model, or no metrics.
        ValueError: if a file is damaged or of another training, or the training has not ended (call `train` again to
            resume it).
    """
    folder = local_path(folder)
    file = folder / MODEL_FILE
    checkpoint = load_checkpoint(folder, device=device)
    provenance, process, model = checkpoint.provenance, checkpoint.process, checkpoint.model
    if "stopped_by" not in provenance or process is None:
        problem = f"{file} is of a training that has not ended"
        raise ValueError(f"{problem}: call train(..., out={str(folder)!r}) to resume it.")
    known = {name: provenance[name] for name in _Ending.__annotations__ if name in provenance}
    ending = as_saved({"metrics": None} | known, _Ending, f"{file}: provenance")
    try:
        config = TrainingConfig.from_dict(ending["training"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: provenance.training: {error} The file is damaged: train again.") from None
    metrics = read_lines(folder / METRICS_FILE, SavedRecord)
    if ending["metrics"] not in (None, metrics_fingerprint(metrics)):
        remedy = "copy it again, or train again with resume=False"
        raise ValueError(f"{folder / METRICS_FILE} was changed, or is of another training than {file}: {remedy}.")
    n_ctx = context_length(model) or 1
    if len(ending["regret"]) != n_ctx:
        raise ValueError(f"{file} has {len(ending['regret'])} regrets for {n_ctx} positions: train again.")
    regret = torch.tensor(ending["regret"], dtype=torch.float64)
    end = (ending["seed"], ending["seconds"], ending["step"], ending["stopped_by"])
    return TrainingRun(
        model, process, config, tuple(metrics), regret, optimal_losses(process, n_ctx), *end, folder=folder
    )
