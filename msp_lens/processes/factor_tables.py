"""The factors of a world by their tables: whose tokens choose whose variant, and what follows without joint matrices.

Joint quantities are products of tables, one for each factor, with an axis for each token, state and next state, summed
over the axes that are not asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any, Literal, TypeAlias, get_args

import torch
from einops import einsum
from jaxtyping import Float64, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from msp_lens.processes.bayes import bayes_step
from msp_lens.processes.process import Process
from msp_lens.processes.sampling import draw_outcomes
from msp_lens.processes.validation import check_words

Structure: TypeAlias = Literal["independent", "chain", "fully conditional", "conditional transitions"]
Parents: TypeAlias = tuple[tuple[int, ...], ...]
Kind: TypeAlias = Literal["state", "token", "after"]

SAME = 1e-12  # Emissions this close are the same.


class FactorTables:
    """What the variants of factors and their parents say of each factor's outcomes.

    Args:
        variants: The variants of each factor, one for each combination of its parents' tokens.
        parents: The numbers of each factor's parents.
        labels: What errors call the factors.
        name: What errors call the world.

    Attributes:
        order: The factors, each after those whose tokens change its emissions.
        outcomes: For each factor, the matrices of its variants and tokens: `[variant_token, state, state]`.
        emissions: For each factor, `[variant, state, token]`.
    """

    def __init__(
        self, variants: Sequence[Sequence[Process]], parents: Parents, labels: Sequence[str], name: str
    ) -> None:
        self.factors, self.parents = tuple(each[0] for each in variants), parents
        self.n_tokens = [part.n_tokens for part in self.factors]
        self.n_states = [part.n_states for part in self.factors]
        for k, each in enumerate(variants):
            _check_variants(each, [self.factors[parent] for parent in parents[k]], f"factor {k} of {name}")
        sizes = [[self.n_tokens[parent] for parent in each] for each in parents]
        matrices = [torch.stack([part.transitions for part in each]) for each in variants]
        self.emissions = [torch.stack([part.emissions for part in each]) for each in variants]
        self.outcomes = [each.flatten(0, 1) for each in matrices]
        self._matrices = [each.reshape(*size, *each.shape[1:]) for each, size in zip(matrices, sizes, strict=True)]
        tables = [each.reshape(*size, *each.shape[1:]) for each, size in zip(self.emissions, sizes, strict=True)]
        self._asked = [_asked(table, each) for table, each in zip(tables, parents, strict=True)]
        self.asked = tuple(asked for asked, _ in self._asked)
        self.order = _emission_order(self.asked, labels, name)
        for k, each in enumerate(variants):
            if any(part.is_generalized for part in each):
                what = f"factor {k} of {name}, its variants chosen by any tokens of its parents,"
                check_words(self.outcomes[k], each[0].initial, each[0].right_eigenvector, what)

    def split(self, tokens: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch factor"]:
        """Each joint token as one for each factor."""
        return torch.stack(torch.unravel_index(tokens, self.n_tokens), dim=-1)

    def joined(self, split: Int[Tensor, "*batch factor"]) -> Int[Tensor, "*batch"]:
        """The joint token made of one for each factor."""
        return self.numbered(split, range(len(self.factors)))

    def numbered(self, split: Int[Tensor, "*batch factor"], members: Iterable[int]) -> Int[Tensor, "*batch"]:
        """The number of the combination of some factors' tokens, the last one's changing fastest."""
        number = torch.zeros_like(split[..., 0])
        for k in members:
            number = number * self.n_tokens[k] + split[..., k]
        return number

    def outcome(self, k: int, split: Int[Tensor, "*batch factor"]) -> Int[Tensor, "*batch"]:
        """The place in `outcomes` of a factor's matrix, for its token and those of its parents."""
        return self.numbered(split, [*self.parents[k], k])

    def moved(
        self, beliefs: Float64[Tensor, "row state"], split: Int[Tensor, "row factor"]
    ) -> Float64[Tensor, "row state"]:
        """Each joint belief times the matrix of its token, b T[x], one factor's axis after another."""
        joint, before = beliefs, 1
        for k, n_states in enumerate(self.n_states):
            joint = joint.reshape(len(beliefs), before, n_states, -1)
            joint = einsum(joint, self.outcomes[k][self.outcome(k, split)], "row a i b, row i j -> row a j b")
            before *= n_states
        return joint.reshape(beliefs.shape)

    def contracted(
        self, kept: Sequence[Kind], beliefs: Float64[Tensor, "row state"] | None = None
    ) -> Float64[Tensor, "..."]:
        """The product of all factors' matrices, and of joint beliefs, summed over all axes but those of these kinds."""
        every, operands = range(len(self.factors)), []
        if beliefs is not None:
            operands += [beliefs.unflatten(1, self.n_states), [0, *(_axis("state", k) for k in every)]]
        for k in self.order:
            own: list[Kind] = ["token", "state", "after"]
            chosen_by = [_axis("token", parent) for parent in self.parents[k]]
            operands += [self._matrices[k], [*chosen_by, *(_axis(kind, k) for kind in own)]]
        axes = [_axis(kind, k) for kind in kept for k in every]
        return torch.einsum(*operands, axes if beliefs is None else [0, *axes])

    def joint_emissions(self) -> Float64[Tensor, "..."]:
        """P(tokens | states), an axis for each."""
        operands: list[Any] = [each for k in self.order for each in self._emission(k)]
        return torch.einsum(
            *operands, [_axis(kind, k) for kind in ("state", "token") for k in range(len(self.factors))]
        )

    def _emission(self, k: int) -> tuple[Float64[Tensor, "..."], list[int]]:
        asked, table = self._asked[k]
        return table, [*(_axis("token", parent) for parent in asked), _axis("state", k), _axis("token", k)]

    def predictions(self, beliefs: Sequence[Float64[Tensor, "row _"]]) -> list[Float64[Tensor, "row _"]]:
        """The distribution over each factor's next token, given independent beliefs about the factors."""
        found = []
        for k, needed in enumerate(closures(self.asked)):
            operands: list[Any] = []
            for other in (each for each in self.order if each in needed):
                operands += [beliefs[other], [0, _axis("state", other)], *self._emission(other)]
            found.append(torch.einsum(*operands, [0, _axis("token", k)]))
        return found

    def filtered(
        self, k: int, split: Int[Tensor, "word pos factor"], *, negligible: float
    ) -> tuple[Float64[Tensor, "word pos factor_state"], Float64[Tensor, "word pos"]]:
        """The beliefs about one factor, given its tokens and its parents', and its tokens' probabilities."""
        part, outcomes = self.factors[k], self.outcome(k, split)
        belief = part.initial.expand(len(split), -1)
        beliefs = torch.empty(*outcomes.shape, part.n_states, dtype=torch.float64)
        probabilities = torch.empty(outcomes.shape, dtype=torch.float64)
        for position, outcome in enumerate(outcomes.T):
            belief, probabilities[:, position] = bayes_step(
                belief, outcome, self.outcomes[k], part.right_eigenvector, negligible=negligible
            )
            beliefs[:, position] = belief
        return beliefs, probabilities

    def draw(
        self,
        split: Int[Tensor, "word pos factor"],
        drawn: Sequence[int],
        generator: torch.Generator,
        *,
        negligible: float,
    ) -> None:
        """Draw the tokens of some factors, named in the order of their emissions, in place; the others' are given."""
        device = generator.device
        emissions = {k: self.emissions[k].to(device) for k in drawn}
        outcomes = {k: self.outcomes[k].to(device) for k in drawn}
        weights = {k: self.factors[k].right_eigenvector.to(device) for k in drawn}
        # Arrays of at most 32 MiB.
        largest = max(max(self.n_states[k], self.n_tokens[k]) * self.n_states[k] for k in drawn)
        for chunk in split.split(max(1, 2**22 // largest)):
            beliefs = {k: self.factors[k].initial.to(device).expand(len(chunk), -1) for k in drawn}
            for now in chunk.unbind(dim=1):
                for k in drawn:
                    # Parents whose tokens are still to be drawn do not change the emissions.
                    emitted = emissions[k][self.numbered(now, self.parents[k])]
                    probabilities = einsum(beliefs[k], emitted, "row state, row state token -> row token")
                    possible = torch.where(probabilities > negligible, probabilities, 0.0)
                    now[:, k] = draw_outcomes(possible, generator)
                for k in drawn:
                    outcome = self.outcome(k, now)
                    beliefs[k], _ = bayes_step(beliefs[k], outcome, outcomes[k], weights[k], negligible=negligible)


def _axis(kind: Kind, k: int) -> int:
    """The number of a factor's axis in an einsum; 0 is the batch."""
    return 1 + 3 * k + ("state", "token", "after").index(kind)


def validated_parents(parents: str | Sequence[Sequence[int]], factors: Sequence[Process], name: str) -> Parents:
    """The numbers of each factor's parents: distinct, within range, and never the factor itself."""
    count = len(factors)
    if isinstance(parents, str):
        before = [tuple(range(k)) for k in range(count)]
        others = [tuple(j for j in range(count) if j != k) for k in range(count)]
        chain = [each[-1:] for each in before]
        found = dict(zip(get_args(Structure), [[()] * count, chain, before, others], strict=True))
        return tuple(found[parents])
    found = tuple(map(tuple, parents))
    if len(found) != count:
        raise ValueError(f"parents={list(map(list, found))}: {name} has {count} factors; give the parents of each.")
    for k, each in enumerate(found):
        if k in each or len(set(each)) != len(each) or not all(0 <= parent < count for parent in each):
            raise ValueError(
                f"parents[{k}]={list(each)}: give the numbers of other factors of {name}, 0 to {count - 1}, each once."
            )
    return found


def _check_variants(variants: Sequence[Process], parents: Sequence[Process], label: str) -> None:
    """Raise `ValueError` unless there is a variant for each combination of the parents' tokens, all of one size."""
    needed, first = math.prod(parent.n_tokens for parent in parents), variants[0]
    if len(variants) != needed:
        raise ValueError(
            f"{label}: {len(variants)} given, but its {len(parents)} parents have {needed} combinations of tokens. "
            "Give a variant for each; the same one may be given several times."
        )
    for each in variants[1:]:
        if (each.n_states, each.n_tokens) != (first.n_states, first.n_tokens):
            raise ValueError(f"{label}: its variants {first!r} and {each!r} differ in size.")
        if not torch.allclose(each.right_eigenvector, first.right_eigenvector, rtol=0, atol=SAME):
            raise ValueError(
                f"{label}: its variants {first!r} and {each!r} have different right eigenvectors, so that the words' "
                "probabilities would not sum to 1: change the basis of one."
            )


def _asked(
    emissions: Float64[Tensor, "*parent_tokens state token"], parents: Sequence[int]
) -> tuple[tuple[int, ...], Float64[Tensor, "*asked_tokens state token"]]:
    """The parents whose tokens change a factor's emissions, and the emissions by these alone."""
    asked: list[int] = []
    for axis, parent in reversed(list(enumerate(parents))):
        if float((emissions.amax(axis) - emissions.amin(axis)).max()) > SAME:
            asked.insert(0, parent)
        else:
            emissions = emissions.select(axis, 0)
    return tuple(asked), emissions


def _emission_order(asked: Sequence[Sequence[int]], labels: Sequence[str], name: str) -> tuple[int, ...]:
    """The factors, each after those that change its emissions; `ValueError` if these form a circle."""
    try:
        return tuple(TopologicalSorter(dict(enumerate(asked))).static_order())
    except CycleError as error:
        members: list[int] = error.args[1]
        circle = " → ".join(labels[k] for k in members)
        raise ValueError(
            f"{name}: the emissions of {circle} depend on each other's tokens of the same step, so the probabilities "
            "of joint tokens would not sum to 1. Around a circle of parents, the variants of at least one factor must "
            "have the same emissions P(x | state) and differ only in where they lead."
        ) from None


def closures(parents: Sequence[Sequence[int]]) -> tuple[frozenset[int], ...]:
    """Each factor with its parents, their parents, and so on."""
    found = []
    for k in range(len(parents)):
        reached, left = {k}, [k]
        while left:
            new = set(parents[left.pop()]) - reached
            reached |= new
            left += new
        found.append(frozenset(reached))
    return tuple(found)


def connected(parents: Sequence[Sequence[int]]) -> list[list[int]]:
    """The groups of factors that depend on each other, directly or not, by their first members."""
    edges = [(k, parent) for k, each in enumerate(parents) for parent in each]
    rows, columns = zip(*edges, strict=True) if edges else ((), ())
    graph = coo_array(([1] * len(edges), (rows, columns)), shape=(len(parents), len(parents)))
    _, labels = connected_components(graph, directed=False)
    return sorted([k for k in range(len(parents)) if labels[k] == label] for label in set(labels.tolist()))
