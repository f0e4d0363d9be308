"""How much of the beliefs the next-token probabilities show.

The beliefs that words lead to span R = span{π T[w]}, and the next-token probabilities of a belief b are b E. Where the
rank of R E is that of R, beliefs are an affine function of next-token probabilities: whatever encodes these encodes the
beliefs too, and a good probe of beliefs does not show that a network holds more than its own prediction (Shai et al.
2024, sec. 4).
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float64
from torch import Tensor

from msp_lens.processes.chains import matrix_rank, reached_span


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

    @classmethod
    def of_matrices(
        cls,
        process: str,
        transitions: Float64[Tensor, "token state state"],
        initial: Float64[Tensor, "state"],
        emissions: Float64[Tensor, "state token"],
    ) -> Degeneracy:
        """The degeneracy of the process with these matrices."""
        reach = reached_span(transitions, initial)
        return cls(
            process=process,
            n_states=len(initial),
            emission_rank=matrix_rank(emissions),
            belief_dimensions=len(reach) - 1,
            next_token_dimensions=matrix_rank(reach @ emissions) - 1,
        )

    @property
    def beliefs_follow_from_next_token(self) -> bool:
        """Whether the reachable beliefs are an affine function of their next-token probabilities."""
        return self.next_token_dimensions == self.belief_dimensions

    def __repr__(self) -> str:
        seen, total = self.next_token_dimensions, self.belief_dimensions
        facts = (
            f"{self.process}: emission rank {self.emission_rank} of {self.n_states}; next-token probabilities show "
            f"{seen} of the {total} dimension{'s' * (total != 1)} of the reachable beliefs"
        )
        if total == 0:
            return f"{facts}: there is only one belief, and nothing to probe for."
        if self.beliefs_follow_from_next_token:
            return f"{facts}: beliefs are an affine function of them, and a probe alone cannot tell them apart."
        return f"{facts}: beliefs are not an affine function of them, and a probe can tell them apart."
