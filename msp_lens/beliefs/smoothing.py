"""Smoothing: what an observer believes about an earlier state, once later tokens have been seen.

    P(s_{t-m} = i | x_0 … x_t) ∝ b_{t-m}(i) · (T[x_{t-m+1}] … T[x_t] 1)(i)

s_t is the state after token t, so that m = 0 gives the belief itself. Two observers with the same belief may disagree
about the past: what a network holds of it beyond the belief, prediction does not need.

Source: the forward–backward algorithm (Rabiner 1989, section III).
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens._checks import AtLeast, checked
from msp_lens.beliefs.filtering import filter_beliefs
from msp_lens.processes.process import Process
from msp_lens.processes.words import Words


@checked
def smoothed_beliefs(
    process: Process, tokens: Words, lag: Annotated[int, AtLeast(0)]
) -> Float64[Tensor, "batch pos state"]:
    """The distribution of the state `lag` steps ago, given all tokens up to each position; NaN before there is one.

    Args:
        process: The process observed.
        tokens: The words, `[batch, pos]`, as for `filter_beliefs`.
        lag: How many tokens ago.

    Raises:
        ValueError: if a word is impossible, or the process is generalized: then its states have no probabilities.

    Example:
        >>> from msp_lens.processes.catalog import golden_mean
        >>> smoothed_beliefs(golden_mean(p=0.5), "01", 1)[0]   # before a 1, the state was the one that emits both
        tensor([[nan, nan],
                [1., 0.]], dtype=torch.float64)
    """
    if process.is_generalized:
        raise ValueError(f"{process!r} is generalized, and its states have no probabilities: give an ordinary process.")
    tokens = process.read_words(tokens, what="tokens")
    forward = filter_beliefs(process, tokens)
    n_pos = tokens.shape[1]
    smoothed = torch.full_like(forward, math.nan)
    if lag >= n_pos:
        return smoothed
    backward = torch.ones_like(forward[:, lag:])
    for back in range(lag):
        token = tokens[:, lag - back : n_pos - back]
        step = torch.empty_like(backward)
        for symbol in token.unique().tolist():
            here = token == symbol
            step[here] = backward[here] @ process.transitions[symbol].T
        # What follows is known up to a factor, which would become too small for long lags.
        backward = step / step.sum(dim=-1, keepdim=True)
    joint = forward[:, : n_pos - lag] * backward
    smoothed[:, lag:] = joint / joint.sum(dim=-1, keepdim=True)
    return smoothed
