"""The catalog's registry: the named processes, how to build them, and what listings show of them."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import torch

from msp_lens._checks import checked
from msp_lens._names import meant
from msp_lens.processes.process import Process, shown_parameters

Parameter = float | Sequence[float]
Edges = Mapping[tuple[str, int, str], float]
Builder = TypeVar("Builder", bound=Callable[..., Process])

CATALOG: dict[str, Callable[..., Process]] = {}
_FINITE: set[str] = set()


@dataclass(frozen=True)
class CatalogEntry:
    """What listings show of a process of the catalog; made by `catalog_entry`.

    Its `summary` and `source` are those of its docstring; `process` is the one at the `defaults`, and
    `has_finite_mixed_states` says whether its words lead to finitely many beliefs.
    """

    name: str
    summary: str
    source: str
    defaults: Mapping[str, Parameter]
    has_finite_mixed_states: bool
    process: Process


def named(*, finite: bool) -> Callable[[Builder], Builder]:
    """Enter a function in the catalog; `finite` says whether its process has finitely many mixed states by default."""

    def enter(build: Builder) -> Builder:
        CATALOG[build.__name__] = build
        if finite:
            _FINITE.add(build.__name__)
        return build

    return enter


@checked
def build_process(name: str, parameters: Mapping[str, Any] | None = None) -> Process:
    """A process of the catalog, by name.

    Raises:
        KeyError: if there is no process of that name.
        ValueError: if a parameter is unknown or out of range.

    Example:
        >>> build_process("mess3", {"x": 0.15, "a": 0.6})
        mess3(x=0.15, a=0.6): 3 states, 3 tokens
    """
    known = inspect.signature(_builder(name)).parameters
    for key in parameters or {}:
        if key not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"{name} has no parameter {key!r}; {has}.{meant(key, known)}")
    return CATALOG[name](**(parameters or {}))


@checked
def catalog_entry(name: str) -> CatalogEntry:
    """What listings show of a process of the catalog; `KeyError` if there is none of that name.

    Example:
        >>> entry = catalog_entry("even")
        >>> entry.summary, entry.defaults, entry.has_finite_mixed_states
        ('Runs of 1s between 0s have even length: infinite memory from two states.', {'p': 0.5}, True)
    """
    build = _builder(name)
    process = build()
    documentation = inspect.getdoc(build) or ""
    source = re.search(r"^Source: (.*?)(?:\n\n|\Z)", documentation, flags=re.DOTALL | re.MULTILINE)
    return CatalogEntry(
        name=name,
        summary=documentation.splitlines()[0],
        source=" ".join(source[1].split()) if source else "",
        defaults=process.parameters,
        has_finite_mixed_states=name in _FINITE,
        process=process,
    )


def _builder(name: str) -> Callable[..., Process]:
    if name not in CATALOG:
        there_are = ", ".join(sorted(CATALOG))
        raise KeyError(f"No process {name!r} in the catalog; there are {there_are}.{meant(name, CATALOG)}")
    return CATALOG[name]


def from_edges(
    name: str, states: Sequence[str], tokens: Sequence[str], edges: Edges, **parameters: Parameter
) -> Process:
    """A process from its labelled edges `(from, token, to): probability`."""
    transitions = torch.zeros(len(tokens), len(states), len(states), dtype=torch.float64)
    for (origin, token, destination), probability in edges.items():
        transitions[token, states.index(origin), states.index(destination)] = probability
    return Process(transitions, name=name, states=states, tokens=tokens, parameters=parameters)


def check_range(process: str, legal: str, reason: str, **parameters: float) -> None:
    """Raise `ValueError` unless each value lies in an interval in mathematical notation, such as "(0, 0.5]"."""
    low, high = (float(end) for end in legal[1:-1].replace("∞", "inf").split(","))
    for name, value in parameters.items():
        above = value > low if legal[0] == "(" else value >= low
        below = value < high if legal[-1] == ")" else value <= high
        if not (above and below and math.isfinite(value)):
            refuse(process, f"{name} must lie in {legal}, since {reason}", **{name: value})


def refuse(process: str, rule: str, **parameters: Parameter) -> NoReturn:
    """Raise `ValueError` that shows the parameters and the rule they break."""
    raise ValueError(f"{process}({shown_parameters(parameters)}): {rule}.")
