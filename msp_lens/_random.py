"""Where randomness comes from: an explicit seed or generator, never the process-wide one."""

from __future__ import annotations

import hashlib

import torch


def resolve_generator(seed: int | None, generator: torch.Generator | None) -> torch.Generator:
    """The given generator, or a fresh CPU generator seeded with `seed`.

    Raises:
        ValueError: unless exactly one of the two is given.
    """
    if (seed is None) == (generator is None):
        raise ValueError(f"seed={seed}, generator={generator}: give exactly one of them.")
    return torch.Generator().manual_seed(seed) if seed is not None else generator  # pyright: ignore[reportReturnType]


def derived_generator(seed: int, *names: object) -> torch.Generator:
    """A generator of its own for each use of a seed, so that what one use draws does not depend on the others.

    Example:
        >>> first, again, other = (derived_generator(0, name).initial_seed() for name in ("a", "a", "b"))
        >>> first == again, first == other
        (True, False)
    """
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
