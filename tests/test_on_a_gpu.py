"""On an NVIDIA GPU: the same numbers as on the CPU, and no batch or step for which the CPU waits for the GPU."""

import pytest
import torch

import msp_lens as msp
from msp_lens._arrays import moved
from msp_lens.models import model_fingerprint
from tests.waits import further_waits

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CONFIG = msp.ModelConfig(d_vocab=3, n_layers=2, d_model=32, d_head=16, d_mlp=64, n_ctx=7)


def model_on(device):
    """One model, the same on each device."""
    return msp.build_model(CONFIG, seed=1, device=device)


def labelled(words):
    """The token before as a class."""
    before = [[None, *word[:-1]] for word in words.tokens.tolist()]
    return msp.LabelledTokens.from_tokens(words.tokens, before)


@pytest.mark.parametrize("n_rows", [9, 9_000])
def test_expanded_tensors_are_moved(n_rows):
    """More than 64 KiB are pinned first."""
    expanded = torch.arange(10).expand(n_rows, -1)
    found = moved(expanded, "cuda")
    assert found.is_cuda
    assert torch.equal(found.cpu(), expanded)


def test_regret_of_a_large_batch_is_that_of_the_cpu(mess3):
    words = msp.words(mess3, n_ctx=7, n_words=5_000, seed=0)
    found, expected = (
        msp.probe(model_on(device), words, batch_size=5_000, controls=False, progress=False).regret
        for device in ("cuda", "cpu")
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("sampled", [False, True])
def test_a_probe_is_that_of_the_cpu(mess3, sampled):
    words = msp.words(mess3, n_ctx=7, n_words=300, seed=0) if sampled else msp.words(mess3, n_ctx=7)
    found, expected = (
        msp.probe(model_on(device), words, concatenate=True, batch_size=250, progress=False)
        for device in ("cuda", "cpu")
    )
    assert list(found) == list(expected)
    for label in expected:
        for part in ("in_sample", "held_out"):
            pair = [getattr(report[label].scores, part) for report in (found, expected)]
            assert pair[0].r2 == pytest.approx(pair[1].r2, abs=1e-5)
            assert pair[0].mse == pytest.approx(pair[1].mse, rel=1e-3, abs=1e-7)
    torch.testing.assert_close(found.regret, expected.regret, rtol=1e-4, atol=1e-7)


def test_classes_are_read_as_on_the_cpu(mess3):
    data = labelled(msp.words(mess3, n_ctx=7, n_words=300, seed=0))
    found = []
    for device in ("cuda", "cpu"):
        classes = msp.probe(model_on(device), data, sites="1_post", batch_size=70, progress=False).classes
        assert classes is not None
        found.append(classes.best.held_out)
    # Fits of float32 activations that differ by rounding; rows in wrong places would be right a third of the time. The
    # untrained network of the CPU is right 77 % of the time.
    assert found[0].accuracy == pytest.approx(found[1].accuracy, abs=1e-2)
    assert found[0].cross_entropy == pytest.approx(found[1].cross_entropy, abs=1e-2)
    assert found[1].accuracy > 0.7


@pytest.mark.parametrize("kind", ["tree", "words", "labelled"])
def test_a_probe_waits_once_for_each_batch(mess3, kind):
    """To learn whether its activations are finite, before they are added up."""
    model = model_on("cuda")
    words = msp.words(mess3, n_ctx=7) if kind == "tree" else msp.words(mess3, n_ctx=7, n_words=400, seed=0)
    data = labelled(words) if kind == "labelled" else words

    def work(n_batches):
        msp.probe(model, data, batch_size=-(-len(words) // n_batches), progress=False)

    found = further_waits(work, 3, 9)
    assert sum(found.values()) <= 1, found


def test_a_training_waits_for_one_step_in_sixteen(mess3):
    def work(steps):
        config = msp.TrainingConfig(steps=steps, batch_size=16, warmup_steps=1, log_every=1_000, clip_norm=1.0)
        msp.train(mess3, model_on("cuda"), config=config, progress=False)

    found = further_waits(work, 20, 84)
    assert sum(found.values()) <= 1 / 16 + 1e-9, found


def test_an_interrupted_training_goes_on_bit_for_bit(mess3, tmp_path):
    options = {"steps": 30, "batch_size": 16, "warmup_steps": 1, "log_every": 7, "save_every": 5, "averaging": 0.9}

    def train(name, **more):
        more |= {"config": msp.TrainingConfig(**options), "out": tmp_path / name, "progress": False}
        return msp.train(mess3, model_on("cuda"), **more)

    def interrupt(record):
        if record["step"] == 14:
            raise InterruptedError

    whole = train("whole")
    with pytest.raises(InterruptedError):
        train("parts", log_to=interrupt)
    parts = train("parts")
    assert parts.resumed_from == 10
    assert model_fingerprint(parts.model) == model_fingerprint(whole.model)
    for one, other in zip(parts.metrics, whole.metrics, strict=True):
        assert (one["loss"], one["regret_by_position"]) == (other["loss"], other["regret_by_position"])
