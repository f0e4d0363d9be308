"""Types, as pyright finds them: it takes one core for a minute, beside the other tests."""

import subprocess
import sys
from pathlib import Path


def test_types_agree():
    pyright = Path(sys.executable).with_name("pyright")
    command = [pyright, "--pythonpath", sys.executable]
    found = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
