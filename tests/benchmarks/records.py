"""How long training takes to reach a regret: a record for each commit and machine.

    python -m tests.benchmarks.records [PRESET]
    python -m tests.benchmarks.records --print

For Mess3 and RRXOR and three seeds, it runs the preset's training and notes the seconds after which the regret over all
words was at most 1e-3, 5e-4 and 1.6e-4 nats (it is evaluated every 50 steps, and the clock stands meanwhile). The lines
are kept in `records.jsonl` and printed, newest last.

What is faster: a commit beats another on the same machine and number of threads where its slowest seed is faster than
the other's median. Anything less is noise: seeds differ by a tenth, and a busy core doubles the time.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

import msp_lens as msp
from msp_lens.training import recipe, regret_by_position

FILE = Path(__file__).with_name("records.jsonl")
TARGETS, SEEDS = (1e-3, 5e-4, 1.6e-4), (0, 1, 2)


def processor():
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{(names or [platform.processor()])[0]}, {os.cpu_count()} cores"


def commit():
    """The commit that is measured, with a star if there are changes beside it."""

    def git(*arguments):
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, cwd=FILE.parent)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "../../msp_lens")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("*" if changed else "")


def seconds_to_targets(process, preset, seed):
    """The seconds of training after which each target was reached; `None` for one that was not."""
    chosen = recipe(preset, process)
    model = msp.build_model(chosen.model, seed=seed)
    words = msp.words(process, n_ctx=chosen.model.n_ctx)
    reached, standing, started = dict.fromkeys(TARGETS), 0.0, time.perf_counter()

    def note(record):
        nonlocal standing
        now = time.perf_counter()
        if record["regret"] < 2 * max(TARGETS):
            regret = float(regret_by_position(model, words).mean())
            for target in TARGETS:
                if reached[target] is None and regret <= target:
                    reached[target] = now - started - standing
        standing += time.perf_counter() - now

    run = msp.train(process, model, config=chosen.training, seed=seed, log_to=note, progress=False)
    return list(reached.values()), run.seconds - standing, float(run.regret.mean())


def measure(preset):
    """Train, and add a line for each process to the file."""
    for process in (msp.mess3(x=0.05, a=0.85), msp.rrxor()):
        found = [seconds_to_targets(process, preset, seed) for seed in SEEDS]
        line = {
            "commit": commit(),
            "machine": processor(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "load": round(os.getloadavg()[0], 1),
            "process": process.name,
            "preset": preset,
            "targets": list(TARGETS),
            "seconds": [times for times, _, _ in found],
            "whole": [whole for _, whole, _ in found],
            "regret": [regret for _, _, regret in found],
        }
        with FILE.open("a") as file:
            file.write(json.dumps(line) + "\n")


def text(seconds):
    """Seconds of several seeds: the median and the slowest; a dash if a seed did not get there."""
    if any(each is None for each in seconds):
        return "–"
    return f"{statistics.median(seconds):.0f} ({max(seconds):.0f})"


def show():
    """Print all records."""
    print("seconds to a regret, median of the seeds (slowest)")
    for line in map(json.loads, FILE.read_text().splitlines() if FILE.exists() else []):
        by_target = [text(each) for each in zip(*line["seconds"], strict=True)]
        goals = "   ".join(f"{goal:g}: {took:>9}" for goal, took in zip(line["targets"], by_target, strict=True))
        where = f"{line['threads']} threads, load {line['load']}, {line['machine']}"
        print(
            f"{line['commit']:9} {line['process']:6} {line['preset']:6} {goals}   all: {text(line['whole'])}   {where}"
        )


def main():
    """Measure, unless only asked to print."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    if "--print" not in sys.argv[1:]:
        measure(sys.argv[1] if len(sys.argv) > 1 else "quick")
    show()


if __name__ == "__main__":
    main()
