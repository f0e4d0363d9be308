"""How a network lays out the factors of a world: in subspaces of their own, or as one joint belief.

*Vary one*: the other factors' tokens are frozen, one factor's stream is drawn anew, and the activations that follow
have the covariance of that factor alone,

    C_k = E_frozen E_position Cov(h | the other factors' tokens, position).

NC95      the number of principal components that hold 95 % of a covariance's variance
union     NC95 of Σ_k C_k / tr C_k: the sum of the factors' own if their subspaces share nothing
overlap   ‖V_j V_kᵀ‖² / min(n_j, n_k) with V_k the first n_k components of C_k, as many as the factor's beliefs have
          dimensions: 1 if one subspace holds the other, and max(n_j, n_k) / d_model for random subspaces

A factored representation needs as many dimensions as the factors' beliefs side by side, a joint one as many as the
joint belief, which grow as a sum and as a product.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import pandas as pd
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens._checks import AtLeast, Count, Seed, checked
from msp_lens._names import meant
from msp_lens._random import derived_generator
from msp_lens._tables import TableView
from msp_lens._values import Value
from msp_lens.beliefs.filtering import filter_beliefs
from msp_lens.controls.untrained_twins import untrained_twins
from msp_lens.models.activations import stream_activations, words_per_batch
from msp_lens.models.hooked import HookedModel, check_fits, find_sites, model_device, word_length
from msp_lens.models.sites import Sites, site_label
from msp_lens.probing.geometry import explained
from msp_lens.processes.chains import matrix_rank
from msp_lens.processes.compose import WithBos
from msp_lens.processes.factored import Factored
from msp_lens.processes.process import Process

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.style import ThemeName

# The share of the variance that a number of components has to hold.
SHARE = 0.95

_Several = Annotated[int, AtLeast(2, "a covariance needs two streams")]


def n_components(covariance: Float64[Tensor, "feature feature"], share: float = SHARE) -> int:
    """The smallest number of principal components that hold this share of the variance; 0 if nothing varies.

    Example:
        >>> n_components(torch.diag(torch.tensor([6.0, 3.5, 0.5], dtype=torch.float64)))
        2
    """
    spectrum = explained(covariance)
    return int((spectrum < share - 1e-9).sum()) + 1 if len(spectrum) else 0


def overlap(first: Float64[Tensor, "feature a"], second: Float64[Tensor, "feature b"]) -> float:
    """`‖V₁ᵀ V₂‖² / min(a, b)` of two orthonormal bases: the mean squared cosine of their principal angles.

    NaN if either is empty. Source: Shai et al. 2026 (arXiv 2602.02385).
    """
    fewer = min(first.shape[1], second.shape[1])
    return float((first.T @ second).square().sum()) / fewer if fewer else math.nan


@dataclass(frozen=True, eq=False)
class SiteFactors(Value):
    """The factors at one site of one model.

    Attributes:
        model: `"network"`, or the name of an untrained twin.
        site: The site's label.
        dimensions: NC95 of each factor varied alone, by its label.
        held: The share of that variance in as many components as the factor's beliefs have dimensions.
        union: NC95 of all factors' variations together, each scaled to variance 1.
        total: NC95 of the activations on words of the world, without the mean of each position.
        overlaps: Overlap of each pair of factors' subspaces.
        chance: The mean overlap of random subspaces of as many dimensions.
        explained: The cumulated shares of the variance of `total`.
    """

    model: str
    site: str
    dimensions: Mapping[str, int]
    held: Mapping[str, float]
    union: int
    total: int
    overlaps: Mapping[tuple[str, str], float]
    chance: float
    explained: Float64[Tensor, "component"]

    @property
    def overlap(self) -> float:
        """The mean overlap over pairs of factors; NaN for one factor."""
        return sum(self.overlaps.values()) / len(self.overlaps) if self.overlaps else math.nan


@dataclass(frozen=True, eq=False)
class Predicted(Value):
    """What a representation of these beliefs, side by side and unscaled, would need.

    Attributes:
        dimensions: NC95 of the beliefs, without the mean of each position.
        explained: The cumulated shares of their variance.
    """

    dimensions: int
    explained: Float64[Tensor, "component"]


@dataclass(frozen=True, eq=False, repr=False)
class FactorGeometry(Value, TableView):
    """The factors of a world at each site of a network and of its untrained twins.

    Attributes:
        sites: One record for each model and site.
        beliefs: The number of dimensions of each factor's beliefs, by its label.
        factored: What the factors' beliefs side by side need, over the same words.
        joint: What the joint belief needs.
        n_frozen: Number of words whose other factors' tokens were frozen, for each factor.
        n_streams: Number of streams drawn for the varied factor with each.
        n_words: Number of words behind `total` and the predictions.
    """

    sites: tuple[SiteFactors, ...]
    beliefs: Mapping[str, int]
    factored: Predicted
    joint: Predicted
    n_frozen: int
    n_streams: int
    n_words: int

    @property
    def labels(self) -> tuple[str, ...]:
        """The factors."""
        return tuple(self.beliefs)

    def select(self, site: str, model: str = "network") -> SiteFactors:
        """One model's site, by its label (else `KeyError`)."""
        for each in self.sites:
            if (each.site, each.model) == (site, model):
                return each
        there = ", ".join(dict.fromkeys(each.site for each in self.sites))
        models = ", ".join(dict.fromkeys(each.model for each in self.sites))
        near = meant(site, (each.site for each in self.sites if each.site != site))
        raise KeyError(f"No site {site!r} of {model!r}; there are {there} of {models}.{near}")

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each model and site."""
        rows = []
        for each in self.sites:
            row: dict[str, Any] = {"model": each.model, "site": each.site}
            row |= {f"NC95 {label}": each.dimensions[label] for label in self.labels}
            row |= {f"held {label}": each.held[label] for label in self.labels}
            row |= {"NC95 union": each.union, "NC95 total": each.total}
            rows.append(row | {"overlap": each.overlap, "chance": each.chance})
        return pd.DataFrame(rows).set_index(["model", "site"])

    def overlaps(self, site: str, model: str = "network") -> pd.DataFrame:
        """The overlap of each pair of factors' subspaces at a site; 1 on the diagonal."""
        table = pd.DataFrame(1.0, index=pd.Index(self.labels), columns=pd.Index(self.labels))
        for (a, b), value in self.select(site, model).overlaps.items():
            table.loc[a, b] = table.loc[b, a] = value
        return table

    def summary(self) -> list[str]:
        """How to read the table."""
        dimensions = ", ".join(f"{label} {n}" for label, n in self.beliefs.items())
        return [
            f"NC95: principal components for {SHARE:.0%} of the variance. Over the same {self.n_words:,} words, drawn "
            "by probability and without the mean of each position, the factors' beliefs side by side need "
            f"{self.factored.dimensions}, and the joint belief {self.joint.dimensions}.",
            f"Each factor is varied alone: {self.n_streams:,} streams of its tokens, drawn by probability, with each "
            f"of {self.n_frozen:,} frozen words of the others. Union: all factors' variations together, each scaled to "
            "variance 1; it is the sum of the factors' own if their subspaces share nothing.",
            f"Beliefs have dimensions: {dimensions}. Held: the share of a factor's variation in its first that many "
            "components. Overlap: the mean squared cosine between the subspaces of these components, 0 if they are "
            "orthogonal and 1 if they coincide. Chance: that of random subspaces.",
        ]

    def plot(self, *, theme: ThemeName = "light") -> Figure:
        """The variance that components explain at the last site, beside the predictions; and overlaps by site."""
        from msp_lens.figures.representation_curves import plot_factor_geometry

        labels = list(dict.fromkeys(each.site for each in self.sites))
        last = [each for each in self.sites if each.site == labels[-1]]
        curves = {f"{each.model}, {each.site}": each.explained.tolist() for each in last}
        predicted = {"factored": self.factored.explained.tolist(), "joint": self.joint.explained.tolist()}
        overlaps = {
            model: [self.select(label, model).overlap for label in labels]
            for model in dict.fromkeys(each.model for each in self.sites)
        }
        chance = [self.select(label).chance for label in labels]
        return plot_factor_geometry(curves, predicted, labels, overlaps, chance=chance, share=SHARE, theme=theme)

    def _title(self) -> str:
        return "Geometry of factors"

    def _display(self) -> pd.DataFrame:
        shown = self.to_dataframe()
        for column in [f"held {label}" for label in self.labels] + ["overlap", "chance"]:
            shown[column] = shown[column].map(lambda value: "–" if math.isnan(value) else f"{value:.4f}")
        return shown


@checked
def factor_geometry(
    model: HookedModel,
    world: Factored | WithBos,
    *,
    sites: Sites = None,
    n_ctx: Count | None = None,
    n_frozen: Count = 32,
    n_streams: _Several = 256,
    n_words: _Several = 4_000,
    untrained: Annotated[int, AtLeast(0)] | Sequence[HookedModel] = 1,
    seed: Seed = 0,
    batch_size: Count | None = None,
) -> FactorGeometry:
    """Vary one factor at a time and compare the subspaces that their beliefs take, with those of untrained twins.

    Args:
        model: Any hooked model that reads the world's tokens.
        world: A process of several factors, with a BOS token before it or not. In a noisy one the varied streams are
            drawn without noise.
        sites: As for `find_sites`.
        n_ctx: Tokens in a word; by default as many as fit the model's context.
        n_frozen: Words of the world, in each of which one factor after the other is varied.
        n_streams: Streams of the varied factor's tokens with each.
        n_words: Words for the total and for what beliefs predict.
        untrained: Number of untrained twins of the model to compare with, or such models.
        seed: Seed of all words, streams and twins.
        batch_size: Words in one forward pass.

    Raises:
        KeyError: if the model lacks a site.
        TypeError: if the world has no factors.
        ValueError: if the model cannot read the world's words, or an option is too small; before the model runs.

    Source: Shai et al. 2026 (arXiv 2602.02385), "vary one" and NC95.
    """
    factored_world = world.process if isinstance(world, WithBos) else world
    if not isinstance(factored_world, Factored):
        raise TypeError(f"{world!r} has no factors: give a process that `product` or `Factored` made.")
    names = find_sites(model, sites)
    length = word_length(model, n_ctx)
    check_fits(model, world, length)
    twins = untrained_twins(model, untrained, names, seed=seed)
    words = world.sample(n_words, length, seed=seed).cpu()
    spanned, factored, joint = belief_dimensions(world, words)
    frozen = words[:n_frozen]
    varied = {label: _varied(factored_world, frozen, k, n_streams, seed) for k, label in enumerate(spanned)}
    found = []
    for name, network in itertools.chain([("network", model)], twins):
        streams = {
            label: within_groups(network, streams, names, n_streams, batch_size) for label, streams in varied.items()
        }
        totals = within_groups(network, words, names, len(words), batch_size)
        for site in names:
            covariances = {label: each[site] for label, each in streams.items()}
            found.append(_site(name, site_label(site), covariances, totals[site], spanned))
    return FactorGeometry(tuple(found), spanned, factored, joint, len(frozen), n_streams, len(words))


def belief_dimensions(world: Process, words: Int[Tensor, "word pos"]) -> tuple[dict[str, int], Predicted, Predicted]:
    """The dimensions of each part's beliefs, what these need side by side, and what the joint belief needs.

    Over the words, every one alike, and without the mean of each position.
    """
    beliefs = filter_beliefs(world, words)
    parts = world.parts(beliefs)
    spanned = {label: matrix_rank(_within_positions(part)) for label, part in parts.items()}
    factored, joint = (
        Predicted(n_components(covariance), explained(covariance))
        for covariance in map(_within_positions, (torch.cat(list(parts.values()), dim=-1), beliefs))
    )
    return spanned, factored, joint


def _varied(world: Factored, frozen: Int[Tensor, "word pos"], factor: int, n_streams: int, seed: int) -> Tensor:
    """The frozen words, each `n_streams` times with the tokens of one factor drawn anew, as if there were no noise.

    A BOS token, which is none of the world's own, stays where it is.
    """
    quiet = Factored(world.variants, parents=world.parents, name=world.name) if world.noise else world
    generator = derived_generator(seed, "vary", world.labels[factor])
    repeated = frozen.repeat_interleave(n_streams, dim=0)
    first = int((repeated[0] == world.n_tokens).sum())
    redrawn = quiet.redraw(repeated[:, first:], factor, generator=generator)
    return torch.cat([repeated[:, :first], redrawn], dim=1)


def within_groups(
    model: HookedModel, words: Int[Tensor, "word pos"], sites: Sequence[str], group: int, batch_size: int | None
) -> dict[str, Float64[Tensor, "feature feature"]]:
    """The covariance of each site's activations within consecutive groups of words and positions, averaged."""
    size = words_per_batch(batch_size, words.shape[1], device=model_device(model))
    sums: dict[str, Tensor] = {}
    for members in words.split(group):
        reference: dict[str, Tensor] = {}
        totals: dict[str, Tensor] = {}
        for batch in stream_activations(model, members, sites, batch_size=size, logits=False):
            for site, activations in batch.activations.items():
                values = activations.cpu().double()
                # Relative to nearby means, squares lose no digits.
                values = values - reference.setdefault(site, values.mean(dim=0))
                totals[site] = totals.get(site, 0) + values.sum(dim=0)
                sums[site] = sums.get(site, 0) + torch.einsum("npi,npj->ij", values, values)
        for site, total in totals.items():
            sums[site] = sums[site] - total.T @ total / len(members)
    return {site: each / words.numel() for site, each in sums.items()}


def _within_positions(values: Float64[Tensor, "word pos feature"]) -> Float64[Tensor, "feature feature"]:
    centered = (values - values.mean(dim=0)).flatten(0, 1)
    return centered.T @ centered / len(centered)


def _site(
    model: str, site: str, varied: Mapping[str, Tensor], total: Tensor, spanned: Mapping[str, int]
) -> SiteFactors:
    bases, held = {}, {}
    for label, covariance in varied.items():
        bases[label] = torch.linalg.eigh(covariance)[1].flip(1)[:, : spanned[label]]
        shares = explained(covariance)
        held[label] = float(shares[: spanned[label]][-1]) if len(shares) and spanned[label] else math.nan
    pairs = list(itertools.combinations(varied, 2))
    scaled = [each / each.trace() for each in varied.values() if float(each.trace()) > 0]
    chances = [max(spanned[a], spanned[b]) / len(total) for a, b in pairs]
    return SiteFactors(
        model=model,
        site=site,
        dimensions={label: n_components(covariance) for label, covariance in varied.items()},
        held=held,
        union=n_components(sum(scaled[1:], scaled[0])) if scaled else 0,
        total=n_components(total),
        overlaps={(a, b): overlap(bases[a], bases[b]) for a, b in pairs},
        chance=sum(chances) / len(chances) if chances else math.nan,
        explained=explained(total),
    )
