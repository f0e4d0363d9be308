"""Sampling words: along hidden paths if there are any, and otherwise by filtering.

A hidden path is drawn by inverting the cumulative distribution of each state's outcomes (token, next state). These lie
end to end in one sorted list of integers, in which one binary search finds the outcome for any state, as precisely as
the uniform numbers are drawn. A generalized process has no hidden path: each token is drawn from the belief's
next-token distribution and updates the belief.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens.processes.bayes import bayes_children


class PathSampler:
    """Draws words along hidden paths, from a table of outcomes.

    The table holds the possible outcomes of every state in turn, and last those of the start, which only choose a
    state.
    """

    def __init__(self, transitions: Float64[Tensor, "token state state"], initial: Float64[Tensor, "state"]) -> None:
        n_states = len(initial)
        # Uniform float64 numbers in [0, 1) are multiples of 2^-53; this many of their bits are used.
        self._bits = bits = min(53, 63 - (n_states + 1).bit_length())
        outcomes = rearrange(transitions, "token i j -> i (token j)")
        start = torch.zeros(1, outcomes.shape[1], dtype=torch.float64)
        start[0, :n_states] = initial
        rows = torch.cat([outcomes, start])
        cumulative = (cumulative_probabilities(rows).clamp(max=1) * 2.0**bits).ceil().long()
        row, outcome = (rows > 0).nonzero(as_tuple=True)
        # (state + cumulative probability) · 2^bits, sorted over the whole table.
        self._bounds = (row << bits) + cumulative[row, outcome]
        # The token that each outcome emits, and state · 2^bits for the state to which it leads.
        self._tokens = torch.where(row == n_states, -1, outcome // n_states)
        self._origins, self._start = (outcome % n_states) << bits, n_states << bits

    def sample(self, n_words: int, length: int, generator: torch.Generator) -> Int[Tensor, "word pos"]:
        """Words on the generator's device."""
        device = generator.device
        bounds, tokens, origins = self._bounds.to(device), self._tokens.to(device), self._origins.to(device)

        def draw(origin: Tensor | int) -> Tensor:
            uniform = torch.rand(n_words, dtype=torch.float64, device=device, generator=generator)
            return torch.searchsorted(bounds, uniform.mul_(2.0**self._bits).long().add_(origin), right=True)

        words = torch.empty(length, n_words, dtype=torch.int64, device=device)
        outcome = draw(self._start)
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
            token = draw_outcomes(probabilities, generator)
            belief = children[every, token]
            chunk[:, position] = token
    return words


def draw_outcomes(probabilities: Float64[Tensor, "row outcome"], generator: torch.Generator) -> Int[Tensor, "row"]:
    """An outcome for each row in proportion to its probability, on the generator's device, where these are too."""
    cumulative = cumulative_probabilities(probabilities / probabilities.sum(dim=1, keepdim=True))
    uniform = torch.rand(len(cumulative), 1, dtype=torch.float64, device=cumulative.device, generator=generator)
    return (uniform >= cumulative).sum(dim=1)


def cumulative_probabilities(probabilities: Float64[Tensor, "row outcome"]) -> Float64[Tensor, "row outcome"]:
    """Cumulative sums in which the last possible outcome reaches past 1, so that rounding never overshoots it."""
    cumulative = probabilities.cumsum(dim=-1)
    is_exhausted = probabilities.flip(-1).cumsum(dim=-1).flip(-1) - probabilities <= 0
    return torch.where(is_exhausted, 2.0, cumulative)
