"""Read a transformer's attention, without its weights: patterns, values, and what the values write.

Attention's output at d, head by head:  Σ_h Σ_s A^h[d, s] v^h[s] W_O^h  +  b_O. W_O is not taken from the weights, whose
names differ, but from what the model does: unit vectors written into the heads' mixed values (`hook_z`) give its rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from msp_lens._checks import AtLeast, Count, checked
from msp_lens.models.activations import batches_of_words, stream_activations, words_per_batch
from msp_lens.models.hooked import HookedModel, editing, evaluating, model_device, unwrapped

Layer = Annotated[int, AtLeast(0)]

_PATTERN = "blocks.{}.attn.hook_pattern"
_NEEDED = (_PATTERN, "blocks.{}.attn.hook_v", "blocks.{}.attn.hook_z", "blocks.{}.hook_attn_out")
# Pairs of positions in a batch of words, at most: long contexts have large patterns.
_PAIRS_AT_ONCE = 2**22


@dataclass(frozen=True, eq=False)
class AttentionBatch:
    """One layer's attention on a batch of words.

    Attributes:
        words: The words that were read.
        pattern: How much each position (`query`) attends to each (`key`).
        values: The value vector that each head would read at each position; heads that share values repeat them.
    """

    words: slice
    pattern: Float[Tensor, "batch head query key"]
    values: Float[Tensor, "batch key head d_head"]


@checked
def attention_layers(model: HookedModel) -> tuple[int, ...]:
    """The layers whose attention can be read: those with hooks on patterns, values and outputs.

    Raises:
        ValueError: if there is none.
    """
    hooks = unwrapped(model).hook_dict
    found = (re.fullmatch(r"blocks\.(\d+)\.attn\.hook_pattern", name) for name in hooks)
    layers = sorted(int(each[1]) for each in found if each)
    layers = tuple(layer for layer in layers if all(name.format(layer) in hooks for name in _NEEDED))
    if not layers:
        raise ValueError(
            f"The model has no attention to read ({', '.join(name.format('N') for name in _NEEDED)}): give a "
            "transformer with TransformerLens's hooks."
        )
    return layers


@checked
def stream_attention(
    model: HookedModel,
    tokens: Int[Tensor, "word pos"],
    layer: Layer,
    *,
    batch_size: Count | None = None,
) -> Iterator[AttentionBatch]:
    """Run the model over the words and yield one layer's attention batch by batch, as `stream_activations` does.

    Args:
        model: A transformer with TransformerLens's hooks.
        tokens: The words, in any container of whole numbers.
        layer: Whose attention to read.
        batch_size: Words in one forward pass; by default as many as `stream_activations` takes, fewer in long contexts.

    Raises:
        ValueError: if the layer's attention cannot be read.
    """
    if layer not in (layers := attention_layers(model)):
        raise ValueError(f"layer={layer}: the model has attention to read in the layers {', '.join(map(str, layers))}.")
    return _stream_attention(model, tokens, layer, batch_size)


def _stream_attention(
    model: HookedModel, tokens: Tensor, layer: int, batch_size: int | None
) -> Iterator[AttentionBatch]:
    model, device = unwrapped(model), model_device(model)
    fitting = words_per_batch(batch_size, tokens.shape[1], device=device)
    size = min(fitting, max(1, _PAIRS_AT_ONCE // tokens.shape[1] ** 2))
    names = _PATTERN.format(layer), f"blocks.{layer}.attn.hook_v"
    for words in batches_of_words(len(tokens), size):
        seen = {}
        hooks = [(name, partial(_keep, seen, name)) for name in names]
        with evaluating(model), model.hooks(fwd_hooks=hooks):
            model(tokens[words].to(device))
        pattern, values = (seen[name] for name in names)
        shared = pattern.shape[1] // values.shape[2]
        yield AttentionBatch(words, pattern, values.repeat_interleave(shared, dim=2) if shared > 1 else values)


def _keep(seen: dict[str, Tensor], name: str, activation: Tensor, hook: Any) -> None:
    seen[name] = activation.detach()


@checked
def output_weights(model: HookedModel, layer: Layer) -> Float[Tensor, "head d_head d_model"]:
    """W_O of each head: what its mixed values add to the residual stream, `hook_attn_out` being affine in `hook_z`.

    Raises:
        ValueError: if the layer's attention cannot be read, or its output is not affine, as where it is normalized.
    """
    (batch,) = stream_attention(model, torch.zeros(1, 1, dtype=torch.int64), layer)
    n_heads, d_head = batch.pattern.shape[1], batch.values.shape[-1]
    width = n_heads * d_head
    # Nothing, each unit vector, and their sum, whose output must be the sum of theirs.
    written = torch.cat([torch.zeros(1, width), torch.eye(width), torch.ones(1, width)]).unsqueeze(1)
    site, out = f"blocks.{layer}.attn.hook_z", f"blocks.{layer}.hook_attn_out"
    tokens = torch.zeros(len(written), 1, dtype=torch.int64)
    with editing(model, {site: lambda activation: written.to(activation)}):
        (read,) = stream_activations(model, tokens, [out], batch_size=len(written))
    outputs = read.activations[out][:, 0].double()
    rows = outputs[1:-1] - outputs[0]
    if not torch.allclose(rows.sum(dim=0), outputs[-1] - outputs[0], rtol=1e-3, atol=1e-3 * float(rows.abs().max())):
        raise ValueError(
            f"The output of attention in layer {layer} is not affine in its heads' values, as it must be for their "
            "contributions to add up: choose a model that does not normalize it."
        )
    return rows.unflatten(0, (n_heads, d_head))
