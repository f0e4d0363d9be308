"""What long work tells: where its results will be, what it is doing, and how to go on after Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tqdm.auto import tqdm


def announce(text: str, *, progress: bool = True) -> None:
    """Write a line to stderr, above any progress bars, if progress is to be shown."""
    if progress:
        tqdm.write(text, file=sys.stderr)


class Stages:
    """The parts of long work, announced one after the other.

    Example:
        >>> stages = Stages(["Training", "Probing"], progress=False)
        >>> stages.begin()
        '1 of 2: Training'
        >>> stages.begin("every site")
        '2 of 2: Probing every site'
    """

    def __init__(self, names: Sequence[str], *, progress: bool) -> None:
        self._names, self._progress, self._n_begun = list(names), progress, 0

    def begin(self, details: str = "") -> str:
        """Announce the next part; returns what was said."""
        name = self._names[self._n_begun]
        self._n_begun += 1
        told = f"{self._n_begun} of {len(self._names)}: {name}{details and f' {details}'}"
        announce(told, progress=self._progress)
        return told


@contextmanager
def going_on(how: str) -> Iterator[None]:
    """Let Ctrl-C say how to go on: Python shows it at the end of the traceback, `msp-lens` in words of its own.

    Where such work is done within other such work, the outermost says it.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        interrupt.__notes__ = [how]
        raise
