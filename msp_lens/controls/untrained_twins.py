"""Untrained twins: models of the same architecture that have learned nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from msp_lens.models.build import build_model, config_fields, weights
from msp_lens.models.holding import unwrapped
from msp_lens.models.hooked import HookedModel, find_sites, model_device


def untrained_twins(
    model: HookedModel, untrained: int | Sequence[HookedModel], sites: Sequence[str], *, seed: int
) -> Iterator[tuple[str, HookedModel]]:
    """Untrained models of the same architecture with their names, each built when it is needed.

    Args:
        model: The model to twin.
        untrained: How many twins to initialize from the model's config, or the twins themselves.
        sites: Sites that the twins must have.
        seed: The k-th twin is initialized with seed + k, k = 1, 2, …

    Raises:
        ValueError: if the model cannot be built from its config, before anything is run.
        KeyError: if a twin lacks a site.
    """
    if not isinstance(untrained, int):
        for twin in untrained:
            find_sites(twin, sites)
        return ((f"untrained {k}", twin) for k, twin in enumerate(untrained, start=1))
    if untrained:
        _twin(model, seed + 1)
    return ((f"untrained {k}", _twin(model, seed + k)) for k in range(1, untrained + 1))


def _twin(model: HookedModel, seed: int) -> HookedModel:
    model = unwrapped(model)
    remedy = "Pass twins that you have initialized yourself: untrained=[model, …]."
    if not hasattr(getattr(model, "cfg", None), "to_dict"):
        raise ValueError(f"An untrained twin is built from model.cfg, which {type(model).__name__} lacks. {remedy}")
    # Only a bridge has a weight of this name.
    bridge = True if "embed.weight" in cast(Any, model).state_dict() else None
    try:
        twin = build_model(config_fields(model), seed=seed, device=model_device(model), bridge=bridge)
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        raise ValueError(f"No untrained twin could be built from the model's config: {error}. {remedy}") from error
    shapes, expected = ({name: tuple(t.shape) for name, t in weights(m).items()} for m in (twin, model))
    if shapes != expected:
        differing = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
        told = "The model's config does not determine its architecture: a model built from it differs in"
        raise ValueError(f"{told} {', '.join(differing[:3])}. {remedy}")
    return twin
