"""Attach belief probes to a model: one forward pass, then every site, their concatenation and the controls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens.beliefs.filtering import next_token_probabilities
from msp_lens.data import BeliefDataset, LabelledTokens, TokenMap, Weighting, all_words, check_weighting, sampled_words
from msp_lens.data.belief_dataset import TooManyWordsError
from msp_lens.data.row_positions import Positions
from msp_lens.models.hooked import HookedModel, check_fits, site_groups, word_length
from msp_lens.models.model_files import model_fingerprint
from msp_lens.models.sites import Sites
from msp_lens.moments.grid import MAX_BYTES
from msp_lens.moments.pass_progress import PassCheckpoint
from msp_lens.moments.reduce import own_path, process_count, reduce_sum, shard
from msp_lens.moments.reduction import FeatureReduction
from msp_lens.moments.solve import RANK_CUTOFF
from msp_lens.moments.solvers import Method, Solver
from msp_lens.probing.belief_probe import BELIEF
from msp_lens.probing.controls import Controls, ControlScore, shuffled_beliefs, untrained_twins
from msp_lens.probing.cross_validation import NEXT_TOKEN, SHUFFLED
from msp_lens.probing.fit_rows import probe_rows
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.probing.rows import RowBatch, model_rows
from msp_lens.probing.splits import Split, SplitRows, labelled_rows, split_rows
from msp_lens.probing.windows import TokenWindows
from msp_lens.processes.process import Process
from msp_lens.training.regret import batch_regret

# All words are visited where there are no more than this.
MAX_WORDS = 100_000
# Else this many are drawn, and four times as many again until held-out intervals are this narrow, or tokens this many.
FIRST_WORDS = 5_000
NARROW = 0.01
MAX_TOKENS = 4_000_000
# Windows of a larger vocabulary say what a table as large as the data says.
MAX_WINDOW_TOKENS = 4_096


def probe(
    model: HookedModel,
    process: Process | BeliefDataset | LabelledTokens,
    *,
    sites: Sites = None,
    weighting: Weighting = "probability",
    n_ctx: int | None = None,
    n_words: int | None = None,
    positions: Positions = None,
    token_map: TokenMap | None = None,
    target: str = BELIEF,
    split: Split = "prefix",
    subtree_depth: int | None = None,
    n_folds: int = 5,
    method: Method = "ols",
    rank: int | None = None,
    penalty: float | None = None,
    intercept: bool = True,
    rank_cutoff: float = RANK_CUTOFF,
    concatenate: bool = True,
    reduction: FeatureReduction | None = None,
    max_bytes: int = MAX_BYTES,
    by_position: bool = True,
    own_positions: bool = False,
    controls: bool = True,
    untrained: int | Sequence[HookedModel] = 0,
    resume: str | Path | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = True,
) -> ProbeReport:
    """Regress beliefs on the residual stream, per site and over all sites concatenated, beside controls.

    Each distinct prefix is one row: every possible word of `n_ctx` tokens where there are at most 100,000 ("the
    population"), else sampled ones, four times as many again until the held-out intervals are narrower than 0.01 (or
    four million tokens were drawn). Memory does not grow with the rows. All of it comes from one forward pass (and
    one for each untrained twin). Under `torchrun` or `accelerate launch` each process reads its share of the words and
    all get the same report.

    Args:
        model: Any hooked model that reads the process's tokens, as they are or by a `token_map`.
        process: The process, a `BeliefDataset` of one's own, or `LabelledTokens`: given tokens with given targets.
        sites: Hook names, labels, globs, a function, groups to concatenate, or `"all"`; see `find_sites`. By default
            the residual stream before the first layer, after each layer and after the final LayerNorm.
        weighting: How much each prefix counts: `"probability"` (the population answer), `"sequence"` (the paper's:
            every full-length word alike) or `"prefix"` (every distinct prefix alike).
        n_ctx: Length of the words; by default the model's context.
        n_words: How many words to sample where there are too many for all; by default as said above.
        positions: Which of a word's positions are rows: a slice, numbers, or a mask; all by default.
        token_map: How a model with a vocabulary of its own reads the process's symbols.
        target: Which of the targets of `LabelledTokens` to read.
        split: What is held out together: `"prefix"`, `"sequence"` (whole words; their beginnings are shared) or
            `"subtree"` (all words that begin alike: the strictest).
        subtree_depth: How many first tokens the words of a subtree share; by default as few as give enough subtrees.
        n_folds: Folds of the cross-validation.
        method: `"ols"`, `"ridge"` (on standardized features) or `"reduced_rank"`.
        rank: Rank of the map, for `"reduced_rank"`.
        penalty: Ridge's penalty, in units of the standardized features' variance; by default chosen on held-out
            folds, and scored on folds that had no say in the choice.
        intercept: Whether maps have one.
        rank_cutoff: Directions of the standardized features with a singular value below this fraction of the largest
            are left out.
        concatenate: Whether to probe all sites together too, and each site with all before it.
        reduction: Makes the sites' features fewer before they are concatenated (`RandomProjection`,
            `PrincipalComponents`), where all together are too wide.
        max_bytes: Refuse moments that take more memory than this.
        by_position: Whether to score the probes at each position (as far as memory allows: half a gigabyte).
        own_positions: Whether to fit probes at each position on its own too.
        controls: Whether to set the probes beside shuffled beliefs, next-token probabilities and token windows.
        untrained: How many untrained twins of the model to probe as well, or such models.
        resume: A file in which the sums of a long pass are kept every minute: run again with the same file, an
            interrupted pass goes on where it was. The file is removed at the end.
        seed: Seed of the folds, the shuffling, the twins and, if need be, the sample.
        batch_size: Words in one forward pass.
        progress: Whether to show progress bars.

    Raises:
        KeyError: if the model lacks a site.
        TypeError: if the model has no hooks, or there is nothing to probe on.
        ValueError: if the model's vocabulary or context is too small, or an option out of range; and, naming the site
            and the batch, if activations are not finite.

    Source: Shai et al. 2024 (arXiv 2405.15943), section 4.
    """
    check_weighting(weighting)
    if n_folds < 2:
        raise ValueError(f"n_folds={n_folds}: cross-validation needs at least 2.")
    if n_words is not None and n_words < 2:
        raise ValueError(f"n_words={n_words}: sample at least 2 words.")
    solver = Solver(method, rank, penalty, intercept, rank_cutoff)
    groups = site_groups(model, sites)
    names = tuple(dict.fromkeys(site for group in groups.values() for site in group))
    twins = list(untrained_twins(model, untrained, names, seed=seed)) if untrained else []

    def report_of(data: _Data) -> ProbeReport:
        description = {**data.description, "model_fingerprint": model_fingerprint(model)}
        fitted = partial(
            probe_rows,
            sites=groups,
            solver=solver,
            n_folds=n_folds,
            n_groups=data.n_groups,
            concatenate=concatenate,
            reduction=reduction,
            max_bytes=max_bytes,
            seed=seed,
        )
        words = shard(len(data.labelled.tokens))
        checkpoint = progressed = None
        if resume is not None:
            decisive = {"sites": names, "n_folds": n_folds, "seed": seed, "processes": process_count()}
            checkpoint = PassCheckpoint(own_path(resume), _without_tables(description) | decisive)
            progressed = checkpoint.resume()
        observers = [data.regret] if data.regret is not None else []
        if progressed is not None:
            words = slice(progressed.n_done, words.stop)
            for observer in (*observers, *([data.windows] if data.windows else [])):
                observer.restore(progressed.sums)
        read = partial(model_rows, data=data.labelled, sites=names, batch_size=batch_size)
        report = fitted(
            read(model, words=words, progress="Probing" if progress else None),
            n_positions=data.n_positions if by_position else None,
            own_positions=own_positions,
            windows=data.windows,
            observers=observers,
            checkpoint=checkpoint,
            resume_from=progressed,
            progress=progress,
            model=model,
            dataset=data.dataset,
            provenance=description,
        )
        untrained_scores = [
            ControlScore(name, "untrained", each.label, each.scores.in_sample, each.scores.held_out)
            for name, twin in twins
            for each in fitted(
                read(twin, words=shard(len(data.labelled.tokens)), progress=f"Probing {name}" if progress else None),
                extras=False,
            ).probes
        ]
        if checkpoint is not None:
            checkpoint.path.unlink(missing_ok=True)
        regret = data.regret.by_position if data.regret else None
        all_controls = Controls((*report.controls, *untrained_scores))
        return replace(report, token_map=token_map, regret=regret, controls=all_controls)

    if target != BELIEF and not isinstance(process, LabelledTokens):
        raise ValueError(f"target={target!r}: of a process the belief is read; only LabelledTokens have other targets.")
    if isinstance(process, LabelledTokens):
        return report_of(_given(process, target, controls=controls, seed=seed))
    if isinstance(process, BeliefDataset):
        positions = process.positions if positions is None else positions
        token_map = process.token_map if token_map is None else token_map
    report = None
    for dataset in _datasets(model, process, n_ctx, n_words, token_map, seed):
        dataset = replace(dataset, positions=positions, token_map=token_map)
        rows = split_rows(dataset, split, weighting, subtree_depth=subtree_depth, n_folds=n_folds)
        data = _of_process(dataset, rows, controls=controls, seed=seed)
        data.description.update(
            weighting=weighting, split=split, groups=rows.words, own_dataset=isinstance(process, BeliefDataset)
        )
        report = report_of(data)
        if all(each.scores.held_out.is_within(NARROW) for each in report.probes):
            break
    assert report is not None
    return report


@dataclass(frozen=True, eq=False)
class _Data:
    """What is read, and what is summed up beside it."""

    labelled: LabelledTokens
    n_groups: int | None
    n_positions: int
    description: dict[str, Any]
    windows: TokenWindows | None = None
    regret: _Regret | None = None
    dataset: BeliefDataset | None = field(default=None, repr=False)


def _of_process(
    dataset: BeliefDataset,
    rows: SplitRows,
    *,
    controls: bool,
    seed: int,
) -> _Data:
    process = dataset.process
    targets, prior = {BELIEF: dataset.prefix_beliefs}, {BELIEF: process.initial}
    if controls:
        generator = torch.Generator().manual_seed(seed)
        targets[SHUFFLED], prior[SHUFFLED] = shuffled_beliefs(dataset, generator=generator), process.initial
        targets[NEXT_TOKEN] = next_token_probabilities(process, dataset.prefix_beliefs)
        prior[NEXT_TOKEN] = next_token_probabilities(process, process.initial)
    token_map = dataset.token_map
    labelled = labelled_rows(dataset, rows, targets, prior)
    n_prior = int(token_map is not None and token_map.include_prior)
    return _Data(
        labelled=labelled,
        n_groups=rows.n_groups + n_prior,
        n_positions=dataset.n_ctx,
        description=dict(labelled.description),
        windows=TokenWindows(dataset.tokens, process.n_tokens, n_targets=process.n_states) if controls else None,
        regret=_Regret(dataset, token_map) if token_map is None or token_map.predicts_symbols else None,
        dataset=dataset,
    )


def _given(labelled: LabelledTokens, target: str, *, controls: bool, seed: int) -> _Data:
    """Given tokens: the target to be read, dealt out anew by group too, and windows where the vocabulary is small."""
    if target not in labelled.targets:
        raise KeyError(f"No target {target!r} in these tokens; they have {', '.join(labelled.targets)}: give target=.")
    values = labelled.targets[target]
    targets = {BELIEF: values}
    n_tokens = int(labelled.tokens.max()) + 1
    windows = None
    if controls:
        _, group = labelled.groups.unique(return_inverse=True)
        n_groups = int(group.max()) + 1
        one_of = torch.empty(n_groups, dtype=torch.int64)
        one_of[group] = torch.arange(len(group))
        dealt = torch.randperm(n_groups, generator=torch.Generator().manual_seed(seed))
        targets[SHUFFLED] = values[one_of[dealt[group]]]
        if n_tokens <= MAX_WINDOW_TOKENS:
            windows = TokenWindows(labelled.tokens, n_tokens, n_targets=values.shape[1])
    read = replace(labelled, targets=targets)
    description = {**labelled.description, "target": target, "split": "groups", "own_dataset": True}
    return _Data(read, None, labelled.n_ctx, description, windows)


def _datasets(
    model: HookedModel,
    process: Process | BeliefDataset,
    n_ctx: int | None,
    n_words: int | None,
    token_map: TokenMap | None,
    seed: int,
) -> Iterator[BeliefDataset]:
    """The words to probe on: all of them, or ever more sampled ones; the last is as good as it gets."""
    if isinstance(process, BeliefDataset):
        if n_ctx not in (None, process.n_ctx):
            raise ValueError(f"n_ctx={n_ctx}, but the dataset's words have {process.n_ctx} tokens: leave n_ctx out.")
        check_fits(model, process.process, process.n_ctx, token_map=token_map)
        yield process
        return
    if not isinstance(process, Process):
        raise TypeError(
            f"{process!r} is nothing to probe on: give a Process (msp.mess3(x=0.05, a=0.85) for one), a BeliefDataset "
            "or LabelledTokens."
        )
    length = word_length(model, n_ctx, token_map=token_map)
    check_fits(model, process, length, token_map=token_map)
    if n_words is None:
        try:
            yield all_words(process, length, max_words=MAX_WORDS)
            return
        except TooManyWordsError:
            pass
    most = max(MAX_TOKENS // length, 2)
    count = n_words if n_words is not None else min(FIRST_WORDS, most)
    while True:
        yield sampled_words(process, count, length, seed=seed)
        if n_words is not None or count >= most:
            return
        count = min(4 * count, most)


def _without_tables(description: Mapping[str, Any]) -> dict[str, Any]:
    """What identifies the data, without the process's matrices, for which the fingerprint stands."""
    return {key: value for key, value in description.items() if key != "process"}


class _Regret:
    """Sums the regret at each position, as long as the model returns logits over the process's tokens."""

    def __init__(self, dataset: BeliefDataset, token_map: TokenMap | None) -> None:
        self.dataset, self.token_map = dataset, token_map
        self.by_position: Float64[Tensor, "pos"] | None = torch.zeros(dataset.n_ctx, dtype=torch.float64)

    def update(self, batch: RowBatch, cells: Int[Tensor, "row"], n_cells: int) -> None:
        """Take in a batch: what the model returned for a stretch of the words."""
        output = batch.output
        n_tokens = self.token_map.d_vocab if self.token_map else self.dataset.process.n_tokens
        is_logits = isinstance(output, Tensor) and output.ndim == 3 and output.shape[-1] >= n_tokens
        if self.by_position is not None and is_logits and batch.batch_words is not None:
            self.by_position = self.by_position + batch_regret(
                output, self.dataset, batch.batch_words, token_map=self.token_map
            )
        else:
            self.by_position = None

    def state(self) -> dict[str, Tensor]:
        """The sums so far, to be saved."""
        return {} if self.by_position is None else {"regret": self.by_position}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from sums that `state` gave."""
        self.by_position = state.get("regret")

    def reduce(self) -> None:
        """Add the sums of all processes, where there are several."""
        if self.by_position is not None:
            self.by_position = reduce_sum(self.by_position)
