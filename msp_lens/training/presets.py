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


def paper(process: Process) -> Recipe:
    """The paper's result, a loss within 1.0002 of the least possible one, in minutes instead of 56 hours.

    PAPER_TABLE
    """
    if process.name == "rrxor":
        training = TrainingConfig(steps=1200, batch_size=256, optimiser="muon", learning_rate=3e-3)
    else:
        training = TrainingConfig(steps=4000, batch_size=128, optimiser="muon", learning_rate=4e-3)
    return Recipe(paper_model(process), training)


def shai2024(process: Process) -> Recipe:
    """Exactly as in the paper: plain SGD, 1,000,000 steps of 64 words; it took about 56 hours.

    Source: Shai et al. 2024 (arXiv 2405.15943), appendix.
    """
    training = TrainingConfig(
        steps=1_000_000,
        batch_size=64,
        optimiser="sgd",
        learning_rate=0.01,
        schedule="constant",
        warmup_steps=0,
        log_every=1_000,
        save_every=10_000,
    )
    return Recipe(paper_model(process), training)


PRESETS = {"quick": quick, "paper": paper, "shai2024": shai2024}


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
