"""What can be trained can be saved, loaded and twinned: every kind of model, with all that its config holds."""

import itertools
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import msp_lens as msp
from msp_lens._files import read_header
from msp_lens.controls.untrained_twins import untrained_twins
from msp_lens.models.build import config_fields, has_hooked_transformer, weights
from msp_lens.models.model_files import check_restorable
from tests.hooked_models import Averager

TOKENS = torch.tensor([[0, 1, 2, 0, 1]])
SIZES = {"d_vocab": 3, "n_layers": 2, "d_model": 16, "n_heads": 2, "d_head": 8, "d_mlp": 32, "n_ctx": 5}
COMMON = {"act_fn": "relu", "normalization_type": "LN"}
CLASSES = [False, True] if has_hooked_transformer() else [True]


def gpt2(**options):
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=3, n_positions=8, n_embd=16, n_layer=2, n_head=2, **options)
    network = GPT2LMHeadModel(config)
    return build_bridge_from_module(network, architecture="GPT2LMHeadModel", hf_config=config)


def llama(**options):
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 3, "max_position_embeddings": 8, "hidden_size": 16, "intermediate_size": 24}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    config = LlamaConfig(**sizes, **heads, **{**tokens, **options})
    network = LlamaForCausalLM(config)
    return build_bridge_from_module(network, architecture="LlamaForCausalLM", hf_config=config)


def ends(**options):
    return {"bos_token_id": 0, "eos_token_id": 0} | options


HUGGING_FACE = [
    lambda: gpt2(**ends()),
    lambda: gpt2(**ends(tie_word_embeddings=False, n_inner=24, activation_function="relu")),
    lambda: gpt2(**ends(scale_attn_by_inverse_layer_idx=True, layer_norm_epsilon=1e-2)),
    lambda: llama(),
    lambda: llama(tie_word_embeddings=True, attention_bias=True, hidden_act="gelu"),
    lambda: llama(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}, head_dim=4),
]


def comes_back(model, tmp_path):
    """Whether the model is loaded with the same numbers of the same dtype, and its twin is another of its kind."""
    model.train(False)
    path = msp.save_checkpoint(tmp_path, model)
    loaded = msp.load_checkpoint(path).model
    assert type(loaded) is type(model)
    with torch.no_grad():
        torch.testing.assert_close(loaded(TOKENS), model(TOKENS), rtol=0, atol=0)
    before, after = weights(model), weights(loaded)
    assert {name: each.dtype for name, each in after.items()} == {name: each.dtype for name, each in before.items()}
    again = msp.save_checkpoint(tmp_path / "again", loaded)
    assert json.loads(read_header(again)["msp_lens"]) == json.loads(read_header(path)["msp_lens"])
    ((_, twin),) = untrained_twins(model, 1, (), seed=5)
    shapes = {name: each.shape for name, each in weights(twin).items()}
    assert shapes == {name: each.shape for name, each in before.items()}
    with torch.no_grad():
        assert twin(TOKENS).dtype == model(TOKENS).dtype
        assert not torch.equal(twin(TOKENS), model(TOKENS))


@pytest.mark.parametrize("bridge", CLASSES)
@pytest.mark.parametrize(
    "more",
    [
        {"attn_only": True, "attn_scale": 3.0},
        {"attention_dir": "bidirectional", "d_vocab_out": 2},
        {"n_key_value_heads": 1, "gated_mlp": True, "act_fn": "silu", "normalization_type": "RMSPre"},
        {"normalization_type": None, "positional_embedding_type": "rotary", "rotary_dim": 4, "rotary_base": 100},
        {"attn_scores_soft_cap": 0.5, "output_logits_soft_cap": 0.1}
        | {"eps": 0.1, "tie_word_embeddings": True, "init_mode": "xavier_normal", "default_prepend_bos": False},
    ],
    ids=str,
)
def test_all_that_a_config_holds(bridge, more, tmp_path):
    model = msp.build_model(SIZES | COMMON | more, seed=1, bridge=bridge)
    assert {name: getattr(model.cfg, name) for name in more} == more
    comes_back(model, tmp_path)


@pytest.mark.skipif(not has_hooked_transformer(), reason="a bridge has none of this")
@pytest.mark.parametrize(
    "more",
    [
        {"use_local_attn": True, "window_size": 2, "attn_types": ["global", "local"]},
        {"use_attn_scale": False},
        {"num_experts": 2, "experts_per_token": 1},
        {"positional_embedding_type": "alibi"},
        {"parallel_attn_mlp": True, "act_fn": "solu_ln"},
    ],
    ids=str,
)
def test_what_only_a_hooked_transformer_has(more, tmp_path):
    comes_back(msp.build_model(SIZES | COMMON | more, seed=1), tmp_path)
    with pytest.raises(ValueError, match=r"config has .*which a native bridge does not have|nsupported"):
        msp.build_model(SIZES | COMMON | more, bridge=True)


@pytest.mark.parametrize("bridge", CLASSES)
def test_whatever_scalar_a_config_holds(bridge, tmp_path):
    scalars = itertools.cycle([np.int64, np.float32, np.array, torch.tensor])
    fields = {name: scalar(value) for scalar, (name, value) in zip(scalars, SIZES.items(), strict=False)}
    fields |= COMMON | {"eps": np.float32(0.25)}
    model = msp.build_model(fields, seed=1, bridge=bridge)
    plain = msp.build_model(SIZES | COMMON | {"eps": 0.25}, seed=1, bridge=bridge)
    assert config_fields(model) == config_fields(plain)
    assert torch.equal(model(TOKENS), plain(TOKENS))
    model.cfg.n_ctx, model.cfg.eps = np.int64(5), torch.tensor(0.25)
    comes_back(model, tmp_path)
    assert config_fields(model) == config_fields(plain)


@pytest.mark.parametrize("bridge", CLASSES)
@pytest.mark.parametrize(
    ("how", "dtype"), [("built", "float16"), ("built", "float64"), ("converted", "bfloat16"), ("converted", "float64")]
)
def test_every_dtype(bridge, dtype, how, tmp_path):
    if how == "built":
        model = msp.build_model(SIZES | COMMON | {"dtype": dtype}, bridge=bridge)
    else:
        model = msp.build_model(SIZES | COMMON, bridge=bridge).to(getattr(torch, dtype), print_details=False)
    assert {each.dtype for each in weights(model).values()} == {getattr(torch, dtype)}
    comes_back(model, tmp_path)


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        *((make, torch.float32) for make in HUGGING_FACE),
        *((HUGGING_FACE[4], dtype) for dtype in (torch.bfloat16, torch.float64)),
    ],
)
def test_networks_of_hugging_face(make, dtype, tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    model = make().to(dtype, print_details=False)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    comes_back(model, tmp_path)


@pytest.mark.skipif(not has_hooked_transformer(), reason="those of Hugging Face's networks are tied above")
def test_tied_weights(small_model, tmp_path):
    small_model.unembed.W_U = torch.nn.Parameter(small_model.W_E.detach().T.contiguous())
    small_model.embed.W_E = torch.nn.Parameter(small_model.unembed.W_U.data.T)
    comes_back(small_model, tmp_path)


def test_a_trained_bridge_comes_back(mess3, tmp_path):
    config = msp.TrainingConfig(steps=3, batch_size=8, learning_rate=0.1, warmup_steps=0)
    for index, make in enumerate((HUGGING_FACE[0], HUGGING_FACE[4])):
        folder, model = tmp_path / str(index), make()
        before = model(TOKENS).detach()
        run = msp.train(mess3, model, config=config, out=folder, progress=False)
        loaded = msp.load_checkpoint(folder).model
        with torch.no_grad():
            assert torch.equal(loaded(TOKENS), run.model(TOKENS))
            assert not torch.allclose(loaded(TOKENS), before, atol=1e-2)


@pytest.mark.parametrize("kind", ["own", "changed", "other"])
def test_what_a_file_cannot_hold_is_refused(kind, tmp_path):
    if kind == "own":
        model, message = Averager(), "A Averager has no cfg that says how to build it again"
    elif kind == "changed":
        model, message = msp.build_model(SIZES | COMMON), "computes something else"
        model.unembed.register_forward_hook(lambda module, inputs, output: output * 2)
    else:
        model, message = gpt2(**ends()), "only GPT2LMHeadModel and LlamaForCausalLM can be built from a file"
        model.cfg.architecture = "BloomForCausalLM"
    with pytest.raises(ValueError, match=message):
        check_restorable(model)
    with pytest.raises(ValueError, match=message):
        msp.save_checkpoint(tmp_path, model)
    assert not list(tmp_path.iterdir())


class TestForeignCheckpoints:
    """A plain state dict in a safetensors file, and a config: one call."""

    @pytest.fixture
    def path(self, small_model, tmp_path):
        save_file(weights(small_model), tmp_path / "weights.safetensors")
        return tmp_path / "weights.safetensors"

    def test_with_a_config_in_any_form(self, path, small_model, mess3, tmp_path):
        fields = config_fields(small_model)
        (tmp_path / "config.json").write_text(json.dumps({"model": fields, "lr": 0.1}))
        (tmp_path / "bare.json").write_text(json.dumps(fields))
        config = msp.ModelConfig(d_vocab=3, n_layers=2, d_model=16, d_head=8, d_mlp=32, n_ctx=5)
        for given in (config, fields, small_model.cfg, tmp_path / "config.json", str(tmp_path / "bare.json")):
            loaded = msp.load_checkpoint(path, config=given, process=mess3)
            with torch.no_grad():
                assert torch.equal(loaded.model(TOKENS), small_model(TOKENS))
            assert loaded.process is mess3
            assert not loaded.model.training

    def test_of_a_compiled_model(self, path, small_model):
        state = {f"_orig_mod.{name}": tensor for name, tensor in load_file(path).items()}
        save_file(state, path)
        loaded = msp.load_checkpoint(path, config=small_model.cfg)
        assert torch.equal(loaded.model(TOKENS), small_model(TOKENS))

    def test_that_do_not_fit(self, path, small_model, tmp_path):
        with pytest.raises(ValueError, match=r"was not saved by msp_lens: give the model's config="):
            msp.load_checkpoint(path)
        with pytest.raises(ValueError, match="weights of 2 layers"):
            msp.load_checkpoint(path, config=config_fields(small_model) | {"n_layers": 3})
        with pytest.raises(ValueError, match="another shape"):
            msp.load_checkpoint(path, config=config_fields(small_model) | {"d_mlp": 16})
        with pytest.raises(FileNotFoundError, match=r"no file .*nowhere\.json"):
            msp.load_checkpoint(path, config=tmp_path / "nowhere.json")
        with pytest.raises(ValueError, match=r"model\.d_vocab is missing"):
            msp.load_checkpoint(path, config={})
        with pytest.raises(ValueError, match=r"leave out config="):
            msp.load_checkpoint(msp.save_checkpoint(tmp_path, small_model), config=small_model.cfg)

    def test_with_nan(self, path, small_model):
        state = load_file(path)
        next(iter(state.values()))[0] = torch.nan
        save_file(state, path)
        with pytest.raises(ValueError, match=r"weights\.safetensors: The weights .* hold NaN"):
            msp.load_checkpoint(path, config=small_model.cfg)

    def test_of_another_format(self, small_model, tmp_path):
        torch.save(small_model.state_dict(), tmp_path / "x.pt")
        with pytest.raises(ValueError, match=r"x\.pt is not a safetensors file.*never unpickled"):
            msp.load_checkpoint(tmp_path / "x.pt")
        with pytest.raises(TypeError, match=r"state='x\.pt': give a mapping"):
            msp.models.load_weights(small_model, "x.pt")
