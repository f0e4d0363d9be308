"""Targets and trajectories against enumeration."""

import itertools

import pytest
import torch

import msp_lens as msp
from msp_lens.interventions import TARGETS, nearest_words
from msp_lens.interventions.targets import another_part, counterfactual, emission_kernel, resolve_targets, vertex
from msp_lens.interventions.targets import given as given_belief
from tests.brute_force import joint

PROCESSES = [msp.mess3(), msp.rrxor(), msp.processes.z1r()]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def belief_after(process, word):
    """By summing over every hidden path."""
    totals = torch.tensor(joint(process, word), dtype=torch.float64)
    return totals / totals.sum()


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.name)
@pytest.mark.parametrize("name", TARGETS)
def test_targets_are_beliefs_with_donors_as_long_as_the_words(process, name):
    words = process.sample(30, 4, seed=1)
    if name == "emission kernel" and process.name == "mess3":
        with pytest.raises(ValueError, match="rank 3 of 3"):
            TARGETS[name](process, words, generator())
        return
    if name == "component":
        with pytest.raises(KeyError, match="has no part 'component'; its parts are none"):
            TARGETS[name](process, words, generator())
        return
    made = TARGETS[name](process, words, generator())
    assert len(made.words) == len(made.beliefs) == len(made.donors) > 0
    assert made.donors.shape[1] == 4
    assert (made.beliefs >= 0).all()
    torch.testing.assert_close(made.beliefs.sum(dim=1), torch.ones(len(made.beliefs), dtype=torch.float64))
    led_to = msp.filter_beliefs(process, made.donors)[:, -1]
    if name in ("another word", "counterfactual", "reachable"):
        torch.testing.assert_close(led_to, made.beliefs)
    else:
        every = torch.stack(
            [
                belief_after(process, word)
                for word in itertools.product(range(process.n_tokens), repeat=4)
                if sum(joint(process, word)) > 0
            ]
        )
        nearest = torch.cdist(made.beliefs, every).amin(dim=1)
        torch.testing.assert_close((led_to - made.beliefs).norm(dim=1), nearest, atol=1e-7, rtol=0)
    again = TARGETS[name](process, words, generator())
    assert torch.equal(again.beliefs, made.beliefs)


def test_one_part_is_exchanged_and_the_others_stay():
    mixture = msp.processes.mixture([msp.mess3(), msp.mess3(x=0.15, a=0.6)], [0.3, 0.7])
    product = msp.processes.product([msp.mess3(), msp.processes.golden_mean(p=0.4)])
    begun = msp.processes.with_bos(mixture)
    for process, part in (
        (mixture, "component"),
        (mixture, "mess3_0"),
        (product, "golden_mean"),
        (begun, "component"),
    ):
        words, source = process.sample(20, 4, seed=1), generator(3)
        others = process.sample(20, 4, generator=generator(3))
        made = another_part(process, words, source, part=part)
        held, new, found = (
            process.parts(beliefs)
            for beliefs in (*(msp.filter_beliefs(process, each)[:, -1] for each in (words, others)), made.beliefs)
        )
        for name in found:
            torch.testing.assert_close(found[name], new[name] if name == part else held[name])
    assert torch.equal(TARGETS["component"](mixture, words % 3, generator()).words, torch.arange(20))


def test_a_component_that_is_ruled_out_has_the_others_belief_within():
    coin, golden = msp.processes.coin(p=0.5), msp.processes.golden_mean(p=0.4)
    process = msp.processes.mixture([coin, golden], [0.5, 0.5])
    words = torch.tensor([[1, 1, 0]] * 30)
    made = another_part(process, words, generator(1))
    assert (made.beliefs.sum(dim=1) - 1).abs().max() < 1e-12
    assert (process.parts(made.beliefs)["component"][:, 1] > 0).any()


def test_parts_that_hang_together_are_not_exchanged():
    noisy = msp.processes.Factored([msp.mess3(), msp.mess3()], noise=0.3)
    with pytest.raises(ValueError, match="hang together"):
        another_part(noisy, noisy.sample(5, 3, seed=0), generator(), part="mess3_0")


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.name)
@pytest.mark.parametrize("back", [1, 3])
def test_a_counterfactual_differs_in_one_token(process, back):
    words = process.sample(40, 5, seed=2)
    made = counterfactual(process, words, generator(), back=back)
    differs = made.donors != words[made.words]
    assert differs[:, -back].all()
    assert differs.sum() == len(made.words)
    for donor, belief in zip(made.donors.tolist(), made.beliefs, strict=True):
        torch.testing.assert_close(belief, belief_after(process, donor))
    # Left out are just the words of which every change is impossible.
    left_out = set(range(40)) - set(made.words.tolist())
    for index in left_out:
        for token in range(process.n_tokens):
            changed = words[index].tolist()
            changed[-back] = token
            assert changed == words[index].tolist() or sum(joint(process, changed)) == 0
    assert (process.name == "mess3") == (not left_out) or back == 3


def test_a_vertex_by_name_number_or_chance():
    words = msp.rrxor().sample(50, 3, seed=0)
    for state in ("T", 3):
        made = vertex(msp.rrxor(), words, generator(), state=state)
        assert (made.beliefs == torch.eye(5, dtype=torch.float64)[3]).all()
    assert set(vertex(msp.rrxor(), words, generator()).beliefs.argmax(dim=1).tolist()) == set(range(5))
    with pytest.raises(KeyError, match="no state 'Q'; it has S, 0, 1, T, F"):
        vertex(msp.rrxor(), words, generator(), state="Q")


def test_the_simplex_is_drawn_from_evenly():
    words = msp.mess3().sample(4000, 2, seed=0)
    beliefs = TARGETS["simplex"](msp.mess3(), words, generator()).beliefs
    # Of the flat Dirichlet over three states: means 1/3, variances 1/18, covariances -1/36.
    torch.testing.assert_close(beliefs.mean(dim=0), torch.full((3,), 1 / 3).double(), atol=0.02, rtol=0)
    expected = torch.full((3, 3), -1 / 36).double() + torch.eye(3).double() * (1 / 18 + 1 / 36)
    torch.testing.assert_close(torch.cov(beliefs.T), expected, atol=0.005, rtol=0)


@pytest.mark.parametrize("process", [msp.rrxor(), msp.processes.z1r()], ids=lambda process: process.name)
def test_moves_in_the_emission_kernel_show_only_later(process):
    words = process.sample(60, 2, seed=3)
    made = emission_kernel(process, words, generator())
    actual = msp.filter_beliefs(process, words[made.words])[:, -1]
    now = msp.next_token_probabilities(process, made.beliefs)
    torch.testing.assert_close(now, msp.next_token_probabilities(process, actual))
    assert ((made.beliefs - actual).norm(dim=1) > 1e-3).all()
    # They reach a face of the simplex.
    assert (made.beliefs.amin(dim=1) < 1e-9).all()
    two_steps = torch.einsum("wi,xij,yjk->wxy", made.beliefs - actual, process.transitions, process.transitions)
    assert two_steps.abs().amax(dim=(1, 2)).max() > 0.05


def test_given_beliefs_are_checked():
    process, words = msp.mess3(), msp.mess3().sample(4, 3, seed=0)
    made = given_belief(process, words, generator(), belief=[0.2, 0.3, 0.5])
    assert (made.beliefs == torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)).all()
    for bad, match in (
        ([0.5, 0.5], r"here \[3\] or \[4, 3\]"),
        (torch.ones(4, 3), "sums to 3"),
        ([-0.5, 0.5, 1.0], "give numbers ≥ 0"),
        (torch.full((3, 3), 1 / 3), r"shape \(3, 3\)"),
    ):
        with pytest.raises(ValueError, match=match):
            given_belief(process, words, generator(), belief=bad)


def test_targets_by_name():
    assert list(resolve_targets("vertex")) == ["vertex"]
    assert list(resolve_targets({"mine": [1.0, 0, 0], "theirs": TARGETS["simplex"]})) == ["mine", "theirs"]
    with pytest.raises(KeyError, match="No target 'verteks'; there are another word"):
        resolve_targets("verteks")
    with pytest.raises(ValueError, match="targets is empty"):
        resolve_targets([])
    with pytest.raises(ValueError, match=r"back=4: give 1 \(the last token\) to 3"):
        counterfactual(msp.mess3(), msp.mess3().sample(4, 3, seed=0), generator(), back=4)
    with pytest.raises(ValueError, match="None of the 4 words stays possible"):
        counterfactual(msp.processes.golden_mean(p=1.0), torch.tensor([[1, 0, 1]] * 4), generator())


def test_the_nearest_word_leads_there():
    process = msp.rrxor()
    dataset = msp.data.all_words(process, 5)
    found = nearest_words(process, dataset.beliefs[:, -1], 5)
    torch.testing.assert_close(msp.filter_beliefs(process, found)[:, -1], dataset.beliefs[:, -1], rtol=0, atol=0)
