"""A nonlinear read-out gains nothing on a straight representation and much on a curved one."""

import pytest
import torch
from torch import nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

import msp_lens as msp
from msp_lens.representation import curved_beliefs
from msp_lens.representation.curvature import _activations, curvature
from tests.hooked_models import activation_at


class Representation(HookedRootModule):
    """Holds a function of the belief, mixed at random into 12 dimensions, and perhaps a little of nothing's noise."""

    def __init__(self, process, shape, noise=0.0):
        super().__init__()
        self.process, self.shape = process, shape
        generator = torch.Generator().manual_seed(0)
        width = shape(torch.zeros(1, process.n_states, dtype=torch.float64)).shape[1]
        self.mixing = nn.Parameter(torch.randn(width, 12, dtype=torch.float64, generator=generator))
        self.noise = nn.Parameter(noise * torch.randn(100, 12, dtype=torch.float64, generator=generator))
        self.hook_state = HookPoint()
        self.setup()

    def forward(self, tokens):
        beliefs = msp.filter_beliefs(self.process, tokens)
        place = torch.arange(1, tokens.shape[1] + 1)
        # A number that all earlier tokens decide, and nothing reads.
        scrambled = ((tokens + 1) * place**3).cumsum(dim=1) % 100
        state = self.shape(beliefs.flatten(0, 1)).unflatten(0, tokens.shape) @ self.mixing
        held = self.hook_state(state + self.noise[scrambled])
        return held[..., : self.process.n_tokens]


def straight(beliefs):
    return beliefs


def curved(beliefs):
    """The belief along curves, on which no direction is the belief: angles that wind up to one and a half times."""
    angles = 3 * torch.pi * beliefs
    return torch.cat([angles.sin(), angles.cos()], dim=1)


@pytest.fixture(scope="module")
def found():
    process = msp.mess3(x=0.05, a=0.85)
    words, twins = msp.words(process, n_ctx=7), [Representation(process, straight)]
    return curved_beliefs(Representation(process, curved, 0.05), words, "hook_state", untrained=twins)


@pytest.fixture(scope="module")
def straight_rows():
    """Targets that are linear in Gaussian activations, up to noise: no read-out beats a linear one."""
    generator = torch.Generator().manual_seed(0)
    activations, noise = (torch.randn(2_000, k, dtype=torch.float64, generator=generator) for k in (8, 3))
    targets = activations[:, :3] @ torch.randn(3, 3, dtype=torch.float64, generator=generator) + 0.3 * noise
    weights = torch.rand(2_000, dtype=torch.float64, generator=generator)
    return curvature("site", activations, targets, weights, torch.arange(2_000) % 20, 5, 100, 0)


def test_a_straight_representation_gains_nothing(straight_rows):
    assert 0.9 < straight_rows.linear.r2 < 0.99
    assert abs(straight_rows.share) < 0.05
    assert straight_rows.share_interval[0] < 0.02
    assert abs(straight_rows.gain) < 0.003


def test_a_curved_representation_gains_much(found):
    (site,) = found.sites
    assert site.share > 0.5
    assert site.share_interval[0] > 0.4
    assert site.gain_interval[0] > 0
    assert min(site.gain_by_fold) > 0
    assert site.curved.r2 - site.linear.r2 == site.gain == pytest.approx(site.share * (1 - site.linear.r2))
    assert site.curved.n == site.linear.n


def test_the_linear_read_out_is_that_of_the_probe(found):
    process = msp.mess3(x=0.05, a=0.85)
    report = msp.probe(
        Representation(process, curved, 0.05), msp.words(process, n_ctx=7), sites="hook_state", progress=False
    )
    assert found["hook_state"].linear.r2 == pytest.approx(report["hook_state"].scores.held_out.r2, abs=0.03)


def test_table_summary_and_picture(found):
    assert list(found.to_dataframe().index) == ["hook_state"]
    assert "share, untrained 1" in found.to_dataframe()
    assert "of what a linear one leaves" in "\n".join(found.summary())
    assert "nonlinear" in repr(found)
    assert len(found.plot(theme="dark").axes) == 1
    with pytest.raises(KeyError, match="there are hook_state"):
        found["nowhere"]


def test_rows_of_a_transformer_with_a_start_token_are_its_own_activations():
    process = msp.mess3()
    dataset = msp.words(process, n_ctx=5, token_map=msp.TokenMap.identity(3, bos=3, include_prior=True))
    model = msp.build_model(msp.ModelConfig(d_vocab=4, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=6))
    ids = torch.tensor([0, 5, dataset.n_prefixes - 1])
    (rows,) = _activations(model, dataset, ["blocks.0.hook_resid_post"], ids, None).values()
    held = activation_at(model, dataset.encoded()[0], "blocks.0.hook_resid_post")[:, 1:].double()
    for row, number in zip(rows, ids, strict=True):
        torch.testing.assert_close(row, held[(dataset.prefix_ids == number) & dataset.is_first][0])
    found = curved_beliefs(model, dataset, ["0_pre", "0_post"], untrained=1, n_features=20)
    assert [each.site for each in found.sites] == ["0_pre", "0_post"]
    assert found["0_pre"].untrained.keys() == {"untrained 1"}


def test_too_few_rows_are_refused():
    model = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=2))
    with pytest.raises(ValueError, match="distinct prefixes came"):
        curved_beliefs(model, msp.mess3())
