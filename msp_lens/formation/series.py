"""A series of models over one training: checkpoints of this library, files and models of others, by step."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import torch
from torch import nn

from msp_lens._checks import AtLeast, converted, shown
from msp_lens.models.build import config_class, config_fields
from msp_lens.models.hooked import HookedModel
from msp_lens.models.model_files import Checkpoint, model_fingerprint
from msp_lens.processes.process import Process
from msp_lens.training.checkpoints import SavedCheckpoint, read_description, saved_checkpoints
from msp_lens.training.training_run import TrainingRun


@dataclass(frozen=True, eq=False)
class ModelAtStep:
    """A model in memory, as it was at one step of its training.

    Attributes:
        step: Number of optimizer steps made.
        model: The model.
        process: The process it was trained on, if that is known.
        tokens: Number of tokens predicted by then, if that is known.
    """

    step: int
    model: HookedModel = field(repr=False)
    process: Process | None = None
    tokens: int | None = None

    @property
    def path(self) -> str:
        """What messages call it: it has no file."""
        return f"the model of step {self.step}"

    @property
    def description(self) -> dict[str, Any]:
        """The model's config and the process, as for a `SavedCheckpoint`."""
        config = config_fields(self.model) if hasattr(self.model, "cfg") else {}
        return {"model": config, "process": self.process.to_dict() if self.process is not None else None}

    def load(self, *, device: str | torch.device = "cpu") -> Checkpoint:
        """The model, where it is: the device is for models that are read from files."""
        return Checkpoint(self.model, self.process, {}, model_fingerprint(self.model))


Series: TypeAlias = (
    "str | Path | TrainingRun | Sequence[SavedCheckpoint] | Mapping[int, HookedModel | Checkpoint | str | Path]"
)
AtStep: TypeAlias = SavedCheckpoint | ModelAtStep

_REMEDY = (
    "give a training with TrainingConfig(checkpoints=…) and out=, its folder, some of saved_checkpoints(folder), or "
    "models by step: {0: model, 100: path}"
)


def series(run: Series) -> tuple[AtStep, ...]:
    """The checkpoints of one training, by step; no weights of files are read.

    Raises:
        TypeError: if `run` is something else.
        ValueError: if there are none, or they are not of one training.
        FileNotFoundError: if the folder or the training holds no checkpoints.
    """
    if isinstance(run, TrainingRun):
        found: Sequence[Any] = run.checkpoints
    elif isinstance(run, str | Path):
        found = saved_checkpoints(converted(run, Path, "run"))
    elif isinstance(run, Mapping):
        found = [_at_step(step, given) for step, given in run.items()]
    elif isinstance(run, Sequence):
        found = run
    else:
        raise TypeError(f"run={shown(run)}: {_REMEDY}.")
    if others := [each for each in found if not isinstance(each, AtStep)]:
        raise TypeError(f"run holds {type(others[0]).__name__}, without its step: {_REMEDY}.")
    checkpoints = tuple(sorted(found, key=lambda each: each.step))
    _check_alike(checkpoints)
    return checkpoints


def _at_step(step: Any, given: Any) -> AtStep:
    step = converted(step, Annotated[int, AtLeast(0)], "run: step")
    if isinstance(given, AtStep):
        return replace(given, step=step)
    if isinstance(given, Checkpoint):
        return ModelAtStep(step, given.model, given.process)
    if isinstance(given, nn.Module):
        return ModelAtStep(step, given)  # pyright: ignore[reportArgumentType]
    path = converted(given, Path, f"run[{step}]")
    description = read_description(path)
    if not description:
        remedy = "build the model, load_weights(model, state), and give the model in its place"
        raise ValueError(f"run[{step}]={str(path)!r} was not saved by msp_lens: {remedy}.")
    provenance = description.get("provenance") or {}
    return SavedCheckpoint(step, provenance.get("tokens") if provenance.get("step") == step else None, path)


def _check_alike(checkpoints: Sequence[AtStep]) -> None:
    """Raise `ValueError` unless there are some, in order, of one process and architecture; no weights are read."""
    if not checkpoints:
        raise ValueError(f"run holds no checkpoints: {_REMEDY}.")
    for before, after in itertools.pairwise(checkpoints):
        if before.step == after.step:
            raise ValueError(
                f"{before.path} and {after.path} are both of step {after.step}: give the checkpoints of one training."
            )
    first, *others = checkpoints
    model, process = first.description["model"], process_of(checkpoints)
    models = [each.model for each in checkpoints if isinstance(each, ModelAtStep)]
    if len({id(each) for each in models}) < len(models):
        raise ValueError("run holds one model object at several steps: copy it before training it further.")
    for other in others:
        if (its_own := process_of([other])) not in (None, process):
            trained = f"{other.path} was trained on {its_own!r}, others on {process!r}"
            raise ValueError(f"{trained}: give the checkpoints of one training.")
        changed = other.description["model"]
        differing = [
            f"{field.name} is {changed.get(field.name)}, not {model.get(field.name)}"
            for field in fields(config_class(model))
            if changed.get(field.name) != model.get(field.name)
        ]
        if differing:
            what = f"{other.path} is of another architecture than {first.path}: {', '.join(differing)}"
            raise ValueError(f"{what}. Give the checkpoints of one training.")


def process_of(checkpoints: Sequence[AtStep]) -> Process | None:
    """The process that the first checkpoint which names one was trained on."""
    definitions = (each.description.get("process") for each in checkpoints)
    return next((Process.from_dict(definition) for definition in definitions if definition), None)
