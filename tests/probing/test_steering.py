"""Steering and patching through a probe's context managers."""

import math

import pytest
import torch

import msp_lens as msp
from tests.hooked_models import activation_at


@pytest.fixture(scope="module")
def model():
    return msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=2, d_model=16, d_head=8, d_mlp=32, n_ctx=5), seed=1)


@pytest.fixture(scope="module")
def probe(model, mess3):
    return msp.probe(model, mess3, progress=False)["0_post"]


@pytest.fixture(scope="module")
def tokens(mess3):
    return mess3.sample(4, 5, seed=2)


def test_steer_moves_the_activation_by_the_decoder(model, probe, tokens):
    site, belief = probe.sites[0], torch.tensor([0.1, 0.2, 0.7])
    plain = activation_at(model, tokens, site)
    with probe.steer(model, belief, position=3):
        edited = activation_at(model, tokens, site)
    expected = plain.double().clone()
    read = expected[:, 3] @ probe.read_map.weights + probe.read_map.bias
    expected[:, 3] += (belief.double() - read) @ probe.decoder
    torch.testing.assert_close(edited, expected.float())
    torch.testing.assert_close(activation_at(model, tokens, site), plain, rtol=0, atol=0)


def test_strength_scales_the_step(model, probe, tokens):
    site, belief = probe.sites[0], [0.0, 0.0, 1.0]
    plain = activation_at(model, tokens, site)
    steps = []
    for strength in (0.0, 0.5, 1.0):
        with probe.steer(model, belief, position=2, strength=strength):
            steps.append(activation_at(model, tokens, site) - plain)
    assert steps[0].abs().max() == 0
    torch.testing.assert_close(2 * steps[1], steps[2], atol=1e-5, rtol=1e-4)


def test_patch_replaces_the_activation(model, probe, tokens):
    belief = torch.tensor([0.1, 0.2, 0.7])
    with probe.patch(model, belief, position=(0, -1)):
        edited = activation_at(model, tokens, probe.sites[0])
    expected = probe.activation_mean + (belief.double() - probe.belief_mean) @ probe.decoder
    for position in (0, 4):
        torch.testing.assert_close(edited[:, position].double(), expected.expand(4, -1), atol=1e-6, rtol=1e-5)
    plain = activation_at(model, tokens, probe.sites[0])
    torch.testing.assert_close(edited[:, 1:4], plain[:, 1:4], rtol=0, atol=0)


def test_earlier_predictions_do_not_change(model, probe, tokens):
    plain = model(tokens)
    with probe.steer(model, [1, 0, 0], position=2):
        steered = model(tokens)
    torch.testing.assert_close(steered[:, :2], plain[:, :2], rtol=0, atol=0)
    assert not torch.allclose(steered[:, 2], plain[:, 2], atol=1e-3)


def test_each_word_and_position_may_have_its_own_belief(model, probe, tokens):
    site = probe.sites[0]
    beliefs = torch.softmax(torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    with probe.patch(model, beliefs, position=slice(1, 3)):
        edited = activation_at(model, tokens, site)
    torch.testing.assert_close(edited[:, 1:3].double(), probe.decode(beliefs), atol=1e-6, rtol=1e-5)
    with probe.patch(model, beliefs[:, 0], position=4):
        edited = activation_at(model, tokens, site)
    torch.testing.assert_close(edited[:, 4].double(), probe.decode(beliefs[:, 0]), atol=1e-6, rtol=1e-5)
    with (
        pytest.raises(ValueError, match=r"\(3, 3\) and does not fit a batch of 4 words and 1 edited positions"),
        probe.patch(model, beliefs[:3, 0], position=4),
    ):
        model(tokens)


def test_gradients_flow_through_a_steered_run(model, probe, tokens):
    with probe.steer(model, [1, 0, 0], position=2):
        model(tokens).sum().backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "W_E" in name)
    model.zero_grad()


def test_hooks_are_removed_when_an_exception_flies(model, probe, tokens):
    plain = model(tokens)
    with pytest.raises(RuntimeError, match="within"), probe.steer(model, [1, 0, 0]):
        raise RuntimeError("within")
    torch.testing.assert_close(model(tokens), plain, rtol=0, atol=0)


@pytest.mark.parametrize("position", [5, -6, (0, 7)])
def test_positions_outside_the_context_are_refused(model, probe, position):
    with (
        pytest.raises(ValueError, match=r"outside the context: choose one from 0 to 4"),
        probe.steer(model, [1, 0, 0], position=position),
    ):
        pass


def test_a_probe_of_several_sites_does_not_steer(model, mess3):
    concatenated = msp.probe(model, mess3, progress=False)["concatenated"]
    with (
        pytest.raises(ValueError, match=r"reads 4 sites at once, and an edit is made at one"),
        concatenated.patch(model, [1, 0, 0]),
    ):
        pass


def test_a_model_without_the_site_is_refused(probe):
    shallow = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=1, n_ctx=5))
    deeper = msp.BeliefProbe(
        sites=("blocks.1.hook_resid_post",),
        widths=probe.widths,
        read_map=probe.read_map,
        decoder=probe.decoder,
        activation_mean=probe.activation_mean,
        belief_mean=probe.belief_mean,
        scores=probe.scores,
        provenance={},
    )
    with pytest.raises(KeyError, match=r"blocks\.1\.hook_resid_post"), deeper.steer(shallow, [1, 0, 0]):
        pass


@pytest.fixture(scope="module")
def labelled():
    """A network with random weights, and probes of a number and of a class at its tokens."""
    model = msp.build_model(msp.ModelConfig(d_vocab=4, n_layers=1, d_model=16, n_ctx=6), seed=0)
    tokens = torch.randint(0, 4, (150, 6), generator=torch.Generator().manual_seed(0))
    mean = (tokens.cumsum(dim=1) / torch.arange(1, 7)).double()
    size = [["high" if token > 1 else "low" for token in word] for word in tokens.tolist()]
    data = msp.LabelledTokens.from_tokens(
        tokens, {"mean": mean, "pair": torch.stack([mean, -mean], dim=2), "size": size}
    )
    reports = {name: msp.probe(model, data.only(name), progress=False) for name in ("mean", "pair", "size")}
    return model, tokens[:5], {name: report["0_post"] for name, report in reports.items()}


@pytest.mark.parametrize(("name", "value"), [("mean", [8.0]), ("mean", [-0.5]), ("pair", [4.0, 5.0])])
def test_a_number_that_is_no_belief_can_be_written(labelled, name, value):
    model, tokens, probes = labelled
    probe, written = probes[name], []
    _, before = model.run_with_cache(tokens)
    with probe.patch(model, value, position=3), model.hooks([(probe.sites[0], lambda a, hook: written.append(a))]):
        model(tokens)
    wanted = probe.activation_mean + (torch.tensor(value).double() - probe.belief_mean) @ probe.decoder
    torch.testing.assert_close(written[0][:, 3].double(), wanted.expand(5, -1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(written[0][:, 2], before[probe.sites[0]][:, 2])
    with pytest.raises(ValueError, match=r"target=\[nan"):
        probe.steer(model, [math.nan] * len(value))


def test_a_class_is_written_by_its_name(labelled):
    model, tokens, probes = labelled
    probe = probes["size"]
    with probe.steer(model, "high", position=2):
        named = model(tokens)
    with probe.steer(model, [1.0, 0.0], position=2):
        numbered = model(tokens)
    assert torch.equal(named, numbered)
    assert not torch.equal(named, model(tokens))
    with pytest.raises(KeyError, match=r"No class 'hihg': this probe's classes are high, low.*Did you mean high"):
        probe.steer(model, "hihg")
    with pytest.raises(ValueError, match="sum to 1"):
        probe.steer(model, [8.0, 1.0])
    with pytest.raises(KeyError, match="knows no classes"):
        probes["mean"].steer(model, "high")
