"""What words have in common is read once: a model after a beginning, and words as a tree of their prefixes.

Where the model has a cache of keys and values (a `HookedTransformer`, or a Hugging Face network in a bridge), the
beginning is read into it, and each later run reads its own tokens alone: activations at a position depend on the prefix
up to it, and on nothing else. Any other model reads the beginning again with every run. The result is the same.
"""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from msp_lens._arrays import moved
from msp_lens._checks import Count, checked
from msp_lens.models.activations import (
    PrefixBatch,
    Reduction,
    batches_of_words,
    chosen_sites,
    read_once,
    reduced_logits,
    stream_activations,
    vocabulary_out,
    word_by_word,
    words_per_batch,
)
from msp_lens.models.hooked import (
    HookedModel,
    SeenModel,
    check_reads_tokens,
    config_value,
    context_length,
    evaluating,
    model_device,
    unwrapped,
)
from msp_lens.models.sites import Site, Sites, is_attention

# What a cache raises in a network of another make, which is then read the plain way.
_NOT_OF_THIS_MAKE = (TypeError, ValueError, AttributeError, KeyError, IndexError, NotImplementedError)
# By model: for each length of a beginning, whether its cache gives what the whole words give.
_TRUSTED: WeakKeyDictionary[Any, dict[int, bool]] = WeakKeyDictionary()


class CachedBeginning(SeenModel):
    """A hooked model after it has read a beginning: a `HookedModel` of the tokens that follow.

    Call it on these tokens, `[word, pos]`, one word for each beginning; after a single beginning any number of words.
    Hooks see and edit the activations at these tokens alone. Each distinct beginning is read once, here, without
    gradients, and unless the model is being edited already: an edit made now is none of the words that follow.

    Args:
        model: Any hooked model.
        beginning: The tokens that come first.

    Attributes:
        is_cached: Whether the beginning's keys and values are kept; if not, it is read again with every run. They are
            kept only if they give the logits that one whole word gives, which is tried once for each length.

    Raises:
        ValueError: if the beginning is empty or does not leave room in the model's context, or a token is unknown to
            the model; when it is called, if words do not belong to the beginnings.

    Example:
        >>> from msp_lens.models.build import ModelConfig, build_model
        >>> model = build_model(ModelConfig(d_vocab=3, n_ctx=6))
        >>> tokens = torch.tensor([[0, 1, 2, 2, 1, 0], [1, 1, 0, 2, 0, 1]])
        >>> after = CachedBeginning(model, tokens[:, :4])
        >>> torch.allclose(after(tokens[:, 4:]), model(tokens)[:, 4:], atol=1e-5)
        True
    """

    @checked
    def __init__(self, model: HookedModel, beginning: Int[Tensor, "word pos"]) -> None:
        self.model = cast(Any, unwrapped(model))
        longest = context_length(self.model)
        if 0 in beginning.shape or (longest is not None and beginning.shape[1] >= longest):
            room = "" if longest is None else f" of the model's context of {longest}, so give at most {longest - 1}"
            raise ValueError(
                f"beginning has shape {tuple(beginning.shape)}: give [word, pos], and leave room for words{room}."
            )
        check_reads_tokens(self.model, beginning)
        self._beginning = beginning.to(model_device(self.model))
        self._length = beginning.shape[1]
        # Of the forward pass that is under way: the number of tokens after the beginning.
        self._tail = 0
        self._cache = _kept(self.model, self._beginning)

    @property
    def is_cached(self) -> bool:
        """Whether the beginning's keys and values are kept."""
        return self._cache is not None

    @property
    def cfg(self) -> SimpleNamespace:
        """The model's config, with the room that is left in its context."""
        longest = context_length(self.model)
        return self._config(n_ctx=longest and longest - self._length)

    def hooks(self, fwd_hooks: list[Any]) -> AbstractContextManager:
        """The model's own `hooks`, each seeing `[word, pos, …]` after the beginning."""
        return self.model.hooks(fwd_hooks=[(name, self._after(name, function)) for name, function in fwd_hooks])

    def _after(self, name: str, function: Callable[[Tensor, Any], Tensor | None]) -> Callable:
        def hooked(activation: Tensor, hook: Any) -> Tensor | None:
            whole = self._length + self._tail
            if activation.ndim < 3 or activation.shape[1] != whole or is_attention(name):
                return function(activation, hook)
            edited = function(activation[:, self._length :], hook)
            if edited is None:
                return None
            before = activation[:, : self._length].expand(len(edited), *[-1] * (edited.ndim - 1))
            return torch.cat([before, edited.to(before.dtype)], dim=1)

        return hooked

    def __call__(self, tokens: Int[Tensor, "word pos"]) -> Float[Tensor, "word pos d_vocab"]:
        """Logits after each of these tokens."""
        if len(self._beginning) not in (1, len(tokens)):
            raise ValueError(f"{len(tokens)} words do not belong to {len(self._beginning)} beginnings: give one each.")
        self._tail = tokens.shape[1]
        if self._cache is not None:
            return self._cache.read_after(tokens.to(self._beginning.device))
        beginning = self._beginning.expand(len(tokens), -1)
        whole = torch.cat([beginning, tokens.to(beginning.device)], dim=1)
        columns = torch.arange(self._length, whole.shape[1], device=whole.device).expand(len(whole), -1)
        # Without logits of the beginning, if that can be.
        found = reduced_logits(self.model, whole, lambda logits: logits, columns)
        return self.model(whole)[:, self._length :] if found is None else found

    def __repr__(self) -> str:
        how = "cached" if self.is_cached else "read again with every run"
        return f"CachedBeginning({type(self.model).__name__}, {len(self._beginning)} × {self._length} tokens, {how})"


@checked
def after_beginning(model: HookedModel, beginning: Int[Tensor, "word pos"]) -> HookedModel:
    """The model after a beginning, in the tokens that it is called on: symbols, for a `SymbolReader`.

    It is a `CachedBeginning`, or a reader of one; arguments and errors as there.
    """
    after = getattr(model, "after", None) if isinstance(model, SeenModel) else None
    return cast(HookedModel, CachedBeginning(model, beginning) if after is None else after(beginning))


def _kept(model: Any, beginning: Int[Tensor, "word pos"]) -> _Cache | None:
    """The cache of these beginnings, if the model has one that can be trusted."""
    kind, trusted = _kind(model), _TRUSTED.setdefault(model, {})
    if kind is None or not trusted.get(beginning.shape[1], True):
        return None
    with evaluating(model):
        try:
            if beginning.shape[1] not in trusted:
                trusted[beginning.shape[1]] = _agrees(model, kind, beginning[:1])
                return _kept(model, beginning)
            return _read_into(kind(model), beginning)
        except _NOT_OF_THIS_MAKE:
            trusted[beginning.shape[1]] = False
            return None


def _read_into(cache: _Cache, beginning: Int[Tensor, "word pos"]) -> _Cache:
    """The cache once it has read each distinct beginning; a single one stays single, however many words follow it."""
    distinct, which = beginning.unique(dim=0, return_inverse=True)
    # Nothing is predicted here.
    reduced_logits(cache.model, distinct, None, run=cache.read)
    if len(distinct) > 1:
        cache.keep(which)
    return cache


def _kind(model: Any) -> type[_Cache] | None:
    """What sort of cache the model has; none where something edits it already, for the beginning would be edited."""
    if any(getattr(point, "_forward_hooks", None) for point in model.hook_dict.values()):
        return None
    forward = inspect.signature(model.forward).parameters if hasattr(model, "forward") else {}
    if "past_kv_cache" in forward:
        # Left padding is masked, and a mask of what was padding is not kept here.
        return None if getattr(model.tokenizer, "padding_side", None) == "left" else _TransformerLensCache
    return _HuggingFaceCache if hasattr(model, "original_model") else None


def keeps_beginnings(model: HookedModel) -> bool:
    """Whether the model has a cache of keys and values, as far as can be told without running it."""
    inner = unwrapped(model.model if isinstance(model, SeenModel) else model)
    return _kind(inner) is not None and False not in _TRUSTED.get(inner, {}).values()


def _agrees(model: Any, kind: type[_Cache], beginning: Int[Tensor, "1 pos"]) -> bool:
    """Whether one whole word gives the same logits as its end after its beginning."""
    longest = context_length(model)
    after = beginning[:, -2:] if longest is None else beginning[:, -2:][:, : longest - beginning.shape[1]]
    whole = model(torch.cat([beginning, after], dim=1))[:, beginning.shape[1] :]
    return _same(_read_into(kind(model), beginning).read_after(after), whole)


class _Cache(ABC):
    """The keys and values of what words have in common."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @abstractmethod
    def read(self, tokens: Int[Tensor, "word pos"]) -> Tensor:
        """Logits after the next tokens of each word, which are kept, too."""

    @abstractmethod
    def read_after(self, tokens: Int[Tensor, "word pos"]) -> Tensor:
        """Logits after the next tokens of each word, or of any number of words after a single one; none is kept."""

    @abstractmethod
    def keep(self, words: Int[Tensor, "kept"]) -> None:
        """Go on with these words: some may be left out, and others come several times."""


class _TransformerLensCache(_Cache):
    """The cache of a `HookedTransformer`."""

    _cache: Any = None

    def read(self, tokens: Int[Tensor, "word pos"]) -> Tensor:
        from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

        if self._cache is None:
            config = self.model.cfg
            self._cache = TransformerLensKeyValueCache.init_cache(config, config.device, len(tokens))
        # Without a mask it would ask the tokenizer for one.
        return self.model(tokens, past_kv_cache=self._cache, attention_mask=torch.ones_like(tokens))

    def read_after(self, tokens: Int[Tensor, "word pos"]) -> Tensor:
        cache = copy.copy(self._cache)
        cache.entries = [copy.copy(entry) for entry in self._cache.entries]
        for entry in cache.entries:
            entry.past_keys, entry.past_values = (_spread(e, len(tokens)) for e in (entry.past_keys, entry.past_values))
        cache.previous_attention_mask = tokens.new_ones(len(tokens), cache.entries[0].past_keys.shape[1])
        cache.freeze()
        return self.model(tokens, past_kv_cache=cache, attention_mask=torch.ones_like(tokens))

    def keep(self, words: Int[Tensor, "kept"]) -> None:
        for entry in self._cache.entries:
            entry.past_keys, entry.past_values = (e[words.to(e.device)] for e in (entry.past_keys, entry.past_values))
        mask = self._cache.previous_attention_mask
        self._cache.previous_attention_mask = mask[words.to(mask.device)]


class _HuggingFaceCache(_Cache):
    """The cache of a Hugging Face network, through TransformerLens's bridge."""

    _cache: Any = None

    def read(self, tokens: Int[Tensor, "word pos"]) -> Tensor:
        if self._cache is not None:
            return self._read_with(tokens, self._cache)
        with _told_of_cache(self.model):
            logits, self._cache = self.model(tokens, use_cache=True, return_type="logits_and_cache")
        if {type(layer).__name__ for layer in self._cache.layers} - {"DynamicLayer", "DynamicSlidingWindowLayer"}:
            raise ValueError("Layers that keep something other than keys and values.")
        return logits

    def read_after(self, tokens: Int[Tensor, "word pos"]) -> Tensor:
        cache = copy.copy(self._cache)
        # A run puts longer keys and values in their place.
        cache.layers = [copy.copy(layer) for layer in self._cache.layers]
        for layer in cache.layers:
            layer.keys, layer.values = _spread(layer.keys, len(tokens)), _spread(layer.values, len(tokens))
        return self._read_with(tokens, cache)

    def keep(self, words: Int[Tensor, "kept"]) -> None:
        for layer in self._cache.layers:
            layer.keys, layer.values = (states[words.to(states.device)] for states in (layer.keys, layer.values))

    def _read_with(self, tokens: Int[Tensor, "word pos"], cache: Any) -> Tensor:
        accepted = inspect.signature(self.model.original_model.forward).parameters
        # Transformers 5.24 gave it another name.
        name = "cache" if "cache" in accepted else "past_key_values"
        with _told_of_cache(self.model):
            return self.model(tokens, use_cache=True, **{name: cache})


def _spread(states: Tensor, n_words: int) -> Tensor:
    return states.expand(n_words, *states.shape[1:])


@contextmanager
def _told_of_cache(model: Any) -> Iterator[None]:
    """Let a bridge's attention find the cache.

    Transformers 5.24 calls it `cache`, and TransformerLens (3.9, 4.3) looks for `past_key_values`, finds none, and
    attends to the latest tokens alone, without a word.
    """

    def told(module: nn.Module, arguments: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        known = options.get("past_key_values", options.get("layer_past"))
        return arguments, options if known is not None else options | {"past_key_values": options.get("cache")}

    handles = [
        module.register_forward_pre_hook(told, with_kwargs=True)
        for module in model.modules()
        if hasattr(module, "_update_kv_cache")
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@checked
def stream_prefixes(
    model: HookedModel,
    tokens: Int[Tensor, "word pos"],
    sites: Sites = None,
    *,
    batch_size: Count | None = None,
    progress: str | None = None,
    logits: bool | Callable[..., Tensor] = True,
) -> Iterator[PrefixBatch]:
    """As `stream_activations`, but words next to each other that begin alike have their beginnings read once.

    All 59,049 words of ten tokens of three kinds have 590,490 tokens and 88,572 prefixes. The words are read as a tree,
    level by level, where the model has a cache of keys and values, nothing edits it, the words share at least half of
    their tokens, and a trial shows the same activations to rounding; else, word by word.

    Args:
        model: Any hooked model.
        tokens: The words; sorted ones share most.
        sites: As for `find_sites`.
        batch_size: Words in a batch.
        progress: Title of a progress bar; none by default.
        logits: As for `stream_activations`.

    Raises:
        KeyError: if the model lacks a site, before the first forward pass.
        ValueError: as for `stream_activations`.
    """
    model = cast(Any, unwrapped(model))
    found = chosen_sites(model, sites)
    kind = _tree_kind(model, tokens, found)
    if kind is not None:
        return _stream_tree(model, kind, tokens, found, batch_size, progress, logits)
    how: dict[str, Any] = {"batch_size": batch_size, "progress": progress, "logits": logits}
    return map(word_by_word, stream_activations(model, tokens, list(found), **how))


def _tree_kind(model: Any, tokens: Int[Tensor, "word pos"], sites: Mapping[str, Site]) -> type[_Cache] | None:
    """How to read these words as a tree; `None` if that cannot be, or would gain little."""
    kind = _kind(model)
    if kind is None or min(tokens.shape) < 2 or any(is_attention(site.hook) for site in sites.values()):
        return None
    is_new = _is_new(tokens)
    if 2 * int(is_new.sum()) > tokens.numel():
        return None
    # Two words that part late, if there are such.
    second = int(is_new.sum(dim=1)[1:].argmin()) + 1
    some = tokens[second - 1 : second + 1]
    with evaluating(model):
        try:
            activations, output = read_once(model, some.to(model_device(model)), sites, True)
            places, rows, answers = _read_tree(model, kind, some, sites, True)
        except _NOT_OF_THIS_MAKE:
            return None
    pairs = [(rows[name], values) for name, values in activations.items()]
    pairs += [(answers, output)] if isinstance(output, Tensor) else []
    return kind if all(_same(rows[places], values) for rows, values in pairs) else None


def _same(found: Tensor, whole: Tensor) -> bool:
    """Whether two ways of computing one thing differ by rounding alone: a forgotten beginning differs by far more."""
    if found.shape != whole.shape:
        return False
    allowed = min(256 * torch.finfo(whole.dtype).eps, 0.05) * float(whole.abs().max())
    return float((found - whole).abs().max()) <= allowed


def _is_new(tokens: Int[Tensor, "word pos"]) -> Bool[Tensor, "word pos"]:
    """Whether the prefix up to each place is another than that of the word before."""
    differs = (tokens[1:] != tokens[:-1]).cumsum(dim=1) > 0
    return torch.cat([torch.ones_like(tokens[:1], dtype=torch.bool), differs])


def _stream_tree(
    model: Any,
    kind: type[_Cache],
    tokens: Int[Tensor, "word pos"],
    sites: Mapping[str, Site],
    batch_size: int | None,
    progress: str | None,
    logits: bool | Reduction,
) -> Iterator[PrefixBatch]:
    n_positions = tokens.shape[1]
    # What is held for each word: activations and logits at its new prefixes, and keys and values at all its positions.
    width = len(sites) * (config_value(model, "d_model") or 0) + (vocabulary_out(model) if logits is True else 0)
    heads = (config_value(model, "n_heads") or 1) * (config_value(model, "d_head") or 1)
    held = 2 * width + 2 * n_positions * (config_value(model, "n_layers") or 1) * heads
    size = words_per_batch(batch_size, 1, numbers_per_token=held, device=model_device(model))
    for words in batches_of_words(len(tokens), size, progress):
        with evaluating(model):
            read = _read_tree(model, kind, tokens[words], sites, logits)
        yield PrefixBatch(words, *read)


def _read_tree(
    model: Any,
    kind: type[_Cache],
    tokens: Int[Tensor, "word pos"],
    sites: Mapping[str, Site],
    logits: bool | Reduction,
) -> tuple[Int[Tensor, "word pos"], dict[str, Tensor], Any]:
    """The place of each prefix among the rows, the rows, and the output, level by level of the tree of prefixes."""
    # What is read when is decided on the CPU, so that a GPU is never asked.
    tokens, device = tokens.cpu(), model_device(model)
    is_new = _is_new(tokens)
    # The number of each place's prefix among those of its length.
    node = is_new.cumsum(dim=0) - 1
    n_nodes = node[-1] + 1
    # The first levels have few prefixes and are read at once, the shorter ones as often as there are longer ones.
    lengths = torch.arange(1, len(n_nodes) + 1)
    first = max(1, int((n_nodes * lengths <= max(64, int(n_nodes.sum()) // 8)).sum()))
    words = is_new[:, first - 1].nonzero().flatten()
    cache = kind(model)
    parts = [read_once(model, moved(tokens[words, :first], device), sites, logits, run=cache.read)]
    places = [node[:, first - 1 : first] * first + torch.arange(first)]
    n_rows = len(words) * first
    for level in range(first, tokens.shape[1]):
        words = is_new[:, level].nonzero().flatten()
        cache.keep(moved(node[words, level - 1], device))
        parts.append(read_once(model, moved(tokens[words, level : level + 1], device), sites, logits, run=cache.read))
        places.append(node[:, level : level + 1] + n_rows)
        n_rows += len(words)
    rows = {name: torch.cat([activations[name].flatten(0, 1) for activations, _ in parts]) for name in sites}
    outputs = [output for _, output in parts]
    output = torch.cat([each.flatten(0, 1) for each in outputs]) if isinstance(outputs[0], Tensor) else None
    return torch.cat(places, dim=1), rows, output
