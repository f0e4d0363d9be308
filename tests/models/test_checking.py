"""The check of a model before it is read: what is wrong is found, and what is right is not complained of."""

import pytest
import torch
from torch import nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

import msp_lens as msp
from msp_lens.models import check_causal, check_model
from msp_lens.models.build import has_hooked_transformer
from tests.hooked_models import CONFIG, KINDS, Averager, new
from tests.models.test_loading import gpt2, llama

CLASSES = [False, True] if has_hooked_transformer() else [True]


class Wrong(HookedRootModule):
    """A residual network that can be wrong in one way."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.embed, self.mix, self.unembed = nn.Embedding(5, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.blocks = nn.ModuleList([nn.Module()])
        for name in ("hook_resid_pre", "hook_attn_out", "hook_resid_post"):
            setattr(self.blocks[0], name, HookPoint())
        self.cfg = {"d_vocab": 7 if how == "vocabulary" else 5, "n_ctx": 8}
        self.setup()

    def forward(self, tokens):
        block, how = self.blocks[0], self.how
        pre = self.embed(tokens)
        if how == "off the path":
            block.hook_resid_pre(pre)
        elif how == "by identity":
            # Where the hook gives back another tensor, the network goes another way.
            pre = (hooked := block.hook_resid_pre(pre)) + (0.5 if hooked is not pre else 0)
        else:
            pre = block.hook_resid_pre(pre)
        mixed = self.mix(pre)
        if how == "later":
            mixed = mixed + 0.1 * mixed.roll(-1, dims=1)
        added = block.hook_attn_out(mixed)
        post = block.hook_resid_post(pre + added * (2 if how == "sum" else 1))
        if how == "twice":
            post = block.hook_resid_post(post)
        if how == "in place":
            post += 1
        logits = self.unembed(post)
        if how == "noise":
            logits = logits + torch.rand_like(logits)
        if how == "probabilities":
            return logits.softmax(dim=-1)
        if how == "NaN":
            return logits * torch.nan
        return {"logits": logits} if how == "mapping" else logits


def built(how):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return Wrong(how)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_right_has_no_problems(kind):
    model, state = new(kind).train(True), torch.get_rng_state()
    check = check_model(model)
    assert check.problems == ()
    assert check.is_causal
    assert check.identity_is_exact
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(point.fwd_hooks for point in model.hook_dict.values() if hasattr(point, "fwd_hooks"))
    check_causal(model)
    if kind != "own":
        assert check["sums"].verdict == "as it should be"
        assert check.sites == msp.models.residual_sites(model)


@pytest.mark.parametrize(
    ("how", "check", "message"),
    [
        ("off the path", "edits", "Edits at 0_pre do not change the output"),
        ("by identity", "identity", r"change the output by up to .* \(0_pre\)"),
        ("in place", "hooks", "0_post written over after the hook"),
        ("twice", "hooks", "0_post reached several times"),
        ("sum", "sums", r"is not resid_post \(layer 0 by"),
        ("later", "causality", "At position 3, 0_post changes by .* if only later tokens do"),
        ("noise", "determinism", "give different outputs in evaluation mode"),
        ("probabilities", "output", "looks like probabilities"),
        ("NaN", "output", "holds NaN or infinity"),
        ("mapping", "output", "It returns a dict, not a tensor of logits"),
        ("vocabulary", "output", "cannot read tokens|predicts 5 tokens, and its config says 7"),
    ],
)
def test_what_is_wrong_is_found(how, check, message):
    found = check_model(built(how), seed=3)
    assert found[check].verdict == "problem"
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(found[check].told)
    assert found[check].told in repr(found)
    others = {each.check for each in found.findings if each.verdict == "problem"} - {check}
    # What is noisy seems to change of itself, and NaN is not the same as anything.
    assert not others or how in ("noise", "NaN", "twice", "in place")
    assert found.is_causal is (how not in ("later", "noise", "NaN")) or how in ("mapping", "vocabulary", "NaN")


def test_a_sound_network_of_this_kind_passes():
    found = check_model(built("nothing"))
    assert found.problems == ()
    assert found.to_dataframe().index[0] == "output"
    assert found.summary() == ["Nothing stands in the way of reading and editing this model."]
    assert found == check_model(built("nothing"))
    with pytest.raises(KeyError, match="no check 'color'; there are output"):
        _ = found["color"]


@pytest.mark.parametrize("bridge", CLASSES)
def test_attention_both_ways_is_found_and_refused(bridge):
    model = msp.build_model(CONFIG.to_dict() | {"attention_dir": "bidirectional"}, seed=1, bridge=bridge)
    check = check_model(model)
    assert check.is_causal is False
    assert "changes by" in check["causality"].told
    assert [each.check for each in check.findings if each.verdict == "problem"] == ["causality"]
    for _ in range(2):
        with pytest.raises(ValueError, match=r"The model is not causal: at position \d, .*LabelledTokens"):
            check_causal(model)


def test_an_own_network_that_sees_later_tokens():
    model = Averager()
    check_causal(model)
    model = Averager()
    model.hook_embed.add_hook(lambda activation, hook: activation + activation.mean(dim=1, keepdim=True))
    with pytest.raises(ValueError, match="not causal: at position"):
        check_causal(model)
    assert not check_model(model).is_causal


@pytest.mark.parametrize("bridge", CLASSES)
@pytest.mark.parametrize(
    "more",
    [
        {"n_key_value_heads": 1},
        {"normalization_type": "RMS"},
        {"normalization_type": None},
        {"positional_embedding_type": "rotary", "rotary_dim": 4},
        {"attn_only": True},
        {"dtype": "bfloat16"},
        {"dtype": "float16"},
        {"dtype": "float64", "d_vocab_out": 3},
    ],
    ids=str,
)
def test_architectures_and_dtypes(bridge, more):
    check = check_model(msp.build_model(CONFIG.to_dict() | more, seed=1, bridge=bridge))
    assert check.problems == ()
    assert more.get("dtype", "float32") in check["weights"].told


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_networks_of_hugging_face(make, dtype, tmp_path):
    make().save_pretrained(tmp_path)
    model = msp.load_model(tmp_path, dtype=dtype)
    check = check_model(model)
    assert check.problems == ()
    assert check["vocabulary"].told == "It reads 7 tokens in contexts of up to 8. It has no tokenizer."
    attention = model.original_model.config
    assert attention._attn_implementation == "eager"


@pytest.mark.skipif(not has_hooked_transformer(), reason="a native bridge has none of this")
@pytest.mark.parametrize(
    "more",
    [{"parallel_attn_mlp": True}, {"use_normalization_before_and_after": True, "normalization_type": "RMS"}],
    ids=str,
)
def test_other_ways_of_adding_up(more):
    check = check_model(msp.build_model(CONFIG.to_dict() | more, seed=1))
    assert check.problems == ()


def test_a_tokenizer_and_padding():
    check = check_model(new("hugging face bridge"))
    assert "Its tokenizer has 5, BOS is token 0. By itself it reads text after BOS" in check["vocabulary"].told
    assert (
        check["padding"].told == "Padding (token 0) before a word changes what the model says of it: pad after words."
    )


def test_sites_and_tokens_of_ones_own():
    model = msp.build_model(CONFIG, seed=1)
    assert check_model(model, sites="1_mlp_out", tokens=[[0, 1, 2]]).sites == ("blocks.1.hook_mlp_out",)
    with pytest.raises(ValueError, match="Tokens run from 0 to 9"):
        check_model(model, tokens=[[0, 9]])
    with pytest.raises(KeyError, match="no site '7_post'"):
        check_model(model, sites="7_post")
