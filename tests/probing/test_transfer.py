"""Frozen probes read on other data, models and sites, against scikit-learn's scores of the same read-outs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from torch import nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

import msp_lens as msp
from msp_lens.data.splits import CELLS_PER_FOLD, deal
from msp_lens.probing import model_rows, transfer
from tests.hooked_models import Observer

CONFIG = msp.ModelConfig(d_vocab=3, n_layers=2, d_model=16, d_head=8, d_mlp=32, n_ctx=5)
QUIET = {"progress": False}


class Late(HookedRootModule):
    """Holds the optimal belief from a position on; from another one on to that, turned around; before, nothing."""

    def __init__(self, process, turned, since):
        super().__init__()
        self.process, self.turned, self.since, self.scale = process, turned, since, nn.Parameter(torch.ones(1))
        self.hook_beliefs = HookPoint()
        self.setup()

    def forward(self, tokens):
        beliefs = msp.filter_beliefs(self.process, tokens) * self.scale
        position = torch.arange(tokens.shape[1]).unsqueeze(1)
        held = torch.where(position >= self.since, beliefs, 1 - 2 * beliefs)
        return self.hook_beliefs(torch.where(position >= self.turned, held, self.process.initial))


@pytest.fixture(scope="module")
def model():
    return msp.build_model(CONFIG, seed=1)


@pytest.fixture(scope="module")
def report(model, mess3):
    return msp.probe(model, mess3, by_position=False, **QUIET)


@pytest.fixture(scope="module")
def other():
    """The same states in another order of things: other parameters of Mess3."""
    return msp.mess3(x=0.15, a=0.6)


@pytest.fixture(scope="module")
def moved(model, report, other):
    return transfer(model, report, other, **QUIET)


def read_outs(model, probe, data):
    """What a probe reads, and the rows, by another road: all activations at once, in numpy."""
    (batch,) = model_rows(model, data, list(probe.sites), batch_size=100_000)
    features = torch.cat([batch.features[site] for site in probe.sites], dim=1).double().numpy()
    return features @ probe.read_map.weights.numpy() + probe.read_map.bias.numpy(), batch


@pytest.mark.parametrize("split", ["sequence", "prefix", "subtree"])
def test_on_its_own_data_a_probe_has_its_in_sample_score(model, mess3, report, split):
    found = transfer(model, report, mess3, split=split, controls=False, **QUIET)
    assert [each.probe for each in found.scores] == list(report)
    for label, probe in report.items():
        own, score = probe.scores.in_sample, found.select(label).score
        assert score.r2 == pytest.approx(own.r2, abs=1e-9)
        assert score.mse == pytest.approx(own.mse, abs=1e-9)
        assert score.r2_by_target == pytest.approx(own.r2_by_target, abs=1e-9)
        assert found.select(label).where_fitted == probe.scores.held_out.r2
        low, high = score.r2_interval
        assert low < score.r2 < high
    notes = " ".join(found.notes)
    assert "Fitted on this model and process: rows among those" in notes
    assert "Fitted on another" not in notes
    assert "Other than where" not in notes


def test_scores_are_those_of_scikit_learn(model, report, other, moved):
    data = msp.LabelledTokens.from_beliefs(msp.words(other, n_ctx=5))
    for label, probe in report.items():
        read, batch = read_outs(model, probe, data)
        true, weights = batch.targets["belief"].numpy(), batch.weights.numpy()
        found = moved.select(label)
        expected = r2_score(true, read, sample_weight=weights, multioutput="variance_weighted")
        assert found.score.r2 == pytest.approx(expected, abs=1e-9)
        errors = ((true - read) ** 2).mean(axis=1)
        assert found.score.mse == pytest.approx(np.average(errors, weights=weights), rel=1e-9)
        for (first, last), at_position in zip(moved.ranges, found.by_position, strict=True):
            assert first == last
            here = batch.positions.numpy() == first
            how = {"sample_weight": weights[here], "multioutput": "variance_weighted"}
            assert at_position.r2 == pytest.approx(r2_score(true[here], read[here], **how), abs=1e-9)
    table = moved.by_position()
    assert set(table["n"]) == {3**5}, "whole words are resampled, so each has a row at every position"
    for place, curve in table.groupby(level=["probe", "site"]):
        assert (curve["weight"] * curve["MSE"]).sum() == pytest.approx(moved.to_dataframe().loc[place, "MSE"])


def test_the_correction_is_a_regression_on_what_is_read(model, report, other):
    dataset, label = msp.words(other, n_ctx=5), "1_post"
    found = transfer(model, report, dataset, split="prefix", seed=3, **QUIET).select(label)
    read, batch = read_outs(model, report[label], msp.LabelledTokens.from_beliefs(dataset))
    true, weights = batch.targets["belief"].numpy(), batch.weights.numpy()
    n_groups = int(batch.groups.max()) + 1
    fold = (deal(batch.groups, 5 * CELLS_PER_FOLD, n_groups=n_groups, seed=3) % 5).numpy()
    corrected = np.empty_like(true)
    for k in range(5):
        rest = fold != k
        fitted = LinearRegression().fit(read[rest], true[rest], sample_weight=weights[rest])
        corrected[~rest] = fitted.predict(read[~rest])
    expected = r2_score(true, corrected, sample_weight=weights, multioutput="variance_weighted")
    assert found.corrected.r2 == pytest.approx(expected, abs=1e-8)
    assert found.score.r2 + 0.1 < found.corrected.r2


def test_a_probe_of_another_process_reads_badly_and_the_report_says_so(report, moved):
    assert moved.best.probe in report
    for label, probe in report.items():
        assert moved.select(label).score.r2 < probe.scores.in_sample.r2 - 0.3
    notes = " ".join(moved.summary())
    assert "Fitted on another process: all probes." in notes
    assert "mess3(x=0.15, a=0.6)" in notes
    assert f"Best control ({moved.controls.best('1_post').name})" in notes
    assert {"position", "window 4"} <= set(moved.controls.names)
    assert "Frozen probes" in repr(moved)
    assert "corrected" in repr(moved)


def test_an_affine_change_is_corrected_and_another_is_not(mess3):
    """A network that holds the belief the other way round holds it all the same; one that holds nothing does not."""
    observer, dataset = Observer(mess3), msp.words(mess3, n_ctx=4)
    probe = msp.probe(observer, dataset, sites="hook_beliefs", **QUIET)["hook_beliefs"]
    with torch.no_grad():
        observer.scale.fill_(-0.5)
    found = transfer(observer, probe, dataset, **QUIET)
    assert found.best.score.r2 < 0
    assert found.best.corrected.r2 == pytest.approx(1, abs=1e-9)
    assert "Fitted on another model or checkpoint: all probes." in found.notes
    with torch.no_grad():
        observer.scale.fill_(0)
    found = transfer(observer, probe, dataset, **QUIET)
    assert found.best.corrected.r2 < 0.01


def test_a_learning_curve_shows_when_the_belief_appears(mess3):
    dataset = msp.words(mess3, n_ctx=120, n_words=12)
    probe = msp.probe(
        Observer(mess3), replace(dataset, positions=slice(-40, None)), sites="hook_beliefs", **QUIET
    ).probes[0]
    found = transfer(Late(mess3, turned=30, since=60), probe, dataset, **QUIET)
    assert 20 < len(found.ranges) <= 32
    assert found.ranges[0] == (0, 0)
    assert found.ranges[-1][1] == 119
    assert "position in" in " ".join(found.controls.names)
    table = found.by_position()
    nothing, turned, late = table["last"] < 30, (table["first"] >= 30) & (table["last"] < 60), table["first"] >= 60
    assert min(nothing.sum(), turned.sum(), late.sum()) >= 2
    assert (table[nothing | turned]["R²"] < 0.2).all()
    np.testing.assert_allclose(table[late]["R²"], 1, atol=1e-9)
    # It is held already, in another way.
    assert (table[nothing]["R² corrected"] < 0.2).all()
    np.testing.assert_allclose(table[turned | late]["R² corrected"], 1, atol=1e-9)
    (axis,) = found.plot().axes
    assert axis.get_xscale() == "log"
    np.testing.assert_allclose(axis.lines[0].get_ydata(), table["R²"])
    (line,) = found.plot(corrected=True, theme="dark").axes[0].lines
    np.testing.assert_allclose(line.get_ydata(), table["R² corrected"])


def test_one_long_word_is_resampled_by_blocks(mess3):
    observer, dataset = Observer(mess3), msp.words(mess3, n_ctx=400, n_words=1)
    probe = msp.probe(observer, dataset, sites="hook_beliefs", split="block", controls=False, **QUIET).probes[0]
    with torch.no_grad():
        observer.scale.fill_(0.9)
    for data in (dataset, msp.LabelledTokens.from_beliefs(dataset)):
        found = transfer(observer, probe, data, split="block", controls=False, **QUIET).best
        low, high = found.score.r2_interval
        assert low < found.score.r2 < high < 1
        assert found.corrected.r2 == pytest.approx(1, abs=1e-9)
    with pytest.raises(ValueError, match="split='sequence' leaves 1 group"):
        transfer(observer, probe, dataset, **QUIET)


@pytest.mark.parametrize("include_prior", [False, True])
def test_models_that_read_symbols_through_a_vocabulary(mess3, include_prior):
    big = msp.build_model(replace(CONFIG, d_vocab=12, n_ctx=16), seed=1)
    spaced = msp.TokenMap([(5, 6), (5, 7), (8, 9)], bos=0, prompt=(1, 2), separator=(3,), include_prior=include_prior)
    dataset = msp.words(mess3, n_ctx=4, token_map=spaced, positions=slice(-3, None))
    report = msp.probe(big, dataset, sites=["0_post", "1_post"], controls=False, by_position=False, **QUIET)
    found = transfer(big, report, dataset, controls=False, **QUIET)
    for label, probe in report.items():
        assert found.select(label).score.r2 == pytest.approx(probe.scores.in_sample.r2, abs=1e-9)
    assert [first for first, _ in found.ranges] == ([0] if include_prior else []) + [1, 2, 3]
    plain = transfer(big, report, replace(dataset, token_map=None), controls=False, **QUIET)
    assert "Other than where they were fitted: token map." in plain.notes
    assert plain.select("1_post").score.r2 < found.select("1_post").score.r2 - 0.1


def test_labelled_tokens(model, report, mess3):
    dataset = msp.words(mess3, n_ctx=5, positions=[1, 3])
    labelled = msp.LabelledTokens.from_beliefs(dataset)
    found, expected = (transfer(model, report, data, split="prefix", **QUIET) for data in (labelled, dataset))
    assert found.matrix().equals(expected.matrix())
    assert "Other than where they were fitted: positions." in expected.notes
    renamed = replace(labelled, targets={"other": labelled.targets["belief"], "more": labelled.targets["belief"]})
    with pytest.raises(ValueError, match="data has the targets 'other', 'more', and the probes read 'belief'"):
        transfer(model, report, renamed, **QUIET)
    assert transfer(model, report, renamed.only("more"), split="prefix", **QUIET).matrix().equals(found.matrix())


def test_probes_of_a_part_are_scored_where_it_is_defined():
    mixed = msp.processes.mixture([msp.processes.z1r(), msp.processes.golden_mean()], [0.5, 0.5])
    small = msp.build_model(replace(CONFIG, d_vocab=mixed.n_tokens), seed=1)
    report = msp.probe(small, mixed, sites=["0_post", "1_post"], controls=False, by_position=False, **QUIET)
    for part in report.parts.values():
        found = transfer(small, part, mixed, controls=False, **QUIET)
        for label, probe in part.items():
            own, score = probe.scores.in_sample, found.select(label).score
            assert (score.r2, score.mse) == pytest.approx((own.r2, own.mse), abs=1e-9)
    both = {"a": report.parts["component"].probes[0], "b": report.probes[0]}
    with pytest.raises(ValueError, match="probes reads several parts"):
        transfer(small, both, mixed, **QUIET)
    with pytest.raises(ValueError, match="is of 'component', no part of the beliefs"):
        transfer(small, both["a"], msp.processes.golden_mean(), **QUIET)


def test_each_probe_at_each_site(model, report, mess3):
    sites = ["0_pre", "0_post", "1_post"]
    found = transfer(model, report, mess3, sites=sites, controls=False, **QUIET)
    single = [label for label in report if label != "concatenated"]
    table = found.matrix()
    assert list(table.index) == single
    assert list(table.columns) == sites
    for label in sites:
        assert table.loc[label, label] == pytest.approx(report[label].scores.in_sample.r2, abs=1e-9)
        assert (table.loc[label].drop(label) < table.loc[label, label] - 0.1).all(), "no two layers hold it alike"
    assert (found.matrix(corrected=True).to_numpy() > -0.05).all()
    assert "Left out, since they read several sites at once: concatenated." in found.notes
    with pytest.raises(KeyError, match="was read at several places"):
        found.select("0_post")
    with pytest.raises(KeyError, match="No probe '0_post' read at 'ln_final'"):
        found.select("0_post", "ln_final")
    assert found.by_position()["R² corrected"].isna().all()
    with pytest.raises(ValueError, match="only probes read where they were fitted are corrected by position"):
        found.plot(corrected=True)
    picture = found.plot.matrix(theme="dark")
    assert picture.axes[0].get_xlabel() == "read at"
    image = picture.axes[0].images[0]
    assert image.get_clim() == (0, 1), "what is worse than the mean does not squeeze the rest"
    np.testing.assert_allclose(image.get_array(), table.to_numpy())
    assert len(found.plot().axes[0].lines) == len(single) * len(sites)


def test_probes_by_name_and_an_untrained_twin(model, report, mess3):
    twin = msp.build_model(CONFIG, seed=2)
    theirs = msp.probe(twin, mess3, sites="1_post", controls=False, by_position=False, **QUIET)["1_post"]
    named = {"ours": report["1_post"], "theirs": theirs}
    found = transfer(twin, named, mess3, **QUIET)
    assert found.select("theirs").score.r2 == pytest.approx(theirs.scores.in_sample.r2, abs=1e-9)
    assert found.select("ours").score.r2 < found.select("theirs").score.r2 - 0.1
    assert "Fitted on another model or checkpoint: ours." in found.notes
    with pytest.raises(ValueError, match=r"probes has two of one name \(1_post, 1_post\)"):
        transfer(twin, list(named.values()), mess3, **QUIET)


def test_what_does_not_fit_is_refused(model, report, mess3):
    with pytest.raises(ValueError, match="probes: 0_pre reads 3 states, and data has 2"):
        transfer(model, report, msp.processes.golden_mean(), **QUIET)
    wider = msp.build_model(replace(CONFIG, d_model=24), seed=1)
    with pytest.raises(ValueError, match="probes: 1_post reads 16 features and 1_post has 24 in this model"):
        transfer(wider, report["1_post"], mess3, **QUIET)
    with pytest.raises(KeyError, match="no site"):
        transfer(msp.build_model(replace(CONFIG, n_layers=1), seed=1), report, mess3, **QUIET)
    with pytest.raises(ValueError, match="probes is empty"):
        transfer(model, [], mess3, **QUIET)
    with pytest.raises(ValueError, match="every probe reads several sites at once"):
        transfer(model, report["concatenated"], mess3, sites="0_post", **QUIET)
    with pytest.raises(ValueError, match="is longer than the model's context of 5"):
        transfer(model, report, msp.words(mess3, n_ctx=9, n_words=3), **QUIET)


def test_a_belief_that_never_varies(model, report):
    def coin(p):
        return msp.processes.coin(p=p)

    flat = msp.processes.product([coin(0.5)])
    small = msp.build_model(replace(CONFIG, d_vocab=2), seed=1)
    probe = msp.probe(small, flat, sites="0_post", by_position=False, **QUIET)
    found = transfer(small, probe, flat, **QUIET)
    assert np.isnan(found.best.score.r2)
    assert "never varies" in found.summary()[-1]
    assert "–" in repr(found)
    assert found.plot().axes
    assert found.plot.matrix().axes
