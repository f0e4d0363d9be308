"""How predictable the process is: the entropies an optimal predictor attains.

The myopic entropy h_L = H(X_L | X_1 … X_{L-1}) is the expected entropy of the next token given the L - 1
before it. No predictor that sees only those can have a lower expected loss.
"""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens.beliefs.filtering import next_token_probabilities
from msp_lens.beliefs.mixed_states import walk_levels
from msp_lens.processes.process import Process


def myopic_entropies(process: Process, length: int) -> Float64[Tensor, "length"]:
    """h_1 … h_length in nats, exactly: every possible word is visited, level by level.

    Crutchfield & Feldman 2003 (arXiv cond-mat/0102181), eq. 18. Cost grows with the number of possible words
    of `length - 1` tokens.

    Example:
        >>> from msp_lens.processes.catalog import mess3
        >>> myopic_entropies(mess3(x=0.05, a=0.85), 3)
        tensor([1.0986, 0.8577, 0.8134], dtype=torch.float64)
    """
    if length < 1:
        raise ValueError(f"length={length}: must be at least 1, the number of entropies wanted.")
    first = entropy(next_token_probabilities(process, process.initial))
    later = [
        level.probabilities @ entropy(next_token_probabilities(process, level.beliefs))
        for level in walk_levels(process, length - 1)
    ]
    return torch.stack([first, *later])


def optimal_losses(process: Process, n_ctx: int) -> Float64[Tensor, "pos"]:
    """The least expected next-token loss at each position of a context, in nats: h_2 … h_{n_ctx + 1}.

    Position t has seen t + 1 tokens and predicts the one after.
    """
    return myopic_entropies(process, n_ctx + 1)[1:]


def entropy(distribution: Float64[Tensor, "*batch outcome"]) -> Float64[Tensor, "*batch"]:
    """Shannon entropy in nats along the last axis, with 0 log 0 = 0."""
    return torch.special.entr(distribution).sum(dim=-1)


def kl_divergence(
    optimal: Float64[Tensor, "*batch token"], log_predicted: Float64[Tensor, "*batch token"]
) -> Float64[Tensor, "*batch"]:
    """KL(optimal ‖ predicted) in nats along the last axis; the predictions are given as log-probabilities.

    Tokens that never come (probability 0) cost nothing whatever their prediction, `-inf` included.
    """
    cross_terms = torch.where(optimal > 0, optimal * log_predicted, 0.0)
    return -entropy(optimal) - cross_terms.sum(dim=-1)
