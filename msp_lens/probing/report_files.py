"""A probe report on disk: one safetensors file, the numbers as JSON in its header.

The probes come back with what edits need; the model and the words do not: they are given again, and checked by
fingerprint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save

from msp_lens._files import read_tensors, write_atomically
from msp_lens.data import BeliefDataset, TokenMap, all_words, sampled_words
from msp_lens.models.hooked import HookedModel
from msp_lens.models.model_files import model_fingerprint
from msp_lens.moments.scores import from_json
from msp_lens.probing.belief_probe import BeliefProbe
from msp_lens.probing.controls import Controls, ControlScore
from msp_lens.probing.probe_report import Increment, ProbeReport
from msp_lens.processes.process import Process

HEADER = "msp_lens_report"


def save_report(report: ProbeReport, path: str | Path) -> Path:
    """Write a report; `ProbeReport.save`."""
    tensors = {
        f"{index}/{name}": tensor.contiguous().clone()
        for index, probe in enumerate(report.probes)
        for name, tensor in probe.tensors().items()
    }
    if report.regret is not None:
        tensors["regret"] = report.regret.contiguous()
    write_atomically(path, save(tensors, metadata={HEADER: json.dumps(report.description())}))
    return Path(path)


def load_report(
    path: str | Path, *, model: HookedModel | None = None, process: Process | BeliefDataset | None = None
) -> ProbeReport:
    """Read a report back and check it against the model and the process; `ProbeReport.load`."""
    tensors, metadata = read_tensors(Path(path))
    if HEADER not in metadata:
        raise ValueError(f"{path} is not a probe report of msp_lens: give the file that report.save(path) wrote.")
    description = json.loads(metadata[HEADER])
    provenance = description["provenance"]
    dataset = process if isinstance(process, BeliefDataset) else None
    given = process.process if isinstance(process, BeliefDataset) else process
    _check("process", repr(given), given.fingerprint if given else None, provenance.get("process_fingerprint"), path)
    found = model_fingerprint(model) if model is not None else None
    _check("model", type(model).__name__, found, provenance.get("model_fingerprint"), path)
    if dataset is None and model is not None and "process" in provenance and not provenance["own_dataset"]:
        dataset = _words(provenance)
    probes = tuple(
        BeliefProbe.from_parts(
            each,
            {
                name.removeprefix(f"{index}/"): tensor
                for name, tensor in tensors.items()
                if name.startswith(f"{index}/")
            },
        )
        for index, each in enumerate(description["probes"])
    )
    return ProbeReport(
        probes=probes,
        regret=tensors.get("regret"),
        provenance=provenance,
        model=model,
        dataset=dataset,
        controls=Controls(tuple(ControlScore(**_scores(each)) for each in description["controls"])),
        cumulative=tuple(Increment(**_scores(each)) for each in description["cumulative"]),
        token_map=TokenMap.from_dict(provenance["token_map"]) if provenance.get("token_map") else None,
    )


def _words(provenance: Mapping[str, Any]) -> BeliefDataset:
    """The words that were probed on: all there are, or the same draws."""
    process, n_ctx = Process.from_dict(provenance["process"]), provenance["n_ctx"]
    if provenance["is_population"]:
        return all_words(process, n_ctx)
    return sampled_words(process, provenance["draws"], n_ctx, seed=provenance["seed"])


def _scores(fields: dict) -> dict:
    return {key: from_json(value) for key, value in fields.items()}


def _check(what: str, name: str, given: str | None, expected: str | None, path: str | Path) -> None:
    if given is not None and given != expected:
        raise ValueError(
            f"{path} is a report on {what} {expected}; the {what} given, {name}, is {given}. Load it beside the {what} "
            "it is of, or probe anew."
        )
