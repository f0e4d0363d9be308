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

# Above this many pairs of a prefix and a token for each pair that occurs, tokens are followed one by one.
MOST_PAIRS = 2


@dataclass(frozen=True)
class _Level:
    """The prefixes of one length, in the order of the prefixes that they lengthen, and then of their last token.

    Attributes:
        parents: Each prefix without its last token, in the level above.
        pairs: The place of each prefix among all pairs of a prefix above and a token; `None` if every pair occurs.
        by_token: The prefixes that end with each token, where few of all pairs occur; else empty.
    """

    parents: Int[Tensor, "node"]
    pairs: Int[Tensor, "node"] | None
    by_token: tuple[Int[Tensor, "node"], ...]

    @classmethod
    def of(cls, pairs: Int[Tensor, "node"], n_above: int, n_tokens: int) -> _Level:
        """The level of these pairs, numbered by prefix above and token."""
        parents, tokens, n_pairs = pairs // n_tokens, pairs % n_tokens, n_above * n_tokens
        is_sparse = n_pairs > MOST_PAIRS * len(pairs)
        by_token = tuple((tokens == token).nonzero().squeeze(1) for token in range(n_tokens)) if is_sparse else ()
        return cls(parents, None if n_pairs == len(pairs) else pairs, by_token)

    def forward(
        self, above: Float64[Tensor, "machine above state"], transitions: Float64[Tensor, "machine i token j"]
    ) -> Float64[Tensor, "machine node state"]:
        """α at this level from α at the level above."""
        if self.by_token:
            below = above.new_empty(len(above), len(self.parents), above.shape[2])
            for token, nodes in enumerate(self.by_token):
                below.index_copy_(1, nodes, above[:, self.parents[nodes]] @ transitions[:, :, token])
            return below
        every = (above @ transitions.flatten(2)).reshape(len(above), -1, above.shape[2])
        return every if self.pairs is None else every[:, self.pairs]

    def backward(
        self,
        above: Float64[Tensor, "machine above state"],
        back: Float64[Tensor, "machine node state"],
        transitions: Float64[Tensor, "machine i token j"],
    ) -> tuple[Float64[Tensor, "machine above state"], Float64[Tensor, "machine i token j"]]:
        """β at the level above from β at this level, and what this level adds to the gradient."""
        if self.by_token:
            beta, gradient = torch.zeros_like(above), torch.empty_like(transitions)
            for token, nodes in enumerate(self.by_token):
                parents, own = self.parents[nodes], back[:, nodes]
                gradient[:, :, token] = above[:, parents].transpose(1, 2) @ own
                beta.index_add_(1, parents, own @ transitions[:, :, token].transpose(1, 2))
            return beta, gradient
        n_machines, n_states, n_tokens, _ = transitions.shape
        if self.pairs is not None:
            every = above.new_zeros(n_machines, above.shape[1] * n_tokens, n_states)
            back = every.index_copy_(1, self.pairs, back)
        back = back.reshape(n_machines, above.shape[1], n_tokens * n_states)
        gradient = (above.transpose(1, 2) @ back).reshape(transitions.shape)
        return back @ transitions.flatten(2).transpose(1, 2), gradient


def _by_origin(transitions: Float64[Tensor, "machine token i j"]) -> Float64[Tensor, "machine i token j"]:
    """With the tokens of each state side by side, to be followed by one product."""
    return transitions.transpose(1, 2).contiguous()


class WordTree:
    """The tree of prefixes of some words, with the words' probabilities."""

    def __init__(self, words: WordProbabilities) -> None:
        self.n_tokens, self.length = words.n_tokens, words.length
        self.entropy = words.entropy
        self.levels: list[_Level] = []
        number, n_above = torch.zeros(len(words.tokens), dtype=torch.int64), 1
        for column in words.tokens.T:
            pairs, number = torch.unique(number * words.n_tokens + column, return_inverse=True)
            self.levels.append(_Level.of(pairs, n_above, words.n_tokens))
            n_above = len(pairs)
        self.probabilities = torch.zeros(n_above, dtype=torch.float64).index_add_(0, number, words.probabilities)

    @property
    def n_nodes(self) -> int:
        """Prefixes of all lengths."""
        return sum(len(level.parents) for level in self.levels)

    def forward(
        self, transitions: Float64[Tensor, "machine token i j"], initial: Float64[Tensor, "machine state"]
    ) -> list[Float64[Tensor, "machine node state"]]:
        """α at each level, from the root."""
        vectors, by_origin = [initial.unsqueeze(1)], _by_origin(transitions)
        for level in self.levels:
            vectors.append(level.forward(vectors[-1], by_origin))
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
        by_origin = _by_origin(transitions)
        gradient = torch.zeros_like(by_origin)
        for level, above in zip(reversed(self.levels), reversed(vectors[:-1]), strict=True):
            back, added = level.backward(above, back, by_origin)
            gradient += added
        return self._divergence(found), gradient.transpose(1, 2).contiguous(), back[:, 0]

    def _divergence(self, found: Float64[Tensor, "machine word"]) -> Float64[Tensor, "machine"]:
        cross = -torch.special.xlogy(self.probabilities, found.clamp_min(1e-300)).sum(dim=1)
        return (cross - self.entropy) / self.length
