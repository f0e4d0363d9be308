"""A hidden Markov process: the world that emits the tokens.

An edge-emitting (Mealy) hidden Markov model is one matrix per token,

    T[x, i, j] = P(emit token x and go to state j | in state i),

and the probability of a word is a product of them: P(x1 … xn) = π T[x1] … T[xn] 1. In a generalized one the entries
need not be probabilities, but words still have them:

    P(x1 … xn) = π T[x1] … T[xn] w,    Σ_x T[x] w = w,    π Σ_x T[x] = π,    π w = 1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from msp_lens._checks import Count, Seed, check_memory, checked, converted, value_errors
from msp_lens._files import parsed_json
from msp_lens._random import resolve_generator
from msp_lens.processes.bayes import bayes_children, bayes_step
from msp_lens.processes.chains import (
    Degeneracy,
    StateClass,
    communicating_classes,
    matrix_rank,
    reached_span,
    stationary_distribution,
)
from msp_lens.processes.sampling import PathSampler, sample_by_filtering
from msp_lens.processes.validation import (
    GENERALIZED_TOLERANCE,
    ArrayLike,
    check_words,
    normalized_initial,
    plain_parameters,
    unique_fixed_vector,
    validated_distribution,
    validated_names,
    validated_right_eigenvector,
    validated_transitions,
)
from msp_lens.processes.words import Words, read_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.style import ThemeName


class _Transitions(TypedDict):
    transitions: list[Any]


class ProcessFields(_Transitions, total=False):
    """What `Process.to_dict` writes; all but the transitions may be left out."""

    name: str
    parameters: dict[str, Any]
    states: list[str]
    tokens: list[str]
    initial: list[float]
    right_eigenvector: list[float]


class Process:
    """A stationary process given by labelled transition matrices; immutable, in float64 on the CPU.

    A *generalized* process may have matrices with negative entries, and then has no hidden states. The entries of its
    "belief" π T[v] / (π T[v] w) after a word v may be negative and mean nothing by themselves, but the probabilities of
    all futures are linear in it, as they are in an ordinary belief.

    Args:
        transitions: `[token, state, state]`, `transitions[x, i, j] = P(emit x, go to j | in i)`, in any container; for
            each state they sum to 1 (within 1e-6, then normalized). For a generalized process, any finite numbers whose
            sum over tokens has the eigenvalue 1.
        name: What the process is called in tables and on the command line.
        states: Names of the hidden states; numbers by default.
        tokens: Names of the tokens; numbers by default.
        initial: Distribution over states before the first token; for a generalized process, any vector π with
            π w = 1. By default the stationary one.
        parameters: What the process was built from, numbers or lists of them, for its `repr` and for provenance.
        right_eigenvector: w of a generalized process, Σ_x T[x] w = w (within 1e-9); it makes the process generalized.
        generalized: Whether the process is generalized; w is computed unless given.

    Raises:
        TypeError: if something is not of its kind.
        ValueError: if these do not define a process (for a generalized one, only short words are checked for negative
            probabilities), or there is more than one stationary distribution and no `initial`.

    Example:
        >>> fair_coin = Process([[[0.5]], [[0.5]]], name="fair coin")
        >>> fair_coin.n_tokens, fair_coin.n_states
        (2, 1)
    """

    _kinds: ClassVar[dict[str, type[Process]]] = {}

    # Set below; processes made of others may have properties instead, computed when they are first asked for.
    transitions: cached_property[Float64[Tensor, "token state state"]]
    initial: cached_property[Float64[Tensor, "state"]]
    right_eigenvector: cached_property[Float64[Tensor, "state"]]
    states: cached_property[tuple[str, ...]]
    tokens: cached_property[tuple[str, ...]]

    @checked
    def __init__(
        self,
        transitions: ArrayLike,
        *,
        name: str = "process",
        states: Sequence[str | int] | None = None,
        tokens: Sequence[str | int] | None = None,
        initial: ArrayLike = None,
        parameters: Mapping[str, Any] | None = None,
        right_eigenvector: ArrayLike = None,
        generalized: bool = False,
    ) -> None:
        self.is_generalized = generalized or right_eigenvector is not None
        self.transitions = validated_transitions(transitions, generalized=self.is_generalized)
        self.name = name
        self.parameters = plain_parameters(parameters or {})
        self.states = validated_names(states, self.n_states, "states")
        self.tokens = validated_names(tokens, self.n_tokens, "tokens")
        self.right_eigenvector = torch.ones(self.n_states, dtype=torch.float64)
        if self.is_generalized:
            self.right_eigenvector = validated_right_eigenvector(self.transitions, right_eigenvector)
        if initial is None:
            self.initial = self.stationary
        elif self.is_generalized:
            self.initial = normalized_initial(initial, self.right_eigenvector)
        else:
            self.initial = validated_distribution(initial, self.n_states, "initial")
        if self.is_generalized:
            check_words(self.transitions, self.initial, self.right_eigenvector, name)

    def __init_subclass__(cls, *, kind: str | None = None) -> None:
        """Register the subclass under the `kind` that `to_dict` writes and `from_dict` looks up."""
        if kind is not None:
            Process._kinds[kind] = cls

    @property
    def n_tokens(self) -> int:
        """Size of the token alphabet, and the smallest `d_vocab` of a model of the process."""
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
        """`P(emit x | in i)`, or T[x] w: a belief times this matrix is the next-token distribution."""
        emissions = self.transitions @ self.right_eigenvector if self.is_generalized else self.transitions.sum(dim=2)
        return emissions.T.contiguous()

    def parts(self, beliefs: Float[Tensor, "*batch state"]) -> dict[str, Float[Tensor, "*batch part_state"]]:
        """What beliefs say of each part of the process, by the part's name; nothing for a process without parts.

        The parts of a mixture are which component it is and the belief within each component; those of a product are
        the beliefs about its factors.
        """
        return {}

    def join_parts(self, parts: Mapping[str, Float[Tensor, "*batch _"]]) -> Float[Tensor, "*batch state"]:
        """The belief whose `parts` are these; an error for a process without parts.

        Raises:
            KeyError: if a part is missing.
            ValueError: if the process has no parts.
        """
        raise ValueError(f"{self!r} has no parts: its belief is one. Mixtures and factored worlds have some.")

    @property
    def negligible(self) -> float:
        """The largest conditional token probability that counts as 0."""
        # In a generalized process a probability of 0 is a difference, of which rounding leaves ±1e-17.
        return 1e-12 if self.is_generalized else 0.0

    @cached_property
    def stationary(self) -> Float64[Tensor, "state"]:
        """The stationary distribution, π = π Σ_x T[x] with π w = 1; an error unless there is exactly one."""
        if self.is_generalized:
            vector = unique_fixed_vector(self.state_transitions, "left")
            overlap = float(vector @ self.right_eigenvector)
            if abs(overlap) > GENERALIZED_TOLERANCE * float(self.right_eigenvector.norm()):
                return vector / overlap
            raise ValueError(
                f"The eigenvalue 1 of the summed transitions of {self.name} is not simple: its left and right "
                "eigenvectors are orthogonal, so that no vector π has π w = 1."
            )
        stationary = stationary_distribution(self.state_transitions)
        if stationary is not None:
            return stationary
        closed = ["{" + ", ".join(each.states) + "}" for each in self.communicating_classes() if each.is_closed]
        raise ValueError(
            f"{self.name} is reducible: each of its closed classes of states {'; '.join(closed)} has its own "
            "stationary distribution. Give initial=, the distribution over states before the first token."
        )

    def communicating_classes(self) -> tuple[StateClass, ...]:
        """The classes of mutually reachable hidden states, by first state; an error for a generalized process.

        Example:
            >>> Process([[[0.5, 0.5], [0.0, 1.0]]]).communicating_classes()
            (StateClass(states=('0',), is_closed=False), StateClass(states=('1',), is_closed=True))
        """
        if self.is_generalized:
            raise ValueError(
                f"{self.name} is a generalized process: it has no hidden states, so none can be reached. Check "
                "process.is_generalized first."
            )
        classes = communicating_classes(self.state_transitions)
        return tuple(StateClass(tuple(self.states[i] for i in members), is_closed) for members, is_closed in classes)

    @property
    def is_irreducible(self) -> bool:
        """Whether every hidden state can be reached from every other; an error for a generalized process."""
        return len(self.communicating_classes()) == 1

    @property
    def is_unifilar(self) -> bool:
        """Whether a state and the token it emits determine the next state; False for a generalized process."""
        return not self.is_generalized and bool(((self.transitions > 0).sum(dim=2) <= 1).all())

    def degeneracy(self) -> Degeneracy:
        """Whether the reachable beliefs are an affine function of the next-token probabilities they lead to.

        Only where they are not does a good probe of beliefs show that a network holds more than its own prediction
        (Shai et al. 2024, sec. 4).

        Example:
            >>> from msp_lens.processes.catalog import mess3
            >>> mess3(x=0.05, a=0.85).degeneracy()
            mess3: emission rank 3 of 3; next-token probabilities show 2 of the 2 dimensions of the reachable beliefs:
            beliefs are an affine function of them, and a probe alone cannot tell them apart.
        """
        reach, emissions = reached_span(self.transitions, self.initial), self.emissions
        seen = matrix_rank(reach @ emissions) - 1
        return Degeneracy(self.name, self.n_states, matrix_rank(emissions), len(reach) - 1, seen)

    def bayes_step(
        self, beliefs: Float64[Tensor, "row state"], tokens: Int[Tensor, "row"]
    ) -> tuple[Float64[Tensor, "row state"], Float64[Tensor, "row"]]:
        """The belief after one token each, and the probability that the belief before gave it; NaN and 0 if impossible.

        Everything that follows beliefs takes this step or `bayes_children`.
        """
        return bayes_step(beliefs, tokens, self.transitions, self.right_eigenvector, negligible=self.negligible)

    def bayes_children(
        self, beliefs: Float64[Tensor, "row state"]
    ) -> tuple[Float64[Tensor, "row token state"], Float64[Tensor, "row token"]]:
        """The belief after every token, and the probability of each; NaN and 0 where a token is impossible."""
        return bayes_children(beliefs, self.transitions, self.right_eigenvector, negligible=self.negligible)

    def read_words(self, words: Words, *, what: str = "words") -> Int[Tensor, "word pos"]:
        """Words in any container, or as text, as token numbers; errors call them `what`. See `words.read_words`.

        Raises:
            TypeError: if these are neither numbers nor names.
            ValueError: if a token is not in the vocabulary, or a text can be read in two ways.

        Example:
            >>> from msp_lens.processes.catalog import mess3
            >>> mess3().read_words(["ABC", "CCA"])
            tensor([[0, 1, 2],
                    [2, 2, 0]])
        """
        numbers = read_words(words, self.tokens, what=what)
        self.check_tokens(numbers)
        return numbers

    def word_log_probabilities(self, words: Words) -> Float64[Tensor, "word"]:
        """Each word's log-probability, without underflow: `-inf` if impossible, an error for tokens out of range."""
        words = self.read_words(words)
        beliefs = self.initial.expand(len(words), -1)
        log_probability = torch.zeros(len(words), dtype=torch.float64)
        for tokens in words.T:
            # After an impossible token the belief is NaN, and every later token has probability 0.
            beliefs, probability = self.bayes_step(beliefs, tokens)
            log_probability += probability.log()
        return log_probability

    def word_probabilities(self, words: Words) -> Float64[Tensor, "word"]:
        """Each word's probability, π T[x1] … T[xn] w (w = 1 unless generalized).

        Example:
            >>> from msp_lens.processes.catalog import golden_mean
            >>> golden_mean(p=0.5).word_probabilities(["00", "11"])
            tensor([0.3333, 0.0000], dtype=torch.float64)
        """
        return self.word_log_probabilities(words).exp()

    @checked
    def sample(
        self, n_words: Count, length: Count, *, seed: Seed | None = None, generator: torch.Generator | None = None
    ) -> Int[Tensor, "word pos"]:
        """Draw words from the process, all at once, on the generator's device.

        Args:
            n_words: How many words.
            length: Tokens in each; `n_ctx + 1` for training, so that every position has a next token.
            seed: Seed of a fresh CPU generator; give this or `generator`.
            generator: Source of the randomness, on any device; sampling advances it.
        """
        what = f"{n_words} words of {length} tokens"
        check_memory(what, 8 * n_words * length, "Draw fewer or shorter words.")
        return self._draw(n_words, length, resolve_generator(seed, generator))

    def _draw(self, n_words: int, length: int, generator: torch.Generator) -> Int[Tensor, "word pos"]:
        if self.is_generalized:
            matrices = self.transitions, self.initial, self.right_eigenvector
            return sample_by_filtering(*matrices, n_words, length, generator, negligible=self.negligible)
        return self._path_sampler.sample(n_words, length, generator)

    @cached_property
    def _path_sampler(self) -> PathSampler:
        return PathSampler(self.transitions, self.initial)

    def check_tokens(self, words: Int[Tensor, "word pos"]) -> None:
        """Raise `ValueError` naming the first token that is not in the vocabulary."""
        outside = (words < 0) | (words >= self.n_tokens)
        if outside.any():
            word, position = outside.nonzero()[0].tolist()
            raise ValueError(
                f"Token {int(words[word, position])} at word {word}, position {position} is outside the vocabulary "
                f"of {self.name}: its {self.n_tokens} tokens are 0 to {self.n_tokens - 1}."
            )

    def plot(self, *, theme: ThemeName = "light") -> Figure:
        """The chain as a graph, recurrent states in bold; an error if generalized or of more than 100 states."""
        from msp_lens.figures.graphs import plot_generator

        if self.is_generalized:
            raise ValueError(
                f"{self.name} is a generalized process: its matrices are not probabilities of moving between states. "
                "Draw its mixed states instead: presentation(process, max_states=30).plot()."
            )
        recurrent = {state for each in self.communicating_classes() if each.is_closed for state in each.states}
        return plot_generator(
            self.transitions.numpy(),
            states=self.states,
            tokens=self.tokens,
            is_recurrent=[state in recurrent for state in self.states],
            title=self.title if self.parameters else self.name,
            theme=theme,
        )

    def to_dict(self) -> dict:
        """Everything that defines the process, as JSON-ready values; floats round-trip exactly."""
        arrays = ["transitions", "initial", "right_eigenvector"] if self.is_generalized else ["transitions", "initial"]
        definition = {"name": self.name, "parameters": self.parameters}
        definition |= {"states": list(self.states), "tokens": list(self.tokens)}
        return definition | {each: getattr(self, each).tolist() for each in arrays}

    @staticmethod
    @checked
    def from_dict(definition: Mapping[str, Any]) -> Process:
        """Rebuild a process from `to_dict`'s values, of the same kind.

        Raises:
            ValueError: if the kind is unknown, or a field is missing, unknown or of the wrong type; it names the field.
        """
        try:
            with value_errors():
                return Process._rebuilt(definition)
        except RecursionError:
            raise ValueError("definition: processes within processes, too deep to be one.") from None

    @staticmethod
    def _rebuilt(definition: Mapping[str, Any]) -> Process:
        if "kind" not in definition:
            return Process(**converted(definition, ProcessFields, "definition"))
        if converted(definition["kind"], str, "definition.kind") not in Process._kinds:
            known = ", ".join(sorted(Process._kinds))
            raise ValueError(f"kind={definition['kind']!r} is not a kind of process; the kinds are {known}.")
        return Process._kinds[definition["kind"]]._from_parts(definition)

    @classmethod
    def _from_parts(cls, definition: Mapping) -> Process:
        raise NotImplementedError(f"{cls.__name__} is registered as a kind of process, so it must define _from_parts.")

    def to_json(self) -> str:
        """`to_dict` as a JSON string.

        Example:
            >>> from msp_lens.processes.catalog import rrxor
            >>> Process.from_json(rrxor().to_json())
            rrxor(p1=0.5, p2=0.5): 5 states, 2 tokens
        """
        return json.dumps(self.to_dict(), allow_nan=False, ensure_ascii=False)

    @staticmethod
    @checked
    def from_json(text: str) -> Process:
        """Rebuild a process from `to_json`'s string; `ValueError` names the field that is wrong."""
        encoded = text.encode("utf-8", "surrogatepass")
        return Process.from_dict(parsed_json(encoded, dict[str, Any], "The process"))

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that identify the process, whatever its name and parameters."""
        # To 12 decimals: the last bits of a stationary distribution differ between machines' LAPACKs. A number that has
        # a 5 behind them, such as 2^-13, is not left to these bits. Adding 0 turns -0.0 into 0.0.
        identity = json.dumps(self._identity())
        rounded = json.loads(identity, parse_float=lambda number: round(float(number) + 1e-14, 12) + 0.0)
        return hashlib.sha256(json.dumps(rounded, sort_keys=True).encode()).hexdigest()[:16]

    def _identity(self) -> dict[str, Any]:
        """What tells the process from others, as JSON-ready values."""
        return {key: value for key, value in Process.to_dict(self).items() if key not in ("name", "parameters")}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Process) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        counts = f"{self.n_states} state{'s' * (self.n_states > 1)}, {self.n_tokens} token{'s' * (self.n_tokens > 1)}"
        return f"{self.title}: {'generalized, ' * self.is_generalized}{counts}"

    @property
    def title(self) -> str:
        """The name and what the process was built from: `mess3(x=0.05, a=0.85)`."""
        return f"{self.name}({shown_parameters(self.parameters)})"


def shown_parameters(parameters: Mapping[str, float | Sequence[float]]) -> str:
    """Parameters as in a call: open_prob=(1, 0.5, 0), depth=2."""
    return ", ".join(
        f"{key}=({', '.join(f'{v:g}' for v in value)})" if isinstance(value, Sequence) else f"{key}={value:g}"
        for key, value in parameters.items()
    )
