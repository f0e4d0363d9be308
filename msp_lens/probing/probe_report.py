"""The report of a probing: probes and controls, what they were measured on, and the notes under the table."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypedDict

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens._checks import Count, Seed, checked
from msp_lens._files import check_tensors, read_entry, read_tensors, without_nan, write_tensors
from msp_lens._hub import local_path
from msp_lens._tables import TableView, json_records, nats_text, skill_text
from msp_lens._values import same_values
from msp_lens.controls.control_scores import (
    Controls,
    ControlScore,
    SavedControl,
    interval_text,
    named_r2_texts,
    r2_text,
)
from msp_lens.data import BeliefDataset, TokenMap, all_words, sampled_words
from msp_lens.models.checking import Finding, ModelCheck, Verdict
from msp_lens.models.hooked import HookedModel
from msp_lens.models.model_files import model_fingerprint
from msp_lens.moments.scores import from_json
from msp_lens.probing.belief_probe import BeliefProbe
from msp_lens.probing.cross_validation import SavedProbe
from msp_lens.probing.geometry import Distances, Geometry, distances, geometry
from msp_lens.probing.parts import cost_of_not_knowing
from msp_lens.probing.probe_notes import checked_provenance, positions_left_out, probe_notes
from msp_lens.probing.probe_plots import ProbePlots
from msp_lens.probing.probe_tables import ClassReadouts, Increment, ProbeTables, SavedIncrement, SavedReadouts
from msp_lens.processes.process import Process

# The report in a run's folder, or in a repository on the hub.
PROBES_FILE = "probes.safetensors"


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ProbeReport(TableView, ProbeTables):
    """Probes by site, in the order of the forward pass; the last one reads all sites concatenated.

    A mapping: `report["blocks.3.hook_resid_post"]`, `report["3_post"]`, `report["concatenated"]`.

    Attributes:
        probes: The probes.
        controls: The controls, scored on the same rows and folds.
        cumulative: The scores of each site together with all sites before it.
        regret: E KL(optimal next token ‖ model's) at each position, in nats; `None` if the model gave no logits.
        regret_outside: What of the regret is due to tokens that are no symbols, E -log P(any symbol); the rest is
            KL(optimal ‖ model's among the symbols). `None` if the model has no other tokens.
        provenance: Process, weighting, split, number of words, fingerprints, seed.
        model: The model that was probed (not saved).
        dataset: The words it was probed on (not saved).
        classes: Logistic read-outs, if the target is classes.
        model_check: What a few short passes showed about the model; see `check_model`.
        parts: What reads each part of the belief, by its name: the factors of a product, or which component of a
            mixture it is and the belief within each. Reports like this one, of the same pass.

    Two reports are equal if all but the model and the words is. A copy keeps both; a pickled report has no model.
    """

    regret: Float64[Tensor, "pos"] | None
    provenance: dict[str, Any]
    model: HookedModel | None = field(compare=False)
    dataset: BeliefDataset | None = field(compare=False)
    classes: ClassReadouts | None = None
    parts: Mapping[str, ProbeReport] = field(default_factory=dict)
    regret_outside: Float64[Tensor, "pos"] | None = None
    model_check: ModelCheck | None = None

    def __eq__(self, other: object) -> bool:
        names = [each.name for each in fields(self) if each.compare]
        is_same = type(self) is type(other)
        return is_same and all(same_values(getattr(self, name), getattr(other, name)) for name in names)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __getstate__(self) -> dict[str, Any]:
        # Not every network can be pickled, and a saved report has none either.
        return self.__dict__ | {"model": None}

    def __copy__(self) -> ProbeReport:
        return replace(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> ProbeReport:
        copied = {each.name: copy.deepcopy(getattr(self, each.name), memo) for each in fields(self) if each.compare}
        return replace(self, **copied)

    @property
    def process(self) -> Process | None:
        """The process whose beliefs were probed, if there is one."""
        if self.dataset is not None:
            return self.dataset.process
        return Process.from_dict(self.provenance["process"]) if "process" in self.provenance else None

    @property
    def plot(self) -> ProbePlots:
        """Pictures: `report.plot("3_post")` shows belief states, `report.plot.scores()` R² at each site, and so on."""
        # Rows of labelled tokens have weights of their own, and no belief states to draw by them.
        weighting = self.provenance["weighting"] if self.process is not None else "probability"
        given = (self, self.regret, self.process, weighting, self.run_on, self.provenance, self.parts, self.classes)
        return ProbePlots(*given)

    def by_part(self) -> pd.DataFrame:
        """How well each part of the belief is read at each site; the whole is `"belief"`, or the target's name.

        The best control is the best of the site's, and the best rival what explains most of that part without the
        network: the other parts' true beliefs, next-token probabilities, constrained beliefs. All R² are held out but
        the one in-sample and the shuffled one.
        """
        columns = ["R² held out", "low", "high", "R² in-sample", "MSE held out", "R² shuffled", "R² best control"]
        tables = {}
        for name, report in {self.whole: self, **self.parts}.items():
            table, rival = report.to_dataframe(), report.best_rival()
            tables[name] = table[[*columns, "best control", "skill"]].copy()
            tables[name]["R² best rival"] = rival.held_out.r2 if rival else math.nan
            tables[name]["best rival"] = rival.name if rival else None
            tables[name]["n"] = table["n"]
        both = pd.concat(tables, names=["part"]).swaplevel()
        return both.loc[[(site, name) for site in self for name in tables]]

    @property
    def regret_to_oracle(self) -> Float64[Tensor, "pos"] | None:
        """The expected loss at each position above that of an oracle who knows a mixture's component, in nats.

        It is the regret, and what not knowing the component costs the optimal observer: h_ℓ of the mixture less
        Σ_k w_k h_ℓ of component k. `None` if the process is no mixture, or there is no regret.
        """
        cost = cost_of_not_knowing(self.process, len(self.regret)) if self.process and self.regret is not None else None
        return None if cost is None or self.regret is None else self.regret + cost

    def by_position(self, *, own: bool = False) -> pd.DataFrame:
        """As for `ProbeTables`; where positions were not kept apart, the error says why."""
        is_scored = any(probe.scores.by_position for probe in self.probes)
        if not is_scored and self.provenance.get("positions_left_out") is not None:
            raise ValueError(f"Positions were not scored: {positions_left_out(self.provenance)}.")
        return super().by_position(own=own)

    def by_state(self) -> pd.DataFrame:
        """Held-out R² of each coordinate of the belief or target, one row for each probe."""
        process, n_states, reads = self.process, self.probes[0].n_states, self.probes[0].reads
        names = reads.classes or tuple(map(str, range(n_states)))
        if process and process.n_states == n_states and reads.is_belief and "part" not in self.provenance:
            names = process.states
        rows = {probe.label: probe.scores.held_out.r2_by_target for probe in self.probes}
        table = pd.DataFrame.from_dict(rows, orient="index", columns=pd.Index(names))
        return table.rename_axis(index="site", columns="state" if reads.is_belief else reads.kind)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the probes' weights, as JSON-ready values; undefined numbers are `None`."""

        def records(table: pd.DataFrame) -> list[dict[str, Any]]:
            return json_records(table.reset_index().to_dict(orient="records"))

        return {
            "sites": records(self.to_dataframe()),
            "classes": records(self.classes.to_dataframe()) if self.classes is not None else [],
            "controls": records(self.controls.to_dataframe()),
            "increments": records(self.increments()) if self.cumulative else [],
            "rivals": records(self.rivals()),
            "parts": {name: part.to_dict() for name, part in self.parts.items()},
            "regret_nats": self.regret.tolist() if self.regret is not None else None,
            "regret_outside_nats": self.regret_outside.tolist() if self.regret_outside is not None else None,
            "model_check": records(self.model_check.to_dataframe()) if self.model_check is not None else None,
            "provenance": self.provenance,
        }

    def run_on(self) -> tuple[HookedModel, BeliefDataset]:
        """The model that was probed and the words it was probed on.

        Raises:
            ValueError: if the report has no model or no words, or the model's weights have changed since it was probed.
        """
        if "own_dataset" in self.provenance and "process" not in self.provenance:
            raise ValueError(
                f"This report is of the {self.probes[0].reads.name} of labelled tokens, and this takes the words of a "
                "process. report.plot.scores() shows what was read; to write a value, use "
                f"`with {self.probes[0].steering}:` around model(tokens)."
            )
        if self.model is None or self.dataset is None:
            raise ValueError(
                "This report has no model, or no words of a process, to run again: load it with "
                "ProbeReport.load(path, model=model), or probe a model on a process."
            )
        if model_fingerprint(self.model) != self.provenance["model_fingerprint"]:
            raise ValueError("The model has changed since it was probed: probe it again.")
        return self.model, self.dataset

    @checked
    def distances(
        self,
        site: str | None = None,
        *,
        same_prefix: bool = False,
        max_pairs: Count = 500_000,
        seed: Seed = 0,
        batch_size: Count | None = None,
    ) -> Distances:
        """Distances between the beliefs read at a site, between true beliefs, and between next-token probabilities.

        Runs the model once; see `msp_lens.probing.distances`. The default is the single site with the best held-out R².

        Raises:
            KeyError: if the site is not in the report.
            ValueError: as for `run_on`.
        """
        probe = self.best_site if site is None else self[site]
        how = {"weighting": self.provenance["weighting"], "same_prefix": same_prefix, "batch_size": batch_size}
        return distances(probe, *self.run_on(), max_pairs=max_pairs, seed=seed, **how)

    @checked
    def geometry(self, *, batch_size: Count | None = None) -> Geometry:
        """How the belief is represented at each site: variance share, dimensions, angles, simplex, unembedding.

        Runs the model once, to see where read-outs fall.

        Raises:
            ValueError: as for `run_on`.
        """
        return geometry(self.probes, *self.run_on(), weighting=self.provenance["weighting"], batch_size=batch_size)

    @checked
    def save(self, path: str | Path) -> Path:
        """Write the report atomically to one safetensors file, with its numbers as JSON in the header.

        The model and the words are not saved: give them to `load`.
        """
        description: dict[str, Any] = self._description()
        description["parts"] = {name: part._description() for name, part in self.parts.items()}
        tensors = self._tensors()
        for number, part in enumerate(self.parts.values()):
            tensors |= {f"part {number}/{name}": tensor for name, tensor in part._tensors().items()}
        write_tensors(path, tensors, {"msp_lens_report": json.dumps(description, allow_nan=False)})
        return Path(path)

    def _description(self) -> dict[str, Any]:
        """Everything but the tensors and the parts, as JSON-ready values."""
        return {
            "probes": [probe.description() for probe in self.probes],
            "controls": without_nan([asdict(each) for each in self.controls]),
            "cumulative": without_nan([asdict(each) for each in self.cumulative]),
            "provenance": self.provenance,
            "classes": without_nan(self.classes.description()) if self.classes is not None else None,
            "model_check": asdict(self.model_check) if self.model_check is not None else None,
        }

    def _tensors(self) -> dict[str, Tensor]:
        """The tensors but those of the parts, by name."""
        tensors = {
            f"{index}/{name}": tensor.contiguous().clone()
            for index, probe in enumerate(self.probes)
            for name, tensor in probe.tensors().items()
        }
        regrets = {"regret": self.regret, "regret_outside": self.regret_outside}
        tensors |= {name: each.contiguous().clone() for name, each in regrets.items() if each is not None}
        return tensors | (self.classes.tensors() if self.classes is not None else {})

    @classmethod
    @checked
    def load(
        cls, path: str | Path, *, model: HookedModel | None = None, process: Process | BeliefDataset | None = None
    ) -> ProbeReport:
        """Load a report that `save` wrote.

        Args:
            path: The file; a folder with a `probes.safetensors`, such as a run's; or what `push_to_hub` shared on the
                Hugging Face hub, as `"hf://user/name"` or `"hf://user/name@revision"`.
            model: The model that was probed, for pictures and geometry; checked by its fingerprint.
            process: The process that was probed, to check its fingerprint; or the dataset that you passed to `probe`,
                whose words are not saved.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is damaged or not a report, or the report is on another model or process.
        """
        path = local_path(path)
        if path.is_dir():
            path = path / PROBES_FILE
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path.parent} has no {PROBES_FILE}: msp.experiments.report(folder) probes the run in a folder."
                )
        tensors, metadata = read_tensors(path)
        if "msp_lens_report" not in metadata:
            raise ValueError(f"{path} is not a probe report of msp_lens: give a file that report.save(path) wrote.")
        description = read_entry(metadata, "msp_lens_report", _SavedReport, path)
        provenance = checked_provenance(description["provenance"], path)
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
        rest = {"model": model, "dataset": dataset, "path": path}
        parts = {}
        for number, (name, saved) in enumerate(description["parts"].items()):
            prefix = f"part {number}/"
            own = {key.removeprefix(prefix): each for key, each in tensors.items() if key.startswith(prefix)}
            saved["provenance"] = checked_provenance(saved["provenance"], path)
            parts[name] = cls._rebuilt(saved, own, parts={}, **rest)
        description["provenance"] = provenance
        return cls._rebuilt(description, tensors, parts=parts, **rest)

    @classmethod
    def _rebuilt(
        cls,
        saved: _SavedPart,
        tensors: dict[str, Tensor],
        *,
        path: Path,
        model: HookedModel | None,
        dataset: BeliefDataset | None,
        parts: Mapping[str, ProbeReport],
    ) -> ProbeReport:
        """A report from its `_description()` and `_tensors()`, which were read from a file, and its parts."""
        regrets = {name: tensors[name] for name in ("regret", "regret_outside") if name in tensors}
        if regrets:
            length = len(saved_regret) if (saved_regret := tensors.get("regret")) is not None else None
            check_tensors(regrets, dict.fromkeys(regrets, (length,)), path, dtype=torch.float64)
        of_probes = [
            {name.removeprefix(f"{index}/"): each for name, each in tensors.items() if name.startswith(f"{index}/")}
            for index in range(len(saved["probes"]))
        ]
        if not of_probes:
            raise ValueError(f"{path} holds a report without probes: create it again.")
        probes = [BeliefProbe.from_parts(*each, path) for each in zip(saved["probes"], of_probes, strict=True)]
        try:
            controls = tuple(ControlScore(**_scores(each)) for each in saved["controls"])
            cumulative = tuple(Increment(**_scores(each)) for each in saved["cumulative"])
        except ValueError as error:
            raise ValueError(f"{path}: {error}. The file is damaged or was edited: copy or create it again.") from None
        classes = saved["classes"]
        return cls(
            probes=tuple(probes),
            controls=Controls(controls),
            cumulative=cumulative,
            classes=ClassReadouts.from_parts(classes, tensors, path) if classes else None,
            regret=regrets.get("regret"),
            regret_outside=regrets.get("regret_outside"),
            model_check=_model_check(saved["model_check"]),
            provenance=saved["provenance"],
            model=model,
            dataset=dataset,
            parts=parts,
        )

    def summary(self) -> list[str]:
        """What the numbers were measured on and how far to trust them, one sentence or two in each note."""
        rest = {"process": self.process, "regret": self.regret, "classes": self.classes, "parts": self.parts}
        rest |= {"outside": self.regret_outside, "model_check": self.model_check}
        return probe_notes(self, self.provenance, **rest, to_oracle=self.regret_to_oracle)

    def _title(self) -> str:
        if not self.probes[0].reads.is_belief:
            return f"Probes of the {self.probes[0].reads.name}"
        part = self.provenance.get("part")
        return "Belief probes" if part is None else f"Probes of {part!r}, a part of the belief"

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each probe. R² is relative to the variance over all coordinates, MSE is per coordinate.

        If the target is classes, there are the scores of logistic read-outs too: see `classes`.
        """
        table = super().to_dataframe()
        if self.classes is not None:
            scores = self.classes.to_dataframe().reindex(table.index)
            names = ("accuracy", "cross-entropy", "calibration error")
            table = table.join(scores[[f"{name} held out" for name in names]])
        return table

    def _display(self) -> pd.DataFrame:
        table = self.to_dataframe()
        shown = pd.DataFrame(index=table.index)
        shown["R² held out"] = table["R² held out"].map(r2_text)
        shown["95 %"] = [interval_text(*ends) for ends in zip(table["low"], table["high"], strict=True)]
        shown["in-sample"] = table["R² in-sample"].map(r2_text)
        if bool(table["R² shuffled"].notna().any()):
            shown["shuffled"] = table["R² shuffled"].map("{:.3f}".format)
        if len(self.controls) > 0:
            shown["best control"] = named_r2_texts(table["R² best control"], table["best control"])
            shown["skill"] = table["skill"].map(skill_text)
        if bool(table["beyond next token"].notna().any()):
            shown["beyond"] = table["beyond next token"].map("{:.3f}".format)
        shown["MSE"] = table["MSE held out"].map("{:.6f}".format)
        if self.classes is not None:
            shown["accuracy"] = table["accuracy held out"].map(nats_text)
            shown["cross-entropy"] = table["cross-entropy held out"].map(nats_text)
        return shown


class _SavedFinding(TypedDict):
    check: str
    verdict: Verdict
    told: str


class _SavedCheck(TypedDict):
    model: str
    sites: list[str]
    findings: list[_SavedFinding]
    is_causal: bool | None
    identity_is_exact: bool | None


class _SavedPart(TypedDict):
    probes: list[SavedProbe]
    controls: list[SavedControl]
    cumulative: list[SavedIncrement]
    provenance: dict[str, Any]
    classes: SavedReadouts | None
    model_check: _SavedCheck | None


class _SavedReport(_SavedPart):
    parts: dict[str, _SavedPart]


def _model_check(saved: _SavedCheck | None) -> ModelCheck | None:
    if saved is None:
        return None
    findings = tuple(Finding(**each) for each in saved["findings"])
    of_all = (saved["is_causal"], saved["identity_is_exact"])
    return ModelCheck(saved["model"], tuple(saved["sites"]), findings, *of_all)


def _scores(fields: Any) -> dict[str, Any]:
    return {key: from_json(value) for key, value in fields.items()}
