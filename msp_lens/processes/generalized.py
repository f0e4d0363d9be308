"""The named generalized processes of the literature: quantum and post-quantum ones.

They need fewer dimensions than any hidden Markov process that makes the same words, some of which have infinitely many
states. Their beliefs have entries of either sign and no hidden-state reading; see `Process`.
"""

from __future__ import annotations

import math

import torch

from msp_lens.processes.process import Process
from msp_lens.processes.registry import check_range, named, refuse

REAL = "(-∞, ∞)"


@named(finite=False)
def bloch_walk(alpha: float = 1.0, beta: float = math.sqrt(51)) -> Process:
    """A qubit measured weakly, along one of two axes at random: its beliefs fill a disk of the Bloch sphere.

    A belief is (1, x, z), with the Bloch vector of the state. Tokens 0 and 1 are the outcomes of the measurement along
    z, with Kraus operators γ(α ± β σ_z), 2 and 3 those along x.

    Args:
        alpha: Weight of leaving the state alone, any real number. The paper's is 1.
        beta: Weight of the measurement, any real number but 0, where nothing is measured and every state stays. Only
            β/α matters; the paper's β is √51. (Measurements have probabilities ≥ 0 whatever the weights.)

    Source: Riechers, Elliott & Shai 2025 (arXiv 2507.07432).
    """
    check_range("bloch_walk", "alpha", alpha, REAL, "it is a weight")
    check_range("bloch_walk", "beta", beta, REAL, "it is a weight")
    if beta == 0:
        refuse("bloch_walk", {"beta": beta}, "beta must lie in (-∞, 0) or (0, ∞), since at 0 nothing is measured")
    ratio, d = math.hypot(alpha, beta), 1 / 4
    c, s = alpha / ratio, beta / ratio
    m, o = (c * c - s * s) / 4, c * s / 2
    transitions = [
        *([[d, 0, sign * o], [0, m, 0], [sign * o, 0, d]] for sign in (1, -1)),
        *([[d, sign * o, 0], [sign * o, d, 0], [0, 0, m]] for sign in (1, -1)),
    ]
    return Process(
        transitions,
        name="bloch_walk",
        states=("1", "x", "z"),
        initial=[1.0, 0, 0],
        right_eigenvector=[1.0, 0, 0],
        parameters={"alpha": alpha, "beta": beta},
    )


@named(finite=False)
def frdn(alpha: float = 2000.0, lam: float = 0.49) -> Process:
    """Runs of 1s between 0s whose lengths n have probability λ^n sin²(nα/2): no finite quantum machine makes them.

    (A run of length 0 has what is left.) The process of Fanizza, Lumbreras & Winter, with four dimensions.

    Args:
        alpha: Angle in radians by which the hazard turns with each 1, any real number. The paper's is 2000.
        lam: λ, the factor by which long runs get rarer, in [0, 1) and such that the probabilities of all runs ≥ 1 sum
            to at most 1: always so for λ ≤ ½, beyond it depending on α. The paper's is 0.49.

    Source: Fanizza, Lumbreras & Winter 2024, "Quantum theory in finite dimension cannot explain every general process
    with finite memory"; parameters of Riechers, Elliott & Shai 2025 (arXiv 2507.07432).
    """
    check_range("frdn", "alpha", alpha, REAL, "it is an angle")
    check_range("frdn", "lam", lam, "[0, 1)", "runs of 1s end")
    cos, sin = math.cos(alpha), math.sin(alpha)
    D = 1 - 2 * lam * cos + lam**2
    runs = (lam / (1 - lam) - lam * (cos - lam) / D) / 2
    if runs > 1:
        rule = f"lam must lie in [0, 1) and the probabilities λ^n sin²(nα/2) must sum to at most 1, not to {runs:.4g}"
        refuse("frdn", {"alpha": alpha, "lam": lam}, f"{rule}: any lam up to 0.5 does")
    a, b = (1 - lam * cos + lam * sin) / D, (1 - lam * cos - lam * sin) / D
    reset = torch.tensor([1 - (2 / (1 - lam) - a - b) / 4, 1 / (2 * (1 - lam)), -a / 4, -b / 4], dtype=torch.float64)
    stop = torch.tensor([1, 1 - lam, 1 + lam * (sin - cos), 1 - lam * (sin + cos)], dtype=torch.float64)
    turn = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, cos, -sin], [0, 0, sin, cos]], dtype=torch.float64)
    return Process(
        torch.stack([torch.outer(stop, reset), lam * turn]),
        name="frdn",
        right_eigenvector=[1.0, 1, 1, 1],
        parameters={"alpha": alpha, "lam": lam},
    )


@named(finite=False)
def moon(alpha: float = math.e, beta: float = 0.5) -> Process:
    """Beliefs on the arc (v, -1 - ln v, -1): post-quantum, so that no quantum machine of any finite size makes it.

    After a 0, tokens 1 and 2 multiply v = 1 by α and β, and the next 0 is as likely as v - 1 - ln v ≥ 0 says: a word
    that brings v back to 1 is never followed by a 0.

    Args:
        alpha: Factor of token 1, in (0, ∞). The paper's is e.
        beta: Factor of token 2, in (0, ∞). The paper's is ½. Not both 1: v would stay, and 0 never come again.
            (v - 1 - ln v ≥ 0 for all v > 0, so no other pair makes a negative probability.)

    Source: Riechers, Elliott & Shai 2025 (arXiv 2507.07432).
    """
    check_range("moon", "alpha", alpha, "(0, ∞)", "its logarithm is taken")
    check_range("moon", "beta", beta, "(0, ∞)", "its logarithm is taken")
    if alpha == beta == 1:
        rule = "alpha and beta must lie in (0, ∞) and not both be 1, since then no 0 would ever come again"
        refuse("moon", {"alpha": alpha, "beta": beta}, rule)
    factors = [[[v, 0, 0], [0, 1, 0], [0, math.log(v), 1]] for v in (alpha, beta)]
    restart = [[1, -1, -1], [1, -1, -1], [0, 0, 0]]
    transitions = torch.tensor([restart, *factors], dtype=torch.float64)
    radius = torch.linalg.eigvals(transitions.sum(dim=0)).abs().max()
    return Process(transitions / radius, name="moon", generalized=True, parameters={"alpha": alpha, "beta": beta})
