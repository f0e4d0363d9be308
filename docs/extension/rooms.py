"""A page for each room: `<!-- room: moments -->` becomes a table of its public names, and their entries."""

import importlib
import inspect
import re

from sphinx.application import Sphinx

from extension.names import homes

MARK = re.compile(r"<!-- room: (\w+) -->")
# Public values that have no docstring of their own.
VALUES = {
    "CATALOG": "The named processes: a `CatalogEntry` for each name.",
    "ControlKind": "What kind of control a score is.",
    "EDITS": "The edits that `intervene(..., edits=…)` knows by name.",
    "Measure": "A quantity that is averaged over positions, in nats.",
    "Positions": "Positions of a word: a number, several, or a slice.",
    "PRESETS": "The presets that `train(..., preset=…)` knows by name; each makes a `Recipe` for a process.",
    "Sites": "Which sites: hook names, labels, globs, a function, groups by name, or `None` for the residual stream.",
    "TARGETS": "The targets that `intervene(..., targets=…)` knows by name.",
    "Weighting": 'How much a row counts: `"probability"`, `"sequence"` or `"prefix"`.',
}


def kind(value: object) -> str:
    """Which kind of entry a public name has."""
    if inspect.isclass(value) and value.__module__.startswith("msp_lens."):
        return "exception" if issubclass(value, Exception) else "class"
    return "function" if callable(value) and hasattr(value, "__name__") and inspect.isroutine(value) else "data"


def first_sentence(value: object) -> str:
    """The first line of the docstring."""
    return (inspect.getdoc(value) or "").partition("\n")[0]


def entries(room: str) -> str:
    """The room's names as reStructuredText: a table, then an entry for each."""
    module = importlib.import_module(f"msp_lens.{room}")
    names = [name for name in module.__all__ if homes()[name] == room]
    kinds = {name: kind(getattr(module, name)) for name in names}
    order = {"function": 0, "class": 1, "exception": 2, "data": 3}
    names.sort(key=lambda name: (order[kinds[name]], name.lower()))
    rows, entries = [], []
    for name in names:
        summary = VALUES[name] if kinds[name] == "data" else first_sentence(getattr(module, name))
        rows += [f"   * - `msp_lens.{room}.{name}`", f"     - {summary}"]
        if kinds[name] == "data":
            entries += [f".. py:data:: {name}", "", f"   {summary}", ""]
        else:
            # Of an error no signature is shown; autodoc would look for one and fail.
            arguments = "()" if kinds[name] == "exception" else ""
            entries += [f".. auto{kinds[name]}:: msp_lens.{room}.{name}{arguments}", ""]
    table = [".. list-table::", "   :widths: 35 65", "   :class: names", "", *rows, ""]
    head = [f".. py:module:: msp_lens.{room}", "", f"   {first_sentence(module)}", ""]
    return "\n".join([*head, *table, *entries])


def read(app: Sphinx, document: str, content: list[str]) -> None:
    """Sphinx's event for the text of a page."""
    content[0] = MARK.sub(lambda mark: f"````{{eval-rst}}\n{entries(mark[1])}\n````", content[0])


def skip(app: Sphinx, what: str, name: str, member: object, skipped: bool, options: object) -> bool | None:
    """Autodoc's event: of what a class inherits, only what this library wrote."""
    function = getattr(member, "fget", None) or getattr(member, "func", None) or getattr(member, "__func__", member)
    module = str(getattr(inspect.unwrap(function) if callable(function) else function, "__module__", ""))
    return None if module.startswith("msp_lens") else True


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("source-read", read)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True}
