"""The named hidden Markov processes of the literature.

Each function returns a `Process`; its docstring gives the source, what the parameters mean and their legal
range. The defaults are those of the source and appear in the process's `repr`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from msp_lens.processes.compose import leaky
from msp_lens.processes.process import Process
from msp_lens.processes.registry import check_range, from_edges, named, refuse

PROBABILITY = "it is a probability"


@named(finite=False)
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
    check_range("mess3", "x", x, "(0, 0.5]", "the probability of staying is 1 - 2x, and at 0 no state is ever left")
    check_range("mess3", "a", a, "[0, 1]", PROBABILITY)
    # Made as float64: a float32 rounding of x would be normalized away differently from machine to machine.
    moves = torch.full((3, 3), x, dtype=torch.float64).fill_diagonal_(1 - 2 * x)
    emits = torch.full((3, 3), (1 - a) / 2, dtype=torch.float64).fill_diagonal_(a)
    transitions = emits[:, None, :] * moves[None, :, :]
    return Process(
        transitions, name="mess3", states=("A", "B", "C"), tokens=("A", "B", "C"), parameters={"x": x, "a": a}
    )


@named(finite=True)
def z1r(p: float = 0.5) -> Process:
    """Zero-One-Random: a 0, a 1, then a random token, for ever.

    Args:
        p: Probability that the random token is 1, in [0, 1].

    Source: Shai et al. 2024 (arXiv 2405.15943).
    """
    check_range("z1r", "p", p, "[0, 1]", PROBABILITY)
    edges = {("0", 0, "1"): 1.0, ("1", 1, "R"): 1.0, ("R", 0, "0"): 1 - p, ("R", 1, "0"): p}
    return from_edges("z1r", ("0", "1", "R"), 2, edges, {"p": p})


@named(finite=True)
def rrxor(p1: float = 0.5, p2: float = 0.5) -> Process:
    """Random-Random-XOR: two random bits, then their exclusive or, for ever.

    From S the first bit is drawn, from 0 or 1 the second; T and F emit the exclusive or.

    Args:
        p1: Probability that the first bit is 0, in [0, 1].
        p2: Probability that the second bit equals the first, in [0, 1]. (The literature differs for values
            other than ½.)

    Source: Shai et al. 2024 (arXiv 2405.15943).
    """
    check_range("rrxor", "p1", p1, "[0, 1]", PROBABILITY)
    check_range("rrxor", "p2", p2, "[0, 1]", PROBABILITY)
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
    return from_edges("rrxor", ("S", "0", "1", "T", "F"), 2, edges, {"p1": p1, "p2": p2})


@named(finite=True)
def golden_mean(p: float = 0.5) -> Process:
    """No two 1s in a row: after a 1 comes a 0.

    Args:
        p: Probability of a 1 where one is allowed, in [0, 1].

    Source: Crutchfield & Feldman 2003, "Regularities unseen, randomness observed".
    """
    check_range("golden_mean", "p", p, "[0, 1]", PROBABILITY)
    edges = {("A", 0, "A"): 1 - p, ("A", 1, "B"): p, ("B", 0, "A"): 1.0}
    return from_edges("golden_mean", ("A", "B"), 2, edges, {"p": p})


@named(finite=True)
def even(p: float = 0.5) -> Process:
    """Runs of 1s between 0s have even length: infinite memory from two states.

    Args:
        p: Probability of starting a pair of 1s where one may start, in [0, 1].

    Source: Weiss 1973; Crutchfield & Feldman 2003.
    """
    check_range("even", "p", p, "[0, 1]", PROBABILITY)
    edges = {("E", 0, "E"): 1 - p, ("E", 1, "O"): p, ("O", 1, "E"): 1.0}
    return from_edges("even", ("E", "O"), 2, edges, {"p": p})


@named(finite=True)
def coin(p: float = 0.5) -> Process:
    """A biased coin: one state, nothing to know.

    Args:
        p: Probability of a 0, in [0, 1].

    Source: none needed, the case without memory.
    """
    check_range("coin", "p", p, "[0, 1]", PROBABILITY)
    return Process([[[p]], [[1 - p]]], name="coin", states=("C",), parameters={"p": p})


@named(finite=False)
def sns(p: float = 0.5, q: float = 0.5) -> Process:
    """The simple nonunifilar source: infinitely many beliefs from two states.

    Args:
        p: Probability of leaving A for B (emitting 0), in [0, 1].
        q: Probability of leaving B for A (emitting 1), in [0, 1]. Not both 0: no state would ever be left.

    Source: Crutchfield 1994; Marzen & Crutchfield 2015, "Informational and causal architecture of discrete-time
    renewal processes".
    """
    check_range("sns", "p", p, "[0, 1]", PROBABILITY)
    check_range("sns", "q", q, "[0, 1]", PROBABILITY)
    if p == q == 0:
        refuse("sns", {"p": p, "q": q}, "p and q must lie in [0, 1] and not both be 0, since no state would be left")
    edges = {("A", 0, "A"): 1 - p, ("A", 0, "B"): p, ("B", 0, "B"): 1 - q, ("B", 1, "A"): q}
    return from_edges("sns", ("A", "B"), 2, edges, {"p": p, "q": q})


@named(finite=False)
def leaky_rrxor(p1: float = 0.5, p2: float = 0.5, epsilon: float = 0.1) -> Process:
    """Random-Random-XOR that forgets: now and then any token, and any state after it.

    T = (1-ε) T_rrxor + ε/10 in every entry, 2 tokens × 5 states.

    Args:
        p1: Probability that the first bit is 0, in [0, 1].
        p2: Probability that the second bit equals the first, in [0, 1].
        epsilon: Probability of a leak, in [0, 1]: at 0 there is none, at 1 nothing else.

    Source: simplexity, the generator library of Simplex (which names no ε; 0.1 is ours).
    """
    check_range("leaky_rrxor", "p1", p1, "[0, 1]", PROBABILITY)
    check_range("leaky_rrxor", "p2", p2, "[0, 1]", PROBABILITY)
    check_range("leaky_rrxor", "epsilon", epsilon, "[0, 1]", PROBABILITY)
    return leaky(rrxor(p1, p2), epsilon)


@named(finite=False)
def matching_parens(open_prob: float | Sequence[float] = 0.5, depth: float | None = None) -> Process:
    """Parentheses that match: the state is how many are open.

    Depth i opens one more with probability p_i, else closes one. At depth 0 one can only open, at the last only close.

    Args:
        open_prob: Probability of opening at every depth between, in (0, 1): at 0 or 1 some depths would never be
            visited again. Or the sequence p_0 … p_depth, which begins with 1 and ends with 0.
        depth: How deep parentheses may nest, a whole number ≥ 1; 3 where a sequence does not say it.

    Source: simplexity, the generator library of Simplex (which names no probabilities; ½ and 3 are ours).
    """
    reason = "at 0 or 1 some depths would never be visited again"
    if isinstance(open_prob, Sequence):
        opens = [float(p) for p in open_prob]
        levels = _whole(len(opens) - 1 if depth is None else depth)
        if len(opens) != levels + 1 or opens[0] != 1 or opens[-1] != 0:
            rule = f"a sequence must have {levels + 1} entries, depth + 1, of which the first is 1 and the last 0"
            refuse("matching_parens", {"open_prob": opens, "depth": levels}, rule)
        for p in opens[1:-1]:
            check_range("matching_parens", "open_prob", p, "(0, 1)", reason)
        given: float | list[float] = opens
    else:
        check_range("matching_parens", "open_prob", open_prob, "(0, 1)", reason)
        levels = _whole(3 if depth is None else depth)
        opens = [1.0, *([open_prob] * (levels - 1)), 0.0]
        given = open_prob
    states = tuple(str(i) for i in range(levels + 1))
    edges = {(states[i], 0, states[i + 1]): opens[i] for i in range(levels)}
    edges |= {(states[i], 1, states[i - 1]): 1 - opens[i] for i in range(1, levels + 1)}
    return from_edges("matching_parens", states, ("(", ")"), edges, {"open_prob": given, "depth": levels})


def _whole(depth: float) -> int:
    if not (math.isfinite(depth) and depth >= 1 and depth == int(depth)):
        rule = "depth must lie in 1, 2, 3, …, since it is how many parentheses may be open"
        refuse("matching_parens", {"depth": depth}, rule)
    return int(depth)


@named(finite=True)
def mr_name(p: float = 0.4, q: float = 0.25) -> Process:
    """Mr. is followed by a name: each word depends on the one before, and each state is the word it emitted.

    Args:
        p: Probability that Something is followed by Blah, and Blah by Something; p ≥ 0.
        q: Probability that either is followed by Mr.; q ≥ 0. p + q ≤ 1, since either repeats itself with probability
            1 - p - q; and not both are 0, since then neither would be left.

    Source: simplexity, the generator library of Simplex, and its tests for p and q.
    """
    check_range("mr_name", "p", p, "[0, 1]", PROBABILITY)
    check_range("mr_name", "q", q, "[0, 1]", PROBABILITY)
    if not 0 < p + q <= 1:
        rule = (
            "p + q must lie in (0, 1], since 1 - p - q is the probability of repeating, and at 0 nothing else happens"
        )
        refuse("mr_name", {"p": p, "q": q}, rule)
    words = ("Mr.", "Something", "Blah", "name")
    repeat = 1 - p - q
    follows = ((0, 0, 0, 1), (q, repeat, p, 0), (q, p, repeat, 0), (0, 0.5, 0.5, 0))
    edges = {(words[i], k, words[k]): follows[i][k] for i in range(4) for k in range(4)}
    return from_edges("mr_name", words, words, edges, {"p": p, "q": q})


@named(finite=True)
def days_of_week() -> Process:
    """The day it is, or what is said of it: names of days, tomorrow, yesterday, weekend, weekday.

    Of 15 parts, 5 go to the name of the day that follows, 1 to that of every other day (and it is that day then), 1
    each to tomorrow and yesterday (which move on and back), weekend (Saturday or Sunday) and weekday (any of five).

    Source: simplexity, the generator library of Simplex.
    """
    days = ("Mo", "Tu", "We", "Th", "Fr", "Sa", "Su")
    transitions = torch.zeros(11, 7, 7, dtype=torch.float64)
    for today in range(7):
        following, preceding = (today + 1) % 7, (today - 1) % 7
        for day in range(7):
            transitions[day, today, day] = 5 if day == following else 1
        transitions[7, today, following] = 1
        transitions[8, today, preceding] = 1
        transitions[9, today, 5:] = 1 / 2
        transitions[10, today, :5] = 1 / 5
    tokens = (*days, "tomorrow", "yesterday", "weekend", "weekday")
    return Process(transitions / 15, name="days_of_week", states=days, tokens=tokens)
