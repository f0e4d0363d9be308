import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import pdist

import msp_lens as msp
from msp_lens.probing.geometry import squared_correlation


@pytest.fixture(scope="module")
def report(mess3):
    model = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=2, d_model=16, d_head=8, d_mlp=32, n_ctx=4), seed=1)
    return msp.probe(model, mess3, weighting="prefix", progress=False)


def test_all_pairs_agree_with_scipy(report, mess3):
    found = report.distances("1_post")
    assert found.is_every_pair
    true = report.dataset.prefix_beliefs
    np.testing.assert_allclose(found.true, pdist(true))
    np.testing.assert_allclose(found.next_token, pdist(true @ mess3.emissions))
    # Every prefix alike: SciPy's plain correlation.
    assert found.r2_true == pytest.approx(stats.pearsonr(found.represented, found.true).statistic ** 2)
    assert found.r2_next_token == pytest.approx(stats.pearsonr(found.represented, found.next_token).statistic ** 2)
    assert float(found.weights.sum()) == pytest.approx(1)
    assert "all 7,140 pairs" in repr(found)


def test_drawn_pairs_stand_for_all_by_weight(mess3):
    model = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=1, d_model=16, d_head=8, d_mlp=32, n_ctx=5), seed=1)
    report = msp.probe(model, mess3, weighting="probability", progress=False)
    every, drawn = report.distances(), report.distances(max_pairs=30_000)
    assert every.is_every_pair
    assert not drawn.is_every_pair
    mean = [float(each.weights @ each.true) for each in (every, drawn)]
    assert mean[0] == pytest.approx(mean[1], abs=0.01)
    assert drawn.r2_true == pytest.approx(every.r2_true, abs=0.01)
    again = [report.distances(max_pairs=500, seed=seed).true for seed in (3, 3, 4)]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])
    with pytest.raises(ValueError, match="max_pairs=0"):
        report.distances(max_pairs=0)
    with pytest.raises(KeyError, match="No probe for 'nowhere'"):
        report.distances("nowhere")


def test_the_papers_pairs_are_of_every_position_of_every_word(mess3):
    """All words of two tokens, each position a row: SciPy on the repeated rows, pairs of one prefix kept."""
    model = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=1, d_model=16, d_head=8, d_mlp=32, n_ctx=2), seed=1)
    report = msp.probe(model, mess3, weighting="sequence", progress=False)
    found = report.distances("concatenated", same_prefix=True)
    dataset = report.dataset
    (read,) = msp.probing.read_beliefs(model, dataset, [report["concatenated"]])
    many = 40
    # A prefix is drawn as often as it begins words; many repetitions stand for the limit.
    ids = dataset.prefix_ids.flatten().repeat(many)
    represented, true = pdist(read[ids]), pdist(dataset.prefix_beliefs[ids])
    assert found.r2_true == pytest.approx(stats.pearsonr(represented, true).statistic ** 2, abs=2e-3)
    without = report.distances("concatenated")
    assert found.r2_true > without.r2_true
    assert len(found.weights) == len(without.weights) + dataset.n_prefixes
    drawn = report.distances("concatenated", same_prefix=True, max_pairs=60)
    assert not drawn.is_every_pair
    assert bool((drawn.true == 0).any())


def test_weights_count_as_repetitions():
    x, y = torch.tensor([0.0, 1.0, 2.0]).double(), torch.tensor([0.0, 2.0, 1.0]).double()
    weights = torch.tensor([1.0, 2.0, 3.0]).double()
    repeated = [values.repeat_interleave(weights.long()) for values in (x, y)]
    assert squared_correlation(x, y, weights) == pytest.approx(stats.pearsonr(*repeated).statistic ** 2)
    assert np.isnan(squared_correlation(x, torch.full((3,), 0.7).double(), weights))


def test_next_token_distances_fall_short_where_they_must():
    """In RRXOR states differ whose next tokens do not; the probe reads what a next-token read-out cannot."""
    model = msp.build_model(msp.ModelConfig(d_vocab=2, n_layers=1, d_model=16, d_head=8, d_mlp=32, n_ctx=6), seed=0)
    found = msp.probe(model, msp.rrxor(), progress=False).distances()
    assert (found.next_token[found.true > 0.5] < 1e-9).any()
    assert (found.next_token <= found.true * float(torch.linalg.matrix_norm(msp.rrxor().emissions, 2)) + 1e-9).all()


def test_the_figure_is_of_the_same_pairs(report):
    found = report.distances("concatenated")
    figure = found.plot(theme="dark")
    assert [axis.get_title() for axis in figure.axes] == [f"R² {r:.4f}" for r in (found.r2_true, found.r2_next_token)]
    counted = figure.axes[0].collections[0].get_array().sum()
    assert counted == pytest.approx(len(found.weights))


def test_the_published_network_keeps_distances(published_model, mess3):
    """Fig. 7D of the paper: on Mess3 both R² are about 1."""
    report = msp.probe(published_model, msp.data.sampled_words(mess3, 300, 10, seed=0), controls=False, progress=False)
    found = report.distances("3_post")
    assert found.r2_true > 0.99
    assert found.r2_next_token > 0.99
