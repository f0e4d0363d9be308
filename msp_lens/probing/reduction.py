"""Fewer features a site: for concatenations whose moments would not fit in memory.

Each site's d columns become k of their own, before they reach the moments:

- `PrincipalComponents`: the k directions of largest variance, from moments of that site alone: a first pass, or a
  first part of one over words in random order. What is lost is known: probes of the reduced site are in the same
  moments as probes of the whole one.
- `RandomProjection`: k directions drawn at random, orthonormal. It needs no look at the data, and its loss is known
  beforehand, on average over draws: regressing on the projection explains of the targets at least

      tr Σ_th (a Σ_hh + b tr(Σ_hh) I)⁻¹ Σ_ht,
      a = d (k + 2) / (k (d + 2)) - b,    b = d (d - k) / (k (d + 2) (d - 1)),

  that is, about as much as a ridge of strength tr(Σ_hh) / k · (1 - k/d): little where the activations' variance lies
  in much fewer than k directions, all but k/d of it where it is spread evenly.

Source: random projections as ridge, Kabán 2014 ("New bounds on compressive linear least squares regression") and
Thanei, Heinze & Meinshausen 2017; the closed form is of the best predictor P β, P = (d/k) Q Qᵀ, with the exact mean of
P Σ P over random orthonormal Q.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from msp_lens.probing.moments import Moments


class FeatureReduction(Protocol):
    """What makes a site's features fewer; anything with these two members will do."""

    def transform(self, site: str, activations: Float[Tensor, "row feature"]) -> Float[Tensor, "row column"]:
        """The reduced features, on the activations' device."""
        ...

    def matrix(self, site: str, width: int) -> Float64[Tensor, "feature column"]:
        """By which a site's `width` features are multiplied: folds a probe of the reduced ones back into one of all."""
        ...


@dataclass(frozen=True)
class RandomProjection:
    """Orthonormal directions drawn at random, other ones at each site; a site of no more than `width` stays whole.

    Attributes:
        width: Features left of each site.
        seed: Decides them, together with the site's name.

    Example:
        >>> RandomProjection(16, seed=0).transform("3_post", torch.randn(5, 64)).shape
        torch.Size([5, 16])
    """

    width: int
    seed: int = field(kw_only=True)
    _matrices: dict[tuple[str, int], Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width={self.width}: leave at least 1 feature of a site.")

    def transform(self, site: str, activations: Float[Tensor, "row feature"]) -> Float[Tensor, "row column"]:
        """The activations along the site's directions, in their own dtype."""
        if activations.shape[1] <= self.width:
            return activations
        return activations @ self.matrix(site, activations.shape[1]).to(activations)

    def matrix(self, site: str, width: int) -> Float64[Tensor, "feature column"]:
        """The site's directions as columns; the identity where there is nothing to reduce."""
        if width <= self.width:
            return torch.eye(width, dtype=torch.float64)
        if (site, width) not in self._matrices:
            digest = hashlib.sha256(f"{self.seed} {site}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))
            gaussian = torch.randn(width, self.width, generator=generator, dtype=torch.float64)
            # The orthonormal basis of a Gaussian matrix is uniformly distributed.
            self._matrices[site, width] = torch.linalg.qr(gaussian).Q
        return self._matrices[site, width]

    def expected_r2(self, moments: Moments, site: str, targets: str | Sequence[str]) -> float:
        """R² that a probe of the projected site reaches at least, on average over seeds; in-sample, from its moments.

        Args:
            moments: Of rows that hold the site, whole, and the targets.
            site: The block to be projected.
            targets: The blocks to be read.
        """
        covariance = moments.covariance(site, site)
        cross = moments.covariance(site, targets)
        d, k = len(covariance), min(self.width, len(covariance))
        spread = (d / k) * (d - k) / ((d + 2) * max(d - 1, 1))
        kept = d * (k + 2) / (k * (d + 2)) - spread
        penalised = kept * covariance + spread * covariance.trace() * torch.eye(d, dtype=torch.float64)
        explained = (cross * (torch.linalg.pinv(penalised, hermitian=True) @ cross)).sum()
        return float(explained / moments.covariance(targets, targets).trace())


@dataclass(frozen=True, eq=False)
class PrincipalComponents:
    """The directions of largest variance at each site; build it with `from_moments`.

    Attributes:
        directions: By site, as columns, largest first.
        kept_variance: By site, the share of its variance along them.
    """

    directions: Mapping[str, Float64[Tensor, "feature column"]]
    kept_variance: Mapping[str, float]

    @classmethod
    def from_moments(cls, moments: Mapping[str, Moments], width: int) -> PrincipalComponents:
        """The `width` directions of largest variance of each site.

        Args:
            moments: By site, of rows that hold it: `{site: grid.whole([site]) for site in sites}`.
            width: Directions kept of each; a site of fewer keeps all.

        Raises:
            ValueError: if `width` is below 1.
        """
        if width < 1:
            raise ValueError(f"width={width}: leave at least 1 direction of a site.")
        directions, kept = {}, {}
        for site, own in moments.items():
            eigenvalues, eigenvectors = torch.linalg.eigh(own.covariance(site, site))
            directions[site] = eigenvectors[:, -width:].flip(1)
            kept[site] = float(eigenvalues[-width:].sum() / eigenvalues.sum())
        return cls(directions, kept)

    def transform(self, site: str, activations: Float[Tensor, "row feature"]) -> Float[Tensor, "row column"]:
        """The activations along the site's directions, in their own dtype.

        Raises:
            KeyError: if there were no moments of the site.
            ValueError: if it has another number of features.
        """
        return activations @ self.matrix(site, activations.shape[1]).to(activations)

    def matrix(self, site: str, width: int) -> Float64[Tensor, "feature column"]:
        """The site's directions as columns; errors as for `transform`."""
        if site not in self.directions:
            raise KeyError(f"No principal components of {site!r}; there are those of {', '.join(self.directions)}.")
        if len(self.directions[site]) != width:
            raise ValueError(f"{site!r} has {width} features; its components are of {len(self.directions[site])}.")
        return self.directions[site]

    def __repr__(self) -> str:
        sites = ", ".join(
            f"{site} {len(basis)} → {basis.shape[1]} ({self.kept_variance[site]:.1%} of the variance)"
            for site, basis in self.directions.items()
        )
        return f"PrincipalComponents({sites})"
