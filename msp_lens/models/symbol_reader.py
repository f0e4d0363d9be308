"""A model that reads a process's symbols, whatever its own vocabulary: the seam between a language model and a process.

A `TokenMap` says how symbols become tokens. Seen through it, a model reads words of symbols `[word, pos]`, has one
activation for each symbol (that of its last token), and answers with log-probabilities of the next symbol,

    log P(symbol 0 | …), …, log P(symbol n - 1 | …), log P(any other token | …)        [word, pos, symbol + 1],

over the model's whole vocabulary. So whatever reads, edits and scores a network that was trained on the symbols
themselves does the same to a language model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any, cast

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torch.nn.functional import pad

from msp_lens._arrays import moved
from msp_lens._checks import checked
from msp_lens.data.token_map import TokenMap
from msp_lens.models.activations import reduced_logits
from msp_lens.models.beginning import CachedBeginning
from msp_lens.models.hooked import HookedModel, SeenModel, check_fits_map, context_length, evaluating, unwrapped
from msp_lens.models.sites import is_attention


class SymbolReader(SeenModel):
    """A hooked model seen through a token map: a `HookedModel` whose tokens are symbols.

    Hooks see and edit the activations at each symbol's last token. The next symbol is predicted from the position
    before it, after the separator if there is one; a symbol of several tokens is read by its first.

    Args:
        model: Any hooked model that returns logits over its vocabulary.
        token_map: How it reads the symbols.

    Raises:
        ValueError: if two symbols begin with the same token, so that the next symbol cannot be read from one
            prediction, or the model's vocabulary lacks a token.
    """

    @checked
    def __init__(self, model: HookedModel, token_map: TokenMap) -> None:
        check_fits_map(model, token_map, 1, predicts=True, emitter="the token map")
        firsts = [ids[0] for ids in token_map.symbols]
        if len(set(firsts)) < len(firsts):
            twice = next(first for first in firsts if firsts.count(first) > 1)
            both = [number for number, first in enumerate(firsts) if first == twice]
            raise ValueError(
                f"Symbols {both[0]} and {both[1]} both begin with token {twice}, so a prediction of it does not tell "
                "which comes next: write the symbols so that each begins with a token of its own."
            )
        self.model, self.token_map = cast(Any, unwrapped(model)), token_map
        self._firsts = torch.tensor(firsts)
        # Of the forward pass that is under way: the column of each symbol, and the number of columns.
        self._columns: Int[Tensor, "word pos"] | None = None
        self._width = 0
        # Symbols that the model has read, and the number of tokens that it need not read again; see `after`.
        self._beginning: Int[Tensor, "word pos"] | None = None
        self._skipped, self._room = 0, None

    @property
    def cfg(self) -> SimpleNamespace:
        """The model's config, with sizes counted in symbols."""
        sizes = {"d_vocab": len(self._firsts), "d_vocab_out": len(self._firsts) + 1}
        if self._beginning is not None:
            return self._config(**sizes, n_ctx=self._room)
        longest = context_length(self.model)
        return self._config(**sizes, n_ctx=longest and self._most_symbols(longest))

    def _most_symbols(self, n_ctx: int) -> int:
        # The last symbol is followed by a separator, after which the next is predicted.
        return self.token_map.longest_word(n_ctx - len(self.token_map.separator))

    @checked
    def after(self, beginning: Int[Tensor, "word pos"]) -> SymbolReader:
        """The reader of the symbols that follow a beginning, which the model has then read; see `CachedBeginning`."""
        if self._beginning is not None:
            raise ValueError(f"{self!r} is after a beginning already: give the whole beginning at once.")
        read, columns, _ = self._encoded(beginning)
        # Symbols may be of several tokens, so that some beginnings end before others.
        skipped = int(columns[:, -1].min()) + 1
        reader, length = copy.copy(self), context_length(cast(HookedModel, self))
        reader.model = CachedBeginning(self.model, read[:, :skipped])
        reader._beginning, reader._skipped = beginning, skipped
        reader._room = None if length is None else length - beginning.shape[1]
        return reader

    def hooks(self, fwd_hooks: list[Any]) -> AbstractContextManager:
        """The model's own `hooks`, each seeing `[word, pos, …]` at the symbols' last tokens."""
        return self.model.hooks(fwd_hooks=[(name, self._at_symbols(name, function)) for name, function in fwd_hooks])

    def _at_symbols(self, name: str, function: Callable[[Tensor, Any], Tensor | None]) -> Callable:
        def hooked(activation: Tensor, hook: Any) -> Tensor | None:
            columns = self._columns
            assert columns is not None, "the model within a reader was called while the reader's hooks were on it"
            if activation.ndim < 3 or activation.shape[1] != self._width or is_attention(name):
                return function(activation, hook)
            # A positional embedding may come once for all words.
            whole = activation.expand(len(columns), *activation.shape[1:])
            columns = columns.to(activation.device)
            words = torch.arange(len(columns), device=activation.device).unsqueeze(1)
            edited = function(whole[words, columns], hook)
            if edited is None:
                return None
            result = whole.clone()
            result[words, columns] = edited.to(result.dtype)
            return result

        return hooked

    def __call__(self, tokens: Int[Tensor, "word pos"]) -> Float64[Tensor, "word pos symbol_or_other"]:
        """Log-probabilities of the next symbol and of any other token, after each of these symbols."""
        read, columns, predicting = self._encoded(tokens)
        self._columns, self._width = columns, read.shape[1]
        try:
            found = reduced_logits(self.model, read.to(tokens.device), self.answer, predicting)
        finally:
            self._columns = None
        assert found is not None, "the model returned no logits [word, pos, token]"
        return found

    def at_start(self) -> Float64[Tensor, "symbol_or_other"]:
        """Log-probabilities of the first symbol, from the tokens before it; `ValueError` if there are none."""
        if not self.token_map.start:
            raise ValueError("No token comes before the first symbol, so nothing predicts it: give bos= or prompt=.")
        tokens = torch.tensor([self.token_map.start], device=next(self.parameters()).device)
        with evaluating(cast(HookedModel, self.model)):
            return self.answer(self.model(tokens)[:, -1])[0]

    def _encoded(self, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The tokens to read, the column of each symbol, and the column from which the next symbol is predicted."""
        if self._beginning is None:
            return read_ahead(self.token_map, words)
        first = self._beginning.shape[1]
        beginning = self._beginning.to(words.device).expand(len(words), -1)
        tokens, columns, predicting = read_ahead(self.token_map, torch.cat([beginning, words], dim=1))
        return tokens[:, self._skipped :], columns[:, first:] - self._skipped, predicting[:, first:] - self._skipped

    def answer(self, logits: Float[Tensor, "row token"]) -> Float64[Tensor, "row symbol_or_other"]:
        """Log-probabilities of the next symbol and of any other token."""
        return symbol_log_probabilities(logits, self._firsts)

    def __repr__(self) -> str:
        return f"SymbolReader({type(self.model).__name__}, {len(self._firsts)} symbols)"


def read_ahead(
    token_map: TokenMap, words: Int[Tensor, "word pos"]
) -> tuple[Int[Tensor, "word column"], Int[Tensor, "word pos"], Int[Tensor, "word pos"]]:
    """The tokens to read, the column of each symbol, and the column from which the next symbol is predicted."""
    n_after = len(token_map.separator)
    if not n_after:
        tokens, columns = token_map.encode(words)
        return tokens, columns, columns
    # One symbol more brings the separator before it.
    longer = torch.cat([words, torch.zeros_like(words[:, :1])], dim=1)
    tokens, columns = token_map.encode(longer)
    columns = columns[:, :-1]
    return tokens[:, : int(columns.max()) + n_after + 1], columns, columns + n_after


def symbol_log_probabilities(
    logits: Float[Tensor, "row token"], symbols: Int[Tensor, "symbol"]
) -> Float64[Tensor, "row symbol_or_other"]:
    """Log P(symbol) of each symbol's token, then log P(any other token): -∞ if there is no other."""
    if torch.equal(symbols, torch.arange(logits.shape[1], device=symbols.device)):
        return pad(logits.double().log_softmax(dim=1), (0, 1), value=-torch.inf)
    symbols, scores = moved(symbols, logits.device), logits.to(torch.float64, copy=True)
    own = scores[:, symbols]
    rest = scores.index_fill_(1, symbols, -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([own, rest], dim=1).log_softmax(dim=1)


@checked
def reading_symbols(model: HookedModel, token_map: TokenMap | None) -> HookedModel:
    """The model as it reads symbols through a token map; the model itself where symbols are its tokens.

    Example:
        >>> from msp_lens.models.build import ModelConfig, build_model
        >>> model = build_model(ModelConfig(d_vocab=50, n_ctx=12))
        >>> reader = reading_symbols(model, TokenMap(symbols=(7, 9), bos=0, separator=(3,)))
        >>> reader(torch.tensor([[0, 1, 1]])).shape
        torch.Size([1, 3, 3])
    """
    if token_map is None or token_map.is_identity:
        return model
    return cast(HookedModel, SymbolReader(model, token_map))
