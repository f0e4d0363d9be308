"""A beginning is read once, and what follows gives the activations and logits of whole words."""

import dataclasses
import functools

import pytest
import torch

import msp_lens as msp
from msp_lens.models import after_beginning, editing, reading_symbols, stream_activations
from msp_lens.models.beginning import CachedBeginning, keeps_beginnings
from msp_lens.models.build import has_hooked_transformer
from tests.hooked_models import CONFIG, Averager, hugging_face_bridge, new

LENGTH, CUT = 8, 5


def hooked_transformer(**changed):
    return msp.build_model(dataclasses.asdict(CONFIG) | changed, seed=1)


def llama(**changed):
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 5, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "bos_token_id": 0}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 24, "eos_token_id": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = LlamaForCausalLM(LlamaConfig(**sizes | heads | changed)).eval()
    tokenizer = hugging_face_bridge().tokenizer
    return TransformerBridge.boot_transformers("llama", hf_model=network, tokenizer=tokenizer, device="cpu")


CACHED = {
    "learned positions": hooked_transformer,
    "rotary positions": functools.partial(hooked_transformer, positional_embedding_type="rotary", rotary_dim=8),
    "grouped queries": functools.partial(
        hooked_transformer, n_heads=4, d_head=4, n_key_value_heads=2, positional_embedding_type="rotary", rotary_dim=4
    ),
    "local attention": functools.partial(
        hooked_transformer, use_local_attn=True, window_size=3, attn_types=["local", "global"]
    ),
}
CACHED = (CACHED if has_hooked_transformer() else {}) | {"GPT-2": hugging_face_bridge.__wrapped__, "Llama": llama}
PLAIN = {"native bridge": lambda: new("bridge"), "own": Averager}
MODELS = CACHED | PLAIN


@functools.cache
def made(name, dtype=torch.float32):
    return MODELS[name]().to(dtype)


def words(n_words=4, seed=0):
    return torch.randint(5, (n_words, LENGTH), generator=torch.Generator().manual_seed(seed))


def site_of(model):
    return "hook_state.1" if isinstance(model, Averager) else "blocks.0.hook_resid_post"


def read(model, tokens, *sites, edits=None):
    with editing(model, edits or {}):
        (batch,) = stream_activations(model, tokens, sites, batch_size=len(tokens))
    return [batch.output, *batch.activations.values()]


def close(found, expected, dtype=torch.float32):
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_what_follows_is_as_in_whole_words(name, dtype):
    model, tokens = made(name, dtype), words()
    after, site = CachedBeginning(model, tokens[:, :CUT]), site_of(model)
    assert after.is_cached == keeps_beginnings(model) == (name in CACHED)
    expected = [each[:, CUT:] for each in read(model, tokens, site)]
    # Twice: a run leaves the beginning as it is.
    for _ in range(2):
        close(read(after, tokens[:, CUT:], site), expected, dtype)

    def push(activation):
        return activation * torch.tensor(-3.0, dtype=dtype)

    def push_late(activation):
        return torch.cat([activation[:, : CUT + 1], push(activation[:, CUT + 1 :])], dim=1)

    def push_after(activation):
        assert activation.shape[1] == LENGTH - CUT
        return torch.cat([activation[:, :1], push(activation[:, 1:])], dim=1)

    edited = [each[:, CUT:] for each in read(model, tokens, site, edits={site: push_late})]
    close(read(after, tokens[:, CUT:], site, edits={site: push_after}), edited, dtype)
    assert (edited[0] - expected[0])[:, 1:].abs().max() > 1e-3
    # Nothing is left behind.
    close(read(after, tokens[:, CUT:], site), expected, dtype)
    close([model(tokens).detach()[:, CUT:]], expected[:1], dtype)


@pytest.mark.parametrize("name", CACHED)
def test_every_hook_sees_what_follows(name):
    """Queries, keys and values, too; attention patterns are of the positions that follow to all."""
    model, tokens = made(name), words()
    after = CachedBeginning(model, tokens[:, :CUT])
    ends = ("hook_q", "hook_k", "hook_v", "hook_rot_q", "hook_rot_k", "hook_pattern", "hook_z")
    names = [each for each in model.hook_dict if each.startswith("blocks.1.attn.hook_") and each.endswith(ends)]

    def seen(reader, tail):
        found = {}

        def keep(hook_name):
            return lambda activation, hook: found.__setitem__(hook_name, activation.detach())

        with torch.no_grad(), reader.hooks(fwd_hooks=[(each, keep(each)) for each in names]):
            reader(tail)
        return found

    whole, tail = seen(model, tokens), seen(after, tokens[:, CUT:])
    assert whole.keys() == tail.keys()
    assert {"blocks.1.attn.hook_k", "blocks.1.attn.hook_pattern"} <= tail.keys()
    for each, expected in whole.items():
        cut = expected[:, :, CUT:] if each.endswith("pattern") else expected[:, CUT:]
        torch.testing.assert_close(tail[each], cut, rtol=1e-5, atol=1e-5, msg=each)


@pytest.mark.parametrize("name", MODELS)
def test_many_words_after_one_beginning_and_beginnings_that_repeat(name):
    model, tokens = made(name), words(6)
    one = tokens[:1, :CUT].expand(6, -1)
    single = CachedBeginning(model, tokens[:1, :CUT])
    expected = model(torch.cat([one, tokens[:, CUT:]], dim=1)).detach()[:, CUT:]
    close(read(single, tokens[:, CUT:]), [expected])
    close(read(single, tokens[:2, CUT:]), [expected[:2]])
    repeated = tokens[[1, 0, 1, 1]]
    found = read(CachedBeginning(model, repeated[:, :CUT]), repeated[:, CUT:])
    close(found, [model(repeated).detach()[:, CUT:]])
    with pytest.raises(ValueError, match="3 words do not belong to 4 beginnings"):
        CachedBeginning(model, repeated[:, :CUT])(repeated[:3, CUT:])


@pytest.mark.parametrize("name", CACHED)
def test_the_beginning_is_not_read_again(name, monkeypatch):
    model, tokens, read_tokens = made(name), words(), []
    CachedBeginning(model, tokens[:, :CUT])
    forward = type(model).forward

    def counted(self, given, *arguments, **options):
        read_tokens.append(given.shape)
        return forward(self, given, *arguments, **options)

    # Under the same signature: it says what kind of cache there is.
    monkeypatch.setattr(type(model), "forward", functools.wraps(forward)(counted))
    after = CachedBeginning(model, tokens[[0, 1, 1, 0], :CUT])
    for _ in range(3):
        after(tokens[:, CUT:])
    assert read_tokens == [(2, CUT), *[(4, LENGTH - CUT)] * 3]


def test_a_cache_that_forgets_is_not_used(monkeypatch):
    """As TransformerLens's own is under transformers 5.24, unless its attention is told where the cache is."""
    from msp_lens.models import beginning

    monkeypatch.setattr(beginning, "_told_of_cache", lambda model: msp.models.evaluating(model))
    model, tokens = llama(), words()
    after = CachedBeginning(model, tokens[:, :CUT])
    close(read(after, tokens[:, CUT:]), [model(tokens).detach()[:, CUT:]])


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_is_edited_already_is_read_the_plain_way(name):
    """An edit of the whole word is not one of its end."""
    model, tokens = made(name), words()

    def first(activation):
        return torch.cat([activation[:, :1] + 5, activation[:, 1:]], dim=1)

    with editing(model, {site_of(model): first}):
        after = CachedBeginning(model, tokens[:, :CUT])
        assert not after.is_cached
        found = after(tokens[:, CUT:]).detach()
        expected = model(tokens).detach()[:, CUT:]
    close([found], [expected])


SPACED = msp.TokenMap([(2, 1), 3, 4], bos=0, prompt=(1,), separator=(0,))
ONE_EACH = msp.TokenMap([2, 3, 4], bos=0)


@pytest.mark.parametrize("token_map", [ONE_EACH, SPACED], ids=["one token each", "several"])
@pytest.mark.parametrize("name", ["GPT-2", "own"])
def test_symbols_follow_symbols(name, token_map):
    model = made(name)
    reader = reading_symbols(model, token_map)
    symbols = torch.randint(3, (5, 6), generator=torch.Generator().manual_seed(1))
    after, site = after_beginning(reader, symbols[:, :4]), "hook_embed"
    expected = [each[:, 4:] for each in read(reader, symbols, site)]
    close(read(after, symbols[:, 4:], site), expected)
    double = {site: lambda activation: torch.cat([activation[:, :-1], 1 - activation[:, -1:]], dim=1)}
    edited = [each[:, 4:] for each in read(reader, symbols, site, edits=double)]
    close(read(after, symbols[:, 4:], site, edits=double), edited)
    assert (edited[0] - expected[0]).abs().max() > 1e-5
    if name == "GPT-2":
        # As many symbols as the reader has room for, less those that it has read.
        assert after.cfg.n_ctx == reader.cfg.n_ctx - 4
    with pytest.raises(ValueError, match="is after a beginning already"):
        after.after(symbols[:, :2])


def test_beginnings_that_cannot_be_are_refused():
    model = made("GPT-2")
    for wrong, match in (
        (torch.zeros(1, 24, dtype=torch.int64), r"shape \(1, 24\).* leave room .*context of 24, so give at most 23"),
        (torch.zeros(1, 0, dtype=torch.int64), r"shape \(1, 0\)"),
        (torch.full((1, 3), 5), "Tokens run from 5 to 5"),
    ):
        with pytest.raises(ValueError, match=match):
            CachedBeginning(model, wrong)
    assert repr(CachedBeginning(model, words()[:, :3])) == "CachedBeginning(TransformerBridge, 4 × 3 tokens, cached)"
