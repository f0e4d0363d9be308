"""Work shared out by joblib, so that processes, or a Dask or Ray cluster, serve by joblib's own backends.

A worker that dies (killed for memory, say) takes all work in flight with it. Which item killed it is found by doing
those that had been started again, each alone; the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from joblib import Parallel, delayed

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_each(
    function: Callable[[Item], Result], items: Sequence[Item], *, n_jobs: int = -1, was_started: Callable[[Item], bool]
) -> Iterator[tuple[Item, Result | Exception]]:
    """Each item with what the function makes of it, as they are done; with an exception where its worker died.

    Within `joblib.parallel_config(backend=…)` the work is done by that backend.

    Args:
        function: What to do. It should not raise.
        items: With what.
        n_jobs: How many at once; -1 for as many as there are cores, or workers in a cluster. 1 is this very process.
        was_started: Whether work on an item was begun: all others are innocent of a worker's death.

    Raises:
        Exception: what joblib raised, if no item had been started.
    """
    left = list(enumerate(items))
    while left:
        done: set[int] = set()
        try:
            for index, result in _results(function, left, n_jobs):
                done.add(index)
                yield items[index], result
            return
        except Exception as error:
            left = [(index, item) for index, item in left if index not in done]
            suspects = [(index, item) for index, item in left if was_started(item)]
            if not suspects:
                raise
            left = [pair for pair in left if pair not in suspects]
            yield from _one_by_one(function, suspects, error)


def _one_by_one(
    function: Callable[..., Any], suspects: Sequence[tuple[int, Item]], error: Exception
) -> Iterator[tuple[Item, Any]]:
    if len(suspects) == 1:
        yield suspects[0][1], error
        return
    for index, item in suspects:
        try:
            # Two jobs for one item: with one joblib would run it in this process, and that would die.
            ((_, result),) = _results(function, [(index, item)], 2)
            yield item, result
        except Exception as its_own:
            yield item, its_own


def _results(function: Callable[..., Any], pairs: Sequence[tuple[int, Any]], n_jobs: int) -> Iterator[Any]:
    # One item at a time, whatever the backend: a run is long, and short ones must not wait for it.
    options: dict[str, Any] = {"batch_size": 1, "pre_dispatch": "all", "return_as": "generator_unordered"}
    work: Any = Parallel(n_jobs=n_jobs, **options)(delayed(_numbered)(function, index, item) for index, item in pairs)
    return iter(work)


def _numbered(function: Callable[[Any], Any], index: int, item: Any) -> tuple[int, Any]:
    return index, function(item)
