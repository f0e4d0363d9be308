import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import msp_lens as msp
from msp_lens.models import activations
from msp_lens.models.activations import stream_activations, words_per_batch
from tests import hooked_models


def test_streamed_activations_are_those_of_the_cache(small_model, mess3):
    tokens = mess3.sample(23, 5, seed=0)
    sites = msp.models.residual_sites(small_model)
    small_model.train(True)
    batches = list(stream_activations(small_model, tokens, batch_size=7))
    assert small_model.training
    with torch.no_grad():
        logits, cache = small_model.run_with_cache(tokens)
    assert [batch.words for batch in batches] == [slice(0, 7), slice(7, 14), slice(14, 21), slice(21, 23)]
    for site in sites:
        streamed = torch.cat([batch.activations[site] for batch in batches])
        torch.testing.assert_close(streamed, cache[site])
    torch.testing.assert_close(torch.cat([batch.output for batch in batches]), logits)
    assert not any(batch.output.requires_grad for batch in batches)


def test_gradients_are_as_they_were_between_batches(small_model, mess3):
    stream = stream_activations(small_model, mess3.sample(4, 5, seed=0), batch_size=2)
    next(stream)
    assert torch.is_grad_enabled()


def test_bad_requests_fail_before_the_first_batch(small_model, mess3):
    tokens = mess3.sample(4, 5, seed=0)
    with pytest.raises(KeyError, match="no site 'nowhere'"):
        stream_activations(small_model, tokens, "nowhere")
    with pytest.raises(ValueError, match="batch_size=-1"):
        stream_activations(small_model, tokens, batch_size=-1)


def test_a_site_that_is_never_reached_is_named(small_model, mess3):
    unused = next(name for name in small_model.hook_dict if name.endswith("hook_result"))
    with pytest.raises((ValueError, AssertionError), match="hook_result"):
        list(stream_activations(small_model, mess3.sample(2, 5, seed=0), unused))


class Largest(TorchDispatchMode):
    """The most numbers in any tensor that an operation gave."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        sizes = [each.numel() for each in tree_flatten(found)[0] if isinstance(each, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return found


@pytest.mark.parametrize("kind", hooked_models.KINDS)
def test_what_is_wanted_of_logits_is_what_it_is_of_all_of_them(kind, monkeypatch):
    model, tokens = hooked_models.build(kind), torch.randint(0, 5, (6, 4), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(activations, "_AT_ONCE", 7 * 5)
    (whole,) = stream_activations(model, tokens, "hook_embed")
    (none,) = stream_activations(model, tokens, "hook_embed", logits=False)
    (some,) = stream_activations(model, tokens, "hook_embed", logits=lambda rows: rows[:, 1:3].exp())
    assert none.output is None
    torch.testing.assert_close(some.output, whole.output[..., 1:3].exp())
    for batch in (none, some):
        assert torch.equal(batch.activations["hook_embed"], whole.activations["hook_embed"])
    torch.testing.assert_close(model(tokens), whole.output)
    assert activations._UNEMBEDS_LAST[model]


def test_logits_that_nobody_wants_are_not_computed(monkeypatch):
    """Of 64 words of 16 tokens over a vocabulary of 3,000 there are 3 million logits."""
    model = msp.build_model(msp.ModelConfig(d_vocab=3_000, n_layers=1, d_model=16, d_mlp=32, n_ctx=16), seed=0)
    tokens = torch.randint(0, 3_000, (64, 16), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(activations, "_AT_ONCE", 60_000)
    reading = {"batch_size": 64, "sites": "0_post"}
    list(stream_activations(model, tokens[:1], **reading, logits=False))
    for logits, most in ((True, 64 * 16 * 3_000), (False, 64 * 3_000), (lambda rows: rows[:, :1], 64 * 3_000)):
        with Largest() as largest:
            list(stream_activations(model, tokens, **reading, logits=logits))
        assert largest.numel == most


def test_a_model_that_does_more_than_unembed_is_read_whole():
    class Capped(hooked_models.Averager):
        def forward(self, tokens):
            return 2 * (super().forward(tokens) / 2).tanh()

    model = Capped()
    with torch.no_grad():
        model.unembed.weight.mul_(1e-4)
        model.unembed.bias.zero_()
    tokens = torch.tensor([[0, 1, 2], [3, 4, 0]])
    (found,) = stream_activations(model, tokens, "hook_embed", logits=lambda rows: rows)
    assert not activations._UNEMBEDS_LAST[model]
    # As with other weights of the same model, which a cap does not leave as they are.
    with torch.no_grad():
        model.unembed.weight.mul_(1e6)
    (found,) = stream_activations(model, tokens, "hook_embed", logits=lambda rows: rows)
    assert torch.equal(found.output, model(tokens))
    assert found.output.abs().max() <= 2


def test_an_edit_of_what_is_unembedded_counts():
    model, tokens = hooked_models.new(hooked_models.TRANSFORMERS[0]), torch.tensor([[0, 1, 2]])
    seen = []
    with model.hooks(fwd_hooks=[("hook_embed", lambda embedded, hook: seen.append(embedded.shape[1]))]):
        list(stream_activations(model, tokens, (), logits=False))
    assert seen == [3]
    double = [(name, lambda logits, hook: 2 * logits) for name in ("unembed.hook_out",) if name in model.hook_dict]
    with model.hooks(fwd_hooks=double):
        (found,) = stream_activations(model, tokens, (), logits=lambda rows: rows)
        torch.testing.assert_close(found.output, model(tokens))


def test_a_default_batch_holds_few_words_of_a_large_model():
    assert words_per_batch(None, 10) == 819
    # Residual streams of the paper's model are small.
    assert words_per_batch(None, 10, numbers_per_token=6 * 64 + 3) == 819
    # 32 sites of 576 features: 64 MiB of float32 are 910 tokens; with 49,152 logits 248.
    assert words_per_batch(None, 300, numbers_per_token=32 * 576) == 3
    assert words_per_batch(None, 100, numbers_per_token=32 * 576 + 49_152) == 2
    assert words_per_batch(None, 8_000, numbers_per_token=256_000) == 1
    assert words_per_batch(7, 8_000, numbers_per_token=256_000) == 7


def test_a_batch_of_a_large_vocabulary_is_small_only_where_logits_are_kept():
    model = msp.build_model(msp.ModelConfig(d_vocab=200_000, n_layers=1, d_model=8, d_mlp=8, n_ctx=16), seed=0)
    tokens = torch.zeros(30, 16, dtype=torch.int64)
    assert [batch.words.stop for batch in stream_activations(model, tokens[:7], ())] == [5, 7]
    assert [batch.words.stop for batch in stream_activations(model, tokens, (), logits=False)] == [30]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_kept_activations_are_those_that_are_streamed(dtype, tmp_path, mess3):
    sizes = {"n_layers": 1, "d_model": 16, "d_head": 8, "d_mlp": 32, "n_ctx": 5, "d_vocab": 3}
    model = msp.build_model(sizes | {"dtype": dtype}, seed=1)
    tokens, path = mess3.sample(23, 5, seed=0), tmp_path / "new" / "kept.safetensors"
    sites = ["0_post", "blocks.0.attn.hook_z[1]"]
    kept = msp.models.keep_activations(path, model, tokens, sites, batch_size=7)
    # In the same batches: another number of words may give other last bits.
    batches = [batch.activations for batch in stream_activations(model, tokens, sites, batch_size=7)]
    assert set(kept) == set(batches[0])
    for name, values in kept.items():
        assert values.dtype == getattr(torch, dtype)
        assert torch.equal(values, torch.cat([batch[name] for batch in batches]))
    assert [each.name for each in path.parent.iterdir()] == ["kept.safetensors"]


def test_what_is_kept_is_probed_as_the_model_is(tmp_path, small_model, mess3):
    data = msp.LabelledTokens.from_beliefs(msp.words(mess3, n_ctx=4))
    kept = msp.models.keep_activations(tmp_path / "kept.safetensors", small_model, data.tokens)
    for solver in ("ols", "ridge"):
        again = msp.probing.probe_rows(msp.probing.cache_rows(kept, data), solver=solver)
        first = msp.probe(small_model, data, solver=solver, controls=False, progress=False)
        assert again["1_post"].scores.held_out.r2 == pytest.approx(first["1_post"].scores.held_out.r2, abs=1e-9)


def test_a_file_serves_only_what_it_was_made_for(tmp_path, small_model, mess3, monkeypatch):
    tokens, path = mess3.sample(6, 5, seed=0), tmp_path / "kept.safetensors"
    first = msp.models.keep_activations(path, small_model, tokens, "0_post")
    other = msp.build_model(small_model.cfg.to_dict(), seed=2)
    for model, words, sites in (
        (other, tokens, "0_post"),
        (small_model, tokens[1:], "0_post"),
        (small_model, tokens, "1_post"),
    ):
        with pytest.raises(ValueError, match="holds something else"):
            msp.models.keep_activations(path, model, words, sites)
    monkeypatch.setattr(activations, "stream_activations", None)
    again = msp.models.keep_activations(path, small_model, tokens, "0_post")
    assert torch.equal(again["blocks.0.hook_resid_post"], first["blocks.0.hook_resid_post"])


def test_nothing_is_left_of_what_could_not_be_kept(tmp_path, small_model, mess3, monkeypatch):
    tokens, path = mess3.sample(6, 5, seed=0), tmp_path / "kept.safetensors"
    with pytest.raises(ValueError, match=r"give a file that ends in \.safetensors"):
        msp.models.keep_activations(tmp_path / "kept", small_model, tokens)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10}))
    with pytest.raises(ValueError, match=r"would take 0\.0 GB; .* has 0\.0 GB left"):
        msp.models.keep_activations(path, small_model, tokens)
    monkeypatch.undo()
    small_model.hook_dict["blocks.1.hook_resid_post"].add_hook(fails_at_last(6))
    with pytest.raises(RuntimeError, match="midway"):
        msp.models.keep_activations(path, small_model, tokens, batch_size=2)
    assert list(tmp_path.iterdir()) == []


def fails_at_last(n_words):
    """A hook that fails when it has seen as many words."""
    seen = []

    def hook(activation, hook):
        seen.append(len(activation))
        if sum(seen) >= n_words:
            raise RuntimeError("midway")

    return hook
