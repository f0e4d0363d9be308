import pytest
import torch
from hypothesis import given

import msp_lens as msp
from msp_lens.processes import StateClass, structure
from tests import brute_force


def enumerated_ranks(process, length):
    """Ranks of the beliefs after, and of the futures before, all words up to a length, one by one."""
    reached, futures = [process.initial], [process.right_eigenvector]
    for n in range(1, length + 1):
        for word in brute_force.words(process, n):
            forward, backward = process.initial, process.right_eigenvector
            for token in word:
                forward = forward @ process.transitions[token]
            for token in reversed(word):
                backward = process.transitions[token] @ backward
            reached += [forward / forward.norm()] if forward.norm() > 1e-12 else []
            futures += [backward / backward.norm()] if backward.norm() > 1e-12 else []
    reached, futures = torch.stack(reached), torch.stack(futures)
    return [int(torch.linalg.matrix_rank(m, rtol=1e-8)) for m in (reached, futures, reached @ futures.T)]


@given(brute_force.random_processes(max_states=3, max_tokens=2))
def test_ranks_are_those_of_all_words(process):
    assert [
        structure.reach_rank(process),
        structure.future_rank(process),
        structure.minimal_dimension(process),
    ] == enumerated_ranks(process, 5)


def test_ranks_of_known_processes():
    # RRXOR's 36 mixed states lie in all 4 dimensions of the simplex; its emissions take 2 values only.
    assert (structure.reach_rank(msp.rrxor()), structure.future_rank(msp.rrxor())) == (5, 5)
    assert structure.is_minimal(msp.rrxor())
    assert structure.emission_rank(msp.rrxor()) == 2
    # Two states that differ in nothing are one.
    doubled = msp.Process(torch.full((2, 2, 2), 0.25))
    assert (structure.reach_rank(doubled), structure.future_rank(doubled)) == (1, 1)
    assert structure.minimal_dimension(doubled) == 1
    assert not structure.is_minimal(doubled)
    # At a = 1/3 the tokens of mess3 say nothing.
    assert structure.minimal_dimension(msp.mess3(x=0.1, a=1 / 3)) == 1
    assert structure.is_minimal(msp.mess3())


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e6, 1e12])
def test_ranks_do_not_depend_on_the_scale(scale):
    """Nor on how long the vectors before and after a word are."""
    process = msp.rrxor()
    chains = msp.processes.chains
    assert len(chains.reached_span(process.transitions * scale, process.initial)) == 5
    assert len(chains.reached_span(process.transitions, process.initial * scale)) == 5
    assert chains.matrix_rank(process.emissions * scale) == 2
    scaled = msp.Process(
        process.transitions, initial=process.initial / scale, right_eigenvector=process.right_eigenvector * scale
    )
    assert (structure.reach_rank(scaled), structure.future_rank(scaled), structure.minimal_dimension(scaled)) == (
        5,
        5,
        5,
    )
    doubled = msp.Process(torch.full((2, 2, 2), 0.25), right_eigenvector=[scale, scale], initial=[0.5 / scale] * 2)
    assert (structure.reach_rank(doubled), structure.future_rank(doubled)) == (1, 1)


@pytest.mark.parametrize(("share", "counted"), [(1e-8, 1), (1e-10, 0)])
def test_directions_below_a_share_of_the_largest_are_rounding(share, counted):
    """The second state is reached by a share of the largest norm; what counts is the larger of two tokens' norms."""
    chains = msp.processes.chains
    for largest in (1e-3, 1.0, 1e3):
        matrices = torch.zeros(2, 2, 2, dtype=torch.float64)
        matrices[0, 0, 0], matrices[1, 0, 1] = largest, share * largest
        start = torch.tensor([1.0, 0], dtype=torch.float64)
        assert len(chains.reached_span(matrices, start)) == 1 + counted
        assert chains.matrix_rank(matrices.sum(dim=1)) == 1 + counted


def test_a_span_is_an_orthonormal_basis():
    span = msp.processes.chains.reached_span(msp.rrxor().transitions, msp.rrxor().initial)
    torch.testing.assert_close(span @ span.T, torch.eye(5, dtype=torch.float64), atol=1e-12, rtol=0)
    # Where nothing but the start is reached, it is the start, of length 1.
    start = torch.tensor([3.0, 4.0], dtype=torch.float64)
    span = msp.processes.chains.reached_span(torch.eye(2, dtype=torch.float64)[None], start)
    torch.testing.assert_close(span, torch.tensor([[0.6, 0.8]], dtype=torch.float64))


def test_stationary_distributions_in_closed_form():
    """Of two states that exchange (q, p) / (p + q); states that are left for good have a share of exactly 0."""
    stationary = msp.processes.chains.stationary_distribution
    p, q = 0.2, 0.5
    chain = torch.tensor([[0.3, 0.3, 0.4], [0, 1 - p, p], [0, q, 1 - q]], dtype=torch.float64)
    found = stationary(chain)
    assert found.tolist() == pytest.approx([0, q / (p + q), p / (p + q)], rel=1e-12)
    assert found[0] == 0
    assert stationary(torch.eye(2, dtype=torch.float64)) is None
    # Closed classes alone count: a state that leads to either of two absorbing ones has no unique end.
    fork = torch.tensor([[0, 0.5, 0.5], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    assert stationary(fork) is None
    assert msp.processes.chains.communicating_classes(fork) == [([0], False), ([1], True), ([2], True)]


def test_a_bayes_step_in_closed_form():
    """b T[x] / (b T[x] w); a token of a probability of at most `negligible` is impossible."""
    bayes = msp.processes.bayes
    transitions = torch.tensor([[[0.25, 0.25], [0, 0.5]], [[0.5, 0], [0.5, 0]]], dtype=torch.float64)
    beliefs = torch.tensor([[0.5, 0.5], [1.0, 0]], dtype=torch.float64)
    eigenvector = torch.ones(2, dtype=torch.float64)
    after, probabilities = bayes.bayes_children(beliefs, transitions, eigenvector)
    assert probabilities.tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert after.tolist() == [[[0.25, 0.75], [1, 0]], [[0.5, 0.5], [1, 0]]]
    for token in (0, 1):
        step = bayes.bayes_step(beliefs, torch.tensor([token, token]), transitions, eigenvector)
        assert torch.equal(step[0], after[:, token])
        assert torch.equal(step[1], probabilities[:, token])
    for negligible, is_possible in ((0.4999, True), (0.5, False)):
        for found, chances in (
            bayes.bayes_children(beliefs, transitions, eigenvector, negligible=negligible),
            bayes.bayes_step(beliefs, torch.tensor([0, 1]), transitions, eigenvector, negligible=negligible),
        ):
            assert bool((chances == (0.5 if is_possible else 0)).all())
            assert bool(found.isnan().all()) != is_possible
    # An unknown belief stays unknown; a generalized process divides by its own right eigenvector.
    after, probabilities = bayes.bayes_children(torch.full_like(beliefs, torch.nan), transitions, eigenvector)
    assert bool(after.isnan().all())
    assert bool((probabilities == 0).all())
    joint = torch.tensor([[0.2, 0.6], [0.0, 0.0]], dtype=torch.float64)
    after, probabilities = bayes.normalized(joint, torch.tensor([1.0, 0.5], dtype=torch.float64))
    assert after[0].tolist() == pytest.approx([0.4, 1.2])
    assert probabilities.tolist() == pytest.approx([0.5, 0])
    assert bool(after[1].isnan().all())


def test_minimality_needs_both_reach_and_future():
    """States C and D have futures of their own, but start equally likely and stay so: one belief about the two."""
    transitions = torch.zeros(2, 3, 3, dtype=torch.float64)
    transitions[0, 0, 1] = transitions[0, 0, 2] = 0.5
    transitions[0, 1, 0], transitions[1, 2, 0] = 1.0, 1.0
    process = msp.Process(transitions)
    assert [structure.reach_rank(process), structure.future_rank(process)] == [2, 3]
    merged = msp.Process([[[0, 1.0], [0.5, 0]], [[0, 0], [0.5, 0]]])
    assert structure.minimal_dimension(merged) == 2
    words = torch.tensor(list(brute_force.words(process, 4)))
    torch.testing.assert_close(process.word_probabilities(words), merged.word_probabilities(words))
    assert structure.minimal_dimension(process) == 2
    assert not structure.is_minimal(process)


def test_classes():
    chain = torch.zeros(1, 5, 5, dtype=torch.float64)
    for origin, destination in [(0, 1), (1, 0), (1, 2), (2, 3), (3, 2), (4, 4), (0, 4)]:
        chain[0, origin, destination] = 1.0
    process = msp.Process(chain / chain.sum(dim=2, keepdim=True), states=list("ABCDE"), initial=[1.0, 0, 0, 0, 0])
    assert process.communicating_classes() == (
        StateClass(("A", "B"), False),
        StateClass(("C", "D"), True),
        StateClass(("E",), True),
    )
    assert not process.is_irreducible
    assert msp.rrxor().is_irreducible
    assert not msp.processes.golden_mean(p=0.0).is_irreducible


@pytest.mark.parametrize(
    ("name", "expected"), [("rrxor", True), ("z1r", True), ("even", True), ("mess3", False), ("sns", False)]
)
def test_unifilarity(name, expected):
    assert msp.processes.build_process(name).is_unifilar is expected


def test_generalized_processes_have_no_states_to_classify(mess3):
    held = msp.Process(mess3.transitions, generalized=True, name="held")
    assert not held.is_unifilar
    with pytest.raises(ValueError, match="held is a generalized process: it has no hidden states"):
        _ = held.is_irreducible
    assert held.degeneracy().belief_dimensions == 2


def test_mess3s_beliefs_follow_from_the_next_token(mess3):
    result = mess3.degeneracy()
    assert (result.emission_rank, result.belief_dimensions, result.next_token_dimensions) == (3, 2, 2)
    assert result.beliefs_follow_from_next_token
    assert "emission rank 3 of 3" in repr(result)
    assert "2 of the 2 dimensions" in repr(result)
    assert "cannot tell them apart" in repr(result)


def test_rrxors_beliefs_do_not():
    result = msp.rrxor().degeneracy()
    assert (result.emission_rank, result.n_states) == (2, 5)
    assert (result.belief_dimensions, result.next_token_dimensions) == (4, 1)
    assert not result.beliefs_follow_from_next_token
    assert "emission rank 2 of 5; next-token probabilities show 1 of the 4 dimensions" in repr(result)
    assert "not an affine function" in repr(result)


@given(brute_force.random_processes(max_states=3, max_tokens=3))
def test_degeneracy_is_what_a_regression_finds(process):
    """Beliefs after all words, regressed on their next-token probabilities: no error exactly if they follow."""
    result = process.degeneracy()
    words = torch.tensor([w for w in brute_force.words(process, 4) if sum(brute_force.joint(process, w[:4])) > 0])
    beliefs = torch.cat([process.initial[None], msp.filter_beliefs(process, words).flatten(0, 1)])
    predicted = beliefs @ process.emissions
    residual = beliefs - predicted @ torch.linalg.lstsq(predicted, beliefs, driver="gelsd", rcond=1e-9).solution
    found = float(residual.abs().max())
    assert found < 1e-6 or not result.beliefs_follow_from_next_token
    assert found > 1e-9 or result.beliefs_follow_from_next_token


def test_a_coin_has_nothing_to_know():
    assert "only one belief" in repr(msp.processes.coin().degeneracy())
