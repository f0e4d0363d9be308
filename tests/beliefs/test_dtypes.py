"""Processes and beliefs are float64 whatever torch's default dtype."""

import pytest
import torch

from msp_lens import beliefs, processes


def results(name):
    """Every tensor or number that the theory computes for a process of the catalog, by name."""
    process = processes.build_process(name)
    words = process.sample(20, 4, seed=0)
    believed = beliefs.filter_beliefs(process, words)
    generator = torch.Generator().manual_seed(0)
    tree, graph = beliefs.mixed_states(process, 3), beliefs.presentation(process, max_states=50)
    return process.fingerprint, {
        "transitions": process.transitions,
        "initial": process.initial,
        "right eigenvector": process.right_eigenvector,
        "emissions": process.emissions,
        "log probabilities": process.word_log_probabilities(words),
        "beliefs": believed,
        "next token": beliefs.next_token_probabilities(process, believed),
        "filtered on": beliefs.filter_from(process, believed[:, 1], words[:, 2:]),
        "nearest": beliefs.nearest_belief(process, believed - 0.1),
        "tree": tree.beliefs,
        "tree, log probabilities": tree.log_probabilities,
        "graph": graph.beliefs,
        "graph, probabilities": graph.probabilities,
        "attractor": beliefs.attractor(process, 50, burn_in=5, generator=generator),
        "attractor, even": beliefs.attractor(process, 50, burn_in=5, even=True, generator=generator),
        "myopic entropies": beliefs.myopic_entropies(process, 3),
        "optimal losses": beliefs.optimal_losses(process, 8, max_level=100),
        "with BOS": processes.with_bos(process).right_eigenvector,
        "mixture": processes.mixture([process, processes.coin()], [0.3, 0.7]).initial,
        "random": processes.random_process(3, 2, seed=0, sparsity=0.5).transitions,
    }


@pytest.mark.parametrize("name", processes.CATALOG)
def test_results_do_not_depend_on_the_default_dtype(name):
    default, found = torch.get_default_dtype(), {}
    try:
        for dtype in (torch.float32, torch.float64):
            torch.set_default_dtype(dtype)
            found[dtype] = results(name)
    finally:
        torch.set_default_dtype(default)
    (first, single), (second, double) = found[torch.float32], found[torch.float64]
    assert first == second
    for what, values in single.items():
        assert values.dtype == double[what].dtype == torch.float64, what
        assert torch.equal(values, double[what]), what
