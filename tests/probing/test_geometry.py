import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression

import msp_lens as msp
from msp_lens.beliefs import nearest_distribution
from msp_lens.models.activations import stream_activations
from msp_lens.models.build import has_hooked_transformer
from msp_lens.probing.geometry import (
    belief_angles,
    effective_dimension,
    unembedding_agreement,
    variance_share,
)
from tests.trained.make import load


@pytest.fixture(scope="module")
def model():
    return msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=2, d_model=16, d_head=8, d_mlp=32, n_ctx=5), seed=1)


@pytest.fixture(scope="module")
def report(model, mess3):
    return msp.probe(model, mess3, progress=False)


def rows_of(model, report, label):
    """Every distinct prefix: activations, beliefs and weights."""
    dataset, (site,) = report.dataset, report[label].sites
    activations = torch.cat([batch.activations[site] for batch in stream_activations(model, dataset.tokens, site)])
    ids = dataset.prefix_ids[dataset.is_first]
    weights = dataset.prefix_weights("probability")[ids]
    return activations[dataset.is_first].double(), dataset.prefix_beliefs[ids], weights


@pytest.mark.parametrize("degrees", [0.0, 1e-6, 30.0, 90.0])
def test_the_largest_angle_between_belief_subspaces(report, degrees):
    """Two planes that share one direction, the second tilted about it; a plane takes three states, which sum to 1."""

    def probe(*directions):
        plane = torch.tensor(directions, dtype=torch.float64)
        decoder = torch.tensor([[2.0, 0.0], [-1.0, 0.5], [-1.0, -0.5]], dtype=torch.float64) @ plane
        return replace(
            report["0_post"], decoder=decoder, activation_mean=torch.zeros(plane.shape[1], dtype=torch.float64)
        )

    tilt = math.radians(degrees)
    flat = probe([1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0])
    tilted = probe([1.0, 0.0, 0.0, 0.0], [0.0, math.cos(tilt), math.sin(tilt), 0.0])
    wider = probe([1.0, 0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0])
    assert belief_angles([flat, tilted]).iloc[0, 1] == pytest.approx(degrees, abs=1e-9)
    assert belief_angles([flat, wider]).isna().to_numpy().tolist() == [[False, True], [True, False]]


def test_the_share_of_variance_is_that_of_a_regression_on_beliefs(model, report):
    for label in ("0_pre", "1_post"):
        activations, beliefs, weights = rows_of(model, report, label)
        fitted = LinearRegression().fit(beliefs[:, :2], activations, sample_weight=weights).predict(beliefs[:, :2])

        def variance(values, weights=weights):
            values = torch.as_tensor(values)
            return float((weights @ (values - weights @ values / weights.sum()) ** 2).sum())

        assert variance_share(report[label]) == pytest.approx(variance(fitted) / variance(activations), rel=1e-6)


def test_effective_dimensions_count_directions():
    assert effective_dimension(torch.eye(7, dtype=torch.float64)) == pytest.approx(7)
    assert effective_dimension(torch.ones(3, 3, dtype=torch.float64)) == pytest.approx(1)
    assert math.isnan(effective_dimension(torch.zeros(2, 2, dtype=torch.float64)))


def test_the_table_of_geometry(model, report):
    found = report.geometry()
    table = found.to_dataframe()
    assert list(table.index) == list(report)[:-1]
    assert table["variance share"].between(0, 1).all()
    assert (table["belief dimension"] <= 2 + 1e-9).all()
    assert (table["effective dimension"] >= 1).all()
    activations, _, weights = rows_of(model, report, "1_post")
    read = report["1_post"].predict(activations)
    distance = (read - nearest_distribution(read)).norm(dim=1)
    assert table.loc["1_post", "off simplex, mean"] == pytest.approx(float(weights @ distance), abs=1e-6)
    assert table.loc["1_post", "off simplex, largest"] == pytest.approx(float(distance.max()), abs=1e-5)
    assert np.allclose(np.diag(found.angles), 0, atol=1e-6)
    assert np.allclose(found.angles, found.angles.T, atol=1e-6)
    assert table["unembedding"].notna().tolist() == [label == "ln_final" for label in table.index]
    assert "Off simplex" in " ".join(repr(found).split())
    assert "<table>" in found._repr_html_()


def test_a_trained_networks_unembedding_reads_what_its_probe_implies(published_model, mess3, report, model):
    trained = msp.probe(published_model, msp.words(mess3, n_ctx=6), controls=False, by_position=False, progress=False)
    agreement = unembedding_agreement(trained["ln_final"], published_model, mess3)
    assert agreement > 0.9
    assert abs(unembedding_agreement(report["ln_final"], model, mess3)) < agreement
    assert math.isnan(unembedding_agreement(trained["3_post"], published_model, mess3))


def test_a_recurrent_networks_unembedding_reads_its_last_state(mess3):
    """Computed from the logits: what a small step in the state changes is the unembedding's reading of it."""
    network = load("mess3_lstm")
    untrained = msp.build_model(network.cfg, seed=1)
    found = {}
    for name, each in (("trained", network), ("untrained", untrained)):
        report = msp.probe(
            each, msp.words(mess3, n_ctx=6), sites=["embed", "0_hidden", "0_output"], controls=False, progress=False
        )
        table = report.geometry().to_dataframe()["unembedding"]
        assert table.notna().tolist() == [False, True, True]
        assert table["0_hidden"] == pytest.approx(table["0_output"], abs=1e-9)
        found[name] = table["0_output"]
        # The same from the prediction's derivative at the mean prediction, and rows in place of the moments.
        probe = report["0_output"]
        states, _, weights = rows_of(each, report, "0_output")
        mean = probe.belief_mean @ mess3.emissions
        start = each.unembed(states.float()).detach().double()
        step = start - weights @ start / weights.sum()
        read = step * mean - (step @ mean).unsqueeze(1) * mean
        implied = probe.predict(states) @ mess3.emissions
        implied = implied - weights @ implied / weights.sum()
        products = [float(weights @ (a * b).sum(dim=1)) for a, b in ((read, implied), (read, read), (implied, implied))]
        assert found[name] == pytest.approx(products[0] / math.sqrt(products[1] * products[2]), abs=1e-5)
    assert found["trained"] > 0.9 > found["untrained"]
    ssm = msp.build_model(msp.models.RecurrentConfig(kind="ssm", d_vocab=3, n_ctx=4))
    of_ssm = msp.probe(ssm, mess3, controls=False, progress=False)
    assert all(math.isnan(unembedding_agreement(each, ssm, mess3)) for each in of_ssm.probes)


SMALL = msp.ModelConfig(d_vocab=3, n_layers=2, d_model=16, d_head=8, d_mlp=32, n_ctx=5)


def _with_gains(model, scale):
    """A copy whose final LayerNorm has gains and offsets, in one of many parametrisations of the same function."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(3)
    gains, offsets = 0.5 + torch.rand(16, generator=generator), torch.randn(16, generator=generator)
    copied = msp.build_model(
        msp.ModelConfig(d_vocab=3, n_layers=2, d_model=16, d_head=8, d_mlp=32, n_ctx=5, normalization_type="LN"), seed=1
    )
    weights = copied.state_dict()
    copied.load_state_dict({name: state.get(name, each) for name, each in weights.items()})
    with torch.no_grad():
        copied.ln_final.w.copy_(gains * scale)
        copied.ln_final.b.copy_(offsets * scale)
        copied.unembed.W_U.div_(scale.unsqueeze(1))
    return copied


def test_two_parametrisations_of_one_function_score_alike(mess3):
    model = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=2, d_model=16, d_head=8, d_mlp=32, n_ctx=5), seed=1)
    if type(model).__name__ != "HookedTransformer":
        pytest.skip("a bridge reads after the gains")
    scale = torch.logspace(-1, 1, 16)
    plain, scaled = (_with_gains(model, each) for each in (torch.ones(16), scale))
    tokens = torch.tensor([[0, 1, 2, 1, 0]])
    torch.testing.assert_close(plain(tokens), scaled(tokens), atol=1e-5, rtol=1e-5)
    agreements = []
    for network in (plain, scaled):
        report = msp.probe(network, mess3, solver="ols", controls=False, progress=False)
        (name,) = report["ln_final"].sites
        assert name == "ln_final.hook_normalized"
        agreements.append(unembedding_agreement(report["ln_final"], network, mess3))
    assert agreements[0] == pytest.approx(agreements[1], abs=1e-4)
    # The same activations after the gains, as a bridge reads them: a map of h w + b has the weights of h divided by w.
    probe, gains = report["ln_final"], scaled.ln_final.w.detach().double()
    scatter = probe.moments.select([*probe.sites, "belief"]).scatter.clone()
    unit = torch.cat([gains, torch.ones(3).double()])
    after = replace(
        probe,
        sites=("ln_final.hook_out",),
        read_map=replace(probe.read_map, weights=probe.read_map.weights / gains.unsqueeze(1)),
        moments=msp.moments.Moments.of(
            {"ln_final.hook_out": 16, "belief": 3},
            n=probe.moments.n,
            weight=probe.moments.weight,
            mean=probe.moments.select([*probe.sites, "belief"]).mean,
            scatter=scatter * torch.outer(unit, unit),
            rounding=0.0,
        ),
    )
    assert unembedding_agreement(after, scaled, mess3) == pytest.approx(agreements[1], abs=1e-9)


def test_a_bridge_of_the_same_weights_scores_alike(mess3):
    """A HookedTransformer is read before the gains of the final LayerNorm, a bridge after them."""
    if not has_hooked_transformer():
        pytest.skip("there is no HookedTransformer to compare with")
    hooked = _with_gains(msp.build_model(SMALL, seed=1), torch.logspace(-0.3, 0.3, 16))
    bridge = msp.build_model(replace(SMALL, normalization_type="LN"), seed=2, bridge=True)
    msp.models.load_weights(bridge, hooked.state_dict())
    tokens = torch.tensor([[0, 1, 2, 1, 0]])
    torch.testing.assert_close(
        hooked(tokens).log_softmax(dim=-1), bridge(tokens).log_softmax(dim=-1), atol=1e-5, rtol=1e-5
    )
    found = {}
    for model in (hooked, bridge):
        report = msp.probe(model, mess3, solver="ols", controls=False, progress=False)
        found[report["ln_final"].sites[0]] = report.geometry().sites[-1].unembedding
    assert list(found) == ["ln_final.hook_normalized", "ln_final.hook_out"]
    assert found["ln_final.hook_out"] == pytest.approx(found["ln_final.hook_normalized"], abs=1e-4)
    assert abs(found["ln_final.hook_out"]) > 0.01


def test_two_probes_of_one_site_are_refused_at_once(model, report):
    def never(activation, hook):
        raise AssertionError("the model was run")

    with model.hooks(fwd_hooks=[("hook_embed", never)]):
        for probes in ([report["1_post"]] * 2, [report["concatenated"]], []):
            with pytest.raises(ValueError, match="give one probe for each of at least one single site"):
                msp.probing.geometry(probes, model, report.dataset, weighting="probability")
        with pytest.raises(ValueError, match="saved without its moments"):
            msp.probing.geometry([replace(report["1_post"], moments=None)], model, report.dataset, weighting="prefix")


def test_the_unembeddings_reading_is_the_slope_of_its_predictions(model, report, mess3):
    """W_U (diag p̄ - p̄ p̄ᵀ) against a numerical derivative of softmax at the logits of the mean prediction."""
    probe = report["ln_final"]
    mean = probe.belief_mean @ mess3.emissions
    unembedding = model.W_U.detach().double()
    step = torch.randn(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    small = 1e-6
    slope = ((mean.log() + small * step @ unembedding).softmax(0) - mean) / small
    torch.testing.assert_close(
        slope, step @ unembedding @ (torch.diag(mean) - torch.outer(mean, mean)), atol=1e-5, rtol=1e-4
    )
    covariance = probe.moments.covariance(probe.sites, probe.sites)
    a = unembedding @ (torch.diag(mean) - torch.outer(mean, mean))
    b = probe.read_map.weights @ mess3.emissions
    rows = torch.linalg.cholesky(covariance + 1e-14 * torch.eye(16)).T
    expected = np.corrcoef(np.stack([(rows @ a).flatten(), (rows @ b).flatten()]))[0, 1]
    assert unembedding_agreement(probe, model, mess3) == pytest.approx(expected, abs=0.05)
