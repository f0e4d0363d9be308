"""Write one factor's belief: a network that holds factors apart moves one prediction, a network that mixes them all."""

import pytest
import torch

import msp_lens as msp
from msp_lens.representation import crosstalk
from tests.representation.factor_networks import FactorNetwork


@pytest.fixture(scope="module")
def world():
    return msp.processes.product([msp.mess3(x=0.15, a=0.6), msp.processes.golden_mean(p=0.4)])


def measured(world, kind, **options):
    model = FactorNetwork(world, kind)
    report = msp.probe(model, msp.words(world, n_ctx=4), sites="hook_beliefs", progress=False)
    return crosstalk(model, world, probes=report, position=3, n_words=200, **options)


def matrix(found, edit, value):
    return found.table[found.table["edit"] == edit].pivot(index="edited", columns="read", values=value)


def test_factors_held_apart_are_written_apart(world):
    found = measured(world, "factored")
    for label, other in (("mess3", "golden_mean"), ("golden_mean", "mess3")):
        recovered, moved = (matrix(found, "steer", value) for value in ("recovery", "moved"))
        assert recovered.loc[label, label] > 0.999
        assert moved.loc[label, label] > 1e-4
        assert moved.loc[label, other] < 1e-6 * moved.loc[label, label]
        # The donor differs in that factor's tokens alone, and so does what it does.
        assert matrix(found, "donor", "recovery").loc[label, label] == pytest.approx(1, abs=1e-9)
        assert matrix(found, "donor", "moved").loc[label, other] < 1e-12
        assert matrix(found, "placebo", "recovery").loc[label, label] < 0.5
    assert (matrix(found, "none", "moved") == 0).all(axis=None)
    assert matrix(found, "steer", "share").loc["mess3", "mess3"] == pytest.approx(1)


def test_a_joint_belief_is_not_written_by_parts(world):
    """Steering along what varies with one factor leaves the product of beliefs, and moves the other."""
    apart, joint = (matrix(measured(world, kind), "steer", "share") for kind in ("factored", "joint"))
    assert joint.loc["mess3", "golden_mean"] > 1e-4 > 100 * apart.loc["mess3", "golden_mean"]


def test_shared_directions_carry_crosstalk():
    world = msp.processes.product([msp.mess3(x=0.15, a=0.6)] * 2)
    found = matrix(measured(world, "shared"), "steer", "share")
    assert found.loc["mess3_0", "mess3_1"] > 0.5


def test_by_hand(world):
    """KL by the definition, for one word and the donor's activation."""
    model = FactorNetwork(world, "factored")
    report = msp.probe(model, msp.words(world, n_ctx=4), sites="hook_beliefs", progress=False)
    found = crosstalk(model, world, probes=report, position=3, n_words=2, seed=5)
    generator = torch.Generator().manual_seed(5)
    words = world.sample(2, 4, generator=generator)
    donors = world.redraw(words, 0, generator=generator)
    before, after = (model(each)[:, -1].softmax(dim=-1).detach() for each in (words, donors))
    p, q = (world.token_marginals(each)["mess3"] for each in (before, after))
    expected = (p * (p / q).log()).sum(dim=1).mean()
    row = found.select(edit="donor", edited="mess3", read="mess3")
    assert row["moved"] == pytest.approx(float(expected), abs=1e-12)


def test_reports_of_other_worlds_are_refused(world, mess3):
    model = FactorNetwork(world, "factored")
    report = msp.probe(model, msp.words(world, n_ctx=4), sites="hook_beliefs", progress=False)
    other = msp.processes.product([mess3, mess3])
    with pytest.raises(ValueError, match="has no part 'mess3_0'"):
        crosstalk(model, other, probes=report, position=3)
    with pytest.raises(ValueError, match="one factor"):
        crosstalk(model, msp.processes.product([mess3]), probes=report, position=3)
    with pytest.raises(ValueError, match="noise"):
        crosstalk(model, msp.processes.Factored(world.factors, noise=0.1), probes=report, position=3)
