"""Networks side by side: what the probes of each read at every site, held out, beside its controls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import pandas as pd

from msp_lens._checks import checked
from msp_lens._tables import TableView, nats_text, skill_text
from msp_lens._values import Value
from msp_lens.controls.control_scores import named_r2_texts, r2_text
from msp_lens.experiments.study import Study
from msp_lens.inference.inference_report import Inference
from msp_lens.inference.process_comparison import ProcessComparison, compare_processes
from msp_lens.moments.scores import r2_difference
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.processes.process import Process

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.style import ThemeName

# What two reports must agree in, for their R² to be of one thing; and what they may differ in, as a note says.
_MUST: dict[str, str] = {"process_fingerprint": "process", "target": "target", "part": "part", "weighting": "weighting"}
_MAY = ("n_ctx", "words", "draw_seed", "positions", "split", "n_folds", "seed", "solver", "reduction", "token_map")


@dataclass(frozen=True, eq=False, repr=False)
class ReportComparison(Value, TableView):
    """Probe reports side by side; `msp.compare` makes it. Differences are to the first report.

    Attributes:
        reports: The reports, by name.
    """

    reports: dict[str, ProbeReport]

    @property
    def sites(self) -> list[str]:
        """The labels of the sites that any of the reports has, in the order of the forward pass."""
        found: list[str] = []
        for report in self.reports.values():
            place = 0
            for label in report:
                if label in found:
                    place = found.index(label) + 1
                else:
                    found.insert(place, label)
                    place += 1
        return found

    def difference(self, site: str, name: str) -> tuple[float, tuple[float, float]]:
        """Held-out R² of a report at a site less that of the first report, and its 95 % interval.

        The interval is a paired bootstrap: each resample draws the same cells of rows for both. It is NaN where the two
        were not scored on the same cells, and all is NaN where one lacks the site.

        Raises:
            KeyError: if there is no such report.
        """
        if name not in self.reports:
            raise KeyError(f"There is no report {name!r} here; there are {', '.join(self.reports)}.")
        first, second = next(iter(self.reports.values())), self.reports[name]
        if site not in first or site not in second:
            return math.nan, (math.nan, math.nan)
        return r2_difference(first[site].scores.held_out, second[site].scores.held_out)

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each site and report that has it.

        R² held out with its interval, in-sample, the best control, skill and MSE are those of the report; the
        difference is its held-out R² less the first report's.
        """
        columns = ["R² held out", "low", "high", "R² in-sample", "MSE held out", "R² best control", "best control"]
        columns += ["skill", "skill low", "skill high", "n"]
        tables = {name: report.to_dataframe()[columns] for name, report in self.reports.items()}
        rows = []
        for site in self.sites:
            for name, table in tables.items():
                if site in table.index:
                    difference, ends = self.difference(site, name)
                    if name == next(iter(tables)):
                        difference, ends = math.nan, (math.nan, math.nan)
                    added = {"difference": difference, "difference low": ends[0], "difference high": ends[1]}
                    rows.append({"site": site, "report": name, **table.loc[site].to_dict(), **added})
        return pd.DataFrame(rows).set_index(["site", "report"])

    def plot(self, *, theme: ThemeName = "light") -> Figure:
        """Held-out R² of each report at each site, with its interval; bars show its best control."""
        from msp_lens.figures.score_curves import plot_parts

        table, sites = self.to_dataframe(), self.sites
        curves, controls, intervals = {}, {}, {}
        for name in self.reports:
            own = table.xs(name, level="report").reindex(sites)
            curves[name], controls[name] = own["R² held out"].tolist(), own["R² best control"].tolist()
            intervals[name] = list(zip(own["low"], own["high"], strict=True))
        title = "Held out, by site and report; bars: best control"
        return plot_parts(sites, curves, controls=controls, intervals=intervals, title=title, theme=theme)

    def summary(self) -> list[str]:
        """What was compared, what the interval means, and in what the reports differ besides their networks."""
        first, *others = self.reports
        given, process = self.reports[first].provenance, self.reports[first].process
        reads = self.reports[first].probes[0].reads
        what = f"The {reads.name}" if process is None or not reads.is_belief else f"Beliefs of {process.name}"
        counted = f", weighting {given['weighting']}" if "weighting" in given else ""
        lines = [f"{what}{counted}. Difference: held-out R² less that of {first}."]
        table = self.to_dataframe()
        if bool(table["difference low"].notna().any()):
            lines.append(
                f"Its 95 % interval is a paired bootstrap over {given['n_cells']} cells of rows, the same cells for "
                "both, with the fitted maps fixed: how the difference would vary with other words for these very "
                "networks. Networks trained from other seeds may differ by far more (msp.run(…, seeds=5))."
            )
        known = table["difference low"].groupby(level="report").count().to_dict()
        lacking = [name for name in others if not known[name]]
        if lacking:
            lines.append(
                f"No interval for {', '.join(lacking)}: not scored on the same cells of the same words as {first}, so "
                "part of the difference may be the words'. Probe both with the same data, split and seed."
            )
        lines += _differences(self.reports)
        regrets = {name: each.regret for name, each in self.reports.items() if each.regret is not None}
        if regrets:
            means = ", ".join(f"{name} {nats_text(regret.mean())}" for name, regret in regrets.items())
            lines.append(f"Mean regret in nats: {means}.")
        if bool(table["best control"].isna().any()):
            without = [name for name, each in self.reports.items() if not len(each.controls)]
            lines.append(f"Without controls, an R² means little: probe {', '.join(without)} with controls=True.")
        return lines

    def _title(self) -> str:
        return f"Probes of {', '.join(self.reports)}"

    def _display(self) -> pd.DataFrame:
        table = self.to_dataframe()
        shown = pd.DataFrame(index=table.index)
        shown["R² held out"] = table["R² held out"].map(r2_text)
        shown["difference"] = table["difference"].map(_signed)
        ends = zip(table["difference low"], table["difference high"], strict=True)
        shown["95 %"] = ["" if math.isnan(low) else f"{_signed(low)} to {_signed(high)}" for low, high in ends]
        shown["in-sample"] = table["R² in-sample"].map(r2_text)
        shown["best control"] = named_r2_texts(table["R² best control"], table["best control"])
        shown["skill"] = table["skill"].map(skill_text)
        shown["MSE"] = table["MSE held out"].map("{:.6f}".format)
        return shown


@overload
def compare(first: Process | Inference, second: Process | Inference) -> ProcessComparison: ...
@overload
def compare(
    first: ProbeReport | Study | str | Path,
    second: ProbeReport | Study | str | Path,
    *others: ProbeReport | Study | str | Path,
    names: Sequence[str] | None = None,
) -> ReportComparison: ...
@checked
def compare(
    first: ProbeReport | Study | Process | Inference | str | Path,
    second: ProbeReport | Study | Process | Inference | str | Path,
    *others: ProbeReport | Study | Process | Inference | str | Path,
    names: Sequence[str] | None = None,
) -> ReportComparison | ProcessComparison:
    """Two or more probe reports side by side, site by site; or two processes, by what does not depend on their states.

    Reports must be of the same beliefs, counted alike: the same process, target and weighting. Where both were scored
    on the same words in the same folds, as two calls of `probe` with the same options are, differences have a paired
    95 % interval.

    Args:
        first: A report, the result of `run`, a run's folder, a file of `report.save`, or `"hf://user/name"`; the others
            are compared with it. Or a process, or an inference, whose process is meant.
        second: Another of the same kind.
        others: More reports.
        names: What to call the reports; by default a file or folder by its name, else `"first"`, `"second"`, and so on.

    Returns:
        A `ReportComparison`; of processes a `ProcessComparison` (`msp.inference.compare_processes` has its option).

    Raises:
        ValueError: if the reports are of different processes, targets or weightings, processes have different tokens,
            or the names are not one for each report, all different.
        TypeError: if a report is to be compared with a process, or more than two processes.
        FileNotFoundError: if a path holds no report.
    """
    given = (first, second, *others)
    processes = [each.process if isinstance(each, Inference) else each for each in given]
    processes = [each for each in processes if isinstance(each, Process)]
    if processes:
        if len(processes) != len(given) or len(given) != 2 or names is not None:
            kinds = ", ".join(type(each).__name__ for each in given)
            raise TypeError(f"compare({kinds}): give two processes, or two or more reports and their names.")
        return compare_processes(*processes)
    called = _names(given, names)
    reports = [_report_of(each) for each in given]
    found = dict(zip(called, reports, strict=True))
    _check_comparable(found)
    return ReportComparison(found)


def _report_of(given: Any) -> ProbeReport:
    if isinstance(given, Study):
        return given.report
    if isinstance(given, str | Path):
        return ProbeReport.load(given)
    if not isinstance(given, ProbeReport):
        raise TypeError(f"others: {given!r} is no report: give a ProbeReport, the result of run, or a path.")
    return given


def _names(given: Sequence[Any], names: Sequence[str] | None) -> list[str]:
    if names is None:
        counted = ["first", "second", "third", *(f"{k}th" for k in range(4, len(given) + 1))]
        pairs = zip(given, counted, strict=False)
        own = [Path(each).name if isinstance(each, str | Path) else count for each, count in pairs]
        return own if len(set(own)) == len(own) and all(own) else counted[: len(given)]
    if len(names) != len(given) or len(set(names)) < len(names):
        raise ValueError(f"names={list(names)}: give one for each of the {len(given)} reports, all different.")
    return list(names)


def _check_comparable(reports: dict[str, ProbeReport]) -> None:
    (name, first), *others = reports.items()
    for other, report in others:
        for key, what in _MUST.items():
            ours, theirs = first.provenance.get(key), report.provenance.get(key)
            if ours != theirs:
                if what == "process":
                    ours, theirs = (each.process and repr(each.process) for each in (first, report))
                raise ValueError(
                    f"{name} is of {what} {ours}, {other} of {what} {theirs}: their R² are of different things. Probe "
                    "both alike to compare them."
                )


def _differences(reports: dict[str, ProbeReport]) -> list[str]:
    """A note for each thing, other than the network, in which the reports differ."""
    lines = []
    for key in _MAY:
        values = {name: each.provenance.get(key) for name, each in reports.items()}
        if len({str(value) for value in values.values()}) > 1:
            told = ", ".join(f"{name} {_short(value)}" for name, value in values.items())
            lines.append(f"They differ in {key}: {told}.")
    return lines


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _signed(difference: float) -> str:
    # Adding 0 makes the zero of a rounded negative number positive.
    return "" if math.isnan(difference) else f"{round(difference, 5) + 0.0:+.5f}"
