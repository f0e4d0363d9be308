"""Untrained twins: models of the same architecture that have learned nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from msp_lens.models.build import untrained_like
from msp_lens.models.hooked import HookedModel, find_sites, unwrapped
from msp_lens.models.symbol_reader import SymbolReader


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
    if isinstance(model, SymbolReader):
        return cast(HookedModel, SymbolReader(_twin(cast(Any, model).model, seed), model.token_map))
    try:
        return untrained_like(model, seed=seed)
    except ValueError as error:
        remedy = "Pass twins that you have initialized yourself: untrained=[model, …]."
        raise ValueError(f"{error} {remedy}") from error
