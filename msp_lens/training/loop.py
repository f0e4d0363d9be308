"""The training loop: words of n_ctx + 1 freshly sampled tokens, so that every position has a target.

The loss at each position is compared with what the optimal observer would have lost on the same tokens: the
difference estimates the regret with far less noise than the loss alone.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float64, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from msp_lens.beliefs.filtering import filter_beliefs, next_token_probabilities
from msp_lens.beliefs.information import optimal_losses
from msp_lens.data import words_for
from msp_lens.models.build import ModelConfig, build_model
from msp_lens.models.checkpoints import save_checkpoint
from msp_lens.models.hooked import HookedModel, check_fits, context_length, model_device
from msp_lens.processes.process import Process
from msp_lens.training.checkpoints import save_training_checkpoint
from msp_lens.training.config import TrainingConfig
from msp_lens.training.presets import recipe
from msp_lens.training.regret import regret_by_position

METRICS_FILE = "metrics.jsonl"
# Steps whose words are drawn at once: sampling is cheap in bulk.
STEPS_PER_DRAW = 50


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """A trained model and how it got there.

    Attributes:
        model: The trained model, in evaluation mode.
        process: What it was trained on.
        config: How.
        metrics: One record every `log_every` steps: step, tokens, loss, regret (paired estimate), both in nats.
        regret: E KL(optimal ‖ model) at each position at the end, in nats, over the population of words.
        optimum: The least possible loss at each position, in nats.
        seed: Of the initial weights and the data.
        seconds: Wall time of the training steps.
    """

    model: HookedModel
    process: Process
    config: TrainingConfig
    metrics: tuple[dict[str, float], ...]
    regret: Float64[Tensor, "pos"]
    optimum: Float64[Tensor, "pos"]
    seed: int
    seconds: float

    def to_dataframe(self) -> pd.DataFrame:
        """The metrics, one row a record."""
        return pd.DataFrame(list(self.metrics))

    def __repr__(self) -> str:
        return (
            f"TrainingRun({self.process.name}: {self.config.steps} steps in {self.seconds:.0f} s, "
            f"regret {float(self.regret.mean()):.2g} nats, optimum {float(self.optimum.mean()):.5f})"
        )


def train(
    process: Process,
    model: HookedModel | ModelConfig | None = None,
    *,
    preset: str = "quick",
    config: TrainingConfig | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    out: str | Path | None = None,
    progress: bool = True,
) -> TrainingRun:
    """Train a transformer to predict the process's tokens.

    Args:
        process: What emits the tokens.
        model: A model to train in place, or the config of a new one; by default the preset's.
        preset: Name of a recipe; `"quick"` is about a minute on four cores.
        config: How to train; by default the preset's.
        seed: Seed of the initial weights and of the data. No process-wide random state is touched.
        device: Where a new model goes. One that is given stays where it is.
        out: Folder for `metrics.jsonl` and, as training goes on, `model.safetensors`.
        progress: Whether to show a progress bar.

    Raises:
        KeyError: if there is no such preset.
        ValueError: if the model's vocabulary is too small; if the loss stops being a number, naming the step.

    Example:
        >>> from msp_lens.processes.catalog import z1r
        >>> from msp_lens.training.config import TrainingConfig
        >>> run = train(z1r(), config=TrainingConfig(steps=2), progress=False)
        >>> len(run.regret)
        10
    """
    chosen = recipe(preset, process)
    config = config or chosen.training
    if model is None or isinstance(model, ModelConfig):
        model = build_model(model or chosen.model, seed=seed, device=device)
    n_ctx = context_length(model)
    if n_ctx is None:
        raise ValueError("The model does not say how long its context is: it needs cfg.n_ctx to be trained.")
    check_fits(model, process, n_ctx)
    optimum = optimal_losses(process, n_ctx)

    started = time.perf_counter()
    metrics = _optimise(model, process, config, n_ctx, float(optimum.mean()), seed=seed, out=out, progress=progress)
    seconds = time.perf_counter() - started
    model.train(False)
    population = words_for(process, n_ctx, seed=seed)
    regret = regret_by_position(model, population, progress="Evaluating" if progress else None)
    return TrainingRun(model, process, config, tuple(metrics), regret, optimum, seed, seconds)


def _optimise(
    model: HookedModel,
    process: Process,
    config: TrainingConfig,
    n_ctx: int,
    optimum: float,
    *,
    seed: int,
    out: str | Path | None,
    progress: bool,
) -> list[dict[str, float]]:
    # Foreach kernels are off by default on the CPU, where many small parameters make them worthwhile.
    optimiser = torch.optim.AdamW(
        model.parameters(),
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        foreach=True,
    )
    model.train()
    checkpoint_steps = config.checkpoint_steps(n_ctx) if out is not None else ()

    def provenance(step: int) -> dict[str, Any]:
        return {
            "training": config.to_dict(),
            "seed": seed,
            "step": step,
            "tokens": config.tokens_at(step, n_ctx),
        }

    if out is not None and 0 in checkpoint_steps:
        save_training_checkpoint(out, model, process=process, provenance=provenance(0))
    metrics: list[dict[str, float]] = []
    since_log: list[tuple[float, float]] = []
    batches = _batches(process, config, n_ctx, seed=seed, device=model_device(model))
    with tqdm(batches, total=config.steps, desc="Training", unit="step", disable=not progress) as bar:
        for step, (tokens, optimal_loss) in enumerate(bar, start=1):
            rate = config.learning_rate_at(step - 1)
            for group in optimiser.param_groups:
                group["lr"] = rate
            logits = model(tokens[:, :-1])
            loss = cross_entropy(rearrange(logits, "batch pos token -> batch token pos"), tokens[:, 1:])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            since_log.append((loss.item(), optimal_loss))
            if not math.isfinite(since_log[-1][0]):
                raise ValueError(
                    f"The loss became {since_log[-1][0]} at step {step}: lower the learning rate "
                    f"({config.learning_rate:g}) or lengthen the warm-up ({config.warmup_steps} steps)."
                )
            if step % config.log_every == 0 or step == config.steps:
                mean_loss, mean_optimal = (sum(values) / len(since_log) for values in zip(*since_log, strict=True))
                since_log.clear()
                record = {
                    "step": step,
                    "tokens": step * config.batch_size * n_ctx,
                    "loss": mean_loss,
                    "regret": mean_loss - mean_optimal,
                    "learning_rate": rate,
                }
                metrics.append(record)
                bar.set_postfix_str(
                    f"loss {optimum + record['regret']:.4f}, optimum {optimum:.4f}, regret {record['regret']:.1e} nats"
                )
                if out is not None:
                    _append_line(Path(out) / METRICS_FILE, record)
            if out is not None and (step % config.save_every == 0 or step == config.steps):
                save_checkpoint(out, model, process=process, provenance=provenance(step))
            if out is not None and step in checkpoint_steps:
                save_training_checkpoint(out, model, process=process, provenance=provenance(step))
    return metrics


def _batches(
    process: Process, config: TrainingConfig, n_ctx: int, *, seed: int, device: torch.device
) -> Iterator[tuple[Int[Tensor, "word pos"], float]]:
    """Fresh words for each step, and the optimal observer's mean loss on those very tokens."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, config.steps, STEPS_PER_DRAW):
        n_steps = min(STEPS_PER_DRAW, config.steps - start)
        words = process.sample(n_steps * config.batch_size, n_ctx + 1, generator=generator)
        predicted = next_token_probabilities(process, filter_beliefs(process, words)[:, :-1])
        losses = -predicted.gather(2, words[:, 1:, None]).squeeze(2).log().mean(dim=1)
        for batch, optimal in zip(
            words.to(device).split(config.batch_size), losses.split(config.batch_size), strict=True
        ):
            yield batch, float(optimal.mean())


def _append_line(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
