"""Networks that were trained on a world, here or before, and published ones: the world is found from them alone.

What the network says of the world is compared with the world itself, which inference is not told.
"""

import functools

import pytest

import msp_lens as msp
from tests.trained import make

processes = msp.processes
# How each network is trained: process, steps, words in a step.
TRAINED = {
    "sns": (processes.sns(p=0.5, q=0.5), 200, 256, 3e-3),
}

pytestmark = pytest.mark.slow


def train(process, steps, batch_size, learning_rate, **wider):
    return make.train(process, steps, batch_size, learning_rate, wider)


@functools.cache
def inferred(name):
    if name in make.TRAINED:
        process, model = make.TRAINED[name][0], make.load(name)
    else:
        process, *recipe = TRAINED[name]
        model = train(process, *recipe)
    return process, msp.infer(model, n_starts=8, progress=False)


def test_the_machine_is_found_up_to_the_names_of_its_states():
    process, found = inferred("even")
    assert found.is_trusted, found.doubts
    assert found.process.is_unifilar
    assert found.rank.rank == found.n_states == process.n_states
    beside = found.compare(process)
    assert beside.largest_deviation < 0.02
    assert beside.divergence < 1e-3
    assert (beside.first.eigenvalues - beside.second.eigenvalues).abs().max() < 0.03


def test_a_machine_that_is_not_unifilar_is_found_by_what_it_says():
    process, found = inferred("sns")
    assert found.is_trusted, found.doubts
    assert found.rank.rank == found.n_states == 2
    beside = found.compare(process)
    assert beside.divergence < 1e-3
    assert beside.r2_second > 0.999
    assert beside.first.entropy_rate.value == pytest.approx(beside.second.entropy_rate.value, abs=0.005)


def test_a_world_without_hidden_states_is_found_as_dimensions():
    process, found = inferred("frdn")
    assert found.rank.rank == 4
    assert found.process.is_generalized
    assert found.process.n_states == 4
    assert found.compare(process).divergence < 1e-3
    assert any("No hidden Markov machine of 4 states predicts as well" in line for line in found.summary())


def test_a_network_stopped_early_is_not_believed():
    found = msp.infer(train(msp.mess3(x=0.05, a=0.85), 30, 64, 3e-3), n_states=[1, 2, 3], n_starts=4, progress=False)
    assert not found.is_trusted
    assert found.explained < 0.98
    assert found.summary()[0].startswith("No process is named with confidence.")


def test_a_network_with_a_short_context_is_not_believed():
    found = msp.infer(train(msp.rrxor(), 100, 256, 5e-3, n_ctx=3), n_states=[1, 2, 3], n_starts=4, progress=False)
    assert not found.is_trusted
    assert found.n_states < 5
    assert any("Words of 4 tokens are too short" in doubt for doubt in found.doubts)


def test_rrxor_comes_back_as_it_is():
    process = msp.rrxor()
    found = msp.infer(make.load("rrxor"), n_states=[4, 5, 6], n_starts=4, progress=False)
    assert found.is_trusted, found.doubts
    assert found.n_states == 5
    beside = found.compare(process)
    assert beside.largest_deviation < 0.02
    period = [complex(each) for each in beside.first.eigenvalues[1:3]]
    assert period == pytest.approx([complex(-0.5, 0.75**0.5), complex(-0.5, -(0.75**0.5))], abs=0.01)
    # Four states are not enough by far, and six say no more.
    left = {each.process.n_states: each.held_out for each in found.candidates if not each.process.is_generalized}
    assert left[4] > 50 * left[5]
    assert left[6] > 0.8 * left[5]


def test_the_published_mess3(published_model, mess3):
    found = msp.infer(published_model, n_states=[2, 3, 4], n_starts=8, max_words=1000, progress=False)
    assert found.is_trusted, found.doubts
    assert found.rank.rank == found.n_states == 3
    assert found.rank.interval == (3, 3)
    two, three, _ = (each for each in found.candidates if not each.process.is_generalized)
    assert three.divergence < 1e-4
    assert two.divergence > 1e-2
    beside = found.compare(mess3)
    assert [float(each.real) for each in beside.first.eigenvalues] == pytest.approx([1, 0.85, 0.85], abs=0.005)
    assert beside.r2_first > 0.999
    assert beside.r2_second > 0.999
    told, untold = (
        msp.probe(published_model, msp.data.all_words(process, 7), controls=False, progress=False)
        for process in (mess3, found.process)
    )
    for site in told:
        assert untold[site].scores.held_out.r2 == pytest.approx(told[site].scores.held_out.r2, abs=0.002)
