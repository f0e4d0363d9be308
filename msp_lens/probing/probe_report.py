"""The report of a probing: probes and controls, what they were measured on, and the notes under the table."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, get_type_hints

import pandas as pd
from jaxtyping import Float64
from torch import Tensor

from msp_lens._checks import Count, Seed
from msp_lens._files import check_tensors, parsed_json, read_entry, read_tensors, without_nan, write_tensors
from msp_lens._tables import TableView, json_records, skill_text
from msp_lens.data import BeliefDataset, TokenMap, all_words, sampled_words
from msp_lens.models.hooked import HookedModel
from msp_lens.models.model_files import model_fingerprint
from msp_lens.moments.scores import from_json
from msp_lens.probing.belief_probe import BeliefProbe, SavedProbe
from msp_lens.probing.controls import Controls, ControlScore, SavedControl, interval_text
from msp_lens.probing.geometry import Distances, Geometry, distances, geometry
from msp_lens.probing.probe_plots import ProbePlots
from msp_lens.probing.probe_tables import Increment, ProbeTables, SavedIncrement
from msp_lens.processes.process import Process


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ProbeReport(TableView, ProbeTables):
    """Probes by site, in the order of the forward pass; the last one reads all sites concatenated.

    A mapping: `report["blocks.3.hook_resid_post"]`, `report["3_post"]`, `report["concatenated"]`.

    Attributes:
        probes: The probes.
        controls: The controls, scored on the same rows and folds.
        cumulative: The scores of each site together with all sites before it.
        regret: E KL(optimal next token ‖ model's) at each position, in nats; `None` if the model gave no logits.
        provenance: Process, weighting, split, number of words, fingerprints, seed.
        model: The model that was probed (not saved).
        dataset: The words it was probed on (not saved).
    """

    regret: Float64[Tensor, "pos"] | None
    provenance: dict[str, Any]
    model: HookedModel | None
    dataset: BeliefDataset | None

    @property
    def process(self) -> Process | None:
        """The process whose beliefs were probed, if there is one."""
        if self.dataset is not None:
            return self.dataset.process
        return Process.from_dict(self.provenance["process"]) if "process" in self.provenance else None

    @property
    def plot(self) -> ProbePlots:
        """Pictures: `report.plot("3_post")` shows belief states, `report.plot.scores()` R² at each site, and so on."""
        weighting = self.provenance.get("weighting", "probability")
        return ProbePlots(self, self.regret, self.process, weighting, self.run_on)

    def by_state(self) -> pd.DataFrame:
        """Held-out R² of each coordinate of the belief, one row for each probe."""
        process, n_states = self.process, self.probes[0].n_states
        names = process.states if process and process.n_states == n_states else tuple(map(str, range(n_states)))
        rows = {probe.label: probe.scores.held_out.r2_by_target for probe in self.probes}
        table = pd.DataFrame.from_dict(rows, orient="index", columns=pd.Index(names))
        return table.rename_axis(index="site", columns="state")

    def to_dict(self) -> dict[str, Any]:
        """Everything but the probes' weights, as JSON-ready values; undefined numbers are `None`."""

        def records(table: pd.DataFrame) -> list[dict[str, Any]]:
            return json_records(table.reset_index().to_dict(orient="records"))

        return {
            "sites": records(self.to_dataframe()),
            "controls": records(self.controls.to_dataframe()),
            "increments": records(self.increments()) if self.cumulative else [],
            "regret_nats": self.regret.tolist() if self.regret is not None else None,
            "provenance": self.provenance,
        }

    def run_on(self) -> tuple[HookedModel, BeliefDataset]:
        """The model that was probed and the words it was probed on.

        Raises:
            ValueError: if the report has no model or no words, or the model's weights have changed since it was probed.
        """
        if self.model is None or self.dataset is None:
            raise ValueError(
                "This report has no model, or no words of a process, to run again: load it with "
                "ProbeReport.load(path, model=model), or probe a model on a process."
            )
        if model_fingerprint(self.model) != self.provenance["model_fingerprint"]:
            raise ValueError("The model has changed since it was probed: probe it again.")
        return self.model, self.dataset

    def distances(
        self, site: str | None = None, *, max_pairs: int = 500_000, seed: int = 0, batch_size: int | None = None
    ) -> Distances:
        """Distances between the beliefs read at a site, between true beliefs, and between next-token probabilities.

        Runs the model once; see `msp_lens.probing.distances`. The default is the single site with the best held-out R².

        Raises:
            KeyError: if the site is not in the report.
            ValueError: as for `run_on`.
        """
        probe = self.best_site if site is None else self[site]
        run, weighting = self.run_on(), self.provenance["weighting"]
        return distances(probe, *run, weighting=weighting, max_pairs=max_pairs, seed=seed, batch_size=batch_size)

    def geometry(self, *, batch_size: int | None = None) -> Geometry:
        """How the belief is represented at each site: variance share, dimensions, angles, simplex, unembedding.

        Runs the model once, to see where read-outs fall.

        Raises:
            ValueError: as for `run_on`.
        """
        return geometry(self.probes, *self.run_on(), weighting=self.provenance["weighting"], batch_size=batch_size)

    def save(self, path: str | Path) -> Path:
        """Write the report atomically to one safetensors file, with its numbers as JSON in the header.

        The model and the words are not saved: give them to `load`.
        """
        tensors = {
            f"{index}/{name}": tensor.contiguous().clone()
            for index, probe in enumerate(self.probes)
            for name, tensor in probe.tensors().items()
        }
        if self.regret is not None:
            tensors["regret"] = self.regret.contiguous()
        description = {
            "probes": [probe.description() for probe in self.probes],
            "controls": without_nan([asdict(each) for each in self.controls]),
            "cumulative": without_nan([asdict(each) for each in self.cumulative]),
            "provenance": self.provenance,
        }
        write_tensors(path, tensors, {"msp_lens_report": json.dumps(description, allow_nan=False)})
        return Path(path)

    @classmethod
    def load(
        cls, path: str | Path, *, model: HookedModel | None = None, process: Process | BeliefDataset | None = None
    ) -> ProbeReport:
        """Load a report that `save` wrote.

        Args:
            path: The file.
            model: The model that was probed, for pictures and geometry; checked by its fingerprint.
            process: The process that was probed, to check its fingerprint; or the dataset that you passed to `probe`,
                whose words are not saved.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is damaged or not a report, or the report is on another model or process.
        """
        path = Path(path)
        tensors, metadata = read_tensors(path)
        if "msp_lens_report" not in metadata:
            raise ValueError(f"{path} is not a probe report of msp_lens: give a file that report.save(path) wrote.")
        description = read_entry(metadata, "msp_lens_report", _SavedReport, path)
        provenance = _checked_provenance(description["provenance"], path)
        dataset, given = (process, process.process) if isinstance(process, BeliefDataset) else (None, process)
        checked = [] if given is None else [("process", repr(given), given.fingerprint)]
        if model is not None:
            checked.append(("model", type(model).__name__, model_fingerprint(model)))
        for what, name, fingerprint in checked:
            if fingerprint != (expected := provenance.get(f"{what}_fingerprint")):
                raise ValueError(
                    f"{path} is a report on {what} {expected}; the {what} given, {name}, is {fingerprint}. Load it "
                    f"with the {what} that was probed, or probe again."
                )
        if dataset is None and model is not None and "process" in provenance and not provenance["own_dataset"]:
            probed, n_ctx = Process.from_dict(provenance["process"]), provenance["n_ctx"]
            if provenance["is_population"]:
                dataset = all_words(probed, n_ctx)
            else:
                dataset = sampled_words(probed, provenance["draws"], n_ctx, seed=provenance["draw_seed"])
        if dataset is not None and dataset.token_map is None and provenance.get("token_map"):
            dataset = replace(dataset, token_map=TokenMap.from_dict(provenance["token_map"]))
        regret = tensors.pop("regret", None)
        if regret is not None:
            check_tensors({"regret": regret}, {"regret": (None,)}, path)
        parts = [
            {name.removeprefix(f"{index}/"): each for name, each in tensors.items() if name.startswith(f"{index}/")}
            for index in range(len(description["probes"]))
        ]
        if not parts:
            raise ValueError(f"{path} holds a report without probes: create it again.")
        probes = [BeliefProbe.from_parts(*each, path) for each in zip(description["probes"], parts, strict=True)]
        try:
            controls = tuple(ControlScore(**_scores(each)) for each in description["controls"])
            cumulative = tuple(Increment(**_scores(each)) for each in description["cumulative"])
        except ValueError as error:
            raise ValueError(f"{path}: {error}. The file is damaged or was edited: copy or create it again.") from None
        return cls(
            probes=tuple(probes),
            controls=Controls(controls),
            cumulative=cumulative,
            regret=regret,
            provenance=provenance,
            model=model,
            dataset=dataset,
        )

    def summary(self) -> list[str]:
        """What the numbers were measured on and how far to trust them, one sentence or two in each note."""
        given = self.provenance
        by = {
            "prefix": "by prefix: no held-out prefix is fitted, but its neighbors in the tree of words are",
            "sequence": "by word: words share their beginnings, so rows at early positions have been seen",
            "subtree": f"by {given.get('groups')}: words that begin alike are held out together",
        }.get(given.get("split", ""), "by the rows' groups")
        lines = [
            self._data_note(),
            "The table shows R² held out, with its 95 % interval, and R² in-sample; MSE is held out, per coordinate.",
            f"Held out: {given['n_folds']} folds {by}. The interval is a bootstrap over {given['n_cells']} cells of "
            "groups, with the fitted maps fixed.",
            *self._overfitting_notes(),
            *self._control_notes(),
        ]
        if self.controls.rival is not None:
            is_told_apart = any(not math.isnan(self.beyond_next_token(label)) for label in self)
            beyond = " Beyond: the share of the rest that the activations add." if is_told_apart else ""
            r2 = self.controls.rival.held_out.r2
            lines.append(f"Next-token probabilities alone explain R² {r2:.3f} of the beliefs, held out.{beyond}")
        if self.process is not None:
            lines.append(str(self.process.degeneracy()))
        if self.regret is not None:
            mean, low, high = (f"{float(nats):.2g}" for nats in (self.regret.mean(), *self.regret.aminmax()))
            lines.append(f"Regret of the model: {mean} nats on average over positions ({low} to {high}).")
        return lines + self._solver_notes()

    def _data_note(self) -> str:
        given, n = self.provenance, self.probes[0].scores.in_sample.n
        weighting = f"weighting={given.get('weighting', 'as given')!r}"
        if "words" not in given:
            return f"{n:,} rows, {weighting}."
        process = f"{self.process!r}; " if self.process is not None else ""
        words = f"{given['words']:,} given words"
        if given["is_population"]:
            words = "every possible word"
        elif given.get("draws") is not None:
            words = f"{given['draws']:,} sampled words ({given['words']:,} distinct)"
        rows = "distinct prefixes" if given.get("split") in ("prefix", "subtree") else "rows"
        return f"{process}{words} of {given['n_ctx']} tokens: {n:,} {rows}, {weighting}."

    def _overfitting_notes(self) -> list[str]:
        worse = [probe for probe in self.probes if probe.scores.held_out.r2 < 0 < probe.scores.in_sample.r2]
        if not worse:
            return []
        probe = worse[-1]
        is_ridge = probe.scores.solver == "ridge"
        remedy = "" if is_ridge else " solver='ridge' chooses how much to shrink them."
        return [
            f"Below 0 held out ({', '.join(each.label for each in worse)}): worse than the mean belief. {probe.label} "
            f"fits {sum(probe.widths)} features to {probe.scores.in_sample.n:,} rows, so its in-sample score "
            f"is optimistic.{remedy}"
        ]

    def _control_notes(self) -> list[str]:
        has_shuffled = self.probes[0].scores.shuffled is not None
        twins = {each.name for each in self.controls if each.kind == "untrained"}
        windows = {each.name for each in self.controls if not each.is_rival} - twins
        if not (has_shuffled or windows or twins):
            return [
                "No controls were measured: an R² means little alone, and a random network can reach a high one. "
                "Probe with controls=True and untrained=3."
            ]
        against = [f"{len(windows)} readings of the last tokens and the position (report.controls)"] if windows else []
        against += [f"{len(twins)} untrained network{'s' * (len(twins) > 1)}"] if twins else []
        lines = ["Shuffled: in-sample R² of a probe of randomly permuted beliefs."] if has_shuffled else []
        if against:
            lines.append(
                f"Best control: the best held-out score of {' and '.join(against)}. Skill: the share of what it leaves "
                "unexplained that the probe explains; negative if the control explains more."
            )
        if not twins:
            lines.append(
                "Not among the controls: an untrained network, which can reach a high R² too (untrained=3 adds three)."
            )
        return lines

    def _solver_notes(self) -> list[str]:
        solver = self.provenance["solver"]
        if solver.get("rank") is not None:
            return [f"Probes have rank {solver['rank']}, by reduced-rank regression."]
        if solver.get("penalty") is not None:
            return [f"Probes are fitted by ridge with penalty {solver['penalty']:g}."]
        by_ridge = [probe for probe in self.probes if probe.scores.solver == "ridge"]
        why = f", as there are at least {solver['ratio']:g} rows a feature" if solver["name"] == "auto" else ""
        if not by_ridge:
            return [f"Probes are fitted by least squares{why}."]
        penalties = [probe.scores.penalty for probe in by_ridge if probe.scores.penalty is not None]
        chosen = (
            f"Penalties are {min(penalties):g} to {max(penalties):g}, chosen on held-out folds; each score is of a "
            "penalty chosen without the fold that is scored."
        )
        if solver["name"] == "ridge":
            return [f"Probes are fitted by ridge. {chosen}"]
        fewest = min(probe.scores.in_sample.n / sum(probe.widths) for probe in by_ridge)
        named = ", ".join(probe.label for probe in by_ridge)
        rest = f" The others are fitted by least squares{why}." if len(by_ridge) < len(self) else ""
        return [
            f"Fitted by ridge: {named}, which have fewer than {solver['ratio']:g} rows a feature ({fewest:.2g} at the "
            f"least), so that least squares would overfit. {chosen}{rest}"
        ]

    def _title(self) -> str:
        return "Belief probes"

    def _display(self) -> pd.DataFrame:
        table = self.to_dataframe()
        shown = pd.DataFrame(index=table.index)
        shown["R² held out"] = table["R² held out"].map("{:.5f}".format)
        shown["95 %"] = [interval_text(*ends) for ends in zip(table["low"], table["high"], strict=True)]
        shown["in-sample"] = table["R² in-sample"].map("{:.5f}".format)
        if bool(table["R² shuffled"].notna().any()):
            shown["shuffled"] = table["R² shuffled"].map("{:.3f}".format)
        if len(self.controls) > 0:
            shown["best control"] = table["R² best control"].map("{:.4f} ".format) + table["best control"].map(str)
            shown["skill"] = table["skill"].map(skill_text)
        if bool(table["beyond next token"].notna().any()):
            shown["beyond"] = table["beyond next token"].map("{:.3f}".format)
        shown["MSE"] = table["MSE held out"].map("{:.6f}".format)
        return shown


class _AlwaysSaved(TypedDict):
    n_folds: Count
    n_cells: Count
    seed: Seed
    solver: dict[str, Any]


class _SavedProvenance(_AlwaysSaved, total=False):
    """What is used of a report's provenance; there may be more."""

    process: dict[str, Any]
    process_fingerprint: str
    model_fingerprint: str
    words: Count
    n_ctx: Count
    is_population: bool
    draws: Count | None
    draw_seed: Seed | None
    own_dataset: bool
    token_map: dict[str, Any] | None
    weighting: str
    split: str
    target: str
    groups: str
    classes: list[str] | None


class _SavedReport(TypedDict):
    probes: list[SavedProbe]
    controls: list[SavedControl]
    cumulative: list[SavedIncrement]
    provenance: dict[str, Any]


def _checked_provenance(provenance: dict[str, Any], path: Path) -> dict[str, Any]:
    """The provenance, once what is used of it is as `probe` writes it, or a `ValueError`."""
    used = {key: value for key, value in provenance.items() if key in get_type_hints(_SavedProvenance)}
    parsed_json(json.dumps(used).encode(), _SavedProvenance, path)
    if "process" in used:
        try:
            fingerprint = Process.from_dict(used["process"]).fingerprint
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}: provenance.process: {error} The file was edited: create it again.") from None
        if fingerprint != used.get("process_fingerprint"):
            raise ValueError(f"{path}: provenance.process is not that of its fingerprint: create the file again.")
    return provenance


def _scores(fields: Any) -> dict[str, Any]:
    return {key: from_json(value) for key, value in fields.items()}
