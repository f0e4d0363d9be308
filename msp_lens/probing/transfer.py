"""Frozen probes on other data: another context, process, token map, model or site than they were fitted on.

A probe is read as it is, b̂ = h W + c, and scored against the beliefs b of the new rows,

    R² = 1 - Σ w |b - b̂|² / Σ w |b - b̄|²,

in all and by position, which is a learning curve: when in the context does the belief appear? Beside it stands R²
*after an affine correction*, b ≈ b̂ A + a with A and a fitted to the new rows and scored on held-out ones. Where only
that is high, the directions that carried the belief still do, with other values along them.

Of a row only b̂ and b are summed, so memory grows with neither the data nor the width of the network.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import pandas as pd
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens._checks import Count, Seed, check_finite, checked
from msp_lens._distributed import share
from msp_lens._tables import TableView
from msp_lens._values import Value
from msp_lens.controls.control_scores import Controls, ControlScore, interval_text, r2_text
from msp_lens.controls.token_windows import TokenWindows
from msp_lens.data import BeliefDataset, LabelledTokens, Weighting
from msp_lens.data.labelled import BELIEF
from msp_lens.data.row_positions import position_ranges, range_numbers
from msp_lens.data.splits import Split, as_split, labelled_rows, split_labelled, split_rows
from msp_lens.models.activations import stream_activations
from msp_lens.models.hooked import HookedModel, check_fits, check_reads_tokens, find_sites, word_length
from msp_lens.models.model_files import model_fingerprint
from msp_lens.models.sites import Sites, site_label
from msp_lens.moments.exact_products import has_float64
from msp_lens.moments.ranged_errors import RangedErrors
from msp_lens.moments.scores import HeldOutScore
from msp_lens.moments.solvers import OLS
from msp_lens.probing.belief_probe import BeliefProbe
from msp_lens.probing.cross_validation import evaluate, evaluate_positions
from msp_lens.probing.one_pass import Accumulator
from msp_lens.probing.parts import part_tokens, part_values
from msp_lens.probing.probe_notes import transfer_notes
from msp_lens.probing.rows import CHECK_THE_MODEL, RowBatch, model_rows
from msp_lens.processes.process import Process
from msp_lens.training.regret import evaluation_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.style import ThemeName

Probes: TypeAlias = BeliefProbe | Mapping[str, BeliefProbe] | Sequence[BeliefProbe]


@dataclass(frozen=True, eq=False)
class TransferScore(Value):
    """How well one frozen probe reads the beliefs at one place.

    Attributes:
        probe: The probe's name.
        site: The label of what it was read at.
        score: Its score on all rows, with nothing refitted; the interval is over groups of rows.
        corrected: The same after an affine map of what it reads, fitted on the other folds.
        by_position: Its scores in each range of positions, against the variance there.
        corrected_by_position: The same after an affine map for each range; empty for a probe read at chosen sites.
        where_fitted: Its held-out R² on the data that it was fitted on.
    """

    probe: str
    site: str
    score: HeldOutScore
    corrected: HeldOutScore
    by_position: tuple[HeldOutScore, ...]
    corrected_by_position: tuple[HeldOutScore, ...]
    where_fitted: float


@dataclass(frozen=True, eq=False, repr=False)
class TransferReport(Value, TableView):
    """Frozen probes on other data; `transfer` makes it.

    Attributes:
        scores: One for each probe and place that it was read at.
        ranges: The first and the last position of each range that is scored by itself.
        weights: The share of the rows' weight in each range.
        controls: What predicts the same beliefs without the network, fitted on the new rows and held out.
        notes: What was measured, and what differs from the data that the probes were fitted on.
    """

    scores: tuple[TransferScore, ...]
    ranges: tuple[tuple[int, int], ...]
    weights: tuple[float, ...]
    controls: Controls
    notes: tuple[str, ...]

    def select(self, probe: str, site: str | None = None) -> TransferScore:
        """The score of one probe, at its only place or at the one named; `KeyError` if there is none such."""
        found = [each for each in self.scores if each.probe == probe and site in (None, each.site)]
        if len(found) != 1:
            places = ", ".join(f"{each.probe!r} at {each.site!r}" for each in self.scores)
            missing = f"No probe {probe!r}" + (f" read at {site!r}" if site is not None else "")
            raise KeyError(f"{f'{probe!r} was read at several places' if found else missing}; there are {places}.")
        return found[0]

    @property
    def best(self) -> TransferScore:
        """The score with the highest R²; the first, if R² is not defined."""
        scored = [each for each in self.scores if not math.isnan(each.score.r2)]
        return max(scored or self.scores[:1], key=lambda each: each.score.r2)

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each probe and place. R² is relative to the variance over all coordinates, MSE per coordinate."""
        rows = [
            {"probe": each.probe, "site": each.site, **_numbers(each.score)}
            | {"R² corrected": each.corrected.r2, "R² where fitted": each.where_fitted}
            for each in self.scores
        ]
        return pd.DataFrame(rows).set_index(["probe", "site"])

    def by_position(self) -> pd.DataFrame:
        """One row for each probe, place and range of positions, from `first` to `last`: the learning curves.

        R² is against the variance within the range, about its own mean belief: 0 is what knowing the position gives.
        Weighted by `weight`, the MSE of the ranges make up that of all rows. Where only R² corrected is high, the
        belief is held already, by the same directions, with other values along them.
        """
        rows = [
            {"probe": each.probe, "site": each.site, "first": first, "last": last, **_numbers(score)}
            | {"R² corrected": corrected.r2 if corrected else math.nan, "variance": score.variance, "weight": weight}
            for each in self.scores
            for (first, last), weight, score, corrected in itertools.zip_longest(
                self.ranges, self.weights, each.by_position, each.corrected_by_position
            )
        ]
        return pd.DataFrame(rows).set_index(["probe", "site"])

    @checked
    def matrix(self, *, corrected: bool = False) -> pd.DataFrame:
        """R² of each probe (a row) at each place (a column), NaN where it was not read; `corrected` as in the table."""
        probes, sites = (dict.fromkeys(getattr(each, name) for each in self.scores) for name in ("probe", "site"))
        table = pd.DataFrame(math.nan, index=pd.Index(probes, name="probe"), columns=pd.Index(sites, name="site"))
        for each in self.scores:
            table.loc[each.probe, each.site] = (each.corrected if corrected else each.score).r2
        return table

    def summary(self) -> list[str]:
        """What the numbers say, and how they were measured."""
        best, control = self.best, self.controls.best(self.best.site)
        lines = list(self.notes)
        if math.isnan(best.score.r2):
            return [*lines, "What is read never varies on these rows: R² is not defined."]
        lines.append(
            "R²: read as fitted; 0 is that of these rows' mean. Corrected: after an affine map of what is read, "
            "fitted to the other folds of these rows. Where fitted: held out, on the probe's own rows."
        )
        score, corrected = r2_text(best.score.r2, 3), r2_text(best.corrected.r2, 3)
        ends = interval_text(*best.score.r2_interval)
        lines.append(f"Best: {best.probe} read at {best.site}, R² {score} ({ends}), corrected {corrected}.")
        if control is not None:
            lines[-1] += f" Best control ({control.name}), fitted to these rows: {r2_text(control.held_out.r2, 3)}."
        known = [k for k, each in enumerate(best.by_position) if not math.isnan(each.r2)]
        if len(known) > 1:
            first, last = (f"{r2_text(best.by_position[k].r2, 3)} {self._range(k)}" for k in (known[0], known[-1]))
            lines.append(f"By position (plot()), it goes from R² {first} to {last}, against the variance there.")
        return lines

    def _range(self, number: int) -> str:
        first, last = self.ranges[number]
        return f"at position {first}" if first == last else f"at positions {first} to {last}"

    @property
    def plot(self) -> TransferPlots:
        """Pictures: `plot()` is R² by position, the learning curve; `plot.matrix()` each probe at each place."""
        return TransferPlots(self)

    def _title(self) -> str:
        return "Frozen probes"

    def _display(self) -> pd.DataFrame:
        table = self.to_dataframe()
        shown = pd.DataFrame({"read at": table.index.get_level_values("site")})
        shown.index = pd.Index(table.index.get_level_values("probe"), name="probe")
        shown["R²"] = table["R²"].map(r2_text).tolist()
        shown["95 %"] = [interval_text(*ends) for ends in zip(table["low"], table["high"], strict=True)]
        for name in ("R² corrected", "R² where fitted"):
            shown[name.removeprefix("R² ")] = table[name].map(r2_text).tolist()
        shown["MSE"] = table["MSE"].map("{:.6f}".format).tolist()
        return shown


def _numbers(score: HeldOutScore) -> dict[str, float]:
    low, high = score.r2_interval
    return {"R²": score.r2, "low": low, "high": high, "MSE": score.mse, "n": score.n}


@dataclass(frozen=True, eq=False)
class TransferPlots:
    """Pictures of frozen probes: call it for R² by position."""

    found: TransferReport

    @checked
    def __call__(self, *, corrected: bool = False, theme: ThemeName = "light") -> Figure:
        """R² in each range of positions with its interval, a curve for each probe and place.

        `corrected` after an affine map for each range; `ValueError` if the probes were read at chosen sites.
        """
        from msp_lens.figures.score_curves import plot_learning_curves

        scores, several = self.found.scores, len({each.site for each in self.found.scores}) > 1
        moved = several and any(each.probe != each.site for each in scores)
        names = [f"{each.probe} at {each.site}" if moved else each.probe for each in scores]
        pairs = list(zip(names, scores, strict=True))
        found = {name: each.corrected_by_position if corrected else each.by_position for name, each in pairs}
        if not all(found.values()):
            raise ValueError("corrected=True: only probes read where they were fitted are corrected by position.")
        curves = {name: [part.r2 for part in parts] for name, parts in found.items()}
        ends = {name: [part.r2_interval for part in parts] for name, parts in found.items()}
        title = "Frozen probes" + (", corrected" if corrected else "") + ", by position"
        how = {"intervals": ends, "title": title, "ylabel": "R²", "theme": theme}
        return plot_learning_curves(self.found.ranges, curves, **how)

    @checked
    def matrix(self, *, corrected: bool = False, theme: ThemeName = "light") -> Figure:
        """R² of each probe, a row, at each place, a column; below 0, worse than the mean, colors are alike."""
        from msp_lens.figures.edit_bars import plot_heat_map

        table = self.found.matrix(corrected=corrected)
        title = "R² of frozen probes" + (", corrected" if corrected else "")
        named = {"rows": list(table.index), "columns": list(table.columns), "xlabel": "read at", "ylabel": "fitted at"}
        return plot_heat_map(table.to_numpy(), **named, title=title, lowest=0, theme=theme)


@dataclass(frozen=True, eq=False)
class _Place:
    """Where probes are read: the same features, all maps from them side by side."""

    label: str
    sites: tuple[str, ...]
    names: tuple[str, ...]
    weights: Float64[Tensor, "feature read"]
    bias: Float64[Tensor, "read"]

    @classmethod
    def of(cls, label: str, sites: tuple[str, ...], probes: Mapping[str, BeliefProbe]) -> _Place:
        maps = [probe.read_map for probe in probes.values()]
        weights, bias = (torch.cat([getattr(each, name) for each in maps], dim=-1) for name in ("weights", "bias"))
        return cls(label, sites, tuple(probes), weights, bias)

    def read(self, batch: RowBatch) -> list[Float64[Tensor, "row state"]]:
        """What each probe reads of the rows."""
        for site in self.sites:
            check_finite(batch.features[site], site, CHECK_THE_MODEL)
        features = torch.cat([batch.features[site] for site in self.sites], dim=1)
        features = features.double() if has_float64(features.device) else features.cpu().double()
        read = features @ self.weights.to(features.device) + self.bias.to(features.device)
        return list(read.cpu().split(read.shape[1] // len(self.names), dim=1))


@checked
def transfer(
    model: HookedModel,
    probes: Probes,
    data: Process | BeliefDataset | LabelledTokens,
    *,
    sites: Sites = None,
    weighting: Weighting = "probability",
    split: Split | str = "sequence",
    controls: bool = True,
    seed: Seed = 0,
    batch_size: Count | None = None,
    progress: bool = True,
) -> TransferReport:
    """Read probes as they are, without refitting, on other data than they were fitted on, in one forward pass.

    The data may be another context or fresh words, another process with as many states, another token map; the model
    another checkpoint, training or untrained twin of the same widths; or the probes are read at other sites. On fresh
    words of the same process, the scores by position are learning curves: when in the context does the belief appear?

    Args:
        model: The model to read, any hooked model that reads the data's tokens.
        probes: A report, a probe, several, or a mapping of names to probes.
        data: A process (all words of the model's context, or a sample), words of it, or labelled tokens.
        sites: Read each probe of a single site at all of these, as for `find_sites`; by default where it was fitted.
        weighting: How much each prefix of words counts, as for `probe`.
        split: What is resampled together for the intervals, and held out together for the correction and the controls;
            as for `probe`, but whole words by default; `"block"` for one long word. Labelled tokens keep their groups.
        controls: Whether to predict the same beliefs from the position and the last tokens too.
        seed: Seed of the folds, and of the words if they are sampled.
        batch_size: Words in one forward pass.
        progress: Whether to show a progress bar.

    Raises:
        KeyError: if the model lacks a site.
        ValueError: if a probe reads another number of states or features, two have one name, or the model cannot read
            the words.

    Example:
        >>> from msp_lens.models import ModelConfig, build_model
        >>> from msp_lens.probing import probe
        >>> from msp_lens.processes import mess3
        >>> model = build_model(ModelConfig(d_vocab=3, n_layers=1, d_model=16, n_ctx=4))
        >>> report = probe(model, mess3(x=0.05, a=0.85), progress=False)
        >>> found = transfer(model, report, mess3(x=0.15, a=0.6), progress=False)
        >>> found.select("0_post").score.r2 < report["0_post"].scores.in_sample.r2
        True
    """
    named, split = _named(probes), as_split(split)
    if isinstance(data, Process):
        n_ctx = word_length(model, otherwise="words: data=msp.words(process, n_ctx=…)")
        check_fits(model, data, n_ctx)
        data = evaluation_words(data, n_ctx, seed=seed)
    elif isinstance(data, BeliefDataset):
        check_fits(model, data.process, data.n_ctx, token_map=data.token_map)
    else:
        check_reads_tokens(model, data.tokens)
    places, left_out = _places(model, named, sites)
    labelled, tokens = _labelled(named, data, split, weighting)
    _check_widths(model, named, places)
    n_groups = int(labelled.groups.max()) + 1
    n_folds = max(2, min(split.n_folds, n_groups))
    pairs = [(name, place) for place in places for name in place.names]
    ranges, errors = position_ranges(labelled.positions), None
    # Moments by range would take long for each probe at each site.
    n_ranges = len(ranges) if sites is None else None
    accumulator = Accumulator([(str(k),) for k in range(len(pairs))], n_folds, n_groups, n_ranges, seed)
    n_targets = labelled.targets[BELIEF].shape[1]
    windows = [TokenWindows(*tokens, n_targets=n_targets)] if controls else []
    reference = labelled.weights @ labelled.targets[BELIEF] / labelled.weights.sum()
    hooks = tuple(dict.fromkeys(site for place in places for site in place.sites))
    reading: dict[str, Any] = {"words": share(len(labelled.tokens)), "batch_size": batch_size}
    for batch in model_rows(model, labelled, hooks, **reading, progress="Reading" if progress else None):
        read = [each for place in places for each in place.read(batch)]
        batch = replace(batch, features={str(k): each for k, each in enumerate(read)}, output=None)
        here = range_numbers(ranges, batch.positions)
        cells = accumulator.update(replace(batch, positions=here))
        if errors is None:
            sizes = {"n_readouts": len(pairs), "n_ranges": len(ranges), "n_folds": n_folds}
            errors = RangedErrors(reference, n_cells=accumulator.n_cells, **sizes)
        errors.update(batch.targets[BELIEF], read, batch.weights, ranges=here, cells=cells)
        for window in windows:
            window.update(batch, cells, accumulator.n_cells)
    assert errors is not None
    for observer in (errors, *windows):
        observer.reduce()
    found = accumulator.finish()
    scores = []
    for k, (name, place) in enumerate(pairs):
        cells = found.cells([str(k)])
        of_all = evaluate(cells, [str(k)], OLS(), extras=False)[1].held_out
        of_ranges = evaluate_positions(cells, [str(k)], OLS()) if cells.positions else ()
        by_position = tuple(errors.score(k, number) for number in range(len(ranges)))
        fitted = named[name].scores.held_out.r2
        scores.append(TransferScore(name, place.label, errors.score(k), of_all, by_position, of_ranges, fitted))
    against = [each for own in windows for each in own.scores(n_folds)]
    if controls and not any(each.kind == "position" for each in against):
        called = "position" if all(first == last for first, last in ranges) else f"position in {len(ranges)} ranges"
        against.append(ControlScore(called, "position", None, *errors.score_of_means()))
    notes = [*transfer_notes(named, data, labelled, scores[0].score, model_fingerprint(model)), *left_out]
    weights = tuple(errors.shares.tolist())
    return TransferReport(tuple(scores), tuple(ranges), weights, Controls(tuple(against)), tuple(notes))


def _named(probes: Probes) -> dict[str, BeliefProbe]:
    """The probes by the names that tell them apart."""
    if isinstance(probes, BeliefProbe):
        return {probes.label: probes}
    given = list(probes.items()) if isinstance(probes, Mapping) else [(probe.label, probe) for probe in probes]
    if not given:
        raise ValueError("probes is empty: give at least one probe, or a report.")
    named = dict(given)
    if len(named) < len(given):
        labels = ", ".join(label for label, _ in given)
        raise ValueError(f"probes has two of one name ({labels}): give a mapping of names to probes.")
    if len(parts := {probe.provenance.get("part") for probe in named.values()}) > 1:
        raise ValueError(f"probes reads several parts ({', '.join(map(str, parts))}): read one at a time.")
    return named


def _places(model: HookedModel, probes: Mapping[str, BeliefProbe], sites: Sites) -> tuple[list[_Place], list[str]]:
    """Where the probes are read, and a note on those that are not."""
    if sites is None:
        found: dict[tuple[str, ...], dict[str, BeliefProbe]] = {}
        for name, probe in probes.items():
            find_sites(model, list(probe.sites))
            found.setdefault(probe.sites, {})[name] = probe
        labels = [site_label(at[0]) if len(at) == 1 else next(iter(each.values())).label for at, each in found.items()]
        return [_Place.of(label, *place) for label, place in zip(labels, found.items(), strict=True)], []
    single = {name: probe for name, probe in probes.items() if len(probe.sites) == 1}
    if not single:
        raise ValueError("sites: every probe reads several sites at once, so none can be read at another: give probes.")
    others = ", ".join(name for name in probes if name not in single)
    note = [f"Left out, since they read several sites at once: {others}."] if others else []
    return [_Place.of(site_label(site), (site,), single) for site in find_sites(model, sites)], note


def _labelled(
    probes: Mapping[str, BeliefProbe], data: BeliefDataset | LabelledTokens, split: Split, weighting: Weighting
) -> tuple[LabelledTokens, tuple[Int[Tensor, "word pos"], int | None]]:
    """The rows with what the probes read as the only target, and the tokens that windows see, with their number."""
    first = next(iter(probes.values()))
    part = first.provenance.get("part")
    if isinstance(data, BeliefDataset):
        process = data.process
        values, is_known = part_values(first.provenance, data)
        prior = process.initial if part is None else process.parts(process.initial)[part]
        rows = split_rows(data, split, weighting)
        labelled = labelled_rows(data, rows, {BELIEF: values}, {BELIEF: prior}, {BELIEF: ~is_known})
        labelled = replace(labelled, description={**labelled.description, "weighting": weighting})
        tokens = (data.tokens, process.n_tokens) if part is None else part_tokens(process, part, data.tokens)
    else:
        known, name = list(data.targets), part or first.provenance.get("target", BELIEF)
        if name not in known and len(known) > 1:
            raise ValueError(f"data has the targets {', '.join(map(repr, known))}, and the probes read {name!r}.")
        labelled, _ = split_labelled(data.only(name if name in known else known[0]), split)
        tokens = (data.tokens, None)
    ((target, values),) = labelled.targets.items()
    for name, probe in probes.items():
        if probe.n_states != values.shape[1]:
            entries = "states" if probe.reads.is_belief else "entries"
            problem = f"probes: {name} reads {probe.n_states} {entries}, and data has {values.shape[1]}"
            raise ValueError(f"{problem}: give data with as many, or probe the model again.")
    # Rows without a belief are left out.
    kept = ~labelled.undefined.get(target, torch.zeros(len(labelled), dtype=torch.bool))
    numbers = {each: getattr(labelled, each)[kept] for each in ("words", "columns", "positions", "weights")}
    numbers["groups"] = labelled.groups[kept].unique(return_inverse=True)[1]
    return replace(labelled, **numbers, targets={BELIEF: values[kept]}, undefined={}, classes={}), tokens


def _check_widths(model: HookedModel, probes: Mapping[str, BeliefProbe], places: Sequence[_Place]) -> None:
    """Raise `ValueError` unless each probe reads as many features as there are; one token shows how many."""
    hooks = dict.fromkeys(site for place in places for site in place.sites)
    (batch,) = stream_activations(model, torch.zeros(1, 1, dtype=torch.int64), list(hooks))
    for place in places:
        found = sum(batch.activations[site].shape[-1] for site in place.sites)
        for name in place.names:
            if (reads := sum(probes[name].widths)) != found:
                raise ValueError(
                    f"probes: {name} reads {reads} features and {place.label} has {found} in this model: use probes "
                    "on models of the same width, and choose sites= as wide as those that the probes were fitted on."
                )
