"""Pictures of interventions: whatever their axes are called, it can be read."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from msp_lens.figures.edit_bars import plot_edits, plot_persistence, plot_strengths

LONG = "KL(optimum filtered on from the target ‖ model), nats, the mean over words"


@pytest.mark.parametrize(
    "figure",
    [
        plot_strengths({"steer": ([0.0, 1.0], [0.6, 0.1])}, ylabel=LONG),
        plot_edits(["0_post"], {"steer": {"0_post": 0.1}}, ylabel=LONG),
    ],
    ids=["strengths", "edits"],
)
def test_long_labels_are_not_cut_off(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    label = figure.axes[0].yaxis.label.get_window_extent(canvas.get_renderer())
    assert figure.bbox.y0 <= label.y0 < label.y1 <= figure.bbox.y1
    assert figure.bbox.x0 <= label.x0


def test_shares_recovered_reach_from_nothing_to_all():
    values = {"placebo": {"a": 0.1, "b": -4.0}, "steer": {"a": 0.99, "b": -5.0}}
    errors = {"steer": {"a": 0.02, "b": 0.1}}
    (axis,) = plot_edits(["a", "b"], values, ylabel="share", placebo="placebo", errors=errors, is_share=True).axes
    low, high = axis.get_ylim()
    assert low == pytest.approx(-0.27)
    assert high > 1
    bars = {each.get_label(): each for each in axis.containers if hasattr(each, "patches")}
    assert [bar.get_height() for bar in bars["steer"]] == [0.99, -5.0]
    # Far below, bars are marked at the foot; and a share smaller than the placebo's is worse.
    feet = [line for line in axis.lines if line.get_marker() == "v"]
    assert [line.get_ydata().tolist() for line in feet] == [[-0.25], [-0.25]]
    assert [bool(bar.get_hatch()) for bar in bars["steer"]] == [False, True]
    (segments,) = [line.get_segments() for line in axis.collections]
    assert segments[0][:, 1].tolist() == pytest.approx([0.97, 1.01])


def test_how_long_edits_last_is_a_panel_for_each_way():
    curves = {"none": ([0, 1], [0.6, 0.2]), "steer": ([0, 1], [0.002, 0.1])}
    alone, onward = plot_persistence({"one position": curves, "trajectory": curves}, ylabel="KL").axes
    assert [axis.get_title() for axis in (alone, onward)] == ["one position", "trajectory"]
    left_alone, steered = onward.lines
    assert left_alone.get_linestyle() == "--"
    assert list(steered.get_ydata()) == [0.002, 0.1]
    assert alone.get_yscale() == "log"
    near = plot_persistence({"one": {"none": ([0, 1], [0.6, 0.2])}}, ylabel="KL").axes[0]
    assert near.get_yscale() == "linear"
