"""Labelled tokens: words as a model reads them, with the targets that a probe should find at some of their positions.

A row is the place of an activation, (word, column), with its targets, its weight and its group; rows of one group are
held out together. The rows of a `BeliefDataset` are its distinct prefixes, each a group of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor
from torch.nn.functional import one_hot as torch_one_hot

from msp_lens.data.belief_dataset import BeliefDataset, Weighting, prefix_hashes
from msp_lens.data.row_positions import Positions, described_positions, position_mask

BELIEF = "belief"


@dataclass(frozen=True, eq=False)
class LabelledTokens:
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

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("targets={}: give at least one, e.g. {'belief': beliefs}.")
        n_rows, sizes = len(self.words), ((self.words, len(self.tokens)), (self.columns, self.n_ctx))
        inside = all(((numbers >= 0) & (numbers < size)).all() for numbers, size in sizes)
        if len(self.columns) != n_rows or not inside or ((self.words * self.n_ctx + self.columns).diff() <= 0).any():
            places = f"places in {len(self.tokens)} words of {self.n_ctx} tokens, each once and in order"
            raise ValueError(f"Rows are {places}: sort them by word and column.")
        others = {"positions": self.positions, "weights": self.weights, "groups": self.groups}
        for name, values in (others | dict(self.targets)).items():
            if len(values) != n_rows:
                raise ValueError(f"{name} has {len(values)} rows for {n_rows} places: give one row for each place.")
            wrong = ~torch.isfinite(values).reshape(n_rows, -1).all(dim=1)
            if wrong.any():
                row = int(wrong.nonzero()[0])
                place = f"word {int(self.words[row])}, column {int(self.columns[row])}"
                raise ValueError(
                    f"{name} is not finite at {place}: exclude such rows by positions=, a mask [word, pos]."
                )
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
    def from_tokens(
        cls,
        tokens: Int[Tensor, "word pos"],
        targets: Mapping[str, Tensor] | Tensor,
        *,
        positions: Positions = None,
        weighting: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> LabelledTokens:
        """Your own tokens, with whatever you look for in a model that reads them.

        Args:
            tokens: The words, as the model reads them.
            targets: By name, `[word, pos, target]`, or `[word, pos]` for one number (`one_hot` encodes classes). A
                single tensor is `"belief"`.
            positions: Positions that are rows: a slice, numbers (negative ones from the end), or a mask, `[pos]` or
                `[word, pos]`; all by default.
            weighting: How much each row counts, `[word]` or `[word, pos]`; the same for all by default.
            groups: Rows of one group are held out together, `[word]` or `[word, pos]`; by default those with the same
                prefix, which are the same activation of a causal model.

        Raises:
            ValueError: if something has the wrong shape or type or is not finite; the message names it.

        Example:
            >>> words = torch.tensor([[0, 1, 1], [0, 1, 2]])
            >>> LabelledTokens.from_tokens(words, {"next token": one_hot(words[:, 1:], 3)}, positions=slice(-1))
            LabelledTokens(2 words of 3 tokens: 4 rows in 2 groups; next token [3])
        """
        if tokens.numel() == 0:
            raise ValueError(f"tokens has shape {tuple(tokens.shape)}: give at least one word of one token.")
        tokens = tokens.cpu()
        mask = position_mask(positions, tokens)
        row_weights = torch.ones(len(tokens), dtype=torch.float64) if weighting is None else weighting
        row_groups = prefix_hashes(tokens).unique(return_inverse=True)[1] if groups is None else groups
        named = targets if isinstance(targets, Mapping) else {BELIEF: targets}
        words, columns = mask.nonzero(as_tuple=True)
        labels = {name: _target_rows(name, values, tokens, words, columns) for name, values in named.items()}
        weights = _per_position("weighting", row_weights, tokens)[mask].double()
        row_groups = _per_position("groups", row_groups, tokens)[mask].long()
        described = {"source": "tokens", "words": len(tokens), "n_ctx": tokens.shape[1], "is_population": False}
        described |= {"rows": len(words), "weighting": "row" if weighting is None else "given"}
        described |= {"groups": "prefix" if groups is None else "given", "positions": described_positions(positions)}
        return cls(tokens, words, columns, columns, labels, weights, row_groups, described)

    @classmethod
    def from_beliefs(
        cls, dataset: BeliefDataset, *, weighting: Weighting = "probability", targets: Mapping[str, Any] | None = None
    ) -> LabelledTokens:
        """The distinct prefixes of a process's words, with their beliefs.

        Args:
            dataset: The words, the positions that are rows, and how the model reads them.
            weighting: How much each distinct prefix counts.
            targets: More targets by name, `[word, pos, target]`: functions of the prefix, as beliefs are, such as the
                beliefs about each factor of a product of processes.

        Raises:
            ValueError: if a target has the wrong shape, or no value for the prior that the token map asks for.

        Example:
            >>> from msp_lens.data.belief_dataset import words
            >>> from msp_lens.processes.catalog import z1r
            >>> LabelledTokens.from_beliefs(words(z1r(), n_ctx=4))
            LabelledTokens(8 words of 4 tokens: 20 rows in 20 groups; belief [3])
        """
        by_prefix = {BELIEF: dataset.prefix_beliefs}
        words, columns = (dataset.is_first & position_mask(dataset.positions, dataset.tokens)).nonzero(as_tuple=True)
        for name, values in (targets or {}).items():
            if name == BELIEF:
                raise ValueError(f"targets has its own {BELIEF!r}: rename it, the dataset's beliefs have that name.")
            rows = _target_rows(name, values, dataset.tokens, words, columns)
            by_prefix[name] = rows.new_zeros(dataset.n_prefixes, rows.shape[1])
            by_prefix[name][dataset.prefix_ids[words, columns]] = rows
        return label_rows(
            dataset,
            is_row=dataset.is_first,
            weights=dataset.prefix_weights(weighting)[dataset.prefix_ids],
            groups=dataset.prefix_ids,
            targets=by_prefix,
            prior={BELIEF: dataset.process.initial},
            prior_weight=dataset.prior_weight(weighting),
            description={"source": "process", "weighting": weighting, "groups": "prefix"},
        )

    def only(self, name: str) -> LabelledTokens:
        """The same rows with a single target; `KeyError` if there is none of that name."""
        if name not in self.targets:
            raise KeyError(f"No target {name!r}: choose one of {', '.join(map(repr, self.targets))}.")
        return replace(self, targets={name: self.targets[name]})

    def rows_of(self, words: slice) -> slice:
        """The rows of a range of words."""
        bounds = torch.searchsorted(self.words, torch.tensor([words.start, words.stop]))
        return slice(int(bounds[0]), int(bounds[1]))

    def __repr__(self) -> str:
        n_groups = len(self.groups.unique())
        size = f"{len(self.tokens)} words of {self.n_ctx} tokens: {len(self)} rows in {n_groups} groups"
        return f"LabelledTokens({size}; {', '.join(f'{k} [{v.shape[1]}]' for k, v in self.targets.items())})"


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
    """
    words, symbols = (is_row & position_mask(dataset.positions, dataset.tokens)).nonzero(as_tuple=True)
    labels = {name: values[dataset.prefix_ids[words, symbols]] for name, values in targets.items()}
    row_weights, row_groups = weights[words, symbols], groups[words, symbols]
    tokens, ends = dataset.encoded()
    columns, token_map = ends[words, symbols], dataset.token_map
    if token_map is not None and token_map.include_prior:
        if missing := sorted(targets.keys() - prior.keys()):
            raise ValueError(f"include_prior=True, but {missing} have no value before the first symbol: leave it out.")
        labels = {name: torch.cat([prior[name].unsqueeze(0), values]) for name, values in labels.items()}
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
    return LabelledTokens(tokens, words, columns, symbols, labels, row_weights, row_groups, described)


def one_hot(classes: Int[Tensor, "word pos *more"], n_classes: int) -> Float64[Tensor, "word pos target"]:
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
    return torch_one_hot(classes.long(), n_classes).double().flatten(2)


def _target_rows(
    name: str, values: Any, tokens: Int[Tensor, "word pos"], words: Int[Tensor, "row"], columns: Int[Tensor, "row"]
) -> Float64[Tensor, "row target"]:
    """A target's values in some rows, once its shape is checked."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        remedy = "give a tensor of floating-point numbers; encode classes with one_hot(classes, n_classes)"
        raise ValueError(f"Target {name!r} is {kind}: {remedy}.")
    wide = values.unsqueeze(2) if values.ndim == 2 else values
    n_words, n_ctx = tokens.shape
    # Shifted targets may lack the last columns if none of these is a row.
    if wide.ndim != 3 or len(wide) != n_words or not int(columns.max()) < wide.shape[1] <= n_ctx:
        fitting = f"[word, pos, target], here ({n_words}, {n_ctx}, …), or [word, pos] for one number each"
        raise ValueError(f"Target {name!r} has shape {tuple(values.shape)}; it needs {fitting}.")
    return wide.detach().cpu()[words, columns].double()


def _per_position(name: str, values: Tensor, tokens: Int[Tensor, "word pos"]) -> Tensor:
    """`[word]` or `[word, pos]` as the latter."""
    if tuple(values.shape) not in ((len(tokens),), tuple(tokens.shape)):
        fitting = f"[word] or [word, pos], here ({len(tokens)},) or {tuple(tokens.shape)}"
        raise ValueError(f"{name} has shape {tuple(values.shape)}; it needs {fitting}.")
    values = values.detach().cpu()
    return (values.unsqueeze(1) if values.ndim == 1 else values).expand(tokens.shape)
