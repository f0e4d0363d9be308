import warnings

import pytest
import torch

import msp_lens as msp
from msp_lens.models.build import config_fields, has_hooked_transformer, weights
from msp_lens.models.state_dicts import converted_weights

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
        msp.models.load_weights(model, {key: torch.ones_like(tensor) for key, tensor in state.items() if key != name})
    with pytest.raises(ValueError, match="left over"):
        msp.models.load_weights(model, state | {"extra": torch.zeros(1)})
    with pytest.raises(ValueError, match="another shape"):
        msp.models.load_weights(model, state | {name: torch.zeros(1)})
    assert all(torch.equal(tensor, before[key]) for key, tensor in weights(model).items()), "half loaded"


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"device='cuda:77': give a device that this machine has"):
        msp.build_model(msp.ModelConfig(d_vocab=3), device="cuda:77")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            CONFIG.to_dict() | {"n_layer": 2},
            "'n_layer', .* leave it out. Did you mean n_layers",
        ),
        (CONFIG.to_dict() | {"d_model": "16"}, r"config\.d_model='16': give a whole number"),
        (CONFIG.to_dict() | {"n_heads": 2.5}, r"config\.n_heads=2\.5: give a whole number"),
        (CONFIG.to_dict() | {"act_fn": "foo"}, r"config\.act_fn='foo': choose one of 'relu'"),
        (CONFIG.to_dict() | {"d_model": 10**9, "n_layers": 100}, r"A model of n_layers=100.* would take .* GB"),
        (CONFIG.to_dict() | {"n_ctx": 10**7}, r"would take .* GB"),
        ({"d_model": 16, "d_head": 8}, "config has no d_vocab, n_layers, n_ctx: give it"),
        ("mess3", "config='mess3': give a ModelConfig"),
    ],
)
def test_a_config_that_can_be_no_model_is_refused(config, message):
    with pytest.raises((ValueError, TypeError), match=message):
        msp.build_model(config)


@pytest.mark.parametrize(("name", "value"), [("act_fn", "foo"), ("d_vocab", "3"), ("n_ctx", 2.5), ("attn_only", 1)])
def test_a_model_config_is_checked(name, value):
    with pytest.raises((ValueError, TypeError), match=f"^{name}={value!r}: "):
        msp.ModelConfig(**{"d_vocab": 3} | {name: value})
    assert msp.ModelConfig(d_vocab=torch.tensor(3), n_ctx=8.0) == msp.ModelConfig(d_vocab=3, n_ctx=8)


VARIANTS = [
    {},
    {"attn_only": True},
    {"n_key_value_heads": 1},
    {"normalization_type": None},
    {"normalization_type": "RMS", "attn_scale": 3.0},
    {"d_vocab_out": 2, "attention_dir": "bidirectional"},
]


@pytest.mark.parametrize("more", VARIANTS, ids=str)
def test_a_bridge_takes_the_weights_of_a_hooked_transformer(more):
    if not has_hooked_transformer():
        pytest.skip("TransformerLens 4 has no HookedTransformer")
    hooked = msp.build_model(CONFIG.to_dict() | more, seed=3)
    with torch.no_grad():
        for weight in hooked.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    bridge = msp.build_model(CONFIG.to_dict() | more, bridge=True)
    msp.models.load_weights(bridge, hooked.state_dict())
    torch.testing.assert_close(bridge(TOKENS), hooked(TOKENS), rtol=1e-5, atol=1e-5)


def test_weights_are_converted_as_transformer_lens_does():
    conversion = pytest.importorskip("transformer_lens.utilities.tl_checkpoint_conversion")
    generator = torch.Generator().manual_seed(0)
    config = msp.build_model(CONFIG, bridge=True).cfg
    shapes = {"W_Q": (2, 16, 8), "_W_K": (2, 16, 8), "W_V": (2, 16, 8), "W_O": (2, 8, 16), "b_Q": (2, 8), "b_O": (16,)}
    state = {f"blocks.0.attn.{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    state |= {"embed.W_E": torch.randn(3, 16), "unembed.W_U": torch.randn(16, 3), "unembed.b_U": torch.randn(3)}
    state |= {"blocks.0.mlp.W_in": torch.randn(16, 32), "blocks.0.ln1.w": torch.ones(16), "ln_final.b": torch.ones(16)}
    ours, theirs = converted_weights(state, config), conversion.convert_tl_checkpoint(state, config)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_weights_of_other_heads_or_of_more_than_a_bridge_has_are_refused():
    bridge = msp.build_model(CONFIG, bridge=True)
    state = {"embed.W_E": torch.zeros(3, 16), "blocks.0.attn.W_Q": torch.zeros(4, 16, 4)}
    with pytest.raises(ValueError, match=r"W_Q has shape \(4, 16, 4\), and the model 2 heads of 8"):
        msp.models.load_weights(bridge, state)
    with pytest.raises(ValueError, match=r"nothing like the weights 'blocks\.0\.attn\.rel_pos_bias'"):
        msp.models.load_weights(
            bridge, {"embed.W_E": torch.zeros(3, 16), "blocks.0.attn.rel_pos_bias": torch.zeros(4, 4)}
        )


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1j])
def test_weights_that_are_no_numbers_are_refused(wrong):
    model = msp.build_model(CONFIG)
    state = weights(model)
    name = next(iter(state))
    with pytest.raises(ValueError, match=rf"{name}' hold (complex numbers|NaN or infinity)"):
        msp.models.load_weights(model, state | {name: state[name] + wrong})


def test_a_state_may_hold_arrays_and_no_other_things():
    model, other = msp.build_model(CONFIG, seed=1), msp.build_model(CONFIG, seed=2)
    msp.models.load_weights(model, {name: tensor.numpy() for name, tensor in weights(other).items()})
    assert torch.equal(model(TOKENS), other(TOKENS))
    with pytest.raises(TypeError, match=r"state\['optimizer'\] is a dict: give tensors by name"):
        msp.models.load_weights(model, {"optimizer": {"lr": 1}})
