"""The hidden Markov machine of k states that is nearest to some words: maximum likelihood in the population.

The machine minimizes KL(words ‖ machine) = Σ_w P(w) log P(w) / Q(w) over the transitions T[x, i, j], with the
stationary distribution as its start. Many random starts go through Baum and Welch's iteration together,

    T[x, i, j] ← T[x, i, j] ∂L/∂T[x, i, j], divided by its sum over x and j,

and the best of them are finished by a quasi-Newton method on the logits of T, where Baum and Welch's last digits take
thousands of steps.

Source: Baum, Petrie, Soules & Weiss 1970; the same sums over weighted words instead of one sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float64
from scipy import optimize
from torch import Tensor

from msp_lens._checks import Count, Seed, check_memory, checked
from msp_lens._random import derived_generator
from msp_lens._tables import nats_text
from msp_lens._values import Value
from msp_lens.inference.word_probabilities import WordProbabilities
from msp_lens.inference.word_tree import WordTree
from msp_lens.processes.process import Process

# No transition becomes so improbable that words through it get probability 0.
_LEAST = 1e-13
# All starts have arrived where this many steps change none of them by as many nats.
_PATIENCE, _STILL = 20, 1e-13
# Starts within this share of the best divergence, or this many nats, found the same machine.
_SAME, _SAME_NATS = 0.02, 1e-8


@dataclass(frozen=True, eq=False, repr=False)
class Fit(Value):
    """The machine with some number of states that is nearest to words.

    Attributes:
        process: The machine, with a stationary start.
        divergence: KL(words ‖ machine), nats per token.
        from_starts: The divergence that each start came to before the best were finished, the lowest first.
        history: The best start's divergence at each step of Baum and Welch's iteration.
        n_agreeing: How many of the starts that were finished came to the same divergence.
        n_finished: How many were finished.
        is_converged: Whether the last steps changed nothing more.
    """

    process: Process
    divergence: float
    from_starts: Float64[Tensor, "start"]
    history: Float64[Tensor, "step"]
    n_agreeing: int
    n_finished: int
    is_converged: bool

    @property
    def n_states(self) -> int:
        """Of the machine."""
        return self.process.n_states

    def __repr__(self) -> str:
        states = f"{self.n_states} state{'s' * (self.n_states > 1)}"
        agree = f"{self.n_agreeing} of {self.n_finished} finished starts agree"
        return f"Fit({states}: KL {nats_text(self.divergence)} nats per token, {agree})"


@checked
def fit_machine(
    words: WordProbabilities,
    n_states: Count,
    *,
    n_starts: Count = 32,
    n_steps: Count = 300,
    n_finished: Count = 4,
    seed: Seed = 0,
    progress: Callable[[int], object] | None = None,
) -> Fit:
    """The edge-emitting hidden Markov machine of `n_states` that is nearest to the words.

    Memory is about 24 bytes for each start, state and prefix of the words.

    Args:
        words: Word probabilities of a process, a network or data.
        n_states: Hidden states of the machine.
        n_starts: Random starts, all of them followed at once.
        n_steps: Steps of Baum and Welch's iteration; half of them with a quarter of the starts, the best.
        n_finished: How many of the best starts are finished by the quasi-Newton method.
        seed: Of the starts.
        progress: Called with the number of steps just made.

    Raises:
        ValueError: if the starts do not fit into memory.

    Example:
        >>> from msp_lens.inference.word_probabilities import process_words
        >>> from msp_lens.processes.catalog import golden_mean
        >>> words = process_words(golden_mean(p=0.5), 6)
        >>> [fit_machine(words, k, n_starts=4).divergence < 1e-6 for k in (1, 2)]
        [False, True]
    """
    tree = WordTree(words)
    _check_memory(tree, n_states, n_starts)
    transitions = _random_starts(n_starts, tree.n_tokens, n_states, seed)
    history: list[Tensor] = []
    half, from_starts = n_steps // 2, torch.empty(0)
    for step in range(n_steps):
        if step == half and len(transitions) > n_finished:
            best = history[-1].argsort()[: max(n_finished, n_starts // 4)]
            from_starts = history[-1].sort().values
            transitions, history = transitions[best], [each[best] for each in history]
        divergence, gradient, _ = tree.with_gradient(transitions, stationary_of(transitions))
        transitions = _normalized(transitions * gradient)
        history.append(divergence)
        if progress is not None:
            progress(1)
        if step >= _PATIENCE and float((history[-1 - _PATIENCE] - divergence).max()) < _STILL:
            break
    if len(history[0]) == n_starts:
        from_starts = history[-1].sort().values
    order = history[-1].argsort()[:n_finished]
    finished = [_finished(tree, transitions[k]) for k in order]
    divergences = [each[1] for each in finished]
    best = int(np.argmin(divergences))
    least = divergences[best]
    n_agreeing = sum(each <= least * (1 + _SAME) + _SAME_NATS for each in divergences)
    process = Process(finished[best][0], name=f"{n_states} states", initial=_only(stationary_of, finished[best][0]))
    trace = torch.stack(history)[:, order[best]]
    return Fit(process, max(least, 0.0), from_starts, trace, n_agreeing, len(finished), finished[best][2])


def check_starts(words: WordProbabilities, n_states: int, n_starts: int) -> None:
    """Raise the `ValueError` of `fit_machine`, if the starts of so many states do not fit into memory."""
    _check_memory(WordTree(words), n_states, n_starts)


def _check_memory(tree: WordTree, n_states: int, n_starts: int) -> None:
    what = f"n_starts={n_starts} machines of {n_states} states over {tree.n_nodes:,} prefixes"
    check_memory(what, 24.0 * n_starts * n_states * tree.n_nodes, "Give fewer starts or shorter words.")


def stationary_of(transitions: Float64[Tensor, "machine token i j"]) -> Float64[Tensor, "machine state"]:
    """The stationary distribution of each machine, π (I - S + 1 1ᵀ) = 1ᵀ, where all transitions are possible."""
    walk = transitions.sum(dim=1)
    n_states = walk.shape[1]
    system = torch.eye(n_states, dtype=torch.float64) - walk.transpose(1, 2) + 1
    ones = torch.ones(len(walk), n_states, 1, dtype=torch.float64)
    solution = torch.linalg.solve(system, ones).squeeze(2).clamp_min(0)
    return solution / solution.sum(dim=1, keepdim=True)


def refitted(
    words: WordProbabilities, transitions: Float64[Tensor, "token i j"], *, n_steps: int = 100
) -> Float64[Tensor, "token i j"]:
    """Transitions nearer to the words by Baum and Welch's iteration; what is impossible stays so.

    Words that are impossible for the machine are left out.
    """
    possible = Process(transitions).word_probabilities(words.tokens) > 0
    if not possible.any():
        return transitions
    shares = words.probabilities[possible] / words.probabilities[possible].sum()
    tree = WordTree(replace(words, tokens=words.tokens[possible], probabilities=shares))
    machine = transitions.unsqueeze(0)
    for _ in range(n_steps):
        counts = machine * tree.with_gradient(machine, stationary_of(machine))[1]
        machine = counts / counts.sum(dim=(1, 3), keepdim=True)
    return machine[0]


def objective(tree: WordTree, logits: Float64[Tensor, "token i j"]) -> tuple[float, Float64[Tensor, "token i j"]]:
    """The divergence per token of one machine, and its gradient with respect to the logits of its transitions.

    The start depends on the transitions too: with Z = (I - S + 1 π)⁻¹ and g = ∂L/∂π, a change dS moves L by π dS Z g.
    """
    # Far out, a softmax is 0 in floating point, and a machine falls into parts.
    machine = _normalized(_softmax(logits).unsqueeze(0))
    transitions = machine[0]
    start = stationary_of(machine)
    divergence, gradient, by_start = tree.with_gradient(machine, start)
    state, walk = start[0], transitions.sum(dim=0)
    system = torch.eye(len(state), dtype=torch.float64) - walk + state
    moved = torch.linalg.solve(system, by_start[0] - state @ by_start[0])
    counts = transitions * (gradient[0] + torch.outer(state, moved))
    slope = counts - transitions * counts.sum(dim=(0, 2), keepdim=True)
    return float(divergence), -slope / tree.length


def _finished(tree: WordTree, transitions: Float64[Tensor, "token i j"]) -> tuple[Tensor, float, bool]:
    """The machine at the bottom of its valley, its divergence, and whether the bottom was reached."""
    shape = transitions.shape

    def evaluate(values: np.ndarray) -> tuple[float, np.ndarray]:
        divergence, slope = objective(tree, torch.from_numpy(values).reshape(shape))
        return divergence, slope.numpy().ravel()

    start = transitions.clamp_min(_LEAST).log().numpy().ravel()
    options = {"maxiter": 1000, "maxfun": 2000, "ftol": 1e-14, "gtol": 1e-9, "maxcor": 20}
    found = optimize.minimize(evaluate, start, jac=True, method="L-BFGS-B", options=options)
    machine = _normalized(_softmax(torch.from_numpy(found.x).reshape(shape)).unsqueeze(0))[0]
    return machine, float(found.fun), bool(found.success)


def _random_starts(n_starts: int, n_tokens: int, n_states: int, seed: int) -> Float64[Tensor, "machine token i j"]:
    generator = derived_generator(seed, "starts", n_states)
    shape = (n_starts, n_tokens, n_states, n_states)
    return _normalized(torch.empty(shape, dtype=torch.float64).exponential_(generator=generator))


def _normalized(counts: Float64[Tensor, "machine token i j"]) -> Float64[Tensor, "machine token i j"]:
    """Transitions in proportion to the counts, none of them 0."""
    shares = counts / counts.sum(dim=(1, 3), keepdim=True).clamp_min(1e-300)
    kept = shares.clamp_min(_LEAST)
    return kept / kept.sum(dim=(1, 3), keepdim=True)


def _softmax(logits: Float64[Tensor, "token i j"]) -> Float64[Tensor, "token i j"]:
    n_tokens, n_states, _ = logits.shape
    rows = logits.transpose(0, 1).flatten(1).softmax(dim=1)
    return rows.unflatten(1, (n_tokens, n_states)).transpose(0, 1).contiguous()


def _only(function: Callable[[Tensor], Tensor], machine: Tensor) -> Tensor:
    return function(machine.unsqueeze(0))[0]
