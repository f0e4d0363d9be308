import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import msp_lens as msp
from msp_lens.beliefs import continuations, filter_from
from tests.brute_force import random_processes


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@given(process=random_processes(), seed=st.integers(0, 1000), split=st.integers(1, 4))
def test_filtering_from_a_words_belief_is_filtering_on(process, seed, split):
    words = process.sample(6, 5, seed=seed)
    whole = msp.filter_beliefs(process, words)
    onward = filter_from(process, whole[:, split - 1], words[:, split:])
    torch.testing.assert_close(onward, whole[:, split - 1 :])


@given(process=random_processes(), seed=st.integers(0, 1000))
def test_continuations_follow_from_the_belief(process, seed):
    beliefs = torch.softmax(torch.randn(20, process.n_states, generator=generator(seed)).double(), dim=1)
    tokens = continuations(process, beliefs, 4, generator=generator(seed))
    assert torch.isfinite(filter_from(process, beliefs, tokens)).all()


def test_continuations_are_drawn_as_expected():
    process = msp.mess3()
    belief = torch.tensor([[0.7, 0.1, 0.2]], dtype=torch.float64)
    tokens = continuations(process, belief.expand(20_000, -1), 2, generator=generator())
    counts = torch.bincount(tokens[:, 0] * 3 + tokens[:, 1], minlength=9) / 20_000
    pairs = torch.einsum("i,xij,yjk->xy", belief[0], process.transitions, process.transitions).flatten()
    torch.testing.assert_close(counts.double(), pairs, atol=0.01, rtol=0)


def test_impossible_continuations_are_refused():
    certain = torch.eye(3, dtype=torch.float64)[:1]
    with pytest.raises(ValueError, match=r"Word 0: after its belief .* tokens \[1\] are impossible for z1r"):
        filter_from(msp.processes.z1r(), certain, torch.tensor([[1, 0]]))
    with pytest.raises(ValueError, match="outside the vocabulary"):
        filter_from(msp.processes.z1r(), certain, torch.tensor([[2]]))
