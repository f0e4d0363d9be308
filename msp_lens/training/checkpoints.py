"""The models saved during a training: `checkpoints/step-00000100.safetensors` and so on, in a run's folder.

Each is a complete model file for `load_checkpoint`. Its provenance has the step and the tokens predicted by then.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch

from msp_lens._checks import AtLeast, checked
from msp_lens._files import as_saved, read_entry, read_header
from msp_lens.models.model_files import Checkpoint, load_checkpoint

CHECKPOINTS_FOLDER = "checkpoints"


@dataclass(frozen=True)
class SavedCheckpoint:
    """A model on disk, as it was at one step of its training.

    Attributes:
        step: Number of optimizer steps made; 0 for the untrained model.
        tokens: Number of tokens predicted by then; `None` if that is not known.
        path: The file.
    """

    step: int
    tokens: int | None
    path: Path

    @cached_property
    def description(self) -> dict[str, Any]:
        """The model's config, the process and the provenance, as JSON; from the file's header, read once."""
        return read_description(self.path)

    @checked
    def load(self, *, device: str | torch.device = "cpu") -> Checkpoint:
        """The model, with its process and provenance; see `load_checkpoint`."""
        return load_checkpoint(self.path, device=device)


@checked
def saved_checkpoints(folder: str | Path) -> tuple[SavedCheckpoint, ...]:
    """The checkpoints of the run in `folder`, by step. Their weights are not read.

    Raises:
        FileNotFoundError: if the folder holds no checkpoints.
        ValueError: if a file is damaged or was not saved by a training.

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
    found = []
    for path in checkpoint_files(Path(folder)):
        description = read_description(path)
        provenance = description.get("provenance") or {}
        if not {"step", "tokens"} <= provenance.keys():
            raise ValueError(f"{path} was not saved by a training of msp_lens: move it elsewhere.")
        count = Annotated[int, AtLeast(0)]
        step, tokens = (as_saved(provenance[name], count, f"{path}: provenance.{name}") for name in ("step", "tokens"))
        saved = SavedCheckpoint(step, tokens, path)
        # Fills the cached property: the header has been read.
        vars(saved)["description"] = description
        found.append(saved)
    if not found:
        remedy = 'train with TrainingConfig(checkpoints="logarithmic") and out= this folder'
        raise FileNotFoundError(f"There are no checkpoints in {Path(folder) / CHECKPOINTS_FOLDER}: {remedy}.")
    return tuple(sorted(found, key=lambda checkpoint: checkpoint.step))


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoint files in a run's folder."""
    return list((folder / CHECKPOINTS_FOLDER).glob("step-*.safetensors"))


def read_description(path: Path) -> dict[str, Any]:
    """What a model file says of itself, without reading its weights; empty if it says nothing."""
    header = read_header(path)
    description = read_entry(header, "msp_lens", dict[str, Any], path) if "msp_lens" in header else {}
    for name in ("model", "process", "provenance"):
        as_saved(description.get(name), dict[str, Any] | None, f"{path}: {name}")
    return description


def read_provenance(path: Path) -> dict[str, Any]:
    """The provenance in a model file, without reading its weights; empty if it has none."""
    return read_description(path).get("provenance") or {}
