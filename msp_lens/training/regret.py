"""Regret: how far a model's predictions are from the optimal observer's, at each position.

    regret(t) = E KL(P(next | x_0 … x_t) ‖ model's)  =  cross-entropy(t) - h_{t+2}

in nats, the expectation over words by their probability. Unlike a loss it has a floor of 0. It is exact where every
possible word is visited, because the optimal next-token distribution stands in for the next token.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens._arrays import moved
from msp_lens._checks import Count, checked
from msp_lens._distributed import total
from msp_lens.beliefs.filtering import next_token_probabilities
from msp_lens.beliefs.information import kl_divergence
from msp_lens.data import BeliefDataset, TokenMap, words
from msp_lens.models.beginning import stream_prefixes
from msp_lens.models.hooked import HookedModel, check_fits
from msp_lens.models.symbol_reader import reading_symbols, symbol_log_probabilities
from msp_lens.processes.process import Process

# Probabilities compared at once: 8 MB in float64.
_AT_ONCE = 2**20


@checked
def regret_by_position(
    model: HookedModel, dataset: BeliefDataset, *, batch_size: Count | None = None, progress: str | None = None
) -> Float64[Tensor, "pos"]:
    """E KL(optimal ‖ model) at each position, in nats; exact where the dataset is the population.

    Through a token map, it is read from the model's whole vocabulary: probability that it gives to tokens that are no
    symbols adds to its regret (`outside_by_position` says how much).

    Raises:
        ValueError: if the model's vocabulary or context is too small, or two symbols begin with the same token.
    """
    return _sums(model, dataset, batch_size, progress)[0]


@checked
def outside_by_position(
    model: HookedModel, dataset: BeliefDataset, *, batch_size: Count | None = None
) -> Float64[Tensor, "pos"]:
    """The part of the regret that is due to tokens which are no symbols, E -log P(any symbol), in nats.

    It shows how far a model knows the alphabet; the rest of the regret, KL(optimal ‖ model's among the symbols), shows
    how far it knows the process.

    Raises:
        ValueError: as for `regret_by_position`.

    Example:
        >>> from msp_lens.models.build import ModelConfig, build_model
        >>> from msp_lens.processes import z1r
        >>> outside_by_position(build_model(ModelConfig(d_vocab=2, n_ctx=3)), words(z1r(), n_ctx=3)).abs().max() < 1e-6
        tensor(True)
    """
    return _sums(model, dataset, batch_size, None)[1]


def _sums(
    model: HookedModel, dataset: BeliefDataset, batch_size: int | None, progress: str | None
) -> Float64[Tensor, "2 pos"]:
    """The regret, and what of it is due to tokens that are no symbols."""
    check_fits(model, dataset.process, dataset.n_ctx, token_map=dataset.token_map, predicts=True)
    reader, how = reading_symbols(model, dataset.token_map), {"batch_size": batch_size, "progress": progress}
    # A reader answers with log-probabilities of symbols itself.
    symbols = torch.arange(dataset.process.n_tokens)
    answer = partial(symbol_log_probabilities, symbols=symbols) if reader is model else True
    sums = _Sums(dataset)
    for batch in stream_prefixes(reader, dataset.tokens, (), logits=answer, **how):
        if batch.output is None:
            raise ValueError(f"{type(model).__name__} returned no logits [word, pos, token]: wrap it so that it does.")
        sums.add(batch.by_word(batch.output), batch.words)
    return sums.so_far


class _Sums:
    """Adds what batches of words contribute to the regret.

    Answers on a GPU wait until there are many, because the CPU waits for the GPU to get them.
    """

    def __init__(
        self, dataset: BeliefDataset, sums: Float64[Tensor, "2 pos"] | None = None, *, has_others: bool = False
    ) -> None:
        self.dataset, self._has_others = dataset, has_others
        self._sums = torch.zeros(2, dataset.n_ctx, dtype=torch.float64) if sums is None else sums
        self._waiting: list[tuple[Tensor, slice]] = []

    def add(self, answers: Float64[Tensor, "word pos symbol_or_other"], words: slice) -> None:
        self._waiting.append((answers, words))
        if answers.device.type != "cuda" or sum(waiting.nbytes for waiting, _ in self._waiting) > 2**25:
            self._take_in()

    @property
    def so_far(self) -> Float64[Tensor, "2 pos"]:
        self._take_in()
        return self._sums

    @property
    def has_others(self) -> bool:
        """Whether any answer gave a probability to a token that is no symbol."""
        self._take_in()
        return self._has_others

    def _take_in(self) -> None:
        if not self._waiting:
            return
        answers, words_of = zip(*self._waiting, strict=True)
        self._waiting = []
        # Brought to the CPU at once.
        together = answers[0].cpu() if len(answers) == 1 else torch.cat(answers).cpu()
        for some, of_words in zip(together.split([len(each) for each in answers]), words_of, strict=True):
            self._has_others |= bool((some[..., -1] > -torch.inf).any())
            self._sums = self._sums + batch_regret(some, self.dataset, of_words)


def batch_regret(
    answers: Float64[Tensor, "word pos symbol_or_other"], dataset: BeliefDataset, words: slice
) -> Float64[Tensor, "2 pos"]:
    """What these words contribute to the regret, and to the part of it that is due to tokens that are no symbols.

    Args:
        answers: The model's log-probabilities of the next symbol and of any other token, which cost it regret.
        dataset: The words.
        words: Which of them were answered.
    """
    answers, beliefs = answers.cpu(), dataset.beliefs[words]
    weights, size = dataset.word_weights[words], max(1, _AT_ONCE // answers.shape[-1])
    divergence = [
        _divergence(next_token_probabilities(dataset.process, some), part)
        for some, part in zip(
            beliefs.flatten(0, 1).split(size), answers[..., :-1].flatten(0, 1).split(size), strict=True
        )
    ]
    outside = -answers[..., :-1].logsumexp(dim=-1)
    return torch.stack([weights @ torch.cat(divergence).unflatten(0, beliefs.shape[:2]), weights @ outside])


@runtime_checkable
class _Answers(Protocol):
    """Of a batch of words: what the model answered, and which words they are."""

    @property
    def output(self) -> Any: ...

    @property
    def batch_words(self) -> slice | None: ...


class RegretSums:
    """Sums the regret at each position, from what the model says of the next symbol.

    Args:
        dataset: The words that are read.
        columns: The column of a word's tokens from which the symbol after each position is predicted.
    """

    def __init__(self, dataset: BeliefDataset, columns: Int[Tensor, "word pos"]) -> None:
        self.dataset, self.columns = dataset, columns
        self._sums: _Sums | None = _Sums(dataset)

    def answer(self, logits: Tensor) -> Float64[Tensor, "row symbol_or_other"]:
        """Log-probabilities of the next symbol and of any other token; without columns if there are too few logits."""
        token_map = self.dataset.token_map or TokenMap.identity(self.dataset.process.n_tokens)
        if logits.shape[-1] < token_map.d_vocab:
            return torch.zeros(len(logits), 0, dtype=torch.float64)
        return symbol_log_probabilities(logits, torch.tensor([ids[0] for ids in token_map.symbols]))

    @property
    def by_position(self) -> Float64[Tensor, "pos"] | None:
        """The regret; `None` if the model gives no logits."""
        return None if self._sums is None else self._sums.so_far[0]

    @property
    def outside(self) -> Float64[Tensor, "pos"] | None:
        """What of it is due to tokens that are no symbols; `None` if there are no others."""
        return self._sums.so_far[1] if self._sums is not None and self._sums.has_others else None

    def update(self, batch: _Answers, cells: Int[Tensor, "row"], n_cells: int) -> None:
        """Add a batch, from what the model answered to its words."""
        answers = batch.output
        if self._sums is None or not isinstance(answers, Tensor) or not answers.shape[-1] or batch.batch_words is None:
            self._sums = None
            return
        columns = moved(self.columns[batch.batch_words], answers.device).unsqueeze(2).expand(-1, -1, answers.shape[2])
        self._sums.add(answers.gather(1, columns), batch.batch_words)

    def state(self) -> dict[str, Tensor]:
        """The sums so far, to be saved."""
        if self._sums is None:
            return {}
        return {"regret": self._sums.so_far, "regret.others": torch.tensor([self._sums.has_others])}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from sums that `state` returned."""
        found, others = state.get("regret"), state.get("regret.others", torch.zeros(1))
        self._sums = None if found is None else _Sums(self.dataset, found, has_others=bool(others.any()))

    def reduce(self) -> None:
        """Add the sums of all processes."""
        if self._sums is not None:
            has_others = bool(total(torch.tensor([float(self._sums.has_others)])) > 0)
            self._sums = _Sums(self.dataset, total(self._sums.so_far), has_others=has_others)


def evaluation_words(process: Process, n_ctx: int, *, seed: int) -> BeliefDataset:
    """All words of a length, or a sample if there are more than 100,000, or too many to compare within seconds.

    The sample has at most four million tokens, and its beliefs and predictions at most 200 million probabilities each.
    """
    widest = max(process.n_states, process.n_tokens)
    most = min(100_000, 4_000_000 // n_ctx, 200_000_000 // (n_ctx * widest))
    return words(process, n_ctx=n_ctx, max_words=max(2, most), seed=seed)


def _divergence(
    optimal: Float64[Tensor, "row token"], log_predicted: Float64[Tensor, "row token"]
) -> Float64[Tensor, "row"]:
    """KL(optimal ‖ model) of each row, in nats."""
    # A third of the time that kl_divergence takes, but 0 · -inf is not a number.
    log_optimal = optimal.clamp_min(torch.finfo(torch.float64).tiny).log()
    divergence = torch.linalg.vecdot(optimal, log_optimal - log_predicted)
    return divergence if torch.isfinite(divergence).all() else kl_divergence(optimal, log_predicted)
