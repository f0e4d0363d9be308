"""A run's folder while it is being trained: `metrics.jsonl`, `model.safetensors`, checkpoints and training states.

Every file is replaced whole, so a training killed at any moment leaves a model, checkpoints and a state that can be
used. `metrics.jsonl` alone grows line by line; it is cut back to the state from which training goes on.
"""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msp_lens._files import read_header, write_atomically
from msp_lens.models.hooked import HookedModel
from msp_lens.models.model_files import MODEL_FILE, save_checkpoint
from msp_lens.processes.process import Process
from msp_lens.training.checkpoints import CHECKPOINTS_FOLDER, save_training_checkpoint
from msp_lens.training.resume import (
    STATES_KEPT,
    TrainingState,
    check_identity,
    newest_state,
    remove_states,
    save_state,
)
from msp_lens.training.training_run import METRICS_FILE

# What a later start may change: none of it decides the weights after a step.
_FREE = ("max_seconds", "target_regret", "save_every", "checkpoints", "n_checkpoints", "checkpoints_in")


class RunFolder:
    """Writes one training to its folder.

    Args:
        path: The folder; made where it is missing.
        process: What is trained on.
        provenance: What is known of the training at its start, JSON-ready: its config under `training`, seed, versions.
    """

    def __init__(self, path: str | Path, process: Process, provenance: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.process = process
        self.provenance = json.loads(json.dumps(dict(provenance)))
        self._step_saved: int | None = None

    def check(self, model: HookedModel, n_checkpoints: int) -> None:
        """Raise `OSError` if the folder can't be written to, or its disk has too little space for all to come."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise OSError(
                error.errno, f"out={str(self.path)!r} can't be written to ({error.strerror}): give another folder"
            ) from error
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        # A state holds weights, two moments and an average; one more of each file while it is being replaced.
        needed = size * (2 + n_checkpoints + 4 * (STATES_KEPT + 1))
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise OSError(
                errno.ENOSPC,
                f"out={str(self.path)!r} has {free / 2**20:.0f} MiB free, and this training writes up to "
                f"{needed / 2**20:.0f} MiB: free some, keep fewer checkpoints, or give another folder",
            )

    def has_ended(self) -> bool:
        """Whether this very training lies here with all its steps made.

        Raises:
            ValueError: if another one lies here.
        """
        theirs = self._saved_provenance()
        if theirs is None:
            return False
        check_identity(self.path, _identity(theirs), _identity(self.provenance))
        return theirs.get("stopped_by") == "steps"

    def resume(self) -> TrainingState | None:
        """The state to go on from, if there is one.

        Raises:
            ValueError: if it is of another training.
        """
        state = newest_state(self.path, _identity(self.provenance))
        self._step_saved = state.step if state else None
        return state

    def cut_metrics(self, metrics: list[dict[str, Any]]) -> None:
        """Leave just these records in `metrics.jsonl`."""
        with self._whole(0):
            write_atomically(self.path / METRICS_FILE, "".join(json.dumps(record) + "\n" for record in metrics))

    def clear(self) -> None:
        """Remove a former training's files, and no others."""
        remove_states(self.path)
        for path in (self.path / MODEL_FILE, self.path / METRICS_FILE):
            path.unlink(missing_ok=True)
        for path in (self.path / CHECKPOINTS_FOLDER).glob("step-*.safetensors"):
            path.unlink()

    def append(self, record: dict[str, Any]) -> None:
        """Add a line to `metrics.jsonl`."""
        with self._whole(record["step"]), (self.path / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def save_checkpoint(self, model: HookedModel, progress: Mapping[str, Any]) -> None:
        """Keep the model of this moment; `progress` has its `step` and `tokens`."""
        with self._whole(progress["step"]):
            save_training_checkpoint(
                self.path, model, process=self.process, provenance=self.provenance | dict(progress)
            )

    def save_model(self, model: HookedModel, progress: Mapping[str, Any]) -> None:
        """Replace `model.safetensors`."""
        with self._whole(progress["step"]):
            save_checkpoint(self.path, model, process=self.process, provenance=self.provenance | dict(progress))

    def save_state(self, state: TrainingState) -> None:
        """Save what an interrupted training goes on from."""
        with self._whole(state.step):
            save_state(self.path, state, _identity(self.provenance))
        self._step_saved = state.step

    def remove_states(self) -> None:
        """Remove the states, once the final model is saved."""
        remove_states(self.path)

    @contextmanager
    def _whole(self, step: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kept = "nothing had been saved" if self._step_saved is None else f"step {self._step_saved} is whole"
            raise OSError(
                error.errno,
                f"Writing to {self.path} failed at step {step} ({error.strerror or error}); {kept}. Make room, then "
                "start again with the same folder",
            ) from error

    def _saved_provenance(self) -> dict[str, Any] | None:
        path = self.path / MODEL_FILE
        if not path.exists():
            return None
        try:
            description = json.loads(read_header(path).get("msp_lens", "{}"))
        except ValueError as error:
            warnings.warn(f"{error} It is left out of account.", RuntimeWarning, stacklevel=2)
            return None
        provenance = description.get("provenance") or {}
        if "training" not in provenance:
            raise ValueError(
                f"out={str(self.path)!r} already holds a model that no training saved: give another folder, or "
                "replace it with resume=False."
            )
        return provenance


def _identity(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the weights after each step."""
    config = {key: value for key, value in provenance["training"].items() if key not in _FREE}
    rest = ("process", "seed", "model", "initial_weights", "n_processes")
    return config | {key: provenance.get(key) for key in rest}
