import warnings

import pytest
import torch

import msp_lens as msp
from msp_lens.models.build import config_fields, has_hooked_transformer, weights

TOKENS = torch.tensor([[0, 1, 2, 0, 1]])
CONFIG = msp.ModelConfig(d_vocab=3, n_layers=2, d_model=16, n_heads=2, d_head=8, d_mlp=32, n_ctx=5)


def test_the_class_is_that_of_the_installed_version():
    expected = "HookedTransformer" if has_hooked_transformer() else "TransformerBridge"
    assert type(msp.build_model(CONFIG)).__name__ == expected


def test_building_touches_neither_random_state_nor_warning_filters(global_state, capsys):
    filters = list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        msp.build_model(CONFIG, seed=3)
    assert warnings.filters == filters
    assert capsys.readouterr().out == ""


def test_the_users_own_warning_is_still_heard():
    if not has_hooked_transformer():
        pytest.skip("TransformerLens 4 has no HookedTransformer to warn about")
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    msp.build_model(CONFIG)
    with pytest.warns(DeprecationWarning, match="HookedTransformer is deprecated"):
        HookedTransformer(HookedTransformerConfig(n_layers=1, d_model=8, n_ctx=4, d_head=8, d_vocab=3, act_fn="relu"))


def test_a_seed_means_the_same_weights():
    first, again, other = (weights(msp.build_model(CONFIG, seed=seed)) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_bridge_can_be_built_under_either_version():
    bridge = msp.build_model(CONFIG, seed=3, bridge=True)
    assert type(bridge).__name__ == "TransformerBridge"
    assert len(msp.models.residual_sites(bridge)) == 4
    assert bridge(TOKENS).shape == (1, 5, 3)


def test_configs_may_be_mappings_or_transformer_lens_configs():
    from transformer_lens.config import TransformerBridgeConfig

    fields = CONFIG.to_dict()
    expected = msp.build_model(CONFIG, seed=3)(TOKENS)
    torch.testing.assert_close(msp.build_model(fields, seed=3)(TOKENS), expected)
    torch.testing.assert_close(msp.build_model(TransformerBridgeConfig(**fields), seed=3)(TOKENS), expected)


def test_the_models_own_config_builds_its_like():
    model = msp.build_model(CONFIG, seed=3)
    again = msp.build_model(config_fields(model), seed=3)
    torch.testing.assert_close(again(TOKENS), model(TOKENS), rtol=0, atol=0)


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match=r"n_layers=0.*at least 1"):
        msp.ModelConfig(d_vocab=3, n_layers=0)


def test_weights_must_all_find_their_place():
    model = msp.build_model(CONFIG)
    state = weights(model)
    name = next(iter(state))
    before = {key: tensor.clone() for key, tensor in state.items()}
    with pytest.raises(ValueError, match="missing"):
        msp.load_weights(model, {key: torch.ones_like(tensor) for key, tensor in state.items() if key != name})
    with pytest.raises(ValueError, match="left over"):
        msp.load_weights(model, state | {"extra": torch.zeros(1)})
    with pytest.raises(ValueError, match="another shape"):
        msp.load_weights(model, state | {name: torch.zeros(1)})
    assert all(torch.equal(tensor, before[key]) for key, tensor in weights(model).items()), "half loaded"


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"device='cuda:77': give a device that this machine has"):
        msp.build_model(msp.ModelConfig(d_vocab=3), device="cuda:77")
