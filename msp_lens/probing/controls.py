"""What a probe is set beside: what can be read where there is nothing to read, or without the network's training.

- *Shuffled beliefs*: what a linear map memorizes.
- *Windows*: what the last k tokens say, looked up in a table or added up token by token, with or without the position.
- *An untrained twin*: what the architecture carries before it has learned anything.

Next-token probabilities are a rival, not a control: an alternative account of what a trained network might represent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pandas as pd
import torch
from jaxtyping import Float64, Int
from torch import Tensor
from torch.nn.functional import one_hot

from msp_lens._distributed import process_count, total
from msp_lens._tables import to_html, to_text
from msp_lens.data import BeliefDataset
from msp_lens.models.build import build_model, config_fields, weights
from msp_lens.models.hooked import HookedModel, find_sites, model_device
from msp_lens.moments.moments import Moments
from msp_lens.moments.scores import CellErrors, HeldOutScore, Score, score_of
from msp_lens.moments.solve import least_squares
from msp_lens.probing.belief_probe import BELIEF
from msp_lens.probing.rows import RowBatch

# Longest window, and how many numbers its table may hold.
LONGEST_WINDOW = 4
TABLE_ENTRIES = 4_000_000
# In longer contexts windows are not told apart by position.
MAX_POSITIONS = 64
# A window added up token by token needs a column for each token and lag.
MAX_ADDITIVE_WIDTH = 1_024


def shuffled_beliefs(dataset: BeliefDataset, *, generator: torch.Generator) -> Float64[Tensor, "prefix state"]:
    """The beliefs of all prefixes, dealt out among them at random.

    A probe fitted to these can only memorize. With few prefixes and many features it memorizes well: its
    in-sample R² says how much of a true probe's R² that alone would explain.
    """
    return dataset.prefix_beliefs[torch.randperm(dataset.n_prefixes, generator=generator)]


@dataclass(frozen=True)
class ControlScore:
    """How well a control predicts the beliefs, on the same rows and folds as the probes.

    Attributes:
        name: Which control.
        site: The label of the site it stands beside; `None` if it stands beside all of them.
        in_sample: On all rows.
        held_out: By the same cross-validation.
        is_rival: Whether it is another account of a trained network rather than a control, so that skill leaves it out.
    """

    name: str
    site: str | None
    in_sample: Score
    held_out: HeldOutScore
    is_rival: bool = False


@dataclass(frozen=True, eq=False)
class Controls(Sequence[ControlScore]):
    """The controls of a report: a sequence, and a table.

    Attributes:
        scores: One for each control, and site where it has one.
    """

    scores: tuple[ControlScore, ...] = ()

    def __getitem__(self, index: Any) -> Any:
        return self.scores[index]

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, name: str, site: str | None = None) -> ControlScore:
        """One control's score.

        Raises:
            KeyError: if there is none of that name and site.
        """
        for each in self.scores:
            if each.name == name and each.site in (None, site):
                return each
        raise KeyError(f"No control {name!r} for site {site!r}; there are {', '.join(self.names) or 'none'}.")

    @property
    def names(self) -> tuple[str, ...]:
        """The controls' names."""
        return tuple(dict.fromkeys(each.name for each in self.scores))

    def best(self, site: str) -> ControlScore | None:
        """The control with the highest held-out R² at a site, rivals left out; `None` if there are no controls."""
        candidates = [
            each
            for each in self.scores
            if not each.is_rival and each.site in (None, site) and each.held_out.r2 == each.held_out.r2
        ]
        return max(candidates, key=lambda each: each.held_out.r2, default=None)

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each control and site."""
        rows = [
            {
                "control": each.name,
                "site": each.site or "any",
                "R² held out": each.held_out.r2,
                "low": each.held_out.r2_interval[0],
                "high": each.held_out.r2_interval[1],
                "R² in-sample": each.in_sample.r2,
                "MSE held out": each.held_out.mse,
                "MSE in-sample": each.in_sample.mse,
                "is rival": each.is_rival,
            }
            for each in self.scores
        ]
        columns = ["control", "site", "R² held out", "low", "high", "R² in-sample", "MSE held out", "MSE in-sample"]
        return pd.DataFrame(rows, columns=[*columns, "is rival"]).set_index("control")

    def _display(self) -> pd.DataFrame:
        table = self.to_dataframe()
        shown = pd.DataFrame({"site": table["site"]})
        shown["R² held out"] = table["R² held out"].map("{:.5f}".format)
        shown["95 %"] = [interval_text(*ends) for ends in zip(table["low"], table["high"], strict=True)]
        shown["R² in-sample"] = table["R² in-sample"].map("{:.5f}".format)
        shown["MSE held out"] = table["MSE held out"].map("{:.6f}".format)
        shown["rival"] = ["rival" if each.is_rival else "" for each in self.scores]
        return shown

    def __repr__(self) -> str:
        return to_text(self._display(), title="Controls")

    def _repr_html_(self) -> str:
        return to_html(self._display(), title="Controls")


def interval_text(low: float, high: float) -> str:
    """An interval of R² as short as it can be read."""
    if math.isnan(low):
        return "–"
    return " to ".join(f"{end:.4f}".replace("0.", ".", 1) if abs(end) < 1 else f"{end:.2f}" for end in (low, high))


class TokenWindows:
    """What the last tokens say about the beliefs: one table of sums by window and position, filled in the same pass.

    For k = 1 … `longest`:

    - `window k`: a category for each window of the last k tokens, shorter ones at the beginning their own; predicted by
      its mean belief. As least squares on one one-hot vector of all windows.
    - `window k × pos`: a category for each window and position.
    - `window k additive`: least squares on one-hot vectors of each of the last k tokens and of the position: what can
      be read by adding up tokens, without combining them.

    `position` is a category for each position alone. Held out, a category that was not met in the other folds is
    predicted by the longest shorter window that was.

    Args:
        tokens: The words that rows are numbered by.
        n_tokens: Size of the alphabet.
        longest: Longest window; fewer are taken where the table would grow too large.
        n_cells: Cells of the split at most, for the size of the table.
    """

    def __init__(
        self,
        tokens: Int[Tensor, "word pos"],
        n_tokens: int,
        *,
        n_targets: int,
        longest: int = LONGEST_WINDOW,
        n_cells: int = 20,
    ) -> None:
        self.tokens = tokens
        self.base = n_tokens + 1
        self.n_positions = tokens.shape[1] if tokens.shape[1] <= MAX_POSITIONS else 1
        room = TABLE_ENTRIES // (n_cells * self.n_positions * (n_targets + 1))
        fitting = [k for k in range(1, min(longest, tokens.shape[1]) + 1) if self.base**k <= room]
        self.longest = max(fitting, default=0)
        self._n_categories = self.base**self.longest * self.n_positions
        self._sums: Tensor | None = None
        self._reference: Tensor | None = None

    def update(self, batch: RowBatch, cells: Int[Tensor, "row"], n_cells: int) -> None:
        """Take in a batch of rows, their `words` and `positions` pointing into the tokens."""
        targets = batch.targets[BELIEF]
        if self._sums is None or self._reference is None:
            # Sums about some mean, the same in all processes: squares of far-off targets would cancel.
            self._reference = total(targets.mean(dim=0)) / process_count()
            width = targets.shape[1]
            self._sums = torch.zeros(n_cells * self._n_categories, width + 1, dtype=torch.float64)
            self._squares = torch.zeros(n_cells, width, dtype=torch.float64)
            self._rows = torch.zeros(n_cells, dtype=torch.int64)
        centered = targets - self._reference
        weighted = torch.cat([torch.ones(len(targets), 1, dtype=torch.float64), centered], dim=1)
        weighted = weighted * batch.weights.unsqueeze(1)
        key = cells * self._n_categories + self._categories(batch.words, batch.positions)
        self._sums.index_add_(0, key, weighted)
        self._squares.index_add_(0, cells, weighted[:, 1:] * centered)
        self._rows += torch.bincount(cells, minlength=n_cells)

    def state(self) -> dict[str, Tensor]:
        """The sums so far, to be saved."""
        if self._sums is None or self._reference is None:
            return {}
        sums = {"sums": self._sums, "reference": self._reference, "squares": self._squares, "rows": self._rows}
        return {f"windows.{name}": values for name, values in sums.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from sums that `state` gave."""
        if "windows.sums" in state:
            self._sums, self._reference = state["windows.sums"], state["windows.reference"]
            self._squares, self._rows = state["windows.squares"], state["windows.rows"]

    def reduce(self) -> None:
        """Add the sums of all processes, where there are several."""
        if self._sums is not None:
            self._sums, self._squares = total(self._sums), total(self._squares)
            self._rows = total(self._rows)

    def _categories(self, words: Int[Tensor, "row"], positions: Int[Tensor, "row"]) -> Int[Tensor, "row"]:
        code = torch.zeros(len(words), dtype=torch.int64)
        for lag in range(self.longest):
            # The alphabet's size stands for "before the beginning".
            seen = self.tokens[words, (positions - lag).clamp(min=0)]
            code = code + torch.where(positions >= lag, seen, self.base - 1) * self.base**lag
        return code * self.n_positions + (positions.clamp(min=0) if self.n_positions > 1 else 0)

    def scores(self, n_folds: int) -> list[ControlScore]:
        """All windows' scores; cell c belongs to fold c mod `n_folds`, as in the probes' split."""
        if self._sums is None:
            return []
        sums = self._sums.reshape(len(self._squares), self._n_categories, -1)
        categories = (sums[..., 0].sum(dim=0) > 0).nonzero().flatten()
        cells = (sums[..., 0].sum(dim=1) > 0).nonzero().flatten()
        table = _Table(sums[cells][:, categories], self._squares[cells], cells % n_folds, int(self._rows.sum()))

        window, position = categories // self.n_positions, categories % self.n_positions
        found = [table.score("position", [position])] if self.n_positions > 1 else []
        for k in range(1, self.longest + 1):
            chain = [window % self.base**j for j in range(1, k + 1)]
            found.append(table.score(f"window {k}", chain))
            if self.n_positions > 1:
                found.append(table.score(f"window {k} × pos", [*chain, chain[-1] * self.n_positions + position]))
            if k * self.base + self.n_positions <= MAX_ADDITIVE_WIDTH:
                lags = [one_hot(window // self.base**j % self.base, self.base) for j in range(k)]
                places = one_hot(position, self.n_positions)
                found.append(table.score(f"window {k} additive", torch.cat([*lags, places], dim=1).double()))
        return found


@dataclass(frozen=True, eq=False)
class _Table:
    """Sums by cell and category: weight first, then weighted targets about a reference."""

    sums: Float64[Tensor, "cell category sum"]
    squares: Float64[Tensor, "cell target"]
    fold: Int[Tensor, "cell"]
    n: int

    def score(self, name: str, by: list[Tensor] | Tensor) -> ControlScore:
        """The score of categories, coarse to fine, or of a design matrix with a row for each category."""
        predict = self._additive if isinstance(by, Tensor) else self._back_off
        weight = self.sums[..., 0].sum(dim=1)
        mean = self.sums[..., 1:].sum(dim=(0, 1)) / weight.sum()
        totals = self.sums[..., 1:].sum(dim=1)
        spread = self.squares - 2 * mean * totals + mean**2 * weight.unsqueeze(1)
        errors = torch.empty_like(self.squares)
        for k in self.fold.unique().tolist():
            inside = self.fold == k
            errors[inside] = self._errors(predict(self.sums[~inside].sum(dim=0), by))[inside]
        everywhere = self._errors(predict(self.sums.sum(dim=0), by)).sum(dim=0) / weight.sum()
        return ControlScore(
            name,
            None,
            score_of(everywhere, spread.sum(dim=0) / weight.sum(), self.n),
            CellErrors(errors, spread, weight, self.fold, self.n).score(),
        )

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


def untrained_twins(
    model: HookedModel, untrained: int | Sequence[HookedModel], sites: Sequence[str], *, seed: int
) -> Iterator[tuple[str, HookedModel]]:
    """Untrained models of the same architecture, by name, each made when it is asked for.

    Args:
        model: The model to twin.
        untrained: How many to initialize anew from the model's config, or twins of one's own.
        sites: Sites they must have.
        seed: The k-th is initialized with seed + k, k = 1, 2, …

    Raises:
        ValueError: if the model cannot be built from its config, before anything is run.
        KeyError: if a twin lacks a site.
    """
    if not isinstance(untrained, int):
        for twin in untrained:
            find_sites(twin, sites)
        return ((f"untrained {k}", twin) for k, twin in enumerate(untrained, start=1))
    if untrained < 0:
        raise ValueError(f"untrained={untrained}: a number of twins ≥ 0, or the twins themselves.")
    if untrained:
        _twin(model, seed + 1)
    return ((f"untrained {k}", _twin(model, seed + k)) for k in range(1, untrained + 1))


def _twin(model: HookedModel, seed: int) -> HookedModel:
    remedy = "Give the twins yourself: untrained=[model, …], initialized as you would."
    if not hasattr(getattr(model, "cfg", None), "to_dict"):
        raise ValueError(f"An untrained twin is built from model.cfg, which {type(model).__name__} lacks. {remedy}")
    state = cast(Any, model).state_dict()
    try:
        # What a bridge's weights are called only a bridge has.
        twin = build_model(
            config_fields(model),
            seed=seed,
            device=model_device(model),
            bridge=True if "embed.weight" in state else None,
        )
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        raise ValueError(f"No untrained twin could be built from the model's config: {error}. {remedy}") from error
    shapes, expected = ({name: tuple(t.shape) for name, t in weights(m).items()} for m in (twin, model))
    if shapes != expected:
        differing = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
        raise ValueError(
            f"The model's config does not tell its architecture: a model built from it differs in "
            f"{', '.join(differing[:3])}. {remedy}"
        )
    return twin
