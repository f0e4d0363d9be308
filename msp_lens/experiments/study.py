"""Whole experiments. The main job: train on a process, probe, intervene, and write a report of what was found."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from msp_lens._files import read_json, write_atomically, write_json
from msp_lens._tables import json_records
from msp_lens.data import Weighting, check_weighting
from msp_lens.formation.emergence import Emergence
from msp_lens.formation.emergence import emergence as probe_checkpoints
from msp_lens.interventions.consistency import bayes_consistency, prediction_consistency
from msp_lens.interventions.intervene import intervene
from msp_lens.interventions.intervention_report import InterventionReport
from msp_lens.interventions.necessity import necessity
from msp_lens.interventions.persistence import persistence
from msp_lens.models.build import ModelConfig, config_fields, versions
from msp_lens.models.hooked import HookedModel
from msp_lens.models.model_files import MODEL_FILE, load_checkpoint, model_fingerprint
from msp_lens.page.pictures import run_pictures
from msp_lens.page.render import render_page
from msp_lens.probing.fit import probe
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.processes.process import Process
from msp_lens.training.checkpoints import CHECKPOINTS_FOLDER
from msp_lens.training.loop import train
from msp_lens.training.presets import recipe
from msp_lens.training.training_run import METRICS_FILE, TrainingRun, load_run

CONFIG_FILE, REPORT_FILE, PAGE_FILE, MOVIE_FILE = "config.json", "report.json", "report.html", "movie.gif"
PICTURES = {"fractal": "fractal.png", "sites": "sites.png", "training": "training.png"}
EXPERIMENTS = ("interventions", "persistence", "necessity", "bayes_consistency", "prediction_consistency")
RUN_FILES = (CONFIG_FILE, METRICS_FILE, MODEL_FILE, *PICTURES.values(), MOVIE_FILE, REPORT_FILE, PAGE_FILE)
# Models that a run keeps, for the movie of how beliefs formed; and how many words they are probed on, about.
CHECKPOINTS, EMERGENCE_WORDS = 11, 7_000


@dataclass(frozen=True, eq=False)
class Study:
    """What a run found and where it lies.

    Attributes:
        training: The trained model and its regret.
        report: Probes of every site and their concatenation.
        interventions: What writing beliefs did.
        persistence: For how long.
        necessity: Whether the belief is needed, and whether it is enough.
        bayes_consistency: Whether the beliefs read follow the process's dynamics.
        prediction_consistency: Whether predictions are those that the belief read implies.
        skipped: Why an experiment could not be made of this process and model, by name; its field is then `None`.
        folder: Where everything was written.
        emergence: How beliefs formed, where the run kept checkpoints and it was asked for.
    """

    training: TrainingRun
    report: ProbeReport
    interventions: InterventionReport | None
    persistence: InterventionReport | None
    necessity: InterventionReport | None
    bayes_consistency: InterventionReport | None
    prediction_consistency: InterventionReport | None
    skipped: dict[str, str]
    folder: Path
    emergence: Emergence | None = None

    @property
    def page(self) -> Path:
        """The report to open in a browser."""
        return self.folder / PAGE_FILE

    def __repr__(self) -> str:
        found = [repr(getattr(self, name)) for name in EXPERIMENTS if name not in self.skipped]
        formed = [repr(self.emergence)] if self.emergence is not None else []
        skipped = [f"No {name}: {reason}" for name, reason in self.skipped.items()]
        parts = [repr(self.training), repr(self.report), *found, *formed, *skipped, f"Report: {self.page}"]
        return "\n\n".join(parts)


def run(
    process: Process,
    *,
    preset: str = "quick",
    weighting: Weighting = "probability",
    out: str | Path | None = None,
    overwrite: bool = False,
    emergence: bool = True,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Study:
    """Train on the process, then `report`: probe every site, write beliefs back, and write down what was found.

    Args:
        process: The world to learn.
        preset: Recipe of model and training.
        weighting: How much each prefix counts in the probes.
        out: Folder for the results; by default a new one under `runs/`.
        overwrite: Whether a run already in `out` may be replaced.
        emergence: Whether to keep checkpoints along the training, where the preset keeps none, and to show how beliefs
            formed.
        seed: Seed of everything random.
        device: Where to train and probe.
        progress: Whether to show progress bars.

    Raises:
        ValueError: if `out` already holds a run, or an option is out of range; before any work is done.
        KeyError: if there is no such preset.
    """
    chosen = recipe(preset, process)
    check_weighting(weighting)
    training = chosen.training
    if emergence and training.checkpoints is None:
        training = replace(training, checkpoints="logarithmic", n_checkpoints=CHECKPOINTS)
    folder = choose_folder(out, process.name, overwrite=overwrite)
    _empty(folder)
    config = {
        "process": process.to_dict(),
        "preset": preset,
        "model": chosen.model.to_dict(),
        "training": training.to_dict(),
        "weighting": weighting,
        "seed": seed,
        "versions": versions(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(folder / CONFIG_FILE, config)
    # Nothing of a former run is gone on with: what was in the folder has been refused, or is to be overwritten.
    trained = train(
        process,
        preset=preset,
        config=training,
        seed=seed,
        device=device,
        out=folder,
        resume=False,
        progress=progress,
    )
    return _report(trained, config, folder, emergence=emergence, device=device, progress=progress)


def report(
    folder: str | Path,
    *,
    weighting: Weighting | None = None,
    emergence: bool = True,
    seed: int | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Study:
    """Report on a training that lies in a folder: probe, intervene, write `report.json`, `report.html` and pictures.

    A former report in the folder is replaced; the model, its checkpoints and its metrics are only read.

    Args:
        folder: What `run` left, or `train(..., out=folder)`.
        weighting: How much each prefix counts in the probes; by default as in the run's config.
        emergence: Whether to show how beliefs formed, where checkpoints were kept.
        seed: Seed of the experiments; by default the training's.
        device: Where to probe.
        progress: Whether to show progress bars.

    Raises:
        FileNotFoundError: if the folder holds no trained model.
        ValueError: if its model is damaged, its training has not ended, or `weighting` is unknown.
    """
    if weighting is not None:
        check_weighting(weighting)
    folder = Path(folder)
    trained = load_run(folder, device=device)
    changes = {"weighting": weighting, "seed": seed}
    config = _config(trained, folder) | {key: value for key, value in changes.items() if value is not None}
    return _report(trained, config, folder, emergence=emergence, device=device, progress=progress)


def _config(trained: TrainingRun, folder: Path) -> dict[str, Any]:
    """What the run was asked for: as written by `run`, or as far as the model's file says."""
    if (folder / CONFIG_FILE).exists():
        return read_json(folder / CONFIG_FILE)
    known, provenance = config_fields(trained.model), load_checkpoint(folder).provenance
    return {
        "process": trained.process.to_dict(),
        "preset": None,
        "model": {field.name: known[field.name] for field in fields(ModelConfig) if field.name in known},
        "training": trained.config.to_dict(),
        "weighting": "probability",
        "seed": trained.seed,
        "versions": provenance["versions"],
        "started": None,
    }


def _report(
    trained: TrainingRun,
    config: dict[str, Any],
    folder: Path,
    *,
    emergence: bool,
    device: str | torch.device,
    progress: bool,
) -> Study:
    """Probe, intervene, and write it all down."""
    process, seed = trained.process, config["seed"]
    probes = probe(trained.model, process, weighting=config["weighting"], seed=seed, progress=progress)
    experiments, skipped = _experiments(trained.model, process, probes, seed)
    formed = None
    if emergence and (folder / CHECKPOINTS_FOLDER).is_dir():
        formed = probe_checkpoints(
            folder,
            weighting=config["weighting"],
            n_ctx=_short_words(process, len(trained.regret)),
            n_words=EMERGENCE_WORDS,
            controls=False,
            seed=seed,
            device=device,
            progress=progress,
        )
    movie = formed.movie(probes.best_site.label, device=str(device)) if formed is not None else None
    pictures = run_pictures(trained, probes, experiments.get("interventions"), formed)
    for name, file in PICTURES.items():
        buffer = io.BytesIO()
        pictures[name].light.save(buffer, format="PNG")
        write_atomically(folder / file, buffer.getvalue())
    if movie is not None:
        movie.save_gif(folder / MOVIE_FILE)

    findings = {
        "process": str(process),
        "model_fingerprint": model_fingerprint(trained.model),
        "training": {
            "seconds": trained.seconds,
            "regret_nats": trained.regret.tolist(),
            "optimum_nats": trained.optimum.tolist(),
        },
        "probes": probes.to_dict(),
    }
    findings |= {name: found.to_dict() for name, found in experiments.items()}
    findings["skipped"] = skipped
    findings["emergence"] = _emergence_rows(formed)
    write_json(folder / REPORT_FILE, findings)
    page = render_page(
        trained, probes, experiments, skipped, pictures, config, emergence=formed, movie=movie, model_file=MODEL_FILE
    )
    write_atomically(folder / PAGE_FILE, page)
    found = {name: experiments.get(name) for name in EXPERIMENTS}
    return Study(trained, probes, **found, skipped=skipped, folder=folder, emergence=formed)


def _short_words(process: Process, n_ctx: int) -> int:
    """How long words may be for all of them to be few: each checkpoint is probed in about a second."""
    return min(n_ctx, max(2, int(math.log(EMERGENCE_WORDS, max(2, process.n_tokens)))))


def _emergence_rows(formed: Emergence | None) -> list[dict[str, Any]]:
    if formed is None:
        return []
    return json_records(formed.to_dataframe().to_dict(orient="records"))


def _experiments(
    model: HookedModel, process: Process, report: ProbeReport, seed: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """What each experiment found, or why it refused: not each question can be asked of each process."""
    # Fewer words than by default: the main table apart, these are to add seconds to a run.
    short: dict[str, Any] = {"probes": report, "n_words": 2000, "seed": seed}
    experiments: dict[str, Callable[[], InterventionReport]] = {
        "interventions": lambda: intervene(model, process, probes=report, seed=seed),
        "persistence": lambda: persistence(model, process, probes=report, n_words=500, seed=seed),
        "necessity": lambda: necessity(model, process, probes=report, n_words=500, seed=seed),
        "bayes_consistency": lambda: bayes_consistency(model, process, **short),
        "prediction_consistency": lambda: prediction_consistency(model, process, **short),
    }
    found, skipped = {}, {}
    for name in EXPERIMENTS:
        try:
            found[name] = experiments[name]()
        except ValueError as refusal:
            skipped[name] = str(refusal)
    return found, skipped


def choose_folder(out: str | Path | None, name: str, *, overwrite: bool = False) -> Path:
    """The folder to write a run to: `out`, or the first that is free under `runs/`. Nothing is made or removed.

    Raises:
        ValueError: if `out` is a file, or holds a run and `overwrite` is false.
    """
    folder = Path(out) if out is not None else _free_folder(Path("runs"), name)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out={str(folder)!r} is a file: give a folder.")
    present = [file for file in RUN_FILES if (folder / file).exists()]
    if present and not overwrite:
        raise ValueError(
            f"out={str(folder)!r} already holds a run ({', '.join(present)}): give another folder, or overwrite it "
            "with overwrite=True (--overwrite)."
        )
    return folder


def _empty(folder: Path) -> None:
    """Make the folder, or clear it of a former run; files of others stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in RUN_FILES:
        (folder / file).unlink(missing_ok=True)


def _free_folder(parent: Path, name: str) -> Path:
    candidates = itertools.chain([parent / name], (parent / f"{name}-{k}" for k in itertools.count(2)))
    return next(folder for folder in candidates if not folder.exists())
