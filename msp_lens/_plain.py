"""Plain characters in place of those that a terminal or a file has no code for."""

from __future__ import annotations

import codecs
import io
import sys
import unicodedata
from typing import Any

# What Unicode's own decompositions do not tell.
_SPELLED = {"–": "-", "—": "-", "−": "-", "‖": "||", "≈": "~", "≤": "<=", "≥": ">=", "×": "x", "→": "->", "∞": "inf"}
_HANDLER = "msp-lens-plain"


def plain_streams() -> None:
    """Let stdout and stderr write plain characters for those that their encoding lacks, for the rest of the process."""
    codecs.register_error(_HANDLER, _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def in_encoding_of(stream: Any, text: str) -> str:
    """The text with plain characters where the stream's encoding has none of its own.

    Example:
        >>> import io
        >>> in_encoding_of(io.TextIOWrapper(io.BytesIO(), "ascii"), "R² ── η₁₀, 95 % …")
        'R2 -- eta10, 95 % ...'
    """
    codecs.register_error(_HANDLER, _replace)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, _HANDLER).decode(encoding)


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_spelled, error.object[error.start : error.end])), error.end


def _spelled(character: str) -> str:
    name = unicodedata.name(character, "")
    if character in _SPELLED:
        return _SPELLED[character]
    if name.startswith("GREEK"):
        return name.split(" WITH ")[0].rsplit(" ", 1)[-1].lower()
    if name.startswith("BOX DRAWINGS"):
        return "|" if "VERTICAL" in name and "HORIZONTAL" not in name else "-"
    decomposed = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return decomposed or "?"
