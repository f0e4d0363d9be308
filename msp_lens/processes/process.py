"""A hidden Markov process: the world that emits the tokens.

An edge-emitting (Mealy) hidden Markov model is one matrix per token,

    T[x, i, j] = P(emit token x and go to state j | in state i),

and the probability of a word is a product of them: P(x1 … xn) = π T[x1] … T[xn] 1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Float64, Int
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from msp_lens._random import resolve_generator

ROW_SUM_TOLERANCE = 1e-6
# Below this a row sum differs from 1 only by rounding: such a matrix is kept to the last bit.
ROUNDING = 1e-12


class Process:
    """A stationary process given by labelled transition matrices; immutable, in float64 on the CPU.

    Args:
        transitions: `[token, state, state]`, `transitions[x, i, j] = P(emit x, go to j | in i)`. Non-negative;
            for each state the entries over tokens and next states sum to 1 (within 1e-6, then normalised).
        name: What the process is called in tables and on the command line.
        states: Names of the hidden states; numbers by default.
        tokens: Names of the tokens; numbers by default.
        initial: Distribution over states before the first token; by default the stationary one.
        parameters: What the process was built from, for its `repr` and for provenance.

    Raises:
        ValueError: if a matrix is not a process, or if the chain has more than one stationary distribution
            and `initial` was not given.

    Example:
        >>> fair_coin = Process([[[0.5]], [[0.5]]], name="fair coin")
        >>> fair_coin.n_tokens, fair_coin.n_states
        (2, 1)
    """

    def __init__(
        self,
        transitions: Tensor | np.ndarray | Sequence,
        *,
        name: str = "process",
        states: Sequence[str] | None = None,
        tokens: Sequence[str] | None = None,
        initial: Tensor | np.ndarray | Sequence[float] | None = None,
        parameters: Mapping[str, float] | None = None,
    ) -> None:
        self.transitions: Float64[Tensor, "token state state"] = _validated_transitions(transitions)
        self.name = name
        self.parameters = dict(parameters or {})
        self.states = _validated_names(states, self.n_states, "states")
        self.tokens = _validated_names(tokens, self.n_tokens, "tokens")
        self.initial: Float64[Tensor, "state"] = (
            self.stationary if initial is None else validated_distribution(initial, self.n_states, "initial")
        )

    @property
    def n_tokens(self) -> int:
        """Size of the token alphabet: the `d_vocab` that a model needs at least."""
        return self.transitions.shape[0]

    @property
    def n_states(self) -> int:
        """Number of hidden states: the length of a belief."""
        return self.transitions.shape[1]

    @cached_property
    def state_transitions(self) -> Float64[Tensor, "state state"]:
        """`P(go to j | in i)`, whatever token is emitted."""
        return self.transitions.sum(dim=0)

    @cached_property
    def emissions(self) -> Float64[Tensor, "state token"]:
        """`P(emit x | in i)`: a belief times this matrix is the next-token distribution."""
        return self.transitions.sum(dim=2).T.contiguous()

    @cached_property
    def stationary(self) -> Float64[Tensor, "state"]:
        """The stationary distribution over hidden states, π = π Σ_x T[x].

        Raises:
            ValueError: if it is not unique, i.e. if the chain has more than one closed class of states.
        """
        closed = self._closed_classes()
        if len(closed) > 1:
            classes = "; ".join("{" + ", ".join(self.states[i] for i in members) + "}" for members in closed)
            raise ValueError(
                f"{self.name} is reducible: each of its closed classes of states {classes} has a stationary "
                "distribution of its own. Give initial=, the distribution over states before the first token."
            )
        balance = self.state_transitions.T - torch.eye(self.n_states, dtype=torch.float64)
        equations = torch.cat([balance, torch.ones(1, self.n_states, dtype=torch.float64)])
        right_side = torch.zeros(self.n_states + 1, dtype=torch.float64)
        right_side[-1] = 1.0
        solution = torch.linalg.lstsq(equations, right_side.unsqueeze(1), driver="gelsd").solution.squeeze(1)
        # States outside the closed class are left for good: exactly 0, not a rounding error either side of it.
        stationary = torch.zeros_like(solution)
        stationary[closed[0]] = solution[closed[0]].clamp(min=0)
        return stationary / stationary.sum()

    def _closed_classes(self) -> list[list[int]]:
        """The sets of mutually reachable states that no transition leaves."""
        reachable = (self.state_transitions > 0).numpy()
        n_classes, labels = connected_components(reachable, directed=True, connection="strong")
        members = [np.flatnonzero(labels == k).tolist() for k in range(n_classes)]
        return [m for m in members if not np.delete(reachable[m], m, axis=1).any()]

    def word_log_probabilities(self, words: Int[Tensor, "word pos"]) -> Float64[Tensor, "word"]:
        """Natural logarithm of each word's probability, `-inf` for impossible ones; does not underflow.

        Raises:
            ValueError: if a token is outside the vocabulary.
        """
        self.check_tokens(words)
        forward = self.initial.expand(len(words), -1)
        log_probability = torch.zeros(len(words), dtype=torch.float64)
        for tokens in words.T:
            forward = einsum(forward, self.transitions[tokens], "word i, word i j -> word j")
            probability = forward.sum(dim=1)
            log_probability = log_probability + probability.log()
            forward = forward / probability.clamp(min=torch.finfo(torch.float64).tiny).unsqueeze(1)
        return log_probability

    def word_probabilities(self, words: Int[Tensor, "word pos"]) -> Float64[Tensor, "word"]:
        """Each word's probability, π T[x1] … T[xn] 1.

        Example:
            >>> from msp_lens.processes.catalog import golden_mean
            >>> golden_mean(p=0.5).word_probabilities(torch.tensor([[0, 0], [1, 1]]))
            tensor([0.3333, 0.0000], dtype=torch.float64)
        """
        return self.word_log_probabilities(words).exp()

    def sample(
        self,
        n_words: int,
        length: int,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, "word pos"]:
        """Draw words from the process, all at once, on the generator's device.

        Args:
            n_words: How many words.
            length: Tokens in each; `n_ctx + 1` for training, so that every position has a next token.
            seed: Seed of a fresh CPU generator; give this or `generator`.
            generator: Source of the randomness, on any device; its state moves on.
        """
        if n_words < 1 or length < 1:
            raise ValueError(f"n_words={n_words}, length={length}: both must be at least 1.")
        generator = resolve_generator(seed, generator)
        outcomes = self._cumulative_outcomes.to(generator.device)
        uniform = torch.rand(length + 1, n_words, dtype=torch.float64, device=generator.device, generator=generator)
        state = _draw(_cumulative(self.initial).to(generator.device), uniform[0])
        words = torch.empty(n_words, length, dtype=torch.int64, device=generator.device)
        for position in range(length):
            outcome = _draw(outcomes[state], uniform[position + 1])
            words[:, position] = outcome // self.n_states
            state = outcome % self.n_states
        return words

    @cached_property
    def _cumulative_outcomes(self) -> Float64[Tensor, "state outcome"]:
        """Cumulative probabilities of the outcomes (token, next state), numbered `token * n_states + state`."""
        return _cumulative(rearrange(self.transitions, "token i j -> i (token j)"))

    def check_tokens(self, words: Int[Tensor, "word pos"]) -> None:
        """Raise `ValueError` naming the first token that is not in the vocabulary."""
        outside = (words < 0) | (words >= self.n_tokens)
        if outside.any():
            word, position = outside.nonzero()[0].tolist()
            raise ValueError(
                f"Token {int(words[word, position])} at word {word}, position {position} is outside the vocabulary "
                f"of {self.name}: its {self.n_tokens} tokens are 0 to {self.n_tokens - 1}."
            )

    def to_dict(self) -> dict:
        """Everything that defines the process, as JSON-ready values; floats round-trip exactly."""
        return {
            "name": self.name,
            "parameters": self.parameters,
            "states": list(self.states),
            "tokens": list(self.tokens),
            "transitions": self.transitions.tolist(),
            "initial": self.initial.tolist(),
        }

    @classmethod
    def from_dict(cls, definition: Mapping) -> Process:
        """Rebuild a process from `to_dict`'s values."""
        return cls(**definition)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that identify the process, whatever it is called and was built from."""
        identity = {key: self.to_dict()[key] for key in ("transitions", "initial", "states", "tokens")}
        canonical = json.dumps(identity, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Process) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value:g}" for key, value in self.parameters.items())
        counts = f"{self.n_states} state{'s' * (self.n_states > 1)}, {self.n_tokens} token{'s' * (self.n_tokens > 1)}"
        return f"{self.name}({arguments}): {counts}"


def validated_distribution(
    values: Tensor | np.ndarray | Sequence[float], length: int, what: str
) -> Float64[Tensor, "state"]:
    """`values` as a probability vector of the given length.

    Raises:
        ValueError: naming `what`, the value and the rule it breaks.
    """
    vector = torch.as_tensor(values, dtype=torch.float64).detach().cpu().clone()
    if vector.shape != (length,):
        raise ValueError(f"{what} has shape {tuple(vector.shape)}; it needs one number per state: ({length},).")
    if not torch.isfinite(vector).all() or (vector < 0).any():
        raise ValueError(f"{what}={vector.tolist()} is not a distribution: give finite numbers ≥ 0.")
    total = float(vector.sum())
    if abs(total - 1) > ROW_SUM_TOLERANCE:
        raise ValueError(f"{what}={vector.tolist()} sums to {total:g}, not to 1: normalise it first.")
    return vector if abs(total - 1) <= ROUNDING else vector / total


def _validated_transitions(
    transitions: Tensor | np.ndarray | Sequence,
) -> Float64[Tensor, "token state state"]:
    matrices = torch.as_tensor(transitions, dtype=torch.float64).detach().cpu().clone()
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2] or 0 in matrices.shape:
        raise ValueError(
            f"transitions has shape {tuple(matrices.shape)}; it needs [token, state, state], a square matrix a token."
        )
    wrong = ~torch.isfinite(matrices) | (matrices < 0)
    if wrong.any():
        token, row, column = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"transitions[{token}, {row}, {column}] = {float(matrices[token, row, column]):g}; "
            "probabilities are finite and ≥ 0."
        )
    row_sums = matrices.sum(dim=(0, 2))
    worst = int((row_sums - 1).abs().argmax())
    if abs(float(row_sums[worst]) - 1) > ROW_SUM_TOLERANCE:
        raise ValueError(
            f"The transitions out of state {worst} sum to {float(row_sums[worst]):g} over tokens and next states, "
            "not to 1: transitions[x, i, j] is the joint probability P(emit x, go to j | in i)."
        )
    needs_normalising = (row_sums - 1).abs() > ROUNDING
    return matrices / torch.where(needs_normalising, row_sums, 1.0)[None, :, None]


def _validated_names(names: Sequence[str] | None, count: int, what: str) -> tuple[str, ...]:
    if names is None:
        return tuple(str(i) for i in range(count))
    result = tuple(str(name) for name in names)
    if len(result) != count or len(set(result)) != count:
        raise ValueError(f"{what}={result}: the transitions need {count} distinct names.")
    return result


def _cumulative(probabilities: Float64[Tensor, "*rows outcome"]) -> Float64[Tensor, "*rows outcome"]:
    """Cumulative sums in which the last possible outcome reaches past 1, so that rounding never overshoots it."""
    cumulative = probabilities.cumsum(dim=-1)
    is_exhausted = probabilities.flip(-1).cumsum(dim=-1).flip(-1) - probabilities <= 0
    return torch.where(is_exhausted, 2.0, cumulative)


def _draw(cumulative: Float64[Tensor, "*rows outcome"], uniform: Float64[Tensor, "word"]) -> Int[Tensor, "word"]:
    """Invert the cumulative distribution; outcomes of probability 0 are never drawn."""
    return (uniform.unsqueeze(-1) >= cumulative).sum(dim=-1)
