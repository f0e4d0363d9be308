"""The notebooks of `demos/`, as the site shows them: without what would be fetched when a page is read."""

import re
from pathlib import Path

import nbformat

# A linked picture, `[![text](picture)](address)`, such as a badge; and what needs scripts of other hosts.
BADGE = re.compile(r"\[!\[([^\]]*)\]\([^)]*\)\]\(([^)]*)\)")
WIDGET = "application/vnd.jupyter.widget-view+json"


def copy(demos: Path, to: Path) -> None:
    """Copy every notebook whose copy is missing or differs."""
    for path in sorted(demos.glob("*.ipynb")):
        text = nbformat.writes(readable(nbformat.read(path, as_version=4)))
        copied = to / path.name
        if not copied.exists() or copied.read_text() != text:
            copied.write_text(text)


def readable(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with text in place of badges, and without progress bars and the state of widgets."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = BADGE.sub(r"[\1](\2).", cell.source)
        else:
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
    return notebook
