"""Inference as a whole: from processes, data and networks, and its doubts."""

import dataclasses
import json
import math

import pytest
import torch

import msp_lens as msp
from msp_lens.inference.inference_report import best_candidate
from tests.hooked_models import Observer
from tests.inference.worlds import CATALOG, GENERALIZED

MESS3 = msp.mess3(x=0.05, a=0.85)


def infer(source, **options):
    return msp.infer(source, **({"progress": False, "n_starts": 8, "n_ctx": 8} | options))


@pytest.fixture(scope="module")
def golden():
    return infer(msp.processes.golden_mean(p=0.5))


@pytest.mark.parametrize("name", ["golden mean", "even", "z1r", "sns"])
def test_a_process_is_found_from_its_own_words(name):
    process, _ = CATALOG[name]
    found = infer(process, n_ctx=9)
    assert found.is_trusted, found.doubts
    assert found.process.n_states == process.n_states == found.rank.rank
    assert found.chosen.divergence < 1e-6
    assert found.explained > 0.9999
    beside = found.compare(process)
    # The process shown is simpler where a parameter costs more than it gives.
    assert beside.divergence < 1e-4
    if process.is_unifilar:
        assert beside.largest_deviation < 1e-3


def test_one_state_is_enough_for_a_coin():
    found = infer(msp.processes.coin(p=0.3))
    assert found.process.n_states == 1
    assert not found.is_trusted
    assert "hardly depends on the context" in found.doubts[0]
    assert math.isnan(found.explained)


@pytest.mark.parametrize("name", GENERALIZED)
def test_dimensions_that_are_no_hidden_states_are_said_to_be_none(name):
    process, length = GENERALIZED[name]
    found = infer(process, n_ctx=length + 1, n_states=process.n_states, n_starts=4, n_worth=10**8)
    assert found.rank.rank == process.n_states
    assert found.process.is_generalized
    assert found.compare(process).divergence < 1e-9
    assert any(f"No hidden Markov machine of {process.n_states} states predicts" in line for line in found.summary())


def test_data_are_a_source_too():
    process = msp.processes.golden_mean(p=0.5)
    found = infer(process.sample(4000, 20, seed=0))
    assert found.provenance["kind"] == "data"
    # A fifth of the sequences is held out.
    assert found.provenance["n_worth"] == 3200 * 20
    assert found.process.n_states == 2
    assert found.compare(process).largest_deviation < 0.02
    # What is expected of the best predictor: the entropy rate, and a little more at the beginning of each sequence.
    assert found.chosen.held_out == pytest.approx(0.4621 + 0.1744 / 20, abs=0.01)
    one_long = infer(process.sample(1, 20_000, seed=0))
    assert one_long.process.n_states == 2
    assert found.compare(one_long).largest_deviation < 0.05


def test_few_data_do_not_name_a_large_machine():
    few = infer(msp.rrxor().sample(20, 10, seed=0), n_states=[1, 2, 5], n_starts=4)
    assert few.process.n_states < 5


def test_a_network_that_observes_optimally_is_seen_through():
    process = msp.processes.random_process(2, 3, seed=11)
    found = infer(Observer(process), token_map=msp.TokenMap.identity(3), n_ctx=7)
    assert found.process.n_states == 2
    assert found.compare(process).divergence < 1e-7
    assert found.compare(process).r2_second > 0.9999
    assert any("says nothing of the first token" in line for line in found.summary())


@pytest.mark.parametrize("bos", [None, 3])
def test_an_untrained_network_is_not_believed(bos):
    model = msp.build_model(msp.ModelConfig(d_vocab=4, n_layers=2, d_model=32, d_head=8, d_mlp=32, n_ctx=8), seed=1)
    found = infer(model, n_ctx=None, token_map=msp.TokenMap((0, 1, 2), bos=bos), n_states=[1, 2, 3], n_starts=4)
    assert not found.is_trusted
    assert found.summary()[0].startswith("No process is named with confidence.")
    assert any(line.startswith("Doubt: ") for line in found.summary())


def test_a_context_that_is_too_short_is_not_believed():
    found = infer(msp.rrxor(), n_ctx=3)
    assert not found.is_trusted
    assert any("too short" in doubt for doubt in found.doubts)
    assert not found.provenance["is_held_out"]
    assert any("for want of longer ones" in line for line in found.summary())


def test_the_largest_number_tried_is_doubted_if_it_still_helped():
    found = infer(MESS3, n_states=[1, 2], n_ctx=6)
    assert any("No more than 2 states were tried" in doubt for doubt in found.doubts)
    assert any("at least 3 dimensions, the chosen process 2" in doubt for doubt in found.doubts)
    assert found.explained < 0.9


def test_more_states_are_tried_until_they_no_longer_help(golden):
    assert [each.process.n_states for each in golden.candidates if not each.process.is_generalized] == [1, 2, 3]


def test_the_criterion_is_what_is_lost_and_what_parameters_cost(golden):
    chosen = golden.chosen
    # 2 × (2 × 2 - 1) parameters.
    assert chosen.criterion - chosen.held_out == pytest.approx(6 * math.log(100_000) / 200_000)


def test_operators_are_chosen_only_if_they_are_clearly_better(golden):
    machine = dataclasses.replace(golden.chosen, divergence=1e-3, held_out=1e-3, criterion=2e-3)
    operators = dataclasses.replace(
        machine, process=golden.operators.to_process(), divergence=4e-4, held_out=4e-4, criterion=1.4e-3
    )
    assert best_candidate([machine, operators]) is operators
    for not_clearly in ({"divergence": 6e-4}, {"held_out": 6e-4}, {"criterion": 2.1e-3}):
        assert best_candidate([machine, dataclasses.replace(operators, **not_clearly)]) is machine


def test_what_is_held_out_is_what_comes_after_longer_contexts():
    found = infer(MESS3, n_states=[2], n_ctx=7, max_words=800)
    assert found.provenance["word_length"] == 6
    words = MESS3.sample(3000, 7, seed=5)
    beliefs = msp.filter_beliefs(MESS3, words)[:, 5:]
    optimal, machine = beliefs @ MESS3.emissions, found.candidates[0].process
    predicted = msp.filter_beliefs(machine, words)[:, 5:] @ machine.emissions
    expected = (optimal * (optimal / predicted).log()).sum(dim=2).mean()
    assert found.candidates[0].held_out == pytest.approx(float(expected), rel=0.1)


def test_it_is_saved_and_loaded(golden, tmp_path):
    path = golden.save(tmp_path / "inference.json")
    loaded = msp.Inference.load(path)
    assert loaded == golden
    assert repr(loaded) == repr(golden)
    assert loaded.provenance["fingerprint"] == msp.processes.golden_mean(p=0.5).fingerprint
    saved = json.loads(path.read_text())
    saved["rank"]["rank"] = 99
    path.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"inference\.json: .* damaged or was edited"):
        msp.Inference.load(path)


def test_it_is_shown_as_a_table_and_a_figure(golden):
    table = golden.to_dataframe()
    assert list(table.columns[:3]) == ["states", "KL", "held out"]
    assert table["chosen"].sum() == 1
    assert "→ 2" in repr(golden)
    assert "<table>" in golden._repr_html_()
    alone, beside = golden.plot(), golden.plot(against=msp.processes.golden_mean(p=0.5), theme="dark")
    assert len(alone.axes) == 3
    assert len(beside.axes) == 4
    assert "rank 2" in alone.axes[0].get_title()


def test_the_seed_decides_everything(global_state):
    process = msp.processes.even()
    first, again, other = (infer(process, n_states=[2], n_ctx=5, n_starts=4, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (MESS3, {"n_ctx": 1}, "n_ctx=1: words of three tokens are needed"),
        (MESS3, {"n_states": []}, r"n_states=\[\]: give at least one"),
        (MESS3, {"n_states": [0]}, r"n_states\[0\]=0: give at least 1"),
        (torch.zeros(1, 5, dtype=torch.int64), {}, "give sequences of tokens"),
        (torch.full((2, 20), -1), {}, "source holds token -1"),
    ],
)
def test_bad_input(source, options, message):
    with pytest.raises(ValueError, match=message):
        infer(source, **options)
