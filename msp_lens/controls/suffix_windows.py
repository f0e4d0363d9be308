"""Long windows: what the last k tokens say of a target, for windows of which there are too many for a table.

The rows are kept, sorted by their tokens read backwards: rows that share their last k tokens are then neighbors, for
every k at once, and no window is hashed. Most long windows are rare, so each leans on the next shorter one. A window c
of n_c rows, with the mean target b̄(c), predicts

    b̂_k(c) = (n_c b̄(c) + λ b̂_j(c')) / (n_c + λ),    c' the last j < k tokens of c, b̂_0 the mean of all rows,

and a window that was never met predicts what the longest shorter one does. This is the interpolation of n-gram models
(Jelinek & Mercer 1980; Witten & Bell 1991) with means in the place of probabilities. Under weights w a window has
n_c = (Σ w)² / Σ w² rows. λ, in rows, is the same for all windows of a prediction. Each length and each held-out fold
has its own, the one with the least error on the other folds; λ = 0 is plain back-off.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float64, Int, Int32
from torch import Tensor

from msp_lens._distributed import concatenated
from msp_lens.controls.control_scores import ControlScore
from msp_lens.data.labelled import BELIEF
from msp_lens.moments.scores import CellErrors, score_of
from msp_lens.moments.solve import without_rounding

LENGTHS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20)
# λ, in rows.
PENALTIES = (0.0, 0.5, 2.0, 8.0, 32.0)


@runtime_checkable
class WindowRows(Protocol):
    """What windows read of a batch of rows, such as a `RowBatch`."""

    @property
    def targets(self) -> Mapping[str, Float64[Tensor, "row target"]]:
        """Targets by name."""
        ...

    @property
    def weights(self) -> Float64[Tensor, "row"]:
        """How much each row counts."""
        ...

    @property
    def words(self) -> Int[Tensor, "row"]:
        """The word that each row belongs to."""
        ...

    @property
    def positions(self) -> Int[Tensor, "row"]:
        """The position of the last token seen; -1 before the first."""
        ...

    @property
    def undefined(self) -> Mapping[str, Bool[Tensor, "row"]]:
        """By target, the rows where it has no value."""
        ...


class SuffixWindows:
    """Controls that see only the last k tokens, for any alphabet and k, in memory that grows with the rows alone.

    A window that reaches over the beginning of its word is one of its own.

    Args:
        tokens: The words that rows are numbered by.
        n_tokens: Size of the alphabet.
        n_targets: Number of target coordinates.
        lengths: The numbers of tokens in the windows, in ascending order.
        report_above: Windows longer than this are scored; shorter ones only help them.
        target: What is predicted, by its name among the rows' targets.
    """

    def __init__(
        self,
        tokens: Int[Tensor, "word pos"],
        n_tokens: int,
        *,
        n_targets: int,
        lengths: Sequence[int] = LENGTHS,
        report_above: int = 0,
        target: str = BELIEF,
    ) -> None:
        self.tokens, self.n_tokens, self.target = tokens, n_tokens, target
        self.lengths, self.report_above = tuple(lengths), report_above
        # Batches of rows: words, positions, cells, weights, whether they count as rows, and targets.
        self._batches: list[tuple[Tensor, ...]] = []
        self._empty = torch.empty(0, n_targets, dtype=torch.float64)
        self._n_cells = 0

    def update(self, batch: WindowRows, cells: Int[Tensor, "row"], n_cells: int) -> None:
        """Keep a batch of rows, whose `words` and `positions` index the tokens."""
        weights, counted = batch.weights, torch.ones_like(cells)
        if (undefined := batch.undefined.get(self.target)) is not None:
            weights, counted = weights.masked_fill(undefined, 0.0), counted.masked_fill(undefined, 0)
        self._batches.append((batch.words, batch.positions, cells, counted, weights, batch.targets[self.target]))
        self._n_cells = n_cells

    def _rows(self) -> tuple[Tensor, ...]:
        """The rows so far, as one batch."""
        if not self._batches:
            no_number = torch.empty(0, dtype=torch.int64)
            return (no_number, no_number, no_number, no_number, self._empty[:, 0], self._empty)
        return tuple(torch.cat(parts) for parts in zip(*self._batches, strict=True))

    def state(self) -> dict[str, Tensor]:
        """The rows so far, for a checkpoint."""
        if not self._batches:
            return {}
        names = ("words", "positions", "cells", "counted", "weights", "targets")
        kept = dict(zip(names, self._rows(), strict=True)) | {"n_cells": torch.tensor(self._n_cells)}
        return {f"windows.{self.target}.rows.{name}": values for name, values in kept.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the rows that `state` returned."""
        prefix = f"windows.{self.target}.rows."
        if f"{prefix}n_cells" in state:
            names = ("words", "positions", "cells", "counted", "weights", "targets")
            self._batches = [tuple(state[prefix + name] for name in names)]
            self._n_cells = int(state[f"{prefix}n_cells"])

    def reduce(self) -> None:
        """Gather the rows of all processes, if there are several."""
        self._batches = [tuple(concatenated(values) for values in self._rows())]
        self._n_cells = int(concatenated(torch.tensor([self._n_cells])).max())

    def scores(self, n_folds: int) -> list[ControlScore]:
        """The score of each window; cell c belongs to fold c mod `n_folds`, as in the split of the probes."""
        words, positions, cells, counted, weights, targets = self._rows()
        n, kept = int(counted.sum()), weights.nonzero().flatten()
        if not len(kept):
            return []
        kept = kept[self._backwards(words[kept], positions[kept])]
        words, positions, cells, weights, targets = (
            values[kept] for values in (words, positions, cells, weights, targets)
        )
        levels, fold, weights = self._windows(words, positions), cells % n_folds, weights / weights.max()
        mean = weights @ targets / weights.sum()
        # Centered, since sums of targets far from 0 would lose digits.
        targets = targets - mean

        def by_cell(errors: Float64[Tensor, "row target"], rows: Tensor | slice) -> Float64[Tensor, "cell target"]:
            sums = torch.zeros(self._n_cells, targets.shape[1], dtype=torch.float64)
            return sums.index_add_(0, cells[rows], errors.square().mul_(weights[rows].unsqueeze(1)))

        spread, weight = by_cell(targets, slice(None)), torch.bincount(cells, weights, minlength=self._n_cells)
        spread = torch.where(without_rounding(spread.sum(dim=0) / weight.sum(), mean) > 0, spread, 0.0)
        errors = torch.zeros(len(PENALTIES), len(levels), *spread.shape, dtype=torch.float64)
        for k in fold.unique().tolist():
            inside = fold == k
            for level, found in enumerate(_predictions(levels, weights, targets, ~inside, inside, PENALTIES)):
                for number, predicted in enumerate(found if self.lengths[level] > self.report_above else ()):
                    errors[number, level] += by_cell(targets[inside] - predicted, inside)

        of_fold = torch.stack([errors[:, :, k::n_folds].sum(dim=(2, 3)) for k in range(n_folds)])
        best, best_elsewhere = of_fold.sum(dim=0).argmin(dim=0), (of_fold.sum(dim=0) - of_fold).argmin(dim=1)
        # Fold by fold, as the probes' cells are.
        filled = (weight > 0).nonzero().flatten()
        filled = filled[(filled % n_folds).argsort(stable=True)]
        everything = torch.ones_like(fold, dtype=torch.bool)
        chosen = best.unique().tolist()
        penalties, found = [PENALTIES[number] for number in chosen], []
        for level, fitted in enumerate(_predictions(levels, weights, targets, everything, everything, penalties)):
            if (length := self.lengths[level]) > self.report_above:
                squares = weights @ (targets - fitted[chosen.index(int(best[level]))]) ** 2
                in_sample = score_of(squares / weight.sum(), spread.sum(dim=0) / weight.sum(), n)
                of_cells = errors[best_elsewhere[filled % n_folds, level], level, filled]
                held_out = CellErrors(of_cells, spread[filled], weight[filled], filled % n_folds, n).score()
                found.append(ControlScore(f"window {length}", "window", None, in_sample, held_out, length))
        return found

    def _seen(self, words: Int[Tensor, "row"], positions: Int[Tensor, "row"], lag: int) -> Int[Tensor, "row"]:
        """The token that many positions back; one more symbol stands for "before the beginning"."""
        return torch.where(positions >= lag, self.tokens[words, (positions - lag).clamp(min=0)], self.n_tokens)

    def _backwards(self, words: Int[Tensor, "row"], positions: Int[Tensor, "row"]) -> Int[Tensor, "row"]:
        """The order of rows by their last tokens, the latest first."""
        longest, order = max(self.lengths), torch.arange(len(words))
        # As many tokens are sorted at once as a 64-bit number holds, the earliest first.
        at_once = max(1, int(62 / math.log2(self.n_tokens + 1)))
        for first in reversed(range(0, longest, at_once)):
            key = torch.zeros_like(words)
            for lag in range(first, min(first + at_once, longest)):
                key = key * (self.n_tokens + 1) + self._seen(words, positions, lag)
            order = order[key[order].argsort(stable=True)]
        return order

    def _windows(self, words: Int[Tensor, "row"], positions: Int[Tensor, "row"]) -> list[Int32[Tensor, "row"]]:
        """The number of each row's window, for each length; rows are in the order of `_backwards`."""
        found, is_new = [], torch.zeros(len(words), dtype=torch.bool)
        for lag in range(max(self.lengths)):
            token = self._seen(words, positions, lag)
            is_new[1:] |= token[1:] != token[:-1]
            if lag + 1 in self.lengths:
                found.append(is_new.cumsum(dim=0, dtype=torch.int32))
        return found


def _predictions(
    levels: Sequence[Int32[Tensor, "row"]],
    weights: Float64[Tensor, "row"],
    targets: Float64[Tensor, "row target"],
    fitted: Bool[Tensor, "row"],
    wanted: Bool[Tensor, "row"],
    penalties: Sequence[float],
) -> Iterator[list[Float64[Tensor, "wanted target"]]]:
    """What the fitted rows tell of the wanted ones, by each window, from short to long, with each penalty."""
    columns = torch.cat([torch.stack([weights, weights**2], dim=1), targets * weights.unsqueeze(1)], dim=1)[fitted]
    shorter = [(columns[:, 2:].sum(dim=0) / columns[:, 0].sum()).expand(int(wanted.sum()), -1)] * len(penalties)
    for windows in levels:
        sums = torch.zeros(int(windows.max()) + 1, columns.shape[1], dtype=torch.float64)
        own = sums.index_add_(0, windows[fitted], columns)[windows[wanted]]
        total, squares = own[:, :1], own[:, 1:2]
        # A window that was not met, or whose weight is so small that its square vanishes, has no rows.
        is_met = squares > 0
        count, mean = (total**2 / squares).masked_fill(~is_met, 0.0), own[:, 2:] / torch.where(is_met, total, 1.0)
        own_share = [torch.where(is_met, count / (count + penalty), 0.0) for penalty in penalties]
        shorter = [torch.lerp(before, mean, share) for before, share in zip(shorter, own_share, strict=True)]
        yield shorter
