"""What Tab completes in a shell: names of processes, presets, edits and the like, saved models, and their sites.

A shell waits for the answer, and to import torch takes seconds: names are read from the source files, and a model's
layers from the head of its file.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer

from msp_lens._names import spelled

_PACKAGE = Path(__file__).parent
_MODEL_FILE = "model.safetensors"
# A file whose head is longer is not read for a completion.
_LONGEST_HEAD = 10_000_000

Candidates = list[tuple[str, str]]


def complete_process(incomplete: str) -> Candidates:
    return _begun([(name, _first_line(build)) for name, build in _catalog().items()], incomplete)


def complete_parameter(ctx: typer.Context, incomplete: str) -> Candidates:
    """The parameters of the process named before, with their defaults, but for those that are given."""
    build = _catalog().get(str(_named_before(ctx, "process")))
    if build is None:
        return []
    given = {str(pair).partition("=")[0] for pair in ctx.params.get("param") or ()}
    defaults = zip(reversed(build.args.args), reversed(build.args.defaults), strict=False)
    known = [(each.arg, ast.unparse(default)) for each, default in defaults if each.arg not in given]
    values = [(name, value.strip("()").replace(" ", "")) for name, value in reversed(known)]
    return _begun([(f"{name}={value}", "the default") for name, value in values], incomplete)


def complete_preset(incomplete: str) -> Candidates:
    kinds = ast.unparse(_assigned("models/architecture.py", "RecurrentKind"))
    recurrent = ast.literal_eval(kinds.removeprefix("Literal"))
    return _begun([(name, "") for name in (*_keys("training/presets.py", "PRESETS"), *recurrent)], incomplete)


def complete_paper(incomplete: str) -> Candidates:
    tree = _tree("experiments/papers/__init__.py")
    papers = [node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module]
    return _begun([(name.rpartition(".")[2], "") for name in papers], incomplete)


def complete_edit(incomplete: str) -> Candidates:
    return _begun([(spelled(name), "") for name in _keys("interventions/menu.py", "EDITS")], incomplete)


def complete_target(incomplete: str) -> Candidates:
    return _begun([(spelled(name), "") for name in _keys("interventions/targets.py", "TARGETS")], incomplete)


def complete_device(incomplete: str) -> Candidates:
    return _begun([(name, "") for name in ("cpu", "cuda", "mps")], incomplete)


def complete_model(incomplete: str) -> Candidates:
    """Folders that hold a model, and model files. Where there are none, a shell completes paths by itself."""
    start = str(Path(incomplete).expanduser()) + "/" * incomplete.endswith("/") if incomplete else ""
    base = Path(start if start.endswith("/") else Path(start).parent)
    name = "" if not start or start.endswith("/") else Path(start).name
    begun = [each for each in _listed(base) if each.name.startswith(name) and not each.name.startswith(".")]
    # Runs usually lie together in a folder.
    places = [*begun, *(inner for each in begun if each.is_dir() for inner in _listed(each))]
    models = [each for each in places if (each / _MODEL_FILE).is_file() or each.suffix == ".safetensors"]
    return [(str(each), "") for each in models if not each.name.startswith(".") and each.name != _MODEL_FILE]


def complete_site(ctx: typer.Context, incomplete: str) -> Candidates:
    """The labels of the sites along the residual stream of the model named before, or of its recurrent states."""
    fields = _model_fields(_named_before(ctx, "model", "run"))
    layers = range(fields["n_layers"]) if isinstance(fields.get("n_layers"), int) else range(0)
    if "kind" in fields:
        states = ("cell", "hidden") if fields["kind"] == "lstm" else ("hidden",)
        labels = [f"{layer}_{each}" for layer in layers for each in states]
        return _begun([(each, "") for each in [*labels, "all"]], incomplete)
    between = ("post",) if fields.get("attn_only") else ("mid", "post")
    labels = ["0_pre", *(f"{layer}_{each}" for layer in layers for each in between), "ln_final", "all"]
    return _begun([(each, "") for each in labels], incomplete) if layers else []


def _named_before(ctx: typer.Context, *names: str) -> Any:
    """What an option or the first argument of one of these names was given before; `None` if it was not."""
    for name in names:
        if ctx.params.get(name):
            return ctx.params[name]
    # After an option that still lacks its value, arguments are left as they were written.
    first = next((each.name for each in ctx.command.params if each.param_type_name == "argument"), None)
    return ctx.args[0] if first in names and ctx.args else None


def _begun(candidates: Iterable[tuple[str, str]], incomplete: str) -> Candidates:
    return [each for each in candidates if each[0].startswith(incomplete)]


def _tree(file: str) -> ast.Module:
    return ast.parse((_PACKAGE / file).read_text(encoding="utf-8"))


def _catalog() -> dict[str, ast.FunctionDef]:
    """The functions that the catalog's decorator enters, by name."""
    functions = [node for node in _tree("processes/catalog.py").body if isinstance(node, ast.FunctionDef)]
    return {each.name: each for each in functions if any(map(_is_entered, each.decorator_list))}


def _is_entered(decorator: ast.expr) -> bool:
    return isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name) and decorator.func.id == "named"


def _first_line(function: ast.FunctionDef) -> str:
    return (ast.get_docstring(function) or "").partition("\n")[0]


def _assigned(file: str, name: str) -> ast.expr:
    """What a module assigns to a name first."""
    for node in _tree(file).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(each, ast.Name) and each.id == name for each in targets):
                return node.value
    raise KeyError(f"{file} assigns nothing to {name}.")


def _keys(file: str, name: str) -> Iterator[str]:
    """The keys of a module's mapping."""
    value = _assigned(file, name)
    assert isinstance(value, ast.Dict)
    return (ast.literal_eval(key) for key in value.keys if key is not None)


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _model_fields(path: Any) -> dict[str, Any]:
    """The model's config in the head of its file; nothing if it cannot be read."""
    if path is None:
        return {}
    file = Path(path).expanduser()
    try:
        with (file / _MODEL_FILE if file.is_dir() else file).open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            head = json.loads(opened.read(length)) if length < _LONGEST_HEAD else {}
        return json.loads(head["__metadata__"]["msp_lens"])["model"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
