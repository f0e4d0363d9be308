"""What the library needs of a model, and the sites of its residual stream.

Anything hooked will do: `HookedTransformer`, `TransformerBridge`, a `HookedRootModule` of one's own. A model is
known by the few members of `HookedModel`, never by its class.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from msp_lens.processes.process import Process

Activation: TypeAlias = Float[Tensor, "batch pos d_model"]
HookFunction: TypeAlias = Callable[[Tensor, Any], Tensor | None]


@runtime_checkable
class HookedModel(Protocol):
    """A causal transformer with TransformerLens hooks. Called on tokens `[batch, pos]`, it returns logits."""

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


def residual_sites(model: HookedModel) -> tuple[str, ...]:
    """The residual stream along the model: before the first layer, after each, and after the final LayerNorm.

    Read off the model's own `hook_dict`; a model without a final LayerNorm has no such site.

    Raises:
        ValueError: if the model has no residual-stream hooks at all.
    """
    names = model.hook_dict
    layers = sorted(
        {int(found[1]) for name in names if (found := re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", name))}
    )
    candidates = ["blocks.0.hook_resid_pre", *(f"blocks.{layer}.hook_resid_post" for layer in layers)]
    sites = [name for name in candidates if name in names]
    # A bridge's `ln_final.hook_normalized` is off the path to the logits; its `hook_out` is on it.
    final = next((name for name in ("ln_final.hook_out", "ln_final.hook_normalized") if name in names), None)
    # Without normalisation a bridge keeps the hook, on a module that does nothing.
    normalises = getattr(getattr(model, "cfg", None), "normalization_type", "LN") is not None
    sites += [final] if final and normalises else []
    if not sites:
        raise ValueError(
            f"The model has no residual-stream hooks (blocks.N.hook_resid_pre/post); name its sites with sites=. "
            f"Its hooks are {_listed(names)}."
        )
    return tuple(sites)


def site_label(hook_name: str) -> str:
    """A site's short label, in TransformerLens's style.

    Example:
        >>> [site_label(name) for name in ("blocks.2.hook_resid_post", "ln_final.hook_out", "hook_embed")]
        ['2_post', 'ln_final', 'hook_embed']
    """
    if found := re.fullmatch(r"blocks\.(\d+)\.hook_resid_(pre|mid|post)", hook_name):
        return f"{found[1]}_{found[2]}"
    return "ln_final" if hook_name.startswith("ln_final.") else hook_name


def find_sites(model: HookedModel, sites: str | Sequence[str] | None) -> tuple[str, ...]:
    """Full hook names for the given names or labels (`"2_post"`); `None` is all residual sites.

    `"final_post"` is the last layer's output, as in TransformerLens.

    Raises:
        KeyError: if the model has no such site; the message lists those like it.
        ValueError: if a site is named twice or none is.
    """
    if sites is None:
        return residual_sites(model)
    wanted = (sites,) if isinstance(sites, str) else tuple(sites)
    by_label = _labels(model.hook_dict)
    found = []
    for name in wanted:
        resolved = name if name in model.hook_dict else by_label.get(name)
        if resolved is None:
            raise KeyError(
                f"The model has no site {name!r}; its residual sites are {', '.join(by_label)}, "
                f"and its hooks {_listed(model.hook_dict)}."
            )
        found.append(resolved)
    if not found or len(set(found)) != len(found):
        raise ValueError(f"sites={list(wanted)}: name at least one site, and none twice.")
    return tuple(found)


def _labels(names: Iterable[str]) -> dict[str, str]:
    """Short label to hook name, for residual sites in the order of the forward pass."""
    labels = {}
    posts = []
    for name in names:
        label = site_label(name)
        if label in ("ln_final", name):
            continue
        labels[label] = name
        posts += [name] if label.endswith("_post") else []
    if posts:
        labels["final_post"] = max(posts, key=lambda name: int(name.split(".")[1]))
    final = [name for name in names if name in ("ln_final.hook_out", "ln_final.hook_normalized")]
    return labels | ({"ln_final": min(final, key=lambda name: name != "ln_final.hook_out")} if final else {})


def _listed(names: Iterable[str], limit: int = 12) -> str:
    shown = list(names)
    return ", ".join(shown[:limit]) + (
        f" and {len(shown) - limit} more (model.hook_dict)" if len(shown) > limit else ""
    )


def check_fits(model: HookedModel, process: Process, n_ctx: int) -> None:
    """Raise `ValueError` if the model cannot read words of `n_ctx` of the process's tokens."""
    cfg = getattr(model, "cfg", None)
    d_vocab = getattr(cfg, "d_vocab", None)
    if d_vocab is not None and d_vocab < process.n_tokens:
        raise ValueError(
            f"The model's vocabulary has {d_vocab} tokens, {process.name} emits {process.n_tokens}: "
            f"build the model with d_vocab={process.n_tokens} or more."
        )
    if n_ctx < 1:
        raise ValueError(f"n_ctx={n_ctx}: words have at least 1 token.")
    longest = context_length(model)
    if longest is not None and n_ctx > longest:
        raise ValueError(f"n_ctx={n_ctx} is longer than the model's context of {longest}: choose n_ctx ≤ {longest}.")


def context_length(model: HookedModel) -> int | None:
    """The longest word the model reads, `cfg.n_ctx`, if it says."""
    return getattr(getattr(model, "cfg", None), "n_ctx", None)


def model_device(model: HookedModel) -> torch.device:
    """Where the model's parameters are."""
    return next(model.parameters()).device


@contextmanager
def evaluating(model: HookedModel) -> Iterator[None]:
    """Evaluation mode and no gradients within; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(False)
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def editing(model: HookedModel, edits: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Within, the model runs with each site's activation replaced by what its edit makes of it.

    Only these hooks are removed at the end, also when an exception flies.

    Args:
        model: The model to edit.
        edits: Hook name to a function from the activation to a new one of the same shape.

    Raises:
        KeyError: if the model has no such hook.
        ValueError: during the forward pass, if an edit returns another shape.
    """
    for name in edits:
        if name not in model.hook_dict:
            find_sites(model, name)
    with model.hooks(fwd_hooks=[(name, checked_hook(name, edit)) for name, edit in edits.items()]):
        yield


def checked_hook(name: str, edit: Callable[[Tensor], Tensor]) -> HookFunction:
    """An edit as a hook; it raises `ValueError` if the edit returns another shape, which a model would accept."""

    def hook(activation: Tensor, hook: Any) -> Tensor:
        edited = edit(activation)
        if not isinstance(edited, Tensor) or edited.shape != activation.shape:
            got = tuple(edited.shape) if isinstance(edited, Tensor) else type(edited).__name__
            raise ValueError(
                f"The edit at {name} returned {got}; it must return a tensor of the activation's shape "
                f"{tuple(activation.shape)}."
            )
        return edited.to(activation.dtype)

    return hook
