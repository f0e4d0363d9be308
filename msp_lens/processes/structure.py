"""The ranks of a process: in how many dimensions its beliefs and its futures live.

Words lead to beliefs that span R = span{π T[w]}, and the future depends on a belief through its products with
F = span{T[w] 1} (in a generalized process, the right eigenvector replaces 1). The rank of R Fᵀ is the smallest
dimension in which a generalized process generates the same words.
"""

from __future__ import annotations

from jaxtyping import Float64
from torch import Tensor

from msp_lens._checks import checked
from msp_lens.processes.chains import matrix_rank, reached_span
from msp_lens.processes.process import Process


@checked
def reach_rank(process: Process) -> int:
    """Dimension of span{π T[w]}, the beliefs that words lead to; see `chains.reached_span` for the numerics."""
    return len(reached_span(process.transitions, process.initial))


@checked
def future_rank(process: Process) -> int:
    """Dimension of span{T[w] 1}: how many coordinates of a belief the whole future depends on."""
    return len(future_span(process))


@checked
def minimal_dimension(process: Process) -> int:
    """The smallest number of states with which a generalized process generates the same words.

    This is the rank of the infinite matrix P(word · continuation); an ordinary process may need more states.
    """
    return matrix_rank(reached_span(process.transitions, process.initial) @ future_span(process).T)


@checked
def is_minimal(process: Process) -> bool:
    """Whether no process, generalized ones included, generates the same words with fewer states."""
    return minimal_dimension(process) == process.n_states


@checked
def emission_rank(process: Process) -> int:
    """Rank of the matrix `P(emit x | in i)`: how many coordinates of a belief the next token depends on."""
    return matrix_rank(process.emissions)


def future_span(process: Process) -> Float64[Tensor, "dimension state"]:
    """An orthonormal basis of span{T[w] 1}: beliefs with equal products with it have equal futures."""
    return reached_span(process.transitions.transpose(1, 2), process.right_eigenvector)
