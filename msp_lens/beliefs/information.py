"""How predictable the process is: the entropies an optimal predictor attains, and what it must remember for them.

The block entropy H_L is that of words of L tokens; the myopic entropy h_L = H_L - H_{L-1} = H(X_L | X_1 … X_{L-1}) is
the expected entropy of the next token given the L - 1 before it. No predictor that sees only those can have a lower
expected loss. In a stationary process h_L falls towards the entropy rate h; what it was above h on the way, summed, is
the excess entropy E, the information that the past carries about the future.

Everything is in nats; `Measure.bits` converts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens.beliefs.filtering import next_token_probabilities
from msp_lens.beliefs.mixed_states import MERGE_TOLERANCE, equal_beliefs, grow
from msp_lens.beliefs.presentation import ROUNDING, Presentation, presentation
from msp_lens.processes.chains import reached_span
from msp_lens.processes.process import Process

# Levels of the tree are followed while they have no more nodes than this: where bounds will do, and where not.
MAX_LEVEL = 200_000
EXACT_LEVEL = 5_000_000
MAX_DEPTH = 300
# Dense solves over the mixed states are made for no more than this many.
MAX_STATES = 500
# Bounds that differ by no more are one number.
CONVERGED = 1e-10
# A bound that has fallen by no more than that in this many steps has settled.
SETTLED = 30
# The entropy of beliefs that close in on a limit wavers by this much, as more or fewer of them count as one.
BELIEFS_SETTLED = 1e-5
# Nearer each other than this, beliefs that differ cannot be told from the same belief reached in two ways.
FINEST = 1e-14
ONE = torch.ones(1, dtype=torch.float64)


@dataclass(frozen=True)
class Measure:
    """An information measure in nats, and between which bounds it is known to lie.

    Attributes:
        value: The measure, or the best estimate of it.
        lower: It is no less than this.
        upper: Nor more than this; `inf` where no bound is known.
        method: How it was found.
    """

    value: float
    lower: float
    upper: float
    method: str

    @property
    def is_exact(self) -> bool:
        """Whether the bounds agree, but for rounding."""
        return self.upper - self.lower <= 10 * CONVERGED

    @property
    def bits(self) -> float:
        """The value in bits."""
        return self.value / math.log(2)

    def __repr__(self) -> str:
        if self.is_exact:
            return f"{self.value:.6g} nats ({self.method})"
        return f"{self.value:.6g} nats, between {self.lower:.6g} and {self.upper:.6g} ({self.method})"


def _exactly(value: float, method: str) -> Measure:
    return Measure(value, value, value, method)


def block_entropies(process: Process, length: int) -> Float64[Tensor, "length"]:
    """H_1 … H_length in nats: the entropies of words of each length.

    Example:
        >>> from msp_lens.processes.catalog import coin
        >>> block_entropies(coin(p=0.5), 3) / math.log(2)   # bits
        tensor([1., 2., 3.], dtype=torch.float64)
    """
    return myopic_entropies(process, length).cumsum(dim=0)


def myopic_entropies(process: Process, length: int, *, max_level: int = EXACT_LEVEL) -> Float64[Tensor, "length"]:
    """h_1 … h_length in nats, exactly: every possible word is accounted for, those of equal belief together.

    Crutchfield & Feldman 2003 (arXiv cond-mat/0102181), eq. 18.

    Raises:
        ValueError: if more than `max_level` different beliefs follow words of one length.

    Example:
        >>> from msp_lens.processes.catalog import mess3
        >>> myopic_entropies(mess3(x=0.05, a=0.85), 3)
        tensor([1.0986, 0.8577, 0.8134], dtype=torch.float64)
    """
    if length < 1:
        raise ValueError(f"length={length}: must be at least 1, the number of entropies wanted.")
    entropies = list(_entropies(process, process.initial.unsqueeze(0), ONE, length, max_level))
    if len(entropies) < length:
        raise ValueError(_too_many(process, len(entropies) - 1, max_level, length))
    return torch.stack(entropies)


def _entropies(
    process: Process,
    roots: Float64[Tensor, "root state"],
    probabilities: Float64[Tensor, "root"],
    length: int,
    max_level: int,
) -> Iterator[Float64[Tensor, ""]]:
    """H(X_L | X_1 … X_{L-1}, root) for L = 1, 2, …, `length`, as deep as levels have no more than `max_level` nodes."""
    yield probabilities @ entropy(next_token_probabilities(process, roots))
    levels = grow(process, roots, probabilities.log(), length - 1, MERGE_TOLERANCE, max_level=max_level)
    for level in levels:
        yield level.probabilities @ entropy(next_token_probabilities(process, level.beliefs))


def optimal_losses(process: Process, n_ctx: int, *, max_level: int = MAX_LEVEL) -> Float64[Tensor, "pos"]:
    """The least expected next-token loss at each position of a context, in nats: h_2 … h_{n_ctx + 1}.

    Position t has seen t + 1 tokens and predicts the one after. Exact as deep as words lead to at most `max_level`
    different beliefs; from there on the middle between the last exact value and the entropy rate's lower bound, which
    is off by at most half their distance (for Mess3 about 1e-6 nats).
    """
    if n_ctx < 1:
        raise ValueError(f"n_ctx={n_ctx}: a context has at least 1 token.")
    roots = process.initial.unsqueeze(0)
    entropies = torch.stack(list(_entropies(process, roots, ONE, n_ctx + 1, max_level)))
    if len(entropies) < n_ctx + 1:
        rest = (float(entropies[-1]) + entropy_rate(process, max_level=max_level).lower) / 2
        entropies = torch.cat([entropies, torch.full((n_ctx + 1 - len(entropies),), rest).double()])
    return entropies[1:]


def regret_floor(process: Process, n_ctx: int) -> Float64[Tensor, "pos"]:
    """What a short memory costs: the least loss at each position less the entropy rate, in nats.

    The best predictor of `n_ctx` tokens' context has no regret towards what can be known from them, and this much
    towards an observer who has seen the whole past.
    """
    return optimal_losses(process, n_ctx) - entropy_rate(process).value


def entropy_rate(process: Process, *, max_level: int = MAX_LEVEL) -> Measure:
    """h, the entropy of the next token given the whole past, in nats.

    Exact where the process is unifilar, h = Σ_i π_i H(X | state i), and where its mixed states are finite, the same sum
    over them. Else from bounds that tighten with the length L of the words followed,

        H(X_L | X_1 … X_{L-1}, S_0)  ≤  h  ≤  h_L        (Cover & Thomas 2006, theorem 4.5.1),

    until they agree or more than `max_level` different beliefs would have to be told apart. A generalized process has
    no hidden states to bound it from below by. The process is taken as it is in the long run: a start that is not
    stationary is forgotten.

    Example:
        >>> from msp_lens.processes.catalog import golden_mean
        >>> entropy_rate(golden_mean(p=0.5)).bits   # 2/3
        0.6666666666666...
    """
    state = long_run_state(process)
    if process.is_unifilar and not process.is_generalized:
        return _exactly(float(state @ entropy(process.emissions)), "unifilar")
    found = presentation(process, max_states=MAX_STATES)
    if found.is_finite:
        return _exactly(_rate_over(found), f"{len(found)} mixed states")
    return _bounded_rate(process, state, max_level)


def _rate_over(found: Presentation) -> float:
    each = entropy(next_token_probabilities(found.process, found.beliefs))
    return float(long_run_state(found.to_process()) @ each)


def _bounded_rate(process: Process, state: Float64[Tensor, "state"], max_level: int) -> Measure:
    upper_bounds = _entropies(process, state.unsqueeze(0), ONE, MAX_DEPTH, max_level)
    if process.is_generalized:
        bounds: list[float] = []
        for bound in upper_bounds:
            bounds.append(float(bound))
            if len(bounds) > SETTLED and bounds[-SETTLED] - bounds[-1] <= CONVERGED:
                break
        return Measure(_extrapolated(bounds), 0.0, bounds[-1], f"upper bounds from words of up to {len(bounds)} tokens")
    # A vertex of the simplex for each state that the process is ever in.
    visited = state > ROUNDING
    vertices = torch.eye(process.n_states, dtype=torch.float64)[visited]
    lower_bounds = _entropies(process, vertices, state[visited], MAX_DEPTH, max_level)
    lower, upper, depth = 0.0, math.inf, 0
    for below, above in zip(lower_bounds, upper_bounds, strict=False):
        lower, upper, depth = max(lower, float(below)), min(upper, float(above)), depth + 1
        if upper - lower <= CONVERGED:
            break
    return Measure((lower + upper) / 2, lower, upper, f"bounds from words of {depth} tokens")


def _extrapolated(falling: list[float]) -> float:
    """Where a falling sequence goes if its last steps go on shrinking at their ratio (Aitken)."""
    if len(falling) < 3:
        return falling[-1]
    first, second = falling[-3] - falling[-2], falling[-2] - falling[-1]
    return falling[-1] - (second**2 / (first - second) if first > second > 0 else 0.0)


def excess_entropy(process: Process, *, max_level: int = MAX_LEVEL) -> Measure:
    """E = Σ_L (h_L - h), what the past tells about the future, in nats.

    Exact where the mixed states are finite: with W their transitions, H the entropy of the next token at each and Π the
    long-run projection, E = η₀ (I - W + Π)⁻¹ (H - h). Else the sum as far as levels can be followed; the lower bound is
    then the information that L tokens carry about the next L, 2 H_L - H_2L, and the upper one is not known.

    Source: Crutchfield & Feldman 2003 (arXiv cond-mat/0102181), section IV; Riechers & Crutchfield 2018.

    Example:
        >>> from msp_lens.processes.catalog import z1r
        >>> excess_entropy(z1r())   # log 3: once the phase is known there is no more to know
        1.09861 nats (7 mixed states)
    """
    found = presentation(process, max_states=MAX_STATES)
    if found.is_finite:
        graph = found.to_process()
        each = entropy(next_token_probabilities(process, found.beliefs))
        walk = graph.state_transitions
        projection = long_run_projection(walk)
        identity = torch.eye(len(found), dtype=torch.float64)
        above = each - projection @ each
        # (I - W + Π)⁻¹ sums W^L - Π over all L, plus Π, which does away with what is above the rate.
        summed = torch.linalg.solve(identity - walk + projection, above.unsqueeze(1)).squeeze(1)
        return _exactly(float(summed[0]), f"{len(found)} mixed states")
    state = long_run_state(process)
    rate = entropy_rate(process, max_level=max_level)
    reached: list[float] = []
    for entropies in _entropies(process, state.unsqueeze(0), ONE, MAX_DEPTH, max_level):
        reached.append(float(entropies))
        if reached[-1] - rate.value <= max(CONVERGED, rate.upper - rate.value):
            break
    half = len(reached) // 2
    lower = sum(reached[:half]) - sum(reached[half : 2 * half])
    value = sum(bound - rate.value for bound in reached)
    return Measure(value, lower, math.inf, f"summed over words of {len(reached)} tokens")


def statistical_complexity(process: Process, *, max_level: int = MAX_LEVEL) -> Measure:
    """C_μ, the entropy of the causal state: what an optimal predictor must remember, in nats.

    Causal states are the recurrent mixed states, those of equal future taken together (Crutchfield & Young 1989). Where
    they are finite this is exact. Else the entropy of the belief after words of L tokens is followed as L grows. Where
    the causal states can be counted (as for the simple nonunifilar source) it settles, on a lower bound: states nearer
    each other than floating point can tell apart were taken as one. Where they can not (as for Mess3) every token adds
    as much as the last; the value is then infinite, and the lower bound how far it got.

    Example:
        >>> from msp_lens.processes.catalog import z1r
        >>> statistical_complexity(z1r())
        1.09861 nats (7 mixed states)
    """
    found = presentation(process, max_states=MAX_STATES)
    if found.is_finite:
        graph = found.to_process()
        return _exactly(_future_entropy(process, found.beliefs, long_run_state(graph)), f"{len(found)} mixed states")
    if process.is_unifilar and not process.is_generalized:
        states = torch.eye(process.n_states, dtype=torch.float64)
        return _exactly(_future_entropy(process, states, long_run_state(process)), "unifilar")
    reached = [0.0]
    root = long_run_state(process).unsqueeze(0)
    for level in grow(process, root, ONE.log(), MAX_DEPTH, FINEST, max_level=max_level):
        reached.append(_future_entropy(process, level.beliefs, level.probabilities, FINEST))
        if abs(reached[-1] - reached[-2]) <= BELIEFS_SETTLED:
            return Measure(reached[-1], reached[-1], math.inf, "settled belief entropy")
    steps = [after - before for before, after in itertools.pairwise(reached)]
    # Each token adds as much as the one before it: the beliefs fill a set that cannot be counted.
    if steps[-1] > 0.5 * steps[len(steps) // 2]:
        return Measure(math.inf, reached[-1], math.inf, "belief entropy grows with every token")
    return Measure(reached[-1], reached[-1], math.inf, f"belief entropy after {len(steps)} tokens")


def _future_entropy(
    process: Process,
    beliefs: Float64[Tensor, "node state"],
    probabilities: Float64[Tensor, "node"],
    tolerance: float = MERGE_TOLERANCE,
) -> float:
    """The entropy of which future a belief promises: beliefs that promise the same are one."""
    futures = beliefs @ reached_span(process.transitions.transpose(1, 2), process.right_eigenvector).T
    labels, first = equal_beliefs(futures, tolerance)
    merged = torch.zeros(len(first), dtype=torch.float64).index_add_(0, labels, probabilities)
    return float(entropy(merged))


def synchronization(process: Process, length: int, *, max_level: int = EXACT_LEVEL) -> Float64[Tensor, "length_1"]:
    """The expected entropy of the belief after 0, 1, …, `length` tokens, in nats: how unsure of the state one still is.

    Raises:
        ValueError: if the process is generalized, so that its beliefs are no distributions; or has too many beliefs.

    Example:
        >>> from msp_lens.processes.catalog import z1r
        >>> synchronization(z1r(), 3)   # nats
        tensor([1.0986, 0.6365, 0.2310, 0.0000], dtype=torch.float64)
    """
    if process.is_generalized:
        raise ValueError(f"{process.name} is a generalized process: its beliefs are not distributions over states.")
    root = process.initial.unsqueeze(0)
    expected = [entropy(process.initial)]
    for level in grow(process, root, ONE.log(), length, MERGE_TOLERANCE, max_level=max_level):
        expected.append(level.probabilities @ entropy(level.beliefs))
    if len(expected) <= length:
        raise ValueError(_too_many(process, len(expected) - 1, max_level, length))
    return torch.stack(expected)


def _too_many(process: Process, depth: int, max_level: int, length: int) -> str:
    return (
        f"After words of more than {depth} tokens {process.name} may have more than {max_level:,} different beliefs: "
        f"lower length={length}, or raise max_level. (optimal_losses and entropy_rate bound what they do not reach.)"
    )


def long_run_state(process: Process) -> Float64[Tensor, "state"]:
    """The state the process is in in the long run, on average over time; the initial one where that is stationary."""
    return process.initial @ long_run_projection(process.state_transitions)


def long_run_projection(walk: Float64[Tensor, "state state"]) -> Float64[Tensor, "state state"]:
    """The limit of (I + W + … + W^{n-1}) / n: the projection on what W leaves as it is."""
    left, sizes, right = torch.linalg.svd(walk - torch.eye(len(walk), dtype=torch.float64))
    fixed = sizes <= ROUNDING * len(walk)
    # Rows of `right` span what W maps to itself from the right, columns of `left` from the left.
    from_right, from_left = right[fixed].T, left[:, fixed]
    return from_right @ torch.linalg.solve(from_left.T @ from_right, from_left.T)


def entropy(distribution: Float64[Tensor, "*batch outcome"]) -> Float64[Tensor, "*batch"]:
    """Shannon entropy in nats along the last axis, with 0 log 0 = 0; rounding below 0 counts as 0."""
    return torch.special.entr(distribution.clamp(min=0)).sum(dim=-1)


def kl_divergence(
    optimal: Float64[Tensor, "*batch token"], log_predicted: Float64[Tensor, "*batch token"]
) -> Float64[Tensor, "*batch"]:
    """KL(optimal ‖ predicted) in nats along the last axis; the predictions are given as log-probabilities.

    Tokens that never come (probability 0) cost nothing whatever their prediction, `-inf` included.
    """
    cross_terms = torch.where(optimal > 0, optimal * log_predicted, 0.0)
    return -entropy(optimal) - cross_terms.sum(dim=-1)
