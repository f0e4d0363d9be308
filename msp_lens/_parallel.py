"""Work distributed by joblib, on whatever backend `joblib.parallel_config` chooses: processes, Dask, Ray.

A worker that dies (killed for memory, say) takes all work in flight with it. To find the item that killed it, each item
that had been started is done again alone.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from joblib import Parallel, delayed

Item = TypeVar("Item")
Result = TypeVar("Result")
# Initial weights are drawn from the process-wide generator, so trainings in threads of one process must take turns.
ONE_AT_A_TIME = threading.Lock()


def run_each(
    function: Callable[[Item], Result], items: Sequence[Item], *, n_jobs: int = -1, was_started: Callable[[Item], bool]
) -> Iterator[tuple[Item, Result | Exception]]:
    """Each item with its result as soon as it is done, or with an exception if its worker died.

    Args:
        function: What to do with an item. It should not raise.
        items: The items.
        n_jobs: How many at once; -1 for as many as there are cores, or workers in a cluster. 1 is this very process.
        was_started: Whether work on an item was begun; only such an item can have killed its worker. If a worker dies
            and there is none, joblib's exception is raised.
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
            left = [pair for pair in left if pair[0] not in done]
            suspects = [pair for pair in left if was_started(pair[1])]
            if not suspects:
                raise
            left = [pair for pair in left if pair not in suspects]
            for pair in suspects:
                result: Any = error
                if len(suspects) > 1:
                    try:
                        # Two jobs for one item: with one joblib would run it in this process, and that would die.
                        ((_, result),) = _results(function, [pair], 2)
                    except Exception as its_own:
                        result = its_own
                yield pair[1], result


def _results(function: Callable[..., Any], pairs: Sequence[tuple[int, Any]], n_jobs: int) -> Iterator[Any]:
    # One item at a time, whatever the backend: a run is long, and short ones must not wait for it.
    options: dict[str, Any] = {"batch_size": 1, "pre_dispatch": "all", "return_as": "generator_unordered"}
    work: Any = Parallel(n_jobs=n_jobs, **options)(delayed(_numbered)(function, index, item) for index, item in pairs)
    return iter(work)


def _numbered(function: Callable[[Any], Any], index: int, item: Any) -> tuple[int, Any]:
    return index, function(item)


def check_n_jobs(n_jobs: int, what: str) -> None:
    """Raise `ValueError` if no job at all is asked for."""
    if n_jobs == 0:
        raise ValueError(f"n_jobs=0: give the number of {what} at once, or -1 for all cores.")


@functools.cache
def end_with(parent: int) -> None:
    """End this process, if it is a worker, as soon as its parent has ended: killed, say, while its restart runs.

    Ctrl-C is the parent's alone, which then ends its workers; a terminal sends it to all of them.
    """
    if os.getppid() != parent:
        # This is the parent itself, or a worker on a cluster, which has a master of its own.
        return
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
