"""Models on disk: weights as safetensors, with their description as JSON in the header of the same file.

A checkpoint is one file, replaced atomically, so that weights and description always belong together. The description
holds the model's config, the process, any provenance that the caller adds, and a fingerprint of the weights.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import urllib.request
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from msp_lens._checks import checked
from msp_lens._files import read_entry, read_json, read_tensors, write_tensors
from msp_lens._hub import local_path
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
from msp_lens.processes.catalog import mess3
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
    give a bridge under TransformerLens 3, too. The model's numbers keep their dtype. No code in a file is run.

    Args:
        path: The file of `save_checkpoint`, or the folder of a run; or what `push_to_hub` shared on the Hugging Face
            hub, as `"hf://user/name"` or `"hf://user/name@revision"`.
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
    path = _model_file(local_path(path))
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
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()[:16]


class _Published(TypedDict):
    """The published network: where it is hosted, what it is, and each tensor's shape and the SHA-256 of its numbers."""

    source: str
    model: dict[str, Any]
    training: dict[str, Any]
    tensors: dict[str, tuple[list[int], str]]


@checked
def published_mess3(path: str | Path | None = None, *, device: str | torch.device = "cpu") -> Checkpoint:
    """The Mess3 network that Shai et al. 2024 (arXiv 2405.15943) published, with its process, to check numbers against.

    The authors host it on GitHub as a pickled state dict of 0.6 MB. It is downloaded once, into the folder of
    `torch.hub`, and is never unpickled: its arrays are plain bytes in the archive, and each is told by its SHA-256.
    So the network has exactly the published weights, or there is an error.

    Args:
        path: Where the weights are, to download nothing: the file `629209600.pt` of the authors', a safetensors file of
            the same state dict, or a folder that holds one of them.
        device: Where to put the model.

    Returns:
        The model, in evaluation mode, with the process that it was trained on, `mess3(x=0.05, a=0.85)`.

    Raises:
        FileNotFoundError: if there is no such file, or it could not be downloaded.
        ValueError: if the file is damaged, or holds other weights than the published ones.

    Example:
        `published = msp.models.published_mess3()`, then
        `msp.probe(published.model, published.process, weighting="sequence")` gives the bars of the paper's figure.
    """
    known = read_json(Path(__file__).with_name("published_mess3.json"), _Published)
    kept = Path(torch.hub.get_dir()) / "msp_lens" / "published_mess3.safetensors"
    if path is not None:
        state, where = _published_in(Path(path).expanduser(), known), str(path)
    elif kept.is_file():
        state, where = _published_in(kept, known), str(kept)
    else:
        state, where = _published_arrays(_downloaded(known["source"]), known["source"], known), known["source"]
        # Where nothing can be kept, it is downloaded again.
        with suppress(OSError):
            write_tensors(kept, state, {"source": known["source"]})
    model = restored(where, known["model"], state, device)
    provenance = {"source": known["source"], "paper": "arXiv 2405.15943", "training": known["training"]}
    return Checkpoint(model, mess3(x=0.05, a=0.85), provenance, model_fingerprint(model))


def _published_in(path: Path, known: _Published) -> dict[str, Tensor]:
    """The published weights in a file or folder; `ValueError` if it holds others."""
    if path.is_dir():
        names = (MODEL_FILE, known["source"].rsplit("/", 1)[-1])
        path = next((path / name for name in names if (path / name).is_file()), path / MODEL_FILE)
    if path.suffix != ".safetensors" and path.is_file():
        return _published_arrays(path.read_bytes(), str(path), known)
    state, _ = read_tensors(path)
    digests = {name: hashlib.sha256(_bytes_of(each)).hexdigest() for name, each in state.items()}
    if wrong := [name for name, (_, digest) in known["tensors"].items() if digests.get(name) != digest]:
        raise ValueError(_not_published(str(path), wrong, known))
    return {name: state[name].reshape(shape) for name, (shape, _) in known["tensors"].items()}


def _published_arrays(content: bytes, where: str, known: _Published) -> dict[str, Tensor]:
    """The published weights out of the archive that `torch.save` writes, in which each array is a member of its own."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            # An array of this network has at most 64 KB.
            members = [each for each in archive.infolist() if "/data/" in each.filename and each.file_size < 1e5]
            arrays = {hashlib.sha256(found).hexdigest(): found for found in map(archive.read, members)}
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"{where} is not a file of torch.save, or damaged ({error}): copy it again.") from error
    if wrong := [name for name, (_, digest) in known["tensors"].items() if digest not in arrays]:
        raise ValueError(_not_published(where, wrong, known))
    return {
        name: torch.from_numpy(np.frombuffer(arrays[digest], dtype="<f4").copy()).reshape(shape)
        for name, (shape, digest) in known["tensors"].items()
    }


def _not_published(where: str, wrong: list[str], known: _Published) -> str:
    names = f"{', '.join(wrong[:3])}{', …' if len(wrong) > 3 else ''}"
    return (
        f"{where} does not hold the published weights: {len(wrong)} of {len(known['tensors'])} tensors are missing or "
        f"have other numbers ({names}). Get {known['source']} and give its path; other models are for load_model."
    )


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _downloaded(source: str) -> bytes:
    try:
        with urllib.request.urlopen(source, timeout=30) as response:
            return response.read(10_000_000)
    except (OSError, http.client.HTTPException) as error:
        raise FileNotFoundError(
            f"The published weights could not be downloaded ({error}). Get {source} by other means, and give its "
            "path: published_mess3(path)."
        ) from error
