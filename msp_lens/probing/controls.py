"""Controls: what can be read where there is nothing to read, or without the network's training.

- *Shuffled beliefs*: what a linear map memorizes.
- *Windows*: what the position and the last k tokens say, without a network: a table of sums, filled in the same pass.
- *Untrained twins*: what the architecture carries before it has learned anything.

Rivals are no controls, but other accounts of what a trained network might represent: next-token probabilities, the
constrained beliefs of one attention layer and, for a part of the belief, the beliefs about the other parts.

In a table of windows a category c (a window, perhaps with the position) predicts its mean belief, b̄(c) = Σ w b / Σ w,
as least squares on one-hot vectors would. Errors follow from sums alone,

    Σ w |b - b̂(c)|² = Σ w |b|² - 2 b̂(c)·Σ w b + |b̂(c)|² Σ w.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, cast

import pandas as pd
import torch
from jaxtyping import Float64, Int
from torch import Tensor
from torch.nn.functional import one_hot

from msp_lens._distributed import process_count, total
from msp_lens._tables import TableView
from msp_lens._values import Value
from msp_lens.data.labelled import BELIEF
from msp_lens.models.build import build_model, config_fields, weights
from msp_lens.models.holding import unwrapped
from msp_lens.models.hooked import HookedModel, find_sites, model_device
from msp_lens.moments.moments import Moments
from msp_lens.moments.scores import CellErrors, HeldOutScore, SavedHeldOut, SavedScore, Score, score_of
from msp_lens.moments.solve import least_squares, without_rounding
from msp_lens.probing.rows import RowBatch

ControlKind = Literal[
    "position",
    "window",
    "positioned window",
    "additive window",
    "next token",
    "constrained belief",
    "other part",
    "untrained",
]
# Other accounts of a trained network, by their kind.
RIVAL_KINDS: tuple[ControlKind, ...] = ("next token", "constrained belief", "other part")


class SavedControl(TypedDict):
    """A `ControlScore` in a file."""

    name: str
    kind: ControlKind
    site: str | None
    in_sample: SavedScore
    held_out: SavedHeldOut
    length: int | None


@dataclass(frozen=True, eq=False)
class ControlScore(Value):
    """How well a control predicts the beliefs, on the same rows and folds as the probes.

    Attributes:
        name: The control's name in tables.
        kind: What the control sees.
        site: The label of the site it is compared with; `None` for all sites.
        in_sample: Score on all rows.
        held_out: Score by the same cross-validation.
        length: Number of tokens in the window, for windows.
    """

    name: str
    kind: ControlKind
    site: str | None
    in_sample: Score
    held_out: HeldOutScore
    length: int | None = None

    @property
    def is_rival(self) -> bool:
        """Whether it is another account of a trained network, not a control: skill leaves rivals out."""
        return self.kind in RIVAL_KINDS


@dataclass(frozen=True, eq=False, repr=False)
class Controls(Value, TableView, Sequence[ControlScore]):
    """The controls of a report: a sequence, and a table.

    Attributes:
        scores: One score for each control, and for each site if the control has one score per site.
    """

    scores: tuple[ControlScore, ...] = ()

    def __getitem__(self, index: Any) -> Any:
        return self.scores[index]

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, name: str, site: str | None = None) -> ControlScore:
        """The score of one control.

        Raises:
            KeyError: if there is none with this name and site.
        """
        for each in self.scores:
            if each.name == name and each.site in (None, site):
                return each
        raise KeyError(f"No control {name!r} for site {site!r}; there are {', '.join(self.names) or 'none'}.")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the controls."""
        return tuple(dict.fromkeys(each.name for each in self.scores))

    @property
    def rivals(self) -> tuple[ControlScore, ...]:
        """The scores of the rivals: how well each predicts the belief."""
        return tuple(each for each in self.scores if each.is_rival)

    @property
    def rival(self) -> ControlScore | None:
        """The score of next-token probabilities, if it was measured."""
        return next((each for each in self.scores if each.kind == "next token"), None)

    def best(self, site: str) -> ControlScore | None:
        """The control with the highest held-out R² at a site, without rivals; `None` if there are no controls."""
        here = [each for each in self.scores if each.site in (None, site) and not each.is_rival]
        scored = [each for each in here if not math.isnan(each.held_out.r2)]
        return max(scored, key=lambda each: each.held_out.r2, default=None)

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each control and site."""
        columns: dict[str, list] = {
            "control": [each.name for each in self.scores],
            "site": [each.site or "any" for each in self.scores],
            "R² held out": [each.held_out.r2 for each in self.scores],
            "low": [each.held_out.r2_interval[0] for each in self.scores],
            "high": [each.held_out.r2_interval[1] for each in self.scores],
            "R² in-sample": [each.in_sample.r2 for each in self.scores],
            "MSE held out": [each.held_out.mse for each in self.scores],
            "MSE in-sample": [each.in_sample.mse for each in self.scores],
            "is rival": [each.is_rival for each in self.scores],
        }
        return pd.DataFrame(columns).set_index("control")

    def _title(self) -> str:
        return "Controls"

    def _display(self) -> pd.DataFrame:
        table = self.to_dataframe()
        shown = pd.DataFrame({"site": table["site"]})
        shown["R² held out"] = table["R² held out"].map(r2_text)
        shown["95 %"] = [interval_text(*ends) for ends in zip(table["low"], table["high"], strict=True)]
        shown["R² in-sample"] = table["R² in-sample"].map(r2_text)
        shown["MSE held out"] = table["MSE held out"].map("{:.6f}".format)
        shown["rival"] = ["rival" if each.is_rival else "" for each in self.scores]
        return shown


def r2_text(r2: float, digits: int = 5) -> str:
    """An R² as tables show it: a dash where nothing varies, and only a bound where it is far below 0."""
    if math.isnan(r2):
        return "–"
    return f"{r2:.{digits}f}" if r2 > -9.99 else "< -10"


def interval_text(low: float, high: float) -> str:
    """An interval of R², in the numbers of digits of its table; far below 0 fewer say as much."""
    if math.isnan(low):
        return "–"
    return " to ".join(f"{end:.4f}" if abs(end) <= 1 else f"{end:.2f}" for end in (low, high))


def untrained_twins(
    model: HookedModel, untrained: int | Sequence[HookedModel], sites: Sequence[str], *, seed: int
) -> Iterator[tuple[str, HookedModel]]:
    """Untrained models of the same architecture with their names, each built when it is needed.

    Args:
        model: The model to twin.
        untrained: How many twins to initialize from the model's config, or the twins themselves.
        sites: Sites that the twins must have.
        seed: The k-th twin is initialized with seed + k, k = 1, 2, …

    Raises:
        ValueError: if the model cannot be built from its config, before anything is run.
        KeyError: if a twin lacks a site.
    """
    if not isinstance(untrained, int):
        for twin in untrained:
            find_sites(twin, sites)
        return ((f"untrained {k}", twin) for k, twin in enumerate(untrained, start=1))
    if untrained:
        _twin(model, seed + 1)
    return ((f"untrained {k}", _twin(model, seed + k)) for k in range(1, untrained + 1))


def _twin(model: HookedModel, seed: int) -> HookedModel:
    model = unwrapped(model)
    remedy = "Pass twins that you have initialized yourself: untrained=[model, …]."
    if not hasattr(getattr(model, "cfg", None), "to_dict"):
        raise ValueError(f"An untrained twin is built from model.cfg, which {type(model).__name__} lacks. {remedy}")
    # Only a bridge has a weight of this name.
    bridge = True if "embed.weight" in cast(Any, model).state_dict() else None
    try:
        twin = build_model(config_fields(model), seed=seed, device=model_device(model), bridge=bridge)
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        raise ValueError(f"No untrained twin could be built from the model's config: {error}. {remedy}") from error
    shapes, expected = ({name: tuple(t.shape) for name, t in weights(m).items()} for m in (twin, model))
    if shapes != expected:
        differing = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
        told = "The model's config does not determine its architecture: a model built from it differs in"
        raise ValueError(f"{told} {', '.join(differing[:3])}. {remedy}")
    return twin


class TokenWindows:
    """Controls that see only the position and a window of the last k tokens, k = 1 … `longest`.

    - `position`: one category for each position.
    - `window k`: one category for each window; the shorter windows at the beginning of a word are categories too.
    - `window k × pos`: one category for each window and position.
    - `window k additive`: least squares on one-hot vectors of the position and each of the last k tokens, which adds
      up tokens without combining them.

    Held out, a window that the other folds lack is predicted by the longest shorter window that they have.

    Args:
        tokens: The words that rows are numbered by.
        n_tokens: Size of the alphabet.
        n_targets: Number of target coordinates.
        longest: Length of the longest window; shorter if the table would grow too large.
        n_cells: The largest number of cells in the split, which bounds the size of the table.
        target: What is predicted, by its name among the rows' targets.
    """

    def __init__(
        self,
        tokens: Int[Tensor, "word pos"],
        n_tokens: int,
        *,
        n_targets: int,
        longest: int = 4,
        n_cells: int = 20,
        target: str = BELIEF,
    ) -> None:
        self.tokens, self.target = tokens, target
        self.base = n_tokens + 1
        # Longer contexts have one table for all positions.
        most_positions, table_entries = 64, 4_000_000
        n_ctx = tokens.shape[1]
        self.n_positions = n_ctx if n_ctx <= most_positions else 1
        room = table_entries // (n_cells * self.n_positions * (n_targets + 1))
        self.longest = max((k for k in range(1, min(longest, n_ctx) + 1) if self.base**k <= room), default=0)
        self._n_categories = self.base**self.longest * self.n_positions
        self._held: dict[str, Tensor] = {}

    def update(self, batch: RowBatch, cells: Int[Tensor, "row"], n_cells: int) -> None:
        """Add a batch of rows, whose `words` and `positions` index the tokens."""
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
        return {f"windows.{self.target}.{name}": values for name, values in self._held.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the sums that `state` returned."""
        names = ("reference", "sums", "squares", "rows")
        if f"windows.{self.target}.sums" in state:
            # Copies, since the sums are added to in place.
            self._held = {name: state[f"windows.{self.target}.{name}"].clone() for name in names}

    def reduce(self) -> None:
        """Add the sums of all processes, if there are several."""
        if self._held:
            self._held |= {name: total(self._held[name]) for name in ("sums", "squares", "rows")}

    def _categories(self, words: Int[Tensor, "row"], positions: Int[Tensor, "row"]) -> Int[Tensor, "row"]:
        code = torch.zeros(len(words), dtype=torch.int64)
        for lag in range(self.longest):
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
        for k in range(1, self.longest + 1):
            chain = [window % self.base**j for j in range(1, k + 1)]
            found.append(table.score(f"window {k}", "window", chain, k))
            if self.n_positions > 1:
                positioned = [*chain, chain[-1] * self.n_positions + position]
                found.append(table.score(f"window {k} × pos", "positioned window", positioned, k))
            if k * self.base + self.n_positions <= widest:
                lags = [one_hot(window // self.base**j % self.base, self.base) for j in range(k)]
                design = torch.cat([*lags, one_hot(position, self.n_positions)], dim=1).double()
                found.append(table.score(f"window {k} additive", "additive window", design, k))
        return found


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
