"""How processes share work and agree: two real processes, and one alone."""

import time
from pathlib import Path

import pytest
import torch

from msp_lens import _distributed as distributed
from tests.two_processes import run_two


def worker(index, folder):
    """What each process runs."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=index, world_size=2)
    assert (distributed.process_index(), distributed.process_count()) == (index, 2)
    assert distributed.is_main() == (index == 0)
    own = torch.tensor([1.0, 10.0]) * (index + 1)
    assert distributed.total(own).tolist() == [3.0, 30.0]
    assert own.tolist() == [index + 1.0, 10.0 * (index + 1)]
    assert distributed.gathered(own).tolist() == [[1.0, 10.0], [2.0, 20.0]]
    rows = torch.full((3 * index + 1, 2), index, dtype=torch.int64)
    assert distributed.concatenated(rows).tolist() == [[0, 0]] + [[1, 1]] * 4
    assert distributed.concatenated(rows[: 3 * index]).tolist() == [[1, 1]] * 3
    # The main process decides, whatever the other one thinks.
    assert [distributed.agreed(index == 0), distributed.agreed(index == 1)] == [True, False]
    assert distributed.share(7) == (slice(0, 3), slice(3, 7))[index]
    with pytest.raises(ValueError, match="1 words for 2 processes"):
        distributed.share(1)
    if index == 0:
        time.sleep(0.5)
        Path(folder, "written").touch()
    distributed.wait()
    assert Path(folder, "written").exists()
    distributed.own_path(Path(folder) / "own.txt").touch()
    dist.destroy_process_group()


def test_two_processes_talk(tmp_path):
    run_two(__name__, tmp_path, timeout=120)
    assert {path.name for path in tmp_path.glob("own.*")} == {"own.0-of-2.txt", "own.1-of-2.txt"}


def test_one_process_is_left_alone():
    tensor = torch.ones(2)
    assert distributed.total(tensor) is tensor
    assert distributed.concatenated(tensor) is tensor
    assert distributed.share(7) == slice(0, 7)
    assert (distributed.process_index(), distributed.process_count(), distributed.is_main()) == (0, 1, True)
    assert distributed.own_path("a/b.safetensors") == Path("a/b.safetensors")
    assert [distributed.agreed(value) for value in (True, False)] == [True, False]
    distributed.wait()


@pytest.mark.parametrize(("n_words", "count"), [(7, 3), (3, 3), (100, 8)])
def test_shares_cover_the_words_once_and_evenly(monkeypatch, n_words, count):
    shares = []
    monkeypatch.setattr(distributed, "process_count", lambda: count)
    for index in range(count):
        monkeypatch.setattr(distributed, "process_index", lambda index=index: index)
        shares.append(range(n_words)[distributed.share(n_words)])
    assert [word for share in shares for word in share] == list(range(n_words))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
