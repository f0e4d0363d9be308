"""Stream activations at chosen sites, a batch of words at a time, never the whole cache; log-probabilities likewise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from msp_lens._checks import Count, checked
from msp_lens.models.hooked import HookedModel, evaluating, find_sites, model_device, site_index, unwrapped
from msp_lens.models.sites import Site, Sites


@dataclass(frozen=True, eq=False)
class ActivationBatch:
    """The result of one forward pass.

    Attributes:
        words: The words that were read.
        activations: The activation at each site, on the model's device.
        output: What the model returned: its logits, for a language model.
    """

    words: slice
    activations: dict[str, Float[Tensor, "batch pos feature"]]
    output: Any


@checked
def stream_activations(
    model: HookedModel,
    tokens: Int[Tensor, "word pos"],
    sites: Sites = None,
    *,
    batch_size: Count | None = None,
    progress: str | None = None,
) -> Iterator[ActivationBatch]:
    """Run the model over the words and yield the sites' activations batch by batch.

    Each forward pass is in evaluation mode without gradients; between passes the model is in its former state. Other
    hooks stay in force, so a stream taken within `editing` is that of the edited model. Several threads may stream one
    model at once: each forward pass waits for its turn.

    Args:
        model: Any hooked model.
        tokens: The words, in any container of whole numbers.
        sites: As for `find_sites`; `None` is the residual stream, an empty sequence none (outputs only).
        batch_size: Words in one forward pass; by default about 8,192 tokens' worth.
        progress: Title of a progress bar; none by default.

    Raises:
        KeyError: if the model lacks a site, before the first forward pass.
        ValueError: if `batch_size` is below 1; during a forward pass, if a site does not have one activation for each
            word and position, as it is with one that is reached twice or never.
    """
    model = unwrapped(model)
    names = () if isinstance(sites, Sequence | Mapping) and not sites else find_sites(model, sites)
    size, index = words_per_batch(batch_size, tokens.shape[1]), site_index(model)
    return _stream(model, tokens, {name: index.site(name) for name in names}, size, progress)


def words_per_batch(batch_size: int | None, n_ctx: int) -> int:
    """The given batch size, or by default about 8,192 tokens' worth of words."""
    # Few enough tokens for the activations of a small model to stay in a CPU's cache (measured: four times as many
    # take 1.6 times as long), enough to keep a small GPU busy.
    return batch_size or max(1, 8_192 // n_ctx)


def _stream(
    model: HookedModel, tokens: Int[Tensor, "word pos"], sites: Mapping[str, Site], size: int, progress: str | None
) -> Iterator[ActivationBatch]:
    device = model_device(model)
    for start in tqdm(range(0, len(tokens), size), desc=progress, disable=progress is None, unit="batch", leave=False):
        words = slice(start, min(start + size, len(tokens)))
        captured: dict[str, list[Tensor]] = {}
        # A hook is captured once, even if several of its heads are sites.
        hooks = [(hook, partial(_capture, captured, hook)) for hook in {site.hook: None for site in sites.values()}]
        batch = tokens[words].to(device)
        with evaluating(model), model.hooks(fwd_hooks=hooks):
            output = model(batch)
        missed = [site.hook for site in sites.values() if site.hook not in captured]
        if missed:
            raise ValueError(f"The model never reached {', '.join(missed)} in its forward pass: choose other sites.")
        for name, each in captured.items():
            if len(each) > 1:
                raise ValueError(
                    f"The model reached {name} {len(each)} times in one forward pass, with an activation each time: "
                    "choose a site that it reaches once, or give each pass through a shared layer a hook of its own."
                )
        activations = {name: _taken(site, captured[site.hook][0], batch) for name, site in sites.items()}
        yield ActivationBatch(words, activations, output)


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
