"""A run's folder during its training: `metrics.jsonl`, `model.safetensors`, checkpoints and training states.

Every file is replaced whole, so a training killed at any moment leaves a usable model, checkpoints and state. Only
`metrics.jsonl` grows line by line; it is cut back to the state that a training resumes from.
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

from msp_lens._files import write_atomically
from msp_lens.models.hooked import HookedModel
from msp_lens.models.model_files import MODEL_FILE, save_checkpoint
from msp_lens.processes.process import Process
from msp_lens.training.checkpoints import CHECKPOINTS_FOLDER, checkpoint_files, read_provenance
from msp_lens.training.resume import TrainingState, read_state, write_state
from msp_lens.training.training_run import METRICS_FILE

STATE_FOLDER = "training_state"
STATES_KEPT = 2
INSTEAD = "give another folder, or replace it with resume=False"


class RunFolder:
    """Writes one training to its folder, and reads there how far it had come.

    `provenance` are JSON-ready facts known before the first step: the config under `training`, seed, versions.
    """

    def __init__(self, path: str | Path, process: Process, provenance: Mapping[str, Any]) -> None:
        self.path, self.process, self._out = Path(path), process, f"out={str(path)!r}"
        self.provenance: dict[str, Any] = json.loads(json.dumps(dict(provenance)))
        self._step_saved: int | None = None

    def check(self, model: HookedModel, n_checkpoints: int) -> None:
        """Raise `OSError` if the folder can't be written to or its disk lacks space for all files to come."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.path).close()
        except OSError as error:
            message = f"{self._out} can't be written to ({error.strerror}): give another folder"
            raise OSError(error.errno, message) from error
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        # A state holds weights, two moments and an average. Each kind of file exists once more while it is replaced.
        needed = size * (2 + n_checkpoints + 4 * (STATES_KEPT + 1))
        free = shutil.disk_usage(self.path).free
        if free < needed:
            sizes = f"{free / 2**20:.0f} MiB free, and this training writes up to {needed / 2**20:.0f} MiB"
            remedy = "free some space, keep fewer checkpoints, or give another folder"
            raise OSError(errno.ENOSPC, f"{self._out} has {sizes}: {remedy}")

    def has_ended(self) -> bool:
        """Whether the folder holds this training with all its steps made; `ValueError` if it holds another model."""
        path = self.path / MODEL_FILE
        if not path.exists():
            return False
        try:
            provenance = read_provenance(path)
        except ValueError as error:
            warnings.warn(f"{error} The training ignores this file.", RuntimeWarning, stacklevel=2)
            return False
        if "training" not in provenance:
            raise ValueError(f"{self._out} already holds a model that no training saved: {INSTEAD}.")
        self._check_identity(_identity(provenance))
        return provenance.get("stopped_by") == "steps"

    def resume(self) -> TrainingState | None:
        """The newest undamaged state, if any; a warning names each damaged one, `ValueError` another training."""
        for path in self._state_files():
            try:
                state, identity = read_state(path)
            except ValueError as error:
                warnings.warn(f"{error} Resuming from the state before it.", RuntimeWarning, stacklevel=2)
                continue
            self._check_identity(identity)
            self._step_saved = state.step
            return state
        return None

    def clear(self) -> None:
        """Remove the files of an earlier training, and no others."""
        self.remove_states()
        for path in (self.path / MODEL_FILE, self.path / METRICS_FILE, *checkpoint_files(self.path)):
            path.unlink(missing_ok=True)

    def write_metrics(self, metrics: list[dict[str, Any]]) -> None:
        """Replace `metrics.jsonl` by these records."""
        with self._explained(0):
            write_atomically(self.path / METRICS_FILE, "".join(json.dumps(record) + "\n" for record in metrics))

    def append(self, record: dict[str, Any]) -> None:
        """Add a line to `metrics.jsonl`."""
        with self._explained(record["step"]), (self.path / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def save_model(self, model: HookedModel, progress: Mapping[str, Any], *, as_checkpoint: bool = False) -> None:
        """Save the model as `model.safetensors` or among the checkpoints; `progress` has its `step` and `tokens`."""
        file = f"{CHECKPOINTS_FOLDER}/step-{progress['step']:08d}.safetensors" if as_checkpoint else MODEL_FILE
        with self._explained(progress["step"]):
            save_checkpoint(self.path / file, model, process=self.process, provenance=self.provenance | dict(progress))

    def save_state(self, state: TrainingState) -> None:
        """Save the state that an interrupted training resumes from, and remove all but the newest two."""
        with self._explained(state.step):
            path = self.path / STATE_FOLDER / f"step-{state.step:08d}.safetensors"
            write_state(path, state, _identity(self.provenance))
            for old in self._state_files()[STATES_KEPT:]:
                old.unlink(missing_ok=True)
        self._step_saved = state.step

    def remove_states(self) -> None:
        """Remove the states of a training that has ended or starts again from step 0."""
        folder = self.path / STATE_FOLDER
        # A kill during a write leaves part of a state under a hidden name.
        for path in (*self._state_files(), *folder.glob(".step-*")):
            path.unlink(missing_ok=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()

    def _state_files(self) -> list[Path]:
        """The states in the folder, newest first."""
        return sorted((self.path / STATE_FOLDER).glob("step-*.safetensors"), reverse=True)

    def _check_identity(self, theirs: Mapping[str, Any]) -> None:
        ours = _identity(self.provenance)
        both = {key: (theirs.get(key), ours.get(key)) for key in sorted(theirs.keys() | ours.keys())}
        differing = [f"{key}={before!r}, now {now!r}" for key, (before, now) in both.items() if before != now]
        if differing:
            raise ValueError(f"{self._out} holds another training ({'; '.join(differing)}): {INSTEAD}.")

    @contextmanager
    def _explained(self, step: int) -> Iterator[None]:
        """Add to an `OSError` what was saved before and how to continue."""
        try:
            yield
        except OSError as error:
            saved = "nothing had been saved" if self._step_saved is None else f"step {self._step_saved} was saved"
            failed = f"Writing to {self.path} failed at step {step} ({error.strerror or error}); {saved}"
            message = f"{failed}. Make room, then call train again with the same folder"
            raise OSError(error.errno, message) from error


def _identity(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that decide the weights after each step; a resumed training must agree in them."""
    free = ("max_seconds", "target_regret", "save_every", "checkpoints", "n_checkpoints", "checkpoints_in")
    config = {key: value for key, value in provenance["training"].items() if key not in free}
    rest = ("process", "seed", "model", "initial_weights", "n_processes")
    return config | {key: provenance.get(key) for key in rest}
