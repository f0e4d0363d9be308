import shutil

import pytest
import torch
from safetensors.torch import save_file

import msp_lens as msp
from msp_lens.models import model_fingerprint

TOKENS = torch.tensor([[0, 1, 2, 0, 1]])


def test_round_trip(small_model, mess3, tmp_path, global_state):
    path = msp.save_checkpoint(tmp_path / "run", small_model, process=mess3, provenance={"step": 7})
    assert path == tmp_path / "run" / "model.safetensors"
    loaded = msp.load_checkpoint(tmp_path / "run")
    torch.testing.assert_close(loaded.model(TOKENS), small_model(TOKENS), rtol=0, atol=0)
    assert loaded.process == mess3
    assert loaded.provenance == {"step": 7}
    assert loaded.fingerprint == model_fingerprint(small_model)
    assert not loaded.model.training
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"], "temporary files left behind"


def test_a_bridge_keeps_its_class(tmp_path):
    bridge = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=1, n_ctx=5), seed=2, bridge=True)
    msp.save_checkpoint(tmp_path, bridge)
    loaded = msp.load_checkpoint(tmp_path).model
    assert type(loaded).__name__ == "TransformerBridge"
    torch.testing.assert_close(loaded(TOKENS), bridge(TOKENS), rtol=0, atol=0)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_checkpoint_cut_short_is_refused(small_model, tmp_path, share):
    path = msp.save_checkpoint(tmp_path, small_model)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged .*again"):
        msp.load_checkpoint(path)


def test_a_flipped_bit_is_noticed(small_model, tmp_path):
    path = msp.save_checkpoint(tmp_path, small_model)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="does not match its checksum"):
        msp.load_checkpoint(path)


def test_other_files_are_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="was not saved by msp_lens"):
        msp.load_checkpoint(tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no file .*nothing"):
        msp.load_checkpoint(tmp_path / "nothing")


def test_a_failed_save_leaves_the_former_checkpoint(small_model, tmp_path):
    path = msp.save_checkpoint(tmp_path, small_model)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        msp.save_checkpoint(tmp_path, small_model, provenance={"not": object()})
    assert path.read_bytes() == before
    shutil.rmtree(tmp_path)


def test_fingerprint_follows_the_weights(small_model):
    before = model_fingerprint(small_model)
    with torch.no_grad():
        next(iter(small_model.parameters())).add_(1e-3)
    assert model_fingerprint(small_model) != before
