"""How predictable a process is: the entropies that an optimal predictor attains, and what it must remember to do so.

The block entropy H_L is that of words of L tokens; the myopic entropy h_L = H_L - H_{L-1} = H(X_L | X_1 … X_{L-1}) is
the lowest expected loss of a predictor that sees the L - 1 tokens before. In a stationary process h_L falls towards the
entropy rate h; the sum of the excesses h_L - h is the excess entropy E. Everything is in nats.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens._checks import AtLeast, Count, checked
from msp_lens._files import without_nan
from msp_lens._tables import nats_text
from msp_lens.beliefs.filtering import next_token_probabilities
from msp_lens.beliefs.mixed_states import MERGE_TOLERANCE, equal_beliefs, grow
from msp_lens.beliefs.presentation import ROUNDING, presentation
from msp_lens.beliefs.trajectories import draw_tokens, follow
from msp_lens.processes.compose import WithBos
from msp_lens.processes.factored import Factored
from msp_lens.processes.process import Process
from msp_lens.processes.structure import future_span

# The most nodes of a level of the tree: where bounds will do, and where the answer must be exact.
MAX_LEVEL, EXACT_LEVEL = 200_000, 5_000_000
MAX_DEPTH = 300
MAX_STATES = 500  # For a dense solve.
CONVERGED = 1e-10  # Bounds this close are one number.
WIDE = 2e-3  # Bounds further apart than this say less than a sample.
ONE = torch.ones(1, dtype=torch.float64)


@dataclass(frozen=True)
class Measure:
    """An information measure in nats, with bounds.

    Attributes:
        value: The measure, or the best estimate of it.
        lower: A lower bound.
        upper: An upper bound; `inf` if none is known.
        method: How it was computed.
    """

    value: float
    lower: float
    upper: float
    method: str

    @property
    def is_exact(self) -> bool:
        """Whether the bounds agree, up to rounding."""
        return self.upper - self.lower <= 10 * CONVERGED

    @property
    def bits(self) -> float:
        """The value in bits."""
        return self.value / math.log(2)

    def to_dict(self) -> dict[str, Any]:
        """The measure as JSON-ready values; infinite numbers are `None`."""
        return without_nan({"nats": self.value, "lower": self.lower, "upper": self.upper, "method": self.method})

    def __repr__(self) -> str:
        low, high = nats_text(self.lower), nats_text(self.upper)
        within = f", between {low} and {high}" if low != high else ""
        return f"{nats_text(self.value)} nats{within} ({self.method})"


def _exactly(value: float, method: str) -> Measure:
    return Measure(value, value, value, method)


@checked
def block_entropies(process: Process, length: Count, *, max_level: Count = EXACT_LEVEL) -> Float64[Tensor, "length"]:
    """H_1 … H_length in nats: the entropies of words of each length; `ValueError` as for `myopic_entropies`.

    Example:
        >>> from msp_lens.processes.catalog import coin
        >>> block_entropies(coin(p=0.5), 3) / math.log(2)   # bits
        tensor([1., 2., 3.], dtype=torch.float64)
    """
    return myopic_entropies(process, length, max_level=max_level).cumsum(dim=0)


@checked
def myopic_entropies(process: Process, length: Count, *, max_level: Count = EXACT_LEVEL) -> Float64[Tensor, "length"]:
    """h_1 … h_length in nats, exactly: over all possible words, those that lead to the same belief merged.

    Source: Crutchfield & Feldman 2003 (arXiv cond-mat/0102181), eq. 18.

    Raises:
        ValueError: if the words of one length lead to more than `max_level` beliefs.

    Example:
        >>> from msp_lens.processes.catalog import mess3
        >>> myopic_entropies(mess3(x=0.05, a=0.85), 3)
        tensor([1.0986, 0.8577, 0.8134], dtype=torch.float64)
    """
    entropies = first_entropies(process, length, max_level)
    if len(entropies) < length:
        raise ValueError(too_many(process, len(entropies) - 1, max_level, length))
    return entropies


def first_entropies(process: Process, length: int, max_level: int) -> Float64[Tensor, "at_most_length"]:
    """h_1, h_2, …, as far as words lead to at most `max_level` beliefs, and at most `length` of them."""
    if isinstance(process, WithBos):
        rest = first_entropies(process.process, length - 1, max_level) if length > 1 else ONE[:0]
        return torch.cat([torch.zeros(1, dtype=torch.float64), rest])
    if process.n_states == 1:  # Nothing is ever learned.
        return _next_entropies(process, process.initial.unsqueeze(0)).expand(length)
    if (parts := _independent(process)) is not None:
        measured = {part: first_entropies(part, length, max_level) for part in set(parts)}
        known = min(map(len, measured.values()))
        return torch.stack([measured[part][:known] for part in parts]).sum(dim=0)
    return torch.stack(list(_entropies(process, process.initial.unsqueeze(0), ONE, length, max_level)))


def _entropies(
    process: Process,
    roots: Float64[Tensor, "root state"],
    probabilities: Float64[Tensor, "root"],
    length: int,
    max_level: int,
) -> Iterator[Float64[Tensor, ""]]:
    """H(X_L | X_1 … X_{L-1}, root) for L = 1, 2, …, `length`, as far as levels have at most `max_level` nodes."""
    yield probabilities @ _next_entropies(process, roots)
    for level in grow(process, roots, probabilities.log(), length - 1, MERGE_TOLERANCE, max_level=max_level):
        yield level.probabilities @ _next_entropies(process, level.beliefs)


def _next_entropies(process: Process, beliefs: Float64[Tensor, "node state"]) -> Float64[Tensor, "node"]:
    return _entropy(beliefs @ process.emissions)


@checked
def optimal_losses(process: Process, n_ctx: Count, *, max_level: Count = MAX_LEVEL) -> Float64[Tensor, "pos"]:
    """The lowest expected next-token loss at each position of a context, in nats: h_2 … h_{n_ctx + 1}.

    Position t predicts token t + 1. The losses are exact while words lead to at most `max_level` beliefs; then they are
    the midpoint between the last exact value and the entropy rate's lower bound, off by at most half their distance
    (for Mess3 about 1e-6 nats).
    """
    entropies = first_entropies(process, n_ctx + 1, max_level)
    if len(entropies) < n_ctx + 1:
        rest = (float(entropies[-1]) + entropy_rate(process, max_level=max_level).lower) / 2
        entropies = torch.nn.functional.pad(entropies, (0, n_ctx + 1 - len(entropies)), value=rest)
    return entropies[1:]


@checked
def regret_floor(process: Process, n_ctx: Count) -> Float64[Tensor, "pos"]:
    """The cost of a short memory at each position, in nats: the lowest loss less the entropy rate.

    This is the regret of the best predictor of the context relative to an observer who has seen the whole past.
    """
    return optimal_losses(process, n_ctx) - entropy_rate(process).value


@checked
def entropy_rate(process: Process, *, max_level: Count = MAX_LEVEL) -> Measure:
    """h, the entropy of the next token given the whole past, in nats.

    It is exact if the process is unifilar, h = Σ_i π_i H(X | state i), or has finitely many mixed states, with the same
    sum over them. Otherwise it is bounded by words of increasing length L,

        H(X_L | X_1 … X_{L-1}, S_0)  ≤  h  ≤  h_L        (Cover & Thomas 2006, theorem 4.5.1),

    until the bounds agree or a level would have more than `max_level` beliefs. If they are still far apart, the value
    is h_L less what a long past adds to L - 1 tokens, E KL(P(X | long past) ‖ P(X | L - 1 tokens)), over sampled pasts.
    A generalized process has no lower bound but 0. A product's rate is the sum of its factors' rates. The rate is that
    of the long run: a start that is not stationary does not matter.

    Example:
        >>> from msp_lens.processes.catalog import golden_mean
        >>> entropy_rate(golden_mean(p=0.5)).bits   # 2/3
        0.6666666666666...
    """
    if (added := _added(process, partial(entropy_rate, max_level=max_level))) is not None:
        return added
    if isinstance(process, WithBos):
        return entropy_rate(process.process, max_level=max_level)
    state = long_run_state(process)
    if process.is_unifilar:
        return _exactly(float(state @ entropy(process.emissions)), "unifilar")
    found = presentation(process, max_states=MAX_STATES)
    if found.is_finite:
        rate = long_run_state(found.to_process()) @ _next_entropies(process, found.beliefs)
        return _exactly(float(rate), f"{len(found)} mixed states")
    upper_bounds = _entropies(process, state.unsqueeze(0), ONE, MAX_DEPTH, max_level)
    if process.is_generalized:
        bounds: list[float] = []
        for bound in upper_bounds:
            bounds.append(float(bound))
            if len(bounds) > 30 and bounds[-30] - bounds[-1] <= CONVERGED:  # 30 steps no longer lower it.
                break
        value = bounds[-1]
        if len(bounds) > 2:
            # The limit of steps that keep shrinking by the ratio of the last two (Aitken).
            first, second = bounds[-3] - bounds[-2], bounds[-2] - bounds[-1]
            value -= second**2 / (first - second) if first > second > 0 else 0.0
        return Measure(value, 0.0, bounds[-1], f"upper bounds from words of up to {len(bounds)} tokens")
    visited = state > ROUNDING  # One vertex of the simplex for each state that occurs in the long run.
    vertices = torch.eye(process.n_states, dtype=torch.float64)[visited]
    lower_bounds = _entropies(process, vertices, state[visited], MAX_DEPTH, max_level)
    lower, upper, depth = 0.0, math.inf, 0
    for below, above in zip(lower_bounds, upper_bounds, strict=False):
        lower, upper, depth = max(lower, float(below)), min(upper, float(above)), depth + 1
        if upper - lower <= CONVERGED:
            break
    method = f"bounds from words of {depth} tokens"
    if upper - lower <= WIDE:
        return Measure((lower + upper) / 2, lower, upper, method)
    n_pasts = min(20_000, 10 * max_level, 2**22 // process.n_states**2)
    gains = _gains_of_a_long_past(process, state, depth, max(100, n_pasts))
    value, error = upper - float(gains.mean()), float(gains.std()) / math.sqrt(len(gains))
    method = f"{method}, value ± {2 * error:.1g} from {len(gains):,} sampled pasts"
    return Measure(min(max(value, lower), upper), lower, upper, method)


def _gains_of_a_long_past(
    process: Process, state: Float64[Tensor, "state"], depth: int, n_pasts: int
) -> Float64[Tensor, "past"]:
    """KL(P(X | long past) ‖ P(X | its last `depth` - 1 tokens)) of sampled pasts; their mean is h_depth - h."""
    long, generator = 500, torch.Generator().manual_seed(0)
    informed, short = state.expand(n_pasts, -1), state.expand(n_pasts, -1)
    for step in range(long + depth - 1):
        tokens = draw_tokens(informed @ process.emissions, generator)
        informed = follow(process, informed, tokens.unsqueeze(1))[:, 1]
        if step >= long:
            short = follow(process, short, tokens.unsqueeze(1))[:, 1]
    of_long, of_short = (next_token_probabilities(process, past) for past in (informed, short))
    return kl_divergence(of_long, of_short.log())


def _independent(process: Process) -> tuple[Process, ...] | None:
    """The independent parts of a world, whose entropies add; `None` if it is a whole."""
    if not isinstance(process, Factored) or process.independent_parts == (process,):
        return None
    return process.independent_parts


def _added(process: Process, measure: Callable[[Process], Measure]) -> Measure | None:
    """The measure of independent parts, each stationary, in which it adds; `None` for other processes."""
    parts = _independent(process)
    if parts is None or not all(torch.allclose(part.initial @ part.state_transitions, part.initial) for part in parts):
        return None
    measured = {part: measure(part) for part in set(parts)}
    found = [measured[part] for part in parts]
    value, lower, upper = (sum(getattr(each, field) for each in found) for field in ("value", "lower", "upper"))
    methods = Counter(each.method for each in found)
    method = "; ".join(f"{count} × {each}" if count > 1 else each for each, count in methods.items())
    return Measure(value, lower, upper, f"sum over factors: {method}")


@checked
def excess_entropy(process: Process, *, max_level: Count = MAX_LEVEL) -> Measure:
    """E = Σ_L (h_L - h), the information that the past carries about the future, in nats.

    It is exact if there are finitely many mixed states: with W their transitions, H the entropy of the next token at
    each and Π the long-run projection, E = η₀ (I - W + Π)⁻¹ (H - h). Otherwise it is the sum as far as levels can be
    followed, with the lower bound 2 H_L - H_2L (what L tokens tell about the next L) and no upper bound.

    Source: Crutchfield & Feldman 2003 (arXiv cond-mat/0102181), section IV; Riechers & Crutchfield 2018.

    Example:
        >>> from msp_lens.processes.catalog import z1r
        >>> excess_entropy(z1r())   # log 3: once the phase is known there is no more to know
        1.0986 nats (7 mixed states)
    """
    if (added := _added(process, partial(excess_entropy, max_level=max_level))) is not None:
        return added
    found = presentation(process, max_states=MAX_STATES)
    if found.is_finite:
        walk = found.to_process().state_transitions
        projection, entropies = long_run_projection(walk), _next_entropies(process, found.beliefs)
        above = entropies - projection @ entropies
        # (I - W + Π)⁻¹ is Π plus the sum of W^L - Π over all L; Π maps what is above the rate to 0.
        system = torch.eye(len(found), dtype=torch.float64) - walk + projection
        return _exactly(float(torch.linalg.solve(system, above.unsqueeze(1))[0, 0]), f"{len(found)} mixed states")
    root, rate = long_run_state(process).unsqueeze(0), entropy_rate(process, max_level=max_level)
    reached: list[float] = []
    for expected in _entropies(process, root, ONE, MAX_DEPTH, max_level):
        reached.append(float(expected))
        if reached[-1] - rate.value <= max(CONVERGED, rate.upper - rate.value):
            break
    value, half = sum(bound - rate.value for bound in reached), len(reached) // 2
    lower = sum(reached[:half]) - sum(reached[half : 2 * half])
    return Measure(value, lower, math.inf, f"summed over words of {len(reached)} tokens")


@checked
def statistical_complexity(process: Process, *, max_level: Count = MAX_LEVEL) -> Measure:
    """C_μ, the entropy of the causal state: what an optimal predictor must remember, in nats.

    Causal states are the recurrent mixed states, with those of equal future merged (Crutchfield & Young 1989). If there
    are finitely many, the result is exact. Otherwise the entropy of the belief after words of L tokens is followed as L
    grows. If the causal states are countable (as for the simple nonunifilar source) it settles, on a lower bound, since
    states too close for floating point are merged. If not (as for Mess3) every token adds as much as the last, and the
    value is infinite.

    Example:
        >>> from msp_lens.processes.catalog import z1r
        >>> statistical_complexity(z1r())
        1.0986 nats (7 mixed states)
    """
    if (added := _added(process, partial(statistical_complexity, max_level=max_level))) is not None:
        return added
    found = presentation(process, max_states=MAX_STATES)
    if found.is_finite:
        state = long_run_state(found.to_process())
        return _exactly(_future_entropy(process, found.beliefs, state), f"{len(found)} mixed states")
    if process.is_unifilar:
        states = torch.eye(process.n_states, dtype=torch.float64)
        return _exactly(_future_entropy(process, states, long_run_state(process)), "unifilar")
    reached, root = [0.0], long_run_state(process).unsqueeze(0)
    finest = 1e-14  # Different beliefs closer than this cannot be told from one belief reached in two ways.
    for level in grow(process, root, ONE.log(), MAX_DEPTH, finest, max_level=max_level):
        reached.append(_future_entropy(process, level.beliefs, level.probabilities, finest))
        # As beliefs approach a limit their entropy fluctuates by about this much, with how many of them are merged.
        if abs(reached[-1] - reached[-2]) <= 1e-5:
            return Measure(reached[-1], reached[-1], math.inf, "settled belief entropy")
    steps = [after - before for before, after in itertools.pairwise(reached)]
    # Each token adds as much as the one before it: the beliefs fill an uncountable set.
    if steps and steps[-1] > 0.5 * steps[len(steps) // 2]:
        return Measure(math.inf, reached[-1], math.inf, "belief entropy grows with every token")
    return Measure(reached[-1], reached[-1], math.inf, f"belief entropy after {len(steps)} tokens")


def _future_entropy(
    process: Process,
    beliefs: Float64[Tensor, "node state"],
    probabilities: Float64[Tensor, "node"],
    tolerance: float = MERGE_TOLERANCE,
) -> float:
    """The entropy of the belief, with beliefs of equal future merged."""
    labels, first = equal_beliefs(beliefs @ future_span(process).T, tolerance)
    merged = torch.zeros(len(first), dtype=torch.float64).index_add_(0, labels, probabilities)
    return float(entropy(merged))


@checked
def synchronization(
    process: Process, length: Annotated[int, AtLeast(0)], *, max_level: Count = EXACT_LEVEL
) -> Float64[Tensor, "length_1"]:
    """The expected entropy of the belief after 0, 1, …, `length` tokens, in nats: the uncertainty about the state.

    Raises:
        ValueError: if the process is generalized or has too many beliefs.

    Example:
        >>> from msp_lens.processes.catalog import z1r
        >>> synchronization(z1r(), 3)   # nats
        tensor([1.0986, 0.6365, 0.2310, 0.0000], dtype=torch.float64)
    """
    if process.is_generalized:
        raise ValueError(f"{process.name} is a generalized process: its beliefs are not distributions over states.")
    levels = grow(process, process.initial.unsqueeze(0), ONE.log(), length, MERGE_TOLERANCE, max_level=max_level)
    expected = [entropy(process.initial), *(level.probabilities @ entropy(level.beliefs) for level in levels)]
    if len(expected) <= length:
        raise ValueError(too_many(process, len(expected) - 1, max_level, length))
    return torch.stack(expected)


def too_many(process: Process, depth: int, max_level: int, length: int) -> str:
    """What errors say where words lead to too many beliefs."""
    return (
        f"After words of more than {depth} tokens {process.name} may have more than {max_level:,} different beliefs: "
        f"lower length={length}, or raise max_level. (optimal_losses and entropy_rate give bounds instead.)"
    )


def long_run_state(process: Process) -> Float64[Tensor, "state"]:
    """The long-run average distribution over states; the initial one if that is stationary."""
    return process.initial @ long_run_projection(process.state_transitions)


def long_run_projection(walk: Float64[Tensor, "state state"]) -> Float64[Tensor, "state state"]:
    """The limit of (I + W + … + W^{n-1}) / n: the projection on the vectors that W leaves unchanged."""
    left, sizes, right = torch.linalg.svd(walk - torch.eye(len(walk), dtype=torch.float64))
    fixed = sizes <= ROUNDING * len(walk)
    # Rows of `right` span the right fixed vectors of W, columns of `left` the left ones.
    from_right, from_left = right[fixed].T, left[:, fixed]
    return from_right @ torch.linalg.solve(from_left.T @ from_right, from_left.T)


@checked
def entropy(distribution: Float64[Tensor, "*batch outcome"]) -> Float64[Tensor, "*batch"]:
    """Shannon entropy in nats along the last axis, with 0 log 0 = 0; rounding below 0 counts as 0."""
    return _entropy(distribution)


def _entropy(distribution: Float64[Tensor, "*batch outcome"]) -> Float64[Tensor, "*batch"]:
    return torch.special.entr(distribution.clamp(min=0)).sum(dim=-1)


def kl_divergence(
    optimal: Float64[Tensor, "*batch token"], log_predicted: Float64[Tensor, "*batch token"]
) -> Float64[Tensor, "*batch"]:
    """KL(optimal ‖ predicted) in nats along the last axis; a token of probability 0 costs nothing, even at `-inf`."""
    cross_terms = torch.where(optimal > 0, optimal * log_predicted, 0.0)
    return -_entropy(optimal) - cross_terms.sum(dim=-1)
