"""The Bayes step, the one operation on beliefs that everything else repeats.

Seeing token x moves a belief b to

    b' = b T[x] / (b T[x] w),    where b T[x] w is the probability of x,

with w = 1, or the right eigenvector of a generalized process. A token counts as impossible where its probability is at
most `negligible`; the belief after it is NaN. The functions work on bare matrices, on any device.
"""

from __future__ import annotations

import torch
from einops import einsum
from jaxtyping import Float64, Int
from torch import Tensor


def bayes_step(
    beliefs: Float64[Tensor, "row state"],
    tokens: Int[Tensor, "row"],
    transitions: Float64[Tensor, "token state state"],
    right_eigenvector: Float64[Tensor, "state"],
    *,
    negligible: float = 0.0,
) -> tuple[Float64[Tensor, "row state"], Float64[Tensor, "row"]]:
    """The belief after one token each, and the probability that the belief before gave it.

    Returns:
        The new beliefs, NaN where the token is impossible, and the probabilities, 0 there.

    Example:
        >>> from msp_lens.processes.catalog import golden_mean
        >>> process = golden_mean(p=0.5)
        >>> bayes_step(process.initial.unsqueeze(0), torch.tensor([1]), process.transitions, process.right_eigenvector)
        (tensor([[0., 1.]], dtype=torch.float64), tensor([0.3333], dtype=torch.float64))
    """
    joint = einsum(beliefs, transitions[tokens], "row i, row i j -> row j")
    return normalized(joint, right_eigenvector, negligible=negligible)


def bayes_children(
    beliefs: Float64[Tensor, "row state"],
    transitions: Float64[Tensor, "token state state"],
    right_eigenvector: Float64[Tensor, "state"],
    *,
    negligible: float = 0.0,
) -> tuple[Float64[Tensor, "row token state"], Float64[Tensor, "row token"]]:
    """The belief after every token, and the probability of each; NaN and 0 where a token is impossible."""
    joint = einsum(beliefs, transitions, "row i, token i j -> row token j")
    return normalized(joint, right_eigenvector, negligible=negligible)


def normalized(
    joint: Float64[Tensor, "*row state"], right_eigenvector: Float64[Tensor, "state"], *, negligible: float = 0.0
) -> tuple[Float64[Tensor, "*row state"], Float64[Tensor, "*row"]]:
    """The belief for each product b T[x], which is overwritten, and the probability of its token."""
    probabilities = joint @ right_eigenvector
    # A NaN belief has NaN probabilities, which are not above anything: it stays NaN.
    possible = probabilities > negligible
    beliefs = joint.div_(torch.where(possible, probabilities, torch.nan).unsqueeze(-1))
    return beliefs, torch.where(possible, probabilities, 0.0)
