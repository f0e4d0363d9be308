"""The menu of edits: each by the name under which experiments and their tables know it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from msp_lens.interventions import edits as write
from msp_lens.interventions import erasure
from msp_lens.interventions.edits import Edit
from msp_lens.interventions.preparation import from_menu
from msp_lens.interventions.real_activations import Centroids
from msp_lens.probing.belief_probe import BeliefProbe


@dataclass(frozen=True, eq=False)
class Material:
    """What edits of one site may be made from, apart from the belief to write, for a batch of words.

    Attributes:
        actual: The optimal observer's beliefs at the edited positions.
        wrong: The beliefs of third words.
        donor: The site's activations in the donors' runs.
        centroids: The site's centroids, if an edit needs them.
        generator: Source of the edit's own random directions, the same whatever other edits are made.
    """

    actual: Float64[Tensor, "word pos state"]
    wrong: Float64[Tensor, "word pos state"]
    donor: Float[Tensor, "word pos d_model"]
    centroids: Centroids | None
    generator: torch.Generator = field(default_factory=torch.Generator)


EditMaker: TypeAlias = Callable[[BeliefProbe, Material], Edit]
Edits: TypeAlias = str | Sequence[str] | Mapping[str, EditMaker] | None


def _centroid(probe: BeliefProbe, material: Material) -> Edit:
    assert material.centroids is not None
    return write.centroid(probe, material.centroids.beliefs, material.centroids.activations[probe.sites[0]])


EDITS: Mapping[str, EditMaker] = {
    "none": lambda probe, _: write.no_edit(probe),
    "placebo": lambda probe, given: write.placebo(write.steer(probe), generator=given.generator),
    "placebo off belief": lambda probe, given: write.placebo_off_belief(write.steer(probe), generator=given.generator),
    "wrong belief": lambda probe, given: write.toward(write.steer(probe), given.wrong),
    "pseudo-inverse": lambda probe, _: write.pseudo_inverse_shift(probe),
    "covariance": lambda probe, _: write.covariance_shift(probe),
    "steer": lambda probe, _: write.steer(probe),
    "steer from true": lambda probe, given: write.steer(probe, current=given.actual),
    "patch": lambda probe, _: write.patch(probe),
    "centroid": _centroid,
    "donor belief": lambda probe, given: write.donor_belief(probe, given.donor),
    "donor": lambda probe, given: write.donor(probe, given.donor),
    "keep only": lambda probe, _: erasure.keep_only(probe),
    "project out": lambda probe, _: erasure.project_out(probe),
    "erase": lambda probe, _: erasure.erase(probe),
}

# Every intervention is compared with these: no edit, a random step, the same step to another belief, and a run that
# held the belief.
REFERENCES = ("none", "placebo", "wrong belief", "donor")
PLACEBOS = ("placebo", "placebo off belief")


def resolve_edits(edits: Edits) -> dict[str, EditMaker]:
    """Edit makers by name, in the menu's order: those asked for (else `KeyError` or `TypeError`) and the references."""
    asked = from_menu(EDITS, ("pseudo-inverse", "steer", "patch") if edits is None else edits, "edit")
    for name, maker in asked.items():
        if not callable(maker):
            raise TypeError(f"edits[{name!r}]={maker!r}: give a function of a probe and its `Material` to an `Edit`.")
    wanted = {name: EDITS[name] for name in REFERENCES} | asked
    return {name: wanted[name] for name in [*(name for name in EDITS if name in wanted), *wanted]}


def check_makes(edits: Mapping[str, EditMaker], probes: Sequence[BeliefProbe]) -> None:
    """Raise the `ValueError` of an edit in the menu that cannot be made from a probe, before the model runs."""
    for probe in probes:
        belief, nothing = probe.belief_mean.expand(1, 1, -1), torch.zeros(1, 1, probe.widths[0])
        for name, maker in edits.items():
            # Centroids take a pass to compute, and any probe will do for them.
            if name != "centroid" and maker is EDITS.get(name):
                maker(probe, Material(belief, belief, nothing, None))
