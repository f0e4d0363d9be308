"""The catalog against matrices written out by hand from the definitions in the literature."""

import pytest
import torch

import msp_lens as msp
from msp_lens.processes import CATALOG

MATRICES = {
    "mess3": (
        {"x": 0.1, "a": 0.6},
        [
            [[0.48, 0.02, 0.02], [0.06, 0.16, 0.02], [0.06, 0.02, 0.16]],
            [[0.16, 0.06, 0.02], [0.02, 0.48, 0.02], [0.02, 0.06, 0.16]],
            [[0.16, 0.02, 0.06], [0.02, 0.16, 0.06], [0.02, 0.02, 0.48]],
        ],
    ),
    "z1r": ({"p": 0.3}, [[[0, 1, 0], [0, 0, 0], [0.7, 0, 0]], [[0, 0, 0], [0, 0, 1], [0.3, 0, 0]]]),
    "rrxor": (
        {"p1": 0.3, "p2": 0.2},
        [
            [[0, 0.3, 0, 0, 0], [0, 0, 0, 0, 0.2], [0, 0, 0, 0.8, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]],
            [[0, 0, 0.7, 0, 0], [0, 0, 0, 0.8, 0], [0, 0, 0, 0, 0.2], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
        ],
    ),
    "golden_mean": ({"p": 0.3}, [[[0.7, 0], [1, 0]], [[0, 0.3], [0, 0]]]),
    "even": ({"p": 0.3}, [[[0.7, 0], [0, 0]], [[0, 0.3], [1, 0]]]),
    "coin": ({"p": 0.3}, [[[0.3]], [[0.7]]]),
    "sns": ({"p": 0.3, "q": 0.2}, [[[0.7, 0.3], [0, 0.8]], [[0, 0], [0.2, 0]]]),
}


def test_every_process_is_checked_here():
    assert set(MATRICES) == set(CATALOG)


@pytest.mark.parametrize("name", MATRICES)
def test_matrices(name):
    parameters, expected = MATRICES[name]
    process = msp.build_process(name, parameters)
    torch.testing.assert_close(process.transitions, torch.tensor(expected, dtype=torch.float64))
    assert process.parameters == parameters


def test_stationary_states():
    torch.testing.assert_close(msp.mess3().stationary, torch.full((3,), 1 / 3, dtype=torch.float64))
    torch.testing.assert_close(msp.rrxor().stationary, torch.tensor([2, 1, 1, 1, 1], dtype=torch.float64) / 6)
    torch.testing.assert_close(msp.golden_mean(p=0.5).stationary, torch.tensor([2, 1], dtype=torch.float64) / 3)


@pytest.mark.parametrize("name", MATRICES)
def test_parameters_out_of_range_are_refused(name):
    for parameter in MATRICES[name][0]:
        with pytest.raises(ValueError, match=rf"{parameter}=1\.1.*must lie in"):
            msp.build_process(name, {parameter: 1.1})
        with pytest.raises(ValueError, match=rf"{parameter}=-0\.1.*must lie in"):
            msp.build_process(name, {parameter: -0.1})


def test_mess3_with_too_large_x_names_the_rule():
    with pytest.raises(ValueError, match=r"mess3\(x=0\.6\): x must lie in \[0, 0\.5\]"):
        msp.mess3(x=0.6)


def test_frozen_mess3_is_reducible():
    with pytest.raises(ValueError, match="reducible"):
        msp.mess3(x=0)


def test_lookup_by_name():
    assert msp.build_process("mess3") == msp.mess3(x=0.05, a=0.85)
    with pytest.raises(KeyError, match=r"'mess4'.*mess3"):
        msp.build_process("mess4")
    with pytest.raises(ValueError, match="no parameter 'y'; it has x, a"):
        msp.build_process("mess3", {"y": 1.0})


def test_repr_names_the_parameters():
    assert repr(msp.mess3()) == "mess3(x=0.05, a=0.85): 3 states, 3 tokens"
    assert repr(msp.coin()) == "coin(p=0.5): 1 state, 2 tokens"
