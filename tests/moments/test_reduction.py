import pytest
import torch

from msp_lens.moments import Moments, least_squares, score
from msp_lens.moments.reduction import PrincipalComponents, RandomProjection

D = 60


def site(decay, seed=0, n=4_000):
    """Activations whose variance falls off as `decay` says, and targets of unit variance that lie along them evenly."""
    generator = torch.Generator().manual_seed(seed)
    deviations = torch.arange(1, D + 1, dtype=torch.float64) ** -decay
    rotation = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64)).Q
    h = torch.randn(n, D, generator=generator, dtype=torch.float64) * deviations @ rotation
    mixing = rotation.T @ torch.randn(D, 2, generator=generator, dtype=torch.float64)
    b = h @ mixing
    b = b / b.std(dim=0) + 0.3 * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return h, b


def r2(h, b):
    moments = Moments({"h": h.shape[1], "b": b.shape[1]}).update(torch.cat([h, b], dim=1), torch.ones(len(h)))
    return score(least_squares(moments, "h", "b"), moments, "h", "b").r2, moments


@pytest.mark.parametrize("decay", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("width", [5, 20, 50])
def test_random_projections_reach_the_stated_r2(decay, width):
    h, b = site(decay)
    whole, moments = r2(h, b)
    stated = RandomProjection(width, seed=0).expected_r2(moments, "h", "b")
    reached = [r2(RandomProjection(width, seed=seed).transform("h", h), b)[0] for seed in range(12)]
    mean = sum(reached) / len(reached)
    assert mean < whole
    assert stated == pytest.approx(mean, abs=0.03)
    if decay == 0:
        assert stated == pytest.approx(whole * width / D, abs=0.01)


def test_a_projection_as_wide_as_the_site_loses_nothing():
    h, b = site(1.0, n=500)
    whole, moments = r2(h, b)
    for width in (D, 2 * D):
        projection = RandomProjection(width, seed=0)
        assert torch.equal(projection.transform("h", h), h)
        assert projection.expected_r2(moments, "h", "b") == pytest.approx(whole, abs=1e-9)


def test_directions_are_orthonormal_and_of_the_site_and_the_seed(global_state):
    first = RandomProjection(7, seed=0)
    matrix = first.matrix("2_post", 20)
    torch.testing.assert_close(matrix.T @ matrix, torch.eye(7, dtype=torch.float64))
    assert torch.equal(matrix, RandomProjection(7, seed=0).matrix("2_post", 20))
    assert not torch.allclose(matrix, RandomProjection(7, seed=1).matrix("2_post", 20))
    assert not torch.allclose(matrix, first.matrix("3_post", 20))
    rows = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    assert first.transform("2_post", rows).dtype == torch.float32
    torch.testing.assert_close(first.transform("2_post", rows).double(), rows.double() @ matrix, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="width=0"):
        RandomProjection(0, seed=0)


def test_principal_components_keep_the_most_variance():
    h, b = site(1.0)
    _, moments = r2(h, b)
    components = PrincipalComponents.from_moments({"h": moments}, 5)
    reduced = components.transform("h", h)
    centered = h - h.mean(dim=0)
    singular = torch.linalg.svdvals(centered)
    assert components.kept_variance["h"] == pytest.approx(float((singular[:5] ** 2).sum() / (singular**2).sum()))
    torch.testing.assert_close(reduced.var(dim=0, correction=0), singular[:5] ** 2 / len(h))
    assert "h 60 → 5 (" in repr(components)

    all_of_them = PrincipalComponents.from_moments({"h": moments}, 100)
    assert r2(all_of_them.transform("h", h), b)[0] == pytest.approx(r2(h, b)[0], abs=1e-9)
    with pytest.raises(KeyError, match="No principal components of 'other'; there are some of h"):
        components.transform("other", h)
    with pytest.raises(ValueError, match="'h' has 3 features; its components are of 60"):
        components.transform("h", h[:, :3])
    with pytest.raises(ValueError, match="width=0"):
        PrincipalComponents.from_moments({"h": moments}, 0)


@pytest.mark.parametrize("kind", ["random", "components"])
def test_a_probe_of_reduced_features_is_one_of_all(kind):
    """Folded back by the reduction's matrix, it reads the same from the activation itself."""
    h, b = site(1.0, n=300)
    _, moments = r2(h, b)
    reduction = RandomProjection(8, seed=0) if kind == "random" else PrincipalComponents.from_moments({"h": moments}, 8)
    _, reduced = r2(reduction.transform("h", h), b)
    fitted = least_squares(reduced, "h", "b")
    folded = reduction.matrix("h", D) @ fitted.weights
    torch.testing.assert_close(h @ folded, reduction.transform("h", h) @ fitted.weights)
