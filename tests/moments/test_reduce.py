"""Two real processes on this machine, against one."""

from pathlib import Path

import pytest
import torch

from msp_lens import _distributed as distributed
from msp_lens.moments.grid import MomentsGrid
from msp_lens.moments.moments import Moments, load_all
from msp_lens.moments.reduce import reduce_all, reduce_grid
from tests.two_processes import run_two

N_WORDS = 401


def data():
    """Rows far from zero, of very unequal weight, whose mean drifts: shares differ as much as they can."""
    generator = torch.Generator().manual_seed(0)
    drift = torch.linspace(0, 50, N_WORDS, dtype=torch.float64).unsqueeze(1)
    h = torch.randn(N_WORDS, 5, generator=generator, dtype=torch.float64) + 1e4 + drift
    b = torch.rand(N_WORDS, 2, generator=generator, dtype=torch.float64)
    cells = torch.randint(0, 3, (N_WORDS,), generator=generator)
    return {"h": h, "b": b}, torch.rand(N_WORDS, generator=generator, dtype=torch.float64) ** 4, cells


def grid_of_share():
    blocks, weights, cells = data()
    words = distributed.share(N_WORDS)
    grid = MomentsGrid([("h",)], targets=("b",), n_cells=3)
    grid.update({name: block[words] for name, block in blocks.items()}, weights[words], cells[words])
    return grid, weights[words].sum()


def worker(index, folder):
    """What each process runs."""
    import torch.distributed as dist

    from msp_lens.moments.moments import save_all

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=index, world_size=2)
    grid, total = grid_of_share()
    reduced = reduce_grid(grid)
    save_all(
        distributed.own_path(Path(folder) / "moments.safetensors"),
        reduced.parts(),
        tensors={"total": distributed.total(total.unsqueeze(0))},
    )
    # Refusals must come in every process, before a collective call that the other would wait in for ever.
    for parts in ([Moments({"h": 2 + index})], [Moments({"h": 2})] * (1 + index)):
        with pytest.raises(ValueError, match="differ in number or width"):
            reduce_all(parts)
    dist.destroy_process_group()


def test_two_processes_give_the_moments_of_one(tmp_path):
    run_two(__name__, tmp_path, timeout=120)

    alone, total = grid_of_share()
    expected = alone.parts()
    for index in range(2):
        parts, _, sums = load_all(tmp_path / f"moments.{index}-of-2.safetensors")
        assert float(sums["total"]) == pytest.approx(float(total), rel=1e-12)
        for name, moments in parts.items():
            assert moments.n == expected[name].n
            assert moments.weight == pytest.approx(expected[name].weight, rel=1e-12)
            torch.testing.assert_close(moments.mean, expected[name].mean, rtol=1e-12, atol=0)
            deviation = expected[name].scatter.diagonal().sqrt()
            error = (moments.scatter - expected[name].scatter).abs() / torch.outer(deviation, deviation)
            assert error.max() < 1e-10


def test_one_process_is_left_alone():
    moments = Moments({"h": 2}).update(torch.eye(2), torch.ones(2))
    assert reduce_all([moments])[0] is moments
