import dataclasses
import functools
import itertools

import datasets
import numpy as np
import pandas as pd
import pytest
import tokenizers
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

import msp_lens as msp
from msp_lens.data import LabelledTokens, TokenMap, one_hot, stream_words
from msp_lens.data.belief_dataset import prefix_hashes
from msp_lens.data.splits import Split, labelled_rows, split_rows
from tests import brute_force

WORDS = torch.tensor([[0, 1, 1], [0, 1, 2], [0, 1, 1]])
TARGETS = torch.arange(18, dtype=torch.float32).reshape(3, 3, 2)


@given(brute_force.random_processes(), st.integers(1, 3), st.sampled_from(["probability", "sequence", "prefix"]))
def test_rows_of_a_process_are_its_prefixes(process, length, weighting):
    dataset = msp.data.all_words(process, length)
    # Ids that are no symbol's number, a token before the word, and one between symbols.
    token_map = TokenMap(range(10, 10 + process.n_tokens), bos=0, separator=[1], include_prior=True)
    counts = brute_force.prefix_counts(dataset.tokens.tolist())
    for read_as in (None, token_map):
        data = LabelledTokens.from_beliefs(dataclasses.replace(dataset, token_map=read_as), weighting=weighting)
        seen = {}
        for row in range(len(data)):
            read = data.tokens[data.words[row]].tolist()[: int(data.columns[row]) + 1]
            prefix = tuple(read) if read_as is None else tuple(token - 10 for token in read if token >= 10)
            assert prefix not in seen
            assert int(data.positions[row]) == len(prefix) - 1
            seen[prefix] = row
        assert set(seen) == set(counts) | (set() if read_as is None else {()})
        assert len(data.groups.unique()) == len(data)
        for prefix, row in seen.items():
            joint = brute_force.joint(process, prefix)
            belief = torch.tensor(joint, dtype=torch.float64) / sum(joint)
            torch.testing.assert_close(data.targets["belief"][row], belief)
            exact = {
                "probability": sum(joint) / length,
                "sequence": counts.get(prefix, len(dataset)) / len(dataset) / length,
                "prefix": 1 / len(counts),
            }
            assert float(data.weights[row]) == pytest.approx(exact[weighting])


@pytest.mark.parametrize("weighting", ["probability", "sequence", "prefix"])
@pytest.mark.parametrize("split", ["prefix", "sequence", "subtree"])
def test_the_prior_counts_alike_in_data_and_probing(weighting, split):
    dataset = msp.words(msp.processes.z1r(), n_ctx=5, token_map=TokenMap.identity(2, bos=2, include_prior=True))
    expected = 1 / dataset.n_prefixes if weighting == "prefix" else 1 / 5
    beliefs, prior = {"belief": dataset.prefix_beliefs}, {"belief": dataset.process.initial}
    probed = labelled_rows(dataset, split_rows(dataset, Split(split, n_folds=2), weighting), beliefs, prior)
    for data in (LabelledTokens.from_beliefs(dataset, weighting=weighting), probed):
        assert int(data.positions[0]) == -1
        assert float(data.weights[0]) == pytest.approx(expected)
        assert float(data.weights[1:].sum()) == pytest.approx(1)


def test_more_targets_beside_the_beliefs(mess3):
    dataset = msp.data.all_words(mess3, 3)
    data = LabelledTokens.from_beliefs(dataset, targets={"belief of factor 0": dataset.beliefs[..., :2]})
    only = data.only("belief of factor 0")
    assert list(only.targets) == ["belief of factor 0"]
    assert torch.equal(only.targets["belief of factor 0"], data.targets["belief of factor 0"])
    assert torch.equal(only.weights, data.weights)
    with pytest.raises(KeyError, match=r"No target 'factor'.*'belief', 'belief of factor 0'"):
        data.only("factor")
    torch.testing.assert_close(data.targets["belief of factor 0"], data.targets["belief"][:, :2])
    with pytest.raises(ValueError, match="rename it"):
        LabelledTokens.from_beliefs(dataset, targets={"belief": dataset.beliefs})
    with pytest.raises(ValueError, match=r"\(2, 3, 3\).*here \(27, 3, …\)"):
        LabelledTokens.from_beliefs(dataset, targets={"factor": dataset.beliefs[:2]})
    prior = TokenMap.identity(3, bos=3, include_prior=True)
    with pytest.raises(ValueError, match=r"\['factor'\] have no value before the first symbol"):
        LabelledTokens.from_beliefs(dataclasses.replace(dataset, token_map=prior), targets={"factor": dataset.beliefs})


@pytest.mark.parametrize(
    ("positions", "chosen"),
    [
        (None, [(w, p) for w in range(3) for p in range(3)]),
        (slice(1, None), [(w, p) for w in range(3) for p in (1, 2)]),
        ([0, -1], [(w, p) for w in range(3) for p in (0, 2)]),
        (torch.tensor([False, True, False]), [(w, 1) for w in range(3)]),
        (torch.eye(3, dtype=torch.bool), [(w, w) for w in range(3)]),
    ],
)
def test_positions_choose_rows(positions, chosen):
    data = LabelledTokens.from_tokens(WORDS, TARGETS, positions=positions)
    assert list(zip(data.words.tolist(), data.columns.tolist(), strict=True)) == chosen
    assert torch.equal(data.positions, data.columns)
    expected = torch.stack([TARGETS[place] for place in chosen]).double()
    torch.testing.assert_close(data.targets["belief"], expected, rtol=0, atol=0)


def test_rows_with_the_same_prefix_are_one_group_by_default():
    data = LabelledTokens.from_tokens(WORDS, TARGETS)
    same = [[tuple(WORDS[w, : p + 1].tolist()) for p in range(3)] for w in range(3)]
    prefixes = list(itertools.chain(*same))
    for (first, a), (second, b) in itertools.combinations(zip(prefixes, data.groups.tolist(), strict=True), 2):
        assert (first == second) == (a == b)
    for many in (5, 2**60 + 1):
        by_word = LabelledTokens.from_tokens(WORDS, TARGETS, groups=torch.tensor([many, many + 1, many]))
        assert by_word.groups.tolist() == [many] * 3 + [many + 1] * 3 + [many] * 3


def test_weights_by_word_or_row():
    weights = torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])
    assert LabelledTokens.from_tokens(WORDS, TARGETS, weighting=weights).weights.tolist() == list(range(1, 10))
    by_word = LabelledTokens.from_tokens(WORDS, TARGETS, weighting=weights[:, 0], positions=[2])
    assert by_word.weights.tolist() == [1, 4, 7]


def test_classes_become_targets():
    board = torch.tensor([[[0, 2], [1, 1]]])
    assert one_hot(board, 3).tolist() == [[[1, 0, 0, 0, 0, 1], [0, 1, 0, 0, 1, 0]]]
    next_tokens = one_hot(WORDS[:, 1:], 3)
    data = LabelledTokens.from_tokens(WORDS, {"next token": next_tokens, "one": TARGETS[..., 0]}, positions=slice(-1))
    assert data.targets["next token"].argmax(dim=1).tolist() == [1, 1, 1, 2, 1, 1]
    assert data.targets["one"].shape == (6, 1)
    with pytest.raises(ValueError, match=r"holds 0 to 2; the 2 classes are 0 to 1"):
        one_hot(WORDS, 2)


AS = {
    "tensor": torch.tensor,
    "int32": lambda values: torch.tensor(values, dtype=torch.int32),
    "list": lambda values: values,
    "array": np.array,
    "uint8": lambda values: np.array(values, dtype=np.uint8),
    "tensors": lambda values: [torch.tensor(each) for each in values],
    "series": lambda values: pd.Series(values),
    "column": lambda values: datasets.Dataset.from_dict({"x": values})["x"],
    "torch column": lambda values: datasets.Dataset.from_dict({"x": values}).with_format("torch")["x"],
}


@pytest.mark.parametrize("container", AS)
def test_labels_in_any_container_become_one_hot(container):
    labels = [[0, 7, 2], [2, 2, 7], [0, 0, 0]]
    data = LabelledTokens.from_tokens(WORDS, AS[container](labels), positions=slice(1, None))
    assert data.classes == {"label": ("0", "2", "7")}
    assert data.targets["label"].dtype == torch.float64
    assert data.targets["label"].tolist() == [[[0, 2, 7].index(y) == k for k in range(3)] for y in (7, 2, 2, 7, 0, 0)]
    assert "label [3 classes]" in repr(data)


@pytest.mark.parametrize(
    "labels",
    [
        [["b", "a", "b"], ["a", None, "a"], ["b", "b", "b"]],
        np.array([["b", "a", "b"], ["a", None, "a"], ["b", "b", "b"]]),
        [[1, 0, 1], [0, -100, 0], [1, 1, 1]],
        [[1, 0, 1], [0, None, 0], [1, 1, 1]],
        torch.tensor([[1, 0, 1], [0, -100, 0], [1, 1, 1]]),
    ],
)
def test_places_without_a_label_are_no_rows(labels):
    other = {"number": TARGETS[..., 0], "class": labels}
    data = LabelledTokens.from_tokens(WORDS, other)
    assert list(zip(data.words.tolist(), data.columns.tolist(), strict=True)) == [
        (w, p) for w in range(3) for p in range(3) if (w, p) != (1, 1)
    ]
    assert data.targets["class"].argmax(dim=1).tolist() == [1, 0, 1, 0, 0, 1, 1, 1]
    assert data.targets["number"].flatten().tolist() == [float(x) for x in range(0, 18, 2) if x != 8]


def test_a_label_for_each_word_holds_at_all_its_positions_and_is_held_out_with_it():
    data = LabelledTokens.from_tokens(WORDS, ["spam", "ham", "spam"], positions=[0, 2])
    assert data.classes == {"label": ("ham", "spam")}
    assert data.targets["label"].argmax(dim=1).tolist() == [1, 1, 0, 0, 1, 1]
    # Words 0 and 2 are the same word; word 1 shares only their beginning.
    groups = data.groups.tolist()
    assert groups == [groups[0]] * 2 + [groups[2]] * 2 + [groups[0]] * 2
    assert groups[0] != groups[2]
    assert data.description["groups"] == "word"
    numbers = LabelledTokens.from_tokens(WORDS, [0.5, 1.5, 2.5])
    assert numbers.targets["belief"].flatten().tolist() == [0.5] * 3 + [1.5] * 3 + [2.5] * 3
    frame = pd.DataFrame({"kind": ["spam", "ham", "spam"], "length": [1.0, 2.0, 3.0]})
    both = LabelledTokens.from_tokens(WORDS, frame, positions=-1)
    assert {name: tuple(values.shape) for name, values in both.targets.items()} == {"kind": (3, 2), "length": (3, 1)}
    assert both.classes == {"kind": ("ham", "spam")}


@pytest.mark.parametrize("container", AS)
def test_tokens_weights_and_groups_in_any_container(container):
    make = AS[container]
    expected = LabelledTokens.from_tokens(WORDS, TARGETS, weighting=torch.ones(3, 3), groups=WORDS)
    words = WORDS.tolist()
    found = LabelledTokens.from_tokens(make(words), TARGETS, weighting=make([[1] * 3] * 3), groups=make(words))
    for name in ("tokens", "weights", "groups"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
        assert getattr(found, name).dtype == getattr(expected, name).dtype, name


def test_one_word_may_have_one_axis():
    data = LabelledTokens.from_tokens([4, 5, 6], ["a", "b", "a"], weighting=[1, 2, 3], groups=["x", "y", "x"])
    assert data.tokens.tolist() == [[4, 5, 6]]
    assert data.targets["label"].argmax(dim=1).tolist() == [0, 1, 0]
    assert data.weights.tolist() == [1, 2, 3]
    assert data.groups.tolist() == [0, 1, 0]


def test_classes_can_be_given_in_order():
    data = LabelledTokens.from_tokens(WORDS, {"x": ["b", "a", "b"]}, classes={"x": ["b", "c", "a"]}, positions=[-1])
    assert data.classes == {"x": ("b", "c", "a")}
    assert data.targets["x"].tolist() == [[1, 0, 0], [0, 0, 1], [1, 0, 0]]
    assert data.only("x").classes == data.classes
    fields = {name: getattr(data, name) for name in data.__dataclass_fields__}
    with pytest.raises(ValueError, match="a name for each column"):
        LabelledTokens(**(fields | {"classes": {"x": ("b", "c")}}))


def test_padding_is_no_row_and_ends_come_before_it():
    mask = [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
    for read in (mask, torch.tensor(mask), np.array(mask, dtype=bool)):
        data = LabelledTokens.from_tokens(WORDS, TARGETS, attention_mask=read)
        assert list(zip(data.words.tolist(), data.columns.tolist(), strict=True)) == [
            (w, p) for w in range(3) for p in range(3) if mask[w][p]
        ]
    for last in ([-1], slice(-1, None), -1):
        data = LabelledTokens.from_tokens(WORDS, TARGETS, attention_mask=mask, positions=last)
        assert data.columns.tolist() == [1, 2, 0]
    data = LabelledTokens.from_tokens(WORDS, TARGETS, attention_mask=mask, positions=[1, -3])
    assert list(zip(data.words.tolist(), data.columns.tolist(), strict=True)) == [(0, 1), (1, 0), (1, 1)]


TEXTS = ["the cat sat", "a dog", "the dog"]


def tokenizer(**options):
    """A tokenizer of transformers with a token for each of a few words, made without a download."""
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[BOS]", "the", "a", "cat", "dog", "sat"])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 1)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **options)


@pytest.mark.parametrize(
    "container", [list, tuple, np.array, pd.Series, lambda texts: datasets.Dataset.from_dict({"text": texts})["text"]]
)
def test_texts_are_read_by_a_tokenizer_and_padding_is_no_row(container):
    data = LabelledTokens.from_tokens(container(TEXTS), ["cat", "dog", "dog"], tokenizer=tokenizer())
    assert data.tokens.tolist() == [[1, 2, 4, 6], [1, 3, 5, 0], [1, 2, 5, 0]]
    assert data.words.tolist() == [0] * 4 + [1] * 3 + [2] * 3
    assert data.columns.tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2]
    assert data.targets["label"].argmax(dim=1).tolist() == [0] * 4 + [1] * 6
    last = LabelledTokens.from_tokens(container(TEXTS), ["cat", "dog", "dog"], tokenizer=tokenizer(), positions=-1)
    assert last.columns.tolist() == [3, 2, 2]


def test_whatever_answers_as_tokenizers_do_is_one():
    without = functools.partial(tokenizer(), add_special_tokens=False)
    assert LabelledTokens.from_tokens("a dog", [0.5], tokenizer=without).tokens.tolist() == [[3, 5]]
    pads = tokenizer(pad_token="[BOS]", padding_side="left")
    for reads in (
        pads,
        functools.partial(pads, padding=True),
        functools.partial(pads, padding=True, return_tensors="np"),
    ):
        data = LabelledTokens.from_tokens(TEXTS, [0.1, 0.2, 0.3], tokenizer=reads)
        assert [word[:3] for word in data.tokens.tolist()] == [[1, 2, 4], [1, 3, 5], [1, 2, 5]]
        assert (len(data), data.tokens[0, 3], data.tokens.shape) == (10, 6, (3, 4))
    assert LabelledTokens.from_tokens(TEXTS, [0.1, 0.2, 0.3], tokenizer=pads).tokens[1:, 3].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"tokens are texts: give tokenizer=, such as model\.tokenizer, or give token ids"),
        ({"tokenizer": tokenizer(), "attention_mask": [[1, 1]] * 3}, "attention_mask: texts have no padding"),
        ({"tokenizer": tokenizer().encode}, "does not answer a list of texts with the 'input_ids' of each"),
        ({"tokenizer": lambda texts: {"input_ids": [[1]]}}, "does not answer a list of texts with the 'input_ids'"),
        ({"tokenizer": 5}, "tokenizer=5"),
        (
            {"tokenizer": functools.partial(tokenizer(), add_special_tokens=False), "tokens": ["a", "", "a"]},
            r"tokens\[1\]='' has no tokens",
        ),
        ({"tokenizer": tokenizer(), "tokens": ["a", 3, "a"]}, "tokens"),
    ],
)
def test_texts_that_cannot_be_read_are_refused(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        LabelledTokens.from_tokens(**({"tokens": TEXTS, "targets": [0.1, 0.2, 0.3]} | arguments))


def test_labels_of_a_process_are_targets_beside_its_beliefs(mess3):
    dataset = msp.data.all_words(mess3, 3)
    last = np.array(mess3.tokens)[dataset.tokens.numpy()]
    data = LabelledTokens.from_beliefs(dataset, targets={"last token": last})
    assert data.classes == {"last token": mess3.tokens}
    assert torch.equal(data.targets["last token"].argmax(dim=1), data.tokens[data.words, data.columns])
    last = np.where(last == "A", None, last)
    some = LabelledTokens.from_beliefs(dataset, targets={"last token": last})
    assert len(some) == int((data.targets["last token"][:, 0] == 0).sum())
    assert some.classes == {"last token": ("B", "C")}


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (torch.tensor([1.0, 0.0, 1.0]), "float32 of shape"),
        (np.array([1, 0, 1], dtype=np.uint8), "uint8 of shape"),
        (torch.tensor([1, 0, 1], dtype=torch.uint8), "uint8 of shape"),
        ([1, 0, 1], "has a number twice"),
        ("last", "give a slice"),
        (1.5, "float64 of shape"),
        ([0, None], "give a slice"),
        (slice("a", None), "slice of integers"),
        (slice(None, None, -1), "a step of at least 1"),
        (torch.ones(3, 3).long(), "int64 of shape"),
    ],
)
def test_positions_that_could_be_read_in_two_ways_are_refused(positions, message):
    with pytest.raises((TypeError, ValueError), match=message):
        LabelledTokens.from_tokens(WORDS, TARGETS, positions=positions)


@pytest.mark.parametrize(
    "positions",
    [[0, 2], (0, 2), np.array([0, 2]), torch.tensor([0, 2]), [True, False, True], np.array([True, False, True])],
)
def test_the_same_positions_in_another_container(positions):
    assert LabelledTokens.from_tokens(WORDS, TARGETS, positions=positions).columns.tolist() == [0, 2] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": WORDS.unsqueeze(2).expand(3, 3, 2)}, r"'label' has shape \(3, 3, 2\).*use one_hot"),
        ({"targets": [["a", 1.5], ["b", None]]}, "holds float, str: give numbers, or labels"),
        ({"targets": [["a", "b"], ["b", None]]}, r"shape \(2, 2\)"),
        ({"targets": [[0, 1, 2], [0, 1], [0]]}, r"ragged.*attention_mask="),
        ({"targets": TARGETS * 1j}, "holds complex64: give numbers, or labels"),
        ({"targets": [["a", None, object()]] * 3}, "holds object, str: give numbers, or labels"),
        ({"targets": 5}, "targets is a int: give an array"),
        ({"targets": torch.ones(3, 3, dtype=torch.int64)}, "'1' in every row: there is no other class"),
        ({"targets": {"x": WORDS}, "classes": {"y": [0, 1, 2]}}, r"classes names \['y'\], and the targets are \['x'\]"),
        ({"targets": WORDS, "classes": {"label": [0, 1]}}, "holds '2', which is none of its classes 0, 1"),
        ({"targets": WORDS, "classes": {"label": [0, 1, 2, 1]}}, "holds a class twice"),
        ({"targets": torch.full((3, 3), -100)}, "has no label at any row"),
        ({"attention_mask": [[0, 1, 1]] * 3}, r"padding before tokens.*pad on the right"),
        ({"attention_mask": [[1, 2, 1]] * 3}, r"1 or 0 for each token"),
        ({"attention_mask": [1, 1, 1]}, r"attention_mask has shape \(1, 3\)"),
        ({"groups": [0.5, 1.0, 2.0]}, "groups holds floating-point numbers"),
        ({"targets": {}}, r"at least one"),
        ({"targets": TARGETS[:2]}, r"shape \(2, 3, 2\).*here \(3, 3, …\)"),
        ({"targets": TARGETS[:, :2]}, r"shape \(3, 2, 2\)"),
        ({"targets": TARGETS.log() * 0}, r"Target 'belief' is not finite at word 0, column 0.*positions="),
        ({"weighting": [1, float("nan"), 1]}, "weighting=.*without NaN"),
        ({"tokens": [[0, 1], [0]]}, "every row needs the same length"),
        ({"tokens": [[0, 0.5]]}, "without fractions"),
        ({"positions": slice(3, None)}, "chooses none"),
        ({"positions": [3]}, "3 is outside words of 3"),
        ({"positions": torch.ones(2, dtype=torch.bool)}, r"shape \(2,\); a mask is"),
        ({"weighting": torch.ones(2)}, r"weighting has shape \(2,\)"),
        ({"weighting": -torch.ones(3)}, r"a weight of -1"),
        ({"weighting": torch.zeros(3)}, "total weight of 0"),
        ({"groups": torch.zeros(3, 2).long()}, r"groups has shape \(3, 2\)"),
    ],
)
def test_bad_labels_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LabelledTokens.from_tokens(**({"tokens": WORDS, "targets": TARGETS} | arguments))


def test_targets_that_are_not_finite_may_be_left_out():
    targets = TARGETS.clone()
    targets[1, 2, 0] = float("nan")
    mask = torch.isfinite(targets).all(dim=2)
    assert len(LabelledTokens.from_tokens(WORDS, targets, positions=mask)) == 8


def test_rows_are_places_in_order():
    data = LabelledTokens.from_tokens(WORDS, TARGETS)
    fields = {name: getattr(data, name) for name in data.__dataclass_fields__}
    for words in (data.words.flip(0), data.words + 1):
        with pytest.raises(ValueError, match="each once and in order"):
            LabelledTokens(**(fields | {"words": words}))


@given(st.lists(st.lists(st.integers(0, 2), min_size=4, max_size=4), min_size=1, max_size=20))
def test_prefix_hashes_tell_prefixes_apart_wherever_they_are(words):
    tokens = torch.tensor(words)
    hashes = prefix_hashes(tokens)
    by_prefix = {}
    for word, row in zip(words, hashes.tolist(), strict=True):
        for t, value in enumerate(row):
            assert by_prefix.setdefault(tuple(word[: t + 1]), value) == value >= 0
    assert len(set(by_prefix.values())) == len(by_prefix)
    assert torch.equal(prefix_hashes(tokens[-1:]), hashes[-1:])


def test_prefix_hashes_of_many_words_do_not_collide():
    hashes = prefix_hashes(torch.cartesian_prod(*[torch.arange(3)] * 11))
    per_length = [hashes[:, t].unique() for t in range(11)]
    assert [len(values) for values in per_length] == [3**t for t in range(1, 12)]
    assert len(torch.cat(per_length).unique()) == sum(3**t for t in range(1, 12))


def test_streamed_words_are_the_sample_in_parts(mess3):
    chunks = list(stream_words(mess3, 250, 4, seed=3, chunk_size=100))
    generator = torch.Generator().manual_seed(3)
    totals = {}
    for chunk, size in zip(chunks, (100, 100, 50), strict=True):
        draws = brute_force.Counter(map(tuple, mess3.sample(size, 4, generator=generator).tolist()))
        for word, weight in zip(map(tuple, chunk.tokens.tolist()), chunk.word_weights.tolist(), strict=True):
            assert weight == pytest.approx(draws[word] / 250)
            totals[word] = totals.get(word, 0) + weight
    assert sum(totals.values()) == pytest.approx(1)
    with pytest.raises(ValueError, match="n_words=0"):
        stream_words(mess3, 0, 4, seed=3)
