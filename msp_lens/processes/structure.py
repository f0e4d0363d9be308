"""The structure of a process: its classes of states, unifilarity, ranks, and what the next token tells of beliefs.

The beliefs that words lead to span R = span{π T[w]}, and what the future can tell of a belief is its product with
F = span{T[w] 1} (or T[w] w∞, with the right eigenvector). The rank of R Fᵀ is the least dimension in which a
generalized process makes the same words; the part of R that the emission matrix E keeps is what next-token
probabilities tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens.processes import chains
from msp_lens.processes.process import Process


@dataclass(frozen=True)
class StateClass:
    """States that can all be reached from one another.

    Attributes:
        states: Their names.
        is_closed: Whether no transition leaves them: a process that enters stays.
    """

    states: tuple[str, ...]
    is_closed: bool


@dataclass(frozen=True, repr=False)
class Degeneracy:
    """How much of the beliefs shows in the next-token probabilities; made by `degeneracy`.

    Attributes:
        process: Name of the process.
        n_states: Its number of hidden states.
        emission_rank: Rank of the emission matrix, of `n_states` at most.
        belief_dimensions: Affine dimension of the reachable beliefs.
        next_token_dimensions: Affine dimension of the next-token probabilities they lead to.
    """

    process: str
    n_states: int
    emission_rank: int
    belief_dimensions: int
    next_token_dimensions: int

    @property
    def beliefs_follow_from_next_token(self) -> bool:
        """Whether the reachable beliefs are an affine function of their next-token probabilities."""
        return self.next_token_dimensions == self.belief_dimensions

    def __repr__(self) -> str:
        seen, all_ = self.next_token_dimensions, self.belief_dimensions
        facts = (
            f"{self.process}: emission rank {self.emission_rank} of {self.n_states}; next-token probabilities show "
            f"{seen} of the {all_} dimension{'s' * (all_ != 1)} of the reachable beliefs"
        )
        if all_ == 0:
            return f"{facts}: there is one belief only, and nothing to probe for."
        if self.beliefs_follow_from_next_token:
            return f"{facts}: beliefs are an affine function of them, and a probe alone cannot tell them apart."
        return f"{facts}: beliefs are no affine function of them, and a probe can tell them apart."


def communicating_classes(process: Process) -> tuple[StateClass, ...]:
    """The classes of mutually reachable hidden states, in the order of their first states.

    Raises:
        ValueError: for a generalized process, which has no hidden states to be in.

    Example:
        >>> communicating_classes(Process([[[0.5, 0.5], [0.0, 1.0]]]))
        (StateClass(states=('0',), is_closed=False), StateClass(states=('1',), is_closed=True))
    """
    if process.is_generalized:
        raise ValueError(
            f"{process.name} is a generalized process: it has no hidden states, so none that can be reached. "
            "Ask process.is_generalized first."
        )
    return tuple(
        StateClass(tuple(process.states[i] for i in members), is_closed)
        for members, is_closed in chains.communicating_classes(process.state_transitions)
    )


def is_irreducible(process: Process) -> bool:
    """Whether every hidden state can be reached from every other.

    Raises:
        ValueError: for a generalized process, as in `communicating_classes`.
    """
    return len(communicating_classes(process)) == 1


def is_unifilar(process: Process) -> bool:
    """Whether a state and the token it emits determine the next state; False for a generalized process.

    From a known state on, an observer of a unifilar process then never loses track of it.
    """
    return not process.is_generalized and bool(((process.transitions > 0).sum(dim=2) <= 1).all())


def reach_rank(process: Process) -> int:
    """Dimension of span{π T[w]}, the beliefs that words lead to; see `chains.reached_span` for the numerics."""
    return len(_reach(process))


def future_rank(process: Process) -> int:
    """Dimension of span{T[w] 1}: how many numbers of a belief the whole future depends on."""
    return len(_future(process))


def minimal_dimension(process: Process) -> int:
    """The least number of states with which a generalized process makes the same words: the rank of the future.

    It is the rank of the infinite matrix P(word · continuation). An ordinary process with non-negative entries may
    need more states.
    """
    return _rank(_reach(process) @ _future(process).T)


def is_minimal(process: Process) -> bool:
    """Whether no process, generalized ones included, makes the same words with fewer states."""
    return minimal_dimension(process) == process.n_states


def emission_rank(process: Process) -> int:
    """Rank of the matrix `P(emit x | in i)`: how many numbers of a belief the next token depends on."""
    return _rank(process.emissions)


def degeneracy(process: Process) -> Degeneracy:
    """Whether the reachable beliefs are an affine function of the next-token probabilities they lead to.

    Where they are, whatever reads next-token probabilities reads beliefs, so that a good probe of beliefs does not show
    that a network holds more than its own prediction; where they are not, it does (Shai et al. 2024, sec. 4).

    Example:
        >>> from msp_lens.processes.catalog import mess3
        >>> degeneracy(mess3(x=0.05, a=0.85))
        mess3: emission rank 3 of 3; next-token probabilities show 2 of the 2 dimensions of the reachable beliefs:
        beliefs are an affine function of them, and a probe alone cannot tell them apart.
    """
    reach = _reach(process)
    return Degeneracy(
        process=process.name,
        n_states=process.n_states,
        emission_rank=emission_rank(process),
        belief_dimensions=len(reach) - 1,
        next_token_dimensions=_rank(reach @ process.emissions) - 1,
    )


def _reach(process: Process) -> Float64[Tensor, "dimension state"]:
    return chains.reached_span(process.transitions, process.initial)


def _future(process: Process) -> Float64[Tensor, "dimension state"]:
    return chains.reached_span(process.transitions.transpose(1, 2), process.right_eigenvector)


def _rank(matrix: Float64[Tensor, "row column"]) -> int:
    """How many singular values are above `chains.RANK_TOLERANCE` of the largest."""
    sizes = torch.linalg.svdvals(matrix)
    return int((sizes > chains.RANK_TOLERANCE * sizes[0]).sum())
