"""Processes made of others: mixtures, leaky processes, and processes with a BOS token.

A mixture's matrices are block-diagonal. Worlds of several factors are in `factored`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from msp_lens._checks import Share, checked, converted
from msp_lens.processes.process import Process
from msp_lens.processes.validation import ArrayLike, validated_distribution, validated_names


class MixtureFields(TypedDict):
    """What `Mixture.to_dict` writes."""

    kind: Literal["mixture"]
    name: str
    weights: list[float]
    components: list[dict[str, Any]]


class WithBosFields(TypedDict):
    """What `WithBos.to_dict` writes."""

    kind: Literal["with_bos"]
    name: str
    token: str
    state: str
    process: dict[str, Any]


class Mixture(Process, kind="mixture"):
    """One of several processes, chosen once and unknown to the observer: a non-ergodic process.

    Its tokens are those of all components; equal names are the same token. A belief covers which component it is and
    the state within it.

    Args:
        processes: The components, kept as `components`.
        weights: Probability of each, above 0.
        name: What the mixture is called.

    Raises:
        ValueError: if there are no processes, or the weights are not a distribution over them.

    Example:
        >>> from msp_lens.processes.catalog import coin, z1r
        >>> two = mixture([coin(p=0.5), z1r(p=0.5)], [0.25, 0.75])
        >>> two
        mixture(0.25 coin(p=0.5), 0.75 z1r(p=0.5)): 4 states, 2 tokens
        >>> two.component_beliefs(two.initial)
        tensor([0.2500, 0.7500], dtype=torch.float64)
    """

    @checked
    def __init__(self, processes: Sequence[Process], weights: ArrayLike, *, name: str = "mixture") -> None:
        self.components = parts = validated_parts(processes, "mixture")
        self.weights = validated_distribution(weights, len(parts), "weights")
        if (self.weights == 0).any():
            raise ValueError(f"weights={self.weights.tolist()}: a component of weight 0 never occurs; leave it out.")
        tokens = tuple(dict.fromkeys(token for part in parts for token in part.tokens))
        ends = np.cumsum([part.n_states for part in parts]).tolist()
        check_size(name, len(tokens), ends[-1])
        self._blocks = [slice(end - part.n_states, end) for end, part in zip(ends, parts, strict=True)]
        transitions = torch.zeros(len(tokens), ends[-1], ends[-1], dtype=torch.float64)
        for part, block in zip(parts, self._blocks, strict=True):
            transitions[[tokens.index(token) for token in part.tokens], block, block] = part.transitions
        self.labels = labels = part_labels(parts)
        is_generalized = any(part.is_generalized for part in parts)
        super().__init__(
            transitions,
            name=name,
            states=[f"{label}.{state}" for label, part in zip(labels, parts, strict=True) for state in part.states],
            tokens=tokens,
            initial=torch.cat([weight * part.initial for weight, part in zip(self.weights, parts, strict=True)]),
            right_eigenvector=torch.cat([part.right_eigenvector for part in parts]) if is_generalized else None,
        )

    @checked
    def component_beliefs(self, beliefs: Float[Tensor, "*batch state"]) -> Float[Tensor, "*batch component"]:
        """The posterior over components: the share of each belief that lies in each component's states."""
        shares = beliefs * self.right_eigenvector.to(beliefs)
        return torch.stack([shares[..., block].sum(dim=-1) for block in self._blocks], dim=-1)

    @checked
    def state_beliefs(
        self, beliefs: Float[Tensor, "*batch state"], component: int
    ) -> Float[Tensor, "*batch component_state"]:
        """The belief within the component of this index, as filtering by it alone gives it; 0 where it is ruled out."""
        check_index(component, len(self.components), f"{self.name} has components")
        share = self.component_beliefs(beliefs)[..., component].unsqueeze(-1)
        within = beliefs[..., self._blocks[component]]
        return torch.where(share > self.negligible, within / share, 0.0)

    def parts(self, beliefs: Float[Tensor, "*batch state"]) -> dict[str, Float[Tensor, "*batch part_state"]]:
        """Which component it is (`"component"`), and the belief within each component, by `labels`."""
        within = {label: self.state_beliefs(beliefs, k) for k, label in enumerate(self.labels)}
        return {"component": self.component_beliefs(beliefs)} | within

    def join_parts(self, parts: Mapping[str, Float[Tensor, "*batch _"]]) -> Float[Tensor, "*batch state"]:
        """The belief with these probabilities of the components and these beliefs within them; see `parts`."""
        check_parts(parts, ("component", *self.labels), self.name)
        shares = parts["component"].unsqueeze(-1)
        return torch.cat([shares[..., k, :] * parts[label] for k, label in enumerate(self.labels)], dim=-1)

    def to_dict(self) -> dict:
        """The components and their weights, as JSON-ready values."""
        parts = [part.to_dict() for part in self.components]
        return {"kind": "mixture", "name": self.name, "weights": self.weights.tolist(), "components": parts}

    @classmethod
    def _from_parts(cls, definition: Mapping) -> Mixture:
        fields = converted(definition, MixtureFields, "definition")
        return cls([Process._rebuilt(part) for part in fields["components"]], fields["weights"], name=fields["name"])

    @property
    def title(self) -> str:
        """The components with their weights."""
        shown = [f"{weight:g} {part.title}" for weight, part in zip(self.weights, self.components, strict=True)]
        most = 8
        shown = shown if len(shown) <= most else [*shown[:2], f"… {len(shown) - 3} more …", shown[-1]]
        return f"{self.name}({', '.join(shown)})"


def part_labels(parts: Sequence[Process]) -> tuple[str, ...]:
    """The parts' names, numbered if two are alike."""
    names = [part.name for part in parts]
    return tuple(names if len(set(names)) == len(names) else [f"{name}_{k}" for k, name in enumerate(names)])


def check_parts(parts: Mapping[str, Tensor], needed: Sequence[str], name: str) -> None:
    """Raise `KeyError` if one of these parts is missing."""
    if missing := [part for part in needed if part not in parts]:
        raise KeyError(f"parts has none named {missing[0]!r}: give {', '.join(needed)} of {name}.")


@checked
def leaky(process: Process, epsilon: Share) -> Process:
    """The process with a share ε of its probability spread uniformly: (1-ε) T + ε/(n_tokens n_states).

    If the process starts in its stationary distribution, so does the leaky one; otherwise the start is the same.

    Raises:
        ValueError: if ε is outside [0, 1] or the process is generalized.

    Example:
        >>> from msp_lens.processes.catalog import z1r
        >>> leaky(z1r(p=0.5), epsilon=0.06).transitions[0, 0]
        tensor([0.0100, 0.9500, 0.0100], dtype=torch.float64)
    """
    if process.is_generalized:
        raise ValueError(
            f"{process.name} is a generalized process: it has no hidden states to which probability could leak."
        )
    is_stationary = torch.allclose(process.initial @ process.state_transitions, process.initial, rtol=0, atol=1e-9)
    share = epsilon / (process.n_tokens * process.n_states)
    return Process(
        (1 - epsilon) * process.transitions + share,
        name=f"leaky_{process.name}",
        states=process.states,
        tokens=process.tokens,
        initial=None if is_stationary and epsilon > 0 else process.initial,
        parameters={**process.parameters, "epsilon": epsilon},
    )


class WithBos(Process, kind="with_bos"):
    """The process preceded by a BOS token, which comes first and never again; the belief after it is the prior.

    BOS is the last token of the alphabet and the start state that emits it the last state, so the others keep their
    numbers. The belief after BOS is the process's initial one, with a 0 for the start state. The parts of the process
    remain parts of this one.

    Args:
        process: What follows BOS, kept as `process`.
        token: Name of the BOS token.
        state: Name of the start state.
        name: What the whole is called; by default the process's name with "_with_bos".

    Raises:
        ValueError: if the process has a token or state of these names.

    Example:
        >>> from msp_lens.processes.catalog import golden_mean
        >>> process = with_bos(golden_mean(p=0.5))
        >>> process.tokens, process.states
        (('0', '1', 'BOS'), ('A', 'B', 'START'))
        >>> process.sample(1, 4, seed=0)[0, 0]
        tensor(2)
    """

    @checked
    def __init__(self, process: Process, *, token: str = "BOS", state: str = "START", name: str | None = None) -> None:
        self.process = process
        self.is_generalized, self.parameters = process.is_generalized, process.parameters
        self.name = f"{process.name}_with_bos" if name is None else name
        self.states = validated_names([*process.states, state], process.n_states + 1, "states")
        self.tokens = validated_names([*process.tokens, token], process.n_tokens + 1, "tokens")
        one = torch.ones(1, dtype=torch.float64)
        self.right_eigenvector = torch.cat([process.right_eigenvector, one])
        self.initial = torch.cat([torch.zeros(process.n_states, dtype=torch.float64), one])

    @property
    def n_tokens(self) -> int:
        """One more than those of the process."""
        return self.process.n_tokens + 1

    @property
    def n_states(self) -> int:
        """One more than those of the process."""
        return self.process.n_states + 1

    @cached_property
    def transitions(self) -> Float64[Tensor, "token state state"]:
        """The process's matrices, with the start state, and that of BOS."""
        transitions = torch.zeros(self.n_tokens, self.n_states, self.n_states, dtype=torch.float64)
        transitions[:-1, :-1, :-1] = self.process.transitions
        transitions[-1, -1, :-1] = self.process.initial
        return transitions

    @cached_property
    def state_transitions(self) -> Float64[Tensor, "state state"]:
        """`P(go to j | in i)`; nothing leads back to the start state."""
        begun = torch.cat([self.process.state_transitions, self.process.initial.unsqueeze(0)])
        return torch.nn.functional.pad(begun, (0, 1))

    @cached_property
    def emissions(self) -> Float64[Tensor, "state token"]:
        """`P(emit x | in i)`; only the start state emits BOS."""
        emissions = torch.nn.functional.pad(self.process.emissions, (0, 1, 0, 1))
        emissions[-1, -1] = 1.0
        return emissions

    @cached_property
    def stationary(self) -> Float64[Tensor, "state"]:
        """The process's own, in which the start state has no share."""
        return torch.nn.functional.pad(self.process.stationary, (0, 1))

    def bayes_step(
        self, beliefs: Float64[Tensor, "row state"], tokens: Int[Tensor, "row"]
    ) -> tuple[Float64[Tensor, "row state"], Float64[Tensor, "row"]]:
        """The process's own step, or where the token is BOS, from the start state to the prior."""
        is_bos, start = tokens == self.n_tokens - 1, beliefs[:, -1]
        after, probabilities = self.process.bayes_step(beliefs[:, :-1], torch.where(is_bos, 0, tokens))
        after = torch.where(is_bos.unsqueeze(1), self.process.initial, after)
        probabilities = torch.where(is_bos, torch.where(start > self.negligible, start, 0.0), probabilities)
        return _begun(after, probabilities), probabilities

    def bayes_children(
        self, beliefs: Float64[Tensor, "row state"]
    ) -> tuple[Float64[Tensor, "row token state"], Float64[Tensor, "row token"]]:
        """The process's own children, and the prior after BOS."""
        after, probabilities = self.process.bayes_children(beliefs[:, :-1])
        bos = torch.full((len(beliefs),), self.n_tokens - 1)
        prior, start = self.bayes_step(beliefs, bos)
        children = torch.cat([_begun(after, probabilities), prior.unsqueeze(1)], dim=1)
        return children, torch.cat([probabilities, start.unsqueeze(1)], dim=1)

    def _draw(self, n_words: int, length: int, generator: torch.Generator) -> Int[Tensor, "word pos"]:
        bos = torch.full((n_words, 1), self.n_tokens - 1, device=generator.device)
        return torch.cat([bos, self.process._draw(n_words, length - 1, generator)], dim=1) if length > 1 else bos

    def parts(self, beliefs: Float[Tensor, "*batch state"]) -> dict[str, Float[Tensor, "*batch part_state"]]:
        """The parts of the process; all are 0 before BOS."""
        return self.process.parts(beliefs[..., :-1])

    def join_parts(self, parts: Mapping[str, Float[Tensor, "*batch _"]]) -> Float[Tensor, "*batch state"]:
        """The belief of the process with these parts, after BOS."""
        return torch.nn.functional.pad(self.process.join_parts(parts), (0, 1))

    def to_dict(self) -> dict:
        """The process and the names of BOS and the start state, as JSON-ready values."""
        names = {"name": self.name, "token": self.tokens[-1], "state": self.states[-1]}
        return {"kind": "with_bos", **names, "process": self.process.to_dict()}

    @classmethod
    def _from_parts(cls, definition: Mapping) -> WithBos:
        fields = converted(definition, WithBosFields, "definition")
        process = Process._rebuilt(fields["process"])
        return cls(process, token=fields["token"], state=fields["state"], name=fields["name"])

    def _identity(self) -> dict[str, Any]:
        if type(self.process)._identity is Process._identity:
            return super()._identity()
        return {"bos": self.process.fingerprint, "token": self.tokens[-1], "state": self.states[-1]}


def _begun(
    beliefs: Float64[Tensor, "*row state"], probabilities: Float64[Tensor, "*row"]
) -> Float64[Tensor, "*row state_1"]:
    """Beliefs with a 0 for the start state, NaN where the token is impossible."""
    padded = torch.nn.functional.pad(beliefs, (0, 1))
    return torch.where(probabilities.unsqueeze(-1) > 0, padded, torch.nan)


# The names by which they are made.
mixture, with_bos = Mixture, WithBos


def validated_parts(parts: Sequence[Process], whole: str) -> tuple[Process, ...]:
    """The parts, if there are any."""
    if not parts:
        raise ValueError(f"{whole}([]): give at least one process.")
    return tuple(parts)


def check_size(name: str, n_tokens: int, n_states: int) -> None:
    """Raise `ValueError` unless the matrices of so many states and tokens fit in 1 GiB."""
    most = 2**27  # 1 GiB
    if n_tokens * n_states**2 > most:
        size = f"{n_tokens} matrices of {n_states} × {n_states} states, more than {most} entries in all"
        raise ValueError(f"{name} would have {size}: use fewer or smaller processes.")


def check_index(index: int, count: int, what: str) -> None:
    """Raise `ValueError` unless there is something of this index."""
    if not 0 <= index < count:
        raise ValueError(f"{index}: {what} 0 to {count - 1}.")
