"""The spectral solution: a generalized process read off the predictive states by linear algebra alone.

With V the first r right singular vectors of F (rows weighted by √P(u)) and B = F V,

    A[x] = B⁺ F[x] V,    ω = B⁺ 1,    a₀ Σ_x A[x] = a₀ with a₀ ω = 1,    P(x₁ … xₙ) = a₀ A[x₁] … A[xₙ] ω.

It is exact where F is, and where contexts and futures are long enough for all r dimensions to show.

Source: Jaeger 2000; Hsu, Kakade & Zhang 2012 (arXiv 0811.4413); Boots & Gordon 2011 (arXiv 1007.0414).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Complex, Float64
from torch import Tensor

from msp_lens._checks import Count, checked
from msp_lens._values import Value
from msp_lens.inference.predictive_states import block_lengths, predictive_states
from msp_lens.inference.word_probabilities import WordProbabilities
from msp_lens.processes.process import Process


@dataclass(frozen=True, eq=False, repr=False)
class Operators(Value):
    """One matrix for each token, and the vectors before and after them.

    Attributes:
        transitions: A[x].
        initial: a₀.
        right_eigenvector: ω.
        word_error: The largest error of a word's probability, over the words that the operators are from.
        negative: The probability of the words to which the operators give one below 0, by their absolute values.
    """

    transitions: Float64[Tensor, "token dimension dimension"]
    initial: Float64[Tensor, "dimension"]
    right_eigenvector: Float64[Tensor, "dimension"]
    word_error: float
    negative: float

    @property
    def dimension(self) -> int:
        """How many dimensions the operators act on."""
        return len(self.initial)

    @property
    def eigenvalues(self) -> Complex[Tensor, "dimension"]:
        """Of Σ_x A[x], the largest first: what contexts decay by, token by token."""
        return sorted_eigenvalues(self.transitions.sum(dim=0))

    def word_probabilities(self, tokens: Tensor) -> Float64[Tensor, "word"]:
        """a₀ A[x₁] … A[xₙ] ω for each word `[word, pos]`; below 0 for some, if the operators are no process."""
        vector = self.initial.expand(len(tokens), -1)
        for column in tokens.T:
            vector = einsum(vector, self.transitions[column], "word i, word i j -> word j")
        return vector @ self.right_eigenvector

    def to_process(self, name: str = "operators") -> Process:
        """The operators as a generalized process.

        Raises:
            ValueError: if a short word has a negative probability, which noise in the word probabilities can lead to.
        """
        return Process(self.transitions, name=name, initial=self.initial, right_eigenvector=self.right_eigenvector)

    def __repr__(self) -> str:
        return (
            f"Operators({self.dimension} dimensions, {len(self.transitions)} tokens: eigenvalues "
            f"{eigenvalues_text(self.eigenvalues)}; largest error of a word {self.word_error:.2g})"
        )


@checked
def spectral_operators(words: WordProbabilities, dimension: Count) -> Operators:
    """The operators of the given dimension, such as the rank that `predictive_rank` finds.

    Raises:
        ValueError: if there are fewer contexts or futures than dimensions, or words of fewer than three tokens.

    Example:
        >>> from msp_lens.inference.word_probabilities import process_words
        >>> from msp_lens.processes.catalog import mess3
        >>> spectral_operators(process_words(mess3(x=0.05, a=0.85), 6), 3).word_error < 1e-12
        True
    """
    context_length, future_length = block_lengths(words)
    if words.length < context_length + future_length + 1:
        raise ValueError(
            f"Words of {words.length} tokens are too short: operators need a context, a token and a future."
        )
    states = predictive_states(words, context_length, future_length)
    if dimension > min(states.futures.shape):
        n_contexts, n_futures = states.futures.shape
        raise ValueError(f"dimension={dimension}: there are only {n_contexts} contexts and {n_futures} futures.")
    root = states.weights.sqrt().unsqueeze(1)
    directions = torch.linalg.svd(states.weighted, full_matrices=False).Vh[:dimension].T
    inverse = torch.linalg.pinv(root * (states.futures @ directions))
    transitions = inverse @ (root * states.steps) @ directions
    right = (inverse @ root).squeeze(1)
    transitions, initial, right = _stationary(transitions, right)
    operators = Operators(transitions, initial, right, 0.0, 0.0)
    error = operators.word_probabilities(words.tokens) - words.probabilities
    found = error + words.probabilities
    return Operators(transitions, initial, right, float(error.abs().max()), float(-found.clamp(max=0).sum()))


def _stationary(
    transitions: Float64[Tensor, "token i j"], right: Float64[Tensor, "i"]
) -> tuple[Float64[Tensor, "token i j"], Float64[Tensor, "i"], Float64[Tensor, "i"]]:
    """The operators with an eigenvalue of exactly 1, and its left and right eigenvectors."""
    values = torch.linalg.eigvals(transitions.sum(dim=0))
    # Rounding and noise move the eigenvalue 1, and words' probabilities sum to 1 only with it.
    transitions = transitions / float(values[(values - 1).abs().argmin()].real)
    left, _, rights = torch.linalg.svd(transitions.sum(dim=0) - torch.eye(len(right), dtype=torch.float64))
    after = rights[-1] * float(right @ rights[-1])
    return transitions, left[:, -1] / float(left[:, -1] @ after), after


def sorted_eigenvalues(matrix: Float64[Tensor, "i i"]) -> Complex[Tensor, "i"]:
    """The eigenvalues, the largest first; of equal absolute values, that nearest to 1 first."""
    values = torch.linalg.eigvals(matrix).tolist()
    ordered = sorted(values, key=lambda each: (-round(abs(each), 6), round(abs(each - 1), 6), -each.imag))
    return torch.tensor(ordered, dtype=torch.complex128)


def eigenvalues_text(values: Complex[Tensor, "i"]) -> str:
    """Eigenvalues as tables show them, pairs as one: 1, -0.5 ± 0.866i."""
    shown = []
    for value in values.tolist():
        if abs(value.imag) < 5e-4:
            shown.append(f"{value.real:.3f}")
        elif value.imag > 0:
            shown.append(f"{value.real:.3f} ± {value.imag:.3f}i")
    return ", ".join(shown)
