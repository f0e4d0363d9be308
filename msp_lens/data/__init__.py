"""Tokens and what is known of them: words with their beliefs, words with any targets, symbols as a model's tokens."""

from msp_lens.data.labelled import LabelledTokens, one_hot
from msp_lens.data.token_map import TokenMap
from msp_lens.data.words import (
    MAX_WORDS,
    SAMPLED_WORDS,
    BeliefDataset,
    TokenDataset,
    TooManyWordsError,
    Weighting,
    all_words,
    check_weighting,
    sampled_words,
    stream_words,
    token_dataset,
    words_for,
)

__all__ = [
    "MAX_WORDS",
    "SAMPLED_WORDS",
    "BeliefDataset",
    "LabelledTokens",
    "TokenDataset",
    "TokenMap",
    "TooManyWordsError",
    "Weighting",
    "all_words",
    "check_weighting",
    "one_hot",
    "sampled_words",
    "stream_words",
    "token_dataset",
    "words_for",
]
