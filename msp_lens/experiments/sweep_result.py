"""What a sweep found: a table with a row for each run, for each of its sites, or for each of its checkpoints."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, TypeAlias, TypedDict

import numpy as np
import pandas as pd

from msp_lens._checks import AtLeast, Between, checked
from msp_lens._files import as_saved, read_json
from msp_lens._names import meant
from msp_lens._tables import TableView, nats_text, skill_text
from msp_lens._values import Value
from msp_lens.formation.snapshots import recoveries

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULT_FILE = "result.json"
Rows = Literal["run", "site", "checkpoint"]
# What is undefined, such as an R² of what does not vary, was written as null.
_R2: Any = Optional[Annotated[float, Between(-math.inf, 1)]]  # noqa: UP045
_MSE: Any = Optional[Annotated[float, AtLeast(0)]]  # noqa: UP045
_COLUMNS: Mapping[str, Any] = {
    "R² held out": _R2,
    "R² in-sample": _R2,
    "MSE held out": _MSE,
    "MSE in-sample": _MSE,
    "skill": _R2,
    "features": float | None,
}
# What is read of the rows of each table.
_READ = {
    "sites": {"site": str, **_COLUMNS},
    "interventions": {"site": str, "edit": str, "recovery": float | None, "above_placebo": float | None},
}

_Rows: TypeAlias = list[dict[str, Any]]
_Numbers: TypeAlias = list[float]


class _Training(TypedDict):
    seconds: Annotated[float, AtLeast(0)]
    regret_nats: _Numbers
    optimum_nats: _Numbers
    parameters: Annotated[int, AtLeast(0)]


class _Error(TypedDict):
    type: str
    message: str
    traceback: str


class _Always(TypedDict):
    folder: str
    fingerprint: str
    settings: dict[str, Any]
    decisive: dict[str, Any]
    status: Literal["done", "failed"]


class _Result(_Always, total=False):
    """What `result.json` says of a run."""

    training: _Training
    sites: _Rows
    interventions: _Rows
    emergence: _Rows
    machine: dict[str, Any]
    error: _Error


def read_result(file: Path, *, fingerprint: str | None = None) -> dict[str, Any]:
    """The `result.json` of a run; `ValueError` if it is damaged, or of another run than the fingerprint says."""
    found = read_json(file, _Result)
    if fingerprint is not None and found["fingerprint"] != fingerprint:
        raise ValueError(f"{file} is of another run ({found['settings']}): remove it, or give another folder.")
    needed = ("training", "sites", "interventions") if found["status"] == "done" else ("error",)
    for name in needed:
        if name not in found:
            raise ValueError(f"{file} lacks {name}: it is damaged or was edited. Remove it, and sweep again.")
    for table, columns in _READ.items():
        for row, (name, annotation) in itertools.product(found.get(table, []), columns.items()):
            if name not in row:
                raise ValueError(f"{file}: {table}: a row lacks {name!r}. Remove the file, and sweep again.")
            as_saved(row[name], annotation, f"{file}: {table}: {name}")
    return found


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        settings: Process, settings and seed, as in the table.
        folder: The folder of its model, probes and metrics.
        status: `"done"` or `"failed"`.
        error: Type and message of the error, if the run failed.
        found: Everything measured, as in its `result.json`.
    """

    settings: dict[str, Any]
    folder: Path
    status: str
    error: str | None
    found: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, found: Mapping[str, Any], folder: Path) -> SweepRun:
        """The run in a folder, from its `result.json`."""
        error = "{type}: {message}".format(**found["error"]) if "error" in found else None
        return cls(dict(found["settings"]), folder, found["status"], error, found)


@dataclass(frozen=True, eq=False, repr=False)
class SweepResult(Value, TableView):
    """All runs of a sweep, done or failed, in the order of its settings."""

    runs: tuple[SweepRun, ...]

    def __len__(self) -> int:
        return len(self.runs)

    @classmethod
    @checked
    def load(cls, out: str | Path) -> SweepResult:
        """The runs in the folder of a sweep, finished or not, in order of process, settings and seed."""
        files = sorted(Path(out).glob(f"*/{RESULT_FILE}"))
        if not files:
            raise FileNotFoundError(f"There is no run of a sweep in {out}: give the folder that sweep(out=…) wrote to.")
        runs = [SweepRun.of(read_result(file), file.parent) for file in files]
        return cls(tuple(sorted(runs, key=lambda run: [_sortable(value) for value in run.settings.values()])))

    @property
    def settings(self) -> tuple[str, ...]:
        """What may differ between runs: the process, the settings given, the seed."""
        return tuple(dict.fromkeys(name for run in self.runs for name in run.settings))

    @property
    def failed(self) -> tuple[SweepRun, ...]:
        """The failed runs: `error` says what went wrong, and their `result.json` has the traceback."""
        return tuple(run for run in self.runs if run.status == "failed")

    @checked
    def to_dataframe(self, rows: Rows = "run") -> pd.DataFrame:
        """The table, with a row for each run, for each of its sites, or for each of its sites and checkpoints.

        A run's row has the scores of the single site that is read best, and the R² of all sites concatenated.

        Raises:
            ValueError: if there are no such rows, or no checkpoints were probed.
        """
        makers = {"run": _of_run, "site": _by_site, "checkpoint": _by_checkpoint}
        table = pd.DataFrame([run.settings | row for run in self.runs for row in makers[rows](run)])
        if rows == "checkpoint" and table.empty:
            raise ValueError("No checkpoints were probed: call sweep(…, emergence=True).")
        return table

    @checked
    def plot(self, x: str, y: str = "R² held out", *, site: str | None = None) -> Figure:
        """One number against one setting: a dot for each run, and a line through the means over seeds.

        Args:
            x: A setting, such as `"d_model"`.
            y: A column of numbers in the table.
            site: A site's label, or `"concatenated"`; by default each run's best single site.

        Raises:
            KeyError: if there is no such setting, column or site.
            ValueError: if no run has a number there.
        """
        from msp_lens.figures.curves import plot_sweep

        table = self.to_dataframe("run" if site is None else "site")
        if site is not None:
            sites = list(dict.fromkeys(table["site"])) if "site" in table else []
            if site not in sites:
                there_are = ", ".join(map(str, sites))
                raise KeyError(f"No site {site!r} in this sweep; it has {there_are}.{meant(site, sites)}")
            table = table.loc[table["site"] == site]
        numbers = [name for name in table.columns if pd.api.types.is_numeric_dtype(table[name])]
        for name, known in ((x, self.settings), (y, numbers)):
            if name not in known or name not in table:
                raise KeyError(f"No {name!r} here; there are {', '.join(known)}.{meant(name, known)}")
        table = table.dropna(subset=[y])
        if table.empty:
            raise ValueError(f"No run has a number for {y!r}: {len(self.failed)} of {len(self)} failed.")
        others = [name for name in self._varying() if name not in (x, "seed")]
        curves: dict[str, tuple[list[Any], list[float]]] = {}
        for row in table.to_dict(orient="records"):
            name = ", ".join(f"{row[other]}" if other == "process" else f"{other} {row[other]}" for other in others)
            places, heights = curves.setdefault(name, ([], []))
            places.append(row[x])
            heights.append(float(row[y]))
        is_error = y in ("regret", "MSE held out", "MSE in-sample")
        return plot_sweep(curves, xlabel=x, ylabel=y if site is None else f"{y} at {site}", is_error=is_error)

    def summary(self) -> list[str]:
        """How many runs were done and failed, and what the numbers are."""
        n_failed = len(self.failed)
        lines = [
            f"{len(self)} runs, {len(self) - n_failed} done, {n_failed} failed. R² and MSE of beliefs held out by "
            "prefix, at each run's best single site; regret in nats, mean over positions."
        ]
        for run in self.failed[:3]:
            settings = ", ".join(f"{name}={value}" for name, value in run.settings.items())
            lines.append(f"Failed: {settings}: {run.error} ({run.folder})")
        return lines

    def _title(self) -> str:
        return "Sweep"

    def _varying(self) -> list[str]:
        return [name for name in self.settings if len({str(run.settings.get(name)) for run in self.runs}) > 1]

    def _display(self) -> pd.DataFrame:
        """A line for each combination of the settings that vary, with means over seeds."""
        table = self.to_dataframe()
        names = [name for name in self._varying() if name != "seed"] or ["process"]
        known = table.columns[table.notna().any()]
        measured = [name for name in ("steer", "placebo", "donor") if name in known]
        lines = []
        key: Any  # A tuple, for a list of names.
        for key, group in table.groupby(names, sort=False, dropna=False):
            done = group.loc[group["status"] == "done"]
            line = dict(zip(names, key, strict=True)) | {"runs": f"{len(done)} of {len(group)}"}
            line["regret"] = _mean(done, "regret", nats_text)
            for column, text in (("R² held out", "{:.4f}"), ("R² concatenated", "{:.4f}"), ("MSE held out", "{:.6f}")):
                line[column] = _mean(done, column, text.format)
            if "skill" in known:
                line["skill"] = skill_text(float(done["skill"].mean()), digits=2)
            line |= {column: _mean(done, column, "{:.2f}".format) for column in measured}
            lines.append(line)
        return pd.DataFrame(lines).set_index(names[0])


def _mean(table: pd.DataFrame, column: str, text: Callable[[float], str]) -> str:
    values = table[column].dropna() if column in table else pd.Series(dtype=float)
    return text(float(np.mean(values))) if len(values) else "–"


def _of_run(run: SweepRun) -> list[dict[str, Any]]:
    row: dict[str, Any] = {"status": run.status, "error": run.error}
    if run.status == "done":
        training, sites = run.found["training"], {each.pop("site"): each for each in _by_site(run)}
        regret, optimum = (float(np.mean(training[name])) for name in ("regret_nats", "optimum_nats"))
        # A belief that never varies has no R².
        scores = {name: each["R² held out"] for name, each in sites.items()}
        single = {name: -math.inf if math.isnan(r2) else r2 for name, r2 in scores.items() if name != "concatenated"}
        best = max(single, key=single.__getitem__)
        row |= {"regret": regret, "loss ratio": 1 + regret / optimum if optimum > 0 else math.nan}
        row |= {"best site": best, **sites[best]}
        if "concatenated" in sites:
            row["R² concatenated"] = scores["concatenated"]
        row |= {"parameters": training["parameters"], "seconds": training["seconds"]}
    return [{**row, "folder": str(run.folder)}]


def _by_site(run: SweepRun) -> list[dict[str, Any]]:
    if run.status != "done":
        return []
    recovered = recoveries(_numbers(row) for row in run.found["interventions"])
    return [
        {"site": each["site"]} | {name: each[name] for name in _COLUMNS} | recovered.get(each["site"], {})
        for each in map(_numbers, run.found["sites"])
    ]


def _by_checkpoint(run: SweepRun) -> list[dict[str, Any]]:
    return [_numbers(row) for row in run.found.get("emergence", [])]


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row from JSON, with NaN for null: what is undefined was written as null."""
    return {key: math.nan if value is None else value for key, value in row.items()}


def _sortable(value: Any) -> tuple[str, float, str]:
    is_number = isinstance(value, int | float)
    return ("number" if is_number else "text", float(value) if is_number else 0.0, str(value))
