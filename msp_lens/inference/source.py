"""What a process is inferred from, a network, data or a process: words to fit to, and longer ones to judge by.

Machines are fitted to the probabilities of all words of L tokens. They are judged by what follows contexts of L tokens
and more, which are in no word that they were fitted to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens._checks import converted
from msp_lens.beliefs.filtering import filter_beliefs
from msp_lens.beliefs.information import kl_divergence
from msp_lens.data import TokenMap
from msp_lens.inference.predictor import network_predictor, reader_of
from msp_lens.inference.word_probabilities import (
    WordProbabilities,
    data_words,
    network_words,
    process_words,
    sampled_from_network,
)
from msp_lens.models.hooked import HookedModel
from msp_lens.models.model_files import model_fingerprint
from msp_lens.processes.process import Process
from msp_lens.processes.validation import ArrayLike

Kind = Literal["network", "data", "process"]
# Contexts that candidates are judged after, and the share of data held out for it.
_N_CONTEXTS, _HELD_OUT = 2_000, 0.2
_IMPOSSIBLE = 1e-12
# The longest words and contexts where nothing limits them.
_LONGEST = 12


@dataclass(frozen=True, eq=False)
class Source:
    """Words to fit to, and contexts to judge by.

    Attributes:
        kind: What the words are of.
        name: What to call it.
        words: What machines are fitted to.
        contexts: What candidates are judged after.
        weights: How often each context came; they sum to 1.
        next_token: P(next | context) after each token, of a network or process; `None` for data.
        first_position: The first position of the contexts at which candidates are judged.
        fingerprint: Of the network or process; `None` for data.
    """

    kind: Kind
    name: str
    words: WordProbabilities
    contexts: Int[Tensor, "word pos"]
    weights: Float64[Tensor, "word"]
    next_token: Float64[Tensor, "word pos token"] | None
    first_position: int
    fingerprint: str | None = None

    @property
    def is_held_out(self) -> bool:
        """Whether candidates are judged by what they were not fitted to."""
        return self.kind == "data" or self.first_position >= self.words.length - 1

    def judge(self, process: Process) -> float:
        """KL(source ‖ process) of the next token, in nats; for data the expected loss. Infinite if it can't be."""
        if self.next_token is None:
            log_probabilities = process.word_log_probabilities(self.contexts)
            return -float(self.weights @ log_probabilities) / self.contexts.shape[1]
        try:
            beliefs = filter_beliefs(process, self.contexts)[:, self.first_position :]
        except ValueError:
            # A word of the source is impossible for the process.
            return float("inf")
        predicted = (beliefs @ process.emissions).clamp_min(0)
        # What is as improbable as this is impossible, up to rounding.
        optimal = torch.where(self.next_token > _IMPOSSIBLE, self.next_token, 0.0)[:, self.first_position :]
        return float(self.weights @ kl_divergence(optimal, predicted.log()).mean(dim=1))


def read_source(
    source: HookedModel | Process | Tensor,
    *,
    n_ctx: int | None,
    token_map: TokenMap | None,
    first: ArrayLike,
    max_words: int,
    seed: int,
) -> Source:
    """The source's words, and what candidates are judged by; errors as for `infer`."""
    if isinstance(source, Process):
        return _of_process(source, n_ctx or _LONGEST, max_words, seed)
    if hasattr(source, "hook_dict"):
        return _of_network(source, n_ctx, token_map, first, max_words, seed)
    return _of_data(converted(source, Int[Tensor, "word pos"], "source"), n_ctx, max_words)


def _of_process(process: Process, n_ctx: int, max_words: int, seed: int) -> Source:
    length = _word_length(process.n_tokens, n_ctx, max_words)
    words = process_words(process, length, max_words=max_words, seed=seed)
    contexts, weights = _distinct(process.sample(_N_CONTEXTS, n_ctx, seed=seed))
    next_token = filter_beliefs(process, contexts) @ process.emissions
    first = _first_position(length, n_ctx)
    return Source("process", process.name, words, contexts, weights, next_token, first, process.fingerprint)


def _of_network(
    model: Any, n_ctx: int | None, token_map: TokenMap | None, first: ArrayLike, max_words: int, seed: int
) -> Source:
    reader, fits = reader_of(model, n_ctx=n_ctx, token_map=token_map)
    longest = fits or _LONGEST
    length = _word_length(len(reader.token_map.symbols), longest, max_words)
    predictor = network_predictor(model, n_ctx=n_ctx, token_map=token_map, first=first)
    words = network_words(predictor, length, max_words=max_words, seed=seed)
    contexts, weights = _distinct(sampled_from_network(predictor, _N_CONTEXTS, longest, seed=seed))
    after, first_position = predictor.after(contexts), _first_position(length, longest)
    fingerprint = model_fingerprint(model)
    return Source("network", "a network", words, contexts, weights, after, first_position, fingerprint)


def _of_data(tokens: Int[Tensor, "word pos"], n_ctx: int | None, max_words: int) -> Source:
    if tokens.ndim != 2 or tokens.numel() < 10:
        raise ValueError(f"source has shape {tuple(tokens.shape)}: give sequences of tokens [word, pos], 10 at least.")
    if int(tokens.min()) < 0:
        raise ValueError(f"source holds token {int(tokens.min())}: give numbers of at least 0.")
    n_tokens = int(tokens.max()) + 1
    if len(tokens) >= 5:
        cut = len(tokens) - max(1, int(_HELD_OUT * len(tokens)))
        fitted, held_out = tokens[:cut], tokens[cut:]
    else:
        cut = tokens.shape[1] - max(2, int(_HELD_OUT * tokens.shape[1]))
        fitted, held_out = tokens[:, :cut], tokens[:, cut:]
    length = _word_length(n_tokens, min(n_ctx or _LONGEST, fitted.shape[1]), max_words)
    words = replace(data_words(fitted, length, n_tokens=n_tokens), n_seen=fitted.numel())
    return Source("data", "data", words, *_distinct(held_out), None, 0)


def _word_length(n_tokens: int, n_ctx: int, max_words: int) -> int:
    """The longest words of which there are not too many, which leave the last prediction of the context for judging."""
    if n_ctx < 2:
        raise ValueError(f"n_ctx={n_ctx}: words of three tokens are needed, so contexts of two at least.")
    longest = n_ctx if n_ctx > 3 else n_ctx + 1
    length = longest
    while length > 3 and n_tokens**length > max_words:
        length -= 1
    # Too many even of the shortest: words are sampled, and may as well be longer.
    return min(longest, 8) if n_tokens**length > max_words else length


def _first_position(length: int, n_ctx: int) -> int:
    """Predictions after `length` tokens and more were in no word that was fitted to; if there are none, all count."""
    return min(length - 1, n_ctx - 1) if n_ctx >= length else 0


def _distinct(words: Int[Tensor, "word pos"]) -> tuple[Int[Tensor, "distinct pos"], Float64[Tensor, "distinct"]]:
    """The distinct words, and how often each came."""
    distinct, counts = torch.unique(words, dim=0, return_counts=True)
    return distinct, counts.double() / len(words)
