"""Work shared out: a worker that dies takes nothing with it but what killed it."""

import os
from pathlib import Path

import pytest

from msp_lens._parallel import run_each


def square(item):
    """Works on a number in a folder; -1 kills the worker."""
    number, folder = item
    Path(folder, f"started-{number}").touch()
    if number < 0:
        os._exit(9)
    Path(folder, f"done-{number}").touch()
    return number**2


def was_started(item):
    number, folder = item
    return Path(folder, f"started-{number}").exists() and not Path(folder, f"done-{number}").exists()


@pytest.mark.parametrize("numbers", [(1, 2, 3), (1, -1, 2, 3, -2, 4)])
def test_all_but_the_killers_are_done(numbers, tmp_path):
    items = [(number, str(tmp_path)) for number in numbers]
    results = {item[0]: result for item, result in run_each(square, items, n_jobs=2, was_started=was_started)}
    assert set(results) == set(numbers)
    for number, result in results.items():
        if number > 0:
            assert result == number**2
        else:
            assert isinstance(result, Exception)


def test_in_this_very_process(tmp_path):
    items = [(number, str(tmp_path)) for number in (2, 3)]
    assert [result for _, result in run_each(square, items, n_jobs=1, was_started=was_started)] == [4, 9]


def test_what_no_item_is_to_blame_for_is_raised(tmp_path):
    def refused(item):
        raise RuntimeError("no such backend")

    with pytest.raises(RuntimeError, match="no such backend"):
        list(run_each(refused, [1], n_jobs=1, was_started=lambda item: False))
