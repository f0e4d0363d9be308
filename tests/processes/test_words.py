import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import msp_lens as msp
from msp_lens.beliefs import filter_beliefs, filter_from
from msp_lens.processes.words import read_words

WORDS = [[0, 1], [1, 1]]
CONTAINERS = {
    "list": WORDS,
    "tuple": ((0, 1), (1, 1)),
    "array": np.array(WORDS),
    "array of uint8": np.array(WORDS, dtype=np.uint8),
    "whole floats": np.array(WORDS, dtype=float),
    "truth values": np.array(WORDS, dtype=bool),
    **{
        str(dtype): torch.tensor(WORDS, dtype=dtype)
        for dtype in (torch.uint8, torch.bool, torch.int8, torch.int16, torch.int32, torch.int64, torch.float32)
    },
    "list of tensors": [torch.tensor(word) for word in WORDS],
    "list of arrays": [np.array(word) for word in WORDS],
    "column of a table": pd.Series(WORDS),
    "column of a dataset": datasets.Dataset.from_dict({"tokens": WORDS})["tokens"],
    "names": [["0", "1"], ["1", "1"]],
    "array of names": np.array([["0", "1"], ["1", "1"]]),
    "texts": ["01", "11"],
    "column of texts": pd.Series(["01", "11"]),
    "spaced": ["0 1", "1  1"],
    "mixed": [[0, "1"], ["1", np.int64(1)]],
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_words_mean_the_same_in_any_container(container):
    process, words = msp.processes.golden_mean(p=0.3), CONTAINERS[container]
    z1r = msp.processes.z1r()
    expected = torch.tensor(WORDS)
    assert torch.equal(z1r.read_words(words), expected)
    assert torch.equal(process.word_probabilities(words), process.word_probabilities(expected))
    assert torch.equal(filter_beliefs(z1r, words), filter_beliefs(z1r, expected))
    start = z1r.initial.expand(2, -1)
    assert torch.equal(filter_from(z1r, start, words), filter_from(z1r, start, expected))


@pytest.mark.parametrize("word", [[0, 1, 1], np.array([0, 1, 1], dtype=np.uint8), "011", ["0", "1", "1"], (0.0, 1, 1)])
def test_one_word_may_have_one_axis(word):
    assert msp.processes.z1r().read_words(word).tolist() == [[0, 1, 1]]


@given(st.lists(st.sampled_from(["A", "AB", "B", "BA", "C"]), min_size=1, max_size=6))
def test_a_text_is_read_exactly_if_it_has_one_reading(word):
    names = ("A", "AB", "B", "BA", "C")
    text = "".join(word)

    def readings(rest):
        return (
            [[]] if not rest else [[n, *more] for n in names if rest.startswith(n) for more in readings(rest[len(n) :])]
        )

    expected = [names.index(name) for name in word]
    assert read_words([word], names).tolist() == [expected]
    if len(word) > 1:
        assert read_words(" ".join(word), names).tolist() == [expected]
    if len(readings(text)) == 1:
        assert read_words(text, names).tolist() == [expected]
    else:
        with pytest.raises(ValueError, match=r"can be read as .* and as .*: put spaces between the names"):
            read_words(text, names)


def test_names_with_spaces_are_read_too():
    assert read_words("New YorkRome", ("New York", "Rome")).tolist() == [[0, 1]]
    assert msp.processes.product([msp.processes.coin(), msp.processes.coin()]).read_words("0,11,0").tolist() == [[1, 2]]
    twelve = msp.processes.random_process(2, 12, seed=0)
    assert twelve.read_words("1 11").tolist() == [[1, 11]]
    with pytest.raises(ValueError, match=r"'11' can be read as"):
        twelve.read_words("11")


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ("01x", ValueError, "'01x' is not made of tokens after '01'; the tokens are 0, 1"),
        (["0", "x"], ValueError, "'x' is not made of tokens after ''"),
        ([["0", "x"]], ValueError, "'x' is no token"),
        (["01", "1"], ValueError, "have 1 to 2 tokens: give .* of one length"),
        ([[0, 1], [0]], ValueError, "every row needs the same length"),
        ([[0, 0.5]], ValueError, "without fractions"),
        ([[0, float("nan")]], ValueError, "without fractions or NaN"),
        (torch.tensor([[0, 1j]]), ValueError, "give whole numbers"),
        ([[[0]]], ValueError, r"shape \(1, 1, 1\)"),
        (0, ValueError, r"shape \(\)"),
        (None, TypeError, "words=None: give whole numbers"),
        ({"a": 1}, TypeError, "give whole numbers"),
        ([[0, None]], TypeError, "give whole numbers"),
        ([[0, 2]], ValueError, "Token 2 at word 0, position 1 is outside"),
        ([[0, -1]], ValueError, "Token -1"),
    ],
)
def test_what_is_no_word_is_refused(words, error, message):
    process = msp.processes.z1r()
    for read in (process.read_words, process.word_probabilities, process.word_log_probabilities):
        with pytest.raises(error, match=message):
            read(words)
    with pytest.raises(error, match=message.replace("words", "tokens")):
        filter_beliefs(process, words)
