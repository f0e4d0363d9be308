"""The tree of mixed states: the beliefs that the words of each length lead to.

A node is a possible word; its children are the word followed by each token that may come next:

    P(w x) = P(w) · (b T[x] 1),    b' = b T[x] / (b T[x] 1).

Words of probability 0 are never made. A level's words are in lexicographic order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens.processes.process import Process


@dataclass(frozen=True)
class Level:
    """All possible words of one length, as a struct of arrays.

    Attributes:
        beliefs: The belief after each word.
        probabilities: Each word's probability; they sum to 1.
        parents: Each word's index, in the level above, without its last token.
        tokens: Each word's last token.
    """

    beliefs: Float64[Tensor, "word state"]
    probabilities: Float64[Tensor, "word"]
    parents: Int[Tensor, "word"]
    tokens: Int[Tensor, "word"]

    def __len__(self) -> int:
        return len(self.tokens)


def walk_levels(process: Process, depth: int) -> Iterator[Level]:
    """The levels of the tree for word lengths 1 to `depth`, each made from the one above.

    Example:
        >>> from msp_lens.processes.catalog import golden_mean
        >>> [len(level) for level in walk_levels(golden_mean(p=0.5), 5)]   # Fibonacci numbers
        [2, 3, 5, 8, 13]
    """
    beliefs = process.initial.unsqueeze(0)
    probabilities = torch.ones(1, dtype=torch.float64)
    for _ in range(depth):
        joint = einsum(beliefs, process.transitions, "word i, token i j -> word token j")
        conditional = joint.sum(dim=2)
        parents, tokens = (conditional > 0).nonzero(as_tuple=True)
        conditional = conditional[parents, tokens]
        beliefs = joint[parents, tokens] / conditional.unsqueeze(1)
        probabilities = probabilities[parents] * conditional
        yield Level(beliefs, probabilities, parents, tokens)
