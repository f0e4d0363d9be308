"""The models saved while a training went on: `checkpoints/step-00000100.safetensors` and so on, in a run's folder.

Each is a model file like any other, whole by itself: `load_checkpoint` reads it, under either TransformerLens version.
Its provenance says at which step it was saved, and after how many tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from msp_lens._files import read_header
from msp_lens.models.hooked import HookedModel
from msp_lens.models.model_files import Checkpoint, load_checkpoint, save_checkpoint
from msp_lens.processes.process import Process

CHECKPOINTS_FOLDER = "checkpoints"


@dataclass(frozen=True)
class SavedCheckpoint:
    """A model on disk, as it was at one moment of its training.

    Attributes:
        step: Optimizer steps made; 0 for the untrained model.
        tokens: Tokens predicted until then.
        path: The file.
    """

    step: int
    tokens: int
    path: Path

    def load(self, *, device: str | torch.device = "cpu") -> Checkpoint:
        """The model, with its process and provenance; see `load_checkpoint`."""
        return load_checkpoint(self.path, device=device)


def saved_checkpoints(folder: str | Path) -> tuple[SavedCheckpoint, ...]:
    """The checkpoints of the run in `folder`, by step. Their weights are not read.

    Raises:
        FileNotFoundError: if the folder holds no checkpoints.
        ValueError: if a file among them is damaged, or was not saved by a training.

    Example:
        >>> import tempfile
        >>> from msp_lens.processes.catalog import z1r
        >>> from msp_lens.training import TrainingConfig, train
        >>> folder = tempfile.mkdtemp()
        >>> config = TrainingConfig(steps=2, batch_size=8, checkpoints=(0, 2))
        >>> run = train(z1r(), config=config, out=folder, progress=False)
        >>> [(checkpoint.step, checkpoint.tokens) for checkpoint in saved_checkpoints(folder)]
        [(0, 0), (2, 160)]
    """
    files = sorted((Path(folder) / CHECKPOINTS_FOLDER).glob("step-*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"There are no checkpoints in {Path(folder) / CHECKPOINTS_FOLDER}: train with "
            'TrainingConfig(checkpoints="logarithmic") and out= this folder.'
        )
    return tuple(sorted((_described(path) for path in files), key=lambda checkpoint: checkpoint.step))


def checkpoint_path(folder: str | Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return Path(folder) / CHECKPOINTS_FOLDER / f"step-{step:08d}.safetensors"


def save_training_checkpoint(
    folder: str | Path, model: HookedModel, *, process: Process, provenance: Mapping[str, Any]
) -> Path:
    """Save the model under its provenance's `step`, whole or not at all."""
    return save_checkpoint(checkpoint_path(folder, provenance["step"]), model, process=process, provenance=provenance)


def _described(path: Path) -> SavedCheckpoint:
    description = json.loads(read_header(path).get("msp_lens", "{}"))
    provenance = description.get("provenance") or {}
    if not {"step", "tokens"} <= provenance.keys():
        raise ValueError(f"{path} was not saved by a training of msp_lens: move it elsewhere.")
    return SavedCheckpoint(provenance["step"], provenance["tokens"], path)
