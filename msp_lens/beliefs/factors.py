"""The entropies of a factored world, factor by factor."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens._checks import Count, checked
from msp_lens.beliefs.information import EXACT_LEVEL, ONE, entropy, myopic_entropies, too_many
from msp_lens.beliefs.mixed_states import MERGE_TOLERANCE, Level, grow
from msp_lens.processes.factor_tables import closures
from msp_lens.processes.factored import Factored


@checked
def factor_entropies(
    world: Factored, length: Count, *, max_level: Count = EXACT_LEVEL
) -> Float64[Tensor, "factor length"]:
    """What each factor adds to h_1 … h_length, in nats: the entropy of its token, given all that came before.

    Row k is H(x_k | the whole past, the tokens at this step of the parents that change what k emits), in the order of
    `world.factors`. The sum over factors is the joint h_L. Only the factor and those on which it depends are followed.

    Raises:
        ValueError: if the world is noisy, so that its joint tokens are not drawn factor by factor, or if the words of
            one length lead to more than `max_level` beliefs.

    Example:
        >>> from msp_lens.processes.catalog import coin, golden_mean
        >>> world = Factored([coin(p=0.5), [golden_mean(p=0.5), golden_mean(p=0.1)]], parents="chain")
        >>> factor_entropies(world, 3)
        tensor([[0.6931, 0.6931, 0.6931],
                [0.4407, 0.4073, 0.3869]], dtype=torch.float64)
    """
    if world.noise:
        raise ValueError(
            f"{world.name} has noise={world.noise:g}, which replaces whole joint tokens: their entropies are no sums "
            "over factors. Take myopic_entropies of the world."
        )
    return torch.stack([_one_factors_entropies(world, k, length, max_level) for k in range(len(world.factors))])


def _one_factors_entropies(world: Factored, factor: int, length: int, max_level: int) -> Float64[Tensor, "length"]:
    members = sorted(closures(world.parents)[factor])
    part, place = world.closed_part(members), members.index(factor)
    if len(members) == 1:
        return myopic_entropies(part, length, max_level=max_level)
    given = [axis for axis, each in enumerate(members) if each in world.emission_parents[factor]]
    sizes = [world.factors[each].n_tokens for each in members]
    none = torch.zeros(1, dtype=torch.int64)
    root = Level(part.initial.unsqueeze(0), ONE.log(), none, none)
    found = []
    levels = grow(part, root.beliefs, ONE.log(), length - 1, MERGE_TOLERANCE, max_level=max_level)
    for level in itertools.chain([root], levels):
        tokens = (level.beliefs @ part.emissions).unflatten(1, sizes)
        both, asked = (_of_axes(tokens, axes) for axes in ([*given, place], given))
        found.append(level.probabilities @ (entropy(both) - entropy(asked)))
    if len(found) < length:
        raise ValueError(too_many(world, len(found) - 1, max_level, length))
    return torch.stack(found)


def _of_axes(joint: Float64[Tensor, "node *token"], kept: Sequence[int]) -> Float64[Tensor, "node outcome"]:
    """The marginal distribution of some of several tokens, numbered from the first."""
    summed = [1 + axis for axis in range(joint.ndim - 1) if axis not in kept]
    return (joint.sum(dim=summed) if summed else joint).reshape(len(joint), -1)
