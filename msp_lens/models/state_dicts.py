"""Plain state dicts: what names, shapes and buffers show of the architecture, and a HookedTransformer's for a bridge.

The weights are those of a `HookedTransformer`, as any version of TransformerLens saved them, or of a native bridge.
Among a HookedTransformer's are buffers of attention: rotary angles, which show their base, and up to TransformerLens
3.8 the mask, which shows how far attention goes. TransformerLens 4 itself can convert the weights for a bridge, but
not rotary ones; TransformerLens 3.9 cannot.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

_Shapes = Mapping[str, tuple[int, ...]]

# What is assumed where nothing shows it: a model without weights in its LayerNorms has most likely had them folded into
# the next layer's, as TransformerLens does.
_ASSUMED = {"act_fn": "relu", "normalization_type": "LNPre"}

# Buffers in a HookedTransformer's state that its config determines.
DERIVED_BUFFERS = (".attn.mask", ".attn.IGNORE", ".attn.rotary_sin", ".attn.rotary_cos")

_Convert = Callable[[Tensor], Tensor]


def shown_architecture(tensors: Mapping[str, Tensor], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of a config that the weights show, under TransformerLens's names.

    It raises `ValueError` if these are no such weights, or those of a bridge and `given` does not say how many heads
    they are of.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if "embed.weight" in shapes:
        shapes = _of_a_bridge(shapes, given, where)
    needed = {"embed.W_E": 2, "unembed.W_U": 2, "blocks.0.attn.W_Q": 3}
    if missing := [name for name, n_axes in needed.items() if len(shapes.get(name, ())) != n_axes]:
        found = ", ".join(sorted(map(str, tensors))[:3]) or "nothing"
        raise ValueError(
            f"{where}: these are no weights of a HookedTransformer or a native bridge, which have {missing[0]}; here "
            f"are {found}. Of a network of Hugging Face's, give the folder with its config.json; build any other "
            "yourself and use load_weights(model, state)."
        )
    (d_vocab, d_model), (_, d_vocab_out) = shapes["embed.W_E"], shapes["unembed.W_U"]
    n_layers = 1 + max(int(found[1]) for name in shapes if (found := re.match(r"blocks\.(\d+)\.", name)))
    fields: dict[str, Any] = {"d_vocab": d_vocab, "d_model": d_model, "n_layers": n_layers}
    fields |= {"d_vocab_out": d_vocab_out} if d_vocab_out != d_vocab else {}
    first = {name.removeprefix("blocks.0."): shape for name, shape in shapes.items() if name.startswith("blocks.0.")}
    fields |= _attention(first) | _mlp(first) | _normalization(first, shapes)
    return fields | _masking(tensors, n_layers) | _positions(tensors, shapes)


def completed_architecture(
    shown: Mapping[str, Any], given: Mapping[str, Any], where: str
) -> tuple[dict[str, Any], list[str]]:
    """What the weights show and the caller gave, together, and what is assumed, since neither says it.

    It raises `ValueError` if they differ in what would be wrong without a trace, or if neither says what nobody could
    assume. Sizes that differ show when the weights are loaded.
    """
    for name in ("attn_types", "window_size", "rotary_base", "rotary_adjacent_pairs"):
        if name in shown and given.get(name, shown[name]) != shown[name]:
            told = f"config says {name}={given[name]!r}, and the buffers beside the weights {shown[name]!r}"
            raise ValueError(f"{where}: {told}. Leave it out of config.")
    fields = {**shown, **given}
    # What else there is to say of them is not in the weights.
    needed = ["n_ctx", "positional_embedding_type", *["experts_per_token"] * ("num_experts" in shown)]
    if missing := [name for name in needed if fields.get(name) is None]:
        example = ", ".join(f'"{name}": …' for name in missing)
        raise ValueError(f"{where}: the weights do not show {' and '.join(missing)}. Give config={{{example}}}.")
    needed = ["normalization_type", *["act_fn"] * (not fields.get("attn_only"))]
    assumed = {name: _ASSUMED[name] for name in needed if name not in fields}
    return fields | assumed, [f"{name}={value!r}" for name, value in assumed.items()]


def _of_a_bridge(shapes: _Shapes, given: Mapping[str, Any], where: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a native bridge's weights as a HookedTransformer has them."""
    width = shapes.get("blocks.0.attn.q.weight", (0,))[0]
    n_heads = given.get("n_heads") or width // (given.get("d_head") or width + 1)
    if not n_heads or width % n_heads:
        raise ValueError(
            f"{where}: a bridge's weights do not show how many heads they are of ({width} numbers side by side). Give "
            'config={"n_heads": …}.'
        )
    d_head, found = width // n_heads, {}
    for name, shape in shapes.items():
        stem, _, kind = name.rpartition(".")
        module = stem.rpartition(".")[2]
        if module in ("q", "k", "v"):
            stem = stem.removesuffix(f".{module}")
            n_shared = shape[0] // d_head
            # Keys and values shared by several heads have an underscore.
            letter = f"{'_' * (n_shared < n_heads)}{'W' if kind == 'weight' else 'b'}_{module.upper()}"
            found[f"{stem}.{letter}"] = (n_shared, *shape[1:], d_head)
        elif module in ("in", "out", "gate"):
            found[f"{stem.removesuffix(f'.{module}')}.{'W' if kind == 'weight' else 'b'}_{module}"] = shape[::-1]
        else:
            renamed = {"embed": "W_E", "pos_embed": "W_pos", "unembed": "W_U"} if kind == "weight" else {}
            ending = renamed.get(name.removesuffix(".weight"), kind[0])
            found[f"{stem}.{ending}"] = shape[::-1] if ending == "W_U" else shape
    return found


def _attention(first: _Shapes) -> dict[str, Any]:
    n_heads, _, d_head = first["attn.W_Q"]
    fields: dict[str, Any] = {"n_heads": n_heads, "d_head": d_head}
    if "attn._W_K" in first:
        fields["n_key_value_heads"] = first["attn._W_K"][0]
    if any(name.startswith("attn.q_norm") for name in first):
        fields["use_qk_norm"] = True
    return fields


def _mlp(first: _Shapes) -> dict[str, Any]:
    experts = {found[1] for name in first if (found := re.match(r"mlp\.experts\.(\d+)\.", name))}
    if experts:
        # Those of several experts are ordinary linear layers.
        return {"num_experts": len(experts), "d_mlp": first["mlp.experts.0.W_in.weight"][0]}
    if "mlp.W_in" not in first:
        return {"attn_only": True}
    fields: dict[str, Any] = {"d_mlp": first["mlp.W_in"][1]}
    fields |= {"gated_mlp": True} if "mlp.W_gate" in first else {}
    return fields | ({"act_fn": "solu_ln"} if "mlp.ln.w" in first else {})


def _normalization(first: _Shapes, shapes: _Shapes) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if "ln1.w" in first:
        fields["normalization_type"] = "LN" if "ln1.b" in first else "RMS"
    if "ln1_post.w" in first:
        fields["use_normalization_before_and_after"] = True
    if "ln1.b" in first and "ln_final.w" in shapes and "ln_final.b" not in shapes:
        fields["final_rms"] = True
    return fields | ({"post_embedding_ln": True} if "embed.ln.w" in shapes else {})


def _masking(tensors: Mapping[str, Tensor], n_layers: int) -> dict[str, Any]:
    """How far attention goes, by the masks, if they were saved. They are causal even if attention is not."""
    masks = [tensors.get(f"blocks.{layer}.attn.mask", torch.empty(0)) for layer in range(n_layers)]
    if any(mask.numel() == 0 for mask in masks):
        return {}
    n_ctx, reached = len(masks[0]), [int(mask[-1].sum()) for mask in masks]
    if min(reached) == n_ctx:
        return {"n_ctx": n_ctx}
    kinds = ["local" if each < n_ctx else "global" for each in reached]
    return {"n_ctx": n_ctx, "use_local_attn": True, "window_size": min(reached), "attn_types": kinds}


def _positions(tensors: Mapping[str, Tensor], shapes: _Shapes) -> dict[str, Any]:
    if "pos_embed.W_pos" in shapes:
        return {"n_ctx": shapes["pos_embed.W_pos"][0], "positional_embedding_type": "standard"}
    sine, cosine = (tensors.get(f"blocks.0.attn.rotary_{part}") for part in ("sin", "cos"))
    if sine is None or cosine is None:
        return {}
    n_ctx, rotary_dim = sine.shape
    fields = {"n_ctx": n_ctx, "positional_embedding_type": "rotary", "rotary_dim": rotary_dim}
    return fields | _rotation(sine.double(), cosine.double())


def _rotation(sine: Tensor, cosine: Tensor) -> dict[str, Any]:
    """The base of the angles and how they are laid out, if they are plain: nothing of rescaled ones."""
    n_ctx, rotary_dim = sine.shape
    if n_ctx < 2 or rotary_dim < 4:
        return {}
    angles = torch.atan2(sine[1], cosine[1])
    adjacent = bool(torch.isclose(angles[0], angles[1]))
    # Angle i at position 1 is base^(-2i / rotary_dim).
    base = float(angles[-1]) ** (-rotary_dim / (rotary_dim - 2))
    base = round(base) if math.isclose(base, round(base), rel_tol=1e-4) else base
    found = {"rotary_base": base, "rotary_adjacent_pairs": adjacent}
    expected = rotary_angles(n_ctx, rotary_dim, base, adjacent=adjacent)
    close = all(torch.allclose(*pair, rtol=0, atol=1e-3) for pair in zip(expected, (sine, cosine), strict=True))
    return found if close else {}


def rotary_angles(n_ctx: int, rotary_dim: int, base: float, *, adjacent: bool) -> tuple[Tensor, Tensor]:
    """Sines and cosines of the plain rotary angles, `[n_ctx, rotary_dim]`, as a HookedTransformer lays them out.

    Source: Su et al. 2021 (arXiv 2104.09864), equation 15.
    """
    frequencies = base ** (-torch.arange(rotary_dim // 2, dtype=torch.float64) * 2 / rotary_dim)
    angles = torch.arange(n_ctx, dtype=torch.float64)[:, None] * frequencies
    angles = angles.repeat_interleave(2, dim=1) if adjacent else angles.repeat(1, 2)
    return angles.sin(), angles.cos()


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.T


def _heads_in(tensor: Tensor) -> Tensor:
    """`[head, d_model, d_head]` as `[head · d_head, d_model]`."""
    return tensor.transpose(1, 2).flatten(0, 1)


def _heads_out(tensor: Tensor) -> Tensor:
    """`[head, d_head, d_model]` as `[d_model, head · d_head]`."""
    return tensor.flatten(0, 1).T


# Each name's ending, and those of a bridge. Keys and values shared by several heads have an underscore.
_ENDINGS: Mapping[str, tuple[str, _Convert]] = {
    **{rf"_?W_{letter}": (f"{letter.lower()}.weight", _heads_in) for letter in "QKV"},
    **{rf"_?b_{letter}": (f"{letter.lower()}.bias", lambda tensor: tensor.flatten()) for letter in "QKV"},
    "W_O": ("o.weight", _heads_out),
    "b_O": ("o.bias", _as_it_is),
    **{f"W_{part}": (f"{part}.weight", _transposed) for part in ("in", "out", "gate")},
    **{f"b_{part}": (f"{part}.bias", _as_it_is) for part in ("in", "out", "gate")},
    "W_U": ("weight", _transposed),
    "W_(?:E|pos)": ("weight", _as_it_is),
    "w": ("weight", _as_it_is),
    "b(?:_U)?": ("bias", _as_it_is),
}


def converted_weights(state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """A HookedTransformer's weights for a native bridge of this config.

    It raises `ValueError` if the heads are not the config's, or there are weights that a bridge does not have.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stem, _, ending = name.rpartition(".")
        matching = [target for pattern, target in _ENDINGS.items() if re.fullmatch(pattern, ending)]
        if not matching:
            remedy = "load them into a HookedTransformer, under TransformerLens 3"
            raise ValueError(f"A bridge has nothing like the weights {name!r} of a HookedTransformer: {remedy}.")
        if re.fullmatch("_?[Wb]_[QKV]|W_O", ending):
            shared = ending.lstrip("_")[2] in "KV" and config.n_key_value_heads
            n_heads, d_head = config.n_key_value_heads if shared else config.n_heads, config.d_head
            # The heads side by side would fit a model with other heads of the same total width.
            if tensor.shape[0] != n_heads or tensor.shape[1 if ending == "W_O" else -1] != d_head:
                told = f"{name} has shape {tuple(tensor.shape)}, and the model {n_heads} heads of {d_head}"
                raise ValueError(f"These weights do not fit this model: {told}. Build it with their own config.")
        if re.fullmatch("_?[Wb]_[QK]", ending):
            tensor = _in_adjacent_pairs(tensor, config)
        new_ending, convert = matching[0]
        found[f"{stem}.{new_ending}"] = convert(tensor).contiguous()
    return found


def _in_adjacent_pairs(tensor: Tensor, config: Any) -> Tensor:
    """Queries' or keys' weights `[…, d_head]` for a bridge, which rotates features 2i and 2i + 1 together.

    A HookedTransformer rotates i and i + rotary_dim / 2, unless its config has `rotary_adjacent_pairs`. The features of
    queries and keys in one order are as good as in another: scores are sums over them.
    """
    if config.positional_embedding_type != "rotary" or getattr(config, "rotary_adjacent_pairs", False):
        return tensor
    width = config.rotary_dim or config.d_head
    order = torch.arange(width).reshape(2, -1).T.flatten()
    return torch.cat([tensor[..., order], tensor[..., width:]], dim=-1)


def _kept_elsewhere(module: Any) -> Iterator[tuple[Any, Any]]:
    """The modules whose tensors accelerate keeps in memory or on disk until they are needed, and where it has them."""
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        for each in getattr(hook, "hooks", (hook,)):
            if (held := getattr(each, "weights_map", None)) is not None:
                yield part, held


def offloaded_tensors(module: Any) -> dict[int, Callable[[], Tensor]]:
    """How to get the tensors that accelerate keeps in memory or on disk until they are needed."""
    found: dict[int, Callable[[], Tensor]] = {}
    for part, held in _kept_elsewhere(module):
        tensors = (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
        found |= {storage_of(tensor): partial(held.__getitem__, name) for name, tensor in tensors}
    return found


def offload_additions(module: Any) -> None:
    """Have accelerate know the biases of zero that a bridge adds to modules whose weights lie elsewhere.

    An unembedding gets one, which accelerate would else look for in vain. TransformerLens 4 does so itself.
    """
    for part, held in _kept_elsewhere(module):
        bias = getattr(part, "bias", None)
        if isinstance(bias, Tensor) and hasattr(held, "dataset") and f"{held.prefix}bias" not in held.dataset:
            held.dataset.state_dict[f"{held.prefix}bias"] = torch.zeros(bias.shape, dtype=bias.dtype)
            held.dataset.all_keys.append(f"{held.prefix}bias")


def check_offloaded(module: Any) -> None:
    """Raise `ValueError` if a weight is nowhere: TransformerLens has split it off one that was on disk."""
    # What sees a model in another way, such as a reader of symbols, has the model's own weights.
    module = getattr(module, "held_as", module)
    offloaded = offloaded_tensors(module)
    for name, each in module.named_parameters():
        if each.is_meta and storage_of(each) not in offloaded:
            name = name.replace("_original_component.", "")
            raise ValueError(
                f"{name} is split off a matrix that lies on disk, and holds no numbers: put this layer on a device, in "
                "device_map, or load the model whole"
            )


def storage_of(tensor: Tensor) -> int:
    """A number that tells a tensor's memory: one without data has no address, but its storage has one."""
    return tensor.untyped_storage()._cdata
