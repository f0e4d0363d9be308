"""Regret: how far a model's predictions are from the optimal observer's, at each position.

    regret(t) = E KL(P(next | x_0 … x_t) ‖ model's)  =  cross-entropy(t) - h_{t+2}

in nats, the expectation over words by their probability. Unlike a loss it has a floor of 0. It is exact where every
possible word is visited, because the optimal next-token distribution stands in for the next token.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens._checks import Count, checked
from msp_lens.beliefs.filtering import next_token_probabilities
from msp_lens.beliefs.information import kl_divergence
from msp_lens.data import BeliefDataset, TokenMap, words
from msp_lens.models.activations import stream_activations
from msp_lens.models.hooked import HookedModel, check_fits
from msp_lens.models.symbol_reader import SymbolReader, reading_symbols
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
    check_fits(model, dataset.process, dataset.n_ctx, token_map=dataset.token_map, predicts=True)
    reader, plain = reading_symbols(model, dataset.token_map), replace(dataset, token_map=None)
    regret = torch.zeros(dataset.n_ctx, dtype=torch.float64)
    for batch in stream_activations(reader, dataset.tokens, (), batch_size=batch_size, progress=progress):
        regret += batch_regret(batch.output, plain, batch.words)
    return regret


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
    check_fits(model, dataset.process, dataset.n_ctx, token_map=dataset.token_map, predicts=True)
    token_map = dataset.token_map or TokenMap.identity(dataset.process.n_tokens)
    reader = cast(HookedModel, SymbolReader(model, token_map))
    outside = torch.zeros(dataset.n_ctx, dtype=torch.float64)
    for batch in stream_activations(reader, dataset.tokens, (), batch_size=batch_size):
        outside -= dataset.word_weights[batch.words] @ batch.output.cpu()[..., :-1].logsumexp(dim=-1)
    return outside


def batch_regret(logits: Tensor, dataset: BeliefDataset, words: slice) -> Float64[Tensor, "pos"]:
    """The part of the regret that these words of the dataset contribute, given the model's logits for them.

    Probability that the model gives to a token that is no symbol under the token map adds to its regret. The work goes
    by batches of positions, so a large vocabulary needs little memory.
    """
    token_map = dataset.token_map or TokenMap.identity(dataset.process.n_tokens)
    first, symbols = len(token_map.start), [ids[0] for ids in token_map.symbols]
    read = logits.detach()[:, first : first + dataset.n_ctx].flatten(0, 1)
    beliefs = dataset.beliefs[words].flatten(0, 1)
    size = max(1, _AT_ONCE // max(read.shape[1], dataset.process.n_tokens))
    divergence = [
        _divergence(next_token_probabilities(dataset.process, some), part, symbols)
        for some, part in zip(beliefs.split(size), read.split(size), strict=True)
    ]
    return dataset.word_weights[words] @ torch.cat(divergence).unflatten(0, (-1, dataset.n_ctx))


def evaluation_words(process: Process, n_ctx: int, *, seed: int) -> BeliefDataset:
    """All words of a length, or a sample if there are more than 100,000, or too many to compare within seconds.

    The sample has at most four million tokens, and predictions for it at most 200 million probabilities.
    """
    most = min(100_000, 4_000_000 // n_ctx, 200_000_000 // (n_ctx * process.n_tokens))
    return words(process, n_ctx=n_ctx, max_words=max(2, most), seed=seed)


def _divergence(optimal: Float64[Tensor, "row token"], logits: Tensor, symbols: list[int]) -> Float64[Tensor, "row"]:
    """KL(optimal ‖ model) of each row, in nats."""
    log_predicted = logits.cpu().double().log_softmax(dim=-1)
    if symbols != list(range(log_predicted.shape[1])):
        log_predicted = log_predicted[:, symbols]
    # A third of the time that kl_divergence takes, but 0 · -inf is not a number.
    log_optimal = optimal.clamp_min(torch.finfo(torch.float64).tiny).log()
    divergence = torch.linalg.vecdot(optimal, log_optimal - log_predicted)
    return divergence if torch.isfinite(divergence).all() else kl_divergence(optimal, log_predicted)
