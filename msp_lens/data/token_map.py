"""How a model with a vocabulary of its own reads the symbols of a process.

A word x_0 x_1 … becomes

    [BOS] [prompt …] ⟨x_0⟩ [separator …] ⟨x_1⟩ [separator …] …

where ⟨x⟩ is one token or several. The belief after symbol x_t belongs to the position of ⟨x_t⟩'s last token, the first
at which the model can know x_t. The prior belief belongs to the position before ⟨x_0⟩.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any, TypedDict

import torch
from jaxtyping import Int
from torch import Tensor

from msp_lens._checks import Count, check_memory, checked, converted, value_errors
from msp_lens.processes.process import Process


class _Symbols(TypedDict):
    symbols: list[int | list[int]]


class TokenMapFields(_Symbols, total=False):
    """What `TokenMap.to_dict` writes; all but the symbols may be left out."""

    bos: int | None
    prompt: list[int]
    separator: list[int]
    include_prior: bool


@dataclass(frozen=True)
class TokenMap:
    """How a model reads a process's symbols.

    Args:
        symbols: For each of the process's symbols, in order, its token id or ids.
        bos: A token before everything else.
        prompt: Tokens after `bos` and before the first symbol.
        separator: Tokens between two symbols.
        include_prior: Whether the position before the first symbol is a row, too, with the belief before any symbol.
            It is unlike the others and heavy: held out, it is predicted badly by least squares, less so by ridge.

    Raises:
        ValueError: if an id is negative, the ids of one symbol begin with those of another, or no position is left for
            the prior.

    Example:
        >>> spaced = TokenMap(symbols=(64, 65), bos=50256, separator=(220,))
        >>> tokens, columns = spaced.encode(torch.tensor([[0, 1, 1]]))
        >>> tokens.tolist(), columns.tolist()
        ([[50256, 64, 220, 65, 220, 65]], [[1, 3, 5]])
    """

    symbols: tuple[tuple[int, ...], ...]
    bos: int | None = None
    prompt: tuple[int, ...] = ()
    separator: tuple[int, ...] = ()
    include_prior: bool = False

    @checked
    def __init__(
        self,
        symbols: Sequence[int | Sequence[int]],
        *,
        bos: int | None = None,
        prompt: Sequence[int] = (),
        separator: Sequence[int] = (),
        include_prior: bool = False,
    ) -> None:
        # A dataclass's own __init__ would not accept a single id in place of a sequence of ids.
        ids = tuple(tuple(_ids(symbol)) for symbol in symbols)
        values = (ids, bos, tuple(_ids(prompt)), tuple(_ids(separator)), include_prior)
        for field, value in zip(dataclasses.fields(self), values, strict=True):
            object.__setattr__(self, field.name, value)
        if not self.symbols or not all(self.symbols):
            raise ValueError(f"symbols={self.symbols}: give at least one token id for each of the process's symbols.")
        if (lowest := min(itertools.chain(*self.symbols, self.start, self.separator))) < 0:
            raise ValueError(f"Token id {lowest} in the token map: give ids of at least 0.")
        ordered = sorted((list(symbol), number) for number, symbol in enumerate(ids))
        for (shorter, first), (longer, second) in itertools.pairwise(ordered):
            if longer[: len(shorter)] == shorter:
                problem = "one begins with the other, so a model that has read the shorter one cannot tell them apart"
                remedy = "Give ids that do not begin with each other"
                raise ValueError(f"Symbols {first} and {second} have ids {shorter} and {longer}: {problem}. {remedy}.")
        if self.include_prior and not self.start:
            raise ValueError("include_prior=True, but no token comes before the first symbol: give bos= or prompt=.")

    @classmethod
    @checked
    def identity(cls, n_symbols: Count, *, bos: int | None = None, include_prior: bool = False) -> TokenMap:
        """Symbol 0 is token 0, and so on, after a BOS token if one is given."""
        check_memory(f"n_symbols={n_symbols}", 100 * n_symbols, "Give fewer.")
        return cls(range(n_symbols), bos=bos, include_prior=include_prior)

    @classmethod
    @checked
    def from_tokenizer(
        cls,
        tokenizer: Any,
        symbols: Sequence[str],
        *,
        separator: str = "",
        prompt: str = "",
        bos: bool | int | None = None,
        include_prior: bool = False,
        several_tokens: bool = False,
    ) -> TokenMap:
        """The map that writes each symbol as a text.

        Args:
            tokenizer: Anything with `encode(text)` or `tokenizer(text)`: transformers, tokenizers, tiktoken.
            symbols: A text for each of the process's symbols, usually after a space, `[" A", " B", " C"]`.
            separator: A text between two symbols.
            prompt: A text before the first symbol.
            bos: A token id, or `True` for the tokenizer's own `bos_token_id`; none by default.
            include_prior: As for `TokenMap`.
            several_tokens: Whether a symbol may be more than one token.

        Raises:
            ValueError: if a symbol is not one token (or several, where they are allowed), begins with the ids of
                another, or is split differently in a word.
            TypeError: if the tokenizer cannot be called in either way.
        """
        texts = list(symbols)
        ids = [_encode(tokenizer, text) for text in texts]
        for text, found in zip(texts, ids, strict=True):
            if not found or (len(found) > 1 and not several_tokens):
                problem = f"For the tokenizer, the symbol {text!r} is {len(found)} tokens, {found}"
                remedy = "write it as one token (often with a space before it), or set several_tokens=True"
                raise ValueError(f"{problem}: {remedy}.")
        own = getattr(tokenizer, "bos_token_id", None) if bos is True else None
        if bos is True and own is None:
            raise ValueError("bos=True, but the tokenizer has no bos_token_id: give a token id, or omit bos.")
        before, between = (_encode(tokenizer, text) if text else () for text in (prompt, separator))
        start = own if isinstance(bos, bool) else bos
        made = cls(ids, bos=start, prompt=before, separator=between, include_prior=include_prior)
        for first, second in itertools.product(range(len(texts)), repeat=2):
            text = prompt + texts[first] + separator + texts[second]
            expected = [*made.prompt, *ids[first], *made.separator, *ids[second]]
            if (joined := _encode(tokenizer, text)) != expected:
                raise ValueError(
                    f"The tokenizer splits {text!r} into {joined}, but symbol by symbol it is {expected}: the model "
                    "would read tokens that it never saw in training. Write the symbols differently, e.g. with a space "
                    "before each and no separator, or give the ids to TokenMap(...)."
                )
        return made

    @property
    def start(self) -> tuple[int, ...]:
        """The tokens before the first symbol."""
        return self.prompt if self.bos is None else (self.bos, *self.prompt)

    @cached_property
    def d_vocab(self) -> int:
        """The smallest vocabulary that a model needs: the largest id plus 1."""
        return 1 + max(itertools.chain(*self.symbols, self.start, self.separator))

    @property
    def is_identity(self) -> bool:
        """Whether the model reads the symbols themselves."""
        return self == TokenMap(range(len(self.symbols)))

    @checked
    def length(self, n_symbols: Count) -> int:
        """Tokens in the longest word of `n_symbols` symbols."""
        return len(self.start) + n_symbols * max(map(len, self.symbols)) + (n_symbols - 1) * len(self.separator)

    @checked
    def longest_word(self, n_ctx: Count) -> int:
        """The most symbols whose tokens always fit in a context of `n_ctx`."""
        each = max(map(len, self.symbols)) + len(self.separator)
        return max(0, (n_ctx - len(self.start) + len(self.separator)) // each)

    @checked
    def check_reads(self, process: Process) -> None:
        """Raise `ValueError` unless the map has as many symbols as the process."""
        if len(self.symbols) != process.n_tokens:
            counts = f"{len(self.symbols)} symbols, {process.name} emits {process.n_tokens}"
            raise ValueError(f"The token map has {counts}: give ids for each of them.")

    @checked
    def encode(self, words: Int[Tensor, "word symbol"]) -> tuple[Int[Tensor, "word pos"], Int[Tensor, "word symbol"]]:
        """Words of symbols as the model reads them; `ValueError` if the map has no ids for a symbol.

        Returns:
            The tokens, padded on the right, which a causal model does not see; the column of each symbol's last token.
        """
        last = len(self.symbols) - 1
        if words.numel() and (int(words.min()) < 0 or int(words.max()) > last):
            held = f"{int(words.min())} to {int(words.max())}"
            raise ValueError(f"The words hold symbols {held}; the token map has ids for 0 to {last}.")
        words = words.cpu()
        if self.predicts_symbols:
            first = torch.tensor(self.start, dtype=torch.int64).expand(len(words), -1)
            columns = torch.arange(first.shape[1], first.shape[1] + words.shape[1]).expand_as(words)
            return torch.cat([first, torch.tensor(self.symbols)[words, 0]], dim=1), columns
        longest = max(map(len, self.symbols))
        table = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in self.symbols])
        lengths = torch.tensor([len(ids) for ids in self.symbols])[words]
        ends = len(self.start) + (lengths + len(self.separator)).cumsum(dim=1) - len(self.separator)
        width = int(ends.max()) if words.numel() else len(self.start)
        tokens = torch.full((len(words), width), self.symbols[0][0], dtype=torch.int64)
        tokens[:, : len(self.start)] = torch.tensor(self.start, dtype=torch.int64)
        row = torch.arange(len(words)).unsqueeze(1).expand_as(words)
        for k in range(longest):
            has = lengths > k
            tokens[row[has], (ends - lengths + k)[has]] = table[words[has], k]
        for k, token in enumerate(self.separator):
            tokens[row[:, :-1], ends[:, :-1] + k] = token
        return tokens, ends - 1

    @property
    def predicts_symbols(self) -> bool:
        """Whether the model predicts symbols: each is one token, and the next follows at once."""
        return not self.separator and all(len(ids) == 1 for ids in self.symbols)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TokenMap:
        """The map from the values of `to_dict`; `ValueError` names a field that is missing, unknown or wrong."""
        with value_errors():
            return cls(**converted(fields, TokenMapFields, "token_map"))

    def to_dict(self) -> dict[str, Any]:
        """The map as JSON-ready values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def _ids(value: Any) -> list[int]:
    return [int(item) for item in ([value] if isinstance(value, Integral) else value)]


def _encode(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text, without special tokens."""
    call = getattr(tokenizer, "encode", tokenizer)
    if not callable(call):
        kind = type(tokenizer).__name__
        raise TypeError(f"tokenizer is a {kind}: give a tokenizer, with encode(text) or callable on a text.")
    try:
        found: Any = call(text, add_special_tokens=False)
    except TypeError:
        # tiktoken has no such option, and adds no special tokens by default.
        found = call(text)
    found = getattr(found, "ids", found)
    return _ids(found["input_ids"] if hasattr(found, "keys") else found)
