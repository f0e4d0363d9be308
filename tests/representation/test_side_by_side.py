"""Several processes and reports in one figure."""

import pytest

import msp_lens as msp
from msp_lens.representation import side_by_side


@pytest.fixture(scope="module")
def reports():
    found = {}
    for process in (msp.mess3(), msp.processes.z1r()):
        config = msp.ModelConfig(d_vocab=process.n_tokens, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=4)
        found[process.name] = msp.probe(msp.build_model(config, seed=0), process, progress=False)
    return found


def shown(figure):
    return [axis.get_title() for axis in figure.axes if axis.get_images()]


def test_reports_and_processes_have_a_column_each(reports):
    figure = side_by_side([*reports.values(), msp.rrxor()], title="three worlds")
    titles = shown(figure)
    assert len(titles) == 2 + 2 + 1
    assert [title.split("\n")[0].partition("(")[0] for title in titles[:3]] == ["mess3", "z1r", "rrxor"]
    for title, report in zip(titles[3:], reports.values(), strict=True):
        best = report.best_site
        assert title == f"{best.label}: held-out R² {best.scores.held_out.r2:.4f}"
    assert figure.get_suptitle() == "three worlds"
    # The same process twice has two names.
    twice = shown(side_by_side([msp.mess3(), msp.mess3()], theme="dark"))
    assert len({title.split("\n")[0] for title in twice}) == 2


def test_scores_stand_beside_their_controls(reports):
    figure = side_by_side(reports, show="scores")
    assert [axis.get_title() for axis in figure.axes] == list(reports)
    for axis, report in zip(figure.axes, reports.values(), strict=True):
        held_out = next(line for line in axis.lines if line.get_label() == "held out")
        assert held_out.get_ydata().tolist() == [probe.scores.held_out.r2 for probe in report.probes]


def test_what_cannot_be_shown_is_said(reports):
    with pytest.raises(ValueError, match="is a process and has no scores"):
        side_by_side([msp.mess3()], show="scores")
    with pytest.raises(ValueError, match="give at least one"):
        side_by_side({})
