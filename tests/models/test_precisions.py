"""Half precision, grouped-query attention, RMSNorm and rotary embeddings: what the same weights give in float32."""

import pytest
import torch

import msp_lens as msp
from msp_lens.inference import network_predictor
from msp_lens.interventions import patch, steer
from msp_lens.models import stream_activations
from msp_lens.models.build import has_hooked_transformer, load_weights, weights
from tests.hooked_models import loaded, network

GROUPED = {"d_vocab": 4, "n_layers": 2, "d_model": 16, "n_heads": 4, "n_key_value_heads": 2, "d_head": 4, "d_mlp": 24}
GROUPED |= {"n_ctx": 8, "act_fn": "silu", "gated_mlp": True, "normalization_type": "RMS"}
GROUPED |= {"positional_embedding_type": "rotary"}
KINDS = ["hooked transformer", "bridge", "Llama"]
SITES = ["0_post", "1_post"]
# Rounding of a half-precision number, and what is left of it after some layers.
NEAR = {"bfloat16": 2e-2, "float16": 3e-3}


def build(kind, dtype):
    """The model in half precision, and one in float32 whose weights are the very same numbers."""
    if kind == "Llama":
        half = loaded(network(kind, initializer_range=0.2), dtype=dtype)
        exact = loaded(network(kind, initializer_range=0.2))
        state = half.original_model.state_dict()
        exact.original_model.load_state_dict({name: each.float() for name, each in state.items()})
        return half, exact
    half, exact = (msp.build_model(GROUPED | {"dtype": each}, bridge=kind == "bridge") for each in (dtype, "float32"))
    draw = torch.Generator().manual_seed(0)
    drawn = {name: each + 0.2 * torch.randn(each.shape, generator=draw) for name, each in weights(exact).items()}
    load_weights(half, drawn)
    load_weights(exact, {name: each.float() for name, each in weights(half).items()})
    return half, exact


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    if request.param == "hooked transformer" and not has_hooked_transformer():
        pytest.skip("TransformerLens 4 has no HookedTransformer")
    return request.param


@pytest.fixture(scope="module", params=NEAR)
def pair(kind, request, device):
    half, exact = (model.to(device) for model in build(kind, request.param))
    return half, exact, NEAR[request.param]


@pytest.fixture(scope="module")
def words(mess3):
    return msp.words(mess3, n_ctx=4)


@pytest.fixture(scope="module")
def reports(pair, words):
    options = {"sites": SITES, "controls": False, "by_position": False, "progress": False}
    return [msp.probe(model, words, **options) for model in pair[:2]]


def test_probes(pair, reports):
    half, exact = reports
    for site in SITES:
        assert half[site].scores.in_sample.r2 == pytest.approx(exact[site].scores.in_sample.r2, abs=max(5e-3, pair[2]))
        # The sums are as exact as those of a model in float32.
        assert half[site].moments.mean.dtype == half[site].moments.scatter.dtype == torch.float64
    assert half.regret == pytest.approx(exact.regret, rel=2 * pair[2])


def test_steering(pair, reports, words, device):
    half, exact, near = pair
    tokens, logits = words.tokens[:8].to(device), []
    for model in (half, exact):
        with torch.no_grad(), reports[1]["0_post"].steer(model, [0.0, 0.0, 1.0], position=-1):
            (batch,) = stream_activations(model, tokens, ["1_post"])
            seen = batch.activations["blocks.1.hook_resid_post"]
        assert batch.output.dtype == seen.dtype == next(model.parameters()).dtype
        logits.append(batch.output.float().log_softmax(dim=-1))
    plain = exact(tokens).float().log_softmax(dim=-1)
    change = float((logits[1] - plain).detach()[:, -1].abs().max())
    assert change > 0.1
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=2 * near * max(1.0, change))


def test_interventions(pair, reports, words):
    options = {"edits": ["steer", "patch"], "n_words": 40, "seed": 0}
    half, exact = (
        msp.intervene(model, words, probes=report, **options).to_dataframe()
        for model, report in zip(pair[:2], reports, strict=True)
    )
    assert list(half["edit"]) == list(exact["edit"])
    for column in ("kl_to_target", "kl_to_actual"):
        assert half[column].tolist() == pytest.approx(exact[column].tolist(), abs=3 * pair[2])
    assert exact["kl_to_actual"].max() - exact["kl_to_actual"].min() > 6 * pair[2]


def test_what_it_predicts(pair, words):
    half, exact = (
        network_predictor(model, n_ctx=4, token_map=words.token_map).after(words.tokens) for model in pair[:2]
    )
    assert half.dtype == torch.float64
    torch.testing.assert_close(half, exact, rtol=3 * pair[2], atol=pair[2])


def test_the_process_that_it_emits(pair, kind):
    if kind != "bridge":
        pytest.skip("one model shows it")
    options = {"n_ctx": 3, "n_states": 1, "n_starts": 1, "progress": False}
    half, exact = (msp.infer(model, **options).process.transitions.flatten() for model in pair[:2])
    torch.testing.assert_close(half, exact, rtol=3 * pair[2], atol=pair[2])


@pytest.mark.parametrize("make", [steer, patch])
def test_an_edit_is_rounded_once(reports, make):
    edit = make(reports[1]["0_post"])
    for dtype in (torch.bfloat16, torch.float16):
        h = torch.randn(50, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
        beliefs = torch.rand(50, 3, generator=torch.Generator().manual_seed(2))
        beliefs /= beliefs.sum(dim=1, keepdim=True)
        edited = edit(h, beliefs)
        assert edited.dtype == dtype
        assert torch.equal(edited, edit(h.float(), beliefs).to(dtype))


@pytest.mark.parametrize("family", ["Llama", "GPT2"])
def test_a_self_check(family):
    assert not msp.check_model(loaded(network(family), dtype="bfloat16")).problems
