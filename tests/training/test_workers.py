"""Two real processes under accelerate, against one."""

import os
import socket

import pytest
import torch

import msp_lens as msp
from msp_lens.training import load_run
from msp_lens.training.workers import Workers
from tests.two_processes import run_two

# Odd, so that the shares differ: the mean of their gradients is not that of the batch.
CONFIG = msp.TrainingConfig(
    steps=60, batch_size=33, learning_rate=1e-2, warmup_steps=10, log_every=20, save_every=25, checkpoints=(0, 30)
)
MODEL = msp.ModelConfig(d_vocab=2, n_layers=1, d_model=16, d_head=8, d_mlp=32, n_ctx=4)


def train(folder):
    return msp.train(msp.processes.golden_mean(p=0.5), MODEL, config=CONFIG, out=folder, progress=False)


def worker(index, folder):
    """The script of each process, in the environment that torchrun would give it."""
    from accelerate.state import AcceleratorState

    # A fork knows what other tests left behind.
    AcceleratorState._reset_state(reset_partial_state=True)
    with open(f"{folder}/port") as file:
        port = file.read()
    os.environ |= {
        "RANK": str(index),
        "LOCAL_RANK": str(index),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    run = train(f"{folder}/run")
    assert torch.distributed.get_world_size() == 2
    with open(f"{folder}/fingerprint-{index}", "w") as file:
        file.write(msp.models.model_fingerprint(run.model))
    with pytest.raises(ValueError, match=r"batch_size=1: give at least 2 \(a word for each of 2 processes\)"):
        msp.train(
            msp.processes.golden_mean(p=0.5), MODEL, config=msp.TrainingConfig(steps=1, batch_size=1), progress=False
        )
    torch.distributed.destroy_process_group()


def test_two_processes_train_the_model_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(free.getsockname()[1]))
    run_two(__name__, tmp_path, timeout=180)

    together, alone = load_run(tmp_path / "run"), train(tmp_path / "alone")
    # The same words and the same gradients, but for the order in which they are summed.
    assert [record["tokens"] for record in together.metrics] == [record["tokens"] for record in alone.metrics]
    for ours, theirs in zip(together.metrics, alone.metrics, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
        assert ours["regret_by_position"] == pytest.approx(theirs["regret_by_position"], abs=1e-4)
    torch.testing.assert_close(together.regret, alone.regret, rtol=0.02, atol=1e-5)
    assert [c.step for c in together.checkpoints] == [0, 30, 60]
    fingerprints = [(tmp_path / f"fingerprint-{index}").read_text() for index in range(2)]
    assert fingerprints[0] == fingerprints[1] == msp.load_checkpoint(tmp_path / "run").fingerprint
    assert msp.load_checkpoint(tmp_path / "run").provenance["n_processes"] == 2


def test_one_process_is_left_alone():
    model = msp.build_model(MODEL)
    workers = Workers(model)
    assert workers.forward is model
