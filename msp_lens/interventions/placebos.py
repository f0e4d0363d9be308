"""Placebos: steps as long as an edit's that should do nothing. What any push of that size does is no evidence."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens.interventions.edits import Edit, centered_weights


def placebo(edit: Edit, *, generator: torch.Generator) -> Edit:
    """A step of the length that `edit` would take, in a direction drawn evenly from all.

    A random direction mostly leaves the space where activations lie. That it harms less than the edit helps is no
    more than a minimum; see also `placebo_off_belief` and steering `toward` a wrong belief.
    """
    return Edit("placebo", edit.probe, _random_step(edit, generator, avoid=None), writes=edit.writes)


def placebo_off_belief(edit: Edit, *, generator: torch.Generator) -> Edit:
    """A step of the same length in the complement of the belief: what is read stays, and nothing that D writes moves.

    The direction is drawn evenly from those orthogonal to the probe's W and to its decoder's D.

    Raises:
        ValueError: if those fill the site.
    """
    probe = edit.probe
    written = probe.decoder - probe.decoder.mean(dim=0)
    directions, singular_values, _ = torch.linalg.svd(torch.cat([centered_weights(probe), written.T], dim=1), False)
    # Scales of W and D differ: only rounding errors are left out.
    avoided = directions[:, singular_values > singular_values[0] * 1e-10]
    if avoided.shape[1] >= avoided.shape[0]:
        raise ValueError(
            f"{probe!r}: its weights and decoder fill all {avoided.shape[0]} dimensions; no direction is off belief."
        )
    return Edit("placebo off belief", probe, _random_step(edit, generator, avoid=avoided), writes=edit.writes)


def _random_step(
    edit: Edit, generator: torch.Generator, *, avoid: Float64[Tensor, "feature rank"] | None
) -> Callable[[Tensor, Tensor], Tensor]:
    def step(h: Tensor, belief: Tensor) -> Tensor:
        length = (edit.function(h, belief) - h).norm(dim=-1, keepdim=True)
        direction = torch.randn(h.shape, dtype=torch.float64, generator=generator, device=generator.device).cpu()
        if avoid is not None:
            direction = direction - direction @ avoid @ avoid.T
        return h + length * (direction / direction.norm(dim=-1, keepdim=True)).to(h)

    return step
