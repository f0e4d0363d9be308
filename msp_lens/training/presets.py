"""The presets: a model and how to train it, by name. `tests/benchmarks/what_was_tried.md` says how they were chosen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

from msp_lens._checks import checked
from msp_lens._names import meant
from msp_lens.models.architecture import RecurrentConfig, RecurrentKind
from msp_lens.models.build import ModelConfig
from msp_lens.processes.process import Process
from msp_lens.training.config import TrainingConfig


@checked
@dataclass(frozen=True)
class Recipe:
    """A model and how to train it."""

    model: ModelConfig | RecurrentConfig
    training: TrainingConfig

    def __str__(self) -> str:
        model = "\n".join(f"{key:16s} {value}" for key, value in self.model.to_dict().items() if value is not None)
        return f"Model\n{model}\n\nTraining\n{self.training}"


def paper_model(process: Process) -> ModelConfig:
    """The paper's architecture for Mess3, or for RRXOR the wider one that its published figure needs."""
    wider: Any = {"d_model": 128, "n_heads": 4, "d_head": 16, "d_mlp": 512} if process.name == "rrxor" else {}
    return ModelConfig(d_vocab=process.n_tokens, **wider)


def quick(process: Process) -> Recipe:
    """About a minute on one core; the regret falls well below 1e-3 nats on most."""
    sizes = {"mess3": (1000, 128, 3e-3), "rrxor": (400, 96, 4e-3)}
    steps, batch_size, rate = sizes.get(process.name, (1500, 128, 3e-3))
    return Recipe(paper_model(process), _evenly_drawn(steps, batch_size, rate))


def tiny(process: Process) -> Recipe:
    """Seconds on one core, to try out an installation or a script. What it trains is too small to be a result."""
    small = ModelConfig(d_vocab=process.n_tokens, n_layers=1, d_model=16, d_mlp=32, n_ctx=6)
    return Recipe(small, TrainingConfig(steps=100, batch_size=64, learning_rate=1e-2, warmup_steps=10))


def paper(process: Process) -> Recipe:
    """A loss within 1.0002 of the least possible one, as in the paper, in minutes instead of 56 hours."""
    steps, batch_size = {"mess3": (2000, 128), "rrxor": (800, 256)}.get(process.name, (3000, 256))
    return Recipe(paper_model(process), _evenly_drawn(steps, batch_size, 3e-3))


def _evenly_drawn(steps: int, batch_size: int, learning_rate: float) -> TrainingConfig:
    """Muon on words that are drawn evenly: either reaches a lower regret in the same time."""
    config = TrainingConfig(steps=steps, batch_size=batch_size, learning_rate=learning_rate)
    return replace(config, optimizer="muon", sampling="stratified")


def shai2024(process: Process) -> Recipe:
    """The paper's own training: plain SGD, 1,000,000 steps of 64 words, about 56 hours.

    Source: Shai et al. 2024 (arXiv 2405.15943), appendix.
    """
    sgd = TrainingConfig(steps=1_000_000, batch_size=64, optimizer="sgd", learning_rate=0.01, schedule="constant")
    return Recipe(paper_model(process), replace(sgd, warmup_steps=0, log_every=1_000, save_every=10_000))


def _recurrent(kind: RecurrentKind, process: Process) -> Recipe:
    """A recurrent network of the paper's width; half a minute on one core, the state-space model's about a minute."""
    n_layers = 2 if kind == "ssm" else 1
    return Recipe(RecurrentConfig(kind=kind, d_vocab=process.n_tokens, n_layers=n_layers), TrainingConfig())


PRESETS = {"quick": quick, "tiny": tiny, "paper": paper, "shai2024": shai2024}
PRESETS |= {kind: partial(_recurrent, kind) for kind in get_args(RecurrentKind)}


@checked
def recipe(preset: str, process: Process) -> Recipe:
    """The preset's recipe for a process.

    Raises:
        KeyError: if there is no such preset.
        TypeError: if `process` is not a Process.

    Example:
        >>> from msp_lens.processes.catalog import mess3
        >>> recipe("quick", mess3(x=0.05, a=0.85)).model.d_model
        64
    """
    if preset not in PRESETS:
        there_are = ", ".join(map(repr, PRESETS))
        raise KeyError(f"No preset {preset!r}: choose one of {there_are}.{meant(preset, PRESETS)}")
    return PRESETS[preset](process)
