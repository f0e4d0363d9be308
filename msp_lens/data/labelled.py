"""Labelled tokens: words as a model reads them, with the targets that a probe should find at some of their positions.

A row is the place of an activation, (word, column), with its targets, its weight and its group; rows of one group are
held out together. The rows of a `BeliefDataset` are its distinct prefixes, each a group of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from msp_lens._annotations import tell_instead
from msp_lens._checks import Count, checked, converted
from msp_lens._names import meant
from msp_lens._values import Value
from msp_lens.data.belief_dataset import BeliefDataset, Weighting, prefix_hashes
from msp_lens.data.row_positions import Positions, described_positions, position_mask, read_lengths
from msp_lens.data.table_columns import read_table
from msp_lens.data.target_values import (
    BELIEF,
    as_targets,
    group_numbers,
    is_one_a_word,
    named_targets,
    per_position,
    target_rows,
    target_values,
)
from msp_lens.data.text_labels import LabelAt, LabelledTexts, label_texts
from msp_lens.data.text_tokens import read_texts, texts_in


@checked
@dataclass(frozen=True, eq=False)
class LabelledTokens(Value):
    """Words and their rows, in the order of the words.

    Build it with `from_beliefs` for a process, `from_tokens` for your own tokens, `from_text` for texts with labelled
    spans or words, or `from_table` for a Hugging Face dataset or a pandas frame.

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
            raise ValueError("targets={}: give at least one, e.g. {'mean': numbers}.")
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
            tokenizer: For texts (`from_text` has more options): the model, `model.tokenizer`, or whatever answers a
                list of texts with their `input_ids`, as tokenizers of transformers do when called. Its special tokens
                are added as it adds them by itself; `functools.partial(tokenizer, add_special_tokens=False)` adds none.
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
        lengths = None
        if (texts := texts_in(tokens)) is not None:
            if tokenizer is None:
                raise ValueError("tokens are texts: give tokenizer=, such as model.tokenizer, or give token ids.")
            if attention_mask is not None:
                raise ValueError("attention_mask: texts have no padding to mask; leave it out.")
            read = read_texts(texts, tokenizer)
            tokens, lengths = read.tokens, read.lengths
        tokens = converted(tokens, Int[Tensor, "word pos"], "tokens")
        if tokens.numel() == 0:
            raise ValueError(f"tokens has shape {tuple(tokens.shape)}: give at least one word of one token.")
        tokens = tokens.cpu()
        lengths = lengths if attention_mask is None else read_lengths(attention_mask, tokens)
        mask = position_mask(positions, tokens, lengths)
        values = {name: target_values(f"Target {name!r}", each) for name, each in named_targets(targets).items()}
        hashes, grouping = prefix_hashes(tokens), "prefix"
        if any(is_one_a_word(each, tokens) for each in values.values()):
            hashes, grouping = hashes[:, -1], "word"
        row_groups = hashes.unique(return_inverse=True)[1] if groups is None else group_numbers(groups)
        labels, class_names, mask = target_rows(values, tokens, mask, classes)
        described = {"source": "tokens", "groups": grouping if groups is None else "given"}
        described |= {"positions": described_positions(positions)}
        row_groups = per_position("groups", row_groups, tokens)
        return cls._of_rows(tokens, mask, labels, weighting, row_groups, described, class_names)

    @classmethod
    @checked
    def from_text(
        cls,
        texts: Any,
        targets: Any,
        *,
        tokenizer: Callable[..., Any] | None = None,
        outside: str | int | None = None,
        label_at: LabelAt | None = None,
        prepend_bos: bool | None = None,
        n_ctx: Count | None = None,
        truncate: bool = False,
        classes: Mapping[str, Sequence[Any]] | None = None,
        weighting: Any = None,
        groups: Any = None,
    ) -> LabelledTokens:
        """Texts with what is known of some of their characters, of their words, or of each text as a whole.

        Shorter texts are padded on the right. Neither padding nor special tokens, such as BOS, are rows.

        Args:
            texts: Strings; or lists of words, which are read with a space between them; or lists of token ids.
            targets: By name, in a data frame by column, or one alone (labels are `"label"`, numbers `"belief"`): for
                each text a list of spans `(start, end, label)` in characters, `end` excluded, or a label for each
                word or token id, or one label or vector for the text. Labels are strings or integers, which become
                one-hot targets; floating-point numbers and vectors of them are targets as they are. None is no label,
                and a row has a label for each target.
            tokenizer: The model, which has its own; a tokenizer of transformers; or whatever answers a list of texts
                with the `input_ids` and the `offset_mapping` of each. Token ids need none.
            outside: The class of tokens that no span overlaps; by default these are no rows.
            label_at: Which of the tokens of a span, a word or a text carries its label: `"all"`, `"first"` or `"last"`.
                By default all of a span's and the last of a word's. Of a text it is the last, which alone has seen all
                of it; or all, beside targets of spans or words.
            prepend_bos: Whether the texts begin with the BOS token; by default as the model does, or else as the
                tokenizer does by itself.
            n_ctx: The most tokens of a text; by default those that the model reads, if the model is given.
            truncate: Cut longer texts off, instead of refusing them; labels beyond are lost.
            classes: By name, the labels of a target in the order of its columns; those that occur, sorted, by default.
            weighting: How much each text's rows count, `[text]` or `[text, pos]`; the same for all by default.
            groups: Rows of one group are held out together, integers or strings, one for each text. By default a row
                is held out with the first text that begins as its own does up to there: with its text, unless the
                same activation occurs in an earlier one.

        Raises:
            ValueError: if a text is too long, a span is not within its text, two labels of one place differ, or
                something has the wrong shape or type; the message names it.

        Example:
            >>> from tokenizers import Tokenizer, models, pre_tokenizers
            >>> from transformers import PreTrainedTokenizerFast
            >>> vocabulary = {"Ann": 0, "met": 1, "Bo": 2, "in": 3, "Rome": 4}
            >>> words = Tokenizer(models.WordLevel(vocabulary))
            >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
            >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
            >>> texts, spans = ["Ann met Bo", "in Rome"], [[(0, 3, "person"), (8, 10, "person")], [(3, 7, "place")]]
            >>> data = LabelledTokens.from_text(texts, spans, tokenizer=tokenizer, outside="other")
            >>> data
            LabelledTokens(2 words of 3 tokens: 5 rows in 2 groups; label [3 classes])
            >>> data.columns.tolist(), [data.classes["label"][k] for k in data.targets["label"].argmax(dim=1)]
            ([0, 1, 2, 0, 1], ['person', 'other', 'person', 'other', 'place'])
        """
        options = {"tokenizer": tokenizer, "outside": outside, "label_at": label_at, "prepend_bos": prepend_bos}
        found = label_texts(texts, targets, n_ctx=n_ctx, truncate=truncate, **options)
        return cls._of_texts(found, classes, weighting, groups)

    @classmethod
    @checked
    def from_table(
        cls,
        table: Any,
        text: str = "text",
        *,
        targets: str | Sequence[str] = "label",
        tokenizer: Callable[..., Any] | None = None,
        outside: str | int | None = None,
        label_at: LabelAt | None = None,
        prepend_bos: bool | None = None,
        n_ctx: Count | None = None,
        truncate: bool = False,
        weighting: Any = None,
        groups: Any = None,
    ) -> LabelledTokens:
        """The rows of a table: a Hugging Face dataset, a pandas frame, a mapping of columns, or mappings one by one.

        Args:
            table: The table. Its class labels have their names if its `features` know them; then -1 is a missing one.
            text: The column of texts, of lists of words, or of lists of token ids, of which those are read that the
                column `attention_mask` says, if there is one.
            targets: The column or columns of labels, in any form that `from_text` reads. Spans may be mappings with
                `start`, `end` and `label`, too.
            tokenizer: As for `from_text`, and so are all other options.
            outside: The class of tokens that no span overlaps.
            label_at: Which of the tokens of a span, a word or a text carries its label.
            prepend_bos: Whether the texts begin with the BOS token.
            n_ctx: The most tokens of a text.
            truncate: Cut longer texts off.
            weighting: How much each row of the table counts, or the column that says so.
            groups: What is held out together, or the column that says so, such as a document's.

        Raises:
            KeyError: if the table has no such column.
            ValueError: as for `from_text`.

        Example:
            >>> table = {"input_ids": [[5, 3, 4], [5, 6]], "label": ["good", "bad"]}
            >>> data = LabelledTokens.from_table(table, "input_ids")
            >>> data.columns.tolist(), data.classes
            ([2, 1], {'label': ('bad', 'good')})
        """
        read = read_table(table, text, targets, groups=groups, weighting=weighting)
        options = {"tokenizer": tokenizer, "outside": outside, "label_at": label_at, "prepend_bos": prepend_bos}
        options |= {"n_ctx": n_ctx, "truncate": truncate, "class_names": read.class_names, "name": text}
        return cls._of_texts(label_texts(read.texts, read.targets, **options), None, read.weighting, read.groups)

    @classmethod
    def _of_texts(
        cls, found: LabelledTexts, classes: Mapping[str, Sequence[Any]] | None, weighting: Any, groups: Any
    ) -> LabelledTokens:
        tokens, (words, columns) = found.read.tokens, found.is_row.nonzero(as_tuple=True)
        remedy = "give None where there is no value"
        targets, names = as_targets(found.values, words, columns, found.classes | dict(classes or {}), remedy)
        if groups is None:
            # Equal prefixes are one activation of a causal model: the first text that has it takes them all.
            which = prefix_hashes(tokens)[found.is_row].unique(return_inverse=True)[1]
            first = torch.full((int(which.max()) + 1,), len(tokens)).scatter_reduce(0, which, words, "amin")
            row_groups = torch.zeros_like(tokens)
            row_groups[found.is_row] = first[which]
        else:
            row_groups = per_position("groups", group_numbers(groups), tokens)
        described = {"source": "text", "groups": "text" if groups is None else "given", "positions": "labelled"}
        described |= {"texts_cut": found.read.n_cut, "labels_without_a_token": found.n_unread}
        return cls._of_rows(tokens, found.is_row, targets, weighting, row_groups, described, names)

    @classmethod
    def _of_rows(
        cls,
        tokens: Int[Tensor, "word pos"],
        mask: Bool[Tensor, "word pos"],
        labels: Mapping[str, Float64[Tensor, "row target"]],
        weighting: Any,
        groups: Int[Tensor, "word pos"],
        described: Mapping[str, Any],
        classes: Mapping[str, tuple[str, ...]],
    ) -> LabelledTokens:
        """The rows where `mask` is true, with their targets."""
        weights = torch.ones(len(tokens), dtype=torch.float64)
        if weighting is not None:
            weights = converted(weighting, Float64[Tensor, "..."], "weighting").detach().cpu()
        weights, (words, columns) = per_position("weighting", weights, tokens)[mask], mask.nonzero(as_tuple=True)
        about = {"words": len(tokens), "n_ctx": tokens.shape[1], "is_population": False, "rows": len(words)}
        about |= {"weighting": "row" if weighting is None else "given"} | dict(described)
        return cls(tokens, words, columns, columns, labels, weights, groups[mask].long(), about, classes)

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
        labels, class_names, is_row = target_rows(values, dataset.tokens, chosen)
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
            there_are = ", ".join(map(repr, self.targets))
            raise KeyError(f"No target {name!r}: choose one of {there_are}.{meant(name, self.targets)}")
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


_INSTEAD = "Labelled tokens have no process: msp.probe(model, data) reads their labels, and "
_INSTEAD += "`with report['1_post'].steer(model, label):` around model(tokens) writes one"
tell_instead(LabelledTokens, _INSTEAD)


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
