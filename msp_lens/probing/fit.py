"""Attach belief probes to a model: one forward pass, then every site, their concatenation and the controls."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens._checks import Between, Count, Seed, checked
from msp_lens._distributed import own_path, process_count, share
from msp_lens._files import tensors_checksum
from msp_lens.beliefs import constrained_beliefs
from msp_lens.beliefs.filtering import next_token_probabilities
from msp_lens.controls.control_scores import Controls, ControlScore
from msp_lens.controls.token_windows import TokenWindows
from msp_lens.controls.untrained_twins import untrained_twins
from msp_lens.data import BeliefDataset, LabelledTokens, TokenMap, Weighting, all_words, sampled_words
from msp_lens.data.belief_dataset import TooManyWordsError
from msp_lens.data.row_positions import position_mask
from msp_lens.data.splits import Split, as_split, labelled_rows, split_labelled, split_rows
from msp_lens.models.activations import stream_activations
from msp_lens.models.checking import ModelCheck, check_model
from msp_lens.models.hooked import HookedModel, check_fits, context_length, site_groups, unwrapped, word_length
from msp_lens.models.model_files import model_fingerprint
from msp_lens.models.sites import Sites
from msp_lens.models.symbol_reader import read_ahead
from msp_lens.moments.grid import MAX_BYTES, bytes_text
from msp_lens.moments.pass_progress import PassCheckpoint
from msp_lens.moments.reduction import FeatureReduction
from msp_lens.moments.solvers import Solver, as_solver
from msp_lens.probing.belief_probe import BELIEF
from msp_lens.probing.cross_validation import CONSTRAINED, NEXT_TOKEN, Target
from msp_lens.probing.fit_rows import check_concatenate, chosen_concatenation, fit_report
from msp_lens.probing.one_pass import ClassRows, Observer, strata_of
from msp_lens.probing.parts import (
    Part,
    constrained_parts,
    differs,
    part_tokens,
    process_parts,
    shuffled_values,
    undefined_rows,
)
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.probing.rows import model_rows
from msp_lens.processes.process import Process
from msp_lens.training.regret import RegretSums

# All words are read if there are no more than this. Otherwise samples grow, from FIRST_WORDS to at most MAX_TOKENS.
MAX_WORDS = 100_000
FIRST_WORDS = 5_000
MAX_TOKENS = 4_000_000
# Tokens times weights of a model that is probed on words nobody chose: half an hour's on a few cores.
MAX_WORK = 5 * 10**13


@checked
def probe(
    model: HookedModel,
    data: Process | BeliefDataset | LabelledTokens,
    *,
    sites: Sites = None,
    weighting: Weighting = "probability",
    solver: Solver | str = "auto",
    split: Split | str = "prefix",
    concatenate: bool | FeatureReduction | None = None,
    controls: bool = True,
    untrained: Annotated[int, Between(0, 1_000)] | Sequence[Any] = 0,
    by_position: Literal[True, False, "own"] = True,
    max_bytes: Count = MAX_BYTES,
    resume: str | Path | None = None,
    seed: Seed = 0,
    batch_size: Count | None = None,
    progress: bool = True,
) -> ProbeReport:
    """Regress beliefs on the residual stream, at each site and over all sites concatenated, and score controls.

    One forward pass in constant memory. Under `torchrun` each process reads its share.

    Args:
        model: Any hooked model that reads the data's tokens.
        data: A `Process` (every word of the model's context if there are at most 100,000, else samples until held-out
            intervals are narrower than .01 or narrow no further), words of it (`msp.words(process, n_ctx=…)`), or
            `LabelledTokens`.
        sites: Hook names, labels, globs, a function, groups to concatenate, or `"all"`; see `find_sites`.
        weighting: How much a prefix counts: `"probability"`, `"sequence"` (by words that begin with it) or `"prefix"`.
        solver: `"ols"`, `"ridge"` (penalty chosen on held-out folds), `"auto"` (`"ols"` where at least 20 groups of
            rows are held out together for each feature, else `"ridge"`), or an `Auto`, `OLS`, `Ridge`, `ReducedRank`.
        split: What is held out together: `"prefix"`, `"sequence"`, `"subtree"` (the strictest), in long words `"block"`
            or `"position"`, or a `Split`. Labelled tokens have groups of their own, except under the last two.
        concatenate: Whether to probe all sites together too, and each with all before it; by default if that takes at
            most a quarter of `max_bytes`. A `RandomProjection` or `PrincipalComponents` reduces each site first.
        controls: Whether to score shuffled beliefs, next-token probabilities and token windows too.
        untrained: Number of untrained twins of the model to probe as well, or such models.
        by_position: Whether to score probes at each position; `"own"` also fits each position on its own.
        max_bytes: Largest memory that the moments may take.
        resume: File for the sums of a long pass; run again with it, and an interrupted pass continues.
        seed: Seed of folds, shuffling, twins and samples.
        batch_size: Words in one forward pass.
        progress: Whether to show progress bars.

    Raises:
        KeyError: if the model lacks a site.
        TypeError: if the model has no hooks, or `data` is something else.
        ValueError: if the model cannot read the words, an option is out of range, or an activation is not finite.
        TooWideError: a `ValueError`, if the moments of what was asked for take more than `max_bytes`.

    Source: Shai et al. 2024 (arXiv 2405.15943), section 4.

    Example:
        >>> from msp_lens.models import ModelConfig, build_model
        >>> from msp_lens.processes import mess3
        >>> model = build_model(ModelConfig(d_vocab=3, n_layers=1, n_ctx=4))
        >>> report = probe(model, mess3(x=0.05, a=0.85), solver="ridge", progress=False)
        >>> list(report)
        ['0_pre', '0_post', 'ln_final', 'concatenated']
    """
    check_concatenate(concatenate)
    solver, split = as_solver(solver), as_split(split)
    groups = site_groups(model, sites)
    names = tuple(dict.fromkeys(site for group in groups.values() for site in group))

    def twins() -> Iterator[tuple[str, HookedModel]]:
        return untrained_twins(model, untrained, names, seed=seed) if untrained else iter(())

    # A model without twins is refused before any work.
    twins()

    def report_of(data: _Data) -> ProbeReport:
        solver.check_targets(data.labelled.targets[BELIEF].shape[1])
        targets, strata = data.labelled.targets, strata_of(data.labelled.undefined)
        widths = _widths(model, data.labelled, names) | {name: each.shape[1] for name, each in targets.items()}
        dealt = split.n_folds if data.n_groups is None else max(2, min(split.n_folds, data.n_groups))
        chosen = chosen_concatenation(concatenate, groups, widths, n_cells=dealt * len(strata), max_bytes=max_bytes)
        description = {**data.labelled.description, **data.description, **chosen.left_out}
        description["model_fingerprint"] = model_fingerprint(model)
        checked_model = _check_of(model, data, names, description["model_fingerprint"])
        fitted = partial(fit_report, sites=groups, solver=solver, n_folds=split.n_folds, n_groups=data.n_groups)
        fitted = partial(fitted, concatenate=chosen.concatenate, max_bytes=max_bytes, seed=seed)
        fitted = partial(fitted, parts=data.parts, strata=strata, group_count=len(data.labelled.groups.unique()))
        own_words = words = share(len(data.labelled.tokens))
        classes = data.class_rows(names, seed=seed)
        observers: list[Observer] = [each for each in (data.regret, *data.windows, classes) if each]
        checkpoint = progressed = None
        if resume is not None:
            # The process's fingerprint stands for its matrices.
            decisive = {key: value for key, value in description.items() if key != "process"}
            decisive |= {
                "groups": groups,
                "concatenate": _described(chosen.concatenate),
                "by_position": bool(by_position),
            }
            decisive |= {"n_folds": split.n_folds, "seed": seed, "processes": process_count()}
            decisive |= {"data_fingerprint": _data_fingerprint(data.labelled)}
            checkpoint = PassCheckpoint(own_path(resume), decisive)
            progressed = checkpoint.resume()
        if progressed is not None:
            words = slice(min(progressed.n_done, own_words.stop), own_words.stop)
            for observer in observers:
                observer.restore(progressed.sums)
        read = partial(model_rows, data=data.labelled, sites=names, batch_size=batch_size)
        cost = f"{data.labelled.tokens[words].numel():,} tokens, {bytes_text(chosen.n_bytes)} of moments"
        title = f"Probing ({cost})" if progress else None
        answer = data.regret.answer if data.regret else False
        rows = replace(read(model, words=words, progress=title, logits=answer), description=description)
        n_positions = data.n_positions if by_position else None
        full = partial(
            fitted, n_positions=n_positions, own_positions=by_position == "own", windows=data.windows, classes=classes
        )
        report = full(rows, observers=observers, checkpoint=checkpoint, resume_from=progressed, progress=progress)
        scores: dict[str | None, list[ControlScore]] = {}
        for name, twin in twins():
            rows = read(twin, words=own_words, progress=f"Probing {name}" if progress else None)
            found = fitted(rows, extras=False)
            for part, of_part in ((None, found), *found.parts.items()):
                own = scores.setdefault(part, [])
                for each in of_part.probes:
                    in_sample, held_out = each.scores.in_sample, each.scores.held_out
                    own.append(ControlScore(name, "untrained", each.label, in_sample, held_out))
        if checkpoint is not None:
            checkpoint.path.unlink(missing_ok=True)

        def completed(report: ProbeReport, part: str | None = None, **more: Any) -> ProbeReport:
            controls = Controls((*report.controls, *scores.get(part, ())))
            return replace(report, model=model, dataset=data.dataset, controls=controls, **more)

        parts = {name: completed(part, name) for name, part in report.parts.items()}
        regrets: dict[str, Any] = {}
        if data.regret is not None:
            regrets = {"regret": data.regret.by_position, "regret_outside": data.regret.outside}
        return completed(report, parts=parts, model_check=checked_model, **regrets)

    if isinstance(data, LabelledTokens):
        return report_of(_of_tokens(data, split, controls=controls, seed=seed))
    # Every possible word can be made again from the process; samples cannot.
    report, widest = None, math.inf
    for dataset in _words(model, data, seed):
        how = {"longest": context_length(model), "controls": controls, "seed": seed}
        report = report_of(_of_words(dataset, split, weighting, **how))
        last, widest = widest, max(each.scores.held_out.width for each in report.probes)
        # Four times the words halve what chance adds; what is left is how unlike each other the held-out groups are.
        if widest <= 0.01 or widest > 0.75 * last:
            break
    assert report is not None
    return report


@dataclass(frozen=True, eq=False)
class _Data:
    """What is read, and what is summed in the same pass."""

    labelled: LabelledTokens
    n_groups: int | None
    n_positions: int
    description: dict[str, Any]
    windows: list[TokenWindows] = field(default_factory=list)
    regret: RegretSums | None = None
    dataset: BeliefDataset | None = None
    classes: tuple[str, ...] = ()
    parts: list[Part] = field(default_factory=list)

    def class_rows(self, sites: Sequence[str], *, seed: int) -> ClassRows | None:
        """What keeps rows for logistic read-outs, if the target is classes."""
        if not self.classes:
            return None
        labels = self.labelled.targets[BELIEF].argmax(dim=1)
        return ClassRows(self.labelled, labels, self.classes, sites, seed=seed)


def _widths(model: HookedModel, data: LabelledTokens, sites: Sequence[str]) -> dict[str, int]:
    """The number of features of each site, from a pass over one token."""
    (batch,) = stream_activations(model, data.tokens[:1, :1], sites, logits=False)
    return {site: values.shape[-1] for site, values in batch.activations.items()}


# The checks of models that were probed, by their weights and the sites.
_CHECKED: WeakKeyDictionary[Any, dict[Any, ModelCheck | None]] = WeakKeyDictionary()


def _check_of(model: HookedModel, data: _Data, sites: tuple[str, ...], fingerprint: str) -> ModelCheck | None:
    """What some short passes show about the model; `None` if they could not be made.

    Raises:
        ValueError: if rows are prefixes, and an activation depends on later tokens.
    """
    network: Any = unwrapped(model)
    known, key = _CHECKED.setdefault(network, {}), (fingerprint, sites)
    if key not in known:
        known.clear()
        try:
            # The data's own words: not every model can read any word.
            known[key] = check_model(model, sites=sites, tokens=data.labelled.tokens[:2, :8])
        except (RuntimeError, IndexError, TypeError, ValueError, KeyError):
            known[key] = None
    found = known[key]
    if found is None or found.is_causal is not False:
        return found
    causality = found["causality"]
    if data.dataset is not None:
        raise ValueError(f"The model is not causal: {causality.told}")
    # Labelled tokens are rows of whole words, which need no causal model.
    known_to = [replace(each, verdict="to know") if each is causality else each for each in found.findings]
    return replace(found, findings=tuple(known_to))


def _described(concatenate: bool | FeatureReduction) -> Any:
    """What says whether two passes concatenate alike: a reduction, also by the directions that it keeps."""
    directions = getattr(concatenate, "directions", {})
    return concatenate if isinstance(concatenate, bool) else [repr(concatenate), tensors_checksum(directions, {})]


def _data_fingerprint(data: LabelledTokens) -> str:
    """Identifies the tokens, which places are rows, and their targets, weights and groups."""
    numbers = ("tokens", "words", "columns", "positions", "weights", "groups")
    targets = {f"target {name}": values for name, values in data.targets.items()}
    targets |= {f"undefined {name}": gone for name, gone in data.undefined.items()}
    return tensors_checksum({name: getattr(data, name) for name in numbers} | targets, {})


def _of_words(
    dataset: BeliefDataset, split: Split, weighting: Weighting, *, longest: int | None, controls: bool, seed: int
) -> _Data:
    """The prefixes of a process's words with their beliefs, those of the parts, shuffled ones, and rivals."""
    process, token_map = dataset.process, dataset.token_map
    rows = split_rows(dataset, split, weighting)
    targets, prior = {BELIEF: dataset.prefix_beliefs}, {BELIEF: process.initial}
    parts, before = process_parts(process), process.parts(process.initial)
    for part in parts:
        targets[part.target.block], prior[part.target.block] = dataset.prefix_parts[part.name], before[part.name]
    read = {None: Target()} | {part.name: part.target for part in parts}
    gone = {each.block: undefined_rows(targets[each.block]) for each in read.values()}
    undefined = {block: rows for block, rows in gone.items() if rows.any() or undefined_rows(prior[block])}
    windows = []
    if controls:
        generator = torch.Generator().manual_seed(seed)
        for name, each in read.items():
            values = targets[each.block]
            targets[each.shuffled] = shuffled_values(values, generator=generator)
            prior[each.shuffled] = prior[each.block]
            own = (dataset.tokens, process.n_tokens) if name is None else part_tokens(process, name, dataset.tokens)
            windows.append(TokenWindows(*own, n_targets=values.shape[1], target=each.block))
        for values in (targets, prior):
            values[NEXT_TOKEN] = next_token_probabilities(process, values[BELIEF])
        constrained = _constrained(dataset, parts, targets, weighting)
        targets |= constrained
        # Before any token, what has been seen says the same in all accounts.
        prior |= {CONSTRAINED: process.initial} if CONSTRAINED in constrained else {}
        prior |= {part.constrained: before[part.name] for part in parts if part.constrained in constrained}
    labelled, regret, no_regret = labelled_rows(dataset, rows, targets, prior, undefined), None, None
    firsts = [ids[0] for ids in token_map.symbols] if token_map is not None else []
    tokens, _, columns = read_ahead(token_map or TokenMap.identity(process.n_tokens), dataset.tokens)
    if len(set(firsts)) < len(firsts):
        no_regret = "two symbols begin with the same token, so one prediction does not tell which comes next"
    elif longest is not None and tokens.shape[1] > longest:
        no_regret = "the separator after the last symbol, from which the next is predicted, is beyond the context"
    else:
        # Without padding that is longer than before, rows stay where they were.
        labelled, regret = replace(labelled, tokens=tokens), RegretSums(dataset, columns)
    return _Data(
        labelled=labelled,
        n_groups=rows.n_groups + int(token_map is not None and token_map.include_prior),
        n_positions=dataset.n_ctx,
        # A loaded report makes the words again, if they are all there are or a seed drew them.
        description={
            "weighting": weighting,
            "split": split.by,
            "target": BELIEF,
            "draw_seed": dataset.seed,
            "own_dataset": not dataset.is_population and dataset.seed is None,
            "unused_tokens": [process.tokens[token] for token in _unused(dataset)],
            "always_first": _always_first(dataset),
            "no_regret": no_regret,
        },
        windows=windows,
        regret=regret,
        dataset=dataset,
        parts=parts,
    )


def _constrained(
    dataset: BeliefDataset, parts: Sequence[Part], targets: Mapping[str, Tensor], weighting: Weighting
) -> dict[str, Float64[Tensor, "prefix target"]]:
    """The constrained beliefs of the whole and of its parts, where they can be told from the true ones."""
    process, weights = dataset.process, dataset.prefix_weights(weighting)
    found = torch.empty_like(dataset.prefix_beliefs)
    found[dataset.prefix_ids[dataset.is_first]] = constrained_beliefs(process, dataset.tokens)[dataset.is_first]
    rivals = {CONSTRAINED: (found, BELIEF)}
    of_parts = constrained_parts(process, dataset.prefix_beliefs, found)
    for part in parts:
        if part.name in of_parts:
            rivals[part.constrained] = (of_parts[part.name], part.target.block)
    return {name: rival for name, (rival, block) in rivals.items() if differs(targets[block], rival, weights)}


def _unused(dataset: BeliefDataset) -> list[int]:
    """The tokens that occur in none of the words."""
    counts = torch.bincount(dataset.tokens.flatten(), minlength=dataset.process.n_tokens)
    return (counts == 0).nonzero().flatten().tolist()


def _always_first(dataset: BeliefDataset) -> str | None:
    """The token that all words begin with, if there is one and the position after it is a row."""
    first = dataset.tokens[:, 0]
    if not bool((first == first[0]).all()) or not bool(position_mask(dataset.positions, dataset.tokens)[0, 0]):
        return None
    return dataset.process.tokens[int(first[0])]


def _of_tokens(labelled: LabelledTokens, split: Split, *, controls: bool, seed: int) -> _Data:
    """Given tokens with their targets, which are also shuffled by group; and windows."""
    names = list(labelled.targets)
    if len(names) > 1 and BELIEF not in names:
        raise ValueError(f"data has the targets {', '.join(map(repr, names))}: choose one, data.only({names[0]!r}).")
    target = BELIEF if BELIEF in names else names[0]
    blocks = {target: Target(rivals=())}
    blocks |= {name: Target(f"{BELIEF}: {name}", f"shuffled {BELIEF}: {name}", ()) for name in names if name != target}
    targets = {blocks[name].block: values for name, values in labelled.targets.items()}
    undefined = {blocks[name].block: gone for name, gone in labelled.undefined.items()}
    windows = []
    if controls:
        _, group = labelled.groups.unique(return_inverse=True)
        n_groups = int(group.max()) + 1
        one_of = torch.empty(n_groups, dtype=torch.int64)
        one_of[group] = torch.arange(len(group))
        dealt = torch.randperm(n_groups, generator=torch.Generator().manual_seed(seed))
        for each in blocks.values():
            values = targets[each.block]
            targets[each.shuffled] = values[one_of[dealt[group]]]
            windows.append(TokenWindows(labelled.tokens, n_targets=values.shape[1], target=each.block))
    classes = labelled.classes.get(target, ())
    # The targets are known by other names from here on.
    renamed, n_groups = split_labelled(replace(labelled, targets=targets, classes={}, undefined=undefined), split)
    description = {"target": target, "split": "groups" if n_groups is None else split.by}
    description |= {"own_dataset": True, "classes": list(classes) or None}
    own = [Part(name, each, labelled.classes.get(name, ())) for name, each in blocks.items() if name != target]
    return _Data(renamed, n_groups, labelled.n_ctx, description, windows, classes=classes, parts=own)


def _words(model: HookedModel, data: Process | BeliefDataset, seed: int) -> Iterator[BeliefDataset]:
    """The given words, all words of the model's context, or samples, each four times the last."""
    if isinstance(data, BeliefDataset):
        check_fits(model, data.process, data.n_ctx, token_map=data.token_map)
        yield data
        return
    n_ctx = word_length(model, otherwise="words: data=msp.words(process, n_ctx=…)")
    check_fits(model, data, n_ctx)
    n_weights = max(1, sum(each.numel() for each in unwrapped(model).parameters()))

    def check_cost(n_words: int) -> None:
        if n_words * n_ctx * n_weights > MAX_WORK:
            raise ValueError(
                f"The model's context is {n_ctx:,} tokens, and {n_words:,} words of that length are "
                f"{n_words * n_ctx:,} tokens for {n_weights:,} weights, which takes hours: choose the words, "
                "data=msp.words(process, n_ctx=…, n_words=…)."
            )

    try:
        population = all_words(data, n_ctx, max_words=MAX_WORDS)
        check_cost(len(population))
        yield population
    except TooManyWordsError:
        most = max(MAX_TOKENS // n_ctx, 2)
        count = min(FIRST_WORDS, most)
        check_cost(count)
        most = max(count, min(most, MAX_WORK // (n_weights * n_ctx)))
        yield sampled_words(data, count, n_ctx, seed=seed)
        while count < most:
            count = min(4 * count, most)
            yield sampled_words(data, count, n_ctx, seed=seed)
