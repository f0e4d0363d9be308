import pytest

import msp_lens as msp
from msp_lens.training import recipe


def test_learning_rate_rises_and_falls():
    config = msp.TrainingConfig(steps=10, learning_rate=1.0, warmup_steps=4)
    rates = [config.learning_rate_at(step) for step in range(10)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_without_warm_up_it_starts_at_the_peak():
    config = msp.TrainingConfig(steps=2, learning_rate=1.0, warmup_steps=0)
    assert [config.learning_rate_at(step) for step in range(2)] == [1.0, 0.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"steps": 5, "learning_rate": 0.0}, r"learning_rate=0\.0"),
        ({"steps": 5, "batch_size": -1}, "batch_size=-1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        msp.TrainingConfig(**options)


def test_presets():
    assert recipe("quick", msp.mess3()).model == msp.ModelConfig(d_vocab=3)
    wide = recipe("quick", msp.rrxor()).model
    assert (wide.d_model, wide.n_heads, wide.d_head) == (128, 4, 16)
    with pytest.raises(KeyError, match="'slow'; there is quick"):
        recipe("slow", msp.mess3())
