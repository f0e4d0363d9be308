"""Token windows: what the position and the last k tokens say of a target, without a network.

A category c (a window, perhaps with the position) predicts its mean target, b̄(c) = Σ w b / Σ w, as least squares on
one-hot vectors would. The sums are a table, filled in the same pass as the moments. Errors follow from sums alone,

    Σ w |b - b̂(c)|² = Σ w |b|² - 2 b̂(c)·Σ w b + |b̂(c)|² Σ w.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor
from torch.nn.functional import one_hot

from msp_lens._distributed import process_count, total
from msp_lens.controls.control_scores import ControlKind, ControlScore
from msp_lens.controls.suffix_windows import LENGTHS, SuffixWindows, WindowRows
from msp_lens.data.labelled import BELIEF
from msp_lens.moments.moments import Moments
from msp_lens.moments.scores import CellErrors, score_of
from msp_lens.moments.solve import least_squares, without_rounding


class TokenWindows:
    """Controls that see only the position and a window of the last k tokens.

    - `position`: one category for each position.
    - `window k`: one category for each window; the shorter windows at the beginning of a word are categories too.
    - `window k × pos`: one category for each window and position.
    - `window k additive`: least squares on one-hot vectors of the position and each of the last k tokens, which adds
      up tokens without combining them.

    Held out, a window that the other folds lack is predicted by the longest shorter window that they have. The windows
    that the table has no room for are `SuffixWindows`, which know no positions: in long words those of up to 20 tokens.

    Args:
        tokens: The words that rows are numbered by.
        n_tokens: Size of the alphabet; `None` for text, of whose vocabulary only the tokens that occur are numbered.
        n_targets: Number of target coordinates.
        longest: Length of the longest window. By default 20 in words of more than 64 tokens, and in shorter ones 4; if
            these are of a given alphabet, no more than the table has room for.
        n_cells: The largest number of cells in the split, which bounds the size of the table.
        target: What is predicted, by its name among the rows' targets.
    """

    def __init__(
        self,
        tokens: Int[Tensor, "word pos"],
        n_tokens: int | None = None,
        *,
        n_targets: int,
        longest: int | None = None,
        n_cells: int = 20,
        target: str = BELIEF,
    ) -> None:
        is_text = n_tokens is None
        if n_tokens is None:
            occurring, tokens = tokens.unique(return_inverse=True)
            n_tokens = len(occurring)
        self.tokens, self.target = tokens, target
        self.base = n_tokens + 1
        # Longer words have one table for all positions, and longer windows.
        most_positions, table_entries, at_least = 64, 4_000_000, 4
        n_ctx = tokens.shape[1]
        self.n_positions = n_ctx if n_ctx <= most_positions else 1
        room = table_entries // (n_cells * self.n_positions * (n_targets + 1))
        wanted = range(1, min(longest or at_least, n_ctx) + 1)
        self.longest_in_table = max((k for k in wanted if self.base**k <= room), default=0)
        self._n_categories = self.base**self.longest_in_table * self.n_positions
        self._held: dict[str, Tensor] = {}
        if longest is None:
            in_short_words = at_least if is_text else self.longest_in_table or at_least
            longest = max(LENGTHS) if n_ctx > most_positions else in_short_words
        lengths = tuple(k for k in LENGTHS if k <= min(longest, n_ctx))
        self._longer = None
        if lengths[-1] > self.longest_in_table:
            how = {"n_targets": n_targets, "lengths": lengths, "report_above": self.longest_in_table}
            self._longer = SuffixWindows(tokens, n_tokens, **how, target=target)

    @property
    def longest(self) -> int:
        """The length of the longest window."""
        return self._longer.lengths[-1] if self._longer else self.longest_in_table

    def update(self, batch: WindowRows, cells: Int[Tensor, "row"], n_cells: int) -> None:
        """Add a batch of rows, whose `words` and `positions` index the tokens."""
        if self._longer:
            self._longer.update(batch, cells, n_cells)
        targets, weights, n_rows = batch.targets[self.target], batch.weights, torch.ones_like(cells)
        if (undefined := batch.undefined.get(self.target)) is not None:
            weights, n_rows = weights.masked_fill(undefined, 0.0), n_rows.masked_fill(undefined, 0)
        if not self._held:
            width = targets.shape[1]
            self._held = {
                # Center on one mean, the same in all processes: the squares of targets far from 0 would cancel.
                "reference": total(targets.mean(dim=0)) / process_count(),
                "sums": torch.zeros(n_cells * self._n_categories, width + 1, dtype=torch.float64),
                "squares": torch.zeros(n_cells, width, dtype=torch.float64),
                "rows": torch.zeros(n_cells, dtype=torch.int64),
            }
        centered = targets - self._held["reference"]
        ones = torch.ones(len(targets), 1, dtype=torch.float64)
        weighted = torch.cat([ones, centered], dim=1) * weights.unsqueeze(1)
        key = cells * self._n_categories + self._categories(batch.words, batch.positions)
        self._held["sums"].index_add_(0, key, weighted)
        self._held["squares"].index_add_(0, cells, weighted[:, 1:] * centered)
        self._held["rows"].index_add_(0, cells, n_rows)

    def state(self) -> dict[str, Tensor]:
        """The sums so far, for a checkpoint."""
        longer = self._longer.state() if self._longer else {}
        return {f"windows.{self.target}.{name}": values for name, values in self._held.items()} | longer

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the sums that `state` returned."""
        if self._longer:
            self._longer.restore(state)
        names = ("reference", "sums", "squares", "rows")
        if f"windows.{self.target}.sums" in state:
            # Copies, since the sums are added to in place.
            self._held = {name: state[f"windows.{self.target}.{name}"].clone() for name in names}

    def reduce(self) -> None:
        """Add the sums of all processes, if there are several."""
        if self._longer:
            self._longer.reduce()
        if self._held:
            self._held |= {name: total(self._held[name]) for name in ("sums", "squares", "rows")}

    def _categories(self, words: Int[Tensor, "row"], positions: Int[Tensor, "row"]) -> Int[Tensor, "row"]:
        code = torch.zeros(len(words), dtype=torch.int64)
        for lag in range(self.longest_in_table):
            # The extra symbol stands for "before the beginning".
            seen = self.tokens[words, (positions - lag).clamp(min=0)]
            code = code + torch.where(positions >= lag, seen, self.base - 1) * self.base**lag
        return code * self.n_positions + (positions.clamp(min=0) if self.n_positions > 1 else 0)

    def scores(self, n_folds: int) -> list[ControlScore]:
        """The score of each window; cell c belongs to fold c mod `n_folds`, as in the split of the probes."""
        if not self._held:
            return []
        squares, n = self._held["squares"], int(self._held["rows"].sum())
        sums = self._held["sums"].reshape(len(squares), self._n_categories, -1)
        categories = (sums[..., 0].sum(dim=0) > 0).nonzero().flatten()
        cells = (sums[..., 0].sum(dim=1) > 0).nonzero().flatten()
        # Fold by fold, as the probes' cells are.
        cells = cells[(cells % n_folds).argsort(stable=True)]
        table = _Table(sums[cells][:, categories], squares[cells], cells % n_folds, n, self._held["reference"])

        # An additive window needs a column for each token and lag.
        widest = 1_024
        window, position = categories // self.n_positions, categories % self.n_positions
        found = [table.score("position", "position", [position])] if self.n_positions > 1 else []
        for k in range(1, self.longest_in_table + 1):
            chain = [window % self.base**j for j in range(1, k + 1)]
            found.append(table.score(f"window {k}", "window", chain, k))
            if self.n_positions > 1:
                positioned = [*chain, chain[-1] * self.n_positions + position]
                found.append(table.score(f"window {k} × pos", "positioned window", positioned, k))
            if k * self.base + self.n_positions <= widest:
                lags = [one_hot(window // self.base**j % self.base, self.base) for j in range(k)]
                design = torch.cat([*lags, one_hot(position, self.n_positions)], dim=1).double()
                found.append(table.score(f"window {k} additive", "additive window", design, k))
        return found + (self._longer.scores(n_folds) if self._longer else [])


@dataclass(frozen=True, eq=False)
class _Table:
    """Sums by cell and category: the weight, then the weighted targets relative to a reference."""

    sums: Float64[Tensor, "cell category sum"]
    squares: Float64[Tensor, "cell target"]
    fold: Int[Tensor, "cell"]
    n: int
    reference: Float64[Tensor, "target"]

    def score(self, name: str, kind: ControlKind, by: list[Tensor] | Tensor, length: int | None = None) -> ControlScore:
        """The score of categories, from coarse to fine, or of a design matrix with one row for each category."""
        predict = self._additive if isinstance(by, Tensor) else self._back_off
        weight = self.sums[..., 0].sum(dim=1)
        mean = self.sums[..., 1:].sum(dim=(0, 1)) / weight.sum()
        totals = self.sums[..., 1:].sum(dim=1)
        spread = self.squares - 2 * mean * totals + mean**2 * weight.unsqueeze(1)
        varies = without_rounding(spread.sum(dim=0) / weight.sum(), self.reference + mean) > 0
        spread = torch.where(varies, spread, 0.0)
        errors = torch.empty_like(self.squares)
        for k in self.fold.unique().tolist():
            inside = self.fold == k
            errors[inside] = self._errors(predict(self.sums[~inside].sum(dim=0), by))[inside]
        everywhere = self._errors(predict(self.sums.sum(dim=0), by)).sum(dim=0) / weight.sum()
        in_sample = score_of(everywhere, spread.sum(dim=0) / weight.sum(), self.n)
        held_out = CellErrors(errors, spread, weight, self.fold, self.n).score()
        return ControlScore(name, kind, None, in_sample, held_out, length)

    def _errors(self, predicted: Float64[Tensor, "category target"]) -> Float64[Tensor, "cell target"]:
        cross = (self.sums[..., 1:] * predicted).sum(dim=1)
        return (self.squares - 2 * cross + self.sums[..., 0] @ predicted**2).clamp(min=0)

    def _back_off(self, sums: Float64[Tensor, "category sum"], chain: Any) -> Float64[Tensor, "category target"]:
        predicted = (sums[:, 1:].sum(dim=0) / sums[:, 0].sum()).expand(len(sums), -1)
        for level in chain:
            by_level = torch.zeros(int(level.max()) + 1, sums.shape[1], dtype=torch.float64).index_add_(0, level, sums)
            weight = by_level[level, :1]
            predicted = torch.where(weight > 0, by_level[level, 1:] / weight, predicted)
        return predicted

    def _additive(self, sums: Float64[Tensor, "category sum"], design: Any) -> Float64[Tensor, "category target"]:
        seen = sums[:, 0] > 0
        means = sums[seen, 1:] / sums[seen, :1]
        moments = Moments({"window": design.shape[1], BELIEF: means.shape[1]})
        fitted = least_squares(moments.update(torch.cat([design[seen], means], dim=1), sums[seen, 0]), "window", BELIEF)
        return design @ fitted.weights + fitted.bias
