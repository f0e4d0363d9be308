"""Packages that only some of the library needs: `pip install "msp-lens[notebook]"` and the like install them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def from_extra(extra: str, *, purpose: str, packages: tuple[str, ...]) -> Iterator[None]:
    """Import optional packages within this block: if one is missing, the error says how to install it.

    Args:
        extra: The extra that installs the packages.
        purpose: What needs them, in words that can begin a sentence.
        packages: The packages by the names that they are imported by. Another missing module is another fault, and its
            error is left alone.

    Raises:
        ImportError: if one of the packages is not installed.

    Example:
        >>> with from_extra("notebook", purpose="This view", packages=("no_such_package",)):
        ...     import no_such_package
        Traceback (most recent call last):
        ...
        ImportError: This view needs no_such_package: pip install "msp-lens[notebook]".
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in packages:
            raise
        raise ImportError(f'{purpose} needs {missing}: pip install "msp-lens[{extra}]".', name=missing) from error
