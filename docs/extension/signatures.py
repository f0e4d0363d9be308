"""Signatures as they stand in the source: `Float[Tensor, "word pos token"]`, and `int` where a check hides behind it.

Annotations are strings (`from __future__ import annotations`), of which autodoc would make objects and print them all.
"""

import inspect
import re

from sphinx.application import Sphinx
from sphinx.ext import napoleon
from sphinx.ext.napoleon.docstring import GoogleDocstring

# What `_checks` names, as a reader knows it.
PLAIN = {"Count": "int", "Seed": "int", "Positive": "float", "Share": "float"}


def annotation(text: object) -> str:
    """An annotation without its checks.

    Example:
        >>> annotation("Annotated[int, Between(0, 1_000)] | Sequence[Count]")
        'int | Sequence[int]'
    """
    if not isinstance(text, str):
        text = inspect.formatannotation(text)
    while (start := text.find("Annotated[")) >= 0:
        first = start + len("Annotated[")
        depth, comma, end = 1, None, first
        while depth:
            depth += (text[end] in "[(") - (text[end] in "])")
            if text[end] == "," and depth == 1 and comma is None:
                comma = end
            end += 1
        text = text[:start] + text[first:comma] + text[end:]
    text = re.sub(r"\b(?:msp_lens(?:\.\w+)*|typing|collections\.abc|pathlib|torch|pd|np)\.(?=[A-Z])", "", text)
    return re.sub(rf"\b({'|'.join(PLAIN)})\b", lambda found: PLAIN[found[0]], text)


def default(value: object) -> str:
    """A default as one would write it."""
    if callable(value) and hasattr(value, "__name__"):
        return value.__name__
    text = repr(value)
    return "…" if text.startswith("<") or len(text) > 40 else text


def parameter(each: inspect.Parameter) -> str:
    """One parameter of a signature."""
    stars = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
    annotated = each.annotation is not each.empty
    text = f"{stars}{each.name}" + (f": {annotation(each.annotation)}" if annotated else "")
    if each.default is each.empty:
        return text
    return f"{text}{' = ' if annotated else '='}{default(each.default)}"


def signature(function: object, *, bound: bool = False) -> tuple[str, str | None]:
    """The parameters in parentheses, and what is returned."""
    found = inspect.signature(function)
    shown, keywords = [], False
    parameters = list(found.parameters.values())[bound:]
    for each in parameters:
        if each.kind is each.VAR_POSITIONAL:
            keywords = True
        elif each.kind is each.KEYWORD_ONLY and not keywords:
            shown.append("*")
            keywords = True
        shown.append(parameter(each))
    returned = found.return_annotation
    return f"({', '.join(shown)})", None if returned in (found.empty, "None") else annotation(returned)


def process(app: Sphinx, what: str, name: str, obj: object, options: object, given: str, returned: str):
    """Autodoc's event."""
    if what not in ("function", "method", "class"):
        return None
    try:
        if what == "class":
            own = vars(obj).get("__init__")
            plain = own is None and not hasattr(obj, "__dataclass_fields__")
            return ("", None) if plain else (signature(obj.__init__, bound=True)[0], None)
        return signature(obj, bound=what == "method" and "self" in inspect.signature(obj).parameters)
    except (TypeError, ValueError):
        return None


class Docstring(GoogleDocstring):
    """Napoleon's reading of a docstring, in which a colon within a sentence does not end a type.

    All types stand in the annotations, so what a property is and what a function returns has none in its text.
    """

    def _consume_inline_attribute(self) -> tuple[str, list[str]]:
        return "", Docstring(self._dedent(self._consume_to_end()), self._config).lines()

    def _consume_returns_section(self, preprocess_types: bool = False) -> list[tuple[str, str, list[str]]]:
        return [("", "", self._dedent(self._consume_to_next_section()))]


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    napoleon.GoogleDocstring = Docstring
    app.connect("autodoc-process-signature", process)
    return {"parallel_read_safe": True}
