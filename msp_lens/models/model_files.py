"""Models on disk: weights as safetensors, with their description as JSON in the header of the same file.

A checkpoint is one file, replaced atomically, so that weights and description always belong together. The description
holds the model's config, the process, any provenance that the caller adds, and a fingerprint of the weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from msp_lens._files import read_tensors, write_atomically
from msp_lens.models.architecture import checked_architecture
from msp_lens.models.build import build_model, config_fields, load_weights, transformer_lens_version, weights
from msp_lens.models.hooked import HookedModel
from msp_lens.processes.process import Process

MODEL_FILE = "model.safetensors"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model loaded from disk, with everything that was saved with it.

    Attributes:
        model: The model, in evaluation mode.
        process: The process it was trained on, if that was saved.
        provenance: What the caller of `save_checkpoint` added: training config, step, versions.
        fingerprint: Identifies the weights.
    """

    model: HookedModel
    process: Process | None
    provenance: dict[str, Any]
    fingerprint: str

    def __repr__(self) -> str:
        return f"Checkpoint({type(self.model).__name__} {self.fingerprint}, process={self.process})"


def model_fingerprint(model: HookedModel) -> str:
    """Sixteen hexadecimal digits that identify the model's weights."""
    return state_fingerprint(weights(model))


def save_checkpoint(
    path: str | Path, model: HookedModel, *, process: Process | None = None, provenance: Mapping[str, Any] | None = None
) -> Path:
    """Write the model to a file, or to `model.safetensors` in a folder, completely or not at all."""
    path = _model_file(path)
    state = weights(model)
    description = {
        "model": config_fields(model),
        "process": process.to_dict() if process else None,
        "provenance": dict(provenance or {}),
        "transformer_lens": transformer_lens_version(),
        "fingerprint": state_fingerprint(state),
    }
    write_atomically(path, save(state, metadata={"msp_lens": json.dumps(description)}))
    return path


def load_checkpoint(path: str | Path, *, device: str | torch.device = "cpu") -> Checkpoint:
    """Load a model saved by `save_checkpoint` under either TransformerLens version, from a file or a run's folder.

    Under TransformerLens 4, a HookedTransformer's weights are converted exactly to a bridge's; a bridge's weights
    give a bridge under TransformerLens 3, too.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or is not a checkpoint of msp_lens.
    """
    path = _model_file(path)
    state, metadata = read_tensors(path)
    if "msp_lens" not in metadata:
        raise ValueError(f"{path} was not saved by msp_lens: build the model and use load_weights(model, state).")
    description = json.loads(metadata["msp_lens"])
    if state_fingerprint(state) != description["fingerprint"]:
        raise ValueError(f"{path} is damaged: its weights do not match their fingerprint. Copy or train it again.")
    # Only a bridge can hold a bridge's weights; either class can hold a HookedTransformer's.
    fields = checked_architecture(description.get("model"), state, path)
    model = build_model(fields, device=device, bridge=True if "embed.weight" in state else None)
    load_weights(model, state)
    model.train(False)
    process = Process.from_dict(description["process"]) if description["process"] else None
    return Checkpoint(model, process, description["provenance"], description["fingerprint"])


def _model_file(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".safetensors" else path / MODEL_FILE


def state_fingerprint(state: Mapping[str, Tensor]) -> str:
    """Sixteen hexadecimal digits that identify named tensors on the CPU."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
