"""The experiments on sources of several components, with tiny networks that are hardly trained."""

import dataclasses
import math

import pytest

import msp_lens as msp
from msp_lens.experiments.papers.nonergodic2025 import (
    SITE,
    coins_in_context,
    exact_coins,
    networks,
    subspaces,
    which_and_where,
)
from msp_lens.experiments.reproduction import Trained
from msp_lens.processes import coins

N_CTX = 6


@pytest.fixture(scope="module")
def tiny():
    """Both networks of the small size, shorter, narrower and trained for a moment."""
    found = {}
    for name, network in networks(True).items():
        model = dataclasses.replace(network.model, n_layers=1, d_model=16, d_head=4, d_mlp=16, n_ctx=N_CTX)
        training = dataclasses.replace(network.training, steps=2, batch_size=16, warmup_steps=1)
        run = msp.train(network.process, model, config=training, progress=False)
        found[name] = Trained(name=name, model=run.model, process=run.process, regret=run.regret, origin="a test")
    return found


def test_the_networks_read_coins_and_machines_after_bos():
    for small, n_coins in ((True, 10), (False, 100)):
        made = networks(small)
        assert len(made["coins"].process.process.components) == n_coins
        assert len(made["mess3"].process.process.components) == 3
        assert all(each.process.tokens[-1] == "BOS" for each in made.values())
        assert all(each.model.d_vocab == each.process.n_tokens for each in made.values())


def test_the_exact_curve_is_the_closed_form(tiny):
    """Laplace's rule for a coin of any bias, whose excess thousand coins share but for 1/(2ℓN)."""
    section = exact_coins(tiny, True)
    constant, exponent = section.claims
    ell = 100
    powers = sum(k * math.log(k) for k in range(1, ell + 1))
    excess = math.log(ell + 1) - 2 * powers / (ell * (ell + 1)) - 0.5
    assert constant.measured == pytest.approx(2 * ell * excess, abs=2e-3)
    assert constant.control < 0.02
    assert [constant.verdict, exponent.verdict] == ["reproduced"] * 2
    assert exponent.control < -2
    section.plot()


def test_an_untrained_network_learns_no_coin(tiny):
    """What it loses more than one who knows the coin, by the loss itself, over all words."""
    last, everywhere = coins_in_context(tiny, True).claims
    assert [last.verdict, everywhere.verdict] == ["not reproduced"] * 2
    trained, every = tiny["coins"], msp.words(tiny["coins"].process, n_ctx=N_CTX)
    predicted = trained.model(every.tokens)[:, -1].detach().double().log_softmax(dim=-1)
    following = every.beliefs[:, -1] @ trained.process.emissions
    loss = -(every.word_weights @ (following * predicted).sum(dim=-1))
    known = msp.beliefs.learning_curve(coins(10), N_CTX).oracle[-1]
    assert last.measured == pytest.approx(float(loss - known), rel=1e-6)
    assert last.published == 0.5 / N_CTX
    coins_in_context(tiny, True).plot()


def test_an_untrained_network_does_not_tell_which_machine_it_is(tiny):
    section = which_and_where(tiny, True)
    which, where = section.claims
    (table,) = section.tables
    assert which.measured == table[SITE].scores.held_out.r2
    assert [which.verdict, where.verdict] == ["not reproduced"] * 2
    assert which.control >= max(
        each.held_out.r2 for each in table.controls if each.kind == "window" and each.site in (None, SITE)
    )
    section.plot()


def test_subspaces_are_compared_with_those_of_an_untrained_network(tiny):
    section = subspaces(tiny, True)
    components, shared = section.claims
    assert components.control_is == "untrained"
    assert 0 <= shared.measured <= 1
    assert 0 <= shared.control <= 1
    section.plot()
