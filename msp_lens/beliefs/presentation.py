"""The mixed-state presentation: the beliefs that an optimal observer can hold, and how tokens move it between them.

Its states are the mixed states, its edges b → b T[x] / (b T[x] 1) with probability b T[x] 1. It generates the words of
the process, but is unifilar. The observer passes transient states only while synchronizing, and keeps returning to
recurrent ones. Often there are infinitely many.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float64, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree
from torch import Tensor

from msp_lens._checks import Above, Below, Count, check_memory, checked
from msp_lens._values import Value
from msp_lens.beliefs.mixed_states import MERGE_TOLERANCE, by_first_appearance, equal_beliefs
from msp_lens.figures.placement import subscript
from msp_lens.processes.process import Process

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.style import ThemeName

# Beliefs reached again along another path differ only by this much; larger differences were merged by the tolerance.
ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Presentation(Value):
    """The mixed-state presentation as a graph.

    Attributes:
        process: The process it presents.
        beliefs: The mixed states, in the order in which ever longer words reach them; the first is the start.
        words: A shortest word that leads to each.
        sources: The state at which each edge starts.
        tokens: The token it emits.
        targets: The state to which it leads.
        probabilities: Its probability, given its source.
        is_expanded: Whether a state's edges were computed, before `max_states` was reached.
        tolerance: Beliefs closer than this in every coordinate are one state.
        merge_error: The largest distance between a belief and the state that represents it.
    """

    process: Process
    beliefs: Float64[Tensor, "mixed_state state"]
    words: tuple[tuple[int, ...], ...]
    sources: Int[Tensor, "edge"]
    tokens: Int[Tensor, "edge"]
    targets: Int[Tensor, "edge"]
    probabilities: Float64[Tensor, "edge"]
    is_expanded: Bool[Tensor, "mixed_state"]
    tolerance: float
    merge_error: float

    def __len__(self) -> int:
        return len(self.beliefs)

    @property
    def is_complete(self) -> bool:
        """Whether the edges of every state are known, exactly or within the tolerance."""
        return bool(self.is_expanded.all())

    @property
    def is_finite(self) -> bool:
        """Whether these are all the mixed states, with none merged except by rounding."""
        return self.is_complete and self.merge_error <= ROUNDING

    @property
    def count(self) -> str:
        """How many mixed states there are, as tables say it: their number, or that there are more than these."""
        return f"{len(self):,}" if self.is_finite else f"> {len(self):,}"

    @cached_property
    def recurrent_class(self) -> Int[Tensor, "mixed_state"]:
        """The closed class of each state, from 0; -1 for transient states and classes not expanded in full."""
        ones = np.ones(len(self.sources))
        edges = coo_array((ones, (self.sources.numpy(), self.targets.numpy())), shape=(len(self), len(self)))
        n_classes, label = connected_components(edges, directed=True, connection="strong")
        leaves = np.zeros(n_classes, dtype=bool)
        leaves[label[self.sources][label[self.sources] != label[self.targets]]] = True
        leaves[label[~self.is_expanded.numpy()]] = True
        numbers = np.where(leaves, -1, (~leaves).cumsum() - 1)
        return torch.from_numpy(numbers[label])

    @property
    def is_recurrent(self) -> Bool[Tensor, "mixed_state"]:
        """Which states are recurrent: those in a class that no edge leaves."""
        return self.recurrent_class >= 0

    @property
    def labels(self) -> tuple[str, ...]:
        """η with the shortest word as its index, as in η, η₁, η₁₀."""
        separator = "" if self.process.n_tokens <= 10 else ","
        return tuple("η" + separator.join(map(subscript, word)) for word in self.words)

    def to_process(self) -> Process:
        """The presentation, which must be complete, as a process: the same word probabilities, but unifilar."""
        if not self.is_complete:
            raise ValueError(
                f"The first {len(self):,} mixed states of {self.process.name} lead to further ones, so their graph is "
                "not a process: raise max_states, or raise tolerance to merge nearby beliefs."
            )
        what = f"{self.process.n_tokens} matrices of {len(self):,} × {len(self):,} mixed states"
        check_memory(what, 8 * self.process.n_tokens * len(self) ** 2, "Raise tolerance to merge more of them.")
        transitions = torch.zeros(self.process.n_tokens, len(self), len(self), dtype=torch.float64)
        transitions[self.tokens, self.sources, self.targets] = self.probabilities
        name, initial = f"mixed states of {self.process.name}", [1.0] + [0.0] * (len(self) - 1)
        return Process(transitions, name=name, states=self.labels, tokens=self.process.tokens, initial=initial)

    def plot(self, *, title: str | None = None, theme: ThemeName = "light") -> Figure:
        """The graph of at most 100 states, from the start on the left to the recurrent ones, which are drawn bold."""
        from msp_lens.figures.graphs import plot_presentation

        return plot_presentation(
            self.labels,
            self.sources.numpy(),
            self.targets.numpy(),
            [self.process.tokens[token] for token in self.tokens.tolist()],
            self.probabilities.numpy(),
            depths=[len(word) for word in self.words],
            classes=self.recurrent_class.tolist(),
            is_expanded=self.is_expanded.tolist(),
            title=f"Mixed states of {self.process.name}" if title is None else title,
            theme=theme,
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each edge: from, token, to, probability."""
        labels, tokens = np.array(self.labels), np.array(self.process.tokens)
        columns = {"from": labels[self.sources], "token": tokens[self.tokens], "to": labels[self.targets]}
        return pd.DataFrame({**columns, "probability": self.probabilities.numpy()})

    def states_dataframe(self) -> pd.DataFrame:
        """One row for each mixed state: whether it is recurrent, and the belief state by state."""
        table = pd.DataFrame({"recurrent": self.is_recurrent.numpy()}, index=pd.Index(self.labels, name="mixed state"))
        columns = [f"P({name})" for name in self.process.states]
        return table.join(pd.DataFrame(self.beliefs.numpy(), columns=columns, index=table.index))

    @property
    def description(self) -> str:
        """How many mixed states there are, in words."""
        count, recurrent = len(self), int(self.is_recurrent.sum())
        if self.is_finite:
            return f"{count:,} mixed state{'s' * (count > 1)}, {recurrent:,} of them recurrent"
        if self.is_complete:
            return (
                f"{count:,} state{'s' * (count > 1)}, {recurrent:,} of them recurrent, represent more mixed states to "
                f"within {self.merge_error:.1g}, perhaps infinitely many"
            )
        return f"more than {count:,} mixed states, perhaps infinitely many"

    def __repr__(self) -> str:
        return f"Presentation({self.process.name}: {self.description})"


@checked
def presentation(
    process: Process, *, tolerance: Annotated[float, Above(0), Below(1)] = MERGE_TOLERANCE, max_states: Count = 2_000
) -> Presentation:
    """The mixed-state presentation, expanded from the prior until no new belief appears.

    Args:
        process: The process to present.
        tolerance: Beliefs that differ by no more in any coordinate are one state; where there are infinitely many, a
            coarse tolerance gives a finite graph.
        max_states: States are expanded, shortest words first, until there are more than this many.

    Source: Shai et al. 2024 (arXiv 2405.15943), section 2; Crutchfield, Ellison & Riechers 2016 ("Exact complexity").

    Example:
        >>> from msp_lens.processes.catalog import rrxor, z1r
        >>> presentation(rrxor())
        Presentation(rrxor: 36 mixed states, 5 of them recurrent)
        >>> presentation(z1r()).labels
        ('η', 'η₀', 'η₁', 'η₀₀', 'η₀₁', 'η₁₀', 'η₁₁')
    """
    beliefs = process.initial.unsqueeze(0)
    words: list[tuple[int, ...]] = [()]
    edges: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    merge_error, n_expanded = 0.0, 0
    while n_expanded < len(beliefs) <= max_states:
        children, conditional = process.bayes_children(beliefs[n_expanded:])
        parents, tokens = conditional.nonzero(as_tuple=True)
        reached, probabilities = children[parents, tokens], conditional[parents, tokens]
        parents, n_expanded = parents + n_expanded, len(beliefs)
        targets, first = _place(beliefs, reached, tolerance)
        words += [(*words[int(parents[k])], int(tokens[k])) for k in first]
        beliefs = torch.cat([beliefs, reached[first]])
        merge_error = max(merge_error, float((reached - beliefs[targets]).abs().max()))
        edges.append((parents, tokens, targets, probabilities))
    sources, tokens, targets, probabilities = (torch.cat(parts) for parts in zip(*edges, strict=True))
    graph = (sources, tokens, targets, probabilities, torch.arange(len(beliefs)) < n_expanded)
    return Presentation(process, beliefs, tuple(words), *graph, tolerance, merge_error)


def _place(
    known: Float64[Tensor, "known state"], reached: Float64[Tensor, "node state"], tolerance: float
) -> tuple[Int[Tensor, "node"], Int[Tensor, "new"]]:
    """The state of each reached belief, new states numbered after known ones, and the first belief of each new one."""
    distances, nearest = KDTree(known.numpy()).query(reached.numpy(), p=np.inf)
    targets = torch.from_numpy(np.asarray(nearest, dtype=np.int64))
    is_new = torch.from_numpy(distances > tolerance)
    new = reached[is_new]
    # A coarse tolerance must not chain; two beliefs in one cell of a grid are never further apart than its width.
    is_fine = tolerance <= MERGE_TOLERANCE
    labels, first = equal_beliefs(new, tolerance) if is_fine else by_first_appearance(np.floor(new.numpy() / tolerance))
    targets[is_new] = labels + len(known)
    return targets, is_new.nonzero().squeeze(1)[first]
