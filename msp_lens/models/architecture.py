"""What a file may say of a model: its architecture, and nothing else.

A checkpoint may come from anywhere, and TransformerLens acts on its config: a `tokenizer_name` loads a tokenizer, with
`trust_remote_code` by running its code. So only the fields below are read, each with its type and range, and sizes are
compared with the tensors that the file really holds before anything is allocated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from msp_lens._checks import check_choice

_SIZES = ("d_vocab", "n_layers", "d_model", "n_heads", "d_head", "n_ctx")
_OPTIONAL_SIZES = ("d_mlp", "d_vocab_out", "n_key_value_heads", "rotary_dim", "window_size", "num_experts")
_COUNTS = ("experts_per_token", "relative_attention_max_distance", "relative_attention_num_buckets")
_NUMBERS = (  # noqa: SIM905 (words are easier to read)
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
    "yarn_global_attn_only"
).split()
_CHOICES = {
    "act_fn": (
        *("relu", "gelu", "silu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "solu", "solu_ln"),
        "xielu",
        "relu2",
    ),
    "normalization_type": ("LN", "LNPre", "RMS", "RMSPre", None),
    "positional_embedding_type": ("standard", "rotary", "shortformer", "alibi", "relative_positional_bias"),
    "attention_dir": ("causal", "bidirectional"),
    "dtype": ("float32", "float64", "bfloat16", "float16"),
}
# The longest context that no tensor needs to show: a model makes a mask of one boolean for each pair of positions.
_LONGEST = 2**13


def checked_architecture(fields: Any, tensors: Mapping[str, Tensor], path: Any) -> dict[str, Any]:
    """The architecture in a checkpoint's header, fit for `build_model`; fields that say something else are left out.

    Args:
        fields: The config in the header, as JSON gave it.
        tensors: The weights in the same file.
        path: The file, for messages.

    Raises:
        ValueError: if a field is missing, has the wrong type or range, or claims a size that the weights do not have.
    """

    def refuse(what: str) -> ValueError:
        return ValueError(
            f"{path}: {what}. The file is damaged or was edited: copy it again, or train the model again."
        )

    if not isinstance(fields, Mapping):
        raise refuse(f"its model is described by a {type(fields).__name__}, not by named fields")
    found: dict[str, Any] = {}
    for name in (*_SIZES, *_OPTIONAL_SIZES, *_COUNTS):
        value = fields.get(name)
        if value is None and name not in _SIZES:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < (1 if name in _SIZES else 0):
            raise refuse(f"{name}={value!r} is not a size")
        found[name] = value
    for name in _NUMBERS:
        value = fields.get(name)
        if value is not None:
            if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
                raise refuse(f"{name}={value!r} is not a finite number")
            found[name] = value
    for name in _SWITCHES:
        if name in fields:
            if not isinstance(fields[name], bool):
                raise refuse(f"{name}={fields[name]!r} is neither true nor false")
            found[name] = fields[name]
    for name, choices in _CHOICES.items():
        if name in fields:
            try:
                check_choice(name, fields[name], choices)
            except ValueError as error:
                raise refuse(str(error).rstrip(".")) from None
            found[name] = fields[name]
    _check_sizes(found, tensors, refuse)
    return found


def _check_sizes(found: Mapping[str, Any], tensors: Mapping[str, Tensor], refuse: Any) -> None:
    held = sum(tensor.numel() for tensor in tensors.values())
    layers = {int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))}
    if found["n_layers"] != len(layers):
        raise refuse(f"n_layers={found['n_layers']}, but it holds the weights of {len(layers)} layers")
    if found["n_ctx"] > _LONGEST and not any(found["n_ctx"] in tensor.shape for tensor in tensors.values()):
        raise refuse(f"n_ctx={found['n_ctx']}, but no weight is as long")
    attention = 2 * found["n_heads"] * found["d_head"] * found["d_model"]
    mlp = 0 if found.get("attn_only") else 2 * found.get("d_mlp", 0) * found["d_model"]
    positions = found["n_ctx"] * found["d_model"] if found.get("positional_embedding_type") == "standard" else 0
    least = found["n_layers"] * (attention + mlp) + found["d_vocab"] * found["d_model"] + positions
    if least > held:
        raise refuse(f"its sizes need at least {least:,} weights, and it holds {held:,}")
