"""Labelled tokens: words as a model reads them, with the targets that a probe should find at some of their positions.

A row is the place of an activation, (word, column), with its targets, its weight and its group; rows of one group are
held out together. The rows of a `BeliefDataset` are its distinct prefixes, each a group of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor
from torch.nn.functional import one_hot as torch_one_hot
from torch.nn.utils.rnn import pad_sequence

from msp_lens._checks import Count, as_tokens, check_memory, checked, converted, is_finite
from msp_lens._values import Value
from msp_lens.data.belief_dataset import BeliefDataset, Weighting, prefix_hashes
from msp_lens.data.row_positions import Positions, described_positions, position_mask
from msp_lens.data.target_values import (
    Values,
    class_numbers,
    group_numbers,
    has_label,
    is_one_a_word,
    placed_values,
    target_values,
)

BELIEF = "belief"
LABEL = "label"


@checked
@dataclass(frozen=True, eq=False)
class LabelledTokens(Value):
    """Words and their rows, in the order of the words; build it with `from_beliefs` or `from_tokens`.

    Attributes:
        tokens: The words, as the model reads them.
        words: The word of each row, in ascending order.
        columns: The column of `tokens` whose activation is the row's.
        positions: The column, or under a `TokenMap` the number of the symbol just read, -1 before the first.
        targets: What a probe should find there, by name; the beliefs under `"belief"`.
        weights: How much each row counts.
        groups: Rows of one group are held out together.
        description: Where the rows come from, as JSON-ready values, for a report's provenance.
        classes: The names of the classes of each target that is one-hot, in the order of its columns.
        undefined: By target, the rows where it has no value, which do not count for it.

    Raises:
        ValueError: if lengths differ, rows are out of order or outside the words, or a number is not finite.
    """

    tokens: Int[Tensor, "word pos"]
    words: Int[Tensor, "row"]
    columns: Int[Tensor, "row"]
    positions: Int[Tensor, "row"]
    targets: Mapping[str, Float64[Tensor, "row target"]]
    weights: Float64[Tensor, "row"]
    groups: Int[Tensor, "row"]
    description: Mapping[str, Any]
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    undefined: Mapping[str, Bool[Tensor, "row"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("targets={}: give at least one, e.g. {'belief': beliefs}.")
        n_rows, sizes = len(self.words), ((self.words, len(self.tokens)), (self.columns, self.n_ctx))
        inside = all(((numbers >= 0) & (numbers < size)).all() for numbers, size in sizes)
        if len(self.columns) != n_rows or not inside or ((self.words * self.n_ctx + self.columns).diff() <= 0).any():
            places = f"places in {len(self.tokens)} words of {self.n_ctx} tokens, each once and in order"
            raise ValueError(f"Rows are {places}: sort them by word and column.")
        others = {"positions": self.positions, "weights": self.weights, "groups": self.groups}
        others |= {f"undefined[{name!r}]": rows for name, rows in self.undefined.items()}
        for name, values in (others | dict(self.targets)).items():
            if len(values) != n_rows:
                raise ValueError(f"{name} has {len(values)} rows for {n_rows} places: give one row for each place.")
        for name, names in self.classes.items():
            if name not in self.targets or self.targets[name].shape[1] != len(names):
                raise ValueError(f"classes={dict(self.classes)}: give a name for each column of a target.")
        if (self.weights < 0).any():
            raise ValueError(f"A row has a weight of {float(self.weights.min()):g}: give weights of at least 0.")
        if float(self.weights.sum()) == 0:
            raise ValueError(f"{n_rows} rows have a total weight of 0: choose other positions= or another weighting=.")

    def __len__(self) -> int:
        return len(self.words)

    @property
    def n_ctx(self) -> int:
        """Tokens in each word, as the model reads it."""
        return self.tokens.shape[1]

    @classmethod
    @checked
    def from_tokens(
        cls,
        tokens: Any,
        targets: Any,
        *,
        tokenizer: Callable[..., Any] | None = None,
        positions: Positions = None,
        attention_mask: Any = None,
        classes: Mapping[str, Sequence[Any]] | None = None,
        weighting: Any = None,
        groups: Any = None,
    ) -> LabelledTokens:
        """Your own tokens, with whatever you look for in a model that reads them.

        Tensors, arrays, lists, and columns of pandas or Hugging Face are read alike.

        Args:
            tokens: The words, as the model reads them: integers `[word, pos]`, or `[pos]` for one word. Or texts,
                with a `tokenizer`: the shorter ones are padded, and padding is no row.
            targets: By name, or in a data frame by column: numbers, `[word, pos, target]`, or `[word, pos]` for one
                number each; or labels of classes, integers or strings `[word, pos]`, which become one-hot targets.
                Either may be `[word]`: one number or label for all positions of a word. Where a label is missing, None
                or -100, there is no row. A single target need not be named: numbers are `"belief"`, labels `"label"`.
            tokenizer: For texts: `model.tokenizer`, or whatever answers a list of texts with their `input_ids`, as
                tokenizers of transformers do when called. Its special tokens are added as it adds them by itself;
                `functools.partial(tokenizer, add_special_tokens=False)` adds none.
            positions: Positions that are rows: a slice, numbers (negative ones from the end), or a mask of booleans,
                `[pos]` or `[word, pos]`; all by default.
            attention_mask: As tokenizers give it, 1 where a token is read and 0 where it is padding, which must be on
                the right. Padding is no row, and negative `positions` count from the last token that is read.
            classes: By name, the labels of a target in the order of its columns; those that occur, sorted, by default.
            weighting: How much each row counts, `[word]` or `[word, pos]`; the same for all by default.
            groups: Rows of one group are held out together, integers or strings, `[word]` or `[word, pos]`. By default
                those with the same prefix, which are the same activation of a causal model; or if a target is one label
                or number a word, those of the same word.

        Raises:
            ValueError: if something has the wrong shape or type or is not finite; the message names it.

        Example:
            >>> words = [[0, 1, 1], [0, 1, 2]]
            >>> LabelledTokens.from_tokens(words, {"next token": [[1, 1], [1, 2]]}, positions=slice(-1))
            LabelledTokens(2 words of 3 tokens: 4 rows in 2 groups; next token [2 classes])
            >>> LabelledTokens.from_tokens(words, ["spam", "ham"], positions=-1).classes
            {'label': ('ham', 'spam')}
        """
        if (texts := _texts(tokens)) is not None:
            if tokenizer is None:
                raise ValueError("tokens are texts: give tokenizer=, such as model.tokenizer, or give token ids.")
            if attention_mask is not None:
                raise ValueError("attention_mask: texts have no padding to mask; leave it out.")
            tokens, attention_mask = _tokenized(texts, tokenizer)
        tokens = converted(tokens, Int[Tensor, "word pos"], "tokens")
        if tokens.numel() == 0:
            raise ValueError(f"tokens has shape {tuple(tokens.shape)}: give at least one word of one token.")
        tokens = tokens.cpu()
        lengths = None if attention_mask is None else _lengths(attention_mask, tokens)
        mask = position_mask(positions, tokens, lengths)
        values = {name: target_values(f"Target {name!r}", each) for name, each in _named(targets).items()}
        hashes, grouping = prefix_hashes(tokens), "prefix"
        if any(is_one_a_word(each, tokens) for each in values.values()):
            hashes, grouping = hashes[:, -1], "word"
        row_groups = hashes.unique(return_inverse=True)[1] if groups is None else group_numbers(groups)
        row_weights = torch.ones(len(tokens), dtype=torch.float64)
        if weighting is not None:
            row_weights = converted(weighting, Float64[Tensor, "..."], "weighting").detach().cpu()
        labels, class_names, mask = _target_rows(values, tokens, mask, classes)
        words, columns = mask.nonzero(as_tuple=True)
        weights = _per_position("weighting", row_weights, tokens)[mask]
        row_groups = _per_position("groups", row_groups, tokens)[mask].long()
        described = {"source": "tokens", "words": len(tokens), "n_ctx": tokens.shape[1], "is_population": False}
        described |= {"rows": len(words), "weighting": "row" if weighting is None else "given"}
        described |= {"groups": grouping if groups is None else "given", "positions": described_positions(positions)}
        return cls(tokens, words, columns, columns, labels, weights, row_groups, described, class_names)

    @classmethod
    @checked
    def from_beliefs(
        cls, dataset: BeliefDataset, *, weighting: Weighting = "probability", targets: Mapping[str, Any] | None = None
    ) -> LabelledTokens:
        """The distinct prefixes of a process's words, with their beliefs.

        Args:
            dataset: The words, the positions that are rows, and how the model reads them.
            weighting: How much each distinct prefix counts.
            targets: More targets by name, numbers or labels as for `from_tokens`: functions of the prefix, as beliefs
                are, such as the beliefs about each factor of a product of processes.

        Raises:
            ValueError: if a target has the wrong shape, or no value for the prior that the token map asks for.

        Example:
            >>> from msp_lens.data.belief_dataset import words
            >>> from msp_lens.processes.catalog import z1r
            >>> LabelledTokens.from_beliefs(words(z1r(), n_ctx=4))
            LabelledTokens(8 words of 4 tokens: 20 rows in 20 groups; belief [3])
        """
        if BELIEF in (targets or {}):
            raise ValueError(f"targets has its own {BELIEF!r}: rename it, the dataset's beliefs have that name.")
        values = {name: target_values(f"Target {name!r}", each) for name, each in (targets or {}).items()}
        chosen = dataset.is_first & position_mask(dataset.positions, dataset.tokens)
        labels, class_names, is_row = _target_rows(values, dataset.tokens, chosen)
        by_prefix, ids = {BELIEF: dataset.prefix_beliefs}, dataset.prefix_ids[is_row]
        for name, rows in labels.items():
            by_prefix[name] = rows.new_zeros(dataset.n_prefixes, rows.shape[1])
            by_prefix[name][ids] = rows
        return label_rows(
            dataset,
            is_row=is_row,
            weights=dataset.prefix_weights(weighting)[dataset.prefix_ids],
            groups=dataset.prefix_ids,
            targets=by_prefix,
            prior={BELIEF: dataset.process.initial},
            prior_weight=dataset.prior_weight(weighting),
            description={"source": "process", "weighting": weighting, "groups": "prefix"},
            classes=class_names,
        )

    def only(self, name: str) -> LabelledTokens:
        """The same rows with a single target; `KeyError` if there is none of that name."""
        if name not in self.targets:
            raise KeyError(f"No target {name!r}: choose one of {', '.join(map(repr, self.targets))}.")
        classes = {name: self.classes[name]} if name in self.classes else {}
        undefined = {name: self.undefined[name]} if name in self.undefined else {}
        return replace(self, targets={name: self.targets[name]}, classes=classes, undefined=undefined)

    def rows_of(self, words: slice) -> slice:
        """The rows of a range of words."""
        bounds = torch.searchsorted(self.words, torch.tensor([words.start, words.stop]))
        return slice(int(bounds[0]), int(bounds[1]))

    def __repr__(self) -> str:
        n_groups = len(self.groups.unique())
        size = f"{len(self.tokens)} words of {self.n_ctx} tokens: {len(self)} rows in {n_groups} groups"
        shown = (f"{k} [{v.shape[1]}{' classes' * (k in self.classes)}]" for k, v in self.targets.items())
        return f"LabelledTokens({size}; {', '.join(shown)})"


def label_rows(
    dataset: BeliefDataset,
    *,
    is_row: Bool[Tensor, "word pos"],
    weights: Float64[Tensor, "word pos"],
    groups: Int[Tensor, "word pos"],
    targets: Mapping[str, Float64[Tensor, "prefix target"]],
    prior: Mapping[str, Float64[Tensor, "target"]],
    prior_weight: float,
    description: Mapping[str, Any],
    classes: Mapping[str, tuple[str, ...]] | None = None,
    undefined: Mapping[str, Bool[Tensor, "prefix"]] | None = None,
) -> LabelledTokens:
    """Rows of a dataset as a model reads them.

    Under a token map with `include_prior` there is one more row: the belief before any symbol, at the first word, in a
    group of its own with the next number.

    Args:
        dataset: The words; its positions choose among the rows.
        is_row: Where there is a row.
        weights: How much a row counts.
        groups: The group of each row, from 0.
        targets: The targets of each distinct prefix, by name.
        prior: The targets before any symbol; `ValueError` if one is missing.
        prior_weight: How much the prior's row counts.
        description: What else to say about where the rows come from.
        classes: The names of the classes of one-hot targets.
        undefined: The prefixes where a target has no value, by its name; before any symbol it has none if that is 0.
    """
    words, symbols = (is_row & position_mask(dataset.positions, dataset.tokens)).nonzero(as_tuple=True)
    labels = {name: values[dataset.prefix_ids[words, symbols]] for name, values in targets.items()}
    missing_rows = {name: gone[dataset.prefix_ids[words, symbols]] for name, gone in (undefined or {}).items()}
    row_weights, row_groups = weights[words, symbols], groups[words, symbols]
    tokens, ends = dataset.encoded()
    columns, token_map = ends[words, symbols], dataset.token_map
    if token_map is not None and token_map.include_prior:
        if missing := sorted(targets.keys() - prior.keys()):
            raise ValueError(f"include_prior=True, but {missing} have no value before the first symbol: leave it out.")
        labels = {name: torch.cat([prior[name].unsqueeze(0), values]) for name, values in labels.items()}
        missing_rows = {name: torch.cat([(prior[name] == 0).all()[None], gone]) for name, gone in missing_rows.items()}
        prior_row = (0, -1, len(token_map.start) - 1, prior_weight, int(groups.max()) + 1)
        words, symbols, columns, row_weights, row_groups = (
            torch.cat([rest.new_tensor([first]), rest])
            for first, rest in zip(prior_row, (words, symbols, columns, row_weights, row_groups), strict=True)
        )
    process, described_map = dataset.process, token_map.to_dict() if token_map is not None else None
    described = {"process": process.to_dict(), "process_fingerprint": process.fingerprint, "words": len(dataset)}
    described |= {"n_ctx": dataset.n_ctx, "is_population": dataset.is_population}
    described |= {"positions": described_positions(dataset.positions), "token_map": described_map, "rows": len(words)}
    described |= description
    numbers = (tokens, words, columns, symbols, labels, row_weights, row_groups)
    return LabelledTokens(*numbers, described, classes or {}, missing_rows)


@checked
def one_hot(classes: Int[Tensor, "word pos *more"], n_classes: Count) -> Float64[Tensor, "word pos target"]:
    """Classes as targets: 1 for the true class, 0 for the others; several classes at a position stand side by side.

    Args:
        classes: Class numbers from 0: the next tokens `[word, pos]`, or the squares of a board `[word, pos, square]`.
        n_classes: Number of classes; `ValueError` if a number is not one of them.

    Example:
        >>> one_hot(torch.tensor([[1, 0]]), 3)
        tensor([[[0., 1., 0.],
                 [1., 0., 0.]]], dtype=torch.float64)
    """
    if classes.numel() and (int(classes.min()) < 0 or int(classes.max()) >= n_classes):
        held = f"{int(classes.min())} to {int(classes.max())}; the {n_classes} classes are 0 to {n_classes - 1}"
        raise ValueError(f"classes holds {held}. Give unknown ones any class and exclude their rows with positions=.")
    return torch_one_hot(classes, n_classes).double().flatten(2)


def _texts(tokens: Any) -> list[str] | None:
    """The texts in any container; `None` if these are none."""
    if isinstance(tokens, str):
        return [tokens]
    if isinstance(tokens, Tensor | Mapping) or not hasattr(tokens, "__len__"):
        return None
    found = list(tokens)
    return [str(each) for each in found] if found and all(isinstance(each, str) for each in found) else None


def _tokenized(
    texts: list[str], tokenizer: Callable[..., Any]
) -> tuple[Int[Tensor, "word pos"], Bool[Tensor, "word pos"]]:
    """The tokens of texts, padded on the right, and which of them are no padding."""
    found = tokenizer(texts)
    if not isinstance(found, Mapping) or len(found.get("input_ids", ())) != len(texts):
        kind = type(tokenizer).__name__
        raise ValueError(
            f"tokenizer is a {kind} that does not answer a list of texts with the 'input_ids' of each: give one that "
            "does, as those of transformers, or give token ids."
        )
    words = [as_tokens(ids) for ids in found["input_ids"]]
    if "attention_mask" in found:
        # Whatever it padded is taken out, wherever it stands.
        masks = [as_tokens(mask) == 1 for mask in found["attention_mask"]]
        words = [word[mask] for word, mask in zip(words, masks, strict=True)]
    lengths = torch.tensor([len(word) for word in words])
    if (lengths == 0).any():
        empty = int((lengths == 0).nonzero()[0])
        raise ValueError(f"tokens[{empty}]={texts[empty]!r} has no tokens: leave it out.")
    padding = getattr(tokenizer, "pad_token_id", None)
    tokens = pad_sequence(words, batch_first=True, padding_value=0 if padding is None else padding)
    return tokens, torch.arange(tokens.shape[1]) < lengths.unsqueeze(1)


def _named(targets: Any) -> Mapping[str, Any]:
    """Targets by name: a data frame's are its columns, and a single one is named by what it is."""
    if isinstance(targets, Mapping):
        return targets
    if isinstance(targets, pd.DataFrame):
        return {str(name): targets[name] for name in targets.columns}
    values = target_values("targets", targets)
    return {LABEL if isinstance(values, np.ndarray) else BELIEF: targets}


def _target_rows(
    values: Mapping[str, Values],
    tokens: Int[Tensor, "word pos"],
    mask: Bool[Tensor, "word pos"],
    classes: Mapping[str, Sequence[Any]] | None = None,
) -> tuple[dict[str, Float64[Tensor, "row target"]], dict[str, tuple[str, ...]], Bool[Tensor, "word pos"]]:
    """The targets of each row, the names of their classes, and which places are rows: those that have every label."""
    if strangers := sorted((classes or {}).keys() - values.keys()):
        raise ValueError(f"classes names {strangers}, and the targets are {sorted(values)}: name targets.")
    placed = {name: placed_values(name, each, tokens, int(mask.nonzero()[:, 1].max())) for name, each in values.items()}
    for name, each in placed.items():
        mask = mask & has_label(each, tokens.shape[1])
        if not mask.any():
            raise ValueError(f"Target {name!r} has no label at any row: None and -100 mean that it is missing.")
    rows, names, (words, columns) = {}, {}, mask.nonzero(as_tuple=True)
    for name, each in placed.items():
        if isinstance(each, Tensor):
            rows[name] = each[words, columns]
            if not is_finite(rows[name]):
                row = int((~torch.isfinite(rows[name])).any(dim=1).nonzero()[0])
                place, remedy = f"word {int(words[row])}, column {int(columns[row])}", "positions=, a mask [word, pos]"
                raise ValueError(f"Target {name!r} is not finite at {place}: exclude such rows by {remedy}.")
        else:
            labels = each[words.numpy(), columns.numpy()]
            numbers, names[name] = class_numbers(f"Target {name!r}", labels, (classes or {}).get(name))
            what = f"Target {name!r} with {len(names[name])} classes in {len(numbers)} rows"
            check_memory(what, 8 * len(numbers) * len(names[name]), "Give numbers as floats, or choose positions=.")
            rows[name] = torch_one_hot(numbers, len(names[name])).double()
    return rows, names, mask


def _lengths(attention_mask: Any, tokens: Int[Tensor, "word pos"]) -> Int[Tensor, "word"]:
    """How many tokens of each word are read."""
    mask = as_tokens(attention_mask, "attention_mask").cpu()
    mask = mask.unsqueeze(0) if mask.ndim == 1 else mask
    if mask.shape != tokens.shape or not ((mask == 0) | (mask == 1)).all():
        fitting = f"1 or 0 for each token, here {tuple(tokens.shape)}"
        raise ValueError(f"attention_mask has shape {tuple(mask.shape)}; it needs {fitting}.")
    lengths = mask.long().sum(dim=1)
    if (mask.bool() != (torch.arange(mask.shape[1]) < lengths.unsqueeze(1))).any():
        problem = "attention_mask has padding before tokens, which the model would read as tokens"
        raise ValueError(f"{problem}: pad on the right (tokenizer.padding_side = 'right').")
    return lengths


def _per_position(name: str, values: Tensor, tokens: Int[Tensor, "word pos"]) -> Tensor:
    """`[word]` or `[word, pos]` as the latter."""
    values = values.unsqueeze(0) if len(tokens) == 1 and tuple(values.shape) == (tokens.shape[1],) else values
    if tuple(values.shape) not in ((len(tokens),), tuple(tokens.shape)):
        fitting = f"[word] or [word, pos], here ({len(tokens)},) or {tuple(tokens.shape)}"
        raise ValueError(f"{name} has shape {tuple(values.shape)}; it needs {fitting}.")
    return (values.unsqueeze(1) if values.ndim == 1 else values).expand(tokens.shape)
