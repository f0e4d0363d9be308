"""The notebooks: as committed they can be read without running them, and every cell runs, on smaller sizes.

Sizes are in one cell of each notebook, tagged `parameters` as for papermill; the tests put smaller ones after it.
"""

import ast
import os
import re
import shutil
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient import NotebookClient

from msp_lens.models.build import has_hooked_transformer
from tests.conftest import ORACLE

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "demos").glob("*.ipynb"))
PUBLISHED = ORACLE / "model.safetensors"
MOST_BYTES = 1_500_000
SMALL = {
    "1_quick_start": {"PRESET": "tiny", "N_CTX": 6, "N_PAIRS": 100},
    "2_attach_to_your_own_model": {"STEPS": 60, "N_CTX": 5},
    "3_the_paper_reproduced": {"STEPS": 20, "N_CTX": 5, "N_CTX_EMERGENCE": 4, "N_CHECKPOINTS": 3, "D_MODEL": 16},
    "4_is_it_causal": {"PRESET": "tiny", "N_CTX": 6, "N_PAIRS": 100, "N_WORDS": 200},
    "5_theory": {"N_POINTS": 50_000, "LENGTH": 8, "MAX_LEVEL": 5_000},
    "6_which_world": {
        **{"STEPS": 100, "N_CTX": 5, "N_STARTS": 2, "MAX_STATES": 3, "N_PAIRS": 50, "N_SEQUENCES": 200},
        "CHECKPOINTS": (0, 10),
    },
    "7_worlds_with_parts": {"STEPS": 20, "N_CTX": 5, "N_WORDS": 50, "N_STREAMS": 200, "N_THROWS": 20},
    "8_a_language_model": {"PACKAGE": "no_such_package", "MOST_CONTEXTS": 6, "LONGEST": 50, "N_EDITED": 2},
}
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/<])/(?:home|Users|root|tmp|work|usr|opt|mnt|var|private)/|[A-Z]:\\\\")


class OwnKernel(KernelManager):
    """A kernel of the interpreter that runs the tests, whatever kernels are installed."""

    @property
    def kernel_spec(self):
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python")


@pytest.fixture(scope="module")
def torch_home(tmp_path_factory):
    """A folder in which the third notebook finds the published weights, where the tests have them."""
    folder = tmp_path_factory.mktemp("torch")
    if PUBLISHED.is_file():
        (folder / "hub" / "msp_lens").mkdir(parents=True)
        shutil.copy(PUBLISHED, folder / "hub" / "msp_lens" / "published_mess3.safetensors")
    return folder


# Before each notebook: no names of the one before, and warnings that were shown once are shown again.
AFRESH = """%reset -f
import warnings
with warnings.catch_warnings():
    pass
del warnings"""


@pytest.fixture(scope="module")
def kernel():
    """One for all notebooks: the imports take longer than most of them."""
    manager = OwnKernel()
    yield manager
    if manager.has_kernel:
        manager.shutdown_kernel(now=True)


def outputs(notebook):
    """Every output with the source of its cell."""
    return [(cell.source, out) for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]


def badge(path):
    """The link to Colab: to the notebook itself if the project names its repository on GitHub."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    page = urls.get("Repository", "").replace("https://github.com", "github") + f"/blob/main/demos/{path.name}"
    colab = "https://colab.research.google.com/"
    return f"[![Open in Colab]({colab}assets/colab-badge.svg)]({colab}{page if 'Repository' in urls else ''})"


def check_clean(notebook):
    """No cell failed, and none wrote to stderr: no warnings, no progress bars."""
    for source, output in outputs(notebook):
        assert output.output_type != "error", f"{source}\n{output}"
        assert output.get("name") != "stderr", f"{source}\n{output.text}"


def tagged(notebook, tag):
    """The one cell with this tag."""
    (found,) = [index for index, cell in enumerate(notebook.cells) if tag in cell.metadata.get("tags", [])]
    return found


def assigned(source):
    """The names that a cell assigns at its top level."""
    targets = [target for node in ast.parse(source).body if isinstance(node, ast.Assign) for target in node.targets]
    return {name.id for target in targets for name in getattr(target, "elts", [target])}


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == list(SMALL)
    assert [path.stem[0] for path in NOTEBOOKS] == ["1", "2", "3", "4", "5", "6", "7", "8"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebooks_can_be_read(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    check_clean(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    in_colab, sizes = tagged(notebook, "remove-cell"), tagged(notebook, "parameters")
    marked = [index for index, cell in enumerate(notebook.cells) if cell.metadata]
    assert marked == [in_colab, sizes], "metadata of a run, such as its times, is noise"
    assert assigned(notebook.cells[sizes].source) == set(SMALL[path.stem])
    assert in_colab == 1
    assert re.search(r'if "google.colab" in sys.modules:\n    %pip install .*"msp-lens\[.*notebook\]"', code[0].source)
    assert badge(path) in notebook.cells[0].source
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
def test_notebooks_run(path, kernel, torch_home):
    # The others ask nothing of TransformerLens that these do not.
    if not has_hooked_transformer() and path.stem[0] not in "12":
        pytest.skip("runs under TransformerLens 3")
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    if not PUBLISHED.is_file():
        notebook.cells = [cell for cell in notebook.cells if "published_mess3()" not in cell.source]
    smaller = "\n".join(f"{name} = {value!r}" for name, value in SMALL[path.stem].items())
    notebook.cells.insert(tagged(notebook, "parameters") + 1, nbformat.v4.new_code_cell(smaller))
    notebook.cells.insert(0, nbformat.v4.new_code_cell(AFRESH))
    # The working tree's package, and no thread pools: several kernels on the same cores stall each other.
    environment = {**os.environ, "TORCH_HOME": str(torch_home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    client = NotebookClient(notebook, km=kernel, timeout=300, resources={"metadata": {"path": str(ROOT)}})
    client.execute(env=environment)
    client.kc.stop_channels()
    check_clean(notebook)
    assert outputs(notebook)
