"""How the belief is represented in the residual stream, from the moments that the probes were solved from.

covariance that moves with the belief         Σ_hb Σ_bb⁺ Σ_bh,  in the span of the decoder's rows
effective dimension of a covariance Σ         (tr Σ)² / tr Σ²    (the participation ratio)
what the unembedding reads, to first order    dp = dh diag(w) W_U (diag p̄ - p̄ p̄ᵀ)
what the probe implies it should read         dp = dh W E

Two prefixes may predict the same next token and still differ in everything after it, so distances between pairs of
prefixes tell two accounts of a representation apart:

    R² = corr(|b̂ - b̂'|, |b - b'|)²    against    corr(|b̂ - b̂'|, |p - p'|)²,    p = b E.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from scipy.linalg import subspace_angles
from torch import Tensor

from msp_lens._checks import Count, Seed, checked
from msp_lens._tables import TableView
from msp_lens._values import Value
from msp_lens.beliefs.nearest import nearest_distribution
from msp_lens.data import BeliefDataset, TokenMap, Weighting
from msp_lens.data.labelled import BELIEF
from msp_lens.models.hooked import HookedModel, unwrapped
from msp_lens.models.sites import site_label
from msp_lens.moments.moments import Moments
from msp_lens.probing.belief_probe import BeliefProbe, read_beliefs
from msp_lens.probing.parts import part_values
from msp_lens.processes.process import Process

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.style import ThemeName


@dataclass(frozen=True, eq=False)
class SimplexDistance(Value):
    """Euclidean distance of read-outs from the simplex: weighted mean, largest, and the weight of those outside it."""

    mean: float
    largest: float
    share_outside: float


@dataclass(frozen=True, eq=False)
class SiteGeometry(Value):
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
class Geometry(Value, TableView):
    """The geometry of the belief at several sites.

    Attributes:
        sites: One record for each site.
        angles: Largest principal angle between the belief subspaces of each pair of sites, in degrees.
    """

    sites: tuple[SiteGeometry, ...]
    angles: pd.DataFrame

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each site."""
        columns = {
            "variance share": [each.variance_share for each in self.sites],
            "effective dimension": [each.effective_dimension for each in self.sites],
            "belief dimension": [each.belief_dimension for each in self.sites],
            "off simplex, mean": [each.simplex.mean for each in self.sites],
            "off simplex, largest": [each.simplex.largest for each in self.sites],
            "share outside": [each.simplex.share_outside for each in self.sites],
            "unembedding": [each.unembedding for each in self.sites],
        }
        return pd.DataFrame(columns, index=pd.Index([each.site for each in self.sites], name="site"))

    def summary(self) -> list[str]:
        """How to read the table."""
        neighbors = [(a, b, self.angles.loc[a, b]) for a, b in itertools.pairwise(self.angles.index)]
        angles = ", ".join(f"{a}–{b} {angle:.0f}°" for a, b, angle in neighbors if not math.isnan(angle))
        if all(math.isnan(each.belief_dimension) for each in self.sites):
            return ["The beliefs never vary, so no part of the activations moves with them."]
        return [
            "Variance share: the share of the activations' variance that moves with the belief. Dimensions are "
            "participation ratios. Off simplex: Euclidean distance of read-outs from the nearest belief. Unembedding: "
            "correlation of its next-token reading, to first order, with the one that the probe implies.",
            *([f"Largest angle between the belief subspaces of neighboring sites: {angles}."] if angles else []),
        ]

    def _title(self) -> str:
        return "Geometry"

    def _display(self) -> pd.DataFrame:
        return self.to_dataframe().map(lambda value: "–" if math.isnan(value) else f"{value:.4f}")


@checked
def geometry(
    probes: Sequence[BeliefProbe],
    model: HookedModel,
    dataset: BeliefDataset,
    *,
    weighting: Weighting,
    batch_size: Count | None = None,
) -> Geometry:
    """The geometry of the belief at each site, with one run of the model to see where read-outs fall.

    Args:
        probes: Probes of the model; those of several sites at once are left out.
        model: The model that they were fitted on.
        dataset: The words that they were fitted on.
        weighting: How much each prefix counts in distances from the simplex.
        batch_size: Words in one forward pass.

    Raises:
        ValueError: if a probe has no moments, or two probes are of one site; before the model is run.
    """
    # Smaller distances are rounding errors.
    tolerance = 1e-6
    single = [probe for probe in probes if len(probe.sites) == 1]
    labels = [probe.label for probe in single]
    if not labels or len(set(labels)) < len(labels):
        raise ValueError(f"probes are of the sites {labels}: give one probe for each of at least one single site.")
    for probe in single:
        _moments(probe)
    sites = []
    for probe, read in zip(single, read_beliefs(model, dataset, single, batch_size=batch_size), strict=True):
        _, is_known = part_values(probe.provenance, dataset)
        shares, read = dataset.prefix_weights(weighting)[is_known], read[is_known]
        shares = shares / shares.sum()
        distance = (read - nearest_distribution(read)).norm(dim=1)
        outside = float(shares[distance > tolerance].sum())
        site = SiteGeometry(
            probe.label,
            variance_share(probe),
            effective_dimension(_moments(probe).covariance(probe.sites, probe.sites)),
            effective_dimension(belief_covariance(probe)),
            SimplexDistance(float(shares @ distance), float(distance.max()), outside),
            unembedding_agreement(probe, model, dataset.process, token_map=dataset.token_map),
        )
        sites.append(site)
    return Geometry(tuple(sites), belief_angles(single))


def belief_covariance(probe: BeliefProbe) -> Float64[Tensor, "feature feature"]:
    """The covariance of the part of the activations that moves with the belief, `Σ_hb Σ_bb⁺ Σ_bh`."""
    return _moments(probe).covariance(probe.sites, BELIEF) @ probe.decoder


def variance_share(probe: BeliefProbe) -> float:
    """The share of the activations' variance that moves with the belief, tr(Σ_hb Σ_bb⁺ Σ_bh) / tr Σ_hh.

    How much of the stream the belief explains; R² is the reverse. NaN if the activations are constant.
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


def explained(covariance: Float64[Tensor, "feature feature"]) -> Float64[Tensor, "component"]:
    """The share of the variance in the first principal component, the first two, …; empty if nothing varies."""
    variances = torch.linalg.eigvalsh(covariance).flip(0).clamp(min=0)
    return variances.cumsum(0) / variances.sum() if float(variances.sum()) > 0 else variances[:0]


def belief_angles(probes: Sequence[BeliefProbe]) -> pd.DataFrame:
    """The largest principal angle between the belief subspaces of each pair of sites, in degrees.

    The subspace is the span of the decoder's rows. NaN if the sites have different widths, or a subspace is empty.
    """
    labels = pd.Index([probe.label for probe in probes], name="site")
    bases = []
    for probe in probes:
        _, sizes, directions = torch.linalg.svd(probe.decoder, full_matrices=False)
        # Smaller directions are rounding errors.
        kept = sizes > 1e-6 * sizes[0].clamp(min=torch.finfo(torch.float64).tiny)
        bases.append(directions[kept].T.numpy())
    angles = np.full((len(bases), len(bases)), math.nan)
    for (i, a), (j, b) in itertools.product(enumerate(bases), repeat=2):
        if len(a) == len(b) and a.size and b.size:
            angles[i, j] = np.rad2deg(subspace_angles(a, b).max())
    return pd.DataFrame(angles, index=labels, columns=labels)


def unembedding_agreement(
    probe: BeliefProbe, model: HookedModel, process: Process, *, token_map: TokenMap | None = None
) -> float:
    """Whether the unembedding reads what the probe says it should: a correlation over the data, at most 1.

    If the network predicts what its belief implies, p = b E, then a step dh at the site that feeds the unembedding
    changes the prediction by dh W E. To first order, the unembedding changes it by dh diag(w) W_U (diag p̄ - p̄ p̄ᵀ),
    with the mean prediction p̄ = b̄ E. The site of a `HookedTransformer` (`ln_final.hook_normalized`) lies before the
    gains w of the final LayerNorm, which are therefore part of what is read out; that of a bridge (`ln_final.hook_out`)
    lies after them, and w is 1, as in a recurrent network, whose unembedding reads the last layer's hidden state. The
    two linear readings A and B of h are correlated over the data,

        tr(Aᵀ Σ_hh B) / √(tr(Aᵀ Σ_hh A) · tr(Bᵀ Σ_hh B)).

    The softmax is over the process's symbols alone. It is not linear, so even a perfect predictor stays below 1 if its
    predictions vary much. NaN if the site does not feed the unembedding (that of a recurrent state-space model passes a
    LayerNorm without a hook first), if the model has no `W_U` over the process's
    tokens, or if it predicts other tokens between two symbols; and for a part of the belief, which alone implies no
    prediction.
    """
    token_map = token_map or TokenMap.identity(process.n_tokens)
    unembedding = getattr(model, "W_U", None)
    feeds = site_label(probe.sites[0]) == "ln_final" or probe.sites[0] in getattr(unwrapped(model), "read_out", ())
    is_read = len(probe.sites) == 1 and feeds and "part" not in probe.provenance
    if unembedding is None or not is_read or not token_map.predicts_symbols:
        return math.nan
    if unembedding.shape[0] != sum(probe.widths) or unembedding.shape[1] < token_map.d_vocab:
        return math.nan
    matrix = unembedding.detach().cpu().double()[:, [ids[0] for ids in token_map.symbols]]
    if probe.sites[0].endswith(".hook_normalized"):
        gains = getattr(getattr(model, "ln_final", None), "w", None)
        matrix = matrix if gains is None else gains.detach().cpu().double().unsqueeze(1) * matrix
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
class Distances(Value):
    """Euclidean distances between the same pairs of prefixes in three spaces.

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

        scores = [None if math.isnan(r2) else r2 for r2 in (self.r2_true, self.r2_next_token)]
        against = {
            "true beliefs": (self.true.numpy(), scores[0]),
            "next-token probabilities": (self.next_token.numpy(), scores[1]),
        }
        ylabel, weights = f"distance between beliefs read at {self.site}", self.weights.numpy()
        return plot_distances(self.represented.numpy(), against, weights=weights, ylabel=ylabel, theme=theme)

    def __repr__(self) -> str:
        pairs = f"{'all' if self.is_every_pair else 'sampled'} {len(self.weights):,} pairs"
        if math.isnan(self.r2_true):
            return f"Distances({self.site}, {pairs}: the distances do not vary, so there is nothing to compare)"
        return (
            f"Distances({self.site}, {pairs}: R² {self.r2_true:.4f} with distances of true beliefs, "
            f"{self.r2_next_token:.4f} with those of next-token probabilities)"
        )


@checked
def distances(
    probe: BeliefProbe,
    model: HookedModel,
    dataset: BeliefDataset,
    *,
    weighting: Weighting,
    same_prefix: bool = False,
    max_pairs: Count = 500_000,
    seed: Seed = 0,
    batch_size: Count | None = None,
) -> Distances:
    """Distances between the beliefs that a probe reads, between true beliefs, and between next-token probabilities.

    A pair counts by the product of its prefixes' weights: all pairs if there are at most `max_pairs`, else that many
    drawn by weight. Runs the model once.

    The paper's figure is another: of the activations at all sites of RRXOR's network concatenated, and of the positions
    of all words, so that pairs with the same prefix, at distance 0 in all three spaces, count too. For that, give the
    concatenated probe and `same_prefix=True`.

    Args:
        probe: A probe of the model.
        model: The model that it was fitted on.
        dataset: The words whose prefixes are paired.
        weighting: How much each prefix counts.
        same_prefix: Whether two rows with the same prefix are a pair too, as often as they occur.
        max_pairs: The largest number of pairs.
        seed: Seed of the draw of pairs.
        batch_size: Words in one forward pass.

    Raises:
        ValueError: if an option is out of range, or the model cannot read the words.

    Source: Shai et al. 2024 (arXiv 2405.15943), figure 7D.
    """
    true, is_known = part_values(probe.provenance, dataset)
    n, weights = dataset.n_prefixes, dataset.prefix_weights(weighting) * is_known
    is_every_pair = n * (n - 1) // 2 <= max_pairs
    if is_every_pair:
        first, second = torch.triu_indices(n, n, offset=0 if same_prefix else 1)
        # Two rows in either order are one pair, and so are two of one prefix.
        counts = weights[first] * weights[second] * torch.where(first == second, 0.5, 1.0)
    else:
        # Both prefixes are drawn by weight; pairs of a prefix with itself are dropped unless they are wanted.
        cumulative, generator = weights.cumsum(dim=0), torch.Generator().manual_seed(seed)
        uniform = torch.rand(2, max_pairs, dtype=torch.float64, generator=generator) * cumulative[-1]
        drawn = torch.searchsorted(cumulative, uniform).clamp(max=n - 1)
        first, second = drawn if same_prefix else drawn[:, drawn[0] != drawn[1]]
        counts = torch.ones(len(first), dtype=torch.float64)
    (read,) = read_beliefs(model, dataset, [probe], batch_size=batch_size)
    spaces = (read, true, dataset.prefix_beliefs @ dataset.process.emissions)
    represented, between_true, next_token = ((space[first] - space[second]).norm(dim=1) for space in spaces)
    return Distances(probe.label, represented, between_true, next_token, counts / counts.sum(), is_every_pair)


def squared_correlation(
    x: Float64[Tensor, "pair"], y: Float64[Tensor, "pair"], weights: Float64[Tensor, "pair"]
) -> float:
    """The R² of a weighted least-squares line through the pairs; NaN if either does not vary."""
    if len(weights) < 2:
        return math.nan
    (spread_x, cross), (_, spread_y) = np.cov(x.numpy(), y.numpy(), aweights=weights.numpy(), ddof=0).tolist()
    # A smaller deviation is that of differences between numbers near 1, which are rounded in float64.
    varies = min(spread_x, spread_y) > 1e-24
    return cross**2 / (spread_x * spread_y) if varies else math.nan
