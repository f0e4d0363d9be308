"""Worlds of several factors, each with its own states and tokens, whose tokens come together as one.

A token is a tuple of the factors' tokens, and so is a state. Each factor is a process, or several variants of one among
which the tokens of other factors, its parents, choose at each step:

    T[(x1, …, xK)] = ⊗_k T_k^(v_k)[xk],    v_k = the variant for the tokens of the parents of k at this step.

Given the tokens, the factors move by themselves. So a belief that starts as a product of beliefs about the factors
stays one, and nothing needs the joint matrices. Noise, which replaces a share ε of the joint tokens by uniform ones,

    T'[n] = (1-ε) T[n] + ε/V Σ_m T[m],

ties the beliefs together: then the joint belief is moved along one factor's axis after another.

Source: Shai et al. 2026 (arXiv 2602.02385).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, reduce
from typing import Any, Literal, TypedDict

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from msp_lens._checks import Seed, Share, check_memory, checked, converted
from msp_lens._random import resolve_generator
from msp_lens.processes.bayes import normalized
from msp_lens.processes.compose import check_index, check_parts, check_size, part_labels, validated_parts
from msp_lens.processes.factor_tables import FactorTables, Structure, connected, validated_parents
from msp_lens.processes.process import Process
from msp_lens.processes.words import Words

MOST_FACTORS = 17  # Three axes for each, of the 52 that einsum has.


class FactoredFields(TypedDict):
    """What `Factored.to_dict` writes."""

    kind: Literal["factored"]
    name: str
    factors: list[list[dict[str, Any]]]
    parents: list[list[int]]
    noise: float


class Factored(Process, kind="factored"):
    """Several processes in parallel, each free or chosen among variants by the tokens of others: a factored world.

    Tokens are numbered with the first factor's token most significant, and states alike. The joint matrices
    (`transitions`, `emissions`, `state_transitions`, `stationary`) are made only when they are asked for; sampling,
    filtering and entropies go by factor.

    Args:
        factors: Each a process, or a sequence of variants of one: one for each combination of the tokens of its
            parents, in their order, the last parent's token changing fastest. Variants have the same numbers of states
            and tokens; a factor has the names and starts in the initial distribution of its first one.
        parents: For each factor the numbers of those whose tokens, at the same step, choose its variant. Or a
            structure of the literature: "independent" (no parents), "chain" (the factor before), "fully conditional"
            (all factors before), or "conditional transitions" (all other factors). Parents may form a circle only
            where variants do not differ in their emissions P(x | state): otherwise the probabilities of joint tokens
            would not sum to 1.
        noise: ε, the share of joint tokens that are replaced by uniformly random ones.
        name: What the world is called.

    Attributes:
        factors: The first variant of each factor.
        variants: All variants of each.
        parents: The numbers of each factor's parents.
        labels: The names of the factors, numbered if two are alike.

    Raises:
        ValueError: if there are no factors or more than 17, or variants or parents do not fit together.

    Example:
        >>> from msp_lens.processes.catalog import coin, mess3
        >>> calm, wild = mess3(x=0.05, a=0.85), mess3(x=0.15, a=0.6)
        >>> world = Factored([coin(p=0.5), [calm, wild]], parents="chain", name="weather")
        >>> world
        weather(coin(p=0.5) × 2 variants of mess3(x=0.05, a=0.85) given coin): 3 states, 6 tokens
        >>> {label: beliefs.shape for label, beliefs in world.filter_factors(world.sample(5, 8, seed=0)).items()}
        {'coin': torch.Size([5, 8, 1]), 'mess3': torch.Size([5, 8, 3])}
    """

    @checked
    def __init__(
        self,
        factors: Sequence[Process | Sequence[Process]],
        *,
        parents: Structure | Sequence[Sequence[int]] = "independent",
        noise: Share = 0.0,
        name: str = "factored",
    ) -> None:
        self.name, self.noise, self.parameters = name, noise, {}
        variants = [(each,) if isinstance(each, Process) else validated_parts(each, name) for each in factors]
        if not 0 < len(variants) <= MOST_FACTORS:
            raise ValueError(
                f"{name} has {len(variants)} factors: give at least one process, and at most {MOST_FACTORS}."
            )
        self.variants = tuple(variants)
        self.factors = tuple(each[0] for each in variants)
        self.labels = part_labels(self.factors)
        self.is_generalized = any(part.is_generalized for each in variants for part in each)
        self.parents = validated_parents(parents, self.factors, name)
        self._tables = FactorTables(self.variants, self.parents, self.labels, name)

    @property
    def order(self) -> tuple[int, ...]:
        """The factors, each after those on whose tokens its emissions depend."""
        return self._tables.order

    @property
    def emission_parents(self) -> tuple[tuple[int, ...], ...]:
        """For each factor, those of its parents whose tokens change what it emits, not only where it moves."""
        return self._tables.asked

    @property
    def n_tokens(self) -> int:
        """The product of the factors' numbers of tokens."""
        return math.prod(part.n_tokens for part in self.factors)

    @property
    def n_states(self) -> int:
        """The product of the factors' numbers of states."""
        return math.prod(part.n_states for part in self.factors)

    @cached_property
    def states(self) -> tuple[str, ...]:
        """The factors' states, joined by commas."""
        return self._joined_names("states", self.n_states, [part.states for part in self.factors])

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """The factors' tokens, joined by commas."""
        return self._joined_names("tokens", self.n_tokens, [part.tokens for part in self.factors])

    def _joined_names(self, what: str, count: int, names: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
        check_memory(f"The names of the {count:,} {what} of {self.name}", 100 * count, "Use fewer or smaller factors.")
        return tuple(",".join(each) for each in itertools.product(*names))

    @cached_property
    def initial(self) -> Float64[Tensor, "state"]:
        """The product of the factors' initial distributions."""
        return self.join_beliefs([part.initial for part in self.factors])

    @cached_property
    def right_eigenvector(self) -> Float64[Tensor, "state"]:
        """The product of the factors' right eigenvectors."""
        return self.join_beliefs([part.right_eigenvector for part in self.factors])

    @cached_property
    def stationary(self) -> Float64[Tensor, "state"]:
        """The stationary distribution; of independent factors, the product of theirs."""
        if any(self.parents):
            return super().stationary
        return self.join_beliefs([part.stationary for part in self.factors])

    @cached_property
    def transitions(self) -> Float64[Tensor, "token state state"]:
        """The joint matrices; an error if they take more than 1 GiB."""
        check_size(self.name, self.n_tokens, self.n_states)
        joint = self._tables.contracted(["token", "state", "after"]).reshape(-1, self.n_states, self.n_states)
        return self._with_noise(joint, self.state_transitions)

    @cached_property
    def state_transitions(self) -> Float64[Tensor, "state state"]:
        """`P(go to j | in i)`, whatever token is emitted; noise does not change it."""
        check_memory(f"The chain of {self.n_states:,} states", 8 * self.n_states**2, "Use fewer or smaller factors.")
        return self._tables.contracted(["state", "after"]).reshape(self.n_states, self.n_states)

    @cached_property
    def emissions(self) -> Float64[Tensor, "state token"]:
        """`P(emit x | in i)`, or T[x] w."""
        what = f"The emissions of {self.n_states:,} states"
        check_memory(what, 8 * self.n_states * self.n_tokens, "Use fewer or smaller factors.")
        joint = self._tables.joint_emissions().reshape(self.n_states, self.n_tokens)
        return self._with_noise(joint, self.right_eigenvector.unsqueeze(1))

    def _with_noise(self, of_token: Tensor, of_any: Tensor) -> Tensor:
        """(1-ε) of what a token brings, and ε/V of what all of them bring together."""
        return (1 - self.noise) * of_token + self.noise / self.n_tokens * of_any if self.noise else of_token

    def bayes_step(
        self, beliefs: Float64[Tensor, "row state"], tokens: Int[Tensor, "row"]
    ) -> tuple[Float64[Tensor, "row state"], Float64[Tensor, "row"]]:
        """The belief after one token each, and the probability that the belief before gave it, axis by axis."""
        joint = self._tables.moved(beliefs, self._tables.split(tokens))
        if self.noise:
            joint = self._with_noise(joint, self._tables.contracted(["after"], beliefs).flatten(1))
        return normalized(joint, self.right_eigenvector, negligible=self.negligible)

    def bayes_children(
        self, beliefs: Float64[Tensor, "row state"]
    ) -> tuple[Float64[Tensor, "row token state"], Float64[Tensor, "row token"]]:
        """The belief after every token, and the probability of each; NaN and 0 where a token is impossible."""
        joint = self._tables.contracted(["token", "after"], beliefs).reshape(len(beliefs), self.n_tokens, self.n_states)
        if self.noise:
            joint = self._with_noise(joint, joint.sum(dim=1, keepdim=True))
        return normalized(joint, self.right_eigenvector, negligible=self.negligible)

    @checked
    def filter_factors(self, tokens: Words) -> dict[str, Float64[Tensor, "word pos _"]]:
        """The belief about each factor after each token of words, by `labels`: the marginals of the joint beliefs.

        Without noise each factor is filtered alone, given its own tokens and those of its parents, and the joint belief
        is the product of these.

        Raises:
            TypeError: if the tokens are neither numbers nor names.
            ValueError: naming the word and position, if a token is outside the vocabulary or impossible.
        """
        tokens = self.read_words(tokens, what="tokens")
        if self.noise:
            beliefs, steps = self.initial.expand(len(tokens), -1), []
            for token in tokens.T:
                beliefs, _ = self.bayes_step(beliefs, token)
                steps.append(self.parts(beliefs))
            return {label: torch.stack([step[label] for step in steps], dim=1) for label in self.labels}
        found = self._filtered(tokens)
        impossible = torch.stack([(probabilities == 0).any(dim=1) for _, probabilities in found])
        if impossible.any():
            k, word = impossible.nonzero()[0].tolist()
            position = int((found[k][1][word] == 0).nonzero()[0, 0])
            raise ValueError(
                f"Word {word}, {tokens[word].tolist()}, is impossible for {self.name}: at position {position} the "
                f"token of {self.labels[k]} has probability 0. Check that the tokens come from this process."
            )
        return {label: beliefs for label, (beliefs, _) in zip(self.labels, found, strict=True)}

    def word_log_probabilities(self, words: Words) -> Float64[Tensor, "word"]:
        """Each word's log-probability, without underflow: `-inf` if impossible, an error for tokens out of range."""
        if self.noise:
            return super().word_log_probabilities(words)
        found = self._filtered(self.read_words(words))
        return torch.stack([probabilities.log().sum(dim=1) for _, probabilities in found]).sum(dim=0)

    def _filtered(
        self, tokens: Int[Tensor, "word pos"]
    ) -> list[tuple[Float64[Tensor, "word pos _"], Float64[Tensor, "word pos"]]]:
        split, negligible = self._tables.split(tokens), self.negligible
        return [self._tables.filtered(k, split, negligible=negligible) for k in range(len(self.factors))]

    def _draw(self, n_words: int, length: int, generator: torch.Generator) -> Int[Tensor, "word pos"]:
        split = torch.zeros(n_words, length, len(self.factors), dtype=torch.int64, device=generator.device)
        for k, part in enumerate(self.factors):
            if not self.parents[k]:
                split[..., k] = part._draw(n_words, length, generator)
        if dependent := [k for k in self.order if self.parents[k]]:
            self._tables.draw(split, dependent, generator, negligible=self.negligible)
        words = self._tables.joined(split)
        if self.noise:
            options = {"device": words.device, "generator": generator}
            is_replaced = torch.rand(words.shape, dtype=torch.float64, **options) < self.noise
            words = torch.where(is_replaced, torch.randint(self.n_tokens, words.shape, **options), words)
        return words

    @checked
    def redraw(
        self, tokens: Words, factor: int, *, seed: Seed | None = None, generator: torch.Generator | None = None
    ) -> Int[Tensor, "word pos"]:
        """The words with one factor's tokens drawn anew, given those of its parents; all others' are kept.

        This is an intervention: the factor's children keep the tokens that they had, and choose by the new ones how
        they move on. If they may not emit the kept tokens then, the word is impossible, and filtering refuses it.

        Args:
            tokens: The words, `[word, pos]`.
            factor: The number of the factor.
            seed: Seed of a fresh CPU generator; give this or `generator`.
            generator: Source of the randomness; drawing advances it.

        Raises:
            ValueError: if there is no such factor, a token is outside the vocabulary, or the world is noisy, so that
                the tokens that a factor emitted are unknown.
        """
        check_index(factor, len(self.factors), f"{self.name} has factors")
        if self.noise:
            raise ValueError(
                f"{self.name} has noise={self.noise:g}: which tokens its factors emitted is unknown, so that none can "
                "be drawn anew given the others. Use a world without noise."
            )
        words, generator = self.read_words(tokens, what="tokens"), resolve_generator(seed, generator)
        split = self._tables.split(words).to(generator.device)
        self._tables.draw(split, [factor], generator, negligible=self.negligible)
        return self._tables.joined(split)

    @checked
    def factor_beliefs(
        self, beliefs: Float[Tensor, "*batch state"], factor: int
    ) -> Float[Tensor, "*batch factor_state"]:
        """The marginal belief about one factor; without noise, what filtering that factor alone gives."""
        check_index(factor, len(self.factors), f"{self.name} has factors")
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

    def join_parts(self, parts: Mapping[str, Float[Tensor, "*batch _"]]) -> Float[Tensor, "*batch state"]:
        """The joint belief of independent beliefs about the factors, by `labels`."""
        check_parts(parts, self.labels, self.name)
        return self.join_beliefs([parts[label] for label in self.labels])

    def join_beliefs(self, beliefs: Sequence[Float[Tensor, "*batch _"]]) -> Float[Tensor, "*batch state"]:
        """The joint belief of independent beliefs about each factor, in their order: their outer product."""
        return reduce(lambda one, two: (one.unsqueeze(-1) * two.unsqueeze(-2)).flatten(-2), beliefs)

    @checked
    def token_marginals(self, probabilities: Float[Tensor, "*batch token"]) -> dict[str, Float[Tensor, "*batch _"]]:
        """What a distribution over joint tokens says of each factor's token, by `labels`."""
        if probabilities.shape[-1] != self.n_tokens:
            raise ValueError(
                f"probabilities has shape {tuple(probabilities.shape)}, but {self.name} has {self.n_tokens} tokens: "
                "give [..., token]."
            )
        split = probabilities.unflatten(-1, [part.n_tokens for part in self.factors])
        axes = range(-len(self.factors), 0)
        return {
            label: split.sum(dim=[other for other in axes if other != axis]) if len(axes) > 1 else split
            for label, axis in zip(self.labels, axes, strict=True)
        }

    @checked
    def factor_predictions(
        self, beliefs: Mapping[str, Float64[Tensor, "*batch _"]]
    ) -> dict[str, Float64[Tensor, "*batch _"]]:
        """The distribution over each factor's next token, by `labels`, given independent beliefs about the factors.

        Args:
            beliefs: The belief about each factor, as `filter_factors` gives them.

        Raises:
            KeyError: if a factor has no beliefs.
            ValueError: if there is noise while factors depend on each other, for then the joint belief is needed:
                `token_marginals(next_token_probabilities(world, beliefs))`.
        """
        if self.noise and any(self.parents):
            raise ValueError(
                f"{self.name} has noise={self.noise:g}, which ties its factors' beliefs together: use "
                "token_marginals(next_token_probabilities(world, beliefs)) of the joint beliefs."
            )
        if missing := [label for label in self.labels if label not in beliefs]:
            raise KeyError(f"beliefs has none about {missing[0]!r}: give those about {', '.join(self.labels)}.")
        batch = beliefs[self.labels[0]].shape[:-1]
        found = self._tables.predictions([beliefs[label].flatten(0, -2) for label in self.labels])
        found = [(1 - self.noise) * each + self.noise / each.shape[1] for each in found]
        return {label: each.reshape(*batch, -1) for label, each in zip(self.labels, found, strict=True)}

    @checked
    def split_tokens(self, tokens: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch factor"]:
        """Each token as one token for each factor; an error for a token outside the vocabulary."""
        outside = tokens[(tokens < 0) | (tokens >= self.n_tokens)]
        if len(outside):
            raise ValueError(f"Token {int(outside[0])}: the {self.n_tokens} tokens of {self.name} start at 0.")
        return self._tables.split(tokens)

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
        return self._tables.joined(tokens)

    def closed_part(self, members: Iterable[int]) -> Process:
        """The world of some factors alone, which must include all their parents; one factor is that process itself."""
        kept = sorted(members)
        if len(kept) == 1:
            return self.factors[kept[0]]
        parents = [[kept.index(parent) for parent in self.parents[k]] for k in kept]
        return Factored([self.variants[k] for k in kept], parents=parents, name=self.name)

    @cached_property
    def independent_parts(self) -> tuple[Process, ...]:
        """The smallest worlds of which this one is made independently; itself if its factors all hang together."""
        groups = connected(self.parents)
        if self.noise or len(groups) == 1:
            return (self,) if self.noise or len(self.factors) > 1 else self.factors
        return tuple(self.closed_part(group) for group in groups)

    def to_dict(self) -> dict:
        """The factors' variants, their parents and the noise, as JSON-ready values."""
        factors = [[part.to_dict() for part in each] for each in self.variants]
        parents = [list(each) for each in self.parents]
        return {"kind": "factored", "name": self.name, "factors": factors, "parents": parents, "noise": self.noise}

    @classmethod
    def _from_parts(cls, definition: Mapping) -> Factored:
        fields = converted(definition, FactoredFields, "definition")
        factors = [[Process._rebuilt(part) for part in each] for each in fields["factors"]]
        return cls(factors, parents=fields["parents"], noise=fields["noise"], name=fields["name"])

    def _identity(self) -> dict[str, Any]:
        factors = [[part.fingerprint for part in each] for each in self.variants]
        return {"factors": factors, "parents": [list(each) for each in self.parents], "noise": self.noise}

    @property
    def title(self) -> str:
        """The factors, each with those that it depends on."""
        shown = []
        for variants, parents in zip(self.variants, self.parents, strict=True):
            one = variants[0].title
            given = f" given {', '.join(self.labels[parent] for parent in parents)}"
            shown.append(f"{len(variants)} variants of {one}{given}" if parents else one)
        return f"{self.name}({' × '.join(shown)}{f', noise={self.noise:g}' if self.noise else ''})"


@checked
def product(processes: Sequence[Process], *, name: str = "product") -> Factored:
    """Several processes in parallel, independently: the simplest factored world.

    Raises:
        ValueError: if there are no processes, or too many.

    Example:
        >>> from msp_lens.processes.catalog import golden_mean, z1r
        >>> both = product([z1r(p=0.5), golden_mean(p=0.5)])
        >>> both.tokens
        ('0,0', '0,1', '1,0', '1,1')
        >>> both.factor_beliefs(both.initial, 1)
        tensor([0.6667, 0.3333], dtype=torch.float64)
    """
    return Factored(processes, name=name)
