"""The named processes of the literature: hidden Markov processes first, then generalized ones.

Each docstring gives the source, the meaning of the parameters and their legal ranges. The defaults are those of the
source and appear in the process's `repr`.

The generalized processes, quantum and post-quantum, need fewer dimensions than any hidden Markov process with the same
words, which may need infinitely many states. Their beliefs are not distributions over hidden states; see `Process`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch

from msp_lens._checks import AtLeast, Count, check_memory, checked
from msp_lens.processes.compose import Mixture, leaky
from msp_lens.processes.process import Process
from msp_lens.processes.registry import check_range, from_edges, named, refuse

PROBABILITY = "it is a probability"
REAL = "(-∞, ∞)"


@named(finite=False)
@checked
def mess3(x: float = 0.05, a: float = 0.85) -> Process:
    """Three states behind three noisy tokens: beliefs form a fractal on the triangle.

    T[k, i, j] = (a if j = k else (1-a)/2) · (1-2x if i = j else x).

    Args:
        x: Probability of moving to each of the other states, in (0, 0.5]; at 0 no state is ever left.
        a: Probability that the token names the state arrived at, in [0, 1]. Besides the defaults, (x, a) = (0.15, 0.6)
            is common: say which you use.

    Source: Marzen & Crutchfield 2017, "Nearly maximally predictive features and their dimensions"; parameters of
    Shai et al. 2024 (arXiv 2405.15943).
    """
    check_range("mess3", "(0, 0.5]", "the probability of staying is 1 - 2x, and at 0 no state is ever left", x=x)
    check_range("mess3", "[0, 1]", PROBABILITY, a=a)
    # In float64 from the start: a float32 rounding of x would be normalized differently from machine to machine.
    moves = torch.full((3, 3), x, dtype=torch.float64).fill_diagonal_(1 - 2 * x)
    emits = torch.full((3, 3), (1 - a) / 2, dtype=torch.float64).fill_diagonal_(a)
    names, transitions = ("A", "B", "C"), emits[:, None, :] * moves[None, :, :]
    return Process(transitions, name="mess3", states=names, tokens=names, parameters={"x": x, "a": a})


@named(finite=True)
@checked
def z1r(p: float = 0.5) -> Process:
    """Zero-One-Random: a 0, a 1, then a random token, and so on.

    Args:
        p: Probability that the random token is 1, in [0, 1].

    Source: Shai et al. 2024 (arXiv 2405.15943).
    """
    check_range("z1r", "[0, 1]", PROBABILITY, p=p)
    edges = {("0", 0, "1"): 1.0, ("1", 1, "R"): 1.0, ("R", 0, "0"): 1 - p, ("R", 1, "0"): p}
    return from_edges("z1r", ("0", "1", "R"), ("0", "1"), edges, p=p)


@named(finite=True)
@checked
def rrxor(p1: float = 0.5, p2: float = 0.5) -> Process:
    """Random-Random-XOR: two random bits, then their exclusive or, and so on.

    State S emits the first bit, states 0 and 1 the second; T and F emit the exclusive or.

    Args:
        p1: Probability that the first bit is 0, in [0, 1].
        p2: Probability that the second bit equals the first, in [0, 1]. (The literature differs except at ½.)

    Source: Shai et al. 2024 (arXiv 2405.15943).
    """
    check_range("rrxor", "[0, 1]", PROBABILITY, p1=p1, p2=p2)
    edges = {("S", 0, "0"): p1, ("S", 1, "1"): 1 - p1, ("T", 1, "S"): 1.0, ("F", 0, "S"): 1.0}
    edges |= {("0", 0, "F"): p2, ("0", 1, "T"): 1 - p2, ("1", 0, "T"): 1 - p2, ("1", 1, "F"): p2}
    return from_edges("rrxor", ("S", "0", "1", "T", "F"), ("0", "1"), edges, p1=p1, p2=p2)


@named(finite=True)
@checked
def golden_mean(p: float = 0.5) -> Process:
    """No two 1s in a row: every 1 is followed by a 0.

    Args:
        p: Probability of a 1 where one is allowed, in [0, 1].

    Source: Crutchfield & Feldman 2003, "Regularities unseen, randomness observed".
    """
    check_range("golden_mean", "[0, 1]", PROBABILITY, p=p)
    edges = {("A", 0, "A"): 1 - p, ("A", 1, "B"): p, ("B", 0, "A"): 1.0}
    return from_edges("golden_mean", ("A", "B"), ("0", "1"), edges, p=p)


@named(finite=True)
@checked
def even(p: float = 0.5) -> Process:
    """Runs of 1s between 0s have even length: infinite memory from two states.

    Args:
        p: Probability of starting a pair of 1s where one may start, in [0, 1].

    Source: Weiss 1973; Crutchfield & Feldman 2003.
    """
    check_range("even", "[0, 1]", PROBABILITY, p=p)
    edges = {("E", 0, "E"): 1 - p, ("E", 1, "O"): p, ("O", 1, "E"): 1.0}
    return from_edges("even", ("E", "O"), ("0", "1"), edges, p=p)


@named(finite=True)
@checked
def coin(p: float = 0.5) -> Process:
    """A biased coin: one state, and nothing to infer.

    Args:
        p: Probability of a 0, in [0, 1].

    Source: none needed; this is the process without memory.
    """
    check_range("coin", "[0, 1]", PROBABILITY, p=p)
    return Process([[[p]], [[1 - p]]], name="coin", states=("C",), parameters={"p": p})


@checked
def coins(n: Count) -> Mixture:
    """One of n coins, of biases p = 1/(n+1), 2/(n+1), …, n/(n+1), chosen once a word with equal probability.

    It stands for a parameter to be learned in context: the optimal observer loses about 1/(2ℓ) nats more at the ℓ-th
    token than one who knows the coin. See `beliefs.learning_curve`.

    Source: arXiv 2505.18373.

    Example:
        >>> coins(3)
        coins(0.333333 coin(p=0.25), 0.333333 coin(p=0.5), 0.333333 coin(p=0.75)): 3 states, 2 tokens
    """
    return Mixture([coin(p=k / (n + 1)) for k in range(1, n + 1)], [1 / n] * n, name="coins")


@named(finite=False)
@checked
def sns(p: float = 0.5, q: float = 0.5) -> Process:
    """The simple nonunifilar source: infinitely many beliefs from two states.

    Args:
        p: Probability of leaving A for B (emitting 0), in [0, 1].
        q: Probability of leaving B for A (emitting 1), in [0, 1]. They may not both be 0: no state would be left.

    Source: Crutchfield 1994; Marzen & Crutchfield 2015, "Informational and causal architecture of discrete-time
    renewal processes".
    """
    check_range("sns", "[0, 1]", PROBABILITY, p=p, q=q)
    if p == q == 0:
        refuse("sns", "p and q must lie in [0, 1] and not both be 0, since no state would be left", p=p, q=q)
    edges = {("A", 0, "A"): 1 - p, ("A", 0, "B"): p, ("B", 0, "B"): 1 - q, ("B", 1, "A"): q}
    return from_edges("sns", ("A", "B"), ("0", "1"), edges, p=p, q=q)


@named(finite=False)
@checked
def leaky_rrxor(p1: float = 0.5, p2: float = 0.5, epsilon: float = 0.1) -> Process:
    """Random-Random-XOR that sometimes forgets: it emits any token and jumps to any state.

    T = (1-ε) T_rrxor + ε/10 in every entry, 2 tokens × 5 states.

    Args:
        p1: Probability that the first bit is 0, in [0, 1].
        p2: Probability that the second bit equals the first, in [0, 1].
        epsilon: Probability of a leak, in [0, 1].

    Source: simplexity, the generator library of Simplex (which has no default ε; 0.1 is ours).
    """
    check_range("leaky_rrxor", "[0, 1]", PROBABILITY, p1=p1, p2=p2, epsilon=epsilon)
    return leaky(rrxor(p1, p2), epsilon)


@named(finite=False)
@checked
def matching_parens(
    open_prob: float | Sequence[float] = 0.5,
    depth: Annotated[int, AtLeast(1, "the number of parentheses that may be open")] | None = None,
) -> Process:
    """Matching parentheses: the state is the number of open ones.

    At depth i another one opens with probability p_i; otherwise one closes.

    Args:
        open_prob: Probability of opening at every depth but the first and last, in (0, 1): at 0 or 1 some depths would
            never be visited again. Or the sequence p_0 … p_depth, which begins with 1 and ends with 0; as in
            simplexity, the 0 may be left out.
        depth: How deep parentheses may nest; by default 3, or what the sequence implies.

    Source: simplexity, the generator library of Simplex (which has no defaults; ½ and 3 are ours).
    """
    if isinstance(open_prob, Sequence):
        open_prob = opens = [*open_prob] if open_prob and open_prob[-1] == 0 else [*open_prob, 0.0]
        levels, between = len(opens) - 1, opens[1:-1]
        if opens[0] != 1 or depth not in (None, levels):
            rule = "a sequence is p_0 … p_depth, of which the first is 1 and the last, which may be left out, 0"
            refuse("matching_parens", rule, open_prob=open_prob, **({} if depth is None else {"depth": depth}))
    else:
        levels, between = depth or 3, [open_prob]
        opens = [1.0, *([open_prob] * (levels - 1)), 0.0]
    for p in between:
        check_range("matching_parens", "(0, 1)", "at 0 or 1 some depths would never be visited again", open_prob=p)
    check_memory(f"depth={levels}", 16 * (levels + 1) ** 2, "Give a smaller depth.")
    states = tuple(str(i) for i in range(levels + 1))
    edges = {(states[i], 0, states[i + 1]): opens[i] for i in range(levels)}
    edges |= {(states[i], 1, states[i - 1]): 1 - opens[i] for i in range(1, levels + 1)}
    return from_edges("matching_parens", states, ("(", ")"), edges, open_prob=open_prob, depth=levels)


@named(finite=True)
@checked
def mr_name(p: float = 0.4, q: float = 0.25) -> Process:
    """A Markov chain of four words in which Mr. is always followed by a name: each state is the word just emitted.

    Args:
        p: Probability that Something is followed by Blah, and Blah by Something; p ≥ 0.
        q: Probability that either is followed by Mr.; q ≥ 0. 0 < p + q ≤ 1, since either repeats itself with
            probability 1 - p - q and must be left at some time.

    Source: simplexity, the generator library of Simplex, and its tests for p and q.
    """
    check_range("mr_name", "[0, 1]", PROBABILITY, p=p, q=q)
    if not 0 < p + q <= 1:
        rule = "p + q must lie in (0, 1], since 1 - p - q is the probability of repeating, which may not be 1"
        refuse("mr_name", rule, p=p, q=q)
    words, repeat = ("Mr.", "Something", "Blah", "name"), 1 - p - q
    follows = ((0, 0, 0, 1), (q, repeat, p, 0), (q, p, repeat, 0), (0, 0.5, 0.5, 0))
    edges = {(words[i], k, words[k]): follows[i][k] for i in range(4) for k in range(4)}
    return from_edges("mr_name", words, words, edges, p=p, q=q)


@named(finite=True)
@checked
def days_of_week() -> Process:
    """Days of the week: tokens name a day, or say tomorrow, yesterday, weekend or weekday.

    The name of the next day has probability 5/15, every other token 1/15. The state becomes the day named, or the next
    or preceding one, or one of those of the weekend or of the working week.

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


@named(finite=False)
@checked
def bloch_walk(alpha: float = 1.0, beta: float = math.sqrt(51)) -> Process:
    """A qubit measured weakly along one of two axes at random: its beliefs fill a disk of the Bloch sphere.

    A belief is (1, x, z), with the Bloch vector (x, z) of the state. Tokens 0 and 1 are the outcomes of the measurement
    along z, with Kraus operators γ(α ± β σ_z), and 2 and 3 those along x.

    Args:
        alpha: Weight of leaving the state alone, any real number.
        beta: Weight of the measurement, any real number but 0, at which nothing is measured. Only β/α matters.

    Source: Riechers, Elliott & Shai 2025 (arXiv 2507.07432).
    """
    check_range("bloch_walk", REAL, "it is a weight", alpha=alpha, beta=beta)
    if beta == 0:
        refuse("bloch_walk", "beta must lie in (-∞, 0) or (0, ∞), since at 0 nothing is measured", beta=beta)
    ratio, d = math.hypot(alpha, beta), 1 / 4
    c, s = alpha / ratio, beta / ratio
    m, o = (c * c - s * s) / 4, c * s / 2
    transitions = [
        *([[d, 0, sign * o], [0, m, 0], [sign * o, 0, d]] for sign in (1, -1)),
        *([[d, sign * o, 0], [sign * o, d, 0], [0, 0, m]] for sign in (1, -1)),
    ]
    start, names, parameters = [1.0, 0, 0], ("1", "x", "z"), {"alpha": alpha, "beta": beta}
    return Process(
        transitions, name="bloch_walk", states=names, initial=start, right_eigenvector=start, parameters=parameters
    )


@named(finite=False)
@checked
def frdn(alpha: float = 2000.0, lam: float = 0.49) -> Process:
    """Runs of 1s of length n between 0s, with probability λ^n sin²(nα/2): no finite quantum machine generates them.

    A run of length 0 has the remaining probability. The process of Fanizza, Lumbreras & Winter, in four dimensions.

    Args:
        alpha: Angle in radians by which the hazard turns with each 1, any real number.
        lam: λ, the factor by which long runs get rarer, in [0, 1), and such that the probabilities of all runs ≥ 1 sum
            to at most 1: always true for λ ≤ ½, and dependent on α above.

    Source: Fanizza, Lumbreras & Winter 2024, "Quantum theory in finite dimension cannot explain every general process
    with finite memory"; parameters of Riechers, Elliott & Shai 2025 (arXiv 2507.07432).
    """
    check_range("frdn", REAL, "it is an angle", alpha=alpha)
    check_range("frdn", "[0, 1)", "runs of 1s end", lam=lam)
    cos, sin = math.cos(alpha), math.sin(alpha)
    D = 1 - 2 * lam * cos + lam**2
    runs = (lam / (1 - lam) - lam * (cos - lam) / D) / 2
    if runs > 1:
        rule = f"lam must lie in [0, 1) and the probabilities λ^n sin²(nα/2) must sum to at most 1, not to {runs:.4g}"
        refuse("frdn", f"{rule}: any lam up to 0.5 will do", alpha=alpha, lam=lam)
    a, b = (1 - lam * cos + lam * sin) / D, (1 - lam * cos - lam * sin) / D
    reset = torch.tensor([1 - (2 / (1 - lam) - a - b) / 4, 1 / (2 * (1 - lam)), -a / 4, -b / 4], dtype=torch.float64)
    stop = torch.tensor([1, 1 - lam, 1 + lam * (sin - cos), 1 - lam * (sin + cos)], dtype=torch.float64)
    turn = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, cos, -sin], [0, 0, sin, cos]], dtype=torch.float64)
    transitions, parameters = torch.stack([torch.outer(stop, reset), lam * turn]), {"alpha": alpha, "lam": lam}
    return Process(transitions, name="frdn", right_eigenvector=[1.0, 1, 1, 1], parameters=parameters)


@named(finite=False)
@checked
def moon(alpha: float = math.e, beta: float = 0.5) -> Process:
    """Beliefs on the arc (v, -1 - ln v, -1): post-quantum, so that no finite quantum machine generates it.

    A 0 sets v to 1, and tokens 1 and 2 multiply it by α and β. The weight of the next 0 is v - 1 - ln v ≥ 0, so a 0
    never follows a word that brings v back to 1.

    Args:
        alpha: Factor of token 1, in (0, ∞).
        beta: Factor of token 2, in (0, ∞). The two may not both be 1: v would never change, and no 0 would come again.

    Source: Riechers, Elliott & Shai 2025 (arXiv 2507.07432).
    """
    check_range("moon", "(0, ∞)", "its logarithm is taken", alpha=alpha, beta=beta)
    if alpha == beta == 1:
        rule = "alpha and beta must lie in (0, ∞) and not both be 1, since then no 0 would come again"
        refuse("moon", rule, alpha=alpha, beta=beta)
    factors = [[[v, 0, 0], [0, 1, 0], [0, math.log(v), 1]] for v in (alpha, beta)]
    restart = [[1, -1, -1], [1, -1, -1], [0, 0, 0]]
    transitions = torch.tensor([restart, *factors], dtype=torch.float64)
    radius = torch.linalg.eigvals(transitions.sum(dim=0)).abs().max()
    return Process(transitions / radius, name="moon", generalized=True, parameters={"alpha": alpha, "beta": beta})
