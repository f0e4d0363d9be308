"""Names that a user types: which of those that there are was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


def meant(name: Any, choices: Iterable[object]) -> str:
    """` Did you mean mess3?` if one of the choices is close to the name, else nothing: the end of an error message.

    Case, spaces, hyphens and underscores do not count, and the beginning of a name is close to it.

    Example:
        >>> [meant(name, ["mess3", "donor", "donor belief"]) for name in ("mess4", "donor-belief", "zap")]
        [' Did you mean mess3?', " Did you mean 'donor belief'?", '']
    """
    found = nearest(name, choices)
    if found is None:
        return ""
    return f" Did you mean {found!r}?" if " " in found else f" Did you mean {found}?"


def nearest(name: Any, choices: Iterable[object]) -> str | None:
    """The choice closest to the name, or `None` if none is close, or the name is no text."""
    if not isinstance(name, str):
        return None
    spelled = {_plain(str(choice)): str(choice) for choice in reversed(list(choices))}
    plain = _plain(name)
    if plain in spelled:
        return spelled[plain]
    close = difflib.get_close_matches(plain, spelled, n=1)
    begun = [each for each in spelled if len(plain) > 1 and each.startswith(plain)]
    found = [*close, *begun[::-1]]
    return spelled[found[0]] if found else None


def _plain(name: str) -> str:
    return name.casefold().replace("-", " ").replace("_", " ").strip()


def spelled(name: str) -> str:
    """A name as one word for a shell: `donor-belief` for "donor belief"."""
    return name.replace(" ", "-")


def from_menu(name: str, menu: Iterable[str]) -> str:
    """The name on the menu that is meant by its spelling as one word; a name that is not there stays as it is.

    Example:
        >>> from_menu("donor-belief", ["donor", "donor belief"]), from_menu("zap", ["donor"])
        ('donor belief', 'zap')
    """
    return next((each for each in menu if spelled(each) == name), name)
