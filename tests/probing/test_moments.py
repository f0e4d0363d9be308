import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from msp_lens.probing import Moments, merge_all

BLOCKS = {"h": 3, "b": 2}


def rows_and_weights(n, seed, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, 5, generator=generator, dtype=torch.float64) + offset
    return rows, torch.rand(n, generator=generator, dtype=torch.float64)


@given(st.integers(2, 60), st.integers(0, 1000), st.lists(st.integers(0, 60), max_size=4))
def test_streamed_is_batch_and_numpy(n, seed, cuts):
    rows, weights = rows_and_weights(n, seed)
    streamed = Moments(BLOCKS)
    edges = sorted({0, n, *(cut for cut in cuts if cut < n)})
    for start, stop in itertools.pairwise(edges):
        streamed.update(rows[start:stop], weights[start:stop])
    whole = Moments(BLOCKS).update(rows, weights)
    torch.testing.assert_close(streamed.mean, whole.mean)
    torch.testing.assert_close(streamed.scatter, whole.scatter)
    assert (streamed.n, streamed.weight) == (n, pytest.approx(whole.weight))
    expected = np.cov(rows.T, aweights=weights, ddof=0)
    np.testing.assert_allclose(whole.covariance(("h", "b"), ("h", "b")), expected, atol=1e-12)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=5), st.integers(0, 1000))
def test_merged_is_whole(sizes, seed):
    rows, weights = rows_and_weights(sum(sizes) + 2, seed)
    parts, start = [], 0
    for size in [*sizes, 2]:
        part = Moments(BLOCKS)
        parts.append(part.update(rows[start : start + size], weights[start : start + size]) if size else part)
        start += size
    merged, whole = merge_all(parts), Moments(BLOCKS).update(rows, weights)
    torch.testing.assert_close(merged.mean, whole.mean)
    torch.testing.assert_close(merged.scatter, whole.scatter)
    assert merged.n == whole.n


def test_merging_leaves_its_parts_alone():
    rows, weights = rows_and_weights(10, 0)
    first, second = Moments(BLOCKS).update(rows[:5], weights[:5]), Moments(BLOCKS).update(rows[5:], weights[5:])
    before = first.scatter.clone()
    first.merge(second)
    assert torch.equal(first.scatter, before)
    assert first.n == 5


def test_a_large_offset_costs_no_precision():
    rows, weights = rows_and_weights(400, 1)
    centred, shifted = Moments(BLOCKS), Moments(BLOCKS)
    for part, weight in zip((rows).split(50), weights.split(50), strict=True):
        centred.update(part, weight)
        shifted.update(part + 1e6, weight)
    torch.testing.assert_close(shifted.scatter, centred.scatter, rtol=1e-8, atol=1e-8)


def test_integer_weights_are_repetitions():
    rows, _ = rows_and_weights(6, 2)
    counts = torch.tensor([1, 3, 2, 0, 1, 5])
    weighted = Moments(BLOCKS).update(rows, counts.double())
    repeated = Moments(BLOCKS).update(rows.repeat_interleave(counts, dim=0), torch.ones(12))
    torch.testing.assert_close(weighted.mean, repeated.mean)
    torch.testing.assert_close(weighted.scatter, repeated.scatter)


def test_blocks_are_found_in_any_order():
    rows, weights = rows_and_weights(9, 3)
    moments = Moments(BLOCKS).update(rows, weights)
    assert moments.columns("b").tolist() == [3, 4]
    assert moments.columns(("b", "h")).tolist() == [3, 4, 0, 1, 2]
    torch.testing.assert_close(moments.block_mean("b"), moments.mean[3:])


def test_bad_rows_are_refused():
    rows, weights = rows_and_weights(4, 4)
    with pytest.raises(ValueError, match="finite"):
        Moments(BLOCKS).update(rows / 0, weights)
    with pytest.raises(ValueError, match="≥ 0"):
        Moments(BLOCKS).update(rows, -weights)
    with pytest.raises(ValueError, match="differ"):
        Moments(BLOCKS).merge(Moments({"h": 5}))


def test_selected_blocks_are_those_of_a_pass_over_them_alone():
    rows, weights = rows_and_weights(30, 1)
    selected = Moments(BLOCKS).update(rows, weights).select(["b"])
    alone = Moments({"b": 2}).update(rows[:, 3:], weights)
    torch.testing.assert_close(selected.scatter, alone.scatter)
    torch.testing.assert_close(selected.mean, alone.mean)
    assert (selected.n, selected.weight, selected.blocks) == (alone.n, alone.weight, alone.blocks)
    with pytest.raises(KeyError, match="No block 'c'"):
        selected.select(["c"])
