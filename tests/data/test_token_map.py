import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import msp_lens as msp
from msp_lens.data import TokenMap
from msp_lens.models.hooked import check_fits
from tests.hooked_models import build


def plain_encoding(token_map, word):
    """A word's tokens and the columns of its symbols' last tokens, one list at a time."""
    tokens = ([] if token_map.bos is None else [token_map.bos]) + list(token_map.prompt)
    columns = []
    for t, symbol in enumerate(word):
        tokens += list(token_map.separator) if t else []
        tokens += list(token_map.symbols[symbol])
        columns.append(len(tokens) - 1)
    return tokens, columns


@st.composite
def token_maps(draw):
    n_symbols = draw(st.integers(1, 4))
    # Different first tokens: none begins another.
    symbols = [[10 + k, *draw(st.lists(st.integers(0, 30), max_size=2))] for k in range(n_symbols)]
    few = st.lists(st.integers(0, 30), max_size=3)
    return TokenMap(symbols, bos=draw(st.none() | st.integers(0, 30)), prompt=draw(few), separator=draw(few))


@given(token_maps(), st.data())
def test_words_are_encoded_symbol_by_symbol(token_map, data):
    n_symbols, length = len(token_map.symbols), data.draw(st.integers(1, 4))
    one_word = st.lists(st.integers(0, n_symbols - 1), min_size=length, max_size=length)
    words = data.draw(st.lists(one_word, min_size=1, max_size=4))
    tokens, columns = token_map.encode(torch.tensor(words))
    for word, row, ends in zip(words, tokens.tolist(), columns.tolist(), strict=True):
        expected, expected_ends = plain_encoding(token_map, word)
        assert row[: len(expected)] == expected
        assert ends == expected_ends
    assert tokens.shape[1] == max(len(plain_encoding(token_map, word)[0]) for word in words)
    assert tokens.shape[1] <= token_map.length(length)
    assert int(tokens.max()) < token_map.d_vocab
    longest = token_map.longest_word(24)
    assert longest == 0 or token_map.length(longest) <= 24 < token_map.length(longest + 1)


def test_the_identity_leaves_words_as_they_are():
    words = torch.tensor([[0, 2, 1]])
    identity = TokenMap.identity(3)
    assert identity.is_identity
    assert not TokenMap.identity(3, bos=3).is_identity
    tokens, columns = identity.encode(words)
    assert torch.equal(tokens, words)
    assert columns.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"symbols": []}, "at least one token id"),
        ({"symbols": [3, []]}, "at least one token id"),
        ({"symbols": [3, 3]}, "Symbols 0 and 1.*cannot tell them apart"),
        ({"symbols": [[3, 4], 5, 3]}, "Symbols 2 and 0.*begins with the other"),
        ({"symbols": [3, -1]}, "Token id -1"),
        ({"symbols": [3, 4], "include_prior": True}, "give bos= or prompt="),
    ],
)
def test_maps_that_a_model_cannot_tell_apart_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TokenMap(**arguments)


def test_symbols_without_ids_are_refused(mess3):
    with pytest.raises(ValueError, match=r"symbols 0 to 2.*0 to 1"):
        TokenMap([3, 4]).encode(torch.tensor([[0, 2]]))
    with pytest.raises(ValueError, match=r"has 2 symbols, mess3 emits 3"):
        TokenMap([3, 4]).check_reads(mess3)


def test_the_map_must_fit_the_model(mess3):
    model = build("bridge")
    check_fits(model, mess3, 4, token_map=TokenMap([2, 3, 4], separator=[0]))
    with pytest.raises(ValueError, match=r"5 symbols are 9 tokens.*context of 8.*n_ctx ≤ 4"):
        check_fits(model, mess3, 5, token_map=TokenMap([2, 3, 4], separator=[0]))
    with pytest.raises(ValueError, match=r"has 5 tokens, and the token map uses token 7"):
        check_fits(model, mess3, 4, token_map=TokenMap([2, 3, 7]))
    with pytest.raises(ValueError, match=r"has 4 symbols, mess3 emits 3"):
        check_fits(model, mess3, 4, token_map=TokenMap.identity(4))


def greedy(text):
    """A tokenizer that, as most do, takes the space into the next piece."""
    vocabulary = {"a": 0, " a": 1, "b": 2, " b": 3, " ": 4, "ab": 5, ":": 6}
    ids = []
    while text:
        piece = max((piece for piece in vocabulary if text.startswith(piece)), key=len)
        ids.append(vocabulary[piece])
        text = text[len(piece) :]
    return ids


class LikeTransformers:
    bos_token_id = 9

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [9] * add_special_tokens + greedy(text)}


class LikeTokenizers:
    def encode(self, text, add_special_tokens=True):
        class Encoding:
            ids = greedy(text)

        return Encoding()


class LikeTiktoken:
    def encode(self, text):
        return greedy(text)


@pytest.mark.parametrize("tokenizer", [LikeTransformers(), LikeTokenizers(), LikeTiktoken()])
def test_from_whatever_tokenizer(tokenizer):
    token_map = TokenMap.from_tokenizer(tokenizer, [" a", " b"], prompt=":")
    assert token_map == TokenMap([1, 3], prompt=[6])
    with pytest.raises(ValueError, match=r"splits 'a a' into \[0, 1\], but symbol by symbol it is \[0, 4, 0\]"):
        TokenMap.from_tokenizer(tokenizer, ["a", "b"], separator=" ")
    with pytest.raises(ValueError, match=r"splits 'ab'"):
        TokenMap.from_tokenizer(tokenizer, ["a", "b"])
    with pytest.raises(ValueError, match=r"' a a' is 2 tokens"):
        TokenMap.from_tokenizer(tokenizer, [" a a", " b"])
    assert TokenMap.from_tokenizer(tokenizer, [" a a", " b"], several_tokens=True).symbols == ((1, 1), (3,))
    with pytest.raises(ValueError, match="is 0 tokens"):
        TokenMap.from_tokenizer(tokenizer, ["", " b"], several_tokens=True)


def test_the_tokenizers_own_bos():
    assert TokenMap.from_tokenizer(LikeTransformers(), [" a", " b"], bos=True).bos == 9
    with pytest.raises(ValueError, match="no bos_token_id"):
        TokenMap.from_tokenizer(LikeTiktoken(), [" a", " b"], bos=True)
    with pytest.raises(TypeError, match="tokenizer is a object"):
        TokenMap.from_tokenizer(object(), [" a"])


def test_from_a_tokenizer_of_transformers():
    tokenizer = build("hugging face bridge").tokenizer
    token_map = TokenMap.from_tokenizer(tokenizer, [" a", " b", " c"], bos=True)
    assert token_map == TokenMap([2, 3, 4], bos=0)
    tokens, _ = token_map.encode(torch.tensor([[0, 2]]))
    assert tokens.tolist() == [[0, *tokenizer("a c", add_special_tokens=False)["input_ids"]]]


def test_a_map_is_described_in_json_ready_values():
    token_map = TokenMap((1, [2, 3]), bos=0, separator=[4], include_prior=True)
    assert TokenMap(**token_map.to_dict()) == token_map
    assert msp.TokenMap is TokenMap


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "symbols=.missing.: this field is required"),
        ({"symbols": "abc"}, "symbols='abc': give a list"),
        ({"symbols": [1.5]}, r"symbols\[0\]=1.5: give a whole number"),
        ({"symbols": [[1], ["2"]]}, r"symbols\[1\]"),
        ({"symbols": [1, 2], "bos": "0"}, "bos='0': give a whole number"),
        ({"symbols": [1, 2], "prompt": [float("nan")]}, r"prompt\[0\]=nan"),
        ({"symbols": [1, 2], "include_prior": 1}, "include_prior=1: give True or False"),
        ({"symbols": [1, 2], "seperator": []}, "there is no such field; there are symbols, bos"),
        ({"symbols": [2**70]}, "fits 64 bits"),
    ],
)
def test_damaged_fields_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        TokenMap.from_dict(fields)


def test_ids_in_any_container_are_the_same_map():
    expected = TokenMap([[5], [6, 7]], bos=0, prompt=[1, 2], separator=[3])
    symbols = ([[5], [6, 7]], (5, (6, 7)), [np.int64(5), np.array([6, 7])], [torch.tensor(5), torch.tensor([6, 7])])
    for each in symbols:
        for bos, prompt in (
            (np.int64(0), np.array([1, 2])),
            (torch.tensor(0), torch.tensor([1, 2])),
            (0.0, range(1, 3)),
        ):
            found = TokenMap(each, bos=bos, prompt=prompt, separator=(np.uint8(3),))
            assert found == expected
            assert hash(found) == hash(expected)
            assert TokenMap.from_dict(json.loads(json.dumps(found.to_dict()))) == expected
    assert TokenMap(np.array([5, 6])) == TokenMap(torch.tensor([5, 6])) == TokenMap([5, 6])


def test_words_in_any_container_are_encoded_alike():
    token_map = TokenMap([5, 6], bos=0)
    for words in ([[0, 1]], np.array([[0, 1]], dtype=np.uint8), [0, 1], torch.tensor([[0, 1]], dtype=torch.uint8)):
        tokens, columns = token_map.encode(words)
        assert (tokens.tolist(), columns.tolist()) == ([[0, 5, 6]], [[1, 2]])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: TokenMap("ab"), TypeError, "symbols='ab': give a list"),
        (lambda: TokenMap([True, False]), TypeError, r"symbols\[0\]=True"),
        (lambda: TokenMap([5, 6], bos=True), TypeError, "bos=True: give a whole number"),
        (lambda: TokenMap([5, 6], bso=0), TypeError, "no parameter 'bso': choose from symbols, bos.*Did you mean bos"),
        (lambda: TokenMap.identity(2.5), ValueError, "n_symbols=2.5"),
        (lambda: TokenMap([5, 6]).encode([["a"]]), TypeError, "give whole numbers"),
        (lambda: TokenMap([5, 6]).longest_word("8"), TypeError, "n_ctx='8'"),
        (lambda: TokenMap([5, 6]).check_reads("mess3"), TypeError, "process='mess3': give a Process"),
    ],
)
def test_wrong_kinds_are_refused_by_name(make, error, message):
    with pytest.raises(error, match=message):
        make()
