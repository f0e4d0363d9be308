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
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens.processes.bayes import bayes_step
from msp_lens.processes.process import Process


def filter_beliefs(process: Process, tokens: Int[Tensor, "batch pos"]) -> Float64[Tensor, "batch pos state"]:
    """Beliefs after each token of a batch of words: `beliefs[w, t]` is the one after tokens 0 … t of word w.

    Raises:
        ValueError: naming the word and position, if a token is outside the vocabulary or impossible.

    Example:
        >>> from msp_lens.processes.catalog import z1r
        >>> filter_beliefs(z1r(), torch.tensor([[1, 1]]))[0, -1]   # after 11 the phase is certain
        tensor([1., 0., 0.], dtype=torch.float64)
    """
    tokens = tokens.cpu()
    process.check_tokens(tokens)
    belief = process.initial.expand(len(tokens), -1)
    beliefs = torch.empty(*tokens.shape, process.n_states, dtype=torch.float64)
    for position, token in enumerate(tokens.T):
        belief, probability = bayes_step(
            belief, token, process.transitions, process.right_eigenvector, negligible=process.negligible
        )
        if not probability.all():
            word = int((probability == 0).nonzero()[0, 0])
            raise ValueError(
                f"Word {word}, {tokens[word].tolist()}, is impossible for {process.name}: token {int(token[word])} at "
                f"position {position} has probability 0 after the tokens before it. Check that the tokens come from "
                "this process."
            )
        beliefs[:, position] = belief
    return beliefs


def next_token_probabilities(
    process: Process, beliefs: Float64[Tensor, "*batch state"]
) -> Float64[Tensor, "*batch token"]:
    """The optimal observer's distribution over the next token, `b E`.

    Example:
        >>> from msp_lens.processes.catalog import golden_mean
        >>> process = golden_mean(p=0.25)
        >>> next_token_probabilities(process, torch.eye(2, dtype=torch.float64))
        tensor([[0.7500, 0.2500],
                [1.0000, 0.0000]], dtype=torch.float64)
    """
    return beliefs @ process.emissions
