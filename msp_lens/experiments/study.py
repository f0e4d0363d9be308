"""A whole experiment: train on a process, probe, intervene, and write a report of what was found."""

from __future__ import annotations

import math
import sys
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
from msp_lens._long_work import Stages, announce, going_on
from msp_lens._plain import in_encoding_of
from msp_lens._tables import json_records, to_lines
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
from msp_lens.experiments.study_summary import key_results, question_and_answer
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
from msp_lens.page.pictures import inference_picture, run_pictures, save_files
from msp_lens.page.render import render_page
from msp_lens.probing.fit import probe
from msp_lens.probing.probe_report import PROBES_FILE, ProbeReport
from msp_lens.processes.process import Process
from msp_lens.representation.logit_lens import LogitLens, logit_lens
from msp_lens.training.checkpoints import CHECKPOINTS_FOLDER, read_provenance, saved_checkpoints
from msp_lens.training.config import TrainingConfig
from msp_lens.training.folder import owned
from msp_lens.training.loop import train
from msp_lens.training.presets import recipe
from msp_lens.training.training_run import TrainingRun, load_run

# Number of models that a run keeps, for the movie of how beliefs formed; most are early, when most happens.
CHECKPOINTS = 16
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
        logit_lens: What each layer would predict, if the network has a residual stream.
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
    logit_lens: LogitLens | None = None

    @property
    def page(self) -> Path:
        """The report to open in a browser."""
        return self.folder / PAGE_FILE

    def summary(self) -> dict[str, str]:
        """The answer in some ten lines, each under a heading of a word or two."""
        found = {"emergence": self.emergence, "inference": self.inference, "skipped": self.skipped}
        shared = (self.training, self.report, self.interventions)
        lines = key_results(*shared, **found, several_seeds=self.over_seeds is not None, folder=self.folder)
        return lines | {"report": str(self.page), "all files": str(self.folder)}

    def details(self) -> str:
        """Every result as a table with its notes."""
        found = [getattr(self, name) for name in EXPERIMENTS if name not in self.skipped]
        more = [each for each in (self.over_seeds, self.logit_lens, self.emergence, self.inference) if each is not None]
        results = [self.training, self.report, *found, *more]
        skipped = [f"No {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n\n".join([*map(repr, results), *skipped, f"Report: {self.page}"])

    def __repr__(self) -> str:
        title = question_and_answer(self.training, self.report, self.interventions)
        return in_encoding_of(sys.stdout, to_lines(self.summary(), title=title))


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
        out: Folder for the results; by default a new one under `runs/`, or that of the same run if it was interrupted.
        overwrite: Whether a run already in `out` may be replaced. It stays until the new one is complete.
        emergence: Whether to show how beliefs formed; keeps checkpoints even if the preset keeps none.
        seed: Seed of everything random.
        seeds: How many networks to train and probe, from the seeds `seed`, `seed + 1`, …, to see how much the scores
            depend on the seed. All else is reported of the first.
        device: Device for training and probing.
        progress: Whether to say where results will be, and to show progress bars.

    Raises:
        ValueError: if `out` already holds a run, an option is out of range, or the process has no belief to find;
            before any work is done.
        KeyError: if there is no such preset.
        OSError: if `out` can't be written to; what was trained is there, and the same call goes on.
    """
    config = run_config(process, preset=preset, weighting=weighting, emergence=emergence, seed=seed, seeds=seeds)
    chosen, training = recipe(preset, process).model, TrainingConfig.from_dict(config["training"])
    folder = choose_folder(out, process.name, overwrite=overwrite, config=config)
    model = build_model(chosen, seed=seed, device=device)
    check_fits(model, process, word_length(model))
    again = f"To go on, call run again with out={str(folder)!r} and the same options: what is done there is kept."
    with owned(folder), going_on(again):
        place = place_of_run(folder, config, overwrite=overwrite)
        with _explained(folder, "call run again with the same folder and options"):
            write_json(place / CONFIG_FILE, config)
        announce(f"{process.name}, preset {preset}: the report will be {folder / PAGE_FILE}.", progress=progress)
        stages = _stages(emergence, progress, first="Training")
        stages.begin(f"{seeds} networks" * (seeds > 1))
        shared: dict[str, Any] = {"config": training, "device": device, "progress": progress}
        trained = [train(process, model, seed=seed, out=place, **shared)]
        for k in range(1, seeds):
            trained.append(train(process, chosen, seed=seed + k, out=seed_folder(place, seed + k), **shared))
        study = _report(trained, config, place, emergence, device, stages, progress)
        if place != folder:
            replace_run(folder)
            study = _moved(study, folder)
    return study


def run_config(
    process: Process, *, preset: str, weighting: Weighting, seed: int, seeds: int, emergence: bool = True
) -> dict[str, Any]:
    """What `config.json` says of a run with these options; errors as for `run`."""
    chosen = recipe(preset, process)
    check_has_beliefs(process)
    training = chosen.training
    if emergence and training.checkpoints is None:
        training = replace(training, checkpoints="logarithmic", n_checkpoints=CHECKPOINTS)
    converted(seed + seeds - 1, Seed, f"seed + {seeds - 1}")
    return {
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


def _stages(emergence: bool, progress: bool, *, first: str | None = None) -> Stages:
    """What a run does, one after the other."""
    names = ["Probing", "Writing and erasing beliefs:", *["Probing the checkpoints"] * emergence, "Drawing the report"]
    return Stages([*([first] if first is not None else []), *names], progress=progress)


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
    """Report on a training: probe, intervene, write `probes.safetensors`, `report.json`, `report.html` and pictures.

    An earlier report in the folder is replaced; the model, its checkpoints and its metrics are only read.

    Args:
        folder: The folder of `run`, or of `train(..., out=folder)`.
        weighting: How much each prefix counts in the probes; by default the run's own.
        emergence: Whether to show how beliefs formed, if checkpoints were kept.
        seed: Seed of the experiments; by default the run's own.
        device: Device for probing.
        progress: Whether to say where results will be, and to show progress bars.

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
    with owned(folder), going_on("To go on, call report again: it begins anew."):
        announce(f"The report will be {folder / PAGE_FILE}.", progress=progress)
        stages = _stages(emergence and (folder / CHECKPOINTS_FOLDER).is_dir(), progress)
        return _report(trained, config, folder, emergence, device, stages, progress)


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
    stages: Stages,
    progress: bool,
) -> Study:
    """Probe, intervene, and write the files."""
    trained, *others = trainings
    process, inferred = trained.process, read_inference(folder, trained.model)
    options: dict[str, Any] = {"weighting": config["weighting"], "seed": config["seed"], "progress": progress}
    stages.begin(f"{len(trainings)} networks" if others else "every site")
    probes = probe(trained.model, process, **options)
    over_seeds = None
    if others:
        probed = [(each, probe(each.model, process, **{**options, "seed": each.seed})) for each in others]
        over_seeds = OverSeeds.of([(trained, probes), *probed])
    experiments, skipped = {}, {}
    stages.begin(f"{len(EXPERIMENTS)} experiments")
    how = {"seed": config["seed"], "progress": progress}
    for name, experiment in EXPERIMENTS.items():
        try:
            experiments[name] = experiment(trained.model, process, probes=probes, **how)
        except ValueError as refusal:
            # Not every question can be asked of every process.
            skipped[name] = str(refusal)
    formed = movie = None
    if emergence and (folder / CHECKPOINTS_FOLDER).is_dir():
        stages.begin()
        # At most about 7,000 words: each checkpoint is then probed in about a second.
        length = min(len(trained.regret), max(2, int(math.log(7_000, max(2, process.n_tokens)))))
        short = words(process, n_ctx=length, max_words=7_000, seed=config["seed"])
        formed = probe_checkpoints(folder, short, controls=False, device=device, **options)
        movie = formed.plot.movie(probes.best_site.label, device=str(device), theme="both")
    lens = None
    try:
        lens = logit_lens(trained.model, process, probes=probes, n_words=2000, seed=config["seed"])
    except ValueError as refusal:
        # A recurrent network has no residual stream.
        skipped["logit_lens"] = str(refusal)
    stages.begin()
    pictures = run_pictures(trained, probes, experiments, formed, lens)
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
        "logit_lens": lens.to_dict() if lens is not None else None,
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
        lens=lens,
        model_file=MODEL_FILE,
    )
    with _explained(folder, "call report, or run with the same folder and options"):
        for name, file in PICTURES.items():
            write_atomically(folder / file, pictures[name].files["png"])
        save_files(pictures, folder)
        if movie is not None:
            movie.save_gif(folder / MOVIE_FILE)
        probes.save(folder / PROBES_FILE)
        write_json(folder / REPORT_FILE, findings)
        # The page is written last: a folder that has one holds a complete run.
        write_atomically(folder / PAGE_FILE, page)
    found = {name: experiments.get(name) for name in EXPERIMENTS}
    more = {"emergence": formed, "over_seeds": over_seeds, "inference": inferred, "logit_lens": lens}
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
