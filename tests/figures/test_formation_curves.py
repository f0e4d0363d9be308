import numpy as np

from msp_lens.figures.curves import plot_sweep
from msp_lens.figures.formation_curves import (
    plot_emergence,
    plot_inferred,
    plot_measures,
    plot_regret_against_error,
    plot_use,
)

TOKENS = [0, 100, 1_000, 10_000]
R2 = {"embed": [0.1, 0.2, 0.3, 0.3], "concatenated": [0.1, 0.5, 0.9, 0.99]}
MSE = {"embed": [0.09, 0.08, 0.07, 0.07], "concatenated": [0.09, 0.05, 0.01, 0.001]}
REGRET = [0.4, 0.1, 0.01, 0.0]


def test_curves_over_training_have_a_place_for_no_tokens(tmp_path):
    figure = plot_emergence(TOKENS, R2, MSE, REGRET)
    figure.savefig(tmp_path / "figure.png")
    explained, error, predicted = figure.axes
    for axis in figure.axes:
        left, right = axis.transData.transform([(0, 0.1), (100, 0.1)])[:, 0]
        assert left < right
        assert 0 in axis.get_xticks()
        assert axis.get_xlim()[0] < 0
    assert [line.get_label() for line in explained.get_lines()] == list(R2)
    np.testing.assert_allclose(error.get_lines()[1].get_ydata(), MSE["concatenated"])
    # A regret of 0 has no place on a logarithmic axis.
    assert np.isnan(predicted.get_lines()[0].get_ydata()).tolist() == [False, False, False, True]


def test_runs_without_the_untrained_model_are_on_a_logarithmic_axis():
    figure = plot_emergence(TOKENS[1:], {"a": R2["embed"][1:]}, {"a": MSE["embed"][1:]}, REGRET[1:])
    assert all(axis.get_xscale() == "log" for axis in figure.axes)


def test_regret_against_error_has_a_point_a_checkpoint(tmp_path):
    figure = plot_regret_against_error(TOKENS, REGRET, MSE)
    figure.savefig(tmp_path / "figure.png")
    for axis, site in zip(figure.axes, MSE, strict=False):
        assert axis.get_title() == site
        points = axis.collections[0].get_offsets()
        np.testing.assert_allclose(points[:3], np.column_stack([MSE[site], REGRET])[:3])


def test_when_beliefs_are_used(tmp_path):
    shares = {"embed": [0.0, 0.1, 0.5, 0.9]}
    figure = plot_use(TOKENS, R2, shares, shares, shares)
    figure.savefig(tmp_path / "figure.png")
    (axis,) = figure.axes
    assert [line.get_label() for line in axis.get_lines()[:4]] == [
        "probe: R² held out",
        "steering: KL recovered",
        "donor: KL recovered",
        "placebo: KL recovered",
    ]


def test_what_is_undefined_leaves_a_gap(tmp_path):
    nan = float("nan")
    some, nothing = [nan, 0.2, 0.1, nan], [nan] * 4
    figure = plot_emergence(TOKENS, {"a": some}, {"a": nothing}, some)
    figure.savefig(tmp_path / "figure.png")
    explained, error, predicted = figure.axes
    np.testing.assert_array_equal(explained.get_lines()[0].get_ydata(), some)
    np.testing.assert_array_equal(predicted.get_lines()[0].get_ydata(), some)
    # An axis with no value at all stays linear: a logarithmic one would have no ends.
    assert np.isnan(error.get_lines()[0].get_ydata()).all()
    assert [axis.get_yscale() for axis in figure.axes] == ["linear", "linear", "log"]
    figure = plot_regret_against_error(TOKENS, nothing, {"a": nothing})
    figure.savefig(tmp_path / "other.png")
    assert (figure.axes[0].get_xscale(), figure.axes[0].get_yscale()) == ("linear", "linear")


def test_sweeps_have_a_dot_a_run_and_a_line_through_the_means(tmp_path):
    figure = plot_sweep({"x": ([1, 1, 64], [0.1, 0.3, 0.9])}, xlabel="d_model", ylabel="MSE held out", is_error=True)
    figure.savefig(tmp_path / "figure.png")
    (axis,) = figure.axes
    (line,) = axis.get_lines()
    np.testing.assert_allclose(line.get_xydata(), [(1, 0.2), (64, 0.9)])
    assert len(axis.collections[0].get_offsets()) == 3
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "64"]
    named = plot_sweep({"": (["LN", "None"], [0.1, 0.3])}, xlabel="normalization_type", ylabel="R²").axes[0]
    assert [label.get_text() for label in named.get_xticklabels()] == ["LN", "None"]


def test_worlds_in_doubt_are_hollow(tmp_path):
    divergence, by_states = [1e-4, 0.1, 0.02, 0.0], {1: [1e-4, 0.1, 0.3, 0.3], 2: [1e-5, 0.09, 0.02, 0.0]}
    is_trusted = [False, False, True, True]
    figure = plot_inferred(TOKENS, [1, 2, 2, 3], [1, 1, 2, 3], divergence, by_states, is_trusted=is_trusted)
    figure.savefig(tmp_path / "figure.png")
    sizes, left = figure.axes
    rank, count = sizes.get_lines()
    assert (rank.get_ydata().tolist(), count.get_ydata().tolist()) == ([1, 1, 2, 3], [1, 2, 2, 3])
    assert [line.get_label() for line in left.get_lines()] == ["1 state", "2 states"]
    np.testing.assert_allclose(left.get_lines()[0].get_ydata(), by_states[1])
    for axis, heights in ((sizes, [1, 2, 2, 3]), (left, [1e-4, 0.1, 0.02, np.nan])):
        trusted, doubted = axis.collections
        np.testing.assert_allclose(trusted.get_offsets()[:, 1].filled(np.nan), [np.nan, np.nan, *heights[2:]])
        np.testing.assert_allclose(doubted.get_offsets()[:, 1].filled(np.nan), [*heights[:2], np.nan, np.nan])
        (outline,), (paper,) = doubted.get_edgecolors(), doubted.get_facecolors()
        assert outline.tolist() == trusted.get_edgecolors()[0].tolist() == trusted.get_facecolors()[0].tolist()
        assert paper.tolist() != outline.tolist()


def test_measures_have_a_panel_each_and_levels_across(tmp_path):
    panels = {"overlap": {"network": [0.5, 0.1, 0.0, 0.01]}, "count": {"one": [9, 8, 5, 4], "all": [9, 9, 7, 6]}}
    levels = {"overlap": {"random": 0.03}, "count": {"needed": 6}}
    figure = plot_measures(TOKENS, panels, levels=levels, logarithmic=["overlap"], counted="steps")
    figure.savefig(tmp_path / "figure.png")
    shares, counts = figure.axes
    network, random = shares.get_lines()
    np.testing.assert_allclose(network.get_ydata(), [0.5, 0.1, np.nan, 0.01])
    assert list(random.get_ydata()) == [0.03, 0.03]
    assert [line.get_label() for line in counts.get_lines()] == ["one", "all", "needed"]
    assert (shares.get_yscale(), counts.get_yscale()) == ("log", "linear")
    assert {axis.get_xlabel() for axis in figure.axes} == {"steps"}
