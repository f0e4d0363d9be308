"""The probes of one pass with their controls, and the tables of their scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypedDict

import pandas as pd

from msp_lens.moments.scores import NOTHING_LEFT, HeldOutScore, SavedHeldOut, SavedScore, Score, skill
from msp_lens.probing.belief_probe import BeliefProbe
from msp_lens.probing.controls import Controls


class SavedIncrement(TypedDict):
    """An `Increment` in a file."""

    site: str
    in_sample: SavedScore
    held_out: SavedHeldOut


@dataclass(frozen=True)
class Increment:
    """The scores of a site (its label) together with all sites before it."""

    site: str
    in_sample: Score
    held_out: HeldOutScore


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ProbeTables(Mapping[str, BeliefProbe]):
    """Probes by site with their controls: a mapping, and tables of scores.

    Attributes:
        probes: The probes, in the order of the forward pass.
        controls: The controls, scored on the same rows and folds.
        cumulative: The scores of each site together with all sites before it.
    """

    probes: tuple[BeliefProbe, ...]
    controls: Controls = field(default_factory=Controls)
    cumulative: tuple[Increment, ...] = ()

    def __getitem__(self, site: str) -> BeliefProbe:
        for probe in self.probes:
            if site == probe.label or (len(probe.sites) == 1 and site == probe.sites[0]):
                return probe
        raise KeyError(f"No probe for {site!r} in this report; it has {', '.join(self)}.")

    def __iter__(self) -> Iterator[str]:
        return (probe.label for probe in self.probes)

    def __len__(self) -> int:
        return len(self.probes)

    @property
    def best_site(self) -> BeliefProbe:
        """The single-site probe with the highest held-out R²."""
        return max((p for p in self.probes if len(p.sites) == 1), key=lambda p: p.scores.held_out.r2)

    def skill(self, site: str) -> float:
        """The share of what the best control leaves unexplained that the site's probe explains, held out.

        Negative if the control explains more. NaN if there are no controls other than shuffled beliefs.
        """
        probe = self[site]
        best, held_out = self.controls.best(probe.label), probe.scores.held_out
        return math.nan if best is None else skill(held_out.mse, best.held_out.mse, held_out.variance)

    def beyond_next_token(self, site: str) -> float:
        """The share of what next-token probabilities leave unexplained that the activations add, held out.

        NaN if it was not measured, or if next-token probabilities leave less than a millionth of the variance: then
        the two accounts cannot be told apart.
        """
        joint, rival = self[site].scores.with_next_token, self.controls.rival
        if joint is None or rival is None:
            return math.nan
        left = rival.held_out.mse
        return 1 - joint.mse / left if left > NOTHING_LEFT * joint.variance else math.nan

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each probe. R² is relative to the variance over all coordinates, MSE is per coordinate."""
        rows = []
        for probe in self.probes:
            scores, best = probe.scores, self.controls.best(probe.label)
            row = {
                "site": probe.label,
                "R² held out": scores.held_out.r2,
                "low": scores.held_out.r2_interval[0],
                "high": scores.held_out.r2_interval[1],
                "R² in-sample": scores.in_sample.r2,
                "R² shuffled": scores.shuffled.r2 if scores.shuffled else math.nan,
                "R² shuffled held out": scores.shuffled_held_out.r2 if scores.shuffled_held_out else math.nan,
                "R² best control": best.held_out.r2 if best else math.nan,
                "best control": best.name if best else None,
                "skill": self.skill(probe.label),
                "beyond next token": self.beyond_next_token(probe.label),
                "MSE held out": scores.held_out.mse,
                "MSE in-sample": scores.in_sample.mse,
                "RMSE in-sample": scores.in_sample.rmse,
                "features": sum(probe.widths),
                "rank": probe.read_map.rank,
                "solver": scores.solver,
                "n": scores.in_sample.n,
                "hook": probe.sites[0] if len(probe.sites) == 1 else f"{len(probe.sites)} sites",
            }
            rows.append(row)
        return pd.DataFrame(rows).set_index("site")

    def by_position(self, *, own: bool = False) -> pd.DataFrame:
        """Held-out R² at each position, relative to the variance of beliefs there; one row for each probe.

        Args:
            own: Score probes that were fitted at each position separately, instead of the probe of all positions.

        Raises:
            ValueError: if it was not measured.
        """
        found = {p.label: p.scores.by_position_own if own else p.scores.by_position for p in self.probes}
        if not all(found.values()):
            option = "by_position='own'" if own else "by_position=True"
            raise ValueError(f"Positions were not scored{' separately' if own else ''}: probe with {option}.")
        rows = {label: [score.r2 for score in scores] for label, scores in found.items()}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis(index="site", columns="position")

    def by_rank(self, *, in_sample: bool = False) -> pd.DataFrame:
        """R² of reduced-rank regression by rank, held out or in-sample; one row for each probe."""
        found = {p.label: p.scores.by_rank_in_sample if in_sample else p.scores.by_rank for p in self.probes}
        rows = {label: [score.r2 for score in scores] for label, scores in found.items()}
        table = pd.DataFrame.from_dict(rows, orient="index")
        return table.set_axis(range(1, table.shape[1] + 1), axis=1).rename_axis(index="site", columns="rank")

    def increments(self) -> pd.DataFrame:
        """R² of each site together with all sites before it, and by how much the site increases it.

        Raises:
            ValueError: if the sites were not concatenated, or there is only one.
        """
        if not self.cumulative:
            raise ValueError("There are no concatenations: probe two or more sites, with concatenate=True.")
        columns = {
            "R² held out, alone": [self[each.site].scores.held_out.r2 for each in self.cumulative],
            "R² held out, with those before": [each.held_out.r2 for each in self.cumulative],
            "R² in-sample, with those before": [each.in_sample.r2 for each in self.cumulative],
        }
        table = pd.DataFrame(columns, index=pd.Index([each.site for each in self.cumulative], name="site"))
        table["increment held out"] = table["R² held out, with those before"].diff().fillna(table.iloc[0, 1])
        return table

    def by_penalty(self) -> pd.DataFrame:
        """Held-out MSE by penalty, one row for each probe by ridge; biased low at the chosen penalty, the best of them.

        Raises:
            ValueError: if no penalty was chosen.
        """
        rows = {probe.label: dict(probe.scores.mse_by_penalty) for probe in self.probes}
        if not any(rows.values()):
            raise ValueError("No penalty was chosen: probe with solver='ridge', which tries several.")
        rows = {label: found for label, found in rows.items() if found}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis(index="site", columns="penalty")
