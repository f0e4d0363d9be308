"""The menu of edits: each by the name under which experiments and their tables know it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from msp_lens.interventions import edits as write
from msp_lens.interventions import erasure
from msp_lens.interventions.centroids import Centroids
from msp_lens.interventions.edits import Edit
from msp_lens.probing.belief_probe import BeliefProbe


@dataclass(frozen=True, eq=False)
class Material:
    """What edits of one site may be made from, apart from the belief to be written, for a batch of words.

    Attributes:
        actual: The optimal observer's beliefs at the edited positions.
        wrong: The beliefs of third words.
        donor: The site's activations in the donors' runs.
        centroids: The site's centroids, if an edit needs them.
        generator: Source of the placebos' directions.
    """

    actual: Float64[Tensor, "word pos state"]
    wrong: Float64[Tensor, "word pos state"]
    donor: Float[Tensor, "word pos d_model"]
    centroids: Centroids | None
    generator: torch.Generator


EditMaker: TypeAlias = Callable[[BeliefProbe, Material], Edit]


def _centroid(probe: BeliefProbe, material: Material) -> Edit:
    assert material.centroids is not None
    return write.centroid(probe, material.centroids.beliefs, material.centroids.activations[probe.sites[0]])


EDITS: Mapping[str, EditMaker] = {
    "none": lambda probe, _: write.no_edit(probe),
    "placebo": lambda probe, material: write.placebo(write.steer(probe), generator=material.generator),
    "placebo off belief": lambda probe, material: write.placebo_off_belief(
        write.steer(probe), generator=material.generator
    ),
    "wrong belief": lambda probe, material: write.toward(write.steer(probe), material.wrong),
    "pseudo-inverse": lambda probe, _: write.pseudo_inverse_shift(probe),
    "covariance": lambda probe, _: write.covariance_shift(probe),
    "steer": lambda probe, _: write.steer(probe),
    "steer from true": lambda probe, material: write.steer(probe, current=material.actual),
    "patch": lambda probe, _: write.patch(probe),
    "centroid": _centroid,
    "donor belief": lambda probe, material: write.donor_belief(probe, material.donor),
    "donor": lambda probe, material: write.donor(probe, material.donor),
    "keep only": lambda probe, _: erasure.keep_only(probe),
    "project out": lambda probe, _: erasure.project_out(probe),
    "erase": lambda probe, _: erasure.erase(probe),
}

# Every intervention is compared with these: no edit, the floor and the ceiling.
REFERENCES = ("none", "placebo", "donor")


def resolve_edits(edits: str | Sequence[str] | Mapping[str, EditMaker] | None) -> dict[str, EditMaker]:
    """Edit makers by name, in the menu's order: the edits asked for and always the references.

    Args:
        edits: Names from `EDITS`, or a mapping of names to your own makers; by default the usual ones.

    Raises:
        KeyError: if there is no edit of a name.
    """
    if edits is None:
        edits = ("wrong belief", "pseudo-inverse", "steer", "patch")
    if not isinstance(edits, Mapping):
        names = [edits] if isinstance(edits, str) else list(edits)
        for name in names:
            if name not in EDITS:
                raise KeyError(f"No edit {name!r}; there are {', '.join(EDITS)}, or give {{name: maker}} for your own.")
        edits = {name: EDITS[name] for name in names}
    wanted = {name: EDITS[name] for name in REFERENCES} | dict(edits)
    order = [name for name in EDITS if name in wanted] + [name for name in wanted if name not in EDITS]
    return {name: wanted[name] for name in order}
