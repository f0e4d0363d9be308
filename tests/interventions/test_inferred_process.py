"""Experiments with a process that nobody gave: it is inferred, and used as a known one is."""

import pytest
import torch

import msp_lens as msp
from tests.interventions.experiments import EXPERIMENTS


@pytest.fixture(scope="module")
def inferred(mess3):
    """From the words of Mess3 alone: the same process, its states in another order and under other names."""
    found = msp.infer(mess3, n_ctx=6, n_states=[2, 3], n_starts=8, progress=False).process
    assert (found.n_states, found.name) == (3, "inferred from mess3")
    assert found.states != mess3.states
    return found


@pytest.fixture(scope="module")
def inferred_report(random_model, inferred):
    return msp.probe(random_model, inferred, progress=False)


def test_its_beliefs_are_read_as_those_of_the_known_one(inferred_report, random_report):
    for label, known in random_report.items():
        found = inferred_report[label].scores
        assert found.in_sample.r2 == pytest.approx(known.scores.in_sample.r2, abs=2e-3)
        # Folds are balanced by the prefixes' probabilities, which are hardly different: some prefixes change theirs.
        assert found.held_out.r2 == pytest.approx(known.scores.held_out.r2, abs=0.02)


def test_its_beliefs_are_written_as_those_of_the_known_one(
    random_model, inferred, inferred_report, random_report, mess3, untouched
):
    """An affine map of all beliefs changes neither decoders nor what an observer would predict, so nor the results."""
    options = {"positions": 3, "n_words": 4000, "edits": ("steer", "patch", "wrong belief")}
    found = msp.intervene(random_model, inferred, probes=inferred_report, **options)
    known = msp.intervene(random_model, mess3, probes=random_report, **options)
    for row in known.to_dataframe().to_dict("records"):
        other = found.select(site=row["site"], edit=row["edit"])
        assert other.kl_to_target == pytest.approx(row["kl_to_target"], rel=0.06), row["edit"]


def test_one_edit_with_an_inferred_belief_is_that_with_the_known_one(
    random_model, inferred, inferred_report, random_report, mess3
):
    """The belief after a word, written by either probe, gives the same logits."""
    tokens, word = mess3.sample(20, 5, seed=1), torch.tensor([[0, 0, 1, 0]])
    logits = []
    for process, report in ((inferred, inferred_report), (mess3, random_report)):
        belief = msp.filter_beliefs(process, word)[0, -1]
        with torch.no_grad(), report["1_post"].steer(random_model, belief=belief, position=3):
            logits.append(random_model(tokens))
    with torch.no_grad():
        plain = random_model(tokens)
    moved = (logits[1] - plain).abs().max()
    assert moved > 0.01
    assert (logits[0] - logits[1]).abs().max() < 0.02 * moved


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_takes_it(experiment, random_model, inferred, inferred_report):
    found = EXPERIMENTS[experiment](random_model, inferred, probes=inferred_report, n_words=50, seed=1)
    assert {row["site"] for row in found.to_dict()["results"]} >= {"0_post", "1_post"}
    assert found.provenance["process"] == inferred.to_dict()
