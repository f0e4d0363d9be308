"""Two real processes on this machine, as `torchrun` would start them."""

import os
import subprocess
import sys
from pathlib import Path


def run_two(module, folder, *, timeout):
    """Run `worker(index, folder)` of a test module in each of two processes, and assert that both succeed."""
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    code = f"import sys; from {module} import worker; worker(int(sys.argv[1]), sys.argv[2])"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(index), str(folder)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for index in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=timeout)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
