"""What an optimal observer believes: filtering, mixed states, their presentation, fractal and entropies."""

from msp_lens.beliefs.constrained import attention_heads_needed, constrained_beliefs, decay_rates
from msp_lens.beliefs.description import Description, catalog_table, describe
from msp_lens.beliefs.factors import factor_entropies
from msp_lens.beliefs.filtering import filter_beliefs, next_token_probabilities
from msp_lens.beliefs.fractal import Dimension, attractor, box_counting_dimension, correlation_dimension
from msp_lens.beliefs.information import (
    Measure,
    block_entropies,
    entropy,
    entropy_rate,
    excess_entropy,
    kl_divergence,
    myopic_entropies,
    optimal_losses,
    regret_floor,
    statistical_complexity,
    synchronization,
)
from msp_lens.beliefs.learning import LearningCurve, learning_curve
from msp_lens.beliefs.mixed_states import Level, MixedStates, mixed_states, walk_levels
from msp_lens.beliefs.nearest import nearest_belief, nearest_distribution
from msp_lens.beliefs.presentation import Presentation, presentation
from msp_lens.beliefs.smoothing import smoothed_beliefs
from msp_lens.beliefs.trajectories import continuations, draw_tokens, filter_from, follow

__all__ = [
    "Description",
    "Dimension",
    "LearningCurve",
    "Level",
    "Measure",
    "MixedStates",
    "Presentation",
    "attention_heads_needed",
    "attractor",
    "block_entropies",
    "box_counting_dimension",
    "catalog_table",
    "constrained_beliefs",
    "continuations",
    "correlation_dimension",
    "decay_rates",
    "describe",
    "draw_tokens",
    "entropy",
    "entropy_rate",
    "excess_entropy",
    "factor_entropies",
    "filter_beliefs",
    "filter_from",
    "follow",
    "kl_divergence",
    "learning_curve",
    "mixed_states",
    "myopic_entropies",
    "nearest_belief",
    "nearest_distribution",
    "next_token_probabilities",
    "optimal_losses",
    "presentation",
    "regret_floor",
    "smoothed_beliefs",
    "statistical_complexity",
    "synchronization",
    "walk_levels",
]
