"""The pictures of a report: which numbers each one shows. `figures` draws them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from msp_lens._checks import checked
from msp_lens.beliefs.filtering import filter_beliefs
from msp_lens.beliefs.information import optimal_losses
from msp_lens.controls.control_scores import ControlKind, Controls
from msp_lens.data import BeliefDataset, Weighting
from msp_lens.models.hooked import HookedModel
from msp_lens.probing.belief_probe import read_beliefs
from msp_lens.probing.parts import part_values
from msp_lens.probing.probe_tables import ClassReadouts, ProbeTables
from msp_lens.processes.process import Process
from msp_lens.processes.words import Words

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from plotly.graph_objects import Figure as PlotlyFigure

    from msp_lens.figures.style import ThemeName
    from msp_lens.figures.tokens import Html


@dataclass(frozen=True, eq=False, repr=False)
class ProbePlots:
    """Pictures of probes: call it for the belief states, or one of its methods for another picture.

    Pictures of belief states and words run the model once, and raise a `ValueError` if the report was loaded without
    its model or the model's weights have changed since. Sites are hook names, labels or `"concatenated"`, one panel or
    curve each; by default the single site with the best held-out R².

    Attributes:
        tables: The probes and their controls.
        regret_by_position: Regret of the model at each position, in nats.
        process: The process whose beliefs were probed.
        weighting: How much each prefix counts.
        run_on: Checks and returns the model that was probed and its words.
        provenance: What the report was measured on.
        parts_read: What reads each part of the belief.
    class_readouts: Logistic read-outs, if the target is classes.
    """

    tables: ProbeTables
    regret_by_position: Float64[Tensor, "pos"] | None
    process: Process | None
    weighting: Weighting
    run_on: Callable[[], tuple[HookedModel, BeliefDataset]]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    parts_read: Mapping[str, ProbeTables] = field(default_factory=dict)
    class_readouts: ClassReadouts | None = None

    @checked
    def __call__(self, *sites: str, word: Words = (), theme: ThemeName = "light") -> Figure:
        """The true belief states and those read at these sites, side by side, colored by the true belief.

        A report of labelled tokens, which have no belief states, shows its scores at all sites instead.

        Args:
            sites: Which sites to show.
            word: A word (token numbers or names) whose path is drawn through every panel.
            theme: `"light"` or `"dark"`.

        Raises:
            KeyError: if a site is not in the report.
            ValueError: if the word is not among those that were probed.
        """
        from msp_lens.figures.simplex import plot_beliefs

        is_drawn = self.process is not None and self.tables.probes[0].reads.is_belief
        if not is_drawn and not sites and not word:
            return self.scores(theme=theme)
        dataset, _, read = self._read(sites)
        tokens = _one_word(dataset.process, word)[0].tolist() if len(word) else []
        (true, read), is_known = self._known(dataset, read)
        # Prefixes that rule the part out are not drawn, and the others move up.
        moved = is_known.cumsum(dim=0) - 1
        path = [row for row in (_prefix_rows(dataset, tokens) if tokens else []) if is_known[row]]
        return plot_beliefs(
            true,
            self._titled(read),
            path=[int(moved[row]) for row in path],
            path_tokens=[dataset.process.tokens[token] for token in tokens[: len(path)]],
            theme=theme,
            **self._seen(dataset, is_known),
        )

    @checked
    def positions(self, *sites: str, positions: Sequence[int] | None = None, theme: ThemeName = "light") -> Figure:
        """The belief states by position: one column for each, true beliefs in the first row, a row for each site."""
        from msp_lens.figures.simplex import plot_positions

        dataset, _, read = self._read(sites)
        _, last = _first_places(dataset)
        (true, read), is_known = self._known(dataset, read)
        shown = self._seen(dataset, is_known)
        return plot_positions(true, read, last[is_known], shown=positions, theme=theme, **shown)

    @checked
    def explore(self, *sites: str, theme: ThemeName = "light") -> PlotlyFigure:
        """The belief states, interactive: hover over a prefix for its word and belief; four states can be rotated."""
        from msp_lens.figures.interactive import explore_beliefs

        dataset, _, read = self._read(sites)
        words, last = _first_places(dataset)
        (true, read), is_known = self._known(dataset, read)
        shown = self._seen(dataset, is_known) | {"tokens": dataset.process.tokens, "theme": theme}
        places = (dataset.tokens[words[is_known]], last[is_known])
        return explore_beliefs(true, self._titled(read), *places, **shown)

    @checked
    def word(self, word: Words, *sites: str, theme: ThemeName = "light") -> Html:
        """A word whose tokens are colored by the true belief after each, and by the beliefs read at these sites.

        The word, in token numbers or names, may be any that the process can emit and that fits the model's context.
        """
        from msp_lens.figures.tokens import word_view

        dataset, one, read = self._read(sites, word)
        names = [dataset.process.tokens[token] for token in one.tokens[0].tolist()]
        among, is_known = part_values(self.provenance, dataset)
        true, _ = part_values(self.provenance, one)
        beliefs = {"true": true, **read}
        return word_view(names, beliefs, states=self._states(dataset), among=among[is_known], theme=theme)

    @checked
    def readouts(self, word: Words) -> Html:
        """What every probe reads after each token of a word, state by state, in circuitsvis's view."""
        from msp_lens.figures.tokens import readout_view

        dataset, one, read = self._read(tuple(self.tables), word)
        names = [dataset.process.tokens[token] for token in one.tokens[0].tolist()]
        return readout_view(names, torch.stack(list(read.values())), sites=list(read), states=self._states(dataset))

    @checked
    def scores(self, *, theme: ThemeName = "light") -> Figure:
        """R² at each site, held out and in-sample, with those of shuffled rows and of the best control."""
        from msp_lens.figures.curves import plot_sites

        table = self.tables.to_dataframe()
        columns = ("R² held out", "R² in-sample", "R² shuffled", "R² best control")
        *bars, control = (table[column].tolist() for column in columns)
        intervals = list(zip(table["low"], table["high"], strict=True))
        rest = {"control": control, "intervals": intervals, "rivals": self._rivals(), "of": self._kinds}
        return plot_sites(list(table.index), *bars, **rest, theme=theme)

    @property
    def _kinds(self) -> str:
        """What is read, for axes: beliefs, labels or targets."""
        return f"{self.tables.probes[0].reads.kind}s"

    def _rivals(self) -> dict[str, list[float]]:
        """Held-out R² of each rival at every site, of those that can be told from the belief."""
        table = self.tables.rivals()
        read = {}
        for name in table.index.unique(level="rival"):
            own = table.xs(name, level="rival")
            if len(own) == len(self.tables) and bool((own["follows"] != "–").any()):
                read[str(name)] = own["R² of the rival"].tolist()
        return read

    @checked
    def parts(self, *, theme: ThemeName = "light") -> Figure:
        """Held-out R² of each part of the belief at each site, with the best control of each.

        Raises:
            ValueError: if the belief has no parts.
        """
        from msp_lens.figures.score_curves import plot_parts

        if not self.parts_read:
            raise ValueError("This report has no parts: probe a product or a mixture of processes.")
        tables = {
            name: part.to_dataframe() for name, part in {self.tables.whole: self.tables, **self.parts_read}.items()
        }
        columns = {
            column: {name: table[column].tolist() for name, table in tables.items()}
            for column in ("R² held out", "R² best control", "low", "high")
        }
        ends = {name: list(zip(columns["low"][name], columns["high"][name], strict=True)) for name in tables}
        controls = columns["R² best control"]
        what = (
            "Parts of the belief"
            if all(each.probes[0].reads.is_belief for each in self.parts_read.values())
            else "Targets"
        )
        how = {"controls": controls, "intervals": ends, "title": f"{what} by site; bars: best control", "theme": theme}
        return plot_parts(list(self.tables), columns["R² held out"], **how)

    @checked
    def classes(self, *sites: str, theme: ThemeName = "light") -> Figure:
        """How well logistic read-outs tell classes apart: accuracy and cross-entropy at each site, and calibration.

        Calibration is drawn for the sites that are named; by default where the cross-entropy is lowest held out.

        Raises:
            KeyError: if there is no read-out at a site.
            ValueError: if the target is no classes.
        """
        from msp_lens.figures.score_curves import plot_classes

        found = self.class_readouts
        if found is None:
            raise ValueError("This report has no classes: probe labelled tokens whose target is labels.")
        table = found.to_dataframe()
        shown = [found[site] for site in sites] or [found.best]
        curves = {
            f"{each.site}, {kind}": [(found.confidence, found.accuracy, found.share) for found in score.reliability]
            for each in shown
            for kind, score in (("held out", each.held_out), ("in-sample", each.in_sample))[
                : 2 if len(shown) == 1 else 1
            ]
        }

        def columns(name: str) -> dict[str, list[float]]:
            return {kind: table[f"{name} {kind}"].tolist() for kind in ("held out", "in-sample")}

        ends = {name: table[[f"{name} low", f"{name} high"]].to_numpy() for name in ("accuracy", "cross-entropy")}
        return plot_classes(
            list(table.index),
            columns("accuracy"),
            columns("cross-entropy"),
            curves,
            accuracy_intervals=ends["accuracy"].tolist(),
            cross_entropy_intervals=ends["cross-entropy"].tolist(),
            commonest=found.commonest[1],
            entropy=found.entropy,
            theme=theme,
        )

    @checked
    def by_rank(self, *, in_sample: bool = False, theme: ThemeName = "light") -> Figure:
        """R² of reduced-rank regression over its rank, one curve for each site."""
        ylabel = f"R² of {self._kinds}, {'in-sample' if in_sample else 'held out'}"
        return _curves(self.tables.by_rank(in_sample=in_sample), "Reduced-rank probes", ylabel, theme)

    @checked
    def by_position(self, *, own: bool = False, theme: ThemeName = "light") -> Figure:
        """Held-out R² at each position, one curve for each site; `own` as for the table `by_position`."""
        title = "Probes fitted at each position" if own else "One probe of all positions, by position"
        return _curves(self.tables.by_position(own=own), title, f"R² of {self._kinds}, held out", theme)

    @checked
    def crossover(self, *, theme: ThemeName = "light") -> Figure:
        """Held-out R² of windows of the last k tokens over k, and each site's: where a window overtakes it.

        Raises:
            ValueError: if the report was made without controls.
        """
        from msp_lens.figures.score_curves import plot_crossover

        windows = window_scores(self.tables.controls)
        sites = {label: probe.scores.held_out.r2 for label, probe in self.tables.items()}
        curves = windows.to_dict(orient="list")
        return plot_crossover(list(windows.index), curves, sites, of=self._kinds, theme=theme)

    @checked
    def regret(self, *, theme: ThemeName = "light") -> Figure:
        """The model's loss at each position above the lowest possible loss, in nats.

        Raises:
            ValueError: if the model gave no logits, or there is no process to compare with.
        """
        from msp_lens.figures.curves import plot_regret

        if self.regret_by_position is None or self.process is None:
            raise ValueError(
                "This report has no regret: it takes a model that gives logits, and a process to compare with."
            )
        floor = optimal_losses(self.process, len(self.regret_by_position))
        return plot_regret(self.regret_by_position.tolist(), floor.tolist(), theme=theme)

    def _read(
        self, sites: Sequence[str], word: Words | None = None
    ) -> tuple[BeliefDataset, BeliefDataset, dict[str, Tensor]]:
        """The words that were probed, those that are read (the same, or one word), and the beliefs read by site."""
        probes = [self.tables[site] for site in sites] if sites else [self.tables.best_site]
        model, dataset = self.run_on()
        words = dataset
        if word is not None:
            if not len(word):
                raise ValueError("word is empty: give at least one token.")
            process, tokens = dataset.process, _one_word(dataset.process, word)
            true, weights = filter_beliefs(process, tokens), torch.ones(1, dtype=torch.float64)
            words = BeliefDataset(process, tokens, true, weights, False, token_map=dataset.token_map)
        read = read_beliefs(model, words, probes)
        return dataset, words, {probe.label: beliefs for probe, beliefs in zip(probes, read, strict=True)}

    def best_beliefs(self) -> tuple[dict[str, Tensor], Tensor, Sequence[str]]:
        """The true beliefs and those read at the best site, by title; the weights of their prefixes; the states."""
        dataset, _, read = self._read(())
        (true, read), is_known = self._known(dataset, read)
        shown = self._seen(dataset, is_known)
        return {f"true: {len(true):,} prefixes": true, **self._titled(read)}, shown["weights"], shown["states"]

    def _titled(self, read: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"{name}: held-out R² {self.tables[name].scores.held_out.r2:.4f}": at for name, at in read.items()}

    def _known(
        self, dataset: BeliefDataset, read: Mapping[str, Tensor]
    ) -> tuple[tuple[Tensor, dict[str, Tensor]], Bool[Tensor, "prefix"]]:
        """The true beliefs and those read, at the prefixes where there are any; and which these are."""
        true, is_known = part_values(self.provenance, dataset)
        return (true[is_known], {name: values[is_known] for name, values in read.items()}), is_known

    def _states(self, dataset: BeliefDataset) -> Sequence[str]:
        if "part" not in self.provenance:
            return dataset.process.states
        return self.provenance["part_states"] or [str(k) for k in range(self.tables.best_site.n_states)]

    def _seen(self, dataset: BeliefDataset, is_known: Bool[Tensor, "prefix"]) -> dict[str, Any]:
        weights = dataset.prefix_weights(self.weighting)[is_known]
        return {"weights": weights, "states": self._states(dataset)}


def window_scores(controls: Controls) -> pd.DataFrame:
    """Held-out R² of windows of the last k tokens, one row for each k, or a `ValueError` if there are none."""
    kinds: dict[ControlKind, str] = {
        "window": "window of k tokens",
        "positioned window": "window and position",
        "additive window": "tokens added up, and position",
    }
    found: dict[str, dict[int, float]] = {}
    for each in controls:
        if each.kind in kinds and each.length is not None:
            found.setdefault(kinds[each.kind], {})[each.length] = each.held_out.r2
    if not found:
        raise ValueError("There are no windows among the controls: probe with controls=True.")
    return pd.DataFrame(found).sort_index().rename_axis(index="tokens in the window")


def _one_word(process: Process, word: Words) -> Int[Tensor, "1 pos"]:
    tokens = process.read_words(word, what="word")
    if len(tokens) != 1:
        raise ValueError(f"word={word!r}: give one word, not {len(tokens)}.")
    return tokens


def _curves(table: pd.DataFrame, title: str, ylabel: str, theme: ThemeName) -> Figure:
    """A table of R² with a row for each site, as curves over its columns."""
    from msp_lens.figures.score_curves import plot_r2

    curves = {str(site): row.tolist() for site, row in table.iterrows()}
    return plot_r2(list(table.columns), curves, xlabel=str(table.columns.name), title=title, ylabel=ylabel, theme=theme)


def _first_places(dataset: BeliefDataset) -> tuple[Int[Tensor, "prefix"], Int[Tensor, "prefix"]]:
    """The first word that begins with each prefix, and the position of the prefix's last token, by `prefix_ids`."""
    places = torch.empty(dataset.n_prefixes, 2, dtype=torch.int64)
    places[dataset.prefix_ids[dataset.is_first]] = dataset.is_first.nonzero()
    return places[:, 0], places[:, 1]


def _prefix_rows(dataset: BeliefDataset, word: Sequence[int]) -> list[int]:
    """The numbers of a word's prefixes, shortest first."""
    if len(word) <= dataset.n_ctx:
        matches = (dataset.tokens[:, : len(word)] == torch.tensor(word)).all(dim=1).nonzero()
        if len(matches):
            return dataset.prefix_ids[matches[0, 0], : len(word)].tolist()
    raise ValueError(
        f"word={list(word)} begins none of the {len(dataset):,} words of {dataset.n_ctx} tokens that were probed: give "
        "a word that the process can emit and that is no longer than they are."
    )
