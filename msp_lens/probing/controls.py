"""Nulls that a probe is set beside: what a linear map reads when there is nothing to read."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens.data import BeliefDataset


def shuffled_beliefs(dataset: BeliefDataset, *, generator: torch.Generator) -> Float64[Tensor, "prefix state"]:
    """The beliefs of all prefixes, dealt out among them at random.

    A probe fitted to these can only memorise. With few prefixes and many features it memorises well: its
    in-sample R² says how much of a true probe's R² that alone would explain.
    """
    return dataset.prefix_beliefs[torch.randperm(dataset.n_prefixes, generator=generator)]
