"""Build a model; the one module that knows about TransformerLens's versions.

TransformerLens 3 has `HookedTransformer`. TransformerLens 4 removed it for `TransformerBridge.boot_native`, which
offers the same hooks under the same names.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import inspect
import math
import platform
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from msp_lens._checks import Count, Seed, check_memory, checked
from msp_lens._names import meant
from msp_lens._version import __version__
from msp_lens.models.architecture import (
    ARCHITECTURE,
    HUGGING_FACE,
    RECURRENT,
    ActivationFunction,
    Normalization,
    RecurrentConfig,
    build_network,
    checked_architecture,
    holds_network,
    is_dispatched,
    is_of_recurrent,
    least_weights,
    network_description,
    network_like,
    plain,
)
from msp_lens.models.hooked import HookedModel, unwrapped
from msp_lens.models.state_dicts import (
    DERIVED_BUFFERS,
    check_offloaded,
    converted_weights,
    offloaded_tensors,
    rotary_angles,
    storage_of,
)

# The global generator and the default dtype are the process's: one thread builds at a time.
_BUILDING = threading.Lock()

# What a native bridge does not implement, and takes no notice of; with the value that asks for nothing.
_NOT_IN_A_BRIDGE = {
    **dict.fromkeys(("num_experts", "clip_qkv", "rotary_base_local"), None),
    **dict.fromkeys(("use_local_attn", "use_qk_norm", "use_logn_attn", "scale_attn_by_inverse_layer_idx"), False),
    **dict.fromkeys(("parallel_attn_mlp", "post_embedding_ln", "use_normalization_before_and_after"), False),
    **dict.fromkeys(("use_NTK_by_parts_rope", "use_yarn_rope", "use_dynamic_ntk_rope", "use_attention_sinks"), False),
    **{"use_attn_scale": True, "rotary_scaling_factor": 1.0},
}


@checked
@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A small causal transformer, in TransformerLens's own terms. The defaults are the paper's model for Mess3.

    Source: Shai et al. 2024 (arXiv 2405.15943), appendix.
    """

    d_vocab: Count
    n_layers: Count = 4
    d_model: Count = 64
    n_heads: Count = 1
    d_head: Count = 8
    d_mlp: Count = 256
    n_ctx: Count = 10
    act_fn: ActivationFunction = "relu"
    normalization_type: Normalization = "LN"
    attn_only: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The fields under TransformerLens's names."""
        return dataclasses.asdict(self)


# Fields of TransformerLens's configs that say nothing about the architecture: names, devices, where weights come from.
_NAMES = (  # noqa: SIM905 (words are easier to read)
    "model_name tokenizer_name trust_remote_code original_architecture architecture from_checkpoint checkpoint_index "
    "checkpoint_label_type checkpoint_value init_weights seed device n_devices n_params load_in_4bit "
    "quantization_method decoder_start_token_id layer_norm_folding split_attention_weights"
).split()


@functools.cache
def transformer_lens_version() -> str:
    """The installed version of TransformerLens."""
    return importlib.metadata.version("transformer-lens")


def versions() -> dict[str, str]:
    """The versions that results depend on."""
    return {
        "msp_lens": __version__,
        "transformer_lens": transformer_lens_version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def has_hooked_transformer() -> bool:
    """Whether the installed TransformerLens still has `HookedTransformer`."""
    return int(transformer_lens_version().split(".")[0]) < 4


@checked
def build_model(
    config: ModelConfig | RecurrentConfig | Mapping[str, Any] | Any,
    *,
    seed: Seed = 0,
    device: str | torch.device = "cpu",
    bridge: bool | None = None,
) -> HookedModel:
    """A freshly initialized model: a `HookedTransformer` under TransformerLens 3, a native `TransformerBridge` under 4.

    Of a `RecurrentConfig` it is a recurrent network with hooks of the same kind, under either version.

    A seed gives the same weights on every device, and in every thread if no other code draws from the global random
    state meanwhile. Neither that state nor any other setting of the process changes.

    Args:
        config: A `ModelConfig`, a mapping with TransformerLens's field names, or a TransformerLens config; or a
            `RecurrentConfig`, or a mapping with its fields. Its `dtype` is that of the weights.
        seed: Seed of the initial weights.
        device: Where to put the model.
        bridge: Whether to build a `TransformerBridge`; by default only if there is no `HookedTransformer`.

    Raises:
        TypeError, ValueError: if a field is unknown, missing or of a wrong kind, or the model would not fit the memory;
            if a bridge cannot do what the config asks for; if the device cannot be used.

    Example:
        >>> model = build_model(ModelConfig(d_vocab=3), seed=0)
        >>> model(torch.zeros(2, 10, dtype=torch.int64)).shape
        torch.Size([2, 10, 3])
    """
    if not isinstance(config, Mapping) and not callable(getattr(config, "to_dict", None)):
        known = "a ModelConfig, a RecurrentConfig, a mapping or a config of TransformerLens's"
        raise TypeError(f"config={config!r}: give {known}.")
    fields = dict(config) if isinstance(config, Mapping) else dict(config.to_dict())
    if isinstance(config, Mapping):
        check_known(fields)
    fields |= checked_architecture(fields, "config")
    _check_sizes(fields)
    dtype = getattr(torch, plain(fields.get("dtype") or "float32"))
    fields["dtype"] = dtype
    with building(seed, dtype):
        if is_of_recurrent(fields):
            from msp_lens.models.recurrent import HookedRecurrentNetwork

            sizes = {name: value for name, value in fields.items() if name != "dtype"}
            return cast(HookedModel, HookedRecurrentNetwork(RecurrentConfig(**sizes)).to(device, dtype))
        if HUGGING_FACE in fields:
            model = build_network(fields[HUGGING_FACE], dtype)
        else:
            model = _built(fields, as_bridge=not has_hooked_transformer() if bridge is None else bridge)
    # It was built in float32 on the CPU. TransformerLens's `to` takes longer than that, even if nothing is to be moved.
    module: Any = model if dtype == torch.float32 else model.to(dtype, print_details=False)
    moved = module if torch.device(device).type == "cpu" else module.to(device, print_details=False)
    return cast(HookedModel, moved)


@contextmanager
def building(seed: int, dtype: torch.dtype) -> Iterator[None]:
    """The process's random state begins at the seed, and modules are ordinary ones; afterwards all is as it was."""
    with (
        _BUILDING,
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(False),
        torch.enable_grad(),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings(
            "ignore", message=r"HookedTransformer(\.from_pretrained)? is deprecated", category=DeprecationWarning
        )
        before = torch.get_default_dtype()
        try:
            torch.set_default_dtype(torch.float32)
            torch.default_generator.manual_seed(seed)
            yield
        finally:
            torch.set_default_dtype(before)


def check_known(fields: Mapping[str, Any]) -> None:
    """Raise `ValueError` if no version of TransformerLens has a field of this name."""
    known = {*RECURRENT} if is_of_recurrent(fields) else {*ARCHITECTURE, HUGGING_FACE, *_NAMES}
    known |= set() if is_of_recurrent(fields) else _parameters(_bridge_config())
    for name in fields:
        if name not in known:
            of = "recurrent network" if is_of_recurrent(fields) else "model of TransformerLens"
            near = meant(name, sorted(known))
            raise ValueError(f"config has a field {name!r}, which no {of} has: leave it out.{near}")


def _check_sizes(fields: Mapping[str, Any]) -> None:
    needed = ["d_vocab", "n_layers", "d_model", "n_ctx", *["d_head"] * (not is_of_recurrent(fields))]
    missing = [name for name in needed if fields.get(name) in (None, -1)]
    if missing:
        raise ValueError(f"config has no {', '.join(missing)}: give it.")
    sizes = {"n_heads": max(1, fields["d_model"] // fields.get("d_head", 1))} | {
        name: value for name, value in fields.items() if value not in (None, -1)
    }
    context = 0 if HUGGING_FACE in fields or is_of_recurrent(fields) else fields["n_layers"] * fields["n_ctx"] ** 2
    told = ", ".join(f"{name}={fields[name]}" for name in ("n_layers", "d_model", "d_vocab", "n_ctx"))
    check_memory(f"A model of {told}", 4 * least_weights(sizes) + context, "Make it smaller.")


@functools.cache
def _parameters(kind: Any) -> frozenset[str]:
    """What the constructor of a config of TransformerLens's takes, in this class or those that it extends."""
    found = {name for each in kind.__mro__ for name in inspect.signature(each).parameters}
    return frozenset(found - {"self", "args", "kwargs"})


def _bridge_config() -> Any:
    from transformer_lens.config import TransformerBridgeConfig

    return TransformerBridgeConfig


def _built(fields: dict[str, Any], *, as_bridge: bool) -> Any:
    """The model on the CPU, from those fields that its config class accepts in this version."""
    kind: Any
    if as_bridge:
        from transformer_lens.model_bridge import TransformerBridge

        kind, build = _bridge_config(), TransformerBridge.boot_native
        fields = _for_bridge(fields)
    else:
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        kind, build = HookedTransformerConfig, HookedTransformer
    given = {name: value for name, value in fields.items() if name in _parameters(kind) - {"architecture"}}
    try:
        return cast(Any, build)(kind(**given | {"device": "cpu", "seed": None}))
    except (AssertionError, NotImplementedError) as error:
        raise ValueError(f"config: TransformerLens can't build this model ({error}).") from error


def _for_bridge(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields in a bridge's terms; `ValueError` if they ask for what a bridge would take no notice of."""
    given = {name: fields[name] for name in _NOT_IN_A_BRIDGE if fields.get(name) is not None}
    if asked := [f"{name}={value!r}" for name, value in given.items() if value != _NOT_IN_A_BRIDGE[name]]:
        raise ValueError(f"config has {', '.join(asked)}, which a native bridge does not have: leave it out.")
    # A HookedTransformer's config holds the actual scale, √d_head; a bridge's holds -1 for this default.
    usual = math.isclose(fields.get("attn_scale") or -1.0, math.sqrt(fields["d_head"]))
    return {name: value for name, value in fields.items() if name != "attn_scale" or not usual}


def untrained_like(model: HookedModel, *, seed: int) -> HookedModel:
    """A model of the same architecture with new weights, each of the same dtype and on the same device.

    A network of Hugging Face's within a bridge is built anew from its own config, without a hub.

    Raises:
        ValueError: if the model has no config, or another model would be built from it.
    """
    module: Any = unwrapped(model)
    if not hasattr(getattr(module, "cfg", None), "to_dict"):
        raise ValueError(f"An untrained twin is built from model.cfg, which {type(module).__name__} lacks.")
    try:
        if holds_network(module):
            with building(seed, torch.float32):
                twin: Any = network_like(module)
        else:
            # Only a bridge has a weight of this name.
            bridge = True if "embed.weight" in module.state_dict() else None
            twin = build_model(config_fields(model), seed=seed, bridge=bridge)
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, RuntimeError) as error:
        told = str(error).rstrip(".")
        raise ValueError(f"No untrained twin could be built from the model's config: {told}.") from error
    states = [cast(Mapping[str, Tensor], each.state_dict()) for each in (twin, module)]
    shapes, expected = (
        {name: tuple(each.shape) for name, each in state.items() if not name.endswith(DERIVED_BUFFERS)}
        for state in states
    )
    if shapes != expected:
        differing = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
        told = "The model's config does not determine its architecture: a model built from it differs in"
        raise ValueError(f"{told} {', '.join(differing[:3])}.")
    return _placed_like(twin, module)


def _placed_like(twin: Any, model: Any) -> HookedModel:
    """The twin with each of its tensors moved to the device and the dtype of the model's."""
    if holds_network(model) and is_dispatched(model.original_model):
        return twin
    others = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, own in (*twin.named_parameters(), *twin.named_buffers()):
        if (other := others.get(name)) is not None:
            own.data = own.data.to(device=other.device, dtype=other.dtype)
    for name in ("device", "dtype", "n_devices"):
        if hasattr(model.cfg, name):
            setattr(twin.cfg, name, getattr(model.cfg, name))
    return twin


def config_fields(model: HookedModel) -> dict[str, Any]:
    """The model's configuration as JSON-ready values, from which `build_model` builds a model of the same kind.

    It raises `ValueError` if the model has no config, or is a network of Hugging Face's that can't be described.
    """
    module = unwrapped(model)
    config = getattr(module, "cfg", None)
    if not callable(getattr(config, "to_dict", None)):
        raise ValueError(
            f"A {type(module).__name__} has no cfg that says how to build it again: save its weights with "
            "safetensors.torch.save_file(model.state_dict(), …)."
        )
    fields = cast(Any, config).to_dict()
    # The names, the device and the seed do not describe the model.
    known = RECURRENT if is_of_recurrent(fields) else ARCHITECTURE
    found = {name: fields[name] for name in known if name in fields}
    dtypes = [each.dtype for each in module.parameters() if each.is_floating_point()]
    found |= {"dtype": dtypes[0]} if dtypes else {}
    described = network_description(module)
    return plain(found | ({HUGGING_FACE: described} if described else {}))


def config_class(fields: Mapping[str, Any]) -> type[ModelConfig | RecurrentConfig]:
    """The class of the config that has these fields."""
    return RecurrentConfig if is_of_recurrent(fields) else ModelConfig


def weights(model: HookedModel) -> dict[str, Tensor]:
    """The model's state by name, on the CPU, each in memory of its own, without buffers that its config determines."""
    module = cast(Any, unwrapped(model))
    check_offloaded(module)
    state, offloaded = module.state_dict().items(), offloaded_tensors(module)
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in state:
        if not name.endswith(DERIVED_BUFFERS):
            here = offloaded[storage_of(tensor)]().to(tensor.dtype) if tensor.is_meta else tensor
            found[name] = here.detach().cpu().contiguous()
            memory = found[name].untyped_storage().data_ptr()
            # Weights that are tied, such as an unembedding that is the embedding, share their memory.
            if memory in seen:
                found[name] = found[name].clone()
            seen.add(memory)
    return found


@checked
def load_weights(model: HookedModel, state: Mapping[str, Any]) -> None:
    """Load a state dict of any TransformerLens version into a model that you have.

    `load_model` builds the model, too, from what the weights show; `load_checkpoint` reads a file that msp_lens saved,
    with its process.

    Args:
        model: A model of the same architecture. A bridge takes a HookedTransformer's weights, too.
        state: Tensors or arrays by name, as `model.state_dict()` and `safetensors.torch.load_file` give them. The names
            may be those of a compiled model (`_orig_mod.…`) or of one in `DataParallel` (`module.…`).

    Raises:
        TypeError: if this is no state dict.
        ValueError: if weights are missing, left over, of another shape (the message names each), complex, NaN or
            infinite, or were trained with other rotary angles; or the model's are offloaded. The model is unchanged.
    """
    module = cast(Any, unwrapped(model))
    if any(each.is_meta for each in module.parameters()):
        raise ValueError("Some of the model's weights are offloaded, and cannot be replaced: load the model anew.")
    everything = state_tensors(state)
    tensors = {name: each for name, each in everything.items() if not name.endswith(DERIVED_BUFFERS)}
    expected = weights(model)
    if "embed.W_E" in tensors and "embed.W_E" not in expected:
        tensors = converted_weights(tensors, module.cfg)
        # A bridge's gated MLP has no biases; those of most models are zero.
        idle = {name for name in tensors.keys() - expected.keys() if name.endswith((".in.bias", ".out.bias"))}
        tensors = {name: each for name, each in tensors.items() if name not in idle or bool(each.any())}
    if misfits := _misfits(tensors, expected):
        raise ValueError(
            f"These weights do not fit this model: {'; '.join(misfits)}. Build the model with the config that the "
            "weights were saved with."
        )
    _check_rotation(everything, module)
    for name, tensor in tensors.items():
        if tensor.is_complex() or not bool(torch.isfinite(tensor).all()):
            what = "complex numbers" if tensor.is_complex() else "NaN or infinity"
            raise ValueError(f"The weights {name!r} hold {what}: load a checkpoint from before the training diverged.")
    module.load_state_dict(tensors, strict=False)


def _misfits(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """What does not match, tensor by tensor: missing, left over, or of another shape than the model's."""
    both = {name: (tuple(tensors[name].shape), tuple(expected[name].shape)) for name in expected if name in tensors}
    found = {
        "missing": [name for name in expected if name not in tensors],
        "left over": [name for name in tensors if name not in expected],
        "of another shape": [f"{name} {has}, the model's {its}" for name, (has, its) in both.items() if has != its],
    }
    return [f"{what} ({len(names)}): {listed(names)}" for what, names in found.items() if names]


def listed(names: Sequence[str], most: int = 24) -> str:
    """The names, but not more than can be read."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _check_rotation(state: Mapping[str, Tensor], module: Any) -> None:
    """Raise `ValueError` if angles beside the weights are not the model's own, which it keeps."""
    own, config = module.state_dict(), cast(Any, getattr(module, "cfg", None))
    for name, table in state.items():
        part = name.rpartition(".")[2]
        if part not in ("rotary_sin", "rotary_cos") or getattr(config, "rotary_dim", None) is None:
            continue
        sizes = config.n_ctx, config.rotary_dim, config.rotary_base
        expected = rotary_angles(*sizes, adjacent=bool(config.rotary_adjacent_pairs))[part == "rotary_cos"]
        expected = own.get(name, expected)
        if table.shape != expected.shape or not torch.allclose(table.double(), expected.double(), rtol=0, atol=2e-2):
            told = f"{name} is not what the model has with rotary_base={config.rotary_base} and n_ctx={config.n_ctx}"
            raise ValueError(f"These weights do not fit this model: {told}. Build it with the config of the weights.")


def state_tensors(state: Mapping[str, Any], where: str = "state") -> dict[str, Tensor]:
    """The tensors of a state dict, buffers included, under the names that the model itself has for them."""
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        try:
            tensors[str(name)] = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(
                f"{where}[{name!r}] is a {type(value).__name__}: give tensors by name, as model.state_dict() does."
            ) from None
    return own_names(tensors)


def own_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model's state without the prefix that a wrapper of the model gave to all their names."""
    for prefix in ("_orig_mod.", "module."):
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return dict(tensors)
