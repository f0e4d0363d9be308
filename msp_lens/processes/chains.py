"""What follows from matrices alone: classes of states, the spans that words reach, and ranks.

A class of mutually reachable states that no transition leaves is closed; a chain has a unique stationary distribution
exactly if it has one closed class. The span of all v T[x1] … T[xn] is found one token at a time, by extending an
orthonormal basis until it stops growing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from scipy.sparse.csgraph import connected_components
from torch import Tensor

# Directions smaller than this share of the matrices' norm, or of the largest direction, are rounding.
RANK_TOLERANCE = 1e-9


@dataclass(frozen=True)
class StateClass:
    """The names of states that can all be reached from one another, and whether no transition leaves them."""

    states: tuple[str, ...]
    is_closed: bool


@dataclass(frozen=True, repr=False)
class Degeneracy:
    """How much of the beliefs the next-token probabilities show; made by `Process.degeneracy`.

    Words lead to beliefs that span R = span{π T[w]}, and the next-token probabilities of a belief b are b E. Where the
    rank of R E is that of R, beliefs are an affine function of next-token probabilities.

    Attributes:
        process: Name of the process.
        n_states: Its number of hidden states.
        emission_rank: Rank of the emission matrix, at most `n_states`.
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
        total, seen = self.belief_dimensions, self.next_token_dimensions
        if total == 0:
            verdict = "there is only one belief, and nothing to probe for"
        elif self.beliefs_follow_from_next_token:
            verdict = "beliefs are an affine function of them, and a probe alone cannot tell them apart"
        else:
            verdict = "beliefs are not an affine function of them, and a probe can tell them apart"
        return (
            f"{self.process}: emission rank {self.emission_rank} of {self.n_states}; next-token probabilities show "
            f"{seen} of the {total} dimension{'s' * (total != 1)} of the reachable beliefs: {verdict}."
        )


def communicating_classes(chain: Float64[Tensor, "state state"]) -> list[tuple[list[int], bool]]:
    """The sets of mutually reachable states, each with whether it is closed, in the order of their first states."""
    reachable = (chain > 0).numpy()
    n_classes, labels = connected_components(reachable, directed=True, connection="strong")
    members = sorted(np.flatnonzero(labels == k).tolist() for k in range(n_classes))
    return [(m, not np.delete(reachable[m], m, axis=1).any()) for m in members]


def stationary_distribution(chain: Float64[Tensor, "state state"]) -> Float64[Tensor, "state"] | None:
    """The distribution with π S = π, or None where it is not unique (more than one closed class)."""
    closed = [members for members, is_closed in communicating_classes(chain) if is_closed]
    if len(closed) > 1:
        return None
    identity = torch.eye(len(chain) + 1, dtype=torch.float64)
    equations = torch.cat([chain.T - identity[:-1, :-1], torch.ones(1, len(chain), dtype=torch.float64)])
    solution = torch.linalg.lstsq(equations, identity[:, -1:], driver="gelsd").solution.squeeze(1)
    # States outside the closed class are left for good: their share is exactly 0, not a rounding error.
    stationary = torch.zeros_like(solution)
    stationary[closed[0]] = solution[closed[0]].clamp(min=0)
    return stationary / stationary.sum()


def reached_span(
    matrices: Float64[Tensor, "token state state"], start: Float64[Tensor, "state"]
) -> Float64[Tensor, "dimension state"]:
    """An orthonormal basis of the span of `start T[x1] … T[xn]` over all words, the empty one included.

    Each round multiplies the newest directions by every matrix, projects out the span found so far, and keeps those
    singular directions of the rest that exceed `RANK_TOLERANCE` of the largest matrix norm.
    """
    smallest = RANK_TOLERANCE * float(torch.linalg.matrix_norm(matrices, 2).max())
    basis = newest = (start / start.norm()).unsqueeze(0)
    while len(newest) and len(basis) < len(start):
        steps = (newest @ matrices).flatten(0, 1)
        for _ in range(2):  # Projecting once leaves rounding errors along the span; twice is enough.
            steps = steps - steps @ basis.T @ basis
        _, sizes, directions = torch.linalg.svd(steps, full_matrices=False)
        newest = directions[sizes > smallest]
        basis = torch.cat([basis, newest])
    return basis


def matrix_rank(matrix: Float64[Tensor, "row column"]) -> int:
    """How many singular values exceed `RANK_TOLERANCE` of the largest."""
    return int(torch.linalg.matrix_rank(matrix, rtol=RANK_TOLERANCE))
