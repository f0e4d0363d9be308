"""How much of the beliefs the next-token probabilities show.

The beliefs that words lead to span R = span{π T[w]}, and the next-token probabilities of a belief b are b E. Where the
rank of R E is that of R, beliefs are an affine function of next-token probabilities: whatever encodes these encodes the
beliefs too, and a good probe of beliefs does not show that a network holds more than its own prediction (Shai et al.
2024, sec. 4).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, repr=False)
class Degeneracy:
    """How much of the beliefs the next-token probabilities show; made by `Process.degeneracy`.

    Attributes:
        process: Name of the process.
        n_states: Its number of hidden states.
        emission_rank: Rank of the emission matrix, at most `n_states`.
        belief_dimensions: Affine dimension of the reachable beliefs.
        next_token_dimensions: Affine dimension of the next-token probabilities they lead to.
    """

    process: str
    n_states: int
    emission_rank: int
    belief_dimensions: int
    next_token_dimensions: int

    @property
    def beliefs_follow_from_next_token(self) -> bool:
        """Whether the reachable beliefs are an affine function of their next-token probabilities."""
        return self.next_token_dimensions == self.belief_dimensions

    def __repr__(self) -> str:
        total = self.belief_dimensions
        if total == 0:
            verdict = "there is only one belief, and nothing to probe for"
        elif self.beliefs_follow_from_next_token:
            verdict = "beliefs are an affine function of them, and a probe alone cannot tell them apart"
        else:
            verdict = "beliefs are not an affine function of them, and a probe can tell them apart"
        return (
            f"{self.process}: emission rank {self.emission_rank} of {self.n_states}; next-token probabilities show "
            f"{self.next_token_dimensions} of the {total} dimension{'s' * (total != 1)} of the reachable beliefs: {verdict}."
        )
