"""An emergence on disk: each checkpoint's probes in a file, and what they are of in `emergence.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from msp_lens._files import read_json, write_json
from msp_lens.data import BeliefDataset, words
from msp_lens.formation.emergence_report import Emergence, Snapshot
from msp_lens.interventions.intervention_report import InterventionReport
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.processes.process import Process
from msp_lens.training.checkpoints import SavedCheckpoint

TABLE_FILE = "emergence.json"


def save_emergence(found: Emergence, folder: str | Path) -> Path:
    """Write an emergence; `Emergence.save`."""
    folder = Path(folder)
    (folder / TABLE_FILE).unlink(missing_ok=True)
    for snapshot in found.snapshots:
        snapshot.report.save(folder / _probes_file(snapshot.step))
    snapshots = [
        {
            "step": each.step,
            "tokens": each.tokens,
            "interventions": each.interventions.to_dict() if each.interventions else None,
        }
        for each in found.snapshots
    ]
    checkpoints = [{**asdict(each), "path": str(each.path.absolute())} for each in found.checkpoints]
    description = {"snapshots": snapshots, "checkpoints": checkpoints, "provenance": found.provenance}
    write_json(folder / TABLE_FILE, description)
    return folder


def load_emergence(
    folder: str | Path, *, checkpoints: Sequence[SavedCheckpoint] | None = None, dataset: BeliefDataset | None = None
) -> Emergence:
    """Read an emergence back; `Emergence.load`."""
    path = Path(folder) / TABLE_FILE
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: give the folder that Emergence.save(folder) wrote.")
    saved = read_json(path)
    provenance = saved["provenance"]
    snapshots = tuple(
        Snapshot(
            each["step"],
            each["tokens"],
            ProbeReport.load(path.parent / _probes_file(each["step"])),
            InterventionReport.from_dict(each["interventions"]) if each["interventions"] else None,
        )
        for each in saved["snapshots"]
    )
    if checkpoints is None:
        checkpoints = [SavedCheckpoint(**{**each, "path": Path(each["path"])}) for each in saved["checkpoints"]]
    if dataset is None and not provenance["own_dataset"]:
        process, n_ctx = Process.from_dict(provenance["process"]), provenance["n_ctx"]
        dataset = words(process, n_ctx=n_ctx, max_words=provenance["max_words"], seed=provenance["seed"])
    return Emergence(snapshots, provenance, tuple(checkpoints), dataset)


def _probes_file(step: int) -> str:
    return f"probes-{step:08d}.safetensors"
