import jaxtyping
import numpy as np
import pytest
import torch

import msp_lens as msp
from msp_lens.figures.projections import TETRAHEDRON, TRIANGLE, belief_colors, density_image, projection
from msp_lens.figures.simplex import plot_belief_rows, plot_positions

BOUNDS = ((0.0, 1.0), (0.0, 1.0))


def test_states_are_the_corners_of_an_equilateral_triangle():
    corners = projection(torch.eye(3), torch.ones(3).double())(torch.eye(3))
    torch.testing.assert_close(corners, TRIANGLE)
    sides = torch.cdist(corners, corners)[[0, 1, 2], [1, 2, 0]]
    torch.testing.assert_close(sides, torch.ones(3).double())


def test_colors_are_the_beliefs():
    beliefs = torch.tensor([[1.0, 0, 0], [0.2, 0.3, 0.5]])
    torch.testing.assert_close(belief_colors(beliefs), beliefs.double())
    five = torch.softmax(torch.randn(50, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    for beliefs in (five, five[:, :2], five[:, :1]):
        colors = belief_colors(beliefs)
        assert colors.shape == (len(beliefs), 3)
        assert ((colors >= 0) & (colors <= 1)).all()


def test_a_cell_takes_the_weighted_mean_color_of_its_points():
    points = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).double()
    image = density_image(points, torch.eye(3)[:2].double(), torch.tensor([3.0, 1.0]).double(), BOUNDS, pixels=101)
    assert image.shape == (101, 101, 4)
    np.testing.assert_allclose(image[50, 50], [0.75, 0.25, 0.0, 1.0])


def test_heavier_cells_are_more_opaque_and_empty_ones_clear():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(300_000, 2, generator=generator).double() * 0.5
    weights = torch.where(points[:, 0] < 0.25, 10.0, 1.0)
    image = density_image(points, torch.ones(300_000, 3).double() / 2, weights.double(), BOUNDS, pixels=200)
    assert image[:100, :50, 3].mean() > image[:100, 50:100, 3].mean() + 0.2
    assert (image[:, 101:, 3] == 0).all()


@pytest.mark.parametrize("n_points", [1, 1000, 250_000])
def test_any_number_of_points_can_be_seen(n_points):
    points = torch.rand(n_points, 2, generator=torch.Generator().manual_seed(0)).double()
    image = density_image(points, torch.full((n_points, 3), 0.5).double(), torch.ones(n_points).double(), BOUNDS)
    filled = (image[..., 3] > 0.1).sum()
    assert min(n_points, 100_000) <= filled


def test_points_outside_are_left_out():
    points = torch.tensor([[2.0, 2.0], [-1.0, 0.5]]).double()
    image = density_image(points, torch.ones(2, 3).double(), torch.ones(2).double(), BOUNDS, pixels=50)
    assert image.max() == 0


@pytest.mark.parametrize("process", [msp.mess3(), msp.rrxor(), msp.processes.golden_mean(), msp.processes.coin()])
def test_figures_of_any_number_of_states(process, tmp_path):
    dataset = msp.data.all_words(process, 4)
    beliefs = dataset.prefix_beliefs
    figure = msp.figures.plot_beliefs(
        beliefs, {"the same": beliefs}, weights=dataset.prefix_weights("probability"), states=process.states
    )
    figure.savefig(tmp_path / "figure.png")
    true, represented = (axis.get_images()[0].get_array() for axis in figure.axes)
    assert np.array_equal(true, represented)
    assert true[..., 3].max() > 0


def test_panels_share_the_true_beliefs_axes():
    """A represented belief is drawn where it lies, not where its own principal axes would put it."""
    beliefs = msp.data.all_words(msp.rrxor(), 6).prefix_beliefs
    project = projection(beliefs, torch.ones(len(beliefs)).double())
    torch.testing.assert_close(
        project(beliefs * 0.5 + 0.1), 0.5 * project(beliefs) + project(beliefs * 0 + 0.1) - 0.5 * project(beliefs * 0)
    )


def test_represented_points_beyond_the_true_ones_are_shown():
    beliefs = msp.data.all_words(msp.rrxor(), 5).prefix_beliefs
    figure = msp.figures.plot_beliefs(beliefs, {"spread": (beliefs - beliefs.mean(dim=0)) * 2 + beliefs.mean(dim=0)})
    left, right = figure.axes[0].get_xlim()
    alone = msp.figures.plot_beliefs(beliefs, {}).axes[0].get_xlim()
    assert right - left > 1.5 * (alone[1] - alone[0])
    assert all(axis.get_xlim() == (left, right) for axis in figure.axes)


def test_a_words_path_is_drawn_in_every_panel(mess3):
    dataset = msp.data.all_words(mess3, 4)
    true = dataset.prefix_beliefs
    rows = dataset.prefix_ids[50].tolist()
    figure = msp.figures.plot_beliefs(true, {"shifted": true.roll(1, dims=1)}, path=rows, path_tokens=list("BCBC"))
    for axis, beliefs in zip(figure.axes, (true, true.roll(1, dims=1)), strict=True):
        (dots,) = axis.collections
        np.testing.assert_allclose(dots.get_offsets(), beliefs[rows] @ TRIANGLE)
        np.testing.assert_allclose(dots.get_facecolors()[:, :3], belief_colors(true)[rows])
        written = [text.get_text() for text in axis.texts if text.get_text()]
        assert written == ["0", "1", "2", "B₀", "C₁", "B₂", "C₃"]
        arrows = [text for text in axis.texts if not text.get_text()]
        np.testing.assert_allclose([arrow.xy for arrow in arrows], (beliefs[rows] @ TRIANGLE)[1:])
    with pytest.raises(ValueError, match="path has 4 rows and path_tokens 2"):
        msp.figures.plot_beliefs(true, {}, path=rows, path_tokens=["A", "B"])
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match=r"short: \(\d+, 3\); the true|prefix"):
        msp.figures.plot_beliefs(true, {"short": true[1:].clone()})


def test_labels_of_a_path_do_not_overlap():
    """A word that stays in one corner, where its points lie close together."""
    process = msp.mess3()
    beliefs = msp.filter_beliefs(process, torch.tensor([[2, 2, 2, 2, 2, 2, 1, 2, 2, 2]]))[0]
    figure = msp.figures.plot_beliefs(beliefs, {}, path=range(10), path_tokens=list("CCCCCCBCCC"))
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text()]
    for index, first in enumerate(boxes):
        for second in boxes[index + 1 :]:
            across = min(first.x1, second.x1) - max(first.x0, second.x0)
            along = min(first.y1, second.y1) - max(first.y0, second.y0)
            assert max(across, 0) * max(along, 0) < 0.25 * min(first.width * first.height, second.width * second.height)


def test_many_panels_take_several_rows(mess3):
    beliefs = msp.data.all_words(mess3, 3).prefix_beliefs
    figure = msp.figures.plot_beliefs(beliefs, {f"layer {k}": beliefs for k in range(5)}, columns=3)
    assert [axis.get_title() for axis in figure.axes][1:] == [f"layer {k}" for k in range(5)]
    rows = {axis.get_subplotspec().rowspan.start for axis in figure.axes}
    assert rows == {0, 1}


def test_beliefs_of_a_generalized_process_lie_on_their_principal_axes():
    """Bloch vectors lie in a disk, which a triangle has no room for: a circle is drawn as a circle, in all colors."""
    angles = torch.linspace(0, 2 * torch.pi, 101, dtype=torch.float64)[:-1]
    circle = torch.stack([torch.ones_like(angles), angles.cos(), angles.sin()], dim=1)
    places = projection(circle, torch.ones(100).double())(circle)
    torch.testing.assert_close(places.norm(dim=1), torch.ones(100).double())
    assert len(belief_colors(circle).unique(dim=0)) == 100
    shifted = projection(msp.data.all_words(msp.processes.frdn(), 4).prefix_beliefs, torch.ones(30).double())
    assert shifted.corners is None
    # Read-outs of distributions lie beside the simplex and keep the colors of distributions.
    beside = torch.tensor([[1.1, -0.1, 0.0], [0.2, 0.3, 0.5]])
    torch.testing.assert_close(belief_colors(beside), beside.double().clamp(0, 1))


def test_rows_of_processes_share_titles_and_have_their_own_beliefs():
    rows = {}
    for process in (msp.mess3(), msp.processes.bloch_walk()):
        true = msp.data.all_words(process, 4).prefix_beliefs
        rows[process.name] = {"true": true, "lstm": true, "gru": true.flip(0)}
    figure = plot_belief_rows(rows)
    assert [axis.get_title() for axis in figure.axes] == ["true", "lstm", "gru", "", "", ""]
    assert [figure.axes[k].texts[-1].get_text() for k in (0, 3)] == ["mess3", "bloch_walk"]
    for k in (0, 3):
        true, lstm, gru = (axis.get_images()[0].get_array() for axis in figure.axes[k : k + 3])
        assert np.array_equal(true, lstm)
        assert not np.array_equal(true, gru)
    with pytest.raises(KeyError, match="weights names 'moon'"):
        plot_belief_rows(rows, weights={"moon": torch.ones(3)})


def test_positions_show_the_prefixes_that_end_there(mess3):
    dataset = msp.data.all_words(mess3, 4)
    _, positions = dataset.is_first.nonzero(as_tuple=True)
    positions = positions[dataset.prefix_ids[dataset.is_first].argsort()]
    true = dataset.prefix_beliefs
    figure = plot_positions(true, {"3_post": true.roll(1, dims=1)}, positions, shown=[0, 2])
    assert [axis.get_title() for axis in figure.axes] == ["position 0: 3", "position 2: 27", "", ""]
    first, _, below, _ = (axis.get_images()[0].get_array() for axis in figure.axes)
    bounds = (figure.axes[0].get_xlim(), figure.axes[0].get_ylim())
    here, ones = true[positions == 0], torch.ones(3).double()
    colors = belief_colors(here)
    np.testing.assert_array_equal(first, density_image(here @ TRIANGLE, colors, ones, bounds, pixels=500))
    moved = here.roll(1, dims=1) @ TRIANGLE
    np.testing.assert_array_equal(below, density_image(moved, colors, ones, bounds, pixels=500))
    with pytest.raises(ValueError, match="shown has position 7; prefixes end at positions 0 to 3"):
        plot_positions(true, {}, positions, shown=[0, 7])


def test_four_states_are_seen_in_a_tetrahedron():
    corners = torch.eye(4).double()
    project = projection(corners, torch.ones(4).double())
    torch.testing.assert_close(project(corners), project.corners)
    sides = torch.pdist(TETRAHEDRON)
    torch.testing.assert_close(sides, torch.ones(6).double())
    # A shadow: no side grows, and all corners are apart.
    shadows = torch.pdist(project.corners)
    assert (shadows <= 1 + 1e-12).all()
    assert shadows.min() > 0.2
    # The corner farthest from the eye has the hidden edges.
    from_above = projection(corners, torch.ones(4).double(), view=(0.0, 89.9))
    assert from_above.hidden == frozenset()
    from_below = projection(corners, torch.ones(4).double(), view=(0.0, -89.9))
    assert from_below.hidden == {(0, 3), (1, 3), (2, 3)}
    figure = msp.figures.plot_beliefs(corners, {}, states=list("WXYZ"))
    styles = [line.get_linestyle() for line in figure.axes[0].lines]
    assert len(styles) == 6
    assert styles.count(":") == len(project.hidden) > 0
    assert [text.get_text() for text in figure.axes[0].texts] == list("WXYZ")


def test_more_states_say_what_their_axes_are():
    figure = msp.figures.plot_beliefs(msp.data.all_words(msp.rrxor(), 6).prefix_beliefs, {})
    assert "principal axes of the true beliefs" in figure.get_supxlabel()
    assert "of their variance" in figure.get_supxlabel()


def test_few_distinct_beliefs_are_drawn_large():
    points = torch.tensor([[0.25, 0.5], [0.75, 0.5]]).double().repeat(2000, 1)
    image = density_image(points, torch.full((4000, 3), 0.5).double(), torch.ones(4000).double(), BOUNDS)
    assert (image[..., 3] > 0).sum() > 2 * 150
