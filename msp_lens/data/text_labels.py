"""Which tokens carry a label that was given for some of a text's characters, for its words, or for all of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from msp_lens._checks import as_tokens, shown
from msp_lens.data.target_values import BELIEF, LABEL, NO_LABEL, Values, has_label, target_values
from msp_lens.data.text_tokens import TextTokens, check_lengths, read_texts, shortened, texts_in

# Which of the tokens that a label is for carry it.
LabelAt: TypeAlias = Literal["all", "first", "last"]
_Kind: TypeAlias = Literal["text", "span", "part"]


@dataclass(frozen=True)
class LabelledTexts:
    """Texts as a model reads them, with targets at some of their tokens.

    Attributes:
        read: The tokens.
        is_row: Where every target has a value.
        values: By name, numbers `[row, target]` or `[row]`, or labels `[row]`.
        classes: By name, the classes of a target in order, where they are known.
        n_unread: How many labels no token carries.
    """

    read: TextTokens
    is_row: Bool[Tensor, "text pos"]
    values: dict[str, Values]
    classes: dict[str, tuple[str, ...]]
    n_unread: int


@dataclass(frozen=True)
class _Items:
    """The labels of one target, one after the other, each with its text.

    `kind` says what a label is for: all of the text, some characters (from `start` to `end`), or the part of that
    number, a word or a token id.
    """

    what: str
    kind: _Kind
    labels: list[Any]
    text: np.ndarray
    start: np.ndarray
    end: np.ndarray


def label_texts(
    texts: Any,
    targets: Any,
    *,
    tokenizer: Callable[..., Any] | None,
    outside: str | int | None = None,
    label_at: LabelAt | None = None,
    prepend_bos: bool | None = None,
    n_ctx: int | None = None,
    truncate: bool = False,
    class_names: Mapping[str, Sequence[str]] | None = None,
    name: str = "texts",
) -> LabelledTexts:
    """Texts, lists of words, or lists of token ids, with their targets at tokens; see `LabelledTokens.from_text`.

    Args:
        texts: Texts, words or token ids.
        targets: By name or alone, with an entry for each text.
        tokenizer: For all but token ids.
        outside: The class of tokens that no label is for.
        label_at: Which of the tokens that a label is for carry it.
        prepend_bos: As for `read_texts`, and so are `n_ctx` and `truncate`.
        n_ctx: The most tokens of a text.
        truncate: Whether to leave out what is beyond.
        class_names: By target, the names of its classes, if its labels are their numbers.
        name: What errors call the texts.

    Raises:
        ValueError: if something cannot be read; the message names it.
    """
    units = _units(texts, name)
    is_string, has_ids = isinstance(units[0], str), isinstance(units[0], Tensor)
    n_parts = None if is_string else [len(unit) for unit in units]
    named: Mapping[Any, Any] = dict(targets) if isinstance(targets, Mapping | pd.DataFrame) else {None: targets}
    if not named:
        raise ValueError(f"targets={targets}: give at least one.")
    items = {key: _items(key, entries, len(units), n_parts, name) for key, entries in named.items()}
    is_text = all(each.kind == "text" for each in items.values())
    if has_ids:
        strings: list[str] = []
        read = _padded(units, name, n_ctx, truncate)
    else:
        if tokenizer is None:
            raise ValueError("tokenizer: texts need one, such as the model itself, or model.tokenizer.")
        strings = [unit if isinstance(unit, str) else " ".join(unit) for unit in units]
        how = {"prepend_bos": prepend_bos, "n_ctx": n_ctx, "truncate": truncate, "name": name}
        read = read_texts(strings, tokenizer, spans=not is_text, **how)
    placed, flat, classes, n_unread = {}, {}, {}, 0
    for key, each in items.items():
        names = (class_names or {}).get(key)
        labels = each.labels if names is None else _names_of(each, names)
        values = target_values(each.what, labels)
        if outside is not None and isinstance(values, Tensor) and labels:
            raise ValueError(f"outside={outside!r}: {each.what} is numbers, so that there is no class: leave it out.")
        if outside is not None:
            values = target_values(f"{each.what} with outside={outside!r}", [*labels, outside])
        found = key if key is not None else LABEL if isinstance(values, np.ndarray) else BELIEF
        if names is not None:
            extra = [str(outside)] if outside is not None and outside not in names else []
            classes[found] = (*map(str, names), *extra)
        if each.kind == "text":
            places = _whole(each, read, "all" if not is_text else label_at or "last")
        elif has_ids:
            places = _columns(each, read)
        else:
            in_characters = _checked_spans(each, strings, name) if is_string else _in_characters(each, units)
            at = label_at or ("all" if is_string else "last")
            places = _tokens_of(in_characters, values, read, strings, at, name)
        place, covered = places
        n_unread += len(each.labels) - len(place[place >= 0].unique())
        if outside is not None:
            place = torch.where(read.is_own & ~covered, len(labels), place)
        placed[found], flat[found] = place, values
    is_row = read.is_own.clone()
    for found, place in placed.items():
        known = has_label(flat[found][None], len(flat[found]))[0] if len(flat[found]) else torch.zeros(0).bool()
        is_row &= torch.cat([known, torch.tensor([False])])[place]
    if not is_row.any():
        raise ValueError(f"targets: no token of the {len(units)} {name} has a label for each target: give some.")
    rows = {found: _taken(values, placed[found][is_row]) for found, values in flat.items()}
    return LabelledTexts(read, is_row, rows, classes, n_unread)


def _taken(values: Values, places: Int[Tensor, "row"]) -> Values:
    return values[places] if isinstance(values, Tensor) else values[places.numpy()]


def _units(texts: Any, name: str) -> list[Any]:
    """The texts: all strings, all lists of words, or all token ids; `ValueError` if they are anything else."""
    if (strings := texts_in(texts)) is not None:
        return strings
    try:
        units = [list(unit) if not isinstance(unit, str) else unit for unit in texts]
    except TypeError:
        units = []
    if not units:
        raise ValueError(f"{name} is a {type(texts).__name__}: give a list of texts, or of lists of words.")
    for k, unit in enumerate(units):
        if len(unit) == 0:
            raise ValueError(f"{name}[{k}] is empty: leave it out.")
    if all(isinstance(part, str) for unit in units for part in unit) and not any(isinstance(u, str) for u in units):
        return [[str(part) for part in unit] for unit in units]
    if all(isinstance(part, int | np.integer | Tensor) and not isinstance(part, bool) for u in units for part in u):
        return [as_tokens(unit, f"{name}[{k}]") for k, unit in enumerate(units)]
    raise ValueError(f"{name}: give texts, lists of words, or lists of token ids, the same for all.")


def _padded(units: Sequence[Tensor], name: str, n_ctx: int | None, truncate: bool) -> TextTokens:
    """Token ids, padded on the right."""
    lengths = torch.tensor([len(unit) for unit in units])
    check_lengths([str(unit.tolist()) for unit in units], lengths, name, n_ctx, truncate)
    tokens = pad_sequence([unit[: n_ctx if truncate else None] for unit in units], batch_first=True)
    kept = lengths.clamp(max=tokens.shape[1])
    is_own = torch.arange(tokens.shape[1]) < kept.unsqueeze(1)
    return TextTokens(tokens, kept, is_own, None, int((lengths > kept).sum()))


def _items(key: str | None, entries: Any, n_texts: int, n_parts: Sequence[int] | None, name: str) -> _Items:
    """The labels of a target, from an entry for each text: a label, a list of spans, or one for each of its parts."""
    what = "targets" if key is None else f"Target {key!r}"
    try:
        entries = list(entries) if not isinstance(entries, str) else None
    except TypeError:
        entries = None
    if entries is None or len(entries) != n_texts:
        given = "something else" if entries is None else f"{len(entries)} entries"
        raise ValueError(f"{what}: give a list with an entry for each of the {n_texts} {name}, not {given}.")
    kinds = [_kind(entry, n_parts is not None) for entry in entries]
    forms: tuple[_Kind, ...] = ("text", "part", "span")
    known: list[_Kind] = [kind for kind in forms if kind in kinds]
    if len(known) > 1 or (known == ["span"] and n_parts is not None):
        k = next(k for k, kind in enumerate(kinds) if kind == known[-1])
        allowed = "a label, a list of spans (start, end, label), or, for lists of words, a label for each word"
        raise ValueError(f"{what} has {shown(entries[k])} for {name}[{k}]: give each text {allowed}; the same for all.")
    kind: _Kind = known[0] if known else "text"
    labels, text, start, end = [], [], [], []
    for k, entry in enumerate(entries):
        if kinds[k] is None:
            continue
        if kind == "part" and n_parts is not None and len(entry) != n_parts[k]:
            raise ValueError(f"{what} has {len(entry)} labels for the {n_parts[k]} parts of {name}[{k}]: one for each.")
        spans = _spans(entry) if kind == "span" else None
        own = [entry] if kind == "text" else [label for *_, label in spans] if spans is not None else list(entry)
        labels += own
        text += [k] * len(own)
        start += [each[0] for each in spans] if spans is not None else range(len(own))
        end += [each[1] for each in spans] if spans is not None else range(1, len(own) + 1)
    return _Items(what, kind, labels, *(np.array(each, dtype=np.int64) for each in (text, start, end)))


def _kind(entry: Any, has_parts: bool) -> _Kind | None:
    """What the labels of a text are for, by the form of their entry; `None` if it has none."""
    if entry is None:
        return None
    if isinstance(entry, Mapping):
        return "span"
    if isinstance(entry, str) or not hasattr(entry, "__len__") or getattr(entry, "ndim", 1) == 0:
        return "text"
    if len(entry) == 0:
        return None
    if all(_is_span(each) for each in entry):
        return "span"
    return "part" if has_parts else "text"


def _is_span(value: Any) -> bool:
    if isinstance(value, Mapping):
        return {"start", "end", "label"} <= value.keys()
    is_three = isinstance(value, list | tuple) and len(value) == 3
    return is_three and all(isinstance(each, int | np.integer) and not isinstance(each, bool) for each in value[:2])


def _spans(entry: Any) -> list[tuple[int, int, Any]]:
    """The spans of a text; Hugging Face's datasets give them as a mapping of lists, too."""
    if isinstance(entry, Mapping):
        columns = [entry.get(key, ()) for key in ("start", "end", "label")]
        return [(int(start), int(end), label) for start, end, label in zip(*columns, strict=True)]
    spans = [(each["start"], each["end"], each["label"]) if isinstance(each, Mapping) else each for each in entry]
    return [(int(start), int(end), label) for start, end, label in spans]


def _names_of(items: _Items, names: Sequence[str]) -> list[str | None]:
    """The names of classes that are given by their numbers; a missing one is None, -1 or -100."""
    found: list[str | None] = []
    for label in items.labels:
        if pd.isna(label) or label in (-1, NO_LABEL):
            found.append(None)
            continue
        if not 0 <= label < len(names):
            raise ValueError(f"{items.what} holds {label}, and its {len(names)} classes are 0 to {len(names) - 1}.")
        found.append(str(names[int(label)]))
    return found


def _whole(items: _Items, read: TextTokens, at: LabelAt) -> tuple[Int[Tensor, "text pos"], Bool[Tensor, "text pos"]]:
    """The label of each token where labels are for whole texts, -1 where there is none; and which are in such texts."""
    place = torch.full((len(read.tokens), 1), -1)
    place[items.text, 0] = torch.arange(len(items.text))
    covered = read.is_own & (place >= 0)
    chosen = covered
    if at != "all":
        number, n_own = covered.long().cumsum(dim=1), covered.sum(dim=1, keepdim=True)
        chosen = covered & (number == (1 if at == "first" else n_own))
    return torch.where(chosen, place, -1), covered


def _columns(items: _Items, read: TextTokens) -> tuple[Int[Tensor, "text pos"], Bool[Tensor, "text pos"]]:
    """The label of each token where each token id has one."""
    place, kept = torch.full(read.tokens.shape, -1), items.start < read.tokens.shape[1]
    place[items.text[kept], items.start[kept]] = torch.from_numpy(np.flatnonzero(kept))
    return place, place >= 0


def _checked_spans(items: _Items, strings: Sequence[str], name: str) -> _Items:
    """The spans, if they are within their texts; else `ValueError`."""
    sizes = np.array([len(each) for each in strings])[items.text]
    if (bad := np.flatnonzero((items.start < 0) | (items.start >= items.end) | (items.end > sizes))).size:
        k = int(bad[0])
        where = f"the {sizes[k]} characters of {name}[{items.text[k]}]"
        raise ValueError(
            f"{items.what}: the span {_shown(items, k)} is not within {where}: give 0 ≤ start < end there."
        )
    return items


def _in_characters(items: _Items, words: Sequence[Sequence[str]]) -> _Items:
    """Words as spans of the characters of a text in which a space follows each."""
    ends = [list(itertools.accumulate(len(word) + 1 for word in unit)) for unit in words]
    end = np.array([ends[k][number] - 1 for k, number in zip(items.text, items.start, strict=True)], dtype=np.int64)
    length = [len(words[k][number]) for k, number in zip(items.text, items.start, strict=True)]
    return _Items(items.what, "span", items.labels, items.text, end - np.array(length, dtype=np.int64), end)


def _tokens_of(
    items: _Items, values: Values, read: TextTokens, strings: Sequence[str], at: LabelAt, name: str
) -> tuple[Int[Tensor, "text pos"], Bool[Tensor, "text pos"]]:
    """The label of each token where labels are for characters, -1 where there is none, and which tokens overlap one.

    White space counts for nothing: " dog" is not part of what is before it.
    """
    assert read.spans is not None
    sizes = np.array([len(each) for each in strings])
    # Characters and tokens of all texts, one after the other; each text ends with a space.
    base = np.concatenate([[0], np.cumsum(sizes + 1)])
    filled = _not_space(strings)
    ahead = np.minimum.accumulate(np.where(filled, np.arange(len(filled)), len(filled))[::-1])[::-1]
    behind = np.maximum.accumulate(np.where(filled, np.arange(len(filled)), -1))

    def trimmed(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first, last = ahead[start], behind[np.maximum(end - 1, start)] + 1
        is_empty = (start == end) | (first >= last)
        return np.where(is_empty, start, first), np.where(is_empty, start, last)

    texts, columns = (each.numpy() for each in read.is_own.nonzero(as_tuple=True))
    places = read.spans.numpy()[texts, columns] + base[texts][:, None]
    token_start, token_end = trimmed(places[:, 0], places[:, 1])
    # Tokens of white space alone are in no span.
    inside = np.flatnonzero(token_end > token_start)
    token_start, token_end = token_start[inside], token_end[inside]
    if (np.diff(token_start) < 0).any() or (np.diff(token_end) < 0).any():
        raise ValueError("tokenizer: the tokens of a text must be in the order of its characters.")
    start, end = trimmed(items.start + base[items.text], items.end + base[items.text])
    first = np.searchsorted(token_end, start, side="right")
    count = np.where(end > start, np.maximum(np.searchsorted(token_start, end, side="left") - first, 0), 0)
    codes = _codes(values)[: len(items.labels)]
    _check_contradictions(items, start, end, codes, name)
    item, token = _expanded(first, count)
    covered = torch.zeros(read.tokens.shape, dtype=torch.bool)
    covered[texts[inside[token]], columns[inside[token]]] = True
    if at != "all":
        ends = first if at == "first" else first + count - 1
        item = np.flatnonzero(count > 0)
        token = ends[item]
    order = np.argsort(token, kind="stable")
    item, token = item[order], token[order]
    clash = np.flatnonzero((np.diff(token) == 0) & (np.diff(codes[item]) != 0))
    if clash.size:
        k, here = int(clash[0]), inside[token[clash[0]]]
        text = strings[int(texts[here])]
        first_letter, after = read.spans[texts[here], columns[here]].tolist()
        piece = text[first_letter:after]
        where = f"the token {piece!r} of {name}[{texts[here]}]={shortened(text)!r}"
        both = f"in {_shown(items, item[k])} and in {_shown(items, item[k + 1])}"
        raise ValueError(f"{items.what}: {where} is {both}: give both the same label, or let one end elsewhere.")
    place = torch.full(read.tokens.shape, -1)
    place[texts[inside[token]], columns[inside[token]]] = torch.from_numpy(item)
    return place, covered


def _check_contradictions(items: _Items, start: np.ndarray, end: np.ndarray, codes: np.ndarray, name: str) -> None:
    """Raise `ValueError` if a character is in two spans of different labels."""
    item, character = _expanded(start, end - start)
    if len(item) == 0:
        return
    last = np.zeros(int(character.max()) + 1, dtype=np.int64)
    last[character] = item
    if (clash := np.flatnonzero(codes[last[character]] != codes[item])).size:
        k = int(clash[0])
        pair = f"the spans {_shown(items, item[k])} and {_shown(items, int(last[character[k]]))}"
        where = f"{name}[{items.text[item[k]]}]"
        raise ValueError(f"{items.what}: {where} has {pair}, which overlap and differ: keep one of them.")


def _expanded(first: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All numbers of ranges, range by range, with the number of its range before each."""
    which = np.repeat(np.arange(len(count)), count)
    return which, np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)


def _codes(values: Values) -> np.ndarray:
    """A number for each different value."""
    if isinstance(values, Tensor):
        return values.unique(dim=0, return_inverse=True)[1].numpy()
    return pd.factorize(values)[0]


def _not_space(strings: Iterable[str]) -> np.ndarray:
    """Which characters are no white space, of all texts one after the other, with a space after each."""
    characters = np.frombuffer("".join(f"{each} " for each in strings).encode("utf-32-le", "surrogatepass"), np.uint32)
    distinct, which = np.unique(characters, return_inverse=True)
    return np.array([not chr(each).isspace() for each in distinct])[which]


def _shown(items: _Items, k: Any) -> str:
    return f"({items.start[k]}, {items.end[k]}, {items.labels[k]!r})"
