import json
import math

import numpy as np
import pytest
import torch

import msp_lens as msp
from msp_lens.training import PRESETS, recipe


def test_learning_rate_rises_and_falls():
    config = msp.TrainingConfig(steps=10, learning_rate=1.0, warmup_steps=4)
    rates = [config.learning_rate_at(step) for step in range(10)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_without_warm_up_it_starts_at_the_peak():
    config = msp.TrainingConfig(steps=2, learning_rate=1.0, warmup_steps=0)
    assert [config.learning_rate_at(step) for step in range(2)] == [1.0, 0.5]


def test_other_schedules():
    cosine = msp.TrainingConfig(steps=10, learning_rate=2.0, warmup_steps=2, schedule="cosine")
    rates = [cosine.learning_rate_at(step) for step in range(10)]
    assert rates[:3] == [1.0, 2.0, 2.0]
    assert rates[3:] == pytest.approx([1 + math.cos(math.pi * k / 8) for k in range(1, 8)])
    constant = msp.TrainingConfig(steps=10, learning_rate=2.0, warmup_steps=2, schedule="constant")
    assert [constant.learning_rate_at(step) for step in (0, 1, 9)] == [1.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0: give at least 1"),
        ({"steps": 5, "learning_rate": 0.0}, r"learning_rate=0\.0: give a number above 0"),
        ({"steps": 5, "batch_size": -1}, "batch_size=-1"),
        ({"steps": 5, "averaging": 1.0}, r"averaging=1\.0: give a number below 1"),
        ({"steps": 5, "momentum": -0.1}, r"momentum=-0\.1"),
        ({"steps": 5, "betas": (0.9, 1.0)}, r"betas\[1\]=1\.0: give a number below 1"),
        ({"steps": 5, "clip_norm": 0.0}, r"clip_norm=0\.0: give a number above 0"),
        ({"steps": 5, "max_seconds": -1}, r"max_seconds=-1\.0: give a number above 0"),
        ({"steps": 5, "target_regret": 0}, r"target_regret=0\.0: give a number above 0"),
        ({"steps": 5, "learning_rate": math.nan}, "learning_rate=nan"),
        ({"steps": 5, "learning_rate": math.inf}, "learning_rate=inf: give a number that is not infinite"),
        ({"steps": 5, "weight_decay": math.inf}, "weight_decay=inf: give a number that is not infinite"),
        ({"steps": 5, "weight_decay": -0.1}, r"weight_decay=-0\.1: give at least 0"),
        ({"steps": 2.5}, r"steps=2\.5: give a whole number"),
        ({"steps": 5, "betas": (0.9,)}, "betas="),
        ({"steps": 5, "checkpoints": (1, 6)}, "each must be from 0 to steps=5"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        msp.TrainingConfig(**options)


@pytest.mark.parametrize(
    "options",
    [{"optimizer": "lion"}, {"schedule": "step"}, {"mixed_precision": "float16"}, {"checkpoints": "often"}],
    ids=str,
)
def test_unknown_choices_are_refused(options):
    # Where calls are type-checked, the check comes first.
    with pytest.raises((ValueError, TypeError), match=next(iter(options.values()))):
        msp.TrainingConfig(steps=5, **options)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"checkpoints": None}, ()),
        ({"checkpoints": (7, 0, 3, 3)}, (0, 3, 7, 100)),
        ({"checkpoints": "linear", "n_checkpoints": 5}, (0, 25, 50, 75, 100)),
        ({"checkpoints": "logarithmic", "n_checkpoints": 4}, (0, 1, 10, 100)),
        # 8 words of 5 tokens a step.
        ({"checkpoints": (0, 1, 40, 41), "checkpoints_in": "tokens"}, (0, 1, 2, 100)),
    ],
)
def test_checkpoints_are_kept_on_a_list_or_a_schedule(options, steps):
    assert msp.TrainingConfig(steps=100, batch_size=8, **options).checkpoint_steps(5) == steps


def test_numbers_in_any_container_mean_the_same():
    plain = msp.TrainingConfig(steps=5, betas=(0.5, 0.25), learning_rate=0.5, averaging=0.5, checkpoints=(0, 5))
    given = msp.TrainingConfig(
        steps=np.int64(5),
        betas=np.array([0.5, 0.25]),
        learning_rate=torch.tensor(0.5),
        averaging=np.float32(0.5),
        checkpoints=[np.int32(0), 5.0],
    )
    assert given == plain
    assert msp.TrainingConfig.from_dict(json.loads(json.dumps(given.to_dict()))) == plain


@pytest.mark.parametrize(
    "options",
    [{"steps": "5"}, {"steps": None}, {"steps": True}, {"learning_rate": "fast"}, {"clip_norm": [1.0]}, {"betas": 0.9}],
    ids=str,
)
def test_values_of_another_kind_are_refused(options):
    with pytest.raises(TypeError, match=f"{next(iter(options))}="):
        msp.TrainingConfig(**options)


def test_a_misspelt_field_is_answered_with_the_nearest():
    with pytest.raises(TypeError, match=r"no parameter 'learning_rates'.*Did you mean learning_rate"):
        msp.TrainingConfig(learning_rates=0.1)


def test_a_schedule_of_checkpoints_needs_nothing_else():
    """As the errors of `saved_checkpoints` and `emergence` advise."""
    steps = msp.TrainingConfig(checkpoints="logarithmic").checkpoint_steps(10)
    assert (steps[0], steps[-1]) == (0, msp.TrainingConfig().steps)


def test_tokens_beyond_the_end_are_refused():
    config = msp.TrainingConfig(steps=100, batch_size=8, checkpoints=(4001,), checkpoints_in="tokens")
    with pytest.raises(ValueError, match=r"checkpoints=\(4001,\): steps=100 predict only 4000 tokens"):
        config.checkpoint_steps(5)


def test_a_config_prints_and_comes_back_from_json():
    config = msp.TrainingConfig(steps=5, optimizer="sgd", momentum=0.9, checkpoints=(0, 5))
    assert msp.TrainingConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    text = str(config)
    assert "momentum         0.9" in text
    assert "betas" not in text
    assert "mixed_precision" not in text
    assert "Training\nsteps            5" in str(type(recipe("quick", msp.mess3()))(msp.ModelConfig(d_vocab=3), config))


def test_presets():
    assert list(PRESETS) == ["quick", "tiny", "paper", "shai2024", "rnn", "gru", "lstm", "ssm"]
    for preset in ("quick", "paper", "shai2024"):
        assert recipe(preset, msp.mess3()).model == msp.ModelConfig(d_vocab=3)
        is_even = recipe(preset, msp.mess3()).training.sampling == "stratified"
        assert is_even == (preset != "shai2024")
        wide = recipe(preset, msp.rrxor()).model
        assert (wide.d_model, wide.n_heads, wide.d_head, wide.d_mlp) == (128, 4, 16, 512)
    tiny = recipe("tiny", msp.rrxor())
    assert (tiny.model.d_vocab, tiny.model.n_layers, tiny.training.steps) == (2, 1, 100)
    for kind in ("rnn", "gru", "lstm", "ssm"):
        model = recipe(kind, msp.rrxor()).model
        assert (model.kind, model.d_vocab, model.n_ctx) == (kind, 2, 10)
    with pytest.raises(KeyError, match="'slow': choose one of 'quick', 'tiny', 'paper', 'shai2024'"):
        recipe("slow", msp.mess3())


def test_the_papers_own_recipe():
    config = recipe("shai2024", msp.mess3()).training
    assert (config.optimizer, config.learning_rate, config.batch_size, config.steps) == ("sgd", 0.01, 64, 1_000_000)
    assert (config.momentum or 0.0, config.weight_decay) == (0.0, 0.0)
    assert config.learning_rate_at(0) == config.learning_rate_at(999_999) == 0.01
