"""The parts of a belief, which are read in the same pass as the whole, and its rivals.

A product's parts are the beliefs about its factors; a mixture's are which component it is, and the belief within each
component. Where a component is ruled out there is no belief within it: those prefixes do not count for that part.

The rivals are next-token probabilities and constrained beliefs, which one attention layer can compute. A part that is a
linear function of the belief, as a factor's marginal is, has constrained beliefs of its own: the same function of the
whole's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from msp_lens.beliefs.information import optimal_losses
from msp_lens.data import BeliefDataset
from msp_lens.data.labelled import BELIEF
from msp_lens.moments.moments import Moments
from msp_lens.moments.scores import score
from msp_lens.moments.solve import least_squares
from msp_lens.probing.cross_validation import CONSTRAINED, NEXT_TOKEN, Target
from msp_lens.processes.compose import Mixture, WithBos, with_bos
from msp_lens.processes.factored import Factored
from msp_lens.processes.process import Process


@dataclass(frozen=True)
class Part:
    """Something to read beside the whole belief.

    Attributes:
        name: What it is called in a report.
        target: Its blocks in the moments.
        states: The names of its entries, if they have any.
    """

    name: str
    target: Target = field(default_factory=Target)
    states: tuple[str, ...] = ()

    @classmethod
    def named(cls, name: str, states: tuple[str, ...] = ()) -> Part:
        """A part of a belief; its blocks are named so that they are mistaken for no other."""
        rivals: Any = ((NEXT_TOKEN, NEXT_TOKEN), (CONSTRAINED, f"{CONSTRAINED}: {name}"))
        return cls(name, Target(f"{BELIEF}: {name}", f"shuffled {BELIEF}: {name}", rivals), states)

    @property
    def constrained(self) -> str:
        """The block of its constrained beliefs."""
        return dict(self.target.rivals)[CONSTRAINED]

    @property
    def title(self) -> str:
        """What it is called among the controls of the others. Only parts of beliefs have rivals."""
        return f"belief about {self.name}" if self.target.rivals else self.name

    def description(self) -> dict[str, Any]:
        """What a report's provenance says of it."""
        return {} if self.target == Target() else {"part": self.name, "part_states": list(self.states) or None}


def process_parts(process: Process) -> list[Part]:
    """The parts of a process that may vary."""
    widths = {name: values.shape[-1] for name, values in process.parts(process.initial).items()}
    names = _state_names(process)
    return [Part.named(name, names.get(name, ())) for name, width in widths.items() if width > 1]


def _state_names(process: Process) -> dict[str, tuple[str, ...]]:
    if isinstance(process, Mixture):
        within = {label: part.states for label, part in zip(process.labels, process.components, strict=True)}
        return {"component": process.labels} | within
    if isinstance(process, WithBos):
        return _state_names(process.process)
    if isinstance(process, Factored):
        return {label: part.states for label, part in zip(process.labels, process.factors, strict=True)}
    return {}


def part_tokens(process: Process, name: str, tokens: Int[Tensor, "word pos"]) -> tuple[Int[Tensor, "word pos"], int]:
    """The tokens that the belief about a part depends on, as one token each, and the size of their alphabet.

    Without noise these are a factor's own and its parents'; of other parts, all. A window of them is a stricter control
    than one of joint tokens, as it has fewer categories to fill.
    """
    if isinstance(process, WithBos):
        is_bos = tokens == process.n_tokens - 1
        own, n_tokens = part_tokens(process.process, name, torch.where(is_bos, 0, tokens))
        return torch.where(is_bos, n_tokens, own), n_tokens + 1
    if not isinstance(process, Factored) or process.noise:
        return tokens, process.n_tokens
    factor = process.labels.index(name)
    split, own, n_tokens = process.split_tokens(tokens), torch.zeros_like(tokens), 1
    for member in sorted({factor, *process.parents[factor]}):
        size = process.factors[member].n_tokens
        own, n_tokens = own * size + split[..., member], n_tokens * size
    return own, n_tokens


def undefined_rows(values: Float64[Tensor, "*prefix part_state"]) -> Bool[Tensor, "*prefix"]:
    """Where there is no belief: a distribution is never 0 everywhere."""
    return (values == 0).all(dim=-1)


def shuffled_values(
    values: Float64[Tensor, "prefix target"], *, generator: torch.Generator
) -> Float64[Tensor, "prefix target"]:
    """The values of a part, dealt anew to the prefixes where it has one."""
    places, dealt = (~undefined_rows(values)).nonzero().flatten(), values.clone()
    dealt[places] = values[places[torch.randperm(len(places), generator=generator)]]
    return dealt


def constrained_parts(
    process: Process, beliefs: Float64[Tensor, "prefix state"], constrained: Float64[Tensor, "*batch state"]
) -> dict[str, Float64[Tensor, "*batch part_state"]]:
    """The constrained beliefs of those parts that are a linear function of the whole belief."""
    some = beliefs[: min(64, len(beliefs))]
    ends, middle = process.parts(some), process.parts((some + some.flip(0)) / 2)
    linear = [name for name, at in ends.items() if torch.allclose(middle[name], (at + at.flip(0)) / 2, atol=1e-9)]
    found = process.parts(constrained)
    return {name: found[name] for name in linear}


def differs(
    beliefs: Float64[Tensor, "prefix state"],
    rival: Float64[Tensor, "prefix state"],
    weights: Float64[Tensor, "prefix"],
) -> bool:
    """Whether the belief is no affine function of the rival, so that the two can be told apart."""
    moments = Moments({BELIEF: beliefs.shape[1], CONSTRAINED: rival.shape[1]})
    moments.update(torch.cat([beliefs, rival], dim=1), weights)
    # A smaller difference is rounding, and would not be seen in a network.
    return score(least_squares(moments, CONSTRAINED, BELIEF), moments, CONSTRAINED, BELIEF).r2 < 1 - 1e-6


def part_values(
    provenance: Mapping[str, Any], dataset: BeliefDataset
) -> tuple[Float64[Tensor, "prefix part_state"], Bool[Tensor, "prefix"]]:
    """The true beliefs that a probe or a report is about, by prefix, and where there are any."""
    name = provenance.get("part")
    if name is None:
        return dataset.prefix_beliefs, torch.ones(dataset.n_prefixes, dtype=torch.bool)
    if name not in dataset.prefix_parts:
        raise ValueError(
            f"This is of {name!r}, no part of the beliefs of {dataset.process!r}: use that process's words."
        )
    values = dataset.prefix_parts[name]
    return values, ~undefined_rows(values)


def cost_of_not_knowing(process: Process, n_ctx: int) -> Float64[Tensor, "pos"] | None:
    """What not knowing the component costs the optimal observer of a mixture at each position, in nats.

    h_ℓ of the mixture less Σ_k w_k h_ℓ of component k, for ℓ = 2 … n_ctx + 1; `None` for other processes.
    """
    has_bos = isinstance(process, WithBos)
    mixed = process.process if has_bos else process
    if not isinstance(mixed, Mixture):
        return None
    components = [with_bos(each) if has_bos else each for each in mixed.components]
    known = zip(mixed.weights.tolist(), components, strict=True)
    return optimal_losses(process, n_ctx) - sum(weight * optimal_losses(each, n_ctx) for weight, each in known)
