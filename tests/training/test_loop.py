import json

import pytest
import torch

import msp_lens as msp
from msp_lens.models import model_fingerprint

SMALL = {"n_layers": 1, "d_model": 16, "d_head": 8, "d_mlp": 32, "n_ctx": 4}


def config(process):
    return msp.ModelConfig(d_vocab=process.n_tokens, **SMALL)


@pytest.fixture(scope="module")
def trained():
    process = msp.golden_mean(p=0.5)
    training = msp.TrainingConfig(steps=300, batch_size=64, learning_rate=1e-2, warmup_steps=20)
    return msp.train(process, config(process), config=training, seed=0, progress=False)


def test_training_finds_the_optimum_at_every_position(trained):
    untrained = msp.build_model(config(trained.process), seed=0)
    before = msp.regret_by_position(untrained, msp.all_words(trained.process, 4))
    assert before.min() > 0.05
    # The last position as well: words have n_ctx + 1 tokens.
    assert trained.regret.max() < 2e-3
    torch.testing.assert_close(trained.regret, msp.regret_by_position(trained.model, msp.all_words(trained.process, 4)))


def test_the_paired_estimate_follows_the_regret(trained):
    last = trained.metrics[-1]
    assert last["step"] == 300
    assert last["tokens"] == 300 * 64 * 4
    assert last["regret"] == pytest.approx(float(trained.regret.mean()), abs=2e-3)
    assert last["loss"] == pytest.approx(float(trained.optimum.mean()), abs=0.05)
    assert trained.metrics[0]["regret"] > last["regret"]
    assert len(trained.to_dataframe()) == 6
    assert not trained.model.training
    assert "golden_mean: 300 steps" in repr(trained)


def test_a_seed_means_the_same_run(global_state):
    process = msp.z1r()
    training = msp.TrainingConfig(steps=3, batch_size=8)
    prints = [
        model_fingerprint(msp.train(process, config(process), config=training, seed=seed, progress=False).model)
        for seed in (0, 0, 1)
    ]
    assert prints[0] == prints[1] != prints[2]


def test_the_folder_holds_metrics_and_the_model(tmp_path):
    process = msp.z1r()
    training = msp.TrainingConfig(steps=5, batch_size=8, log_every=2, save_every=3)
    run = msp.train(process, config(process), config=training, out=tmp_path, progress=False)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 5]
    assert lines == list(run.metrics)
    loaded = msp.load_checkpoint(tmp_path)
    assert loaded.provenance["step"] == 5
    assert loaded.process == process
    assert loaded.fingerprint == model_fingerprint(run.model)


def test_a_model_of_ones_own_is_trained_in_place():
    process = msp.z1r()
    model = msp.build_model(config(process), seed=0)
    before = model_fingerprint(model)
    run = msp.train(process, model, config=msp.TrainingConfig(steps=2, batch_size=8), progress=False)
    assert run.model is model
    assert model_fingerprint(model) != before


def test_a_loss_that_is_no_number_stops_training():
    process = msp.z1r()
    model = msp.build_model(config(process), seed=0)
    with torch.no_grad():
        next(iter(model.parameters())).fill_(float("nan"))
    with pytest.raises(ValueError, match=r"loss became nan at step 1: lower the learning rate"):
        msp.train(process, model, config=msp.TrainingConfig(steps=5, batch_size=8), progress=False)


def test_a_model_with_too_small_a_vocabulary_is_refused(mess3):
    with pytest.raises(ValueError, match="has 2 tokens, mess3 emits 3"):
        msp.train(mess3, msp.ModelConfig(d_vocab=2, **SMALL), progress=False)
