"""A model after a beginning that it has read: what comes next is run again and again, the beginning only once.

Where the model has a cache of keys and values (a `HookedTransformer`, or a Hugging Face network in a bridge), the
beginning is read into it, and each later run reads its own tokens alone. Any other model reads the beginning again with
every run. The result is the same: activations and logits from the first token after the beginning on.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any, Protocol, cast, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from msp_lens._checks import checked
from msp_lens.models.activations import reduced_logits
from msp_lens.models.hooked import HookedModel, check_reads_tokens, context_length, evaluating, model_device, unwrapped
from msp_lens.models.sites import is_attention

# By model: for each length of a beginning, whether its cache gives what the whole words give.
_TRUSTED: WeakKeyDictionary[Any, dict[int, bool]] = WeakKeyDictionary()


class SeenModel:
    """A hooked model seen in some other way: what is the model's own is passed on."""

    model: Any

    @property
    def hook_dict(self) -> Mapping[str, Any]:
        """The model's own hook points."""
        return self.model.hook_dict

    def _config(self, **changed: Any) -> SimpleNamespace:
        own = getattr(self.model, "cfg", None)
        fields = dict(own) if isinstance(own, Mapping) else dict(getattr(own, "__dict__", {}))
        return SimpleNamespace(**fields | changed)

    @property
    def held_as(self) -> Any:
        """What is held while this is read or edited: the model itself."""
        return getattr(self.model, "held_as", self.model)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The model's weights."""
        return self.model.parameters()

    def modules(self) -> Iterator[nn.Module]:
        """The model's modules."""
        return self.model.modules()

    def state_dict(self) -> Mapping[str, Tensor]:
        """The model's own state: there is no other."""
        return self.model.state_dict()

    def train(self, mode: bool = True) -> Any:
        """Set the model's training or evaluation mode."""
        self.model.train(mode)
        return self


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
            return self._cache.run(self.model, tokens.to(self._beginning.device))
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


@runtime_checkable
class _Cache(Protocol):
    """The keys and values of beginnings."""

    def run(self, model: Any, tokens: Int[Tensor, "word pos"]) -> Tensor:
        """Logits after the tokens that follow the beginnings; the cache stays as it is."""
        ...


def _kept(model: Any, beginning: Int[Tensor, "word pos"]) -> _Cache | None:
    """The cache of these beginnings, if the model has one that can be trusted."""
    kind, trusted = _kind(model), _TRUSTED.setdefault(model, {})
    if kind is None or not trusted.get(beginning.shape[1], True):
        return None
    distinct, which = beginning.unique(dim=0, return_inverse=True)
    with evaluating(model):
        try:
            if beginning.shape[1] not in trusted:
                trusted[beginning.shape[1]] = _agrees(model, kind, beginning[:1])
                return _kept(model, beginning)
            return kind(model, distinct, which)
        except (TypeError, ValueError, AttributeError, KeyError, IndexError, NotImplementedError):
            # A network of another make; it is read the plain way.
            trusted[beginning.shape[1]] = False
            return None


def _kind(model: Any) -> type[_TransformerLensCache | _HuggingFaceCache] | None:
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


def _agrees(model: Any, kind: Callable[..., _Cache], beginning: Int[Tensor, "1 pos"]) -> bool:
    """Whether one whole word gives the same logits as its end after its beginning."""
    longest = context_length(model)
    after = beginning[:, -2:] if longest is None else beginning[:, -2:][:, : longest - beginning.shape[1]]
    whole = model(torch.cat([beginning, after], dim=1))[:, beginning.shape[1] :]
    found = kind(model, beginning, torch.zeros(1, dtype=torch.int64)).run(model, after)
    if found.shape != whole.shape:
        return False
    # Sums in another order differ by rounding, a forgotten beginning by far more.
    allowed = min(256 * torch.finfo(whole.dtype).eps, 0.05) * float(whole.abs().max())
    return float((found - whole).abs().max()) <= allowed


def _of_words(states: Tensor, which: Int[Tensor, "word"]) -> Tensor:
    """Keys or values of the distinct beginnings as those of each word; a single one stays single."""
    return states if len(states) == 1 else states[which.to(states.device)]


def _spread(states: Tensor, n_words: int) -> Tensor:
    return states.expand(n_words, *states.shape[1:])


class _TransformerLensCache:
    """The cache of a `HookedTransformer`."""

    def __init__(self, model: Any, distinct: Int[Tensor, "distinct pos"], which: Int[Tensor, "word"]) -> None:
        from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

        cache = TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, len(distinct))
        # Without a mask it would ask the tokenizer for one. Nothing is predicted here: that is left out.
        model(distinct, past_kv_cache=cache, attention_mask=torch.ones_like(distinct), stop_at_layer=model.cfg.n_layers)
        self._cache = cache
        self._states = [(_of_words(e.past_keys, which), _of_words(e.past_values, which)) for e in cache.entries]

    def run(self, model: Any, tokens: Int[Tensor, "word pos"]) -> Tensor:
        cache = copy.copy(self._cache)
        cache.entries = [copy.copy(entry) for entry in self._cache.entries]
        for entry, (keys, values) in zip(cache.entries, self._states, strict=True):
            entry.past_keys, entry.past_values = _spread(keys, len(tokens)), _spread(values, len(tokens))
        cache.previous_attention_mask = tokens.new_ones(len(tokens), self._states[0][0].shape[1])
        cache.freeze()
        return model(tokens, past_kv_cache=cache, attention_mask=torch.ones_like(tokens))


class _HuggingFaceCache:
    """The cache of a Hugging Face network, through TransformerLens's bridge."""

    def __init__(self, model: Any, distinct: Int[Tensor, "distinct pos"], which: Int[Tensor, "word"]) -> None:
        accepted = inspect.signature(model.original_model.forward).parameters
        # Transformers 5.24 gave it another name.
        self._name = "cache" if "cache" in accepted else "past_key_values"
        # Logits of one position in place of all.
        fewer = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        with _told_of_cache(model):
            _, cache = model(distinct, use_cache=True, return_type="logits_and_cache", **fewer)
        if {type(layer).__name__ for layer in cache.layers} - {"DynamicLayer", "DynamicSlidingWindowLayer"}:
            raise ValueError("Layers that keep something other than keys and values.")
        self._cache = cache
        for layer in cache.layers:
            layer.keys, layer.values = _of_words(layer.keys, which), _of_words(layer.values, which)

    def run(self, model: Any, tokens: Int[Tensor, "word pos"]) -> Tensor:
        cache = copy.copy(self._cache)
        # A run puts longer keys and values in their place.
        cache.layers = [copy.copy(layer) for layer in self._cache.layers]
        for layer in cache.layers:
            layer.keys, layer.values = _spread(layer.keys, len(tokens)), _spread(layer.values, len(tokens))
        with _told_of_cache(model):
            return model(tokens, use_cache=True, **{self._name: cache})


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
