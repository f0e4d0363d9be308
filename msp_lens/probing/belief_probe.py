"""A belief probe: reads the belief from an activation, and writes an activation for a belief.

    read     b̂ = h W + c                      W = Σ_hh⁺ Σ_hb
    decode   h = μ_h + (b - μ_b) D             D = Σ_bb⁺ Σ_bh
    steer    h' = h + (b' - b̂) D               keeps what in h is not about the belief
    patch    h' = μ_h + (b' - μ_b) D           keeps nothing of h

D is not the inverse of W. W uses only what tells beliefs apart; D describes how the whole activation moves with the
belief. A shift by the pseudo-inverse of W leaves every other feature that correlates with the belief unchanged, and the
network's predictions hardly follow.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from msp_lens._checks import Between, Count, check_finite, checked, converted
from msp_lens._files import check_tensors, read_entry, read_tensors, without_nan, write_tensors
from msp_lens._names import meant
from msp_lens._values import Value
from msp_lens.data import BeliefDataset, TokenMap
from msp_lens.data.labelled import BELIEF
from msp_lens.data.target_values import TargetWords
from msp_lens.models.activations import stream_activations
from msp_lens.models.beginning import stream_prefixes
from msp_lens.models.hooked import HookedModel, check_fits, find_sites
from msp_lens.models.model_files import model_fingerprint
from msp_lens.models.positions import Change, Position, widened, writing
from msp_lens.models.sites import site_label
from msp_lens.moments.moments import Moments, check_scatter
from msp_lens.moments.solve import RANK_CUTOFF, LinearMap, least_squares
from msp_lens.probing.cross_validation import ProbeScores, SavedProbe
from msp_lens.probing.rows import CHECK_THE_MODEL, taken
from msp_lens.processes.process import Process

Finite = Annotated[float, Between(-sys.float_info.max, sys.float_info.max)]


@dataclass(frozen=True, eq=False)
class BeliefProbe(Value):
    """An affine probe of the residual stream at one site, or at several concatenated; frozen.

    Attributes:
        sites: Hook names, in the order of the features.
        widths: Number of features at each site.
        read_map: The affine map from activation to belief.
        decoder: `[state, feature]`, D: how activations move with the belief.
        activation_mean: μ_h, weighted like the rows.
        belief_mean: μ_b, weighted like the rows.
        scores: In-sample and held-out scores, with those of shuffled beliefs, by rank and by position.
        provenance: Weighting, process and model fingerprints, and anything else the caller recorded.
        moments: The moments that the probe and its edits are solved from, with blocks for its sites and `"belief"`;
            `None` for a concatenation that was reduced or loaded from a file.
        name: The name of a group of sites, if the user gave one.

    Two probes are equal if all but the moments is, of which a file holds a part.
    """

    sites: tuple[str, ...]
    widths: tuple[int, ...]
    read_map: LinearMap
    decoder: Float64[Tensor, "state feature"]
    activation_mean: Float64[Tensor, "feature"]
    belief_mean: Float64[Tensor, "state"]
    scores: ProbeScores
    provenance: dict[str, Any]
    moments: Moments | None = field(default=None, repr=False, compare=False)
    name: str | None = None

    @property
    def label(self) -> str:
        """Short name, used in tables and as the key in a report."""
        if self.name is not None:
            return self.name
        return site_label(self.sites[0]) if len(self.sites) == 1 else "concatenated"

    @property
    def reads(self) -> TargetWords:
        """What it reads, in words: the belief, a part of it, or a target of your own."""
        return TargetWords.of(self.provenance, is_distribution=self._sums_to_one)

    @property
    def steering(self) -> str:
        """A call that writes what it reads, as text: the name of a class, or the mean of what it reads."""
        numbers = ", ".join(f"{value:.6g}" for value in self.belief_mean[:4]) + ", …" * (self.n_states > 4)
        value = repr(self.reads.classes[0]) if self.reads.classes else f"[{numbers}]"
        return f"report[{self.label!r}].steer(model, {value}, position=-1)"

    @property
    def n_states(self) -> int:
        """Number of entries in a belief."""
        return len(self.belief_mean)

    def predict(
        self, activations: Float[Tensor, "*batch feature"] | Mapping[str, Tensor] | Any
    ) -> Float[Tensor, "*batch state"]:
        """The belief read from activations. The read-out is affine, so it may leave the simplex.

        Args:
            activations: `[..., feature]`, or a mapping or `ActivationCache` that holds the probe's sites.

        Raises:
            ValueError: if the number of features differs from the probe's, or a number is not finite.
            KeyError: if a site is missing from the mapping.
        """
        if isinstance(activations, list | tuple | np.ndarray):
            activations = converted(activations, Float[Tensor, "*batch feature"], "activations")
        if not isinstance(activations, Tensor):
            parts = [taken(activations, site) for site in self.sites]
            # Layers of a model on several devices have their activations there.
            activations = torch.cat([part.to(parts[0].device) for part in parts], dim=-1)
        self._check_width(activations)
        check_finite(activations, f"activations of {', '.join(self.sites)}", CHECK_THE_MODEL)
        features = activations if activations.dtype == torch.float64 else activations.float()
        return features @ self.read_map.weights.to(features) + self.read_map.bias.to(features)

    def _check_width(self, activations: Tensor) -> None:
        found, reads = (activations.shape or (0,))[-1], sum(self.widths)
        if found != reads:
            raise ValueError(
                f"The activations have {found} features; this probe of {', '.join(self.sites)} reads {reads}: use it "
                "on a model of the same width."
            )

    def decode(self, beliefs: Any) -> Float64[Tensor, "*batch feature"]:
        """The mean activation given a belief, `μ_h + (b - μ_b) D`.

        Raises:
            ValueError: if a belief has the wrong length or does not sum to 1.
        """
        return self.activation_mean + (self.checked_belief(beliefs) - self.belief_mean) @ self.decoder

    def steered(
        self,
        activation: Float[Tensor, "*batch feature"],
        belief: Any,
        *,
        strength: float = 1.0,
        current: Float[Tensor, "*#batch state"] | None = None,
    ) -> Float[Tensor, "*batch feature"]:
        """`h + strength (b' - b) D`: the activation moved from the current belief b to the belief b'.

        It has the dtype and the device of the activation; in half precision it is rounded once, at the end. Of the
        beliefs only the number of states is checked; `steer` checks all.

        Args:
            activation: The activation h.
            belief: The belief b' to write.
            strength: 0 leaves the activation unchanged, 1 moves it all the way.
            current: The belief b held now; by default the belief b̂ read from h.
        """
        self._check_width(activation)
        held = self.predict(activation) if current is None else current
        wide = widened(activation)
        step = self._of_states(belief).to(wide) - self._of_states(held).to(wide)
        return (wide + strength * step @ self.decoder.to(wide)).to(activation.dtype)

    def patched(self, activation: Float[Tensor, "*batch feature"], belief: Any) -> Float[Tensor, "*batch feature"]:
        """`μ_h + (b' - μ_b) D`, whatever the activation was; dtype, device and checks as for `steered`."""
        self._check_width(activation)
        wide = widened(activation)
        step = self._of_states(belief).to(wide) - self.belief_mean.to(wide)
        mean = self.activation_mean.to(wide) + step @ self.decoder.to(wide)
        return mean.to(activation.dtype).expand_as(activation)

    def _of_states(self, belief: Any) -> Tensor:
        values = torch.as_tensor(belief)
        if values.ndim == 0 or values.shape[-1] != self.n_states:
            kind, size = self.reads.kind, f"have {self.n_states} states"
            size = size if self.reads.is_belief else f"are vectors of length {self.n_states}"
            shape = tuple(values.shape)
            raise ValueError(f"{kind} has shape {shape}; this probe's {kind}s {size}, as in {self.steering}.")
        return values

    @checked
    def steer(
        self, model: HookedModel, belief: Any, *, position: Position = None, strength: Finite = 1.0
    ) -> AbstractContextManager[None]:
        """Make the model act as if it held `belief`, as far as this site carries it, inside a `with` block.

        At the given positions h becomes `h + strength (b' - b̂) D`, where b̂ is the belief read from h. Gradients flow to
        the model, and to `belief` if it requires them. Later positions still attend to the unedited past, so steering
        one position in an early layer does not carry forward: to move the whole trajectory, give every later position
        the belief filtered on from `belief`.

        Args:
            model: The model to steer. Its hooks are removed at the end, also after an exception.
            belief: `[state]` for all words, `[batch, state]` for one belief per word, or `[batch, pos, state]`. For a
                probe of labels: the name of a class or probabilities of all classes, or the target's own values.
            position: One position, several, a slice, or all (`None`); negative ones count from the end. An integer
                tensor `[batch, pos]` gives each word its own positions, a boolean one marks them along whole words.
            strength: 0 leaves the activation unchanged, 1 moves it all the way.

        Raises:
            ValueError: if the belief or a position is invalid, or the probe reads several sites.
            KeyError: if the model lacks the probe's site.
        """
        return self._writing(model, partial(self.steered, strength=strength), position, belief)

    @checked
    def patch(self, model: HookedModel, belief: Any, *, position: Position = None) -> AbstractContextManager[None]:
        """Replace the site's activation by `μ_h + (b' - μ_b) D` inside a `with` block; arguments as for `steer`."""
        return self._writing(model, self.patched, position, belief)

    def _writing(
        self, model: HookedModel, change: Change, position: Position, belief: Any
    ) -> AbstractContextManager[None]:
        if len(self.sites) != 1:
            raise ValueError(
                f"This probe reads {len(self.sites)} sites at once, and an edit is made at one site. "
                f"Take the probe of one site, e.g. report[{self.sites[-1]!r}]."
            )
        return writing(model, {self.sites[0]: change}, position, self.checked_belief(belief))

    def checked_belief(self, belief: Any) -> Float64[Tensor, "*batch state"]:
        """`belief` as a float64 tensor; a class's name is the belief that it is certain.

        Raises:
            KeyError: if the probe knows no class of this name.
            ValueError: if it has the wrong length, is not finite or, unless the probe reads a target that is no
                distribution, is negative or does not sum to 1.
        """
        if isinstance(belief, str):
            belief = self._certainty_of(belief)
        given: Any = (
            belief if isinstance(belief, Tensor) else converted(belief, Float64[Tensor, "..."], self.reads.kind)
        )
        beliefs = self._of_states(given).to("cpu", torch.float64)
        if not (self.reads.is_belief or self._sums_to_one):
            check_finite(beliefs, self.reads.kind, "Give finite values of the target.")
            return beliefs
        tolerance = 1e-4
        # NaN fails the first comparison.
        wrong = ~((beliefs.sum(dim=-1) - 1).abs() <= tolerance) | (beliefs < -tolerance).any(dim=-1)
        if wrong.any():
            example = beliefs[wrong][0]
            kind, classes = self.reads.kind, self.reads.classes
            over = f"the classes {', '.join(classes)}" if classes else "its entries"
            over = "the hidden states" if self.reads.is_belief else over
            raise ValueError(
                f"{kind}={[round(v, 6) for v in example.tolist()]} sums to {float(example.sum()):g}: a "
                f"{kind} is a distribution over {over}, with entries ≥ 0 that sum to 1. Normalize it first."
            )
        return beliefs

    def _certainty_of(self, name: str) -> list[float]:
        """All probability on one class."""
        classes = self.reads.classes
        if name not in classes:
            known = f"this probe's classes are {', '.join(classes)}" if classes else "this probe knows no classes"
            raise KeyError(f"No class {name!r}: {known}. Give a name of a class, or numbers.{meant(name, classes)}")
        return [float(each == name) for each in classes]

    @property
    def _sums_to_one(self) -> bool:
        """Whether what it reads is distributions: only what always sums to 1 is read as 1 from any activation."""
        weights, bias = self.read_map.weights, self.read_map.bias
        follows = weights.sum(dim=1).abs().max() <= 1e-6 * weights.abs().max().clamp(min=1e-12)
        return bool(follows and (bias.sum() - 1).abs() <= 1e-6)

    def check_applies(self, model: HookedModel, process: Process | None = None) -> list[str]:
        """Check that this probe can read a model, and return caveats, one sentence each.

        Other weights (another checkpoint, another seed) are allowed but noted: the probe then measures how similarly
        the two models represent beliefs.

        Raises:
            KeyError: if the model lacks a site.
            ValueError: if a site has another width, or the probe reads the beliefs of another process.
        """
        sites = find_sites(model, self.sites)
        (batch,) = stream_activations(model, torch.zeros(1, 1, dtype=torch.int64), sites, logits=False)
        for site, expected in zip(sites, self.widths, strict=True):
            if (width := batch.activations[site].shape[-1]) != expected:
                raise ValueError(
                    f"{site} has {width} features in this model and had {expected} in the one the probe was fitted on. "
                    "Use the probe on a model of the same width."
                )
        fitted_on = self.provenance.get("process_fingerprint")
        if process is not None and fitted_on not in (None, process.fingerprint):
            raise ValueError(
                f"This probe reads beliefs of process {fitted_on}, not of {process!r} ({process.fingerprint}). Probe "
                "the model again with this process."
            )
        known, found = self.provenance.get("model_fingerprint"), model_fingerprint(model)
        if known is None:
            return ["It is not known which model the probe was fitted on."]
        if known == found:
            return []
        return [
            f"The model's weights ({found}) are not those the probe was fitted on ({known}), so its scores do not "
            "apply here. msp.probing.transfer(model, probe, dataset) scores it on this model."
        ]

    @checked
    def save(self, path: str | Path) -> Path:
        """Write the probe atomically to one safetensors file, with its description in the header."""
        tensors = {name: tensor.clone().contiguous() for name, tensor in self.tensors().items()}
        write_tensors(path, tensors, {"msp_lens_probe": json.dumps(self.description(), allow_nan=False)})
        return Path(path)

    def description(self) -> dict[str, Any]:
        """Everything but the tensors, as JSON-ready values; undefined scores are `None`."""
        plain = {key: getattr(self, key) for key in ("sites", "widths", "provenance", "name")}
        rows = {key: getattr(self.moments, key) for key in ("n", "weight", "rounding")} if self.moments else None
        return plain | {"rank": self.read_map.rank, "scores": without_nan(asdict(self.scores)), "rows": rows}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that `from_parts` needs, by name."""
        tensors = {key: getattr(self, key) for key in ("decoder", "activation_mean", "belief_mean")}
        tensors |= {"weights": self.read_map.weights, "bias": self.read_map.bias}
        # The moments of a concatenation can be large, and edits are made at single sites.
        if self.moments and len(self.sites) == 1:
            tensors["scatter"] = self.moments.select([*self.sites, BELIEF]).scatter
        return tensors

    @classmethod
    @checked
    def load(cls, path: str | Path) -> BeliefProbe:
        """Load a probe saved by `save`.

        Raises:
            FileNotFoundError, ValueError: if there is no such file, or it is damaged or does not hold a probe.
        """
        tensors, metadata = read_tensors(Path(path))
        if "msp_lens_probe" not in metadata:
            raise ValueError(f"{path} is not a probe of msp_lens: give a file that probe.save(path) wrote.")
        return cls.from_parts(read_entry(metadata, "msp_lens_probe", SavedProbe, path), tensors, Path(path))

    @classmethod
    def from_parts(cls, description: SavedProbe, tensors: Mapping[str, Tensor], path: Path) -> BeliefProbe:
        """Rebuild a probe from its `description()` and `tensors()`, which were read from a file.

        Raises:
            ValueError: if they do not fit each other, or a score is impossible.
        """
        sites, widths = tuple(description["sites"]), tuple(description["widths"])
        n_features, n_states = sum(widths), len(tensors.get("belief_mean", ()))
        shapes = {"weights": (n_features, n_states), "bias": (n_states,), "decoder": (n_states, n_features)}
        shapes |= {"activation_mean": (n_features,), "belief_mean": (n_states,)}
        check_tensors(tensors, shapes, path, dtype=torch.float64)
        damaged = "The file is damaged or was edited: copy or create it again."
        if not sites or len(sites) != len(widths):
            raise ValueError(f"{path}: sites={sites}, widths={widths} are not those of the probe's tensors. {damaged}")
        try:
            scores = ProbeScores.from_dict(description["scores"])
        except ValueError as error:
            raise ValueError(f"{path}: scores of {', '.join(sites)}: {error}. {damaged}") from None
        moments, rows = None, description["rows"]
        if rows is not None and len(sites) == 1:
            check_scatter(tensors, "scatter", n_features + n_states, path)
            mean = torch.cat([tensors["activation_mean"], tensors["belief_mean"]])
            moments = Moments.of(
                {sites[0]: n_features, BELIEF: n_states}, mean=mean, scatter=tensors["scatter"], **rows
            )
        return cls(
            sites=sites,
            widths=widths,
            read_map=LinearMap(tensors["weights"], tensors["bias"], description["rank"]),
            decoder=tensors["decoder"],
            activation_mean=tensors["activation_mean"],
            belief_mean=tensors["belief_mean"],
            scores=scores,
            provenance=description["provenance"],
            moments=moments,
            name=description["name"],
        )

    def __repr__(self) -> str:
        held_out = self.scores.held_out
        r2 = "not defined, as nothing varies" if math.isnan(held_out.r2) else f"{held_out.r2:.4f}"
        read = f"{self.n_states} states" if self.reads.is_belief else f"{self.reads.name} [{self.n_states}]"
        return (
            f"BeliefProbe({self.label}: {sum(self.widths)} features → {read}, "
            f"held-out R² {r2}, MSE {held_out.mse:.2g}, n {held_out.n})"
        )


def fit_probe(
    moments: Moments,
    sites: Sequence[str],
    scores: ProbeScores,
    *,
    provenance: Mapping[str, Any],
    read_map: LinearMap | None = None,
    rank_cutoff: float = RANK_CUTOFF,
) -> BeliefProbe:
    """The probe and decoder of some sites.

    Args:
        moments: Moments with a block for each site and the block `"belief"`.
        sites: The sites to read, in the order of the features.
        scores: The probe's scores.
        provenance: What the probe should record about its data.
        read_map: The map from activation to belief; by default least squares.
        rank_cutoff: Drop directions whose singular value is below this fraction of the largest.
    """
    # Eigenvalues of a covariance are squares of singular values.
    belief_inverse = torch.linalg.pinv(moments.covariance(BELIEF, BELIEF), rtol=rank_cutoff**2, hermitian=True)
    return BeliefProbe(
        sites=tuple(sites),
        widths=tuple(moments.blocks[site] for site in sites),
        read_map=read_map or least_squares(moments, sites, BELIEF, rank_cutoff=rank_cutoff),
        decoder=belief_inverse @ moments.covariance(BELIEF, sites),
        activation_mean=moments.block_mean(sites),
        belief_mean=moments.block_mean(BELIEF),
        scores=scores,
        provenance=dict(provenance),
        moments=moments,
    )


@checked
def read_beliefs(
    model: HookedModel,
    dataset: BeliefDataset,
    probes: Sequence[BeliefProbe],
    *,
    batch_size: Count | None = None,
    progress: str | None = None,
) -> list[Float64[Tensor, "prefix state"]]:
    """The beliefs that each probe reads after each distinct prefix, indexed by `dataset.prefix_ids`, in one pass."""
    check_fits(model, dataset.process, dataset.n_ctx, token_map=dataset.token_map)
    tokens, columns = (dataset.token_map or TokenMap.identity(dataset.process.n_tokens)).encode(dataset.tokens)
    sites = list(dict.fromkeys(site for probe in probes for site in probe.sites))
    read = [torch.empty(dataset.n_prefixes, probe.n_states, dtype=torch.float64) for probe in probes]
    how = {"batch_size": batch_size, "progress": progress, "logits": False}
    for batch in stream_prefixes(model, tokens, sites, **how):
        first = dataset.is_first[batch.words]
        prefixes = dataset.prefix_ids[batch.words][first]
        places = batch.places[first.nonzero()[:, 0], columns[batch.words][first]]
        activations = {site: rows[places.to(rows.device)] for site, rows in batch.activations.items()}
        for probe, beliefs in zip(probes, read, strict=True):
            beliefs[prefixes] = probe.predict(activations).cpu().double()
    return read
