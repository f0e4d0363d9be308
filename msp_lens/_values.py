"""Results as plain values: two are equal if all that they hold is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn


class Value:
    """A frozen dataclass whose instances are equal if their fields are: see `same_values`."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and same_values(self, other)

    # What is equal by its arrays has no hash.
    __hash__ = None  # pyright: ignore[reportAssignmentType]


def same_values(first: Any, second: Any) -> bool:
    """Whether two values are the same, number by number; NaN is the same as NaN, and models are by their weights.

    Example:
        >>> same_values({"kl": [torch.tensor([0.0, math.nan])]}, {"kl": [torch.tensor([0.0, math.nan])]})
        True
    """
    if first is second:
        return True
    if isinstance(first, nn.Module) and isinstance(second, nn.Module):
        return type(first) is type(second) and same_values(first.state_dict(), second.state_dict())
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(same_values(first[key], second[key]) for key in first)
    # JSON has lists for both.
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(same_values, first, second))
    if type(first) is not type(second):
        return False
    if isinstance(first, Tensor):
        same_kind = first.dtype == second.dtype and first.shape == second.shape
        return same_kind and bool(torch.allclose(first, second, rtol=0, atol=0, equal_nan=True))
    if isinstance(first, np.ndarray):
        return np.array_equal(first, second, equal_nan=first.dtype.kind in "fc")
    if isinstance(first, pd.DataFrame | pd.Series):
        return first.equals(second)
    if isinstance(first, float):
        return first == second or (math.isnan(first) and math.isnan(second))
    if dataclasses.is_dataclass(first):
        names = [field.name for field in dataclasses.fields(first) if field.compare]
        return all(same_values(getattr(first, name), getattr(second, name)) for name in names)
    return bool(first == second)
