"""Untrained twins: new models of the same architecture, dtype and device, whatever the model is."""

import pytest
import torch

import msp_lens as msp
from msp_lens.controls import untrained_twins
from msp_lens.data.token_map import TokenMap
from msp_lens.models.build import untrained_like
from msp_lens.models.symbol_reader import SymbolReader
from tests.hooked_models import FAMILIES, loaded, network

SYMBOLS = TokenMap(symbols=(2, 3, 4), bos=0)


@pytest.fixture(scope="module")
def llama():
    return loaded(network("Llama"))


def twin_of(model, seed=2):
    ((_, twin),) = untrained_twins(model, 1, ["blocks.0.hook_resid_post"], seed=seed - 1)
    return twin


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_of_hugging_faces(family, global_state):
    # With these weights an untrained model is told from the model itself, and from one whose weights were never drawn.
    model = loaded(network(family, initializer_range=0.3))
    before = {name: each.clone() for name, each in model.state_dict().items()}
    twin, again, other = twin_of(model, 1), twin_of(model, 1), twin_of(model, 2)
    drawn = [dict(each.original_model.named_parameters()) for each in (twin, again, other, model)]
    assert type(twin.original_model) is type(model.original_model)
    for name, weight in drawn[0].items():
        assert torch.equal(weight, drawn[1][name])
        assert weight.shape == drawn[3][name].shape
        if weight.ndim == 2:
            assert not torch.equal(weight, drawn[2][name])
            assert not torch.equal(weight, drawn[3][name])
            # GPT-2 scales what is added to the residual stream by one over the root of twice the layers.
            scale = 0.5 if family == "GPT2" and ("attn.o." in name or "c_proj." in name) else 1.0
            assert 0.2 * scale < float(weight.detach().std()) < 0.4 * scale, name
    for name, each in model.state_dict().items():
        assert torch.equal(each, before[name])


def test_a_whole_probe(mess3):
    model, words = loaded(network("Qwen2")), msp.words(mess3, n_ctx=5, token_map=SYMBOLS)
    report = msp.probe(model, words, sites="0_post", untrained=2, progress=False)
    scores = [each for each in report.controls if each.kind == "untrained"]
    assert [each.name for each in scores] == ["untrained 1", "untrained 2"]
    assert scores[0].in_sample.r2 != scores[1].in_sample.r2
    assert all(0 < each.in_sample.r2 < 1 for each in scores)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_of_the_same_dtypes(dtype):
    model = loaded(network("Llama"), dtype=dtype)
    twin = twin_of(model)
    expected = {name: each.dtype for name, each in (*model.named_parameters(), *model.named_buffers())}
    assert {name: each.dtype for name, each in (*twin.named_parameters(), *twin.named_buffers())} == expected
    assert twin(torch.tensor([[1, 2, 3]])).dtype == getattr(torch, dtype)


def test_of_one_that_reads_symbols(llama):
    reader = SymbolReader(llama, SYMBOLS)
    twin = twin_of(reader)
    assert isinstance(twin, SymbolReader)
    assert twin.token_map == SYMBOLS
    tokens = torch.tensor([[0, 1, 2, 2]])
    with torch.no_grad():
        assert torch.equal(twin(tokens), SymbolReader(twin_of(llama), SYMBOLS)(tokens))
        assert not torch.allclose(twin(tokens), reader(tokens))


def test_of_a_compiled_model(llama):
    twin = twin_of(torch.compile(llama, backend="eager"))
    pairs = zip(twin.parameters(), twin_of(llama).parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_network_that_its_config_does_not_determine():
    changed = network("Llama")
    changed.model.layers[1].mlp.up_proj = torch.nn.Linear(16, 24, bias=True)
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    model = build_bridge_from_module(changed, "LlamaForCausalLM", hf_config=changed.config)
    with pytest.raises(ValueError, match=r"does not determine its architecture.*differs in .*bias"):
        untrained_like(model, seed=0)
    with pytest.raises(ValueError, match=r"untrained=\[model, …\]"):
        twin_of(model)
