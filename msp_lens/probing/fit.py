"""Attach belief probes to a model: one forward pass, then every site, their concatenation and the controls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Float64
from torch import Tensor
from tqdm.auto import tqdm

from msp_lens.activations import stream_activations
from msp_lens.beliefs.filtering import next_token_probabilities
from msp_lens.data import BeliefDataset, Weighting, check_weighting, words_for
from msp_lens.models.checkpoints import model_fingerprint
from msp_lens.models.hooked import HookedModel, check_fits, context_length, find_sites, site_label
from msp_lens.probing.belief_probe import BELIEF, fit_probe
from msp_lens.probing.controls import Controls, ControlScore, TokenWindows, shuffled_beliefs, untrained_twins
from msp_lens.probing.evaluate import NEXT_TOKEN, SHUFFLED, evaluate, next_token_score
from msp_lens.probing.regression import RANK_CUTOFF
from msp_lens.probing.report import Increment, ProbeReport
from msp_lens.probing.rows import RowBatch
from msp_lens.probing.solvers import Method, Solver
from msp_lens.probing.splits import Accumulator, Cells, Split, SplitRows, accumulate, split_rows
from msp_lens.processes.process import Process
from msp_lens.training.regret import batch_regret

Observer: TypeAlias = Callable[[RowBatch, Tensor, int], None]


def probe(
    model: HookedModel,
    process: Process | BeliefDataset,
    *,
    sites: str | Sequence[str] | None = None,
    weights: Weighting = "probability",
    n_ctx: int | None = None,
    split: Split = "prefix",
    subtree_depth: int | None = None,
    n_folds: int = 5,
    method: Method = "ols",
    rank: int | None = None,
    penalty: float | None = None,
    intercept: bool = True,
    rank_cutoff: float = RANK_CUTOFF,
    concatenate: bool = True,
    by_position: bool = True,
    own_positions: bool = False,
    controls: bool = True,
    untrained: int | Sequence[HookedModel] = 0,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = True,
) -> ProbeReport:
    """Regress beliefs on the residual stream, per site and over all sites concatenated, beside controls.

    Each distinct prefix is one row: every possible word of `n_ctx` tokens where there are at most 100,000 ("the
    population"), else as many sampled ones. Memory does not grow with the rows. All of it comes from one forward pass
    (and one for each untrained twin).

    Args:
        model: Any hooked model that reads the process's tokens as they are.
        process: The process, or a `BeliefDataset` of one's own.
        sites: Hook names or labels; by default the residual stream before the first layer, after each layer and
            after the final LayerNorm.
        weights: How much each prefix counts: `"probability"` (the population answer), `"sequence"` (the paper's:
            every full-length word alike) or `"prefix"` (every distinct prefix alike).
        n_ctx: Length of the words; by default the model's context.
        split: What is held out together: `"prefix"`, `"sequence"` (whole words; their beginnings are shared) or
            `"subtree"` (all words that begin alike: the strictest).
        subtree_depth: How many first tokens the words of a subtree share; by default as few as give enough subtrees.
        n_folds: Folds of the cross-validation.
        method: `"ols"`, `"ridge"` (on standardised features) or `"reduced_rank"`.
        rank: Rank of the map, for `"reduced_rank"`.
        penalty: Ridge's penalty, in units of the standardised features' variance; by default chosen on held-out
            folds, and scored on folds that had no say in the choice.
        intercept: Whether maps have one.
        rank_cutoff: Directions of the standardised features with a singular value below this fraction of the largest
            are left out.
        concatenate: Whether to probe all sites together too, and each site with all before it.
        by_position: Whether to score the probes at each position (as far as memory allows: half a gigabyte).
        own_positions: Whether to fit probes at each position on its own too.
        controls: Whether to set the probes beside shuffled beliefs, next-token probabilities and token windows.
        untrained: How many untrained twins of the model to probe as well, or such models.
        seed: Seed of the folds, the shuffling, the twins and, if need be, the sample.
        batch_size: Words in one forward pass.
        progress: Whether to show progress bars.

    Raises:
        KeyError: if the model lacks a site.
        ValueError: if the model's vocabulary or context is too small, or an option out of range; and, naming the site
            and the batch, if activations are not finite.

    Source: Shai et al. 2024 (arXiv 2405.15943), section 4.
    """
    check_weighting(weights)
    if n_folds < 2:
        raise ValueError(f"n_folds={n_folds}: cross-validation needs at least 2.")
    solver = Solver(method, rank, penalty, intercept, rank_cutoff)
    names = find_sites(model, sites)
    dataset = _dataset(model, process, n_ctx, seed)
    rows = split_rows(dataset, split, weights, subtree_depth=subtree_depth, n_folds=n_folds)
    twins = untrained_twins(model, untrained, names, seed=seed)
    targets = {BELIEF: dataset.prefix_beliefs}
    if controls:
        generator = torch.Generator().manual_seed(seed)
        targets[SHUFFLED] = shuffled_beliefs(dataset, generator=generator)
        targets[NEXT_TOKEN] = next_token_probabilities(dataset.process, dataset.prefix_beliefs)

    def stream(of: HookedModel, title: str, targets: Mapping[str, Tensor]) -> Iterator[RowBatch]:
        return model_rows(
            of, dataset, names, rows, targets, batch_size=batch_size, progress=title if progress else None
        )

    fitted = partial(
        probe_rows,
        sites=names,
        solver=solver,
        n_folds=n_folds,
        n_groups=rows.n_groups,
        concatenate=concatenate,
        seed=seed,
    )
    regret = _Regret(dataset)
    windows = TokenWindows(dataset.tokens, dataset.process.n_tokens, n_targets=dataset.process.n_states)
    report = fitted(
        stream(model, "Probing", targets),
        n_positions=dataset.n_ctx if by_position else None,
        own_positions=own_positions,
        windows=windows if controls else None,
        observers=(regret.update,),
        progress=progress,
        model=model,
        dataset=dataset,
        provenance={
            "process": dataset.process.to_dict(),
            "process_fingerprint": dataset.process.fingerprint,
            "model_fingerprint": model_fingerprint(model),
            "weights": weights,
            "words": len(dataset),
            "n_ctx": dataset.n_ctx,
            "is_population": dataset.is_population,
            "own_dataset": isinstance(process, BeliefDataset),
            "split": split,
            "groups": rows.words,
        },
    )
    untrained_scores = [
        ControlScore(name, each.label, each.scores.in_sample, each.scores.held_out)
        for name, twin in twins
        for each in fitted(stream(twin, f"Probing {name}", {BELIEF: targets[BELIEF]}), extras=False).probes
    ]
    return report.with_controls(untrained_scores).with_regret(regret.by_position)


def probe_rows(
    batches: Iterable[RowBatch],
    sites: Sequence[str],
    *,
    solver: Solver | None = None,
    n_folds: int = 5,
    n_groups: int | None = None,
    n_positions: int | None = None,
    own_positions: bool = False,
    concatenate: bool = True,
    extras: bool = True,
    windows: TokenWindows | None = None,
    observers: Sequence[Observer] = (),
    seed: int = 0,
    progress: bool = False,
    model: HookedModel | None = None,
    dataset: BeliefDataset | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> ProbeReport:
    """Probe rows from anywhere: one pass over the batches, then all solves from their moments.

    Args:
        batches: Rows, with the beliefs (or whatever is to be read) under `targets["belief"]`. With
            `targets["shuffled belief"]` and `targets["next token"]` the report has those controls too.
        sites: Which features to probe, in the order of the forward pass.
        solver: How to solve; least squares by default.
        n_folds: Folds of the cross-validation, over the rows' groups.
        n_groups: How many groups there are, numbered from 0: then they are dealt evenly. By default by hash.
        n_positions: Score the probes at each of this many positions.
        own_positions: Whether to fit probes at each position on its own too.
        concatenate: Whether to probe all sites together too, and each site with all before it.
        extras: Whether to score more than the probes themselves: controls, ranks, positions, increments.
        windows: Token windows to set the probes beside, over the words that the rows are numbered by.
        observers: Called on each batch with its rows' cells and the number of cells.
        seed: Seed of the folds.
        progress: Whether to show a progress bar while solving.
        model: The model the rows came from, for the report.
        dataset: The words they came from, for the report.
        provenance: What else the report should carry; `"weights"`, `"split"`, process and model fingerprints among it.

    Raises:
        ValueError: if numbers are not finite, sites too wide to concatenate, or groups too few.
    """
    names = tuple(sites)
    if not names:
        raise ValueError("sites is empty: name at least one.")
    solver = solver or Solver()
    if n_folds < 2:
        raise ValueError(f"n_folds={n_folds}: cross-validation needs at least 2.")
    panels: list[tuple[str, ...]] = [names] if concatenate else [(name,) for name in names]
    accumulator = Accumulator(panels, n_folds=n_folds, n_groups=n_groups, n_positions=n_positions, seed=seed)
    watching = [*observers, *([windows.update] if windows else [])]
    by_panel = accumulate(batches, accumulator, watching)
    first = by_panel[panels[0]]
    cells_of = {site: cells for panel, cells in by_panel.items() for site in panel}
    given = dict(provenance or {}) | {
        "n_folds": n_folds,
        "method": solver.method,
        "rank": solver.rank,
        "penalty": solver.penalty,
        "intercept": solver.intercept,
        "rank_cutoff": solver.rank_cutoff,
        "n_cells": len(first.cells),
        "seed": seed,
    }
    groups = [(name,) for name in names] + ([names] if concatenate and len(names) > 1 else [])
    probes = []
    for group in tqdm(groups, desc="Solving", disable=not progress, leave=False):
        cells = cells_of[group[0]]
        linear_map, scores = evaluate(cells, group, solver, extras=extras, own_positions=own_positions)
        probes.append(
            fit_probe(cells.whole, group, scores, provenance=given, read_map=linear_map, rank_cutoff=solver.rank_cutoff)
        )
    found = windows.scores(n_folds) if windows else []
    rival = next_token_score(first, solver) if extras else None
    if rival:
        found.append(ControlScore(NEXT_TOKEN, None, *rival, is_rival=True))
    increments = _increments(by_panel[names], names, probes, solver) if extras and len(groups) > len(names) else ()
    return ProbeReport(
        probes=tuple(probes),
        regret=None,
        provenance=given,
        model=model,
        dataset=dataset,
        controls=Controls(tuple(found)),
        cumulative=increments,
    )


def _increments(cells: Cells, names: Sequence[str], probes: Sequence[Any], solver: Solver) -> tuple[Increment, ...]:
    """Each site together with all before it; the first and the last are probed already."""
    found = [Increment(site_label(names[0]), probes[0].scores.in_sample, probes[0].scores.held_out)]
    for count in range(2, len(names)):
        _, scores = evaluate(cells, names[:count], solver, extras=False)
        found.append(Increment(site_label(names[count - 1]), scores.in_sample, scores.held_out))
    last = probes[-1].scores
    return (*found, Increment(site_label(names[-1]), last.in_sample, last.held_out))


def model_rows(
    model: HookedModel,
    dataset: BeliefDataset,
    sites: Sequence[str],
    rows: SplitRows,
    targets: Mapping[str, Float64[Tensor, "prefix target"]],
    *,
    batch_size: int | None = None,
    progress: str | None = None,
) -> Iterator[RowBatch]:
    """Rows from a run of the model over a dataset's words.

    Args:
        model: The model.
        dataset: The words.
        sites: Hook names.
        rows: Which rows, and what each is held out with.
        targets: Targets of each distinct prefix.
        batch_size: Words in one forward pass.
        progress: Title of a progress bar.
    """
    for batch in stream_activations(model, dataset.tokens, sites, batch_size=batch_size, progress=progress):
        chosen = rows.is_row[batch.words]
        word, position = chosen.nonzero(as_tuple=True)
        ids = dataset.prefix_ids[batch.words][chosen]
        yield RowBatch(
            features={site: values[chosen.to(values.device)] for site, values in batch.activations.items()},
            targets={name: values[ids] for name, values in targets.items()},
            weights=rows.weights[batch.words][chosen],
            groups=rows.groups[batch.words][chosen],
            words=word + batch.words.start,
            positions=position,
            output=batch.output,
        )


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


class _Regret:
    """Sums the regret at each position, as long as the model returns logits over the process's tokens."""

    def __init__(self, dataset: BeliefDataset) -> None:
        self.dataset = dataset
        self.by_position: Float64[Tensor, "pos"] | None = torch.zeros(dataset.n_ctx, dtype=torch.float64)

    def update(self, batch: RowBatch, cells: Tensor, n_cells: int) -> None:
        """Take in a batch that holds every word of a stretch of the dataset."""
        output, n_tokens = batch.output, self.dataset.process.n_tokens
        words = slice(int(batch.words.min()), int(batch.words.max()) + 1)
        is_logits = isinstance(output, Tensor) and output.ndim == 3 and output.shape[-1] >= n_tokens
        if self.by_position is not None and is_logits and len(output) == words.stop - words.start:
            self.by_position = self.by_position + batch_regret(output, self.dataset, words)
        else:
            self.by_position = None
