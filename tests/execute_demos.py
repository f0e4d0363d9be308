"""Run notebooks at their full sizes and keep what they show: `make notebooks`, or with the paths of some of them.

What differs from run to run is left out: times, progress bars and the state of widgets. Pictures have 256 colors.
"""

import base64
import io
import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

from tests.test_demos import NOTEBOOKS, ROOT, OwnKernel

WIDGET = "application/vnd.jupyter.widget-view+json"


def smaller(png: str) -> str:
    """A picture in 256 colors, in base64."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    written = io.BytesIO()
    picture.save(written, "PNG", optimize=True)
    return base64.b64encode(written.getvalue()).decode()


def execute(path: Path) -> None:
    """Run a notebook, and write what it shows into it."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("widgets", None)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    client = NotebookClient(notebook, km=OwnKernel(), timeout=None, resources={"metadata": {"path": str(ROOT)}})
    client.execute(env=environment)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if WIDGET not in each.get("data", {})]
            for output in cell.outputs:
                data = output.get("data", {})
                if "image/png" in data:
                    output.metadata = {}
                    data["image/png"] = smaller(data["image/png"])
    nbformat.write(notebook, path)
    print(path.name, f"{path.stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    for each in map(Path, sys.argv[1:] or NOTEBOOKS):
        execute(each)
