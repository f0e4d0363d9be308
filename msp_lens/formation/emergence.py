"""Emergence: the same words probed at every checkpoint of a training.

At each checkpoint every site and their concatenation are probed in one pass, which gives the regret as well; on
request, beliefs are also written back, because a belief that can be read need not be used yet.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from msp_lens._checks import check_at_least
from msp_lens._files import read_header
from msp_lens.data import BeliefDataset, Weighting, check_weighting
from msp_lens.formation.emergence_report import Emergence, default_words
from msp_lens.formation.snapshots import Snapshot
from msp_lens.interventions.intervene import intervene
from msp_lens.models.build import ModelConfig
from msp_lens.models.hooked import check_fits, site_groups, word_length
from msp_lens.models.model_files import Checkpoint
from msp_lens.models.sites import Sites
from msp_lens.probing.fit import probe
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.processes.process import Process
from msp_lens.training.checkpoints import SavedCheckpoint, saved_checkpoints
from msp_lens.training.training_run import TrainingRun


def emergence(
    run: str | Path | TrainingRun | Sequence[SavedCheckpoint],
    data: Process | BeliefDataset | None = None,
    *,
    sites: Sites = None,
    weighting: Weighting = "probability",
    controls: bool = True,
    interventions: bool = False,
    n_words: int = 2000,
    position: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
    progress: bool = True,
) -> Emergence:
    """Probe every checkpoint of a training, at each site and all sites concatenated, and measure its regret.

    Args:
        run: A training that kept checkpoints, its folder, or some of them: `saved_checkpoints(folder)[::2]`.
        data: The process whose beliefs to read, or a dataset of its words; shorter words are faster. By default, words
            of the model's context from the process it was trained on: all of them, or a sample if there are more than
            100,000 (or four million tokens).
        sites: As for `probe`; by default the residual stream along the model.
        weighting: How much each prefix counts, as for `probe`.
        controls: Whether to compare every checkpoint with shuffled beliefs, next-token probabilities and token windows,
            which gives the skill. The checkpoint of step 0 serves as an untrained network.
        interventions: Whether to steer at every checkpoint too, and compare with a placebo and a donor.
        n_words: Number of pairs of a word and a target belief to steer.
        position: Position to steer at; by default three quarters into the context.
        seed: Seed of the sampled words, the folds and the pairs: the same at every checkpoint.
        device: Device of the models.
        batch_size: Words in one forward pass.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: if no checkpoint is given, if the checkpoints differ in process or architecture or two are of the
            same step, if neither they nor `data` say the process; and whatever `probe` refuses.
        KeyError: if the model lacks a site.
        FileNotFoundError: if the folder or the training holds no checkpoints.

    Source: Shai et al. 2024 (arXiv 2405.15943), figure S2.

    Example:
        >>> import tempfile
        >>> from msp_lens.processes.catalog import z1r
        >>> from msp_lens.training import TrainingConfig, train
        >>> folder = tempfile.mkdtemp()
        >>> config = TrainingConfig(steps=4, batch_size=8, checkpoints=(0, 2))
        >>> run = train(z1r(), config=config, out=folder, progress=False)
        >>> found = emergence(folder, controls=False, progress=False)
        >>> found.over_training("R² held out").index.tolist()
        [0, 2, 4]
    """
    check_weighting(weighting)
    check_at_least("n_words", n_words, 2, "an interval needs two pairs of a word and a target")
    checkpoints = _in_order(run)
    _check_alike(checkpoints)
    first = checkpoints[0].load(device=device)
    dataset = _dataset(first, data, seed)
    site_groups(first.model, sites)
    snapshots = []
    for saved in tqdm(checkpoints, desc="Emergence", unit="checkpoint", disable=not progress):
        model = first.model if saved is checkpoints[0] else saved.load(device=device).model
        report = probe(
            model,
            dataset,
            sites=sites,
            weighting=weighting,
            controls=controls,
            by_position=False,
            seed=seed,
            batch_size=batch_size,
            progress=False,
        )
        steered = None
        if interventions:
            steered = intervene(
                model,
                dataset.process,
                probes=[each for each in report.probes if len(each.sites) == 1],
                edits="steer",
                positions=position,
                n_words=n_words,
                seed=seed,
                batch_size=batch_size,
            )
        snapshots.append(Snapshot(saved.step, saved.tokens, _light(report), steered))
    provenance = {
        "process": dataset.process.to_dict(),
        "weighting": weighting,
        "n_ctx": dataset.n_ctx,
        "words": len(dataset),
        "is_population": dataset.is_population,
        "own_dataset": dataset is data,
        "seed": seed,
    }
    return Emergence(tuple(snapshots), provenance, checkpoints, dataset)


def _in_order(run: str | Path | TrainingRun | Sequence[SavedCheckpoint]) -> tuple[SavedCheckpoint, ...]:
    """The checkpoints by step."""
    if isinstance(run, TrainingRun):
        found = run.checkpoints
    else:
        found = saved_checkpoints(run) if isinstance(run, str | Path) else tuple(run)
    if not found:
        raise ValueError(
            "run holds no checkpoints: give a training with TrainingConfig(checkpoints=…) and out=, its folder, or "
            "some of saved_checkpoints(folder)."
        )
    ordered = tuple(sorted(found, key=lambda each: each.step))
    for before, after in itertools.pairwise(ordered):
        if before.step == after.step:
            raise ValueError(
                f"{before.path} and {after.path} are both of step {after.step}: give the checkpoints of one training."
            )
    return ordered


def _dataset(first: Checkpoint, data: Process | BeliefDataset | None, seed: int) -> BeliefDataset:
    """The words that every checkpoint is probed on."""
    if isinstance(data, BeliefDataset):
        check_fits(first.model, data.process, data.n_ctx, token_map=data.token_map)
        return data
    process = data if data is not None else first.process
    if process is None:
        raise ValueError("The checkpoints don't say what process they were trained on: give data=.")
    n_ctx = word_length(first.model, otherwise="a dataset")
    check_fits(first.model, process, n_ctx)
    return default_words(process, n_ctx, seed=seed)


def _check_alike(checkpoints: Sequence[SavedCheckpoint]) -> None:
    """Raise `ValueError` unless all are of one process and architecture; reads the files' headers only."""
    first = checkpoints[0]
    process, architecture = _kind(first)
    for other in checkpoints[1:]:
        other_process, other_architecture = _kind(other)
        if other_process != process:
            raise ValueError(
                f"{other.path} was trained on {other_process!r}, {first.path} on {process!r}: give the checkpoints of "
                "one training."
            )
        differing = [key for key, value in architecture.items() if other_architecture[key] != value]
        if differing:
            raise ValueError(
                f"{other.path} is of another architecture than {first.path}: "
                + ", ".join(f"{key} is {other_architecture[key]}, not {architecture[key]}" for key in differing)
                + ". Give the checkpoints of one training."
            )


def _kind(saved: SavedCheckpoint) -> tuple[Process | None, dict[str, Any]]:
    description = json.loads(read_header(saved.path)["msp_lens"])
    process = Process.from_dict(description["process"]) if description["process"] else None
    return process, {field.name: description["model"].get(field.name) for field in fields(ModelConfig)}


def _light(report: ProbeReport) -> ProbeReport:
    """The report without its model, words and moments, so that many fit in memory."""
    return replace(
        report, probes=tuple(replace(each, moments=None) for each in report.probes), model=None, dataset=None
    )
