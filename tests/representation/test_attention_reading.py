"""Attention of every kind of model, compared with its own output and with the weights of one kind."""

import pytest
import torch

import msp_lens as msp
from msp_lens.representation import attention_layers, output_weights, stream_attention
from tests.hooked_models import CONFIG, TRANSFORMERS, activation_at, build


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_patterns_values_and_output_weights_add_up_to_the_output(kind):
    model, tokens = build(kind), torch.randint(5, (7, 6), generator=torch.Generator().manual_seed(0))
    assert attention_layers(model) == (0, 1)
    for layer in (0, 1):
        batches = list(stream_attention(model, tokens, layer, batch_size=3))
        assert [batch.words for batch in batches] == [slice(0, 3), slice(3, 6), slice(6, 7)]
        pattern = torch.cat([batch.pattern for batch in batches]).double()
        values = torch.cat([batch.values for batch in batches]).double()
        assert pattern.shape == (7, 2, 6, 6)
        torch.testing.assert_close(pattern.sum(dim=3), torch.ones(7, 2, 6, dtype=torch.float64))
        added = torch.einsum("whds,wshf,hfm->wdm", pattern, values, output_weights(model, layer))
        output = activation_at(model, tokens, f"blocks.{layer}.hook_attn_out").double()
        # Up to the bias, the same everywhere.
        difference = output - added
        torch.testing.assert_close(difference, difference[:1, :1].expand_as(difference), atol=1e-5, rtol=1e-4)


def test_heads_that_share_values_repeat_them():
    config = CONFIG.to_dict() | {"n_heads": 4, "n_key_value_heads": 2, "d_head": 4}
    model, tokens = msp.build_model(config, seed=0), torch.tensor([[0, 1, 2]])
    (batch,) = stream_attention(model, tokens, 0)
    assert batch.values.shape == (1, 3, 4, 4)
    assert torch.equal(batch.values[:, :, 0], batch.values[:, :, 1])
    mixed = torch.einsum("whds,wshf->wdhf", batch.pattern, batch.values)
    torch.testing.assert_close(mixed, activation_at(model, tokens, "blocks.0.attn.hook_z"))


def test_what_has_no_attention_to_read_is_refused():
    with pytest.raises(ValueError, match="no attention to read"):
        attention_layers(build("own"))
    with pytest.raises(ValueError, match="layer=5"):
        stream_attention(build(TRANSFORMERS[0]), torch.tensor([[0, 1]]), 5)


def test_an_output_that_is_normalized_is_refused():
    model = msp.build_model(CONFIG, seed=0)

    def normalize(out, hook):
        return out / (1 + out.norm(dim=-1, keepdim=True))

    hooks = model.hooks(fwd_hooks=[("blocks.0.hook_attn_out", normalize)])
    with hooks, pytest.raises(ValueError, match="not affine"):
        output_weights(model, 0)
