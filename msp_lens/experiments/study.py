"""A whole experiment: train on a process, probe, intervene, and write a report of what was found."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from msp_lens._checks import Count, Seed, checked, converted
from msp_lens._files import as_saved, write_atomically, write_json
from msp_lens._tables import json_records
from msp_lens._values import Value
from msp_lens.data import Weighting, words
from msp_lens.experiments.over_seeds import OverSeeds
from msp_lens.experiments.run_folder import (
    CONFIG_FILE,
    MOVIE_FILE,
    PAGE_FILE,
    PICTURES,
    REPORT_FILE,
    check_config,
    choose_folder,
    place_of_run,
    read_config,
    read_inference,
    replace_run,
    run_options,
    seed_folder,
)
from msp_lens.formation import Emergence
from msp_lens.formation import emergence as probe_checkpoints
from msp_lens.inference import Inference
from msp_lens.interventions.consistency import bayes_consistency, prediction_consistency
from msp_lens.interventions.intervene import intervene
from msp_lens.interventions.intervention_report import InterventionReport
from msp_lens.interventions.necessity import necessity
from msp_lens.interventions.persistence import persistence
from msp_lens.models.build import build_model, config_class, config_fields, versions
from msp_lens.models.hooked import check_fits, word_length
from msp_lens.models.model_files import MODEL_FILE, model_fingerprint
from msp_lens.page.pictures import inference_picture, run_pictures
from msp_lens.page.render import render_page
from msp_lens.probing.fit import probe
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.processes.process import Process
from msp_lens.training.checkpoints import CHECKPOINTS_FOLDER, read_provenance, saved_checkpoints
from msp_lens.training.folder import owned
from msp_lens.training.loop import train
from msp_lens.training.presets import recipe
from msp_lens.training.training_run import TrainingRun, load_run

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
class Study(Value):
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
        over_seeds: How much the scores depend on the seed, if several were asked for.
        inference: The process inferred from the network, if the folder holds one: `infer_run(folder)` puts it there.
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
    over_seeds: OverSeeds | None = None
    inference: Inference | None = None

    @property
    def page(self) -> Path:
        """The report to open in a browser."""
        return self.folder / PAGE_FILE

    def __repr__(self) -> str:
        found = [getattr(self, name) for name in EXPERIMENTS if name not in self.skipped]
        more = [each for each in (self.over_seeds, self.emergence, self.inference) if each is not None]
        results = [self.training, self.report, *found, *more]
        skipped = [f"No {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n\n".join([*map(repr, results), *skipped, f"Report: {self.page}"])


@checked
def run(
    process: Process,
    *,
    preset: str = "quick",
    weighting: Weighting = "probability",
    out: str | Path | None = None,
    overwrite: bool = False,
    emergence: bool = True,
    seed: Seed = 0,
    seeds: Count = 1,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Study:
    """Train on the process, then `report`: probe every site, write beliefs back, and save what was found.

    A run that was interrupted goes on when it is called again with the same folder and options.

    Args:
        process: The process to learn.
        preset: Recipe of model and training.
        weighting: How much each prefix counts in the probes.
        out: Folder for the results; by default a new one under `runs/`.
        overwrite: Whether a run already in `out` may be replaced. It stays until the new one is complete.
        emergence: Whether to show how beliefs formed; keeps checkpoints even if the preset keeps none.
        seed: Seed of everything random.
        seeds: How many networks to train and probe, from the seeds `seed`, `seed + 1`, …, to see how much the scores
            depend on the seed. All else is reported of the first.
        device: Device for training and probing.
        progress: Whether to show progress bars.

    Raises:
        ValueError: if `out` already holds a run, an option is out of range, or the process has no belief to find;
            before any work is done.
        KeyError: if there is no such preset.
        OSError: if `out` can't be written to; what was trained is there, and the same call goes on.
    """
    chosen = recipe(preset, process)
    check_has_beliefs(process)
    training = chosen.training
    if emergence and training.checkpoints is None:
        training = replace(training, checkpoints="logarithmic", n_checkpoints=CHECKPOINTS)
    all_seeds = [converted(seed + k, Seed, f"seed + {k}") for k in range(seeds)]
    folder = choose_folder(out, process.name, overwrite=overwrite)
    model = build_model(chosen.model, seed=seed, device=device)
    check_fits(model, process, word_length(model))
    config: dict[str, Any] = {
        "process": process.to_dict(),
        "preset": preset,
        "model": chosen.model.to_dict(),
        "training": training.to_dict(),
        "weighting": weighting,
        "seed": seed,
        "seeds": seeds,
        "versions": versions(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with owned(folder):
        place = place_of_run(folder, config, overwrite=overwrite)
        with _explained(folder, "call run again with the same folder and options"):
            write_json(place / CONFIG_FILE, config)
        shared: dict[str, Any] = {"config": training, "device": device, "progress": progress}
        trained = [train(process, model, seed=seed, out=place, **shared)]
        for each in all_seeds[1:]:
            trained.append(train(process, chosen.model, seed=each, out=seed_folder(place, each), **shared))
        study = _report(trained, config, place, emergence, device, progress)
        if place != folder:
            replace_run(folder)
            study = _moved(study, folder)
    return study


@checked
def report(
    folder: str | Path,
    *,
    weighting: Weighting | None = None,
    emergence: bool = True,
    seed: Seed | None = None,
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
        ValueError: if a file in it is damaged or of another training, or its training has not ended.
        OSError: if the folder can't be written to.
    """
    folder = Path(folder)
    trained = [load_run(folder, device=device)]
    config = read_config(folder)
    if config is not None:
        check_config(config, trained[0], folder)
    else:
        # As far as the model's file says.
        known, provenance = config_fields(trained[0].model), read_provenance(folder / MODEL_FILE)
        config = {
            "process": trained[0].process.to_dict(),
            "preset": None,
            "model": {field.name: known[field.name] for field in fields(config_class(known)) if field.name in known},
            "training": trained[0].config.to_dict(),
            **run_options(folder),
            "versions": as_saved(provenance.get("versions", {}), dict[str, str], f"{folder / MODEL_FILE}: versions"),
            "started": None,
        }
    check_has_beliefs(trained[0].process)
    for k in range(1, config.get("seeds", 1)):
        trained.append(load_run(seed_folder(folder, config["seed"] + k), device=device))
    changes = {"weighting": weighting, "seed": seed}
    config |= {key: value for key, value in changes.items() if value is not None}
    with owned(folder):
        return _report(trained, config, folder, emergence, device, progress)


def check_has_beliefs(process: Process) -> None:
    """Raise `ValueError` if the belief is the same after every word, so that there is nothing to probe for."""
    if process.degeneracy().belief_dimensions == 0:
        why = "it has one hidden state" if process.n_states == 1 else "its tokens say nothing about its hidden state"
        raise ValueError(
            f"{process.name} has no belief to find: {why}, so the belief is the same after every word. Choose a "
            "process with memory, such as mess3; train(process) trains a network on this one."
        )


def _report(
    trainings: Sequence[TrainingRun],
    config: dict[str, Any],
    folder: Path,
    emergence: bool,
    device: str | torch.device,
    progress: bool,
) -> Study:
    """Probe, intervene, and write the files."""
    trained, *others = trainings
    process, inferred = trained.process, read_inference(folder, trained.model)
    options: dict[str, Any] = {"weighting": config["weighting"], "seed": config["seed"], "progress": progress}
    probes = probe(trained.model, process, **options)
    over_seeds = None
    if others:
        probed = [(each, probe(each.model, process, **{**options, "seed": each.seed})) for each in others]
        over_seeds = OverSeeds.of([(trained, probes), *probed])
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
    if inferred is not None:
        pictures["inference"] = inference_picture(inferred, process)
    findings = {
        "process": str(process),
        "model_fingerprint": model_fingerprint(trained.model),
        "training": training_numbers(trained),
        "probes": probes.to_dict(),
        **{name: found.to_dict() for name, found in experiments.items()},
        "skipped": skipped,
        "emergence": json_records(formed.to_dataframe().to_dict("records")) if formed is not None else [],
        "over_seeds": over_seeds.to_dict() if over_seeds is not None else None,
    }
    page = render_page(
        trained,
        probes,
        experiments,
        skipped,
        pictures,
        config,
        emergence=formed,
        inference=inferred,
        over_seeds=over_seeds,
        movie=movie,
        model_file=MODEL_FILE,
    )
    with _explained(folder, "call report, or run with the same folder and options"):
        for name, file in PICTURES.items():
            buffer = io.BytesIO()
            pictures[name].light.save(buffer, format="PNG")
            write_atomically(folder / file, buffer.getvalue())
        if movie is not None:
            movie.save_gif(folder / MOVIE_FILE)
        write_json(folder / REPORT_FILE, findings)
        # The page is written last: a folder that has one holds a complete run.
        write_atomically(folder / PAGE_FILE, page)
    found = {name: experiments.get(name) for name in EXPERIMENTS}
    more = {"emergence": formed, "over_seeds": over_seeds, "inference": inferred}
    return Study(trained, probes, **found, skipped=skipped, folder=folder, **more)


@contextmanager
def _explained(folder: Path, remedy: str) -> Iterator[None]:
    """Add to an `OSError` that the training is saved, and how to continue."""
    try:
        yield
    except OSError as error:
        failed = f"Writing to {folder} failed ({error.strerror or error}); what was trained is saved there"
        raise OSError(error.errno, f"{failed}. Make room or make it writable, then {remedy}") from error


def _moved(study: Study, folder: Path) -> Study:
    """The study of a run that was moved to a folder."""
    formed = study.emergence
    if formed is not None:
        formed = replace(formed, checkpoints=saved_checkpoints(folder))
    return replace(study, training=replace(study.training, folder=folder), folder=folder, emergence=formed)


def training_numbers(trained: TrainingRun) -> dict[str, Any]:
    """Seconds, and regret and optimum at each position in nats, for JSON."""
    numbers = {"regret_nats": trained.regret.tolist(), "optimum_nats": trained.optimum.tolist()}
    return {"seconds": trained.seconds, **numbers}
