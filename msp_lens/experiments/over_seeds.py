"""How much a run's scores depend on its seed: the same network trained again from other seeds, and probed alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from msp_lens._tables import TableView, json_records, nats_text
from msp_lens._values import Value
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.training.training_run import TrainingRun

SCORES = ("R² held out", "MSE held out", "skill")


@dataclass(frozen=True, eq=False, repr=False)
class OverSeeds(Value, TableView):
    """The scores of networks that differ in their seed alone.

    Attributes:
        seeds: The seeds, of weights, data and probes.
        rows: For each seed and site: seed, site, mean regret in nats, and scores.
    """

    seeds: tuple[int, ...]
    rows: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, runs: list[tuple[TrainingRun, ProbeReport]]) -> OverSeeds:
        """From each training and its probes."""
        rows = []
        for trained, report in runs:
            shared = {"seed": trained.seed, "regret": float(trained.regret.mean())}
            for label, probe in report.items():
                held_out = probe.scores.held_out
                scores = dict(zip(SCORES, (held_out.r2, held_out.mse, report.skill(label)), strict=True))
                rows.append({**shared, "site": label, **scores})
        return cls(tuple(trained.seed for trained, _ in runs), tuple(rows))

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each seed and site."""
        return pd.DataFrame(list(self.rows))

    def spread(self) -> pd.DataFrame:
        """One row for each site and score: mean, standard deviation (n - 1), lowest and highest over the seeds.

        NaN where a score was not measured, and the standard deviation of one seed.
        """
        rows = []
        for site, group in self.to_dataframe().groupby("site", sort=False):
            for score in (*SCORES, "regret"):
                values = group[score]
                numbers = {"mean": values.mean(), "std": values.std(), "lowest": values.min(), "highest": values.max()}
                rows.append({"site": site, "score": score, **numbers})
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """The seeds, each one's scores, and their spread, as JSON-ready values; undefined numbers are `None`."""
        tables = {"rows": self.to_dataframe(), "spread": self.spread()}
        return {"seeds": list(self.seeds)} | {
            name: json_records(table.to_dict("records")) for name, table in tables.items()
        }

    def summary(self) -> list[str]:
        """What the numbers are."""
        regrets = self.to_dataframe().groupby("seed")["regret"].first().to_numpy()
        lowest, highest = map(nats_text, (regrets.min(), regrets.max()))
        named = ", ".join(map(str, self.seeds))
        return [
            f"{len(self.seeds)} networks, trained from the seeds {named} and probed alike: the mean over them ± the "
            "standard deviation, and from the lowest to the highest. A difference between sites or runs that is "
            f"smaller than this spread says nothing. Mean regret {lowest} to {highest} nats."
        ]

    def _title(self) -> str:
        return "Over seeds"

    def _display(self) -> pd.DataFrame:
        spread = self.spread().set_index(["site", "score"])
        sites = list(dict.fromkeys(row["site"] for row in self.rows))
        columns = {"R² held out": 4, "skill": 2}
        lines = {site: {} for site in sites}
        for site, line in lines.items():
            for score, digits in columns.items():
                found = spread.loc[(site, score)]
                known = not math.isnan(found["mean"])
                line[score] = f"{found['mean']:.{digits}f} ± {found['std']:.{digits}f}" if known else "–"
                ends = f"{found['lowest']:.{digits}f} to {found['highest']:.{digits}f}"
                line[f"{score}, range"] = ends if known else "–"
        return pd.DataFrame.from_dict(lines, orient="index").rename_axis(index="site")
