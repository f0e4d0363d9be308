"""Scores by range of positions from sums, against the same rows at once."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import r2_score

from msp_lens.data.row_positions import position_ranges, range_numbers
from msp_lens.moments.ranged_errors import RangedErrors

N_CELLS, N_FOLDS = 6, 3


@given(st.integers(0, 10_000), st.integers(20, 60), st.floats(-1e3, 1e3))
def test_scores_are_those_of_all_rows_at_once(seed, n, offset):
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randint(0, 5, (n,), generator=generator)
    targets = offset + torch.randn(n, 2, generator=generator, dtype=torch.float64) + positions.unsqueeze(1)
    read = [targets + torch.randn(n, 2, generator=generator, dtype=torch.float64), targets]
    weights = torch.rand(n, generator=generator, dtype=torch.float64) + 0.1
    cells, ranges = torch.arange(n) % N_CELLS, range_numbers([(0, 1), (2, 4), (7, 9)], positions)
    # The reference need only be near the targets' mean.
    errors = RangedErrors(targets[0], n_readouts=2, n_ranges=3, n_cells=N_CELLS, n_folds=N_FOLDS)
    for rows in torch.arange(n).split(13):
        places = {"ranges": ranges[rows], "cells": cells[rows]}
        errors.update(targets[rows], [each[rows] for each in read], weights[rows], **places)

    def expected(rows, predicted):
        how = {"sample_weight": weights[rows], "multioutput": "variance_weighted"}
        return r2_score(targets[rows], predicted[rows], **how)

    everything = torch.ones(n, dtype=torch.bool)
    assert errors.score(0).r2 == pytest.approx(expected(everything, read[0]), abs=1e-8)
    assert errors.score(1).r2 == pytest.approx(1, abs=1e-12)
    for number, rows in enumerate((positions < 2, positions >= 2)):
        if rows.sum() > 2:
            assert errors.score(0, number).r2 == pytest.approx(expected(rows, read[0]), abs=1e-8)
            assert errors.score(0, number).n == int(rows.sum())
            assert float(errors.shares[number]) == pytest.approx(float(weights[rows].sum() / weights.sum()))
    assert math.isnan(errors.score(0, 2).r2)
    assert errors.score(0, 2).n == 0
    in_sample, held_out = errors.score_of_means()
    means, of_others = torch.empty_like(targets), torch.empty_like(targets)

    def mean(rows):
        return (weights[rows].unsqueeze(1) * targets[rows]).sum(dim=0) / weights[rows].sum()

    for rows in (positions < 2, positions >= 2):
        means[rows] = mean(rows)
        for fold in range(N_FOLDS):
            own = cells % N_FOLDS == fold
            others = rows & ~own if (rows & ~own).any() else ~own
            of_others[rows & own] = mean(others)
    assert in_sample.r2 == pytest.approx(expected(everything, means), abs=1e-7)
    assert held_out.r2 == pytest.approx(expected(everything, of_others), abs=1e-7)


@given(st.lists(st.integers(-1, 9_000), min_size=1, max_size=300), st.integers(1, 40))
def test_ranges_hold_each_position_once(positions, most):
    ranges = position_ranges(torch.tensor(positions), most=most)
    found = {max(position, 0) for position in positions}
    assert len(ranges) <= most or len(ranges) == len(found)
    assert all(first <= last < following for (first, last), (following, _) in itertools.pairwise(ranges))
    assert all(sum(first <= each <= last for first, last in ranges) == 1 for each in found)
    numbers = range_numbers(ranges, torch.tensor(positions)).tolist()
    assert all(ranges[k][0] <= max(each, 0) <= ranges[k][1] for k, each in zip(numbers, positions, strict=True))
    assert {first for first, _ in ranges} | {last for _, last in ranges} <= found, "no range is wider than its rows"


def test_ranges_grow_with_the_distance():
    ranges = position_ranges(torch.arange(5_000))
    assert 20 <= len(ranges) <= 32
    assert ranges[-1][1] == 4_999
    widths = [(last + 1) / (first + 1) for first, last in ranges[-10:]]
    assert max(widths) < 1.1 * min(widths)
