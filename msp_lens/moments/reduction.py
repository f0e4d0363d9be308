"""Fewer features per site, for concatenations whose moments would not fit in memory.

The d columns of each site become k before they reach the moments:

- `PrincipalComponents`: the k directions of largest variance, from the moments of that site alone (from an earlier
  pass, or from the first part of one over words in random order).
- `RandomProjection`: k random orthonormal directions, chosen without a look at the data. On average over draws and up
  to O(1/k), regressing on them explains as much variance as ridge regression with k degrees of freedom:

      tr Σ_th (Σ_hh + λI)⁻¹ Σ_ht,    λ such that  tr Σ_hh (Σ_hh + λI)⁻¹ = k.

  That is nearly everything if the activations vary in far fewer than k directions, k/d of it if they vary evenly.

Source: Dereziński, Liang, Liao & Mahoney 2020, "Precise expressions for random projections", theorem 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Float64
from scipy.optimize import brentq
from torch import Tensor

from msp_lens._checks import Count, Seed, checked
from msp_lens._names import meant
from msp_lens._values import Value
from msp_lens.moments.moments import Moments
from msp_lens.moments.solve import RANK_CUTOFF


@runtime_checkable
class FeatureReduction(Protocol):
    """Anything that reduces a site's features by these two methods."""

    def transform(self, site: str, activations: Float[Tensor, "row feature"]) -> Float[Tensor, "row column"]:
        """The reduced features, on the activations' device."""
        ...

    def matrix(self, site: str, width: int) -> Float64[Tensor, "feature column"]:
        """The matrix that multiplies a site's `width` features; times a map of the reduced ones, a map of all."""
        ...


@checked
@dataclass(frozen=True)
class RandomProjection:
    """Random orthonormal directions, different at each site; a site with at most `width` features stays whole.

    Attributes:
        width: Number of features kept at each site.
        seed: Seed of the directions, which also depend on the site's name.

    Example:
        >>> RandomProjection(16, seed=0).transform("3_post", torch.randn(5, 64)).shape
        torch.Size([5, 16])
    """

    width: Count
    seed: Seed = field(kw_only=True)
    _matrices: dict[tuple[str, int], Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def transform(self, site: str, activations: Float[Tensor, "row feature"]) -> Float[Tensor, "row column"]:
        """The activations along the site's directions, in their own dtype."""
        if activations.shape[1] <= self.width:
            return activations
        return activations @ self.matrix(site, activations.shape[1]).to(activations)

    def matrix(self, site: str, width: int) -> Float64[Tensor, "feature column"]:
        """The site's directions as columns; the identity if there is nothing to reduce."""
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
        """The average over seeds of the in-sample R² of a map from the projected site, given moments of the whole."""
        eigenvalues, basis = torch.linalg.eigh(moments.covariance(site, site))
        kept = eigenvalues > eigenvalues[-1] * RANK_CUTOFF**2
        eigenvalues, basis = eigenvalues[kept], basis[:, kept]
        penalty = _penalty_of(eigenvalues, self.width)
        cross = basis.T @ moments.covariance(site, targets)
        explained = (cross**2 / (eigenvalues + penalty).unsqueeze(1)).sum()
        return float(explained / moments.covariance(targets, targets).trace())


def _penalty_of(eigenvalues: Float64[Tensor, "direction"], degrees_of_freedom: int) -> float:
    """The λ at which Σ e / (e + λ) is this number; 0 if there are no more directions than that."""

    def excess(penalty: float) -> float:
        return float((eigenvalues / (eigenvalues + penalty)).sum()) - degrees_of_freedom

    if len(eigenvalues) <= degrees_of_freedom:
        return 0.0
    # At the highest λ each term is below e / λ, so their sum is at most the degrees of freedom.
    return float(cast(float, brentq(excess, 0.0, float(eigenvalues.sum()) / degrees_of_freedom)))


@dataclass(frozen=True, eq=False)
class PrincipalComponents(Value):
    """The directions of largest variance at each site; build it with `from_moments`.

    Attributes:
        directions: The directions of each site as columns, largest variance first.
        kept_variance: The share of each site's variance along them.
    """

    directions: Mapping[str, Float64[Tensor, "feature column"]]
    kept_variance: Mapping[str, float]

    @classmethod
    @checked
    def from_moments(cls, moments: Mapping[str, Moments], width: Count) -> PrincipalComponents:
        """The `width` directions of largest variance of each site.

        Args:
            moments: Moments of each site: `{site: grid.whole([site]) for site in sites}`.
            width: Number of directions kept at each site, at least 1; a site with fewer features keeps all.
        """
        directions, kept = {}, {}
        for site, own in moments.items():
            eigenvalues, eigenvectors = torch.linalg.eigh(own.covariance(site, site))
            directions[site] = eigenvectors[:, -width:].flip(1)
            kept[site] = float(eigenvalues[-width:].sum() / eigenvalues.sum())
        return cls(directions, kept)

    def transform(self, site: str, activations: Float[Tensor, "row feature"]) -> Float[Tensor, "row column"]:
        """The activations along the site's directions, in their own dtype; errors as for `matrix`."""
        return activations @ self.matrix(site, activations.shape[1]).to(activations)

    def matrix(self, site: str, width: int) -> Float64[Tensor, "feature column"]:
        """The site's directions; `KeyError` if there are none, `ValueError` if they have another number of features."""
        if site not in self.directions:
            there_are = ", ".join(self.directions)
            near = meant(site, self.directions)
            raise KeyError(f"No principal components of {site!r}; there are some of {there_are}.{near}")
        if len(self.directions[site]) != width:
            raise ValueError(f"{site!r} has {width} features; its components are of {len(self.directions[site])}.")
        return self.directions[site]

    def __repr__(self) -> str:
        sizes = {site: f"{site} {len(basis)} → {basis.shape[1]}" for site, basis in self.directions.items()}
        parts = [f"{size} ({self.kept_variance[site]:.1%} of the variance)" for site, size in sizes.items()]
        return f"PrincipalComponents({', '.join(parts)})"
