"""Attach belief probes to a model: one forward pass, then every site, their concatenation and the controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens.activations import stream_activations
from msp_lens.data import BeliefDataset, Weighting, check_weighting, words_for
from msp_lens.models.checkpoints import model_fingerprint
from msp_lens.models.hooked import HookedModel, check_fits, context_length, find_sites
from msp_lens.probing.belief_probe import BELIEF, ProbeScores, fit_probe
from msp_lens.probing.controls import shuffled_beliefs
from msp_lens.probing.moments import Moments, merge_all
from msp_lens.probing.regression import RANK_CUTOFF, held_out_score, least_squares, score
from msp_lens.probing.report import ProbeReport
from msp_lens.processes.process import Process
from msp_lens.training.regret import batch_regret

SHUFFLED = "shuffled belief"


def probe(
    model: HookedModel,
    process: Process | BeliefDataset,
    *,
    sites: str | Sequence[str] | None = None,
    weights: Weighting = "probability",
    n_ctx: int | None = None,
    n_folds: int = 5,
    rank_cutoff: float = RANK_CUTOFF,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = True,
) -> ProbeReport:
    """Regress beliefs on the residual stream, per site and over all sites concatenated.

    Each distinct prefix is one row: every possible word of `n_ctx` tokens where there are at most 100,000 ("the
    population"), else as many sampled ones. Memory does not grow with the rows.

    Args:
        model: Any hooked model that reads the process's tokens as they are.
        process: The process, or a `BeliefDataset` of one's own.
        sites: Hook names or labels; by default the residual stream before the first layer, after each layer and
            after the final LayerNorm.
        weights: How much each prefix counts: `"probability"` (the population answer), `"sequence"` (the paper's:
            every full-length word alike) or `"prefix"` (every distinct prefix alike).
        n_ctx: Length of the words; by default the model's context.
        n_folds: Folds of the cross-validation. Held out means by prefix.
        rank_cutoff: Feature directions with a singular value below this fraction of the largest are left out.
        seed: Seed of the folds, the shuffling and, if need be, the sample.
        batch_size: Words in one forward pass.
        progress: Whether to show a progress bar.

    Raises:
        KeyError: if the model lacks a site.
        ValueError: if the model's vocabulary or context is too small, or an option out of range.

    Source: Shai et al. 2024 (arXiv 2405.15943), section 4.
    """
    check_weighting(weights)
    if n_folds < 2:
        raise ValueError(f"n_folds={n_folds}: cross-validation needs at least 2.")
    names = find_sites(model, sites)
    dataset = _dataset(model, process, n_ctx, seed)
    folds, regret = _collect(
        model, dataset, names, weights, n_folds=n_folds, seed=seed, batch_size=batch_size, progress=progress
    )
    whole = merge_all(folds)
    provenance = {
        "process": dataset.process.to_dict(),
        "process_fingerprint": dataset.process.fingerprint,
        "model_fingerprint": model_fingerprint(model),
        "weights": weights,
        "words": len(dataset),
        "n_ctx": dataset.n_ctx,
        "is_population": dataset.is_population,
        "n_folds": n_folds,
        "rank_cutoff": rank_cutoff,
        "seed": seed,
    }
    groups: list[tuple[str, ...]] = [(name,) for name in names]
    if len(names) > 1:
        groups.append(names)
    probes = tuple(
        fit_probe(
            whole,
            group,
            _scores(whole, folds, group, rank_cutoff),
            provenance=provenance,
            rank_cutoff=rank_cutoff,
        )
        for group in groups
    )
    return ProbeReport(probes=probes, regret=regret, provenance=provenance, model=model, dataset=dataset)


def _dataset(model: HookedModel, process: Process | BeliefDataset, n_ctx: int | None, seed: int) -> BeliefDataset:
    if isinstance(process, BeliefDataset):
        if n_ctx not in (None, process.n_ctx):
            raise ValueError(f"n_ctx={n_ctx}, but the dataset's words have {process.n_ctx} tokens: leave n_ctx out.")
        check_fits(model, process.process, process.n_ctx)
        return process
    length = n_ctx if n_ctx is not None else context_length(model)
    if length is None:
        raise ValueError("The model does not say how long its context is (cfg.n_ctx): give n_ctx=.")
    check_fits(model, process, length)
    return words_for(process, length, seed=seed)


def _collect(
    model: HookedModel,
    dataset: BeliefDataset,
    sites: Sequence[str],
    weights: Weighting,
    *,
    n_folds: int,
    seed: int,
    batch_size: int | None,
    progress: bool,
) -> tuple[list[Moments], Float64[Tensor, "pos"] | None]:
    """One pass: the moments of each fold, and the regret at each position if the model returns logits."""
    generator = torch.Generator().manual_seed(seed)
    fold_of_prefix = _folds(dataset.n_prefixes, n_folds, generator)
    row_weights = dataset.prefix_weights(weights)
    targets = torch.cat([dataset.prefix_beliefs, shuffled_beliefs(dataset, generator=generator)], dim=1)
    n_states = dataset.process.n_states
    folds: list[Moments] = []
    regret: Tensor | None = torch.zeros(dataset.n_ctx, dtype=torch.float64)
    title = "Probing" if progress else None
    for batch in stream_activations(model, dataset.tokens, sites, batch_size=batch_size, progress=title):
        first = dataset.is_first[batch.words]
        ids = dataset.prefix_ids[batch.words][first]
        features = [batch.activations[site][first.to(batch.activations[site].device)].cpu() for site in sites]
        if not folds:
            blocks = {site: values.shape[1] for site, values in zip(sites, features, strict=True)}
            folds = [Moments(blocks | {BELIEF: n_states, SHUFFLED: n_states}) for _ in range(n_folds)]
        rows = torch.cat([*(values.double() for values in features), targets[ids]], dim=1)
        for k, moments in enumerate(folds):
            members = fold_of_prefix[ids] == k
            if members.any():
                moments.update(rows[members], row_weights[ids[members]])
        if regret is not None and _is_next_token_logits(batch.output, dataset):
            regret = regret + batch_regret(batch.output, dataset, batch.words)
        else:
            regret = None
    return folds, regret


def _folds(n_prefixes: int, n_folds: int, generator: torch.Generator) -> Int[Tensor, "prefix"]:
    """A fold for each distinct prefix, of equal sizes, dealt at random."""
    return torch.randperm(n_prefixes, generator=generator) % n_folds


def _is_next_token_logits(output: Any, dataset: BeliefDataset) -> bool:
    return isinstance(output, Tensor) and output.ndim == 3 and output.shape[-1] >= dataset.process.n_tokens


def _scores(whole: Moments, folds: Sequence[Moments], group: tuple[str, ...], rank_cutoff: float) -> ProbeScores:
    in_sample, held_out = [], []
    for target in (BELIEF, SHUFFLED):
        fitted = least_squares(whole, group, target, rank_cutoff=rank_cutoff)
        in_sample.append(score(fitted, whole, group, target))
        held_out.append(held_out_score(folds, group, target, rank_cutoff=rank_cutoff))
    return ProbeScores(in_sample[0], held_out[0], in_sample[1], held_out[1])
