"""What may be said of a model's architecture, and nothing else: in a file, in a mapping, in a config.

A checkpoint may come from anywhere, and TransformerLens acts on its config: a `tokenizer_name` loads a tokenizer, with
`trust_remote_code` by running its code. So only the fields below are read, each with its type and range, and sizes are
compared with the tensors that the file really holds before anything is allocated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from msp_lens._checks import AtLeast, Between, Count, converted
from msp_lens.models import hugging_face

# The key under which a network of Hugging Face's within a bridge is described.
HUGGING_FACE = "hugging_face"

ActivationFunction = Literal[
    "relu", "gelu", "silu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "solu", "solu_ln", "xielu", "relu2"
]
Normalization = Literal["LN", "LNPre", "RMS", "RMSPre"] | None

_SIZES = ("d_vocab", "n_layers", "d_model", "n_heads", "d_head", "n_ctx")
_COUNTS = (  # noqa: SIM905 (words are easier to read)
    "d_mlp d_vocab_out n_key_value_heads rotary_dim window_size num_experts experts_per_token "
    "relative_attention_max_distance relative_attention_num_buckets"
).split()
_NUMBERS = (  # noqa: SIM905
    "eps attn_scale clip_qkv initializer_range rotary_base rotary_base_local rotary_scaling_factor "
    "attn_scores_soft_cap output_logits_soft_cap NTK_by_parts_low_freq_factor NTK_by_parts_high_freq_factor "
    "NTK_by_parts_factor NTK_original_ctx_len yarn_factor yarn_attention_factor yarn_beta_fast yarn_beta_slow "
    "yarn_original_max_position_embeddings train_seq_length"
).split()
_SWITCHES = (  # noqa: SIM905
    "attn_only gated_mlp uses_rms_norm final_rms use_attn_scale use_qk_norm use_logn_attn use_local_attn "
    "ungroup_grouped_query_attention scale_attn_by_inverse_layer_idx parallel_attn_mlp post_embedding_ln "
    "rotary_adjacent_pairs tie_word_embeddings use_normalization_before_and_after use_NTK_by_parts_rope "
    "use_attention_sinks norm_topk_prob rmsnorm_uses_offset use_dynamic_ntk_rope use_attn_result "
    "use_split_qkv_input use_hook_mlp_in use_attn_in use_hook_tokens use_yarn_rope yarn_truncate "
    "yarn_global_attn_only default_prepend_bos tokenizer_prepends_bos"
).split()
_NUMBER = int | Annotated[float, Between(-1e30, 1e30)]

ARCHITECTURE: Mapping[str, Any] = {
    **dict.fromkeys(_SIZES, Count),
    **dict.fromkeys(_COUNTS, Annotated[int, AtLeast(0)]),
    **dict.fromkeys(_NUMBERS, _NUMBER),
    **dict.fromkeys(_SWITCHES, bool),
    "act_fn": ActivationFunction,
    "normalization_type": Normalization,
    "positional_embedding_type": Literal["standard", "rotary", "shortformer", "alibi", "relative_positional_bias"],
    "attention_dir": Literal["causal", "bidirectional"],
    "attn_types": list[Literal["global", "local"]],
    "init_mode": Literal["gpt2", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "muP"],
    "dtype": Literal["float32", "float64", "bfloat16", "float16"],
}
# The longest context that no tensor needs to show: a model makes a mask of one boolean for each pair of positions.
_LONGEST = 2**13


def plain(value: Any) -> Any:
    """The value as JSON has it, whatever scalar or container it came in; `TypeError` if JSON has nothing like it."""
    if isinstance(value, np.generic | np.ndarray | Tensor):
        value = value.tolist()
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r} is a {type(value).__name__}, which a file can't hold.")


def checked_architecture(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Those fields that describe an architecture, as plain values; the rest is left out.

    Raises:
        ValueError, TypeError: if one has the wrong type or range; the message begins with the place.
    """
    found: dict[str, Any] = {}
    for name, annotation in ARCHITECTURE.items():
        value = fields.get(name)
        # TransformerLens writes None for what there isn't, and -1 for what it will work out.
        is_open = value is None or (name not in _SIZES and _is_minus_one(value))
        if not is_open or (name == "normalization_type" and name in fields):
            value = plain(value) if isinstance(value, torch.dtype) else value
            found[name] = converted(value, annotation, f"{where}.{name}")
    if fields.get(HUGGING_FACE) is not None:
        found[HUGGING_FACE] = hugging_face.checked_description(fields[HUGGING_FACE], f"{where}.{HUGGING_FACE}")
    return found


def _is_minus_one(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and bool(value == -1)


def fitting_architecture(fields: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Any) -> dict[str, Any]:
    """The architecture that a file tells of, fit for `build_model`, if its tensors can be that architecture's weights.

    Args:
        fields: The config, as JSON gave it.
        tensors: The weights.
        path: The file of the weights, for messages.

    Raises:
        ValueError: if a field is missing, has the wrong type or range, or claims a size that the weights do not have.
    """

    def refuse(what: str) -> ValueError:
        return ValueError(f"{path}: {what}. Check that the description is of these weights, and that both are whole.")

    try:
        found = checked_architecture(fields, "model")
    except (TypeError, ValueError) as error:
        raise refuse(str(error).rstrip(".")) from None
    if missing := [name for name in _SIZES if name not in found]:
        raise refuse(f"model.{missing[0]} is missing")
    sizes = found
    if HUGGING_FACE in found:
        sizes = hugging_face.sizes(found[HUGGING_FACE])
        for name in _SIZES:
            if sizes[name] != found[name]:
                raise refuse(f"model.{name} is both {found[name]} and {sizes[name]}")
    elif found["n_ctx"] > _LONGEST and not any(found["n_ctx"] in tensor.shape for tensor in tensors.values()):
        raise refuse(f"n_ctx={found['n_ctx']}, but no weight is as long")
    layers = {int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))}
    if sizes["n_layers"] != len(layers):
        raise refuse(f"n_layers={sizes['n_layers']}, but there are the weights of {len(layers)} layers")
    held, least = sum(tensor.numel() for tensor in tensors.values()), least_weights(sizes)
    if least > held:
        raise refuse(f"sizes that need at least {least:,} weights, but there are {held:,}")
    return found


def least_weights(sizes: Mapping[str, Any]) -> int:
    """The number of weights that a model of these sizes has at least."""
    d_model, n_heads = sizes["d_model"], sizes["n_heads"]
    key_value_heads = sizes.get("n_key_value_heads") or n_heads
    attention = 2 * (n_heads + key_value_heads) * sizes["d_head"] * d_model
    mlp = 0 if sizes.get("attn_only") else 2 * (sizes.get("d_mlp") or 0) * d_model * (sizes.get("num_experts") or 1)
    vocabulary = sizes["d_vocab"] + (sizes.get("d_vocab_out") or 0)
    positions = sizes["n_ctx"] if sizes.get("positional_embedding_type", "standard") == "standard" else 0
    buckets = (sizes.get("relative_attention_num_buckets") or 0) * n_heads
    return sizes["n_layers"] * (attention + mlp) + (vocabulary + positions) * d_model + buckets
