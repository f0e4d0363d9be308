"""How to train: what is optimized, by which optimizer, for how long, and which models are kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msp_lens._checks import Above, AtLeast, Below, Count, checked

Optimizer = Literal["adamw", "muon", "sgd"]
Schedule = Literal["linear", "cosine", "constant"]
Sampling = Literal["independent", "stratified"]
CheckpointSchedule = Literal["logarithmic", "linear"]

_Decay = Annotated[float, AtLeast(0), Below(1)]
_Size = Annotated[float, Above(0), Below(math.inf)]


@checked
@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train; by default with AdamW on independent words, with linear warm-up and linear decay to 0.

    Attributes:
        steps: Largest number of optimizer steps.
        batch_size: Words of n_ctx + 1 tokens in a step, over all processes.
        sampling: How words are drawn: `"independent"`, or `"stratified"`: each still with its probability, but evenly
            over a batch and from batch to batch, which makes gradients less noisy.
        optimizer: `"adamw"`, `"sgd"`, or `"muon"` for the matrices of the blocks with AdamW for all other weights.
        learning_rate: The peak learning rate.
        betas: AdamW's decay rates for the averages of the gradient and its square.
        momentum: Momentum of SGD (by default 0) or of Muon (by default .95).
        weight_decay: AdamW's and Muon's decoupled weight decay, or SGD's L2 penalty.
        schedule: After the warm-up: `"linear"` or `"cosine"` decay to 0 at `steps`, or `"constant"`.
        warmup_steps: Steps over which the learning rate rises.
        clip_norm: Largest norm of the whole gradient; a larger gradient is scaled down to it.
        mixed_precision: `"bfloat16"` computes matrix products in that format; weights and loss keep their own.
        averaging: Decay of an exponential moving average of the weights; the trained model has the averaged weights.
        max_seconds: Stop after this many seconds of training.
        target_regret: Stop at this mean regret, in nats; it is measured every `log_every` steps.
        log_every: Steps between lines of `metrics.jsonl`.
        save_every: Steps between saves of the state that an interrupted training resumes from.
        checkpoints: Models to keep in the folder: those after these steps (0 is the untrained model), or
            `n_checkpoints` of them from 0 to `steps`, spaced `"logarithmic"` or `"linear"`; and always the last one.
        n_checkpoints: How many models a schedule keeps; fewer where steps coincide.
        checkpoints_in: Whether `checkpoints` counts `"steps"` or `"tokens"`; a number of tokens means the first step
            after which at least that many have been predicted.
    """

    steps: Count = 1500
    batch_size: Count = 256
    sampling: Sampling = "independent"
    optimizer: Optimizer = "adamw"
    learning_rate: _Size = 3e-3
    betas: tuple[_Decay, _Decay] = (0.9, 0.98)
    momentum: _Decay | None = None
    weight_decay: Annotated[float, AtLeast(0), Below(math.inf)] = 0.0
    schedule: Schedule = "linear"
    warmup_steps: Annotated[int, AtLeast(0)] = 100
    clip_norm: _Size | None = None
    mixed_precision: Literal["bfloat16"] | None = None
    averaging: _Decay | None = None
    max_seconds: _Size | None = None
    target_regret: _Size | None = None
    log_every: Count = 50
    save_every: Count = 250
    checkpoints: tuple[int, ...] | CheckpointSchedule | None = None
    n_checkpoints: Count = 20
    checkpoints_in: Literal["steps", "tokens"] = "steps"

    def __post_init__(self) -> None:
        if isinstance(self.checkpoints, tuple):
            last = self.steps if self.checkpoints_in == "steps" else math.inf
            if not all(0 <= step <= last for step in self.checkpoints):
                raise ValueError(f"checkpoints={self.checkpoints}: each must be from 0 to steps={self.steps}.")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step 0, 1, …: it rises over the warm-up, then follows the schedule."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.schedule == "constant":
            return self.learning_rate * warm
        left = min(1.0, (self.steps - step) / max(1, self.steps - self.warmup_steps))
        decayed = left if self.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2
        return self.learning_rate * min(warm, decayed)

    def tokens_at(self, step: int, n_ctx: int) -> int:
        """Number of tokens predicted in the first `step` steps by a model with a context of `n_ctx`."""
        return step * self.batch_size * n_ctx

    @checked
    def checkpoint_steps(self, n_ctx: Count) -> tuple[int, ...]:
        """The steps after which a model is kept, in order; 0 is the untrained model.

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
                most = f"steps={self.steps} predict only {self.tokens_at(self.steps, n_ctx)} tokens"
                raise ValueError(f"checkpoints={self.checkpoints}: {most}. Ask for fewer, or train longer.")
        else:
            steps = list(self.checkpoints)
        return tuple(sorted({*steps, self.steps}))

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    @classmethod
    @checked
    def from_dict(cls, fields: Mapping[str, Any]) -> TrainingConfig:
        """The config that `to_dict` described."""
        return cls(**fields)

    def __str__(self) -> str:
        """One field a line, without the fields that this optimizer does not use."""
        idle = [*{"adamw": ("momentum",), "muon": (), "sgd": ("betas",)}[self.optimizer]]
        idle += [] if isinstance(self.checkpoints, str) else ["n_checkpoints"]
        idle += [] if self.checkpoints is not None else ["checkpoints_in"]
        fields = {key: value for key, value in self.to_dict().items() if key not in idle and value is not None}
        return "\n".join(f"{key:16s} {value}" for key, value in fields.items())
