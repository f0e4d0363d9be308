"""The Bayesian filter: what an optimal observer believes after each token.

A belief b is a distribution over hidden states. Seeing token x moves it to

    b' = b T[x] / (b T[x] 1),

and the belief at position t is the one held *after* token t. Before any token it is the process's initial
distribution. The next token is then distributed as b E, with E[i, x] = P(emit x | in i).

One long word is cut into about √n stretches that are filtered side by side, from each hidden state in which they might
begin: the products T[x₁] … T[x_k], of which each row is kept as a distribution and the logarithm of its weight.

For a generalized process, 1 becomes the right eigenvector w and E[i, x] = (T[x] w)_i. The entries
of its beliefs may be negative and refer to no hidden state.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64, Int
from torch import Tensor
from torch.nn.functional import pad

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
    if _gains_by_stretches(process, tokens):
        found = _by_stretches(process, tokens)
        if found is not None:
            return found
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


def _gains_by_stretches(process: Process, tokens: Int[Tensor, "batch pos"]) -> bool:
    """Whether the words are few and long, so that steps one after another cost more than products of matrices."""
    most_numbers = 2**22
    n_words, length = tokens.shape
    cost = n_words * process.n_states**3
    return length >= 64 and cost <= 4096 and cost * length <= most_numbers and not process.is_generalized


def _by_stretches(process: Process, tokens: Int[Tensor, "batch pos"]) -> Float64[Tensor, "batch pos state"] | None:
    """Beliefs along words that are cut into stretches; `None` if a word is impossible."""
    (n_words, length), n_states = tokens.shape, process.n_states
    size = math.isqrt(length - 1) + 1
    n_stretches = -(-length // size)
    # What fills the last stretch comes after every belief that is wanted.
    steps = process.transitions[pad(tokens, (0, n_stretches * size - length)).view(n_words, n_stretches, size)]
    rows = torch.eye(n_states, dtype=torch.float64).expand(n_words, n_stretches, -1, -1)
    weights = torch.zeros(n_words, n_stretches, n_states, dtype=torch.float64)
    rows_at, weights_at = [], []
    for step in steps.unbind(dim=2):
        rows = rows @ step
        totals = rows.sum(dim=-1)
        rows = rows / totals.clamp_min(torch.finfo(torch.float64).tiny).unsqueeze(-1)
        weights = weights + totals.log()
        rows_at.append(rows)
        weights_at.append(weights)
    belief, firsts = process.initial.expand(n_words, -1), []
    for stretch in range(n_stretches):
        firsts.append(belief)
        belief = _mixed(belief, rows_at[-1][:, stretch], weights_at[-1][:, stretch])
    first = torch.stack(firsts, dim=1).unsqueeze(2)
    beliefs = _mixed(first, torch.stack(rows_at, dim=2), torch.stack(weights_at, dim=2))
    beliefs = beliefs.flatten(1, 2)[:, :length]
    return None if beliefs.isnan().any() else beliefs.contiguous()


def _mixed(
    belief: Float64[Tensor, "*#batch state"],
    rows: Float64[Tensor, "*#batch state next_state"],
    weights: Float64[Tensor, "*#batch state"],
) -> Float64[Tensor, "*batch next_state"]:
    """The belief after a stretch: rows mixed by belief and weight; NaN where no state with belief allows it."""
    shares = (belief.log() + weights).softmax(dim=-1)
    return (shares.unsqueeze(-2) @ rows).squeeze(-2)


@checked
def next_token_probabilities(
    process: Process, beliefs: Float64[Tensor, "*batch state"]
) -> Float64[Tensor, "*batch token"]:
    """The optimal observer's distribution over the next token, `b E`.

    Where a generalized process gives a token no more than rounding, ±1e-17, its probability is 0.

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
    probabilities = beliefs @ process.emissions
    # Logarithms are taken of them: what is below 0 by rounding would make whatever is summed with it NaN.
    return torch.where(probabilities.abs() > process.negligible, probabilities, 0.0)


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
