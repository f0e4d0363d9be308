"""The predictive dimensions of sites: of an observer that holds its belief, and of networks."""

import pytest
import torch
from torch import nn
from transformer_lens.hook_points import HookPoint

import msp_lens as msp
from msp_lens.inference import site_ranks
from tests.hooked_models import Observer, build

THREE = msp.TokenMap.identity(3)


class Forgetful(Observer):
    """Holds its belief at one site, only one coordinate of it at another, and noise at a third."""

    def __init__(self, process):
        super().__init__(process)
        self.hook_part, self.hook_noise = HookPoint(), HookPoint()
        self.mixing = nn.Parameter(torch.randn(process.n_states, 12, generator=torch.Generator().manual_seed(0)))
        self.setup()

    def forward(self, tokens):
        logits = super().forward(tokens)
        held = msp.filter_beliefs(self.process, tokens)
        self.hook_part(held[..., :1])
        self.hook_noise(torch.randn(held.shape, generator=torch.Generator().manual_seed(1)))
        return logits


def test_as_many_directions_count_as_the_world_has_dimensions():
    process = msp.processes.random_process(3, 3, seed=5)
    found = site_ranks(
        Forgetful(process), ["hook_beliefs", "hook_part", "hook_noise"], token_map=THREE, n_ctx=7, seed=1
    )
    whole, part, noise = found.sites
    assert (whole.dimensions, part.dimensions, noise.dimensions) == (3, 2, 1)
    assert whole.r2 > 0.9999
    assert part.r2 < 0.99
    assert abs(noise.r2) < 0.05
    # The first of two directions does not do.
    assert whole.r2_by_rank[1] < 0.99
    assert found.n_contexts == 3 + 9 + 27 + 81 + 243


def test_the_belief_is_found_in_several_sites_together():
    process = msp.processes.random_process(3, 3, seed=5)
    found = site_ranks(Forgetful(process), {"both": ["hook_part", "hook_noise"]}, token_map=THREE, n_ctx=6)
    assert [each.site for each in found.sites] == ["both"]
    assert found.sites[0].dimensions == 2


def test_a_network_is_read_where_its_symbols_end():
    model = build("bridge")
    plain = site_ranks(model, token_map=msp.TokenMap((1, 2)), n_ctx=5, n_folds=4)
    assert [each.site for each in plain.sites] == ["0_pre", "0_post", "1_post", "ln_final"]
    begun = site_ranks(model, token_map=msp.TokenMap((1, 2), bos=0), n_ctx=5, n_folds=4)
    assert plain != begun
    assert plain == site_ranks(model, token_map=msp.TokenMap((1, 2)), n_ctx=5, n_folds=4)


def test_it_is_a_table():
    found = site_ranks(Observer(msp.processes.random_process(2, 3, seed=1)), "hook_beliefs", token_map=THREE, n_ctx=5)
    assert found.to_dataframe().loc["hook_beliefs", "dimensions"] == 2
    assert "hook_beliefs" in repr(found)
    assert "<table>" in found._repr_html_()


@pytest.mark.slow
def test_the_published_mess3_has_three_dimensions_from_its_first_layer_on(published_model):
    found = {each.site: each for each in site_ranks(published_model).sites}
    assert {site: each.dimensions for site, each in found.items() if site != "0_pre"} == dict.fromkeys(
        ("0_post", "1_post", "2_post", "3_post", "ln_final"), 3
    )
    assert found["ln_final"].r2 > 0.995 > 0.9 > found["0_pre"].r2


def test_bad_input():
    model = build("bridge")
    with pytest.raises(KeyError, match="no such site"):
        site_ranks(model, "no such site")
    with pytest.raises(ValueError, match=r"there are only \d+ contexts\. Give fewer folds"):
        site_ranks(model, n_ctx=2, n_folds=50)
    with pytest.raises(ValueError, match="a context and a future need two tokens"):
        site_ranks(model, n_ctx=1)
