"""Windows of tokens as controls: every score by hand, row by row, or by scikit-learn."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from msp_lens.probing import TokenWindows
from msp_lens.probing.rows import RowBatch

N_CELLS, N_FOLDS = 6, 3


def random_rows(*, n_ctx=4, n_words=150, offset=(0.0, 0.0, 0.0), seed=0):
    """Words of three tokens, with targets that depend on the last two and the position; the third target is constant.

    Every word has its cell, every tenth row no weight, and cell 4 no rows.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 3, (n_words, n_ctx), generator=generator)
    words, positions = (
        each.flatten() for each in torch.meshgrid(torch.arange(n_words), torch.arange(n_ctx), indexing="ij")
    )
    before = torch.where(positions > 0, tokens[words, (positions - 1).clamp(min=0)], 3)
    table = torch.rand(3, 4, n_ctx, 3, generator=generator, dtype=torch.float64)
    targets = table[tokens[words, positions], before, positions]
    targets += 0.1 * torch.rand(len(words), 3, generator=generator, dtype=torch.float64)
    targets[:, 2] = 1 / 3
    weights = torch.rand(len(words), generator=generator, dtype=torch.float64)
    weights[::10] = 0.0
    cells = torch.tensor([0, 1, 2, 3, 5])[torch.randint(0, 5, (n_words,), generator=generator)][words]
    return tokens, RowBatch(
        {}, {"belief": targets + torch.tensor(offset, dtype=torch.float64)}, weights, cells, words, positions
    )


def part_of(batch, rows):
    targets = {"belief": batch.targets["belief"][rows]}
    return RowBatch({}, targets, *(getattr(batch, name)[rows] for name in ("weights", "groups", "words", "positions")))


def windows_of(tokens, batch, *, longest, n_parts=3, n_cells=N_CELLS):
    windows = TokenWindows(tokens, 3, n_targets=3, longest=longest, n_cells=n_cells)
    for rows in torch.arange(len(batch)).chunk(n_parts):
        part = part_of(batch, rows)
        windows.update(part, part.groups, n_cells)
    return windows


def predictions_by_hand(tokens, batch, name, train):
    """What the rows in `train` tell of each row, window by window; the additive window by scikit-learn."""
    counted = train & (batch.weights.numpy() > 0)
    targets, weights = batch.targets["belief"].numpy(), batch.weights.numpy()
    words, positions = batch.words.tolist(), batch.positions.tolist()
    length = int(name.split()[1]) if name != "position" else 0
    histories = [
        ["start"] * 9 + tokens[word, : position + 1].tolist() for word, position in zip(words, positions, strict=True)
    ]
    if name.endswith("additive"):
        places = [f"at {position}" if tokens.shape[1] <= 64 else "" for position in positions]
        seen = [[*history[-length:], place] for history, place in zip(histories, places, strict=True)]
        design = pd.get_dummies(pd.DataFrame(seen).astype(str)).to_numpy(float)
        return LinearRegression().fit(design[counted], targets[counted], sample_weight=weights[counted]).predict(design)
    chain = [[tuple(history[-k:]) for history in histories] for k in range(1, length + 1)]
    if name.endswith("pos"):
        chain.append(list(zip(chain[-1], positions, strict=True)))
    if name == "position":
        chain = [positions]
    predicted = np.tile(np.average(targets[counted], axis=0, weights=weights[counted]), (len(targets), 1))
    for level in chain:
        label = np.array([hash(each) for each in level])
        for each in set(label[counted]):
            met = counted & (label == each)
            predicted[label == each] = np.average(targets[met], axis=0, weights=weights[met])
    return predicted


@pytest.mark.parametrize(("n_ctx", "offset"), [(4, (0.0, 0.0, 0.0)), (4, (1e6, -1e6, 1e6)), (2, (0.0, 1.0, 0.0))])
def test_windows_by_hand(n_ctx, offset):
    """Batches of weighted rows, in cells: every score by averages over rows like it, or scikit-learn's regression."""
    tokens, batch = random_rows(n_ctx=n_ctx, offset=offset)
    found = windows_of(tokens, batch, longest=3).scores(N_FOLDS)
    kinds = {"position": "position", "": "window", " × pos": "positioned window", " additive": "additive window"}
    names = ["position", *(f"window {k}{suffix}" for k in range(1, min(3, n_ctx) + 1) for suffix in list(kinds)[1:])]
    assert [each.name for each in found] == names
    targets, weights, cells = batch.targets["belief"].numpy(), batch.weights.numpy(), batch.groups.numpy()
    everything = np.ones(len(batch), dtype=bool)
    for each in found:
        length = None if each.name == "position" else int(each.name[7])
        assert (each.length, each.kind, each.site) == (length, kinds[each.name.replace(f"window {length}", "")], None)
        predicted = predictions_by_hand(tokens, batch, each.name, everything)
        out = np.empty_like(predicted)
        for k in range(N_FOLDS):
            inside = cells % N_FOLDS == k
            out[inside] = predictions_by_hand(tokens, batch, each.name, ~inside)[inside]
        for score, fitted in ((each.in_sample, predicted), (each.held_out, out)):
            options = {"sample_weight": weights, "multioutput": "raw_values"}
            by_target = r2_score(targets[:, :2], fitted[:, :2], **options)
            assert score.r2_by_target[:2] == pytest.approx(by_target, abs=1e-7)
            squares = weights[:, None] * (targets - fitted) ** 2
            assert score.mse == pytest.approx(squares.mean(axis=1).sum() / weights.sum(), rel=1e-5, abs=1e-12)
            spread = np.cov(targets[:, :2].T, aweights=weights, ddof=0)
            assert score.variance == pytest.approx(np.trace(spread) / 3, rel=1e-6)
            assert math.isnan(score.r2_by_target[2])
            assert score.n == len(batch)
        # Cell by cell, those of fold 0 first.
        by_cell = [(weights * (targets - out).T ** 2)[:, cells == c].sum() / weights.sum() / 3 for c in (0, 3, 1, 2, 5)]
        assert each.held_out.mse_by_cell == pytest.approx(by_cell, rel=1e-5, abs=1e-12)
        assert len(each.held_out.r2_by_fold) == N_FOLDS


def test_the_belief_before_any_token_is_a_window_of_its_own():
    tokens, batch = random_rows(n_words=40)
    batch = part_of(batch, torch.arange(len(batch)))
    batch.positions[batch.positions == 0] = -1
    batch.targets["belief"][batch.positions == -1] = 5.0
    found = {each.name: each.held_out for each in windows_of(tokens, batch, longest=1).scores(N_FOLDS)}
    predicted = predictions_by_hand(tokens, batch, "window 1", np.ones(len(batch), dtype=bool))
    assert predicted[batch.positions == -1] == pytest.approx(5.0)
    in_sample = windows_of(tokens, batch, longest=1).scores(N_FOLDS)[1].in_sample
    squares = batch.weights.numpy()[:, None] * (batch.targets["belief"].numpy() - predicted) ** 2
    assert in_sample.mse == pytest.approx(squares.mean(axis=1).sum() / float(batch.weights.sum()))
    assert found["window 1"].r2 > 0.9


def test_long_contexts_have_one_table_for_all_positions():
    tokens, batch = random_rows(n_ctx=65, n_words=20)
    found = windows_of(tokens, batch, longest=2).scores(N_FOLDS)
    assert [each.name for each in found] == ["window 1", "window 1 additive", "window 2", "window 2 additive"]
    for each in found[2:]:
        predicted = predictions_by_hand(tokens, batch, each.name, np.ones(len(batch), dtype=bool))
        options = {"sample_weight": batch.weights, "multioutput": "raw_values"}
        by_target = r2_score(batch.targets["belief"], predicted, **options)[:2]
        assert each.in_sample.r2_by_target[:2] == pytest.approx(by_target)
    names = [each.name for each in windows_of(*random_rows(n_ctx=64, n_words=20), longest=1).scores(N_FOLDS)]
    assert names == ["position", "window 1", "window 1 × pos", "window 1 additive"]


def test_a_restored_table_goes_on():
    tokens, batch = random_rows()
    first, second = (part_of(batch, rows) for rows in torch.arange(len(batch)).chunk(2))
    started = TokenWindows(tokens, 3, n_targets=3, n_cells=N_CELLS)
    assert started.scores(N_FOLDS) == []
    assert started.state() == {}
    started.reduce()
    started.update(first, first.groups, N_CELLS)
    resumed = TokenWindows(tokens, 3, n_targets=3, n_cells=N_CELLS)
    resumed.restore({"other": torch.zeros(1)})
    assert resumed.state() == {}
    resumed.restore(started.state() | {"other": torch.zeros(1)})
    for windows in (started, resumed):
        windows.update(second, second.groups, N_CELLS)
        windows.reduce()
    assert resumed.scores(N_FOLDS) == started.scores(N_FOLDS)
    assert set(started.state()) == {f"windows.belief.{name}" for name in ("reference", "sums", "squares", "rows")}
    assert torch.equal(started.state()["windows.belief.rows"], batch.groups.bincount(minlength=N_CELLS))


@pytest.mark.parametrize(
    ("n_tokens", "n_ctx", "options", "in_table", "longest"),
    [
        # Windows are categories of base n_tokens + 1; a table of 4,000,000 entries has room for base^k of them.
        (3, 10, {"n_targets": 3}, 4, 4),
        (3, 10, {"n_targets": 3, "longest": 8}, 6, 8),
        (100_000, 10, {"n_targets": 3}, 0, 4),
        (100_000, 3, {"n_targets": 3}, 0, 3),
        (3, 3, {"n_targets": 3, "longest": 8}, 3, 3),
        # In short words the table is enough, if it has room for any window, unless more are asked for.
        (49, 20, {"n_targets": 3}, 2, 2),
        (49, 20, {"n_targets": 3, "longest": 4}, 2, 4),
        (49, 20, {"n_targets": 3, "n_cells": 21}, 1, 1),
        (49, 20, {"n_targets": 4}, 1, 1),
        (36, 64, {"n_targets": 3}, 1, 1),
        (36, 65, {"n_targets": 3}, 2, 20),
        (49, 65, {"n_targets": 3, "longest": 8}, 2, 8),
        (49, 65, {"n_targets": 3, "longest": 2}, 2, 2),
    ],
)
def test_the_table_of_windows_is_bounded(n_tokens, n_ctx, options, in_table, longest):
    windows = TokenWindows(torch.zeros(1, n_ctx, dtype=torch.int64), n_tokens, **options)
    assert (windows.longest_in_table, windows.longest) == (in_table, longest)
    n_cells, positions = options.get("n_cells", 20), n_ctx if n_ctx <= 64 else 1
    entries = [(n_tokens + 1) ** k * n_cells * positions * (options["n_targets"] + 1) for k in (in_table, in_table + 1)]
    assert entries[0] <= 4_000_000
    assert entries[1] > 4_000_000 or in_table == min(options.get("longest", 4), n_ctx)


@pytest.mark.parametrize("n_ctx", [5, 66])
def test_the_tokens_of_a_text_are_numbered(n_ctx):
    """Of a vocabulary whose size is not given, and with windows that the table has no room for."""
    tokens = torch.tensor([7, 40_000, 0])[torch.randint(0, 3, (40, n_ctx), generator=torch.Generator().manual_seed(0))]
    windows = TokenWindows(tokens, n_targets=3)
    assert (windows.base, windows.longest_in_table, windows.longest) == (4, 4, 4 if n_ctx == 5 else 20)
    assert torch.equal(windows.tokens, torch.where(tokens == 40_000, 2, (tokens == 7).long()))
    many = torch.arange(40 * n_ctx).reshape(40, n_ctx)
    windows = TokenWindows(many, n_targets=30)
    assert windows.base == 40 * n_ctx + 1
    assert (windows.longest_in_table, windows.longest) == ((1, 4) if n_ctx == 5 else (1, 20))


@pytest.mark.parametrize(("n_tokens", "is_scored"), [(1_018, True), (1_019, False)])
def test_additive_windows_have_at_most_1024_columns(n_tokens, is_scored):
    """A column for each token, one for the beginning, and one for each of five positions."""
    tokens, batch = random_rows(n_ctx=5, n_words=20)
    windows = TokenWindows(tokens, n_tokens, n_targets=3, longest=1, n_cells=N_CELLS)
    windows.update(batch, batch.groups, N_CELLS)
    assert ("window 1 additive" in [each.name for each in windows.scores(2)]) == is_scored
