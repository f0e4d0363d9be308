"""Sweeps: networks with many settings, trained and probed in the same way, in one table.

Each run has its own folder, named by a fingerprint of everything that decides its result. A sweep that is started again
makes only the runs that are missing.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from msp_lens._files import read_json, write_json
from msp_lens._parallel import run_each
from msp_lens._tables import json_records
from msp_lens.data import Weighting, check_weighting
from msp_lens.experiments.sweep_result import RESULT_FILE, SweepResult, SweepRun
from msp_lens.formation import emergence as probe_checkpoints
from msp_lens.interventions.intervene import intervene
from msp_lens.models.build import ModelConfig, transformer_lens_version
from msp_lens.probing.fit import probe
from msp_lens.processes.process import Process
from msp_lens.training.config import TrainingConfig
from msp_lens.training.loop import train
from msp_lens.training.presets import recipe

STARTED_FILE = "started"
# Initial weights are drawn from the process-wide generator, so runs in threads of one process must take turns.
_ONE_AT_A_TIME = threading.Lock()


def sweep(
    processes: Process | Sequence[Process],
    settings: Mapping[str, Any] | None = None,
    *,
    out: str | Path,
    seeds: int | Sequence[int] = 0,
    preset: str = "quick",
    sites: str | Sequence[str] | None = None,
    weighting: Weighting = "probability",
    controls: bool = True,
    interventions: bool = False,
    emergence: bool = False,
    n_jobs: int = -1,
    device: str = "cpu",
    progress: bool = True,
) -> SweepResult:
    """Train and probe a network for every combination of processes, settings and seeds.

    joblib distributes the runs, and each worker gets its share of the cores. Inside
    `joblib.parallel_config(backend="dask")` or `"ray"` a cluster does the work; it must share the folder. A run that
    fails is recorded and the others continue. Started again with the same folder, a sweep makes only the runs that are
    missing or have failed.

    Args:
        processes: One or several.
        settings: Fields of `ModelConfig` or `TrainingConfig`, each with a value or a list of values:
            `{"d_model": [1, 2, 4, 64], "n_layers": [1, 4], "steps": 500}`. The preset sets all others.
        out: Folder of the runs.
        seeds: One or several seeds of everything random.
        preset: Recipe of model and training for each process.
        sites: As for `probe`: names, labels or globs.
        weighting: How much each prefix counts in the probes.
        controls: Whether to compare the probes with their controls.
        interventions: Whether to steer each network too, and compare with a placebo and a donor.
        emergence: Whether to probe checkpoints of the training too; they are spaced logarithmically unless `settings`
            say otherwise.
        n_jobs: Number of runs at once; -1 for one on each core, or on each worker of a cluster. With 1 they are made
            in this process.
        device: Device of the networks.
        progress: Whether to show a progress bar.

    Raises:
        KeyError: if there is no such setting or preset.
        ValueError: if a setting has no value or one out of range, or two runs would be the same. All are raised before
            any work.

    Example:
        >>> import tempfile
        >>> from msp_lens.processes.catalog import z1r
        >>> settings = {"d_model": [2, 4], "n_layers": 1, "n_ctx": 3, "steps": 2, "batch_size": 8}
        >>> found = sweep(z1r(), settings, out=tempfile.mkdtemp(), n_jobs=1, progress=False)
        >>> found.to_dataframe()[["d_model", "status"]].values.tolist()
        [[2, 'done'], [4, 'done']]
    """
    check_weighting(weighting)
    if n_jobs == 0:
        raise ValueError("n_jobs=0: give the number of runs to make at once, or -1 for all cores.")
    measures = {
        "sites": [sites] if isinstance(sites, str) else list(sites) if sites is not None else None,
        "weighting": weighting,
        "controls": controls,
        "interventions": interventions,
        "emergence": emergence,
    }
    worlds = [processes] if isinstance(processes, Process) else list(processes)
    varied = {name: _values(name, value) for name, value in (settings or {}).items()}
    runs = _plan(worlds, varied, _values("seeds", seeds), preset, measures)
    folders = [Path(out) / run["folder"] for run in runs]
    done = [folder for folder in folders if (folder / RESULT_FILE).is_file()]
    found: dict[str, dict[str, Any]] = {str(folder): read_json(folder / RESULT_FILE) for folder in done}
    todo = [
        (run, str(folder), device)
        for run, folder in zip(runs, folders, strict=True)
        if found.get(str(folder), {}).get("status") != "done"
    ]
    for _, folder, _ in todo:
        (Path(folder) / STARTED_FILE).unlink(missing_ok=True)
    with tqdm(total=len(runs), initial=len(runs) - len(todo), desc="Sweep", unit="run", disable=not progress) as bar:
        for (run, folder, _), result in run_each(_run, todo, n_jobs=n_jobs, was_started=_was_started):
            if isinstance(result, Exception):
                result = _failure(run, result)
                write_json(Path(folder) / RESULT_FILE, result)
            found[folder] = result
            failed = sum(each["status"] == "failed" for each in found.values())
            bar.set_postfix_str(f"{failed} failed" if failed else "")
            bar.update()
    return SweepResult(tuple(SweepRun.of(found[str(folder)], folder) for folder in folders))


def _values(name: str, value: Any) -> list[Any]:
    """The values of a setting: the items of a list, tuple, range or array, else the value itself."""
    if not isinstance(value, list | tuple | range | np.ndarray):
        return [value]
    values = value.tolist() if isinstance(value, np.ndarray) else list(value)
    if not values:
        raise ValueError(f"{name}=[]: give at least one value.")
    return values


def _plan(
    processes: Sequence[Process],
    varied: Mapping[str, Sequence[Any]],
    seeds: Sequence[int],
    preset: str,
    measures: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Every run as JSON-ready values: everything that decides its result, and how the table names it."""
    if not processes:
        raise ValueError("processes is empty: give at least one.")
    of_model, of_training = ([field.name for field in fields(kind)] for kind in (ModelConfig, TrainingConfig))
    for name in varied:
        if name not in (*of_model, *of_training):
            raise KeyError(f"No setting {name!r}; there are {', '.join((*of_model, *of_training))}.")
    runs: dict[str, dict[str, Any]] = {}
    combinations = [dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())]
    for process, chosen, seed in itertools.product(processes, combinations, seeds):
        base = recipe(preset, process)
        model = replace(base.model, **{k: v for k, v in chosen.items() if k in of_model})
        training = replace(base.training, **{k: v for k, v in chosen.items() if k in of_training})
        if measures["emergence"] and training.checkpoints is None:
            training = replace(training, checkpoints="logarithmic")
        decisive = {
            "process": process.to_dict(),
            "model": model.to_dict(),
            "training": training.to_dict(),
            "seed": seed,
            "measures": dict(measures),
        }
        fingerprint = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
        label = repr(process).partition(": ")[0]
        named = {"process": label, **chosen, "seed": seed}
        if fingerprint in runs:
            raise ValueError(f"{named} is asked for twice: give each value once.")
        folder = f"{process.name}-{fingerprint}"
        runs[fingerprint] = {"folder": folder, "fingerprint": fingerprint, "settings": named, "decisive": decisive}
    return list(runs.values())


def _was_started(work: tuple[dict[str, Any], str, str]) -> bool:
    folder = Path(work[1])
    return (folder / STARTED_FILE).exists() and not (folder / RESULT_FILE).exists()


def _run(work: tuple[dict[str, Any], str, str]) -> dict[str, Any]:
    """Make one run, in a worker, and write what was found or what went wrong to its folder."""
    run, where, device = work
    folder = Path(where)
    with _ONE_AT_A_TIME:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / RESULT_FILE).unlink(missing_ok=True)
            (folder / STARTED_FILE).touch()
            result = {**_described(run), "status": "done", **_measured(run["decisive"], folder, device)}
            write_json(folder / RESULT_FILE, result)
        except Exception as error:
            result = _failure(run, error)
            try:
                write_json(folder / RESULT_FILE, result)
            except OSError:
                # On a full disk, for instance: the table shows the failure, and the run will be tried again.
                return result
    return result


def _measured(decisive: Mapping[str, Any], folder: Path, device: str) -> dict[str, Any]:
    """Train, probe, and make the other measurements asked for."""
    process = Process.from_dict(decisive["process"])
    training = TrainingConfig.from_dict(decisive["training"])
    seed, measures = decisive["seed"], decisive["measures"]
    started = time.perf_counter()
    trained = train(
        process, ModelConfig(**decisive["model"]), config=training, seed=seed, device=device, out=folder, progress=False
    )
    read = {"sites": measures["sites"], "weighting": measures["weighting"], "controls": measures["controls"]}
    report = probe(trained.model, process, **read, seed=seed, progress=False)
    report.save(folder / "probes.safetensors")
    steered = None
    if measures["interventions"]:
        steered = intervene(trained.model, process, probes=report, edits="steer", seed=seed)
    emerged = None
    if measures["emergence"]:
        steer = measures["interventions"]
        emerged = probe_checkpoints(folder, **read, interventions=steer, seed=seed, device=device, progress=False)
        emerged.save(folder / "emergence")
    return {
        "training": {
            "seconds": trained.seconds,
            "regret_nats": trained.regret.tolist(),
            "optimum_nats": trained.optimum.tolist(),
            "parameters": sum(weight.numel() for weight in trained.model.parameters()),
        },
        "sites": report.to_dict()["sites"],
        "interventions": steered.to_dict()["results"] if steered else [],
        "emergence": json_records(emerged.to_dataframe().to_dict("records")) if emerged else [],
        "machine": {
            "seconds": time.perf_counter() - started,
            "device": device,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformer_lens": transformer_lens_version(),
        },
    }


def _described(run: Mapping[str, Any]) -> dict[str, Any]:
    return {key: run[key] for key in ("folder", "fingerprint", "settings", "decisive")}


def _failure(run: Mapping[str, Any], error: Exception) -> dict[str, Any]:
    return {
        **_described(run),
        "status": "failed",
        "error": {
            "type": type(error).__name__,
            "message": str(error),
            "traceback": "".join(traceback.format_exception(error)),
        },
    }
