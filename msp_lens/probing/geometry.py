"""How the belief is represented in the residual stream, from the moments that the probes were solved from.

covariance that moves with the belief         Σ_hb Σ_bb⁺ Σ_bh,  in the span of the decoder's rows
effective dimension of a covariance Σ         (tr Σ)² / tr Σ²    (the participation ratio)
what the unembedding reads, to first order    dp = dh W_U (diag p̄ - p̄ p̄ᵀ)
what the probe implies it should read         dp = dh W E
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from scipy.linalg import subspace_angles
from torch import Tensor

from msp_lens._tables import TableView
from msp_lens.beliefs.nearest import nearest_distribution
from msp_lens.data import BeliefDataset, TokenMap, Weighting
from msp_lens.data.labelled import BELIEF
from msp_lens.models.hooked import HookedModel, site_label
from msp_lens.moments.moments import Moments
from msp_lens.probing.belief_probe import BeliefProbe, read_beliefs
from msp_lens.processes.process import Process


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
