"""A model seen through a token map: what it answers and what its hooks see, against the model itself."""

import pytest
import torch

import msp_lens as msp
from msp_lens.models.activations import stream_activations
from msp_lens.models.positions import writing
from msp_lens.models.symbol_reader import SymbolReader, reading_symbols
from tests import hooked_models

SITE = "blocks.0.hook_resid_post"
MAPS = {
    "bos": msp.TokenMap(symbols=(3, 1), bos=0),
    "prompt and separator": msp.TokenMap(symbols=(3, 1), prompt=(2, 2), separator=(4,)),
    "several tokens": msp.TokenMap(symbols=((3, 2), (1,)), bos=0),
}


@pytest.fixture(params=hooked_models.TRANSFORMERS[:2])
def model(request):
    return hooked_models.build(request.param)


@pytest.mark.parametrize("token_map", MAPS.values(), ids=MAPS)
def test_it_answers_with_the_probabilities_of_symbols_and_of_all_other_tokens(model, token_map):
    words = torch.tensor([[0, 1], [1, 1], [1, 0]])
    reader = SymbolReader(model, token_map)
    found = reader(words)
    for word, answers in zip(words, found, strict=True):
        for position, answer in enumerate(answers):
            # The tokens of the word up to there, one by one, with the separator after it.
            tokens = list(token_map.start)
            for symbol in word[: position + 1].tolist():
                tokens += [*token_map.symbols[symbol], *token_map.separator]
            logits = model(torch.tensor([tokens]))[0, -1].double()
            probabilities = logits.softmax(dim=0)
            symbols = probabilities[[ids[0] for ids in token_map.symbols]]
            expected = torch.cat([symbols, 1 - symbols.sum(dim=0, keepdim=True)])
            torch.testing.assert_close(answer.exp(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.exp().sum(dim=-1), torch.ones(3, 2, dtype=torch.float64))


@pytest.mark.parametrize("token_map", MAPS.values(), ids=MAPS)
def test_hooks_see_and_edit_the_symbols_last_tokens(model, token_map):
    words = torch.tensor([[0, 1, 1], [1, 0, 0]])[:, :2]
    reader = SymbolReader(model, token_map)
    tokens, columns = token_map.encode(words)
    (whole,) = stream_activations(model, tokens, [SITE])
    (seen,) = stream_activations(reader, words, [SITE])
    rows = torch.arange(2).unsqueeze(1)
    torch.testing.assert_close(seen.activations[SITE], whole.activations[SITE][rows, columns], rtol=0, atol=1e-5)
    with writing(reader, {SITE: lambda h, belief: h + 1}, position=0):
        (edited,) = stream_activations(reader, words, ["blocks.1.hook_resid_pre"])
    with writing(model, {SITE: lambda h, belief: h + 1}, position=columns[:, :1]):
        (expected,) = stream_activations(model, tokens, ["blocks.1.hook_resid_pre"])
    found, other = (each.activations["blocks.1.hook_resid_pre"] for each in (edited, expected))
    torch.testing.assert_close(found, other[rows, columns], rtol=0, atol=1e-5)
    assert not torch.allclose(found[:, 0], seen.activations[SITE][:, 0])


def test_a_hook_that_changes_nothing_changes_nothing(model):
    reader = SymbolReader(model, MAPS["prompt and separator"])
    words = torch.tensor([[0, 1], [1, 1]])
    plain = reader(words)
    names = [name for name in model.hook_dict if "hook_resid" in name or name == "hook_embed"]
    with reader.hooks(fwd_hooks=[(name, lambda activation, hook: activation) for name in names]):
        assert torch.equal(reader(words), plain)
    assert torch.equal(reader(words), plain)


def test_where_the_vocabulary_is_the_alphabet_there_is_no_other_token(mess3, small_model):
    reader = SymbolReader(small_model, msp.TokenMap.identity(3))
    words = mess3.sample(4, 5, seed=0)
    found = reader(words)
    assert torch.equal(found[..., 3], torch.full_like(found[..., 3], -torch.inf))
    torch.testing.assert_close(found[..., :3], small_model(words).double().log_softmax(dim=-1), rtol=0, atol=1e-12)
    assert reading_symbols(small_model, msp.TokenMap.identity(3)) is small_model
    assert reading_symbols(small_model, None) is small_model


def test_its_sizes_are_in_symbols(model):
    longest = model.cfg.n_ctx
    assert SymbolReader(model, MAPS["bos"]).cfg.n_ctx == longest - 1
    reader = SymbolReader(model, MAPS["prompt and separator"])
    # Two tokens of the prompt, then each symbol with its separator.
    assert (reader.cfg.d_vocab, reader.cfg.n_ctx) == (2, (longest - 2) // 2)
    assert reader(torch.zeros(1, 3, dtype=torch.int64)).shape == (1, 3, 3)
    assert msp.models.find_sites(reader, "0_post") == (SITE,)
    assert msp.models.model_fingerprint(reader) == msp.models.model_fingerprint(model)


def test_symbols_that_begin_alike_cannot_be_predicted(model):
    with pytest.raises(ValueError, match="Symbols 0 and 1 both begin with token 3"):
        SymbolReader(model, msp.TokenMap(symbols=((3, 1), (3, 2))))
    with pytest.raises(ValueError, match="vocabulary has 5 tokens, and the token map uses token 9"):
        SymbolReader(model, msp.TokenMap(symbols=(3, 9)))
