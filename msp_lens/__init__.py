"""Belief-state geometry in transformers: train on a known process, probe the residual stream, steer its beliefs.

The notebook face. Names load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msp_lens.beliefs import filter_beliefs, myopic_entropies, next_token_probabilities, optimal_losses
    from msp_lens.data import BeliefDataset, TokenDataset, all_words, sampled_words, token_dataset
    from msp_lens.figures.simplex import plot_beliefs
    from msp_lens.interventions import (
        InterventionReport,
        applying,
        commutation,
        filter_from,
        intervene,
        necessity,
        persistence,
        unembedding,
    )
    from msp_lens.models import (
        ModelConfig,
        build_model,
        load_checkpoint,
        load_weights,
        residual_sites,
        save_checkpoint,
    )
    from msp_lens.probing import BeliefProbe, Moments, ProbeReport, probe, read_beliefs
    from msp_lens.processes import Process, build_process, coin, even, golden_mean, mess3, rrxor, sns, z1r
    from msp_lens.studies import Study, run
    from msp_lens.training import TrainingConfig, TrainingRun, regret_by_position, train

_HOMES = {
    "msp_lens.beliefs": ("filter_beliefs", "myopic_entropies", "next_token_probabilities", "optimal_losses"),
    "msp_lens.data": ("BeliefDataset", "TokenDataset", "all_words", "sampled_words", "token_dataset"),
    "msp_lens.figures.simplex": ("plot_beliefs",),
    "msp_lens.interventions": (
        "InterventionReport",
        "applying",
        "commutation",
        "filter_from",
        "intervene",
        "necessity",
        "persistence",
        "unembedding",
    ),
    "msp_lens.models": (
        "ModelConfig",
        "build_model",
        "load_checkpoint",
        "load_weights",
        "residual_sites",
        "save_checkpoint",
    ),
    "msp_lens.probing": ("BeliefProbe", "Moments", "ProbeReport", "probe", "read_beliefs"),
    "msp_lens.processes": (
        "Process",
        "build_process",
        "coin",
        "even",
        "golden_mean",
        "mess3",
        "rrxor",
        "sns",
        "z1r",
    ),
    "msp_lens.studies": ("Study", "run"),
    "msp_lens.training": ("TrainingConfig", "TrainingRun", "regret_by_position", "train"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BeliefDataset",
    "BeliefProbe",
    "InterventionReport",
    "ModelConfig",
    "Moments",
    "ProbeReport",
    "Process",
    "Study",
    "TokenDataset",
    "TrainingConfig",
    "TrainingRun",
    "all_words",
    "applying",
    "build_model",
    "build_process",
    "coin",
    "commutation",
    "even",
    "filter_beliefs",
    "filter_from",
    "golden_mean",
    "intervene",
    "load_checkpoint",
    "load_weights",
    "mess3",
    "myopic_entropies",
    "necessity",
    "next_token_probabilities",
    "optimal_losses",
    "persistence",
    "plot_beliefs",
    "probe",
    "read_beliefs",
    "regret_by_position",
    "residual_sites",
    "rrxor",
    "run",
    "sampled_words",
    "save_checkpoint",
    "sns",
    "token_dataset",
    "train",
    "unembedding",
    "z1r",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'msp_lens' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
