"""What may be said of a model's architecture, and nothing else: in a file, in a mapping, in a config.

A checkpoint may come from anywhere, and TransformerLens acts on its config: a `tokenizer_name` loads a tokenizer, with
`trust_remote_code` by running its code. So only the fields below are read, each with its type and range, and sizes are
compared with the tensors that the file really holds before anything is allocated. The same goes for networks of Hugging
Face's within a bridge, of which GPT-2 and Llama can be described and built anew, without a hub.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Optional

import numpy as np
import torch
from torch import Tensor

from msp_lens._checks import AtLeast, Between, Count, Share, checked, converted

# The key under which a network of Hugging Face's within a bridge is described.
HUGGING_FACE = "hugging_face"

ActivationFunction = Literal[
    "relu", "gelu", "silu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "solu", "solu_ln", "xielu", "relu2"
]
Normalization = Literal["LN", "LNPre", "RMS", "RMSPre"] | None

RecurrentKind = Literal["rnn", "gru", "lstm", "ssm"]


@checked
@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """A small recurrent network: embedding, layers one after another, unembedding.

    Attributes:
        kind: `"rnn"` (Elman's, with tanh), `"gru"` or `"lstm"`, torch's own; or `"ssm"`, a selective state-space model,
            whose layers are a diagonal linear recurrence and an MLP, each added to a residual stream.
        d_vocab: Number of tokens.
        n_layers: Number of layers.
        d_model: Width of embedding, hidden state and cell.
        n_ctx: Tokens in a word that it is trained on; it reads longer ones, too.
    """

    kind: RecurrentKind
    d_vocab: Count
    n_layers: Count = 1
    d_model: Count = 64
    n_ctx: Count = 10

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return dataclasses.asdict(self)


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
# Of a recurrent network, which is told by its `kind`, and how many square matrices a layer has.
_RECURRENT_SIZES = ("d_vocab", "n_layers", "d_model", "n_ctx")
RECURRENT: Mapping[str, Any] = {
    "kind": RecurrentKind,
    **dict.fromkeys(_RECURRENT_SIZES, Count),
    "dtype": ARCHITECTURE["dtype"],
}
_MATRICES = {"rnn": 2, "gru": 6, "lstm": 8, "ssm": 12}
_TOKEN = Optional[Annotated[int, AtLeast(0)]]  # noqa: UP045 (an annotation that is a value)
_OPTIONAL_SIZE = Optional[Count]  # noqa: UP045
_ACTIVATION = Literal["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu", "swish", "tanh"]
_TOKENS = {"bos_token_id": _TOKEN, "eos_token_id": _TOKEN, "pad_token_id": _TOKEN}
_ROTATION = Mapping[str, _NUMBER | bool | list[_NUMBER] | Literal["default", "linear", "dynamic", "llama3", "yarn"]]

# By the class of the network: the fields of its config and what they may hold.
_NETWORK_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "GPT2LMHeadModel": {
        **dict.fromkeys(("n_layer", "n_embd", "n_head", "vocab_size", "n_positions"), Count),
        "n_inner": _OPTIONAL_SIZE,
        "activation_function": _ACTIVATION,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), Share),
        **dict.fromkeys(("layer_norm_epsilon", "initializer_range"), _NUMBER),
        **dict.fromkeys(("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"), bool),
        "tie_word_embeddings": bool,
        **_TOKENS,
    },
    "LlamaForCausalLM": {
        **dict.fromkeys(("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"), Count),
        **dict.fromkeys(("max_position_embeddings", "intermediate_size"), Count),
        **dict.fromkeys(("num_key_value_heads", "head_dim"), _OPTIONAL_SIZE),
        "hidden_act": _ACTIVATION,
        "attention_dropout": Share,
        **dict.fromkeys(("rms_norm_eps", "initializer_range"), _NUMBER),
        **dict.fromkeys(("attention_bias", "mlp_bias", "tie_word_embeddings"), bool),
        "rope_parameters": _ROTATION,
        **_TOKENS,
    },
}
# TransformerLens's names of the sizes.
_NETWORK_SIZES = {
    "GPT2LMHeadModel": {
        **{"n_layers": "n_layer", "d_model": "n_embd", "n_heads": "n_head"},
        **{"d_vocab": "vocab_size", "n_ctx": "n_positions", "d_mlp": "n_inner"},
    },
    "LlamaForCausalLM": {
        **{"n_layers": "num_hidden_layers", "d_model": "hidden_size", "n_heads": "num_attention_heads"},
        **{"d_vocab": "vocab_size", "n_ctx": "max_position_embeddings", "d_mlp": "intermediate_size"},
        **{"n_key_value_heads": "num_key_value_heads", "d_head": "head_dim"},
    },
}
# What says nothing about the function that a network computes.
_BESIDE = (  # noqa: SIM905 (words are easier to read)
    "architectures dtype transformers_version use_cache model_type _name_or_path pretraining_tp return_dict "
    "output_hidden_states output_attentions id2label label2id problem_type summary_type summary_use_proj "
    "summary_activation summary_proj_to_labels summary_first_dropout chunk_size_feed_forward is_encoder_decoder "
    "add_cross_attention task_specific_params n_ctx gradient_checkpointing _model_name_or_path"
).split()

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
    is_recurrent = is_of_recurrent(fields)
    for name, annotation in (RECURRENT if is_recurrent else ARCHITECTURE).items():
        value = fields.get(name)
        # TransformerLens writes None for what there isn't, and -1 for what it will work out.
        is_open = value is None or (name not in _SIZES and _is_minus_one(value))
        if not is_open or (name == "normalization_type" and name in fields):
            value = plain(value) if isinstance(value, torch.dtype) else value
            found[name] = converted(value, annotation, f"{where}.{name}")
    if fields.get(HUGGING_FACE) is not None and not is_recurrent:
        found[HUGGING_FACE] = _checked_network(fields[HUGGING_FACE], f"{where}.{HUGGING_FACE}")
    return found


def is_of_recurrent(fields: Mapping[str, Any]) -> bool:
    """Whether the fields are those of a recurrent network."""
    return fields.get("kind") is not None


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
    is_recurrent = is_of_recurrent(found)
    if missing := [name for name in (_RECURRENT_SIZES if is_recurrent else _SIZES) if name not in found]:
        raise refuse(f"model.{missing[0]} is missing")
    sizes = found
    if HUGGING_FACE in found:
        sizes = _network_sizes(found[HUGGING_FACE])
        for name in _SIZES:
            if sizes[name] != found[name]:
                raise refuse(f"model.{name} is both {found[name]} and {sizes[name]}")
    elif (
        not is_recurrent
        and found["n_ctx"] > _LONGEST
        and not any(found["n_ctx"] in tensor.shape for tensor in tensors.values())
    ):
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
    d_model = sizes["d_model"]
    if is_of_recurrent(sizes):
        return (sizes["n_layers"] * _MATRICES[sizes["kind"]] * d_model + 2 * sizes["d_vocab"]) * d_model
    n_heads = sizes["n_heads"]
    key_value_heads = sizes.get("n_key_value_heads") or n_heads
    attention = 2 * (n_heads + key_value_heads) * sizes["d_head"] * d_model
    mlp = 0 if sizes.get("attn_only") else 2 * (sizes.get("d_mlp") or 0) * d_model * (sizes.get("num_experts") or 1)
    vocabulary = sizes["d_vocab"] + (sizes.get("d_vocab_out") or 0)
    positions = sizes["n_ctx"] if sizes.get("positional_embedding_type", "standard") == "standard" else 0
    buckets = (sizes.get("relative_attention_num_buckets") or 0) * n_heads
    return sizes["n_layers"] * (attention + mlp) + (vocabulary + positions) * d_model + buckets


def holds_network(model: Any) -> bool:
    """Whether the model is a bridge around a network of Hugging Face's."""
    architecture = getattr(getattr(model, "cfg", None), "architecture", None)
    return architecture not in (None, "TransformerLensNative") and hasattr(model, "original_model")


def network_like(bridge: Any) -> Any:
    """A bridge around a new network of the same class and config, with weights drawn from the global generator."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    network = bridge.original_model
    config = copy.deepcopy(network.config)
    again = type(network)(config).train(False)
    if is_dispatched(network):
        again = _dispatched_like(again, network)
    name = bridge.cfg.model_name
    return build_bridge_from_module(again, bridge.cfg.architecture, hf_config=config, model_name=name)


def is_dispatched(network: Any) -> bool:
    """Whether a network of Hugging Face's lies in several pieces: on several devices, or partly on disk."""
    return len(set((getattr(network, "hf_device_map", None) or {}).values())) > 1


def _dispatched_like(network: Any, other: Any) -> Any:
    """The network in pieces that lie where the other's do; what is on disk goes to a folder that ends with it."""
    from accelerate import dispatch_model

    dtype = next(each.dtype for each in other.parameters() if each.is_floating_point())
    for each in network.parameters():
        each.data = each.data.to(dtype)
    places = dict(other.hf_device_map)
    folder = tempfile.TemporaryDirectory() if "disk" in places.values() else None
    network = dispatch_model(network, places, offload_dir=folder and folder.name)
    network.offloaded_to = folder
    return network


def network_description(model: Any) -> dict[str, Any] | None:
    """What `build` builds the network within a bridge from; `None` for any other model.

    It raises `ValueError` if the network is of another kind, or its config holds what can't be described.
    """
    if not holds_network(model):
        return None
    architecture = model.cfg.architecture
    own = "save its weights with its own save_pretrained"
    if architecture not in _NETWORK_FIELDS:
        known = " and ".join(_NETWORK_FIELDS)
        raise ValueError(f"The bridge holds a {architecture}, and only {known} can be built from a file: {own}.")
    config = model.original_model.config
    fields, known = config.to_dict(), _NETWORK_FIELDS[architecture]
    if more := sorted(name for name in fields if name not in known and name not in _BESIDE and fields[name]):
        raise ValueError(f"The config of the {architecture} has {', '.join(more)}, which a file can't say: {own}.")
    kept = {name: fields[name] for name in known if name in fields}
    return {"architecture": architecture, "attention": config._attn_implementation, "fields": kept}


def _checked_network(description: Any, where: str) -> dict[str, Any]:
    """The description with every field checked, and no others; the errors of `converted`."""
    description = converted(description, Mapping[str, Any], where)
    architecture = converted(description.get("architecture"), Literal[tuple(_NETWORK_FIELDS)], f"{where}.architecture")
    attention = converted(description.get("attention"), Literal["eager", "sdpa"], f"{where}.attention")
    given, known = (
        converted(description.get("fields"), Mapping[str, Any], f"{where}.fields"),
        _NETWORK_FIELDS[architecture],
    )
    required = {name for name, annotation in known.items() if annotation == Count}
    fields = {
        name: converted(given.get(name), known[name], f"{where}.fields.{name}")
        for name in known
        if name in given or name in required
    }
    width, n_heads = (fields[_NETWORK_SIZES[architecture][size]] for size in ("d_model", "n_heads"))
    if width % n_heads:
        raise ValueError(f"{where}.fields: a width of {width} does not divide into {n_heads} heads.")
    for name in _TOKENS:
        if (fields.get(name) or 0) >= fields["vocab_size"]:
            raise ValueError(f"{where}.fields.{name}={fields[name]}: give a token below {fields['vocab_size']}.")
    return {"architecture": architecture, "attention": attention, "fields": fields}


def _network_sizes(description: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes in a checked description, under TransformerLens's names."""
    architecture, fields = description["architecture"], description["fields"]
    found = {size: fields[name] for size, name in _NETWORK_SIZES[architecture].items() if fields.get(name) is not None}
    found.setdefault("d_head", found["d_model"] // found["n_heads"])
    return found | {"positional_embedding_type": "standard" if architecture == "GPT2LMHeadModel" else "rotary"}


def build_network(description: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """A bridge around a new network of a checked description, with weights drawn from the global generator."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    if description["architecture"] == "GPT2LMHeadModel":
        from transformers.models.gpt2 import GPT2Config as Config
        from transformers.models.gpt2 import GPT2LMHeadModel as Network
    else:
        from transformers.models.llama import LlamaConfig as Config
        from transformers.models.llama import LlamaForCausalLM as Network

    options: dict[str, Any] = {**description["fields"], "attn_implementation": description["attention"]}
    config: Any = Config(**options)
    network: Any = Network(config)
    network = network.to(dtype).train(False)
    return build_bridge_from_module(network, description["architecture"], hf_config=config, dtype=dtype)
