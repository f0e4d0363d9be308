import pytest
import torch
from hypothesis import given

import msp_lens as msp
from msp_lens.beliefs import presentation
from msp_lens.processes import CATALOG, catalog_entry
from tests import brute_force


def edges(found):
    table = found.to_dataframe()
    return {(row["from"], row["token"]): (row["to"], pytest.approx(row["probability"])) for _, row in table.iterrows()}


def test_z1r_is_the_figure_of_the_post():
    """Four transient states, then the three phases for ever."""
    found = presentation(msp.processes.z1r())
    assert found.is_finite
    assert edges(found) == {
        ("η", "0"): ("η₀", 1 / 2),
        ("η", "1"): ("η₁", 1 / 2),
        ("η₀", "0"): ("η₀₀", 1 / 3),
        ("η₀", "1"): ("η₀₁", 2 / 3),
        ("η₁", "0"): ("η₁₀", 2 / 3),
        ("η₁", "1"): ("η₁₁", 1 / 3),
        ("η₁₀", "0"): ("η₀₀", 1 / 2),
        ("η₁₀", "1"): ("η₀₁", 1 / 2),
        ("η₀₀", "1"): ("η₀₁", 1),
        ("η₀₁", "0"): ("η₁₁", 1 / 2),
        ("η₀₁", "1"): ("η₁₁", 1 / 2),
        ("η₁₁", "0"): ("η₀₀", 1),
    }
    recurrent = found.states_dataframe()["recurrent"]
    assert set(recurrent[recurrent].index) == {"η₀₀", "η₀₁", "η₁₁"}
    certain = found.beliefs[found.is_recurrent]
    assert torch.equal(certain.sort(dim=1).values, torch.tensor([[0.0, 0, 1]] * 3).double())
    # Three states with one next-token distribution: π, η after 10 and η after 01.
    predicted = found.beliefs @ msp.processes.z1r().emissions
    for label in ("η", "η₁₀", "η₀₁"):
        assert predicted[found.labels.index(label)].tolist() == pytest.approx([0.5, 0.5])


def test_rrxor_has_36_mixed_states():
    found = presentation(msp.rrxor())
    assert (len(found), int(found.is_recurrent.sum()), found.is_finite) == (36, 5, True)
    # The start is never come back to.
    assert 0 not in found.targets.tolist()
    assert "36 mixed states, 5 of them recurrent" in repr(found)


@pytest.mark.parametrize(
    "build", [msp.rrxor, msp.processes.z1r, msp.processes.even, msp.processes.golden_mean, msp.processes.coin]
)
def test_the_presentation_is_the_same_process_but_unifilar(build):
    process = build()
    graph = presentation(process).to_process()
    assert graph.is_unifilar
    words = torch.tensor(list(brute_force.words(process, 6)))
    torch.testing.assert_close(
        graph.word_probabilities(words), process.word_probabilities(words), atol=1e-13, rtol=1e-12
    )
    # Each state's belief is what the filter holds after the state's word.
    found = presentation(process)
    for word, belief in zip(found.words[1:], found.beliefs[1:], strict=True):
        torch.testing.assert_close(msp.filter_beliefs(process, torch.tensor([word]))[0, -1], belief)


@given(brute_force.random_processes(max_states=2, max_tokens=2))
def test_words_keep_their_probability_within_a_coarse_tolerance(process):
    found = presentation(process, tolerance=1e-3, max_states=5000)
    assert found.merge_error <= 1e-3
    if found.is_complete:
        words = torch.tensor(list(brute_force.words(process, 3)))
        torch.testing.assert_close(
            found.to_process().word_probabilities(words), process.word_probabilities(words), atol=0.02, rtol=0
        )


def test_infinitely_many_mixed_states_are_said_to_be(mess3):
    found = presentation(mess3, max_states=200)
    assert not found.is_complete
    assert not found.is_finite
    assert "perhaps infinitely many" in repr(found)
    assert len(found) == 364  # 1 + 3 + … + 243: shortest words first
    assert not found.is_recurrent.any()
    with pytest.raises(ValueError, match=r"The first 364 mixed states of .* lead to further ones"):
        found.to_process()

    coarse = presentation(mess3, tolerance=0.05)
    assert coarse.is_complete
    assert not coarse.is_finite
    assert 0.01 < coarse.merge_error <= 0.05
    assert "represent more mixed states to within" in repr(coarse)
    assert coarse.to_process().n_states == len(coarse)


def test_beliefs_that_close_in_on_a_limit_are_not_called_finite():
    """The simple nonunifilar source: after n zeros the belief nears a limit and never gets there."""
    found = presentation(msp.processes.sns(p=0.3, q=0.6))
    assert found.is_complete
    assert not found.is_finite


@pytest.mark.parametrize("name", CATALOG)
def test_the_catalog_knows_where_mixed_states_are_finite(name):
    entry = catalog_entry(name)
    assert presentation(entry.process, max_states=400).is_finite == entry.has_finite_mixed_states


@pytest.mark.parametrize(
    ("tolerance", "max_states", "message"),
    [(0.0, 10, "tolerance=0.0"), (1.5, 10, "tolerance=1.5"), (1e-9, 0, "max_states=0"), (1e-9, 2.5, "max_states=2.5")],
)
def test_bad_options_are_refused(mess3, tolerance, max_states, message):
    with pytest.raises(ValueError, match=message):
        presentation(mess3, tolerance=tolerance, max_states=max_states)
