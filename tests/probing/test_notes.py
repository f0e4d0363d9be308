"""What a report says where a number alone would mislead, and that reports are plain values."""

import copy
import math
import pickle
import warnings

import pytest
import torch

import msp_lens as msp
from msp_lens.data import LabelledTokens
from msp_lens.probing.probe_notes import untrained_position


def network(d_vocab=3, n_ctx=5, seed=1, **config):
    shape = {"n_layers": 1, "d_model": 16, "d_head": 8, "d_mlp": 32} | config
    return msp.build_model(msp.ModelConfig(d_vocab=d_vocab, n_ctx=n_ctx, **shape), seed=seed)


def text(report):
    return " ".join(repr(report).split())


@pytest.fixture(scope="module")
def report(mess3):
    return msp.probe(network(), mess3, progress=False)


def test_a_process_of_one_state_gets_a_sentence():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = msp.probe(network(2), msp.processes.coin(), progress=False)
        said = text(report)
        table, geometry, distances = report._repr_html_(), repr(report.geometry()), repr(report.distances())
    assert "The belief never varies on these rows, so there is nothing to read" in said
    assert "R² not defined, as nothing varies" in repr(report["0_post"])
    assert "The beliefs never vary" in geometry
    assert "the distances do not vary" in distances
    for shown in (said, table, geometry, distances, repr(report.controls)):
        assert "nan" not in shown.lower()
    assert report.best_site.label == "0_pre"


def test_a_constant_target_gets_a_sentence():
    tokens = torch.randint(0, 3, (40, 5), generator=torch.Generator().manual_seed(0))
    values = torch.stack([tokens.double(), torch.full((40, 5), 0.1).double()], dim=2)
    partly = msp.probe(network(), LabelledTokens.from_tokens(tokens, {"both": values}), progress=False)
    assert "Coordinates of the target 'both' that never vary on these rows: 1." in text(partly)
    assert "the target 'both'." in text(partly)
    constant = msp.probe(network(), LabelledTokens.from_tokens(tokens, values[..., 1]), progress=False)
    assert "The target never varies" in text(constant)
    assert "nan" not in text(constant)


def test_a_random_network_is_told_that_it_reads_no_more_than_its_controls(report):
    assert "No site reads better than its best control" in text(report)


def test_skill_has_an_interval_and_a_warning(mess3):
    """The embedding tells the last token and the position; only the shuffled belief's controls are worse."""
    report = msp.probe(network(n_layers=2), mess3, progress=False)
    low, high = report.skill_interval("1_post")
    assert low <= report.skill("1_post") <= high
    # An interval of a skill is that of an R² whose spread are the control's errors.
    control, probe = report.controls.best("1_post").held_out, report["1_post"].scores.held_out
    assert len(control.mse_by_cell) == len(probe.mse_by_cell) == report.provenance["n_cells"]
    assert sum(control.mse_by_cell) == pytest.approx(control.mse)
    assert sum(probe.mse_by_cell) == pytest.approx(probe.mse)
    table, notes = text(report).split("mess3(", 1)
    assert "skill" in table
    assert "No site reads better than its best control" in notes or "It differs more between trainings" in notes


def test_an_unused_symbol_is_named():
    transitions = torch.zeros(3, 2, 2, dtype=torch.float64)
    transitions[0], transitions[1] = torch.tensor([[0.3, 0.2], [0.5, 0.1]]), torch.tensor([[0.1, 0.4], [0.2, 0.2]])
    process = msp.Process(transitions, tokens=("a", "b", "unheard"))
    report = msp.probe(network(3), process, progress=False)
    assert report.provenance["unused_tokens"] == ["unheard"]
    assert "Never emitted in these words: unheard." in text(report)


def test_a_position_far_above_the_rest_is_named_with_the_remedy(report):
    from dataclasses import replace

    last = replace(report, regret=torch.tensor([0.001, 0.002, 0.001, 0.001, 0.4]).double())
    assert "Position 4 (the last) has a regret of 0.4000 nats, the others at most 0.002" in text(last)
    assert "data=msp.words(process, n_ctx=4)" in text(last)
    first = replace(report, regret=torch.tensor([0.4, 0.001, 0.002, 0.001, 0.001]).double())
    assert "data=msp.words(process, n_ctx=5, positions=[1, 2, 3, 4])" in text(first)
    for regret in ([0.3, 0.2, 0.3, 0.4], [1e-5, 1e-5, 1e-3], [0.1, 0.4]):
        assert untrained_position(torch.tensor(regret).double()) is None


def test_the_solver_that_was_chosen_is_named_with_the_reason(mess3):
    report = msp.probe(network(), mess3, progress=False)
    assert report["0_post"].scores.solver == "ols"
    assert report["concatenated"].scores.solver == "ridge"
    assert "Fitted by ridge: concatenated, which have fewer than 20 rows a feature (7.6 at the least)" in text(report)
    assert "The others are fitted by least squares, as there are at least 20 rows a feature." in text(report)
    assert report.to_dataframe()["solver"].tolist()[-1] == "ridge"
    ols = msp.probe(network(), mess3, solver="ols", progress=False)
    assert "Probes are fitted by least squares." in text(ols)
    assert ols["0_post"].scores == report["0_post"].scores
    # Where rows are few, ridge is what keeps a probe from overfitting: a z1r network's 4 words of 5 tokens.
    options = {"controls": False, "by_position": False, "progress": False}
    few = {solver: msp.probe(network(2), msp.processes.z1r(), solver=solver, **options) for solver in ("ols", "auto")}
    assert few["auto"]["0_post"].scores.solver == "ridge"
    assert few["auto"]["0_post"].scores.held_out.r2 > few["ols"]["0_post"].scores.held_out.r2


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_reports_and_probes_are_plain_values(report, duplicate):
    again = duplicate(report)
    assert again == report
    assert repr(again) == repr(report)
    assert again["0_post"] == report["0_post"]
    assert again["0_post"].moments == report["0_post"].moments
    assert duplicate(report.controls) == report.controls
    assert duplicate(report.geometry()) == report.geometry()
    assert duplicate(report.distances()) == report.distances()
    # Copies in memory still know their model, which is not copied; pickled ones are like those read from a file.
    assert again.model is (report.model if duplicate in (copy.copy, copy.deepcopy) else None)


def test_what_differs_is_not_equal(report, mess3, tmp_path):
    assert msp.ProbeReport.load(report.save(tmp_path / "report.safetensors")) == report
    other = msp.probe(network(seed=2), mess3, progress=False)
    assert other != report
    assert other["0_post"] != report["0_post"]
    assert other["0_post"].moments != report["0_post"].moments
    assert report != 3
    assert math.isnan(float("nan"))  # Scores hold NaN where nothing was measured, and are equal all the same.


def test_labels_may_hold_anything(mess3):
    groups = {"$x_{": ["0_pre", "0_post"], "<b>&\\n%s": "0_post"}
    report = msp.probe(network(), mess3, sites=groups, concatenate=False, progress=False)
    assert list(report) == list(groups)
    for figure in (report.plot.scores(), report.plot(*groups), report.plot.by_rank(), report.plot.crossover()):
        figure.canvas.draw()
    assert "<b>" not in report._repr_html_()
