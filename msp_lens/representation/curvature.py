"""Curved beliefs: what a small nonlinear read-out explains of the belief beyond a linear one.

A linear probe misses what lies on a curve. Two read-outs are fitted to the same rows and scored on the same held-out
ones: ridge regression on the activations, and on the activations together with a kernel's features of them (Nyström's
approximation of a radial kernel), so that the second can do all that the first can:

    share = 1 - E|b - b̂_curved|² / E|b - b̂_linear|².

A nonlinear read-out may also compute what the network did not: a random network's activations hold the tokens, from
which a strong enough read-out works out the belief. So an untrained twin stands beside.

Source: Williams & Seeger 2001, "Using the Nyström method to speed up kernel machines"; scikit-learn's `Nystroem`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens._checks import AtLeast, Count, Seed, check_finite, checked
from msp_lens._names import meant
from msp_lens._random import derived_generator
from msp_lens._tables import TableView
from msp_lens._values import Value
from msp_lens.controls.control_scores import interval_text, r2_text
from msp_lens.controls.untrained_twins import untrained_twins
from msp_lens.data import BeliefDataset, LabelledTokens
from msp_lens.data.splits import CELLS_PER_FOLD, Folds, deal
from msp_lens.models.hooked import HookedModel, find_sites
from msp_lens.models.sites import Sites, site_label
from msp_lens.moments.scores import CellErrors, HeldOutScore, bootstrap_interval
from msp_lens.probing.rows import CHECK_THE_MODEL, model_rows
from msp_lens.processes.process import Process
from msp_lens.representation import folded_moments as folded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.style import ThemeName

# Ridge's penalties to choose from by leaving out one row, on standardized features with a mean weight of 1.
_PENALTIES = tuple(10.0**k for k in range(-6, 5))
# Prefixes in each fold, at least.
_FEWEST_IN_FOLD = 10


@dataclass(frozen=True, eq=False)
class Curvature(Value):
    """What a nonlinear read-out of the belief gains at one site, held out by prefix.

    Attributes:
        site: The site's label.
        linear: The score of the linear read-out.
        curved: The score of the nonlinear one on the same rows.
        gain: The difference of their R².
        gain_interval: Its 95 % bootstrap interval over groups of prefixes.
        gain_by_fold: The difference on each fold.
        share: The share of what the linear read-out leaves that the nonlinear one explains; negative if it is worse.
        share_interval: Its 95 % bootstrap interval.
        untrained: The share for each untrained twin.
    """

    site: str
    linear: HeldOutScore
    curved: HeldOutScore
    gain: float
    gain_interval: tuple[float, float]
    gain_by_fold: tuple[float, ...]
    share: float
    share_interval: tuple[float, float]
    untrained: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, repr=False)
class CurvedBeliefs(Value, TableView):
    """How far beliefs are represented along curves, site by site; `curved_beliefs` makes it.

    Attributes:
        sites: In the order of the forward pass.
        n_features: How many features of the kernel were read.
        description: What the numbers were measured on.
    """

    sites: tuple[Curvature, ...]
    n_features: int
    description: str

    def __getitem__(self, site: str) -> Curvature:
        found = {each.site: each for each in self.sites}
        if site not in found:
            raise KeyError(f"No site {site!r}; there are {', '.join(found)}.{meant(site, found)}")
        return found[site]

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each site: held-out R² of both read-outs, gain and share with their intervals, and controls."""
        rows = []
        for each in self.sites:
            row = {"site": each.site, "linear": each.linear.r2, "curved": each.curved.r2, "gain": each.gain}
            row |= {"gain low": each.gain_interval[0], "gain high": each.gain_interval[1], "share": each.share}
            row |= {"share low": each.share_interval[0], "share high": each.share_interval[1]}
            rows.append(row | {f"share, {name}": share for name, share in each.untrained.items()})
        return pd.DataFrame(rows).set_index("site")

    def summary(self) -> list[str]:
        """What the numbers say, and how they were measured."""
        best = max(self.sites, key=lambda each: each.curved.r2)
        twins = "".join(f"; {name} {share:.1%}" for name, share in best.untrained.items())
        return [
            f"At {best.site}, where the belief is read best, a nonlinear read-out explains {best.share:.1%} of what a "
            f"linear one leaves (95 % {best.share_interval[0]:.1%} to {best.share_interval[1]:.1%}{twins}): R² "
            f"{r2_text(best.curved.r2)} and {r2_text(best.linear.r2)}.",
            "Both by ridge regression with a penalty chosen on the rows fitted, scored on the same rows, held out by "
            f"prefix; the nonlinear one reads {self.n_features} features of a radial kernel beside the activations. "
            "Gain: difference of R². Share: of what the linear read-out leaves.",
            "What it gains need not be held as a curve: a nonlinear read-out can also work out the belief from tokens "
            "that are still there, or take off noise, as beliefs lie in few places. The untrained twin shows how far.",
            self.description,
        ]

    @property
    def plot(self) -> CurvaturePlots:
        """The picture: `plot()`."""
        return CurvaturePlots(self)

    def _title(self) -> str:
        return "What a nonlinear read-out of the belief gains, held out"

    def _display(self) -> pd.DataFrame:
        rows = []
        for each in self.sites:
            row = {"site": each.site, "R² linear": r2_text(each.linear.r2), "R² nonlinear": r2_text(each.curved.r2)}
            row |= {"gain": f"{each.gain:+.5f}", "95 %": interval_text(*each.gain_interval)}
            row |= {"share": f"{each.share:.3f}"} | {name: f"{share:.3f}" for name, share in each.untrained.items()}
            rows.append(row)
        return pd.DataFrame(rows).set_index("site")


@dataclass(frozen=True, eq=False)
class CurvaturePlots:
    """The picture of curved beliefs; call it."""

    found: CurvedBeliefs

    def __call__(self, *, theme: ThemeName = "light") -> Figure:
        """Held-out R² of both read-outs at each site, with their intervals."""
        from msp_lens.figures.representation_curves import plot_compared

        scores = {each.site: (each.linear.r2, each.curved.r2) for each in self.found.sites}
        intervals = {each.site: (each.linear.r2_interval, each.curved.r2_interval) for each in self.found.sites}
        names = ("linear read-out", "nonlinear read-out")
        return plot_compared(scores, names, intervals=intervals, ylabel="R² of beliefs, held out", theme=theme)


@checked
def curved_beliefs(
    model: HookedModel,
    data: Process | BeliefDataset,
    sites: Sites = None,
    *,
    n_features: Count = 200,
    n_rows: Annotated[int, AtLeast(50)] = 10_000,
    n_words: Count | None = None,
    untrained: int | Sequence[HookedModel] = 1,
    n_folds: Folds = 5,
    seed: Seed = 0,
    batch_size: Count | None = None,
) -> CurvedBeliefs:
    """What a small nonlinear read-out of the belief explains beyond a linear one, at each site.

    Args:
        model: Any hooked causal model.
        data: The process that it was trained on, or a `BeliefDataset` to average over.
        sites: As for `find_sites`; by default the residual stream.
        n_features: Features of the kernel, which is centered on as many rows.
        n_rows: Prefixes to draw by their probability, of which the distinct ones are the rows.
        n_words: Every possible word of the model's context if there are at most this many, else this many drawn; by
            default 20,000, or fewer of more than ten tokens.
        untrained: How many untrained twins to read beside it, or the twins themselves.
        n_folds: Parts of the prefixes, each held out in turn.
        seed: Of drawn words and rows, folds, twins and the kernel's centers.
        batch_size: Words in one forward pass.

    Raises:
        ValueError: if the model does not fit the words, no twin can be built, or there are too few prefixes to hold
            any out.
        KeyError: if the model lacks a site.
    """
    names = find_sites(model, sites)
    folded.checked_length(data, model)
    if n_rows < _FEWEST_IN_FOLD * n_folds:
        raise ValueError(
            f"n_rows={n_rows}: too few to hold out in {n_folds} folds. Draw at least {_FEWEST_IN_FOLD * n_folds}."
        )
    twins = untrained_twins(model, untrained, names, seed=seed)
    dataset, described = folded.words_of(data, model, n_words, seed)
    ids, counts = _drawn(dataset, n_rows, seed)
    if len(ids) < _FEWEST_IN_FOLD * n_folds:
        raise ValueError(
            f"n_rows={n_rows}: only {len(ids)} distinct prefixes came, too few to hold out in {n_folds} folds. Draw "
            "more rows, or give longer words."
        )
    cells = deal(torch.arange(len(ids)), n_folds * CELLS_PER_FOLD, n_groups=len(ids), seed=seed)
    beliefs = dataset.prefix_beliefs[ids]

    def curvatures(network: HookedModel) -> list[Curvature]:
        rows = _activations(network, dataset, names, ids, batch_size)
        return [
            curvature(site_label(site), values, beliefs, counts, cells, n_folds, n_features, seed)
            for site, values in rows.items()
        ]

    found = curvatures(model)
    for name, twin in twins:
        pairs = zip(found, curvatures(twin), strict=True)
        found = [replace(each, untrained={**each.untrained, name: other.share}) for each, other in pairs]
    description = f"{described}; {len(ids):,} distinct prefixes of {n_rows:,} drawn, in {n_folds} folds."
    return CurvedBeliefs(tuple(found), n_features, description)


def _drawn(dataset: BeliefDataset, n_rows: int, seed: int) -> tuple[Int[Tensor, "row"], Float64[Tensor, "row"]]:
    """Prefixes drawn by their probability: each once, with how often it came."""
    generator = derived_generator(seed, "rows")
    drawn = torch.multinomial(dataset.prefix_weights("probability"), n_rows, replacement=True, generator=generator)
    ids, counts = drawn.unique(return_counts=True)
    return ids, counts.double()


def _activations(
    model: HookedModel, dataset: BeliefDataset, sites: Sequence[str], ids: Int[Tensor, "row"], batch_size: int | None
) -> dict[str, Float64[Tensor, "row feature"]]:
    """Each site's activations after some prefixes."""
    row_of = torch.full((dataset.n_prefixes,), -1).index_put((ids,), torch.arange(len(ids)))
    labelled = LabelledTokens.from_beliefs(replace(dataset, positions=None))
    kept: dict[str, Tensor] = {}
    for batch in model_rows(model, labelled, list(sites), batch_size=batch_size):
        # The groups of these rows are their prefixes; a prior before the first symbol is none.
        is_prefix = batch.positions >= 0
        rows = torch.where(is_prefix, row_of[batch.groups.clamp(max=dataset.n_prefixes - 1)], -1)
        for site, values in batch.features.items():
            check_finite(values, site, CHECK_THE_MODEL)
            kept.setdefault(site, torch.zeros(len(ids), values.shape[1], dtype=torch.float64))
            kept[site][rows[rows >= 0]] = values.cpu().double()[rows >= 0]
    return {site: kept[site] for site in sites}


def curvature(
    site: str,
    activations: Float64[Tensor, "row feature"],
    beliefs: Float64[Tensor, "row state"],
    weights: Float64[Tensor, "row"],
    cells: Int[Tensor, "row"],
    n_folds: int,
    n_features: int,
    seed: int,
) -> Curvature:
    """Both read-outs of some rows, scored on folds that they were not fitted on; cell c is of fold c mod `n_folds`."""
    held, targets, shares = activations.numpy(), beliefs.numpy(), (weights / weights.mean()).numpy()
    fold = (cells % n_folds).numpy()
    predicted = {name: np.zeros_like(targets) for name in ("linear", "curved")}
    for k in range(n_folds):
        inside, rest = fold == k, fold != k
        for name, readout in _readouts(n_features, int(rest.sum()), seed).items():
            readout.fit(held[rest], targets[rest], ridgecv__sample_weight=shares[rest])
            predicted[name][inside] = readout.predict(held[inside])
    mean = (weights @ beliefs) / weights.sum()
    numbers = cells.unique()
    errors = {
        name: _by_cell((torch.from_numpy(each) - beliefs) ** 2, weights, cells) for name, each in predicted.items()
    }
    spread = _by_cell((beliefs - mean) ** 2, weights, cells)
    weight = _by_cell(torch.ones(len(weights), 1, dtype=torch.float64), weights, cells)[:, 0]
    scores = {
        name: CellErrors(each, spread, weight, numbers % n_folds, len(weights)).score() for name, each in errors.items()
    }
    linear, curved, total = (each.sum(dim=1) for each in (*errors.values(), spread))
    by_fold = zip(scores["linear"].r2_by_fold, scores["curved"].r2_by_fold, strict=True)
    left = float(linear.sum())
    return Curvature(
        site=site,
        linear=scores["linear"],
        curved=scores["curved"],
        gain=scores["curved"].r2 - scores["linear"].r2,
        gain_interval=bootstrap_interval(total - linear + curved, total),
        gain_by_fold=tuple(after - before for before, after in by_fold),
        # What is left by rounding alone has no parts.
        share=1 - float(curved.sum()) / left if left > 1e-12 * float(total.sum()) else 0.0,
        share_interval=bootstrap_interval(curved, linear),
    )


def _by_cell(
    values: Float64[Tensor, "row target"], weights: Float64[Tensor, "row"], cells: Int[Tensor, "row"]
) -> Float64[Tensor, "cell target"]:
    numbers, index = cells.unique(return_inverse=True)
    return values.new_zeros(len(numbers), values.shape[1]).index_add_(0, index, values * weights.unsqueeze(1))


def _readouts(n_features: int, n_rows: int, seed: int) -> dict[str, Any]:
    """The linear read-out and the nonlinear one, not yet fitted."""
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import FeatureUnion, make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    kernel = Nystroem(n_components=min(n_features, n_rows), random_state=seed % 2**32)
    both = FeatureUnion([("activations", FunctionTransformer()), ("kernel", kernel)])
    return {
        "linear": make_pipeline(StandardScaler(), RidgeCV(_PENALTIES)),
        "curved": make_pipeline(StandardScaler(), both, RidgeCV(_PENALTIES)),
    }
