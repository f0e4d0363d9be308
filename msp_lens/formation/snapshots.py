"""Snapshots: what was found at each checkpoint of a training, and the table of all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from msp_lens._names import meant
from msp_lens._values import Value
from msp_lens.interventions.intervention_report import InterventionReport
from msp_lens.probing.probe_report import ProbeReport


@dataclass(frozen=True, eq=False)
class Snapshot(Value):
    """One checkpoint.

    Attributes:
        step: Number of optimizer steps made.
        tokens: Number of tokens seen; `None` if nobody said.
        report: Probes of every site and of their concatenation, and the regret; without the model, words and moments.
        interventions: What steering did at each site, if it was asked for.
    """

    step: int
    tokens: int | None
    report: ProbeReport = field(repr=False)
    interventions: InterventionReport | None = field(default=None, repr=False)

    @property
    def regret(self) -> float:
        """Mean regret over positions, in nats; NaN if the model gave no logits."""
        return float(self.report.regret.mean()) if self.report.regret is not None else math.nan


def recoveries(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """By site, what steering, the placebo and the donor recovered, from the rows of `intervene(…, edits="steer")`."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        columns = found.setdefault(row["site"], {})
        if row["edit"] in ("steer", "placebo", "donor"):
            columns[row["edit"]] = row["recovery"]
        if row["edit"] == "steer":
            columns["used"] = row["above_placebo"]
    return found


def snapshot_table(snapshots: Sequence[Snapshot]) -> pd.DataFrame:
    """One row for each checkpoint and site; `Emergence.to_dataframe`."""
    rows = []
    for snapshot in snapshots:
        report, steered = snapshot.report, snapshot.interventions
        recovered = recoveries(steered.to_dataframe().to_dict("records")) if steered is not None else {}
        for label, found in report.items():
            held_out, in_sample = found.scores.held_out, found.scores.in_sample
            row = {"step": snapshot.step, "tokens": snapshot.tokens, "site": label, "regret": snapshot.regret}
            row |= {"R² held out": held_out.r2, "R² in-sample": in_sample.r2}
            row |= {"MSE held out": held_out.mse, "MSE in-sample": in_sample.mse}
            row |= {"skill": report.skill(label), "n": in_sample.n}
            rows.append(row | recovered.get(label, {}))
    return pd.DataFrame(rows)


def over_training(snapshots: Sequence[Snapshot], column: str, *sites: str) -> pd.DataFrame:
    """One column of the table, a row for each checkpoint and a column for each site; `Emergence.over_training`."""
    table, probes = snapshot_table(snapshots), snapshots[0].report
    numbers = [name for name in table.columns if name not in ("step", "tokens", "site")]
    if column not in numbers:
        raise KeyError(f"No column {column!r} in this table; it has {', '.join(numbers)}.{meant(column, numbers)}")
    wide = table.pivot(index="step", columns="site", values=column)
    return wide.loc[:, [probes[site].label for site in sites] or list(probes)]


def curve(snapshots: Sequence[Snapshot], column: str, site: str) -> list[float]:
    """One column of the table at one site, a number for each checkpoint."""
    return over_training(snapshots, column, site).iloc[:, 0].tolist()


def count_text(tokens: int | None) -> str:
    """A number of tokens for people to read: 2,560, 410 K, 2.6 M, or a dash."""
    if tokens is None:
        return "–"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if tokens >= 10 * size or (tokens >= size and size > 1e3):
            return f"{tokens / size:.3g} {unit}"
    return f"{tokens:,}"
