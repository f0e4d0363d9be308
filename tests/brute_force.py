"""Oracles that enumerate the full joint distribution of hidden paths: slow, and plain enough to trust."""

import itertools
from collections import Counter

import torch
from hypothesis import strategies as st

from msp_lens.processes import Process


def joint(process, word):
    """P(word, last hidden state), by summing over every hidden path."""
    totals = [0.0] * process.n_states
    matrices = process.transitions.tolist()
    initial = process.initial.tolist()
    for path in itertools.product(range(process.n_states), repeat=len(word) + 1):
        probability = initial[path[0]]
        for token, origin, destination in zip(word, path[:-1], path[1:], strict=True):
            probability *= matrices[token][origin][destination]
        totals[path[-1]] += probability
    return totals


def words(process, length):
    """All words of a length, possible or not, in lexicographic order."""
    return itertools.product(range(process.n_tokens), repeat=length)


def word_probabilities(process, length):
    """Word to probability, of those above 0."""
    table = {word: sum(joint(process, word)) for word in words(process, length)}
    return {word: probability for word, probability in table.items() if probability > 0}


def matrix_products(process, length):
    """Word to probability, by a matrix product each: for generalized processes, which have no hidden paths."""
    table = {}
    for word in words(process, length):
        vector = process.initial
        for token in word:
            vector = vector @ process.transitions[token]
        table[word] = float(vector @ process.right_eigenvector)
    return table


def prefix_counts(tokens):
    """How often each prefix (as a tuple) begins a word."""
    return Counter(tuple(word[:t]) for word in tokens for t in range(1, len(word) + 1))


@st.composite
def random_processes(draw, max_states=3, max_tokens=3):
    """Irreducible processes with some zero entries."""
    n_states, n_tokens = draw(st.integers(1, max_states)), draw(st.integers(1, max_tokens))
    cells = n_tokens * n_states * n_states
    values = draw(st.lists(st.floats(0.05, 1), min_size=cells, max_size=cells))
    absent = draw(st.lists(st.booleans(), min_size=cells, max_size=cells))
    transitions = torch.tensor(values, dtype=torch.float64).reshape(n_tokens, n_states, n_states)
    transitions[torch.tensor(absent).reshape(transitions.shape)] = 0
    # A cycle through all states keeps the chain irreducible.
    for i in range(n_states):
        transitions[0, i, (i + 1) % n_states] += 0.1
    return Process(transitions / transitions.sum(dim=(0, 2))[None, :, None])
