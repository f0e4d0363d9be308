"""Networks of Hugging Face's within a bridge: loaded, described in a file, and built anew with random weights.

What TransformerLens has a bridge for can be loaded. GPT-2 and Llama can be described: only the fields below are read,
since a config of Hugging Face's may name code and repositories, too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Optional

import torch

from msp_lens._checks import AtLeast, Between, Count, Share, converted

_NUMBER = int | Annotated[float, Between(-1e30, 1e30)]
_TOKEN = Optional[Annotated[int, AtLeast(0)]]  # noqa: UP045 (an annotation that is a value)
_OPTIONAL_SIZE = Optional[Count]  # noqa: UP045
_ACTIVATION = Literal["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu", "swish", "tanh"]
_TOKENS = {"bos_token_id": _TOKEN, "eos_token_id": _TOKEN, "pad_token_id": _TOKEN}
_ROTATION = Mapping[str, _NUMBER | bool | list[_NUMBER] | Literal["default", "linear", "dynamic", "llama3", "yarn"]]

# By the class of the network: the fields of its config and what they may hold.
_FIELDS: Mapping[str, Mapping[str, Any]] = {
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
_NAMES = {
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
# What a folder with a tokenizer has at least one of.
_OF_A_TOKENIZER = re.compile(r"tokenizer.*\.json|vocab\..*|merges\.txt|.*\.model|tekken\.json")


def description_of(model: Any) -> dict[str, Any] | None:
    """What `build` builds the network within a bridge from; `None` for any other model.

    It raises `ValueError` if the network is of another kind, or its config holds what can't be described.
    """
    architecture = getattr(getattr(model, "cfg", None), "architecture", None)
    if architecture in (None, "TransformerLensNative"):
        return None
    own = "save its weights with its own save_pretrained"
    if architecture not in _FIELDS:
        known = " and ".join(_FIELDS)
        raise ValueError(f"The bridge holds a {architecture}, and only {known} can be built from a file: {own}.")
    config = model.original_model.config
    fields, known = config.to_dict(), _FIELDS[architecture]
    if more := sorted(name for name in fields if name not in known and name not in _BESIDE and fields[name]):
        raise ValueError(f"The config of the {architecture} has {', '.join(more)}, which a file can't say: {own}.")
    kept = {name: fields[name] for name in known if name in fields}
    return {"architecture": architecture, "attention": config._attn_implementation, "fields": kept}


def checked_description(description: Any, where: str) -> dict[str, Any]:
    """The description with every field checked, and no others; the errors of `converted`."""
    description = converted(description, Mapping[str, Any], where)
    architecture = converted(description.get("architecture"), Literal[tuple(_FIELDS)], f"{where}.architecture")
    attention = converted(description.get("attention"), Literal["eager", "sdpa"], f"{where}.attention")
    given, known = converted(description.get("fields"), Mapping[str, Any], f"{where}.fields"), _FIELDS[architecture]
    required = {name for name, annotation in known.items() if annotation == Count}
    fields = {
        name: converted(given.get(name), known[name], f"{where}.fields.{name}")
        for name in known
        if name in given or name in required
    }
    width, n_heads = (fields[_NAMES[architecture][size]] for size in ("d_model", "n_heads"))
    if width % n_heads:
        raise ValueError(f"{where}.fields: a width of {width} does not divide into {n_heads} heads.")
    for name in _TOKENS:
        if (fields.get(name) or 0) >= fields["vocab_size"]:
            raise ValueError(f"{where}.fields.{name}={fields[name]}: give a token below {fields['vocab_size']}.")
    return {"architecture": architecture, "attention": attention, "fields": fields}


def sizes(description: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes in a checked description, under TransformerLens's names."""
    architecture, fields = description["architecture"], description["fields"]
    found = {size: fields[name] for size, name in _NAMES[architecture].items() if fields.get(name) is not None}
    found.setdefault("d_head", found["d_model"] // found["n_heads"])
    return found | {"positional_embedding_type": "standard" if architecture == "GPT2LMHeadModel" else "rotary"}


def build(description: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """A bridge around a new network of a checked description, with weights drawn from the global generator."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    if description["architecture"] == "GPT2LMHeadModel":
        from transformers import GPT2Config as Config
        from transformers import GPT2LMHeadModel as Network
    else:
        from transformers import LlamaConfig as Config
        from transformers import LlamaForCausalLM as Network

    options: dict[str, Any] = {**description["fields"], "attn_implementation": description["attention"]}
    config: Any = Config(**options)
    network: Any = Network(config)
    network = network.to(dtype).train(False)
    return build_bridge_from_module(network, description["architecture"], hf_config=config, dtype=dtype)


def load(
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
    from transformers import AutoConfig

    source: dict[str, Any] = {"local_files_only": is_local, "trust_remote_code": False}
    source |= {"gguf_file": gguf_file} if gguf_file else {}
    config: Any = AutoConfig.from_pretrained(where, **source)
    architecture = determine_architecture_from_hf_config(config)
    options = {"attn_implementation": "eager", "device_map": device_map, "dtype": dtype or "auto"} | source
    options |= {} if gguf_file else {"use_safetensors": True}
    kind: Any = get_hf_model_class_for_architecture(architecture)
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
    from transformers import AutoTokenizer

    for options in ({"add_bos_token": True}, {}):
        try:
            return AutoTokenizer.from_pretrained(where, **options, **source)
        except ValueError:
            # Without a BOS token there is none to add.
            continue
        except (OSError, KeyError, ImportError, TypeError):
            return None
    return None
