import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import msp_lens as msp
from msp_lens._files import read_tensors, write_tensors
from msp_lens.moments import Moments, merge_all
from msp_lens.moments.moments import load_all, save_all

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
    centered, shifted = Moments(BLOCKS), Moments(BLOCKS)
    for part, weight in zip((rows).split(50), weights.split(50), strict=True):
        centered.update(part, weight)
        shifted.update(part + 1e6, weight)
    torch.testing.assert_close(shifted.scatter, centered.scatter, rtol=1e-8, atol=1e-8)


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
    with pytest.raises(ValueError, match="infinity at h"):
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


def test_nothing_to_merge_is_refused():
    with pytest.raises(ValueError, match="no moments to merge"):
        merge_all([])


def test_rows_are_left_as_they_were():
    rows, weights = rows_and_weights(5, 0)
    before = rows.clone()
    Moments(BLOCKS).update(rows, weights)
    assert torch.equal(rows, before)


@pytest.mark.parametrize("offset", [1e3, 1e6])
@pytest.mark.parametrize("accumulation", ["float64", "split"])
def test_float32_rows_far_from_zero(offset, accumulation):
    """float32 rows hold whole numbers exactly here, so nothing but the accumulation can lose digits."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randint(-100, 101, (600, 5), generator=generator)
    moments = Moments(BLOCKS)
    for part in (whole + offset).float().split(97):
        moments.update(part, torch.ones(len(part)), accumulation=accumulation)
    expected = np.cov(whole.T, ddof=0)
    np.testing.assert_allclose(moments.covariance(("h", "b"), ("h", "b")), expected, rtol=1e-7, atol=1e-6)
    np.testing.assert_allclose(moments.mean - offset, whole.double().mean(dim=0), rtol=1e-8, atol=1e-8)


def test_what_is_not_finite_names_its_block():
    rows, weights = rows_and_weights(4, 4)
    rows[2, 4] = float("nan")
    moments = Moments(BLOCKS).update(rows[:2], weights[:2])
    for accumulation in ("float64", "split"):
        with pytest.raises(ValueError, match="NaN or infinity at b after 2 rows, row 0 of 2"):
            moments.update(rows[2:], weights[2:], accumulation=accumulation)
    with pytest.raises(ValueError, match="infinity at h"):
        moments.update(torch.full((1, 5), float("inf"))[:, :5] * torch.tensor([1, 1, 1, 0.1, 0.1]), torch.zeros(1))
    assert moments.n == 2


def test_memory_does_not_grow_with_the_rows():
    moments = Moments(BLOCKS)
    sizes = set()
    for seed in range(5):
        moments.update(*rows_and_weights(1000, seed))
        held = [value for value in vars(moments).values() if isinstance(value, torch.Tensor)]
        sizes.add(sum(tensor.untyped_storage().nbytes() for tensor in held))
    assert sizes == {8 * (5 + 5 * 5)}


def test_saved_moments_come_back(tmp_path, small_model):
    rows, weights = rows_and_weights(9, 3)
    moments = Moments(BLOCKS).update(rows, weights)
    path = moments.save(tmp_path / "moments.safetensors", provenance={"weights": "probability"})
    loaded = Moments.load(path)
    assert (loaded.blocks, loaded.n, loaded.weight) == (moments.blocks, moments.n, moments.weight)
    assert torch.equal(loaded.mean, moments.mean)
    assert torch.equal(loaded.scatter, moments.scatter)
    # They go on as if nothing had happened.
    more = rows_and_weights(9, 4)
    assert torch.equal(loaded.update(*more).scatter, moments.update(*more).scatter)

    save_all(tmp_path / "two.safetensors", {"a": moments, "b": loaded}, tensors={"regret": rows[0]})
    parts, provenance, tensors = load_all(tmp_path / "two.safetensors")
    assert (list(parts), provenance) == (["a", "b"], {})
    assert torch.equal(tensors["regret"], rows[0])
    with pytest.raises(ValueError, match="holds 2 moments, not one"):
        Moments.load(tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match="holds no moments of msp_lens"):
        Moments.load(msp.save_checkpoint(tmp_path, small_model))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged"):
        Moments.load(path)
    with pytest.raises(FileNotFoundError, match="no file"):
        Moments.load(tmp_path / "none.safetensors")


def _edited(path, change):
    """The file with its header changed and its checksum made anew, as somebody with a JSON editor might."""
    tensors, header = read_tensors(path)
    content = json.loads(header["msp_lens_moments"])
    change(content, tensors)
    write_tensors(path, tensors, {"msp_lens_moments": json.dumps(content)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, _: header["parts"]["moments"].update(n=-1), r"parts\['moments'\]\.n=-1: give at least 0"),
        (lambda header, _: header["parts"]["moments"].update(n="9"), r"parts\['moments'\]\.n='9': give a whole number"),
        (lambda header, _: header["parts"]["moments"].pop("weight"), "weight='missing': this field is required"),
        (
            lambda header, _: header["parts"]["moments"].update(blocks=[["h", 4], ["b", 2]]),
            r"has shape \(5,\), not \(6\)",
        ),
        (lambda header, _: header.pop("provenance"), "provenance='missing'"),
        (lambda _, tensors: tensors["mean/moments"].fill_(float("nan")), "'mean/moments' holds NaN"),
        (lambda _, tensors: tensors["scatter/moments"].neg_(), "'scatter/moments' holds no second moments"),
        (lambda _, tensors: tensors["scatter/moments"][0, 1].fill_(1e9), "'scatter/moments' holds no second moments"),
        (lambda _, tensors: tensors.pop("mean/moments"), "'mean/moments' is missing"),
    ],
)
def test_an_edited_file_of_moments_is_refused_by_field(tmp_path, change, message):
    path = Moments(BLOCKS).update(*rows_and_weights(9, 3)).save(tmp_path / "moments.safetensors")
    _edited(path, change)
    with pytest.raises(ValueError, match=message) as raised:
        Moments.load(path)
    assert str(path) in str(raised.value)
    assert "copy or create it again" in str(raised.value)


def test_a_flipped_bit_or_a_changed_count_is_found(tmp_path):
    path = Moments(BLOCKS).update(*rows_and_weights(9, 3)).save(tmp_path / "moments.safetensors")
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    for damaged in (bytes(flipped), whole.replace(b'\\"n\\": 9', b'\\"n\\": 8')):
        assert damaged != whole
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="does not match its checksum"):
            Moments.load(path)
