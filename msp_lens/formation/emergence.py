"""Emergence: the same words probed at every checkpoint of a training.

One pass at each checkpoint gives the probes and the regret. Steering, on request, shows whether a belief that can be
read is used yet.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import torch
from tqdm.auto import tqdm

from msp_lens._checks import AtLeast, Count, Seed, checked
from msp_lens.data import BeliefDataset, Weighting
from msp_lens.formation.emergence_report import Emergence
from msp_lens.formation.series import Series, process_of, series
from msp_lens.formation.snapshots import Snapshot
from msp_lens.interventions.intervene import intervene
from msp_lens.models.hooked import HookedModel, check_fits, site_groups, word_length
from msp_lens.models.sites import Sites
from msp_lens.probing.fit import probe
from msp_lens.processes.process import Process
from msp_lens.training.regret import evaluation_words


@checked
def emergence(
    run: Series,
    data: Process | BeliefDataset | None = None,
    *,
    sites: Sites = None,
    weighting: Weighting = "probability",
    controls: bool = True,
    interventions: bool = False,
    n_words: Annotated[int, AtLeast(2, "an interval needs two pairs of a word and a target")] = 2000,
    position: int | None = None,
    seed: Seed = 0,
    device: str | torch.device = "cpu",
    batch_size: Count | None = None,
    progress: bool = True,
) -> Emergence:
    """Probe every checkpoint of a training, at each site and all sites concatenated, and measure its regret.

    Args:
        run: A training that kept checkpoints, its folder, or some of them: `saved_checkpoints(folder)[::2]`. For models
            that were trained elsewhere, a mapping of steps to models or to files of `save_checkpoint`.
        data: A process or a dataset of its words; shorter words are faster. By default, words of the model's context
            from the process it was trained on, a sample if there are over 100,000 (or four million tokens).
        sites: As for `probe`; by default the residual stream along the model.
        weighting: How much each prefix counts, as for `probe`.
        controls: Whether to probe controls too, which gives the skill. The checkpoint of step 0 is the untrained one.
        interventions: Whether to steer at every checkpoint too, and compare with a placebo and a donor.
        n_words: Number of pairs of a word and a target belief to steer.
        position: Position to steer at; by default three quarters into the context.
        seed: Seed of the sampled words, the folds and the pairs: the same at every checkpoint.
        device: Device of models that are read from files; a given model stays where it is.
        batch_size: Words in one forward pass.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: if the checkpoints are none or not of one training, or the process is not known; and whatever
            `probe` refuses.
        TypeError: if `run` is something else, such as a list of models without their steps.
        KeyError: if the model lacks a site.
        FileNotFoundError: if the folder or the training holds no checkpoints.

    Source: Shai et al. 2024 (arXiv 2405.15943), figure S2.

    Example:
        >>> import tempfile
        >>> from msp_lens.models import ModelConfig
        >>> from msp_lens.processes.catalog import z1r
        >>> from msp_lens.training import TrainingConfig, train
        >>> folder = tempfile.mkdtemp()
        >>> model = ModelConfig(d_vocab=2, n_layers=1, d_model=8, n_ctx=4)
        >>> config = TrainingConfig(steps=4, batch_size=8, checkpoints=(0, 2))
        >>> run = train(z1r(), model, config=config, out=folder, progress=False)
        >>> found = emergence(folder, controls=False, progress=False)
        >>> found.over_training("R² held out").index.tolist()
        [0, 2, 4]
    """
    checkpoints = series(run)
    first = checkpoints[0].load(device=device)
    dataset = _dataset(first.model, data if data is not None else process_of(checkpoints), seed)
    site_groups(first.model, sites)
    if position is not None and not -dataset.n_ctx <= position < dataset.n_ctx:
        raise ValueError(f"position={position}: words have positions 0 to {dataset.n_ctx - 1}.")
    shared = {"seed": seed, "batch_size": batch_size}
    reading: dict[str, Any] = {"sites": sites, "weighting": weighting, "controls": controls, "by_position": False}
    steering: dict[str, Any] = {"edits": "steer", "positions": position, "n_words": n_words, "progress": False}
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


def _dataset(model: HookedModel, data: Process | BeliefDataset | None, seed: int) -> BeliefDataset:
    if isinstance(data, BeliefDataset):
        check_fits(model, data.process, data.n_ctx, token_map=data.token_map)
        return data
    if data is None:
        raise ValueError("The checkpoints don't say what process they were trained on: give data=.")
    n_ctx = word_length(model, otherwise="a dataset")
    check_fits(model, data, n_ctx)
    return evaluation_words(data, n_ctx, seed=seed)
