"""Positions: which activations of a batch of words an edit replaces, and the belief that it writes at each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

# One position, several, a slice or all (None) for every word alike; an integer tensor [word, pos] for each word its
# own; a boolean tensor [word, pos] over the whole words for each word its own number of them.
Position: TypeAlias = int | Sequence[int] | slice | Tensor | None


def check_position(position: Position, n_ctx: int | None) -> None:
    """Raise `ValueError` if a position is outside a context of `n_ctx`, or is not a position."""
    if isinstance(position, Tensor) and (position.is_floating_point() or position.ndim > 2):
        raise ValueError(
            f"position is a tensor of {position.dtype} and shape {tuple(position.shape)}: give integers [pos] for all "
            "words alike or [word, pos] for each its own, or booleans [word, pos] over whole words."
        )
    if position is None or isinstance(position, slice) or n_ctx is None or _is_mask(position):
        return
    for index in torch.as_tensor(position).flatten().tolist():
        if not -n_ctx <= index < n_ctx:
            raise ValueError(
                f"position={index} is outside the context: choose one from 0 to {n_ctx - 1}, or negative from the end."
            )


def position_indices(position: Position, length: int) -> Int[Tensor, "pos"]:
    """The positions, the same for every word, as indices into a word of `length` tokens.

    Raises:
        ValueError: if one is outside the word, or there is none.
    """
    if position is None or isinstance(position, slice):
        indices = torch.arange(length)[position or slice(None)]
    else:
        check_position(position, length)
        indices = torch.as_tensor(position).flatten() % length
    if len(indices) == 0:
        raise ValueError(f"position={position} is none of the word's {length} positions: give at least one.")
    return indices


def at_positions(
    change: Callable[[Tensor, Tensor], Tensor], position: Position, belief: Float[Tensor, "*batch state"]
) -> Callable[[Tensor], Tensor]:
    """`change(activation, belief)` at some positions of each word, as a function of the site's whole activation.

    Args:
        change: From activations `[word, pos, d_model]` at the edited positions and the beliefs `[word, pos, state]`
            to be written there, to new activations.
        position: Which positions.
        belief: `[state]` for all words alike, `[word, state]` for each its own, or `[word, pos, state]`, its
            positions the edited ones.

    Returns:
        A function from `[word, pos, d_model]` to as many new activations. It raises `ValueError` if positions or
        beliefs do not fit the batch it is given.
    """

    def edited(activation: Float[Tensor, "word pos d_model"]) -> Float[Tensor, "word pos d_model"]:
        n_words, length = activation.shape[:2]
        if isinstance(position, Tensor) and _is_mask(position):
            mask = position.to(activation.device)
            if mask.shape != (n_words, length):
                raise ValueError(
                    f"The mask of positions has shape {tuple(mask.shape)}; the batch has {n_words} words of {length} "
                    "tokens."
                )
            return torch.where(mask.unsqueeze(-1), change(activation, _spread(belief, n_words, length)), activation)
        indices = _grid(position, n_words, length).to(activation.device)
        words = torch.arange(n_words, device=activation.device).unsqueeze(1)
        result = activation.clone()
        beliefs = _spread(belief, n_words, indices.shape[1])
        result[words, indices] = change(activation[words, indices], beliefs).to(activation.dtype)
        return result

    return edited


def _is_mask(position: Position) -> bool:
    return isinstance(position, Tensor) and position.dtype == torch.bool


def _grid(position: Position, n_words: int, length: int) -> Int[Tensor, "word pos"]:
    if not isinstance(position, Tensor) or position.ndim < 2:
        return position_indices(position, length).expand(n_words, -1)
    check_position(position, length)
    if len(position) != n_words:
        raise ValueError(f"Positions are given for {len(position)} words; the batch has {n_words}.")
    return position % length


def _spread(belief: Float[Tensor, "*batch state"], n_words: int, n_positions: int) -> Float[Tensor, "word pos state"]:
    # [state] and [word, state] gain the axes they lack.
    shaped = belief if belief.ndim == 3 else belief.reshape(-1, 1, belief.shape[-1])
    if shaped.shape[0] not in (1, n_words) or shaped.shape[1] not in (1, n_positions):
        raise ValueError(
            f"Beliefs of shape {tuple(belief.shape)} do not fit a batch of {n_words} words and {n_positions} edited "
            "positions: give [state], [batch, state] or [batch, pos, state]."
        )
    return shaped.expand(n_words, n_positions, -1)
