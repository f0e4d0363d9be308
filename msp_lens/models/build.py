"""Build a model; the one module that knows about TransformerLens's versions.

TransformerLens 3 has `HookedTransformer`. TransformerLens 4 removed it for `TransformerBridge.boot_native`, which
offers the same hooks under the same names.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from msp_lens._checks import check_at_least
from msp_lens.models.hooked import HookedModel

# Buffers in a HookedTransformer's state that its config determines.
_DERIVED_BUFFERS = (".attn.mask", ".attn.IGNORE")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A small causal transformer, in TransformerLens's own terms. The defaults are the paper's model for Mess3.

    Source: Shai et al. 2024 (arXiv 2405.15943), appendix.
    """

    d_vocab: int
    n_layers: int = 4
    d_model: int = 64
    n_heads: int = 1
    d_head: int = 8
    d_mlp: int = 256
    n_ctx: int = 10
    act_fn: str = "relu"
    normalization_type: str | None = "LN"
    attn_only: bool = False

    def __post_init__(self) -> None:
        for field in ("d_vocab", "n_layers", "d_model", "n_heads", "d_head", "d_mlp", "n_ctx"):
            check_at_least(field, getattr(self, field), 1)

    def to_dict(self) -> dict[str, Any]:
        """The fields under TransformerLens's names."""
        return dataclasses.asdict(self)


def transformer_lens_version() -> str:
    """The installed version of TransformerLens."""
    return importlib.metadata.version("transformer-lens")


def versions() -> dict[str, str]:
    """The versions that results depend on."""
    return {
        "msp_lens": importlib.metadata.version("msp-lens"),
        "transformer_lens": transformer_lens_version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def has_hooked_transformer() -> bool:
    """Whether the installed TransformerLens still has `HookedTransformer`."""
    return int(transformer_lens_version().split(".")[0]) < 4


def build_model(
    config: ModelConfig | Mapping[str, Any] | Any,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    bridge: bool | None = None,
) -> HookedModel:
    """A freshly initialized model: a `HookedTransformer` under TransformerLens 3, a native `TransformerBridge` under 4.

    Args:
        config: A `ModelConfig`, a mapping with TransformerLens's field names, or a TransformerLens config.
        seed: Seed of the initial weights. The global random state does not change.
        device: Where to put the model.
        bridge: Whether to build a `TransformerBridge`; by default only if there is no `HookedTransformer`.

    Raises:
        ValueError: if the device cannot be used.

    Example:
        >>> model = build_model(ModelConfig(d_vocab=3), seed=0)
        >>> model(torch.zeros(2, 10, dtype=torch.int64)).shape
        torch.Size([2, 10, 3])
    """
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={str(device)!r} can't be used here ({reason}): leave it out for the CPU.") from None
    fields = dict(config) if isinstance(config, Mapping) else dict(config.to_dict())
    if isinstance(fields.get("dtype"), str):
        fields["dtype"] = getattr(torch, fields["dtype"])
    # Built on the CPU, so that a seed gives the same weights on every device.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="HookedTransformer is deprecated", category=DeprecationWarning)
        torch.default_generator.manual_seed(seed)
        model = _built(fields, as_bridge=not has_hooked_transformer() if bridge is None else bridge)
        return cast(HookedModel, model.to(device, print_details=False))


def _built(fields: dict[str, Any], *, as_bridge: bool) -> Any:
    """The model on the CPU, from those fields that its config class accepts in this version."""
    if as_bridge:
        from transformer_lens.config import TransformerBridgeConfig
        from transformer_lens.model_bridge import TransformerBridge

        kind, build = TransformerBridgeConfig, TransformerBridge.boot_native
        # A HookedTransformer's config holds the actual scale, √d_head; a bridge's holds -1 for this default.
        fields = {key: value for key, value in fields.items() if key not in ("attn_scale", "original_architecture")}
    else:
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        kind, build = HookedTransformerConfig, HookedTransformer
    accepted = {field.name for field in dataclasses.fields(kind)}
    known = {key: value for key, value in fields.items() if key in accepted}
    return cast(Any, build)(kind(**known | {"device": "cpu", "seed": None}))


def config_fields(model: HookedModel) -> dict[str, Any]:
    """The model's configuration as JSON-ready values, from which `build_model` builds a model of the same kind."""
    fields = cast(Any, model).cfg.to_dict()
    # The device and the seed do not describe the model.
    fields = {key: fields[key] for key in fields if key not in ("device", "seed", "n_params", "n_devices")}
    named = {key: str(each).removeprefix("torch.") for key, each in fields.items() if isinstance(each, torch.dtype)}
    plain = {key: each for key, each in fields.items() if each is None or isinstance(each, bool | int | float | str)}
    return plain | named


def weights(model: HookedModel) -> dict[str, Tensor]:
    """The model's state by name, on the CPU, without the buffers that its config determines."""
    state = cast(Any, model).state_dict().items()
    return {name: each.detach().cpu().contiguous() for name, each in state if not name.endswith(_DERIVED_BUFFERS)}


def load_weights(model: HookedModel, state: Mapping[str, Tensor]) -> None:
    """Load a state dict of either TransformerLens version into the model.

    It raises `ValueError`, and leaves the model unchanged, if weights are missing, left over or of another shape.
    """
    state = {name: tensor for name, tensor in state.items() if not name.endswith(_DERIVED_BUFFERS)}
    module = cast(Any, model)
    if "embed.W_E" in state and "embed.W_E" not in module.state_dict():
        # Only TransformerLens 4 has this function, and only there is it needed.
        from transformer_lens.utilities.tl_checkpoint_conversion import (  # pyright: ignore[reportMissingImports]
            convert_tl_checkpoint,
        )

        state = convert_tl_checkpoint(state, module.cfg)
    expected = weights(model)
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    misshapen = [name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape]
    if missing or unexpected or misshapen:
        raise ValueError(
            f"These weights do not fit this model: missing {missing[:3]}, left over {unexpected[:3]}, of another shape "
            f"{misshapen[:3]}. Build the model with the config that the weights were saved with."
        )
    module.load_state_dict(state, strict=False)
