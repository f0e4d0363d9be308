"""Which positions of a word are rows: the choice, as a mask over words, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor

# A slice, numbers (negative ones from the end), or a mask [pos] or [word, pos]; None is every position.
Positions: TypeAlias = slice | Sequence[int] | Tensor | None


def position_mask(positions: Positions, words: Int[Tensor, "word pos"]) -> Bool[Tensor, "word pos"]:
    """The chosen positions as a mask; `ValueError` if one is outside the words, a mask misfits, or none is left."""
    n_ctx = words.shape[1]
    if isinstance(positions, Tensor) and positions.dtype == torch.bool:
        if positions.shape not in ((n_ctx,), tuple(words.shape)):
            fitting = f"[pos] or [word, pos], here ({n_ctx},) or {tuple(words.shape)}"
            raise ValueError(f"positions has shape {tuple(positions.shape)}; a mask is {fitting}.")
        mask = positions.cpu()
    else:
        mask = torch.zeros(n_ctx, dtype=torch.bool)
        if positions is None or isinstance(positions, slice):
            mask[positions or slice(None)] = True
        else:
            for position in map(int, positions):
                if not -n_ctx <= position < n_ctx:
                    outside = f"positions: {position} is outside words of {n_ctx}"
                    raise ValueError(f"{outside}: choose from 0 to {n_ctx - 1}.")
                mask[position] = True
    if not mask.any():
        raise ValueError(f"positions={positions} chooses none of the {n_ctx} positions: choose at least one.")
    return mask.expand(words.shape)


def described_positions(positions: Positions) -> Any:
    """The choice as a JSON-ready value."""
    if positions is None:
        return "all"
    if isinstance(positions, slice):
        stop, step = "" if positions.stop is None else positions.stop, f":{positions.step}" if positions.step else ""
        return f"{positions.start or 0}:{stop}{step}"
    if isinstance(positions, Tensor) and positions.dtype == torch.bool:
        return "a mask" if positions.ndim == 2 else positions.nonzero().flatten().tolist()
    return [int(position) for position in positions]
