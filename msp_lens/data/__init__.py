"""Words and what is known about them: beliefs, other targets, and how a model's tokens spell a process's symbols."""

from msp_lens.data.belief_dataset import (
    BeliefDataset,
    TokenDataset,
    TooManyWordsError,
    Weighting,
    all_words,
    sampled_words,
    stream_words,
    token_dataset,
    words,
)
from msp_lens.data.labelled import LabelledTokens, label_rows
from msp_lens.data.row_positions import Positions
from msp_lens.data.target_values import one_hot
from msp_lens.data.token_map import TokenMap

__all__ = [
    "BeliefDataset",
    "LabelledTokens",
    "Positions",
    "TokenDataset",
    "TokenMap",
    "TooManyWordsError",
    "Weighting",
    "all_words",
    "label_rows",
    "one_hot",
    "sampled_words",
    "stream_words",
    "token_dataset",
    "words",
]
