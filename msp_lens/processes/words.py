"""Words in any container: token numbers, the names of tokens, or text made of names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from msp_lens._checks import as_tokens, shown

# Token numbers [word, pos] or [pos], names of tokens in lists, or texts: whatever `read_words` reads.
Words: TypeAlias = Any


def read_words(words: Words, names: Sequence[str], *, what: str = "words") -> Int[Tensor, "word pos"]:
    """Words as token numbers, on the CPU; a single word has one axis, or is one text.

    - Numbers come in lists, arrays, tensors or columns.
    - Names come in lists: `["A", "B"]` is one word, `[["A", "B"], ["B", "B"]]` are two.
    - A text is a word: its names follow each other, with or without spaces between. A list of texts holds a word each,
      unless all of them are names.

    Raises:
        TypeError: if these are neither numbers nor names.
        ValueError: if a number is not whole or a name unknown, words differ in length, or a text has two readings.

    Example:
        >>> read_words("ABBA", ("A", "B"))
        tensor([[0, 1, 1, 0]])
        >>> read_words("AAB", ("A", "AB", "B"))
        Traceback (most recent call last):
        ...
        ValueError: words: 'AAB' can be read as A AB and as A A B: put spaces between the names, or give a list of them.
    """
    if isinstance(words, str):
        return torch.tensor([_numbers(_spelled(words, names, what), names, what)])
    try:
        numbers = as_tokens(words, what).cpu()
    except (TypeError, ValueError):
        items = _items(words)
        if not any(isinstance(item, str) or any(isinstance(each, str) for each in _items(item)) for item in items):
            raise
        return _named_words(items, names, what)
    numbers = numbers.unsqueeze(0) if numbers.ndim == 1 else numbers
    if numbers.ndim != 2:
        raise ValueError(f"{what} has shape {tuple(numbers.shape)}: give [word, pos], or [pos] for one word.")
    return numbers


def _named_words(items: list[Any], names: Sequence[str], what: str) -> Int[Tensor, "word pos"]:
    if all(isinstance(item, str) for item in items) and not set(items) <= set(names):
        found = [_numbers(_spelled(item, names, what), names, what) for item in items]
    elif any(isinstance(item, list | tuple) or hasattr(item, "tolist") for item in items):
        found = [_numbers(_items(item), names, what) for item in items]
    else:
        found = [_numbers(items, names, what)]
    if len({len(word) for word in found}) > 1:
        lengths = sorted({len(word) for word in found})
        raise ValueError(f"{what} have {lengths[0]} to {lengths[-1]} tokens: give words of one length.")
    return torch.tensor(found)


def _items(value: Any) -> list[Any]:
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0:
        return []
    return list(getattr(value, "tolist", lambda: value)())


def _numbers(word: Sequence[Any], names: Sequence[str], what: str) -> list[int]:
    """The numbers of a word's tokens, each a name or a number."""
    known = {name: number for number, name in enumerate(names)}
    if unknown := [token for token in word if isinstance(token, str) and token not in known]:
        raise ValueError(f"{what}: {unknown[0]!r} is no token; the tokens are {_listed(names)}.")
    return [known[token] if isinstance(token, str) else int(as_tokens(token, what)) for token in word]


def _spelled(text: str, names: Sequence[str], what: str) -> list[str]:
    """The names that a text is made of; of pieces between spaces, those that are names are meant as such."""
    pieces = [text] if any(name != "".join(name.split()) for name in names) else text.split()
    if len(pieces) > 1:
        return [name for piece in pieces for name in ([piece] if piece in names else _spelled(piece, names, what))]
    # The ways to read the first letters of the piece, up to two for each length.
    piece = "".join(pieces)
    readings: list[list[list[str]]] = [[[]], *([] for _ in piece)]
    for end in range(1, len(piece) + 1):
        ways = ([*way, name] for name in names if piece[:end].endswith(name) for way in readings[end - len(name)])
        readings[end] = [way for way, _ in zip(ways, range(2), strict=False)]
    if not readings[-1]:
        read = max(end for end, ways in enumerate(readings) if ways)
        problem = f"{shown(piece)} is not made of tokens after {shown(piece[:read])}"
        raise ValueError(f"{what}: {problem}; the tokens are {_listed(names)}.")
    if len(readings[-1]) > 1:
        first, second = (" ".join(way) for way in readings[-1])
        remedy = "put spaces between the names, or give a list of them"
        raise ValueError(f"{what}: {shown(piece)} can be read as {first} and as {second}: {remedy}.")
    return readings[-1][0]


def _listed(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
