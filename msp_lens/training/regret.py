"""Regret: how far a model's predictions are from the optimal observer's, at each position.

    regret(t) = E KL(P(next | x_0 … x_t) ‖ model's)  =  cross-entropy(t) - h_{t+2}

in nats, the expectation over words by their probability. Unlike a loss it has a floor of 0. It is exact where every
possible word is visited, because the optimal next-token distribution stands in for the next token.
"""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens.beliefs.filtering import next_token_probabilities
from msp_lens.beliefs.information import kl_divergence
from msp_lens.data import BeliefDataset, TokenMap
from msp_lens.models.activations import stream_activations
from msp_lens.models.hooked import HookedModel, check_fits


def regret_by_position(
    model: HookedModel, dataset: BeliefDataset, *, batch_size: int | None = None, progress: str | None = None
) -> Float64[Tensor, "pos"]:
    """E KL(optimal ‖ model) at each position, in nats; exact where the dataset is the population.

    Raises:
        ValueError: if the model's vocabulary or context is too small, or symbols are not what it predicts, since the
            token map spells one with several tokens or separates them.
    """
    token_map = dataset.token_map
    check_fits(model, dataset.process, dataset.n_ctx, token_map=token_map)
    if token_map is not None and not token_map.predicts_symbols:
        raise ValueError(
            "The model does not predict symbols: the token map needs symbols of one token and no separator."
        )
    regret = torch.zeros(dataset.n_ctx, dtype=torch.float64)
    for batch in stream_activations(model, dataset.encoded()[0], (), batch_size=batch_size, progress=progress):
        regret += batch_regret(batch.output, dataset, batch.words)
    return regret


def batch_regret(logits: Tensor, dataset: BeliefDataset, words: slice) -> Float64[Tensor, "pos"]:
    """The part of the regret that these words of the dataset contribute, given the model's logits for them.

    Probability that the model gives to a token that is no symbol under the token map adds to its regret.
    """
    optimal = next_token_probabilities(dataset.process, dataset.beliefs[words])
    token_map = dataset.token_map or TokenMap.identity(dataset.process.n_tokens)
    first = len(token_map.start)
    read = logits.detach()[:, first : first + dataset.n_ctx].cpu().double()
    log_predicted = read.log_softmax(dim=-1)[..., [ids[0] for ids in token_map.symbols]]
    return dataset.word_weights[words] @ kl_divergence(optimal, log_predicted)
