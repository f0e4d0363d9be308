"""Processes from scratch: from ordinary hidden Markov models, and at random.

An ordinary (Moore) model emits a token from each state at which it arrives, T[x, i, j] = A[i, j] B[j, x], so that the
belief after a token is the posterior over the state that emitted it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float64
from torch import Tensor

from msp_lens._checks import Count, Seed, Share, check_memory, checked
from msp_lens.processes.chains import stationary_distribution
from msp_lens.processes.process import Process
from msp_lens.processes.validation import ROUNDING, ArrayLike, float64, validated_distribution


@checked
def from_moore(
    transitions: Any,
    emissions: ArrayLike | None = None,
    *,
    initial: ArrayLike | None = None,
    startprob: ArrayLike | None = None,
    name: str = "moore",
    states: Sequence[str | int] | None = None,
    tokens: Sequence[str | int] | None = None,
) -> Process:
    """The process of an ordinary hidden Markov model, in which a token depends on the state arrived at.

    Args:
        transitions: `[state, state]`, A[i, j] = P(go to j | in i). Or, as the only argument, a fitted model with
            `transmat_`, `emissionprob_` and `startprob_`, such as hmmlearn's CategoricalHMM.
        emissions: `[state, token]`, B[j, x] = P(emit x | arrived at j).
        initial: Distribution over states *before* the transition to the state that emits the first token, as in every
            `Process`; by default the stationary one.
        startprob: Instead of `initial`, the distribution of the state that *emits* the first token, as in hmmlearn.
            Unless the stationary start implies it, a last state START is added that is left at once and never entered;
            word probabilities are exactly the model's.
        name: What the process is called.
        states: Names of the states; numbers by default.
        tokens: Names of the tokens; numbers by default.

    Raises:
        TypeError: if emissions are missing and the first argument is not a fitted model.
        ValueError: if the matrices do not fit together or their rows are not distributions.

    Example:
        >>> from_moore([[0.9, 0.1], [0.2, 0.8]], [[1.0, 0.0], [0.5, 0.5]]).emissions
        tensor([[0.9500, 0.0500],
                [0.6000, 0.4000]], dtype=torch.float64)
    """
    if emissions is None:
        fitted = transitions
        if not all(hasattr(fitted, part) for part in ("transmat_", "emissionprob_", "startprob_")):
            raise TypeError(
                f"from_moore({type(fitted).__name__}): give transitions and emissions, or a fitted model with "
                "transmat_, emissionprob_ and startprob_."
            )
        transitions, emissions = fitted.transmat_, fitted.emissionprob_
        startprob = fitted.startprob_ if initial is None and startprob is None else startprob
    if initial is not None and startprob is not None:
        raise ValueError(
            "initial and startprob: give one of them, the distribution before the first transition or the one after it."
        )
    A, B = _stochastic(transitions, "transitions"), _stochastic(emissions, "emissions")
    if A.shape[0] != A.shape[1] or len(A) != len(B):
        raise ValueError(
            f"transitions of shape {tuple(A.shape)} and emissions of shape {tuple(B.shape)} do not fit: give "
            "[state, state] and [state, token], with the same states."
        )
    edges = einsum(A, B, "i j, j token -> token i j")
    if startprob is None:
        return Process(edges, name=name, states=states, tokens=tokens, initial=initial)
    first = validated_distribution(startprob, len(A), "startprob")
    stationary = stationary_distribution(A)
    if stationary is not None and torch.allclose(stationary @ A, first, rtol=0, atol=ROUNDING):
        return Process(edges, name=name, states=states, tokens=tokens)
    started = torch.zeros(B.shape[1], len(A) + 1, len(A) + 1, dtype=torch.float64)
    started[:, :-1, :-1] = edges
    started[:, -1, :-1] = (first[:, None] * B).T
    names = [str(i) for i in range(len(A))] if states is None else states
    return Process(started, name=name, states=(*names, "START"), tokens=tokens, initial=[0.0] * len(A) + [1.0])


@checked
def random_process(n_states: Count, n_tokens: Count, *, seed: Seed, sparsity: Share = 0.0) -> Process:
    """A random irreducible process: each state's outcomes (token, next state) are uniform on their simplex.

    A share `sparsity` of the outcomes is impossible, except that a random cycle through all states remains.

    Example:
        >>> random_process(4, 2, seed=0, sparsity=0.5).is_irreducible
        True
    """
    what = f"{n_tokens} matrices of {n_states} × {n_states} states"
    check_memory(what, 8 * n_tokens * n_states**2, "Give fewer states or tokens.")
    generator = torch.Generator().manual_seed(seed)
    shape = (n_tokens, n_states, n_states)
    weights = torch.empty(shape, dtype=torch.float64).exponential_(generator=generator)
    # In float32 whatever the default dtype, so that a seed always gives the same process.
    is_kept = torch.rand(shape, dtype=torch.float32, generator=generator) >= sparsity
    cycle = torch.randperm(n_states, generator=generator)
    is_kept[torch.randint(n_tokens, (n_states,), generator=generator), cycle, cycle.roll(-1)] = True
    weights = torch.where(is_kept, weights, 0.0)
    return Process(
        weights / weights.sum(dim=(0, 2))[None, :, None], name="random", parameters={"seed": seed, "sparsity": sparsity}
    )


def _stochastic(rows: Any, what: str) -> Float64[Tensor, "row column"]:
    matrix = float64(rows, what)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"{what} has shape {tuple(matrix.shape)}; it needs two axes, with a distribution in each row.")
    return torch.stack([validated_distribution(row, matrix.shape[1], f"{what}[{i}]") for i, row in enumerate(matrix)])
