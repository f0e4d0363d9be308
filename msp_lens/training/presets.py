"""The presets: a model and how to train it, by name."""

from __future__ import annotations

from dataclasses import dataclass

from msp_lens.models.build import ModelConfig
from msp_lens.processes.process import Process
from msp_lens.training.config import TrainingConfig


@dataclass(frozen=True)
class Recipe:
    """A model and how to train it."""

    model: ModelConfig
    training: TrainingConfig

    def __str__(self) -> str:
        model = "\n".join(f"{key:16s} {value}" for key, value in self.model.to_dict().items() if value is not None)
        return f"Model\n{model}\n\nTraining\n{self.training}"


def paper_model(process: Process) -> ModelConfig:
    """The paper's architectures: for RRXOR the wider one that gives its published figure, else Mess3's."""
    if process.name == "rrxor":
        return ModelConfig(d_vocab=process.n_tokens, d_model=128, n_heads=4, d_head=16, d_mlp=512)
    return ModelConfig(d_vocab=process.n_tokens)


def quick(process: Process) -> Recipe:
    """About a minute on four cores, to well below 1e-3 nats of regret on the processes of the catalog."""
    rate = 2e-3 if process.name == "rrxor" else 3e-3
    return Recipe(paper_model(process), TrainingConfig(steps=1500, learning_rate=rate))


PRESETS = {"quick": quick}


def recipe(preset: str, process: Process) -> Recipe:
    """The preset's recipe for a process.

    Raises:
        KeyError: if there is no such preset.

    Example:
        >>> from msp_lens.processes.catalog import mess3
        >>> recipe("quick", mess3(x=0.05, a=0.85)).model.d_model
        64
    """
    if preset not in PRESETS:
        raise KeyError(f"No preset {preset!r}; there is {', '.join(PRESETS)}.")
    return PRESETS[preset](process)
