"""How many threads a small network's work takes.

Threads wait for each other after every product of matrices. Where the products are small, a second thread gains less
than a fifth on an idle machine, and when another program keeps a core busy it makes everything many times as slow.
`tests/benchmarks/what_was_tried.md` has the timings. The number depends on the size of the work alone, never on the
load, because one and two threads do not give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Multiply-adds in a forward pass up to which one thread is best.
_SMALL = 2**30


@contextmanager
def fitting_threads(multiply_adds: int, device: torch.device) -> Iterator[None]:
    """Within this context torch uses one thread, if that is best for the work; afterwards as many as before."""
    before = torch.get_num_threads()
    if device.type == "cpu" and multiply_adds < _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
