"""Reports side by side: the numbers are the reports' own, and the intervals of differences are paired."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import msp_lens as msp
from msp_lens.inference import ProcessComparison
from msp_lens.moments.scores import CellErrors, r2_difference


def network(seed, n_layers=2):
    return msp.build_model(
        msp.ModelConfig(d_vocab=3, n_layers=n_layers, d_model=16, d_head=8, d_mlp=32, n_ctx=6), seed=seed
    )


@pytest.fixture(scope="module")
def reports(mess3):
    """Of two networks of one shape and of a deeper one, on the same words."""
    models = {"a": network(1), "b": network(2), "deep": network(3, n_layers=3)}
    return {name: msp.probe(model, mess3, progress=False) for name, model in models.items()}


def scored(generator, n_cells=20, n_targets=3, shared=None):
    """The scores of two maps on the same made-up cells."""
    weight = torch.rand(n_cells, generator=generator, dtype=torch.float64) + 0.5
    spread = torch.rand(n_cells, n_targets, generator=generator, dtype=torch.float64) + 0.5
    common = torch.rand(n_cells, n_targets, generator=generator, dtype=torch.float64)
    fold = torch.arange(n_cells) % 5
    found = []
    for size in (0.3, 0.2):
        errors = size * common + 0.02 * torch.rand(n_cells, n_targets, generator=generator, dtype=torch.float64)
        found.append(CellErrors(errors, spread, weight, fold, 100).score())
    return found


class TestTheDifference:
    @given(st.integers(0, 1000))
    def test_is_that_of_r2_and_turns_its_sign_with_the_order(self, seed):
        first, second = scored(torch.Generator().manual_seed(seed))
        difference, (low, high) = r2_difference(first, second)
        assert difference == pytest.approx(second.r2 - first.r2)
        assert low <= difference <= high
        back, (back_low, back_high) = r2_difference(second, first)
        assert (back, back_low, back_high) == pytest.approx((-difference, -high, -low))
        assert r2_difference(first, first) == (0, pytest.approx((0, 0), abs=1e-12))

    def test_its_interval_is_a_paired_bootstrap(self):
        """Against scipy's, of many cells, where plain percentiles and expanded ones are alike."""
        first, second = scored(torch.Generator().manual_seed(0), n_cells=400)
        columns = tuple(map(np.array, (first.mse_by_cell, second.mse_by_cell, first.variance_by_cell)))

        def statistic(ours, theirs, spread, axis):
            return (ours.sum(axis) - theirs.sum(axis)) / spread.sum(axis)

        expected = stats.bootstrap(
            columns, statistic, paired=True, vectorized=True, method="percentile", rng=np.random.default_rng(0)
        ).confidence_interval
        _, found = r2_difference(first, second)
        width = expected.high - expected.low
        assert found == pytest.approx(tuple(expected), abs=0.1 * width)
        # What is hard for both cancels: unpaired, it would be far wider.
        assert width < 0.5 * (first.width + second.width)

    def test_there_is_no_interval_on_other_cells(self):
        first, _ = scored(torch.Generator().manual_seed(0))
        for other in (scored(torch.Generator().manual_seed(1))[1], scored(torch.Generator().manual_seed(0), 21)[1]):
            difference, ends = r2_difference(first, other)
            assert difference == pytest.approx(other.r2 - first.r2)
            assert all(map(math.isnan, ends))


def test_the_numbers_are_those_of_the_reports(reports):
    found = msp.compare(reports["a"], reports["b"], names=["a", "b"])
    table = found.to_dataframe()
    for name in ("a", "b"):
        own = reports[name].to_dataframe()
        mine = table.xs(name, level="report")
        assert list(mine.index) == list(own.index)
        for column in ("R² held out", "low", "R² in-sample", "MSE held out", "best control", "skill", "n"):
            assert mine[column].tolist() == own[column].tolist()
    of_a, of_b = (table.xs(name, level="report") for name in ("a", "b"))
    assert of_a["difference"].isna().all()
    assert of_b["difference"].tolist() == pytest.approx((of_b["R² held out"] - of_a["R² held out"]).tolist())
    assert (of_b["difference low"] <= of_b["difference"]).all()
    assert (of_b["difference"] <= of_b["difference high"]).all()


def test_networks_of_other_depths_share_the_sites_they_have(reports):
    found = msp.compare(reports["a"], reports["deep"], reports["b"])
    assert found.sites == ["0_pre", "0_post", "1_post", "2_post", "ln_final", "concatenated"]
    table = found.to_dataframe()
    assert [name for site, name in table.index if site == "2_post"] == ["second"]
    assert math.isnan(table.loc[("2_post", "second"), "difference"])
    assert not math.isnan(table.loc[("ln_final", "third"), "difference low"])
    assert "Probes of first, second, third" in repr(found)
    with pytest.raises(KeyError, match="no report 'b' here; there are first, second, third"):
        found.difference("0_pre", "b")


def test_what_it_says_of_the_numbers(reports, mess3):
    notes = " ".join(msp.compare(reports["a"], reports["b"]).summary())
    assert "paired bootstrap over 20 cells of rows, the same cells for both, with the fitted maps fixed" in notes
    assert "other seeds may differ by far more" in notes
    assert "Mean regret in nats: first " in notes
    assert "They differ" not in notes
    other = msp.probe(network(2), mess3, split="subtree", controls=False, progress=False)
    found = msp.compare(reports["a"], other)
    notes = " ".join(found.summary())
    assert "They differ in split: first prefix, second subtree." in notes
    assert "No interval for second: not scored on the same cells" in notes
    assert "Without controls, an R² means little: probe second with controls=True." in notes
    assert found.to_dataframe()["difference low"].isna().all()
    assert not found.to_dataframe().xs("second", level="report")["difference"].isna().any()


def test_what_is_not_comparable_is_refused(reports, mess3):
    weighted = msp.probe(network(1), mess3, weighting="sequence", controls=False, progress=False)
    with pytest.raises(ValueError, match="first is of weighting probability, second of weighting sequence"):
        msp.compare(reports["a"], weighted)
    other = msp.probe(network(1), msp.mess3(x=0.15, a=0.6), controls=False, progress=False)
    with pytest.raises(ValueError, match=r"first is of process mess3\(x=0.05.*second of process mess3\(x=0.15"):
        msp.compare(reports["a"], other)
    for names in (["a"], ["a", "a"]):
        with pytest.raises(ValueError, match="give one for each of the 2 reports, all different"):
            msp.compare(reports["a"], reports["b"], names=names)
    with pytest.raises(TypeError, match="others: 3 is no report"):
        msp.compare(reports["a"], reports["b"], 3)
    with pytest.raises(TypeError, match=r"compare\(ProbeReport, Process\): give two processes, or two or more reports"):
        msp.compare(reports["a"], mess3)


def test_saved_reports_are_called_by_their_files(reports, tmp_path):
    (tmp_path / "run").mkdir()
    paths = [reports["a"].save(tmp_path / "trained.safetensors"), tmp_path / "run"]
    reports["b"].save(tmp_path / "run" / "probes.safetensors")
    found = msp.compare(*paths)
    assert list(found.reports) == ["trained.safetensors", "run"]
    table = found.to_dataframe().reset_index(drop=True)
    assert table.equals(msp.compare(reports["a"], reports["b"]).to_dataframe().reset_index(drop=True))
    with pytest.raises(FileNotFoundError, match=r"has no probes.safetensors: msp.experiments.report\(folder\)"):
        msp.compare(tmp_path, tmp_path / "run")


def test_processes_are_compared_as_such(mess3):
    found = msp.compare(mess3, mess3)
    assert isinstance(found, ProcessComparison)
    assert found.divergence == pytest.approx(0, abs=1e-9)


def test_its_picture_has_a_point_for_each_report_and_site(reports):
    figure = msp.compare(reports["a"], reports["deep"], names=["shallow", "deep"]).plot()
    (axis,) = figure.axes
    lines = {line.get_label(): line.get_ydata() for line in axis.get_lines()}
    assert lines.keys() == {"shallow", "deep"}
    assert np.isnan(lines["shallow"]).tolist() == [False, False, False, True, False, False]
    own = reports["deep"].to_dataframe()["R² held out"]
    assert lines["deep"].tolist() == pytest.approx(own.tolist())
    assert axis.get_title() == "Held out, by site and report; bars: best control"
