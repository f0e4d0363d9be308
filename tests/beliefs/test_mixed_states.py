import math

import pytest
import torch
from hypothesis import given

import msp_lens as msp
from msp_lens.beliefs import mixed_states, walk_levels
from msp_lens.beliefs.mixed_states import equal_beliefs
from tests import brute_force


@given(brute_force.random_processes())
def test_unmerged_levels_are_all_possible_words(process):
    for length, level in enumerate(walk_levels(process, 3), start=1):
        table = brute_force.word_probabilities(process, length)
        assert level.probabilities.tolist() == pytest.approx(list(table.values()), abs=1e-12)
        for word, belief in zip(table, level.beliefs, strict=True):
            posterior = torch.tensor(brute_force.joint(process, word), dtype=torch.float64)
            torch.testing.assert_close(belief, posterior / posterior.sum(), atol=1e-12, rtol=1e-9)


@given(brute_force.random_processes())
def test_merging_changes_no_expectation(process):
    for plain, merged in zip(walk_levels(process, 4), walk_levels(process, 4, tolerance=1e-9), strict=True):
        assert len(merged) <= len(plain)
        assert float(merged.probabilities.sum()) == pytest.approx(1, abs=1e-12)
        for moment in (lambda b: b, lambda b: b**2, lambda b: torch.special.entr(b)):
            torch.testing.assert_close(
                merged.probabilities @ moment(merged.beliefs),
                plain.probabilities @ moment(plain.beliefs),
                atol=1e-7,
                rtol=0,
            )


def test_nodes_know_a_word_that_leads_to_them(mess3):
    tree = mixed_states(mess3, 4)
    assert len(tree) == 1 + 3 + 9 + 27 + 81
    assert tree.word(0) == ()
    for node in (1, 5, 60, 120):
        word = torch.tensor([tree.word(node)])
        assert word.shape[1] == tree.levels[node]
        torch.testing.assert_close(msp.filter_beliefs(mess3, word)[0, -1], tree.beliefs[node])
        assert float(tree.log_probabilities[node]) == pytest.approx(float(mess3.word_log_probabilities(word)))
    assert list(tree.to_dataframe().columns) == ["level", "token", "parent", "probability", "P(A)", "P(B)", "P(C)"]


def test_a_thousand_levels_neither_grow_nor_underflow():
    tree = mixed_states(msp.rrxor(), 1000)
    deepest = tree.levels == 1000
    assert int(deepest.sum()) <= 36
    assert float(tree.log_probabilities[deepest].exp().sum()) == pytest.approx(1, abs=1e-9)
    # Unmerged, a single word so long has a probability far below the smallest float.
    assert len(tree) < 36 * 1001


def test_rare_words_are_left_out_and_their_mass_reported(mess3):
    tree = mixed_states(mess3, 7, tolerance=None, min_probability=1e-3)
    for level in range(8):
        kept = tree.log_probabilities[tree.levels == level].exp()
        assert (kept >= 1e-3).all()
        assert float(kept.sum() + tree.dropped[level]) == pytest.approx(1)
    assert 0 < tree.dropped[7] < 1
    assert "dropped" in repr(tree)
    assert "dropped" not in repr(mixed_states(mess3, 3))


def test_equal_beliefs_are_found_wherever_they_lie():
    generator = torch.Generator().manual_seed(0)
    distinct = torch.rand(500, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 500, (5000,), generator=generator)
    noise = 1e-13 * torch.randn(5000, 4, generator=generator, dtype=torch.float64)
    found, first = equal_beliefs(distinct[labels] + noise, 1e-10)
    assert len(first) == len(labels.unique())
    assert torch.equal(found[first], torch.arange(len(first)))
    # The same partition: each label goes with one number, and no number with two labels.
    assert len(torch.stack([found, labels]).unique(dim=1).T) == len(first)


def test_beliefs_that_differ_in_one_coordinate_alone_stay_apart():
    # Same value along any single axis as another, and a grid line of 1e-10 between the last two.
    beliefs = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.0, 0.5], [0.0, 0.5, 0.5], [0.5, 0.5 + 1e-16, 0.0]]).double()
    labels, first = equal_beliefs(beliefs, 1e-10)
    assert labels.tolist() == [0, 1, 2, 0]
    assert first.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": -1}, "depth=-1"),
        ({"depth": 2, "tolerance": 0.0}, "tolerance=0"),
        ({"depth": 2, "min_probability": 1.0}, "min_probability=1"),
        ({"depth": 9, "max_nodes": 1000}, r"more than 1,000 within depth 6.*min_probability"),
    ],
)
def test_bad_requests_are_refused(mess3, options, message):
    with pytest.raises(ValueError, match=message):
        mixed_states(mess3, **options)


def test_a_generalized_process_has_mixed_states_too():
    process = msp.Process(
        # An ordinary process in another basis: negative entries, the same words.
        _rotated(msp.mess3().transitions),
        generalized=True,
        right_eigenvector=_basis().inverse() @ torch.ones(3, dtype=torch.float64),
        initial=msp.mess3().initial @ _basis(),
    )
    for rotated, plain in zip(walk_levels(process, 4), walk_levels(msp.mess3(), 4), strict=True):
        torch.testing.assert_close(rotated.probabilities, plain.probabilities)
        torch.testing.assert_close(rotated.beliefs, plain.beliefs @ _basis())
    assert msp.beliefs.myopic_entropies(process, 5).tolist() == pytest.approx(
        msp.beliefs.myopic_entropies(msp.mess3(), 5).tolist()
    )


def _basis():
    return torch.tensor([[1.0, 0.5, 0.0], [-0.5, 1.0, 0.3], [0.2, 0.0, 1.0]], dtype=torch.float64)


def _rotated(transitions):
    return _basis().inverse() @ transitions @ _basis()


def test_word_probabilities_stay_in_log_space():
    level = list(walk_levels(msp.processes.coin(p=0.5), 1500, tolerance=1e-10))[-1]
    assert float(level.log_probabilities.exp().sum()) == pytest.approx(1)
    (rarest,) = list(walk_levels(msp.processes.coin(p=1.0), 1500))[-1].log_probabilities.tolist()
    assert rarest == 0
    assert math.isfinite(float(level.log_probabilities.min()))
