"""The probes of one pass with their controls, and the tables of their scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import pandas as pd
import torch
from torch import Tensor

from msp_lens._checks import Share
from msp_lens._files import check_tensors
from msp_lens._names import meant
from msp_lens._tables import TableView, nats_text
from msp_lens._values import Value
from msp_lens.controls.control_scores import Controls, ControlScore
from msp_lens.moments.logistic import ClassScore, LogisticMap, ReliabilityBin, SavedClassScore
from msp_lens.moments.scores import NOTHING_LEFT, HeldOutScore, SavedHeldOut, SavedScore, Score, skill, skill_interval
from msp_lens.probing.belief_probe import BeliefProbe


class SavedIncrement(TypedDict):
    """An `Increment` in a file."""

    site: str
    in_sample: SavedScore
    held_out: SavedHeldOut


@dataclass(frozen=True, eq=False)
class Increment(Value):
    """The scores of a site (its label) together with all sites before it."""

    site: str
    in_sample: Score
    held_out: HeldOutScore


class _SavedReadout(TypedDict):
    site: str
    in_sample: SavedClassScore
    held_out: SavedClassScore


class SavedReadouts(TypedDict):
    """`ClassReadouts` in a file, without their tensors."""

    shares: dict[str, Share]
    readouts: list[_SavedReadout]


@dataclass(frozen=True, eq=False)
class ClassReadout(Value):
    """A logistic read-out of classes at a site (its label), with its scores."""

    site: str
    read_map: LogisticMap
    in_sample: ClassScore
    held_out: ClassScore


@dataclass(frozen=True, eq=False, repr=False)
class ClassReadouts(Value, TableView):
    """The logistic read-outs of a target that is classes, by site.

    Attributes:
        readouts: One for each site or named group of sites.
        shares: How often each class is the true one.
    """

    readouts: tuple[ClassReadout, ...]
    shares: dict[str, float]

    def __getitem__(self, site: str) -> ClassReadout:
        for each in self.readouts:
            if each.site == site:
                return each
        sites = [each.site for each in self.readouts]
        raise KeyError(f"No read-out at {site!r}; there are some at {', '.join(sites)}.{meant(site, sites)}")

    @property
    def entropy(self) -> float:
        """The cross-entropy of predicting each class by its share, in nats."""
        return -sum(share * math.log(share) for share in self.shares.values() if share > 0)

    @property
    def commonest(self) -> tuple[str, float]:
        """The commonest class and its share: the accuracy of predicting it everywhere."""
        return max(self.shares.items(), key=lambda each: each[1])

    @property
    def best(self) -> ClassReadout:
        """The read-out with the lowest cross-entropy, held out."""
        return min(self.readouts, key=lambda each: each.held_out.cross_entropy)

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each site, held out with 95 % intervals, and in-sample; cross-entropy is in nats.

        Beside them what needs no network: the accuracy of the commonest class, the entropy of the classes' shares.
        """
        columns: dict[str, Any] = {}
        for key, name in _CLASS_SCORES.items():
            for rows, kind in (("held_out", "held out"), ("in_sample", "in-sample")):
                columns[f"{name} {kind}"] = [getattr(getattr(each, rows), key) for each in self.readouts]
                if rows == "held_out" and key in ("accuracy", "cross_entropy"):
                    ends = [getattr(each.held_out, f"{key}_interval") for each in self.readouts]
                    columns |= {f"{name} {end}": [pair[k] for pair in ends] for k, end in enumerate(("low", "high"))}
        columns |= {"accuracy of the commonest class": self.commonest[1], "entropy of the shares": self.entropy}
        columns["n"] = [each.in_sample.n for each in self.readouts]
        return pd.DataFrame(columns, index=pd.Index([each.site for each in self.readouts], name="site"))

    def reliability(self, *, in_sample: bool = False) -> pd.DataFrame:
        """How often the most probable class is the true one, by its probability: one row for each site and bin."""
        rows = [
            {"site": each.site, **asdict(found)}
            for each in self.readouts
            for found in (each.in_sample if in_sample else each.held_out).reliability
        ]
        return pd.DataFrame(rows).rename(columns={"share": "share of rows"}).set_index(["site", "low", "high"])

    def best_note(self) -> str:
        """What the best site reads, and what is right without any network."""
        score, (commonest, share) = self.best.held_out, self.commonest
        auc = "" if math.isnan(score.auc) else f", AUC {score.auc:.3f}"
        within = "" if math.isnan(score.accuracy_interval[0]) else f" (95 %: {_percent(score.accuracy_interval)})"
        cost, entropy = nats_text(score.cross_entropy), nats_text(self.entropy)
        return (
            f"Classes, by logistic read-outs (report.classes), held out: at {self.best.site} {score.accuracy:.1%} are "
            f"right{within}, balanced {score.balanced_accuracy:.1%}{auc}, cross-entropy {cost} nats; {commonest!r} "
            f"alone is right for {share:.1%}, and the classes' entropy is {entropy} nats. Calibration error "
            f"{score.calibration_error:.3f}."
        )

    def summary(self) -> list[str]:
        """What the numbers were measured on."""
        n = self.readouts[0].in_sample.n
        return [
            f"{n:,} rows by their weights, on the folds of the report; L2 penalty 1 on standardized features.",
            "Intervals are bootstraps over sets of rows; the read-outs are not fitted again.",
            "Calibration: Σ share of rows × |accuracy - confidence| over 10 bins of equal width of the most probable "
            "class's probability (report.classes.reliability()); above 0 by chance alone where rows are few.",
            self.best_note(),
        ]

    def _title(self) -> str:
        return "Logistic read-outs of classes"

    def _display(self) -> pd.DataFrame:
        table = self.to_dataframe()
        shown = pd.DataFrame(index=table.index)
        for name in ("accuracy", "cross-entropy"):
            shown[f"{name} held out"] = table[f"{name} held out"].map(nats_text)
            ends = zip(table[f"{name} low"], table[f"{name} high"], strict=True)
            shown[f"{name} 95 %"] = [f"{nats_text(a)} to {nats_text(b)}" for a, b in ends]
            shown[f"{name} in-sample"] = table[f"{name} in-sample"].map(nats_text)
        for name in ("balanced accuracy", "AUC", "calibration error"):
            shown[f"{name} held out"] = table[f"{name} held out"].map(nats_text)
        return shown

    def description(self) -> dict[str, Any]:
        """Everything but the tensors, as JSON-ready values."""
        scores = [{key: asdict(getattr(each, key)) for key in ("in_sample", "held_out")} for each in self.readouts]
        sites = [{"site": each.site} for each in self.readouts]
        return {"shares": self.shares, "readouts": [a | b for a, b in zip(sites, scores, strict=True)]}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that `from_parts` needs, by name."""
        maps = [each.read_map for each in self.readouts]
        weights = {f"classes/{k}/weights": each.weights.contiguous() for k, each in enumerate(maps)}
        return weights | {f"classes/{k}/bias": each.bias.contiguous() for k, each in enumerate(maps)}

    @classmethod
    def from_parts(cls, description: SavedReadouts, tensors: Mapping[str, Tensor], path: Path) -> ClassReadouts:
        """Rebuild the read-outs from a file's `description()` and `tensors()`; `ValueError` if they do not fit."""
        names, found = tuple(description["shares"]), []
        for k, each in enumerate(description["readouts"]):
            weights, bias = f"classes/{k}/weights", f"classes/{k}/bias"
            check_tensors(tensors, {weights: (None, len(names)), bias: (len(names),)}, path, dtype=torch.float64)
            scores = {key: _class_score(each[key]) for key in ("in_sample", "held_out")}
            read_map = LogisticMap(tensors[weights], tensors[bias], names)
            found.append(ClassReadout(each["site"], read_map, **scores))
        return cls(tuple(found), description["shares"])


# The scores of a table of read-outs, by the field of `ClassScore`.
_CLASS_SCORES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auc": "AUC",
    "cross_entropy": "cross-entropy",
    "calibration_error": "calibration error",
}


def _percent(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.1%} to {interval[1]:.1%}"


def _class_score(saved: SavedClassScore) -> ClassScore:
    numbers: Any = {key: math.nan if value is None else value for key, value in saved.items()}
    for key in ("accuracy_interval", "cross_entropy_interval"):
        numbers[key] = tuple(math.nan if end is None else end for end in numbers[key])
    return ClassScore(**(numbers | {"reliability": tuple(ReliabilityBin(**each) for each in saved["reliability"])}))


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
        raise KeyError(f"No probe for {site!r} in this report; it has {', '.join(self)}.{meant(site, self)}")

    def __iter__(self) -> Iterator[str]:
        return (probe.label for probe in self.probes)

    def __len__(self) -> int:
        return len(self.probes)

    @property
    def whole(self) -> str:
        """What is read, as it is called beside its parts: `"belief"`, or your own target's name."""
        read = self.probes[0].reads
        return read.kind if read.is_belief else read.name

    @property
    def best_site(self) -> BeliefProbe:
        """The single-site probe with the highest held-out R²; the first, if R² is not defined.

        Raises:
            ValueError: if every probe reads several sites at once.
        """
        single = [probe for probe in self.probes if len(probe.sites) == 1]
        if not single:
            raise ValueError(f"Every probe reads several sites at once ({', '.join(self)}): name one of them.")
        scored = [probe for probe in single if not math.isnan(probe.scores.held_out.r2)]
        return max(scored or single[:1], key=lambda probe: probe.scores.held_out.r2)

    def skill(self, site: str) -> float:
        """The share of what the best control leaves unexplained that the site's probe explains, held out.

        Negative if the control explains more. NaN if there are no controls other than shuffled beliefs.
        """
        probe = self[site]
        best, held_out = self.controls.best(probe.label), probe.scores.held_out
        return math.nan if best is None else skill(held_out.mse, best.held_out.mse, held_out.variance)

    def skill_interval(self, site: str) -> tuple[float, float]:
        """95 % interval of the skill over groups of rows; networks of other seeds may differ by far more."""
        best = self.controls.best(self[site].label)
        return (math.nan, math.nan) if best is None else skill_interval(self[site].scores.held_out, best.held_out)

    def beyond(self, site: str, rival: str) -> float:
        """The share of what a rival leaves unexplained that the activations add, held out.

        NaN if it was not measured, or if the rival leaves less than a millionth of the variance: then the two accounts
        cannot be told apart.
        """
        scores = self[site].scores.rival(rival)
        alone = next((each for each in self.controls.rivals if each.name == rival), None)
        if scores is None or alone is None:
            return math.nan
        joint, left = scores.beside, alone.held_out.mse
        return 1 - joint.mse / left if left > NOTHING_LEFT * joint.variance else math.nan

    def beyond_next_token(self, site: str) -> float:
        """The share of what next-token probabilities leave unexplained that the activations add; see `beyond`."""
        return self.beyond(site, "next token")

    def best_rival(self) -> ControlScore | None:
        """The rival that explains most of the belief, held out; `None` if there is none."""
        scored = [each for each in self.controls.rivals if not math.isnan(each.held_out.r2)]
        return max(scored, key=lambda each: each.held_out.r2, default=None)

    def rivals(self) -> pd.DataFrame:
        """Which account each site follows: how well it reads the belief, and how well each rival; held out.

        One row for each site and rival. A first layer that only adds evidence up reads the constrained belief better
        than the true one; later layers should read the true one better. A site follows what it reads better; "–" where
        the rival determines the belief, so that the two cannot be told apart.
        """
        rows = []
        for probe in self.probes:
            for each in probe.scores.rivals:
                alone = next((found for found in self.controls.rivals if found.name == each.name), None)
                follows = "belief" if probe.scores.held_out.r2 > each.held_out.r2 else "rival"
                # Where each follows from the other, their R² differ by how they weigh directions.
                is_told_apart = alone is not None and alone.held_out.r2 < 1 - NOTHING_LEFT
                row = {
                    "site": probe.label,
                    "rival": each.name,
                    "R² of the belief": probe.scores.held_out.r2,
                    "R² of the rival": each.held_out.r2,
                    "low": each.held_out.r2_interval[0],
                    "high": each.held_out.r2_interval[1],
                    "R² of the rival in-sample": each.in_sample.r2,
                    "follows": follows if is_told_apart else "–",
                    "R² of the belief from the rival": alone.held_out.r2 if alone else math.nan,
                    "beyond the rival": self.beyond(probe.label, each.name),
                    "n": each.in_sample.n,
                }
                rows.append(row)
        columns = pd.Index(["site", "rival"]) if not rows else None
        return pd.DataFrame(rows, columns=columns).set_index(["site", "rival"])

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
                "skill low": self.skill_interval(probe.label)[0],
                "skill high": self.skill_interval(probe.label)[1],
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
