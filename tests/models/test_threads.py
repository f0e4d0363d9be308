"""Several threads at one model: each gets what it would get alone."""

import time
from concurrent.futures import ThreadPoolExecutor

import torch

import msp_lens as msp
from msp_lens.models import editing, holding, model_fingerprint, stream_activations

SITE = "blocks.0.hook_resid_post"


def in_threads(function, arguments):
    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(function, arguments))


def slowly(model):
    """The model with a pause in each forward pass, in which another thread can start its own."""
    return model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda activation, hook: time.sleep(0.002))])


def test_streams_of_one_model(small_model, mess3):
    words = [mess3.sample(24, 5, seed=seed) for seed in range(4)]

    def streamed(tokens):
        batches = list(stream_activations(small_model, tokens, SITE, batch_size=4))
        return torch.cat([batch.activations[SITE] for batch in batches])

    alone = [streamed(tokens) for tokens in words]
    small_model.train(True)
    with slowly(small_model):
        together = in_threads(streamed, words)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    assert all(module.training for module in small_model.modules())


def test_an_edit_in_one_thread_is_none_in_another(small_model, mess3):
    tokens = mess3.sample(4, 5, seed=0)

    def logits(scale):
        results = []
        for _ in range(5):
            with editing(small_model, {SITE: lambda activation: scale * activation}), torch.no_grad():
                results.append(small_model(tokens))
            (batch,) = stream_activations(small_model, tokens, ())
            results.append(batch.output)
        return torch.stack(results)

    scales = [0.0, 1.0, 3.0]
    alone = [logits(scale) for scale in scales]
    with slowly(small_model):
        together = in_threads(logits, scales)
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=0)


def test_probes_of_one_model(small_model, mess3):
    def scores(weighting):
        less_work = {"controls": False, "by_position": False, "progress": False}
        return msp.probe(small_model, mess3, weighting=weighting, batch_size=50, **less_work).to_dataframe().to_csv()

    weightings = ("probability", "sequence", "prefix")
    alone = [scores(weighting) for weighting in weightings]
    with slowly(small_model):
        assert in_threads(scores, weightings) == alone


def test_a_held_model_may_be_called_in_the_holding_thread(small_model, mess3):
    tokens = mess3.sample(2, 5, seed=0)
    with holding(small_model), holding(small_model), editing(small_model, {SITE: torch.zeros_like}):
        (batch,) = stream_activations(small_model, tokens, SITE)
    assert not batch.activations[SITE].any()


def test_a_seed_means_the_same_weights_in_every_thread(global_state):
    config = msp.ModelConfig(d_vocab=3, n_layers=2, d_model=16, d_head=8, d_mlp=32, n_ctx=5)

    def fingerprints(seed):
        return [model_fingerprint(msp.build_model(config, seed=seed)) for _ in range(3)]

    together = in_threads(fingerprints, range(3))
    assert together == [fingerprints(seed) for seed in range(3)]
    assert len({each for one in together for each in one}) == 3
