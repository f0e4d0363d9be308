"""Load a trained model, whatever it comes as: a name, a folder, a file, or somebody else's state dict."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch

from msp_lens._checks import checked
from msp_lens._extras import from_extra
from msp_lens._files import read_header, read_json, read_tensors
from msp_lens._hub import local_path
from msp_lens.models.architecture import checked_architecture
from msp_lens.models.build import building, check_known, has_hooked_transformer, listed, state_tensors
from msp_lens.models.hooked import HookedModel
from msp_lens.models.model_files import HEADER, MODEL_FILE, config_of, converting, load_checkpoint, restored
from msp_lens.models.state_dicts import check_offloaded, completed_architecture, offload_additions, shown_architecture

# What the hub has under these names are state dicts of a HookedTransformer.
_OF_TRANSFORMER_LENS = ("NeelNanda/", "ArthurConmy/", "Baidicoot/")
_PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".th")

# What a folder with a tokenizer has at least one of.
_OF_A_TOKENIZER = re.compile(r"tokenizer.*\.json|vocab\..*|merges\.txt|.*\.model|tekken\.json")


@checked
def load_model(
    name_or_path: str | Path | Mapping[str, Any],
    *,
    config: Mapping[str, Any] | str | Path | Any = None,
    dtype: Literal["float32", "float64", "bfloat16", "float16"] | None = None,
    device: str | torch.device = "cpu",
    device_map: str | Mapping[str, Any] | None = None,
) -> HookedModel:
    """Load a trained model in evaluation mode, under either TransformerLens version.

    This is the road to a model from elsewhere. `load_checkpoint` reads what msp_lens saved, with the process, and
    `load_weights` puts weights into a model that you have built. Nothing is unpickled, no code in a file or repository
    is run, and a hub is asked only for a name. `check_model` then tells whether the model can be read and edited.

    Args:
        name_or_path: One of

            - a file or run's folder of msp_lens's, or one shared on the Hugging Face hub, `"hf://user/name"`;
            - a folder of Hugging Face's, `config.json` and safetensors, of any architecture that TransformerLens has
              a bridge for; the tokenizer, if there is one, comes along;
            - a GGUF file (it takes the package `gguf`), whose weights become ordinary numbers;
            - a state dict of a `HookedTransformer` of any version of TransformerLens's or of a native bridge, as a
              safetensors file or as a mapping of tensors by name. Names, shapes and buffers show the architecture, or
              a `config.json` beside the file says it. What they do not show has TransformerLens's defaults (causal
              attention, for one); a warning tells of an assumed activation function (`"relu"`) or normalization
              (`"LNPre"`, if there are no weights of any);
            - a name, such as `"gpt2"` or `"attn-only-1l"`, if there is no file or folder of that name.
        config: For a state dict, what its weights do not show, or all: a mapping such as `{"act_fn": "gelu"}`, a
            `ModelConfig`, a config of TransformerLens's, or a JSON file with one, by itself or under `"model"`.
        dtype: The numbers' type; by default as they were saved.
        device: Where to put the model.
        device_map: For a network of Hugging Face's that is too large for one device, which parts go where, as in
            `from_pretrained`; instead of `device`.

    A model too large for one device: `device_map="auto"` fills the accelerators, then memory, then the disk, and
    `{"model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": "disk", …}` says it part by part. What is on disk
    is read there, from the safetensors, in every forward pass. Such a model is probed, edited and twinned as any other:
    each site's rows and edits stay on the device of their layer, and moments and probes are the same. A network that
    you have dispatched yourself (`accelerate.dispatch_model`) does as well, within a bridge. A fingerprint takes as
    long as reading all weights. Under TransformerLens 3, networks that keep queries, keys and values in one matrix
    (GPT-2, GPT-NeoX) can be spread over devices, but not on disk.

    Raises:
        FileNotFoundError: if there is no such file, and no such name that can be had.
        ValueError: if a file is damaged or pickled, or weights are missing, left over or of another shape; the message
            names each. A network of Hugging Face's may have tensors left over, of which a warning tells.
        ImportError: if there is no `gguf` to read a GGUF file with.
    """
    if isinstance(name_or_path, Mapping):
        _check_one_device(device_map, "a state dict")
        return _as_dtype(_of_state(name_or_path, "name_or_path", config, device), dtype)
    path = local_path(name_or_path)
    if not path.exists():
        return _named(str(name_or_path), config=config, dtype=dtype, device=device, device_map=device_map)
    file = _file_in(path) if path.is_dir() else path
    if file.is_dir() or file.suffix == ".gguf":
        _refuse_config(config, file)
        where, gguf_file = (str(file), None) if file.is_dir() else (str(file.parent), file.name)
        return _hugging_face(where, gguf_file, dtype=dtype, device=device, device_map=device_map, is_local=True)
    if file.suffix != ".safetensors":
        raise ValueError(
            f"{file} is not a safetensors or GGUF file, and other files are never unpickled. Convert it once, if you "
            f"trust it: {converting(file)}."
        )
    _check_one_device(device_map, str(file))
    if HEADER in read_header(file):
        _refuse_config(config, file)
        return _as_dtype(load_checkpoint(file, device=device).model, dtype)
    state, _ = read_tensors(file)
    beside = file.parent / "config.json"
    if config is None and beside.is_file():
        fields = read_json(beside, Mapping[str, Any])
        if _is_hugging_face(fields) and not {"embed.W_E", "embed.weight"} & state.keys():
            return load_model(file.parent, dtype=dtype, device=device)
        config = beside
    return _as_dtype(_of_state(state, str(file), config, device), dtype)


def _file_in(folder: Path) -> Path:
    """The one file in the folder that holds a model; the folder itself, if it is one of Hugging Face's."""
    names = sorted(each.name for each in folder.iterdir() if each.is_file())
    of = {suffix: [name for name in names if name.endswith(suffix)] for suffix in (".safetensors", ".gguf")}
    if MODEL_FILE in names and HEADER in read_header(folder / MODEL_FILE):
        return folder / MODEL_FILE
    described = _is_hugging_face(read_json(folder / "config.json", Any)) if "config.json" in names else False
    if described and of[".safetensors"]:
        return folder
    for found in of.values():
        if len(found) == 1:
            return folder / found[0]
        if found:
            raise ValueError(f"{folder} holds {listed(found)}: give the path of one of them.")
    if pickled := [name for name in names if name.endswith(_PICKLED)]:
        remedy = f"convert them once, if you trust them: {converting(folder / pickled[0])}"
        if described:
            remedy = f"convert it once, if you trust it: AutoModelForCausalLM.from_pretrained({str(folder)!r})"
            remedy += ".save_pretrained('converted', safe_serialization=True)"
        raise ValueError(f"{folder} holds only pickled weights ({listed(pickled)}), which are never loaded: {remedy}.")
    raise FileNotFoundError(
        f"{folder} holds no model: give a folder with safetensors or a GGUF file. To load a model of this name from a "
        "hub, call from another folder."
    )


def _is_hugging_face(config: Any) -> bool:
    return isinstance(config, Mapping) and ("model_type" in config or "architectures" in config)


def _of_state(state: Mapping[str, Any], where: str, config: Any, device: Any) -> HookedModel:
    """The model of a plain state dict, whose architecture is read off it as far as the config does not say it."""
    tensors = state_tensors(state, where)
    fields = {} if config is None else config_of(config)
    if isinstance(config, Mapping) and not _is_hugging_face(config):
        check_known(fields)
    given = checked_architecture(fields, "config")
    shown = shown_architecture(tensors, given, where)
    complete, assumed = completed_architecture(shown, given, where)
    model = restored(where, complete, tensors, device)
    if assumed:
        message = f"The weights do not show everything: assumed {' and '.join(assumed)}. Else give config={{…}}."
        warnings.warn(message, stacklevel=4)
    return model


def _named(name: str, *, config: Any, dtype: str | None, device: Any, device_map: Any) -> HookedModel:
    """The model that TransformerLens or the hub has under a name."""
    rule = "give a file, a folder, or a name such as 'gpt2'"
    is_name = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", name) is not None
    if not is_name or name.endswith((".safetensors", ".gguf", ".json", *_PICKLED)):
        raise FileNotFoundError(f"name_or_path={name!r}: there is no such file or folder, and it is no name; {rule}.")
    _refuse_config(config, name)
    from transformer_lens.supported_models import MODEL_ALIASES

    official = next((each for each, aliases in MODEL_ALIASES.items() if name in aliases), name)
    try:
        if not official.startswith(_OF_TRANSFORMER_LENS):
            return _hugging_face(official, None, dtype=dtype, device=device, device_map=device_map, is_local=False)
        _check_one_device(device_map, name)
        with building(0, torch.float32), _unpickling_tensors_only():
            model = _of_transformer_lens(official)
    # Whatever the hub's client, its cache and the network do not have.
    except (OSError, ConnectionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"name_or_path={name!r}: there is no such file or folder here, and it could not be had from the Hugging "
            f"Face hub ({reason[:200]}). Check the name. Without a network, copy the model's folder here, with its "
            "config.json and safetensors, and give its path."
        ) from error
    module: Any = cast(Any, model).to(device, print_details=False)
    module.train(False)
    return _as_dtype(module, dtype)


def _of_transformer_lens(name: str) -> Any:
    """A model that was trained as a HookedTransformer, without any processing of its weights."""
    if has_hooked_transformer():
        from transformer_lens import HookedTransformer

        return cast(Any, HookedTransformer).from_pretrained_no_processing(name, device="cpu")
    from transformer_lens.model_bridge import sources

    return cast(Any, sources).boot_tl_legacy(name, device="cpu")


@contextmanager
def _unpickling_tensors_only() -> Iterator[None]:
    """`torch.load` reads nothing but tensors: TransformerLens 3 would unpickle whatever is there."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _hugging_face(
    where: str, gguf_file: str | None, *, dtype: str | None, device: Any, device_map: Any, is_local: bool
) -> HookedModel:
    if gguf_file:
        with from_extra("lm", purpose=f"Reading {Path(where) / gguf_file}", packages=("gguf",)):
            import gguf  # noqa: F401
    kind = getattr(torch, dtype) if dtype else None
    try:
        with building(0, torch.float32), _without_progress_bars():
            model, left_over = _network(
                where, gguf_file=gguf_file, dtype=kind, device_map=device_map, is_local=is_local
            )
        offload_additions(model)
        check_offloaded(model)
    except (ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        told = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip().rstrip(".")
        raise ValueError(
            f"{Path(where) / (gguf_file or '') if is_local else where}: {told}. Check that the files are whole and "
            "belong together, and that TransformerLens has a bridge for this architecture."
        ) from error
    if left_over:
        warnings.warn(f"{where}: no place in the model for {listed(left_over)}: left out.", stacklevel=4)
    return model if device_map is not None else cast(Any, model).to(device, print_details=False)


def _network(
    where: str, *, gguf_file: str | None, dtype: torch.dtype | None, device_map: Any, is_local: bool
) -> tuple[Any, list[str]]:
    """A bridge around a trained network, and the names of tensors that have no place in it.

    No code in a folder or repository is run, and nothing is unpickled.

    Args:
        where: A folder, or a name on the hub.
        gguf_file: The name of the GGUF file there; by default its config and safetensors are read.
        dtype: The weights' dtype; by default as they were saved.
        device_map: Which parts go to which device, as in `from_pretrained`.
        is_local: Whether no hub may be asked.

    Raises:
        OSError: if it is not there.
        ValueError, KeyError: if there is no such architecture, or weights are missing or of another shape.
    """
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformer_lens.model_bridge.sources.transformers import (
        determine_architecture_from_hf_config,
        get_hf_model_class_for_architecture,
    )
    from transformers.models.auto import AutoConfig

    source: dict[str, Any] = {"local_files_only": is_local, "trust_remote_code": False}
    source |= {"gguf_file": gguf_file} if gguf_file else {}
    config: Any = AutoConfig.from_pretrained(where, **source)
    # As `Any`, like transformers' own modules instead of its root: a type checker would read every model that there is.
    architecture = cast(Any, determine_architecture_from_hf_config)(config)
    options = {"attn_implementation": "eager", "device_map": device_map, "dtype": dtype or "auto"} | source
    options |= {} if gguf_file else {"use_safetensors": True}
    kind = cast(Any, get_hf_model_class_for_architecture)(architecture)
    network, told = kind.from_pretrained(
        where, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    misshapen = [f"{name} {tuple(has)}, the model's {tuple(wants)}" for name, has, wants in told["mismatched_keys"]]
    misfits = {"missing": sorted(told["missing_keys"]), "of another shape": sorted(misshapen)}
    if wrong := [f"{what} ({len(names)}): {', '.join(names[:24])}" for what, names in misfits.items() if names]:
        raise ValueError(f"the weights do not fit the config: {'; '.join(wrong)}")
    if gguf_file and hasattr(network.config, "quantization_config"):
        # The weights are ordinary numbers now.
        del network.config.quantization_config
    if getattr(config, "pad_token_id", None) is None:
        ends = getattr(config, "eos_token_id", None)
        config.pad_token_id = ends[0] if isinstance(ends, list) and ends else ends
    # Transformers makes an empty tokenizer out of nothing.
    has_tokenizer = gguf_file or not is_local or any(map(_OF_A_TOKENIZER.fullmatch, os.listdir(where)))
    tokenizer = _tokenizer(where, source) if has_tokenizer else None
    bridge = build_bridge_from_module(
        network.train(False), architecture, hf_config=config, tokenizer=tokenizer, model_name=where
    )
    return bridge, sorted(told["unexpected_keys"])


def _tokenizer(where: str, source: Mapping[str, Any]) -> Any:
    """The tokenizer that is there, as TransformerLens wants it, with its BOS token first; `None` if there is none."""
    from transformers.models.auto import AutoTokenizer

    for options in ({"add_bos_token": True}, {}):
        try:
            return AutoTokenizer.from_pretrained(where, **options, **source)
        except ValueError:
            # Without a BOS token there is none to add.
            continue
        except (OSError, KeyError, ImportError, TypeError):
            return None
    return None


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def _refuse_config(config: Any, what: Any) -> None:
    if config is not None:
        raise ValueError(f"{what} says itself what it is: leave out config=.")


def _check_one_device(device_map: Any, what: str) -> None:
    if device_map is not None:
        raise ValueError(f"device_map={device_map!r}: {what} goes to one device. Give device= instead.")


def _as_dtype(model: Any, dtype: str | None) -> HookedModel:
    return model if dtype is None else model.to(getattr(torch, dtype), print_details=False)
