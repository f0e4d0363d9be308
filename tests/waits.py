"""How often, and where, the CPU waits for an NVIDIA GPU."""

import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch


def waits(work: Callable[[], Any]) -> Counter[str]:
    """How often the CPU waits for the GPU during some work, by the line of msp_lens that makes it wait."""
    found: Counter[str] = Counter()

    def note(message: Any, *where: Any, **options: Any) -> None:
        if "synchronizing" not in str(message):
            return
        frames = [frame for frame in traceback.extract_stack() if "/msp_lens/" in frame.filename]
        found[f"{frames[-1].filename.rsplit('/msp_lens/', 1)[1]}:{frames[-1].lineno}" if frames else "elsewhere"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return found


def further_waits(work: Callable[[int], Any], few: int, many: int) -> dict[str, float]:
    """Of work on some number of batches: the waits for each further batch, by line; those of any batch drop out."""
    # Kernels are loaded, and a model is tried, the first time.
    work(few)
    before, after = (waits(lambda n=n: work(n)) for n in (few, many))
    return {line: (after[line] - before[line]) / (many - few) for line in after if after[line] != before[line]}
