"""A steering vector: what `steer` adds, in files and forms that others read."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import msp_lens as msp
from msp_lens.interventions import SteeringVector, steer, steering_vector
from tests.interventions.test_edits import PERFECT

SITE = "blocks.1.hook_resid_post"
BEFORE, AFTER = torch.tensor([[0.2, 0.5, 0.3], [0.7, 0.1, 0.2]], dtype=torch.float64)
TOKENS = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]])


@pytest.fixture(scope="module")
def model():
    return msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=3, d_model=16, d_head=8, d_mlp=32, n_ctx=5), seed=1)


@pytest.fixture(scope="module")
def report(model, mess3):
    return msp.probe(model, mess3, controls=False, progress=False)


@pytest.fixture(scope="module")
def vector(report):
    return steering_vector(report[SITE], AFTER, current=BEFORE)


def test_it_moves_mean_activations_and_the_belief_read(report, vector):
    probe = report[SITE]
    # From the mean activation given one belief to that given the other.
    moved = vector(probe.decode(BEFORE))
    torch.testing.assert_close(moved, probe.decode(AFTER), atol=1e-6, rtol=1e-5)
    h = torch.randn(7, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    change = probe.predict(vector(h)) - probe.predict(h)
    torch.testing.assert_close(change, vector.read_change.expand_as(change), atol=1e-6, rtol=1e-5)


def test_where_the_belief_is_all_that_varies_it_is_read_as_written(mess3):
    """Of activations that are an affine image of beliefs the probe errs nowhere."""
    beliefs = msp.words(mess3, n_ctx=5).prefix_beliefs
    mixing = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moments = msp.moments.Moments({"site": 8, "belief": 3}).update(
        torch.cat([beliefs @ mixing, beliefs], dim=1), torch.ones(len(beliefs))
    )
    probe = msp.probing.belief_probe.fit_probe(moments, ["site"], PERFECT, provenance={})
    found = steering_vector(probe, AFTER, current=BEFORE)
    torch.testing.assert_close(found.read_change, AFTER - BEFORE, atol=1e-6, rtol=0)
    read = probe.predict(found(probe.decode(BEFORE)))
    torch.testing.assert_close(read, AFTER, atol=1e-6, rtol=0)


def test_it_adds_what_steer_adds(model, report, vector):
    probe = report[SITE]
    with msp.applying(model, steer(probe, current=BEFORE), AFTER, position=2):
        expected = model(TOKENS)
    with vector.steer(model, position=2):
        torch.testing.assert_close(model(TOKENS), expected)
    hooked = model.run_with_hooks(TOKENS, fwd_hooks=[(SITE, vector.hook(2))])
    torch.testing.assert_close(hooked, expected)
    assert not torch.allclose(model(TOKENS), expected, atol=1e-3)


def test_it_is_itself_a_hook(model, vector):
    everywhere = model.run_with_hooks(TOKENS, fwd_hooks=[(SITE, vector)])
    by_hand = model.run_with_hooks(TOKENS, fwd_hooks=[(SITE, lambda h, hook: h + vector.vector)])
    torch.testing.assert_close(everywhere, by_hand)
    with vector.steer(model, strength=-1.0):
        back = model.run_with_hooks(TOKENS, fwd_hooks=[(SITE, vector)])
    torch.testing.assert_close(back, model(TOKENS), atol=1e-5, rtol=1e-4)


def test_from_the_mean_belief_by_default(report):
    probe = report[SITE]
    found = steering_vector(probe, AFTER)
    torch.testing.assert_close(found.current, probe.belief_mean)
    torch.testing.assert_close(found(probe.activation_mean), probe.decode(AFTER), atol=1e-6, rtol=1e-5)


def test_half_precision_is_rounded_once(vector):
    h = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(vector(h), (h.float() + vector.vector).bfloat16())


def test_its_file_is_read_without_the_library(vector, tmp_path):
    path = vector.save(tmp_path / "vector.safetensors")
    (name, tensor), *rest = load_file(path).items()
    assert name == SITE
    assert rest == []
    assert torch.equal(tensor, vector.vector)
    assert SteeringVector.load(path) == vector
    assert json.loads(json.dumps(vector.to_dict()))["vector"] == vector.vector.tolist()


@pytest.mark.parametrize(("label", "layer"), [("0_pre", 0), ("0_post", 1), ("2_pre", 2), ("2_post", 3)])
def test_neuronpedias_form(report, label, layer):
    # What its service requires of a new vector: these fields, this one hook, and a strength from -100 to 100.
    probes = {**report, "2_pre": report["1_post"]}
    probe = probes[label]
    vector = steering_vector(probe, AFTER, current=BEFORE)
    if label == "2_pre":
        vector = replace(vector, site="blocks.2.hook_resid_pre")
    found = json.loads(json.dumps(vector.to_neuronpedia("tiny", label="likely A")))
    wanted = {"modelId", "layerNumber", "hookType", "vector", "vectorDefaultSteerStrength", "vectorLabel"}
    assert found.keys() == wanted
    assert (found["modelId"], found["vectorLabel"]) == ("tiny", "likely A")
    assert (found["layerNumber"], found["hookType"]) == (layer, "hook_resid_pre")
    direction, strength = torch.tensor(found["vector"]), found["vectorDefaultSteerStrength"]
    assert float(direction.norm()) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(strength * direction, vector.vector)


def test_neuronpedia_takes_no_strength_above_100(vector):
    long = replace(vector, vector=1000 * vector.vector / vector.norm)
    found = long.to_neuronpedia("tiny")
    assert found["vectorDefaultSteerStrength"] == 100
    torch.testing.assert_close(100 * torch.tensor(found["vector"]), long.vector)
    assert found["vectorLabel"] == "belief (0.7, 0.1, 0.2)"


def test_what_has_no_such_form_is_refused(report, vector):
    with pytest.raises(ValueError, match=r"Neuronpedia steers at the input of a layer, and ln_final.hook_"):
        steering_vector(report["ln_final"], AFTER).to_neuronpedia("tiny")
    nothing = steering_vector(report[SITE], AFTER, current=AFTER)
    with pytest.raises(ValueError, match="The vector is 0, since belief and current are the same"):
        nothing.to_neuronpedia("tiny")
    with pytest.raises(ValueError, match="sites at once, and a vector is added at one"):
        steering_vector(report["concatenated"], AFTER)
    with pytest.raises(ValueError, match="a belief is a distribution over the hidden states"):
        steering_vector(report[SITE], 2 * AFTER)
    with pytest.raises(ValueError, match=r"has 8 features, this vector at .* has 16"):
        vector(torch.zeros(1, 8))
