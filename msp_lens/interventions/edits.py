"""The edits that write a belief: each replaces an activation h by one that holds the belief b'.

    steer             h + (b' - b) D                       b read from h, or the true one
    patch             μ_h + (b' - μ_b) D
    pseudo-inverse    h + (b' - b̂) W⁺
    covariance        h + (b' - b̂) D̂                      D̂ = (Wᵀ Σ_hh W)⁺ Wᵀ Σ_hh
    donor             h of a run that held b'
    donor's belief    h + (b̂(donor) - b̂(h)) D
    centroid          the mean h of all prefixes whose belief is nearest b'
    placebo           a random step, as long as another edit's

W is the probe (b̂ = h W + c) and D = Σ_bb⁺ Σ_bh its decoder; all are solved from the probe's moments. No edit proves by
itself that the network uses its belief, so each is compared with no edit, a placebo of the same length, a wrong belief
and a donor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from msp_lens._checks import checked
from msp_lens.models.hooked import HookedModel, HookFunction, checked_hook
from msp_lens.models.positions import Position, at_positions, check_position, widened, writing
from msp_lens.moments.moments import Moments
from msp_lens.moments.solve import RANK_CUTOFF
from msp_lens.probing.belief_probe import BeliefProbe


@checked
@dataclass(frozen=True, eq=False)
class Edit:
    """A named change of one site's activation, given the belief to write.

    Call it on activations, use it as a TransformerLens hook (`edit.hook(...)`), or apply it to a model
    (`with applying(model, edit, ...)`).

    Attributes:
        name: Its name in tables.
        probe: The probe of the site that it edits.
        function: Maps activations `[word, pos, d_model]` and beliefs `[word, pos, state]` to new activations.
        writes: Whether it writes the belief; if not, the belief is ignored.
    """

    name: str
    probe: BeliefProbe
    function: Callable[[Tensor, Tensor], Tensor]
    writes: bool = True

    def __post_init__(self) -> None:
        if len(self.probe.sites) != 1:
            raise ValueError(
                f"{self.probe!r} reads {len(self.probe.sites)} sites at once, and an edit changes one: "
                f"take the probe of one site, e.g. report[{self.probe.sites[-1]!r}]."
            )

    @property
    def site(self) -> str:
        """Hook name of the site that it edits."""
        return self.probe.sites[0]

    def __call__(
        self, activation: Float[Tensor, "*batch d_model"], belief: Float[Tensor, "*batch state"] | None = None
    ) -> Float[Tensor, "*batch d_model"]:
        """The new activation; `ValueError` if a shape is wrong, or a belief is needed and not given."""
        if activation.shape[-1] != self.probe.widths[0]:
            raise ValueError(
                f"The activation has {activation.shape[-1]} features; the probe of {self.site} was fitted on "
                f"{self.probe.widths[0]}. Fit a probe on this model."
            )
        wide = widened(activation)
        edited = self.function(wide, self._belief(belief).to(wide))
        if edited.shape != activation.shape:
            raise ValueError(
                f"The edit {self.name!r} at {self.site} returned {tuple(edited.shape)}; it must return a tensor of the "
                f"activation's shape {tuple(activation.shape)}."
            )
        return edited if wide is activation else edited.to(activation.dtype)

    def _belief(self, belief: Tensor | None) -> Tensor:
        if not self.writes:
            return self.probe.belief_mean
        if belief is None:
            raise ValueError(f"{self.name!r} writes a belief: give belief=.")
        return belief

    @checked
    def checked_belief(self, belief: Float64[Tensor, "*batch state"] | None) -> Tensor | None:
        """The belief as float64; a `ValueError` if it is not one of the probe's process, or is needed and missing."""
        checked = None if belief is None else self.probe.checked_belief(belief)
        self._belief(checked)
        return checked

    @checked
    def scaled(self, strength: float) -> Edit:
        """A part of the edit, h + λ (edit(h) - h): λ = 0 changes nothing, λ = 1 is the whole edit.

        `ValueError` if λ is NaN or infinite.
        """
        if not math.isfinite(strength):
            raise ValueError(f"strength={strength}: give a finite number.")
        if strength == 1:
            return self
        return replace(self, function=lambda h, belief: h + strength * (self.function(h, belief) - h))

    @checked
    def at(
        self, position: Position, belief: Float64[Tensor, "*batch state"] | None = None
    ) -> Callable[[Tensor], Tensor]:
        """The edit as a function of the site's whole activation `[word, pos, d_model]`; arguments as for `applying`."""
        check_position(position, None)
        return at_positions(self, position, self.checked_belief(belief))

    @checked
    def hook(self, position: Position = None, belief: Float64[Tensor, "*batch state"] | None = None) -> HookFunction:
        """The edit as `hook(activation, hook)`, for `model.run_with_hooks(fwd_hooks=[(edit.site, edit.hook(...))])`."""
        return checked_hook(self.site, self.at(position, belief))

    def __repr__(self) -> str:
        return f"Edit({self.name!r} at {self.probe.label})"


@checked
@contextmanager
def applying(
    model: HookedModel,
    edits: Edit | Sequence[Edit],
    belief: Float64[Tensor, "*batch state"] | None = None,
    *,
    position: Position = None,
) -> Iterator[None]:
    """Run the model with these edits, at one site or at several at once, inside a `with` block.

    Gradients flow, also to a `belief` that requires them. At the end these hooks, and only these, are removed, even
    after an exception. Whether the probes were fitted on the model's present weights is not checked, since other
    weights may be the point; `probe.check_applies` tells.

    Args:
        model: The model to edit.
        edits: One edit, or several of different sites. To edit one site twice, nest two contexts; the outer edit is
            made first.
        belief: What the edits write: `[state]` for all words, `[word, state]` for each word, or `[word, pos, state]`
            over the edited positions. Edits that only erase need none.
        position: One position, several, a slice or all (`None`), the same for every word; or an integer tensor
            `[word, pos]` or a boolean mask over whole words, different for each.

    Raises:
        ValueError: if a belief or position is invalid, or two edits share a site; during the forward pass, if they do
            not fit the batch.
        KeyError: if the model lacks a site.
    """
    listed = [edits] if isinstance(edits, Edit) else list(edits)
    chosen = {edit.site: edit for edit in listed}
    if not listed or len(chosen) < len(listed):
        raise ValueError(f"edits={listed}: give at least one, and no two of the same site (nest two contexts instead).")
    *_, target = [edit.checked_belief(belief) for edit in listed]
    with writing(model, chosen, position, target):
        yield


@checked
def no_edit(probe: BeliefProbe) -> Edit:
    """The activation unchanged: what the network does when left alone."""
    return Edit("none", probe, lambda h, belief: h, writes=False)


@checked
def steer(probe: BeliefProbe, *, current: Float[Tensor, "*batch state"] | None = None) -> Edit:
    """`h + (b' - b) D`: move everything that varies with the belief from the current belief to b', and keep the rest.

    Success does not prove that the network reads everything that moved: D moves every feature that is correlated with
    the belief. Source: the regression of activation on belief, from the moments of one pass.

    Args:
        probe: The probe of the site to edit.
        current: The current belief b, in the shape of the belief to write; by default b̂, read from h. Do not give it
            if several sites are edited at once: the earlier edits have already moved the later sites.
    """
    name = "steer" if current is None else "steer from true"
    return Edit(name, probe, lambda h, belief: probe.steered(h, belief, current=current))


@checked
def patch(probe: BeliefProbe) -> Edit:
    """`μ_h + (b' - μ_b) D`: the mean activation given the belief, by linear regression, replaces the whole activation.

    Success shows that nothing else in the activation was needed *at this position*; later positions may still miss it.
    It does not prove that the network reads the belief as one. Source: as for `steer`.
    """
    return Edit("patch", probe, probe.patched)


@checked
def pseudo_inverse_shift(probe: BeliefProbe) -> Edit:
    """`h + (b' - b̂) W⁺`: the smallest change of h after which the probe reads b'.

    The obvious edit, and the wrong one: it leaves behind everything else that is correlated with the belief, so its
    failure does not show that the belief is unused. Source: Moore–Penrose inverse of the probe's centered rows.
    """
    return _read_shift("pseudo-inverse", probe, torch.linalg.pinv(centered_weights(probe), rtol=RANK_CUTOFF))


@checked
def covariance_shift(probe: BeliefProbe) -> Edit:
    """`h + (b' - b̂) D̂`: of all changes after which the probe reads b', the smallest in the data's own metric.

    The metric is the Mahalanobis distance, δ Σ_hh⁺ δᵀ; D̂ is how activations move with the belief *read* in them. It
    differs from `steer` only as far as the probe errs, and proves no more. `ValueError` if the probe has no moments.
    Source: least norm under a metric.
    """
    return _read_shift("covariance", probe, read_decoder(probe))


def _read_shift(name: str, probe: BeliefProbe, directions: Float64[Tensor, "state feature"]) -> Edit:
    like = conversions(directions)
    return Edit(name, probe, lambda h, belief: h + (belief - probe.predict(h).to(h)) @ like(h)[0])


@checked
def donor(probe: BeliefProbe, activations: Float[Tensor, "*batch d_model"]) -> Edit:
    """The activation of another run, in which the network itself held the target belief: a natural reference.

    It is no bound: another edit may come nearer to the target's optimum, since the network errs in the donor's run too,
    and the rest of the edited run is not the donor's. It brings everything that the donor's word left there, not the
    belief alone: success shows that the site carries what the prediction needs, not what that is. `activations` are the
    donor's, `[word, pos, d_model]` over the edited positions. Source: activation patching, Vig et al. 2020 (arXiv
    2004.12265).
    """
    return Edit("donor", probe, lambda h, belief: activations.to(h).expand_as(h))


@checked
def donor_belief(probe: BeliefProbe, activations: Float[Tensor, "*batch d_model"]) -> Edit:
    """`h + (b̂(donor) - b̂(h)) D`: only the belief read in the donor's activation; arguments as for `donor`.

    Compared with the whole donor, it shows how much of the donor's effect goes with the belief. D moves everything that
    is correlated with the belief, so it does not show that the belief itself acts. Source: as for `donor`, within a
    subspace as in Geiger et al. 2023 (arXiv 2303.02536), here solved from moments, not trained.
    """
    return Edit("donor belief", probe, lambda h, belief: probe.steered(h, probe.predict(activations.to(h))))


@checked
def centroid(
    probe: BeliefProbe, beliefs: Float64[Tensor, "cell state"], activations: Float[Tensor, "cell d_model"]
) -> Edit:
    """The mean activation of all prefixes whose belief is nearest b': `patch` without linearity.

    Where it does better than `patch`, activations bend as the belief moves. It averages over positions and everything
    else in which the prefixes differ, and does not prove that the network needs none of that later. `belief_centroids`
    gives the mean belief of each cell and its mean activation at the site.
    """
    like = conversions(beliefs, activations)

    def edit(h: Tensor, belief: Tensor) -> Tensor:
        cells, means = like(h)
        nearest = torch.cdist(belief.reshape(-1, belief.shape[-1]), cells).argmin(dim=1)
        return means[nearest].reshape(*belief.shape[:-1], -1).expand_as(h)

    return Edit("centroid", probe, edit)


@checked
def toward(edit: Edit, belief: Float[Tensor, "*batch state"]) -> Edit:
    """The edit, but always writing `belief`, whatever the target: a null if that is a wrong belief."""
    return replace(edit, name="wrong belief", function=lambda h, _: edit.function(h, belief.to(h)), writes=False)


@checked
def placebo(edit: Edit, *, generator: torch.Generator) -> Edit:
    """A step as long as `edit`'s in a uniformly random direction, drawn for each word and position.

    Whatever any push of that size does is no evidence for the edit. A random direction mostly leaves the space where
    activations lie, so beating this placebo is a minimum: see also `placebo_off_belief` and `toward` a wrong belief.
    """
    return _random_step("placebo", edit, generator)


@checked
def placebo_off_belief(edit: Edit, *, generator: torch.Generator) -> Edit:
    """A step as long as `edit`'s that leaves the belief alone: in a random direction orthogonal to W and D.

    `ValueError` if W and D span the site's whole activation.
    """
    probe = edit.probe
    written = probe.decoder - probe.decoder.mean(dim=0)
    directions, singular_values, _ = torch.linalg.svd(torch.cat([centered_weights(probe), written.T], dim=1), False)
    # W and D differ in scale, so the cutoff drops rounding errors only.
    avoided = directions[:, singular_values > singular_values[0] * 1e-10]
    if avoided.shape[1] >= avoided.shape[0]:
        raise ValueError(
            f"{probe!r}: its weights and decoder span all {avoided.shape[0]} dimensions of the site, so no direction "
            "leaves the belief alone: use the plain placebo."
        )
    return _random_step("placebo off belief", edit, generator, avoided)


def _random_step(
    name: str, edit: Edit, generator: torch.Generator, avoided: Float64[Tensor, "feature rank"] | None = None
) -> Edit:
    def step(h: Tensor, belief: Tensor) -> Tensor:
        length = (edit.function(h, belief) - h).norm(dim=-1, keepdim=True)
        direction = _directions(h, generator)
        if avoided is not None:
            direction = direction - direction @ avoided @ avoided.T
        return h + length * (direction / direction.norm(dim=-1, keepdim=True)).to(h)

    return Edit(name, edit.probe, step, writes=edit.writes)


def _directions(like: Tensor, generator: torch.Generator) -> Float64[Tensor, "*batch feature"]:
    """Standard normal numbers in the shape of an activation; those of a word do not depend on how words are batched."""
    # torch draws in blocks of 16: a row of whole blocks shares none with its neighbors.
    width = -(-like.shape[-1] // 16) * 16
    draw = {"dtype": torch.float64, "generator": generator, "device": generator.device}
    return torch.randn(*like.shape[:-1], width, **draw)[..., : like.shape[-1]].cpu()


def conversions(*tensors: Tensor) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """The tensors on the device and in the dtype of an activation; each conversion is made once and kept."""

    @cache
    def converted(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return tuple(tensor.to(device, dtype) for tensor in tensors)

    return lambda activation: converted(activation.device, activation.dtype)


def moments_of(probe: BeliefProbe) -> Moments:
    """The probe's moments; a `ValueError` if it has none."""
    if probe.moments is None:
        raise ValueError(
            f"{probe!r} has no moments, and this edit is solved from them: fit the probe with msp.probe, or load one "
            "that was saved with its moments. steer, patch and pseudo_inverse_shift need none."
        )
    return probe.moments


def site_covariance(probe: BeliefProbe) -> Float64[Tensor, "feature feature"]:
    """Σ_hh of the probe's site; a `ValueError` if the probe has no moments."""
    return moments_of(probe).covariance(probe.sites, probe.sites)


def centered_weights(probe: BeliefProbe) -> Float64[Tensor, "feature state"]:
    """The probe's weights W without their rounding errors along (1, …, 1): beliefs sum to 1, so W 1 = 0."""
    weights = probe.read_map.weights
    return weights - weights.mean(dim=1, keepdim=True)


def read_decoder(
    probe: BeliefProbe, weights: Float64[Tensor, "feature rank"] | None = None
) -> Float64[Tensor, "rank feature"]:
    """How activations move with what is *read* in them by W (or other weights), `D̂ = (Wᵀ Σ_hh W)⁺ Wᵀ Σ_hh`.

    `W D̂` is the oblique projection onto everything that is correlated with what is read: what LEACE erases.
    `ValueError` if the probe has no moments.
    """
    weights = centered_weights(probe) if weights is None else weights
    read_covariance = weights.T @ site_covariance(probe)
    return torch.linalg.pinv(read_covariance @ weights, rtol=RANK_CUTOFF**2, hermitian=True) @ read_covariance
