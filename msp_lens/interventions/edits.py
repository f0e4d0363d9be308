"""The edits: functions from an activation to the one that replaces it.

Each takes activations `[word, d_model]` at the edited position and returns as many. None proves by itself that the
network uses its belief: each is set beside no edit, a placebo and a donor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from msp_lens.probing.belief_probe import BeliefProbe

Edit: TypeAlias = Callable[[Float[Tensor, "word d_model"]], Float[Tensor, "word d_model"]]


def no_edit(activation: Float[Tensor, "word d_model"]) -> Float[Tensor, "word d_model"]:
    """The activation itself: what the network does when left alone."""
    return activation


def steer(probe: BeliefProbe, belief: Float64[Tensor, "word state"], *, strength: float = 1.0) -> Edit:
    """`h + strength (b' - b̂) D`: move what varies with belief, keep the rest."""
    return lambda activation: probe.steered(activation, belief, strength=strength)


def patch(probe: BeliefProbe, belief: Float64[Tensor, "word state"]) -> Edit:
    """`μ_h + (b' - μ_b) D`: put the mean activation of that belief in place of everything."""
    return lambda activation: probe.patched(activation, belief)


def placebo(probe: BeliefProbe, belief: Float64[Tensor, "word state"], *, generator: torch.Generator) -> Edit:
    """A step of the length that `steer` would take, in a random direction: what any push of that size does."""

    def edit(activation: Float[Tensor, "word d_model"]) -> Float[Tensor, "word d_model"]:
        length = (probe.steered(activation, belief) - activation).norm(dim=-1, keepdim=True)
        direction = torch.randn(activation.shape, generator=generator).to(activation)
        return activation + length * direction / direction.norm(dim=-1, keepdim=True)

    return edit


def donor(activations: Float[Tensor, "word d_model"]) -> Edit:
    """The activation of another run, in which the network itself held the target belief: the ceiling."""
    return lambda activation: activations.to(activation)
