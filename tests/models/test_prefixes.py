"""Each prefix is read once, and every place of every word gets what reading word by word gives it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import msp_lens as msp
from msp_lens.models import editing, stream_activations, stream_prefixes
from tests.models.test_beginning import CACHED, PLAIN, made, site_of

ALL_WORDS = torch.cartesian_prod(*[torch.arange(3)] * 6)


def by_place(batches):
    """Activations and output at every place, [word, pos, …]."""
    batches = list(batches)
    activations = {
        name: torch.cat([batch.activations[name][batch.places] for batch in batches]) for name in batches[0].activations
    }
    outputs = [batch.output for batch in batches]
    output = None if outputs[0] is None else torch.cat([b.output[b.places] for b in batches])
    return activations, output


def word_by_word(model, tokens, sites=None, **how):
    batches = list(stream_activations(model, tokens, sites, **how))
    activations = {name: torch.cat([batch.activations[name] for batch in batches]) for name in batches[0].activations}
    return activations, None if batches[0].output is None else torch.cat([batch.output for batch in batches])


def assert_same(found, expected):
    assert found[0].keys() == expected[0].keys()
    for name, values in expected[0].items():
        torch.testing.assert_close(found[0][name], values, atol=2e-5, rtol=1e-4)
    if expected[1] is None:
        assert found[1] is None
    else:
        torch.testing.assert_close(found[1], expected[1], atol=2e-5, rtol=1e-4)


# A cached model of every TransformerLens.
SOME = "GPT-2"


@pytest.mark.parametrize("name", CACHED)
def test_a_tree_of_words_is_read_like_the_words(name):
    model = made(name)
    expected = word_by_word(model, ALL_WORDS)
    assert_same(by_place(stream_prefixes(model, ALL_WORDS)), expected)
    batches = list(stream_prefixes(model, ALL_WORDS, batch_size=100))
    assert [batch.words for batch in batches][:2] == [slice(0, 100), slice(100, 200)]
    assert_same(by_place(batches), expected)
    rows = sum(len(batch.places.unique()) for batch in stream_prefixes(model, ALL_WORDS))
    # 3 + 9 + … + 729 prefixes, of which the shortest few are read several times.
    assert 1092 <= rows < 1092 * 1.2


@pytest.mark.parametrize("name", PLAIN)
def test_a_model_without_a_cache_reads_word_by_word(name):
    model = made(name)
    batches = list(stream_prefixes(model, ALL_WORDS, site_of(model)))
    assert sum(len(batch.places.unique()) for batch in batches) == ALL_WORDS.numel()
    assert_same(by_place(batches), word_by_word(model, ALL_WORDS, site_of(model)))


@given(
    words=st.lists(st.lists(st.integers(0, 4), min_size=5, max_size=5), min_size=1, max_size=40),
    is_sorted=st.booleans(),
    size=st.integers(1, 50),
)
@settings(max_examples=12)
def test_any_words_in_any_order(words, is_sorted, size):
    model, tokens = made(SOME), torch.tensor(sorted(words) if is_sorted else words)
    assert_same(by_place(stream_prefixes(model, tokens, batch_size=size)), word_by_word(model, tokens))


@pytest.mark.parametrize("shape", [(0, 5), (1, 5), (4, 1)])
def test_few_words(shape):
    model, tokens = made(SOME), torch.ones(shape, dtype=torch.int64)
    assert [len(batch.places) for batch in stream_prefixes(model, tokens)] == [shape[0]] * (shape[0] > 0)


@pytest.mark.parametrize("logits", [False, True, lambda logits: logits.log_softmax(-1)[:, :2]])
def test_what_is_wanted_of_the_output(logits):
    model = made(SOME)
    found = by_place(stream_prefixes(model, ALL_WORDS, "blocks.1.hook_resid_post", logits=logits))
    assert_same(found, word_by_word(model, ALL_WORDS, "blocks.1.hook_resid_post", logits=logits))


def test_only_an_output_or_heads():
    model = made(SOME)
    assert_same(by_place(stream_prefixes(model, ALL_WORDS, ())), word_by_word(model, ALL_WORDS, ()))
    chosen = msp.find_sites(model, ["blocks.1.attn.hook_z", "hook_embed", "blocks.1.mlp.hook_post"])
    assert_same(by_place(stream_prefixes(model, ALL_WORDS, chosen)), word_by_word(model, ALL_WORDS, chosen))


def test_an_edited_model_is_read_as_it_is_edited():
    model = made(SOME)

    def shifted(activation):
        # Of the position in what is read, so that it tells a word from a part of one.
        factors = torch.arange(activation.shape[1], device=activation.device) - 2.5
        return activation * factors.unsqueeze(1)

    with editing(model, {"blocks.0.hook_resid_post": shifted}):
        found, expected = by_place(stream_prefixes(model, ALL_WORDS)), word_by_word(model, ALL_WORDS)
    assert_same(found, expected)
    plain = word_by_word(model, ALL_WORDS)
    assert not torch.allclose(plain[1], expected[1], atol=1e-2), "the edit shows"


def test_fewer_tokens_are_read(monkeypatch):
    model = made(SOME)
    read, original = [], type(model).forward

    def counting(self, tokens, *rest, **options):
        read.append(tokens.numel())
        return original(self, tokens, *rest, **options)

    monkeypatch.setattr(type(model), "forward", counting)
    counts = []
    for stream in (stream_prefixes, stream_activations):
        list(stream(model, ALL_WORDS))
        counts.append(sum(read))
        read.clear()
    assert counts[1] >= 6 * 729
    assert counts[0] < 0.35 * counts[1]


def test_gradients_and_modes_are_left_alone():
    model = made(SOME)
    model.train()
    try:
        for batch in stream_prefixes(model, ALL_WORDS):
            assert not any(values.requires_grad for values in batch.activations.values())
            assert model.training
    finally:
        model.train(False)
    assert not any(point._forward_hooks for point in model.hook_dict.values())
