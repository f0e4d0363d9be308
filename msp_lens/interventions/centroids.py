"""Centroids: the mean activation of all prefixes that lead to the same belief, or to the same small cell of beliefs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens._checks import Count, Positive, checked
from msp_lens._values import Value
from msp_lens.data import BeliefDataset
from msp_lens.models.activations import stream_activations
from msp_lens.models.hooked import HookedModel, check_fits
from msp_lens.models.sites import Sites


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
