"""Models inside `torch.compile` and other wrappers: they are taken off, and what is edited is edited."""

import pytest
import torch
from torch import nn

import msp_lens as msp
from msp_lens.models import editing, find_sites, model_fingerprint, stream_activations
from msp_lens.models.hooked import check_fits, model_device

TOKENS = torch.tensor([[0, 1, 2, 0, 1], [2, 2, 1, 0, 0]])
SITE = "blocks.0.hook_resid_post"


def compiled(model):
    # This backend runs what was traced as it is; the hooks of a model are left out all the same.
    whole = torch.compile(model, backend="eager")
    whole(TOKENS)
    return whole


def compiled_in_place(model):
    model.compile(backend="eager")
    model(TOKENS)
    return model


def in_parallel(model):
    return nn.DataParallel(model)


WRAPPERS = pytest.mark.parametrize("wrap", [compiled, compiled_in_place, in_parallel])


@WRAPPERS
def test_a_wrapped_model_is_read_and_edited(small_model, mess3, wrap):
    def measured(model):
        (batch,) = stream_activations(model, TOKENS, SITE)
        with editing(model, {SITE: lambda activation: activation * 2}), torch.no_grad():
            return batch.activations[SITE], model(TOKENS)

    plain = measured(small_model)
    wrapped = wrap(small_model)
    for one, other in zip(plain, measured(wrapped), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=0)
    check_fits(wrapped, mess3, 5)
    with pytest.raises(ValueError, match="context of 5"):
        check_fits(wrapped, mess3, 6)
    assert model_device(wrapped) == torch.device("cpu")
    assert find_sites(wrapped, "0_post") == (SITE,)


@WRAPPERS
def test_a_wrapped_model_is_probed_as_the_model_itself(small_model, mess3, wrap):
    words = msp.words(mess3, n_ctx=4)

    def scores(model):
        return (
            msp.probe(model, words, sites="0_post", untrained=1, by_position=False, progress=False)
            .to_dataframe()
            .to_csv()
        )

    plain = scores(small_model)
    assert scores(wrap(small_model)) == plain


@WRAPPERS
def test_a_wrapped_models_checkpoint_is_the_models(small_model, tmp_path, wrap):
    fingerprint = model_fingerprint(small_model)
    wrapped = wrap(small_model)
    assert model_fingerprint(wrapped) == fingerprint
    loaded = msp.load_checkpoint(msp.save_checkpoint(tmp_path, wrapped))
    assert loaded.fingerprint == fingerprint
    msp.models.load_weights(wrapped, {"_orig_mod." + name: each for name, each in small_model.state_dict().items()})


def test_the_users_own_compiler_setting_is_kept(small_model):
    whole = compiled(small_model)
    with editing(small_model, {SITE: torch.zeros_like}):
        edited = whole(TOKENS)
    assert not torch.allclose(edited, whole(TOKENS))
    from torch._dynamo.eval_frame import _stance

    assert _stance.stance == "default"


def test_an_edit_that_is_never_made_is_an_error(small_model):
    copy = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=2, d_model=16, d_head=8, d_mlp=32, n_ctx=5))
    before = [len(point._forward_hooks) for point in small_model.hook_dict.values()]
    with (
        pytest.raises(ValueError, match=r"at blocks\.0\.hook_resid_post was never made.*run this model"),
        editing(small_model, {SITE: torch.zeros_like}),
    ):
        copy(TOKENS)
    assert [len(point._forward_hooks) for point in small_model.hook_dict.values()] == before


def test_what_holds_no_hooked_model_is_refused():
    with pytest.raises(TypeError, match=r"model=.*: give a HookedTransformer"):
        find_sites(nn.DataParallel(nn.Linear(2, 2)), None)
