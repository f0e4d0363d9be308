"""Imports go one way, up the floors: a reader goes down this list and has read the science in order."""

import ast
import importlib
import importlib.metadata
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import msp_lens

FLOORS = (
    ("_arrays", "_extras", "_names", "_plain", "_version"),
    ("_annotations", "_ranges"),
    ("_random", "_values", "_files", "_tables", "_threads", "_templates", "_parallel", "_checks", "_distributed"),
    ("_hub", "_long_work"),
    ("_commands",),
    ("figures",),
    ("moments",),
    ("processes",),
    ("beliefs",),
    ("data",),
    ("models",),
    ("training",),
    ("controls",),
    ("probing",),
    ("interventions",),
    ("representation",),
    ("inference",),
    ("formation",),
    ("page",),
    ("experiments",),
    ("_completion",),
    ("_options",),
    ("_experiment_commands",),
    ("cli",),
    ("__main__",),
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
ROOT = Path(msp_lens.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")
ROOMS = sorted({path.parent for path in MODULES} - {ROOT})


def name_of(path):
    """The name a module is imported by."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path): path for path in [ROOT / "__init__.py", *MODULES]}


def imported(path):
    """Modules of msp_lens that a module imports: at its top, inside functions, and for type checks only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from [alias.name for alias in node.names if alias.name in NAMES]
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: name modules in full"
            # What is imported is itself a module, or something that a module or package defines.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from [name if name in NAMES else node.module for name in names if node.module in NAMES]


def circles(graph):
    """Groups of nodes that can all be reached from each other."""
    reached = {}
    for start in graph:
        left, reached[start] = list(graph[start]), set()
        while left:
            if (node := left.pop()) not in reached[start]:
                reached[start].add(node)
                left += graph[node]
    return {
        tuple(sorted(other for other in reached[node] if node in reached[other]))
        for node in graph
        if node in reached[node]
    }


def test_circles_are_found():
    graph = {"a": ["b"], "b": ["c"], "c": ["b", "d"], "d": [], "e": ["e"], "f": ["a"]}
    assert circles(graph) == {("b", "c"), ("e",)}


def test_no_module_imports_itself_by_a_circle():
    graph = {name: set(imported(path)) for name, path in NAMES.items()}
    assert sum(map(len, graph.values())) > 200, "the imports were not found"
    assert circles(graph) == set()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    names = set(imported(path))
    assert "msp_lens" not in names, "the face stands on all floors"
    for other in {name.split(".")[1] for name in names}:
        assert other == part or FLOOR_OF[other] < FLOOR_OF[part], f"{part} imports {other}, on the same floor or above"


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_has_few_files(room):
    files = [path.name for path in room.glob("*.py") if path.name != "__init__.py"]
    assert len(files) <= 13, f"{len(files)} files: {sorted(files)}"


def test_no_two_files_have_one_name():
    """`__init__.py` apart, a file is known by its name without its folder."""
    counts = Counter(path.name for path in MODULES if path.name != "__init__.py")
    assert [name for name, count in counts.items() if count > 1] == []


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


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_calls_with_a_protocol_can_be_checked(path):
    """The checks of annotated calls refuse a protocol whose instances cannot be told, as soon as it is imported."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef) and "Protocol" in map(ast.unparse, node.bases):
            assert "runtime_checkable" in map(ast.unparse, node.decorator_list), node.name


def _assigned(module, name):
    return next(
        node.value for node in module.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
    )


def test_the_face_is_whole():
    stub = ast.parse(Path(msp_lens.__file__).with_suffix(".pyi").read_text())
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    rooms = [alias.name for node in imports if node.module is None for alias in node.names]
    homes = {alias.name: node.module for node in imports if node.module for alias in node.names}
    assert sorted([*rooms, *homes]) == sorted(msp_lens.__all__) == sorted(ast.literal_eval(_assigned(stub, "__all__")))
    assert set(msp_lens.__all__) <= set(dir(msp_lens)), "a name does not complete with Tab"
    assert set(rooms) == {room.name for room in ROOMS if room.parent == ROOT}
    assert len(homes) <= 40, "a face that nobody remembers"
    for name in rooms:
        assert getattr(msp_lens, name) is importlib.import_module(f"msp_lens.{name}")
    for name, home in homes.items():
        assert getattr(msp_lens, name) is getattr(importlib.import_module(f"msp_lens.{home}"), name)
    assert msp_lens.__version__ == importlib.metadata.version("msp-lens")
    with pytest.raises(AttributeError, match="nothing"):
        _ = msp_lens.nothing


def test_rooms_load_on_first_use():
    code = (
        "import sys, msp_lens as msp\n"
        "assert [name for name in sys.modules if name.startswith('msp_lens.')] == ['msp_lens._version']\n"
        "msp.processes.z1r()\n"
        "assert 'msp_lens.probing' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
