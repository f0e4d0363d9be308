"""What a score is compared with: windows of tokens, untrained twins, and the scores of all of them."""

from msp_lens.controls.control_scores import ControlKind, Controls, ControlScore
from msp_lens.controls.token_windows import TokenWindows
from msp_lens.controls.untrained_twins import untrained_twins

__all__ = ["ControlKind", "ControlScore", "Controls", "TokenWindows", "untrained_twins"]
