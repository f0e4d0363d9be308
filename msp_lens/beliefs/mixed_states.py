"""The tree of mixed states: the beliefs that the words of each length lead to.

A node is a possible word; its children are that word followed by each possible next token:

    P(w x) = P(w) · (b T[x] 1),    b' = b T[x] / (b T[x] 1).

Words of one length that lead to the same belief can be merged into one node of their summed probability: no
expectation over beliefs changes, and a tree that grows exponentially often becomes a band of constant width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens._checks import AtLeast, Below, Count, Positive, checked
from msp_lens._values import Value
from msp_lens.processes.process import Process

# Two beliefs this close in every coordinate are one: far above rounding, far below any distance that matters.
MERGE_TOLERANCE = 1e-10

Depth = Annotated[int, AtLeast(0, "the length of the longest words")]
LeastProbability = Annotated[float, AtLeast(0), Below(1)]


@dataclass(frozen=True, eq=False)
class Level(Value):
    """The nodes of one word length: one for each word, in lexicographic order, or if merged one for each belief.

    Attributes:
        beliefs: The belief after each node's words.
        log_probabilities: Natural logarithm of the probability of its words; the probabilities sum to 1 - `dropped`.
        parents: Index, in the level above, of the node of one of its words without the last token.
        tokens: That word's last token.
        dropped: Total probability of the words left out, at this level or above, because they are too rare.
    """

    beliefs: Float64[Tensor, "node state"]
    log_probabilities: Float64[Tensor, "node"]
    parents: Int[Tensor, "node"]
    tokens: Int[Tensor, "node"]
    dropped: float = 0.0

    @property
    def probabilities(self) -> Float64[Tensor, "node"]:
        """The probability of each node's words."""
        return self.log_probabilities.exp()

    def __len__(self) -> int:
        return len(self.tokens)


@checked
def walk_levels(
    process: Process, depth: Depth, *, tolerance: Positive | None = None, min_probability: LeastProbability = 0.0
) -> Iterator[Level]:
    """The levels of the tree for word lengths 1 to `depth`, each made from the one above.

    Args:
        process: The process that emits the words.
        depth: Length of the longest words.
        tolerance: Beliefs of a level that differ by no more in any coordinate become one node; `None` merges none.
        min_probability: Nodes less probable than this are left out, and their probability is reported as `dropped`.

    Example:
        >>> from msp_lens.processes.catalog import golden_mean
        >>> [len(level) for level in walk_levels(golden_mean(p=0.5), 5)]   # Fibonacci numbers
        [2, 3, 5, 8, 13]
        >>> [len(level) for level in walk_levels(golden_mean(p=0.5), 5, tolerance=1e-10)]
        [2, 2, 2, 2, 2]
    """
    root = process.initial.unsqueeze(0)
    return grow(process, root, torch.zeros(1, dtype=torch.float64), depth, tolerance, min_probability)


def grow(
    process: Process,
    roots: Float64[Tensor, "root state"],
    log_probabilities: Float64[Tensor, "root"],
    depth: int,
    tolerance: float | None,
    min_probability: float = 0.0,
    max_level: float = math.inf,
) -> Iterator[Level]:
    """`walk_levels` from any beliefs, each with its probability; ends before a level could exceed `max_level` nodes."""
    none = torch.zeros(len(roots), dtype=torch.int64)
    level = Level(roots, log_probabilities, none, none)
    for _ in range(depth):
        if len(level) * process.n_tokens > max_level:
            return
        children, conditional = process.bayes_children(level.beliefs)
        parents, tokens = conditional.nonzero(as_tuple=True)
        log_probabilities = level.log_probabilities[parents] + conditional[parents, tokens].log()
        level = Level(children[parents, tokens], log_probabilities, parents, tokens, level.dropped)
        if tolerance is not None:
            level = _merged(level, tolerance)
        if min_probability > 0:
            kept = level.log_probabilities >= math.log(min_probability)
            dropped = level.dropped + float(level.log_probabilities[~kept].exp().sum())
            above = (level.parents[kept], level.tokens[kept])
            level = Level(level.beliefs[kept], level.log_probabilities[kept], *above, dropped)
        yield level


def _merged(level: Level, tolerance: float) -> Level:
    labels, first = equal_beliefs(level.beliefs, tolerance)
    if len(first) == len(level):
        return level
    # Each sum is taken relative to its largest term, so that words as rare as e^-1000 still count.
    lowest = torch.full((len(first),), -torch.inf, dtype=torch.float64)
    largest = lowest.scatter_reduce(0, labels, level.log_probabilities, "amax")
    sums = torch.zeros_like(largest).index_add_(0, labels, (level.log_probabilities - largest[labels]).exp())
    return Level(level.beliefs[first], largest + sums.log(), level.parents[first], level.tokens[first], level.dropped)


def equal_beliefs(
    beliefs: Float64[Tensor, "node state"], tolerance: float
) -> tuple[Int[Tensor, "node"], Int[Tensor, "distinct"]]:
    """Number the beliefs so that equal ones share a number, in order of first appearance.

    Sorted along a generic direction, equal beliefs are neighbors. The sequence is cut wherever neighbors differ by more
    than the tolerance, and each piece again along every coordinate, so no grid line can separate equal beliefs. A chain
    of beliefs, each within the tolerance of the next, stays one piece: the tolerance should be far below the distances
    between different beliefs.

    Returns:
        The number of each belief, and the index of the first belief of each number.
    """
    values = beliefs.numpy()
    # Random numbers are in no simple ratio, as coordinates of special beliefs often are.
    generic = np.random.default_rng(0).uniform(1, 2, values.shape[1])
    generic /= np.abs(generic).sum()
    pieces = np.zeros(len(values), dtype=np.int64)
    for column in (values @ generic, *values.T):
        order = np.lexsort((column, pieces))
        is_cut = (np.diff(pieces[order]) != 0) | (np.diff(column[order]) > tolerance)
        pieces[order] = np.concatenate([[0], np.cumsum(is_cut)])
        if pieces.max(initial=-1) == len(pieces) - 1:
            break
    return by_first_appearance(pieces)


def by_first_appearance(labels: np.ndarray) -> tuple[Int[Tensor, "node"], Int[Tensor, "distinct"]]:
    """Renumber labels 0, 1, … in the order in which they first occur, and give the index of each first occurrence."""
    _, first, labels = np.unique(labels, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return torch.from_numpy(np.argsort(order)[labels.reshape(-1)]), torch.from_numpy(first[order])


@dataclass(frozen=True, eq=False)
class MixedStates(Value):
    """The tree of mixed states down to some depth, level by level from the root.

    Attributes:
        process: The process that emits the words.
        beliefs: The belief at each node.
        levels: Length of the node's words; 0 for the root.
        log_probabilities: Natural logarithm of the probability of its words, among all words of their length.
        parents: Index of the node of one of its words without the last token; -1 for the root.
        tokens: That word's last token; -1 for the root.
        dropped: Total probability of the words left out of each level because they are too rare.
        tolerance: Beliefs of a level closer than this were merged; `None` if none were.
    """

    process: Process
    beliefs: Float64[Tensor, "node state"]
    levels: Int[Tensor, "node"]
    log_probabilities: Float64[Tensor, "node"]
    parents: Int[Tensor, "node"]
    tokens: Int[Tensor, "node"]
    dropped: Float64[Tensor, "level"]
    tolerance: float | None

    def __len__(self) -> int:
        return len(self.levels)

    @property
    def depth(self) -> int:
        """Length of the longest words."""
        return len(self.dropped) - 1

    def word(self, node: int) -> tuple[int, ...]:
        """A word that leads to the node."""
        tokens = []
        while self.parents[node] >= 0:
            tokens.append(int(self.tokens[node]))
            node = int(self.parents[node])
        return tuple(reversed(tokens))

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each node: level, token, parent, probability, and the belief state by state."""
        columns = {"level": self.levels, "token": self.tokens, "parent": self.parents}
        columns["probability"] = self.log_probabilities.exp()
        table = pd.DataFrame({name: values.numpy() for name, values in columns.items()})
        return table.join(pd.DataFrame(self.beliefs.numpy(), columns=[f"P({name})" for name in self.process.states]))

    def __repr__(self) -> str:
        merged = f"merged within {self.tolerance:g}" if self.tolerance is not None else "none merged"
        dropped = f", {self.dropped[-1]:.2g} of the probability dropped" if self.dropped[-1] > 0 else ""
        return f"MixedStates({self.process.name} to depth {self.depth}: {len(self):,} nodes, {merged}{dropped})"


@checked
def mixed_states(
    process: Process,
    depth: Depth,
    *,
    tolerance: Positive | None = MERGE_TOLERANCE,
    min_probability: LeastProbability = 0.0,
    max_nodes: Count = 5_000_000,
) -> MixedStates:
    """The mixed states that the words of up to `depth` tokens lead to, level by level, equal ones merged.

    Args:
        process: The process that emits the words.
        depth: Length of the longest words.
        tolerance: Beliefs of a level that differ by no more in any coordinate become one node; `None` merges none.
        min_probability: Nodes less probable than this are left out.
        max_nodes: The largest tree allowed; a larger one is an error.

    Example:
        >>> from msp_lens.processes.catalog import rrxor
        >>> mixed_states(rrxor(), 100)
        MixedStates(rrxor to depth 100: 1,659 nodes, merged within 1e-10)
    """
    no_node = torch.full((1,), -1)
    root = Level(process.initial.unsqueeze(0), torch.zeros(1, dtype=torch.float64), no_node, no_node)
    levels, starts = [root], [0, 1]
    for level in walk_levels(process, depth, tolerance=tolerance, min_probability=min_probability):
        levels.append(level)
        starts.append(starts[-1] + len(level))
        if starts[-1] > max_nodes:
            raise ValueError(
                f"The mixed states of {process.name} number more than {max_nodes:,} within depth {len(levels) - 1}: "
                "lower depth, leave out rare words with min_probability, or raise max_nodes."
            )
    parents = [level.parents + above for level, above in zip(levels[1:], starts, strict=False)]
    return MixedStates(
        process=process,
        beliefs=torch.cat([level.beliefs for level in levels]),
        levels=torch.cat([torch.full((len(level),), k) for k, level in enumerate(levels)]),
        log_probabilities=torch.cat([level.log_probabilities for level in levels]),
        parents=torch.cat([no_node, *parents]),
        tokens=torch.cat([level.tokens for level in levels]),
        dropped=torch.tensor([level.dropped for level in levels], dtype=torch.float64),
        tolerance=tolerance,
    )
