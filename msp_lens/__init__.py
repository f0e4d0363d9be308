"""Belief-state geometry in transformers: train on a known process, probe the residual stream, steer its beliefs.

The notebook face. Names load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msp_lens.analysis import Emergence, emergence
    from msp_lens.beliefs import (
        attractor,
        entropy_rate,
        excess_entropy,
        filter_beliefs,
        mixed_states,
        myopic_entropies,
        next_token_probabilities,
        optimal_losses,
        presentation,
        statistical_complexity,
    )
    from msp_lens.data import (
        BeliefDataset,
        LabelledTokens,
        TokenDataset,
        TokenMap,
        all_words,
        one_hot,
        sampled_words,
        token_dataset,
    )
    from msp_lens.figures.simplex import plot_beliefs
    from msp_lens.figures.tokens import attention_view
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
        find_sites,
        load_checkpoint,
        load_weights,
        residual_sites,
        save_checkpoint,
    )
    from msp_lens.probing import (
        BeliefProbe,
        BeliefRegressor,
        Moments,
        ProbeReport,
        RandomProjection,
        geometry,
        probe,
        probe_rows,
        read_beliefs,
    )
    from msp_lens.processes import (
        Process,
        bloch_walk,
        build_process,
        coin,
        days_of_week,
        even,
        frdn,
        from_moore,
        golden_mean,
        leaky,
        leaky_rrxor,
        matching_parens,
        mess3,
        mixture,
        moon,
        mr_name,
        product,
        random_process,
        rrxor,
        sns,
        with_bos,
        z1r,
    )
    from msp_lens.studies import Study, run
    from msp_lens.sweeps import SweepResult, sweep
    from msp_lens.training import TrainingConfig, TrainingRun, regret_by_position, saved_checkpoints, train

_HOMES = {
    "msp_lens.analysis": ("Emergence", "emergence"),
    "msp_lens.beliefs": (
        "attractor",
        "entropy_rate",
        "excess_entropy",
        "filter_beliefs",
        "mixed_states",
        "myopic_entropies",
        "next_token_probabilities",
        "optimal_losses",
        "presentation",
        "statistical_complexity",
    ),
    "msp_lens.data": (
        "BeliefDataset",
        "LabelledTokens",
        "TokenDataset",
        "TokenMap",
        "all_words",
        "one_hot",
        "sampled_words",
        "token_dataset",
    ),
    "msp_lens.figures.simplex": ("plot_beliefs",),
    "msp_lens.figures.tokens": ("attention_view",),
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
        "find_sites",
        "load_checkpoint",
        "load_weights",
        "residual_sites",
        "save_checkpoint",
    ),
    "msp_lens.probing": (
        "BeliefProbe",
        "BeliefRegressor",
        "Moments",
        "ProbeReport",
        "RandomProjection",
        "geometry",
        "probe",
        "probe_rows",
        "read_beliefs",
    ),
    "msp_lens.processes": (
        "Process",
        "bloch_walk",
        "build_process",
        "coin",
        "days_of_week",
        "even",
        "frdn",
        "from_moore",
        "golden_mean",
        "leaky",
        "leaky_rrxor",
        "matching_parens",
        "mess3",
        "mixture",
        "moon",
        "mr_name",
        "product",
        "random_process",
        "rrxor",
        "sns",
        "with_bos",
        "z1r",
    ),
    "msp_lens.studies": ("Study", "run"),
    "msp_lens.sweeps": ("SweepResult", "sweep"),
    "msp_lens.training": ("TrainingConfig", "TrainingRun", "regret_by_position", "saved_checkpoints", "train"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BeliefDataset",
    "BeliefProbe",
    "BeliefRegressor",
    "Emergence",
    "InterventionReport",
    "LabelledTokens",
    "ModelConfig",
    "Moments",
    "ProbeReport",
    "Process",
    "RandomProjection",
    "Study",
    "SweepResult",
    "TokenDataset",
    "TokenMap",
    "TrainingConfig",
    "TrainingRun",
    "all_words",
    "applying",
    "attention_view",
    "attractor",
    "bloch_walk",
    "build_model",
    "build_process",
    "coin",
    "commutation",
    "days_of_week",
    "emergence",
    "entropy_rate",
    "even",
    "excess_entropy",
    "filter_beliefs",
    "filter_from",
    "find_sites",
    "frdn",
    "from_moore",
    "geometry",
    "golden_mean",
    "intervene",
    "leaky",
    "leaky_rrxor",
    "load_checkpoint",
    "load_weights",
    "matching_parens",
    "mess3",
    "mixed_states",
    "mixture",
    "moon",
    "mr_name",
    "myopic_entropies",
    "necessity",
    "next_token_probabilities",
    "one_hot",
    "optimal_losses",
    "persistence",
    "plot_beliefs",
    "presentation",
    "probe",
    "probe_rows",
    "product",
    "random_process",
    "read_beliefs",
    "regret_by_position",
    "residual_sites",
    "rrxor",
    "run",
    "sampled_words",
    "save_checkpoint",
    "saved_checkpoints",
    "sns",
    "statistical_complexity",
    "sweep",
    "token_dataset",
    "train",
    "unembedding",
    "with_bos",
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
