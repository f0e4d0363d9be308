"""Write beliefs: change the activations at some positions of each word, given the belief to write at each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from msp_lens._checks import checked
from msp_lens.models.hooked import HookedModel, context_length, editing

# The same for every word: one position, several, a slice, or all (None). Different for each word: an integer tensor
# [word, pos], or a boolean tensor [word, pos] over whole words.
Position: TypeAlias = int | Sequence[Any] | slice | Tensor | np.ndarray | np.integer | None

# From activations and the beliefs to write (None if there are none) to new activations.
Change: TypeAlias = Callable[[Tensor, Any], Tensor]


def as_position(position: Any) -> int | slice | Tensor | None:
    """The positions, in whatever container they came: `None`, a slice, an integer, or a tensor of integers or booleans.

    It raises `TypeError` or `ValueError` if they are no positions.
    """
    if position is None or isinstance(position, slice):
        return position
    rule = (
        "give integers [pos] for all words or [word, pos] for each word, or booleans [word, pos] over whole words; or "
        "a slice, or None for all."
    )
    try:
        tensor = position if isinstance(position, Tensor) else torch.as_tensor(np.asarray(position))
    except (TypeError, ValueError) as error:
        raise TypeError(f"position={position!r}: {rule}") from error
    # An empty list has no type of its own.
    tensor = tensor.long() if tensor.numel() == 0 else tensor
    if tensor.is_floating_point() or tensor.is_complex() or tensor.ndim > 2 or (tensor.ndim == 0 and _is_mask(tensor)):
        raise ValueError(f"position is a tensor of {tensor.dtype} and shape {tuple(tensor.shape)}: {rule}")
    if tensor.ndim == 0:
        return int(tensor)
    return tensor if _is_mask(tensor) else tensor.long()


def check_position(position: Position, n_ctx: int | None) -> None:
    """Raise `ValueError` if a position is outside a context of `n_ctx` tokens, or is not a position."""
    found = as_position(position)
    if found is None or isinstance(found, slice) or n_ctx is None or _is_mask(found):
        return
    for index in torch.as_tensor(found).flatten().tolist():
        if not -n_ctx <= index < n_ctx:
            raise ValueError(
                f"position={index} is outside the context: choose one from 0 to {n_ctx - 1}, or count from the end, -1 "
                f"to -{n_ctx}."
            )


def position_indices(position: Position, length: int) -> Int[Tensor, "pos"]:
    """Positions that are the same for every word, as checked indices into a word of `length` tokens."""
    position = as_position(position)
    if position is None or isinstance(position, slice):
        indices = torch.arange(length)[position or slice(None)]
    else:
        check_position(position, length)
        indices = torch.as_tensor(position).flatten() % length
    if len(indices) == 0:
        raise ValueError(f"position={position} is none of the word's {length} positions: give at least one.")
    return indices


@checked
@contextmanager
def writing(
    model: HookedModel,
    changes: Mapping[str, Change],
    position: Position = None,
    belief: Float[Tensor, "*batch state"] | None = None,
) -> Iterator[None]:
    """Run the model with a change made at some positions of one or several sites: the one act of writing a belief.

    Gradients flow, also to a `belief` that requires them. At the end these hooks, and only these, are removed, even
    after an exception; the model's mode does not change.

    Args:
        model: The model to edit.
        changes: For each site, a function from the activations `[word, pos, d_model]` at the edited positions and the
            beliefs `[word, pos, state]` to write there, to new activations.
        position: Which positions: one, several, a slice or all (`None`), the same for every word; an integer tensor
            `[word, pos]`, different for each word; or a boolean tensor that marks them along whole words.
        belief: `[state]` for all words, `[word, state]` for each word, or `[word, pos, state]` for each edited
            position; `None` if the changes ignore it.

    Raises:
        KeyError: if the model lacks a site.
        ValueError: if a position is outside the model's context; during the forward pass, if positions or beliefs do
            not fit the batch, or a change returns another shape; at the end, if a change was never made.

    Example:
        >>> from msp_lens.models.build import ModelConfig, build_model
        >>> model, tokens = build_model(ModelConfig(d_vocab=3)), torch.zeros(1, 5, dtype=torch.int64)
        >>> with writing(model, {"blocks.0.hook_resid_post": lambda h, belief: h + 1}, position=2):
        ...     edited = model(tokens)
        >>> (edited != model(tokens)).any(dim=-1).tolist()
        [[False, False, True, True, True]]
    """
    check_position(position, context_length(model))
    with editing(model, {site: at_positions(change, position, belief) for site, change in changes.items()}):
        yield


def at_positions(
    change: Change, position: Position, belief: Float[Tensor, "*batch state"] | None
) -> Callable[[Tensor], Tensor]:
    """One change of `writing`, as a function of the site's whole activation `[word, pos, d_model]`.

    It raises `ValueError` if positions or beliefs do not fit the batch that it is given.
    """
    position = as_position(position)

    def edited(activation: Float[Tensor, "word pos d_model"]) -> Float[Tensor, "word pos d_model"]:
        n_words, length = activation.shape[:2]
        if isinstance(position, Tensor) and _is_mask(position):
            mask = position.to(activation.device)
            if mask.shape != (n_words, length):
                shape = tuple(mask.shape)
                raise ValueError(
                    f"The mask of positions has shape {shape}; the batch has {n_words} words of {length} tokens."
                )
            return torch.where(mask.unsqueeze(-1), change(activation, _spread(belief, n_words, length)), activation)
        if isinstance(position, Tensor) and position.ndim == 2:
            check_position(position, length)
            if len(position) != n_words:
                raise ValueError(f"Positions are given for {len(position)} words; the batch has {n_words}.")
            indices = position % length
        else:
            indices = position_indices(position, length).unsqueeze(0)
        indices, words = indices.to(activation.device), torch.arange(n_words, device=activation.device).unsqueeze(1)
        result, beliefs = activation.clone(), _spread(belief, n_words, indices.shape[1])
        result[words, indices] = change(activation[words, indices], beliefs).to(activation.dtype)
        return result

    return edited


def widened(activation: Tensor) -> Tensor:
    """The activation in at least float32: what is computed in half precision is rounded at every step."""
    return activation.float() if activation.dtype in (torch.bfloat16, torch.float16) else activation


def _is_mask(position: Any) -> bool:
    return isinstance(position, Tensor) and position.dtype == torch.bool


def _spread(belief: Float[Tensor, "*batch state"] | None, n_words: int, n_positions: int) -> Tensor | None:
    """The beliefs as `[word, pos, state]`."""
    if belief is None:
        return None
    shaped = belief if belief.ndim == 3 else belief.reshape(-1, 1, belief.shape[-1])
    if shaped.shape[0] not in (1, n_words) or shaped.shape[1] not in (1, n_positions):
        raise ValueError(
            f"What is written has shape {tuple(belief.shape)} and does not fit a batch of {n_words} words and "
            f"{n_positions} edited positions: give [state], [word, state] or [word, pos, state]."
        )
    return shaped.expand(n_words, n_positions, -1)
