"""Sampling words: along hidden paths if there are any, and otherwise by filtering.

A hidden path is drawn by inverting the cumulative distribution of each state's outcomes (token, next state). The
cumulative distributions of all states lie end to end in one sorted list of integers, so that one binary search finds
the outcome for any state, as precisely as the uniform numbers are drawn. A generalized process has no hidden path: each
token is drawn from the belief's next-token distribution and updates the belief.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens.processes.bayes import bayes_children


@dataclass(frozen=True)
class OutcomeTable:
    """The possible outcomes of every state in turn, and last those of the start, which only choose a state.

    Attributes:
        bounds: `(state + cumulative probability) · 2^bits`, sorted over the whole table.
        tokens: The token that each outcome emits; -1 for outcomes of the start.
        origins: `state · 2^bits` for the state to which each outcome leads.
        start: The same for the start.
        bits: How many bits of each uniform number are used.
    """

    bounds: Int[Tensor, "outcome"]
    tokens: Int[Tensor, "outcome"]
    origins: Int[Tensor, "outcome"]
    start: int
    bits: int


def outcome_table(transitions: Float64[Tensor, "token state state"], initial: Float64[Tensor, "state"]) -> OutcomeTable:
    """The table from which `sample_paths` draws."""
    n_states = len(initial)
    # Uniform float64 numbers in [0, 1) are multiples of 2^-53.
    bits = min(53, 63 - (n_states + 1).bit_length())
    outcomes = rearrange(transitions, "token i j -> i (token j)")
    start = torch.zeros(1, outcomes.shape[1], dtype=torch.float64)
    start[0, :n_states] = initial
    rows = torch.cat([outcomes, start])
    cumulative = (_cumulative(rows).clamp(max=1) * 2.0**bits).ceil().long()
    row, outcome = (rows > 0).nonzero(as_tuple=True)
    tokens = torch.where(row == n_states, -1, outcome // n_states)
    return OutcomeTable(
        bounds=(row << bits) + cumulative[row, outcome],
        tokens=tokens,
        origins=(outcome % n_states) << bits,
        start=n_states << bits,
        bits=bits,
    )


def sample_paths(table: OutcomeTable, n_words: int, length: int, generator: torch.Generator) -> Int[Tensor, "word pos"]:
    """Words along hidden paths, on the generator's device."""
    device = generator.device
    bounds, tokens, origins = table.bounds.to(device), table.tokens.to(device), table.origins.to(device)

    def draw(origin: Tensor | int) -> Tensor:
        uniform = torch.rand(n_words, dtype=torch.float64, device=device, generator=generator)
        return torch.searchsorted(bounds, uniform.mul_(2.0**table.bits).long().add_(origin), right=True)

    words = torch.empty(length, n_words, dtype=torch.int64, device=device)
    outcome = draw(table.start)
    for position in range(length):
        outcome = draw(origins[outcome])
        torch.index_select(tokens, 0, outcome, out=words[position])
    return words.T.contiguous()


def sample_by_filtering(
    transitions: Float64[Tensor, "token state state"],
    initial: Float64[Tensor, "state"],
    right_eigenvector: Float64[Tensor, "state"],
    n_words: int,
    length: int,
    generator: torch.Generator,
    *,
    negligible: float,
) -> Int[Tensor, "word pos"]:
    """Words of a generalized process, on the generator's device; probabilities up to `negligible` count as 0."""
    device = generator.device
    transitions, right_eigenvector = transitions.to(device), right_eigenvector.to(device)
    words = torch.empty(n_words, length, dtype=torch.int64, device=device)
    # Arrays of at most 32 MiB.
    for chunk in words.split(max(1, 2**22 // (len(transitions) * len(initial)))):
        belief = initial.to(device).expand(len(chunk), -1)
        every = torch.arange(len(chunk), device=device)
        for position in range(length):
            children, probabilities = bayes_children(belief, transitions, right_eigenvector, negligible=negligible)
            cumulative = _cumulative(probabilities / probabilities.sum(dim=1, keepdim=True))
            uniform = torch.rand(len(chunk), 1, dtype=torch.float64, device=device, generator=generator)
            token = (uniform >= cumulative).sum(dim=1)
            belief = children[every, token]
            chunk[:, position] = token
    return words


def _cumulative(probabilities: Float64[Tensor, "row outcome"]) -> Float64[Tensor, "row outcome"]:
    """Cumulative sums in which the last possible outcome reaches past 1, so that rounding never overshoots it."""
    cumulative = probabilities.cumsum(dim=-1)
    is_exhausted = probabilities.flip(-1).cumsum(dim=-1).flip(-1) - probabilities <= 0
    return torch.where(is_exhausted, 2.0, cumulative)
