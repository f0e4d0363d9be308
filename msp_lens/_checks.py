"""Checks of options and numbers that many functions share. Every message names the value, the rule and the remedy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise `ValueError` unless the value is one of the choices.

    Example:
        >>> check_choice("split", "half", ("prefix", "subtree"))
        Traceback (most recent call last):
        ...
        ValueError: split='half': choose one of 'prefix', 'subtree'.
    """
    allowed = list(choices)
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(map(repr, allowed))}.")


def check_at_least(name: str, value: float | None, minimum: float, reason: str = "") -> None:
    """Raise `ValueError` if the value is below the minimum (or NaN); `None` stands for a default and passes.

    The reason is for the message: "cross-validation needs at least two folds".
    """
    if value is not None and not value >= minimum:
        because = f" ({reason})" if reason else ""
        raise ValueError(f"{name}={value}: give at least {minimum:g}{because}.")


def check_batch_size(batch_size: int | None) -> None:
    """Raise `ValueError` unless a batch holds at least one word; `None` is the default size."""
    check_at_least("batch_size", batch_size, 1, "the number of words in one forward pass")


def is_finite(values: Tensor) -> bool:
    """Whether every number is finite; one pass without a mask, except where a sum overflows."""
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


def check_finite(values: Tensor, where: str, remedy: str) -> None:
    """Raise `ValueError` with the first bad row if a number is NaN or infinite.

    The place is such as "blocks.0.hook_resid_post in batch 3", the remedy a whole sentence.
    """
    if not is_finite(values):
        row = int((~torch.isfinite(values)).reshape(len(values), -1).any(dim=1).nonzero()[0])
        raise ValueError(f"NaN or infinity at {where}, row {row} of {len(values)}. {remedy}")
