"""Controls: what can be read where there is nothing to read, or without the network's training.

- *Shuffled beliefs*: what a linear map memorizes.
- *Windows*: what the position and the last k tokens say, without a network (`windows.py`).
- *Untrained twins*: what the architecture carries before it has learned anything.

Next-token probabilities are a rival, not a control: another account of what a trained network might represent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, cast

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens._tables import TableView
from msp_lens.data import BeliefDataset
from msp_lens.models.build import build_model, config_fields, weights
from msp_lens.models.holding import unwrapped
from msp_lens.models.hooked import HookedModel, find_sites, model_device
from msp_lens.moments.scores import HeldOutScore, SavedHeldOut, SavedScore, Score

ControlKind = Literal["position", "window", "positioned window", "additive window", "next token", "untrained"]


def shuffled_beliefs(dataset: BeliefDataset, *, generator: torch.Generator) -> Float64[Tensor, "prefix state"]:
    """The beliefs of all prefixes, randomly permuted among them.

    A probe of these can only memorize: its in-sample R² is how much of a real probe's R² memorizing alone explains.
    """
    return dataset.prefix_beliefs[torch.randperm(dataset.n_prefixes, generator=generator)]


class SavedControl(TypedDict):
    """A `ControlScore` in a file."""

    name: str
    kind: ControlKind
    site: str | None
    in_sample: SavedScore
    held_out: SavedHeldOut
    length: int | None


@dataclass(frozen=True)
class ControlScore:
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
        return self.kind == "next token"


@dataclass(frozen=True, eq=False, repr=False)
class Controls(TableView, Sequence[ControlScore]):
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
    def rival(self) -> ControlScore | None:
        """The score of next-token probabilities, if it was measured."""
        return next((each for each in self.scores if each.is_rival), None)

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
        shown["R² held out"] = table["R² held out"].map("{:.5f}".format)
        shown["95 %"] = [interval_text(*ends) for ends in zip(table["low"], table["high"], strict=True)]
        shown["R² in-sample"] = table["R² in-sample"].map("{:.5f}".format)
        shown["MSE held out"] = table["MSE held out"].map("{:.6f}".format)
        shown["rival"] = ["rival" if each.is_rival else "" for each in self.scores]
        return shown


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
    if untrained < 0:
        raise ValueError(f"untrained={untrained}: give a number of twins ≥ 0, or the twins themselves.")
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
