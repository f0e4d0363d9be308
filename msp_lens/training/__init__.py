"""Train a model on a process's tokens, measured against the optimum."""

from msp_lens.training.config import PRESETS, Recipe, TrainingConfig, recipe
from msp_lens.training.loop import TrainingRun, train
from msp_lens.training.regret import regret_by_position

__all__ = ["PRESETS", "Recipe", "TrainingConfig", "TrainingRun", "recipe", "regret_by_position", "train"]
