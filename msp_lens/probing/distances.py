"""Whether the network keeps beliefs as far apart as they are, or only as far as their next-token probabilities.

Two prefixes may predict the same next token and still differ in all that follows. Distances between pairs of
prefixes tell the two accounts of a representation apart:

    R² = corr(|b̂ - b̂'|, |b - b'|)²    beside    corr(|b̂ - b̂'|, |p - p'|)²,    p = b E.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens.moments.scores import NO_VARIANCE
from msp_lens.probing.belief_probe import read_beliefs
from msp_lens.probing.probe_report import ProbeReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.style import ThemeName

MAX_PAIRS = 500_000


@dataclass(frozen=True, eq=False)
class Distances:
    """Euclidean distances of the same pairs of prefixes, in three spaces; made by `distances`.

    Attributes:
        site: Label of the probe that read the beliefs.
        represented: Between beliefs read in the network.
        true: Between the optimal observer's beliefs.
        next_token: Between their next-token probabilities.
        weights: How much each pair counts; they sum to 1.
        is_every_pair: Whether these are all the pairs there are, or a sample.
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


def distances(report: ProbeReport, site: str | None = None, *, max_pairs: int = MAX_PAIRS, seed: int = 0) -> Distances:
    """Distances between the beliefs a probe reads, beside those of true beliefs and next-token probabilities.

    Pairs count by the product of their prefixes' weights in the report: all pairs where there are at most
    `max_pairs`, else as many drawn by weight. Runs the model once more.

    Args:
        report: What was probed.
        site: A site, label or `"concatenated"`; by default the single site with the best held-out R².
        max_pairs: How many pairs at most.
        seed: Of the pairs that are drawn.

    Raises:
        KeyError: if the site is not in the report.
        ValueError: if the report was loaded without its model, or the model has changed since.

    Source: Shai et al. 2024 (arXiv 2405.15943), figure 7D.
    """
    if max_pairs < 1:
        raise ValueError(f"max_pairs={max_pairs}: must be at least 1.")
    probe = report.best_site if site is None else report[site]
    model, dataset = report.run_on()
    weights = dataset.prefix_weights(report.provenance["weighting"])
    first, second, pair_weights = _pairs(weights, max_pairs, torch.Generator().manual_seed(seed))
    true = dataset.prefix_beliefs
    (read,) = read_beliefs(model, dataset, [probe], token_map=report.token_map)
    spaces = (read, true, true @ dataset.process.emissions)
    represented, between_true, next_token = ((space[first] - space[second]).norm(dim=1) for space in spaces)
    n_pairs = dataset.n_prefixes * (dataset.n_prefixes - 1) // 2
    return Distances(probe.label, represented, between_true, next_token, pair_weights, n_pairs <= max_pairs)


def squared_correlation(
    x: Float64[Tensor, "pair"], y: Float64[Tensor, "pair"], weights: Float64[Tensor, "pair"]
) -> float:
    """The R² of a weighted least-squares line of one on the other; NaN if either does not vary."""
    share = weights / weights.sum()
    x, y = x - share @ x, y - share @ y
    spread_x, spread_y = float(share @ x**2), float(share @ y**2)
    if min(spread_x, spread_y) <= NO_VARIANCE:
        return math.nan
    return float(share @ (x * y)) ** 2 / (spread_x * spread_y)


def _pairs(
    weights: Float64[Tensor, "prefix"], max_pairs: int, generator: torch.Generator
) -> tuple[Int[Tensor, "pair"], Int[Tensor, "pair"], Float64[Tensor, "pair"]]:
    """Two different prefixes for each pair, and how much the pair counts."""
    n = len(weights)
    if n * (n - 1) // 2 <= max_pairs:
        first, second = torch.triu_indices(n, n, offset=1)
        products = weights[first] * weights[second]
        return first, second, products / products.sum()
    # Both drawn by weight; pairs of a prefix with itself are left out.
    cumulative = weights.cumsum(dim=0)
    uniform = torch.rand(2, max_pairs, dtype=torch.float64, generator=generator) * cumulative[-1]
    first, second = torch.searchsorted(cumulative, uniform).clamp(max=n - 1)
    different = first != second
    first, second = first[different], second[different]
    return first, second, torch.full((len(first),), 1 / len(first), dtype=torch.float64)
