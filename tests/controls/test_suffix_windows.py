"""Long windows: every score by hand, with dictionaries; by scikit-learn; and published figures of two processes."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

import msp_lens as msp
from msp_lens.controls import suffix_windows
from msp_lens.controls.suffix_windows import LENGTHS, PENALTIES, SuffixWindows
from msp_lens.controls.token_windows import TokenWindows
from msp_lens.data.splits import deal, labelled_rows, split_rows

N_CELLS, N_FOLDS = 6, 3


def rows_of(words, positions, weights, cells, targets, undefined=None):
    gone = {} if undefined is None else {"belief": undefined}
    return SimpleNamespace(
        words=words, positions=positions, weights=weights, cells=cells, targets={"belief": targets}, undefined=gone
    )


def part_of(batch, rows):
    values = [getattr(batch, name)[rows] for name in ("words", "positions", "weights", "cells")]
    gone = batch.undefined["belief"][rows] if batch.undefined else None
    return rows_of(*values, batch.targets["belief"][rows], gone)


def random_rows(*, n_words=14, n_ctx=14, noise=0.5, offset=0.0, seed=0):
    """Words of two tokens; targets depend on the last three and are noisy; the third target is constant."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 2, (n_words, n_ctx), generator=generator)
    words, positions = (
        each.flatten() for each in torch.meshgrid(torch.arange(n_words), torch.arange(-1, n_ctx), indexing="ij")
    )
    weights = torch.rand(len(words), generator=generator, dtype=torch.float64)
    weights[::10] = 0.0
    cells = torch.tensor([0, 1, 2, 3, 5])[torch.randint(0, 5, (n_words,), generator=generator)][words]
    padded = torch.cat([torch.full((n_words, 3), 2), tokens], dim=1)
    last = [padded[words, positions + 3 - lag] for lag in range(3)]
    table = torch.rand(3, 3, 3, 3, generator=generator, dtype=torch.float64)
    targets = table[last[0], last[1], last[2]]
    targets = targets + noise * torch.rand(len(words), 3, generator=generator, dtype=torch.float64) + offset
    targets[:, 2] = 1 / 3
    return tokens, rows_of(words, positions, weights, cells, targets)


def windows_of(tokens, batch, *, n_tokens=2, lengths=(1, 2, 3, 5, 8), n_parts=3, **options):
    windows = SuffixWindows(tokens, n_tokens, n_targets=3, lengths=lengths, **options)
    for rows in torch.arange(len(batch.words)).chunk(n_parts):
        part = part_of(batch, rows)
        windows.update(part, part.cells, N_CELLS)
    windows.reduce()
    return windows


def by_hand(tokens, batch, length, lengths, train, penalty):
    """What the rows in `train` tell of each row: dictionaries of windows, from short to long."""
    histories = [
        (*("start",) * max(lengths), *tokens[word, : position + 1].tolist())
        for word, position in zip(batch.words.tolist(), batch.positions.tolist(), strict=True)
    ]
    weights, targets = batch.weights.numpy(), batch.targets["belief"].numpy()
    found = np.tile(np.average(targets[train], axis=0, weights=weights[train]), (len(targets), 1))
    for k in (k for k in lengths if k <= length):
        members = {}
        for row, history in enumerate(histories):
            if train[row] and weights[row] > 0:
                members.setdefault(history[-k:], []).append(row)
        told = {}
        for window, own in members.items():
            count = weights[own].sum() ** 2 / (weights[own] ** 2).sum()
            told[window] = (count, weights[own] @ targets[own] / weights[own].sum())
        for row, history in enumerate(histories):
            if history[-k:] in told:
                count, mean = told[history[-k:]]
                found[row] = (count * mean + penalty * found[row]) / (count + penalty)
    return found


@pytest.mark.parametrize(("noise", "offset"), [(0.5, 0.0), (0.0, 0.0), (0.5, 1e6)])
def test_long_windows_by_hand(noise, offset):
    """Each fold's penalty has the least error on the other folds, the whole's on all."""
    lengths = (1, 2, 3, 5)
    tokens, batch = random_rows(noise=noise, offset=offset)
    found = windows_of(tokens, batch, lengths=lengths).scores(N_FOLDS)
    assert [(each.name, each.kind, each.site, each.length) for each in found] == [
        (f"window {k}", "window", None, k) for k in lengths
    ]
    weights, targets, fold = batch.weights.numpy(), batch.targets["belief"].numpy(), batch.cells.numpy() % N_FOLDS
    chosen = set()
    for each in found:
        out = {penalty: np.empty_like(targets) for penalty in PENALTIES}
        errors = np.empty((len(PENALTIES), N_FOLDS))
        for number, (penalty, predicted) in enumerate(out.items()):
            for k in range(N_FOLDS):
                inside = fold == k
                predicted[inside] = by_hand(tokens, batch, each.length, lengths, ~inside, penalty)[inside]
                errors[number, k] = (weights[inside, None] * (targets - predicted)[inside] ** 2).sum()
        held_out = np.empty_like(targets)
        for k in range(N_FOLDS):
            penalty = PENALTIES[np.delete(errors, k, axis=1).sum(axis=1).argmin()]
            held_out[fold == k] = out[penalty][fold == k]
            chosen.add(penalty)
        best = PENALTIES[errors.sum(axis=1).argmin()]
        fitted = by_hand(tokens, batch, each.length, lengths, np.ones(len(fold), dtype=bool), best)
        for score, predicted in ((each.held_out, held_out), (each.in_sample, fitted)):
            options = {"sample_weight": weights, "multioutput": "raw_values"}
            expected = r2_score(targets[:, :2], predicted[:, :2], **options)
            assert score.r2_by_target[:2] == pytest.approx(expected, abs=1e-7)
            assert math.isnan(score.r2_by_target[2])
            assert score.n == len(targets)
            squares = weights @ (targets - predicted) ** 2 / weights.sum()
            assert score.mse == pytest.approx(squares.mean(), rel=1e-5, abs=1e-12)
        # Cell by cell, those of fold 0 first.
        squares = weights[:, None] * (targets - held_out) ** 2 / weights.sum() / 3
        by_cell = [squares[batch.cells.numpy() == c].sum() for c in (0, 3, 1, 2, 5)]
        assert each.held_out.mse_by_cell == pytest.approx(by_cell, rel=1e-5, abs=1e-12)
        assert len(each.held_out.r2_by_fold) == N_FOLDS
    assert len(chosen) > 1 or noise == 0


def test_without_a_penalty_they_are_the_table_and_least_squares(monkeypatch):
    monkeypatch.setattr(suffix_windows, "PENALTIES", (0.0,))
    tokens, batch = random_rows(n_ctx=70, n_words=12)
    found = windows_of(tokens, batch, lengths=(1, 2, 3, 4)).scores(N_FOLDS)
    table = TokenWindows(tokens, 2, n_targets=3, longest=4, n_cells=N_CELLS)
    table.update(batch, batch.cells, N_CELLS)
    for own, other in zip(found, [each for each in table.scores(N_FOLDS) if each.kind == "window"], strict=True):
        assert own.name == other.name
        for score, expected in ((own.in_sample, other.in_sample), (own.held_out, other.held_out)):
            assert (score.r2, score.mse, score.variance) == pytest.approx(
                (expected.r2, expected.mse, expected.variance)
            )
        assert own.held_out.mse_by_cell == pytest.approx(other.held_out.mse_by_cell)
        histories = torch.cat([torch.full((12, 4), 2), tokens], dim=1)
        last = torch.stack([histories[batch.words, batch.positions + 4 - lag] for lag in range(own.length)], dim=1)
        design = torch.nn.functional.one_hot(last.unique(dim=0, return_inverse=True)[1]).double()
        fitted = LinearRegression().fit(design, batch.targets["belief"], sample_weight=batch.weights).predict(design)
        options = {"sample_weight": batch.weights, "multioutput": "variance_weighted"}
        assert own.in_sample.r2 == pytest.approx(r2_score(batch.targets["belief"], fitted, **options), abs=1e-9)


@pytest.mark.parametrize(
    ("process", "published", "tolerance"),
    [(msp.rrxor(0.5, 0.5), {4: 0.369, 6: 0.561, 8: 0.703}, 0.003), (msp.mess3(x=0.05, a=0.85), {4: 0.9955}, 0.0003)],
    ids=["rrxor", "mess3"],
)
def test_published_figures_of_long_contexts(process, published, tolerance):
    """Sixteen contexts of 640 symbols, held out by word."""
    dataset = msp.words(process, n_ctx=640, n_words=16)
    rows = split_rows(dataset, "sequence", "probability")
    labelled = labelled_rows(dataset, rows, {"belief": dataset.prefix_beliefs}, {})
    cells = deal(labelled.groups, 20, n_groups=rows.n_groups, seed=0)
    windows = SuffixWindows(dataset.tokens, process.n_tokens, n_targets=process.n_states)
    windows.update(labelled, cells, 20)
    found = {each.length: each.held_out.r2 for each in windows.scores(5)}
    assert tuple(found) == LENGTHS
    assert {k: found[k] for k in published} == pytest.approx(published, abs=tolerance)
    # What four symbols leave, twenty explain most of: skill against four would be a false positive.
    assert 1 - found[20] < 0.2 * (1 - found[4])


def test_where_rows_are_few_and_noisy_windows_lean_on_shorter_ones(monkeypatch):
    tokens, batch = random_rows(n_words=10, n_ctx=60, noise=3.0)
    leaning = windows_of(tokens, batch, lengths=LENGTHS).scores(N_FOLDS)
    monkeypatch.setattr(suffix_windows, "PENALTIES", (0.0,))
    plain = windows_of(tokens, batch, lengths=LENGTHS).scores(N_FOLDS)
    assert plain[-1].held_out.r2 < -0.3
    assert leaning[-1].held_out.r2 > -0.05
    assert leaning[-1].in_sample.r2 < plain[-1].in_sample.r2


@pytest.mark.parametrize("n_tokens", [1_000, 49_152, 2**40])
def test_any_alphabet_will_do(n_tokens):
    """Names of tokens mean nothing, however many are sorted at once."""
    tokens, batch = random_rows()
    names = torch.tensor([n_tokens // 3, n_tokens - 1])
    expected = windows_of(tokens, batch).scores(N_FOLDS)
    found = windows_of(names[tokens], batch, n_tokens=n_tokens).scores(N_FOLDS)
    for own, other in zip(found, expected, strict=True):
        assert own.held_out.r2 == pytest.approx(other.held_out.r2, abs=1e-12)
        assert own.in_sample.r2 == pytest.approx(other.in_sample.r2, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.lists(st.integers(0, 2), min_size=7, max_size=7), min_size=1, max_size=6),
    n_tokens=st.sampled_from([3, 50, 2**31]),
    lengths=st.sets(st.integers(1, 9), min_size=1).map(sorted),
)
def test_rows_share_a_window_if_and_only_if_they_share_its_tokens(words, n_tokens, lengths):
    tokens = torch.tensor(words)
    windows = SuffixWindows(tokens, n_tokens, n_targets=1, lengths=lengths)
    places = [(word, position) for word in range(len(words)) for position in range(-1, 7)]
    rows, positions = (torch.tensor(each) for each in zip(*places, strict=True))
    order = windows._backwards(rows, positions)
    assert sorted(order.tolist()) == list(range(len(places)))
    for length, numbers in zip(lengths, windows._windows(rows[order], positions[order]), strict=True):
        number_of = {}
        for row, number in zip(order.tolist(), numbers.tolist(), strict=True):
            word, position = places[row]
            window = (*("start",) * length, *words[word][: position + 1])[-length:]
            assert number_of.setdefault(window, number) == number
        assert len(set(number_of.values())) == len(number_of)


def test_rows_where_the_target_has_no_value_do_not_count():
    tokens, batch = random_rows()
    undefined = torch.rand(len(batch.words), generator=torch.Generator().manual_seed(1)) < 0.3
    kept = windows_of(tokens, part_of(batch, ~undefined)).scores(N_FOLDS)
    batch.undefined["belief"] = undefined
    batch.targets["belief"][undefined] = 1e3
    for own, other in zip(windows_of(tokens, batch).scores(N_FOLDS), kept, strict=True):
        assert own.held_out.r2 == pytest.approx(other.held_out.r2, abs=1e-12)
        assert own.held_out.n == other.held_out.n == int((~undefined).sum())


def test_restored_windows_go_on():
    tokens, batch = random_rows()
    first, second = (part_of(batch, rows) for rows in torch.arange(len(batch.words)).chunk(2))
    started = SuffixWindows(tokens, 2, n_targets=3, report_above=4)
    assert started.state() == {}
    assert started.scores(N_FOLDS) == []
    started.update(first, first.cells, N_CELLS)
    resumed = SuffixWindows(tokens, 2, n_targets=3, report_above=4)
    resumed.restore({"other": torch.zeros(1)})
    assert resumed.state() == {}
    resumed.restore(started.state() | {"other": torch.zeros(1)})
    for windows in (started, resumed):
        windows.update(second, second.cells, N_CELLS)
        windows.reduce()
    assert (
        resumed.scores(N_FOLDS)
        == started.scores(N_FOLDS)
        == windows_of(tokens, batch, lengths=LENGTHS, report_above=4).scores(N_FOLDS)
    )
    assert [each.length for each in started.scores(N_FOLDS)] == [6, 8, 10, 12, 16, 20]
    without = SuffixWindows(tokens, 2, n_targets=3)
    without.reduce()
    assert without.scores(N_FOLDS) == []


@pytest.mark.parametrize("n_own", [0, 40, 210])
def test_rows_of_all_processes_are_gathered(monkeypatch, n_own):
    tokens, batch = random_rows()
    expected = windows_of(tokens, batch).scores(N_FOLDS)
    own, other = (SuffixWindows(tokens, 2, n_targets=3, lengths=(1, 2, 3, 5, 8)) for _ in range(2))
    for windows, rows in ((own, slice(0, n_own)), (other, slice(n_own, None))):
        if len(part := part_of(batch, rows).words):
            assert len(part) in (n_own, 210 - n_own)
            windows.update(part_of(batch, rows), batch.cells[rows], N_CELLS)
    theirs = iter([*other._rows(), torch.tensor([other._n_cells])])
    monkeypatch.setattr(suffix_windows, "concatenated", lambda values: torch.cat([values, next(theirs)]))
    own.reduce()
    assert own.scores(N_FOLDS) == expected


def test_weights_of_any_size_are_one_weighting():
    """Only their ratios matter, also where the squares of some vanish."""
    tokens, batch = random_rows()
    expected = windows_of(tokens, batch).scores(N_FOLDS)
    batch.weights *= 1e-200
    for own, other in zip(windows_of(tokens, batch).scores(N_FOLDS), expected, strict=True):
        assert own.held_out.r2 == pytest.approx(other.held_out.r2, abs=1e-9)
    batch.weights[:100] *= 1e-100
    batch.weights[0] = 1e-300
    assert all(math.isfinite(each.held_out.r2) for each in windows_of(tokens, batch).scores(N_FOLDS))
