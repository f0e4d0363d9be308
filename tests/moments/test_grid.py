import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from msp_lens.moments import Moments, merge_all
from msp_lens.moments.grid import MomentsGrid, TooWideError, check_memory
from msp_lens.moments.pass_progress import PassCheckpoint

WIDTHS = {"0_post": 4, "1_post": 3, "belief": 2}


def data(n, seed):
    generator = torch.Generator().manual_seed(seed)
    # Activations come in float32, beliefs in float64.
    blocks = {name: torch.randn(n, width, generator=generator) + 10 for name, width in WIDTHS.items()}
    blocks["belief"] = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    return (
        blocks,
        torch.rand(n, generator=generator, dtype=torch.float64),
        torch.randint(0, 3, (n,), generator=generator),
    )


def expected_moments(blocks, weights, names):
    rows = torch.cat([blocks[name].double() for name in names], dim=1)
    return Moments({name: WIDTHS[name] for name in names}).update(rows, weights)


def fill(grid, blocks, weights, cells, *, start=0, stop=None, size=13):
    for rows in torch.arange(len(weights))[start:stop].split(size):
        grid.update({name: block[rows] for name, block in blocks.items()}, weights[rows], cells[rows])
    return grid


@given(st.integers(1, 80), st.integers(0, 1000))
def test_each_cell_of_each_group_holds_its_rows(n, seed):
    blocks, weights, cells = data(n, seed)
    grid = fill(MomentsGrid([("0_post",), ("1_post",)], targets=("belief",), n_cells=3), blocks, weights, cells)
    for site in ("0_post", "1_post"):
        for cell, found in enumerate(grid.cells((site, "belief"))):
            members = cells == cell
            share = {name: block[members] for name, block in blocks.items()}
            expected = expected_moments(share, weights[members], (site, "belief"))
            assert (found.n, found.blocks) == (expected.n, expected.blocks)
            torch.testing.assert_close(found.scatter, expected.scatter)
            torch.testing.assert_close(found.mean, expected.mean)
        whole = expected_moments(blocks, weights, ("belief", site))
        torch.testing.assert_close(grid.whole(("belief", site)).scatter, whole.scatter)


@given(st.integers(1, 80), st.integers(0, 1000), st.sampled_from(["float64", "split"]))
def test_rows_dealt_in_two_ways_are_in_a_cell_of_each(n, seed, accumulation):
    blocks, weights, cells = data(n, seed)
    weights[::5] = 0
    positions = torch.arange(n) % 4
    grid = MomentsGrid([("0_post",)], targets=("belief",), n_cells=(3, 4), accumulation=accumulation)
    fill(grid, blocks, weights, torch.stack([cells, positions], dim=1))
    members = [*(cells == cell for cell in range(3)), *(positions == position for position in range(4))]
    for inside, found in zip(members, grid.moments[0], strict=True):
        share = {name: block[inside] for name, block in blocks.items()}
        expected = expected_moments(share, weights[inside], ("0_post", "belief"))
        assert (found.n, found.blocks) == (expected.n, expected.blocks)
        assert found.weight == pytest.approx(expected.weight)
        torch.testing.assert_close(found.scatter, expected.scatter, rtol=1e-8, atol=1e-7)
        torch.testing.assert_close(found.mean, expected.mean)
    # The whole counts each row once.
    assert len(grid.cells(("belief",))) == 3
    assert grid.whole(("0_post", "belief")).n == n
    assert "1 groups × 3 + 4 cells" in repr(grid)
    with pytest.raises(ValueError, match=r"cells run from \d to [4-7]; this grid has 0 … 3"):
        grid.update(blocks, weights, torch.stack([cells, positions + 4], dim=1))
    with pytest.raises(
        ValueError, match=rf"cells have the shape \({n}, 1\): give a cell for each of {n} rows in 2 ways"
    ):
        grid.update(blocks, weights, cells)


def test_apart_is_the_same_as_side_by_side():
    blocks, weights, cells = data(50, 0)
    groups = [("0_post",), ("1_post",), ("0_post", "1_post")]
    joint = fill(MomentsGrid(groups, targets=("belief",), n_cells=3), blocks, weights, cells)
    apart = fill(MomentsGrid(groups[:2], targets=("belief",), n_cells=3), blocks, weights, cells)
    assert joint.groups == [("0_post", "1_post")]
    for a, b in zip(joint.cells(("1_post", "belief")), apart.cells(("1_post", "belief")), strict=True):
        torch.testing.assert_close(a.scatter, b.scatter)
    with pytest.raises(KeyError, match="No group holds 0_post, 1_post jointly; the groups are: 0_post; 1_post"):
        apart.cells(("0_post", "1_post"))


def test_apart_takes_the_sum_of_squares():
    widths = {f"{layer}_post": 768 for layer in range(12)} | {"belief": 3}
    apart = [(f"{layer}_post",) for layer in range(12)]
    assert check_memory(apart, widths, targets=("belief",), n_cells=5) == 8 * 5 * 12 * 771**2
    everything = tuple(f"{layer}_post" for layer in range(12))
    assert check_memory([*apart, everything], widths, max_bytes=10**9) == 8 * (12 * 768) ** 2
    message = r"12 sites of 9,216 features together, need 3\.2 GiB .*limit is 2\.0 GiB.*RandomProjection.*max_bytes"
    with pytest.raises(TooWideError, match=message):
        check_memory([*apart, everything], widths, targets=("belief",), n_cells=5, max_bytes=2 * 2**30)
    blocks, weights, cells = data(5, 0)
    grid = MomentsGrid([("0_post",)], targets=("belief",), n_cells=3, max_bytes=800)
    with pytest.raises(TooWideError, match=r"need 0\.0 MiB"):
        grid.update(blocks, weights, cells)
    assert grid.moments == []


def test_split_accumulation_gives_the_same():
    blocks, weights, cells = data(200, 1)
    grids = [
        fill(MomentsGrid([("0_post",)], targets=("belief",), n_cells=3, accumulation=how), blocks, weights, cells)
        for how in ("float64", "split")
    ]
    torch.testing.assert_close(
        grids[0].whole(["0_post", "belief"]).scatter,
        grids[1].whole(["0_post", "belief"]).scatter,
        rtol=1e-8,
        atol=1e-7,
    )


def test_an_interrupted_pass_resumes(tmp_path):
    blocks, weights, cells = data(60, 2)
    path, description = tmp_path / "pass.safetensors", {"model": "abc", "sites": ("0_post",), "seed": 0}

    def new():
        return MomentsGrid([("0_post",)], targets=("belief",), n_cells=3)

    checkpoint = PassCheckpoint(path, description, interval=1e9)
    assert checkpoint.resume() is None
    first = fill(new(), blocks, weights, cells, stop=26)
    assert not checkpoint.is_due
    checkpoint.save(first, n_done=26, sums={"regret": torch.ones(3)})

    progress = PassCheckpoint(path, description).resume()
    assert (progress.n_done, progress.n_batches) == (26, 2)
    assert torch.equal(progress.sums["regret"], torch.ones(3))
    second = new().restore(progress.moments, n_batches=progress.n_batches)
    fill(second, blocks, weights, cells, start=progress.n_done)
    whole = fill(new(), blocks, weights, cells)
    assert second.n_batches == whole.n_batches
    for name, moments in whole.parts().items():
        assert torch.equal(second.parts()[name].scatter, moments.scatter)
        assert second.parts()[name].n == moments.n

    with pytest.raises(ValueError, match="belongs to another pass \\(seed=0, now 1\\)"):
        PassCheckpoint(path, description | {"seed": 1}).resume()
    with pytest.raises(ValueError, match="belong to another pass"):
        MomentsGrid([("1_post",)], targets=("belief",), n_cells=3).restore(progress.moments)
    Moments({"h": 1}).save(path)
    with pytest.raises(ValueError, match="no pass to resume"):
        PassCheckpoint(path, description).resume()


def test_a_checkpoint_before_the_first_batch(tmp_path):
    grid = MomentsGrid([("0_post",)], targets=("belief",), n_cells=3)
    checkpoint = PassCheckpoint(tmp_path / "pass.safetensors", {})
    checkpoint.save(grid, n_done=0)
    assert grid.restore(checkpoint.resume().moments).moments == []


def test_bad_batches_are_refused_by_name():
    blocks, weights, cells = data(6, 3)
    grid = MomentsGrid([("0_post",), ("1_post",)], targets=("belief",), n_cells=3)
    with pytest.raises(ValueError, match="no rows yet"):
        grid.whole(("0_post",))
    grid.update(blocks, weights, cells)
    diverged = blocks | {"1_post": blocks["1_post"].clone()}
    diverged["1_post"][4, 1] = float("nan")
    for bad, kind, message in (
        (lambda: grid.update(diverged, weights, cells), ValueError, "NaN or infinity at 1_post in batch 1, row 4 of 6"),
        (
            lambda: grid.update({"0_post": blocks["0_post"]}, weights, cells),
            KeyError,
            "The rows have no block '1_post'",
        ),
        (lambda: grid.update(blocks, weights[:3], cells[:3]), ValueError, "6 rows, the weights 3"),
        (lambda: grid.update(blocks, -weights, cells), ValueError, "Weights of batch 1 must be finite and ≥ 0"),
        (lambda: grid.update(blocks, weights, cells + 3), ValueError, r"this grid has 0 … 2"),
        (
            lambda: grid.update(blocks | {"belief": blocks["0_post"]}, weights, cells),
            ValueError,
            "'belief' has 4 columns; in earlier batches it had 2",
        ),
    ):
        with pytest.raises(kind, match=message):
            bad()
    # Nothing of a refused batch was taken in.
    assert grid.n_batches == 1
    assert [grid.whole((name,)).n for name in ("0_post", "1_post")] == [6, 6]
    for arguments, message in (
        ({"n_cells": 0, "groups": [("a",)]}, "n_cells=0: give at least 1"),
        ({"groups": []}, "at least one group"),
        ({"groups": [()]}, "each of at least one block"),
    ):
        with pytest.raises(ValueError, match=message):
            MomentsGrid(targets=(), **arguments)


def test_without_cells_all_rows_are_one():
    blocks, weights, _ = data(20, 4)
    grid = MomentsGrid([("0_post",)], targets=("belief",)).update(blocks, weights)
    expected = expected_moments(blocks, weights, ("0_post", "belief"))
    torch.testing.assert_close(merge_all(grid.cells(("0_post", "belief"))).scatter, expected.scatter)
