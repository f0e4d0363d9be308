"""The one idea: everything said about a network follows from one pass of second moments.

For rows z (activation features and targets side by side) with weights w, accumulate in float64

    W = Σ w,    μ = Σ w z / W,    S = Σ w (z - μ)(z - μ)ᵀ,

batch by batch, each batch centred on its own mean before it is multiplied; two accumulations merge by

    S = S₁ + S₂ + (W₁ W₂ / W)(μ₁ - μ₂)(μ₁ - μ₂)ᵀ        (Chan, Golub & LeVeque 1983).

Memory is that of one matrix, however many rows went in, and the result is that of all rows at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor


class Moments:
    """Weighted mean and centred second moments of rows made of named blocks of columns.

    Args:
        blocks: Name to width, in the order of the columns: one block a site, one a kind of target.

    Attributes:
        n: Rows seen.
        weight: Their total weight.
        mean: Weighted mean of each column.
        scatter: Centred sum of weighted outer products; divided by `weight` it is the covariance.

    Example:
        >>> moments = Moments({"h": 2, "b": 1})
        >>> rows = torch.tensor([[0.0, 0.0, 1.0], [2.0, 0.0, 3.0]])
        >>> moments.update(rows, torch.ones(2)).covariance("h", "b")
        tensor([[1.],
                [0.]], dtype=torch.float64)
    """

    def __init__(self, blocks: Mapping[str, int]) -> None:
        self.blocks = dict(blocks)
        width = sum(self.blocks.values())
        self.n = 0
        self.weight = 0.0
        self.mean: Float64[Tensor, "column"] = torch.zeros(width, dtype=torch.float64)
        self.scatter: Float64[Tensor, "column column"] = torch.zeros(width, width, dtype=torch.float64)

    def update(self, rows: Float[Tensor, "row column"], weights: Float[Tensor, "row"]) -> Moments:
        """Take in a batch of rows; returns itself.

        Raises:
            ValueError: if a weight is negative or a number not finite.
        """
        rows, weights = rows.double(), weights.double()
        if not torch.isfinite(rows).all() or not torch.isfinite(weights).all() or (weights < 0).any():
            raise ValueError("Rows must be finite and weights finite and ≥ 0: look for NaN in the model's activations.")
        total = float(weights.sum())
        if total == 0:
            self.n += len(rows)
            return self
        mean = weights @ rows / total
        centred = rows - mean
        scatter = centred.T @ (centred * weights.unsqueeze(1))
        self._absorb(len(rows), total, mean.to(self.mean.device), scatter.to(self.mean.device))
        return self

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of rows together, as a new object.

        Raises:
            ValueError: if their blocks differ.
        """
        if self.blocks != other.blocks:
            raise ValueError(f"Only moments of the same blocks merge: {self.blocks} and {other.blocks} differ.")
        merged = Moments(self.blocks)
        for part in (self, other):
            merged._absorb(part.n, part.weight, part.mean, part.scatter)
        return merged

    def _absorb(
        self, n: int, weight: float, mean: Float64[Tensor, "column"], scatter: Float64[Tensor, "column column"]
    ) -> None:
        self.n += n
        if weight == 0:
            return
        total = self.weight + weight
        shift = mean - self.mean
        self.scatter = self.scatter + scatter + torch.outer(shift, shift) * (self.weight * weight / total)
        self.mean = self.mean + shift * (weight / total)
        self.weight = total

    def columns(self, names: str | Sequence[str]) -> Int[Tensor, "column"]:
        """Indices of the columns of one or several blocks, in the order given."""
        starts = dict(zip(self.blocks, torch.tensor([0, *self.blocks.values()]).cumsum(0).tolist(), strict=False))
        wanted = (names,) if isinstance(names, str) else names
        return torch.cat([torch.arange(starts[name], starts[name] + self.blocks[name]) for name in wanted])

    def select(self, names: Sequence[str]) -> Moments:
        """The moments of these blocks alone, in the order given: what one pass over just them would have found.

        Raises:
            KeyError: if there is no such block.
        """
        for name in names:
            if name not in self.blocks:
                raise KeyError(f"No block {name!r} in these moments; they have {', '.join(self.blocks)}.")
        chosen = Moments({name: self.blocks[name] for name in names})
        columns = self.columns(names)
        chosen.n, chosen.weight = self.n, self.weight
        chosen.mean, chosen.scatter = self.mean[columns], self.scatter[columns][:, columns]
        return chosen

    def block_mean(self, names: str | Sequence[str]) -> Float64[Tensor, "column"]:
        """Weighted mean of the blocks' columns."""
        return self.mean[self.columns(names)]

    def covariance(self, rows: str | Sequence[str], columns: str | Sequence[str]) -> Float64[Tensor, "row column"]:
        """Weighted population covariance between two groups of blocks, Σ = S / W."""
        return self.scatter[self.columns(rows)][:, self.columns(columns)] / self.weight

    def __repr__(self) -> str:
        return f"Moments({self.n} rows of {self.blocks}, weight {self.weight:g})"


def merge_all(parts: Iterable[Moments]) -> Moments:
    """The moments of all the parts' rows together."""
    return reduce(Moments.merge, parts)
