"""Rows: what a probe is fitted on, an activation and its target each, batch by batch.

Whatever the rows come from (a process, given tokens, a cache, one's own iterator), fitting sees only these.
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

LOOK_INTO_THE_MODEL = (
    "the model has diverged, or overflows in its dtype. Check its weights, or run it in a wider dtype (float32)."
)


@dataclass(frozen=True, eq=False)
class RowBatch:
    """Some rows.

    Attributes:
        features: Activations by site, on the device they came from, and whatever other features a control reads.
        targets: Targets by name, the beliefs under `"belief"`.
        weights: How much each row counts.
        groups: Rows of one group are held out together.
        words: Which word of the data each row belongs to; -1 where that means nothing.
        positions: Which position of the word; -1 where that means nothing.
        output: What the model returned for the batch of words, where a model was run.
        batch_words: Which words of the data that batch was, where a model was run.
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
    """Batches of rows to go through, and what they are.

    Going through them anew runs the model anew; rows of one's own iterator can be gone through once.

    Attributes:
        sites: The sites of every batch's features.
        description: Where the rows come from, as JSON-ready values: words, weighting, positions, whether they are the
            population.
        source: Makes the iterator.
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
        data: Tokens and targets; of a `BeliefDataset`, each distinct prefix by its probability.
        sites: As for `find_sites`.
        words: Read only this stretch of the words; all by default.
        batch_size: Words in one forward pass.
        progress: Title of a progress bar.

    Raises:
        KeyError: if the model lacks a site, before it is run.
        ValueError: if the model cannot read the tokens, before it is run; if an activation is NaN or infinite, naming
            site and words.

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
    """The activations after words drawn from a process, drawn as they are needed: memory does not grow with them.

    Every draw counts the same, as under `weighting="probability"`. The same prefix has the same group wherever it is
    drawn, so that folds of groups hold it out as a whole. Whoever goes through them may stop at any batch.

    Args:
        model: Any hooked model.
        process: What to draw from.
        n_words: How many draws at most.
        seed: Seed of the draws.
        n_ctx: Symbols in a word; by default as many as the model's context has room for.
        sites: As for `find_sites`.
        positions: Which of a word's symbols are rows: a slice, numbers or a mask `[pos]`.
        token_map: How the model reads the symbols.
        batch_size: Words in one forward pass.
        chunk_size: Words drawn at once.
        progress: Title of a progress bar.

    Raises:
        KeyError: if the model lacks a site.
        ValueError: if the model cannot read the words, or an option is out of range; before it is run.
    """
    names = find_sites(model, sites)
    length = word_length(model, n_ctx, token_map=token_map)
    check_fits(model, process, length, token_map=token_map)
    # Checks its options now; nothing is drawn until it is gone through.
    stream_words(process, n_words, length, seed=seed, chunk_size=chunk_size)
    # One word shows whether the positions are possible, before any work is done.
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
    # Rows are distinct places in order, so as many as there are means all of them: a view will do.
    if len(words) == activation.shape[0] * activation.shape[1]:
        return activation.flatten(0, 1)
    return activation[words.to(activation.device), columns.to(activation.device)]


def check_finite(values: Tensor, where: str, *, remedy: str = LOOK_INTO_THE_MODEL) -> None:
    """Raise `ValueError` saying where, and what to do, if a number is NaN or infinite."""
    # A sum is finite only if its terms are: one pass without a mask, save where it overflows.
    if not torch.isfinite(values.sum()) and not torch.isfinite(values).all():
        row = int((~torch.isfinite(values)).reshape(len(values), -1).any(dim=1).nonzero()[0])
        raise ValueError(f"NaN or infinity at {where}, row {row} of its {len(values)}: {remedy}")
