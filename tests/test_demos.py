"""The notebooks: as committed they can be read without running them, and every cell runs, on smaller sizes."""

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient import NotebookClient

from msp_lens.models.build import has_hooked_transformer

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "demos").glob("*.ipynb"))
MOST_BYTES = 1_500_000
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/<])/(?:home|Users|root|tmp|work|usr|opt|mnt|var|private)/|[A-Z]:\\\\")


class OwnKernel(KernelManager):
    """A kernel of the interpreter that runs the tests, whatever kernels are installed."""

    @property
    def kernel_spec(self):
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python")


def outputs(notebook):
    """Every output with the source of its cell."""
    return [(cell.source, out) for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]


def check_clean(notebook):
    """No cell failed, and none wrote to stderr: no warnings, no progress bars."""
    for source, output in outputs(notebook):
        assert output.output_type != "error", f"{source}\n{output}"
        assert output.get("name") != "stderr", f"{source}\n{output.text}"


def test_there_are_notebooks():
    assert [path.stem[0] for path in NOTEBOOKS] == ["1", "2", "3", "4", "5", "6", "7", "8"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebooks_can_be_read(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    check_clean(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [cell for cell in notebook.cells if cell.metadata], "metadata of a run, such as its times, is noise"
    assert sum(bool(cell.outputs) for cell in code) > len(code) / 2
    assert any("image/png" in output.get("data", {}) for _, output in outputs(notebook))
    assert path.stat().st_size < MOST_BYTES
    for source, output in outputs(notebook):
        # Pictures are base64, in which anything may turn up.
        data = {kind: text for kind, text in output.get("data", {}).items() if not kind.startswith("image")}
        shown = output.get("text", "") + "".join(map(str, data.values()))
        assert not ABSOLUTE_PATH.search(shown), f"{source}\n{shown}"
    assert not ABSOLUTE_PATH.search("".join(cell.source for cell in notebook.cells))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path):
    # The others ask nothing of TransformerLens that these do not.
    if not has_hooked_transformer() and path.stem[0] not in "1248":
        pytest.skip("runs under TransformerLens 3")
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    # The working tree's package, and no thread pools: several kernels on the same cores stall each other.
    environment = {**os.environ, "MSP_LENS_DEMO": "small", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    client = NotebookClient(notebook, km=OwnKernel(), timeout=300, resources={"metadata": {"path": str(ROOT)}})
    client.execute(env=environment)
    check_clean(notebook)
    assert outputs(notebook)
