"""What became of beliefs over a run: a row for each checkpoint and site, curves, and the movie."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from scipy import stats

from msp_lens._tables import skill_text, to_html, to_text
from msp_lens.data import BeliefDataset
from msp_lens.interventions.intervention_report import InterventionReport
from msp_lens.models.model_files import model_fingerprint
from msp_lens.probing.belief_probe import read_beliefs
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.processes.process import Process
from msp_lens.training.checkpoints import SavedCheckpoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.movie import Movie
    from msp_lens.figures.style import ThemeName

# What is left of the first checkpoint's MSE where beliefs begin to be read, and to be read in detail.
COARSE, DETAIL = 0.5, 0.1
# On the scale from placebo to donor, where they begin to be used.
USED = 0.5
MANY_PANELS = 4


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One checkpoint.

    Attributes:
        step: Optimizer steps made.
        tokens: Tokens seen.
        report: Probes of every site and their concatenation, without model, words and moments; with the regret.
        interventions: What steering did at each site, where it was asked for.
    """

    step: int
    tokens: int
    report: ProbeReport = field(repr=False)
    interventions: InterventionReport | None = field(default=None, repr=False)

    @property
    def regret(self) -> float:
        """Mean over positions, in nats; NaN where the model gave no logits."""
        return float(self.report.regret.mean()) if self.report.regret is not None else math.nan


@dataclass(frozen=True, eq=False)
class Emergence:
    """Checkpoints of one run, probed on the same words; `emergence` makes it.

    Attributes:
        snapshots: What was found, in the order of training.
        provenance: Process, weighting, words, seed.
        checkpoints: Where the models are, for the movie.
        dataset: The words (not saved).
    """

    snapshots: tuple[Snapshot, ...]
    provenance: dict[str, Any]
    checkpoints: tuple[SavedCheckpoint, ...] = field(default=(), repr=False)
    dataset: BeliefDataset | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.snapshots)

    @property
    def sites(self) -> tuple[str, ...]:
        """Labels of what was probed, in the order of the forward pass; perhaps `"concatenated"` last."""
        return tuple(self.snapshots[0].report)

    @property
    def best_site(self) -> str:
        """The single site with the highest held-out R² at the last checkpoint."""
        return self.snapshots[-1].report.best_site.label

    @property
    def process(self) -> Process:
        """Whose beliefs were read."""
        return Process.from_dict(self.provenance["process"])

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each checkpoint and site.

        R² against the variance over all coordinates, MSE per coordinate, regret in nats as a mean over positions. Where
        beliefs were written: the share of KL to the target's optimum that `steer`, `placebo` and `donor` recover, and
        `used`, steering's on a scale from the placebo (0) to the donor (1); NaN where there was nothing to recover.
        """
        rows = []
        for snapshot in self.snapshots:
            report = snapshot.report
            steered = _recoveries(snapshot.interventions)
            for label, found in report.items():
                scores = found.scores
                row = {
                    "step": snapshot.step,
                    "tokens": snapshot.tokens,
                    "site": label,
                    "regret": snapshot.regret,
                    "R² held out": scores.held_out.r2,
                    "R² in-sample": scores.in_sample.r2,
                    "MSE held out": scores.held_out.mse,
                    "MSE in-sample": scores.in_sample.mse,
                    "skill": report.skill(label),
                    "n": scores.in_sample.n,
                }
                rows.append(row | steered.get(label, {}))
        return pd.DataFrame(rows)

    def over_training(self, column: str, *sites: str) -> pd.DataFrame:
        """One column of the table, a row a checkpoint (by step) and a column a site.

        Args:
            column: `"R² held out"`, `"MSE held out"`, `"skill"`, `"steer"`, …
            sites: Labels; all by default.

        Raises:
            KeyError: if there is no such column or site.
        """
        table = self.to_dataframe()
        numbers = [name for name in table.columns if name not in ("step", "tokens", "site")]
        if column not in numbers:
            raise KeyError(f"No column {column!r} in this table; it has {', '.join(numbers)}.")
        wide = table.pivot(index="step", columns="site", values=column)
        return wide.loc[:, [self._label(site) for site in sites] if sites else list(self.sites)]

    def regret_by_position(self) -> pd.DataFrame:
        """Regret in nats at each position, a row a checkpoint (by step).

        Raises:
            ValueError: if the model gave no logits.
        """
        rows = {}
        for each in self.snapshots:
            if each.report.regret is None:
                raise ValueError("The model gave no logits over the process's tokens, so its regret is not known.")
            rows[each.step] = each.report.regret.tolist()
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis(index="step", columns="position")

    def onset(self, column: str, threshold: float, site: str | None = None) -> int | None:
        """The first step from which on a column stays at or above a threshold; `None` if it does not at the end.

        Args:
            column: A column of the table, `"R² held out"` or `"used"` for instance.
            threshold: What it must reach.
            site: Where; by default the single site that is read best at the end.

        Raises:
            KeyError: if there is no such column or site.
        """
        return self._since([bool(value >= threshold) for value in self._curve(column, site or self.best_site)])

    def rank_correlation(self, site: str | None = None, *, in_sample: bool = False) -> float:
        """Spearman's rank correlation of regret and MSE over the checkpoints: 1 where they fall together.

        NaN for fewer than three checkpoints, and where the regret is not known.

        Source: Shai et al. 2024 (arXiv 2405.15943), figure S2.
        """
        error = self._curve(f"MSE {_scored(in_sample)}", site or self.best_site)
        regret = [each.regret for each in self.snapshots]
        if len(error) < 3 or any(map(math.isnan, regret)) or len(set(error)) == 1 or len(set(regret)) == 1:
            return math.nan
        return float(stats.spearmanr(regret, error).statistic)  # pyright: ignore[reportAttributeAccessIssue]

    def plot(self, *sites: str, in_sample: bool = False, theme: ThemeName = "light") -> Figure:
        """R² and MSE of beliefs at each site, and the regret, over the tokens seen; all sites by default."""
        from msp_lens.figures.formation_curves import plot_emergence

        scored = _scored(in_sample)
        r2, mse = (self._curves(f"{score} {scored}", sites) for score in ("R²", "MSE"))
        return plot_emergence(self._tokens, r2, mse, self._regrets, scored=scored, theme=theme)

    def plot_regret(self, *sites: str, in_sample: bool = False) -> Figure:
        """Regret against the MSE of beliefs, a point a checkpoint; by default the best site and the concatenation."""
        from msp_lens.figures.formation_curves import plot_regret_against_error

        chosen = sites or tuple(site for site in dict.fromkeys((self.best_site, "concatenated")) if site in self.sites)
        scored = _scored(in_sample)
        mse = self._curves(f"MSE {scored}", chosen)
        return plot_regret_against_error(self._tokens, self._regrets, mse, scored=scored)

    def plot_use(self, *sites: str) -> Figure:
        """When beliefs can be read, and when writing them begins to steer; by default the last four sites.

        Raises:
            ValueError: if no beliefs were written.
        """
        from msp_lens.figures.formation_curves import plot_use

        steered = self.snapshots[0].interventions
        if steered is None:
            raise ValueError("No beliefs were written: call emergence(…, interventions=True).")
        chosen = sites or tuple(steered.values("site"))[-MANY_PANELS:]
        columns = ("R² held out", "steer", "placebo", "donor")
        return plot_use(self._tokens, *(self._curves(column, chosen) for column in columns))

    def movie(self, *sites: str, device: str = "cpu", batch_size: int | None = None) -> Movie:
        """The represented beliefs at every checkpoint beside the true ones: the fractal as it forms.

        Each checkpoint's own probes map its activations to beliefs, and all frames share the true beliefs' projection.
        Runs every model once more over the words.

        Args:
            sites: A panel each; by default the single site that is read best at the end.
            device: Where the models go.
            batch_size: Words in one forward pass.

        Raises:
            KeyError: if a site was not probed.
            ValueError: if the checkpoints have changed since, or this was loaded without its words.
        """
        from msp_lens.figures.movie import Progress, beliefs_movie

        chosen = [self._label(site) for site in sites] or [self.best_site]
        if self.dataset is None or len(self.checkpoints) != len(self):
            raise ValueError(
                "There are no words or models to run: load with Emergence.load(folder, checkpoints=…, dataset=…)."
            )
        represented: dict[str, list] = {f"represented at {site}": [] for site in chosen}
        for saved, snapshot in zip(self.checkpoints, self.snapshots, strict=True):
            model = saved.load(device=device).model
            if model_fingerprint(model) != snapshot.report.provenance["model_fingerprint"]:
                raise ValueError(f"{saved.path} has changed since it was probed: call emergence() again.")
            probes = [snapshot.report[site] for site in chosen]
            read = read_beliefs(model, self.dataset, probes, batch_size=batch_size)
            for frames, beliefs in zip(represented.values(), read, strict=True):
                frames.append(beliefs)
        error = self._curve("MSE held out", chosen[0])
        curves = {"MSE of beliefs": error} | (
            {} if any(map(math.isnan, self._regrets)) else {"regret (nats)": self._regrets}
        )
        captions = []
        for each in self.snapshots:
            r2 = each.report[chosen[0]].scores.held_out.r2
            captions.append(f"step {each.step:,}    {_count(each.tokens)} tokens    R² {r2:.4f}")
        return beliefs_movie(
            self.dataset.prefix_beliefs,
            represented,
            captions,
            weights=self.dataset.prefix_weights(self.provenance["weighting"]),
            states=self.dataset.process.states,
            progress=Progress(self._tokens, curves),
            title=f"{self.dataset.process.name}: beliefs forming",
        )

    def save(self, folder: str | Path) -> Path:
        """Write everything but the models and words to a folder: the probes of each checkpoint, and `emergence.json`.

        The JSON is written last, so that a folder that has one is whole.
        """
        from msp_lens.formation.emergence_files import save_emergence

        return save_emergence(self, folder)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        checkpoints: Sequence[SavedCheckpoint] | None = None,
        dataset: BeliefDataset | None = None,
    ) -> Emergence:
        """Load what `save` wrote.

        Args:
            folder: Where it was written.
            checkpoints: The models, where they have moved.
            dataset: The words, where they were given and not made; for the movie.

        Raises:
            FileNotFoundError: if the folder holds none.
        """
        from msp_lens.formation.emergence_files import load_emergence

        return load_emergence(folder, checkpoints=checkpoints, dataset=dataset)

    def summary(self) -> list[str]:
        """What the numbers are, what they say, and what they do not prove."""
        given, last = self.provenance, self.snapshots[-1]
        words = "every possible word" if given["is_population"] else "sampled words"
        n_checkpoints = f"{len(self)} checkpoint" + ("s" if len(self) > 1 else "")
        lines = [
            f"{n_checkpoints} of {given['process']['name']}, each probed on the same {given['words']:,} words of "
            f"{given['n_ctx']} tokens ({words}), weighted by {given['weighting']}. Held out by prefix; regret is "
            "E KL(optimal ‖ model), nats, the mean over positions."
        ]
        best = self.best_site
        error = self._curve("MSE held out", best)
        left = [
            f"{share:g} of that from step {since:,} on"
            for share in (COARSE, DETAIL)
            if (since := self._since([bool(each <= share * error[0]) for each in error])) is not None
        ]
        lines.append(
            f"MSE at {best} is {error[0]:.2g} at step {self.snapshots[0].step:,}"
            + "".join(f", {each}" for each in left)
            + f", and {error[-1]:.2g} at step {last.step:,}."
        )
        if not math.isnan(together := self.rank_correlation(best)):
            lines.append(f"Regret and MSE over the checkpoints: Spearman's rank correlation {together:.2f} at {best}.")
        if last.interventions is not None:
            used = self.onset("used", USED, best)
            says = f"from step {used:,} on" if used is not None else "not at the end"
            lines.append(
                f"Used: steering at {best} recovers half or more of what lies between a placebo and a donor {says}."
            )
        if self.snapshots[0].step == 0:
            untrained = self.snapshots[0].report[best].scores.held_out.r2
            lines.append(f"An R² means little alone: at {best} the untrained network of step 0 has {untrained:.3f}.")
        return lines

    def __repr__(self) -> str:
        return to_text(self._display(), title=self._title(), notes=self.summary())

    def _repr_html_(self) -> str:
        return to_html(self._display(), title=self._title(), notes=self.summary())

    def _title(self) -> str:
        return f"Emergence of beliefs: {self.process.name}"

    def _display(self) -> pd.DataFrame:
        """A line for each checkpoint: the site that is best at the end, and all sites together."""
        shown = pd.DataFrame(index=pd.Index([f"{each.step:,}" for each in self.snapshots], name="step"))
        shown["tokens"] = [_count(each.tokens) for each in self.snapshots]
        shown["regret"] = [f"{each.regret:.5f}" for each in self.snapshots]
        best = self.best_site
        shown[f"R² {best}"] = [f"{r2:.4f}" for r2 in self._curve("R² held out", best)]
        shown["in-sample"] = [f"{r2:.4f}" for r2 in self._curve("R² in-sample", best)]
        shown["MSE"] = [f"{mse:.6f}" for mse in self._curve("MSE held out", best)]
        skill = self._curve("skill", best)
        if not all(map(math.isnan, skill)):
            shown["skill"] = list(map(skill_text, skill))
        if "concatenated" in self.sites:
            shown["R² all sites"] = [f"{r2:.4f}" for r2 in self._curve("R² held out", "concatenated")]
        if self.snapshots[0].interventions is not None:
            for name in ("steer", "placebo", "donor"):
                shown[name] = [f"{share:.2f}" for share in self._curve(name, best)]
        return shown

    def _since(self, holds: Sequence[bool]) -> int | None:
        """The first step from which on something holds."""
        always = list(itertools.accumulate(reversed(holds), lambda later, now: later and now))
        return self.snapshots[-sum(always)].step if always[0] else None

    def _label(self, site: str) -> str:
        return self.snapshots[0].report[site].label

    def _curves(self, column: str, sites: Sequence[str]) -> dict[str, list[float]]:
        wide = self.over_training(column, *sites)
        return {str(site): wide[site].tolist() for site in wide.columns}

    def _curve(self, column: str, site: str) -> list[float]:
        return self.over_training(column, site).iloc[:, 0].tolist()

    @property
    def _tokens(self) -> list[int]:
        return [each.tokens for each in self.snapshots]

    @property
    def _regrets(self) -> list[float]:
        return [each.regret for each in self.snapshots]


def _scored(in_sample: bool) -> str:
    return "in-sample" if in_sample else "held out"


def _recoveries(report: InterventionReport | None) -> dict[str, dict[str, float]]:
    """By site: what steering and its references recovered."""
    found: dict[str, dict[str, float]] = {}
    for result in report.table.to_dict("records") if report else ():
        columns = found.setdefault(result["site"], {})
        if result["edit"] in ("steer", "placebo", "donor"):
            columns[result["edit"]] = result["recovery"]
        if result["edit"] == "steer":
            columns["used"] = result["above_placebo"]
    return found


def _count(tokens: int) -> str:
    """A number of tokens as one reads it: 2,560, 410 K, 2.6 M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if tokens >= 10 * size or (tokens >= size and size > 1e3):
            return f"{tokens / size:.3g} {unit}"
    return f"{tokens:,}"
