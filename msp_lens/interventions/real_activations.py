"""Real activations that edits are made from or measured against: means by belief, and the cloud of them all.

Centroids are the mean activations of all prefixes that lead to the same belief, or to the same small cell of beliefs.
The cloud tells how far an edit leaves the place where activations lie: the distance to the nearest one, and its null.

    off manifold = E min_w |h' - h_w| / E min_w |h_donor - h_w|

h' is the edited activation, h_donor that of a donor, a real one, and h_w those of other words at the same site and
position, in the site's own Euclidean space. Words with the edited word's prefix or the donor's are left out of both, so
that a real activation has a distance of about 1, a donor's exactly. An edit that is far from all of them may act on the
network in ways that no word does: that it works shows less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from msp_lens._checks import Count, Positive, checked
from msp_lens._values import Value
from msp_lens.data import BeliefDataset
from msp_lens.data.belief_dataset import prefix_hashes
from msp_lens.models.activations import stream_activations
from msp_lens.models.hooked import HookedModel, check_fits
from msp_lens.models.sites import Sites

# Distinct words that real activations are taken from, at most.
MOST_WORDS = 1_000


@dataclass(frozen=True, eq=False)
class Centroids(Value):
    """Mean belief and mean activations (by hook name) of the prefixes in each cell, and each cell's probability."""

    beliefs: Float64[Tensor, "cell state"]
    activations: dict[str, Float64[Tensor, "cell d_model"]]
    weights: Float64[Tensor, "cell"]

    def __len__(self) -> int:
        return len(self.weights)


@checked
def belief_centroids(
    model: HookedModel,
    dataset: BeliefDataset,
    sites: Sites = None,
    *,
    width: Positive = 0.01,
    batch_size: Count | None = None,
) -> Centroids:
    """The centroids of activations, prefixes weighted by probability, in one pass; memory grows with the cells only.

    Args:
        model: Any hooked model.
        dataset: The words whose prefixes are averaged.
        sites: Hook names or labels; by default all residual sites.
        width: Beliefs share a cell if each coordinate rounds to the same multiple of this. If the process has few
            beliefs, each has its own cell.
        batch_size: Words in one forward pass.

    Raises:
        KeyError: if the model lacks a site.
        ValueError: if the width is not positive, or the model does not fit the dataset.
    """
    check_fits(model, dataset.process, dataset.n_ctx)
    beliefs, weights = dataset.prefix_beliefs, dataset.prefix_weights("probability")
    _, cells = (beliefs / width).round().unique(dim=0, return_inverse=True)
    totals = torch.zeros(int(cells.max()) + 1, dtype=torch.float64).index_add_(0, cells, weights)

    def add(sums: Tensor | None, rows: Tensor, ids: Tensor) -> Tensor:
        sums = torch.zeros(len(totals), rows.shape[1], dtype=torch.float64) if sums is None else sums
        return sums.index_add_(0, cells[ids], rows.double() * (weights[ids] / totals[cells[ids]]).unsqueeze(1))

    means: dict[str, Tensor] = {}
    for batch in stream_activations(model, dataset.tokens, sites, batch_size=batch_size, logits=False):
        first = dataset.is_first[batch.words]
        ids = dataset.prefix_ids[batch.words][first]
        for site, values in batch.activations.items():
            means[site] = add(means.get(site), values[first.to(values.device)].cpu(), ids)
    return Centroids(add(None, beliefs, torch.arange(len(beliefs))), means, totals)


@dataclass(frozen=True, eq=False)
class Cloud:
    """Real activations from one position on.

    Attributes:
        prefixes: A number for each word's prefix up to each position.
        activations: By site, on the CPU.
    """

    prefixes: Int[Tensor, "word later"]
    activations: Mapping[str, Float64[Tensor, "word later d_model"]]

    def distance(
        self,
        held: Mapping[str, Float[Tensor, "row pos d_model"]],
        sites: Sequence[str],
        places: slice,
        words: Int[Tensor, "row later"],
        donors: Int[Tensor, "row later"],
    ) -> Float64[Tensor, "row later"]:
        """The distance to the nearest activation of another word's prefix at some places, summed over sites.

        `words` and `donors` number the prefixes of each row's word and donor. NaN where there is no other word, and
        after the places.
        """
        found = torch.full(words.shape, math.nan, dtype=torch.float64)
        here = {site: held[site][:, places].cpu().double() for site in sites}
        for k in range(next(iter(here.values())).shape[1]):
            own = (words[:, k, None] == self.prefixes[:, k]) | (donors[:, k, None] == self.prefixes[:, k])
            away = [torch.cdist(here[site][:, k], self.activations[site][:, k]) for site in sites]
            nearest = torch.stack([torch.where(own, math.inf, each).amin(dim=1) for each in away]).sum(dim=0)
            found[:, k] = torch.where(nearest < math.inf, nearest, math.nan)
        return found


def cloud_words(tokens: Int[Tensor, "word pos"], generator: torch.Generator) -> Int[Tensor, "kept pos"]:
    """The distinct words, or so many of them as a cloud is made of."""
    distinct = tokens.unique(dim=0)
    order = torch.randperm(len(distinct), generator=generator)[:MOST_WORDS]
    return distinct[order.sort().values]


def numbered(tokens: Int[Tensor, "word pos"], first: int) -> Int[Tensor, "word later"]:
    """A number for each word's prefix up to each position from the first on."""
    return prefix_hashes(tokens)[:, first:]
