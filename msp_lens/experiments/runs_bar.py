"""A progress bar over runs that workers make: it moves with the training steps that each has logged in its folder."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tqdm.auto import tqdm

from msp_lens.training.training_run import METRICS_FILE

_SECONDS_BETWEEN_LOOKS = 1.0
# The share of a run that is over when its training is: what is left is measured.
_TRAINING = 0.95
# The last record of the metrics is shorter than this, but for very long words.
_LONGEST_RECORD = 2**16


class RunsBar:
    """The bar, which looks into the folders until it is closed.

    Args:
        steps: By folder, the training steps of each run still to be made.
        title: What is being done.
        unit: What a run is called.
        n_done: How many runs were made before.
        progress: Whether to show anything.
    """

    def __init__(self, steps: Mapping[Path, int], *, title: str, unit: str, n_done: int, progress: bool) -> None:
        self._left, self._n_done, self._lock = dict(steps), n_done, threading.Lock()
        looks = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} " + unit + "s [{elapsed}<{remaining}{postfix}]"
        how = {"desc": title, "bar_format": looks, "initial": n_done, "disable": not progress}
        self._bar = tqdm(total=n_done + len(steps), **how)
        self._is_closed = threading.Event()
        self._thread = (
            threading.Thread(target=self._watch, name="runs-bar", daemon=True) if progress and steps else None
        )

    def __enter__(self) -> RunsBar:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._is_closed.set()
        if self._thread is not None:
            self._thread.join()
        self._bar.close()

    def done(self, folder: Path, told: str = "") -> None:
        """A run has ended; `told` stands behind the bar."""
        with self._lock:
            del self._left[folder]
            self._n_done += 1
        self._bar.set_postfix_str(told, refresh=False)
        self.look()

    def look(self) -> float:
        """Show how far the runs are, and return it in runs."""
        with self._lock:
            begun = [min(1.0, logged_step(folder) / max(1, steps)) for folder, steps in self._left.items()]
            self._bar.n = self._n_done + _TRAINING * sum(begun)
        self._bar.refresh()
        return self._bar.n

    def _watch(self) -> None:
        while not self._is_closed.wait(_SECONDS_BETWEEN_LOOKS):
            self.look()


def logged_step(folder: Path) -> int:
    """The last step in a training's metrics; 0 if there is none yet."""
    try:
        with (folder / METRICS_FILE).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LONGEST_RECORD))
            lines = file.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        # The last line may be in the middle of being written.
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return int(json.loads(line)["step"])
    return 0
