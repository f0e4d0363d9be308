"""What follows from matrices alone: classes of states, fixed vectors, the spans that words reach, and ranks.

A chain's states fall into classes of mutually reachable ones; a class that no transition leaves is closed, and a chain
has a unique stationary distribution exactly if it has one closed class. A fixed vector solves v S = v. The span of all
v T[x1] … T[xn] is found one token at a time, by extending an orthonormal basis until it stops growing.
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
    """States that can all be reached from one another.

    Attributes:
        states: Their names.
        is_closed: Whether no transition leaves them, so that a process that enters stays.
    """

    states: tuple[str, ...]
    is_closed: bool


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
    n_states = len(chain)
    equations = torch.cat([chain.T - torch.eye(n_states, dtype=torch.float64), torch.ones(1, n_states).double()])
    right_side = torch.zeros(n_states + 1, dtype=torch.float64)
    right_side[-1] = 1.0
    solution = torch.linalg.lstsq(equations, right_side.unsqueeze(1), driver="gelsd").solution.squeeze(1)
    # States outside the closed class are left for good: their share is exactly 0, not a rounding error.
    stationary = torch.zeros_like(solution)
    stationary[closed[0]] = solution[closed[0]].clamp(min=0)
    return stationary / stationary.sum()


def fixed_vectors(chain: Float64[Tensor, "state state"]) -> Float64[Tensor, "fixed state"]:
    """An orthonormal basis of the row vectors with v S = v, to within `RANK_TOLERANCE` of the norm of S."""
    left, sizes, _ = torch.linalg.svd(chain - torch.eye(len(chain), dtype=torch.float64))
    return left.T[sizes <= RANK_TOLERANCE * max(1.0, float(torch.linalg.matrix_norm(chain, 2)))]


def reached_span(
    matrices: Float64[Tensor, "token state state"], start: Float64[Tensor, "state"]
) -> Float64[Tensor, "dimension state"]:
    """An orthonormal basis of the span of `start T[x1] … T[xn]` over all words, the empty one included.

    Each round multiplies the newest directions by every matrix, projects out the span found so far, and keeps those
    singular directions of the rest that exceed `RANK_TOLERANCE` of the largest matrix norm. There is at most one round
    for each state.
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
