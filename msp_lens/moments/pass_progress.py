"""Resuming an interrupted pass: the sums so far and how far they go, in one file."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

from torch import Tensor

from msp_lens._checks import AtLeast
from msp_lens._files import parsed_json
from msp_lens.moments.grid import MomentsGrid
from msp_lens.moments.moments import Moments, load_all, save_all

_SavedPass = TypedDict(
    "_SavedPass",
    {"pass": dict[str, Any], "n_done": Annotated[int, AtLeast(0)], "n_batches": Annotated[int, AtLeast(0)]},
)


@dataclass(frozen=True, eq=False)
class PassProgress:
    """How far an interrupted pass went: `n_done` words in `n_batches`, their moments by name, and other sums."""

    n_done: int
    moments: dict[str, Moments]
    n_batches: int
    sums: dict[str, Tensor]


class PassCheckpoint:
    """Saves the progress of a pass to one file, atomically.

    Args:
        path: The file; each process needs its own (`own_path`).
        description: What determines the result of the pass, JSON-ready. A file of another pass is refused.
        interval: Seconds between saves.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "pass.safetensors"
        >>> checkpoint = PassCheckpoint(path, {"seed": 0}, interval=0)
        >>> grid = MomentsGrid([("h",)], targets=("b",))
        >>> _ = grid.update({"h": torch.eye(3), "b": torch.eye(3)[:, :1]}, torch.ones(3))
        >>> checkpoint.save(grid, n_done=3)
        >>> checkpoint.resume().n_done
        3
    """

    def __init__(self, path: str | Path, description: Mapping[str, Any], *, interval: float = 60.0) -> None:
        self.path = Path(path)
        # As it comes back from the file, with lists for tuples.
        self.description = json.loads(json.dumps(dict(description)))
        self.interval = interval
        self._saved_at = time.monotonic()

    def resume(self) -> PassProgress | None:
        """The progress in the file, `None` if there is none yet.

        Raises:
            OSError: if no file can be written there.
            ValueError: if the file belongs to another pass, was changed, or is damaged.
        """
        folder = self.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.is_dir() or not os.access(folder, os.W_OK):
            raise OSError(f"{self.path} cannot be written: give a file in a folder that you may write to.")
        if not self.path.exists():
            return None
        moments, saved, sums = load_all(self.path)
        if "pass" not in saved:
            raise ValueError(f"{self.path} holds moments but no pass to resume: give another path.")
        # Through JSON again, now that this is known to be a pass.
        saved = parsed_json(json.dumps(saved).encode(), _SavedPass, self.path)
        theirs, ours = saved["pass"], self.description
        keys = [key for key in sorted(theirs.keys() | ours.keys()) if theirs.get(key) != ours.get(key)]
        differing = [f"{key}={theirs.get(key)!r}, now {ours.get(key)!r}" for key in keys]
        if differing:
            problem = f"{self.path} belongs to another pass ({'; '.join(differing)})"
            raise ValueError(f"{problem}: give another path, or delete the file.")
        return PassProgress(saved["n_done"], moments, saved["n_batches"], sums)

    def save(self, grid: MomentsGrid, *, n_done: int, sums: Mapping[str, Tensor] | None = None) -> None:
        """Write the progress now.

        If the disk is full or the folder has gone, the pass goes on with a warning: its sums are still in memory, and
        the last progress that was saved is still on disk.
        """
        provenance = {"pass": self.description, "n_done": n_done, "n_batches": grid.n_batches}
        try:
            save_all(self.path, grid.parts(), provenance=provenance, tensors=sums)
        except OSError as error:
            problem = f"The progress of this pass could not be saved to {self.path} ({error})"
            warnings.warn(f"{problem}; the pass goes on, and what was saved before is intact.", stacklevel=2)
        self._saved_at = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the interval has passed since the last save."""
        return time.monotonic() - self._saved_at >= self.interval
