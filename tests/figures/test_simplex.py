import numpy as np
import pytest
import torch

import msp_lens as msp
from msp_lens.figures.simplex import TRIANGLE, belief_colours, density_image, projection

BOUNDS = ((0.0, 1.0), (0.0, 1.0))


def test_states_are_the_corners_of_an_equilateral_triangle():
    corners = projection(torch.eye(3), torch.ones(3).double())(torch.eye(3))
    torch.testing.assert_close(corners, TRIANGLE)
    sides = torch.cdist(corners, corners)[[0, 1, 2], [1, 2, 0]]
    torch.testing.assert_close(sides, torch.ones(3).double())


def test_colours_are_the_beliefs():
    beliefs = torch.tensor([[1.0, 0, 0], [0.2, 0.3, 0.5]])
    torch.testing.assert_close(belief_colours(beliefs), beliefs.double())
    five = torch.softmax(torch.randn(50, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    for beliefs in (five, five[:, :2], five[:, :1]):
        colours = belief_colours(beliefs)
        assert colours.shape == (len(beliefs), 3)
        assert ((colours >= 0) & (colours <= 1)).all()


def test_a_cell_takes_the_weighted_mean_colour_of_its_points():
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


@pytest.mark.parametrize("process", [msp.mess3(), msp.rrxor(), msp.golden_mean(), msp.coin()])
def test_figures_of_any_number_of_states(process, tmp_path):
    dataset = msp.all_words(process, 4)
    beliefs = dataset.prefix_beliefs
    figure = msp.plot_beliefs(
        beliefs, {"the same": beliefs}, weights=dataset.prefix_weights("probability"), states=process.states
    )
    figure.savefig(tmp_path / "figure.png")
    true, represented = (axis.get_images()[0].get_array() for axis in figure.axes)
    assert np.array_equal(true, represented)
    assert true[..., 3].max() > 0


def test_panels_share_the_true_beliefs_axes():
    """A represented belief is drawn where it lies, not where its own principal axes would put it."""
    beliefs = msp.all_words(msp.rrxor(), 6).prefix_beliefs
    project = projection(beliefs, torch.ones(len(beliefs)).double())
    torch.testing.assert_close(
        project(beliefs * 0.5 + 0.1), 0.5 * project(beliefs) + project(beliefs * 0 + 0.1) - 0.5 * project(beliefs * 0)
    )


def test_represented_points_beyond_the_true_ones_are_shown():
    beliefs = msp.all_words(msp.rrxor(), 5).prefix_beliefs
    figure = msp.plot_beliefs(beliefs, {"spread": (beliefs - beliefs.mean(dim=0)) * 2 + beliefs.mean(dim=0)})
    left, right = figure.axes[0].get_xlim()
    alone = msp.plot_beliefs(beliefs, {}).axes[0].get_xlim()
    assert right - left > 1.5 * (alone[1] - alone[0])
    assert all(axis.get_xlim() == (left, right) for axis in figure.axes)
