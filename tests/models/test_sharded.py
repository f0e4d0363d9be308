"""A model too large for one device: in pieces, on two devices or partly on disk, it is read and edited as a whole."""

import pytest
import torch

import msp_lens as msp
from msp_lens.controls import untrained_twins
from msp_lens.interventions import applying, steer
from msp_lens.models.build import has_hooked_transformer, weights
from msp_lens.models.hooked import model_device
from tests.hooked_models import network

AROUND = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
# Where the second layer is. Of a GPU's model it is in memory; accelerate takes what is on "cpu" there to be offloaded.
PIECES = ["disk", *(["cpu"] if torch.cuda.is_available() else [])]


OF_BOTH_LAYERS = {"sites": ["0_post", "1_post"], "controls": False, "by_position": False, "progress": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("llama")
    network("Llama", initializer_range=0.2).save_pretrained(found)
    return found


@pytest.fixture(scope="module")
def plain(folder):
    return msp.load_model(folder)


def test_an_unembedding_on_disk_has_the_bias_that_it_gets(folder, plain):
    """Where a model is too large, its last parts are those without a place."""
    tokens = torch.tensor([[1, 2, 3]])
    model = msp.load_model(folder, device_map=places("disk") | {"lm_head": "disk"})
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), plain(tokens), rtol=0, atol=1e-6)
    assert msp.models.model_fingerprint(model) == msp.models.model_fingerprint(plain)


def places(second):
    """Everything on one device but the second layer."""
    return dict.fromkeys((*AROUND, "model.layers.0"), 0 if second == "cpu" else "cpu") | {"model.layers.1": second}


def dispatched(second, folder):
    """A network that its user has dispatched, and put into a bridge."""
    from accelerate import dispatch_model
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    whole = network("Llama", initializer_range=0.2)
    in_pieces = dispatch_model(whole, places(second), offload_dir=folder)
    return build_bridge_from_module(in_pieces, "LlamaForCausalLM", hf_config=whole.config)


@pytest.fixture(
    scope="module", params=[(how, second) for how in ("loaded", "dispatched") for second in PIECES], ids=str
)
def model(request, folder, tmp_path_factory):
    how, second = request.param
    if how == "loaded":
        found = msp.load_model(folder, device_map=places(second))
    else:
        found = dispatched(second, tmp_path_factory.mktemp("offloaded"))
    assert len({each.device for each in found.parameters()}) == 2
    return found


def test_its_weights_are_known(model, plain):
    assert model_device(model) == next(each.device for each in model.parameters() if not each.is_meta)
    assert msp.models.model_fingerprint(model) == msp.models.model_fingerprint(plain)
    assert all(torch.equal(each.cpu(), weights(plain)[name]) for name, each in weights(model).items())


def test_it_is_probed_and_steered(model, plain, mess3):
    words = msp.words(mess3, n_ctx=5)
    report, expected = (msp.probe(each, words, concatenate=True, **OF_BOTH_LAYERS) for each in (model, plain))
    for label in ("0_post", "1_post", "concatenated"):
        r2, other = (each[label].scores.in_sample.r2 for each in (report, expected))
        assert r2 == pytest.approx(other, abs=1e-6)
    tokens = words.tokens[:20]
    for site in ("0_post", "1_post"):
        with torch.no_grad(), report[site].steer(model, [0.0, 0.0, 1.0]):
            steered = model(tokens)
        with torch.no_grad(), applying(plain, steer(expected[site]), [0.0, 0.0, 1.0]):
            torch.testing.assert_close(steered.cpu(), plain(tokens), rtol=0, atol=1e-5)
        assert (steered.cpu() - plain(tokens)).abs().max() > 0.1


def test_experiments_and_regret(model, plain, mess3):
    words = msp.words(mess3, n_ctx=4)
    report, expected = (msp.probe(each, words, **OF_BOTH_LAYERS) for each in (model, plain))
    tables = [
        msp.intervene(each, words, probes=probes, n_words=10, edits=["steer"]).to_dataframe()
        for each, probes in ((model, report), (plain, expected))
    ]
    assert tables[0]["kl_to_target"].tolist() == pytest.approx(tables[1]["kl_to_target"].tolist(), abs=1e-5)
    regrets = [msp.training.regret_by_position(each, words) for each in (model, plain)]
    torch.testing.assert_close(*regrets, rtol=0, atol=1e-6)
    assert not msp.check_model(model).problems


def test_twins_lie_in_the_same_pieces(model, plain):
    ((_, twin),) = untrained_twins(model, 1, ["0_post"], seed=3)
    ((_, expected),) = untrained_twins(plain, 1, ["0_post"], seed=3)
    assert [each.device for each in twin.parameters()] == [each.device for each in model.parameters()]
    assert all(torch.equal(each.cpu(), weights(expected)[name]) for name, each in weights(twin).items())
    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        torch.testing.assert_close(twin(tokens).cpu(), expected(tokens), rtol=0, atol=1e-6)


@pytest.mark.parametrize("second", ["disk"])
def test_offloaded_weights_are_not_replaced(folder, plain, second):
    model = msp.load_model(folder, device_map=places(second))
    with pytest.raises(ValueError, match="weights are offloaded, and cannot be replaced"):
        msp.models.load_weights(model, plain.state_dict())


def test_a_matrix_that_transformer_lens_3_splits_is_kept_off_the_disk(tmp_path):
    network("GPT2").save_pretrained(tmp_path)
    parts = ("transformer.wte", "transformer.wpe", "transformer.drop", "transformer.h.0", "transformer.ln_f", "lm_head")
    placed = dict.fromkeys(parts, "cpu") | {"transformer.h.1": "disk"}
    if has_hooked_transformer():
        with pytest.raises(ValueError, match=r"(fused QKV|split off a matrix)"):
            msp.load_model(tmp_path, device_map=placed)
        return
    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert torch.equal(msp.load_model(tmp_path, device_map=placed)(tokens), msp.load_model(tmp_path)(tokens))
