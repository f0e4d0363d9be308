"""Stream activations at chosen sites, a batch of words at a time, never the whole cache; log-probabilities likewise.

Logits are the largest tensors of a language model: 640 tokens of a vocabulary of 49,152 take 120 MiB. Where only
something of them is wanted, or nothing, they are computed a few rows at a time, or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from msp_lens._arrays import moved
from msp_lens._checks import Count, checked
from msp_lens._files import read_tensors, tensors_checksum, tensors_written
from msp_lens.models.hooked import (
    HookedModel,
    check_reads_tokens,
    config_value,
    evaluating,
    find_sites,
    model_device,
    site_index,
    unwrapped,
)
from msp_lens.models.model_files import model_fingerprint
from msp_lens.models.sites import Site, Sites

# From some rows of logits, [row, token], to what is wanted of each.
Reduction: TypeAlias = Callable[[Tensor], Tensor]

# Logits computed at once where only something of them is wanted: 16 MB in float32, more on a GPU.
_AT_ONCE = 2**22

# Whether a model's output is that of its `unembed`: its architecture says so, whatever its weights.
_UNEMBEDS_LAST: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class ActivationBatch:
    """The result of one forward pass.

    Attributes:
        words: The words that were read.
        activations: The activation at each site, on the model's device.
        output: What the model returned, its logits for a language model; or what was wanted of them.
    """

    words: slice
    activations: dict[str, Float[Tensor, "batch pos feature"]]
    output: Any


@dataclass(frozen=True, eq=False)
class PrefixBatch:
    """What a model has at the prefixes of some words, each of which it read once if it can.

    Attributes:
        words: The words.
        places: For each word and position, the row of its prefix.
        activations: The activation at each site, on the model's device.
        output: What was wanted of the model's output.
    """

    words: slice
    places: Int[Tensor, "word pos"]
    activations: dict[str, Float[Tensor, "row feature"]]
    output: Any

    def by_word(self, rows: Tensor) -> Tensor:
        """What is known of each row, at every place, `[word, pos, …]`; a view where the places are the rows."""
        if torch.equal(self.places.flatten(), torch.arange(len(rows))):
            return rows.unflatten(0, self.places.shape)
        return rows[moved(self.places, rows.device)]


def word_by_word(batch: ActivationBatch) -> PrefixBatch:
    """A batch of words, each place of which is a row of its own."""
    n_words = batch.words.stop - batch.words.start
    rows = {name: values.flatten(0, 1) for name, values in batch.activations.items()}
    n_rows = len(next(iter(rows.values()))) if rows else len(batch.output.flatten(0, 1))
    output = batch.output.flatten(0, 1) if isinstance(batch.output, Tensor) else batch.output
    return PrefixBatch(batch.words, torch.arange(n_rows).view(n_words, -1), rows, output)


@checked
def stream_activations(
    model: HookedModel,
    tokens: Int[Tensor, "word pos"],
    sites: Sites = None,
    *,
    batch_size: Count | None = None,
    progress: str | None = None,
    logits: bool | Callable[..., Tensor] = True,
) -> Iterator[ActivationBatch]:
    """Run the model over the words and yield the sites' activations batch by batch.

    Each forward pass is in evaluation mode without gradients; between passes the model is in its former state. Other
    hooks stay in force, so a stream taken within `editing` is that of the edited model. Several threads may stream one
    model at once: each forward pass waits for its turn.

    Args:
        model: Any hooked model.
        tokens: The words, in any container of whole numbers.
        sites: As for `find_sites`; `None` is the residual stream, an empty sequence none (outputs only).
        batch_size: Words in one forward pass; by default about 8,192 tokens' worth (65,536 on a GPU), fewer in a large
            model.
        progress: Title of a progress bar; none by default.
        logits: Whether the model's output is wanted. Where it is not, and the model's last step is its `unembed`, as a
            trial shows, no logits are computed; `output` is `None`. A function of some rows of logits, `[row, token]`
            to `[row, …]`, is applied to a few rows at a time, and `output` is what it gave, `[word, pos, …]`, or `None`
            if the model returned no logits.

    Raises:
        KeyError: if the model lacks a site, before the first forward pass.
        ValueError: if `batch_size` is below 1; during a forward pass, if a site does not have one activation for each
            word and position, as it is with one that is reached twice or never.
    """
    model = unwrapped(model)
    found = chosen_sites(model, sites)
    n_features = len(found) * (config_value(model, "d_model") or 0)
    n_logits = vocabulary_out(model) if logits is True else 0
    size = words_per_batch(
        batch_size, tokens.shape[1], numbers_per_token=n_features + n_logits, device=model_device(model)
    )
    return _stream(model, tokens, found, size, progress, logits)


def chosen_sites(model: HookedModel, sites: Sites) -> dict[str, Site]:
    """The sites by name; of an empty sequence, none."""
    names = () if isinstance(sites, Sequence | Mapping) and not sites else find_sites(model, sites)
    index = site_index(model)
    return {name: index.site(name) for name in names}


def batches_of_words(n_words: int, size: int, progress: str | None = None) -> Iterator[slice]:
    """Ranges of `size` words, the last one of what is left; with a title, a progress bar, if it takes over a second."""
    how: dict[str, Any] = {"unit": "batch", "leave": False, "delay": 1}
    for start in tqdm(range(0, n_words, size), desc=progress, disable=progress is None, **how):
        yield slice(start, min(start + size, n_words))


@checked
def keep_activations(
    path: str | Path,
    model: HookedModel,
    tokens: Int[Tensor, "word pos"],
    sites: Sites = None,
    *,
    batch_size: Count | None = None,
    progress: str | None = None,
) -> dict[str, Float[Tensor, "word pos feature"]]:
    """Keep the sites' activations in a safetensors file, and read from it only what is asked for.

    A second solver, target or split then takes no second pass through the model: `msp.probing.cache_rows` makes rows of
    what is returned. Where the file holds just these activations already, the model is not run.

    Args:
        path: A file that ends in `.safetensors`. It takes words × positions × features × bytes of a number, and is
            written a batch at a time, completely or not at all.
        model: Any hooked model.
        tokens: The words.
        sites: As for `find_sites`.
        batch_size: Words in one forward pass.
        progress: Title of a progress bar; none by default.

    Returns:
        The activations by site, which lie in the file: memory holds what of them is in use.

    Raises:
        KeyError: if the model lacks a site.
        ValueError: if the disk has too little space, or the file is damaged or holds something else.

    Example:
        >>> import tempfile
        >>> from msp_lens.models.build import ModelConfig, build_model
        >>> model, words = build_model(ModelConfig(d_vocab=3)), torch.tensor([[0, 1, 2], [2, 2, 1]])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     kept = keep_activations(f"{folder}/kept.safetensors", model, words, "0_post")
        >>> kept["blocks.0.hook_resid_post"].shape
        torch.Size([2, 3, 64])
    """
    path, names = Path(path), find_sites(model, sites)
    if path.suffix != ".safetensors":
        raise ValueError(f"path={str(path)!r}: give a file that ends in .safetensors.")
    check_reads_tokens(model, tokens)
    content = {"model": model_fingerprint(model), "tokens": tensors_checksum({"tokens": tokens}, {}), "sites": names}
    header = {"activations": json.dumps(content)}
    if not path.exists():
        (sample,) = stream_activations(model, tokens[:1], names, logits=False)
        with tensors_written(path, sample.activations, len(tokens), header) as write:
            reading: dict[str, Any] = {"batch_size": batch_size, "progress": progress, "logits": False}
            for batch in stream_activations(model, tokens, names, **reading):
                for name, values in batch.activations.items():
                    write(name, batch.words.start, values)
    kept, found = read_tensors(path)
    if found != header:
        raise ValueError(
            f"{path} holds something else than these sites' activations of this model on these tokens: choose another "
            "file, or remove it."
        )
    return kept


def words_per_batch(
    batch_size: int | None, n_ctx: int, *, numbers_per_token: int = 0, device: torch.device | None = None
) -> int:
    """The given batch size, or by default about 8,192 tokens' worth of words, fewer where they take much memory.

    Args:
        batch_size: Words in a batch, if it was chosen.
        n_ctx: Tokens in a word.
        numbers_per_token: Activations and logits that are held for each token; 64 MiB of them are held at once.
        device: Where the model is. A GPU gets more tokens, and a sixteenth of its free memory for what is held.
    """
    # Few enough tokens for the activations of a small model to stay in a CPU's cache (measured: four times as many
    # take 1.6 times as long). A GPU waits unless it has much to do at once.
    # Twice as many bytes make a pass over 32 sites of 576 features take a third more memory, and it is no faster.
    most_tokens, most_bytes = 8_192, 2**26
    if (free := _free_on_gpu(device)) is not None:
        most_tokens, most_bytes = 65_536, max(most_bytes, free // 16)
    most_tokens = min(most_tokens, most_bytes // (4 * max(1, numbers_per_token)))
    return batch_size or max(1, most_tokens // n_ctx)


def _free_on_gpu(device: torch.device | None) -> int | None:
    """The bytes that a GPU has left; `None` of another device."""
    if device is None or device.type != "cuda":
        return None
    return torch.cuda.mem_get_info(device)[0]


def vocabulary_out(model: HookedModel) -> int:
    """How many logits the model returns for each token, as far as its config says; else 0."""
    d_out = config_value(model, "d_vocab_out")
    return int(d_out if d_out and d_out > 0 else config_value(model, "d_vocab") or 0)


def reduced_logits(
    model: HookedModel,
    tokens: Int[Tensor, "word pos"],
    reduce: Reduction | None,
    columns: Tensor | None = None,
    *,
    run: Callable[[Tensor], Any] | None = None,
) -> Tensor | None:
    """What is wanted of the model's logits; `None` if nothing is, or it returns none.

    Where the model's output is that of its `unembed`, they are computed a few rows at a time, or not at all.

    Args:
        model: Any hooked model.
        tokens: The words.
        reduce: From some rows of logits to what is wanted of each; `None` if nothing is.
        columns: The columns of each word that are wanted, `[word, column]`; all by default.
        run: What runs the model on the words, where it is not simply called.
    """
    unembed, run = _last_unembedding(model), run or model
    if unembed is None:
        read, apply = run(tokens), None
        if reduce is None or not isinstance(read, Tensor) or read.ndim != 3:
            return None
        width = read.shape[-1]
    else:
        held: list[Tensor] = []
        output = _run_shortened(run, unembed, tokens, held)
        (read,), apply, width = held, unembed, output.shape[-1]
        if reduce is None:
            return None
    if columns is not None:
        rows = torch.arange(len(read), device=read.device).unsqueeze(1)
        read = read[rows, columns.to(read.device)]
    at_once = max(_AT_ONCE, (_free_on_gpu(read.device) or 0) // 64)
    # A dimension of positions, as an unembedding expects.
    parts = read.flatten(0, 1).split(max(1, at_once // max(1, width)))
    found = [reduce(part if apply is None else apply(part.unsqueeze(0))[0]) for part in parts]
    return torch.cat(found).unflatten(0, read.shape[:2])


def _run_shortened(
    run: Callable[[Tensor], Any], unembed: nn.Module, tokens: Tensor, held: list[Tensor], scale: float = 1
) -> Any:
    """Run a model, but with only the first position to unembed; what there was to unembed is added to `held`."""

    def shorten(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        held.append(given[0])
        return (scale * given[0][:, :1], *given[1:])

    handle = unembed.register_forward_pre_hook(shorten)
    try:
        return run(tokens)
    finally:
        handle.remove()


def _last_unembedding(model: HookedModel) -> nn.Module | None:
    """The model's `unembed`, if its output is the model's own and nobody looks into it; a trial of two tokens shows it.

    The trial unembeds a hundred times what the model would, so that a cap of the logits shows, too.
    """
    unembed = getattr(model, "unembed", None)
    if not isinstance(unembed, nn.Module) or any(_is_hooked(each) for each in unembed.modules()):
        return None
    if (is_last := _UNEMBEDS_LAST.get(model)) is None:
        held: list[Tensor] = []
        tokens = torch.tensor([[0, min(1, (config_value(model, "d_vocab") or 2) - 1)]], device=model_device(model))
        try:
            with evaluating(model), _unhooked(model):
                output = _run_shortened(model, unembed, tokens, held, scale=100)
                is_last = len(held) == 1 and torch.equal(output.float(), unembed(100 * held[0][:, :1]).float())
        except (RuntimeError, ValueError, IndexError, TypeError, KeyError, AttributeError):
            is_last = False
        _UNEMBEDS_LAST[model] = is_last
    return unembed if is_last else None


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


@contextmanager
def _unhooked(model: HookedModel) -> Iterator[None]:
    """Without the hooks at the model's hook points, which would otherwise see a trial."""
    points = {id(point): point for point in model.hook_dict.values()}.values()
    held = [(point, point._forward_hooks) for point in points]
    try:
        for point, hooks in held:
            point._forward_hooks = type(hooks)()
        yield
    finally:
        for point, hooks in held:
            point._forward_hooks = hooks


def _stream(
    model: HookedModel,
    tokens: Int[Tensor, "word pos"],
    sites: Mapping[str, Site],
    size: int,
    progress: str | None,
    logits: bool | Reduction,
) -> Iterator[ActivationBatch]:
    device = model_device(model)
    for words in batches_of_words(len(tokens), size, progress):
        with evaluating(model):
            activations, output = read_once(model, moved(tokens[words], device), sites, logits)
        yield ActivationBatch(words, activations, output)


def read_once(
    model: HookedModel,
    tokens: Int[Tensor, "word pos"],
    sites: Mapping[str, Site],
    logits: bool | Reduction,
    *,
    run: Callable[[Tensor], Any] | None = None,
) -> tuple[dict[str, Float[Tensor, "word pos feature"]], Any]:
    """The sites' activations and the output of one forward pass, for which the model is called, or `run`.

    It raises `ValueError` if a site does not have one activation for each word and position.
    """
    captured: dict[str, list[Tensor]] = {}
    # A hook is captured once, even if several of its heads are sites.
    hooks = [(hook, partial(_capture, captured, hook)) for hook in {site.hook: None for site in sites.values()}]
    with model.hooks(fwd_hooks=hooks):
        read = (run or model) if logits is True else partial(reduced_logits, model, reduce=logits or None, run=run)
        output = read(tokens)
    missed = [site.hook for site in sites.values() if site.hook not in captured]
    if missed:
        raise ValueError(f"The model never reached {', '.join(missed)} in its forward pass: choose other sites.")
    for name, each in captured.items():
        if len(each) > 1:
            raise ValueError(
                f"The model reached {name} {len(each)} times in one forward pass, with an activation each time: "
                "choose a site that it reaches once, or give each pass through a shared layer a hook of its own."
            )
    return {name: _taken(site, captured[site.hook][0], tokens) for name, site in sites.items()}, output


def _capture(captured: dict[str, list[Tensor]], name: str, activation: Tensor, hook: Any) -> None:
    captured.setdefault(name, []).append(activation.detach())


def _taken(site: Site, activation: Tensor, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos feature"]:
    features = site.take(activation)
    # Positional embeddings may come once for all words.
    if len(features) == 1 < len(tokens):
        features = features.expand(len(tokens), -1, -1)
    if features.shape[:2] != tokens.shape:
        raise ValueError(
            f"{site.name} has activations of shape {tuple(activation.shape)} for tokens of shape "
            f"{tuple(tokens.shape)}: choose a site with one activation for each word and position."
        )
    return features
