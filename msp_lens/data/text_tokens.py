"""Texts as a model reads them: their tokens, padded on the right, and where in its text each token stands."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from msp_lens._checks import as_tokens


@dataclass(frozen=True)
class TextTokens:
    """The tokens of some texts.

    Attributes:
        tokens: Padded on the right, so that padding changes no activation of a causal model before it.
        lengths: How many tokens of each text are no padding.
        is_own: Which tokens stand for something in the text: neither padding nor special tokens such as BOS.
        spans: Where each token starts and ends in its text, in characters; `None` if it was not asked for.
        n_cut: How many texts were truncated.
    """

    tokens: Int[Tensor, "text pos"]
    lengths: Int[Tensor, "text"]
    is_own: Bool[Tensor, "text pos"]
    spans: Int[Tensor, "text pos 2"] | None = None
    n_cut: int = 0


def texts_in(values: Any) -> list[str] | None:
    """The texts in any container; `None` if these are none."""
    if isinstance(values, str):
        return [values]
    if isinstance(values, Tensor | Mapping) or not hasattr(values, "__len__"):
        return None
    found = list(values)
    return [str(each) for each in found] if found and all(isinstance(each, str) for each in found) else None


def read_texts(
    texts: Sequence[str],
    tokenizer: Callable[..., Any],
    *,
    name: str = "tokens",
    spans: bool = False,
    prepend_bos: bool | None = None,
    n_ctx: int | None = None,
    truncate: bool = False,
) -> TextTokens:
    """The tokens of texts; errors call the texts `name`.

    Args:
        texts: The texts.
        tokenizer: A model with a tokenizer, a tokenizer of transformers, or whatever answers a list of texts as these.
        name: What errors call the texts.
        spans: Whether to find where each token stands in its text.
        prepend_bos: Whether texts begin with the BOS token; by default as the model does, or else as the tokenizer does
            by itself.
        n_ctx: The most tokens of a text; by default those that the model reads, if a model is given.
        truncate: Whether to leave out what is beyond, instead of refusing the text.

    Raises:
        ValueError: if the tokenizer does not answer what is needed, or a text has no tokens or too many.
    """
    read, cfg = tokenizer, None
    if hasattr(tokenizer, "hook_dict"):
        read, cfg = getattr(tokenizer, "tokenizer", None), getattr(tokenizer, "cfg", None)
        if read is None:
            raise ValueError(f"tokenizer is a {type(tokenizer).__name__} that has none itself: give the one it is for.")
    prepend_bos = getattr(cfg, "default_prepend_bos", None) if prepend_bos is None else prepend_bos
    n_ctx = getattr(cfg, "n_ctx", None) if n_ctx is None else n_ctx
    answer = _answer(texts, read, spans=spans)
    lists = {key: [as_tokens(each, "tokenizer") for each in answer[key]] for key in _KEYS if key in answer}
    if any(len(each) != len(texts) for each in lists.values()):
        raise ValueError(_unfit(read, "'input_ids' of each"))
    if "attention_mask" in lists:
        # Whatever it padded is taken out, wherever it stands.
        kept = [mask == 1 for mask in lists.pop("attention_mask")]
        lists = {key: [each[mask] for each, mask in zip(lists[key], kept, strict=True)] for key in lists}
    words, places = lists["input_ids"], lists.get("offset_mapping")
    if "special_tokens_mask" in lists:
        own = [mask == 0 for mask in lists["special_tokens_mask"]]
    elif places is not None:
        own = [each[:, 1] > each[:, 0] for each in places]
    else:
        own = [torch.ones(len(word), dtype=torch.bool) for word in words]
    bos = getattr(getattr(read, "func", read), "bos_token_id", None)
    if prepend_bos and bos is None:
        raise ValueError(f"prepend_bos: the {type(read).__name__} has no BOS token; give prepend_bos=False.")
    if prepend_bos is not None and bos is not None:
        knows_special = "special_tokens_mask" in lists
        for k, word in enumerate(words):
            has_bos = len(word) > 0 and int(word[0]) == bos and not (knows_special and own[k][0])
            if has_bos == prepend_bos:
                own[k][:1] &= not has_bos
                continue
            added = [torch.full((int(prepend_bos),), bos), torch.zeros(int(prepend_bos), dtype=torch.bool)]
            rest = slice(int(has_bos), None)
            words[k], own[k] = torch.cat([added[0], word[rest]]), torch.cat([added[1], own[k][rest]])
            if places is not None:
                places[k] = torch.cat([places[k].new_zeros(int(prepend_bos), 2), places[k][rest]])
    lengths = torch.tensor([len(word) for word in words])
    check_lengths(texts, lengths, name, n_ctx, truncate)
    cut, padding = slice(None, n_ctx if truncate else None), getattr(read, "pad_token_id", None)
    d_vocab = getattr(cfg, "d_vocab", None)
    if padding is None or (d_vocab is not None and padding >= d_vocab):
        # A tokenizer may pad with a token that the model does not have.
        padding = 0
    tokens = pad_sequence([word[cut] for word in words], batch_first=True, padding_value=padding)
    return TextTokens(
        tokens,
        lengths.clamp(max=tokens.shape[1]),
        pad_sequence([each[cut] for each in own], batch_first=True),
        pad_sequence([each[cut] for each in places], batch_first=True) if places is not None else None,
        int((lengths > tokens.shape[1]).sum()),
    )


_KEYS = ("input_ids", "attention_mask", "special_tokens_mask", "offset_mapping")


def _answer(texts: Sequence[str], tokenizer: Callable[..., Any], *, spans: bool) -> Mapping[str, Any]:
    """What the tokenizer says of the texts; options are for those that have them."""
    function = tokenizer
    while isinstance(function, functools.partial):
        function = function.func
    if spans and getattr(function, "is_fast", True) is False:
        raise ValueError(
            f"tokenizer is a {type(function).__name__}, a slow one that does not say where its tokens stand in a text: "
            "load the fast one, with transformers.AutoTokenizer.from_pretrained(…, use_fast=True)."
        )
    try:
        parameters = inspect.signature(tokenizer).parameters
    except (TypeError, ValueError):
        parameters = {}
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    asked = {"return_special_tokens_mask": True, "return_offsets_mapping": True} if spans else {}
    asked = asked or {"return_special_tokens_mask": True}
    options = {key: value for key, value in asked.items() if takes_any or key in parameters}
    found = tokenizer(list(texts), **options)
    if not isinstance(found, Mapping) or len(found.get("input_ids", ())) != len(texts):
        raise ValueError(_unfit(tokenizer, "'input_ids' of each"))
    if spans and "offset_mapping" not in found:
        raise ValueError(_unfit(tokenizer, "'offset_mapping' of each, where its tokens start and end"))
    return found


def _unfit(tokenizer: Callable[..., Any], what: str) -> str:
    kind = f"tokenizer is a {type(tokenizer).__name__} that does not answer a list of texts with the {what}"
    return f"{kind}: give one that does, as those of transformers, or give token ids."


def check_lengths(
    texts: Sequence[str], lengths: Int[Tensor, "text"], name: str, n_ctx: int | None, truncate: bool
) -> None:
    """Raise `ValueError` for a text without tokens, or with too many of them."""
    if (lengths == 0).any():
        empty = int((lengths == 0).nonzero()[0])
        raise ValueError(f"{name}[{empty}]={texts[empty]!r} has no tokens: leave it out.")
    if n_ctx is not None and not truncate and int(lengths.max()) > n_ctx:
        longest, n_long = int(lengths.argmax()), int((lengths > n_ctx).sum())
        others = f" (and {n_long - 1} more)" if n_long > 1 else ""
        raise ValueError(
            f"{name}[{longest}]={shortened(texts[longest])!r}{others} has {int(lengths[longest]):,} tokens, and "
            f"n_ctx={n_ctx:,}: shorten it, or leave out what is beyond by truncate=True."
        )


def shortened(text: str) -> str:
    """The beginning of a long text, for a message."""
    return text if len(text) <= 40 else f"{text[:39]}…"
