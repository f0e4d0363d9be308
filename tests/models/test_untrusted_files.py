"""Checkpoints from anywhere: what their headers may say, and what they may not."""

import json
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import msp_lens as msp
from msp_lens._files import read_header
from msp_lens.models.architecture import fitting_architecture
from msp_lens.models.build import config_fields, weights


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    model = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=2, d_model=16, d_head=8, d_mlp=32, n_ctx=5), seed=1)
    return msp.save_checkpoint(tmp_path_factory.mktemp("checkpoint"), model, process=msp.mess3())


def edited(checkpoint, path, change):
    """The checkpoint with its header changed, and everything else as it was."""
    description = json.loads(read_header(checkpoint)["msp_lens"])
    change(description)
    save_file(load_file(checkpoint), path, metadata={"msp_lens": json.dumps(description)})
    return path


def test_a_checkpoint_runs_no_code_and_asks_no_hub(checkpoint, tmp_path, monkeypatch):
    """A tokenizer's folder may hold Python, which `trust_remote_code` would run."""
    folder, proof = tmp_path / "tokenizer", tmp_path / "it_ran"
    folder.mkdir()
    code = f"open({str(proof)!r}, 'w').close()\nfrom transformers import PreTrainedTokenizerFast as Tokenizer\n"
    (folder / "code.py").write_text(code)
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": [None, "code.Tokenizer"]}}))
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))

    def refuse(*args, **options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    for name in (str(folder), "gpt2"):
        harmful = {"tokenizer_name": name, "trust_remote_code": True, "model_name": name}
        path = edited(
            checkpoint, tmp_path / "edited.safetensors", lambda d, harmful=harmful: d["model"].update(harmful)
        )
        before = set(sys.modules)
        loaded = msp.load_checkpoint(path)
        assert not proof.exists()
        assert not [module for module in set(sys.modules) - before if module.startswith("transformers_modules")]
        assert getattr(loaded.model.cfg, "tokenizer_name", None) is None
        assert not getattr(loaded.model.cfg, "trust_remote_code", False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layers": 10**9}, "n_layers=1000000000, but there are the weights of 2 layers"),
        ({"d_model": 10**9}, "sizes that need at least"),
        ({"n_ctx": 10**9}, "n_ctx=1000000000, but no weight is as long"),
        ({"d_vocab": 10**12}, "sizes that need at least"),
        ({"d_vocab_out": 10**12}, "sizes that need at least"),
        ({"n_key_value_heads": 10**9}, "sizes that need at least"),
        ({"num_experts": 10**9, "experts_per_token": 1}, "sizes that need at least"),
        ({"relative_attention_num_buckets": 10**12}, "sizes that need at least"),
        ({"d_model": 10**25}, r"model\.d_model=1.*: give a whole number"),
        ({"d_head": "8"}, r"model\.d_head='8': give a whole number"),
        ({"d_head": 7.5}, r"model\.d_head=7\.5: give a whole number"),
        ({"n_heads": True}, r"model\.n_heads=True: give a whole number"),
        ({"n_heads": 0}, r"model\.n_heads=0: give at least 1"),
        ({"d_mlp": [32]}, r"model\.d_mlp=\[32\]: give a whole number"),
        ({"d_model": None}, r"model\.d_model is missing"),
        ({"eps": 1e300}, r"model\.eps=1e\+300: give a"),
        ({"attn_only": 1}, r"model\.attn_only=1: give True or False"),
        ({"act_fn": "__import__"}, r"model\.act_fn='__import__': choose one of"),
        ({"dtype": "load"}, r"model\.dtype='load': choose one of"),
        ({"attn_types": ["global", "elsewhere"]}, r"model\.attn_types\[1\]='elsewhere': choose one of"),
        ({"hugging_face": {"architecture": "BertModel"}}, r"model\.hugging_face\.architecture='BertModel': choose"),
        ({"hugging_face": "gpt2"}, r"model\.hugging_face='gpt2': give a mapping"),
    ],
)
def test_sizes_and_values_are_refused_before_anything_is_allocated(checkpoint, tmp_path, change, message):
    path = edited(checkpoint, tmp_path / "edited.safetensors", lambda description: description["model"].update(change))
    with pytest.raises(ValueError, match=message) as refusal:
        msp.load_checkpoint(path)
    assert str(path) in str(refusal.value)
    assert "both are whole" in str(refusal.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=20)
@given(st.data())
def test_whatever_a_header_says_is_an_architecture_or_refused(data):
    model = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=4), seed=0)
    fields, tensors = config_fields(model), weights(model)
    fields |= data.draw(st.dictionaries(st.sampled_from(sorted(fields)), JSON, max_size=3))
    try:
        checked = fitting_architecture(fields, tensors, "a file")
    except ValueError:
        with pytest.raises(ValueError, match=r"^a file: .*both are whole"):
            fitting_architecture(fields, tensors, "a file")
        return
    assert "tokenizer_name" not in checked
    assert "trust_remote_code" not in checked
    try:
        built = msp.build_model(checked)
    except ValueError as error:
        assert "config" in str(error)  # noqa: PT017 (most headers can be built)
        return
    assert sum(each.numel() for each in built.parameters()) <= 50 * sum(each.numel() for each in tensors.values())


def test_what_was_saved_comes_back(checkpoint):
    loaded, again = (msp.load_checkpoint(checkpoint).model for _ in range(2))
    words = torch.tensor([[0, 1, 2, 2, 1]])
    assert torch.equal(loaded(words), again(words))
