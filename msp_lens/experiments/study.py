"""A whole experiment: train on a process, probe, intervene, and write a report of what was found."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from msp_lens._files import read_json, write_atomically, write_json
from msp_lens._tables import json_records
from msp_lens.data import Weighting, check_weighting, words
from msp_lens.formation import Emergence
from msp_lens.formation import emergence as probe_checkpoints
from msp_lens.interventions.consistency import bayes_consistency, prediction_consistency
from msp_lens.interventions.intervene import intervene
from msp_lens.interventions.intervention_report import InterventionReport
from msp_lens.interventions.necessity import necessity
from msp_lens.interventions.persistence import persistence
from msp_lens.models.build import ModelConfig, config_fields, versions
from msp_lens.models.model_files import MODEL_FILE, load_checkpoint, model_fingerprint
from msp_lens.page.pictures import run_pictures
from msp_lens.page.render import render_page
from msp_lens.probing.fit import probe
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.processes.process import Process
from msp_lens.training.checkpoints import CHECKPOINTS_FOLDER, read_provenance
from msp_lens.training.loop import train
from msp_lens.training.presets import recipe
from msp_lens.training.training_run import METRICS_FILE, TrainingRun, load_run

CONFIG_FILE, REPORT_FILE, PAGE_FILE, MOVIE_FILE = "config.json", "report.json", "report.html", "movie.gif"
PICTURES = {"fractal": "fractal.png", "sites": "sites.png", "training": "training.png"}
RUN_FILES = (CONFIG_FILE, METRICS_FILE, MODEL_FILE, *PICTURES.values(), MOVIE_FILE, REPORT_FILE, PAGE_FILE)
# Number of models that a run keeps, for the movie of how beliefs formed.
CHECKPOINTS = 11
# By the names of the study's fields. All but the main table use fewer words than by default, to take only seconds.
EXPERIMENTS: dict[str, Callable[..., Any]] = {
    "interventions": intervene,
    "persistence": partial(persistence, n_words=500),
    "necessity": partial(necessity, n_words=500),
    "bayes_consistency": partial(bayes_consistency, n_words=2000),
    "prediction_consistency": partial(prediction_consistency, n_words=2000),
}


@dataclass(frozen=True, eq=False)
class Study:
    """What a run found, and its folder.

    Attributes:
        training: The trained model and its regret.
        report: Probes of every site and their concatenation.
        interventions: What writing beliefs did.
        persistence: How long the effect of writing a belief lasts.
        necessity: Whether the belief is needed, and whether it is enough.
        bayes_consistency: Whether the beliefs read follow the dynamics of the process.
        prediction_consistency: Whether the model predicts what the beliefs read imply.
        skipped: Name of each experiment that is not possible here, with the reason; its field is `None`.
        folder: The folder with all files.
        emergence: How beliefs formed, if it was asked for and the run kept checkpoints.
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
        found = [getattr(self, name) for name in EXPERIMENTS if name not in self.skipped]
        results = [self.training, self.report, *found, *([self.emergence] if self.emergence is not None else [])]
        skipped = [f"No {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n\n".join([*map(repr, results), *skipped, f"Report: {self.page}"])


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
    """Train on the process, then `report`: probe every site, write beliefs back, and save what was found.

    Args:
        process: The process to learn.
        preset: Recipe of model and training.
        weighting: How much each prefix counts in the probes.
        out: Folder for the results; by default a new one under `runs/`.
        overwrite: Whether a run already in `out` may be replaced.
        emergence: Whether to show how beliefs formed; keeps checkpoints even if the preset keeps none.
        seed: Seed of everything random.
        device: Device for training and probing.
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
    folder.mkdir(parents=True, exist_ok=True)
    for file in RUN_FILES:
        (folder / file).unlink(missing_ok=True)
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
    # A former training in the folder is never resumed: it was refused, or is overwritten.
    trained = train(
        process, preset=preset, config=training, seed=seed, device=device, out=folder, resume=False, progress=progress
    )
    return _report(trained, config, folder, emergence, device, progress)


def report(
    folder: str | Path,
    *,
    weighting: Weighting | None = None,
    emergence: bool = True,
    seed: int | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Study:
    """Report on the training in a folder: probe, intervene, write `report.json`, `report.html` and pictures.

    An earlier report in the folder is replaced; the model, its checkpoints and its metrics are only read.

    Args:
        folder: The folder of `run`, or of `train(..., out=folder)`.
        weighting: How much each prefix counts in the probes; by default the run's own.
        emergence: Whether to show how beliefs formed, if checkpoints were kept.
        seed: Seed of the experiments; by default the run's own.
        device: Device for probing.
        progress: Whether to show progress bars.

    Raises:
        FileNotFoundError: if the folder holds no trained model.
        ValueError: if its model is damaged, its training has not ended, or there is no such weighting.
    """
    if weighting is not None:
        check_weighting(weighting)
    folder = Path(folder)
    trained = load_run(folder, device=device)
    if (folder / CONFIG_FILE).exists():
        config = read_json(folder / CONFIG_FILE)
    else:
        # As far as the model's file says.
        known = config_fields(trained.model)
        config = {
            "process": trained.process.to_dict(),
            "preset": None,
            "model": {field.name: known[field.name] for field in fields(ModelConfig) if field.name in known},
            "training": trained.config.to_dict(),
            **run_options(folder),
            "versions": load_checkpoint(folder).provenance["versions"],
            "started": None,
        }
    changes = {"weighting": weighting, "seed": seed}
    config |= {key: value for key, value in changes.items() if value is not None}
    return _report(trained, config, folder, emergence, device, progress)


def _report(
    trained: TrainingRun,
    config: dict[str, Any],
    folder: Path,
    emergence: bool,
    device: str | torch.device,
    progress: bool,
) -> Study:
    """Probe, intervene, and write the files."""
    process = trained.process
    options: dict[str, Any] = {"weighting": config["weighting"], "seed": config["seed"], "progress": progress}
    probes = probe(trained.model, process, **options)
    experiments, skipped = {}, {}
    for name, experiment in EXPERIMENTS.items():
        try:
            experiments[name] = experiment(trained.model, process, probes=probes, seed=config["seed"])
        except ValueError as refusal:
            # Not every question can be asked of every process.
            skipped[name] = str(refusal)
    formed = movie = None
    if emergence and (folder / CHECKPOINTS_FOLDER).is_dir():
        # At most about 7,000 words: each checkpoint is then probed in about a second.
        length = min(len(trained.regret), max(2, int(math.log(7_000, max(2, process.n_tokens)))))
        short = words(process, n_ctx=length, max_words=7_000, seed=config["seed"])
        formed = probe_checkpoints(folder, short, controls=False, device=device, **options)
        movie = formed.plot.movie(probes.best_site.label, device=str(device))
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
        "training": training_numbers(trained),
        "probes": probes.to_dict(),
        **{name: found.to_dict() for name, found in experiments.items()},
        "skipped": skipped,
        "emergence": json_records(formed.to_dataframe().to_dict("records")) if formed is not None else [],
    }
    write_json(folder / REPORT_FILE, findings)
    page = render_page(
        trained, probes, experiments, skipped, pictures, config, emergence=formed, movie=movie, model_file=MODEL_FILE
    )
    write_atomically(folder / PAGE_FILE, page)
    found = {name: experiments.get(name) for name in EXPERIMENTS}
    return Study(trained, probes, **found, skipped=skipped, folder=folder, emergence=formed)


def training_numbers(trained: TrainingRun) -> dict[str, Any]:
    """Seconds, and regret and optimum at each position in nats, for JSON."""
    numbers = {"regret_nats": trained.regret.tolist(), "optimum_nats": trained.optimum.tolist()}
    return {"seconds": trained.seconds, **numbers}


def run_options(path: str | Path) -> dict[str, Any]:
    """The `weighting` and `seed` that a run was given; `"probability"` and 0 as far as its files don't say.

    The path is the folder of a run, its model, or one of its checkpoints.
    """
    file = Path(path) / MODEL_FILE if Path(path).is_dir() else Path(path)
    provenance = read_provenance(file)
    folder = file.parent.parent if file.parent.name == CHECKPOINTS_FOLDER else file.parent
    config = read_json(folder / CONFIG_FILE) if (folder / CONFIG_FILE).exists() else {}
    defaults = {"weighting": "probability", "seed": provenance.get("seed", 0)}
    return {name: config.get(name, default) for name, default in defaults.items()}


def choose_folder(out: str | Path | None, name: str, *, overwrite: bool = False) -> Path:
    """The folder to write a run to: `out`, or the first free one under `runs/`. Nothing is created or removed.

    It raises `ValueError` if `out` is a file, or holds a run and `overwrite` is false.
    """
    if out is not None:
        folder = Path(out)
    else:
        names = itertools.chain([name], (f"{name}-{k}" for k in itertools.count(2)))
        folder = next(each for each in map(Path("runs").joinpath, names) if not each.exists())
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out={str(folder)!r} is a file: give a folder.")
    present = [file for file in RUN_FILES if (folder / file).exists()]
    if present and not overwrite:
        remedy = "give another folder, or overwrite it with overwrite=True (--overwrite)."
        raise ValueError(f"out={str(folder)!r} already holds a run ({', '.join(present)}): {remedy}")
    return folder
