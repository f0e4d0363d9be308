"""What a score is compared with: windows of tokens, Markov approximations, untrained twins, and their scores."""

from msp_lens.controls.control_scores import ControlKind, Controls, ControlScore
from msp_lens.controls.markov_order import markov_beliefs, markov_regret, mean_beliefs
from msp_lens.controls.token_windows import TokenWindows
from msp_lens.controls.untrained_twins import untrained_twins

__all__ = [
    "ControlKind",
    "ControlScore",
    "Controls",
    "TokenWindows",
    "markov_beliefs",
    "markov_regret",
    "mean_beliefs",
    "untrained_twins",
]
