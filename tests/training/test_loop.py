import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import msp_lens as msp
from msp_lens.models import model_fingerprint
from msp_lens.training import tensorboard_logger, wandb_logger

SMALL = {"n_layers": 1, "d_model": 16, "d_head": 8, "d_mlp": 32, "n_ctx": 4}


def config(process):
    return msp.ModelConfig(d_vocab=process.n_tokens, **SMALL)


@pytest.fixture(scope="module")
def trained():
    process = msp.processes.golden_mean(p=0.5)
    training = msp.TrainingConfig(steps=300, batch_size=64, learning_rate=1e-2, warmup_steps=20)
    return msp.train(process, config(process), config=training, seed=0, progress=False)


def test_training_finds_the_optimum_at_every_position(trained):
    untrained = msp.build_model(config(trained.process), seed=0)
    before = msp.training.regret_by_position(untrained, msp.data.all_words(trained.process, 4))
    assert before.min() > 0.05
    # The last position as well: words have n_ctx + 1 tokens.
    assert trained.regret.max() < 2e-3
    torch.testing.assert_close(
        trained.regret, msp.training.regret_by_position(trained.model, msp.data.all_words(trained.process, 4))
    )


def test_the_paired_estimate_follows_the_regret(trained):
    last = trained.metrics[-1]
    assert last["step"] == 300
    assert last["tokens"] == 300 * 64 * 4
    assert last["regret"] == pytest.approx(float(trained.regret.mean()), abs=2e-3)
    assert last["loss"] == pytest.approx(float(trained.optimum.mean()), abs=0.05)
    assert trained.metrics[0]["regret"] > last["regret"]
    assert len(trained.to_dataframe()) == 6
    over_time, by_position = trained.plot().axes
    assert list(over_time.lines[0].get_xdata()) == trained.to_dataframe()["tokens"].tolist()
    assert [bar.get_height() for bar in by_position.patches] == pytest.approx(trained.regret.tolist())
    assert not trained.model.training
    assert "golden_mean: 300 steps" in repr(trained)


def test_a_seed_means_the_same_run(global_state):
    process = msp.processes.z1r()
    training = msp.TrainingConfig(steps=3, batch_size=8)
    prints = [
        model_fingerprint(msp.train(process, config(process), config=training, seed=seed, progress=False).model)
        for seed in (0, 0, 1)
    ]
    assert prints[0] == prints[1] != prints[2]


def test_the_folder_holds_metrics_and_the_model(tmp_path):
    process = msp.processes.z1r()
    training = msp.TrainingConfig(steps=5, batch_size=8, log_every=2, save_every=3)
    run = msp.train(process, config(process), config=training, out=tmp_path, progress=False)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 5]
    assert lines == list(run.metrics)
    loaded = msp.load_checkpoint(tmp_path)
    assert loaded.provenance["step"] == 5
    assert loaded.process == process
    assert loaded.fingerprint == model_fingerprint(run.model)


def test_a_given_model_is_trained_in_place():
    process = msp.processes.z1r()
    model = msp.build_model(config(process), seed=0)
    before = model_fingerprint(model)
    run = msp.train(process, model, config=msp.TrainingConfig(steps=2, batch_size=8), progress=False)
    assert run.model is model
    assert model_fingerprint(model) != before


def test_a_loss_that_is_not_finite_stops_training():
    process = msp.processes.z1r()
    model = msp.build_model(config(process), seed=0)
    with torch.no_grad():
        next(iter(model.parameters())).fill_(float("nan"))
    with pytest.raises(ValueError, match=r"loss became nan at step 1: lower the learning rate"):
        msp.train(process, model, config=msp.TrainingConfig(steps=5, batch_size=8), progress=False)


def test_gradients_may_be_off_in_the_callers_code(trained):
    process = msp.processes.z1r()
    prints = []
    for context in (nullcontext(), torch.no_grad(), torch.inference_mode()):
        with context:
            run = msp.train(process, config(process), config=msp.TrainingConfig(steps=2, batch_size=8), progress=False)
            assert torch.is_grad_enabled() == isinstance(context, nullcontext)
        prints.append(model_fingerprint(run.model))
    assert prints[0] == prints[1] == prints[2] != model_fingerprint(msp.build_model(config(process), seed=0))


def test_weights_that_cannot_be_trained_are_refused():
    process = msp.processes.z1r()
    options = {"config": msp.TrainingConfig(steps=2, batch_size=8), "progress": False}
    frozen = msp.build_model(config(process))
    for parameter in frozen.parameters():
        parameter.requires_grad = False
    with pytest.raises(ValueError, match=r"no weight to train: .*requires_grad_\(True\)"):
        msp.train(process, frozen, **options)
    model = msp.build_model(config(process))
    holder = next(each for each in model.modules() if next(each.parameters(recurse=False), None) is not None)
    name, weight = next(holder.named_parameters(recurse=False))
    with torch.inference_mode():
        setattr(holder, name, torch.nn.Parameter(weight.clone()))
    with pytest.raises(ValueError, match=r"made under torch\.inference_mode"):
        msp.train(process, model, **options)


@pytest.mark.parametrize("mode", [True, False])
def test_a_logger_that_raises_leaves_each_module_in_its_mode(mode):
    def log(record):
        raise RuntimeError("the server is gone")

    process = msp.processes.z1r()
    model = msp.build_model(config(process))
    model.train(mode)
    model.blocks[0].train(not mode)
    training = msp.TrainingConfig(steps=2, batch_size=8, log_every=1)
    with pytest.raises(RuntimeError, match="server is gone"):
        msp.train(process, model, config=training, log_to=log, progress=False)
    assert (model.training, model.blocks[0].training) == (mode, not mode)


def test_a_model_with_too_small_a_vocabulary_is_refused(mess3):
    with pytest.raises(ValueError, match="has 2 tokens, mess3 emits 3"):
        msp.train(mess3, msp.ModelConfig(d_vocab=2, **SMALL), progress=False)


RECIPES = {
    "muon": {"optimizer": "muon"},
    "sgd": {"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.3},
    "cosine, clipped, decayed": {"schedule": "cosine", "clip_norm": 0.5, "weight_decay": 0.01},
    "constant, averaged": {"schedule": "constant", "averaging": 0.97},
    "bfloat16": {"mixed_precision": "bfloat16"},
}


@pytest.mark.parametrize("options", RECIPES.values(), ids=RECIPES)
def test_every_way_of_training_learns(options, global_state):
    process = msp.processes.golden_mean(p=0.5)
    training = msp.TrainingConfig(
        **{"steps": 150, "batch_size": 64, "learning_rate": 1e-2, "warmup_steps": 20} | options
    )
    run = msp.train(process, config(process), config=training, progress=False)
    assert run.regret.max() < 0.01
    assert all(parameter.dtype == torch.float32 for parameter in run.model.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"normalization_type": None},
        {"attn_only": True},
        {"n_heads": 3, "d_model": 12, "act_fn": "gelu"},
        {"n_layers": 2, "d_model": 2, "d_head": 1, "d_mlp": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_any_architecture_is_trained(options, optimizer):
    process = msp.processes.golden_mean(p=0.5)
    model = msp.build_model(msp.ModelConfig(d_vocab=3, **SMALL | options))
    before = float(msp.training.regret_by_position(model, msp.data.all_words(process, 4)).mean())
    training = msp.TrainingConfig(steps=60, batch_size=32, learning_rate=1e-2, warmup_steps=5, optimizer=optimizer)
    run = msp.train(process, model, config=training, progress=False)
    assert float(run.regret.mean()) < before / 2


def test_muon_makes_orthogonal_steps_in_blocks_alone():
    process = msp.mess3(x=0.05, a=0.85)
    training = msp.TrainingConfig(
        steps=1, batch_size=64, optimizer="muon", momentum=0.95, learning_rate=1e-2, warmup_steps=0
    )
    model = msp.build_model(msp.ModelConfig(d_vocab=3, **SMALL | {"n_heads": 2}), seed=0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    msp.train(process, model, config=training, progress=False)
    n_matrices = 0
    for name, parameter in model.named_parameters():
        moved = parameter.detach() - before[name]
        if "mlp" in name and parameter.ndim == 2:
            n_matrices += 1
            # Newton-Schulz brings most singular values near 1, and the scale is .2 √(the longer side).
            values = torch.linalg.svdvals(moved) / (1e-2 * 0.2 * 32**0.5)
            assert 0.6 < values.median() <= values.max() < 1.3
            assert (values > 0.5).sum() > 10
        elif "emb" in name and parameter.shape[-1] == 3:
            # AdamW's first step is the learning rate in every entry.
            torch.testing.assert_close(moved.abs(), torch.full_like(moved, 1e-2), rtol=0.05, atol=0)
    assert n_matrices == 2


def test_the_average_is_of_the_weights_it_saw():
    process = msp.processes.z1r()
    training = msp.TrainingConfig(steps=3, batch_size=8, averaging=0.5, schedule="constant", warmup_steps=0)
    plain = [
        msp.train(process, config(process), config=replace(training, averaging=None, steps=steps), progress=False).model
        for steps in (1, 2, 3)
    ]
    start = msp.build_model(config(process), seed=0)
    averaged = msp.train(process, config(process), config=training, progress=False).model
    for value, first, *others in zip(*(model.parameters() for model in (averaged, start, *plain)), strict=True):
        expected = first
        for step, other in enumerate(others, start=1):
            decay = min(0.5, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * other
        torch.testing.assert_close(value, expected)


def test_clipping_bounds_the_step():
    process = msp.processes.z1r()
    moved = []
    for clip in (None, 1e-3):
        model = msp.build_model(config(process), seed=0)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        training = msp.TrainingConfig(
            steps=1,
            batch_size=8,
            optimizer="sgd",
            learning_rate=1.0,
            warmup_steps=0,
            schedule="constant",
            clip_norm=clip,
        )
        run = msp.train(process, model, config=training, progress=False)
        change = [(p.detach() - b).norm() for p, b in zip(model.parameters(), before, strict=True)]
        moved.append(float(torch.stack(change).norm()))
        # What is recorded is the norm before clipping: SGD's first step at learning rate 1.
        assert run.metrics[0]["gradient_norm"] == pytest.approx(moved[0], rel=1e-4)
    assert moved[1] == pytest.approx(1e-3, rel=1e-3)


def test_it_stops_at_the_regret_asked_for():
    process = msp.processes.golden_mean(p=0.5)
    training = msp.TrainingConfig(
        steps=3000, batch_size=64, learning_rate=1e-2, warmup_steps=20, target_regret=5e-3, log_every=10
    )
    run = msp.train(process, config(process), config=training, progress=False)
    assert run.stopped_by == "regret"
    assert run.step < 300
    assert float(run.regret.mean()) <= 5e-3
    assert run.metrics[-1]["evaluated_regret"] == pytest.approx(float(run.regret.mean()), rel=1e-5)
    assert all(record["evaluated_regret"] > 5e-3 for record in run.metrics[:-1])


def test_it_stops_when_time_is_up():
    process = msp.processes.z1r()
    training = msp.TrainingConfig(steps=1_000_000, batch_size=8, max_seconds=0.3)
    run = msp.train(process, config(process), config=training, progress=False)
    assert run.stopped_by == "seconds"
    assert 0.3 <= run.seconds < 30
    assert 1 < run.step < 1_000_000


def test_records_say_what_is_asked_of_them(tmp_path):
    process = msp.processes.golden_mean(p=0.5)
    heard = []
    training = msp.TrainingConfig(steps=25, batch_size=400, log_every=10)
    run = msp.train(process, config(process), config=training, progress=False, log_to=heard.append)
    assert heard == list(run.metrics)
    # Ten steps of 400 words: close to what the untrained model loses.
    first, untrained = heard[0], msp.build_model(config(process), seed=0)
    expected = msp.training.regret_by_position(untrained, msp.data.all_words(process, 4))
    assert first["loss"] == pytest.approx(
        float((run.optimum + torch.tensor(first["regret_by_position"])).mean()), abs=0.02
    )
    assert first["regret_by_position"][0] < float(expected[0]) * 1.1
    assert first["regret"] == pytest.approx(sum(first["regret_by_position"]) / 4)
    assert first["loss_ratio"] == pytest.approx(1 + first["regret"] / float(run.optimum.mean()))
    assert heard[-1]["weight_norm"] == pytest.approx(
        float(torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()]).norm()), rel=1e-5
    )
    assert heard[-1]["tokens_per_second"] == pytest.approx(
        (heard[-1]["tokens"] - heard[-2]["tokens"]) / (heard[-1]["seconds"] - heard[-2]["seconds"])
    )
    assert {"regret_by_position/0", "regret_by_position/3"} <= set(run.to_dataframe().columns)


def test_checkpoints_are_the_models_of_their_moments(tmp_path):
    process = msp.processes.z1r()
    training = msp.TrainingConfig(steps=6, batch_size=8, schedule="constant", checkpoints=(0, 4))
    run = msp.train(process, config(process), config=training, out=tmp_path, progress=False)
    assert [(c.step, c.tokens) for c in run.checkpoints] == [(0, 0), (4, 4 * 8 * 4), (6, 6 * 8 * 4)]
    start, four, end = (c.load() for c in run.checkpoints)
    assert start.fingerprint == model_fingerprint(msp.build_model(config(process), seed=0))
    shorter = replace(training, steps=4, checkpoints=None)
    assert four.fingerprint == model_fingerprint(
        msp.train(process, config(process), config=shorter, progress=False).model
    )
    assert end.fingerprint == model_fingerprint(run.model)
    assert four.process == process
    assert four.provenance["training"]["batch_size"] == 8
    assert four.provenance["versions"]["torch"] == torch.__version__
    with pytest.raises(ValueError, match=r"checkpoints=\(0, 4\) needs a folder .*: give out="):
        msp.train(process, config(process), config=training, progress=False)


def test_checkpoints_that_are_not_there_are_asked_for(tmp_path, small_model):
    with pytest.raises(FileNotFoundError, match='checkpoints="logarithmic"'):
        msp.training.saved_checkpoints(tmp_path)
    msp.save_checkpoint(tmp_path / "checkpoints" / "step-1.safetensors", small_model)
    with pytest.raises(ValueError, match="was not saved by a training"):
        msp.training.saved_checkpoints(tmp_path)
    msp.save_checkpoint(tmp_path, small_model)
    with pytest.raises(ValueError, match=r"holds checkpoints/step-1\.safetensors, a model that no training saved"):
        msp.train(msp.processes.coin(), config=msp.TrainingConfig(steps=1), out=tmp_path, progress=False)


def test_loggers_say_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match="pip install wandb"):
        wandb_logger(project="beliefs")
    with pytest.raises(ImportError, match=r'needs tensorboard: pip install "msp-lens\[tensorboard\]"'):
        tensorboard_logger(tmp_path)


def test_loggers_pass_records_on(monkeypatch, tmp_path):
    seen = []

    class Run:
        def log(self, numbers, step):
            seen.append((step, numbers))

    class Writer:
        def __init__(self, folder):
            seen.append(folder)

        def add_scalar(self, name, value, global_step):
            seen.append((global_step, {name: value}))

        def flush(self):
            pass

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **options: seen.append(options) or Run()))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    record = {"step": 3, "loss": 0.5, "loss_ratio": None, "regret_by_position": [0.1]}
    wandb_logger(project="beliefs")(record)
    assert seen == [{"project": "beliefs"}, (3, {"step": 3, "loss": 0.5, "regret_by_position/0": 0.1})]
    seen.clear()
    tensorboard_logger(tmp_path)(record)
    assert seen == [str(tmp_path), (3, {"step": 3}), (3, {"loss": 0.5}), (3, {"regret_by_position/0": 0.1})]
