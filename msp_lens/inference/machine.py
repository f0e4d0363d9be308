"""From a fitted machine to one that can be read: transitions that do not matter dropped, states that are alike merged.

Maximum likelihood makes no transition impossible, and with too many states it splits some. A simpler machine takes the
fitted one's place as long as KL(simpler ‖ fitted) stays below what the fitted one lacks itself. A unifilar one, in
which the token determines the next state, is preferred: the smallest, the ε-machine of the process, is unique.

Source: Crutchfield & Young 1989; Shalizi & Crutchfield 2001 (arXiv cond-mat/9907176), theorem 3.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens._checks import checked
from msp_lens.beliefs.filtering import filter_beliefs
from msp_lens.beliefs.presentation import presentation
from msp_lens.inference.likelihood import refitted
from msp_lens.inference.word_probabilities import process_words
from msp_lens.processes.chains import communicating_classes
from msp_lens.processes.process import Process

# Transitions below these are tried without, the largest first.
_THRESHOLDS = (0.1, 0.05, 0.02, 0.01, 5e-3, 2e-3, 1e-3, 5e-4, 2e-4, 1e-4, 1e-5, 1e-6, 1e-8, 1e-10)
# Beliefs within such a distance are tried as one state, and moves to beliefs as improbable as the last left out.
_NEARBY, _MOST_BELIEFS = (0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01), 200
# The most words whose probabilities are compared.
_MOST_WORDS = 5_000
# A word leads to a state if it leaves at least this belief in it.
_LEADS = 0.9


@checked
def simplified(process: Process, *, tolerance: float, per_parameter: float = 0.0) -> Process:
    """The machine without transitions, transient states and distinctions between states that hardly matter.

    Args:
        process: The machine.
        tolerance: The most that all this may change, KL(simpler ‖ machine) in nats per token.
        per_parameter: What each parameter that is no longer there may add to it.

    Example:
        >>> leaky = Process([[[0.5, 0.0], [0.9999, 0.0]], [[0.0, 0.5], [0.0, 0.0001]]])
        >>> simplified(leaky, tolerance=1e-3).states
        ('0', '1')
    """

    def excess(simpler: Process) -> float:
        saved = _n_parameters(process) - _n_parameters(simpler)
        return divergence_rate(simpler, process) - tolerance - per_parameter * max(saved, 0)

    found = next(
        (each for each in itertools.chain(_unifilar(process), _without_rare(process)) if excess(each) <= 0), process
    )
    while found.n_states > 1:
        merged = [_merged(found, *pair) for pair in itertools.combinations(range(found.n_states), 2)]
        costs = [excess(each) for each in merged]
        least = min(range(len(costs)), key=costs.__getitem__)
        if not costs[least] <= 0:
            break
        found = merged[least]
    return named_by_words(found)


def _length(process: Process) -> int:
    """Of the words on which machines are compared."""
    return max(3, min(10, int(math.log(_MOST_WORDS, max(process.n_tokens, 2)))))


def _n_parameters(process: Process) -> int:
    """How many probabilities are free: those of each state sum to 1."""
    return int((process.transitions > 0).sum()) - process.n_states


@checked
def divergence_rate(first: Process, second: Process) -> float:
    """KL(first ‖ second) in nats per token, over words of at most ten tokens; infinite if a word is impossible."""
    length = _length(first)
    words = process_words(first, length, max_words=4 * _MOST_WORDS)
    own, other = (each.word_log_probabilities(words.tokens) for each in (first, second))
    return max(float(words.probabilities @ (own - other)) / length, 0.0)


@checked
def named_by_words(process: Process) -> Process:
    """The same machine, each state named by a shortest word after which an observer believes in it.

    Example:
        >>> from msp_lens.processes.catalog import golden_mean
        >>> named_by_words(golden_mean(p=0.5)).states
        ('0', '1')
    """
    separator = "" if all(len(token) == 1 for token in process.tokens) else " "
    names: dict[int, str] = {}
    length = 1
    while len(names) < process.n_states and process.n_tokens**length <= max(_MOST_WORDS, process.n_tokens):
        words = process_words(process, length + 1, max_words=4 * _MOST_WORDS).part(0, length).tokens
        beliefs = filter_beliefs(process, words)[:, -1]
        for state in set(range(process.n_states)) - set(names):
            word = int(beliefs[:, state].argmax())
            if beliefs[word, state] >= _LEADS and int(beliefs[word].argmax()) == state:
                names[state] = separator.join(process.tokens[k] for k in words[word])
        length += 1
        if length > 8:
            break
    unnamed = (f"s{k}" for k in itertools.count() if f"s{k}" not in names.values())
    states = [names[state] if state in names else next(unnamed) for state in range(process.n_states)]
    return _with(process, process.transitions, states)


def _unifilar(process: Process) -> Iterator[Process]:
    """Machines of no more states whose states are beliefs about this one's, nearby beliefs as one; coarsest first."""
    words = process_words(process, _length(process), max_words=4 * _MOST_WORDS)
    for tolerance in _NEARBY:
        graph = presentation(process, tolerance=tolerance, max_states=_MOST_BELIEFS)
        recurrent = graph.is_recurrent.nonzero().squeeze(1)
        if not graph.is_complete or not 0 < len(recurrent) <= process.n_states:
            continue
        likely = graph.probabilities >= _NEARBY[-1]
        sources, targets, tokens = graph.sources[likely], graph.targets[likely], graph.tokens[likely]
        transitions = torch.zeros(process.n_tokens, len(graph), len(graph), dtype=torch.float64)
        transitions[tokens, sources, targets] = graph.probabilities[likely]
        transitions = transitions[:, recurrent][:, :, recurrent]
        if len(communicating_classes(transitions.sum(dim=0))) == 1:
            names = [str(k) for k in range(len(recurrent))]
            start = transitions / transitions.sum(dim=(0, 2)).reshape(1, -1, 1)
            yield _with(process, refitted(words, start), names)


def _without_rare(process: Process) -> Iterator[Process]:
    """The machine without its rare transitions, ever fewer of them left out."""
    for threshold in _THRESHOLDS:
        kept = torch.where(process.transitions >= threshold, process.transitions, 0.0)
        totals = kept.sum(dim=(0, 2))
        if (totals == 0).any():
            continue
        kept = kept / totals.reshape(1, -1, 1)
        closed = [members for members, is_closed in communicating_classes(kept.sum(dim=0)) if is_closed]
        if len(closed) == 1:
            members = torch.tensor(closed[0])
            states = [process.states[k] for k in closed[0]]
            yield _with(process, kept[:, members][:, :, members], states)


def _merged(process: Process, first: int, second: int) -> Process:
    """The machine with two states as one, which behaves as either in proportion to how often it is visited."""
    rest = [k for k in range(process.n_states) if k != second]
    share = process.stationary[[first, second]] / process.stationary[[first, second]].sum()
    transitions = process.transitions.clone()
    transitions[:, first] = share[0] * transitions[:, first] + share[1] * transitions[:, second]
    transitions[:, :, first] += transitions[:, :, second]
    return _with(process, transitions[:, rest][:, :, rest], [process.states[k] for k in rest])


def _with(process: Process, transitions: Float64[Tensor, "token i j"], states: list[str]) -> Process:
    return Process(transitions, name=process.name, states=states, tokens=process.tokens)
