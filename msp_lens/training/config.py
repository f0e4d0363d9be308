"""How to train: what is optimized, by what, for how long, and what is kept of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Optimizer = Literal["adamw", "muon", "sgd"]
Schedule = Literal["linear", "cosine", "constant"]
CheckpointSchedule = Literal["logarithmic", "linear"]

_AT_LEAST_1 = ("steps", "batch_size", "log_every", "save_every", "n_checkpoints")
_AT_LEAST_0 = ("weight_decay", "warmup_steps")
_ABOVE_0 = ("learning_rate", "clip_norm", "max_seconds", "target_regret")
_FROM_0_BELOW_1 = ("momentum", "averaging")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """By default AdamW on freshly sampled words: linear warm-up, then linear decay to 0.

    Attributes:
        steps: Optimizer steps, at most.
        batch_size: Words of n_ctx + 1 tokens in a step, in all processes together.
        optimizer: `"adamw"`, `"sgd"`, or `"muon"` for the matrices of the blocks and AdamW for all else.
        learning_rate: At its peak.
        betas: AdamW's averaging of gradient and squared gradient.
        momentum: Of SGD, by default 0, or of Muon, by default .95.
        weight_decay: AdamW's decoupled weight decay, or SGD's L2 penalty.
        schedule: After the warm-up: `"linear"` or `"cosine"` decay to 0 at `steps`, or `"constant"`.
        warmup_steps: Steps over which the learning rate rises.
        clip_norm: The largest norm that the whole gradient may have; a larger one is scaled down to it.
        mixed_precision: `"bfloat16"`: matrix products in that format, weights and loss in their own.
        averaging: Decay of an exponential moving average of the weights, which then is the model trained.
        max_seconds: Stop after so many seconds of training.
        target_regret: Stop at this mean regret, in nats; measured every `log_every` steps.
        log_every: Steps between lines of `metrics.jsonl`.
        save_every: Steps between savings of what an interrupted training goes on from, where a folder was given.
        checkpoints: Models to keep in the folder: after these steps, of which 0 is the untrained model; or
            `n_checkpoints` of them from 0 to `steps`, `"logarithmic"` or `"linear"`. The last step's is kept too.
        n_checkpoints: How many a schedule keeps; fewer where steps coincide.
        checkpoints_in: Whether `checkpoints` counts `"steps"` or `"tokens"`; it then means the first step by which
            so many have been predicted.
    """

    steps: int
    batch_size: int = 256
    optimizer: Optimizer = "adamw"
    learning_rate: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.98)
    momentum: float | None = None
    weight_decay: float = 0.0
    schedule: Schedule = "linear"
    warmup_steps: int = 100
    clip_norm: float | None = None
    mixed_precision: Literal["bfloat16"] | None = None
    averaging: float | None = None
    max_seconds: float | None = None
    target_regret: float | None = None
    log_every: int = 50
    save_every: int = 250
    checkpoints: tuple[int, ...] | CheckpointSchedule | None = None
    n_checkpoints: int = 20
    checkpoints_in: Literal["steps", "tokens"] = "steps"

    def __post_init__(self) -> None:
        choices = {
            "optimizer": get_args(Optimizer),
            "schedule": get_args(Schedule),
            "mixed_precision": ("bfloat16", None),
            "checkpoints_in": ("steps", "tokens"),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                self._refuse(field, f"choose one of {', '.join(map(repr, allowed))}")
        rules = (
            (_AT_LEAST_1, lambda value: value >= 1, "must be at least 1"),
            (_AT_LEAST_0, lambda value: value >= 0, "must be at least 0"),
            (_ABOVE_0, lambda value: value > 0, "must be above 0"),
            (_FROM_0_BELOW_1, lambda value: 0 <= value < 1, "must be from 0 to below 1"),
        )
        for fields, holds, rule in rules:
            for field in fields:
                value = getattr(self, field)
                if value is not None and not holds(value):
                    self._refuse(field, f"{field} {rule}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            self._refuse("betas", "two numbers from 0 to below 1")
        if isinstance(self.checkpoints, str) and self.checkpoints not in get_args(CheckpointSchedule):
            self._refuse("checkpoints", 'give steps, "logarithmic" or "linear"')
        if isinstance(self.checkpoints, tuple):
            last = self.steps if self.checkpoints_in == "steps" else math.inf
            if not all(0 <= step <= last for step in self.checkpoints):
                self._refuse("checkpoints", f"each must be from 0 to steps={self.steps}")

    def _refuse(self, field: str, rule: str) -> None:
        raise ValueError(f"TrainingConfig({field}={getattr(self, field)!r}): {rule}.")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step 0, 1, …: up over the warm-up, then by the schedule, to 0 at the end."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.schedule == "constant":
            return self.learning_rate * warm
        left = min(1.0, (self.steps - step) / max(1, self.steps - self.warmup_steps))
        decayed = left if self.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2
        return self.learning_rate * min(warm, decayed)

    def tokens_at(self, step: int, n_ctx: int) -> int:
        """Tokens predicted in the first `step` steps by a model with a context of `n_ctx`."""
        return step * self.batch_size * n_ctx

    def checkpoint_steps(self, n_ctx: int) -> tuple[int, ...]:
        """The steps after which a model is kept, in order; 0 is the untrained one.

        Raises:
            ValueError: if a checkpoint lies beyond the last token.

        Example:
            >>> TrainingConfig(steps=1000, checkpoints="logarithmic", n_checkpoints=5).checkpoint_steps(10)
            (0, 1, 10, 100, 1000)
        """
        if self.checkpoints is None:
            return ()
        if self.checkpoints == "linear":
            steps = [round(self.steps * k / max(1, self.n_checkpoints - 1)) for k in range(self.n_checkpoints)]
        elif self.checkpoints == "logarithmic":
            powers = [k / max(1, self.n_checkpoints - 2) for k in range(self.n_checkpoints - 1)]
            steps = [0, *(round(self.steps**power) for power in powers)]
        elif self.checkpoints_in == "tokens":
            steps = [math.ceil(tokens / self.tokens_at(1, n_ctx)) for tokens in self.checkpoints]
            if max(steps, default=0) > self.steps:
                raise ValueError(
                    f"TrainingConfig(checkpoints={self.checkpoints}): {self.steps} steps predict "
                    f"{self.tokens_at(self.steps, n_ctx)} tokens, fewer than {max(self.checkpoints)}."
                )
        else:
            steps = list(self.checkpoints)
        return tuple(sorted({*steps, self.steps}))

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TrainingConfig:
        """The config of `to_dict`'s values."""
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
        }
        return cls(**given)

    def __str__(self) -> str:
        """One field a line, those of other optimizers left out."""
        idle = {"adamw": ("momentum",), "muon": (), "sgd": ("betas",)}[self.optimizer]
        fields = {key: value for key, value in self.to_dict().items() if key not in idle and value is not None}
        if not isinstance(self.checkpoints, str):
            fields.pop("n_checkpoints")
        if self.checkpoints is None:
            fields.pop("checkpoints_in")
        return "\n".join(f"{key:16s} {value}" for key, value in fields.items())
