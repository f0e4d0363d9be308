import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import msp_lens as msp
from msp_lens.training.batches import Batches
from msp_lens.training.strata import even_numbers, words_at

PROCESSES = {
    "z1r": msp.processes.z1r(),
    "rrxor": msp.rrxor(),
    "even": msp.processes.even(),
    "moon": msp.processes.moon(),
    "factored": msp.processes.product([msp.processes.z1r(), msp.processes.golden_mean(0.3)]),
    "with_bos": msp.processes.with_bos(msp.mess3(x=0.05, a=0.85)),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def all_words(n_tokens, length):
    return torch.cartesian_prod(*[torch.arange(n_tokens)] * length)


def words_by_enumeration(process, numbers, length):
    """Every word's probability in alphabetical order, and the word in which each number lies."""
    words = all_words(process.n_tokens, length)
    ends = process.word_probabilities(words).cumsum(0)
    return words[torch.searchsorted(ends, numbers, right=True).clamp(max=len(words) - 1)]


@pytest.mark.parametrize("name", PROCESSES)
def test_a_number_gives_the_word_in_which_it_lies(name):
    process, length = PROCESSES[name], 4
    numbers = (torch.arange(2_000, dtype=torch.float64) + 0.37) / 2_000
    found = words_at(process, numbers, length, generator=generator())
    assert torch.equal(found, words_by_enumeration(process, numbers, length))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 10**6),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=20),
)
def test_any_process_and_any_number(n_states, n_tokens, seed, numbers):
    process = msp.processes.random_process(n_states, n_tokens, seed=seed)
    numbers = torch.tensor(numbers, dtype=torch.float64)
    found = words_at(process, numbers, 3, generator=generator())
    words = all_words(n_tokens, 3).reshape(-1, 3)
    probabilities = process.word_probabilities(words)
    index = (found * n_tokens ** torch.arange(2, -1, -1)).sum(dim=1)
    ends = probabilities.cumsum(0)
    assert bool((numbers <= ends[index] + 1e-12).all())
    assert bool((numbers >= ends[index] - probabilities[index] - 1e-12).all())


@pytest.mark.parametrize("name", ["rrxor", "even", "z1r", "moon"])
def test_the_last_and_first_numbers_give_words_that_are_possible(name):
    process = PROCESSES[name]
    numbers = torch.tensor([0.0, 2.0**-60, 0.5, 1 - 2.0**-53], dtype=torch.float64)
    found = words_at(process, numbers, 12, generator=generator())
    assert bool((process.word_probabilities(found) > 0).all())


def test_long_words_are_drawn_on_when_the_number_is_used_up():
    coin = msp.processes.coin()
    words = words_at(coin, even_numbers(range(1), 64, seed=0).flatten(), 400, generator=generator())
    assert torch.equal(words[:, :6], all_words(2, 6))
    late = words[:, 60:].double()
    assert late.mean() == pytest.approx(0.5, abs=0.02)
    # Independent from word to word: about half of all tokens agree.
    agreement = (late[:-1] == late[1:]).double().mean()
    assert agreement == pytest.approx(0.5, abs=0.02)


def test_numbers_are_even_within_a_step_and_from_step_to_step():
    numbers = even_numbers(range(200), 7, seed=3)
    assert torch.equal((numbers * 7).floor().long(), torch.arange(7).expand(200, 7))
    for stratum in numbers.T * 7:
        between = stratum.sort().values.diff()
        # Two hundred independent numbers leave gaps of about .03.
        assert float(between.max()) < 3 / 200
    assert torch.equal(numbers[50:60], even_numbers(range(50, 60), 7, seed=3))
    assert not torch.equal(numbers, even_numbers(range(200), 7, seed=4))


def test_every_prefix_has_its_share_of_a_batch(mess3):
    size, n_ctx = 50, 3
    batch = next(iter(Batches(mess3, size, n_ctx, seed=0, sampling="stratified")))
    for length in range(1, n_ctx + 1):
        words = all_words(3, length).reshape(-1, length)
        shares = [float(batch.weights[(batch.tokens[:, :length] == word).all(dim=1)].sum()) for word in words]
        off = (torch.tensor(shares) - mess3.word_probabilities(words)) * size
        assert float(off.abs().max()) < 1 + 1e-6


def test_targets_are_unbiased_and_less_noisy(mess3):
    size, n_ctx, n_steps = 32, 2, 150
    words = all_words(3, n_ctx + 1)
    expected = mess3.word_probabilities(words).view(3, 3, 3)
    errors = {}
    for sampling in ("independent", "stratified"):
        supply = iter(Batches(mess3, size, n_ctx, seed=0, sampling=sampling))
        tables = []
        for _ in range(n_steps):
            batch = next(supply)
            table = torch.zeros(3, 3, 3)
            # What follows the whole word, as a share of the tokens drawn at the last position.
            for word, target in zip(batch.tokens.tolist(), batch.targets[:, -1] * n_ctx, strict=True):
                table[tuple(word)] += target
            tables.append(table.double())
        found = torch.stack(tables)
        errors[sampling] = (found - expected).square().sum(dim=(1, 2, 3)).mean().sqrt()
        # The mean over steps.
        assert float((found.mean(dim=0) - expected).abs().max()) < (0.012 if sampling == "independent" else 0.0015)
    assert errors["stratified"] < 0.75 * errors["independent"]
