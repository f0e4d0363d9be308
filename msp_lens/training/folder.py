"""A run's folder during its training: `metrics.jsonl`, `model.safetensors`, checkpoints and training states.

Every file is replaced whole, so a training killed at any moment leaves a usable model, checkpoints and state. Only
`metrics.jsonl` grows line by line; it is cut back to the state that a training resumes from.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from msp_lens._distributed import is_main
from msp_lens._files import locked, remove_leftovers, write_atomically
from msp_lens.models.hooked import HookedModel
from msp_lens.models.model_files import MODEL_FILE, save_checkpoint
from msp_lens.processes.process import Process
from msp_lens.training.checkpoints import CHECKPOINTS_FOLDER, checkpoint_files, read_provenance
from msp_lens.training.resume import TrainingState, read_state, write_state
from msp_lens.training.training_run import METRICS_FILE

STATE_FOLDER = "training_state"
STATES_KEPT = 2
INSTEAD = "give another folder, or replace it with resume=False (--fresh)"


def check_is_folder(out: Path) -> None:
    """Raise `ValueError` if the path is a file, or would be taken for one."""
    if out.is_file():
        raise ValueError(f"out={str(out)!r} is a file: give a folder.")
    if out.suffix.lower() in (".safetensors", ".json", ".jsonl", ".html", ".png", ".gif"):
        raise ValueError(f"out={str(out)!r} is a file's name: give a folder, such as {str(out.with_suffix(''))!r}.")


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Keep others from writing to a folder, which is created if need be. One of several processes does it for all.

    Raises:
        ValueError: if somebody else writes there.
        OSError: if the folder can't be written to.
    """
    # Before torch.distributed starts, torchrun tells a process its number by RANK.
    is_first = is_main() and (os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0")
    with ExitStack() as stack:
        if is_first:
            with _reachable(folder):
                stack.enter_context(locked(folder))
                tempfile.TemporaryFile(dir=folder).close()
        yield


@contextmanager
def _reachable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"{folder} can't be written to ({error.strerror}): give another folder"
        raise OSError(error.errno, message) from error


class RunFolder:
    """Writes one training to its folder, and reads there how far it had come.

    `provenance` are JSON-ready facts known before the first step: the config under `training`, seed, versions.
    """

    def __init__(self, path: str | Path, process: Process, provenance: Mapping[str, Any]) -> None:
        self.path, self.process, self._out = Path(path), process, f"out={str(path)!r}"
        self.provenance: dict[str, Any] = json.loads(json.dumps(dict(provenance)))
        self._has_begun = False

    def check(self, model: HookedModel, n_checkpoints: int) -> None:
        """Raise `OSError` if the folder can't be written to or its disk lacks space for all files to come."""
        with _reachable(self.path):
            for folder in (self.path, self.path / CHECKPOINTS_FOLDER, self.path / STATE_FOLDER):
                remove_leftovers(folder)
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        # A state holds weights, two moments and an average. Each kind of file exists once more while it is replaced.
        needed = size * (2 + n_checkpoints + 4 * (STATES_KEPT + 1))
        free = shutil.disk_usage(self.path).free
        if free < needed:
            sizes = f"{free / 2**20:.0f} MiB free, and this training writes up to {needed / 2**20:.0f} MiB"
            remedy = "free some space, keep fewer checkpoints, or give another folder"
            raise OSError(errno.ENOSPC, f"{self._out} has {sizes}: {remedy}")

    def has_ended(self) -> bool:
        """Whether the folder holds this training with all its steps made.

        Raises:
            ValueError: if it holds the model, a checkpoint or the metrics of another training.
        """
        path = self.path / MODEL_FILE
        for checkpoint in checkpoint_files(self.path):
            self._check_identity(read_provenance(checkpoint), f"{CHECKPOINTS_FOLDER}/{checkpoint.name}")
        if path.exists():
            try:
                provenance = read_provenance(path)
            except ValueError as error:
                warnings.warn(f"{error} The training ignores this file.", RuntimeWarning, stacklevel=2)
            else:
                self._check_identity(provenance, MODEL_FILE)
                return provenance.get("stopped_by") == "steps"
        if not self._state_files() and (self.path / METRICS_FILE).exists():
            raise ValueError(f"{self._out} holds {METRICS_FILE} of a training that left nothing else: {INSTEAD}.")
        return False

    def resume(self) -> TrainingState | None:
        """The newest undamaged state, if any; a warning names each damaged one, `ValueError` another training."""
        for path in self._state_files():
            try:
                state, identity = read_state(path)
            except ValueError as error:
                warnings.warn(f"{error} Resuming from the state before it.", RuntimeWarning, stacklevel=2)
                continue
            self._check_differences(identity, f"{STATE_FOLDER}/{path.name}")
            return state
        return None

    def clear(self) -> None:
        """Remove the files of an earlier training, and no others."""
        self.remove_states()
        for path in (self.path / MODEL_FILE, self.path / METRICS_FILE, *checkpoint_files(self.path)):
            path.unlink(missing_ok=True)

    def write_metrics(self, metrics: list[dict[str, Any]]) -> None:
        """Replace `metrics.jsonl` by these records."""
        with self._explained(metrics[-1]["step"] if metrics else 0):
            write_atomically(self.path / METRICS_FILE, "".join(json.dumps(record) + "\n" for record in metrics))
        self._has_begun = True

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

    def remove_states(self) -> None:
        """Remove the states of a training that has ended or starts again from step 0."""
        folder = self.path / STATE_FOLDER
        for path in self._state_files():
            path.unlink(missing_ok=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()

    def _state_files(self) -> list[Path]:
        """The states in the folder, newest first."""
        return sorted((self.path / STATE_FOLDER).glob("step-*.safetensors"), reverse=True)

    def _check_identity(self, provenance: Mapping[str, Any], file: str) -> None:
        if "training" not in provenance:
            raise ValueError(f"{self._out} holds {file}, a model that no training saved: {INSTEAD}.")
        self._check_differences(_identity(provenance), file)

    def _check_differences(self, theirs: Mapping[str, Any], file: str) -> None:
        before, now = _flat(theirs), _flat(_identity(self.provenance))
        differing = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
        # The initial weights follow from the others.
        differing = [name for name in differing if name != "initial_weights"] or differing
        if differing:
            shown = [f"{name}={_short(before.get(name))}, now {_short(now.get(name))}" for name in differing[:5]]
            shown += [f"and {len(differing) - 5} more"] if len(differing) > 5 else []
            raise ValueError(f"{self._out} holds another training ({file}: {'; '.join(shown)}): {INSTEAD}.")

    @contextmanager
    def _explained(self, step: int) -> Iterator[None]:
        """Add to an `OSError` what was saved before and how to continue."""
        try:
            if self._has_begun and not (self.path / METRICS_FILE).exists():
                raise FileNotFoundError(errno.ENOENT, f"the folder or its {METRICS_FILE} was removed")
            yield
        except OSError as error:
            states = [path.stem for path in self._state_files()]
            saved = f"step {int(states[0].removeprefix('step-'))} was saved" if states else "nothing is saved there"
            failed = f"Writing to {self.path} failed at step {step} ({error.strerror or error}); {saved}"
            first = "Make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Make it writable"
            message = f"{failed}. {first}, then start it again with the same folder"
            raise OSError(error.errno, message) from error


def _identity(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that decide the weights after each step; a resumed training must agree in them."""
    free = ("max_seconds", "target_regret", "save_every", "checkpoints", "n_checkpoints", "checkpoints_in")
    config = {key: value for key, value in provenance["training"].items() if key not in free}
    rest = ("process", "seed", "model", "initial_weights", "n_processes")
    return config | {key: provenance.get(key) for key in rest}


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity with the model's fields one by one, as `model.d_model`."""
    model = identity.get("model") or {}
    return {name: value for name, value in identity.items() if name != "model"} | {
        f"model.{name}": value for name, value in model.items()
    }


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
