import pytest
import torch
from torch.nn.functional import cross_entropy

import msp_lens as msp
from msp_lens.training.batches import Batches, _distinct
from tests import brute_force


def take(batches, n):
    supply = iter(batches)
    return [next(supply) for _ in range(n)]


@pytest.mark.parametrize("process", [msp.rrxor(), msp.mess3(x=0.05, a=0.85), msp.processes.coin()])
def test_merging_repeats_leaves_loss_and_gradient(process, monkeypatch):
    n_ctx, size = 5, 300
    draws = []
    sample = msp.Process.sample

    def recorded(*args, **options):
        draws.append(sample(*args, **options))
        return draws[-1]

    monkeypatch.setattr(msp.Process, "sample", recorded)
    taken = take(Batches(process, size, n_ctx, seed=0), 3)
    model = msp.build_model(msp.ModelConfig(d_vocab=process.n_tokens + 1, n_layers=1, d_model=16, n_ctx=n_ctx))
    for batch, drawn in zip(taken, draws[0].split(size)[:3], strict=True):
        assert len(batch.tokens) == len(torch.unique(drawn[:, :-1], dim=0)) < size
        log_probabilities = model(batch.tokens).log_softmax(-1)[..., : process.n_tokens]
        loss = batch.loss(log_probabilities)
        expected = cross_entropy(model(drawn[:, :-1]).transpose(1, 2), drawn[:, 1:])
        torch.testing.assert_close(loss, expected)
        parameters = list(model.parameters())
        for ours, theirs in zip(
            torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
        ):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-3)


def test_regret_is_that_of_the_words_drawn(mess3):
    batch = take(Batches(mess3, 50, 3, seed=1), 1)[0]
    log_q = torch.randn(len(batch.tokens), 3, 3, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    expected = torch.zeros(3)
    for word, weight, q in zip(batch.tokens.tolist(), batch.weights, log_q, strict=True):
        for t in range(3):
            joint = torch.tensor([sum(brute_force.joint(mess3, (*word[: t + 1], token))) for token in range(3)])
            p = joint / joint.sum()
            expected[t] += weight * (p * (p.log() - q[t])).sum()
    assert float(batch.weights.sum()) == pytest.approx(1)
    torch.testing.assert_close(batch.regret(log_q), expected.float(), rtol=1e-4, atol=1e-6)


def test_shares_make_up_the_batch(mess3):
    whole = take(Batches(mess3, 41, 4, seed=2), 2)
    parts = [take(Batches(mess3, 41, 4, seed=2, share=share), 2) for share in (slice(0, 20), slice(20, 41))]
    for step in range(2):
        log_q = torch.full((1, 4, 3), 1 / 3).log()
        assert sum(float(part[step].targets.sum()) for part in parts) == pytest.approx(1)
        for f in ("loss", "regret"):
            total = sum(getattr(part[step], f)(log_q.expand(len(part[step].tokens), -1, -1)) for part in parts)
            torch.testing.assert_close(
                total, getattr(whole[step], f)(log_q.expand(len(whole[step].tokens), -1, -1)), rtol=1e-4, atol=1e-7
            )


@pytest.mark.parametrize("n_ctx", [4, 40])
@pytest.mark.parametrize("sampling", ["independent", "stratified"])
@pytest.mark.parametrize("n_taken", [0, 3, 50, 57])
def test_a_state_continues_with_the_same_words(n_taken, sampling, n_ctx):
    process = msp.processes.z1r()
    batches = Batches(process, 8, n_ctx, seed=0, sampling=sampling)
    supply = iter(batches)
    for _ in range(n_taken):
        next(supply)
    state = batches.state
    rest = [next(supply) for _ in range(60)]
    seed = 99 if sampling == "independent" else 0
    again = take(Batches(process, 8, n_ctx, seed=seed, sampling=sampling, n_ready=n_taken, state=state), 60)
    for ours, theirs in zip(rest, again, strict=True):
        assert torch.equal(ours.tokens, theirs.tokens)
        assert torch.equal(ours.targets, theirs.targets)


def test_words_too_long_to_number_stand_for_themselves():
    words = torch.zeros(3, 100, dtype=torch.int64)
    first, which = _distinct(torch.zeros(3, dtype=torch.int64), words, 2)
    assert first.tolist() == which.tolist() == [0, 1, 2]
    batch = take(Batches(msp.processes.z1r(), 4, 100, seed=0), 1)[0]
    assert batch.tokens.shape == (4, 100)
    assert float(batch.targets.sum()) == pytest.approx(1)
