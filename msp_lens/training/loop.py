"""The training loop, measured at every step against the optimum.

The words of a step are known, and so is what the optimal observer predicts after each of their prefixes. The mean
KL(optimal ‖ model) is the regret, without the noise that a loss has from the tokens that happened to follow.
"""

from __future__ import annotations

import math
import sys
import time
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from msp_lens._checks import Seed, check_at_least, checked
from msp_lens._distributed import agreed, is_main, process_count, share, total, wait
from msp_lens._files import without_nan
from msp_lens._long_work import going_on
from msp_lens._tables import nats_text
from msp_lens._threads import fitting_threads
from msp_lens.beliefs.information import optimal_losses
from msp_lens.data import BeliefDataset, words
from msp_lens.models.architecture import RecurrentConfig
from msp_lens.models.build import ModelConfig, build_model, config_fields, load_weights, versions, weights
from msp_lens.models.hooked import HookedModel, check_fits, model_device, unwrapped, word_length
from msp_lens.models.model_files import check_restorable, model_fingerprint
from msp_lens.processes.process import Process
from msp_lens.training.batches import Batches
from msp_lens.training.config import TrainingConfig
from msp_lens.training.folder import RunFolder, check_is_folder, owned
from msp_lens.training.metrics import Logger, MetricSums, Record, metrics_fingerprint, total_norm
from msp_lens.training.optimizers import WeightAverage, WeightOptimizer
from msp_lens.training.presets import recipe
from msp_lens.training.regret import evaluation_words, regret_by_position
from msp_lens.training.resume import TrainingState
from msp_lens.training.training_run import StoppedBy, TrainingRun, load_run
from msp_lens.training.workers import Workers

# On a GPU, the losses of so many steps are looked at together.
_LOOK_EVERY = 16


@checked
def train(
    process: Process,
    model: HookedModel | ModelConfig | RecurrentConfig | None = None,
    *,
    preset: str = "quick",
    config: TrainingConfig | None = None,
    seed: Seed = 0,
    device: str | torch.device = "cpu",
    out: str | Path | None = None,
    resume: bool = True,
    log_to: Logger | None = None,
    progress: bool = True,
) -> TrainingRun:
    """Train a network to predict the process's tokens: a transformer, or a recurrent one.

    Under `accelerate launch` or `torchrun` each process takes its share of every batch, and the first one writes. A
    small network is trained by one thread, which is hardly slower than several; afterwards torch has as many as before.

    Args:
        process: The process that emits the tokens.
        model: A model to train in place, or the config of a new one; by default the preset's.
        preset: Name of a recipe; `"quick"` takes about a minute on one core.
        config: How to train; by default the preset's training.
        seed: Seed of the initial weights and the data. No global random state is touched.
        device: Device of a new model. A given model stays where it is.
        out: Folder for `metrics.jsonl`, `model.safetensors`, checkpoints and the state of an interrupted training.
        resume: Whether to resume what was interrupted in `out`, bit for bit as if it had not been, or return what ended
            there. If False, it is removed and training starts from step 0.
        log_to: A function that gets each record of the metrics, too: `tensorboard_logger(…)`, `wandb_logger(…)`.
        progress: Whether to show a progress bar.

    Raises:
        KeyError: if there is no such preset.
        ValueError: if the model does not fit the process, has no weight to train or could not be loaded from a file in
            `out`; if `out` is a file's name or holds files of another training; or if the loss is not finite, which on
            a GPU is seen up to 16 steps later. The model is then in the mode it had.
        OSError: if `out` can't be written to or its disk is full; train again to resume from the last save.

    Example:
        >>> from msp_lens.processes.catalog import z1r
        >>> from msp_lens.training.config import TrainingConfig
        >>> run = train(z1r(), config=TrainingConfig(steps=2), progress=False)
        >>> len(run.regret)
        10
    """
    chosen = recipe(preset, process)
    config = config or chosen.training
    if out is not None:
        check_is_folder(Path(out))
    # Gradients may be off in the caller's code, as is usual in interpretability.
    with torch.inference_mode(False), torch.enable_grad():
        if model is None or isinstance(model, ModelConfig | RecurrentConfig):
            model = build_model(model or chosen.model, seed=seed, device=device)
        _check_trainable(model)
        n_ctx = word_length(model, otherwise="it one")
        check_fits(model, process, n_ctx, predicts=True)
        checkpoint_steps = config.checkpoint_steps(n_ctx)
        if checkpoint_steps and out is None:
            raise ValueError(f"checkpoints={config.checkpoints!r} needs a folder to keep models in: give out=.")
        workers, enough = Workers(model), f"a word for each of {process_count()} processes"
        check_at_least("batch_size", config.batch_size, process_count(), enough)
        folder = None
        if out is not None:
            check_restorable(model)
            described = config_fields(model) | {"class": type(unwrapped(model)).__name__}
            provenance = {"training": config.to_dict(), "process": process.fingerprint, "model": described}
            provenance |= {"initial_weights": model_fingerprint(model), "seed": seed}
            provenance |= {"n_processes": process_count(), "versions": versions()}
            folder = RunFolder(out, process, provenance)
        modes = [(module, module.training) for module in model.modules()]
        try:
            weights_read = sum(parameter.numel() for parameter in model.parameters())
            multiply_adds = weights_read * config.batch_size * n_ctx // process_count()
            with ExitStack() as stack:
                if folder is not None:
                    stack.enter_context(owned(folder.path))
                    how = f"call train again with out={str(folder.path)!r} and the same options: it resumes"
                    stack.enter_context(going_on(f"To go on, {how} from the last save."))
                stack.enter_context(fitting_threads(multiply_adds, model_device(model)))
                return _train(workers, process, config, n_ctx, seed, folder, resume, log_to, progress)
        except BaseException:
            for module, mode in modes:
                module.training = mode
            raise


def _check_trainable(model: HookedModel) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r}: give a hooked model, or the config of a new one.")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("model has no weight to train: give one, or unfreeze some by model.requires_grad_(True).")
    if any(parameter.is_inference() for parameter in parameters):
        raise ValueError("model was made under torch.inference_mode(), so no gradient can be had: build it outside.")


def _train(
    workers: Workers,
    process: Process,
    config: TrainingConfig,
    n_ctx: int,
    seed: int,
    folder: RunFolder | None,
    resume: bool,
    log_to: Logger | None,
    progress: bool,
) -> TrainingRun:
    """Train, resume, or return what has ended; the folder is this training's alone meanwhile."""
    model, state, out = workers.model, None, folder.path if folder is not None else None
    if folder is not None:
        if is_main():
            folder.check(model, len(config.checkpoint_steps(n_ctx)))
            if not resume:
                folder.clear()
        wait()
        if folder.has_ended():
            if is_main():
                folder.remove_states()
            ended = load_run(folder.path)
            load_weights(model, weights(ended.model))
            model.train(False)
            return replace(ended, model=model)
        state = folder.resume()
        wait()
    if not is_main():
        folder, log_to, progress = None, None, False
    resumed_from = state.step if state is not None and state.step > 0 else None
    if resumed_from is not None and progress:
        tqdm.write(f"Resuming at step {resumed_from} of {config.steps}, saved in {out}.", file=sys.stderr)

    training = Training(workers, process, config, n_ctx, seed, state)
    stopped_by = _run(training, folder, log_to, progress=progress)
    training.average.copy_to(model)
    model.train(False)
    shown = "Evaluating" if progress else None
    regret = regret_by_position(model, evaluation_words(process, n_ctx, seed=seed), progress=shown)
    metrics = tuple(training.metrics)
    if folder is not None:
        ended = {"stopped_by": stopped_by, "regret": regret.tolist(), "metrics": metrics_fingerprint(metrics)}
        folder.save_model(model, training.progress() | ended)
        if stopped_by == "steps":
            folder.remove_states()
    wait()
    end = (seed, training.seconds, training.step, stopped_by, resumed_from, out)
    return TrainingRun(model, process, config, metrics, regret, training.optimum, *end)


def _run(training: Training, folder: RunFolder | None, log_to: Logger | None, *, progress: bool) -> StoppedBy:
    """Make step after step until the training ends, logging and saving on the way; returns why it ended."""
    config, model, optimum = training.config, training.model, float(training.optimum.mean())
    checkpoint_steps = config.checkpoint_steps(training.n_ctx)
    if folder is not None:
        if training.step == 0:
            # The first file of a training says whose folder this is.
            folder.save_state(training.state())
        folder.write_metrics(training.metrics)
        if training.step == 0 and 0 in checkpoint_steps:
            folder.save_model(model, training.progress(), as_checkpoint=True)
    stopped_by = training.stopped_by()
    with tqdm(total=config.steps, initial=training.step, desc="Training", unit="step", disable=not progress) as bar:
        while stopped_by is None:
            record = training.advance()
            stopped_by = training.stopped_by()
            bar.update()
            if record is not None:
                regret = record["regret"]
                loss, least, above = map(nats_text, (optimum + regret, optimum, regret))
                bar.set_postfix_str(f"loss {loss}, optimum {least}, regret {above} nats")
                if folder is not None:
                    folder.append(record)
                if log_to is not None:
                    log_to(record)
            if folder is None:
                continue
            ended = stopped_by is not None
            if training.step in checkpoint_steps or (ended and checkpoint_steps):
                with training.average.in_force(model):
                    folder.save_model(model, training.progress(), as_checkpoint=True)
            if training.step % config.save_every == 0 or ended:
                folder.save_state(training.state())
                if not ended:
                    with training.average.in_force(model):
                        folder.save_model(model, training.progress())
    training.check_losses()
    return stopped_by


class Training:
    """A training between two of its steps, from the start or from the state of an interrupted one."""

    def __init__(
        self,
        workers: Workers,
        process: Process,
        config: TrainingConfig,
        n_ctx: int,
        seed: int,
        state: TrainingState | None,
    ) -> None:
        self.model, self.workers, self.process, self.config, self.n_ctx = workers.model, workers, process, config, n_ctx
        self.optimum = optimal_losses(process, n_ctx)
        self.optimizer, self.average = WeightOptimizer(self.model, config), WeightAverage(self.model, config.averaging)
        self.step, self.seconds = 0, 0.0
        self.metrics: list[Record] = []
        sums = generator = None
        if state is not None:
            self.step, self.seconds, self.metrics = state.step, state.seconds, list(state.metrics)
            load_weights(self.model, state.part("model"))
            self.optimizer.restore(state.part("optimizer"))
            self.average.restore(state.part("average"))
            sums, generator = state.part("sums"), state.tensors["generator"]
        own, size = share(config.batch_size), config.batch_size
        drawn: dict[str, Any] = {"seed": seed, "sampling": config.sampling, "share": own}
        self._batches = Batches(process, size, n_ctx, **drawn, n_ready=self.step, state=generator)
        self._supply, self._device = iter(self._batches), model_device(self.model)
        self._sums = MetricSums(n_ctx, self._device, sums)
        # Losses that have not been looked at: for each look, the CPU waits for the GPU.
        self._unseen: list[Tensor] = []
        self._look_every = 1 if self._device.type == "cpu" else _LOOK_EVERY
        self._logged_at = (self.step, self.seconds)
        self._evaluation: BeliefDataset | None = None
        self._clock = time.perf_counter()
        self.model.train()

    def advance(self) -> Record | None:
        """Make one step; returns a record if it is due, and raises `ValueError` if a loss is seen not to be finite."""
        config = self.config
        batch = next(self._supply).to(self._device)
        rate = config.learning_rate_at(self.step)
        is_mixed = config.mixed_precision is not None
        with torch.autocast(self._device.type, dtype=torch.bfloat16) if is_mixed else nullcontext():
            logits = self.workers.forward(batch.tokens)
        # To the model, tokens that the process never emits are improbable but not impossible.
        at_least_float32 = logits.to(torch.promote_types(logits.dtype, torch.float32))
        log_probabilities = at_least_float32.log_softmax(-1)[..., : self.process.n_tokens]
        part = batch.loss(log_probabilities)
        self.optimizer.zero_grad()
        self.workers.backward(part)
        loss = total(part.detach())
        self.step += 1
        self._unseen.append(loss)
        is_due = self.step % config.log_every == 0 or self.step == config.steps
        if is_due or len(self._unseen) >= self._look_every:
            self.check_losses()
        gradient_norm = total_norm(parameter.grad for parameter in self.model.parameters()) if is_due else None
        if config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.optimizer.step(rate)
        self.average.update(self.model, self.step)
        self._sums.add(loss, total(batch.regret(log_probabilities.detach())))
        now = time.perf_counter()
        self.seconds, self._clock = self.seconds + now - self._clock, now
        return self._record(rate, gradient_norm) if is_due else None

    def check_losses(self) -> None:
        """Raise `ValueError` if one of the losses that nobody has looked at is not finite."""
        losses = torch.stack(self._unseen).tolist() if self._unseen else []
        self._unseen.clear()
        for step, loss in enumerate(losses, start=self.step - len(losses) + 1):
            if not math.isfinite(loss):
                raise ValueError(self._diverged(f"The loss became {loss}", step))

    def stopped_by(self) -> StoppedBy | None:
        """Why the training ends here, if it does; the same in all processes."""
        config = self.config
        if self.step >= config.steps:
            return "steps"
        if config.target_regret is not None and self.metrics:
            evaluated = self.metrics[-1].get("evaluated_regret", math.inf)
            if agreed(evaluated <= config.target_regret):
                return "regret"
        if config.max_seconds is not None and agreed(self.seconds >= config.max_seconds):
            return "seconds"
        return None

    def progress(self) -> dict[str, Any]:
        """The provenance of a model saved at this moment; raises `ValueError` if a loss is not finite."""
        self.check_losses()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return {"step": self.step, "tokens": self._tokens(self.step), "seconds": self.seconds, "saved_at": now}

    def state(self) -> TrainingState:
        """Everything that decides the remaining steps; raises `ValueError` if a loss or a weight is not finite."""
        self.check_losses()
        if not math.isfinite(total_norm(self.model.parameters())):
            raise ValueError(self._diverged("A weight became infinite or NaN", self.step))
        parts = {"model": weights(self.model), "optimizer": self.optimizer.tensors}
        parts |= {"average": self.average.tensors, "sums": self._sums.tensors}
        tensors = {f"{part}.{name}": tensor for part, named in parts.items() for name, tensor in named.items()}
        return TrainingState(self.step, self.seconds, self.metrics, tensors | {"generator": self._batches.state})

    def _record(self, rate: float, gradient_norm: float | None) -> Record:
        step, seconds = self._logged_at
        self._logged_at = (self.step, self.seconds)
        record: Record = {"step": self.step, "tokens": self._tokens(self.step)}
        record |= self._sums.record(float(self.optimum.mean())) | {"learning_rate": rate}
        record |= {"gradient_norm": gradient_norm, "weight_norm": total_norm(self.model.parameters())}
        speed = self._tokens(self.step - step) / (self.seconds - seconds)
        record |= {"tokens_per_second": speed, "seconds": self.seconds}
        if self.config.target_regret is not None:
            # On all words, or on 4,096 of them; by the model as it would be saved now.
            self._evaluation = self._evaluation or words(self.process, n_ctx=self.n_ctx, max_words=4_096)
            with self.average.in_force(self.model):
                record["evaluated_regret"] = float(regret_by_position(self.model, self._evaluation).mean())
            self._clock = time.perf_counter()
        record = without_nan(record)
        self.metrics.append(record)
        self._sums = MetricSums(self.n_ctx, self._device)
        return record

    def _tokens(self, n_steps: int) -> int:
        return self.config.tokens_at(n_steps, self.n_ctx)

    def _diverged(self, what: str, step: int) -> str:
        rate, warmup = self.config.learning_rate, self.config.warmup_steps
        remedy = f"lower the learning rate ({rate:g}) or lengthen the warm-up ({warmup} steps)"
        return f"{what} at step {step}: {remedy}."
