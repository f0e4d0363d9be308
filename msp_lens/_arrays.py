"""Numbers in any container: lists, arrays, columns of a table, tensors, NumPy scalars.

The same numbers mean the same whatever holds them. What cannot be read as numbers raises `MismatchError`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

LARGEST_INTEGER = 2**63 - 1


class MismatchError(Exception):
    """A value that its annotation does not accept: the value, the rule it breaks, and where in its container it is."""

    def __init__(self, value: Any, rule: str, *, is_wrong_type: bool = False, place: str = "") -> None:
        self.value, self.rule, self.is_wrong_type, self.place = value, rule, is_wrong_type, place

    def within(self, place: str) -> MismatchError:
        """The same, seen from the container: `[3]` or `.steps`."""
        return MismatchError(self.value, self.rule, is_wrong_type=self.is_wrong_type, place=place + self.place)


def refusal(mismatch: MismatchError, where: str, value: Any) -> TypeError | ValueError:
    """The error that names the place, the value and the rule: `TypeError` for a value of a wrong kind."""
    error = TypeError if mismatch.is_wrong_type else ValueError
    end = "" if mismatch.rule.endswith("?") else "."
    return error(f"{where}={shown(value)}: {mismatch.rule}{end}")


def is_finite(values: Tensor) -> bool:
    """Whether every number is finite; one pass without a mask, except where a sum overflows."""
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


def seem_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all these tensors' sums are finite. If not, a number may not be: ask `is_finite` of each.

    A GPU is waited for once, not once for each tensor.
    """
    by_device: dict[torch.device, list[Tensor]] = {}
    for values in tensors:
        # A sum in half precision overflows soon.
        total = values.sum(dtype=torch.promote_types(values.dtype, torch.float32)).float()
        by_device.setdefault(total.device, []).append(total)
    return all(bool(torch.isfinite(torch.stack(totals)).all()) for totals in by_device.values())


def moved(tensor: Tensor, device: str | torch.device) -> Tensor:
    """The tensor on a device. A GPU goes on with its queued work meanwhile: do not write into the tensor afterwards."""
    device = torch.device(device)
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    # The driver takes a copy of a little memory at once; for more it waits for the GPU, unless the memory is pinned.
    # Pinned memory can't hold the same number for several places, as an expanded tensor does.
    pinned = tensor.contiguous().pin_memory() if tensor.nbytes > 2**16 else tensor
    return pinned.to(device, non_blocking=True)


def shown(value: Any, *, longest: int = 80) -> str:
    """A value in an error message: one short line."""
    if isinstance(value, Tensor | np.ndarray) and (value.ndim > 1 or math.prod(value.shape) > 6):
        name = "tensor" if isinstance(value, Tensor) else "array"
        return f"<{name} of shape {tuple(value.shape)}, {str(value.dtype).removeprefix('torch.')}>"
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    if "\n" in text and not isinstance(value, str):
        return f"<{type(value).__name__}>"
    return text if len(text) <= longest else f"{text[:longest]}…"


def as_whole_numbers(value: Any, *, word_axis: bool = False, n_axes: int | None = None) -> Tensor:
    """Integers, bools and whole floats in any container as an int64 tensor; raises `MismatchError`."""
    rule = "give whole numbers, such as a list of lists, an array or a tensor"
    tensor = as_tensor(value, rule)
    if tensor.is_complex() or (tensor.is_floating_point() and not bool((tensor == tensor.floor()).all())):
        raise MismatchError(value, f"{rule}, without fractions or NaN")
    if tensor.is_floating_point() and tensor.numel() and float(tensor.abs().max()) >= 2**63:
        raise MismatchError(value, f"{rule}, that fit 64 bits")
    if word_axis and tensor.ndim == 1 and n_axes == 2:
        tensor = tensor[None]
    return tensor.to(torch.int64)


def as_real_numbers(value: Any, *, dtype: torch.dtype | None = None) -> Tensor:
    """Finite real numbers in any container as a floating-point tensor; raises `MismatchError`.

    Args:
        value: The numbers.
        dtype: The type of the result. By default that of a floating-point tensor or array, and float64 for others.
    """
    rule = "give real numbers, such as a list, an array or a tensor"
    tensor = as_tensor(value, rule)
    if tensor.is_complex():
        raise MismatchError(value, f"{rule}, not complex ones")
    tensor = tensor.to(dtype or (tensor.dtype if tensor.is_floating_point() else torch.float64))
    if not is_finite(tensor):
        raise MismatchError(value, f"{rule}, without NaN and infinity")
    return tensor


def as_tensor(value: Any, rule: str) -> Tensor:
    """Numbers or truth values in any container as a tensor of their own type; the rule is for the error."""
    if isinstance(value, Tensor):
        return value.to_dense() if value.layout != torch.strided else value
    if isinstance(value, str | bytes | Mapping | set | frozenset) or value is None:
        raise MismatchError(value, rule, is_wrong_type=True)
    if isinstance(value, list | tuple) and value and all(isinstance(each, Tensor) for each in value):
        if len({each.shape for each in value}) > 1:
            raise MismatchError(value, f"{rule}; every row needs the same length")
        return torch.stack(list(value))
    if hasattr(value, "to_numpy"):
        value = np.asarray(value)
    elif not isinstance(value, np.ndarray | np.generic | numbers.Number | list | tuple):
        if not isinstance(value, Iterable):
            raise MismatchError(value, rule, is_wrong_type=True)
        # A column of a Hugging Face dataset, a range, any other finite sequence.
        if not hasattr(value, "__len__"):
            raise MismatchError(value, f"{rule}, not an iterator", is_wrong_type=True)
        value = list(value)
    try:
        array = np.asarray(value.tolist() if isinstance(value, np.ndarray) and value.dtype == object else value)
    except (ValueError, TypeError, OverflowError):
        raise MismatchError(value, f"{rule}; every row needs the same length") from None
    if array.dtype.kind == "u" and array.size and int(array.max()) > LARGEST_INTEGER:
        raise MismatchError(value, f"{rule}, that fit 64 bits")
    if array.dtype.kind not in "biufc":
        raise MismatchError(value, rule, is_wrong_type=True)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    # A copy: a read-only array or one with negative strides makes no tensor.
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def without_container(value: Any) -> Any:
    """A number without its container: a NumPy scalar, or an array or tensor without axes."""
    if isinstance(value, np.generic | np.ndarray | Tensor) and value.ndim == 0:
        return value.item()
    return value
