"""What an emergence found: the table of all checkpoints, what it says, and the files it is saved to."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pandas as pd
from scipy import stats

from msp_lens._checks import AtLeast, Count, Seed, checked
from msp_lens._files import read_json, write_json
from msp_lens._tables import TableView, nats_text, skill_text
from msp_lens._values import Value
from msp_lens.data import BeliefDataset, Weighting
from msp_lens.formation.emergence_plots import EmergencePlots, scored_text
from msp_lens.formation.series import AtStep
from msp_lens.formation.snapshots import Snapshot, curve, over_training, snapshot_table
from msp_lens.interventions.intervention_report import InterventionReport
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.processes.process import Process
from msp_lens.training.checkpoints import SavedCheckpoint
from msp_lens.training.folder import check_is_folder, owned
from msp_lens.training.regret import evaluation_words

TABLE_FILE = "emergence.json"


class _Provenance(TypedDict):
    process: dict[str, Any]
    weighting: Weighting
    n_ctx: Count
    words: Count
    is_population: bool
    own_dataset: bool
    seed: Seed


class _Snapshot(TypedDict):
    step: Annotated[int, AtLeast(0)]
    tokens: Annotated[int, AtLeast(0)] | None
    interventions: dict[str, Any] | None


class _File(TypedDict):
    step: Annotated[int, AtLeast(0)]
    tokens: Annotated[int, AtLeast(0)] | None
    path: str


class _Saved(TypedDict):
    """What `emergence.json` says."""

    snapshots: list[_Snapshot]
    checkpoints: list[_File]
    provenance: _Provenance


@dataclass(frozen=True, eq=False, repr=False)
class Emergence(Value, TableView):
    """The checkpoints of one training, probed on the same words; `emergence` makes it.

    Attributes:
        snapshots: What was found at each checkpoint, in the order of training.
        provenance: Process, weighting, words and seed.
        checkpoints: The models, for the movie.
        dataset: The words; not saved.
    """

    snapshots: tuple[Snapshot, ...]
    provenance: dict[str, Any]
    checkpoints: tuple[AtStep, ...] = ()
    dataset: BeliefDataset | None = None

    def __len__(self) -> int:
        return len(self.snapshots)

    @property
    def sites(self) -> tuple[str, ...]:
        """Labels of what was probed, in the order of the forward pass, with `"concatenated"` last if it was."""
        return tuple(self.snapshots[0].report)

    @property
    def best_site(self) -> str:
        """The single site with the highest held-out R² at the last checkpoint."""
        return self.snapshots[-1].report.best_site.label

    @property
    def process(self) -> Process:
        """The process whose beliefs were read."""
        return Process.from_dict(self.provenance["process"])

    @property
    def plot(self) -> EmergencePlots:
        """The pictures: `plot()` over training, `plot.regret()`, `plot.use()` and `plot.movie()`."""
        return EmergencePlots(self.snapshots, self.checkpoints, self.dataset, self.provenance["weighting"])

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each checkpoint and site.

        R² is over all coordinates, MSE per coordinate, and regret the mean over positions in nats. With interventions:
        the share of KL to the target's optimum that `steer`, `placebo` and `donor` recover, and `used`, steering's on
        a scale from the placebo (0) to the donor (1); NaN where there was nothing to recover.
        """
        return snapshot_table(self.snapshots)

    @checked
    def over_training(self, column: str, *sites: str) -> pd.DataFrame:
        """One column of the table, a row for each checkpoint (by step) and a column for each site.

        Args:
            column: `"R² held out"`, `"MSE held out"`, `"skill"`, `"steer"`, …; `KeyError` if there is none such.
            sites: Labels; by default all.
        """
        return over_training(self.snapshots, column, *sites)

    def regret_by_position(self) -> pd.DataFrame:
        """Regret in nats at each position, a row for each checkpoint (by step); an error if there were no logits."""
        rows = {}
        for each in self.snapshots:
            if each.report.regret is None:
                raise ValueError("The model gave no logits over the process's tokens, so its regret is not known.")
            rows[each.step] = each.report.regret.tolist()
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis(index="step", columns="position")

    @checked
    def onset(self, column: str, threshold: float, site: str | None = None) -> int | None:
        """The first step from which a column of the table stays at or above a threshold; `None` if it ends below it.

        Args:
            column: Such as `"R² held out"` or `"used"`; `KeyError` if the table has no such column.
            threshold: The value to reach.
            site: A label; by default the single site that is read best at the end.
        """
        return self._since([bool(value >= threshold) for value in self._curve(column, site)])

    @checked
    def rank_correlation(self, site: str | None = None, *, in_sample: bool = False) -> float:
        """Spearman's rank correlation of regret and MSE over the checkpoints: 1 if they fall together, NaN if unknown.

        Source: Shai et al. 2024 (arXiv 2405.15943), figure S2.
        """
        error = self._curve(f"MSE {scored_text(in_sample)}", site)
        regret = [each.regret for each in self.snapshots]
        if len(error) < 3 or any(map(math.isnan, regret)) or len(set(error)) == 1 or len(set(regret)) == 1:
            return math.nan
        return float(stats.spearmanr(regret, error).statistic)  # pyright: ignore[reportAttributeAccessIssue]

    @checked
    def save(self, folder: str | Path) -> Path:
        """Write each checkpoint's probes and `emergence.json` to a folder; the models and words are not saved.

        Raises:
            ValueError: if the folder is a file's name, or another process writes there.
            OSError: if the folder can't be written to.
        """
        folder = Path(folder)
        check_is_folder(folder)
        with owned(folder):
            # The JSON is written last, so a folder that has one is complete.
            for old in (folder / TABLE_FILE, *folder.glob("probes-*.safetensors")):
                old.unlink(missing_ok=True)
            snapshots = []
            for each in self.snapshots:
                each.report.save(folder / _probes_file(each.step))
                steered = each.interventions.to_dict() if each.interventions else None
                snapshots.append({"step": each.step, "tokens": each.tokens, "interventions": steered})
            files = [each for each in self.checkpoints if isinstance(each, SavedCheckpoint)]
            checkpoints = [
                {"step": each.step, "tokens": each.tokens, "path": str(each.path.absolute())} for each in files
            ]
            description = {"snapshots": snapshots, "checkpoints": checkpoints, "provenance": self.provenance}
            write_json(folder / TABLE_FILE, description)
        return folder

    @classmethod
    @checked
    def load(
        cls,
        folder: str | Path,
        *,
        checkpoints: Sequence[SavedCheckpoint] | None = None,
        dataset: BeliefDataset | None = None,
    ) -> Emergence:
        """Load what `save` wrote to a folder.

        Args:
            folder: The folder; `FileNotFoundError` if it holds none.
            checkpoints: The models, if they have moved.
            dataset: The words, if a dataset was given to `emergence`; for the movie.
        """
        path = Path(folder) / TABLE_FILE
        if not path.is_file():
            raise FileNotFoundError(f"There is no {path}: give the folder that Emergence.save(folder) wrote.")
        saved, snapshots = read_json(path, _Saved), []
        provenance = saved["provenance"]
        for each in saved["snapshots"]:
            report = ProbeReport.load(path.parent / _probes_file(each["step"]))
            steered = None
            if each["interventions"] is not None:
                try:
                    steered = InterventionReport.from_dict(each["interventions"])
                except (KeyError, TypeError, ValueError) as error:
                    what = f"{path}: the interventions of step {each['step']} are damaged ({error})"
                    raise ValueError(f"{what}: make them again with emergence(…, interventions=True).") from error
            snapshots.append(Snapshot(each["step"], each["tokens"], report, steered))
        if not snapshots:
            raise ValueError(f"{path} has no snapshots: it is damaged or was edited. Copy or create it again.")
        if checkpoints is None:
            checkpoints = [
                SavedCheckpoint(each["step"], each["tokens"], Path(each["path"])) for each in saved["checkpoints"]
            ]
        if dataset is None and not provenance["own_dataset"]:
            process = Process.from_dict(provenance["process"])
            dataset = evaluation_words(process, provenance["n_ctx"], seed=provenance["seed"])
        return cls(tuple(snapshots), provenance, tuple(checkpoints), dataset)

    def summary(self) -> list[str]:
        """What the numbers are, what they say, and what they do not prove."""
        given, first, last, best = self.provenance, self.snapshots[0], self.snapshots[-1], self.best_site
        which = "every possible word" if given["is_population"] else "sampled words"
        error = self._curve("MSE held out")
        lines = [
            f"{len(self)} checkpoint{'s' * (len(self) > 1)} of {given['process']['name']}, each probed on the same "
            f"{given['words']:,} words of {given['n_ctx']} tokens ({which}), weighted by {given['weighting']}. Held "
            "out by prefix; regret is E KL(optimal ‖ model), nats, the mean over positions.",
            f"MSE at {best} is {error[0]:.2g} at step {first.step:,}",
        ]
        # Half of the first checkpoint's error is left where the coarse shape is there, a tenth where the detail is.
        for share in (0.5, 0.1):
            if (since := self._since([bool(each <= share * error[0]) for each in error])) is not None:
                lines[-1] += f", {share:g} of that from step {since:,} on"
        lines[-1] += f", and {error[-1]:.2g} at step {last.step:,}."
        if not math.isnan(correlation := self.rank_correlation()):
            what = "Spearman's rank correlation of regret and MSE over the checkpoints"
            lines.append(f"{what}: {correlation:.2f} at {best}.")
        if last.interventions is not None:
            used = self.onset("used", 0.5)
            since = f"from step {used:,} on" if used is not None else "not at the end"
            lines.append(f"Steering at {best} recovers at least half of the way from the placebo to the donor {since}.")
        if first.step == 0:
            untrained = first.report[best].scores.held_out.r2
            lines.append(f"An R² means little alone: at {best} the untrained network of step 0 has {untrained:.3f}.")
        return lines

    def _title(self) -> str:
        return f"Emergence of beliefs: {self.process.name}"

    def _display(self) -> pd.DataFrame:
        """A line for each checkpoint: the site that is best at the end, and all sites together."""
        shown = pd.DataFrame(index=pd.Index([f"{each.step:,}" for each in self.snapshots], name="step"))
        if any(each.tokens is not None for each in self.snapshots):
            shown["tokens"] = ["–" if each.tokens is None else f"{each.tokens:,}" for each in self.snapshots]
        shown["regret"] = list(map(nats_text, self._curve("regret")))
        columns = {
            f"R² {self.best_site}": ("R² held out", 4),
            "in-sample": ("R² in-sample", 4),
        }
        for heading, (column, digits) in {**columns, "MSE": ("MSE held out", 6)}.items():
            shown[heading] = [f"{value:.{digits}f}" for value in self._curve(column)]
        skill = self._curve("skill")
        if not all(map(math.isnan, skill)):
            shown["skill"] = list(map(skill_text, skill))
        if "concatenated" in self.sites:
            shown["R² all sites"] = [f"{r2:.4f}" for r2 in self._curve("R² held out", "concatenated")]
        if self.snapshots[0].interventions is not None:
            for name in ("steer", "placebo", "donor"):
                shown[name] = [f"{share:.2f}" for share in self._curve(name)]
        return shown

    def _since(self, holds: Sequence[bool]) -> int | None:
        """The first step from which something holds to the end."""
        lasting = list(itertools.takewhile(bool, reversed(holds)))
        return self.snapshots[-len(lasting)].step if lasting else None

    def _curve(self, column: str, site: str | None = None) -> list[float]:
        return curve(self.snapshots, column, site or self.best_site)


def _probes_file(step: int) -> str:
    return f"probes-{step:08d}.safetensors"
