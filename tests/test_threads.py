import pytest
import torch

import msp_lens as msp
from msp_lens._threads import fitting_threads


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_small_work_has_one_thread_and_large_work_the_users(three_threads):
    with fitting_threads(10**6, torch.device("cpu")):
        assert torch.get_num_threads() == 1
    with fitting_threads(10**11, torch.device("cpu")):
        assert torch.get_num_threads() == 3
    with fitting_threads(10**6, torch.device("meta")):
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 3


def test_the_users_setting_returns_after_an_error(three_threads):
    with pytest.raises(RuntimeError), fitting_threads(1, torch.device("cpu")):
        raise RuntimeError
    assert torch.get_num_threads() == 3


def test_training_takes_one_thread_and_gives_back_the_users(three_threads):
    during = []
    small = msp.ModelConfig(d_vocab=3, n_layers=1, d_model=16, n_ctx=4)
    config = msp.TrainingConfig(steps=3, batch_size=8, log_every=1)
    three = msp.train(
        msp.mess3(), small, config=config, log_to=lambda record: during.append(torch.get_num_threads()), progress=False
    )
    assert during == [1, 1, 1]
    assert torch.get_num_threads() == 3
    torch.set_num_threads(1)
    one = msp.train(msp.mess3(), small, config=config, progress=False)
    for ours, theirs in zip(three.model.parameters(), one.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_training_that_fails_gives_back_the_users(three_threads):
    def fail(record):
        assert torch.get_num_threads() == 1
        raise RuntimeError("stop")

    config = msp.TrainingConfig(steps=3, batch_size=8, log_every=1)
    with pytest.raises(RuntimeError, match="stop"):
        msp.train(msp.mess3(), config=config, log_to=fail, progress=False)
    assert torch.get_num_threads() == 3
