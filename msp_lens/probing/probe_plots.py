"""The pictures of a report: which numbers each shows; `figures` draws them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens.beliefs.filtering import filter_beliefs
from msp_lens.beliefs.information import optimal_losses
from msp_lens.data import BeliefDataset
from msp_lens.models.activations import stream_activations
from msp_lens.models.hooked import check_fits
from msp_lens.probing.belief_probe import BeliefProbe, read_beliefs
from msp_lens.probing.controls import Controls
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.processes.process import Process

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from plotly.graph_objects import Figure as PlotlyFigure

    from msp_lens.figures.style import ThemeName
    from msp_lens.figures.tokens import Html

WINDOW = re.compile(r"window (?P<length>\d+)(?: (?P<kind>.+))?")
KINDS = {None: "window of k tokens", "× pos": "window and position", "additive": "tokens added up, and position"}


def beliefs_figure(
    report: ProbeReport, sites: Sequence[str], *, word: Sequence[int | str] = (), theme: ThemeName = "light"
) -> Figure:
    """True beliefs beside those read at these sites, with one word's way drawn through them."""
    from msp_lens.figures.simplex import plot_beliefs

    probes, dataset, read = _read(report, sites)
    tokens = token_numbers(dataset.process, word)
    return plot_beliefs(
        dataset.prefix_beliefs,
        dict(zip(map(_title, probes), read, strict=True)),
        weights=dataset.prefix_weights(report.provenance["weighting"]),
        states=dataset.process.states,
        path=_prefix_rows(dataset, tokens) if tokens else (),
        path_tokens=[dataset.process.tokens[token] for token in tokens],
        theme=theme,
    )


def positions_figure(
    report: ProbeReport, sites: Sequence[str], *, shown: Sequence[int] | None = None, theme: ThemeName = "light"
) -> Figure:
    """True beliefs and those read at these sites, a column for each position."""
    from msp_lens.figures.simplex import plot_positions

    probes, dataset, read = _read(report, sites)
    return plot_positions(
        dataset.prefix_beliefs,
        {probe.label: beliefs for probe, beliefs in zip(probes, read, strict=True)},
        _prefix_positions(dataset),
        shown=shown,
        weights=dataset.prefix_weights(report.provenance["weighting"]),
        states=dataset.process.states,
        theme=theme,
    )


def interactive_figure(report: ProbeReport, sites: Sequence[str], *, theme: ThemeName = "light") -> PlotlyFigure:
    """True beliefs beside those read at these sites, each of the weightiest prefixes with its word on hover."""
    from msp_lens.figures.interactive import explore_beliefs

    probes, dataset, read = _read(report, sites)
    return explore_beliefs(
        dataset.prefix_beliefs,
        dict(zip(map(_title, probes), read, strict=True)),
        dataset.tokens[_first_words(dataset)],
        _prefix_positions(dataset),
        weights=dataset.prefix_weights(report.provenance["weighting"]),
        states=dataset.process.states,
        tokens=dataset.process.tokens,
        theme=theme,
    )


def sites_figure(report: ProbeReport, *, theme: ThemeName = "light") -> Figure:
    """R² at each site, held out and in-sample, beside shuffled beliefs and the best control."""
    from msp_lens.figures.curves import plot_sites

    table = report.to_dataframe()
    columns = ("R² held out", "R² in-sample", "R² shuffled", "R² best control")
    held_out, in_sample, shuffled, control = (table[column].tolist() for column in columns)
    intervals = list(zip(table["low"], table["high"], strict=True))
    return plot_sites(
        list(table.index), held_out, in_sample, shuffled, control=control, intervals=intervals, theme=theme
    )


def curves_figure(table: pd.DataFrame, *, title: str, ylabel: str, theme: ThemeName = "light") -> Figure:
    """A table of R² with a row for each site, as curves over its columns."""
    from msp_lens.figures.score_curves import plot_r2

    curves = {str(site): row.tolist() for site, row in table.iterrows()}
    return plot_r2(list(table.columns), curves, xlabel=str(table.columns.name), title=title, ylabel=ylabel, theme=theme)


def window_scores(controls: Controls) -> pd.DataFrame:
    """R² held out of the windows of the last k tokens: a row for each k, a column for each kind of window.

    Raises:
        ValueError: if there are no windows among the controls.
    """
    found: dict[str, dict[int, float]] = {}
    for each in controls:
        if match := WINDOW.fullmatch(each.name):
            kind = KINDS.get(match["kind"], match["kind"])
            found.setdefault(kind, {})[int(match["length"])] = each.held_out.r2
    if not found:
        raise ValueError("There are no windows among the controls: probe with controls=True.")
    return pd.DataFrame(found).sort_index().rename_axis(index="tokens in the window")


def crossover_figure(report: ProbeReport, *, theme: ThemeName = "light") -> Figure:
    """R² of windows over their length, and each site's level."""
    from msp_lens.figures.score_curves import plot_crossover

    windows = window_scores(report.controls)
    return plot_crossover(
        list(windows.index),
        {kind: windows[kind].tolist() for kind in windows},
        {label: report[label].scores.held_out.r2 for label in report},
        theme=theme,
    )


def regret_figure(report: ProbeReport, *, theme: ThemeName = "light") -> Figure:
    """The model's loss at each position on top of the least possible."""
    from msp_lens.figures.curves import plot_regret

    if report.regret is None or report.process is None:
        raise ValueError(
            "This report has no regret: it takes a model that gives logits, and a process to compare with."
        )
    floor = optimal_losses(report.process, len(report.regret))
    return plot_regret(report.regret.tolist(), floor.tolist(), theme=theme)


def word_html(
    report: ProbeReport, word: Sequence[int | str], sites: Sequence[str], *, theme: ThemeName = "light"
) -> Html:
    """A word colored by the true belief after each token, and by what is read at these sites."""
    from msp_lens.figures.tokens import word_view

    probes, dataset, tokens, read = _read_word(report, word, sites)
    true = filter_beliefs(dataset.process, tokens)[0]
    return word_view(
        [dataset.process.tokens[token] for token in tokens[0].tolist()],
        {"true": true} | {probe.label: beliefs for probe, beliefs in zip(probes, read, strict=True)},
        states=dataset.process.states,
        among=dataset.prefix_beliefs,
        theme=theme,
    )


def readouts_html(report: ProbeReport, word: Sequence[int | str]) -> Html:
    """Circuitsvis's view of what every probe reads after each token of a word."""
    from msp_lens.figures.tokens import readout_view

    probes, dataset, tokens, read = _read_word(report, word, list(report))
    return readout_view(
        [dataset.process.tokens[token] for token in tokens[0].tolist()],
        torch.stack(read),
        sites=[probe.label for probe in probes],
        states=dataset.process.states,
    )


def token_numbers(process: Process, word: Sequence[int | str]) -> list[int]:
    """A word as token numbers, whether given as numbers or as the tokens' names.

    Raises:
        ValueError: if the process has no such token.
    """
    numbers = []
    for token in word:
        known = process.tokens.index(token) if isinstance(token, str) and token in process.tokens else token
        if not isinstance(known, int) or not 0 <= known < process.n_tokens:
            raise ValueError(
                f"word has the token {token!r}; those of {process.name} are {', '.join(process.tokens)}, or their "
                f"numbers 0 to {process.n_tokens - 1}."
            )
        numbers.append(known)
    return numbers


def _title(probe: BeliefProbe) -> str:
    return f"{probe.label}: held-out R² {probe.scores.held_out.r2:.4f}"


def _read(
    report: ProbeReport, sites: Sequence[str]
) -> tuple[list[BeliefProbe], BeliefDataset, list[Float64[Tensor, "prefix state"]]]:
    probes = [report[site] for site in sites] if sites else [report.best_site]
    model, dataset = report.run_on()
    return probes, dataset, read_beliefs(model, dataset, probes, token_map=report.token_map)


def _read_word(
    report: ProbeReport, word: Sequence[int | str], sites: Sequence[str]
) -> tuple[list[BeliefProbe], BeliefDataset, Int[Tensor, "1 pos"], list[Float64[Tensor, "pos state"]]]:
    probes = [report[site] for site in sites] if sites else [report.best_site]
    model, dataset = report.run_on()
    if not len(word):
        raise ValueError("word is empty: give at least one token.")
    check_fits(model, dataset.process, len(word))
    tokens = torch.tensor([token_numbers(dataset.process, word)])
    needed = list(dict.fromkeys(site for probe in probes for site in probe.sites))
    (batch,) = stream_activations(model, tokens, needed)
    return probes, dataset, tokens, [probe.predict(batch.activations)[0].cpu().double() for probe in probes]


def _first_words(dataset: BeliefDataset) -> Int[Tensor, "prefix"]:
    """A word that begins with each prefix, by `prefix_ids`."""
    words, _ = dataset.is_first.nonzero(as_tuple=True)
    found = torch.empty(dataset.n_prefixes, dtype=torch.int64)
    found[dataset.prefix_ids[dataset.is_first]] = words
    return found


def _prefix_positions(dataset: BeliefDataset) -> Int[Tensor, "prefix"]:
    """The position of each prefix's last token, by `prefix_ids`."""
    _, positions = dataset.is_first.nonzero(as_tuple=True)
    found = torch.empty(dataset.n_prefixes, dtype=torch.int64)
    found[dataset.prefix_ids[dataset.is_first]] = positions
    return found


def _prefix_rows(dataset: BeliefDataset, word: Sequence[int]) -> list[int]:
    """The numbers of a word's prefixes, shortest first.

    Raises:
        ValueError: if it begins no word of the dataset.
    """
    if len(word) <= dataset.n_ctx:
        matches = (dataset.tokens[:, : len(word)] == torch.tensor(word)).all(dim=1).nonzero()
        if len(matches):
            return dataset.prefix_ids[matches[0, 0], : len(word)].tolist()
    raise ValueError(
        f"word={list(word)} begins none of the {len(dataset):,} words of {dataset.n_ctx} tokens that were probed: take "
        "one that the process can emit, no longer than they are."
    )
