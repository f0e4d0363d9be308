"""Imports go one way, up the floors: a reader goes down this list and has read the science in order."""

import ast
import importlib
import importlib.metadata
from pathlib import Path

import pytest

import msp_lens

FLOORS = (
    ("_random", "_files", "_tables", "_parallel", "_checks", "_distributed"),
    ("figures",),
    ("moments",),
    ("processes",),
    ("beliefs",),
    ("data",),
    ("models",),
    ("training",),
    ("probing",),
    ("interventions",),
    ("formation",),
    ("page",),
    ("experiments",),
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


def _assigned(module, name):
    return next(
        node.value for node in module.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
    )


def test_the_face_is_whole():
    stub = ast.parse(Path(msp_lens.__file__).with_suffix(".pyi").read_text())
    homes = {
        alias.name: node.module for node in ast.walk(stub) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert sorted(homes) == sorted(msp_lens.__all__) == sorted(ast.literal_eval(_assigned(stub, "__all__")))
    for name, home in homes.items():
        assert getattr(msp_lens, name) is getattr(importlib.import_module(f"msp_lens.{home}"), name)
    assert msp_lens.__version__ == importlib.metadata.version("msp-lens")
    with pytest.raises(AttributeError, match="nothing"):
        _ = msp_lens.nothing
