"""Processes made of others: mixtures, products, leaky processes, and processes with a BOS token.

A mixture's matrices are block-diagonal, a product's are Kronecker products.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from msp_lens._checks import Share, checked, converted
from msp_lens.processes.process import Process
from msp_lens.processes.validation import ArrayLike, validated_distribution


class MixtureFields(TypedDict):
    """What `Mixture.to_dict` writes."""

    kind: Literal["mixture"]
    name: str
    weights: list[float]
    components: list[dict[str, Any]]


class ProductFields(TypedDict):
    """What `Product.to_dict` writes."""

    kind: Literal["product"]
    name: str
    factors: list[dict[str, Any]]


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
        self.components = parts = _validated_parts(processes, "mixture")
        self.weights = validated_distribution(weights, len(parts), "weights")
        if (self.weights == 0).any():
            raise ValueError(f"weights={self.weights.tolist()}: a component of weight 0 never occurs; leave it out.")
        tokens = tuple(dict.fromkeys(token for part in parts for token in part.tokens))
        ends = np.cumsum([part.n_states for part in parts]).tolist()
        _check_size(name, len(tokens), ends[-1])
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
        _check_index(component, len(self.components), f"{self.name} has components")
        share = self.component_beliefs(beliefs)[..., component].unsqueeze(-1)
        within = beliefs[..., self._blocks[component]]
        return torch.where(share > self.negligible, within / share, 0.0)

    def parts(self, beliefs: Float[Tensor, "*batch state"]) -> dict[str, Float[Tensor, "*batch part_state"]]:
        """Which component it is (`"component"`), and the belief within each component, by `labels`."""
        within = {label: self.state_beliefs(beliefs, k) for k, label in enumerate(self.labels)}
        return {"component": self.component_beliefs(beliefs)} | within

    def to_dict(self) -> dict:
        """The components and their weights, as JSON-ready values."""
        parts = [part.to_dict() for part in self.components]
        return {"kind": "mixture", "name": self.name, "weights": self.weights.tolist(), "components": parts}

    @classmethod
    def _from_parts(cls, definition: Mapping) -> Mixture:
        fields = converted(definition, MixtureFields, "definition")
        return cls([Process._rebuilt(part) for part in fields["components"]], fields["weights"], name=fields["name"])

    def _call(self) -> str:
        parts = zip(self.weights, self.components, strict=True)
        return f"{self.name}({', '.join(f'{weight:g} {part._call()}' for weight, part in parts)})"


class Product(Process, kind="product"):
    """Several processes in parallel, independently: a factored process.

    A token is a tuple of the factors' tokens (`split_tokens`), numbered with the first factor's token most significant,
    and so is a state. A belief is the product of the factors' beliefs (`factor_beliefs`).

    Args:
        processes: The factors, kept as `factors`.
        name: What the product is called.

    Raises:
        ValueError: if there are no processes, or their matrices would not fit in memory.

    Example:
        >>> from msp_lens.processes.catalog import golden_mean, z1r
        >>> both = product([z1r(p=0.5), golden_mean(p=0.5)])
        >>> both.tokens
        ('0,0', '0,1', '1,0', '1,1')
        >>> both.factor_beliefs(both.initial, 1)
        tensor([0.6667, 0.3333], dtype=torch.float64)
    """

    @checked
    def __init__(self, processes: Sequence[Process], *, name: str = "product") -> None:
        self.factors = parts = _validated_parts(processes, "product")
        self.labels = part_labels(parts)
        sizes = np.array([(part.n_tokens, part.n_states) for part in parts], dtype=object)
        _check_size(name, *sizes.prod(axis=0))
        weights = reduce(torch.kron, [part.right_eigenvector for part in parts])
        super().__init__(
            reduce(torch.kron, [part.transitions for part in parts]),
            name=name,
            states=[",".join(names) for names in itertools.product(*(part.states for part in parts))],
            tokens=[",".join(names) for names in itertools.product(*(part.tokens for part in parts))],
            initial=reduce(torch.kron, [part.initial for part in parts]),
            right_eigenvector=weights if any(part.is_generalized for part in parts) else None,
        )

    @checked
    def factor_beliefs(
        self, beliefs: Float[Tensor, "*batch state"], factor: int
    ) -> Float[Tensor, "*batch factor_state"]:
        """The marginal belief about one factor: what filtering that factor's tokens alone gives."""
        _check_index(factor, len(self.factors), f"{self.name} has factors")
        marginal = beliefs.unflatten(-1, [part.n_states for part in self.factors])
        # From the last axis to the first: once the axes behind it are summed out, the factor's own axis is the last.
        for k in reversed(range(len(self.factors))):
            if k != factor:
                weights = self.factors[k].right_eigenvector.to(beliefs)
                marginal = marginal.movedim(-1 if k > factor else -2, -1) @ weights
        return marginal

    def parts(self, beliefs: Float[Tensor, "*batch state"]) -> dict[str, Float[Tensor, "*batch part_state"]]:
        """The belief about each factor, by `labels`."""
        return {label: self.factor_beliefs(beliefs, k) for k, label in enumerate(self.labels)}

    @checked
    def split_tokens(self, tokens: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch factor"]:
        """Each token as one token for each factor; an error for a token outside the vocabulary."""
        outside = tokens[(tokens < 0) | (tokens >= self.n_tokens)]
        if len(outside):
            raise ValueError(f"Token {int(outside[0])}: the {self.n_tokens} tokens of {self.name} start at 0.")
        return torch.stack(torch.unravel_index(tokens, [part.n_tokens for part in self.factors]), dim=-1)

    @checked
    def join_tokens(self, tokens: Int[Tensor, "*batch factor"]) -> Int[Tensor, "*batch"]:
        """The token made of one token for each factor; an error if one is missing or outside its vocabulary."""
        sizes = torch.tensor([part.n_tokens for part in self.factors], device=tokens.device)
        if tokens.shape[-1] != len(sizes):
            raise ValueError(f"The last axis has {tokens.shape[-1]} tokens; {self.name} has {len(sizes)} factors.")
        outside = ((tokens < 0) | (tokens >= sizes)).nonzero()
        if len(outside):
            factor, token = int(outside[0, -1]), int(tokens[tuple(outside[0])])
            raise ValueError(f"Token {token}: factor {factor} of {self.name} has tokens 0 to {int(sizes[factor]) - 1}.")
        joined = torch.zeros_like(tokens[..., 0])
        for factor, part in enumerate(self.factors):
            joined = joined * part.n_tokens + tokens[..., factor]
        return joined

    def to_dict(self) -> dict:
        """The factors, as JSON-ready values."""
        return {"kind": "product", "name": self.name, "factors": [part.to_dict() for part in self.factors]}

    @classmethod
    def _from_parts(cls, definition: Mapping) -> Product:
        fields = converted(definition, ProductFields, "definition")
        return cls([Process._rebuilt(part) for part in fields["factors"]], name=fields["name"])

    def _call(self) -> str:
        return f"{self.name}({' × '.join(part._call() for part in self.factors)})"


def part_labels(parts: Sequence[Process]) -> tuple[str, ...]:
    """The parts' names, numbered if two are alike."""
    names = [part.name for part in parts]
    return tuple(names if len(set(names)) == len(names) else [f"{name}_{k}" for k, name in enumerate(names)])


# The names by which they are made.
mixture, product = Mixture, Product


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


@checked
def with_bos(process: Process, *, token: str = "BOS", state: str = "START") -> Process:
    """The process preceded by a BOS token, which comes first and never again; the belief after it is the prior.

    BOS is the last token of the alphabet and the start state that emits it the last state, so the others keep their
    numbers; `token` and `state` name them. The belief after BOS is the process's initial one, with a 0 for the start
    state.

    Example:
        >>> from msp_lens.processes.catalog import golden_mean
        >>> process = with_bos(golden_mean(p=0.5))
        >>> process.tokens, process.states
        (('0', '1', 'BOS'), ('A', 'B', 'START'))
        >>> process.sample(1, 4, seed=0)[0, 0]
        tensor(2)
    """
    n_tokens, n_states = process.n_tokens, process.n_states
    transitions = torch.zeros(n_tokens + 1, n_states + 1, n_states + 1, dtype=torch.float64)
    transitions[:n_tokens, :n_states, :n_states] = process.transitions
    transitions[n_tokens, n_states, :n_states] = process.initial
    weights = torch.nn.functional.pad(process.right_eigenvector, (0, 1), value=1.0)
    return Process(
        transitions,
        name=f"{process.name}_with_bos",
        states=(*process.states, state),
        tokens=(*process.tokens, token),
        initial=[0.0] * n_states + [1.0],
        parameters=process.parameters,
        right_eigenvector=weights if process.is_generalized else None,
    )


def _validated_parts(parts: Sequence[Process], whole: str) -> tuple[Process, ...]:
    if not parts:
        raise ValueError(f"{whole}([]): give at least one process.")
    return tuple(parts)


def _check_size(name: str, n_tokens: int, n_states: int) -> None:
    most = 2**27  # 1 GiB
    if n_tokens * n_states**2 > most:
        size = f"{n_tokens} matrices of {n_states} × {n_states} states, more than {most} entries in all"
        raise ValueError(f"{name} would have {size}: use fewer or smaller processes.")


def _check_index(index: int, count: int, what: str) -> None:
    if not 0 <= index < count:
        raise ValueError(f"{index}: {what} 0 to {count - 1}.")
