"""Whole experiments. The main job: train on a process, probe, intervene, and write a report of what was found."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from msp_lens._files import write_atomically, write_json
from msp_lens.data import Weighting, check_weighting
from msp_lens.figures.curves import plot_training
from msp_lens.interventions.dynamics import commutation, unembedding
from msp_lens.interventions.experiment import InterventionReport, intervene
from msp_lens.interventions.findings import Findings
from msp_lens.interventions.necessity import necessity
from msp_lens.interventions.persistence import persistence
from msp_lens.models.build import versions
from msp_lens.models.checkpoints import MODEL_FILE, model_fingerprint
from msp_lens.models.hooked import HookedModel
from msp_lens.probing.fit import probe
from msp_lens.probing.report import ProbeReport
from msp_lens.processes.process import Process
from msp_lens.reporting import render_page
from msp_lens.training.loop import train
from msp_lens.training.presets import recipe
from msp_lens.training.run import METRICS_FILE, TrainingRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFIG_FILE, REPORT_FILE, PAGE_FILE = "config.json", "report.json", "report.html"
PICTURES = {"fractal": "fractal.png", "sites": "sites.png", "training": "training.png"}
EXPERIMENTS = ("interventions", "persistence", "necessity", "commutation", "unembedding")
RUN_FILES = (CONFIG_FILE, METRICS_FILE, MODEL_FILE, *PICTURES.values(), REPORT_FILE, PAGE_FILE)


@dataclass(frozen=True, eq=False)
class Study:
    """What a run found and where it lies.

    Attributes:
        training: The trained model and its regret.
        report: Probes of every site and their concatenation.
        interventions: What writing beliefs did.
        persistence: For how long.
        necessity: Whether the belief is needed, and whether it is enough.
        commutation: Whether the beliefs read follow the process's dynamics.
        unembedding: Whether predictions are those that the belief read implies.
        skipped: Why an experiment could not be made of this process and model, by name; its field is then `None`.
        folder: Where everything was written.
    """

    training: TrainingRun
    report: ProbeReport
    interventions: InterventionReport | None
    persistence: Findings | None
    necessity: Findings | None
    commutation: Findings | None
    unembedding: Findings | None
    skipped: dict[str, str]
    folder: Path

    @property
    def page(self) -> Path:
        """The report to open in a browser."""
        return self.folder / PAGE_FILE

    def __repr__(self) -> str:
        found = [repr(getattr(self, name)) for name in EXPERIMENTS if name not in self.skipped]
        skipped = [f"No {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n\n".join([repr(self.training), repr(self.report), *found, *skipped, f"Report: {self.page}"])


def run(
    process: Process,
    *,
    preset: str = "quick",
    weights: Weighting = "probability",
    out: str | Path | None = None,
    overwrite: bool = False,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Study:
    """Train on the process, probe every site, write beliefs back, and report.

    Args:
        process: The world to learn.
        preset: Recipe of model and training.
        weights: How much each prefix counts in the probes.
        out: Folder for the results; by default a new one under `runs/`.
        overwrite: Whether a run already in `out` may be replaced.
        seed: Seed of everything random.
        device: Where to train and probe.
        progress: Whether to show progress bars.

    Raises:
        ValueError: if `out` already holds a run, or an option is out of range; before any work is done.
        KeyError: if there is no such preset.
    """
    chosen = recipe(preset, process)
    check_weighting(weights)
    folder = choose_folder(out, process.name, overwrite=overwrite)
    _empty(folder)
    config = {
        "process": process.to_dict(),
        "preset": preset,
        "model": chosen.model.to_dict(),
        "training": chosen.training.to_dict(),
        "weights": weights,
        "seed": seed,
        "versions": versions(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(folder / CONFIG_FILE, config)

    training = train(process, preset=preset, seed=seed, device=device, out=folder, resume=False, progress=progress)
    report = probe(training.model, process, weights=weights, seed=seed, progress=progress)
    experiments, skipped = _experiments(training.model, process, report, seed)

    pictures = {name: _png(figure) for name, figure in _figures(training, report).items()}
    for name, image in pictures.items():
        write_atomically(folder / PICTURES[name], image)
    findings = {
        "process": str(process),
        "model_fingerprint": model_fingerprint(training.model),
        "training": {
            "seconds": training.seconds,
            "regret_nats": training.regret.tolist(),
            "optimum_nats": training.optimum.tolist(),
        },
        "probes": report.to_dict(),
    }
    findings |= {name: found.to_dict() for name, found in experiments.items()}
    findings["skipped"] = skipped
    write_json(folder / REPORT_FILE, findings)
    page = render_page(training, report, experiments, skipped, pictures, config, model_file=MODEL_FILE)
    write_atomically(folder / PAGE_FILE, page)
    return Study(
        training, report, **{name: experiments.get(name) for name in EXPERIMENTS}, skipped=skipped, folder=folder
    )


def _experiments(
    model: HookedModel, process: Process, report: ProbeReport, seed: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """What each experiment found, or why it refused: not each question can be asked of each process."""
    # Fewer words than by default: the main table apart, these are to add seconds to a run.
    experiments: dict[str, Callable[[], InterventionReport | Findings]] = {
        "interventions": lambda: intervene(model, process, probes=report, seed=seed),
        "persistence": lambda: persistence(model, process, probes=report, n=500, seed=seed),
        "necessity": lambda: necessity(model, process, probes=report, max_words=500, seed=seed),
        "commutation": lambda: commutation(model, process, probes=report, max_words=2000, seed=seed),
        "unembedding": lambda: unembedding(model, process, probes=report, max_words=2000, seed=seed),
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


def _figures(training: TrainingRun, report: ProbeReport) -> dict[str, Figure]:
    last_layer = [label for label in report if label.endswith("_post")][-1]
    records: list[dict[str, Any]] = list(training.metrics)
    return {
        "fractal": report.plot(last_layer, "concatenated"),
        "sites": report.plot_scores(),
        "training": plot_training(
            [record["tokens"] for record in records],
            [record["regret"] for record in records],
            training.regret.tolist(),
        ),
    }


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=180)
    return buffer.getvalue()
