"""Models from elsewhere: one call, whatever they come as, and what does not match named tensor by tensor."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import msp_lens as msp
from msp_lens._files import read_tensors
from msp_lens.controls.untrained_twins import untrained_twins
from msp_lens.models.build import config_fields, has_hooked_transformer, weights

TOKENS = torch.tensor([[0, 1, 2, 0, 1]])
# `HookedTransformer.state_dict()` of TransformerLens 2.16.1, saved by itself, with what the model said of some tokens.
OLD = Path(__file__).parent / "transformer_lens_2"
# What no weight shows, of those that are not as assumed.
UNSHOWN = {
    "plain": {},
    "rotary": {"act_fn": "silu"},
    "local": {"act_fn": "gelu"},
    "bidirectional": {"attention_dir": "bidirectional"},
}


def what_it_said(name):
    """The weights of an old model, its config, the tokens that it read and its logits."""
    state, header = read_tensors(OLD / f"{name}.safetensors")
    config, tokens, logits = (json.loads(header[key]) for key in ("config", "tokens", "logits"))
    return state, config, torch.tensor(tokens), torch.tensor(logits)


@pytest.fixture(autouse=True)
def _without_a_network(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


class TestStateDictsOfAHookedTransformer:
    """Trained elsewhere, with TransformerLens 2."""

    @pytest.mark.filterwarnings("ignore:The weights do not show everything")
    @pytest.mark.parametrize("name", UNSHOWN)
    def test_the_same_logits(self, name):
        state, config, tokens, logits = what_it_said(name)
        if name == "local" and not has_hooked_transformer():
            with pytest.raises(ValueError, match="use_local_attn=True, which a native bridge does not have"):
                msp.load_model(state, config=UNSHOWN[name])
            return
        for source in (state, OLD / f"{name}.safetensors", {key: each.numpy() for key, each in state.items()}):
            model = msp.load_model(source, config=UNSHOWN[name])
            with torch.no_grad():
                torch.testing.assert_close(model(tokens), logits, rtol=1e-4, atol=1e-5)
            fields = config_fields(model)
            assert {each: fields[each] for each in config if each != "d_mlp"} == {
                each: value for each, value in config.items() if each != "d_mlp"
            }
            assert not model.training

    def test_what_is_assumed_is_told(self, recwarn):
        state, *_ = what_it_said("bidirectional")
        with pytest.warns(UserWarning, match=r"assumed normalization_type='LNPre'\. Else give config="):
            msp.load_model(state)
        state, *_ = what_it_said("plain")
        with pytest.warns(UserWarning, match="assumed act_fn='relu'"):
            msp.load_model(state)
        recwarn.clear()
        msp.load_model(state, config={"act_fn": "relu"})
        assert not recwarn

    def test_a_config_beside_the_file_or_given(self, tmp_path):
        state, config, tokens, logits = what_it_said("rotary")
        save_file(state, tmp_path / "weights.safetensors")
        described = config | {"model_name": "mine"}
        for beside in (described, {"model": described, "source": "a paper", "seed": 42}):
            (tmp_path / "config.json").write_text(json.dumps(beside))
            for source in (tmp_path, tmp_path / "weights.safetensors"):
                with torch.no_grad():
                    torch.testing.assert_close(msp.load_model(source)(tokens), logits, rtol=1e-4, atol=1e-5)

    def test_a_wrapped_models_names(self):
        state, _, tokens, logits = what_it_said("plain")
        for prefix in ("module.", "_orig_mod."):
            named = {prefix + name: each for name, each in state.items()}
            with torch.no_grad():
                torch.testing.assert_close(msp.load_model(named, config={"act_fn": "relu"})(tokens), logits)

    @pytest.mark.parametrize(("dtype", "expected"), [(None, torch.float64), ("bfloat16", torch.bfloat16)])
    def test_dtype(self, dtype, expected):
        state = {
            name: each.double() if each.is_floating_point() else each for name, each in what_it_said("plain")[0].items()
        }
        model = msp.load_model(state, config={"act_fn": "relu"}, dtype=dtype)
        assert model(TOKENS).dtype == expected

    def test_what_does_not_match_is_named(self):
        state, *_ = what_it_said("plain")
        state |= {"extra": torch.zeros(2), "blocks.1.ln2.b": torch.zeros(9)}
        name = "blocks.1.attn.b_O" if has_hooked_transformer() else "blocks.1.attn.o.bias"
        del state["blocks.1.attn.b_O"]
        with pytest.raises(ValueError, match=r"left over|nothing like the weights 'extra'") as told:
            msp.load_model(state, config={"act_fn": "relu"})
        if has_hooked_transformer():
            assert f"missing (1): {name}" in str(told.value)
            assert "left over (1): extra" in str(told.value)
            assert "blocks.1.ln2.b (9,), the model's (8,)" in str(told.value)
        del state["extra"]
        with pytest.raises(ValueError, match=rf"missing \(1\): {name}; of another shape \(1\): .* \(9,\), the model's"):
            msp.load_model(state, config={"act_fn": "relu"})
        with pytest.raises(ValueError, match="n_layers=3, but there are the weights of 2 layers"):
            msp.load_model(state, config={"n_layers": 3})

    def test_what_would_be_wrong_without_a_trace_is_refused(self):
        state, *_ = what_it_said("rotary")
        with pytest.raises(ValueError, match=r"config says rotary_base=10000, and the buffers beside the weights 500"):
            msp.load_model(state, config={"act_fn": "silu", "rotary_base": 10000})
        model = msp.load_model(state, config={"act_fn": "silu"})
        other = msp.build_model(config_fields(model) | {"rotary_base": 10000})
        with pytest.raises(ValueError, match=r"rotary_\w+ is not what the model has with rotary_base=10000"):
            msp.models.load_weights(other, state)

    def test_positions_that_are_not_shown(self):
        state, _, tokens, logits = what_it_said("rotary")
        state = {name: each for name, each in state.items() if not name.endswith(("sin", "cos", "mask", "IGNORE"))}
        with pytest.raises(ValueError, match=r"do not show n_ctx and positional_embedding_type\. Give config="):
            msp.load_model(state)
        rest = {"positional_embedding_type": "rotary", "n_ctx": 6, "rotary_dim": 4, "rotary_base": 500}
        with torch.no_grad():
            torch.testing.assert_close(msp.load_model(state, config=rest | {"act_fn": "silu"})(tokens), logits)

    def test_a_misspelled_field(self):
        with pytest.raises(ValueError, match="Did you mean act_fn"):
            msp.load_model(what_it_said("plain")[0], config={"act_fun": "relu"})

    def test_other_networks(self):
        with pytest.raises(ValueError, match=r"no weights of a HookedTransformer .*here are layer\.weight"):
            msp.load_model({"layer.weight": torch.zeros(2, 2)})


@pytest.mark.parametrize(
    "more", [{}, {"attn_only": True, "n_key_value_heads": 1}, {"gated_mlp": True, "d_vocab_out": 2}]
)
def test_a_native_bridges_state(more):
    sizes = {"d_vocab": 3, "n_layers": 2, "d_model": 16, "n_heads": 2, "d_head": 8, "d_mlp": 32, "n_ctx": 5}
    bridge = msp.build_model(sizes | {"act_fn": "relu", "normalization_type": "LN"} | more, seed=1, bridge=True)
    with pytest.raises(ValueError, match="do not show how many heads"):
        msp.load_model(bridge.state_dict())
    for given in ({"n_heads": 2}, {"d_head": 8}):
        model = msp.load_model(bridge.state_dict(), config=given | {"act_fn": "relu"})
        # Without MLPs their width is nowhere.
        assert config_fields(model) | {"d_mlp": 32} == config_fields(bridge)
        with torch.no_grad():
            assert torch.equal(model(TOKENS), bridge(TOKENS))


def test_what_msp_lens_saved(small_model, mess3, tmp_path):
    path = msp.save_checkpoint(tmp_path, small_model, process=mess3)
    for source in (tmp_path, path, str(path)):
        assert torch.equal(msp.load_model(source)(TOKENS), small_model(TOKENS))
    assert msp.load_model(path, dtype="float64")(TOKENS).dtype == torch.float64
    with pytest.raises(ValueError, match="says itself what it is: leave out config="):
        msp.load_model(path, config=small_model.cfg)


def rotary_weights_in_a_bridge():
    fields = {"d_vocab": 5, "n_layers": 2, "d_model": 8, "n_heads": 2, "d_head": 4, "d_mlp": 12, "n_ctx": 6}
    return fields | {"act_fn": "relu", "normalization_type": "LN", "positional_embedding_type": "rotary"}


@pytest.mark.skipif(not has_hooked_transformer(), reason="TransformerLens 4 has no HookedTransformer")
@pytest.mark.parametrize(("rotary_dim", "adjacent"), [(4, False), (2, False), (4, True)])
def test_a_bridge_rotates_as_the_hooked_transformer_did(rotary_dim, adjacent):
    fields = rotary_weights_in_a_bridge() | {"rotary_dim": rotary_dim, "rotary_adjacent_pairs": adjacent}
    hooked, bridge = msp.build_model(fields, seed=1), msp.build_model(fields, seed=2, bridge=True)
    with torch.no_grad():
        for each in hooked.parameters():
            each += 0.3 * torch.randn(each.shape, generator=torch.Generator().manual_seed(0))
        msp.models.load_weights(bridge, hooked.state_dict())
        torch.testing.assert_close(bridge(TOKENS), hooked(TOKENS), rtol=1e-4, atol=1e-5)


def llama(**options):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 7, "max_position_embeddings": 8, "hidden_size": 16, "intermediate_size": 24}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(**sizes, **heads, **{"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0} | options)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 7, "n_positions": 8, "n_embd": 16, "n_layer": 2, "n_head": 2}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()


class TestHuggingFace:
    """A folder with a config.json and safetensors."""

    @pytest.mark.parametrize("make", [llama, gpt2])
    def test_a_folder(self, make, tmp_path, global_state):
        network = make()
        network.save_pretrained(tmp_path)
        with torch.no_grad():
            expected = network(TOKENS).logits
            for source in (tmp_path, str(tmp_path), tmp_path / "model.safetensors"):
                model = msp.load_model(source)
                torch.testing.assert_close(model(TOKENS), expected, rtol=1e-4, atol=1e-6)
        assert not model.training
        assert model.tokenizer is None
        ((_, twin),) = untrained_twins(model, 1, (), seed=5)
        assert {name: each.shape for name, each in weights(twin).items()} == {
            name: each.shape for name, each in weights(model).items()
        }

    def test_dtype_and_devices(self, tmp_path):
        llama().to(torch.bfloat16).save_pretrained(tmp_path)
        assert next(msp.load_model(tmp_path).parameters()).dtype == torch.bfloat16
        layers = {f"model.layers.{layer}": "cpu" for layer in range(2)}
        placed = {
            "model.embed_tokens": "cpu",
            "model.norm": "cpu",
            "model.rotary_emb": "cpu",
            "lm_head": "cpu",
        } | layers
        model = msp.load_model(tmp_path, dtype="float32", device_map=placed)
        assert {each.dtype for each in model.parameters()} == {torch.float32}
        with torch.no_grad():
            assert torch.equal(model(TOKENS), msp.load_model(tmp_path, dtype="float32")(TOKENS))
        for source in ({}, OLD / "plain.safetensors", "attn-only-1l"):
            with pytest.raises(ValueError, match=r"device_map='auto': .* goes to one device\. Give device="):
                msp.load_model(source, device_map="auto")

    def test_what_does_not_match_is_named(self, tmp_path):
        llama().save_pretrained(tmp_path)
        state = load_file(tmp_path / "model.safetensors")
        save_file(state | {"model.extra.weight": torch.zeros(2)}, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.warns(UserWarning, match=r"no place in the model for model\.extra\.weight"):
            msp.load_model(tmp_path)
        del state["model.norm.weight"]
        state["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 2)
        save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(
            ValueError, match=r"missing \(1\): model\.norm\.weight; .*up_proj\.weight \(3, 2\), the mod"
        ):
            msp.load_model(tmp_path)

    def test_a_tokenizer_comes_along(self, tmp_path):
        from tests.hooked_models import hugging_face_bridge

        bridge = hugging_face_bridge()
        bridge.tokenizer.save_pretrained(tmp_path)
        bridge.original_model.config.save_pretrained(tmp_path)
        gpt2().save_pretrained(tmp_path)
        model = msp.load_model(tmp_path)
        assert model.tokenizer("a b c").input_ids == bridge.tokenizer("a b c").input_ids

    def test_pickled_weights_are_refused(self, tmp_path):
        network = gpt2()
        network.config.save_pretrained(tmp_path)
        torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
        with pytest.raises(ValueError, match=r"only pickled weights \(pytorch_model\.bin\).*safe_serialization=True"):
            msp.load_model(tmp_path)
        with pytest.raises(
            ValueError, match=r"never unpickled.*save_file\(torch\.load\('pytorch_model\.bin', weights_only"
        ):
            msp.load_model(tmp_path / "pytorch_model.bin")

    def test_code_in_a_folder_is_not_run(self, tmp_path):
        (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'it_ran')!r}, 'w').close()\n")
        config = {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=r"trust_remote_code|model type"):
            msp.load_model(tmp_path)
        assert not (tmp_path / "it_ran").exists()


class TestGguf:
    """One file with everything, as llama.cpp has it."""

    def test_a_llama(self, tmp_path):
        gguf = pytest.importorskip("gguf")
        network = llama()
        with torch.no_grad():
            expected = network(TOKENS).logits
        write_gguf(gguf, network, tmp_path / "tiny.gguf")
        for source in (tmp_path / "tiny.gguf", tmp_path):
            model = msp.load_model(source)
            with torch.no_grad():
                torch.testing.assert_close(model(TOKENS), expected, rtol=1e-4, atol=1e-5)
        assert untrained_twins(model, 1, (), seed=5)

    def test_without_the_package(self, tmp_path, monkeypatch):
        (tmp_path / "x.gguf").write_bytes(b"GGUF")
        monkeypatch.setitem(sys.modules, "gguf", None)
        with pytest.raises(ImportError, match=r'x\.gguf needs gguf: pip install "msp-lens\[lm\]"'):
            msp.load_model(tmp_path / "x.gguf")


def write_gguf(gguf, network, path):
    """The network as llama.cpp's converter writes it: queries' and keys' features in adjacent pairs."""
    config, state = network.config, {name: each.numpy() for name, each in network.state_dict().items()}
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([b"<s>", b"a", b"b", b"c", b"d", b"e", b"ab"])
    writer.add_token_types([3, 1, 1, 1, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
    within = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    within |= {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
    within |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    for name, value in state.items():
        parts = name.split(".")
        target = f"blk.{parts[2]}.{within[parts[-2]]}.weight" if "layers" in parts else f"{names[parts[-2]]}.weight"
        if parts[-2] in ("q_proj", "k_proj"):
            heads = config.num_attention_heads if parts[-2] == "q_proj" else config.num_key_value_heads
            halves = value.reshape(heads, 2, -1, value.shape[1])
            value = halves.swapaxes(1, 2).reshape(value.shape)
        writer.add_tensor(target, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", ["gpt2", "attn-only-1l", "nobody/nothing"])
def test_a_name_without_a_network(name):
    with pytest.raises(FileNotFoundError, match=rf"{name}'.*could not be had.*copy the model's folder here"):
        msp.load_model(name)


@pytest.mark.parametrize("path", ["nowhere/at/all", "x.safetensors", "~/x", "no such thing"])
def test_no_such_file(path):
    with pytest.raises(FileNotFoundError, match=r"name_or_path=.*there is no such file or folder, and it is no name"):
        msp.load_model(path)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no model"):
        msp.load_model(tmp_path)
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"x": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(ValueError, match=r"holds a\.safetensors, b\.safetensors: give the path of one"):
        msp.load_model(tmp_path)
