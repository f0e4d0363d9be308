"""Targets: the beliefs to write in place of those that the words lead to.

Each maker takes the process, the words (which end at the edited position) and a generator, and returns `Targets`. The
best target is a belief that the network could have held: that of another word, or of a counterfactual one. A belief to
which no word leads asks for more: that the network treats the simplex as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens._checks import Count, Seed, checked
from msp_lens._names import meant
from msp_lens._values import Value
from msp_lens.beliefs.filtering import filter_beliefs
from msp_lens.beliefs.trajectories import draw_tokens
from msp_lens.data import BeliefDataset
from msp_lens.data import words as words_of
from msp_lens.data.belief_dataset import default_count
from msp_lens.interventions.preparation import from_menu
from msp_lens.processes.process import Process, validated_distribution


@dataclass(frozen=True, eq=False)
class Targets(Value):
    """Beliefs to write, for those of the given words that have a target.

    Attributes:
        words: Indices of the words that have one.
        beliefs: The target of each.
        donors: For each, a word of the same length that leads to the target or, failing that, to the nearest belief.
    """

    words: Int[Tensor, "target"]
    beliefs: Float64[Tensor, "target state"]
    donors: Int[Tensor, "target pos"]


TargetMaker: TypeAlias = Callable[[Process, Tensor, torch.Generator], Targets]
Words: TypeAlias = Int[Tensor, "word pos"]


@checked
def another_word(process: Process, words: Words, generator: torch.Generator) -> Targets:
    """The belief after another word, drawn from the process."""
    donors = process.sample(*words.shape, generator=generator).cpu()
    return Targets(torch.arange(len(words)), filter_beliefs(process, donors)[:, -1], donors)


@checked
def another_part(process: Process, words: Words, generator: torch.Generator, *, part: str = "component") -> Targets:
    """The belief with one part of it, such as which component it is, exchanged for that of another word.

    The parts are those of `process.parts`. A component that one of the words rules out has no belief within: the other
    word's is taken.

    Raises:
        KeyError: if the process has no such part.
        ValueError: if the parts do not determine the belief, as in a noisy factored world.
    """
    others = process.sample(*words.shape, generator=generator).cpu()
    actual, other = (filter_beliefs(process, each)[:, -1] for each in (words.cpu(), others))
    held, new = process.parts(actual), process.parts(other)
    if part not in held:
        there_are = ", ".join(held) or "none"
        raise KeyError(f"{process!r} has no part {part!r}; its parts are {there_are}.{meant(part, held)}")
    if not torch.allclose(process.join_parts(held), actual, rtol=0, atol=1e-9):
        raise ValueError(f"{process!r}: beliefs about its parts hang together, so that none can be exchanged alone.")
    for name in held:
        # What one of the words rules out is taken from the other; ruled out by both, it has no weight.
        is_undefined, is_missing = ((each[name] == 0).all(dim=-1, keepdim=True) for each in (held, new))
        held[name], new[name] = (
            torch.where(is_undefined, new[name], held[name]),
            torch.where(is_missing, held[name], new[name]),
        )
    return _with_nearest_donors(process, words, process.join_parts({**held, part: new[part]}))


@checked
def counterfactual(process: Process, words: Words, generator: torch.Generator, *, back: Count = 1) -> Targets:
    """The belief if the last token (or the `back`-th from the end) had been another, the rest of the word unchanged.

    The other token is drawn by its probability, given that the changed word is possible. A word that has no possible
    change has no target. `ValueError` if the words are shorter than `back`, or none can be changed.
    """
    if not 1 <= back <= words.shape[1]:
        raise ValueError(f"back={back}: give 1 (the last token) to {words.shape[1]} (the first of these words).")
    changed = words.cpu().unsqueeze(1).repeat(1, process.n_tokens, 1)
    changed[:, :, -back] = torch.arange(process.n_tokens)
    probabilities = process.word_probabilities(changed.flatten(0, 1)).reshape(len(words), process.n_tokens)
    probabilities = probabilities.scatter(1, words.cpu()[:, -back : words.shape[1] - back + 1], 0.0)
    able = (probabilities > 0).any(dim=1).nonzero().squeeze(1)
    if len(able) == 0:
        raise ValueError(
            f"None of the {len(words)} words stays possible when token {back} from its end is changed: choose "
            "another back=, or targets='another word'."
        )
    donors = changed[able, draw_tokens(probabilities[able], generator)]
    return Targets(able, filter_beliefs(process, donors)[:, -1], donors)


@checked
def vertex(process: Process, words: Words, generator: torch.Generator, *, state: int | str | None = None) -> Targets:
    """Certainty of a hidden state, by name or number (else `KeyError`); by default a random one for each word."""
    if state is None:
        states = torch.randint(process.n_states, (len(words),), generator=generator, device=generator.device).cpu()
    else:
        index = process.states.index(state) if state in process.states else state
        if not isinstance(index, int) or not 0 <= index < process.n_states:
            there_are = ", ".join(process.states)
            raise KeyError(f"{process.name} has no state {state!r}; it has {there_are}.{meant(state, process.states)}")
        states = torch.full((len(words),), index)
    return _with_nearest_donors(process, words, torch.eye(process.n_states, dtype=torch.float64)[states])


@checked
def given(
    process: Process, words: Words, generator: torch.Generator, *, belief: Float64[Tensor, "*word state"]
) -> Targets:
    """The given belief, `[state]` for all words or `[word, state]` for each; `ValueError` if it is not a belief."""
    beliefs = belief.detach().cpu()
    if beliefs.ndim == 1:
        beliefs = beliefs.expand(len(words), -1)
    if beliefs.shape != (len(words), process.n_states):
        raise ValueError(
            f"belief has shape {tuple(beliefs.shape)}: give [state] or [word, state], here [{process.n_states}] or "
            f"[{len(words)}, {process.n_states}]."
        )
    wrong = ~torch.isfinite(beliefs).all(dim=1) | (beliefs < 0).any(dim=1) | ((beliefs.sum(dim=1) - 1).abs() > 1e-6)
    if wrong.any():
        validated_distribution(beliefs[wrong][0], process.n_states, "belief")
    return _with_nearest_donors(process, words, beliefs)


@checked
def reachable(process: Process, words: Words, generator: torch.Generator) -> Targets:
    """The belief after a word of this length, every possible word being equally likely, improbable ones included.

    If there are more than 100,000 possible words (or fewer of more than 20 tokens), it is one of the distinct words of
    a sample.
    """
    draw = {"generator": generator, "device": generator.device}
    dataset = _many_words(process, words.shape[1], int(torch.randint(2**31, (1,), **draw)))
    chosen = torch.randint(len(dataset), (len(words),), **draw).cpu()
    return Targets(torch.arange(len(words)), dataset.beliefs[chosen, -1], dataset.tokens[chosen])


@checked
def simplex(process: Process, words: Words, generator: torch.Generator) -> Targets:
    """A belief drawn uniformly from the whole simplex (Dirichlet with all parameters 1)."""
    draws = torch.empty(len(words), process.n_states, dtype=torch.float64, device=generator.device)
    exponential = draws.exponential_(generator=generator).cpu()
    return _with_nearest_donors(process, words, exponential / exponential.sum(dim=1, keepdim=True))


@checked
def emission_kernel(process: Process, words: Words, generator: torch.Generator) -> Targets:
    """The actual belief moved so that the next token's probabilities stay: `b' = b + v`, `v E = 0`.

    Several directions are drawn uniformly in the kernel of the emission map; the belief moves along the one with the
    most room, to the simplex's face. (A belief on a face has little room.) Such a move should leave the next prediction
    unchanged and show only in later ones, which tells a belief from a next-token distribution. A word whose belief has
    no such move has no target. `ValueError` if none has: beliefs then follow from next-token probabilities.
    """
    directions_tried, smallest_move = 64, 1e-3
    left, singular_values, _ = torch.linalg.svd(process.emissions)
    rank = int((singular_values > singular_values[0] * 1e-9).sum())
    kernel = left[:, rank:].T
    beliefs = filter_beliefs(process, words)[:, -1]
    shape = (directions_tried, len(words), len(kernel))
    draws = torch.randn(shape, dtype=torch.float64, generator=generator, device=generator.device).cpu()
    directions = torch.nn.functional.normalize(draws, dim=-1) @ kernel
    room = torch.zeros(shape[:2], dtype=torch.float64)
    if len(kernel):
        # How far each direction can be followed on the simplex; it sums to 0, so it shrinks some state.
        steps = beliefs / directions.abs().clamp(min=1e-12)
        room = torch.where(directions < -1e-12, steps, torch.inf).amin(dim=-1)
    furthest, which = room.max(dim=0)
    able = (furthest > smallest_move).nonzero().squeeze(1)
    if len(able) == 0:
        raise ValueError(
            f"No belief of {process!r} after these words can move without changing the next token's probabilities "
            f"(its emission map has rank {rank} of {process.n_states}): choose other targets."
        )
    moved = (beliefs[able] + directions[which[able], able] * furthest[able].unsqueeze(1)).clamp(min=0)
    return _with_nearest_donors(process, words, moved / moved.sum(dim=1, keepdim=True), able)


TARGETS: Mapping[str, TargetMaker] = {
    "another word": another_word,
    "component": another_part,
    "counterfactual": counterfactual,
    "vertex": vertex,
    "reachable": reachable,
    "simplex": simplex,
    "emission kernel": emission_kernel,
}


AskedTargets: TypeAlias = str | Sequence[str] | Mapping[str, Any] | Float64[Tensor, "*word state"]


def resolve_targets(targets: AskedTargets) -> dict[str, TargetMaker]:
    """Makers by name, from names in `TARGETS` (else `KeyError`), a mapping to makers or beliefs, or one belief."""
    chosen = from_menu(TARGETS, {"given": targets} if isinstance(targets, Tensor) else targets, "target")
    if not chosen:
        raise ValueError(f"targets is empty: name at least one of {', '.join(TARGETS)}.")
    return chosen | {name: partial(given, belief=value) for name, value in chosen.items() if not callable(value)}


@checked
def nearest_words(
    process: Process, beliefs: Float64[Tensor, "target state"], length: Count, *, seed: Seed = 0
) -> Int[Tensor, "target pos"]:
    """For each belief, the word of `length` tokens that leads to it or, failing that, nearest to it (Euclidean).

    Searches all possible words or, if there are more than 100,000 (or fewer of more than 20 tokens), the distinct ones
    of a sample.
    """
    dataset = _many_words(process, length, seed)
    held, inverse = dataset.beliefs[:, -1].unique(dim=0, return_inverse=True)
    a_word = torch.zeros(len(held), dtype=torch.int64).scatter_(0, inverse, torch.arange(len(inverse)))
    # Squared differences, not products, put an equal belief at distance 0 and not at a rounding error.
    exact = "donot_use_mm_for_euclid_dist"
    nearest = torch.cat([torch.cdist(part, held, compute_mode=exact).argmin(dim=1) for part in beliefs.split(256)])
    return dataset.tokens[a_word[nearest]]


def _many_words(process: Process, length: int, seed: int) -> BeliefDataset:
    # The beliefs along two million tokens take 16 MB a state.
    most = default_count(length, 100_000, n_tokens=2_000_000)
    return words_of(process, n_ctx=length, max_words=most, seed=seed)


def _with_nearest_donors(
    process: Process, words: Tensor, beliefs: Float64[Tensor, "target state"], able: Tensor | None = None
) -> Targets:
    which = torch.arange(len(words)) if able is None else able
    return Targets(which, beliefs, nearest_words(process, beliefs, words.shape[1]))
