import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import msp_lens as msp
from tests import brute_force


@given(brute_force.random_processes(), st.integers(1, 4))
def test_all_words_are_those_with_a_probability(process, length):
    dataset = msp.data.all_words(process, length)
    table = brute_force.word_probabilities(process, length)
    assert [tuple(word) for word in dataset.tokens.tolist()] == list(table)
    assert dataset.word_weights.tolist() == pytest.approx(list(table.values()))
    torch.testing.assert_close(dataset.beliefs, msp.filter_beliefs(process, dataset.tokens))


@given(brute_force.random_processes(), st.integers(1, 4))
def test_prefixes_and_their_weights(process, length):
    dataset = msp.data.all_words(process, length)
    counts = brute_force.prefix_counts(dataset.tokens.tolist())
    assert dataset.n_prefixes == len(counts)
    by_id = {}
    for word, ids in zip(dataset.tokens.tolist(), dataset.prefix_ids.tolist(), strict=True):
        for t, prefix_id in enumerate(ids):
            assert by_id.setdefault(prefix_id, tuple(word[: t + 1])) == tuple(word[: t + 1])
    assert sorted(by_id) == list(range(len(counts)))
    assert len(set(by_id.values())) == len(counts)

    weights = {name: dataset.prefix_weights(name) for name in ("probability", "sequence", "prefix")}
    for prefix_id, prefix in by_id.items():
        exact = sum(brute_force.joint(process, prefix))
        assert weights["probability"][prefix_id].item() == pytest.approx(exact / length)
        assert weights["sequence"][prefix_id].item() == pytest.approx(counts[prefix] / len(dataset) / length)
        assert weights["prefix"][prefix_id].item() == pytest.approx(1 / len(counts))
    assert int(dataset.is_first.sum()) == len(counts)


def test_sizes_and_variances_of_the_paper(mess3):
    dataset = msp.data.all_words(mess3, 10)
    assert (len(dataset), dataset.n_prefixes) == (59_049, 88_572)
    for weighting, variance in (("sequence", 0.11115), ("probability", 0.16114)):
        weights = dataset.prefix_weights(weighting)
        centered = dataset.prefix_beliefs - weights @ dataset.prefix_beliefs
        assert float((weights @ centered**2).mean()) == pytest.approx(variance, abs=5e-6)
    assert len(msp.data.all_words(msp.rrxor(), 10)) == 436


def test_too_many_words_are_sampled_or_refused(mess3):
    with pytest.raises(ValueError, match=r"more than 100 words of 5 tokens.*sampled_words"):
        msp.data.all_words(mess3, 5, max_words=100)


def test_words_are_all_there_are_or_a_sample(mess3):
    assert torch.equal(msp.words(mess3, n_ctx=5).tokens, msp.data.all_words(mess3, 5).tokens)
    for options, n_words in (
        ({"max_words": 100}, 100),
        ({"n_words": 300}, 300),
        ({"n_words": 300, "max_words": 9}, 300),
    ):
        dataset, sample = (
            msp.words(mess3, n_ctx=5, seed=4, **options),
            msp.data.sampled_words(mess3, n_words, 5, seed=4),
        )
        assert not dataset.is_population
        assert dataset.n_draws == n_words
        assert torch.equal(dataset.tokens, sample.tokens)
        assert torch.equal(dataset.word_weights, sample.word_weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_ctx": 0}, "n_ctx=0: give at least 1"),
        ({"n_words": 0}, "n_words=0: give at least 1"),
        ({"max_words": 0}, "max_words=0: give at least 1"),
        ({"positions": [3]}, "3 is outside words of 3"),
        ({"positions": slice(3, None)}, "chooses none"),
        ({"token_map": msp.TokenMap([5, 6])}, "has 2 symbols, mess3 emits 3"),
    ],
)
def test_words_that_cannot_be_are_refused(mess3, options, message):
    with pytest.raises(ValueError, match=message):
        msp.words(mess3, **({"n_ctx": 3} | options))


def test_a_dataset_says_how_it_is_read(mess3):
    token_map = msp.TokenMap([5, 6, 7], bos=0)
    dataset = msp.words(mess3, n_ctx=3, positions=slice(1, None), token_map=token_map)
    data = msp.LabelledTokens.from_beliefs(dataset)
    assert data.positions.unique().tolist() == [1, 2]
    assert torch.equal(data.columns, data.positions + 1)
    assert data.tokens.unique().tolist() == [0, 5, 6, 7]
    assert (data.description["positions"], data.description["token_map"]) == ("1:", token_map.to_dict())


def test_sampled_words_count_each_draw_once(mess3):
    draws = mess3.sample(500, 3, seed=7)
    dataset = msp.data.sampled_words(mess3, 500, 3, seed=7)
    frequencies = brute_force.Counter(map(tuple, draws.tolist()))
    observed = zip(map(tuple, dataset.tokens.tolist()), dataset.word_weights.tolist(), strict=True)
    assert dict(observed) == pytest.approx({word: count / 500 for word, count in frequencies.items()})
    torch.testing.assert_close(dataset.beliefs, msp.filter_beliefs(mess3, dataset.tokens))
    prefix_frequency = brute_force.prefix_counts(draws.tolist())[(0,)] / 500
    first = dataset.prefix_ids[(dataset.tokens[:, 0] == 0).nonzero()[0, 0], 0]
    assert dataset.prefix_weights("probability")[first].item() == pytest.approx(prefix_frequency / 3)


def test_token_dataset_feeds_a_data_loader(mess3, global_state):
    dataset = msp.data.token_dataset(mess3, 64, n_ctx=10, seed=0)
    # A generator of its own: a DataLoader without one draws from the global random state.
    loader = torch.utils.data.DataLoader(dataset, batch_size=16, generator=torch.Generator())
    batches = [batch["tokens"] for batch in loader]
    assert torch.equal(torch.cat(batches), mess3.sample(64, 11, seed=0))


def test_token_dataset_as_a_hugging_face_dataset(mess3):
    dataset = msp.data.token_dataset(mess3, 8, n_ctx=4, seed=0)
    columns = dataset.to_huggingface()
    assert columns.column_names == ["tokens"]
    assert torch.equal(columns["tokens"][:], dataset.tokens)


def test_datasets_are_plain_values(mess3):
    words = msp.words(mess3, n_ctx=3, positions=[0, -1], token_map=msp.TokenMap.identity(3, bos=3))
    labelled = msp.LabelledTokens.from_beliefs(words, targets={"<b>$x$\n[red]": words.tokens})
    described = msp.beliefs.describe(mess3)
    records = [words, labelled, described, described.presentation, msp.beliefs.mixed_states(mess3, 3)]
    records += [msp.beliefs.box_counting_dimension(msp.beliefs.attractor(mess3, 5_000, seed=0)), described.entropy_rate]
    for record in records:
        text = repr(record)
        for same in (copy.copy(record), copy.deepcopy(record), pickle.loads(pickle.dumps(record))):
            assert same == record
            assert repr(same) == text
    changed = dataclasses.replace(words, word_weights=words.word_weights.flip(0))
    assert changed != words
    assert dataclasses.replace(labelled, weights=labelled.weights * 2) != labelled
    assert (
        dataclasses.replace(labelled, targets={**labelled.targets, "belief": labelled.targets["belief"] + 1})
        != labelled
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"process": "mess3"}, TypeError, "process='mess3': give a Process"),
        ({"n_ctx": 0}, ValueError, "n_ctx=0: give at least 1"),
        ({"n_ctx": 2.5}, ValueError, "n_ctx=2.5: give a whole number"),
        ({"n_ctx": None}, TypeError, "n_ctx=None"),
        ({"n_words": 0}, ValueError, "n_words=0"),
        ({"max_words": float("inf")}, ValueError, "max_words=inf"),
        ({"seed": "0"}, TypeError, "seed='0'"),
        ({"token_map": [0, 1, 2]}, TypeError, r"token_map=\[0, 1, 2\]: give a TokenMap"),
        ({"position": [0]}, TypeError, "no parameter 'position': choose from .* Did you mean positions"),
        ({"positions": torch.tensor([1.0, 0.0, 1.0])}, TypeError, "positions is float32"),
        ({"n_words": 10**12}, ValueError, "would take .* GB"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(mess3, arguments, error, message):
    with pytest.raises(error, match=message):
        msp.words(**({"process": mess3, "n_ctx": 3} | arguments))


def test_the_same_positions_in_another_container(mess3):
    expected = msp.words(mess3, n_ctx=3, positions=[0, 2])
    assert expected.positions == (0, 2)
    for positions in ((0, 2), np.array([0, 2]), torch.tensor([0, 2]), range(0, 3, 2)):
        assert msp.words(mess3, n_ctx=np.int64(3), positions=positions) == expected
    assert msp.words(mess3, n_ctx=3, positions=-1).positions == (-1,)
