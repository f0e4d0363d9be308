"""What a network predicts after any word: P(next | x_0 … x_t), as a function of words alone.

A causal network without a token before the first one says nothing of the first. In a stationary process, the second
token is distributed as the first, so its distribution p is the fixed vector of the network's own predictions,

    p(y) = Σ_x p(x) P(y | x).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens._checks import Count, check_memory, checked
from msp_lens.data import TokenMap
from msp_lens.models.activations import stream_activations
from msp_lens.models.hooked import HookedModel, check_fits_map, context_length, vocabulary_size
from msp_lens.models.symbol_reader import SymbolReader
from msp_lens.processes.chains import stationary_distribution
from msp_lens.processes.validation import ArrayLike, validated_distribution

# Probability of tokens that are no symbols, above which a note says so.
_NOTABLE_LEAK = 1e-3


@dataclass(frozen=True, eq=False)
class Predictor:
    """A network as a source of words.

    Attributes:
        n_tokens: Size of the alphabet.
        longest: The longest word after which it predicts; `None` if there is no limit.
        first: Distribution of the first token.
        after: The next token's distribution after each token of some words.
        notes: What was assumed.
    """

    n_tokens: int
    longest: int | None
    first: Float64[Tensor, "token"]
    after: Callable[[Int[Tensor, "word pos"]], Float64[Tensor, "word pos token"]]
    notes: tuple[str, ...] = ()

    def along(self, words: Int[Tensor, "word pos"]) -> Float64[Tensor, "word pos_1 token"]:
        """The next token's distribution before the first token and after each."""
        start = self.first.expand(len(words), 1, -1)
        return torch.cat([start, self.after(words)], dim=1) if words.shape[1] else start

    def log_probabilities(self, words: Int[Tensor, "word pos"]) -> Float64[Tensor, "word"]:
        """Each word's log-probability."""
        return self.along(words[:, :-1]).gather(2, words.unsqueeze(2)).squeeze(2).log().sum(dim=1)


def reader_of(
    model: HookedModel, *, n_ctx: int | None = None, token_map: TokenMap | None = None
) -> tuple[SymbolReader, int | None]:
    """The model as it reads symbols, and the longest word that it is to read; errors as for `network_predictor`.

    The model is not run.
    """
    size = vocabulary_size(model)
    if token_map is None and size is None:
        raise ValueError("The model does not say how many tokens it has (cfg.d_vocab): give token_map=.")
    n_tokens = (size or 1) if token_map is None else len(token_map.symbols)
    what = f"What follows each of {n_tokens:,} symbols"
    check_memory(what, 16.0 * n_tokens**2, "Give token_map=, with the symbols that the model is to read.")
    token_map = token_map or TokenMap.identity(n_tokens)
    reader = SymbolReader(model, token_map)
    fits = n_ctx or context_length(reader)
    check_fits_map(model, token_map, fits or 1, predicts=True, emitter="the token map")
    return reader, fits


@checked
def network_predictor(
    model: HookedModel,
    *,
    n_ctx: Count | None = None,
    token_map: TokenMap | None = None,
    first: ArrayLike = None,
    batch_size: Count | None = None,
) -> Predictor:
    """A network's own next-token probabilities, in float64.

    Args:
        model: Any hooked causal model with logits.
        n_ctx: The longest word of symbols to read; by default as many as fit in its context.
        token_map: How it reads symbols; by default each token of its vocabulary is one.
        first: Distribution of the first symbol. By default it is what the model predicts before it, if the token map
            has a token there, and else the fixed vector of its predictions after one symbol.
        batch_size: Words in one forward pass.

    Raises:
        ValueError: if two symbols begin with the same token, the model has no known vocabulary or a bidirectional
            attention, or words of `n_ctx` symbols do not fit in its context.
    """
    reader, fits = reader_of(model, n_ctx=n_ctx, token_map=token_map)
    token_map, n_tokens = reader.token_map, len(reader.token_map.symbols)
    given = None if first is None else validated_distribution(first, n_tokens, "first")
    leaks = [0.0]

    def symbols_alone(every: Float64[Tensor, "*batch symbol_or_other"]) -> Float64[Tensor, "*batch token"]:
        if every.isnan().any():
            raise ValueError("The model's logits hold NaN: check its weights.")
        symbols = every.cpu()[..., :-1]
        total = symbols.logsumexp(dim=-1, keepdim=True)
        leaks[0] = max(leaks[0], -float(torch.expm1(total).mean()))
        return (symbols - total).exp()

    def after(words: Int[Tensor, "word pos"]) -> Float64[Tensor, "word pos token"]:
        batches = stream_activations(reader, words, (), batch_size=batch_size)
        return torch.cat([symbols_alone(batch.output) for batch in batches])

    # After every symbol alone, which also shows whether the model answers at all.
    single = after(torch.arange(n_tokens).unsqueeze(1))
    notes = []
    if given is not None:
        distribution = given
        notes.append("The first token's distribution was given.")
    elif token_map.start:
        distribution = symbols_alone(reader.at_start())
    else:
        found = stationary_distribution(single[:, 0])
        distribution = torch.full((n_tokens,), 1 / n_tokens, dtype=torch.float64) if found is None else found
        notes.append(
            "The network says nothing of the first token: its distribution is assumed to be that of the second, as in "
            "a stationary process. Give first= if it is known."
        )
    if leaks[0] > _NOTABLE_LEAK:
        notes.append(f"Up to {leaks[0]:.1%} of the probability went to tokens that are no symbols, and was left out.")
    return Predictor(n_tokens, fits, distribution, after, tuple(notes))
