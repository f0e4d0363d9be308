import pytest
import torch

import msp_lens as msp
from msp_lens.models.activations import stream_activations


def test_streamed_activations_are_those_of_the_cache(small_model, mess3):
    tokens = mess3.sample(23, 5, seed=0)
    sites = msp.models.residual_sites(small_model)
    small_model.train(True)
    batches = list(stream_activations(small_model, tokens, batch_size=7))
    assert small_model.training
    with torch.no_grad():
        logits, cache = small_model.run_with_cache(tokens)
    assert [batch.words for batch in batches] == [slice(0, 7), slice(7, 14), slice(14, 21), slice(21, 23)]
    for site in sites:
        streamed = torch.cat([batch.activations[site] for batch in batches])
        torch.testing.assert_close(streamed, cache[site])
    torch.testing.assert_close(torch.cat([batch.output for batch in batches]), logits)
    assert not any(batch.output.requires_grad for batch in batches)


def test_gradients_are_as_they_were_between_batches(small_model, mess3):
    stream = stream_activations(small_model, mess3.sample(4, 5, seed=0), batch_size=2)
    next(stream)
    assert torch.is_grad_enabled()


def test_bad_requests_fail_before_the_first_batch(small_model, mess3):
    tokens = mess3.sample(4, 5, seed=0)
    with pytest.raises(KeyError, match="no site 'nowhere'"):
        stream_activations(small_model, tokens, "nowhere")
    with pytest.raises(ValueError, match="batch_size=-1"):
        stream_activations(small_model, tokens, batch_size=-1)


def test_a_site_that_is_never_reached_is_named(small_model, mess3):
    unused = next(name for name in small_model.hook_dict if name.endswith("hook_result"))
    with pytest.raises((ValueError, AssertionError), match="hook_result"):
        list(stream_activations(small_model, mess3.sample(2, 5, seed=0), unused))
