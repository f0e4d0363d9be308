"""What the library needs from a model: its protocol, its sites, what it can read, and how to edit its activations.

Any hooked model will do: a `HookedTransformer`, a `TransformerBridge`, or your own `HookedRootModule`. The library
uses only the members of `HookedModel` and never asks for the class. Wrappers such as `torch.compile`'s are taken off.

Several threads may probe, stream and edit one model at once: they take turns, each with the model to itself. A hook
acts on whoever calls the model, so two threads that hooked one model at once would read each other's words. And
compiled code was made before our hooks were added and would ignore them: a held model runs as it was written.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from itertools import chain
from types import SimpleNamespace
from typing import Any, Protocol, TypeAlias, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor, nn

from msp_lens._annotations import converted, register
from msp_lens._checks import check_at_least, checked
from msp_lens.data.token_map import TokenMap
from msp_lens.models.sites import Site, SiteIndex, Sites
from msp_lens.processes.process import Process

_GUARD = threading.Lock()
_LOCKS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
# What a layer has only if it has an MLP.
_OF_MLP = ("hook_mlp_in", "hook_mlp_out", "hook_resid_mid")

HookFunction: TypeAlias = Callable[[Tensor, Any], Tensor | None]


def unwrapped(model: Any) -> Any:
    """The hooked model within `torch.compile`, `DataParallel` and the like; any other model as it is."""
    while True:
        inside = getattr(model, "_modules", None) or {}
        if "_orig_mod" in inside:
            model = inside["_orig_mod"]
        elif "module" in inside and not hasattr(model, "hook_dict"):
            model = inside["module"]
        else:
            return model


@contextmanager
def holding(model: Any) -> Iterator[None]:
    """Have the model to oneself: other threads that want to hold it wait, and its compiled parts run as written.

    The same thread may hold it again. Hold it, too, to call a model in one thread while another may read or edit it.
    """
    model = unwrapped(model)
    with _GUARD:
        # A reader of symbols holds the model that it reads with.
        lock = _LOCKS.setdefault(getattr(model, "held_as", model), threading.RLock())
    with lock, _EAGER:
        yield


class _Eager:
    """`torch.compiler.set_stance("force_eager")` for as long as any thread is inside: the stance is the process's."""

    def __init__(self) -> None:
        self._inside, self._stance = 0, None

    def __enter__(self) -> None:
        with _GUARD:
            # Without this module nothing has been compiled, and it takes long to import.
            if self._inside == 0 and "torch._dynamo" in sys.modules:
                self._stance = torch.compiler.set_stance("force_eager")
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with _GUARD:
            self._inside -= 1
            if self._inside == 0 and self._stance is not None:
                self._stance.__exit__(None, None, None)
                self._stance = None


_EAGER = _Eager()


@runtime_checkable
class HookedModel(Protocol):
    """A causal network with TransformerLens hooks. Called on tokens `[batch, pos]`, it returns logits."""

    @property
    def hook_dict(self) -> Mapping[str, Any]:
        """The hook points by name."""
        ...

    def __call__(self, tokens: Tensor) -> Any:
        """Logits `[batch, pos, d_vocab]` for a language model."""
        ...

    def hooks(self, fwd_hooks: list[Any]) -> AbstractContextManager:
        """Add pairs of hook name and `hook(activation, hook)`, removed at the end of the context."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """The modules, itself included."""
        ...

    def train(self, mode: bool = True) -> Any:
        """Set training or evaluation mode."""
        ...


def _is_hooked(value: Any) -> bool:
    model = unwrapped(value)
    # A bridge makes its dictionary anew whenever it is asked for it, which takes as long as a small forward pass.
    is_made_anew = isinstance(getattr(type(model), "hook_dict", None), property)
    return is_made_anew or isinstance(getattr(model, "hook_dict", None), Mapping)


register(HookedModel, "give a HookedTransformer, a TransformerBridge or any other HookedRootModule", _is_hooked)


def site_index(model: HookedModel) -> SiteIndex:
    """The sites of the model, from its own `hook_dict`; `TypeError` if it has none."""
    model = unwrapped(converted(model, HookedModel, "model"))
    places = {name: id(point) for name, point in model.hook_dict.items()}
    if config_value(model, "attn_only"):
        # A HookedTransformer has these hooks all the same, and never reaches them.
        places = {name: place for name, place in places.items() if not name.endswith(_OF_MLP)}
    if config_value(model, "positional_embedding_type") in ("rotary", "alibi"):
        # Positions are not added to the embedding, so the hook is never reached, under none of its names.
        unused = places.get("hook_pos_embed")
        places = {name: place for name, place in places.items() if place != unused}
    n_heads = config_value(model, "n_heads")
    # Without normalization, a bridge still has the hook, on a module that does nothing.
    normalizes = config_value(model, "normalization_type", "LN") is not None
    return _index(tuple(places.items()), n_heads if isinstance(n_heads, int) else None, normalizes)


@lru_cache(maxsize=128)
def _index(places: tuple[tuple[str, int], ...], n_heads: int | None, normalizes: bool) -> SiteIndex:
    """The index of these places, which is asked for in every forward pass and takes longer than a small one."""
    return SiteIndex(dict(places), n_heads=n_heads, normalizes=normalizes)


def config_value(model: HookedModel, name: str, default: Any = None) -> Any:
    """What the model's config says under a name, if it has one."""
    config = getattr(unwrapped(model), "cfg", None)
    return config.get(name, default) if isinstance(config, Mapping) else getattr(config, name, default)


@checked
def residual_sites(model: HookedModel) -> tuple[str, ...]:
    """The residual stream before the first layer, after each layer, and after the final LayerNorm if there is one."""
    return site_index(model).residual


@checked
def find_sites(model: HookedModel, sites: Sites) -> tuple[str, ...]:
    """Full names of sites, each once, in the order given.

    Args:
        model: Any hooked model.
        sites: One or several of: a hook's name; a label (`"2_post"`, `"embed"`, `"2_mlp_out"`, `"L2H1"`; `"final_post"`
            is the last layer's output); a glob over labels or, if none matches, over names, as in `fnmatch`
            (`"*_post"`, `"blocks.*.attn.hook_z[*]"`); a function of a hook's name; `"all"`, every residual and
            sublayer-output site. `None` is the residual stream, as in `residual_sites`. Groups are those of
            `site_groups`.

    Raises:
        KeyError: if the model has no such site; the message lists similar ones.
        ValueError: if a site is named twice in one sequence, or no site is named.
        TypeError: if something in `sites` is not a name, function, sequence or mapping.
    """
    return site_index(model).find(sites)


@checked
def site_groups(model: HookedModel, sites: Sites) -> dict[str, tuple[str, ...]]:
    """Which sites to read together: full names by label. A single site is a group of one.

    Args:
        model: Any hooked model.
        sites: As for `find_sites`. A sequence within a sequence is a group, `["embed", ["1_post", "2_post"]]`; in a
            mapping, `{"early": ["0_post", "1_post"]}`, each value is a group, under its key.

    Raises:
        KeyError, ValueError, TypeError: as for `find_sites`.

    Example:
        >>> from msp_lens.models.build import ModelConfig, build_model
        >>> model = build_model(ModelConfig(d_vocab=3, n_layers=2))
        >>> list(site_groups(model, ["0_pre", ["0_post", "1_post"]]))
        ['0_pre', '0_post+1_post']
    """
    return site_index(model).groups(sites)


def check_fits(
    model: HookedModel, process: Process, n_ctx: int, *, token_map: TokenMap | None = None, predicts: bool = False
) -> None:
    """Raise `ValueError` if the model cannot read words of `n_ctx` symbols of the process, or is not causal.

    Args:
        model: Any hooked model.
        process: The process.
        n_ctx: Symbols in a word.
        token_map: How the model reads the symbols: by default symbol 0 as token 0, and so on.
        predicts: Whether its output is used, too, and must have a logit for each of these tokens.
    """
    if not isinstance(process, Process):
        raise TypeError(f"process={process!r}: give a Process, for example msp.mess3(x=0.05, a=0.85).")
    check_at_least("n_ctx", n_ctx, 1, "the number of symbols in a word")
    token_map = token_map or TokenMap.identity(process.n_tokens)
    token_map.check_reads(process)
    check_fits_map(model, token_map, n_ctx, predicts=predicts, emitter=process.name)


def check_fits_map(
    model: HookedModel, token_map: TokenMap, n_ctx: int, *, predicts: bool = False, emitter: str = "the world"
) -> None:
    """`check_fits` by the token map alone; `emitter` is what errors call that which emits the symbols."""
    d_vocab, longest, length = vocabulary_size(model), context_length(model), token_map.length(n_ctx)
    if d_vocab is not None and d_vocab < token_map.d_vocab:
        used = f"and the token map uses token {token_map.d_vocab - 1}: make the map with the model's own tokenizer."
        if token_map.is_identity:
            n_tokens = len(token_map.symbols)
            used = f"{emitter} emits {n_tokens}: build the model with d_vocab={n_tokens} or more."
        raise ValueError(f"The model's vocabulary has {d_vocab} tokens, {used}")
    d_vocab_out = config_value(model, "d_vocab_out")
    if predicts and d_vocab_out is not None and 0 < d_vocab_out < token_map.d_vocab:
        raise ValueError(
            f"The model predicts {d_vocab_out} tokens, and words of {emitter} have {token_map.d_vocab}: build it "
            f"with d_vocab_out={token_map.d_vocab} or more, or without d_vocab_out."
        )
    if config_value(model, "attention_dir", "causal") != "causal":
        raise ValueError(
            "The model's attention is bidirectional, so its activations depend on tokens that come later, and a belief "
            'is about those before: build it with attention_dir="causal".'
        )
    if longest is not None and length > longest:
        fits, excess = token_map.longest_word(longest), f"symbols are {length} tokens to the model, longer than its"
        if token_map.is_identity:
            excess = "is longer than the model's"
        raise ValueError(f"n_ctx={n_ctx} {excess} context of {longest}: choose n_ctx ≤ {fits}.")


def check_reads_tokens(model: HookedModel, tokens: Int[Tensor, "word pos"]) -> None:
    """Raise `ValueError` if a token is outside the model's vocabulary or words are longer than its context."""
    d_vocab, longest = vocabulary_size(model), context_length(model)
    least, most = int(tokens.min()), int(tokens.max())
    if least < 0 or (d_vocab is not None and most >= d_vocab):
        allowed = "at least 0" if d_vocab is None else f"0 to {d_vocab - 1}"
        raise ValueError(
            f"Tokens run from {least} to {most}; the model's are {allowed}. Map a process's symbols with a TokenMap."
        )
    if longest is not None and tokens.shape[1] > longest:
        n_ctx = tokens.shape[1]
        raise ValueError(f"Words of {n_ctx} tokens are longer than the model's context of {longest}: shorten them.")


def vocabulary_size(model: HookedModel) -> int | None:
    """How many tokens the model reads, `cfg.d_vocab`, if it says so."""
    size = config_value(model, "d_vocab")
    return None if size is None else int(size)


def context_length(model: HookedModel) -> int | None:
    """The longest word that the model reads, `cfg.n_ctx`, if it has one."""
    longest = config_value(model, "n_ctx")
    return None if longest is None else int(longest)


def word_length(
    model: HookedModel, n_ctx: int | None = None, *, token_map: TokenMap | None = None, otherwise: str = "n_ctx="
) -> int:
    """Symbols in a word: `n_ctx`, or by default as many as always fit in the model's context.

    It raises `ValueError` if there is no default, and names what to give in its place (`otherwise`).
    """
    if n_ctx is not None:
        return n_ctx
    longest = context_length(model)
    if longest is None:
        raise ValueError(f"The model does not say how long its context is (cfg.n_ctx): give {otherwise}.")
    return longest if token_map is None else token_map.longest_word(longest)


def model_device(model: HookedModel) -> torch.device:
    """Where the model's first parameters are, or its buffers if it has none; without either, the CPU.

    Of a model on several devices it is where tokens go in. What lies on disk until it is needed has no device.
    """
    module: Any = unwrapped(model)
    tensors = chain(module.parameters(), getattr(module, "buffers", list)())
    return next((tensor.device for tensor in tensors if not tensor.is_meta), torch.device("cpu"))


@checked
@contextmanager
def evaluating(model: HookedModel) -> Iterator[None]:
    """Run the model in evaluation mode without gradients; afterwards every module is in its former mode.

    Other threads that evaluate or edit the model wait.
    """
    model = unwrapped(model)
    with holding(model):
        in_training = [module for module in model.modules() if module.training]
        if in_training:
            model.train(False)
        try:
            with torch.no_grad():
                yield
        finally:
            for module in in_training:
                module.training = True


@checked
@contextmanager
def editing(model: HookedModel, edits: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Run the model with each site's activation replaced by its edit of it.

    At the end these hooks, and only these, are removed, even after an exception. Inside, a compiled model runs as it
    was written, and other threads that evaluate or edit the model wait.

    Args:
        model: The model to edit.
        edits: For each site, a function from its activation to a new one of the same shape. A site is the name of a
            hook or of a head (`"blocks.2.attn.hook_z[1]"`). For a hook with heads, the edit sees all heads side by
            side, as a probe of that site does.

    Raises:
        KeyError: if the model has no such site.
        ValueError: during the forward pass, if an edit returns another shape; at the end, if an edit was never made.
    """
    model = unwrapped(model)
    index = site_index(model)
    sites = {index.site(name): edit for name, edit in edits.items()}
    made: set[Site] = set()

    def noted(site: Site, edit: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def noting(activation: Tensor) -> Tensor:
            made.add(site)
            return edit(activation)

        return noting

    hooks = [(site.hook, checked_hook(site, noted(site, edit))) for site, edit in sites.items()]
    with holding(model), model.hooks(fwd_hooks=hooks):
        yield
    missed = [site.name for site in sites if site not in made]
    if missed:
        raise ValueError(
            f"The edit at {', '.join(missed)} was never made, since the model did not come by there inside the `with` "
            "block: run this model in it, and choose a site that its forward pass reaches."
        )


def checked_hook(site: Site | str, edit: Callable[[Tensor], Tensor]) -> HookFunction:
    """An edit as a hook, which raises `ValueError` if the edit returns another shape (a model would accept it)."""
    site = Site.parse(site) if isinstance(site, str) else site

    def hook(activation: Tensor, hook: Any) -> Tensor:
        # A hook that is not a site, such as an attention pattern, is edited as a whole.
        takes = site.is_of_heads(activation) or site.has_no_words(activation)
        before = site.take(activation) if takes else activation
        edited = edit(before)
        if not isinstance(edited, Tensor) or edited.shape != before.shape:
            got = tuple(edited.shape) if isinstance(edited, Tensor) else type(edited).__name__
            rule = f"it must return a tensor of the activation's shape {tuple(before.shape)}."
            raise ValueError(f"The edit at {site.name} returned {got}; {rule}")
        edited = edited.to(activation.dtype)
        return site.put(activation, edited) if before is not activation else edited

    return hook


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
