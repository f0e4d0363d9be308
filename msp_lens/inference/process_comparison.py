"""Two processes beside each other, by what does not depend on how their states are chosen.

The states of a hidden Markov machine are fixed only up to a gauge: other machines with the same words can have other
states. Words, their entropies, the rank, the eigenvalues of the smallest presentation and affine maps between beliefs
do not depend on it. Where the smallest unifilar machine is unique, its states can be matched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Complex
from scipy.optimize import linear_sum_assignment
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from torch import Tensor

from msp_lens._checks import Count, checked
from msp_lens._tables import TableView, nats_text
from msp_lens._values import Value
from msp_lens.beliefs.filtering import filter_beliefs
from msp_lens.beliefs.information import Measure, entropy_rate, excess_entropy
from msp_lens.inference.machine import divergence_rate
from msp_lens.inference.operators import eigenvalues_text, sorted_eigenvalues, spectral_operators
from msp_lens.inference.word_probabilities import process_words
from msp_lens.processes.process import Process
from msp_lens.processes.structure import minimal_dimension

# Words and beliefs of a level up to which entropies are followed.
_MAX_LEVEL = 20_000


@dataclass(frozen=True, eq=False)
class Invariants(Value):
    """What a process is, whatever its states are called.

    Attributes:
        name: Of the process.
        n_states: Hidden states, or dimensions of a generalized process.
        rank: Dimensions of the smallest generalized presentation.
        eigenvalues: Of its summed transitions.
        entropy_rate: In nats.
        excess_entropy: In nats.
    """

    name: str
    n_states: int
    rank: int
    eigenvalues: Complex[Tensor, "dimension"]
    entropy_rate: Measure
    excess_entropy: Measure


@dataclass(frozen=True, eq=False, repr=False)
class ProcessComparison(Value, TableView):
    """Two processes beside each other; `compare_processes` makes it.

    Attributes:
        first: What the first one is.
        second: What the second one is.
        divergence: KL(first ‖ second), nats per token.
        reverse: KL(second ‖ first), nats per token.
        r2_first: R² of the first one's beliefs as an affine function of the second one's, over the first one's words.
        r2_second: The other way round, over the second one's words.
        matching: For each of the first one's states the second one's, by name; `None` unless both are unifilar machines
            of as many states.
        largest_deviation: The largest difference of a transition between matched states.
    """

    first: Invariants
    second: Invariants
    divergence: float
    reverse: float
    r2_first: float
    r2_second: float
    matching: dict[str, str] | None
    largest_deviation: float

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each property, a column for each process."""
        rows = {
            "states": [self.first.n_states, self.second.n_states],
            "rank": [self.first.rank, self.second.rank],
            "eigenvalues": [eigenvalues_text(each.eigenvalues) for each in (self.first, self.second)],
            "entropy rate": [self.first.entropy_rate.value, self.second.entropy_rate.value],
            "excess entropy": [self.first.excess_entropy.value, self.second.excess_entropy.value],
            "KL to the other": [self.divergence, self.reverse],
            "R² of beliefs from the other's": [self.r2_first, self.r2_second],
        }
        names = [self.first.name, self.second.name]
        if names[0] == names[1]:
            names = [f"{names[0]} (1)", f"{names[1]} (2)"]
        return pd.DataFrame.from_dict(rows, orient="index", columns=names).rename_axis("property")

    def summary(self) -> list[str]:
        """Whether they are the same, and how the states match."""
        lines = ["Entropies and KL in nats, KL per token; R² of the affine map between beliefs, by probability."]
        if self.matching is None:
            lines.append("States are not matched: only unifilar machines of as many states have a unique one each.")
        else:
            pairs = ", ".join(f"{a} ↔ {b}" for a, b in self.matching.items())
            lines.append(f"States {pairs}: no transition differs by more than {self.largest_deviation:.2g}.")
        return lines

    def _title(self) -> str:
        return f"{self.first.name} and {self.second.name}"

    def _display(self) -> pd.DataFrame:
        def text(value: object) -> str:
            if isinstance(value, float):
                return f"{value:.5f}" if value > 0.9 else nats_text(value)
            return str(value)

        return self.to_dataframe().map(text)


@checked
def compare_processes(first: Process, second: Process, *, length: Count = 10) -> ProcessComparison:
    """Two processes beside each other, by what does not depend on how their states are chosen.

    Args:
        first: A process, such as an inferred one.
        second: Another, over the same number of tokens.
        length: Tokens in the words that they are compared on, fewer if there are too many words.

    Raises:
        ValueError: if they have different numbers of tokens.

    Example:
        >>> from msp_lens.processes.catalog import even, golden_mean
        >>> compare_processes(even(), golden_mean()).first.rank
        2
        >>> compare_processes(even(), even()).matching
        {'E': 'E', 'O': 'O'}
    """
    if first.n_tokens != second.n_tokens:
        counts = f"{first.name} has {first.n_tokens} tokens, {second.name} {second.n_tokens}"
        raise ValueError(f"{counts}: only processes over the same tokens can be compared.")
    while first.n_tokens**length > _MAX_LEVEL and length > 3:
        length -= 1
    forward, backward = (divergence_rate(*pair) for pair in ((first, second), (second, first)))
    beliefs = _beliefs_along(first, second, length), _beliefs_along(second, first, length)
    matching, deviation = _matched(first, second, *beliefs[0]) if beliefs[0] is not None else (None, math.nan)
    r2 = [_affine_r2(*each) if each is not None else math.nan for each in beliefs]
    return ProcessComparison(
        _invariants(first), _invariants(second), forward, backward, r2[0], r2[1], matching, deviation
    )


def _invariants(process: Process) -> Invariants:
    rank, eigenvalues = minimal_dimension(process), sorted_eigenvalues(process.state_transitions)
    if rank < process.n_states:
        words = process_words(process, 2 * rank + 1, max_words=_MAX_LEVEL)
        eigenvalues = spectral_operators(words, rank).eigenvalues
    measures = (measure(process, max_level=_MAX_LEVEL) for measure in (entropy_rate, excess_entropy))
    return Invariants(process.name, process.n_states, rank, eigenvalues, *measures)


def _beliefs_along(first: Process, second: Process, length: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Both observers' beliefs after the first process's words, as far as both allow them, and the words' weights."""
    parts = []
    for n in range(1, length + 1):
        words = process_words(first, max(n, 2), max_words=_MAX_LEVEL).part(0, n)
        shared = second.word_probabilities(words.tokens) > 0
        if shared.any():
            tokens = words.tokens[shared]
            beliefs = (filter_beliefs(each, tokens)[:, -1] for each in (first, second))
            parts.append((*beliefs, words.probabilities[shared]))
    if not parts:
        return None
    own, other, weights = (torch.cat(each) for each in zip(*parts, strict=True))
    return own, other, weights


def _affine_r2(wanted: Tensor, given: Tensor, weights: Tensor) -> float:
    """R² of an affine map, over all coordinates; NaN if nothing varies."""
    y, x, w = wanted.numpy(), given.numpy(), weights.numpy()
    if np.ptp(y, axis=0).max() < 1e-12:
        return math.nan
    predicted = LinearRegression().fit(x, y, sample_weight=w).predict(x)
    return float(r2_score(y, predicted, sample_weight=w, multioutput="variance_weighted"))


def _matched(
    first: Process, second: Process, own: Tensor, other: Tensor, weights: Tensor
) -> tuple[dict[str, str] | None, float]:
    """The states that are believed in after the same words, and the largest difference of a transition."""
    if not (first.is_unifilar and second.is_unifilar and first.n_states == second.n_states):
        return None, math.nan
    overlap = (own * weights.unsqueeze(1)).T @ other
    rows, columns = linear_sum_assignment(overlap.numpy(), maximize=True)
    order = torch.from_numpy(columns[np.argsort(rows)])
    moved = second.transitions[:, order][:, :, order]
    matching = {first.states[i]: second.states[int(j)] for i, j in enumerate(order)}
    return matching, float((first.transitions - moved).abs().max())
