"""How the belief lies in the residual stream, from the moments that the probes were solved from.

the part of h that moves with the belief      Σ_hb Σ_bb⁺ Σ_bh,  in the span of the decoder's rows
effective dimension of a covariance Σ         (tr Σ)² / tr Σ²    (the participation ratio)
what the unembedding reads, to first order    dp = dh W_U (diag p̄ - p̄ p̄ᵀ)
what the probe implies it should              dp = dh W E
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens._tables import to_html, to_text
from msp_lens.beliefs.nearest import nearest_distribution
from msp_lens.data import BeliefDataset, TokenMap, Weighting
from msp_lens.models.hooked import HookedModel, site_label
from msp_lens.moments.moments import Moments
from msp_lens.probing.belief_probe import BELIEF, BeliefProbe, read_beliefs
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.processes.process import Process

# Directions of a decoder below this fraction of its largest are rounding.
SUBSPACE_CUTOFF = 1e-6
# How far below 0 a read-out may be and still count as on the simplex.
ON_SIMPLEX = 1e-6


@dataclass(frozen=True)
class SimplexDistance:
    """How far read-outs lie from the simplex of beliefs, in Euclidean distance to its nearest point.

    Attributes:
        mean: Weighted mean distance.
        largest: The farthest.
        share_outside: Weight of the read-outs that are no distribution.
    """

    mean: float
    largest: float
    share_outside: float


@dataclass(frozen=True)
class SiteGeometry:
    """How the belief lies at one site.

    Attributes:
        site: Its label.
        variance_share: The share of the activations' variance that moves with the belief.
        effective_dimension: Participation ratio of the activations.
        belief_dimension: Participation ratio of the part that moves with the belief; at most states - 1.
        simplex: How far the probe's read-outs leave the simplex.
        unembedding: Correlation between what the probe implies for the next token and what the unembedding reads; NaN
            where the unembedding does not read this site directly.
    """

    site: str
    variance_share: float
    effective_dimension: float
    belief_dimension: float
    simplex: SimplexDistance
    unembedding: float


@dataclass(frozen=True, eq=False)
class Geometry:
    """The geometry of all sites of a report.

    Attributes:
        sites: One record a site; the concatenation is left out.
        angles: Largest principal angle between the belief subspaces of each two sites, in degrees.
    """

    sites: tuple[SiteGeometry, ...]
    angles: pd.DataFrame

    def to_dataframe(self) -> pd.DataFrame:
        """One row a site."""
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
        return [
            "Variance share: of the activations' variance, what moves with the belief. Dimensions are participation "
            "ratios. Off simplex: Euclidean distance of read-outs to the nearest belief. Unembedding: correlation of "
            "its next-token reading, to first order, with the one the probe implies.",
            "Largest angle between the belief subspaces of neighboring sites: "
            + ", ".join(
                f"{a}–{b} {self.angles.loc[a, b]:.0f}°"
                for a, b in zip(self.angles.index[:-1], self.angles.index[1:], strict=True)
            )
            + ".",
        ]

    def __repr__(self) -> str:
        return to_text(self.to_dataframe().map("{:.4f}".format), title="Geometry", notes=self.summary())

    def _repr_html_(self) -> str:
        return to_html(self.to_dataframe().map("{:.4f}".format), title="Geometry", notes=self.summary())


def geometry(report: ProbeReport, *, batch_size: int | None = None) -> Geometry:
    """How the belief lies at each site of a report. Runs the model once more, to see where read-outs fall.

    Raises:
        ValueError: if the report was loaded without its model, or the model has changed since.
    """
    model, dataset = report.run_on()
    probes = [probe for probe in report.probes if len(probe.sites) == 1]
    distances = simplex_distances(
        model,
        dataset,
        probes,
        weighting=report.provenance["weighting"],
        token_map=report.token_map,
        batch_size=batch_size,
    )
    sites = tuple(
        SiteGeometry(
            probe.label,
            variance_share(probe),
            effective_dimension(_moments(probe).covariance(probe.sites, probe.sites)),
            effective_dimension(belief_covariance(probe)),
            distance,
            unembedding_agreement(probe, model, dataset.process, token_map=report.token_map),
        )
        for probe, distance in zip(probes, distances, strict=True)
    )
    return Geometry(sites, subspace_angles(probes))


def belief_covariance(probe: BeliefProbe) -> Float64[Tensor, "feature feature"]:
    """The covariance of the part of the activations that moves with the belief, `Σ_hb Σ_bb⁺ Σ_bh`."""
    return _moments(probe).covariance(probe.sites, BELIEF) @ probe.decoder


def variance_share(probe: BeliefProbe) -> float:
    """The share of the activations' variance that moves with the belief: tr(Σ_hb Σ_bb⁺ Σ_bh) / tr Σ_hh.

    It says how much of the stream the belief explains, where R² says how much of the belief the stream does. NaN for
    constant activations.
    """
    total = float(_moments(probe).covariance(probe.sites, probe.sites).trace())
    return float(belief_covariance(probe).trace()) / total if total > 0 else math.nan


def effective_dimension(covariance: Float64[Tensor, "feature feature"]) -> float:
    """The participation ratio (tr Σ)² / tr Σ²: how many directions share the variance; NaN if there is none.

    Example:
        >>> effective_dimension(torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)))
        2.0
    """
    total, squares = float(covariance.trace()), float((covariance * covariance.T).sum())
    return total**2 / squares if squares > 0 else math.nan


def belief_subspace(probe: BeliefProbe) -> Float64[Tensor, "feature dimension"]:
    """An orthonormal basis of the directions in which the mean activation moves with the belief."""
    _, sizes, directions = torch.linalg.svd(probe.decoder, full_matrices=False)
    kept = sizes > SUBSPACE_CUTOFF * sizes[0].clamp(min=torch.finfo(torch.float64).tiny)
    return directions[kept].T


def principal_angles(
    first: Float64[Tensor, "feature _"], second: Float64[Tensor, "feature _"]
) -> Float64[Tensor, "angle"]:
    """Principal angles between two subspaces, in degrees, ascending; 0 where they share a direction.

    Args:
        first: An orthonormal basis.
        second: Another, of the same space.

    Example:
        >>> plane, line = torch.eye(3).double()[:, :2], torch.eye(3).double()[:, 2:]
        >>> principal_angles(plane, line)
        tensor([90.], dtype=torch.float64)
    """
    overlap = first.T @ second
    cosines = torch.linalg.svdvals(overlap).clamp(0, 1)
    # An arc cosine is blind to small angles: take their sines.
    left = first - second @ overlap.T if first.shape[1] <= second.shape[1] else second - first @ overlap
    sines = torch.linalg.svdvals(left).clamp(0, 1).flip(0)[: len(cosines)]
    return torch.where(cosines > math.sqrt(0.5), sines.asin(), cosines.acos()).rad2deg()


def subspace_angles(probes: Sequence[BeliefProbe]) -> pd.DataFrame:
    """The largest principal angle between the belief subspaces of each two sites, in degrees; NaN if widths differ."""
    labels, bases = [probe.label for probe in probes], [belief_subspace(probe) for probe in probes]
    angles = [
        [
            float(principal_angles(a, b).max()) if len(a) == len(b) and min(a.shape[1], b.shape[1]) else math.nan
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
    token_map: TokenMap | None = None,
    batch_size: int | None = None,
) -> list[SimplexDistance]:
    """How far each probe's read-outs lie from the simplex, over a dataset's prefixes; one pass of the model."""
    shares = dataset.prefix_weights(weighting)
    found = []
    for read in read_beliefs(model, dataset, probes, token_map=token_map, batch_size=batch_size):
        distance = (read - nearest_distribution(read)).norm(dim=1)
        outside = distance > ON_SIMPLEX
        found.append(SimplexDistance(float(shares @ distance), float(distance.max()), float(shares[outside].sum())))
    return found


def unembedding_agreement(
    probe: BeliefProbe, model: HookedModel, process: Process, *, token_map: TokenMap | None = None
) -> float:
    """Whether the unembedding reads what the probe says it should: a correlation over the data; 1 is full agreement.

    If the network predicts as its belief implies, p = b E, then a step dh at the site that feeds the unembedding should
    change the prediction by dh W E. To first order the unembedding makes of it dh W_U (diag p̄ - p̄ p̄ᵀ), p̄ being the
    mean prediction b̄ E. The two linear readings A and B of h are correlated over the data,

        tr(Aᵀ Σ_hh B) / √(tr(Aᵀ Σ_hh A) · tr(Bᵀ Σ_hh B)).

    Softmax bends where linear maps do not, so agreement is below 1 even for a perfect predictor whose predictions vary
    much. NaN where the site does not feed the unembedding, or the model has no `W_U` over the process's tokens, or it
    predicts something else between two symbols. A softmax over the symbols alone is taken, whatever else there is.
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
        raise ValueError(f"{probe!r} was saved without its moments: probe the model anew.")
    return probe.moments
