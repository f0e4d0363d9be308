"""Emergence: the same words probed at every checkpoint of a training.

One pass at each checkpoint gives the probes and the regret. Steering, on request, shows whether a belief that can be
read is used yet.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from msp_lens._checks import check_at_least
from msp_lens.data import BeliefDataset, Weighting, check_weighting
from msp_lens.formation.emergence_report import Emergence, default_words
from msp_lens.formation.snapshots import Snapshot
from msp_lens.interventions.intervene import intervene
from msp_lens.models.build import ModelConfig
from msp_lens.models.hooked import check_fits, site_groups, word_length
from msp_lens.models.model_files import Checkpoint
from msp_lens.models.sites import Sites
from msp_lens.probing.fit import probe
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
        data: A process or a dataset of its words; shorter words are faster. By default, words of the model's context
            from the process it was trained on, a sample if there are over 100,000 (or four million tokens).
        sites: As for `probe`; by default the residual stream along the model.
        weighting: How much each prefix counts, as for `probe`.
        controls: Whether to probe controls too, which gives the skill. The checkpoint of step 0 is the untrained one.
        interventions: Whether to steer at every checkpoint too, and compare with a placebo and a donor.
        n_words: Number of pairs of a word and a target belief to steer.
        position: Position to steer at; by default three quarters into the context.
        seed: Seed of the sampled words, the folds and the pairs: the same at every checkpoint.
        device: Device of the models.
        batch_size: Words in one forward pass.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: if the checkpoints are none or not of one training, or the process is not known; and whatever
            `probe` refuses.
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
    if isinstance(run, TrainingRun):
        run = run.checkpoints
    elif isinstance(run, str | Path):
        run = saved_checkpoints(run)
    checkpoints = tuple(sorted(run, key=lambda each: each.step))
    _check_alike(checkpoints)
    first = checkpoints[0].load(device=device)
    dataset = _dataset(first, data, seed)
    site_groups(first.model, sites)
    shared = {"seed": seed, "batch_size": batch_size}
    reading: dict[str, Any] = {"sites": sites, "weighting": weighting, "controls": controls, "by_position": False}
    steering: dict[str, Any] = {"edits": "steer", "positions": position, "n_words": n_words}
    snapshots = []
    for saved in tqdm(checkpoints, desc="Emergence", unit="checkpoint", disable=not progress):
        model = first.model if saved is checkpoints[0] else saved.load(device=device).model
        report = probe(model, dataset, progress=False, **reading, **shared)
        steered = None
        if interventions:
            single = [each for each in report.probes if len(each.sites) == 1]
            steered = intervene(model, dataset.process, probes=single, **steering, **shared)
        # Without models, words and moments, so that many fit in memory.
        probes = tuple(replace(each, moments=None) for each in report.probes)
        light = replace(report, probes=probes, model=None, dataset=None)
        snapshots.append(Snapshot(saved.step, saved.tokens, light, steered))
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


def _check_alike(checkpoints: Sequence[SavedCheckpoint]) -> None:
    """Raise `ValueError` unless there are some, in order, of one process and architecture; no weights are read."""
    if not checkpoints:
        raise ValueError(
            "run holds no checkpoints: give a training with TrainingConfig(checkpoints=…) and out=, its folder, or "
            "some of saved_checkpoints(folder)."
        )
    for before, after in itertools.pairwise(checkpoints):
        if before.step == after.step:
            raise ValueError(
                f"{before.path} and {after.path} are both of step {after.step}: give the checkpoints of one training."
            )
    first, *others = checkpoints
    process, model = _process(first), first.description["model"]
    for other in others:
        if (its_own := _process(other)) != process:
            trained = f"{other.path} was trained on {its_own!r}, {first.path} on {process!r}"
            raise ValueError(f"{trained}: give the checkpoints of one training.")
        changed = other.description["model"]
        differing = [
            f"{field.name} is {changed.get(field.name)}, not {model.get(field.name)}"
            for field in fields(ModelConfig)
            if changed.get(field.name) != model.get(field.name)
        ]
        if differing:
            what = f"{other.path} is of another architecture than {first.path}: {', '.join(differing)}"
            raise ValueError(f"{what}. Give the checkpoints of one training.")


def _process(saved: SavedCheckpoint) -> Process | None:
    definition = saved.description["process"]
    return Process.from_dict(definition) if definition else None


def _dataset(first: Checkpoint, data: Process | BeliefDataset | None, seed: int) -> BeliefDataset:
    if isinstance(data, BeliefDataset):
        check_fits(first.model, data.process, data.n_ctx, token_map=data.token_map)
        return data
    process = data if data is not None else first.process
    if process is None:
        raise ValueError("The checkpoints don't say what process they were trained on: give data=.")
    n_ctx = word_length(first.model, otherwise="a dataset")
    check_fits(first.model, process, n_ctx)
    return default_words(process, n_ctx, seed=seed)
