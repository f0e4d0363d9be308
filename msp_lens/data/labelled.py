"""Labelled tokens: words as a model reads them, and at some of their positions what a probe is to find there.

A row is an activation's place, (word, column), with its targets, its weight and its group: rows of one group are held
out together. From a `BeliefDataset` a row is a distinct prefix, weighted as there and a group by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor
from torch.nn.functional import one_hot as torch_one_hot

from msp_lens.data.token_map import TokenMap
from msp_lens.data.words import BeliefDataset, Weighting, check_weighting, prefix_hashes

BELIEF = "belief"

# Which positions are rows: a slice, numbers, or a mask [pos] or [word, pos]; None is all.
Positions: TypeAlias = slice | Sequence[int] | Tensor | None


@dataclass(frozen=True, eq=False)
class LabelledTokens:
    """Words and their rows, in the order of the words; build it with `from_beliefs` or `from_tokens`.

    Attributes:
        tokens: The words, as the model reads them.
        words: The word of each row, in ascending order.
        columns: The column of `tokens` whose activation is the row's.
        positions: Which position of the word that is: the column, or under a `TokenMap` the number of the symbol just
            read, -1 before the first.
        targets: What is to be found there, by name; the beliefs under `"belief"`.
        weights: How much each row counts.
        groups: Rows of one group are held out together.
        description: Where all this comes from, as JSON-ready values: what a report's provenance takes over.

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
        n_rows = len(self.words)
        inside = ((self.words >= 0) & (self.words < len(self.tokens))).all() and (
            (self.columns >= 0) & (self.columns < self.n_ctx)
        ).all()
        if len(self.columns) != n_rows or not inside or ((self.words * self.n_ctx + self.columns).diff() <= 0).any():
            raise ValueError(
                f"Rows are places in {len(self.tokens)} words of {self.n_ctx} tokens, each once and in order: "
                "sort them by word and column."
            )
        others = {"positions": self.positions, "weights": self.weights, "groups": self.groups}
        for name, values in (others | dict(self.targets)).items():
            if len(values) != n_rows:
                raise ValueError(f"{name} has {len(values)} rows, and there are {n_rows} places: each needs its own.")
            wrong = ~torch.isfinite(values).reshape(n_rows, -1).all(dim=1)
            if wrong.any():
                row = int(wrong.nonzero()[0])
                raise ValueError(
                    f"{name} is not finite at word {int(self.words[row])}, column {int(self.columns[row])}: "
                    "leave such rows out with positions=, a mask [word, pos]."
                )
        if (self.weights < 0).any():
            raise ValueError(f"weights holds {float(self.weights.min()):g}: weights are ≥ 0.")
        if float(self.weights.sum()) == 0:
            raise ValueError(f"{n_rows} rows have a total weight of 0: choose positions= and weights= that leave some.")

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
        weights: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> LabelledTokens:
        """Given tokens and whatever is to be found in a model that reads them.

        Args:
            tokens: The words, as the model reads them.
            targets: By name, `[word, pos, target]`, or `[word, pos]` for a single number; classes through `one_hot`. A
                tensor alone is `"belief"`.
            positions: Which positions are rows: a slice, numbers (negative from the end), or a mask, `[pos]` or
                `[word, pos]`; all by default.
            weights: How much each row counts, `[word]` or `[word, pos]`; all alike by default.
            groups: Rows of one group are held out together, `[word]` or `[word, pos]`; by default rows with the same
                prefix, which are the same activation of a causal model.

        Raises:
            ValueError: naming what has the wrong shape, or is not finite, or not a number at all.

        Example:
            >>> words = torch.tensor([[0, 1, 1], [0, 1, 2]])
            >>> LabelledTokens.from_tokens(words, {"next token": one_hot(words[:, 1:], 3)}, positions=slice(-1))
            LabelledTokens(2 words of 3 tokens: 4 rows in 2 groups; next token [3])
        """
        if tokens.numel() == 0:
            raise ValueError(f"tokens has shape {tuple(tokens.shape)}: give at least one word of one token.")
        tokens = tokens.cpu()
        described = {
            "weighting": "row" if weights is None else "given",
            "groups": "prefix" if groups is None else "given",
            "positions": described_positions(positions),
        }
        mask = position_mask(positions, tokens)
        if weights is None:
            weights = torch.ones(len(tokens), dtype=torch.float64)
        by_prefix = prefix_hashes(tokens).unique(return_inverse=True)[1] if groups is None else groups
        group_of = _per_position("groups", by_prefix, tokens)
        named = targets if isinstance(targets, Mapping) else {BELIEF: targets}
        words, columns = mask.nonzero(as_tuple=True)
        return cls(
            tokens=tokens,
            words=words,
            columns=columns,
            positions=columns,
            targets={name: _target_rows(name, values, tokens, words, columns) for name, values in named.items()},
            weights=_per_position("weights", weights, tokens)[mask].double(),
            groups=group_of[mask].long(),
            description={
                "source": "tokens",
                "words": len(tokens),
                "n_ctx": tokens.shape[1],
                "is_population": False,
                "rows": len(words),
                **described,
            },
        )

    @classmethod
    def from_beliefs(
        cls,
        dataset: BeliefDataset,
        *,
        weighting: Weighting = "probability",
        targets: Mapping[str, Tensor] | None = None,
        positions: Positions = None,
        token_map: TokenMap | None = None,
    ) -> LabelledTokens:
        """The distinct prefixes of a process's words, with their beliefs.

        Args:
            dataset: The words.
            weighting: How much each distinct prefix counts.
            targets: More of them by name, `[word, pos, target]`, functions of the prefix as beliefs are; e.g. the
                beliefs about each factor of a product of processes.
            positions: Which of a word's symbols are rows, as for `from_tokens`.
            token_map: How the model reads the symbols; by default symbol 0 as token 0, and so on.

        Raises:
            ValueError: if a target has the wrong shape, or the token map is another process's.

        Example:
            >>> from msp_lens.data.words import all_words
            >>> from msp_lens.processes.catalog import z1r
            >>> LabelledTokens.from_beliefs(all_words(z1r(), 4))
            LabelledTokens(8 words of 4 tokens: 20 rows in 20 groups; belief [3])
        """
        check_weighting(weighting)
        mask = dataset.is_first & position_mask(positions, dataset.tokens)
        words, symbols = mask.nonzero(as_tuple=True)
        more = {} if targets is None else targets
        if BELIEF in more:
            raise ValueError(f"targets has a {BELIEF!r} of its own: give it another name, beliefs are there already.")
        chosen = {BELIEF: dataset.beliefs[words, symbols]} | {
            name: _target_rows(name, values, dataset.tokens, words, symbols) for name, values in more.items()
        }
        groups = dataset.prefix_ids[words, symbols]
        row_weights = dataset.prefix_weights(weighting)[groups]
        tokens, columns, read_as = dataset.tokens, symbols, None
        if token_map is not None:
            token_map.check_reads(dataset.process)
            tokens, ends = token_map.encode(dataset.tokens)
            columns, read_as = ends[words, symbols], token_map.to_dict()
        labelled = cls(
            tokens=tokens,
            words=words,
            columns=columns,
            positions=symbols,
            targets=chosen,
            weights=row_weights,
            groups=groups,
            description={
                "source": "process",
                "process": dataset.process.to_dict(),
                "process_fingerprint": dataset.process.fingerprint,
                "words": len(dataset),
                "n_ctx": dataset.n_ctx,
                "is_population": dataset.is_population,
                "weighting": weighting,
                "groups": "prefix",
                "positions": described_positions(positions),
                "token_map": read_as,
                "rows": len(words) + bool(token_map and token_map.include_prior),
            },
        )
        if token_map is None or not token_map.include_prior:
            return labelled
        return labelled._with_prior(dataset, weighting, len(token_map.start) - 1, set(more))

    def _with_prior(self, dataset: BeliefDataset, weighting: Weighting, column: int, more: set[str]) -> LabelledTokens:
        """One more row, of the first word: the belief before any symbol, counted as often as words begin."""
        if more:
            raise ValueError(
                f"include_prior=True, but targets {sorted(more)} have no value before the first symbol: leave it out."
            )
        prior = dataset.process.initial
        weight = 1 / dataset.n_prefixes if weighting == "prefix" else float(dataset.word_weights.sum()) / dataset.n_ctx
        return LabelledTokens(
            tokens=self.tokens,
            words=torch.cat([torch.zeros(1, dtype=torch.int64), self.words]),
            columns=torch.cat([torch.tensor([column]), self.columns]),
            positions=torch.cat([torch.tensor([-1]), self.positions]),
            targets={BELIEF: torch.cat([prior.unsqueeze(0), self.targets[BELIEF]])},
            weights=torch.cat([torch.tensor([weight], dtype=torch.float64), self.weights]),
            groups=torch.cat([torch.tensor([dataset.n_prefixes]), self.groups]),
            description=self.description,
        )

    def rows_of(self, words: slice) -> slice:
        """The rows of a range of words."""
        bounds = torch.searchsorted(self.words, torch.tensor([words.start, words.stop]))
        return slice(int(bounds[0]), int(bounds[1]))

    def __repr__(self) -> str:
        size = (
            f"{len(self.tokens)} words of {self.n_ctx} tokens: {len(self)} rows in {len(self.groups.unique())} groups"
        )
        return f"LabelledTokens({size}; {', '.join(f'{k} [{v.shape[1]}]' for k, v in self.targets.items())})"


def one_hot(classes: Int[Tensor, "word pos *more"], n_classes: int) -> Float64[Tensor, "word pos target"]:
    """Classes as targets: 1 for the class that is, 0 for the others; several classes a position side by side.

    Args:
        classes: Class numbers from 0, e.g. the next tokens `[word, pos]`, or the squares of a board
            `[word, pos, square]`.
        n_classes: How many classes there are.

    Raises:
        ValueError: if a number is none of them.

    Example:
        >>> one_hot(torch.tensor([[1, 0]]), 3)
        tensor([[[0., 1., 0.],
                 [1., 0., 0.]]], dtype=torch.float64)
    """
    if classes.numel() and (int(classes.min()) < 0 or int(classes.max()) >= n_classes):
        raise ValueError(
            f"classes holds {int(classes.min())} to {int(classes.max())}; the {n_classes} classes are 0 to "
            f"{n_classes - 1}. Give unknown ones any class, and leave their rows out with positions=."
        )
    return torch_one_hot(classes.long(), n_classes).double().flatten(2)


def position_mask(positions: Positions, words: Int[Tensor, "word pos"]) -> Bool[Tensor, "word pos"]:
    """The chosen positions as a mask.

    Raises:
        ValueError: if a position is outside the words, a mask has the wrong shape, or nothing is chosen.
    """
    n_ctx = words.shape[1]
    if isinstance(positions, Tensor) and positions.dtype == torch.bool:
        if positions.shape not in ((n_ctx,), tuple(words.shape)):
            raise ValueError(
                f"positions has shape {tuple(positions.shape)}; a mask is [pos] or [word, pos], here ({n_ctx},) or "
                f"{tuple(words.shape)}."
            )
        mask = positions.cpu().expand(words.shape)
    else:
        chosen = torch.zeros(n_ctx, dtype=torch.bool)
        if positions is None or isinstance(positions, slice):
            chosen[positions or slice(None)] = True
        else:
            for position in (int(position) for position in positions):
                if not -n_ctx <= position < n_ctx:
                    raise ValueError(
                        f"positions: {position} is outside words of {n_ctx}: choose from 0 to {n_ctx - 1}."
                    )
                chosen[position] = True
        mask = chosen.expand(words.shape)
    if not mask.any():
        raise ValueError(f"positions={positions} chooses none of the {n_ctx} positions.")
    return mask


def _target_rows(
    name: str,
    values: Any,
    tokens: Int[Tensor, "word pos"],
    words: Int[Tensor, "row"],
    columns: Int[Tensor, "row"],
) -> Float64[Tensor, "row target"]:
    """A target's values in some rows, once its shape is checked."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"Target {name!r} is {kind}; targets are tensors of floating-point numbers. Classes become such by "
            "one_hot(classes, n_classes)."
        )
    wide = values.unsqueeze(2) if values.ndim == 2 else values
    # Shifted targets may be short of the last columns, where these are no rows.
    needed = int(columns.max()) + 1
    n_words, n_ctx = tokens.shape
    if wide.ndim != 3 or len(wide) != n_words or not needed <= wide.shape[1] <= n_ctx:
        raise ValueError(
            f"Target {name!r} has shape {tuple(values.shape)}; it needs [word, pos, target], here "
            f"({n_words}, {n_ctx}, …), or [word, pos] for one number each."
        )
    return wide.detach().cpu()[words, columns].double()


def _per_position(name: str, values: Tensor, tokens: Int[Tensor, "word pos"]) -> Tensor:
    """`[word]` or `[word, pos]` as the latter."""
    if tuple(values.shape) not in ((len(tokens),), tuple(tokens.shape)):
        raise ValueError(
            f"{name} has shape {tuple(values.shape)}; it needs [word] or [word, pos], here ({len(tokens)},) or "
            f"{tuple(tokens.shape)}."
        )
    values = values.detach().cpu()
    return (values.unsqueeze(1) if values.ndim == 1 else values).expand(tokens.shape)


def described_positions(positions: Positions) -> Any:
    """Positions as a JSON-ready value."""
    if positions is None:
        return "all"
    if isinstance(positions, slice):
        return f"{positions.start or 0}:{'' if positions.stop is None else positions.stop}" + (
            f":{positions.step}" if positions.step else ""
        )
    if isinstance(positions, Tensor) and positions.dtype == torch.bool:
        return "a mask" if positions.ndim == 2 else positions.nonzero().flatten().tolist()
    return [int(position) for position in positions]
