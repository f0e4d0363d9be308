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
from typing import Any, NotRequired, TypedDict, cast
from weakref import WeakSet

import torch
from torch import Tensor

from msp_lens._checks import checked
from msp_lens._files import read_entry, read_json, read_tensors, write_tensors
from msp_lens.models.architecture import fitting_architecture, plain
from msp_lens.models.build import (
    build_model,
    config_fields,
    load_weights,
    own_names,
    transformer_lens_version,
    weights,
)
from msp_lens.models.hooked import HookedModel, context_length, evaluating, model_device, unwrapped
from msp_lens.processes.process import Process

MODEL_FILE = "model.safetensors"
HEADER = "msp_lens"

# Models that a file can hold, as was found out.
_RESTORABLE: WeakSet[Any] = WeakSet()


class Description(TypedDict):
    """What a model file says of itself, as JSON in its header."""

    model: Mapping[str, Any]
    process: Mapping[str, Any] | None
    provenance: NotRequired[Mapping[str, Any]]
    transformer_lens: NotRequired[str]
    fingerprint: str


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


@checked
def model_fingerprint(model: HookedModel) -> str:
    """Sixteen hexadecimal digits that identify the model's weights."""
    return state_fingerprint(weights(model))


@checked
def save_checkpoint(
    path: str | Path, model: HookedModel, *, process: Process | None = None, provenance: Mapping[str, Any] | None = None
) -> Path:
    """Write the model to a file, or to `model.safetensors` in a folder, completely or not at all.

    Args:
        path: A file that ends in `.safetensors`, or a folder.
        model: A model that TransformerLens can build from its config, compiled or not. Its weights may be tied.
        process: The process that it was trained on.
        provenance: Whatever else is to be known, as values that JSON has.

    Raises:
        ValueError: if the model could not be loaded again, or JSON lacks a value of the provenance.
        TypeError: if JSON lacks a type in the provenance.
    """
    path = _model_file(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path={str(path)!r}: give a file that ends in .safetensors, or a folder.")
    check_restorable(model)
    state = weights(model)
    description = {
        "model": config_fields(model),
        "process": process.to_dict() if process else None,
        "provenance": plain(provenance or {}),
        "transformer_lens": transformer_lens_version(),
        "fingerprint": state_fingerprint(state),
    }
    try:
        text = json.dumps(description, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"provenance: {error}; give finite numbers, or None.") from None
    write_tensors(path, state, {HEADER: text})
    return path


def check_restorable(model: HookedModel) -> None:
    """Raise `ValueError` unless a file can hold the model: what would be loaded from it must compute the same.

    It builds the model anew from its config and weights, the first time that it is asked.
    """
    module: Any = unwrapped(model)
    if module in _RESTORABLE:
        return
    state = weights(model)
    kind = type(module).__name__
    fields = fitting_architecture(config_fields(model), state, f"This {kind}")
    length, device = min(8, context_length(model) or 8), model_device(model)
    tokens = torch.arange(2 * length, device=device).reshape(2, length) * 7 % fields["d_vocab"]
    try:
        again = build_model(fields, device=device, bridge=_as_bridge(state))
        load_weights(again, state)
        with evaluating(module), evaluating(again):
            outputs = [cast(Any, each)(tokens) for each in (module, again)]
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"A file can't hold this {kind}, since it could not be built again: {error}") from error
    if not torch.allclose(*outputs, rtol=1e-3, atol=1e-3 * float(outputs[0].abs().max()), equal_nan=True):
        raise ValueError(
            f"A file can't hold this {kind}: a model built from its config and weights computes something else, so the "
            "config does not say all. Train it without out=, and save its weights yourself."
        )
    _RESTORABLE.add(module)


def _as_bridge(state: Mapping[str, Tensor]) -> bool | None:
    # Only a bridge can hold a bridge's weights; either class can hold a HookedTransformer's.
    return True if "embed.weight" in state else None


@checked
def load_checkpoint(
    path: str | Path,
    *,
    config: Mapping[str, Any] | str | Path | Any = None,
    process: Process | None = None,
    device: str | torch.device = "cpu",
) -> Checkpoint:
    """Load a model that msp_lens saved, with its process, under either TransformerLens version.

    For models from elsewhere, by name or without a config, there is `load_model`; for weights alone, to go into a model
    that you have, `load_weights`.

    Under TransformerLens 4, a HookedTransformer's weights are converted exactly to a bridge's; a bridge's weights
    give a bridge under TransformerLens 3, too. The model's numbers keep their dtype. No code in a file is run, and no
    hub is asked.

    Args:
        path: The file of `save_checkpoint`, or the folder of a run.
        config: For a safetensors file that msp_lens did not write, a plain state dict of TransformerLens's: a
            `ModelConfig`, a mapping or a config of TransformerLens's, or a JSON file that holds one, by itself or
            under `"model"`.
        process: For such a file, the process that the model was trained on.
        device: Where to put the model.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, is not a checkpoint, or says of its weights what they are not.

    Example:
        >>> import tempfile
        >>> from msp_lens.models.build import ModelConfig
        >>> folder = tempfile.mkdtemp()
        >>> saved = save_checkpoint(folder, build_model(ModelConfig(d_vocab=3), seed=1))
        >>> load_checkpoint(folder)
        Checkpoint(... process=None)
    """
    path = _model_file(path)
    if path.is_file() and path.suffix != ".safetensors":
        raise ValueError(
            f"{path} is not a safetensors file, and other files are never unpickled. Convert it once, if you trust it: "
            f"{converting(path)}."
        )
    state, header = read_tensors(path)
    if HEADER not in header:
        if config is None:
            raise ValueError(
                f"{path} was not saved by msp_lens: give the model's config=, too, or use load_model, which reads it "
                "off the weights."
            )
        return _foreign(path, state, config, process, device)
    if config is not None or process is not None:
        raise ValueError(f"{path} says itself what it holds: leave out config= and process=.")
    description = cast(Description, read_entry(header, HEADER, Description, path))
    if state_fingerprint(state) != description["fingerprint"]:
        raise ValueError(f"{path} is damaged: its weights do not match their fingerprint. Copy or train it again.")
    model = restored(path, description["model"], state, device)
    saved = description["process"]
    try:
        of = Process.from_dict(saved) if saved else None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: its process is damaged ({error}). Copy or train it again.") from error
    return Checkpoint(model, of, dict(description.get("provenance") or {}), description["fingerprint"])


def _foreign(path: Path, state: Mapping[str, Tensor], config: Any, process: Process | None, device: Any) -> Checkpoint:
    """The model of a plain state dict."""
    model = restored(path, config_of(config), own_names(state), device)
    return Checkpoint(model, process, {}, model_fingerprint(model))


def config_of(config: Any) -> Mapping[str, Any]:
    """The fields of a config in any form: a `ModelConfig`, a mapping, a config of TransformerLens's, or a JSON file.

    It raises `TypeError` if it is none of these.
    """
    if isinstance(config, str | Path):
        config = read_json(Path(config).expanduser(), Mapping[str, Any])
        config = config.get("model", config)
    if not isinstance(config, Mapping) and not callable(getattr(config, "to_dict", None)):
        raise TypeError(
            f"config={config!r}: give a ModelConfig, a mapping, a JSON file or a config of TransformerLens's."
        )
    return config if isinstance(config, Mapping) else config.to_dict()


def restored(path: Path | str, fields: Any, state: Mapping[str, Tensor], device: str | torch.device) -> HookedModel:
    """The model that the fields describe, with these weights and of their dtype, in evaluation mode."""
    found = fitting_architecture(fields, state, path)
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    found |= {"dtype": plain(dtypes.pop())} if len(dtypes) == 1 else {}
    try:
        model = build_model(found, device=device, bridge=_as_bridge(state))
        load_weights(model, state)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    model.train(False)
    return model


def converting(path: Path) -> str:
    """The line of Python that converts a pickled state dict."""
    name = path.stem or "model"
    return (
        f"safetensors.torch.save_file(torch.load({path.name!r}, weights_only=True, map_location='cpu'), "
        f"'{name}.safetensors')"
    )


def _model_file(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".safetensors" or path.is_file() else path / MODEL_FILE


def state_fingerprint(state: Mapping[str, Tensor]) -> str:
    """Sixteen hexadecimal digits that identify named tensors on the CPU."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
