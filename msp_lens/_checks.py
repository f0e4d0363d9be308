"""Checks of arguments and numbers that many functions share. Every message names the value, the rule and the remedy.

`checked` checks the arguments of a public function against its annotations, before its body runs.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

import psutil
import torch
from torch import Tensor

from msp_lens._annotations import converted
from msp_lens._arrays import LARGEST_INTEGER, MismatchError, as_whole_numbers, is_finite, refusal, seem_finite, shown
from msp_lens._names import meant
from msp_lens._ranges import Above, AtLeast, Below, Between

__all__ = [
    "Above",
    "AtLeast",
    "Below",
    "Between",
    "Count",
    "Positive",
    "Seed",
    "Share",
    "as_tokens",
    "check_all_finite",
    "check_at_least",
    "check_finite",
    "check_memory",
    "checked",
    "converted",
    "is_finite",
    "shown",
    "value_errors",
]

Count = Annotated[int, AtLeast(1)]
Seed = Annotated[int, Between(0, LARGEST_INTEGER)]
Positive = Annotated[float, Above(0)]
Share = Annotated[float, Between(0, 1)]

Checked = TypeVar("Checked", bound=Callable[..., Any])


def checked(function: Checked) -> Checked:
    """Check the arguments of a function, or of a dataclass's constructor, against its annotations before it runs.

    An argument arrives in its annotated type: a list of tokens as an int64 tensor, `np.int64(3)` as 3, "~/runs" as a
    path in the home folder. What cannot be read raises `TypeError` or `ValueError` with the argument's name, its value
    and the rule. Defaults are trusted; annotations that Python cannot resolve are not checked.

    Example:
        >>> @checked
        ... def draw(n_words: Count, *, seed: Seed = 0): ...
        >>> draw(2.5)
        Traceback (most recent call last):
        ...
        ValueError: n_words=2.5: give a whole number.
    """
    if isinstance(function, type):
        function.__init__ = checked(function.__init__)
        return typing.cast(Checked, function)
    signature = inspect.signature(function)
    annotations: dict[str, Any] = {}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not annotations:
            annotations.update(_resolved(function))
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(_binding_error(function, signature, error, kwargs)) from None
        for name, value in bound.arguments.items():
            if name in annotations:
                bound.arguments[name] = converted(value, annotations[name], name)
        return function(*bound.args, **bound.kwargs)

    return typing.cast(Checked, call)


def _resolved(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotation of each parameter, where Python can resolve it."""
    parameters = inspect.signature(function).parameters
    names = getattr(inspect.unwrap(function), "__globals__", {})
    found: dict[str, Any] = {}
    for name, parameter in parameters.items():
        annotation = parameter.annotation
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or annotation is parameter.empty:
            continue
        try:
            found[name] = eval(annotation, names) if isinstance(annotation, str) else annotation
        except NameError:
            # Imported for type checkers alone: the function itself checks such an argument.
            continue
        if name == "device" and annotation != "torch.device":
            found[name] = torch.device | None if "None" in str(annotation) else torch.device
    return found or {"return": None}


def _binding_error(
    function: Callable[..., Any], signature: inspect.Signature, error: TypeError, given: Iterable[str]
) -> str:
    """What is wrong with a call that does not fit the signature, with the parameters that there are."""
    name = function.__qualname__.removesuffix(".__init__")
    there_are = [each for each in signature.parameters if each not in ("self", "cls")]
    unknown = [each for each in given if each not in there_are]
    if not unknown:
        return f"{name}(): {error}."
    listed = ", ".join(there_are)
    return f"{name}() has no parameter {unknown[0]!r}: choose from {listed}.{meant(unknown[0], there_are)}"


def as_tokens(value: Any, name: str = "tokens") -> Tensor:
    """Tokens in any container as an int64 tensor: lists, arrays, columns, tensors of any integer type, whole floats.

    Raises:
        TypeError: if these are no numbers.
        ValueError: if they are not whole, or the rows differ in length.
    """
    try:
        return as_whole_numbers(value)
    except MismatchError as mismatch:
        raise refusal(mismatch, name, value) from None


@contextmanager
def value_errors() -> Iterator[None]:
    """What is wrong within saved values is a `ValueError`, of a wrong type too: the argument itself has the right one.

    Example:
        >>> with value_errors():
        ...     converted({"steps": "three"}, dict[str, int], "config")
        Traceback (most recent call last):
        ...
        ValueError: config['steps']='three': give a whole number.
    """
    try:
        yield
    except TypeError as error:
        raise ValueError(str(error)) from None


def check_memory(what: str, n_bytes: float, remedy: str) -> None:
    """Raise `ValueError` if something would not fit this machine's memory; the remedy is a whole sentence.

    Example:
        >>> check_memory("n_words=10**12", 8e14, "Give fewer words.")
        Traceback (most recent call last):
        ...
        ValueError: n_words=10**12 would take 800,000.0 GB; this machine has ... GB of memory. Give fewer words.
    """
    there_is = psutil.virtual_memory().total
    if n_bytes > there_is:
        raise ValueError(
            f"{what} would take {n_bytes / 1e9:,.1f} GB; this machine has {there_is / 1e9:,.0f} GB of memory. {remedy}"
        )


def check_at_least(name: str, value: float | None, minimum: float, reason: str = "") -> None:
    """Raise `ValueError` if the value is below the minimum (or NaN); `None` stands for a default and passes.

    The reason is for the message: "cross-validation needs at least two folds".
    """
    if value is not None and not value >= minimum:
        because = f" ({reason})" if reason else ""
        raise ValueError(f"{name}={value}: give at least {minimum:g}{because}.")


def check_all_finite(tensors: Sequence[tuple[str, Tensor]], remedy: str) -> None:
    """`check_finite` of several tensors, each with its place; a GPU is waited for once."""
    if not seem_finite(values for _, values in tensors):
        for where, values in tensors:
            check_finite(values, where, remedy)


def check_finite(values: Tensor, where: str, remedy: str) -> None:
    """Raise `ValueError` with the first bad row if a number is NaN or infinite.

    The place is such as "blocks.0.hook_resid_post in batch 3", the remedy a whole sentence.
    """
    if not is_finite(values):
        row = int((~torch.isfinite(values)).reshape(len(values), -1).any(dim=1).nonzero()[0])
        raise ValueError(f"NaN or infinity at {where}, row {row} of {len(values)}. {remedy}")
