"""Vary one factor at a time: networks that hold beliefs in known ways show them, and untrained ones do not."""

import pytest
import torch

import msp_lens as msp
from msp_lens.representation import factor_geometry
from msp_lens.representation.factor_geometry import explained, n_components, overlap, within_groups
from tests.representation.factor_networks import FactorNetwork


@pytest.fixture(scope="module")
def world():
    return msp.processes.product([msp.mess3(x=0.15, a=0.6)] * 2)


def measured(world, kind, n_ctx=5):
    return factor_geometry(
        FactorNetwork(world, kind),
        world,
        n_ctx=n_ctx,
        n_frozen=8,
        n_streams=64,
        n_words=300,
        untrained=0,
        sites="hook_beliefs",
    )


def test_a_factored_network_needs_the_sum_of_its_factors_dimensions(world):
    found = measured(world, "factored")
    (site,) = found.sites
    assert site.dimensions == found.beliefs == {"mess3_0": 2, "mess3_1": 2}
    assert (site.union, site.total) == (4, 4) == (site.union, found.factored.dimensions)
    assert site.overlap < 1e-20
    assert min(site.held.values()) > 1 - 1e-12
    assert site.chance == pytest.approx(2 / 24)


def test_a_joint_network_needs_the_joint_beliefs_dimensions(world):
    found = measured(world, "joint")
    (site,) = found.sites
    assert site.total == found.joint.dimensions > found.factored.dimensions
    assert max(site.held.values()) < 0.97


def test_factors_in_one_subspace_overlap_entirely(world):
    (site,) = measured(world, "shared").sites
    assert site.overlap == pytest.approx(1)
    assert (site.union, *site.dimensions.values()) == (2, 2, 2)


def test_a_bos_token_changes_nothing_that_is_measured(world):
    """The words after it are the same, and at its own position nothing varies."""
    without, with_bos = measured(world, "factored"), measured(msp.processes.with_bos(world), "factored", n_ctx=6)
    (one,), (other,) = without.sites, with_bos.sites
    assert (one.dimensions, one.union, one.total) == (other.dimensions, other.union, other.total)
    assert with_bos.beliefs == without.beliefs
    assert other.overlap < 1e-20
    torch.testing.assert_close(one.explained, other.explained, rtol=0, atol=1e-12)
    assert with_bos.factored.dimensions == without.factored.dimensions
    with pytest.raises(TypeError, match="has no factors"):
        factor_geometry(FactorNetwork(world, "factored"), msp.processes.with_bos(world.factors[0]), n_ctx=5)


def test_predictions_are_those_of_the_beliefs_themselves(world):
    found = measured(world, "factored")
    beliefs = msp.filter_beliefs(world, world.sample(300, 5, seed=0))
    centered = (beliefs - beliefs.mean(dim=0)).flatten(0, 1).numpy()
    from sklearn.decomposition import PCA

    shares = PCA().fit(centered).explained_variance_ratio_.cumsum()
    torch.testing.assert_close(found.joint.explained, torch.from_numpy(shares), rtol=0, atol=1e-3)
    assert found.joint.dimensions == int((shares < 0.95).sum()) + 1


def test_an_untrained_network_mixes_factors(world):
    model = msp.build_model(msp.ModelConfig(d_vocab=9, n_layers=1, d_model=32, d_mlp=64, n_ctx=5), seed=0)
    found = factor_geometry(model, world, n_frozen=8, n_streams=32, n_words=200)
    assert {each.model for each in found.sites} == {"network", "untrained 1"}
    for each in found.sites:
        if each.site != "0_pre":
            assert each.overlap > 3 * each.chance
            assert min(each.dimensions.values()) > 4
    table = found.to_dataframe()
    assert len(table) == len(found.sites)
    assert found.overlaps("ln_final").loc["mess3_0", "mess3_1"] == found.select("ln_final").overlap
    assert "untrained 1" in repr(found)
    with pytest.raises(KeyError, match="No site 'no such' of 'network'"):
        found.select("no such")


def test_covariances_within_groups_are_those_of_all_activations_at_once(world):
    """Against NumPy, in batches that do not divide the groups."""
    model = FactorNetwork(world, "factored")
    words = world.sample(30, 4, seed=1)
    activations = model.run_with_cache(words)[1]["hook_beliefs"].detach()
    groups = activations.reshape(3, 10, 4, -1)
    centered = (groups - groups.mean(dim=1, keepdim=True)).reshape(-1, 24)
    found = within_groups(model, words, ["hook_beliefs"], 10, 3)["hook_beliefs"]
    torch.testing.assert_close(found, centered.T @ centered / 120, rtol=0, atol=1e-14)


def test_components_and_overlaps():
    variances = torch.diag(torch.tensor([6.0, 3.5, 0.5], dtype=torch.float64))
    assert [n_components(variances, share) for share in (0.5, 0.6, 0.61, 0.95, 1.0)] == [1, 1, 2, 2, 3]
    assert n_components(torch.zeros(3, 3, dtype=torch.float64)) == len(explained(torch.zeros(3, 3).double())) == 0
    axes = torch.eye(4, dtype=torch.float64)
    assert overlap(axes[:, :2], axes[:, 2:]) == 0
    assert overlap(axes[:, :2], axes[:, 1:3]) == 0.5
    assert overlap(axes[:, :1], axes[:, :3]) == 1
