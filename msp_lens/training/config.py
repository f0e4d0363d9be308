"""Training recipes: what is optimised, how, for how long; and the presets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from msp_lens.models.build import ModelConfig
from msp_lens.processes.process import Process


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """AdamW on freshly sampled words: linear warm-up, then linear decay to 0.

    Attributes:
        steps: Optimiser steps.
        batch_size: Words of n_ctx + 1 tokens in a step.
        learning_rate: At its peak.
        betas: AdamW's averaging of gradient and squared gradient.
        weight_decay: AdamW's decoupled weight decay.
        warmup_steps: Steps over which the learning rate rises.
        log_every: Steps between lines of `metrics.jsonl`.
        save_every: Steps between checkpoints, where a folder was given.
    """

    steps: int
    batch_size: int = 256
    learning_rate: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.0
    warmup_steps: int = 100
    log_every: int = 50
    save_every: int = 250

    def __post_init__(self) -> None:
        for field in ("steps", "batch_size", "log_every", "save_every"):
            if getattr(self, field) < 1:
                raise ValueError(f"TrainingConfig({field}={getattr(self, field)}): {field} must be at least 1.")
        if not self.learning_rate > 0 or self.weight_decay < 0 or self.warmup_steps < 0:
            raise ValueError(
                f"TrainingConfig(learning_rate={self.learning_rate}, weight_decay={self.weight_decay}, "
                f"warmup_steps={self.warmup_steps}): the first must be > 0, the others ≥ 0."
            )

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step 0, 1, …: up over the warm-up, then down to 0 at the end."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        left = (self.steps - step) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * min(warm, left, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Recipe:
    """A model and how to train it."""

    model: ModelConfig
    training: TrainingConfig


def quick(process: Process) -> Recipe:
    """About a minute on four cores, to well below 1e-3 nats of regret on the processes of the catalog.

    The paper's architectures: for RRXOR the wider one that gives its published figure, else Mess3's.
    """
    if process.name == "rrxor":
        model = ModelConfig(d_vocab=process.n_tokens, d_model=128, n_heads=4, d_head=16, d_mlp=512)
        return Recipe(model, TrainingConfig(steps=1500, learning_rate=2e-3))
    return Recipe(ModelConfig(d_vocab=process.n_tokens), TrainingConfig(steps=1500))


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
