import json
import math
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_squared_error

import msp_lens as msp
from msp_lens.models.activations import stream_activations

# What takes most of the time of a small probe, for tests that do not look at it.
SCORES_ALONE = {"controls": False, "by_position": False, "progress": False}


@pytest.fixture(scope="module")
def model():
    return msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=2, d_model=16, d_head=8, d_mlp=32, n_ctx=5), seed=1)


@pytest.fixture(scope="module")
def report(model, mess3):
    return msp.probe(model, mess3, progress=False)


def all_rows(model, dataset, sites):
    """Every (word, position), repetitions included: activations and beliefs."""
    batches = list(stream_activations(model, dataset.tokens, sites))
    activations = torch.cat([torch.cat([batch.activations[s] for s in sites], dim=-1) for batch in batches])
    return activations.flatten(0, 1).double(), dataset.beliefs.flatten(0, 1)


@pytest.mark.parametrize("weighting", ["sequence", "probability"])
def test_probes_are_scikit_learns_on_every_row(model, mess3, weighting):
    report = msp.probe(model, mess3, weighting=weighting, solver="ols", **SCORES_ALONE)
    dataset = report.dataset
    per_word = dataset.word_weights if weighting == "probability" else torch.ones(len(dataset)).double()
    row_weights = per_word.repeat_interleave(dataset.n_ctx)
    for probe in report.probes:
        activations, beliefs = all_rows(model, dataset, probe.sites)
        reference = LinearRegression().fit(activations, beliefs, sample_weight=row_weights).predict(activations)
        np.testing.assert_allclose(probe.predict(activations), reference, atol=1e-6)
        expected = mean_squared_error(beliefs, reference, sample_weight=row_weights)
        assert probe.scores.in_sample.mse == pytest.approx(expected, rel=1e-6)


def test_prefix_weighting_counts_each_prefix_once(model, mess3):
    report = msp.probe(model, mess3, weighting="prefix", **SCORES_ALONE)
    dataset = report.dataset
    activations, beliefs = all_rows(model, dataset, report["1_post"].sites)
    first = dataset.is_first.flatten()
    reference = LinearRegression().fit(activations[first], beliefs[first]).predict(activations[first])
    expected = mean_squared_error(beliefs[first], reference)
    assert report["1_post"].scores.in_sample.mse == pytest.approx(expected, rel=1e-6)


def test_batches_and_repetition_change_nothing(model, mess3, report):
    again = msp.probe(model, mess3, batch_size=17, **SCORES_ALONE)
    for name in report:
        torch.testing.assert_close(again[name].read_map.weights, report[name].read_map.weights, atol=1e-6, rtol=1e-6)
        assert again[name].scores.held_out.r2 == pytest.approx(report[name].scores.held_out.r2, abs=1e-9)


def test_decoder_is_the_regression_of_activations_on_beliefs(model, mess3, report):
    probe, dataset = report["1_post"], report.dataset
    activations, beliefs = all_rows(model, dataset, probe.sites)
    row_weights = dataset.word_weights.repeat_interleave(dataset.n_ctx)
    # Beliefs sum to 1: dropping the last coordinate leaves the same span.
    reference = LinearRegression().fit(beliefs[:, :2], activations, sample_weight=row_weights)
    np.testing.assert_allclose(probe.decode(beliefs), reference.predict(beliefs[:, :2]), atol=1e-6)


def test_regret_is_measured_in_the_same_pass(model, report):
    expected = msp.training.regret_by_position(model, report.dataset)
    torch.testing.assert_close(report.regret, expected)


def test_shuffled_beliefs_are_not_found(report):
    for probe in report.probes:
        assert probe.scores.shuffled.r2 < probe.scores.in_sample.r2 - 0.25
        assert probe.scores.shuffled_held_out.r2 < 0.05


def test_probing_leaves_the_model_as_it_was(model, mess3, global_state):
    model.train(True)
    before = {name: len(point._forward_hooks) for name, point in model.hook_dict.items()}
    msp.probe(model, mess3, progress=False)
    assert model.training
    assert before == {name: len(point._forward_hooks) for name, point in model.hook_dict.items()}


def test_published_errors_of_mess3(published_model, mess3):
    """Shai et al. 2024, figure 5 and the bars of the post, to the last printed digit."""
    report = msp.probe(published_model, mess3, weighting="sequence", **SCORES_ALONE)
    expected = [".030943", ".001411", ".000711", ".000526", ".000386", ".000301", ".000098"]
    assert [f"{probe.scores.in_sample.mse:.6f}"[1:] for probe in report.probes] == expected
    r2 = [0.72161, 0.98731, 0.99360, 0.99527, 0.99652, 0.99729, 0.99912]
    assert [probe.scores.in_sample.r2 for probe in report.probes] == pytest.approx(r2, abs=5.1e-6)
    assert float(report.regret.mean()) == pytest.approx(9.3e-5, abs=5e-7)


def test_published_model_by_the_probability_of_prefixes(published_model, mess3):
    """Every prefix alike is in the test of controls."""
    report = msp.probe(published_model, mess3, weighting="probability", **SCORES_ALONE)
    expected = [0.82830, 0.99489, 0.99749, 0.99831, 0.99873, 0.99902, 0.99982]
    assert [probe.scores.in_sample.r2 for probe in report.probes] == pytest.approx(expected, abs=5.1e-6)


def test_held_out_is_below_in_sample_where_features_are_many(mess3):
    """With more features than prefixes, in-sample is perfect and says nothing."""
    model = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=2, n_ctx=3), seed=0)
    report = msp.probe(model, mess3, solver="ols", progress=False)
    probe = report["concatenated"]
    assert probe.scores.in_sample.r2 > 0.999
    assert probe.scores.shuffled.r2 > 0.9
    assert probe.scores.held_out.r2 < probe.scores.in_sample.r2 - 0.01


def test_sampled_words_where_there_are_too_many(small_model, mess3):
    dataset = msp.data.sampled_words(mess3, 300, 5, seed=0)
    report = msp.probe(small_model, dataset, **SCORES_ALONE)
    assert not report.provenance["is_population"]
    assert "sampled words" in repr(report)


def test_save_and_load(report, tmp_path, model):
    probe = report["1_post"]
    path = probe.save(tmp_path / "probe.safetensors")
    loaded = msp.BeliefProbe.load(path)
    blocks = [*probe.sites, "belief"]
    torch.testing.assert_close(loaded.moments.scatter, probe.moments.select(blocks).scatter, rtol=0, atol=0)
    torch.testing.assert_close(loaded.moments.mean, probe.moments.select(blocks).mean, rtol=0, atol=0)
    assert (loaded.sites, loaded.widths, loaded.scores) == (probe.sites, probe.widths, probe.scores)
    assert loaded.provenance == json.loads(json.dumps(probe.provenance))
    activations = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.predict(activations), probe.predict(activations))
    belief = torch.tensor([0.2, 0.3, 0.5])
    assert torch.equal(loaded.decode(belief), probe.decode(belief))

    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="is damaged"):
        msp.BeliefProbe.load(path)
    with pytest.raises(ValueError, match="not a probe of msp_lens"):
        msp.BeliefProbe.load(msp.save_checkpoint(tmp_path, model))
    with pytest.raises(FileNotFoundError, match=r"no file .*none"):
        msp.BeliefProbe.load(tmp_path / "none.safetensors")


def test_predict_takes_a_cache(model, mess3, report):
    tokens = mess3.sample(3, 5, seed=0)
    _, cache = model.run_with_cache(tokens)
    for name in ("1_post", "concatenated"):
        probe = report[name]
        joined = torch.cat([cache[site] for site in probe.sites], dim=-1)
        torch.testing.assert_close(probe.predict(cache), probe.predict(joined))
        assert probe.predict(cache).shape == (3, 5, 3)
    with pytest.raises(ValueError, match=r"5 features; this probe .* reads 16"):
        report["1_post"].predict(torch.zeros(2, 5))


@pytest.mark.parametrize(
    ("belief", "message"),
    [
        ([0.5, 0.2, 0.2], r"sums to 0\.9: a belief is a distribution"),
        ([0.5, 0.5], r"shape \(2,\); this probe's beliefs have 3 states"),
        ([1.5, -0.5, 0.0], "entries ≥ 0"),
        ([math.nan, 0.5, 0.5], "without NaN and infinity"),
    ],
)
def test_beliefs_that_are_none_are_refused(report, model, belief, message):
    with pytest.raises(ValueError, match=message):
        report["1_post"].decode(belief)
    with pytest.raises(ValueError, match=message), report["1_post"].steer(model, belief, position=1):
        pass


def test_what_is_not_finite_or_of_another_width_is_refused(report, model):
    probe = report["1_post"]
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="NaN or infinity at activations of"):
            probe.predict(torch.full((2, 16), bad))
    with pytest.raises(ValueError, match="strength=nan: give a number"):
        probe.steer(model, [0.2, 0.3, 0.5], strength=math.nan)
    with pytest.raises(ValueError, match="strength=inf"):
        probe.steer(model, [0.2, 0.3, 0.5], strength=math.inf)
    wider = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=2, d_model=32, n_ctx=5), seed=1)
    tokens = torch.tensor([[0, 1]])
    for edit in (probe.steer, probe.patch):
        with edit(wider, [0.2, 0.3, 0.5]), pytest.raises(ValueError, match=r"32 features; this probe .* reads 16"):
            wider(tokens)
        assert not any(point._forward_hooks for point in wider.hook_dict.values())
    one_wider, one_more = torch.zeros(2, 17), torch.full((2, 4), 0.25)
    for edit in (probe.steered, probe.patched, partial(probe.steered, current=one_more[:, :3])):
        with pytest.raises(ValueError, match=r"17 features; this probe .* reads 16"):
            edit(one_wider, torch.tensor([0.2, 0.3, 0.5]))
        with pytest.raises(ValueError, match=r"belief has shape \(2, 4\); this probe's beliefs have 3 states"):
            edit(torch.zeros(2, 16), one_more)
    with pytest.raises(TypeError, match=r"no parameter 'positions'.* position"):
        probe.patch(model, [0.2, 0.3, 0.5], positions=1)
    # Arrays and lists are read as tensors are.
    rows = np.random.default_rng(0).normal(size=(2, 16))
    torch.testing.assert_close(probe.predict(rows), probe.predict(torch.from_numpy(rows)))
    assert torch.equal(probe.decode(np.array([0.2, 0.3, 0.5])), probe.decode([0.2, 0.3, 0.5]))


def test_bad_requests_are_refused_before_any_work(small_model, mess3):
    with pytest.raises(KeyError, match="no site '5_post'"):
        msp.probe(small_model, mess3, sites="5_post")
    with pytest.raises(ValueError, match="n_ctx=6 is longer than the model's context of 5"):
        msp.probe(small_model, msp.words(mess3, n_ctx=6))
    with pytest.raises(ValueError, match="n_folds=1: give a number from 2"):
        msp.probe(small_model, mess3, split=msp.probing.Split(n_folds=1))
    with pytest.raises(ValueError, match="vocabulary has 3 tokens, p emits 4"):
        msp.probe(small_model, msp.Process(torch.full((4, 1, 1), 0.25), name="p"))


def test_the_report_is_a_mapping_by_site_and_label(report):
    assert list(report) == ["0_pre", "0_post", "1_post", "ln_final", "concatenated"]
    assert report["blocks.1.hook_resid_post"] is report["1_post"]
    assert len(report) == 5
    with pytest.raises(KeyError, match="'9_post' in this report; it has 0_pre"):
        report["9_post"]


def test_the_report_reads_well(report):
    table = report.to_dataframe()
    assert list(table.index) == list(report)
    assert table.loc["1_post", "MSE in-sample"] == report["1_post"].scores.in_sample.mse
    assert (table["n"] == 363).all()
    text, page = repr(report), report._repr_html_()
    for expected in (
        "concatenated",
        "held out",
        "shuffled",
        "363 distinct prefixes",
        "weighting='probability'",
        "nats",
    ):
        assert expected.lower() in text.lower()
        assert expected.lower() in page.lower().replace("&#x27;", "'")
    assert max(map(len, text.splitlines())) <= 120
    round_trip = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert pd.DataFrame(round_trip["sites"])["R² held out"].tolist() == table["R² held out"].tolist()


def test_plot_shows_the_read_out_and_knows_its_model(report, model, mess3):
    figure = report.plot("1_post", "concatenated")
    assert figure.axes[0].get_title() == "True beliefs: 363 prefixes"
    assert ["1_post" in figure.axes[1].get_title(), "concatenated" in figure.axes[2].get_title()] == [True, True]
    changed = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=1, d_model=16, d_head=8, d_mlp=32, n_ctx=3), seed=1)
    stale = msp.probe(changed, mess3, **SCORES_ALONE)
    with torch.no_grad():
        next(iter(changed.parameters())).add_(0.1)
    with pytest.raises(ValueError, match="has changed since it was probed"):
        stale.plot()


def test_read_beliefs_are_the_probes_predictions(report, model):
    probes = [report["1_post"], report["concatenated"], report["0_pre"]]
    read = msp.probing.read_beliefs(model, report.dataset, probes, batch_size=50)
    for probe, beliefs in zip(probes, read, strict=True):
        activations, _ = all_rows(model, report.dataset, probe.sites)
        predicted = probe.predict(activations.float()).double()
        torch.testing.assert_close(beliefs[report.dataset.prefix_ids.flatten()], predicted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("process", "n_ctx", "ranks"), [(msp.processes.z1r(), 2, 2), (msp.mess3(), 1, 2), (msp.processes.mr_name(), 1, 3)]
)
def test_few_words_whose_beliefs_span_less_in_some_folds(process, n_ctx, ranks):
    config = msp.ModelConfig(d_vocab=process.n_tokens, n_layers=1, d_model=16, d_head=8, d_mlp=32, n_ctx=n_ctx)
    report = msp.probe(msp.build_model(config), process, **SCORES_ALONE)
    for probe in report.probes:
        assert len(probe.scores.by_rank) == len(probe.scores.by_rank_in_sample) == ranks
        # The highest rank is the whole map, in every fold.
        assert probe.scores.by_rank[-1].mse == pytest.approx(probe.scores.held_out.mse, rel=1e-6)
