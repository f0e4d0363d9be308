"""The edits that remove the belief, or everything else.

    erase (LEACE)     h - (h - μ_h) W D̂                    D̂ = (Wᵀ Σ_hh W)⁺ Wᵀ Σ_hh
    keep only         μ_h + (h - μ_h) W D̂  =  μ_h + (b̂ - μ_b) D̂
    project out       h - (h - μ_h) Q Qᵀ                   Q an orthonormal basis of W

In whitened coordinates `W D̂ = Σ_hh^½ U Uᵀ Σ_hh^-½`, with U an orthonormal basis of `Σ_hh^-½ Σ_hb`: the oblique
projection of Belrose et al. 2023. So erasing and keeping split h - μ_h in two. The null of each erasure removes as many
random dimensions. All but the last need the probe's moments (else `ValueError`). W is the probe's own but for LEACE,
which takes that of least squares. Projections stay in factors, `[feature, rank]` and `[rank, feature]`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens._checks import checked
from msp_lens.data.labelled import BELIEF
from msp_lens.interventions.edits import (
    Edit,
    centered_weights,
    conversions,
    moments_of,
    read_decoder,
    site_covariance,
)
from msp_lens.moments.solve import RANK_CUTOFF, least_squares
from msp_lens.probing.belief_probe import BeliefProbe


@checked
def erase(probe: BeliefProbe) -> Edit:
    """LEACE: the smallest change of h, in the data's own metric, that leaves no linear trace of the belief.

    It is solved by least squares, however the probe was fitted. Afterwards no affine probe of the site does better than
    a constant. If the loss rises, something correlated with the belief was used, which need not be the belief. The
    belief can be read again at later sites, from attention to other positions, unless those are edited too. Source:
    Belrose et al. 2023, "LEACE: Perfect linear concept erasure in closed form" (arXiv 2306.03819), theorem 4.3.
    """
    # A penalized probe leaves out of W what goes with the belief in directions of little variance.
    weights = least_squares(moments_of(probe), probe.sites, BELIEF).weights
    weights = weights - weights.mean(dim=1, keepdim=True)
    return _projecting("erase", probe, weights, read_decoder(probe, weights))


@checked
def keep_only(probe: BeliefProbe) -> Edit:
    """Keep only the belief: everything else in h becomes its mean given the belief read, `μ_h + (b̂ - μ_b) D̂`.

    Afterwards the probe reads exactly the same belief. If the loss stays, the belief read is enough at this site; that
    does not show that the network computes with it as a belief. Source: the complement of LEACE.
    """
    return _projecting("keep only", probe, centered_weights(probe), read_decoder(probe), keep=True)


@checked
def project_out(probe: BeliefProbe) -> Edit:
    """Project out the directions that the probe reads, `h - (h - μ_h) Q Qᵀ`.

    What is correlated with the belief in other directions stays, and a new probe finds it: if the loss hardly rises,
    that does not show that the belief is not needed. Source: one step of Ravfogel et al. 2020 (arXiv 2004.07667).
    """
    basis = read_basis(probe)
    return _projecting("project out", probe, basis, basis.T)


@checked
def erase_random(probe: BeliefProbe, *, generator: torch.Generator) -> Edit:
    """The null of `erase`: LEACE of as many random features of h, drawn uniformly in whitened coordinates."""
    # V = Σ^-½ G reads random whitened coordinates; erasing them is V (Vᵀ Σ V)⁺ Vᵀ Σ.
    eigenvalues, eigenvectors = torch.linalg.eigh(site_covariance(probe))
    kept = eigenvalues > eigenvalues[-1] * RANK_CUTOFF**2
    gaussian = _gaussian(int(kept.sum()), read_basis(probe).shape[1], generator)
    weights = (eigenvectors[:, kept] / eigenvalues[kept].sqrt()) @ gaussian
    return _projecting("erase random", probe, weights, read_decoder(probe, weights))


@checked
def project_out_random(probe: BeliefProbe, *, generator: torch.Generator) -> Edit:
    """The null of `project_out`: as many random orthonormal directions, drawn uniformly."""
    n_features, rank = read_basis(probe).shape
    random_basis, _ = torch.linalg.qr(_gaussian(n_features, rank, generator))
    return _projecting("project out random", probe, random_basis, random_basis.T)


def read_basis(probe: BeliefProbe) -> Float64[Tensor, "feature rank"]:
    """An orthonormal basis of the directions that the probe reads, fewer than there are states."""
    directions, singular_values, _ = torch.linalg.svd(centered_weights(probe), full_matrices=False)
    return directions[:, singular_values > singular_values[0] * RANK_CUTOFF]


def _projecting(name: str, probe: BeliefProbe, read: Tensor, write: Tensor, *, keep: bool = False) -> Edit:
    """Remove `(h - μ_h) read write` from h, or keep nothing else; the factors are [feature, rank], [rank, feature]."""
    # An orthonormal first factor: the projection onto it loses nothing in single precision.
    basis, triangle = torch.linalg.qr(read)
    like = conversions(probe.activation_mean, basis, triangle @ write)

    def edit(h: Tensor, _: Tensor) -> Tensor:
        mean, first, second = like(h)
        projected = ((h - mean) @ first) @ second
        return mean + projected if keep else h - projected

    return Edit(name, probe, edit, writes=False)


def _gaussian(rows: int, columns: int, generator: torch.Generator) -> Float64[Tensor, "row column"]:
    return torch.randn(rows, columns, dtype=torch.float64, generator=generator, device=generator.device).cpu()
