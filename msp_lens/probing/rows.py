"""Rows, which probes are fitted on: an activation and its target each, one batch at a time.

Wherever rows come from (a process, given tokens, a cache, your own iterator), this is all that fitting sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from msp_lens.data import BeliefDataset, LabelledTokens, TokenMap, stream_words
from msp_lens.data.belief_dataset import prefix_hashes
from msp_lens.data.row_positions import Positions
from msp_lens.models.activations import stream_activations
from msp_lens.models.hooked import HookedModel, check_fits, check_reads_tokens, find_sites, word_length
from msp_lens.models.sites import Sites
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
        output: What the model returned for the batch of words, if a model was run.
        batch_words: The words of the data in that batch, if a model was run.
    """

    features: Mapping[str, Float[Tensor, "row feature"]]
    targets: Mapping[str, Float64[Tensor, "row target"]]
    weights: Float64[Tensor, "row"]
    groups: Int[Tensor, "row"]
    words: Int[Tensor, "row"]
    positions: Int[Tensor, "row"]
    output: Any = None
    batch_words: slice | None = None

    def __len__(self) -> int:
        return len(self.weights)


@dataclass(frozen=True, eq=False)
class Rows:
    """An iterable of batches of rows, with their description.

    Each iteration runs the model again; rows from your own iterator can be iterated over once.

    Attributes:
        sites: The sites of every batch's features.
        description: Where the rows come from, JSON-ready: words, weighting, positions, whether they are the population.
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


def model_rows(
    model: HookedModel,
    data: BeliefDataset | LabelledTokens,
    sites: Sites = None,
    *,
    words: slice | None = None,
    batch_size: int | None = None,
    progress: str | None = None,
) -> Rows:
    """The activations of a model that reads labelled tokens.

    Args:
        model: Any hooked model.
        data: Tokens with targets, or a `BeliefDataset`, whose distinct prefixes count by their probability.
        sites: As for `find_sites`.
        words: The range of words to read; all by default.
        batch_size: Words in one forward pass.
        progress: Title of a progress bar.

    Raises:
        KeyError: if the model lacks a site; before it is run.
        ValueError: if the model cannot read the tokens; before it is run.

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
        for batch in stream_activations(model, tokens, names, batch_size=batch_size, progress=progress):
            stretch = slice(batch.words.start + first, batch.words.stop + first)
            yield labelled_batch(data, stretch, batch.activations, batch.output)

    return Rows(names, data.description, batches)


def sampled_rows(
    model: HookedModel,
    process: Process,
    n_words: int = 100_000,
    *,
    seed: int,
    n_ctx: int | None = None,
    sites: Sites = None,
    positions: Positions = None,
    token_map: TokenMap | None = None,
    batch_size: int | None = None,
    chunk_size: int | None = None,
    progress: str | None = None,
) -> Rows:
    """The activations on words drawn from a process as they are needed, so that memory does not grow with their number.

    Every draw counts the same, as with `weighting="probability"`. A prefix belongs to the same group wherever it is
    drawn, so that it is held out as a whole. You may stop at any batch.

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
    # One word shows whether the positions are possible before any work is done.
    (one_word,) = stream_words(process, 1, length, seed=seed)
    tried = LabelledTokens.from_beliefs(replace(one_word, positions=positions, token_map=token_map)).description
    description = {key: value for key, value in tried.items() if key != "rows"} | {
        "source": "samples",
        "words": n_words,
        "seed": seed,
    }

    def batches() -> Iterator[RowBatch]:
        first = 0
        for chunk in stream_words(process, n_words, length, seed=seed, chunk_size=chunk_size):
            data = LabelledTokens.from_beliefs(replace(chunk, positions=positions, token_map=token_map))
            hashes = prefix_hashes(chunk.tokens)
            groups = torch.where(data.positions < 0, 0, hashes[data.words, data.positions.clamp(min=0)])
            data = replace(data, groups=groups)
            for batch in model_rows(model, data, names, batch_size=batch_size, progress=progress):
                yield replace(batch, words=batch.words + first, batch_words=None)
            first += len(chunk)

    return Rows(names, description, batches)


def labelled_batch(data: LabelledTokens, words: slice, activations: Mapping[str, Tensor], output: Any) -> RowBatch:
    """The rows of a range of words."""
    rows = data.rows_of(words)
    batch_word, column = data.words[rows] - words.start, data.columns[rows]
    features = {name: _at(values, batch_word, column) for name, values in activations.items()}
    return RowBatch(
        features=features,
        targets={name: values[rows] for name, values in data.targets.items()},
        weights=data.weights[rows],
        groups=data.groups[rows],
        words=data.words[rows],
        positions=data.positions[rows],
        output=output,
        batch_words=words,
    )


def _at(
    activation: Float[Tensor, "batch pos feature"], words: Int[Tensor, "row"], columns: Int[Tensor, "row"]
) -> Float[Tensor, "row feature"]:
    # Rows are distinct places in order, so if there are as many rows as places, a view is enough.
    if len(words) == activation.shape[0] * activation.shape[1]:
        return activation.flatten(0, 1)
    return activation[words.to(activation.device), columns.to(activation.device)]
