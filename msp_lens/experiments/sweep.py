"""Sweeps: networks with many settings, trained and probed in the same way, in one table.

Each run has its own folder, named by a fingerprint of everything that decides its result.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from msp_lens._checks import Seed, checked
from msp_lens._files import safe_name, write_json
from msp_lens._long_work import announce, going_on
from msp_lens._names import meant
from msp_lens._parallel import ONE_AT_A_TIME, check_n_jobs, end_with, run_each
from msp_lens._tables import json_records
from msp_lens.data import Weighting
from msp_lens.experiments.runs_bar import RunsBar
from msp_lens.experiments.study import check_has_beliefs, training_numbers
from msp_lens.experiments.sweep_result import RESULT_FILE, SweepResult, SweepRun, read_result
from msp_lens.formation import emergence as probe_checkpoints
from msp_lens.interventions.intervene import intervene
from msp_lens.models.architecture import RecurrentConfig
from msp_lens.models.build import ModelConfig, build_model, config_class, transformer_lens_version
from msp_lens.models.hooked import HookedModel, site_groups
from msp_lens.probing.fit import probe
from msp_lens.processes.process import Process
from msp_lens.training.config import TrainingConfig
from msp_lens.training.folder import check_is_folder, owned
from msp_lens.training.loop import train
from msp_lens.training.presets import recipe

STARTED_FILE = "started"


@checked
def sweep(
    processes: Process | Sequence[Process],
    settings: Mapping[str, Any] | None = None,
    *,
    out: str | Path,
    seeds: Seed | Sequence[Seed] = 0,
    preset: str = "quick",
    sites: str | Sequence[str] | None = None,
    weighting: Weighting = "probability",
    controls: bool = True,
    interventions: bool = False,
    emergence: bool = False,
    n_jobs: int = -1,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> SweepResult:
    """Train and probe a network for every combination of processes, settings and seeds.

    joblib distributes the runs; inside `joblib.parallel_config(backend="dask")` or `"ray"` a cluster that shares the
    folder does the work. A run that fails is recorded and the others continue. Started again with the same folder, a
    sweep makes only the runs that are missing or have failed; a run that was interrupted is resumed. Workers end with
    the process that started them.

    Args:
        processes: One or several.
        settings: Fields of the preset's model config or of `TrainingConfig`, each with a value or a list of values:
            `{"d_model": [1, 2, 4, 64], "n_layers": [1, 4], "steps": 500}`. The preset sets all others.
        out: Folder of the runs.
        seeds: One or several seeds of everything random.
        preset: Recipe of model and training for each process.
        sites: As for `probe`: names, labels or globs.
        weighting: How much each prefix counts in the probes.
        controls: Whether to compare the probes with their controls.
        interventions: Whether to steer each network too, and compare with a placebo and a donor.
        emergence: Whether to probe checkpoints too; spaced logarithmically unless `settings` say otherwise.
        n_jobs: Number of runs at once; -1 for one on each core or worker of a cluster; 1 for this process alone.
        device: Device of the networks.
        progress: Whether to show a progress bar.

    Raises:
        KeyError: if there is no such setting, preset or site; before any work.
        ValueError: if a setting has no value or one out of range, two runs would be the same, a process has no belief
            to find, `out` holds a damaged result, or another process writes there; before any work.
        OSError: if `out` can't be written to.

    Example:
        >>> import tempfile
        >>> from msp_lens.processes.catalog import z1r
        >>> settings = {"d_model": [2, 4], "n_layers": 1, "n_ctx": 3, "steps": 2, "batch_size": 8}
        >>> found = sweep(z1r(), settings, out=tempfile.mkdtemp(), n_jobs=1, progress=False)
        >>> found.to_dataframe()[["d_model", "status"]].values.tolist()
        [[2, 'done'], [4, 'done']]
    """
    check_n_jobs(n_jobs, "runs to make")
    out = Path(out)
    check_is_folder(out)
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
    folders = [out / run["folder"] for run in runs]
    again = f"To go on, call sweep again with out={str(out)!r} and the same options: it makes what is missing."
    with owned(out), going_on(again):
        found = {}
        for run, folder in zip(runs, folders, strict=True):
            if (folder / RESULT_FILE).is_file():
                found[folder] = read_result(folder / RESULT_FILE, fingerprint=run["fingerprint"])
        works = [_Work(run, folder, str(device), os.getpid()) for run, folder in zip(runs, folders, strict=True)]
        todo = [work for work in works if found.get(work.folder, {}).get("status") != "done"]
        for work in todo:
            (work.folder / STARTED_FILE).unlink(missing_ok=True)
        n_done = len(runs) - len(todo)
        before = f", {n_done} of them made before" if n_done else ""
        announce(f"Sweep of {len(runs)} runs{before}: each will be in a folder of its own in {out}.", progress=progress)
        steps = {work.folder: work.run["decisive"]["training"]["steps"] for work in todo}
        with RunsBar(steps, title="Sweep", unit="run", n_done=n_done, progress=progress) as bar:
            for work, result in run_each(_run, todo, n_jobs=n_jobs, was_started=_was_started):
                if isinstance(result, Exception):
                    result = _failure(work.run, result)
                    write_json(work.folder / RESULT_FILE, result)
                found[work.folder] = result
                failed = sum(each["status"] == "failed" for each in found.values())
                bar.done(work.folder, f", {failed} failed" if failed else "")
    return SweepResult(tuple(SweepRun.of(found[folder], folder) for folder in folders))


@dataclass(frozen=True)
class _Work:
    """A run to make: what it is, its folder, the device, and the process that asked for it."""

    run: dict[str, Any]
    folder: Path
    device: str
    parent: int


def _values(name: str, value: Any) -> list[Any]:
    """The values of a setting: the items of a list, tuple, range, array, tensor or column, else the value itself."""
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0:
        return [value]
    values = list(value)
    if not values:
        raise ValueError(f"{name}=[]: give at least one value.")
    return values


def _plan(
    processes: list[Process], varied: dict[str, list], seeds: list[int], preset: str, measures: dict[str, Any]
) -> list[dict[str, Any]]:
    """Every run as JSON-ready values: everything that decides its result, and how the table names it."""
    if not processes:
        raise ValueError("processes is empty: give at least one.")
    kinds = [*[type(recipe(preset, process).model) for process in processes[:1]], TrainingConfig]
    of_model, of_training = ([field.name for field in fields(kind)] for kind in kinds)
    if unknown := [name for name in varied if name not in (*of_model, *of_training)]:
        known = [*of_model, *of_training]
        raise KeyError(f"No setting {unknown[0]!r}; there are {', '.join(known)}.{meant(unknown[0], known)}")
    for process in processes:
        check_has_beliefs(process)
    runs: dict[str, dict[str, Any]] = {}
    combinations = [dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())]
    for process, chosen, seed in itertools.product(processes, combinations, seeds):
        base = recipe(preset, process)
        model = replace(base.model, **{k: v for k, v in chosen.items() if k in of_model})
        training = replace(base.training, **{k: v for k, v in chosen.items() if k in of_training})
        if measures["emergence"] and training.checkpoints is None:
            training = replace(training, checkpoints="logarithmic")
        # As the configs read them: 4 for np.int64(4).
        chosen = {k: getattr(model if k in of_model else training, k) for k in chosen}
        training.checkpoint_steps(model.n_ctx)
        _check_sites(model, measures["sites"])
        decisive = {
            "process": process.to_dict(),
            "model": model.to_dict(),
            "training": training.to_dict(),
            "seed": seed,
            "measures": measures,
        }
        fingerprint = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
        named = {"process": process.title, **chosen, "seed": seed}
        if fingerprint in runs:
            raise ValueError(f"{named} is asked for twice: give each value once.")
        folder = f"{safe_name(process.name)}-{fingerprint}"
        runs[fingerprint] = {"folder": folder, "fingerprint": fingerprint, "settings": named, "decisive": decisive}
    return list(runs.values())


def _check_sites(model: ModelConfig | RecurrentConfig, sites: Sequence[str] | None) -> None:
    """Raise `KeyError` or `ValueError` if a network of this config lacks a site; only a narrow one is built."""
    if sites is not None:
        if isinstance(model, RecurrentConfig):
            narrow = replace(model, d_vocab=2, d_model=1, n_ctx=1)
        else:
            narrow = replace(model, d_vocab=2, d_model=model.n_heads, d_head=1, d_mlp=1, n_ctx=1)
        site_groups(_narrow_model(narrow), sites)


@functools.lru_cache(maxsize=8)
def _narrow_model(config: ModelConfig | RecurrentConfig) -> HookedModel:
    return build_model(config)


def _was_started(work: _Work) -> bool:
    return (work.folder / STARTED_FILE).exists() and not (work.folder / RESULT_FILE).exists()


def _run(work: _Work) -> dict[str, Any]:
    """Make one run, in a worker, and write what was found or what went wrong to its folder."""
    run, folder = work.run, work.folder
    end_with(work.parent)
    with ONE_AT_A_TIME:
        try:
            with _owned_soon(folder):
                (folder / RESULT_FILE).unlink(missing_ok=True)
                (folder / STARTED_FILE).touch()
                result = {**run, "status": "done", **_measured(run["decisive"], folder, work.device)}
                write_json(folder / RESULT_FILE, result)
        except Exception as error:
            result = _failure(run, error)
            # On a full disk, for instance, the table still shows the failure, and the run will be tried again.
            with contextlib.suppress(OSError):
                write_json(folder / RESULT_FILE, result)
    # As it will be read from the file.
    return json.loads(json.dumps(result))


@contextlib.contextmanager
def _owned_soon(folder: Path) -> Iterator[None]:
    """As `owned`, but wait some seconds for a worker of a sweep that was killed to end."""
    with contextlib.ExitStack() as stack:
        for attempt in range(50):
            try:
                stack.enter_context(owned(folder))
                break
            except ValueError:
                if attempt == 49:
                    raise
                time.sleep(0.2)
        yield


def _measured(decisive: Mapping[str, Any], folder: Path, device: str) -> dict[str, Any]:
    """Train, probe, and make the other measurements asked for."""
    process, seed, measures = Process.from_dict(decisive["process"]), decisive["seed"], decisive["measures"]
    config, training = (
        config_class(decisive["model"])(**decisive["model"]),
        TrainingConfig.from_dict(decisive["training"]),
    )
    started = time.perf_counter()
    trained = train(process, config, config=training, seed=seed, device=device, out=folder, progress=False)
    read = {name: measures[name] for name in ("sites", "weighting", "controls")}
    report = probe(trained.model, process, **read, seed=seed, progress=False)
    report.save(folder / "probes.safetensors")
    steered = emerged = None
    if measures["interventions"]:
        steered = intervene(trained.model, process, probes=report, edits="steer", seed=seed, progress=False)
    if measures["emergence"]:
        steer = measures["interventions"]
        emerged = probe_checkpoints(folder, **read, interventions=steer, seed=seed, device=device, progress=False)
        emerged.save(folder / "emergence")
    parameters = sum(weight.numel() for weight in trained.model.parameters())
    return {
        "training": training_numbers(trained) | {"parameters": parameters},
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


def _failure(run: Mapping[str, Any], error: Exception) -> dict[str, Any]:
    text = "".join(traceback.format_exception(error))
    described = {"type": type(error).__name__, "message": str(error), "traceback": text}
    return {**run, "status": "failed", "error": described}
