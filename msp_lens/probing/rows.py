"""Rows, which probes are fitted on: an activation and its target each, one batch at a time.

They come from a model that reads words (`model_rows`, `sampled_rows`), a cache (`cache_rows`), or your own batches
(`batch_rows`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from msp_lens._arrays import moved
from msp_lens._checks import Count, Seed, check_finite, checked
from msp_lens._names import meant
from msp_lens.data import BeliefDataset, LabelledTokens, TokenMap, stream_words
from msp_lens.data.belief_dataset import prefix_hashes
from msp_lens.data.labelled import BELIEF
from msp_lens.data.row_positions import Positions
from msp_lens.models.activations import ActivationBatch, PrefixBatch, batches_of_words, word_by_word, words_per_batch
from msp_lens.models.beginning import stream_prefixes
from msp_lens.models.hooked import HookedModel, check_fits, check_reads_tokens, find_sites, word_length
from msp_lens.models.sites import Site, SiteIndex, Sites
from msp_lens.processes.process import Process

# What to do about activations that are not finite.
CHECK_THE_MODEL = (
    "The model has diverged or overflows in its dtype: check its weights, or run it in a wider dtype (float32)."
)


@dataclass(frozen=True, eq=False)
class RowBatch:
    """A batch of rows.

    Attributes:
        features: Activations by site, on the device they came from.
        targets: Targets by name; beliefs are `"belief"`.
        weights: How much each row counts.
        groups: Rows of one group are held out together.
        words: The word of the data that each row belongs to; -1 if there are no words.
        positions: The position in the word; -1 if there are no words.
        output: What the model returned for the batch of words, or what was wanted of it, if a model was run for that.
        batch_words: The words of the data in that batch, if a model was run.
        undefined: By target, the rows where it has no value, which do not count for it.
    """

    features: Mapping[str, Float[Tensor, "row feature"]]
    targets: Mapping[str, Float64[Tensor, "row target"]]
    weights: Float64[Tensor, "row"]
    groups: Int[Tensor, "row"]
    words: Int[Tensor, "row"]
    positions: Int[Tensor, "row"]
    output: Any = None
    batch_words: slice | None = None
    undefined: Mapping[str, Bool[Tensor, "row"]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.weights)


@dataclass(frozen=True, eq=False)
class Rows:
    """An iterable of batches of rows, with their description.

    Each iteration runs the model again; rows from your own iterator can be iterated over once.

    Attributes:
        sites: The sites of every batch's features.
        description: Where the rows come from, JSON-ready.
        source: Returns a new iterator.
    """

    sites: tuple[str, ...]
    description: Mapping[str, Any]
    source: Callable[[], Iterator[RowBatch]]

    def __iter__(self) -> Iterator[RowBatch]:
        return self.source()

    def __repr__(self) -> str:
        size = f"{self.description['words']} words" if "words" in self.description else "batches"
        return f"Rows({size} from {self.description['source']}, at {', '.join(self.sites)})"


@checked
def model_rows(
    model: HookedModel,
    data: BeliefDataset | LabelledTokens,
    sites: Sites = None,
    *,
    words: slice | None = None,
    batch_size: Count | None = None,
    progress: str | None = None,
    logits: bool | Callable[..., Tensor] = False,
) -> Rows:
    """The activations of a model that reads labelled tokens.

    Args:
        model: Any hooked model.
        data: Tokens with targets, or a `BeliefDataset`, whose distinct prefixes count by their probability.
        sites: As for `find_sites`.
        words: The range of words to read; all by default.
        batch_size: Words in one forward pass.
        progress: Title of a progress bar.
        logits: Whether batches hold the model's output, or what they hold of it; as for `stream_activations`.

    Raises:
        KeyError: if the model lacks a site.
        ValueError: if the model cannot read the tokens.

    Example:
        >>> from msp_lens.data import all_words
        >>> from msp_lens.models import ModelConfig, build_model
        >>> from msp_lens.processes import mess3
        >>> words = all_words(mess3(x=0.05, a=0.85), 4)
        >>> rows = model_rows(build_model(ModelConfig(d_vocab=3)), words, "final_post")
        >>> sum(len(batch) for batch in rows)
        120
    """
    names = find_sites(model, sites)
    if isinstance(data, BeliefDataset):
        check_fits(model, data.process, data.n_ctx, token_map=data.token_map)
        data = LabelledTokens.from_beliefs(data)
    check_reads_tokens(model, data.tokens)
    first, last, _ = (words or slice(None)).indices(len(data.tokens))

    def batches() -> Iterator[RowBatch]:
        tokens = data.tokens[first:last]
        how = {"batch_size": batch_size, "progress": progress, "logits": logits}
        for batch in stream_prefixes(model, tokens, names, **how):
            stretch = slice(batch.words.start + first, batch.words.stop + first)
            yield labelled_batch(data, stretch, batch)

    return Rows(names, data.description, batches)


@checked
def sampled_rows(
    model: HookedModel,
    process: Process,
    n_words: Count = 100_000,
    *,
    seed: Seed,
    n_ctx: Count | None = None,
    sites: Sites = None,
    positions: Positions = None,
    token_map: TokenMap | None = None,
    batch_size: Count | None = None,
    chunk_size: Count | None = None,
    progress: str | None = None,
) -> Rows:
    """The activations on words drawn from a process as they are needed, in constant memory; you may stop at any batch.

    Every draw counts the same, as with `weighting="probability"`. A prefix is in the same group wherever it is drawn.

    Args:
        model: Any hooked model.
        process: The process to draw from.
        n_words: The largest number of words to draw.
        seed: Seed of the draws.
        n_ctx: Number of symbols in a word; by default as many as fit the model's context.
        sites: As for `find_sites`.
        positions: Which of a word's positions are rows: a slice, numbers or a mask `[pos]`.
        token_map: How the model reads the symbols.
        batch_size: Words in one forward pass.
        chunk_size: Words drawn at once.
        progress: Title of a progress bar.

    Raises:
        KeyError: if the model lacks a site.
        ValueError: if the model cannot read the words, or an option is out of range; before the model is run.
    """
    names = find_sites(model, sites)
    length = word_length(model, n_ctx, token_map=token_map)
    check_fits(model, process, length, token_map=token_map)
    # This checks the options; nothing is drawn until the words are iterated over.
    stream_words(process, n_words, length, seed=seed, chunk_size=chunk_size)

    def labelled(chunk: BeliefDataset) -> LabelledTokens:
        return LabelledTokens.from_beliefs(replace(chunk, positions=positions, token_map=token_map))

    # One word shows whether the positions are possible before any work is done.
    (one_word,) = stream_words(process, 1, length, seed=seed)
    description = {**labelled(one_word).description, "source": "samples", "words": n_words, "seed": seed}
    description.pop("rows", None)

    def batches() -> Iterator[RowBatch]:
        first = 0
        for chunk in stream_words(process, n_words, length, seed=seed, chunk_size=chunk_size):
            data = labelled(chunk)
            hashes = prefix_hashes(chunk.tokens)
            groups = torch.where(data.positions < 0, 0, hashes[data.words, data.positions.clamp(min=0)])
            data = replace(data, groups=groups)
            for batch in model_rows(model, data, names, batch_size=batch_size, progress=progress):
                yield replace(batch, words=batch.words + first, batch_words=None)
            first += len(chunk)

    return Rows(names, description, batches)


def labelled_batch(data: LabelledTokens, words: slice, batch: PrefixBatch) -> RowBatch:
    """The rows of a range of words."""
    rows = data.rows_of(words)
    place = batch.places[data.words[rows] - words.start, data.columns[rows]]
    in_order, features = torch.equal(place, torch.arange(len(place))), {}
    there = cache(partial(moved, place))
    for name, values in batch.activations.items():
        # Where every place is a row, in order, no copy is needed.
        features[name] = values if in_order and len(place) == len(values) else values[there(values.device)]
    output = batch.by_word(batch.output) if isinstance(batch.output, Tensor) else batch.output
    targets = {name: values[rows] for name, values in data.targets.items()}
    numbers = (each[rows] for each in (data.weights, data.groups, data.words, data.positions))
    undefined = {name: gone[rows] for name, gone in data.undefined.items()}
    return RowBatch(features, targets, *numbers, output=output, batch_words=words, undefined=undefined)


@checked
def cache_rows(cache: Any, data: LabelledTokens, sites: Sites = None, *, batch_size: Count | None = None) -> Rows:
    """The activations in an `ActivationCache`, or in a mapping of hook names to tensors.

    Args:
        cache: `[word, pos, d_model]` at each hook (for heads, `[word, pos, head, d_head]`), for all of `data.tokens`.
        data: The tokens that the model read, and the targets.
        sites: As for `find_sites`, among the cache's names; by default its residual stream, or everything in a mapping.
        batch_size: Words in one batch of rows.

    Raises:
        KeyError: if the cache lacks a site.
        ValueError: if an activation has the wrong shape, or is NaN or infinite.

    Example:
        >>> words = torch.tensor([[0, 1], [1, 1]])
        >>> data = LabelledTokens.from_tokens(words, torch.randn(2, 2, 3))
        >>> cache_rows({"hook_embed": torch.randn(2, 2, 8)}, data)
        Rows(2 words from cache, at hook_embed)
    """
    names = _cached_sites(cache, sites)
    size = words_per_batch(batch_size, data.n_ctx)
    shape = tuple(data.tokens.shape)
    activations = {name: taken(cache, name) for name in names}
    for name, values in activations.items():
        if values.ndim != 3 or values.shape[:2] != shape:
            raise ValueError(
                f"{name} has activations of shape {tuple(values.shape)} in the cache; these tokens need "
                f"({shape[0]}, {shape[1]}, d_model): cache all words, with the batch dimension."
            )

    def batches() -> Iterator[RowBatch]:
        for words in batches_of_words(len(data.tokens), size):
            batch = ActivationBatch(words, {name: values[words] for name, values in activations.items()}, None)
            yield labelled_batch(data, words, word_by_word(batch))

    return Rows(names, {**data.description, "source": "cache"}, batches)


@checked
def batch_rows(batches: Iterable[tuple[Any, ...]], sites: Sites = None) -> Rows:
    """Rows from your own iterator, which is consumed once and held one batch at a time.

    Args:
        batches: Tuples `(activations, targets[, weights[, groups]])`. Activations are a mapping or an `ActivationCache`
            of `[row, feature]` or `[word, pos, feature]`; targets are a mapping, or one tensor for `"belief"`, of the
            same leading shape. Weights (`None` for equal ones) and groups are `[row]`, or `[word]` or `[word, pos]`.
            Rows of one group are held out together; by default those of one word, or each row by itself.
        sites: Which activations to use, as for `find_sites`; by default everything in a mapping.

    Raises:
        ValueError: if there is no batch, or one has wrong shapes, names or widths, or a number that is not finite.
        KeyError: if a batch lacks a site.
        TypeError: if a batch is not such a tuple.
    """
    if not isinstance(batches, Iterable) or isinstance(batches, str | Mapping | Tensor):
        kind = type(batches).__name__
        raise TypeError(f"batches is a {kind}: give an iterable of tuples (activations, targets[, weights[, groups]]).")
    source = iter(batches)
    first = next(source, None)
    if first is None:
        raise ValueError("batches is empty, so there is nothing to fit: an iterator can be used only once.")
    activations, _, weights, groups = _parts(first, 0)
    names = _cached_sites(activations, sites)
    head = _own_batch(first, names, 0, 0)
    by_word = taken(activations, names[0]).ndim == 3
    grouping = "given" if groups is not None else "word" if by_word else "row"
    description = {"source": "batches", "is_population": False, "groups": grouping}
    description["weighting"] = "row" if weights is None else "given"

    def widths(rows: RowBatch) -> dict[str, int]:
        return {name: values.shape[1] for name, values in (*rows.features.items(), *rows.targets.items())}

    def n_groups(rows: RowBatch) -> int:
        return int(rows.words[-1] - rows.words[0]) + 1 if by_word and len(rows) else len(rows)

    # Emptied by the first iteration.
    rest = [source]

    def checked() -> Iterator[RowBatch]:
        if not rest:
            raise ValueError("These rows come from an iterator that has been used up: make new rows from a new one.")
        remaining = rest.pop()
        seen, expected = n_groups(head), widths(head)
        yield head
        for number, batch in enumerate(remaining, start=1):
            rows = _own_batch(batch, names, number, seen)
            if (found := widths(rows)) != expected:
                raise ValueError(f"Batch {number} has widths {found}, the first has {expected}: give the same in all.")
            seen += n_groups(rows)
            yield rows

    return Rows(names, description, checked)


def taken(activations: Any, site: str) -> Float[Tensor, "*batch feature"]:
    """The features of a site in a mapping or cache of activations; `KeyError` if they are not there."""
    if site in activations.keys():  # noqa: SIM118 (an ActivationCache is not a container)
        values = activations[site]
        return values if values.ndim == 2 else Site(site).take(values)
    found = Site.parse(site)
    if found.hook not in activations.keys():  # noqa: SIM118
        there_are, near = ", ".join(activations.keys()), meant(found.hook, activations.keys())
        raise KeyError(f"There are no activations of {site!r}; there are some of {there_are}.{near}")
    return found.take(activations[found.hook])


def _cached_sites(cache: Any, sites: Sites) -> tuple[str, ...]:
    """The requested sites of a mapping or cache; by default all of a mapping, and the residual stream of a cache."""
    if not hasattr(cache, "keys"):
        kind = type(cache).__name__
        raise TypeError(f"Activations must be a mapping of sites to tensors, or an ActivationCache, not a {kind}.")
    if sites is None and isinstance(cache, Mapping):
        if not cache:
            raise ValueError("There are no activations: give at least one site.")
        return tuple(cache)
    tensors = {name: cache[name] for name in cache.keys()}  # noqa: SIM118
    # Different names of one place share its memory.
    places = {name: (values.data_ptr(), values.shape, values.stride()) for name, values in tensors.items()}
    return SiteIndex(places, of="The cache").find(sites)


def _own_batch(batch: Any, names: tuple[str, ...], number: int, first_group: int) -> RowBatch:
    """A user's tuple as rows, after checks."""
    activations, targets, weights, groups = _parts(batch, number)
    values = {name: taken(activations, name) for name in names}
    shape = values[names[0]].shape[:-1]
    for name, features in values.items():
        if features.shape[:-1] != shape or len(shape) not in (1, 2):
            raise ValueError(
                f"Batch {number}: {name} has shape {tuple(features.shape)}; it needs [row, feature] or [word, pos, "
                f"feature], the same at all sites ({names[0]} has {tuple(values[names[0]].shape)})."
            )
        check_finite(features, f"{name} in batch {number}", CHECK_THE_MODEL)
    own_groups = torch.arange(shape[0]) + first_group
    words = positions = torch.full(shape, -1)
    if len(shape) == 2:
        own_groups = words = own_groups.unsqueeze(1).expand(shape)
        positions = torch.arange(shape[1]).expand(shape)
    named = targets if isinstance(targets, Mapping) else {BELIEF: targets}
    rows = RowBatch(
        features={name: features.detach().reshape(shape.numel(), -1) for name, features in values.items()},
        targets={name: _own_target(name, target, shape, number) for name, target in named.items()},
        weights=_own_numbers("weights", torch.ones(shape) if weights is None else weights, shape, number).double(),
        groups=_own_numbers("groups", own_groups if groups is None else groups, shape, number).long(),
        words=words.flatten(),
        positions=positions.flatten(),
    )
    if (rows.weights < 0).any():
        raise ValueError(f"Batch {number}: weights holds {float(rows.weights.min()):g}: give weights ≥ 0.")
    return rows


def _parts(batch: Any, number: int) -> tuple[Any, ...]:
    """A batch's activations, targets, weights and groups."""
    if not isinstance(batch, tuple) or not 2 <= len(batch) <= 4:
        kind = f"a tuple of {len(batch)}" if isinstance(batch, tuple) else f"a {type(batch).__name__}"
        raise TypeError(f"Batch {number} is {kind}: give (activations, targets), then weights and groups if any.")
    return (*batch, None, None)[:4]


def _own_target(name: str, target: Any, shape: torch.Size, number: int) -> Float64[Tensor, "row target"]:
    if not isinstance(target, Tensor) or not target.is_floating_point():
        kind = target.dtype if isinstance(target, Tensor) else type(target).__name__
        remedy = "give a tensor of floating-point numbers; encode classes with one_hot(classes, n_classes)"
        raise ValueError(f"Batch {number}: target {name!r} is {kind}: {remedy}.")
    wide = target.unsqueeze(-1) if target.shape == shape else target
    if wide.ndim != len(shape) + 1 or wide.shape[:-1] != shape:
        raise ValueError(
            f"Batch {number}: target {name!r} has shape {tuple(target.shape)}; it needs the activations' "
            f"{tuple(shape)} and a last dimension: [row, target] or [word, pos, target]."
        )
    check_finite(wide, f"target {name!r} in batch {number}", "Check the data.")
    return wide.detach().cpu().double().reshape(shape.numel(), -1)


def _own_numbers(name: str, values: Tensor, shape: torch.Size, number: int) -> Tensor:
    if values.shape not in (shape, shape[:1]):
        sizes = f"{tuple(values.shape)}; it needs {tuple(shape)}"
        raise ValueError(f"Batch {number}: {name} has shape {sizes}, one number per row.")
    check_finite(values, f"{name} in batch {number}", "Check the data.")
    values = values.detach().cpu()
    return (values.unsqueeze(1) if values.ndim < len(shape) else values).expand(shape).flatten()
