"""Train a model on a process's tokens, measured against the optimum."""

from msp_lens.training.checkpoints import SavedCheckpoint, saved_checkpoints
from msp_lens.training.config import TrainingConfig
from msp_lens.training.loop import TrainingRun, train
from msp_lens.training.presets import PRESETS, Recipe, recipe
from msp_lens.training.regret import regret_by_position

__all__ = [
    "PRESETS",
    "Recipe",
    "SavedCheckpoint",
    "TrainingConfig",
    "TrainingRun",
    "recipe",
    "regret_by_position",
    "saved_checkpoints",
    "train",
]
