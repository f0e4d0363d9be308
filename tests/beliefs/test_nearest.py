import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

import msp_lens as msp
from msp_lens.beliefs import nearest_belief, nearest_distribution


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=5))
def test_the_nearest_distribution_is_that_of_a_general_optimizer(point):
    found = nearest_distribution(torch.tensor([point], dtype=torch.float64))[0].numpy()
    assert found.sum() == pytest.approx(1)
    assert (found >= 0).all()
    best = minimize(
        lambda x: ((x - point) ** 2).sum(),
        np.full(len(point), 1 / len(point)),
        bounds=[(0, 1)] * len(point),
        constraints={"type": "eq", "fun": lambda x: x.sum() - 1},
    )
    assert ((found - point) ** 2).sum() <= best.fun + 1e-6


@given(st.lists(st.lists(st.floats(-3, 3), min_size=3, max_size=3), min_size=1, max_size=8))
def test_the_nearest_point_of_the_simplex(points):
    read = torch.tensor(points, dtype=torch.float64)
    nearest = nearest_distribution(read)
    assert (nearest >= 0).all()
    torch.testing.assert_close(nearest.sum(dim=1), torch.ones(len(read), dtype=torch.float64))
    # No point of a grid of the simplex is nearer.
    grid = torch.tensor([(i, j, 20 - i - j) for i in range(21) for j in range(21 - i)], dtype=torch.float64) / 20
    assert ((read - nearest).norm(dim=1) <= torch.cdist(read, grid).amin(dim=1) + 1e-9).all()
    torch.testing.assert_close(nearest_distribution(nearest), nearest)


def test_points_may_have_any_leading_shape():
    read = torch.randn(4, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    nearest = nearest_distribution(read)
    assert torch.equal(nearest[2, 3], nearest_distribution(read[2, 3]))
    assert torch.equal(nearest.flatten(0, 1), nearest_distribution(read.flatten(0, 1)))
    assert nearest_distribution(read.float()).dtype == torch.float32


def test_what_is_read_of_a_generalized_process_is_left_alone(mess3):
    read = torch.tensor([1.2, -0.1, -0.1], dtype=torch.float64)
    assert nearest_belief(mess3, read).tolist() == [1, 0, 0]
    assert torch.equal(nearest_belief(msp.processes.bloch_walk(), read), read)
