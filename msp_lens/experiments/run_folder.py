"""The folder of a run: its files, whose it is, and how a new run replaces an old one once it is complete."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from msp_lens._checks import Count, Seed
from msp_lens._files import is_locked, read_json, safe_name
from msp_lens.data import Weighting
from msp_lens.inference import Inference
from msp_lens.models.hooked import HookedModel
from msp_lens.models.model_files import MODEL_FILE, model_fingerprint
from msp_lens.page.pictures import PICTURES_FOLDER
from msp_lens.probing.probe_report import PROBES_FILE
from msp_lens.training.checkpoints import CHECKPOINTS_FOLDER, read_provenance
from msp_lens.training.folder import STATE_FOLDER, check_is_folder
from msp_lens.training.training_run import METRICS_FILE, TrainingRun

CONFIG_FILE, REPORT_FILE, PAGE_FILE, MOVIE_FILE = "config.json", "report.json", "report.html", "movie.gif"
PICTURES = {"fractal": "fractal.png", "sites": "sites.png", "training": "training.png"}
# What `infer_run` adds.
INFERENCE_FILE, INFERENCE_PICTURE = "inference.json", "inference.png"
RUN_FILES = (
    CONFIG_FILE,
    METRICS_FILE,
    MODEL_FILE,
    PROBES_FILE,
    *PICTURES.values(),
    MOVIE_FILE,
    REPORT_FILE,
    PAGE_FILE,
)
# The trainings with other seeds, if there are any.
SEEDS_FOLDER = "seeds"
# Where a new run is made, within the folder of the old one that it replaces at the end.
NEW_RUN_FOLDER = ".new_run"


class _Config(TypedDict):
    process: dict[str, Any]
    preset: str | None
    model: dict[str, Any]
    training: dict[str, Any]
    weighting: Weighting
    seed: Seed
    versions: dict[str, str]
    started: str | None


class RunConfig(_Config, total=False):
    """What `config.json` says of a run."""

    seeds: Count


def read_config(folder: Path) -> dict[str, Any] | None:
    """The `config.json` in a folder, if it has one; `ValueError` if it is damaged."""
    return read_json(folder / CONFIG_FILE, RunConfig) if (folder / CONFIG_FILE).exists() else None


def read_inference(folder: Path, model: HookedModel) -> Inference | None:
    """What was inferred from the network in a folder, if anything was.

    It raises `ValueError` if the file is damaged, or of another network than this one.
    """
    path = folder / INFERENCE_FILE
    if not path.exists():
        return None
    found = Inference.load(path)
    if found.provenance["fingerprint"] != model_fingerprint(model):
        raise ValueError(f"{path} is of another network than the one in its folder: remove it, or infer again.")
    return found


def choose_folder(
    out: str | Path | None, name: str, *, overwrite: bool = False, config: Mapping[str, Any] | None = None
) -> Path:
    """The folder to write a run of a process to: `out`, or the first free one under `runs/`. Nothing is written.

    A folder that holds an interrupted run of this very config is free, unless somebody goes on with it.

    It raises `ValueError` if `out` is a file, or holds a complete run and `overwrite` is false.
    """
    if out is not None:
        folder = Path(out).expanduser()
        check_is_folder(folder)
    else:
        names = itertools.chain([safe_name(name)], (f"{safe_name(name)}-{k}" for k in itertools.count(2)))
        places = map(Path("runs").joinpath, names)
        folder = next(each for each in places if not each.exists() or _goes_on(each, config))
    present = [file for file in RUN_FILES if (folder / file).exists()]
    is_unfinished = CONFIG_FILE in present and PAGE_FILE not in present
    if present and not overwrite and not is_unfinished:
        remedy = "give another folder, or overwrite it with overwrite=True (--overwrite)."
        raise ValueError(f"out={str(folder)!r} already holds a run ({', '.join(present)}): {remedy}")
    return folder


def _goes_on(folder: Path, config: Mapping[str, Any] | None) -> bool:
    """Whether a folder holds a run of this config that was interrupted."""
    if config is None or not (folder / CONFIG_FILE).exists() or (folder / PAGE_FILE).exists():
        return False
    return _is_of(folder, config, must=False) and not is_locked(folder)


def place_of_run(folder: Path, config: Mapping[str, Any], *, overwrite: bool) -> Path:
    """Where to make a run: in its folder, or hidden within it if the folder holds another run, to be overwritten.

    What was left there by an interrupted run of the same config stays, to be resumed. It raises `ValueError` if the
    folder holds an unfinished run of another config, or a damaged one, and `overwrite` is false.
    """
    is_held = any((folder / file).exists() for file in RUN_FILES)
    if not is_held or (not (folder / PAGE_FILE).exists() and _is_of(folder, config, must=not overwrite)):
        return folder
    place = folder / NEW_RUN_FOLDER
    if place.exists() and not _is_of(place, config, must=False):
        shutil.rmtree(place)
    return place


def replace_run(folder: Path) -> None:
    """Put the run that was made in the hidden folder in the place of the old one; other files stay."""
    # The page goes first and comes last, so that a folder that has one is complete.
    inferred = (INFERENCE_FILE, INFERENCE_PICTURE)
    for name in (PAGE_FILE, PICTURES_FOLDER, CHECKPOINTS_FOLDER, STATE_FOLDER, SEEDS_FOLDER, *inferred, *RUN_FILES):
        new, old = folder / NEW_RUN_FOLDER / name, folder / name
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
        if new.exists() and name != PAGE_FILE:
            new.replace(old)
    (folder / NEW_RUN_FOLDER / PAGE_FILE).replace(folder / PAGE_FILE)
    shutil.rmtree(folder / NEW_RUN_FOLDER)


def seed_folder(folder: Path, seed: int) -> Path:
    """Where a run keeps its training from another seed."""
    return folder / SEEDS_FOLDER / f"seed-{seed}"


def check_config(config: Mapping[str, Any], trained: TrainingRun, folder: Path) -> None:
    """Raise `ValueError` unless the config in a folder is that of its model."""
    theirs = {"process": trained.process.to_dict(), "training": trained.config.to_dict(), "seed": trained.seed}
    if differing := [name for name, value in theirs.items() if config[name] != value]:
        what = f"{folder / CONFIG_FILE} is of another {' and '.join(differing)} than {MODEL_FILE} beside it"
        raise ValueError(f"{what}: it was edited, or copied from another run. Restore it, or remove it.")


def run_options(path: str | Path) -> dict[str, Any]:
    """The `weighting` and `seed` that a run was given; `"probability"` and 0 as far as its files don't say.

    The path is the folder of a run, its model, or one of its checkpoints.
    """
    path = Path(path).expanduser()
    file = path / MODEL_FILE if path.is_dir() else path
    provenance = read_provenance(file)
    folder = file.parent.parent if file.parent.name == CHECKPOINTS_FOLDER else file.parent
    config = read_config(folder) or {}
    defaults = {"weighting": "probability", "seed": provenance.get("seed", 0)}
    return {name: config.get(name, default) for name, default in defaults.items()}


def _is_of(folder: Path, config: Mapping[str, Any], *, must: bool) -> bool:
    """Whether the unfinished run in a folder is of this config; `ValueError` if it must be, and is not."""
    names = ("process", "preset", "model", "training", "weighting", "seed", "seeds")
    try:
        theirs = read_config(folder) or {}
    except ValueError:
        if must:
            raise
        return False
    differing = [name for name in names if theirs.get(name) != config.get(name)]
    if differing and must:
        remedy = "give another folder, or overwrite it with overwrite=True (--overwrite)"
        raise ValueError(f"out={str(folder)!r} holds an unfinished run of another {' and '.join(differing)}: {remedy}.")
    return not differing
