"""The state that an interrupted training resumes from, bit for bit: all that decides the remaining steps, in one file.

It holds the weights, the optimizer's memory, the averaged weights, the generator's state, the step and the metrics.
`RunFolder` keeps the two newest states, each written whole, so at least one survives a kill or a full disk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from msp_lens._files import read_tensors, write_atomically
from msp_lens.models.model_files import state_fingerprint

_HEADER = "msp_lens_training"


@dataclass(frozen=True, eq=False)
class TrainingState:
    """A training between two steps; its tensors are `model.…`, `optimizer.…`, `average.…`, `sums.…`, `generator`."""

    step: int
    seconds: float
    metrics: list[dict[str, Any]]
    tensors: Mapping[str, Tensor]

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors of a part, by their names in it."""
        prefix = f"{name}."
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}


def write_state(path: Path, state: TrainingState, identity: Mapping[str, Any]) -> None:
    """Write a state to a file, with the JSON-ready `identity` of its training."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    description = {"identity": dict(identity), "step": state.step, "seconds": state.seconds, "metrics": state.metrics}
    text = json.dumps(description | {"fingerprint": state_fingerprint(tensors)})
    write_atomically(path, save(tensors, metadata={_HEADER: text, "sha256": hashlib.sha256(text.encode()).hexdigest()}))


def read_state(path: Path) -> tuple[TrainingState, dict[str, Any]]:
    """The state in a file, and the identity of its training; `ValueError` if the file is damaged."""
    tensors, header = read_tensors(path)
    text = header.get(_HEADER, "")
    if header.get("sha256") != hashlib.sha256(text.encode()).hexdigest():
        raise ValueError(f"{path} is damaged: its description does not match its checksum.")
    description = json.loads(text)
    if state_fingerprint(tensors) != description["fingerprint"]:
        raise ValueError(f"{path} is damaged: its tensors do not match their fingerprint.")
    state = TrainingState(description["step"], description["seconds"], description["metrics"], tensors)
    return state, description["identity"]
