"""The weights of a `HookedTransformer` in the names and shapes of a native bridge.

TransformerLens 4 converts these itself, TransformerLens 3.9 cannot.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

# Buffers in a HookedTransformer's state that its config determines.
DERIVED_BUFFERS = (".attn.mask", ".attn.IGNORE", ".attn.rotary_sin", ".attn.rotary_cos")

_Convert = Callable[[Tensor], Tensor]


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
