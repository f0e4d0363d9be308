import pytest
import torch

import msp_lens as msp
from msp_lens.interventions.edits import donor, no_edit, patch, placebo, steer


@pytest.fixture(scope="module")
def model():
    return msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=2, d_model=16, d_head=8, d_mlp=32, n_ctx=5), seed=1)


@pytest.fixture(scope="module")
def report(model, mess3):
    return msp.probe(model, mess3, progress=False)


def test_the_published_model_uses_its_belief(published_model, mess3):
    report = msp.probe(published_model, mess3, progress=False)
    results = msp.intervene(published_model, mess3, probes=[report["3_post"], report["1_post"]], positions=7)
    # Ranges of two independent computations on 2,000 pairs, a little widened for the draw.
    ranges = {
        "none": (0.60, 0.68),
        "placebo": (0.43, 0.50),
        "wrong belief": (0.60, 0.66),
        "steer": (0.0, 0.005),
        "patch": (0.0, 0.005),
        "donor": (0.0, 0.0003),
    }
    for edit, (low, high) in ranges.items():
        assert low <= results.select(site="3_post", edit=edit).kl_to_target <= high, edit
    assert results.select(site="1_post", edit="steer").kl_to_target <= 0.008
    assert results.select(site="1_post", edit="patch").kl_to_target <= 0.005
    assert results.select(site="3_post", edit="none").kl_to_actual == pytest.approx(1e-4, abs=1e-4)
    assert results.select(site="3_post", edit="steer").kl_to_actual > 0.6


def test_no_edit_and_donor_are_what_they_say(model, report, mess3):
    """Against runs of the plain model: nothing edited, and the targets' own words."""
    results = msp.intervene(model, mess3, probes=report, positions=3, n=200, seed=4)
    words, targets, _ = mess3.sample(600, 4, seed=4).split(200)

    def mean_kl(optimum_of, run_on):
        optimal = msp.next_token_probabilities(mess3, msp.filter_beliefs(mess3, optimum_of)[:, -1])
        with torch.no_grad():
            log_predicted = model(run_on)[:, -1].double().log_softmax(-1)
        return float((optimal * (optimal.log() - log_predicted)).sum(-1).mean())

    untouched = results.select(site="1_post", edit="none")
    assert untouched.kl_to_target == pytest.approx(mean_kl(targets, words), rel=1e-5)
    assert untouched.kl_to_actual == pytest.approx(mean_kl(words, words), rel=1e-5)
    # At the last layer the last position's activation is all that its prediction depends on.
    assert results.select(site="1_post", edit="donor").kl_to_target == pytest.approx(
        mean_kl(targets, targets), rel=1e-4
    )


def test_edits(report):
    probe = report["1_post"]
    generator = torch.Generator().manual_seed(0)
    activation = torch.randn(6, 16, generator=generator)
    beliefs = torch.softmax(torch.randn(6, 3, generator=generator), dim=-1).double()
    assert no_edit(activation) is activation
    assert torch.equal(donor(activation + 1)(activation), activation + 1)
    steered = steer(probe, beliefs)(activation)
    torch.testing.assert_close(steered, probe.steered(activation, beliefs))
    torch.testing.assert_close(patch(probe, beliefs)(activation).double(), probe.decode(beliefs), atol=1e-6, rtol=1e-5)
    nothing = placebo(probe, beliefs, generator=generator)(activation)
    torch.testing.assert_close((nothing - activation).norm(dim=1), (steered - activation).norm(dim=1))
    cosine = torch.cosine_similarity(nothing - activation, steered - activation)
    assert cosine.abs().max() < 0.95


def test_results_are_reproducible_and_leave_the_model_alone(model, report, mess3, global_state):
    before = {name: len(point._forward_hooks) for name, point in model.hook_dict.items()}
    first, again = (msp.intervene(model, mess3, probes=report["0_post"], n=50, seed=1) for _ in range(2))
    assert first.results == again.results
    assert before == {name: len(point._forward_hooks) for name, point in model.hook_dict.items()}


def test_tables(model, report, mess3):
    results = msp.intervene(model, mess3, probes=report, positions=[1, -1], n=20)
    table = results.to_dataframe()
    assert len(table) == 4 * 2 * 6
    assert sorted(table["position"].unique()) == [1, 4]
    text = repr(results)
    for expected in ("placebo", "donor", "1_post", "nats"):
        assert expected in text
        assert expected in results._repr_html_()
    with pytest.raises(KeyError, match="2 results for site='1_post'"):
        results.select(site="1_post", edit="steer")
    assert results.select(site="1_post", edit="steer", position=4).position == 4


def test_bad_requests_are_refused(model, report, mess3):
    with pytest.raises(ValueError, match="position=5 is outside the context"):
        msp.intervene(model, mess3, probes=report, positions=5)
    with pytest.raises(ValueError, match="reads 4 sites"):
        msp.intervene(model, mess3, probes=report["concatenated"])
    with pytest.raises(ValueError, match="n=1"):
        msp.intervene(model, mess3, probes=report, n=1)
    with pytest.raises(ValueError, match="probes is empty"):
        msp.intervene(model, mess3, probes=[])
