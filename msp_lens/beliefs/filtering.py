"""The Bayesian filter: what an optimal observer believes after each token.

A belief b is a distribution over hidden states. Seeing token x moves it to

    b' = b T[x] / (b T[x] 1),

and the belief at position t is the one held *after* token t. Before any token it is the process's initial
distribution. The next token is then distributed as b E, with E[i, x] = P(emit x | in i).

For a generalized process, 1 becomes the right eigenvector w and E[i, x] = (T[x] w)_i. The entries
of its beliefs may be negative and refer to no hidden state.
"""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens._checks import check_memory, checked, shown
from msp_lens.processes.process import Process
from msp_lens.processes.words import Words

# How far the entries of a belief may sum from 1, or lie below 0: float32 rounds to less.
TOLERANCE = 1e-5


@checked
def filter_beliefs(process: Process, tokens: Words) -> Float64[Tensor, "batch pos state"]:
    """Beliefs after each token of a batch of words: `beliefs[w, t]` is the one after tokens 0 … t of word w.

    Args:
        process: The process observed.
        tokens: The words, `[batch, pos]`: token numbers in any container, names or text; see `Process.read_words`.

    Raises:
        TypeError: if the tokens are neither numbers nor names.
        ValueError: naming the word and position, if a token is outside the vocabulary or impossible.

    Example:
        >>> from msp_lens.processes.catalog import z1r
        >>> filter_beliefs(z1r(), "11")[0, -1]   # after 11 the phase is certain
        tensor([1., 0., 0.], dtype=torch.float64)
    """
    tokens = process.read_words(tokens, what="tokens")
    what = f"The beliefs along {len(tokens)} words of {tokens.shape[1]} tokens"
    check_memory(what, 8 * tokens.numel() * process.n_states, "Filter fewer words at a time.")
    belief = process.initial.expand(len(tokens), -1)
    beliefs = torch.empty(*tokens.shape, process.n_states, dtype=torch.float64)
    for position, token in enumerate(tokens.T):
        belief, probability = process.bayes_step(belief, token)
        if not probability.all():
            word = int((probability == 0).nonzero()[0, 0])
            raise ValueError(
                f"Word {word}, {tokens[word].tolist()}, is impossible for {process.name}: token {int(token[word])} at "
                f"position {position} has probability 0 after the tokens before it. Check that the tokens come from "
                "this process."
            )
        beliefs[:, position] = belief
    return beliefs


@checked
def next_token_probabilities(
    process: Process, beliefs: Float64[Tensor, "*batch state"]
) -> Float64[Tensor, "*batch token"]:
    """The optimal observer's distribution over the next token, `b E`.

    Raises:
        ValueError: if a belief has the wrong number of states or is none; see `check_beliefs`.

    Example:
        >>> from msp_lens.processes.catalog import golden_mean
        >>> process = golden_mean(p=0.25)
        >>> next_token_probabilities(process, torch.eye(2, dtype=torch.float64))
        tensor([[0.7500, 0.2500],
                [1.0000, 0.0000]], dtype=torch.float64)
    """
    check_beliefs(process, beliefs)
    return beliefs @ process.emissions


def check_beliefs(process: Process, beliefs: Float64[Tensor, "*batch state"]) -> None:
    """Raise `ValueError` unless these are beliefs about a process, to within 1e-5.

    Beliefs are distributions over its states, or if it is generalized vectors b with b w = 1.
    """
    if beliefs.shape[-1] != process.n_states:
        states = f"{process.name} has {process.n_states} states"
        raise ValueError(f"beliefs has shape {tuple(beliefs.shape)}, but {states}: give [..., state].")
    totals = beliefs @ process.right_eigenvector.to(beliefs.device)
    is_off = (totals - 1).abs() > TOLERANCE
    if not process.is_generalized:
        is_off |= (beliefs < -TOLERANCE).any(dim=-1)
    if is_off.any():
        first = beliefs[is_off][0]
        rule = "b · right_eigenvector is not 1" if process.is_generalized else "its entries must be ≥ 0 and sum to 1"
        remedy = (
            "" if process.is_generalized else " Normalize it, or take nearest_belief(process, beliefs) of a reading."
        )
        raise ValueError(f"beliefs holds {shown(first.tolist())}, which is no belief: {rule}.{remedy}")
