"""The world that a network believes in, at each checkpoint of its training."""

import dataclasses

import numpy as np
import pytest
import torch

import msp_lens as msp
from msp_lens.formation import InferredOverTraining, inferred_over_training

QUICK = {"n_states": [1, 2], "n_starts": 2, "progress": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    model = msp.ModelConfig(d_vocab=2, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=4)
    config = msp.TrainingConfig(steps=40, batch_size=64, learning_rate=1e-2, warmup_steps=5, checkpoints=(0, 10))
    folder = tmp_path_factory.mktemp("run")
    return msp.train(msp.processes.golden_mean(p=0.5), model, config=config, out=folder, progress=False)


@pytest.fixture(scope="module")
def found(run):
    return inferred_over_training(run, seed=2, **QUICK)


def test_each_checkpoint_is_inferred_by_itself(run, found):
    table, curves = found.to_dataframe().set_index("step"), found.by_states()
    assert list(table.index) == list(curves.index) == [0, 10, 40]
    assert table["tokens"].tolist() == [0, 10 * 64 * 4, 40 * 64 * 4]
    for saved, inferred in zip(run.checkpoints, found.inferences, strict=True):
        alone = msp.infer(saved.load().model, seed=2, **QUICK)
        assert inferred == alone
        row = table.loc[saved.step]
        assert (row["states"], row["rank"], row["trusted"]) == (alone.n_states, alone.rank.rank, alone.is_trusted)
        assert row["KL"] == alone.chosen.held_out
        assert row["memory"] == alone.memory
        machines = [each.held_out for each in alone.candidates if not each.process.is_generalized]
        assert curves.loc[saved.step].tolist() == machines
    # The less a network knows, the less is left by a process without memory.
    assert not table["trusted"].loc[0]
    assert table["memory"].loc[0] < table["memory"].loc[40]


def test_the_sources_are_those_of_an_emergence(run, found):
    assert inferred_over_training(run.folder, seed=2, **QUICK) == found
    some = inferred_over_training(run.checkpoints[::2], seed=2, **QUICK)
    assert (some.steps, some.inferences) == ((0, 40), found.inferences[::2])
    models = {40: run.checkpoints[2].path, 0: run.checkpoints[0].load().model}
    given = inferred_over_training(models, seed=2, **QUICK)
    assert given.steps == (0, 40)
    assert given.inferences == found.inferences[::2]
    assert given.tokens[0] is None
    with pytest.raises(ValueError, match="no checkpoints"):
        inferred_over_training({}, **QUICK)
    with pytest.raises(ValueError, match="n_starts=0"):
        inferred_over_training(run, n_starts=0)


@pytest.fixture(scope="module")
def worlds():
    """One of two states that is trusted, and the same in doubt."""
    small = msp.infer(msp.processes.golden_mean(p=0.5), n_ctx=5, n_states=[1, 2, 3], n_starts=2, progress=False)
    doubted = dataclasses.replace(small, stationarity_gap=1.0)
    assert small.is_trusted
    assert not doubted.is_trusted
    return small, doubted


def test_the_order_of_worlds_is_told(worlds):
    small, doubted = worlds
    larger = dataclasses.replace(small, process=msp.mess3())
    assert (small.n_states, larger.n_states) == (2, 3)
    grown = InferredOverTraining((0, 10, 20, 30, 1000), (None,) * 5, (doubted, small, small, larger, larger))
    text = " ".join(grown.summary())
    assert "from step 0: none to be trusted; from step 10: 2 states; from step 30: 3 states." in text
    assert "first believed in a smaller world, from step 10 on" in text
    at_once = InferredOverTraining((0, 10), (0, 100), (doubted, small))
    assert "At no checkpoint before was a smaller world to be trusted" in " ".join(at_once.summary())
    shrunk = InferredOverTraining((0, 10), (0, 100), (larger, small))
    assert "At no checkpoint before" in " ".join(shrunk.summary())
    lost = InferredOverTraining((0, 10), (0, 100), (small, doubted))
    assert doubted.doubts[0] in " ".join(lost.summary())
    assert "first believed" not in " ".join(lost.summary())
    shown = repr(grown)
    assert "tokens" not in shown.splitlines()[2]
    assert shown.count(" no ") >= 1


def test_the_figure_shows_what_the_table_says(found, worlds, tmp_path):
    figure = found.plot()
    figure.savefig(tmp_path / "figure.png")
    sizes, left = figure.axes
    table = found.to_dataframe()
    assert sizes.get_lines()[0].get_ydata().tolist() == table["rank"].tolist()
    assert sizes.get_lines()[1].get_ydata().tolist() == table["states"].tolist()
    assert sizes.get_lines()[1].get_xdata().tolist() == table["tokens"].tolist()
    np.testing.assert_allclose(left.get_lines()[1].get_ydata(), found.by_states()[2])
    assert (sizes.get_xlabel(), left.get_xlabel()) == ("tokens seen", "tokens seen")
    small, doubted = worlds
    figure = InferredOverTraining((0, 10), (None, 100), (doubted, small)).plot(theme="dark")
    sizes = figure.axes[0]
    assert sizes.get_xlabel() == "steps"
    assert sizes.get_lines()[1].get_xdata().tolist() == [0, 10]
    trusted, hollow = (each.get_offsets()[:, 1].filled(np.nan).tolist() for each in sizes.collections)
    assert (trusted[1], hollow[0]) == (2, 2)
    assert np.isnan([trusted[0], hollow[1]]).all()


def test_checkpoints_are_left_as_they_were(run):
    model = run.checkpoints[0].load().model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inferred_over_training({5: model}, **QUICK)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(not point._forward_hooks for point in model.hook_dict.values())
