"""What an annotation accepts: a value is checked against it, and given back in the annotated type.

The same rules hold for the arguments of public functions (`_checks.checked`) and for files (`_files.read_json`).
"""

from __future__ import annotations

import collections.abc
import dataclasses
import math
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np
import torch
from torch import Tensor

from msp_lens._arrays import (
    LARGEST_INTEGER,
    MismatchError,
    as_real_numbers,
    as_tensor,
    as_whole_numbers,
    refusal,
    without_container,
)
from msp_lens._names import meant


@dataclasses.dataclass(frozen=True)
class Kind:
    """What is accepted, in words, and the function that returns the accepted value or raises `MismatchError`."""

    rule: str
    read: Callable[[Any], Any]


def converted(value: Any, annotation: Any, where: str) -> Any:
    """The value in its annotated type.

    Raises:
        TypeError: if the value is of a wrong kind.
        ValueError: if it is of the right kind, but is not allowed. Both name the place, the value and the rule.
    """
    kind = kind_of(annotation)
    if kind is None:
        return value
    try:
        return kind.read(value)
    except MismatchError as mismatch:
        instead = _INSTEAD.get(type(mismatch.value)) if mismatch.is_wrong_type else None
        if instead is not None:
            mismatch.rule = f"{mismatch.rule}. {instead}"
        raise refusal(mismatch, f"{where}{mismatch.place}", mismatch.value) from None


@cache
def kind_of(annotation: Any) -> Kind | None:
    """What the annotation accepts; `None` where anything goes, as for `Any`, callables, iterators and protocols."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    if annotation in _REGISTERED:
        return _REGISTERED[annotation]
    if annotation is None or annotation is type(None):
        return Kind("give None", _read_none)
    if origin is Annotated:
        return _annotated(arguments[0], annotation.__metadata__)
    if origin is Literal:
        return _literal(arguments)
    if origin in (Union, types.UnionType):
        return _union(arguments)
    if hasattr(annotation, "array_type") and hasattr(annotation, "dim_str"):
        return _array(annotation)
    if typing.is_typeddict(annotation):
        return _typed_dict(annotation)
    origin = origin or annotation
    if origin is collections.abc.Callable:
        return Kind("give a function", _read_function)
    if origin in (collections.abc.Mapping, dict):
        return _mapping(*(arguments or (Any, Any)))
    if origin in (collections.abc.Sequence, list):
        return _sequence(arguments[0] if arguments else Any)
    if origin is tuple and arguments:
        return _sequence(arguments[0], as_tuple=True) if arguments[-1] is Ellipsis else _fixed_tuple(arguments)
    if isinstance(annotation, type) and annotation is not object and not _is_open(annotation):
        return _instance(annotation)
    return None


def register(annotation: Any, rule: str, accepts: Callable[[Any], bool]) -> None:
    """Tell what a protocol accepts, which its class alone cannot: call it where the protocol is defined."""

    def read(value: Any) -> Any:
        if not accepts(value):
            raise MismatchError(value, rule, is_wrong_type=True)
        return value

    _REGISTERED[annotation] = Kind(rule, read)


_REGISTERED: dict[Any, Kind] = {}


def tell_instead(kind: type, instead: str) -> None:
    """Tell where values of a type belong, for the error where something else is wanted; without the full stop."""
    _INSTEAD[kind] = instead


_INSTEAD: dict[type, str] = {}


def _read_none(value: Any) -> None:
    if value is not None:
        raise MismatchError(value, "give None", is_wrong_type=True)


def _read_whole_number(value: Any) -> int:
    rule, plain = "give a whole number", without_container(value)
    if isinstance(plain, bool) or not isinstance(plain, numbers.Real):
        raise MismatchError(value, rule, is_wrong_type=True)
    if not isinstance(plain, numbers.Integral) and not (math.isfinite(plain) and float(plain).is_integer()):
        raise MismatchError(value, rule)
    number = int(typing.cast(Any, plain))
    if abs(number) > LARGEST_INTEGER:
        raise MismatchError(value, f"{rule} that fits 64 bits")
    return number


def _read_number(value: Any) -> float:
    rule, plain = "give a number", without_container(value)
    if isinstance(plain, bool) or not isinstance(plain, numbers.Real):
        raise MismatchError(value, rule, is_wrong_type=True)
    try:
        number = float(plain)
    except OverflowError:
        raise MismatchError(value, f"{rule} that fits a float") from None
    if math.isnan(number):
        raise MismatchError(value, f"{rule}, not NaN")
    return number


def _read_bool(value: Any) -> bool:
    plain = without_container(value)
    if not isinstance(plain, bool):
        raise MismatchError(value, "give True or False", is_wrong_type=True)
    return plain


def _read_text(value: Any) -> str:
    if not isinstance(value, str):
        raise MismatchError(value, "give text", is_wrong_type=True)
    return str(value)


def _read_path(value: Any) -> Path:
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise MismatchError(value, "give a path", is_wrong_type=True)
    text = os.fspath(value)
    if "\0" in text or not text:
        raise MismatchError(value, "give a path: it is not empty and holds no null character")
    return Path(text).expanduser()


def _read_function(value: Any) -> Any:
    if not callable(value):
        raise MismatchError(value, "give a function", is_wrong_type=True)
    return value


def _read_device(value: Any) -> Any:
    rule = "give a device that this machine has, such as 'cpu' or 'cuda:0'"
    if not isinstance(value, str | torch.device):
        raise MismatchError(value, rule, is_wrong_type=True)
    try:
        device = torch.device(value)
    except RuntimeError:
        raise MismatchError(value, rule) from None
    present = {"cuda": torch.cuda, "xpu": torch.xpu, "mps": torch.mps}.get(device.type)
    has = device.type == "cpu" or (present is not None and present.is_available())
    if not has or (device.index or 0) >= (present.device_count() if present else 1):
        raise MismatchError(value, rule)
    return value


_SCALARS: dict[Any, Kind | None] = {
    Any: None,
    int: Kind("give a whole number", _read_whole_number),
    float: Kind("give a number", _read_number),
    bool: Kind("give True or False", _read_bool),
    str: Kind("give text", _read_text),
    Path: Kind("give a path", _read_path),
    torch.device: Kind("give a device", _read_device),
}


def _annotated(inner: Any, constraints: tuple[Any, ...]) -> Kind | None:
    kind = kind_of(inner)
    checks = [each for each in constraints if hasattr(each, "check")]

    def read(value: Any) -> Any:
        found = kind.read(value) if kind else value
        for constraint in checks:
            constraint.check(found)
        return found

    return Kind(kind.rule, read) if kind else None


def _literal(choices: tuple[Any, ...]) -> Kind:
    rule = f"choose one of {', '.join(map(repr, choices))}"

    def read(value: Any) -> Any:
        plain = str(value) if isinstance(value, str) else without_container(value)
        for choice in choices:
            if type(plain) is type(choice) and plain == choice:
                return choice
        near = meant(plain, choices) if isinstance(plain, str) else ""
        is_wrong_type = type(plain) not in {type(each) for each in choices}
        raise MismatchError(value, f"{rule}.{near}".removesuffix("."), is_wrong_type=is_wrong_type)

    return Kind(rule, read)


def _union(members: tuple[Any, ...]) -> Kind | None:
    # A path may be written as text, and a device too.
    if Path in members or torch.device in members:
        members = tuple(each for each in members if each is not str)
    kinds = [kind_of(each) for each in members]
    if any(kind is None for kind in kinds):
        return None
    known = [kind for kind in kinds if kind is not None]
    is_optional = type(None) in members
    others = [kind for kind, member in zip(known, members, strict=True) if member is not type(None)]
    rule = " or ".join([others[0].rule, *(kind.rule.removeprefix("give ") for kind in others[1:])])

    def read(value: Any) -> Any:
        if value is None and is_optional:
            return None
        mismatches = []
        for kind in others:
            try:
                return kind.read(value)
            except MismatchError as mismatch:
                mismatches.append(mismatch)
        # The mismatch of the only member that is of the value's type says more than the list of members.
        closer = [each for each in mismatches if each.place or not each.is_wrong_type]
        if len(closer) == 1 or len(mismatches) == 1:
            raise (closer or mismatches)[0]
        raise MismatchError(value, rule, is_wrong_type=not closer)

    return Kind(rule, read)


def _sequence(item: Any, *, as_tuple: bool = False) -> Kind:
    kind = kind_of(item)
    rule = f"give a list (each item: {kind.rule})" if kind else "give a list"

    def read(value: Any) -> Any:
        if isinstance(value, str | bytes | Mapping) or (isinstance(value, np.ndarray | Tensor) and value.ndim == 0):
            raise MismatchError(value, rule, is_wrong_type=True)
        if isinstance(value, np.ndarray | Tensor):
            value = list(value)
        elif hasattr(value, "to_numpy"):
            value = list(value.to_numpy())
        elif not isinstance(value, collections.abc.Sequence):
            raise MismatchError(value, rule, is_wrong_type=True)
        found = _items(value, repeat(kind))
        if as_tuple:
            return tuple(found)
        is_same = all(new is old for new, old in zip(found, value, strict=True))
        return value if is_same else found

    return Kind(rule, read)


def _items(values: Iterable[Any], kinds: Iterable[Kind | None]) -> list[Any]:
    found = []
    for index, (each, kind) in enumerate(zip(values, kinds, strict=False)):
        try:
            found.append(kind.read(each) if kind else each)
        except MismatchError as mismatch:
            raise mismatch.within(f"[{index}]") from None
    return found


def _fixed_tuple(items: tuple[Any, ...]) -> Kind:
    rule = f"give {len(items)} values"

    def read(value: Any) -> Any:
        if isinstance(value, np.ndarray | Tensor) and value.ndim:
            value = list(value)
        if isinstance(value, str) or not isinstance(value, collections.abc.Sequence):
            raise MismatchError(value, rule, is_wrong_type=True)
        if len(value) != len(items):
            raise MismatchError(value, rule)
        return tuple(_items(value, [kind_of(item) for item in items]))

    return Kind(rule, read)


def _mapping(key: Any, item: Any) -> Kind:
    key_kind, item_kind = kind_of(key), kind_of(item)
    rule = f"give a mapping (each value: {item_kind.rule})" if item_kind else "give a mapping"

    def read(value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise MismatchError(value, rule, is_wrong_type=True)
        if key_kind is None and item_kind is None:
            return value
        found = {}
        for name, each in value.items():
            new_name = key_kind.read(name) if key_kind else name
            found[new_name] = _field(each, item_kind, f"[{name!r}]") if item_kind else each
        is_same = all(name in value and each is value[name] for name, each in found.items())
        return value if is_same else found

    return Kind(rule, read)


def _field(value: Any, kind: Kind, place: str) -> Any:
    try:
        return kind.read(value)
    except MismatchError as mismatch:
        raise mismatch.within(place) from None


def _typed_dict(schema: Any) -> Kind:
    hints = typing.get_type_hints(schema, include_extras=True)
    # Python does not see the marks of annotations that are text, as all are in modules with postponed evaluation.
    marks = {name: get_origin(hint) for name, hint in hints.items()}
    marked = {name for name, mark in marks.items() if mark is typing.Required}
    required = marked | {name for name in schema.__required_keys__ if marks[name] is not typing.NotRequired}
    kinds = {name: kind_of(_without_marks(hint)) for name, hint in hints.items()}
    rule = f"give a mapping with {', '.join(sorted(required))}"

    def read(value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise MismatchError(value, rule, is_wrong_type=True)
        for name in sorted(required - set(value)):
            raise MismatchError("missing", "this field is required", place=f".{name}")
        found = {}
        for name, each in value.items():
            if name not in kinds:
                listed = f"there is no such field; there are {', '.join(kinds)}"
                raise MismatchError(each, f"{listed}.{meant(name, kinds)}".removesuffix("."), place=f".{name}")
            kind = kinds[name]
            found[name] = _field(each, kind, f".{name}") if kind else each
        return found

    return Kind(rule, read)


def _without_marks(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) in (typing.Required, typing.NotRequired) else hint


def _array(annotation: Any) -> Kind | None:
    """A jaxtyping annotation: the type of the numbers and how many axes they have."""
    if annotation.array_type is not Tensor:
        return None
    axes = annotation.dim_str.split()
    is_open = any(axis == "..." or axis.startswith("*") for axis in axes)
    fewest = len(axes) - is_open
    dtypes = set(annotation.dtypes)
    rule = f"give {'at least ' if is_open else ''}{fewest} {'axis' if fewest == 1 else 'axes'} ({annotation.dim_str})"
    is_mask = bool(dtypes) and all(each.startswith("bool") for each in dtypes)
    is_words = axes[-1:] in (["pos"], ["symbol"])

    def read(value: Any) -> Any:
        if dtypes and all(each.startswith(("int", "uint")) for each in dtypes):
            found = as_whole_numbers(value, word_axis=is_words, n_axes=None if is_open else len(axes))
        elif dtypes == {"float64"}:
            found = as_real_numbers(value, dtype=torch.float64)
        elif dtypes and all(each.startswith(("float", "bfloat")) for each in dtypes):
            found = as_real_numbers(value)
        elif is_mask:
            found = as_tensor(value, "give True and False, such as a list, an array or a tensor")
            if found.dtype != torch.bool:
                raise MismatchError(value, "give a mask of True and False, such as `values > 0`", is_wrong_type=True)
        else:
            return value
        if found.ndim < fewest or (found.ndim > fewest and not is_open):
            raise MismatchError(value, f"{rule}, not {found.ndim}")
        return found

    return Kind("give a mask" if is_mask else rule, read)


def _is_open(annotation: type) -> bool:
    """Whether instances can't be told by their class: protocols, type variables, abstract iterators and callables."""
    is_abstract = annotation.__module__ in ("collections.abc", "typing")
    return bool(getattr(annotation, "_is_protocol", False)) or isinstance(annotation, TypeVar) or is_abstract


def _instance(annotation: type) -> Kind:
    name = annotation.__name__
    rule = f"give {'an' if name[0] in 'AEIOU' else 'a'} {name}"

    def read(value: Any) -> Any:
        if not isinstance(value, annotation):
            raise MismatchError(value, rule, is_wrong_type=True)
        return value

    return Kind(rule, read)
