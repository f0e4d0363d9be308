"""What an interrupted training goes on from: everything that decides the rest of it, in one file.

Weights, what the optimizer remembers, the average, the generator's state, the step and the metrics so far. The two
newest are kept, each replaced whole: a killed or full machine leaves at least one to go on from, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from msp_lens._files import read_tensors, write_atomically
from msp_lens.models.model_files import state_fingerprint

STATE_FOLDER = "training_state"
STATES_KEPT = 2
_HEADER = "msp_lens_training"


@dataclass(frozen=True, eq=False)
class TrainingState:
    """A training between two steps.

    Attributes:
        step: Optimizer steps made.
        seconds: Spent on them.
        metrics: Records so far.
        tensors: By part and name: `model.…`, `optimizer.…`, `average.…`, `generator`, `sums.…`.
    """

    step: int
    seconds: float
    metrics: list[dict[str, Any]]
    tensors: Mapping[str, Tensor]

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors of a part, by their names in it."""
        prefix = f"{name}."
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}


def save_state(folder: Path, state: TrainingState, identity: Mapping[str, Any]) -> None:
    """Write the state, and remove all but the newest two.

    Args:
        folder: The run's.
        state: To be saved.
        identity: What decides the training's result, JSON-ready; a later start must agree with it.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    description = {
        "identity": dict(identity),
        "step": state.step,
        "seconds": state.seconds,
        "metrics": state.metrics,
        "fingerprint": state_fingerprint(tensors),
    }
    text = json.dumps(description)
    header = {_HEADER: text, "sha256": _digest(text)}
    write_atomically(folder / STATE_FOLDER / f"step-{state.step:08d}.safetensors", save(tensors, metadata=header))
    for old in _files(folder)[STATES_KEPT:]:
        old.unlink(missing_ok=True)


def newest_state(folder: Path, identity: Mapping[str, Any]) -> TrainingState | None:
    """The newest whole state in the run's folder; damaged ones are named in a warning. `None` if there is none.

    Raises:
        ValueError: if the state is of a training that differs in its identity; the message names how.
    """
    for path in _files(folder):
        try:
            state, theirs = _read(path)
        except ValueError as error:
            warnings.warn(f"{error} Going on from the training state before it.", RuntimeWarning, stacklevel=2)
            continue
        check_identity(folder, theirs, identity)
        return state
    return None


def remove_states(folder: Path) -> None:
    """Remove the states of a training that has ended, or is not to be gone on with."""
    # A kill in the midst of writing leaves half a state behind, under a hidden name.
    for path in (*_files(folder), *(folder / STATE_FOLDER).glob(".step-*")):
        path.unlink(missing_ok=True)
    if (folder / STATE_FOLDER).is_dir() and not any((folder / STATE_FOLDER).iterdir()):
        (folder / STATE_FOLDER).rmdir()


def check_identity(folder: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raise `ValueError` with what differs between the training in the folder and this one."""
    differing = [
        f"{key}={theirs.get(key)!r}, now {ours.get(key)!r}"
        for key in sorted(theirs.keys() | ours.keys())
        if theirs.get(key) != ours.get(key)
    ]
    if differing:
        raise ValueError(
            f"out={str(folder)!r} holds another training ({'; '.join(differing)}): give another folder, or begin "
            "anew with resume=False."
        )


def _read(path: Path) -> tuple[TrainingState, dict[str, Any]]:
    tensors, header = read_tensors(path)
    text = header.get(_HEADER, "")
    if header.get("sha256") != _digest(text):
        raise ValueError(f"{path} is damaged: its description does not match its checksum.")
    description = json.loads(text)
    if state_fingerprint(tensors) != description["fingerprint"]:
        raise ValueError(f"{path} is damaged: its tensors do not match their fingerprint.")
    state = TrainingState(description["step"], description["seconds"], description["metrics"], tensors)
    return state, description["identity"]


def _files(folder: Path) -> list[Path]:
    """The states in the folder, newest first."""
    return sorted((folder / STATE_FOLDER).glob("step-*.safetensors"), reverse=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
