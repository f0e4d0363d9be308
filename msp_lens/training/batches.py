"""Batches of freshly drawn words, with repeated words merged and the optimal observer's predictions added.

The words are independent, or drawn evenly (`strata.py`).

Words of n_ctx + 1 tokens are drawn, so that all n_ctx positions have a next token to learn from. The model reads each
distinct word once, and the tokens that followed it are counted. The loss, a mean over all tokens drawn,

    loss = -Σ_words Σ_t Σ_x count(word, t, x) log q(x | word up to t) / (words drawn · n_ctx),

and its gradient are those of the whole batch. RRXOR has only 436 words of ten tokens, however many are drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Float32, Int
from torch import Tensor

from msp_lens._arrays import moved
from msp_lens.beliefs.filtering import filter_beliefs, next_token_probabilities
from msp_lens.processes.process import Process
from msp_lens.training.config import Sampling
from msp_lens.training.strata import even_numbers, words_at


@dataclass(frozen=True, eq=False)
class Batch:
    """The distinct words of one step, and each one's share of the words drawn (`weights`).

    `targets` says how often each token comes next, of all tokens that all processes draw, and `optimal` how probable
    it is to the optimal observer.
    """

    tokens: Int[Tensor, "word pos"]
    targets: Float32[Tensor, "word pos token"]
    optimal: Float32[Tensor, "word pos token"]
    weights: Float32[Tensor, "word"]

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return Batch(*(moved(part, device) for part in (self.tokens, self.targets, self.optimal, self.weights)))

    def loss(self, log_probabilities: Float[Tensor, "word pos token"]) -> Float[Tensor, ""]:
        """The batch's part of the cross-entropy, in nats a token."""
        return -(self.targets * log_probabilities).sum()

    def regret(self, log_probabilities: Float[Tensor, "word pos token"]) -> Float[Tensor, "pos"]:
        """The batch's part of KL(optimal ‖ model) at each position, in nats, a mean over the words drawn."""
        divergence = (torch.special.xlogy(self.optimal, self.optimal) - self.optimal * log_probabilities).sum(dim=2)
        return self.weights @ divergence.float()


class Batches:
    """An endless supply of batches, continued exactly from the `state` saved when `n_ready` of them had been taken.

    All processes draw the same `batch_size` words in a step; each takes its `share`, by default all of them.
    """

    def __init__(
        self,
        process: Process,
        batch_size: int,
        n_ctx: int,
        *,
        seed: int,
        sampling: Sampling = "independent",
        share: slice | None = None,
        n_ready: int = 0,
        state: Tensor | None = None,
    ) -> None:
        self.process, self.batch_size, self.n_ctx = process, batch_size, n_ctx
        self.seed, self.sampling = seed, sampling
        self.share = share or slice(0, batch_size)
        # Sampling is cheap in bulk: up to 50 steps are drawn at once, as far as they have at most two million tokens,
        # and 16 million next-token probabilities.
        tokens = batch_size * (n_ctx + 1)
        self.steps_per_draw = max(1, min(50, 2**21 // tokens, 2**24 // (tokens * process.n_tokens)))
        self._generator = torch.Generator().manual_seed(seed)
        if state is not None:
            self._generator.set_state(state)
        self._taken, self._state = n_ready, self._generator.get_state()

    @property
    def state(self) -> Tensor:
        """The generator's state before the draw that the next batch comes from."""
        return self._state if self._taken % self.steps_per_draw else self._generator.get_state()

    def __iter__(self) -> Iterator[Batch]:
        while True:
            self._state = self._generator.get_state()
            ready = self._merged(rearrange(self._draw(), "(step word) pos -> step word pos", step=self.steps_per_draw))
            for batch in ready[self._taken % self.steps_per_draw :]:
                self._taken += 1
                yield batch

    def _draw(self) -> Int[Tensor, "word pos"]:
        """The words of the next `steps_per_draw` steps, one step after another."""
        if self.sampling == "independent":
            n_words = self.steps_per_draw * self.batch_size
            return self.process.sample(n_words, self.n_ctx + 1, generator=self._generator)
        first = self._taken - self._taken % self.steps_per_draw
        numbers = even_numbers(range(first, first + self.steps_per_draw), self.batch_size, seed=self.seed)
        return words_at(self.process, numbers.flatten(), self.n_ctx + 1, generator=self._generator)

    def _merged(self, words: Int[Tensor, "step word pos"]) -> list[Batch]:
        """A batch for each step, of this process's share of its words."""
        n_steps, n_tokens = len(words), self.process.n_tokens
        words = words[:, self.share]
        step = torch.arange(n_steps).repeat_interleave(words.shape[1])
        read, following = words[:, :, :-1].flatten(0, 1), words[:, :, -1].flatten()
        first, which = _distinct(step, read, n_tokens)
        distinct = read[first]
        counts = torch.zeros(len(first), n_tokens, dtype=torch.float64)
        counts.index_put_((which, following), torch.ones(len(which), dtype=torch.float64), accumulate=True)
        repeats = counts.sum(dim=1)

        targets = torch.zeros(*distinct.shape, n_tokens, dtype=torch.float64)
        repeated = repeats[:, None, None].expand(-1, self.n_ctx - 1, 1)
        targets[:, :-1].scatter_(2, distinct[:, 1:, None], repeated)
        targets[:, -1] = counts
        targets /= self.batch_size * self.n_ctx
        optimal = next_token_probabilities(self.process, filter_beliefs(self.process, distinct))
        columns = (distinct, targets.float(), optimal.float(), (repeats / self.batch_size).float())
        per_step = torch.bincount(step[first], minlength=n_steps).tolist()
        return [Batch(*parts) for parts in zip(*(column.split(per_step) for column in columns), strict=True)]


def _distinct(
    step: Int[Tensor, "row"], words: Int[Tensor, "row pos"], n_tokens: int
) -> tuple[Int[Tensor, "distinct"], Int[Tensor, "row"]]:
    """One row for each distinct pair of step and word, ordered by step, and which of them each row equals."""
    rows, n_words = torch.arange(len(words)), n_tokens ** words.shape[1]
    # Words too long for their number to fit an integer hardly ever repeat.
    if (int(step[-1]) + 1) * n_words >= 2**63:
        return rows, rows
    # torch.unique(dim=0) on the rows would take five times as long.
    codes = (words * n_tokens ** torch.arange(words.shape[1])).sum(dim=1) + step * n_words
    distinct, which = torch.unique(codes, return_inverse=True)
    return torch.empty_like(distinct).index_copy_(0, which, rows), which
