import pytest
import torch

import msp_lens as msp
from msp_lens.data.splits import Split, as_split, deal, split_rows
from msp_lens.moments.moments import merge_all
from msp_lens.probing import probe_rows
from msp_lens.probing.one_pass import Accumulator, accumulate
from msp_lens.probing.rows import RowBatch


@pytest.fixture(scope="module")
def dataset(mess3):
    return msp.data.all_words(mess3, 4)


def rows_of(n=200, *, seed=0, n_groups=40, positions=4):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, 3, generator=generator)
    targets = torch.cat([features[:, :1], features[:, :1] * 0 + torch.randn(n, 1, generator=generator)], dim=1).double()
    return RowBatch(
        {"a": features, "b": torch.randn(n, 2, generator=generator)},
        {"belief": targets},
        torch.rand(n, generator=generator, dtype=torch.float64),
        torch.randint(n_groups, (n,), generator=generator),
        torch.arange(n),
        torch.arange(n) % positions,
    )


def part(batch, rows):
    return RowBatch(
        {name: values[rows] for name, values in batch.features.items()},
        {name: values[rows] for name, values in batch.targets.items()},
        batch.weights[rows],
        batch.groups[rows],
        batch.words[rows],
        batch.positions[rows],
    )


@pytest.mark.parametrize("weighting", ["probability", "sequence", "prefix"])
@pytest.mark.parametrize("split", ["prefix", "sequence", "subtree"])
def test_rows_weigh_a_prefix_alike_however_they_are_split(dataset, split, weighting):
    rows = split_rows(dataset, split, weighting)
    total = torch.zeros(dataset.n_prefixes, dtype=torch.float64)
    total.index_add_(0, dataset.prefix_ids[rows.is_row], rows.weights[rows.is_row])
    torch.testing.assert_close(total, dataset.prefix_weights(weighting))
    assert rows.groups[rows.is_row].unique().tolist() == list(range(rows.n_groups))


def test_subtrees_hold_together_all_words_that_begin_alike(dataset):
    rows = split_rows(dataset, Split("subtree", subtree_depth=2), "probability")
    assert rows.n_groups == 9
    for word, group in zip(dataset.tokens, rows.groups, strict=True):
        assert (group == 3 * word[0] + word[1]).all()
    # No prefix is in two subtrees, or the held-out would have been seen.
    owners = {}
    for prefix, group in zip(dataset.prefix_ids[rows.is_row].tolist(), rows.groups[rows.is_row].tolist(), strict=True):
        assert owners.setdefault(prefix, group) == group
    assert split_rows(dataset, "subtree", "probability").n_groups == 27


def test_whole_words_are_held_out_by_sequence(dataset):
    rows = split_rows(dataset, "sequence", "probability")
    assert rows.is_row.all()
    assert (rows.groups == torch.arange(81).unsqueeze(1)).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda dataset: as_split("word"), "split='word': choose one of 'prefix'"),
        (lambda dataset: Split("prefix", subtree_depth=2), "only split='subtree' takes a depth"),
        (lambda dataset: Split("subtree", subtree_depth=0), "subtree_depth=0: give at least 1"),
        (lambda dataset: Split(n_folds=1), "n_folds=1: give a number from 2 .*two folds"),
        (lambda dataset: split_rows(dataset, Split("subtree", subtree_depth=5), "probability"), "give at most 4"),
    ],
)
def test_impossible_splits_are_refused(dataset, make, message):
    with pytest.raises(ValueError, match=message):
        make(dataset)


def test_one_group_cannot_be_held_out():
    dataset = msp.data.all_words(msp.Process([[[1.0]]]), 3)
    with pytest.raises(ValueError, match="nothing can be held out"):
        split_rows(dataset, "sequence", "probability")


def test_groups_are_dealt_evenly_where_known_and_by_hash_where_not():
    groups = torch.arange(1000)
    known = deal(groups, 20, n_groups=1000, seed=3)
    assert torch.bincount(known).tolist() == [50] * 20
    hashed = deal(groups, 20, n_groups=None, seed=3)
    assert int(torch.bincount(hashed, minlength=20).min()) > 25
    assert int(torch.bincount(hashed, minlength=20).max()) < 80
    some = torch.tensor([999, 5, 5])
    assert deal(some, 20, n_groups=None, seed=3).tolist() == hashed[some].tolist()
    assert (deal(groups, 20, n_groups=None, seed=4) != hashed).float().mean() > 0.9


def test_moments_of_cells_and_positions_are_those_of_their_rows():
    batch = rows_of()
    accumulator = Accumulator([("a", "b")], n_folds=5, n_groups=40, n_positions=4, seed=0)
    cells = accumulate([part(batch, slice(0, 90)), part(batch, slice(90, 200))], accumulator).cells(["a", "b"])
    rows = torch.cat([batch.features["a"], batch.features["b"], batch.targets["belief"]], dim=1)
    cell_of = deal(batch.groups, 20, n_groups=40, seed=0)
    for fold in range(5):
        inside = cell_of % 5 == fold
        expected = torch.cov(rows[inside].T, correction=0, aweights=batch.weights[inside])
        columns = ["a", "b", "belief"]
        torch.testing.assert_close(cells.folds[fold].covariance(columns, columns), expected)
        other = torch.cov(rows[~inside].T, correction=0, aweights=batch.weights[~inside])
        torch.testing.assert_close(cells.without(fold).covariance(columns, columns), other)
        here = inside & (batch.positions == 2)
        found = cells.by_fold_and_position[fold][2]
        assert found.n == int(here.sum())
        mean = batch.weights[here] @ rows[here] / batch.weights[here].sum()
        torch.testing.assert_close(found.mean, mean)
    assert cells.whole.n == 200
    assert merge_all(cell for fold in cells.cells for cell in fold).weight == pytest.approx(float(batch.weights.sum()))


def test_batches_change_nothing():
    batch = rows_of()
    found = [
        probe_rows([part(batch, torch.arange(200)[k::step]) for k in range(step)], ["a", "b"], n_positions=4)
        for step in (1, 7)
    ]
    for label in found[0]:
        first, second = (report[label].scores.held_out for report in found)
        assert first.r2 == pytest.approx(second.r2, abs=1e-10)
        assert first.r2_interval == pytest.approx(second.r2_interval, abs=1e-10)
    assert found[0].by_position().shape == (3, 4)


def test_rows_of_no_model_make_a_report_that_says_it_has_no_controls():
    report = probe_rows([rows_of()], ["a", "b"], concatenate=False)
    assert list(report) == ["a", "b"]
    assert report["a"].scores.held_out.r2_by_target[0] == pytest.approx(1, abs=1e-6)
    assert report["b"].scores.held_out.r2 < 0.05
    assert "No controls were measured" in repr(report)
    assert "200 rows" in repr(report)
    with pytest.raises(ValueError, match="concatenate=True"):
        report.increments()
    with pytest.raises(ValueError, match="by_position=True"):
        report.by_position()
    with pytest.raises(ValueError, match="solver='ridge'"):
        report.by_penalty()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_name_the_site_and_the_batch(wrong):
    batch = rows_of()
    broken = part(batch, slice(100, 200))
    broken.features["b"][3, 1] = wrong
    with pytest.raises(ValueError, match=r"NaN or infinity at b in batch 1 \(words 100 to 199\)"):
        probe_rows([part(batch, slice(0, 100)), broken], ["a", "b"])
    broken = part(batch, slice(0, 100))
    broken.targets["belief"][0, 0] = wrong
    with pytest.raises(ValueError, match="NaN or infinity at the target 'belief' in batch 0"):
        probe_rows([broken], ["a", "b"])


def test_too_wide_a_concatenation_is_refused_with_its_sizes():
    n = 6
    batch = RowBatch(
        {"a": torch.zeros(n, 4000), "b": torch.zeros(n, 4000)},
        {"belief": torch.zeros(n, 2, dtype=torch.float64)},
        torch.ones(n, dtype=torch.float64), torch.arange(n), torch.arange(n), torch.zeros(n, dtype=torch.int64),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"2 sites of 8,000 features together, need 2\.4 GiB.*concatenate=False"):
        probe_rows([batch], ["a", "b"], concatenate=True)


def test_rows_of_one_group_are_refused():
    batch = rows_of(n_groups=1)
    with pytest.raises(ValueError, match="too few groups"):
        probe_rows([batch], ["a"])
