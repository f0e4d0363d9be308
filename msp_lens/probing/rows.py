"""Rows: what a probe is fitted on, an activation and its target each, batch by batch.

Whatever the rows come from (a process, given tokens, a cache, one's own iterator), fitting sees only these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Float64, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RowBatch:
    """Some rows.

    Attributes:
        features: Activations by site, on the device they came from, and whatever other features a control reads.
        targets: Targets by name, the beliefs under `"belief"`.
        weights: How much each row counts.
        groups: Rows of one group are held out together.
        words: Which word of the data each row belongs to; -1 where that means nothing.
        positions: Which position of the word; -1 where that means nothing.
        output: What the model returned for the batch of words, where a model was run.
    """

    features: Mapping[str, Float[Tensor, "row feature"]]
    targets: Mapping[str, Float64[Tensor, "row target"]]
    weights: Float64[Tensor, "row"]
    groups: Int[Tensor, "row"]
    words: Int[Tensor, "row"]
    positions: Int[Tensor, "row"]
    output: Any = None

    def __len__(self) -> int:
        return len(self.weights)
