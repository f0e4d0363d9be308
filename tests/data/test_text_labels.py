"""Labels from text: spans, words and whole texts, tables, special tokens and padding."""

import functools
import types

import datasets
import numpy as np
import pandas as pd
import pytest
import tokenizers
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import msp_lens as msp
from msp_lens.data import LabelledTokens
from msp_lens.data.belief_dataset import prefix_hashes
from msp_lens.models.activations import stream_activations

TEXTS = ["the cat sat", "a dog", "the cat ran  off"]


@functools.cache
def pieces(*, bos=True, prefix_space=False):
    """A byte-level BPE tokenizer of transformers, trained here, that cuts many words into pieces."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=275, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(["the cat sat at the the that cat caterpillar"] * 5, trainer)
    if bos:
        template = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        bpe.post_processor = template
    return transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", pad_token="</s>")


def labels_of(data, name="label"):
    """The label of each row, by text and column."""
    names = [data.classes[name][k] for k in data.targets[name].argmax(dim=1)]
    return dict(zip(zip(data.words.tolist(), data.columns.tolist(), strict=True), names, strict=True))


def by_hand(text, spans, at, tokenizer):
    """The label of each token, found character by character; `None` if labels contradict each other."""
    of_character = [{label for start, end, label in spans if start <= k < end} for k in range(len(text))]
    read = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    inside = [{k for k in range(*ends) if not text[k].isspace()} for ends in read]
    if any(len(found) > 1 for found, letter in zip(of_character, text, strict=True) if not letter.isspace()):
        return None
    labels = [set() for _ in read]
    for start, end, label in spans:
        over = [k for k, characters in enumerate(inside) if characters & set(range(start, end))]
        for k in over if at == "all" else over[:1] if at == "first" else over[-1:]:
            labels[k].add(label)
    return None if any(len(found) > 1 for found in labels) else [min(found, default=None) for found in labels]


spans = st.lists(st.tuples(st.integers(0, 11), st.integers(1, 12), st.sampled_from("xyz")), max_size=4)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.text("the cat\n🐈é", min_size=1, max_size=12), spans), min_size=1, max_size=3),
    st.sampled_from(["all", "first", "last"]),
)
def test_spans_are_found_as_by_hand(given_texts, at):
    texts = [text for text, _ in given_texts]
    marked = [[(a, min(b, len(text)), c) for a, b, c in found if a < min(b, len(text))] for text, found in given_texts]
    expected = [by_hand(text, found, at, pieces()) for text, found in zip(texts, marked, strict=True)]
    call = functools.partial(
        LabelledTokens.from_text, texts, {"x": marked}, tokenizer=pieces(), label_at=at, classes={"x": list("xyz")}
    )
    if None in expected:
        with pytest.raises(ValueError, match=r"Target 'x'.*(overlap and differ|give both the same label)"):
            call()
        return
    places = {(k, t): label for k, row in enumerate(expected) for t, label in enumerate(row) if label is not None}
    assume(places)
    data = call()
    assert labels_of(data, "x") == places
    for row, text in zip(data.tokens.tolist(), texts, strict=True):
        ids = pieces()(text)["input_ids"]
        assert row == ids + [1] * (data.n_ctx - len(ids))


def test_what_is_outside_of_spans_has_a_class_of_its_own_by_choice():
    found = [[(4, 7, "animal")], [(2, 5, "animal")], [(4, 7, "animal"), (14, 17, None)]]
    texts = [*TEXTS[:2], "the cat ran  (off)"]
    alone = functools.partial(LabelledTokens.from_text, texts, found, tokenizer=pieces())
    with pytest.raises(ValueError, match="'animal' in every row"):
        alone()
    data = labels_of(alone(outside="other"))
    for k, text in enumerate(texts):
        read = pieces()(text, return_offsets_mapping=True)["offset_mapping"]
        for t, (start, end) in enumerate(read):
            characters = {c for c in range(start, end) if not text[c].isspace()}
            spans = [(set(range(*span[:2])), span[2]) for span in found[k]]
            inside = [label for covered, label in spans if covered & characters]
            # BOS stands for nothing in the text, and None is no label.
            expected = None if start == end else inside[0] if inside else "other"
            assert data.get((k, t)) == expected, (text, t)
    assert set(data.values()) == {"animal", "other"}


@pytest.mark.parametrize("at", ["first", "last", "all", None])
def test_labels_of_words_are_those_of_transformers(at):
    words = [["caterpillar", "sat", "on", "the", "mat"], ["the", "that"], ["cat", "🐈", "é"]]
    tags = [["N", "V", "P", "D", "N"], ["D", None], ["N", "N", "X"]]
    tokenizer = pieces(prefix_space=True)
    data = LabelledTokens.from_text(words, tags, tokenizer=tokenizer, label_at=at)
    read = tokenizer(words, is_split_into_words=True)
    expected = {}
    for k in range(3):
        assert data.tokens[k, : len(read["input_ids"][k])].tolist() == read["input_ids"][k]
        of_word = {}
        for t, word in enumerate(read.word_ids(k)):
            if read.tokens(k)[t] == "Ġ":
                # A space alone is part of no word.
                continue
            of_word.setdefault(word, []).append(t)
        for word, places in of_word.items():
            if word is not None and tags[k][word] is not None:
                chosen = places if at == "all" else places[:1] if at == "first" else places[-1:]
                expected |= {(k, t): tags[k][word] for t in chosen}
    assert labels_of(data) == expected
    assert any(len(read.word_ids(k)) > len(words[k]) + 2 for k in range(3)), "every word was one token"


def test_a_label_or_a_vector_for_each_text():
    lengths = [len(pieces()(text)["input_ids"]) for text in TEXTS]
    read = functools.partial(LabelledTokens.from_text, TEXTS, tokenizer=pieces())
    last = read(["sits", "is", "runs"])
    assert last.columns.tolist() == [length - 1 for length in lengths]
    assert list(labels_of(last).values()) == ["sits", "is", "runs"]
    every = read(["sits", None, "runs"], label_at="all")
    # Not at BOS, and not in the text without a label.
    assert list(labels_of(every)) == [(k, t) for k in (0, 2) for t in range(1, lengths[k])]
    first = read({"x": [0.5, None, 2.5], "v": [[1.0, 2.0], [3.0, 4.0], np.array([5.0, 6.0])]}, label_at="first")
    assert first.columns.tolist() == [1, 1]
    assert first.targets["x"].tolist() == [[0.5], [2.5]]
    assert first.targets["v"].tolist() == [[1, 2], [5, 6]]
    assert read([1.5, 2.5, 3.5]).targets["belief"].tolist() == [[1.5], [2.5], [3.5]]
    # Beside labels of spans, a text's label is at all of its tokens.
    both = read({"kind": ["a", "b", "c"], "x": [[(0, 3, 1.0)], [], [(4, 7, 2.0), (8, 11, 3.0)]]})
    assert {word: kind for (word, _), kind in labels_of(both, "kind").items()} == {0: "a", 2: "c"}
    assert both.targets["x"].flatten().unique().tolist() == [1, 2, 3]


def test_rows_with_one_activation_are_held_out_together_and_else_by_text():
    texts = ["the cat sat", "the cat ran", "a dog", "the cat sat"]
    words = [text.split() for text in texts]
    data = LabelledTokens.from_text(words, [[w[0] for w in each] for each in words], tokenizer=pieces())
    hashes = prefix_hashes(data.tokens)[data.words, data.columns].tolist()
    groups = dict(zip(hashes, data.groups.tolist(), strict=True))
    assert [groups[each] for each in hashes] == data.groups.tolist(), "one prefix in two groups"
    # The last word of each text: of its own, but of the first text in the repeated one.
    ends = {int(w): int(g) for w, g in zip(data.words, data.groups, strict=True)}
    assert ends == {0: 0, 1: 1, 2: 2, 3: 0}
    given_groups = LabelledTokens.from_text(
        words, [[w[0] for w in each] for each in words], tokenizer=pieces(), groups=["x", "x", "y", "y"]
    )
    assert [sorted(set(given_groups.groups[given_groups.words == k].tolist())) for k in range(4)] == [
        [0],
        [0],
        [1],
        [1],
    ]


def model_with(tokenizer, **config):
    """A small network with a tokenizer of its own."""
    model = msp.build_model(
        msp.ModelConfig(d_vocab=280, n_layers=1, d_model=16, d_head=8, d_mlp=16, n_ctx=12, **config), seed=1
    )
    model.tokenizer = tokenizer
    return model


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("prepend", [True, False, None])
def test_bos_is_as_the_model_reads_texts(adds, prepend):
    model = model_with(pieces(bos=adds))
    model.cfg.tokenizer_prepends_bos = adds
    for default in (True, False):
        model.cfg.default_prepend_bos = default
        wants = default if prepend is None else prepend
        expected = model.to_tokens(TEXTS[:2], **({} if prepend is None else {"prepend_bos": prepend}))
        data = LabelledTokens.from_text(TEXTS[:2], ["a", "b"], tokenizer=model, prepend_bos=prepend, label_at="all")
        assert data.tokens.tolist() == expected.tolist()
        # BOS is no row.
        assert int(data.columns.min()) == int(wants)
        found = labels_of(
            LabelledTokens.from_text(TEXTS[:2], [[(0, 3, "x")], [(0, 1, "y")]], tokenizer=model, prepend_bos=prepend)
        )
        assert found[(0, int(wants))] == "x"
    alone = LabelledTokens.from_text(TEXTS[:2], ["a", "b"], tokenizer=pieces(bos=adds), prepend_bos=prepend)
    wants = adds if prepend is None else prepend
    assert (alone.tokens[:, 0] == 0).tolist() == [wants] * 2


def test_padding_changes_no_activation():
    model = model_with(pieces())
    texts = ["the cat", "a", "the cat sat"]

    def read(data):
        (batch,) = stream_activations(model, data.tokens, "blocks.0.hook_resid_post")
        return batch.activations["blocks.0.hook_resid_post"][data.words, data.columns]

    together = LabelledTokens.from_text(texts, ["x", "y", "z"], tokenizer=model, label_at="all")
    rows, seen = read(together), 0
    for k, text in enumerate(texts):
        alone = LabelledTokens.from_text([text], [float(k)], tokenizer=model, label_at="all")
        own = together.words == k
        assert torch.equal(together.columns[own], alone.columns)
        torch.testing.assert_close(rows[own], read(alone), rtol=0, atol=1e-6)
        seen += len(alone)
    assert seen == len(together) < together.tokens.numel() - 3


def test_long_texts_are_refused_by_name_or_cut_when_asked():
    long = ["a dog", "the cat sat at the the caterpillar that sat", "the caterpillar that sat at the cat sat off"]
    n_tokens = len(pieces()(long[2])["input_ids"])
    assert n_tokens > 12
    read = functools.partial(LabelledTokens.from_text, long, tokenizer=model_with(pieces()))
    message = (
        rf"texts\[2\]='the caterpillar that sat at the cat sat…'.* has {n_tokens} tokens, and n_ctx=12.*truncate=True"
    )
    with pytest.raises(ValueError, match=message):
        read(["a", "b", "c"])
    cut = read(["a", "b", "c"], truncate=True)
    assert cut.n_ctx == 12
    assert cut.columns.tolist()[1:] == [11, 11] if len(pieces()(long[1])["input_ids"]) > 12 else cut.columns[2] == 11
    assert cut.description["texts_cut"] >= 1
    assert read(["a", "b", "c"], n_ctx=100).n_ctx == n_tokens
    spans = [[(0, 1, "x")], [(0, 3, "y")], [(40, 43, "z"), (0, 3, "y")]]
    lost = read(spans, truncate=True)
    assert set(labels_of(lost).values()) == {"x", "y"}
    assert lost.description["labels_without_a_token"] == 1


def test_tables_of_every_kind_are_read_alike():
    words, tags = [["the", "cat"], ["a", "dog", "sat"]], [[0, 1], [0, 1, 2]]
    names = ["D", "N", "V", "X"]
    features = datasets.Features(
        tokens=datasets.List(datasets.Value("string")), tags=datasets.List(datasets.ClassLabel(names=names))
    )
    table = datasets.Dataset.from_dict({"tokens": words, "tags": tags}, features=features)
    data = LabelledTokens.from_table(table, "tokens", targets="tags", tokenizer=pieces())
    assert data.classes == {"tags": tuple(names)}
    assert list(labels_of(data, "tags").values()) == ["D", "N", "D", "N", "V"]
    rows = table.to_iterable_dataset()
    assert labels_of(
        LabelledTokens.from_table(rows, "tokens", targets="tags", tokenizer=pieces()), "tags"
    ) == labels_of(data, "tags")
    strings = [[names[tag] for tag in each] for each in tags]
    for other in (
        pd.DataFrame({"tokens": words, "tags": strings}),
        {"tokens": words, "tags": strings},
        [{"tokens": w, "tags": t} for w, t in zip(words, strings, strict=True)],
        datasets.Dataset.from_dict({"tokens": words, "tags": strings}),
    ):
        found = LabelledTokens.from_table(other, "tokens", targets=["tags"], tokenizer=pieces())
        assert labels_of(found, "tags") == labels_of(data, "tags")
        assert found.classes == {"tags": ("D", "N", "V")}
    missing = table.map(lambda row: {"tags": [-1, *row["tags"][1:]]})
    found = labels_of(LabelledTokens.from_table(missing, "tokens", targets="tags", tokenizer=pieces()), "tags")
    assert list(found.values()) == ["N", "N", "V"]


def test_tables_with_spans_and_columns_for_groups_and_weights():
    entity = {"start": datasets.Value("int32"), "end": datasets.Value("int32")}
    entity["label"] = datasets.ClassLabel(names=["who", "what"])
    spans = [[{"start": 0, "end": 3, "label": 1}], [{"start": 0, "end": 1, "label": 0}], []]
    rows = {"text": TEXTS, "spans": spans, "document": ["x", "y", "x"], "counts": [1.0, 2.0, 3.0]}
    by_field = [{key: [span[key] for span in each] for key in entity} for each in spans]
    for feature, column in ((datasets.List(entity), spans), (datasets.Sequence(entity), by_field)):
        features = datasets.Features(
            text=datasets.Value("string"),
            spans=feature,
            document=datasets.Value("string"),
            counts=datasets.Value("float32"),
        )
        table = datasets.Dataset.from_dict(rows | {"spans": column}, features=features)
        options = {"targets": "spans", "tokenizer": pieces(), "groups": "document", "weighting": "counts"}
        data = LabelledTokens.from_table(table, **options)
        assert set(labels_of(data, "spans").items()) >= {((1, 1), "who"), ((0, 1), "what")}
        assert sorted(set(zip(data.words.tolist(), data.groups.tolist(), data.weights.tolist(), strict=True))) == [
            (0, 0, 1),
            (1, 1, 2),
        ]
    tuples = [[(0, 3, "what")], [(0, 1, "who")], None]
    frame = pd.DataFrame({"text": TEXTS, "spans": tuples})
    assert labels_of(LabelledTokens.from_table(frame, targets="spans", tokenizer=pieces()), "spans") == labels_of(
        data, "spans"
    )


def test_tables_of_token_ids_need_no_tokenizer():
    ids, labels = [[5, 6, 7], [5, 8]], [[0, 1, -100], [1, 0]]
    data = LabelledTokens.from_table({"input_ids": ids, "labels": labels}, "input_ids", targets="labels")
    assert data.tokens.tolist() == [[5, 6, 7], [5, 8, 0]]
    assert labels_of(data, "labels") == {(0, 0): "0", (0, 1): "1", (1, 0): "1", (1, 1): "0"}
    padded = {"input_ids": [[5, 6, 7], [9, 5, 8]], "labels": [[0, 1, -100], [1, 1, 0]]}
    padded["attention_mask"] = [[1, 1, 1], [0, 1, 1]]
    for table in (padded, datasets.Dataset.from_dict(padded).with_format("torch")):
        found = LabelledTokens.from_table(table, "input_ids", targets="labels")
        assert torch.equal(found.tokens, data.tokens)
        assert labels_of(found, "labels") == labels_of(data, "labels")
    last = LabelledTokens.from_table(padded | {"labels": [1.5, 2.5]}, "input_ids", targets="labels")
    assert last.columns.tolist() == [2, 1]
    cut = LabelledTokens.from_table(
        {"input_ids": ids, "labels": labels}, "input_ids", targets="labels", n_ctx=1, truncate=True
    )
    assert labels_of(cut, "labels") == {(0, 0): "0", (1, 0): "1"}


def test_whatever_answers_with_offsets_is_a_tokenizer():
    def letters(texts):
        places = [[(k, k + 1) for k in range(len(text))] for text in texts]
        return {"input_ids": [[ord(c) % 7 for c in text] for text in texts], "offset_mapping": places}

    data = LabelledTokens.from_text(["ab c", "d"], [[(0, 2, "x"), (3, 4, "y")], []], tokenizer=letters, outside="z")
    assert labels_of(data) == {(0, 0): "x", (0, 1): "x", (0, 3): "y", (0, 2): "z", (1, 0): "z"}
    quiet = functools.partial(pieces(), add_special_tokens=False)
    assert LabelledTokens.from_text(["the cat"], [[(0, 3, 1.0)]], tokenizer=quiet).columns[0] == 0


def slow(texts, return_offsets_mapping=False):
    """A tokenizer that does not know where its tokens stand."""
    return {"input_ids": [[1, 2]] * len(texts)}


class Slow:
    """Slow tokenizers of transformers say that they are."""

    is_fast = False

    def __call__(self, texts):
        return slow(texts)


SPANS = [[(0, 3, "x")], [], [(0, 3, "y")]]


NO_BOS = tokenizers.Tokenizer(tokenizers.models.WordLevel({"the": 0, "?": 1}, unk_token="?"))
WORDS = [["a", "b"], ["c"], ["d"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokenizer": None}, "tokenizer: texts need one, such as the model"),
        ({"tokenizer": Slow()}, r"tokenizer is a Slow, a slow one.*AutoTokenizer\.from_pretrained"),
        ({"tokenizer": slow}, "'offset_mapping' of each"),
        ({"tokenizer": types.SimpleNamespace()}, "tokenizer="),
        ({"targets": [[(0, 99, "x")], [], []]}, r"span \(0, 99, 'x'\) is not within the 11 characters of texts\[0\]"),
        ({"targets": [[(3, 3, "x")], [], []]}, r"the span \(3, 3, 'x'\) is not within"),
        ({"targets": [[], [(-1, 2, "x")], []]}, r"characters of texts\[1\]"),
        ({"targets": [[(0, 6, "x"), (4, 7, "y")], [], []]}, r"texts\[0\].*spans \(0, 6, 'x'\) and \(4, 7, 'y'\)"),
        ({"targets": [[(0, 1, "x"), (1, 3, "y")], [], []]}, r"the token 'the' of texts\[0\]='the cat sat' is in \(0,"),
        ({"targets": [[(0, 1, "x")], "y", []]}, r"the same for all"),
        ({"targets": SPANS[:2]}, "an entry for each of the 3 texts, not 2 entries"),
        ({"targets": "x"}, "an entry for each of the 3 texts, not something else"),
        ({"targets": {}}, "at least one"),
        ({"targets": [[], [], []]}, "no token of the 3 texts has a label"),
        ({"targets": [[(0, 3, 1.5)], [], []], "outside": "z"}, "outside='z': targets is numbers"),
        ({"targets": [[(0, 3, 1)], [], []], "outside": "z"}, "targets with outside='z' holds int, str"),
        ({"targets": ["a", 1.5, "b"]}, "targets holds float, str"),
        ({"targets": [1.0, float("nan"), 2.0]}, r"not finite at word 1.*give None"),
        ({"texts": WORDS, "targets": [["x"], ["y"], ["z"]]}, r"1 labels for the 2 parts of texts\[0\]"),
        ({"texts": WORDS}, r"has .*\(0, 3, 'x'\).* for texts\[0\]"),
        ({"texts": ["a", ["b"], "c"]}, "the same for all"),
        ({"texts": [["a"], [], ["c"]]}, r"texts\[1\] is empty"),
        ({"texts": 5}, "texts is a int"),
        ({"label_at": "middle"}, "label_at='middle'"),
        (
            {"prepend_bos": True, "tokenizer": transformers.PreTrainedTokenizerFast(tokenizer_object=NO_BOS)},
            "no BOS token; give prepend_bos=False",
        ),
        ({"classes": {"y": ["a"]}}, r"classes names \['y'\]"),
        ({"groups": [1, 2]}, r"groups has shape \(2,\)"),
        ({"weighting": [1.0, 2.0]}, r"weighting has shape \(2,\)"),
    ],
)
def test_what_cannot_be_read_is_refused(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        LabelledTokens.from_text(**({"texts": TEXTS, "targets": SPANS, "tokenizer": pieces()} | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "words"}, "text='words' is no column of the table: choose from text, label"),
        ({"targets": ["label", "tag"]}, "targets='tag' is no column"),
        ({"groups": "document"}, "groups='document' is no column"),
        ({"table": 5}, "table is a int: give a pandas frame"),
        ({"table": []}, "table is a list"),
        (
            {"table": datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": ["a"]}))},
            r"parts train.*\['train'\]",
        ),
        ({"table": {"text": TEXTS, "label": ["a", "b"]}}, "not 2 entries"),
    ],
)
def test_tables_that_cannot_be_read_are_refused(arguments, message):
    table = {"text": TEXTS, "label": ["a", "b", "a"]}
    with pytest.raises((KeyError, ValueError), match=message):
        LabelledTokens.from_table(**({"table": table, "tokenizer": pieces()} | arguments))
