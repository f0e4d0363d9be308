import contextlib

import pytest
import torch

import msp_lens as msp
from msp_lens.models import editing, evaluating, find_sites, site_label
from msp_lens.models.hooked import check_fits

TOKENS = torch.tensor([[0, 1, 2, 0, 1], [2, 2, 1, 0, 0]])


def hook_counts(model):
    return {name: len(point._forward_hooks) for name, point in model.hook_dict.items()}


def test_residual_sites_are_those_of_the_forward_pass(small_model):
    sites = msp.models.residual_sites(small_model)
    assert sites[:3] == ("blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
    assert [site_label(site) for site in sites] == ["0_pre", "0_post", "1_post", "ln_final"]


def test_final_layernorm_site_is_what_the_unembedding_reads(small_model):
    final = msp.models.residual_sites(small_model)[-1]
    with torch.no_grad():
        untouched = small_model(TOKENS)
        with editing(small_model, {final: torch.zeros_like}):
            logits = small_model(TOKENS)
    assert not torch.allclose(untouched, logits)
    torch.testing.assert_close(logits, small_model.b_U.detach().expand_as(logits))


def test_a_model_without_final_layernorm_has_no_such_site():
    config = msp.ModelConfig(d_vocab=3, n_layers=1, d_model=8, d_head=8, d_mlp=8, normalization_type=None)
    assert [site_label(site) for site in msp.models.residual_sites(msp.build_model(config))] == ["0_pre", "0_post"]


def test_sites_by_name_and_label(small_model):
    names = ("blocks.1.hook_resid_post", "blocks.0.hook_resid_pre")
    assert find_sites(small_model, ["1_post", "0_pre"]) == names
    assert find_sites(small_model, names) == names
    assert find_sites(small_model, "final_post") == names[:1]
    assert find_sites(small_model, "blocks.1.hook_mlp_out") == ("blocks.1.hook_mlp_out",)


def test_sites_that_the_model_lacks_are_refused(small_model):
    with pytest.raises(KeyError, match=r"no site '7_post'.*0_post"):
        find_sites(small_model, "7_post")
    with pytest.raises(KeyError, match=r"blocks\.2\.hook_resid_post"):
        find_sites(small_model, ["blocks.2.hook_resid_post"])
    with pytest.raises(ValueError, match="none twice"):
        find_sites(small_model, ["1_post", "blocks.1.hook_resid_post"])
    with pytest.raises(ValueError, match="at least one site"):
        find_sites(small_model, [])


def test_models_that_do_not_fit_the_process_are_refused(small_model, mess3):
    check_fits(small_model, mess3, 5)
    with pytest.raises(ValueError, match=r"n_ctx=6 is longer than the model's context of 5"):
        check_fits(small_model, mess3, 6)
    narrow = msp.build_model(msp.ModelConfig(d_vocab=2, n_layers=1))
    with pytest.raises(ValueError, match=r"has 2 tokens, mess3 emits 3.*d_vocab=3"):
        check_fits(narrow, mess3, 5)


def test_editing_changes_the_run_and_removes_its_hooks(small_model):
    before, untouched = hook_counts(small_model), small_model(TOKENS)
    with editing(small_model, {"blocks.0.hook_resid_post": lambda activation: activation.flip(-1)}):
        edited = small_model(TOKENS)
    assert not torch.allclose(edited, untouched)
    torch.testing.assert_close(small_model(TOKENS), untouched, rtol=0, atol=0)
    assert hook_counts(small_model) == before


def test_hooks_are_removed_when_an_exception_flies(small_model):
    before = hook_counts(small_model)

    def broken(activation):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"), editing(small_model, {"blocks.0.hook_resid_post": broken}):
        small_model(TOKENS)
    assert hook_counts(small_model) == before


def test_hooks_of_the_user_stay(small_model):
    seen = []
    with small_model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", lambda activation, hook: seen.append(1))]):
        with editing(small_model, {"blocks.0.hook_resid_post": lambda activation: activation}):
            small_model(TOKENS)
        small_model(TOKENS)
    assert len(seen) == 2


def test_an_edit_of_the_wrong_shape_is_refused(small_model):
    with (
        pytest.raises(ValueError, match=r"blocks\.0\.hook_resid_post returned \(2, 16\).*\(2, 5, 16\)"),
        editing(small_model, {"blocks.0.hook_resid_post": lambda activation: activation[:, 0]}),
    ):
        small_model(TOKENS)


def test_editing_an_unknown_site_is_refused(small_model):
    with (
        pytest.raises(KeyError, match=r"no site .blocks\.9"),
        editing(small_model, {"blocks.9.hook_resid_post": torch.zeros_like}),
    ):
        pass


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_restores_the_mode_of_every_module(small_model, training):
    small_model.train(training)
    last = list(small_model.modules())[-1]
    last.training = not training
    modes = [module.training for module in small_model.modules()]
    with evaluating(small_model):
        assert not any(module.training for module in small_model.modules())
        assert not torch.is_grad_enabled()
    with contextlib.suppress(RuntimeError), evaluating(small_model):
        raise RuntimeError
    assert [module.training for module in small_model.modules()] == modes
    assert torch.is_grad_enabled()
