"""Imports go one way, up the floors: a reader goes down this list and has read the science in order."""

import ast
from pathlib import Path

import pytest

import msp_lens

FLOORS = (
    ("_random", "_files", "_tables", "_parallel"),
    ("figures",),
    ("processes",),
    ("beliefs",),
    ("data",),
    ("models",),
    ("activations",),
    ("training",),
    ("probing",),
    ("interventions",),
    ("analysis",),
    ("caveats", "pictures"),
    ("reporting", "sweep_results"),
    ("studies", "sweeps"),
    ("cli",),
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
ROOT = Path(msp_lens.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def imported(path):
    """Parts of msp_lens that a module imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("msp_lens"):
            yield from [node.module.split(".")[1]] if "." in node.module else [alias.name for alias in node.names]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for other in imported(path):
        assert other == part or FLOOR_OF[other] < FLOOR_OF[part], f"{part} imports {other}, on the same floor or above"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_readable(path):
    assert len(path.read_text().splitlines()) <= 450


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_models_know_transformer_lens(path):
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        modules |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
        modules |= {node.module} if isinstance(node, ast.ImportFrom) else set()
    assert "models" in path.parts or not [name for name in modules if (name or "").startswith("transformer_lens")]


def test_the_face_is_whole():
    assert sorted(msp_lens._HOME_OF) == msp_lens.__all__ == dir(msp_lens)
    for name in msp_lens.__all__:
        assert getattr(msp_lens, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = msp_lens.nothing
