"""The edits that write a belief: what becomes of an activation h when the belief b' is to stand in it.

    steer             h + (b' - b) D                       b read from h, or the true one
    patch             μ_h + (b' - μ_b) D
    pseudo-inverse    h + (b' - b̂) W⁺
    covariance        h + (b' - b̂) D̂                      D̂ = (Wᵀ Σ_hh W)⁺ Wᵀ Σ_hh
    donor             h of a run that held b'
    donor's belief    h + (b̂(donor) - b̂(h)) D
    centroid          the mean h of all prefixes whose belief is nearest b'

W is the probe (b̂ = h W + c), D = Σ_bb⁺ Σ_bh its decoder; all are solved from the probe's moments. None of them proves
by itself that the network uses its belief: each is set beside no edit, a placebo of its length and a donor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from msp_lens.models.hooked import HookedModel, HookFunction, checked_hook, context_length, editing
from msp_lens.models.positions import Position, at_positions, check_position
from msp_lens.moments.moments import Moments
from msp_lens.moments.solve import RANK_CUTOFF
from msp_lens.probing.belief_probe import BeliefProbe


@dataclass(frozen=True, eq=False)
class Edit:
    """What becomes of a site's activation, given the belief to be written: a function with a name and a place.

    Usable as it is, as a TransformerLens hook (`edit.hook(...)`), or on a model (`with applying(model, edit, ...)`).

    Attributes:
        name: What it is called in tables.
        probe: The probe of the site that it edits.
        function: From activations `[word, pos, d_model]` and beliefs `[word, pos, state]` to new activations.
        writes: Whether it writes the belief; if not, the belief is ignored.
    """

    name: str
    probe: BeliefProbe
    function: Callable[[Tensor, Tensor], Tensor]
    writes: bool = True

    def __post_init__(self) -> None:
        if len(self.probe.sites) != 1:
            raise ValueError(
                f"{self.probe!r} reads {len(self.probe.sites)} sites at once; an edit is made at one. "
                f"Take the probe of one site, e.g. report[{self.probe.sites[-1]!r}]."
            )

    @property
    def site(self) -> str:
        """Hook name of the site that it edits."""
        return self.probe.sites[0]

    def __call__(
        self, activation: Float[Tensor, "*batch d_model"], belief: Float[Tensor, "*batch state"] | None = None
    ) -> Float[Tensor, "*batch d_model"]:
        """The activation that replaces `activation`.

        Raises:
            ValueError: if the activation is not of the probe's width, a belief is needed and none is given, or the
                function returns another shape.
        """
        if activation.shape[-1] != self.probe.widths[0]:
            raise ValueError(
                f"The activation has {activation.shape[-1]} features; the probe of {self.site} was fitted on "
                f"{self.probe.widths[0]}. Fit a probe on this model."
            )
        edited = self.function(activation, self._belief(belief).to(activation))
        if edited.shape != activation.shape:
            raise ValueError(
                f"The edit {self.name!r} at {self.site} returned {tuple(edited.shape)}; it must return a tensor of the "
                f"activation's shape {tuple(activation.shape)}."
            )
        return edited

    def _belief(self, belief: Tensor | None) -> Tensor:
        if not self.writes:
            return self.probe.belief_mean
        if belief is None:
            raise ValueError(f"{self.name!r} writes a belief: give belief=.")
        return belief

    def scaled(self, strength: float) -> Edit:
        """The edit made in part, h + λ (edit(h) - h): at 0 nothing changes, at 1 everything the edit changes."""
        if strength == 1:
            return self
        return replace(self, function=lambda h, belief: h + strength * (self.function(h, belief) - h))

    def at(self, position: Position, belief: Tensor | Sequence | None = None) -> Callable[[Tensor], Tensor]:
        """The edit at some positions, as a function of the site's whole activation `[word, pos, d_model]`.

        Args:
            position: One, several, a slice or all (`None`) alike for every word; an integer tensor `[word, pos]` for
                each word its own; a boolean one to mark them along whole words.
            belief: `[state]`, `[word, state]`, or `[word, pos, state]` over the edited positions.

        Raises:
            ValueError: if the belief is none of this probe's, or the position none at all.
        """
        check_position(position, None)
        target = self._belief(belief if belief is None else self.probe.checked_belief(belief))
        return at_positions(self, position, target)

    def hook(self, position: Position = None, belief: Tensor | Sequence | None = None) -> HookFunction:
        """The edit as `hook(activation, hook)`, for `model.run_with_hooks(fwd_hooks=[(edit.site, edit.hook(...))])`."""
        return checked_hook(self.site, self.at(position, belief))

    def __repr__(self) -> str:
        return f"Edit({self.name!r} at {self.probe.label})"


@contextmanager
def applying(
    model: HookedModel,
    edits: Edit | Sequence[Edit],
    belief: Tensor | Sequence | None = None,
    *,
    position: Position = None,
) -> Iterator[None]:
    """Within, the model runs with these edits made, at one site or several at once.

    Gradients flow, also to a `belief` that requires them. Only these hooks are removed at the end, also when an
    exception flies; modes and gradients stay as they are. That the weights are those the probes were fitted on is not
    checked, since other weights may be what one wants to try; `probe.check_applies` says.

    Args:
        model: The model to edit.
        edits: One edit, or several of different sites. Of one site, nest two contexts: the outer comes first.
        belief: What the edits write: `[state]` for all words alike, `[word, state]` for each its own, or
            `[word, pos, state]` over the edited positions. Edits that only erase need none.
        position: Which positions: one, several, a slice or all (`None`) alike for every word; an integer tensor
            `[word, pos]` for each word its own; a boolean one to mark them along whole words.

    Raises:
        ValueError: if a belief or position is not one, or two edits are of one site; during the forward pass, if
            they do not fit the batch.
        KeyError: if the model lacks a site.
    """
    chosen = [edits] if isinstance(edits, Edit) else list(edits)
    sites = [edit.site for edit in chosen]
    if not chosen or len(set(sites)) != len(sites):
        raise ValueError(f"edits={chosen}: give at least one, and no two of the same site (nest two contexts instead).")
    check_position(position, context_length(model))
    with editing(model, {edit.site: edit.at(position, belief) for edit in chosen}):
        yield


def no_edit(probe: BeliefProbe) -> Edit:
    """The activation itself: what the network does when left alone."""
    return Edit("none", probe, lambda h, belief: h, writes=False)


def steer(probe: BeliefProbe, *, current: Float[Tensor, "*batch state"] | None = None) -> Edit:
    """`h + (b' - b) D`: move all that varies with the belief from the current one to b', keep the rest.

    Does not prove that the network reads all it moves: D moves every feature that is correlated with the belief.

    Args:
        probe: Of the site to edit.
        current: The belief b held now, in the shape of the belief to be written; by default b̂, read from h. Where
            several sites are edited at once leave it out: a later site has been moved by the earlier ones already.

    Source: the regression of activation on belief, from the moments of one pass.
    """

    def edit(h: Tensor, belief: Tensor) -> Tensor:
        held = probe.predict(h) if current is None else current.to(h)
        return h + (belief - held) @ probe.decoder.to(h)

    return Edit("steer" if current is None else "steer from true", probe, edit)


def patch(probe: BeliefProbe) -> Edit:
    """`μ_h + (b' - μ_b) D`: the mean activation given the belief, by linear regression, in place of everything.

    Where it works, what else the activation held was not needed *at this position*; later ones may still miss it. Does
    not prove that the network reads the belief as one. Source: as for `steer`.
    """

    def edit(h: Tensor, belief: Tensor) -> Tensor:
        mean, mean_belief, decoder = (t.to(h) for t in (probe.activation_mean, probe.belief_mean, probe.decoder))
        return (mean + (belief - mean_belief) @ decoder).expand_as(h)

    return Edit("patch", probe, edit)


def pseudo_inverse_shift(probe: BeliefProbe) -> Edit:
    """`h + (b' - b̂) W⁺`: the least change of h after which the probe reads b'.

    The obvious edit, and the wrong one: it leaves behind whatever else is correlated with the belief, so its failure
    does not show that the belief is unused. Source: Moore–Penrose inverse of the probe's centered rows.
    """
    inverse = torch.linalg.pinv(centered_weights(probe), rtol=RANK_CUTOFF)
    return Edit("pseudo-inverse", probe, lambda h, belief: h + (belief - probe.predict(h)) @ inverse.to(h))


def covariance_shift(probe: BeliefProbe) -> Edit:
    """`h + (b' - b̂) D̂`: of all changes after which the probe reads b', the least by the data's own measure.

    Least in Mahalanobis distance, δ Σ_hh⁺ δᵀ; D̂ is how activations move with the belief *read* in them. Differs from
    `steer` only as far as the probe errs. Proves no more than `steer` does. Source: least norm under a metric; the
    moments of one pass.

    Raises:
        ValueError: if the probe has no moments.
    """
    decoder = read_decoder(probe)
    return Edit("covariance", probe, lambda h, belief: h + (belief - probe.predict(h)) @ decoder.to(h))


def donor(probe: BeliefProbe, activations: Float[Tensor, "*batch d_model"]) -> Edit:
    """The activation of another run, in which the network itself held the target belief: the ceiling of every edit.

    It brings all that the donor's word left there, not the belief alone: that it works shows that the site carries what
    the prediction needs, not what that is. Source: activation patching, Vig et al. 2020 (arXiv 2004.12265).

    Args:
        probe: Of the site to edit.
        activations: The donor's, `[word, pos, d_model]` over the edited positions.
    """
    return Edit("donor", probe, lambda h, belief: activations.to(h).expand_as(h))


def donor_belief(probe: BeliefProbe, activations: Float[Tensor, "*batch d_model"]) -> Edit:
    """`h + (b̂(donor) - b̂(h)) D`: of the donor's activation only the belief read in it; arguments as for `donor`.

    Beside the whole donor it shows how much of the donor's effect goes with the belief; D moves all that is correlated
    with it, so it does not show that the belief itself is what acts. Source: as for `donor`, within a subspace as in
    Geiger et al. 2023 (arXiv 2303.02536), here solved from moments, not trained.
    """

    def edit(h: Tensor, belief: Tensor) -> Tensor:
        return h + (probe.predict(activations.to(h)) - probe.predict(h)) @ probe.decoder.to(h)

    return Edit("donor belief", probe, edit)


def centroid(
    probe: BeliefProbe,
    beliefs: Float64[Tensor, "cell state"],
    activations: Float[Tensor, "cell d_model"],
) -> Edit:
    """The mean activation of all prefixes whose belief is nearest b': `patch` without linearity.

    Where it does better than `patch`, activations bend as the belief moves. It averages over positions and all else
    that the prefixes differ in, and does not prove that the network needs none of that later. Beliefs and activations
    of the cells come from `belief_centroids`.
    """

    def edit(h: Tensor, belief: Tensor) -> Tensor:
        nearest = torch.cdist(belief.reshape(-1, belief.shape[-1]), beliefs.to(belief)).argmin(dim=1)
        return activations.to(h)[nearest].reshape(*belief.shape[:-1], -1).expand_as(h)

    return Edit("centroid", probe, edit)


def toward(edit: Edit, belief: Float[Tensor, "*batch state"]) -> Edit:
    """The edit, but writing `belief` whatever is asked for: a null if that is a wrong belief."""
    return replace(edit, name="wrong belief", function=lambda h, _: edit.function(h, belief.to(h)), writes=False)


def site_moments(probe: BeliefProbe) -> Moments:
    """The moments that the probe of one site was solved from.

    Raises:
        ValueError: if the probe has none.
    """
    if probe.moments is None:
        raise ValueError(
            f"{probe!r} has no moments, which this edit is solved from: fit it with msp.probe, or load one that was "
            "saved with its moments. steer, patch and pseudo_inverse_shift need none."
        )
    return probe.moments


def centered_weights(probe: BeliefProbe) -> Float64[Tensor, "feature state"]:
    """The probe's weights W without their rounding errors along (1, …, 1): beliefs sum to 1, so W 1 = 0."""
    weights = probe.read_map.weights
    return weights - weights.mean(dim=1, keepdim=True)


def read_decoder(probe: BeliefProbe) -> Float64[Tensor, "state feature"]:
    """How activations move with the belief *read* in them, `D̂ = (Wᵀ Σ_hh W)⁺ Wᵀ Σ_hh`.

    `W D̂` is the oblique projection onto all that is correlated with the belief read: what LEACE erases.

    Raises:
        ValueError: if the probe has no moments.
    """
    weights = centered_weights(probe)
    read_covariance = weights.T @ site_moments(probe).covariance(probe.sites, probe.sites)
    inverse = torch.linalg.pinv(read_covariance @ weights, rtol=RANK_CUTOFF**2, hermitian=True)
    return inverse @ read_covariance
