"""Which positions of a word are rows: the choice, as a mask over words, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from msp_lens._checks import as_tokens

# A slice, numbers (negative ones from the end), or a mask [pos] or [word, pos] of booleans, in any container; None is
# every position. Read by `as_positions`.
Positions: TypeAlias = Any


def as_positions(value: Any) -> slice | tuple[int, ...] | Bool[Tensor, "..."] | None:
    """The choice as a slice, distinct numbers or a mask of booleans, whatever it came in.

    Raises:
        TypeError: if it is none of them. Floating-point numbers could be a mask or numbers, and so could uint8.
        ValueError: if a number is given twice, or a slice runs backwards.
    """
    if value is None:
        return None
    if isinstance(value, slice):
        ends = (value.start, value.stop, value.step)
        if not all(end is None or (isinstance(end, int | np.integer) and not isinstance(end, bool)) for end in ends):
            raise TypeError(f"positions={value}: give a slice of integers.")
        if value.step is not None and value.step < 1:
            raise ValueError(f"positions={value}: give a step of at least 1.")
        return slice(*(None if end is None else int(end) for end in ends))
    try:
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        array = np.empty(0, dtype=object)
    if array.dtype == np.bool_:
        return torch.from_numpy(array.copy())
    if array.size == 0 and array.dtype != object:
        return ()
    if array.dtype.kind not in "iu" or array.dtype == np.uint8 or array.ndim > 1:
        shown = f"{array.dtype} of shape {array.shape}" if array.dtype != object else repr(value)
        raise TypeError(
            f"positions is {shown}: give a slice, a list of integers, or a mask of booleans (mask.bool() of a tensor)."
        )
    numbers = tuple(array.reshape(-1).tolist())
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"positions={numbers} has a number twice: give each once. (A mask must be of booleans.)")
    return numbers


def position_mask(
    positions: Positions, words: Int[Tensor, "word pos"], lengths: Int[Tensor, "word"] | None = None
) -> Bool[Tensor, "word pos"]:
    """The chosen positions as a mask; `ValueError` if one is outside the words, a mask misfits, or none is left.

    Where `lengths` says how many tokens of each word are not padding, the end of a word is that of these.
    """
    n_ctx, chosen = words.shape[1], as_positions(positions)
    columns = torch.arange(n_ctx)
    ends = torch.full((len(words),), n_ctx) if lengths is None else lengths
    if isinstance(chosen, Tensor):
        if chosen.shape not in ((n_ctx,), tuple(words.shape)):
            fitting = f"[pos] or [word, pos], here ({n_ctx},) or {tuple(words.shape)}"
            raise ValueError(f"positions has shape {tuple(chosen.shape)}; a mask is {fitting}.")
        mask = chosen.expand(words.shape)
    elif isinstance(chosen, tuple):
        mask = torch.zeros(words.shape, dtype=torch.bool)
        for position in chosen:
            if not -n_ctx <= position < n_ctx:
                raise ValueError(f"positions: {position} is outside words of {n_ctx}: choose from 0 to {n_ctx - 1}.")
            mask |= columns == (ends.unsqueeze(1) + position if position < 0 else position)
    else:
        mask = torch.zeros(words.shape, dtype=torch.bool)
        for end in ends.unique().tolist():
            inside = torch.zeros(n_ctx, dtype=torch.bool)
            inside[:end][chosen or slice(None)] = True
            mask[ends == end] = inside
    mask = mask & (columns < ends.unsqueeze(1))
    if not mask.any():
        raise ValueError(f"positions={positions} chooses none of the {n_ctx} positions: choose at least one.")
    return mask


def described_positions(positions: Positions) -> Any:
    """The choice as a JSON-ready value."""
    chosen = as_positions(positions)
    if chosen is None:
        return "all"
    if isinstance(chosen, slice):
        stop, step = "" if chosen.stop is None else chosen.stop, f":{chosen.step}" if chosen.step else ""
        return f"{chosen.start or 0}:{stop}{step}"
    if isinstance(chosen, Tensor):
        return "a mask" if chosen.ndim == 2 else chosen.nonzero().flatten().tolist()
    return list(chosen)


def position_ranges(positions: Int[Tensor, "row"], *, most: int = 32) -> list[tuple[int, int]]:
    """Ranges of positions that hold rows, by their first and last: each by itself, or if these are many, about `most`.

    A range of several is as wide as it is far into the context, by a constant factor. The prior, at -1, counts as 0.

    Example:
        >>> position_ranges(torch.arange(3))
        [(0, 0), (1, 1), (2, 2)]
        >>> position_ranges(torch.arange(100), most=4)
        [(0, 2), (3, 9), (10, 30), (31, 99)]
    """
    found = positions.clamp(min=0).unique().tolist()
    if len(found) <= most:
        return [(each, each) for each in found]
    edges = np.geomspace(found[0] + 1, found[-1] + 2, most + 1)
    of_position = np.searchsorted(edges, np.array(found) + 1, side="right")
    members = [[each for each, at in zip(found, of_position, strict=True) if at == k] for k in np.unique(of_position)]
    return [(each[0], each[-1]) for each in members]


def range_numbers(ranges: Sequence[tuple[int, int]], positions: Int[Tensor, "row"]) -> Int[Tensor, "row"]:
    """The number of the range that each position is in; what is before the first range counts as the first."""
    starts = torch.tensor([first for first, _ in ranges])
    return (torch.searchsorted(starts, positions, right=True) - 1).clamp(min=0)


def read_lengths(attention_mask: Any, tokens: Int[Tensor, "word pos"]) -> Int[Tensor, "word"]:
    """How many tokens of each word are read."""
    mask = as_tokens(attention_mask, "attention_mask").cpu()
    mask = mask.unsqueeze(0) if mask.ndim == 1 else mask
    if mask.shape != tokens.shape or not ((mask == 0) | (mask == 1)).all():
        fitting = f"1 or 0 for each token, here {tuple(tokens.shape)}"
        raise ValueError(f"attention_mask has shape {tuple(mask.shape)}; it needs {fitting}.")
    lengths = mask.long().sum(dim=1)
    if (mask.bool() != (torch.arange(mask.shape[1]) < lengths.unsqueeze(1))).any():
        problem = "attention_mask has padding before tokens, which the model would read as tokens"
        raise ValueError(f"{problem}: pad on the right (tokenizer.padding_side = 'right').")
    return lengths
