"""Emergence: the same words probed at every checkpoint of a run.

Words and beliefs are made once. At each checkpoint every site and their concatenation are probed in one pass, the
regret comes from the same pass, and, where asked for, beliefs are written back: a belief that can be read is not yet
one that is used.
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

from msp_lens._files import read_header
from msp_lens.data import BeliefDataset, Weighting, check_weighting, words
from msp_lens.formation.emergence_report import Emergence, Snapshot
from msp_lens.interventions.intervene import intervene
from msp_lens.interventions.intervention_report import InterventionReport
from msp_lens.models.build import ModelConfig
from msp_lens.models.hooked import HookedModel, check_fits, site_groups, word_length
from msp_lens.models.model_files import Checkpoint
from msp_lens.models.sites import Sites
from msp_lens.probing.fit import MAX_TOKENS, MAX_WORDS, probe
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.processes.process import Process
from msp_lens.training.checkpoints import SavedCheckpoint, saved_checkpoints
from msp_lens.training.training_run import TrainingRun

__all__ = ["Emergence", "Snapshot", "emergence"]


def emergence(
    run: str | Path | TrainingRun | Sequence[SavedCheckpoint],
    process: Process | BeliefDataset | None = None,
    *,
    sites: Sites = None,
    weighting: Weighting = "probability",
    n_ctx: int | None = None,
    n_words: int | None = None,
    controls: bool = True,
    interventions: bool = False,
    n_pairs: int = 2000,
    position: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
    progress: bool = True,
) -> Emergence:
    """Probe every checkpoint of a run, at each site and all concatenated, with the regret beside.

    Args:
        run: A training that kept checkpoints, its folder, or some of them: `saved_checkpoints(folder)[::2]`.
        process: Whose beliefs to read, or a dataset of its words; by default the process that was trained on.
        sites: As for `probe`; by default the residual stream along the model.
        weighting: How much each prefix counts, as for `probe`.
        n_ctx: Length of the words; by default the model's context. Shorter words are faster, and as fair a picture.
        n_words: How many words to sample where there are too many for all (100,000, or four million tokens' worth).
        controls: Whether to set every checkpoint beside shuffled beliefs, next-token probabilities and token windows,
            which gives the skill. An untrained network comes for nothing: the checkpoint of step 0.
        interventions: Whether to steer at every checkpoint too, beside a placebo and a donor.
        n_pairs: Pairs of a word and a target belief that are steered.
        position: Where they are; by default three quarters into the context.
        seed: Seed of the sampled words, the folds and the pairs: the same at every checkpoint.
        device: Where the models go.
        batch_size: Words in one forward pass.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: if no checkpoint is given, if they are of different processes, of different architectures or of the
            same step, or don't say their process and none is given; and whatever `probe` refuses.
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
        >>> found = emergence(folder, n_ctx=4, controls=False, progress=False)
        >>> found.over_training("R² held out").index.tolist()
        [0, 2, 4]
    """
    check_weighting(weighting)
    if n_pairs < 2:
        raise ValueError(f"n_pairs={n_pairs}: an interval needs at least 2 pairs of a word and a target.")
    checkpoints = _in_order(run)
    _check_alike(checkpoints)
    first = checkpoints[0].load(device=device)
    dataset = _dataset(first, process, n_ctx, n_words, seed)
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
            steered = _steered(model, dataset, report, position, n_pairs, seed, batch_size)
        snapshots.append(Snapshot(saved.step, saved.tokens, _light(report), steered))
    provenance = {
        "process": dataset.process.to_dict(),
        "weighting": weighting,
        "n_ctx": dataset.n_ctx,
        "words": len(dataset),
        "is_population": dataset.is_population,
        "own_dataset": isinstance(process, BeliefDataset),
        "max_words": _most_words(dataset.n_ctx, n_words),
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
                f"{before.path} and {after.path} are both of step {after.step}: give the checkpoints of one run."
            )
    return ordered


def _dataset(
    first: Checkpoint, process: Process | BeliefDataset | None, n_ctx: int | None, n_words: int | None, seed: int
) -> BeliefDataset:
    """The words that every checkpoint is probed on."""
    if isinstance(process, BeliefDataset):
        if n_ctx not in (None, process.n_ctx) or n_words is not None:
            raise ValueError(f"n_ctx={n_ctx}, n_words={n_words}: a dataset has its own words; leave both out.")
        check_fits(first.model, process.process, process.n_ctx)
        return process
    process = process or first.process
    if process is None:
        raise ValueError("The checkpoints don't say what process they were trained on: give process=.")
    length = word_length(first.model, n_ctx)
    if n_words is not None and n_words < 2:
        raise ValueError(f"n_words={n_words}: sample at least 2 words.")
    check_fits(first.model, process, length)
    return words(process, n_ctx=length, max_words=_most_words(length, n_words), seed=seed)


def _most_words(length: int, n_words: int | None) -> int:
    """All words are visited where there are no more than these, else so many are drawn."""
    return n_words or min(MAX_WORDS, max(2, MAX_TOKENS // length))


def _check_alike(checkpoints: Sequence[SavedCheckpoint]) -> None:
    """Raise `ValueError` unless all are of one process and architecture; reads the files' headers only."""
    first = checkpoints[0]
    process, architecture = _kind(first)
    for other in checkpoints[1:]:
        other_process, other_architecture = _kind(other)
        if other_process != process:
            raise ValueError(
                f"{other.path} was trained on {other_process!r}, {first.path} on {process!r}: give the checkpoints of "
                "one run."
            )
        differing = [key for key, value in architecture.items() if other_architecture[key] != value]
        if differing:
            raise ValueError(
                f"{other.path} is of another architecture than {first.path}: "
                + ", ".join(f"{key} is {other_architecture[key]}, not {architecture[key]}" for key in differing)
                + ". Give the checkpoints of one run."
            )


def _kind(saved: SavedCheckpoint) -> tuple[Process | None, dict[str, Any]]:
    description = json.loads(read_header(saved.path)["msp_lens"])
    process = Process.from_dict(description["process"]) if description["process"] else None
    return process, {field.name: description["model"].get(field.name) for field in fields(ModelConfig)}


def _steered(
    model: HookedModel,
    dataset: BeliefDataset,
    report: ProbeReport,
    position: int | None,
    n_pairs: int,
    seed: int,
    batch_size: int | None,
) -> InterventionReport:
    single = [each for each in report.probes if len(each.sites) == 1]
    return intervene(
        model,
        dataset.process,
        probes=single,
        edits="steer",
        positions=position,
        n_words=n_pairs,
        seed=seed,
        batch_size=batch_size,
    )


def _light(report: ProbeReport) -> ProbeReport:
    """The report without its model, words and moments: what a run of many checkpoints can be held in memory with."""
    return replace(
        report, probes=tuple(replace(each, moments=None) for each in report.probes), model=None, dataset=None
    )
