"""How the belief is represented in the residual stream, from the moments that the probes were solved from.

covariance that moves with the belief         Σ_hb Σ_bb⁺ Σ_bh,  in the span of the decoder's rows
effective dimension of a covariance Σ         (tr Σ)² / tr Σ²    (the participation ratio)
what the unembedding reads, to first order    dp = dh W_U (diag p̄ - p̄ p̄ᵀ)
what the probe implies it should read         dp = dh W E

Distances between pairs of prefixes tell two accounts of a representation apart, since two prefixes may predict the same
next token and still differ in everything after it:

    R² = corr(|b̂ - b̂'|, |b - b'|)²    against    corr(|b̂ - b̂'|, |p - p'|)²,    p = b E.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, Int
from scipy.linalg import subspace_angles
from torch import Tensor

from msp_lens._checks import check_at_least
from msp_lens._tables import TableView
from msp_lens.beliefs.nearest import nearest_distribution
from msp_lens.data import BeliefDataset, TokenMap, Weighting
from msp_lens.data.labelled import BELIEF
from msp_lens.models.hooked import HookedModel
from msp_lens.models.sites import site_label
from msp_lens.moments.moments import Moments
from msp_lens.moments.scores import NO_VARIANCE
from msp_lens.probing.belief_probe import BeliefProbe, read_beliefs
from msp_lens.processes.process import Process

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.style import ThemeName


@dataclass(frozen=True)
class SimplexDistance:
    """Euclidean distance of read-outs from the simplex of beliefs.

    Attributes:
        mean: Weighted mean distance.
        largest: Largest distance.
        share_outside: Total weight of the read-outs that lie outside the simplex.
    """

    mean: float
    largest: float
    share_outside: float


@dataclass(frozen=True)
class SiteGeometry:
    """The geometry of the belief at one site.

    Attributes:
        site: The site's label.
        variance_share: The share of the activations' variance that moves with the belief.
        effective_dimension: Participation ratio of the activations.
        belief_dimension: Participation ratio of the part that moves with the belief; at most states - 1.
        simplex: How far the probe's read-outs lie outside the simplex.
        unembedding: Correlation between what the probe implies for the next token and what the unembedding reads; NaN
            if the unembedding does not read this site directly.
    """

    site: str
    variance_share: float
    effective_dimension: float
    belief_dimension: float
    simplex: SimplexDistance
    unembedding: float


@dataclass(frozen=True, eq=False, repr=False)
class Geometry(TableView):
    """The geometry of the belief at several sites.

    Attributes:
        sites: One record for each site.
        angles: Largest principal angle between the belief subspaces of each pair of sites, in degrees.
    """

    sites: tuple[SiteGeometry, ...]
    angles: pd.DataFrame

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each site."""
        return pd.DataFrame(
            {
                "site": each.site,
                "variance share": each.variance_share,
                "effective dimension": each.effective_dimension,
                "belief dimension": each.belief_dimension,
                "off simplex, mean": each.simplex.mean,
                "off simplex, largest": each.simplex.largest,
                "share outside": each.simplex.share_outside,
                "unembedding": each.unembedding,
            }
            for each in self.sites
        ).set_index("site")

    def summary(self) -> list[str]:
        """How to read the table."""
        neighbors = zip(self.angles.index[:-1], self.angles.index[1:], strict=True)
        return [
            "Variance share: the share of the activations' variance that moves with the belief. Dimensions are "
            "participation ratios. Off simplex: Euclidean distance of read-outs from the nearest belief. Unembedding: "
            "correlation of its next-token reading, to first order, with the one that the probe implies.",
            "Largest angle between the belief subspaces of neighboring sites: "
            + ", ".join(f"{a}–{b} {self.angles.loc[a, b]:.0f}°" for a, b in neighbors)
            + ".",
        ]

    def _title(self) -> str:
        return "Geometry"

    def _display(self) -> pd.DataFrame:
        return self.to_dataframe().map("{:.4f}".format)


def geometry(
    probes: Sequence[BeliefProbe],
    model: HookedModel,
    dataset: BeliefDataset,
    *,
    weighting: Weighting,
    batch_size: int | None = None,
) -> Geometry:
    """The geometry of the belief at each site, with one run of the model to see where read-outs fall.

    Args:
        probes: Probes of the model; those of several sites at once are left out.
        model: The model that they were fitted on.
        dataset: The words that they were fitted on.
        weighting: How much each prefix counts in distances from the simplex.
        batch_size: Words in one forward pass.

    Raises:
        ValueError: if a probe has no moments.
    """
    single = [probe for probe in probes if len(probe.sites) == 1]
    distances = simplex_distances(model, dataset, single, weighting=weighting, batch_size=batch_size)
    sites = tuple(
        SiteGeometry(
            probe.label,
            variance_share(probe),
            effective_dimension(_moments(probe).covariance(probe.sites, probe.sites)),
            effective_dimension(belief_covariance(probe)),
            distance,
            unembedding_agreement(probe, model, dataset.process, token_map=dataset.token_map),
        )
        for probe, distance in zip(single, distances, strict=True)
    )
    return Geometry(sites, belief_angles(single))


def belief_covariance(probe: BeliefProbe) -> Float64[Tensor, "feature feature"]:
    """The covariance of the part of the activations that moves with the belief, `Σ_hb Σ_bb⁺ Σ_bh`."""
    return _moments(probe).covariance(probe.sites, BELIEF) @ probe.decoder


def variance_share(probe: BeliefProbe) -> float:
    """The share of the activations' variance that moves with the belief, tr(Σ_hb Σ_bb⁺ Σ_bh) / tr Σ_hh.

    This is how much of the stream the belief explains; R² is how much of the belief the stream explains. NaN if the
    activations are constant.
    """
    total = float(_moments(probe).covariance(probe.sites, probe.sites).trace())
    return float(belief_covariance(probe).trace()) / total if total > 0 else math.nan


def effective_dimension(covariance: Float64[Tensor, "feature feature"]) -> float:
    """The participation ratio (tr Σ)² / tr Σ²: how many directions share the variance; NaN if nothing varies.

    Example:
        >>> effective_dimension(torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)))
        2.0
    """
    total, squares = float(covariance.trace()), float((covariance * covariance.T).sum())
    return total**2 / squares if squares > 0 else math.nan


def belief_subspace(probe: BeliefProbe) -> Float64[Tensor, "feature dimension"]:
    """An orthonormal basis of the directions in which the mean activation moves with the belief."""
    _, sizes, directions = torch.linalg.svd(probe.decoder, full_matrices=False)
    # Smaller directions are rounding errors.
    kept = sizes > 1e-6 * sizes[0].clamp(min=torch.finfo(torch.float64).tiny)
    return directions[kept].T


def belief_angles(probes: Sequence[BeliefProbe]) -> pd.DataFrame:
    """The largest principal angle between the belief subspaces of each pair of sites, in degrees.

    NaN if the sites have different widths, or a subspace has no dimension.
    """
    labels, bases = [probe.label for probe in probes], [belief_subspace(probe).numpy() for probe in probes]
    angles = [
        [
            float(np.rad2deg(subspace_angles(a, b).max())) if len(a) == len(b) and a.size and b.size else math.nan
            for b in bases
        ]
        for a in bases
    ]
    return pd.DataFrame(angles, index=pd.Index(labels, name="site"), columns=pd.Index(labels, name="site"))


def simplex_distances(
    model: HookedModel,
    dataset: BeliefDataset,
    probes: Sequence[BeliefProbe],
    *,
    weighting: Weighting = "probability",
    batch_size: int | None = None,
) -> list[SimplexDistance]:
    """How far each probe's read-outs lie from the simplex, over all prefixes of a dataset, in one pass of the model."""
    # Distances below this are rounding errors.
    tolerance = 1e-6
    shares = dataset.prefix_weights(weighting)
    found = []
    for read in read_beliefs(model, dataset, probes, batch_size=batch_size):
        distance = (read - nearest_distribution(read)).norm(dim=1)
        outside = distance > tolerance
        found.append(SimplexDistance(float(shares @ distance), float(distance.max()), float(shares[outside].sum())))
    return found


def unembedding_agreement(
    probe: BeliefProbe, model: HookedModel, process: Process, *, token_map: TokenMap | None = None
) -> float:
    """Whether the unembedding reads what the probe says it should: a correlation over the data, at most 1.

    If the network predicts what its belief implies, p = b E, then a step dh at the site that feeds the unembedding
    changes the prediction by dh W E. To first order, the unembedding changes it by dh W_U (diag p̄ - p̄ p̄ᵀ), with the
    mean prediction p̄ = b̄ E. The two linear readings A and B of h are correlated over the data,

        tr(Aᵀ Σ_hh B) / √(tr(Aᵀ Σ_hh A) · tr(Bᵀ Σ_hh B)).

    The softmax is not linear, so the correlation is below 1 even for a perfect predictor if its predictions vary much.
    The softmax is taken over the process's symbols alone. NaN if the site does not feed the unembedding, if the model
    has no `W_U` over the process's tokens, or if the model predicts other tokens between two symbols.
    """
    token_map = token_map or TokenMap.identity(process.n_tokens)
    unembedding = getattr(model, "W_U", None)
    label = site_label(probe.sites[0])
    if unembedding is None or len(probe.sites) > 1 or label != "ln_final" or not token_map.predicts_symbols:
        return math.nan
    if unembedding.shape[0] != sum(probe.widths) or unembedding.shape[1] < token_map.d_vocab:
        return math.nan
    matrix = unembedding.detach().cpu().double()[:, [ids[0] for ids in token_map.symbols]]
    mean = probe.belief_mean @ process.emissions
    read = matrix @ (torch.diag(mean) - torch.outer(mean, mean))
    implied = probe.read_map.weights @ process.emissions
    covariance = _moments(probe).covariance(probe.sites, probe.sites)

    def inner(a: Tensor, b: Tensor) -> float:
        return float((a * (covariance @ b)).sum())

    size = math.sqrt(max(inner(read, read) * inner(implied, implied), 0.0))
    return inner(read, implied) / size if size > 0 else math.nan


def _moments(probe: BeliefProbe) -> Moments:
    if probe.moments is None:
        raise ValueError(f"{probe!r} was saved without its moments: probe the model again.")
    return probe.moments


@dataclass(frozen=True, eq=False)
class Distances:
    """Euclidean distances between the same pairs of prefixes in three spaces; computed by `distances`.

    Attributes:
        site: Label of the probe that read the beliefs.
        represented: Distances between the beliefs read in the network.
        true: Distances between the optimal observer's beliefs.
        next_token: Distances between their next-token probabilities.
        weights: How much each pair counts; they sum to 1.
        is_every_pair: Whether these are all pairs, or a sample.
    """

    site: str
    represented: Float64[Tensor, "pair"]
    true: Float64[Tensor, "pair"]
    next_token: Float64[Tensor, "pair"]
    weights: Float64[Tensor, "pair"]
    is_every_pair: bool

    @property
    def r2_true(self) -> float:
        """Squared correlation of represented and true distances; NaN if either does not vary."""
        return squared_correlation(self.represented, self.true, self.weights)

    @property
    def r2_next_token(self) -> float:
        """Squared correlation of represented and next-token distances; NaN if either does not vary."""
        return squared_correlation(self.represented, self.next_token, self.weights)

    def plot(self, *, theme: ThemeName = "light") -> Figure:
        """Represented distances against true ones, and against those of next-token probabilities."""
        from msp_lens.figures.score_curves import plot_distances

        return plot_distances(
            self.represented.numpy(),
            {
                "true beliefs": (self.true.numpy(), self.r2_true),
                "next-token probabilities": (self.next_token.numpy(), self.r2_next_token),
            },
            weights=self.weights.numpy(),
            ylabel=f"distance between beliefs read at {self.site}",
            theme=theme,
        )

    def __repr__(self) -> str:
        pairs = f"{'all' if self.is_every_pair else 'sampled'} {len(self.weights):,} pairs"
        return (
            f"Distances({self.site}, {pairs}: R² {self.r2_true:.4f} with distances of true beliefs, "
            f"{self.r2_next_token:.4f} with those of next-token probabilities)"
        )


def distances(
    probe: BeliefProbe,
    model: HookedModel,
    dataset: BeliefDataset,
    *,
    weighting: Weighting,
    max_pairs: int = 500_000,
    seed: int = 0,
    batch_size: int | None = None,
) -> Distances:
    """Distances between the beliefs that a probe reads, between true beliefs, and between next-token probabilities.

    A pair counts by the product of its prefixes' weights: all pairs if there are at most `max_pairs`, else that many
    drawn by weight. Runs the model once.

    Args:
        probe: A probe of the model.
        model: The model that it was fitted on.
        dataset: The words whose prefixes are paired.
        weighting: How much each prefix counts.
        max_pairs: The largest number of pairs.
        seed: Seed of the draw of pairs.
        batch_size: Words in one forward pass.

    Raises:
        ValueError: if `max_pairs` is below 1, or the model cannot read the words.

    Source: Shai et al. 2024 (arXiv 2405.15943), figure 7D.
    """
    check_at_least("max_pairs", max_pairs, 1)
    first, second, weights = _pairs(dataset.prefix_weights(weighting), max_pairs, torch.Generator().manual_seed(seed))
    true = dataset.prefix_beliefs
    (read,) = read_beliefs(model, dataset, [probe], batch_size=batch_size)
    spaces = (read, true, true @ dataset.process.emissions)
    represented, between_true, next_token = ((space[first] - space[second]).norm(dim=1) for space in spaces)
    n_pairs = dataset.n_prefixes * (dataset.n_prefixes - 1) // 2
    return Distances(probe.label, represented, between_true, next_token, weights, n_pairs <= max_pairs)


def squared_correlation(
    x: Float64[Tensor, "pair"], y: Float64[Tensor, "pair"], weights: Float64[Tensor, "pair"]
) -> float:
    """The R² of a weighted least-squares line through the pairs; NaN if either does not vary."""
    share = weights / weights.sum()
    x, y = x - share @ x, y - share @ y
    spread_x, spread_y = float(share @ x**2), float(share @ y**2)
    if min(spread_x, spread_y) <= NO_VARIANCE:
        return math.nan
    return float(share @ (x * y)) ** 2 / (spread_x * spread_y)


def _pairs(
    weights: Float64[Tensor, "prefix"], max_pairs: int, generator: torch.Generator
) -> tuple[Int[Tensor, "pair"], Int[Tensor, "pair"], Float64[Tensor, "pair"]]:
    """The two different prefixes of each pair, and how much the pair counts."""
    n = len(weights)
    if n * (n - 1) // 2 <= max_pairs:
        first, second = torch.triu_indices(n, n, offset=1)
        products = weights[first] * weights[second]
        return first, second, products / products.sum()
    # Both prefixes are drawn by weight, and pairs of a prefix with itself are dropped.
    cumulative = weights.cumsum(dim=0)
    uniform = torch.rand(2, max_pairs, dtype=torch.float64, generator=generator) * cumulative[-1]
    first, second = torch.searchsorted(cumulative, uniform).clamp(max=n - 1)
    different = first != second
    first, second = first[different], second[different]
    return first, second, torch.full((len(first),), 1 / len(first), dtype=torch.float64)
