import warnings

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from msp_lens.figures.curves import plot_inference, plot_learning, plot_regret, plot_sites
from msp_lens.figures.edit_bars import plot_heat_map, plot_strengths
from msp_lens.figures.representation_curves import plot_lens
from msp_lens.figures.score_curves import (
    plot_crossover,
    plot_distances,
    plot_learning_curves,
    plot_parts,
    plot_r2,
    plot_score_columns,
)
from msp_lens.figures.style import PHONE_WIDTH, for_phones


def marks(axis, label):
    return next(line for line in axis.lines if line.get_label() == label)


def test_scores_stand_before_their_control():
    figure = plot_sites(["a", "b"], [0.5, 0.6], [0.7, 0.8], [0.1, 0.2], control=[0.4, 0.65])
    (axis,) = figure.axes
    assert list(marks(axis, "held out").get_ydata()) == [0.5, 0.6]
    assert list(marks(axis, "in-sample").get_ydata()) == [0.7, 0.8]
    assert list(marks(axis, "shuffled beliefs, in-sample").get_ydata()) == [0.1, 0.2]
    (behind,) = [each for each in axis.containers if each.get_label() == "best control, held out"]
    assert [bar.get_y() + bar.get_height() for bar in behind] == pytest.approx([0.4, 0.65])
    for bar, *places in zip(
        behind, *(marks(axis, name).get_xdata() for name in ("held out", "in-sample")), strict=True
    ):
        assert all(bar.get_x() < place < bar.get_x() + bar.get_width() for place in places)
        assert bar.get_zorder() < marks(axis, "held out").get_zorder()
    low, high = axis.get_ylim()
    assert low < 0.1 < 0.8 < high


def test_what_sites_read_of_a_rival_is_marked():
    (axis,) = plot_sites(["a", "b"], [0.5, 0.95], [0.7, 0.96], [0.1, 0.2], rivals={"rival": [0.6, 0.8]}).axes
    assert marks(axis, "rival, as read there").get_xydata().tolist() == [[0.0, 0.6], [1.0, 0.8]]


def test_a_score_below_the_axis_is_marked_at_its_foot():
    (axis,) = plot_sites(["a", "b"], [-7.0, 0.95], [0.7, 0.96], [0.1, 0.2]).axes
    foot = axis.get_ylim()[0]
    (mark,) = [line for line in axis.lines if line.get_marker() == "v"]
    assert mark.get_xydata().tolist() == [[-0.12, pytest.approx(foot)]]


def test_parts_stand_side_by_side_each_by_its_control():
    figure = plot_parts(["a", "b"], {"first": [0.5, 0.6], "second": [0.1, 0.2]}, controls={"second": [0.3, 0.3]})
    (axis,) = figure.axes
    first, second = axis.lines
    assert list(first.get_ydata()) == [0.5, 0.6]
    assert all(a < b for a, b in zip(first.get_xdata(), second.get_xdata(), strict=True))
    (bars,) = [each for each in axis.collections if hasattr(each, "get_segments")]
    for segment, x in zip(bars.get_segments(), second.get_xdata(), strict=True):
        assert segment[:, 1].tolist() == [0.3, 0.3]
        assert segment[0, 0] < x < segment[1, 0]


def test_scores_near_one_are_told_apart():
    held_out = [0.99, 0.999, 0.9999]
    figure = plot_sites(
        list("abc"),
        held_out,
        [0.995, 0.9995, 0.99995],
        [0.1] * 3,
        intervals=[(r - 0.0001, r + 0.00005) for r in held_out],
    )
    figure.canvas.draw()
    (axis,) = figure.axes
    assert list(marks(axis, "held out").get_ydata()) == held_out
    first, second, third = axis.transData.transform(np.stack([np.zeros(3), held_out], axis=1))[:, 1]
    # Each has a tenth of the other's errors: equal steps up.
    assert second - first == pytest.approx(third - second, rel=0.01)
    assert second - first > 20
    assert "stretched near 1" in axis.get_ylabel()
    assert "stretched" not in plot_sites(["a"], [0.5], [0.6], [0.1]).axes[0].get_ylabel()


def test_losses_are_the_floor_plus_the_regret():
    figure = plot_regret([0.01, 0.02], [0.9, 0.8])
    losses, above = figure.axes
    model = next(line for line in losses.lines if line.get_label() == "model's loss")
    assert list(model.get_ydata()) == pytest.approx([0.91, 0.82])
    assert [bar.get_height() for bar in above.patches] == [0.01, 0.02]
    with pytest.raises(ValueError, match="regret has 2 entries and floor 1: give one for each"):
        plot_regret([0.01, 0.02], [0.9])


def test_learning_is_the_excess_over_the_oracle():
    figure = plot_learning([0.7, 0.65, 0.6], [0.7, 0.6, 0.58], [0.5, 0.25, 0.125], title="coins")
    losses, above = figure.axes
    assert [list(line.get_ydata()) for line in losses.lines] == [[0.7, 0.65, 0.6], [0.7, 0.6, 0.58]]
    excess, limit = (list(line.get_ydata()) for line in above.lines)
    assert np.isnan(excess[0]), "an excess of 0 has no place on a logarithmic axis"
    assert excess[1:] == pytest.approx([0.05, 0.02])
    assert limit == [0.5, 0.25, 0.125]
    assert (above.get_xscale(), above.get_yscale(), losses.get_title()) == ("log", "log", "coins")
    networks = {"trained": [0.01, 0.06, 0.03]}
    *_, trained = plot_learning([0.7, 0.65, 0.6], [0.7, 0.6, 0.58], networks=networks).axes[1].lines
    assert (trained.get_label(), list(trained.get_ydata())) == ("trained", [0.01, 0.06, 0.03])
    with pytest.raises(ValueError, match="entropies has 2 entries and oracle 1: give one for each"):
        plot_learning([0.7, 0.6], [0.5])


@pytest.mark.parametrize("values", [[0.2, 0.4, np.nan], [0.5, 0.99, 0.9999], [-30.0, 0.5, 1.0], [np.nan] * 3])
def test_curves_of_r2_show_what_they_are_given(values):
    figure = plot_r2([1, 2, 3], {"0_post": values}, xlabel="rank")
    figure.canvas.draw()
    (axis,) = figure.axes
    np.testing.assert_array_equal(axis.lines[0].get_ydata(), values)
    low, high = axis.get_ylim()
    finite = [value for value in values if np.isfinite(value)]
    assert all(low < max(value, -1.0) < high for value in finite)
    assert len([tick for tick in axis.get_yticks() if low <= tick <= high]) >= 2


def test_learning_curves_stand_in_the_middle_of_their_ranges():
    values, ends = [0.1, np.nan, 0.8], [(0.0, 0.2), (np.nan, np.nan), (0.7, 0.9)]
    (axis,) = plot_learning_curves([(0, 0), (1, 7), (8, 80)], {"1_post": values}, intervals={"1_post": ends}).axes
    assert (axis.get_xscale(), axis.get_xlabel()) == ("log", "tokens read")
    np.testing.assert_array_equal(axis.lines[0].get_ydata(), values)
    np.testing.assert_allclose(axis.lines[0].get_xdata(), [1, 4, 27])
    corners = np.concatenate([path.vertices for path in axis.collections[0].get_paths()])
    assert {0.0, 0.2, 0.7, 0.9} <= set(corners[:, 1])
    (axis,) = plot_learning_curves([(0, 0), (1, 7), (8, 80)], {"1_post": [1.0, 0.1, 0.5]}).axes
    assert axis.get_yscale() == "linear", "a first token that is read exactly does not squeeze the rest"
    assert plot_learning_curves([(0, 0), (1, 1)], {"1_post": [0.999, 0.99]}).axes[0].get_yscale() == "function"
    (axis,) = plot_learning_curves([(0, 0), (2, 2)], {"1_post": [0.1, 0.2]}).axes
    assert (axis.get_xscale(), axis.get_xlabel(), axis.get_xticks().tolist()) == ("linear", "position", [0, 2])


def test_sites_are_told_apart_without_color():
    figure = plot_r2([1, 2], {name: [0.1, 0.2] for name in "abcd"}, xlabel="rank")
    assert len({line.get_marker() for line in figure.axes[0].lines}) == 4
    figure = plot_strengths({name: ([0, 1], [0.1, 0.2]) for name in "abcd"}, ylabel="KL")
    assert len({line.get_marker() for line in figure.axes[0].lines}) == 4


def test_the_crossover_is_ringed_where_the_first_window_overtakes_a_site():
    figure = plot_crossover(
        [1, 2, 3],
        {"windows": [0.5, 0.8, 0.95], "added up": [0.55, 0.6, np.nan]},
        {"embed": 0.52, "middle": 0.9, "last": 0.99},
    )
    (axis,) = figure.axes
    rings = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axis.lines if line.get_markersize() == 11]
    assert rings == [(1, 0.52), (3, 0.9)]
    named = [text.get_text() for text in axis.texts]
    assert named == ["embed 0.5200", "middle 0.9000", "last 0.9900"]


def test_names_of_close_levels_do_not_overlap():
    sites = {f"site {k}": 0.99 + 0.0001 * k for k in range(6)}
    figure = plot_crossover([1, 2], {"windows": [0.3, 0.8]}, sites)
    figure.canvas.draw()
    (axis,) = figure.axes
    heights = sorted(text.xyann[1] * axis.bbox.height for text in axis.texts)
    tallest = max(Text.get_window_extent(text).height for text in axis.texts)
    assert np.diff(heights).min() > tallest
    assert [text.xy[1] for text in axis.texts] == list(sites.values())


def test_sites_far_worse_than_nothing_leave_the_picture_whole():
    sites = {"embed": 0.1, "last": -3.0, "concatenated": -1233.5, "constant": float("nan")}
    figure = plot_crossover([1, 2], {"windows": [0.2, 0.6]}, sites)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.texts] == ["embed 0.1000", "last -3.0000", "concatenated -1233.5000"]
    low, high = axis.get_ylim()
    assert all(low <= text.xy[1] <= high for text in axis.texts)
    assert -1.2 < low < 0.1 < 0.6 < high


def test_distances_are_binned_by_weight_with_their_line():
    x = np.array([0.0, 1.0, 2.0, 3.0])
    weights = np.array([1.0, 1.0, 1.0, 5.0])
    figure = plot_distances(2 * x + 1, {"true beliefs": (x, 1.0), "others": (x[::-1].copy(), 0.5)}, weights=weights)
    first, second = figure.axes
    mesh = first.collections[0].get_array()
    assert mesh.sum() == pytest.approx(4)
    assert mesh.max() == pytest.approx(4 * 5 / 8)
    line = first.lines[0]
    np.testing.assert_allclose(line.get_ydata(), 2 * line.get_xdata() + 1)
    assert (first.get_title(), second.get_title()) == ("R² 1.0000", "R² 0.5000")
    assert second.get_xlabel() == "distance between others"


def test_a_heat_map_writes_each_number_where_it_can_be_read():
    figure = plot_heat_map(np.array([[0.1, np.nan], [0.95, 0.5]]), ["a", "b"], ["0", "1"], theme="dark")
    texts = {text.get_position(): (text.get_text(), text.get_color()) for text in figure.axes[0].texts}
    assert texts == {(0, 0): ("0.10", "#ffffff"), (0, 1): ("0.95", "#000000"), (1, 1): ("0.50", "#ffffff")}


def test_a_heat_map_does_not_spend_its_colors_on_what_is_below_the_lowest():
    values, names = np.array([[-40.0, 0.5]]), (["a"], ["a long name", "b"])
    whole, above = (plot_heat_map(values, *names, lowest=lowest).axes[0] for lowest in (None, 0))
    assert [axis.images[0].get_clim() for axis in (whole, above)] == [(-40, 1), (0, 1)]
    assert [text.get_text() for text in above.texts] == ["-40.00", "0.50"]


def test_an_exact_machine_stands_at_the_bottom(tmp_path):
    figure = plot_inference([3.0, 1.5, 1e-12], 0.03, 2, {1: 0.3, 2: 0.1, 3: 0.0}, chosen=3)
    figure.savefig(tmp_path / "figure.png")
    sizes, left = figure.axes
    np.testing.assert_allclose(sizes.collections[0].get_offsets()[:, 1], [1, 0.5, 1e-6])
    (curve,) = left.get_lines()
    np.testing.assert_allclose(curve.get_xydata(), [(1, 0.3), (2, 0.1), (3, 1e-12)])
    np.testing.assert_allclose(left.collections[0].get_offsets(), [(3, 1e-12)])
    assert left.get_yscale() == "log"


def test_figures_for_phones_stand_panel_below_panel():
    with for_phones():
        figure = plot_regret([0.01, 0.02], [0.9, 0.8])
        scores = plot_sites(["0_pre", "concatenated"], [0.5, 0.6], [0.7, 0.8], [0.1, 0.2], control=[0.4, 0.65])
    assert figure.get_figwidth() == scores.get_figwidth() == PHONE_WIDTH
    FigureCanvasAgg(figure).draw()
    upper, lower = (axis.get_window_extent() for axis in figure.axes)
    assert upper.y0 > lower.y1
    FigureCanvasAgg(scores).draw()
    (axis,) = scores.axes
    legend, names = axis.get_legend().get_window_extent(), axis.get_xticklabels()
    assert legend.y0 >= 0
    assert legend.y1 <= min(name.get_window_extent().y0 for name in names), "the legend hides names of sites"
    # It ends with the block.
    assert plot_regret([0.01, 0.02], [0.9, 0.8]).get_figwidth() > 2 * PHONE_WIDTH


def test_networks_side_by_side_share_an_axis():
    column = {"labels": ["a", "b"], "held_out": [0.5, 0.99], "control": [0.4, 0.6]}
    first, second = plot_score_columns({"one": column, "other": column | {"held_out": [0.1, 0.2]}}).axes
    assert first.get_ylim() == second.get_ylim()
    assert [axis.get_title() for axis in (first, second)] == ["one", "other"]
    assert list(marks(second, "held out").get_ydata()) == [0.1, 0.2]
    with pytest.raises(ValueError, match="held_out 1"):
        plot_score_columns({"one": column | {"held_out": [0.1]}})


def test_a_lens_shows_distances_beside_scores():
    figure = plot_lens(["0_pre", "0_post"], {"lens": [0.3, 0.01]}, {"own": [0.5, 0.99]}, levels={"output": 0.01})
    left, right = figure.axes
    assert left.get_yscale() == "log"
    assert list(marks(left, "lens").get_ydata()) == [0.3, 0.01]
    assert list(marks(left, "output").get_ydata()) == [0.01, 0.01]
    assert list(marks(right, "own").get_ydata()) == [0.5, 0.99]
