import dataclasses
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import msp_lens as msp
from msp_lens.data import LabelledTokens, TokenMap, one_hot, stream_words
from msp_lens.data.belief_dataset import prefix_hashes
from msp_lens.probing.splits import Split, labelled_rows, split_rows
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
    by_word = LabelledTokens.from_tokens(WORDS, TARGETS, groups=torch.tensor([5, 7, 5]))
    assert by_word.groups.tolist() == [5, 5, 5, 7, 7, 7, 5, 5, 5]


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": WORDS}, r"is torch.int64.*one_hot"),
        ({"targets": {}}, r"at least one"),
        ({"targets": TARGETS[:2]}, r"shape \(2, 3, 2\).*here \(3, 3, …\)"),
        ({"targets": TARGETS[:, :2]}, r"shape \(3, 2, 2\)"),
        ({"targets": TARGETS.log() * 0}, r"belief is not finite at word 0, column 0.*positions="),
        ({"positions": slice(3, None)}, "chooses none"),
        ({"positions": [3]}, "3 is outside words of 3"),
        ({"positions": torch.ones(2, dtype=torch.bool)}, r"shape \(2,\); a mask is"),
        ({"weighting": torch.ones(2)}, r"weighting has shape \(2,\)"),
        ({"weighting": -torch.ones(3)}, r"a weight of -1"),
        ({"weighting": torch.zeros(3)}, "total weight of 0"),
        ({"groups": torch.zeros(3, 2)}, r"groups has shape \(3, 2\)"),
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
