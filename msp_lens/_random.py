"""Where randomness comes from: an explicit seed or generator, never the process-wide one."""

from __future__ import annotations

import torch


def resolve_generator(seed: int | None, generator: torch.Generator | None) -> torch.Generator:
    """The given generator, or a fresh CPU generator seeded with `seed`.

    Raises:
        ValueError: unless exactly one of the two is given.
    """
    if (seed is None) == (generator is None):
        raise ValueError(f"seed={seed}, generator={generator}: give exactly one of them.")
    return torch.Generator().manual_seed(seed) if seed is not None else generator  # pyright: ignore[reportReturnType]
