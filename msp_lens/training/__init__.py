"""Train a model on a process's tokens, and measure it against the optimal observer."""

from msp_lens.training.checkpoints import SavedCheckpoint, saved_checkpoints
from msp_lens.training.config import TrainingConfig
from msp_lens.training.loop import train
from msp_lens.training.metrics import tensorboard_logger, wandb_logger
from msp_lens.training.presets import PRESETS, Recipe, recipe
from msp_lens.training.regret import outside_by_position, regret_by_position
from msp_lens.training.training_run import TrainingRun, load_run

__all__ = [
    "PRESETS",
    "Recipe",
    "SavedCheckpoint",
    "TrainingConfig",
    "TrainingRun",
    "load_run",
    "outside_by_position",
    "recipe",
    "regret_by_position",
    "saved_checkpoints",
    "tensorboard_logger",
    "train",
    "wandb_logger",
]
