"""Pictures of interventions: whatever their axes are called, it can be read."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from msp_lens.figures.edit_bars import plot_edits, plot_strengths

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
