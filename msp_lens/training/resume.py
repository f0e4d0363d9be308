"""The state that an interrupted training resumes from, bit for bit: all that decides the remaining steps, in one file.

It holds the weights, the optimizer's memory, the averaged weights, the generator's state, the step and the metrics.
`RunFolder` keeps the two newest states, each written whole, so at least one survives a kill or a full disk.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

import torch
from torch import Tensor

from msp_lens._checks import AtLeast
from msp_lens._files import check_tensors, read_entry, read_tensors, write_tensors
from msp_lens.training.metrics import SavedRecord

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


class _Description(TypedDict):
    identity: dict[str, Any]
    step: Annotated[int, AtLeast(0)]
    seconds: Annotated[float, AtLeast(0)]
    metrics: list[SavedRecord]


def write_state(path: Path, state: TrainingState, identity: Mapping[str, Any]) -> None:
    """Write a state to a file, with the JSON-ready `identity` of its training."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    description = {"identity": dict(identity), "step": state.step, "seconds": state.seconds, "metrics": state.metrics}
    write_tensors(path, tensors, {_HEADER: json.dumps(description)})


def read_state(path: Path) -> tuple[TrainingState, dict[str, Any]]:
    """The state in a file, and the identity of its training; `ValueError` if the file is damaged."""
    tensors, header = read_tensors(path)
    description = read_entry(header, _HEADER, _Description, path)
    check_tensors(tensors, {"sums.loss": (), "sums.regret": (None,), "sums.steps": ()}, path)
    check_tensors(tensors, {"generator": (None,)}, path, dtype=torch.uint8)
    state = TrainingState(description["step"], description["seconds"], description["metrics"], tensors)
    return state, description["identity"]
