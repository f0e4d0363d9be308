"""The likelihood of words under many hidden Markov machines at once, with its gradient.

Words with a common prefix share their forward vectors, so these are computed once for each node of the tree of
prefixes, level by level:

    α(η) = π,    α(u x) = α(u) T[x],    Q(w) = α(w) 1.

Going back up the tree gives the gradient of L = Σ_w P(w) log Q(w) at once for all entries:

    β(w) = P(w) / Q(w) 1,    β(u) = Σ_x T[x] β(u x),    ∂L/∂T[x] = Σ_u α(u) β(u x)ᵀ,    ∂L/∂π = β(η),

and T[x, i, j] ∂L/∂T[x, i, j] is the expected number of times the machine goes from i to j with x, given the words:
what Baum and Welch count. Machines are a batch axis; memory is that of the tree times their number and states.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens.inference.word_probabilities import WordProbabilities


@dataclass(frozen=True)
class _Level:
    """The prefixes of one length, in the order of their last token.

    Attributes:
        parents: Each prefix without its last token, in the level above.
        tokens: Last tokens that occur, each with the prefixes that end with it.
    """

    parents: Int[Tensor, "node"]
    tokens: tuple[tuple[int, slice], ...]


class WordTree:
    """The tree of prefixes of some words, with the words' probabilities."""

    def __init__(self, words: WordProbabilities) -> None:
        self.n_tokens, self.length = words.n_tokens, words.length
        self.entropy = words.entropy
        self.levels: list[_Level] = []
        number, n_above = torch.zeros(len(words.tokens), dtype=torch.int64), 1
        for column in words.tokens.T:
            # Keys sort by token first, so that the nodes of one token are a slice.
            keys, number = torch.unique(column * n_above + number, return_inverse=True)
            counts = torch.bincount(keys // n_above, minlength=words.n_tokens)
            ends = counts.cumsum(dim=0).tolist()
            slices = [
                (token, slice(end - size, end))
                for token, (end, size) in enumerate(zip(ends, counts.tolist(), strict=True))
            ]
            self.levels.append(_Level(keys % n_above, tuple(each for each in slices if each[1].start < each[1].stop)))
            n_above = len(keys)
        self.probabilities = torch.zeros(n_above, dtype=torch.float64).index_add_(0, number, words.probabilities)

    @property
    def n_nodes(self) -> int:
        """Prefixes of all lengths."""
        return sum(len(level.parents) for level in self.levels)

    def forward(
        self, transitions: Float64[Tensor, "machine token i j"], initial: Float64[Tensor, "machine state"]
    ) -> list[Float64[Tensor, "machine node state"]]:
        """α at each level, from the root."""
        vectors = [initial.unsqueeze(1)]
        for level in self.levels:
            below = torch.empty(len(initial), len(level.parents), initial.shape[1], dtype=torch.float64)
            for token, nodes in level.tokens:
                torch.matmul(vectors[-1][:, level.parents[nodes]], transitions[:, token], out=below[:, nodes])
            vectors.append(below)
        return vectors

    def divergence(
        self, transitions: Float64[Tensor, "machine token i j"], initial: Float64[Tensor, "machine state"]
    ) -> Float64[Tensor, "machine"]:
        """KL(words ‖ machine) in nats per token."""
        found = self.forward(transitions, initial)[-1].sum(dim=2)
        return self._divergence(found)

    def with_gradient(
        self, transitions: Float64[Tensor, "machine token i j"], initial: Float64[Tensor, "machine state"]
    ) -> tuple[Float64[Tensor, "machine"], Float64[Tensor, "machine token i j"], Float64[Tensor, "machine state"]]:
        """The divergence per token, and the gradients of L with respect to the transitions and the initial state."""
        vectors = self.forward(transitions, initial)
        found = vectors[-1].sum(dim=2)
        back = (self.probabilities / found.clamp_min(1e-300)).unsqueeze(2).expand_as(vectors[-1])
        gradient = torch.zeros_like(transitions)
        for level, above in zip(reversed(self.levels), reversed(vectors[:-1]), strict=True):
            below, back = back, torch.zeros_like(above)
            for token, nodes in level.tokens:
                parents = level.parents[nodes]
                gradient[:, token] += above[:, parents].transpose(1, 2) @ below[:, nodes]
                back.index_add_(1, parents, below[:, nodes] @ transitions[:, token].transpose(1, 2))
        return self._divergence(found), gradient, back[:, 0]

    def _divergence(self, found: Float64[Tensor, "machine word"]) -> Float64[Tensor, "machine"]:
        cross = -torch.special.xlogy(self.probabilities, found.clamp_min(1e-300)).sum(dim=1)
        return (cross - self.entropy) / self.length
