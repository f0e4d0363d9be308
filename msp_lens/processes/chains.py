"""What follows from matrices alone: classes of states, fixed vectors, the spans that words can reach.

A chain's states fall into classes of mutually reachable ones; a class that no transition leaves is closed, and a chain
has one stationary distribution exactly if it has one closed class. A fixed vector solves v S = v. The span of all
v T[x1] … T[xn] is found one letter at a time, with an orthonormal basis that grows until it no longer does.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float64
from scipy.sparse.csgraph import connected_components
from torch import Tensor

# A direction counts as new where it sticks out of the span by more than this share of the matrices' norm.
RANK_TOLERANCE = 1e-9


def communicating_classes(chain: Float64[Tensor, "state state"]) -> list[tuple[list[int], bool]]:
    """The sets of mutually reachable states, each with whether no transition leaves it; by their first state."""
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
    # States outside the closed class are left for good: exactly 0, not a rounding error either side of it.
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

    Each round multiplies the newest directions by every matrix, removes what lies in the span already, and keeps of
    the rest the singular directions above `RANK_TOLERANCE` of the largest matrix norm: at most one round a state.
    """
    smallest = RANK_TOLERANCE * float(torch.linalg.matrix_norm(matrices, 2).max())
    basis = newest = (start / start.norm()).unsqueeze(0)
    while len(newest) and len(basis) < len(start):
        steps = (newest @ matrices).flatten(0, 1)
        for _ in range(2):  # Twice is enough: once leaves rounding errors along the span.
            steps = steps - steps @ basis.T @ basis
        _, sizes, directions = torch.linalg.svd(steps, full_matrices=False)
        newest = directions[sizes > smallest]
        basis = torch.cat([basis, newest])
    return basis
