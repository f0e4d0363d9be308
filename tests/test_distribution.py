"""The wheel and the sdist: what they hold, and that the wheel works in an environment that has nothing else."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
import torch
import yaml

import msp_lens as msp
from msp_lens._extras import from_extra
from msp_lens.figures.interactive import explore_beliefs
from msp_lens.figures.tokens import attention_view, belief_view, readout_view
from msp_lens.models.build import transformer_lens_version

ROOT = Path(__file__).parents[1]
UV = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))

TYPED = """
import msp_lens as msp
from msp_lens.training import TrainingConfig

run = msp.train(msp.mess3(), config=TrainingConfig(steps=2))
report: msp.ProbeReport = msp.probe(run.model, msp.mess3())
r2: float = report["3_post"].scores.held_out.r2
"""
# The command line, with few models in the movie and small pictures, as drawing takes most of a run's time.
COARSELY = """
from msp_lens.cli import main
from msp_lens.experiments import study
from msp_lens.page import pictures

study.CHECKPOINTS, themed = 3, pictures.themed
pictures.themed = lambda draw, *_, png=False, **__: themed(draw, 36, is_narrow=False, png=png)
main()
"""
WRONG = {
    "msp.mess3(x='much')": "reportArgumentType",
    "msp.probe(msp.mess3())": "reportCallIssue",
    "report: msp.ProbeReport = msp.mess3()": "reportAssignmentType",
    "msp.mess3().no_such_name": "reportAttributeAccessIssue",
}


def run(*command, **options):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    built = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(dist):
    (found,) = dist.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory):
    """The folder of programs of an environment with the wheel and what it requires."""
    if UV is None:
        pytest.skip("uv is not installed")
    folder = tmp_path_factory.mktemp("bare")
    run(UV, "venv", "--python", sys.executable, folder / "env", check=True)
    links = os.environ.get("PIP_FIND_LINKS", "").split()
    install = [UV, "pip", "install", "--python", folder / "env", *(f"--find-links={each}" for each in links)]
    versions = ["--constraint", ROOT / "constraints.txt", f"transformer-lens=={transformer_lens_version()}"]
    done = run(*install, *versions, wheel)
    if done.returncode and run(*install, "--dry-run", "--refresh", "packaging").returncode:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    yield folder / "env" / "bin"
    # A gigabyte, which pytest would keep.
    shutil.rmtree(folder)


def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return HeaderParser().parsestr(archive.read(name).decode())


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = [path for path in (ROOT / "msp_lens").rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    assert names == {str(path.relative_to(ROOT)) for path in files}
    assert {"msp_lens/py.typed", "msp_lens/__init__.pyi", "msp_lens/page/templates/report.html"} <= names


def test_the_sdist_holds_what_the_wheel_is_built_from(dist):
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "msp_lens/py.typed"} <= names
    assert not [name for name in names if re.search(r"__pycache__|\.ipynb|^(tests|runs|\.venv)", name)]
    assert sdist.stat().st_size < 2_000_000


def test_there_is_one_version(wheel):
    found = metadata(wheel)
    assert found["Version"] == msp.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == msp.__version__
    assert re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[0] == msp.__version__


def test_what_only_some_need_is_an_extra(wheel):
    required = metadata(wheel).get_all("Requires-Dist")
    core = {re.split(r"[^\w.-]", each)[0] for each in required if "extra ==" not in each}
    assert {"torch", "transformer-lens", "matplotlib"} <= core
    assert core.isdisjoint({"circuitsvis", "plotly", "ipykernel", "ipywidgets", "gguf", "distributed", "pytest"})
    assert {"notebook", "lm", "cluster"} <= set(metadata(wheel).get_all("Provides-Extra"))


@pytest.mark.parametrize(
    ("module", "draw"),
    [
        ("plotly.graph_objects", lambda: explore_beliefs(torch.eye(2), {}, torch.eye(2).long(), torch.ones(2).long())),
        ("circuitsvis.attention", lambda: attention_view(["A"], torch.ones(1, 1, 1))),
        ("circuitsvis.activations", lambda: readout_view(["A"], torch.ones(1, 1, 1), sites=["s"], states=["x"])),
        ("circuitsvis.tokens", lambda: belief_view(["A"], torch.ones(1, 1), states=["x"])),
    ],
)
def test_what_is_missing_is_named_with_its_extra(module, draw, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    package = module.partition(".")[0]
    with pytest.raises(ImportError, match=rf'needs {package}: pip install "msp-lens\[notebook\]"\.'):
        draw()


def test_another_missing_module_is_another_fault():
    with (
        pytest.raises(ModuleNotFoundError, match="No module named 'no_such_module'"),
        from_extra("notebook", purpose="This view", packages=("circuitsvis",)),
    ):
        import no_such_module  # noqa: F401 # pyright: ignore[reportMissingImports]


@pytest.mark.slow
def test_the_wheel_runs_an_experiment_where_nothing_else_is_installed(bare, tmp_path):
    alone = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    assert msp.__version__ in run(bare / "msp-lens", "--version", cwd=tmp_path, env=alone).stdout
    arguments = ("run", "mess3", "--preset", "tiny", "--out", "found")
    done = run(bare / "python", "-c", COARSELY, *arguments, cwd=tmp_path, env=alone)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mess3" in (tmp_path / "found" / "report.html").read_text()
    assert (tmp_path / "found" / "fractal.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "found" / "report.json").read_text())["skipped"] == {}
    assert json.loads((tmp_path / "found" / "config.json").read_text())["versions"]["msp_lens"] == msp.__version__
    view = (
        "import msp_lens, torch; from msp_lens.figures.tokens import belief_view\n"
        "print(msp_lens.__version__, msp_lens.__file__)\n"
        "belief_view(['A'], torch.tensor([[1.0, 0.0]]), states=['x', 'y'])"
    )
    done = run(bare / "python", "-c", view, cwd=tmp_path, env=alone)
    assert done.stdout.startswith(f"{msp.__version__} {bare.parent}/"), done.stdout
    assert done.stderr.splitlines()[-1] == 'ImportError: This view needs circuitsvis: pip install "msp-lens[notebook]".'


@pytest.mark.slow
def test_the_installed_wheel_is_typed(bare, tmp_path):
    """A typed use passes, and each wrong one is an error of its own kind."""
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "standard", "reportMissingTypeStubs": "error"}')
    (tmp_path / "typed.py").write_text(TYPED)
    (tmp_path / "wrong.py").write_text("import msp_lens as msp\n" + "\n".join(WRONG))
    done = run(sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", bare / "python", cwd=tmp_path)
    found = json.loads(done.stdout)["generalDiagnostics"]
    errors = [(Path(each["file"]).name, each["range"]["start"]["line"], each["rule"]) for each in found]
    assert errors == [("wrong.py", line, rule) for line, rule in enumerate(WRONG.values(), start=1)], found
