"""A belief probe: reads the belief from an activation, and writes an activation for a belief.

    read     b̂ = h W + c                      W = Σ_hh⁺ Σ_hb
    decode   h = μ_h + (b - μ_b) D             D = Σ_bb⁺ Σ_bh
    steer    h' = h + (b' - b̂) D               keeps what in h is not about the belief
    patch    h' = μ_h + (b' - μ_b) D           keeps nothing of h

The decoder D is not the probe's inverse. W finds the least that tells beliefs apart; D is how activations move, all
together, when the belief does. Shifting h by W's pseudo-inverse leaves everything else that is correlated with the
belief behind, and the network hardly believes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64
from safetensors.torch import save
from torch import Tensor

from msp_lens._files import read_tensors, write_atomically
from msp_lens.activations import stream_activations
from msp_lens.data import BeliefDataset
from msp_lens.models.hooked import HookedModel, check_fits, context_length, editing, site_label
from msp_lens.models.positions import Position, at_positions, check_position
from msp_lens.probing.moments import Moments
from msp_lens.probing.regression import RANK_CUTOFF, LinearMap, Score, least_squares, pseudo_inverse

BELIEF = "belief"
BELIEF_SUM_TOLERANCE = 1e-4


@dataclass(frozen=True)
class ProbeScores:
    """A probe's scores on the beliefs, and on beliefs dealt out at random.

    Attributes:
        in_sample: On the rows it was fitted on.
        held_out: By cross-validation over prefixes.
        shuffled: In-sample, of a probe fitted to shuffled beliefs: what chance alone would show.
        shuffled_held_out: The same, cross-validated.
    """

    in_sample: Score
    held_out: Score
    shuffled: Score
    shuffled_held_out: Score


@dataclass(frozen=True, eq=False)
class BeliefProbe:
    """An affine probe of the residual stream at one site, or at several concatenated; frozen.

    Attributes:
        sites: Hook names, in the order of the features.
        widths: Features at each site.
        read_map: Activation to belief.
        decoder: `[state, feature]`, how activations move with the belief.
        activation_mean: μ_h, weighted as the rows were.
        belief_mean: μ_b.
        scores: In-sample, held-out and shuffled.
        provenance: Weighting, process and model fingerprints, and whatever else the maker added.
        moments: What all of it was solved from, and every edit of the site can be: blocks of the sites and
            `"belief"`, perhaps more. `None` for a concatenation loaded from a file.
    """

    sites: tuple[str, ...]
    widths: tuple[int, ...]
    read_map: LinearMap
    decoder: Float64[Tensor, "state feature"]
    activation_mean: Float64[Tensor, "feature"]
    belief_mean: Float64[Tensor, "state"]
    scores: ProbeScores
    provenance: dict[str, Any]
    moments: Moments | None = field(default=None, repr=False)

    @property
    def label(self) -> str:
        """Short name in tables and as a report's key."""
        return site_label(self.sites[0]) if len(self.sites) == 1 else "concatenated"

    @property
    def n_states(self) -> int:
        """Length of a belief."""
        return len(self.belief_mean)

    def predict(
        self, activations: Float[Tensor, "*batch feature"] | Mapping[str, Tensor] | Any
    ) -> Float[Tensor, "*batch state"]:
        """The belief read from activations; an affine read-out, so it may leave the simplex.

        Args:
            activations: `[..., feature]`, or a mapping or `ActivationCache` that holds the probe's sites.

        Raises:
            ValueError: if the number of features is not the probe's.
            KeyError: if a site is missing from the mapping.
        """
        features = self._features(activations)
        weights, bias = (t.to(features) for t in (self.read_map.weights, self.read_map.bias))
        return features @ weights + bias

    def decode(self, beliefs: Tensor | Sequence) -> Float64[Tensor, "*batch feature"]:
        """The mean activation given a belief, `μ_h + (b - μ_b) D`.

        Raises:
            ValueError: if a belief has the wrong length or does not sum to 1.
        """
        return self.activation_mean + (self.checked_belief(beliefs) - self.belief_mean) @ self.decoder

    def steered(
        self, activation: Float[Tensor, "*batch feature"], belief: Tensor | Sequence, *, strength: float = 1.0
    ) -> Float[Tensor, "*batch feature"]:
        """`h + strength (b' - b̂) D`: the activation moved from the belief read in it to `belief`."""
        target = self.checked_belief(belief).to(activation)
        return activation + strength * (target - self.predict(activation)) @ self.decoder.to(activation)

    def patched(
        self, activation: Float[Tensor, "*batch feature"], belief: Tensor | Sequence
    ) -> Float[Tensor, "*batch feature"]:
        """`μ_h + (b' - μ_b) D`, whatever the activation was."""
        return self.decode(belief).to(activation).expand_as(activation)

    @contextmanager
    def steer(
        self,
        model: HookedModel,
        belief: Tensor | Sequence,
        *,
        position: Position = None,
        strength: float = 1.0,
    ) -> Iterator[None]:
        """Within, the model acts as if it held `belief`, as far as this site carries it.

        At the given positions the site's activation h becomes `h + strength (b' - b̂) D`, b̂ being the belief read
        from h. Gradients flow, to the model and to a `belief` that requires them. Later positions still see the
        unedited past through attention, so steering one position in an early layer does not carry forward: give every
        later position the belief filtered on from `belief`.

        Args:
            model: The model to steer. Its hooks are removed at the end, also when an exception flies.
            belief: `[state]` for all words alike, `[batch, state]` for each its own, or `[batch, pos, state]`.
            position: Which positions: one, several, a slice, or all (`None`), negative ones counting from the end; an
                integer tensor `[batch, pos]` for each word its own, a boolean one to mark them along whole words.
            strength: 0 leaves the activation as it is, 1 moves it all the way.

        Raises:
            ValueError: if the belief has the wrong length or does not sum to 1, if the position is outside the
                context, or if the probe reads several sites.
            KeyError: if the model lacks the probe's site.
        """
        target = self.checked_belief(belief)
        with self._edit_at(model, position, target, lambda h, b: self.steered(h, b, strength=strength)):
            yield

    @contextmanager
    def patch(self, model: HookedModel, belief: Tensor | Sequence, *, position: Position = None) -> Iterator[None]:
        """Within, the site's activation at the given positions is `μ_h + (b' - μ_b) D`; arguments as for `steer`."""
        target = self.checked_belief(belief)
        with self._edit_at(model, position, target, self.patched):
            yield

    @contextmanager
    def _edit_at(self, model: HookedModel, position: Position, belief: Tensor, edit: Any) -> Iterator[None]:
        if len(self.sites) != 1:
            raise ValueError(
                f"This probe reads {len(self.sites)} sites at once; an edit is made at one. "
                f"Take the probe of one site, e.g. report[{self.sites[-1]!r}]."
            )
        check_position(position, context_length(model))
        with editing(model, {self.sites[0]: at_positions(edit, position, belief)}):
            yield

    def checked_belief(self, belief: Tensor | Sequence) -> Float64[Tensor, "*batch state"]:
        """`belief` as a float64 tensor.

        Raises:
            ValueError: if it has the wrong length, is negative or not finite, or does not sum to 1.
        """
        beliefs = torch.as_tensor(belief).to("cpu", torch.float64)
        if beliefs.ndim == 0 or beliefs.shape[-1] != self.n_states:
            raise ValueError(
                f"belief has shape {tuple(beliefs.shape)}; this probe's beliefs have {self.n_states} states."
            )
        sums = beliefs.sum(dim=-1)
        wrong = (
            ((sums - 1).abs() > BELIEF_SUM_TOLERANCE)
            | (beliefs < -BELIEF_SUM_TOLERANCE).any(dim=-1)
            | ~torch.isfinite(sums)
        )
        if wrong.any():
            example = beliefs[wrong][0]
            raise ValueError(
                f"belief={[round(v, 6) for v in example.tolist()]} sums to {float(example.sum()):g}: a belief is a "
                "distribution over the hidden states, with entries ≥ 0 that sum to 1. Normalise it first."
            )
        return beliefs

    def _features(self, activations: Any) -> Tensor:
        if not isinstance(activations, Tensor):
            activations = torch.cat([activations[site] for site in self.sites], dim=-1)
        if activations.shape[-1] != sum(self.widths):
            raise ValueError(
                f"activations have {activations.shape[-1]} features; this probe of {', '.join(self.sites)} reads "
                f"{sum(self.widths)}."
            )
        return activations if activations.dtype == torch.float64 else activations.float()

    def save(self, path: str | Path) -> Path:
        """Write the probe to one safetensors file, its description in the header; whole or not at all."""
        description = {
            "sites": self.sites,
            "widths": self.widths,
            "rank": self.read_map.rank,
            "scores": asdict(self.scores),
            "provenance": self.provenance,
            "rows": {"n": self.moments.n, "weight": self.moments.weight} if self.moments else None,
        }
        tensors = {name: tensor.contiguous() for name, tensor in self._tensors().items()}
        write_atomically(path, save(tensors, metadata={"msp_lens_probe": json.dumps(description)}))
        return Path(path)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {
            "weights": self.read_map.weights,
            "bias": self.read_map.bias,
            "decoder": self.decoder,
            "activation_mean": self.activation_mean,
            "belief_mean": self.belief_mean,
        }
        # A concatenation's moments can be large, and edits are made at one site.
        if self.moments and len(self.sites) == 1:
            tensors["scatter"] = self.moments.select([*self.sites, BELIEF]).scatter
        return tensors

    @classmethod
    def load(cls, path: str | Path) -> BeliefProbe:
        """Load a probe saved by `save`.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is damaged or is not a probe.
        """
        tensors, metadata = read_tensors(Path(path))
        if "msp_lens_probe" not in metadata:
            raise ValueError(f"{path} is not a probe of msp_lens: give the file that probe.save(path) wrote.")
        description = json.loads(metadata["msp_lens_probe"])
        moments = None
        if "scatter" in tensors:
            moments = Moments({description["sites"][0]: description["widths"][0], BELIEF: len(tensors["belief_mean"])})
            moments.n, moments.weight = description["rows"]["n"], description["rows"]["weight"]
            moments.mean = torch.cat([tensors["activation_mean"], tensors["belief_mean"]])
            moments.scatter = tensors["scatter"]
        return cls(
            sites=tuple(description["sites"]),
            widths=tuple(description["widths"]),
            read_map=LinearMap(tensors["weights"], tensors["bias"], description["rank"]),
            decoder=tensors["decoder"],
            activation_mean=tensors["activation_mean"],
            belief_mean=tensors["belief_mean"],
            scores=ProbeScores(**{key: Score(**value) for key, value in description["scores"].items()}),
            provenance=description["provenance"],
            moments=moments,
        )

    def __repr__(self) -> str:
        held_out = self.scores.held_out
        return (
            f"BeliefProbe({self.label}: {sum(self.widths)} features → {self.n_states} states, "
            f"held-out R² {held_out.r2:.4f}, MSE {held_out.mse:.2g}, n {held_out.n})"
        )


def fit_probe(
    moments: Moments,
    sites: Sequence[str],
    scores: ProbeScores,
    *,
    provenance: Mapping[str, Any],
    rank_cutoff: float = RANK_CUTOFF,
) -> BeliefProbe:
    """The probe and decoder of some sites, from moments that hold their blocks and the block `"belief"`."""
    belief_inverse, _ = pseudo_inverse(moments.covariance(BELIEF, BELIEF), rank_cutoff)
    return BeliefProbe(
        sites=tuple(sites),
        widths=tuple(moments.blocks[site] for site in sites),
        read_map=least_squares(moments, sites, BELIEF, rank_cutoff=rank_cutoff),
        decoder=belief_inverse @ moments.covariance(BELIEF, sites),
        activation_mean=moments.block_mean(sites),
        belief_mean=moments.block_mean(BELIEF),
        scores=scores,
        provenance=dict(provenance),
        moments=moments,
    )


def read_beliefs(
    model: HookedModel,
    dataset: BeliefDataset,
    probes: Sequence[BeliefProbe],
    *,
    batch_size: int | None = None,
    progress: str | None = None,
) -> list[Float64[Tensor, "prefix state"]]:
    """What each probe reads in the model after each distinct prefix, by `dataset.prefix_ids`; in one pass."""
    check_fits(model, dataset.process, dataset.n_ctx)
    sites = list(dict.fromkeys(site for probe in probes for site in probe.sites))
    read = [torch.empty(dataset.n_prefixes, probe.n_states, dtype=torch.float64) for probe in probes]
    for batch in stream_activations(model, dataset.tokens, sites, batch_size=batch_size, progress=progress):
        first = dataset.is_first[batch.words]
        prefixes = dataset.prefix_ids[batch.words][first]
        activations = {site: values[first.to(values.device)] for site, values in batch.activations.items()}
        for probe, beliefs in zip(probes, read, strict=True):
            beliefs[prefixes] = probe.predict(activations).cpu().double()
    return read
