"""The named processes of the literature, and their registry.

Each function returns a `Process`; its docstring gives the source, what the parameters mean and their legal
range. The defaults are those of the source and appear in the process's `repr`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from msp_lens.processes.process import Process

CATALOG: dict[str, Callable[..., Process]] = {}


def _named(build: Callable[..., Process]) -> Callable[..., Process]:
    CATALOG[build.__name__] = build
    return build


@_named
def mess3(x: float = 0.05, a: float = 0.85) -> Process:
    """Three states that hide behind three tokens: beliefs form a fractal on the triangle.

    T[k, i, j] = (a if j = k else (1-a)/2) · (1-2x if i = j else x).

    Args:
        x: Probability of moving to each of the other states, in (0, 0.5]: at 0 no state is ever left. The paper's
            is 0.05.
        a: Probability that the token names the state arrived at, in [0, 1]. The paper's is 0.85.
            Elsewhere (x, a) = (0.15, 0.6) is common: say which you use.

    Source: Marzen & Crutchfield 2017, "Nearly maximally predictive features and their dimensions"; parameters of
    Shai et al. 2024 (arXiv 2405.15943).
    """
    _check_range("mess3", "x", x, 0, 0.5, "the probability of staying is 1 - 2x")
    _check_range("mess3", "a", a, 0, 1, "it is a probability")
    stay = 1 - 2 * x
    moves = torch.where(torch.eye(3, dtype=torch.bool), stay, x).double()
    emits = torch.where(torch.eye(3, dtype=torch.bool), a, (1 - a) / 2).double()
    transitions = emits[:, None, :] * moves[None, :, :]
    return Process(
        transitions, name="mess3", states=("A", "B", "C"), tokens=("A", "B", "C"), parameters={"x": x, "a": a}
    )


@_named
def z1r(p: float = 0.5) -> Process:
    """Zero-One-Random: a 0, a 1, then a random token, for ever.

    Args:
        p: Probability that the random token is 1, in [0, 1].

    Source: Shai et al. 2024 (arXiv 2405.15943).
    """
    _check_range("z1r", "p", p, 0, 1, "it is a probability")
    edges = {("0", 0, "1"): 1.0, ("1", 1, "R"): 1.0, ("R", 0, "0"): 1 - p, ("R", 1, "0"): p}
    return _from_edges("z1r", ("0", "1", "R"), 2, edges, {"p": p})


@_named
def rrxor(p1: float = 0.5, p2: float = 0.5) -> Process:
    """Random-Random-XOR: two random bits, then their exclusive or, for ever.

    From S the first bit is drawn, from 0 or 1 the second; T and F emit the exclusive or.

    Args:
        p1: Probability that the first bit is 0, in [0, 1].
        p2: Probability that the second bit equals the first, in [0, 1]. (The literature differs for values
            other than ½.)

    Source: Shai et al. 2024 (arXiv 2405.15943).
    """
    _check_range("rrxor", "p1", p1, 0, 1, "it is a probability")
    _check_range("rrxor", "p2", p2, 0, 1, "it is a probability")
    edges = {
        ("S", 0, "0"): p1,
        ("S", 1, "1"): 1 - p1,
        ("0", 0, "F"): p2,
        ("0", 1, "T"): 1 - p2,
        ("1", 0, "T"): 1 - p2,
        ("1", 1, "F"): p2,
        ("T", 1, "S"): 1.0,
        ("F", 0, "S"): 1.0,
    }
    return _from_edges("rrxor", ("S", "0", "1", "T", "F"), 2, edges, {"p1": p1, "p2": p2})


@_named
def golden_mean(p: float = 0.5) -> Process:
    """No two 1s in a row: after a 1 comes a 0.

    Args:
        p: Probability of a 1 where one is allowed, in [0, 1].

    Source: Crutchfield & Feldman 2003, "Regularities unseen, randomness observed".
    """
    _check_range("golden_mean", "p", p, 0, 1, "it is a probability")
    edges = {("A", 0, "A"): 1 - p, ("A", 1, "B"): p, ("B", 0, "A"): 1.0}
    return _from_edges("golden_mean", ("A", "B"), 2, edges, {"p": p})


@_named
def even(p: float = 0.5) -> Process:
    """Runs of 1s between 0s have even length: infinite memory from two states.

    Args:
        p: Probability of starting a pair of 1s where one may start, in [0, 1].

    Source: Weiss 1973; Crutchfield & Feldman 2003.
    """
    _check_range("even", "p", p, 0, 1, "it is a probability")
    edges = {("E", 0, "E"): 1 - p, ("E", 1, "O"): p, ("O", 1, "E"): 1.0}
    return _from_edges("even", ("E", "O"), 2, edges, {"p": p})


@_named
def coin(p: float = 0.5) -> Process:
    """A biased coin: one state, nothing to know.

    Args:
        p: Probability of a 0, in [0, 1].
    """
    _check_range("coin", "p", p, 0, 1, "it is a probability")
    return Process([[[p]], [[1 - p]]], name="coin", states=("C",), parameters={"p": p})


@_named
def sns(p: float = 0.5, q: float = 0.5) -> Process:
    """The simple nonunifilar source: infinitely many beliefs from two states.

    Args:
        p: Probability of leaving A for B (emitting 0), in [0, 1].
        q: Probability of leaving B for A (emitting 1), in [0, 1]. Not both 0: the chain would fall apart.

    Source: Crutchfield 1994; Marzen & Crutchfield 2015, "Informational and causal architecture of discrete-time
    renewal processes".
    """
    _check_range("sns", "p", p, 0, 1, "it is a probability")
    _check_range("sns", "q", q, 0, 1, "it is a probability")
    edges = {("A", 0, "A"): 1 - p, ("A", 0, "B"): p, ("B", 0, "B"): 1 - q, ("B", 1, "A"): q}
    return _from_edges("sns", ("A", "B"), 2, edges, {"p": p, "q": q})


def build_process(name: str, parameters: Mapping[str, float] | None = None) -> Process:
    """A process of the catalog by its name.

    Raises:
        KeyError: if there is no such process; the message lists those there are.
        ValueError: if a parameter is unknown or out of range.

    Example:
        >>> build_process("mess3", {"x": 0.15, "a": 0.6})
        mess3(x=0.15, a=0.6): 3 states, 3 tokens
    """
    if name not in CATALOG:
        raise KeyError(f"No process {name!r} in the catalog; there are {', '.join(sorted(CATALOG))}.")
    known = inspect.signature(CATALOG[name]).parameters
    for key in parameters or {}:
        if key not in known:
            raise ValueError(f"{name} has no parameter {key!r}; it has {', '.join(known)}.")
    return CATALOG[name](**(parameters or {}))


def _from_edges(
    name: str,
    states: tuple[str, ...],
    n_tokens: int,
    edges: Mapping[tuple[str, int, str], float],
    parameters: Mapping[str, float],
) -> Process:
    """A process from its labelled edges, (from, token, to): probability."""
    transitions: Tensor = torch.zeros(n_tokens, len(states), len(states), dtype=torch.float64)
    for (origin, token, destination), probability in edges.items():
        transitions[token, states.index(origin), states.index(destination)] = probability
    return Process(transitions, name=name, states=states, parameters=parameters)


def _check_range(process: str, parameter: str, value: float, low: float, high: float, reason: str) -> None:
    if not low <= value <= high:
        raise ValueError(
            f"{process}({parameter}={value:g}): {parameter} must lie in [{low:g}, {high:g}], since {reason}."
        )
