"""Whether the network preserves distances between beliefs, or only distances between next-token probabilities.

Two prefixes may predict the same next token and still differ in everything after it. Distances between pairs of
prefixes tell the two accounts of a representation apart:

    R² = corr(|b̂ - b̂'|, |b - b'|)²    against    corr(|b̂ - b̂'|, |p - p'|)²,    p = b E.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens._checks import check_at_least
from msp_lens.data import BeliefDataset, Weighting
from msp_lens.models.hooked import HookedModel
from msp_lens.moments.scores import NO_VARIANCE
from msp_lens.probing.belief_probe import BeliefProbe, read_beliefs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.style import ThemeName


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
