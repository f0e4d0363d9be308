"""The order-k Markov approximation of a process: what a predictor can hold that uses the last k tokens alone.

Its states are the last k tokens, so its beliefs are certain once k tokens have been seen. What its states say of the
beliefs about the process itself is their mean, given the state and the position,

    b̄(c, t) = Σ_u P(u) b(u) / Σ_u P(u)        over the prefixes u of length t that end in c,

and no other function of them is nearer to the beliefs. Its predictions cost, at position t, the difference of two
myopic entropies, h_min(t, k) - h_t.
"""

from __future__ import annotations

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens._checks import Count, check_memory, checked
from msp_lens.beliefs.information import optimal_losses
from msp_lens.data import BeliefDataset
from msp_lens.processes.process import Process


@checked
def markov_beliefs(dataset: BeliefDataset, order: Count) -> Float64[Tensor, "prefix state"]:
    """After each prefix, the belief over the states of the order-k approximation: certain once k tokens are known.

    Before that, the tokens before the word are as probable as the process, long running, makes them. States are in the
    order of `torch.cartesian_prod`, the earliest token first.

    Raises:
        ValueError: if they take too much memory.

    Example:
        >>> from msp_lens.data import words
        >>> from msp_lens.processes import golden_mean
        >>> dataset = words(golden_mean(p=0.5), n_ctx=2)      # 00, 01 and 10
        >>> markov_beliefs(dataset, 2)[dataset.prefix_ids[0]]   # after 0, then after 00
        tensor([[0.5000, 0.0000, 0.5000, 0.0000],
                [1.0000, 0.0000, 0.0000, 0.0000]], dtype=torch.float64)
    """
    process, n_states = dataset.process, dataset.process.n_tokens**order
    what = f"Beliefs over {n_states:,} states after {dataset.n_prefixes:,} prefixes"
    check_memory(what, 8 * n_states * dataset.n_prefixes, "Give a lower order, or fewer words.")
    states = torch.cartesian_prod(*[torch.arange(process.n_tokens)] * order).reshape(-1, order)
    fits = torch.ones(dataset.n_prefixes, n_states, dtype=torch.bool)
    for lag, seen in enumerate(_last_tokens(dataset, order)):
        fits &= (seen.unsqueeze(1) == states[:, order - 1 - lag]) | (seen.unsqueeze(1) == process.n_tokens)
    beliefs = torch.where(fits, process.word_log_probabilities(states).exp(), 0.0)
    return beliefs / beliefs.sum(dim=1, keepdim=True)


@checked
def mean_beliefs(dataset: BeliefDataset, order: Count) -> Float64[Tensor, "prefix state"]:
    """After each prefix, the mean belief about the process given the last k tokens and the position."""
    key = torch.empty(dataset.n_prefixes, dtype=torch.int64)
    key[dataset.prefix_ids[dataset.is_first]] = dataset.is_first.nonzero()[:, 1]
    for seen in _last_tokens(dataset, order):
        # Numbered anew each time, they stay small.
        _, key = (key * (dataset.process.n_tokens + 1) + seen).unique(return_inverse=True)
    weights = dataset.prefix_weights("probability").unsqueeze(1)
    rows = torch.cat([weights, weights * dataset.prefix_beliefs], dim=1)
    sums = torch.zeros(int(key.max()) + 1, rows.shape[1], dtype=torch.float64).index_add_(0, key, rows)
    return (sums[:, 1:] / sums[:, :1])[key]


@checked
def markov_regret(process: Process, order: Count, n_ctx: Count) -> Float64[Tensor, "pos"]:
    """At each position, the regret of the best predictor that uses the last k tokens alone, in nats.

    The process must be stationary: the last k tokens then say of the next what the first k do.

    Example:
        >>> from msp_lens.processes import rrxor
        >>> [round(float(regret), 4) for regret in markov_regret(rrxor(), 2, 4)]
        [0.0, 0.0, 0.008, 0.0378]
    """
    losses = optimal_losses(process, n_ctx)
    return losses[torch.arange(n_ctx).clamp(max=order - 1)] - losses


def _last_tokens(dataset: BeliefDataset, order: int) -> list[Int[Tensor, "prefix"]]:
    """The last k tokens of each prefix, latest first; one that no token has stands for what is before the word."""
    word, last = dataset.is_first.nonzero(as_tuple=True)
    found = []
    for lag in range(order):
        seen = torch.where(last >= lag, dataset.tokens[word, (last - lag).clamp(min=0)], dataset.process.n_tokens)
        found.append(torch.empty_like(seen).index_copy_(0, dataset.prefix_ids[word, last], seen))
    return found
