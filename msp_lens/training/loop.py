"""The training loop, measured against the optimum at every step.

Where the words of a step are known, so is what the optimal observer predicts after each prefix of them: the mean KL
from it to the model is the regret, without the noise that a loss has from the tokens that happened to follow.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from msp_lens.beliefs.information import optimal_losses
from msp_lens.data import BeliefDataset, words
from msp_lens.models.build import ModelConfig, build_model, config_fields, load_weights, versions, weights
from msp_lens.models.hooked import HookedModel, check_fits, context_length, model_device
from msp_lens.models.model_files import model_fingerprint
from msp_lens.processes.process import Process
from msp_lens.training.batches import Batch, Batches
from msp_lens.training.config import TrainingConfig
from msp_lens.training.folder import RunFolder
from msp_lens.training.loggers import Logger
from msp_lens.training.metrics import MetricSums, gradient_norm, is_finite, weight_norm
from msp_lens.training.optimizers import WeightAverage, WeightOptimizer
from msp_lens.training.presets import recipe
from msp_lens.training.regret import regret_by_position
from msp_lens.training.resume import TrainingState
from msp_lens.training.training_run import StoppedBy, TrainingRun, load_run
from msp_lens.training.workers import Workers

# Words on which a target regret is measured as training goes on, where there are more.
EVALUATION_WORDS = 4_096


def train(
    process: Process,
    model: HookedModel | ModelConfig | None = None,
    *,
    preset: str = "quick",
    config: TrainingConfig | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    out: str | Path | None = None,
    resume: bool = True,
    log_to: Logger | None = None,
    progress: bool = True,
) -> TrainingRun:
    """Train a transformer to predict the process's tokens.

    Under `accelerate launch` or `torchrun` each process takes its share of every batch, and the first one writes.

    Args:
        process: What emits the tokens.
        model: A model to train in place, or the config of a new one; by default the preset's.
        preset: Name of a recipe; `"quick"` is about a minute on four cores.
        config: How to train; by default the preset's.
        seed: Seed of the initial weights and of the data. No process-wide random state is touched.
        device: Where a new model goes. One that is given stays where it is.
        out: Folder for `metrics.jsonl`, `model.safetensors`, checkpoints, and what an interrupted training needs.
        resume: Whether a training that was interrupted in `out` is gone on with, from its last whole state and bit for
            bit as if nothing had happened, and one that ended is returned. Otherwise it is removed and begun anew.
        log_to: Takes each record of the metrics as well: `tensorboard_logger`, `wandb_logger`, or any function.
        progress: Whether to show a progress bar.

    Raises:
        KeyError: if there is no such preset.
        ValueError: before the first step, if the model does not fit the process or `out` holds another training, naming
            how it differs; later, if the loss stops being a number, naming the step.
        OSError: if `out` can't be written to or its disk is full; what was saved before can be gone on from.

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
    checkpoint_steps = config.checkpoint_steps(n_ctx)
    if checkpoint_steps and out is None:
        raise ValueError(f"TrainingConfig(checkpoints={config.checkpoints!r}) keeps models in a folder: give out=.")

    workers = Workers(model)
    share = workers.share(config.batch_size)
    folder = RunFolder(out, process, _provenance(model, process, config, seed, workers)) if out is not None else None
    state = None
    if folder is not None:
        if workers.is_main:
            folder.check(model, len(checkpoint_steps))
            if not resume:
                folder.clear()
        workers.wait()
        if folder.has_ended():
            return _ended(model, folder)
        state = folder.resume()
        workers.wait()

    training = Training(model, process, config, n_ctx, workers=workers)
    if state is not None:
        training.restore(state)
        if progress and workers.is_main:
            message = f"Going on from step {state.step} of {config.steps}, as saved in {out}."
            tqdm.write(message, file=sys.stderr)
    batches = Batches(
        process,
        config.batch_size,
        n_ctx,
        seed=seed,
        share=share,
        n_ready=training.step,
        state=state.tensors["generator"] if state else None,
    )
    _run(training, batches, folder if workers.is_main else None, log_to if workers.is_main else None, progress=progress)

    if training.average is not None:
        training.average.copy_to(model)
    model.train(False)
    shown = "Evaluating" if progress and workers.is_main else None
    regret = regret_by_position(model, words(process, n_ctx=n_ctx, seed=seed), progress=shown)
    stopped_by = cast(StoppedBy, training.stopped_by())
    if folder is not None and workers.is_main:
        folder.save_model(model, training.progress() | {"stopped_by": stopped_by, "regret": regret.tolist()})
        if stopped_by == "steps":
            folder.remove_states()
    workers.wait()
    return TrainingRun(
        model,
        process,
        config,
        tuple(training.metrics),
        regret,
        training.optimum,
        seed,
        training.seconds,
        training.step,
        stopped_by,
        state.step if state else None,
        Path(out) if out is not None else None,
    )


def _run(
    training: Training, batches: Batches, folder: RunFolder | None, log_to: Logger | None, *, progress: bool
) -> None:
    """Step after step until something says stop, logging and saving on the way."""
    config = training.config
    checkpoint_steps = set(config.checkpoint_steps(training.n_ctx))
    if folder is not None:
        folder.cut_metrics(training.metrics)
        if training.step == 0 and 0 in checkpoint_steps:
            folder.save_checkpoint(training.model, training.progress())
    optimum = float(training.optimum.mean())
    shown = progress and training.workers.is_main
    with tqdm(total=config.steps, initial=training.step, desc="Training", unit="step", disable=not shown) as bar:
        supply = iter(batches)
        while training.stopped_by() is None:
            is_logged = training.advance(next(supply))
            bar.update()
            ended = training.stopped_by() is not None
            if is_logged:
                record = training.metrics[-1]
                bar.set_postfix_str(
                    f"loss {optimum + record['regret']:.4f}, optimum {optimum:.4f}, regret {record['regret']:.1e} nats"
                )
                if folder is not None:
                    folder.append(record)
                if log_to is not None:
                    log_to(record)
            if folder is None:
                continue
            if training.step in checkpoint_steps or (ended and checkpoint_steps):
                with training.averaged():
                    folder.save_checkpoint(training.model, training.progress())
            if training.step % config.save_every == 0 or ended:
                training.check_weights()
                folder.save_state(training.state(batches))
                if not ended:
                    with training.averaged():
                        folder.save_model(training.model, training.progress())


class Training:
    """A training between two of its steps.

    Attributes:
        step: Optimizer steps made.
        seconds: Spent on them, those before an interruption included.
        metrics: The records so far.
        optimum: The least possible loss at each position.
    """

    def __init__(
        self, model: HookedModel, process: Process, config: TrainingConfig, n_ctx: int, *, workers: Workers
    ) -> None:
        self.model, self.process, self.config, self.n_ctx, self.workers = model, process, config, n_ctx, workers
        self.optimum = optimal_losses(process, n_ctx)
        self.optimizer = WeightOptimizer(model, config)
        self.average = WeightAverage(model, config.averaging) if config.averaging is not None else None
        self.step, self.seconds, self.metrics = 0, 0.0, cast(list[dict[str, Any]], [])
        self._sums = MetricSums(n_ctx)
        self._device = model_device(model)
        self._clock = time.perf_counter()
        self._logged_at = (0, 0.0)
        self._evaluation: BeliefDataset | None = None
        model.train()

    def advance(self, batch: Batch) -> bool:
        """Make one step; whether its end was recorded in the metrics.

        Raises:
            ValueError: if the loss is no finite number.
        """
        config, batch = self.config, batch.to(self._device)
        rate = config.learning_rate_at(self.step)
        self.optimizer.set_learning_rate(rate)
        log_probabilities = self._log_probabilities(batch.tokens)
        part = batch.loss(log_probabilities)
        self.optimizer.zero_grad()
        self.workers.backward(part)
        loss = self.workers.total(part.detach())
        self.step += 1
        if not math.isfinite(float(loss)):
            raise ValueError(self._diverged(f"The loss became {float(loss)}"))
        is_logged = self.step % config.log_every == 0 or self.step == config.steps
        norm = gradient_norm(self.model) if is_logged else None
        if config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model, self.step)
        self._sums.add(loss, self.workers.total(batch.regret(log_probabilities.detach())))
        now = time.perf_counter()
        self.seconds, self._clock = self.seconds + now - self._clock, now
        if is_logged:
            self._record(rate, norm)
        return is_logged

    def stopped_by(self) -> StoppedBy | None:
        """What says stop, if something does; the same in all processes."""
        config = self.config
        if self.step >= config.steps:
            return "steps"
        if config.target_regret is not None and self.metrics:
            evaluated = self.metrics[-1].get("evaluated_regret", math.inf)
            if self.workers.agreed(evaluated <= config.target_regret):
                return "regret"
        if config.max_seconds is not None and self.workers.agreed(self.seconds >= config.max_seconds):
            return "seconds"
        return None

    def progress(self) -> dict[str, Any]:
        """What a model saved now says of the moment."""
        return {
            "step": self.step,
            "tokens": self.config.tokens_at(self.step, self.n_ctx),
            "seconds": self.seconds,
            "saved_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def averaged(self) -> Any:
        """Within this context the model has the weights that are to be its: averaged ones, if there are."""
        return self.average.in_force(self.model) if self.average is not None else nullcontext()

    def state(self, batches: Batches) -> TrainingState:
        """Everything that decides the steps to come."""
        parts: dict[str, Mapping[str, Tensor]] = {
            "model": weights(self.model),
            "optimizer": self.optimizer.tensors,
            "average": self.average.tensors if self.average is not None else {},
            "sums": self._sums.tensors,
        }
        tensors = {f"{part}.{name}": tensor for part, named in parts.items() for name, tensor in named.items()}
        return TrainingState(self.step, self.seconds, self.metrics, tensors | {"generator": batches.state})

    def restore(self, state: TrainingState) -> None:
        """Go on from a state."""
        load_weights(self.model, state.part("model"))
        self.optimizer.restore(state.part("optimizer"))
        if self.average is not None:
            self.average.restore(state.part("average"))
        self._sums.restore(state.part("sums"))
        self.step, self.seconds, self.metrics = state.step, state.seconds, list(state.metrics)
        self._logged_at = (self.step, self.seconds)

    def check_weights(self) -> None:
        """Raise `ValueError` if a weight is no finite number: such a state is not to be saved."""
        if not is_finite(self.model):
            raise ValueError(self._diverged("The weights stopped being finite"))

    def _log_probabilities(self, tokens: Tensor) -> Float[Tensor, "word pos token"]:
        kind, is_mixed = self._device.type, self.config.mixed_precision is not None
        with torch.autocast(kind, dtype=torch.bfloat16) if is_mixed else nullcontext():
            logits = self.workers.forward(tokens)
        # Tokens that the process lacks are improbable, but not impossible, to the model.
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)[..., : self.process.n_tokens]

    def _record(self, rate: float, norm: float | None) -> None:
        step, seconds = self._logged_at
        self._logged_at = (self.step, self.seconds)
        record = {
            "step": self.step,
            "tokens": self.config.tokens_at(self.step, self.n_ctx),
            **self._sums.record(float(self.optimum.mean())),
            "learning_rate": rate,
            "gradient_norm": norm,
            "weight_norm": weight_norm(self.model),
            "tokens_per_second": self.config.tokens_at(self.step - step, self.n_ctx) / (self.seconds - seconds),
            "seconds": self.seconds,
        }
        if self.config.target_regret is not None:
            record["evaluated_regret"] = self._evaluated_regret()
            self._clock = time.perf_counter()
        self.metrics.append(record)
        self._sums = MetricSums(self.n_ctx)

    def _evaluated_regret(self) -> float:
        """The mean regret of the model as it would be saved now."""
        if self._evaluation is None:
            self._evaluation = words(self.process, n_ctx=self.n_ctx, max_words=EVALUATION_WORDS)
        with self.averaged():
            return float(regret_by_position(self.model, self._evaluation).mean())

    def _diverged(self, what: str) -> str:
        return (
            f"{what} at step {self.step}: lower the learning rate ({self.config.learning_rate:g}) or lengthen the "
            f"warm-up ({self.config.warmup_steps} steps)."
        )


def _provenance(
    model: HookedModel, process: Process, config: TrainingConfig, seed: int, workers: Workers
) -> dict[str, Any]:
    return {
        "training": config.to_dict(),
        "process": process.fingerprint,
        "model": config_fields(model) | {"class": type(model).__name__},
        "initial_weights": model_fingerprint(model),
        "seed": seed,
        "n_processes": workers.count,
        "versions": versions(),
    }


def _ended(model: HookedModel, folder: RunFolder) -> TrainingRun:
    """The training that lies in the folder, in the model given."""
    ended = load_run(folder.path)
    load_weights(model, weights(ended.model))
    model.train(False)
    return replace(ended, model=model)
