"""What an optimal observer believes: filtering, mixed states and the entropies they attain."""

from msp_lens.beliefs.filtering import filter_beliefs, next_token_probabilities
from msp_lens.beliefs.information import entropy, kl_divergence, myopic_entropies, optimal_losses
from msp_lens.beliefs.mixed_states import Level, walk_levels

__all__ = [
    "Level",
    "entropy",
    "filter_beliefs",
    "kl_divergence",
    "myopic_entropies",
    "next_token_probabilities",
    "optimal_losses",
    "walk_levels",
]
