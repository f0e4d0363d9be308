"""Models at the edge of what can be read: refused, or read rightly."""

import pytest
import torch
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

import msp_lens as msp
from msp_lens.models import editing, find_sites, load_weights, stream_activations
from msp_lens.models.build import has_hooked_transformer, weights
from msp_lens.models.hooked import check_fits, context_length, model_device

TOKENS = torch.tensor([[0, 1, 2, 0, 1]])
CONFIG = msp.ModelConfig(d_vocab=3, n_layers=2, d_model=16, n_heads=2, d_head=8, d_mlp=32, n_ctx=5)
# What takes most of the time of a small probe, for tests that do not look at it.
SCORES_ALONE = {"controls": False, "by_position": False, "progress": False}
CLASSES = [False, True] if has_hooked_transformer() else [True]


class Recurrent(HookedRootModule):
    """It passes one hook twice, or never, and has buffers but no parameters."""

    def __init__(self, times):
        super().__init__()
        self.register_buffer("table", torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
        self.times, self.hook_state, self.hook_end = times, HookPoint(), HookPoint()
        self.cfg = {"d_vocab": 3, "n_ctx": 5}
        self.setup()

    def forward(self, tokens):
        state = self.table[tokens].cumsum(dim=1)
        for _ in range(self.times):
            state = self.hook_state(state.tanh())
        return self.hook_end(state)


@pytest.mark.parametrize(("times", "message"), [(2, "reached hook_state 2 times"), (0, "never reached hook_state")])
def test_a_site_that_is_not_reached_once_is_refused(times, message, mess3):
    model = Recurrent(times)
    with pytest.raises(ValueError, match=message):
        list(stream_activations(model, TOKENS, ["hook_state", "hook_end"]))
    with pytest.raises(ValueError, match=message):
        msp.probe(model, mess3, sites="hook_state", progress=False)


def test_buffers_without_parameters(mess3):
    model = Recurrent(1)
    assert model_device(model) == torch.device("cpu")
    report = msp.probe(model, mess3, sites="hook_state", progress=False)
    assert 0 < report["hook_state"].scores.in_sample.r2 < 1


def test_a_config_may_be_a_mapping(mess3):
    model = Recurrent(1)
    assert context_length(model) == 5
    with pytest.raises(ValueError, match="longer than the model's context of 5"):
        check_fits(model, mess3, 6)


@pytest.mark.parametrize("bridge", CLASSES)
def test_all_sites_of_attention_alone(bridge, mess3):
    model = msp.build_model(CONFIG.to_dict() | {"attn_only": True}, bridge=bridge)
    labels = [msp.models.site_label(site) for site in find_sites(model, "all")]
    assert labels == ["0_pre", "0_attn_out", "0_post", "1_attn_out", "1_post", "ln_final"]
    report = msp.probe(model, mess3, sites="all", **SCORES_ALONE)
    assert [label for label in labels if label in report] == labels
    with pytest.raises(KeyError, match="no site '0_mlp_out'"):
        find_sites(model, "0_mlp_out")


@pytest.mark.parametrize("bridge", CLASSES)
def test_attention_to_later_tokens_is_refused(bridge, mess3):
    model = msp.build_model(CONFIG.to_dict() | {"attention_dir": "bidirectional"}, bridge=bridge)
    for refused in (msp.probe, lambda model, process: msp.train(process, model, progress=False)):
        with pytest.raises(ValueError, match=r'attention is bidirectional.*attention_dir="causal"'):
            refused(model, mess3)


@pytest.mark.parametrize("bridge", CLASSES)
def test_a_model_that_predicts_too_few_tokens(bridge, mess3):
    model = msp.build_model(CONFIG.to_dict() | {"d_vocab_out": 2}, bridge=bridge)
    with pytest.raises(ValueError, match=r"predicts 2 tokens, and words of mess3 have 3.*d_vocab_out=3"):
        msp.train(mess3, model, progress=False)
    with pytest.raises(ValueError, match="predicts 2 tokens"):
        msp.training.regret_by_position(model, msp.words(mess3, n_ctx=5))
    # What its activations hold can be read all the same.
    assert msp.probe(model, mess3, sites="0_post", **SCORES_ALONE)["0_post"].scores.in_sample.r2 > 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("bridge", CLASSES)
def test_every_precision_is_probed_and_steered(dtype, bridge, mess3):
    fields = CONFIG.to_dict()
    exact = msp.build_model(fields, seed=1, bridge=bridge)
    model = msp.build_model(fields | {"dtype": dtype}, bridge=bridge)
    load_weights(model, weights(exact))
    probe, expected = (msp.probe(each, mess3, sites="0_post", **SCORES_ALONE)["0_post"] for each in (model, exact))
    assert probe.scores.in_sample.r2 == pytest.approx(expected.scores.in_sample.r2, abs=2e-2)
    changes = []
    with torch.no_grad():
        for network, its_probe in ((exact, expected), (model, probe)):
            with its_probe.steer(network, [0.0, 0.0, 1.0]):
                steered = network(TOKENS)
            assert steered.dtype == next(network.parameters()).dtype
            changes.append((steered - network(TOKENS)).float())
    assert changes[0].abs().max() > 0.05
    torch.testing.assert_close(changes[1], changes[0], rtol=0, atol=0.2 * float(changes[0].abs().max()))


def test_a_default_dtype_changes_no_weights():
    plain = weights(msp.build_model(CONFIG, seed=3, bridge=True))
    torch.set_default_dtype(torch.float64)
    try:
        again = weights(msp.build_model(CONFIG, seed=3, bridge=True))
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(again[name], tensor) for name, tensor in plain.items())


def test_without_gradients_a_model_is_built_and_read_and_edited_all_the_same(small_model):
    with torch.inference_mode():
        model = msp.build_model(CONFIG)
        (batch,) = stream_activations(small_model, TOKENS, "0_post")
        with editing(small_model, {"0_post": torch.zeros_like}):
            small_model(TOKENS)
    assert all(weight.requires_grad and not weight.is_inference() for weight in model.parameters())
    assert not torch.is_inference_mode_enabled()
    assert batch.activations["blocks.0.hook_resid_post"].shape == (1, 5, 16)
