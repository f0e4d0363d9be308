"""The float32 path, forced on the CPU: its products must be exact."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from msp_lens.moments import Moments, least_squares, score
from msp_lens.moments.exact_products import ROWS_PER_SCATTER, _exact_gram, _slices, accumulation_for


def rows_of(n, width, seed, *, offset=0.0, scale=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, width, generator=generator, dtype=torch.float64) * scale + offset
    return rows.to(dtype), torch.rand(n, generator=generator, dtype=torch.float64)


def relative_error(found, expected):
    deviation = expected.diagonal().sqrt()
    return float(((found - expected).abs() / torch.outer(deviation, deviation)).max())


@given(st.integers(0, 10_000), st.sampled_from([torch.float32, torch.float64]))
def test_slices_are_small_whole_numbers_that_add_up(seed, dtype):
    rows = (torch.rand(9, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1).clamp(-1, 1)
    slices = _slices(rows)
    assert all(bool((part == part.round()).all() and part.abs().max() <= 128) for part in slices)
    restored = sum(part.double() * 2.0 ** (-7 - 8 * k) for k, part in enumerate(slices))
    assert float((restored - rows.double()).abs().max()) <= 2.0**-32


@pytest.mark.parametrize("n", [1, 1_023, 1_024, 1_025, 5_000])
def test_the_gram_of_rows_that_need_no_rounding_is_exact(n):
    """Whole numbers of 32 bits: any rounding in a product would show, for the expected sum is in whole numbers too."""
    generator = torch.Generator().manual_seed(n)
    whole = torch.randint(-(2**31) + 1, 2**31, (n, 3), generator=generator)
    whole[0] = 2**31 - 1
    gram = _exact_gram(whole.double())
    exact = [[sum(a * b for a, b in zip(x, y, strict=True)) for y in whole.T.tolist()] for x in whole.T.tolist()]
    for found, expected in zip(gram.flatten().tolist(), [e for row in exact for e in row], strict=True):
        assert found == pytest.approx(expected, rel=2e-15, abs=2.0**54)


@given(st.integers(1, 300), st.integers(0, 10_000), st.sampled_from([0.0, 1e3, 1e6]), st.sampled_from([1e-6, 1.0, 1e6]))
def test_split_is_float64_to_nine_digits(n, seed, offset, scale):
    rows, weights = rows_of(n + 1, 4, seed, offset=offset * scale, scale=scale)
    expected = Moments({"h": 4}).update(rows, weights, accumulation="float64")
    found = Moments({"h": 4}).update(rows, weights, accumulation="split")
    assert (found.n, found.weight) == (expected.n, pytest.approx(expected.weight, rel=1e-12))
    assert relative_error(found.scatter, expected.scatter) < 1e-9
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-13, atol=1e-13 * scale)


def test_where_nothing_is_float64_the_result_is_that_of_float32_rows(monkeypatch):
    """As on Apple's devices: centring too is done in float32."""
    monkeypatch.setattr("msp_lens.moments.moments.has_float64", lambda device: False)
    rows, weights = rows_of(3_000, 5, 0, offset=1e3)
    found = Moments({"h": 5}).update(rows, weights, accumulation="split")
    monkeypatch.undo()
    expected = Moments({"h": 5}).update(rows, weights)
    assert relative_error(found.scatter, expected.scatter) < 1e-7
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-9, atol=0)


def test_more_rows_than_one_span_holds():
    rows, weights = rows_of(ROWS_PER_SCATTER + 100, 3, 1, offset=10.0)
    expected = Moments({"h": 3}).update(rows, weights)
    found = Moments({"h": 3}).update(rows, weights, accumulation="split")
    assert found.n == expected.n == len(rows)
    assert relative_error(found.scatter, expected.scatter) < 1e-9


def test_small_directions_survive():
    """What a float32 Gram loses: the target lies in a direction 1e-4 of the largest, across all features."""
    generator = torch.Generator().manual_seed(3)
    latent = torch.randn(4_000, 4, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q
    features = (latent * torch.tensor([1.0, 1.0, 1.0, 1e-4])) @ rotation
    # The last feature is a sum of others: a direction that must stay cut off.
    rows = torch.cat([features, features[:, :2].sum(dim=1, keepdim=True), latent[:, 3:]], dim=1).float()
    blocks, weights = {"h": 5, "b": 1}, torch.ones(4_000)
    exact = Moments(blocks).update(rows, weights)
    split = Moments(blocks).update(rows, weights, accumulation="split")
    fits = {name: least_squares(moments, "h", "b") for name, moments in (("exact", exact), ("split", split))}
    assert fits["split"].rank == fits["exact"].rank == 4
    r2 = {name: score(fit, exact, "h", "b").r2 for name, fit in fits.items()}
    assert r2["split"] == pytest.approx(r2["exact"], abs=1e-9)
    assert r2["split"] > 0.9999

    centered = rows - rows.mean(dim=0)
    naive = Moments.of(
        blocks, n=4_000, weight=4_000.0, mean=exact.mean, scatter=(centered.T @ centered).double(), rounding=0.0
    )
    assert score(least_squares(naive, "h", "b"), exact, "h", "b").r2 < 0.99


def test_a_column_of_zeros_or_constants_has_no_scatter():
    rows = torch.cat([torch.zeros(50, 1), torch.full((50, 1), 1e6), torch.eye(50)[:, :1]], dim=1)
    moments = Moments({"h": 3}).update(rows, torch.ones(50), accumulation="split")
    assert moments.scatter[:2].abs().max() < 1e-12
    assert moments.mean.tolist() == pytest.approx([0.0, 1e6, 0.02])


def test_the_cpu_uses_float64():
    assert accumulation_for(torch.device("cpu")) == "float64"
    assert accumulation_for(torch.device("mps")) == "split"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("accumulation", ["float64", "split"])
def test_on_a_gpu_as_on_the_cpu(accumulation):
    rows, weights = rows_of(3_000, 64, 0, offset=1e3)
    expected = Moments({"h": 64}).update(rows, weights)
    found = Moments({"h": 64}, device="cuda").update(rows.cuda(), weights, accumulation=accumulation).cpu()
    assert relative_error(found.scatter, expected.scatter) < 1e-9
