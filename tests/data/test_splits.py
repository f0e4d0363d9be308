from dataclasses import replace

import pytest
import torch
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

import msp_lens as msp
from msp_lens.data.row_positions import position_mask
from msp_lens.data.splits import Split, as_split, deal, split_labelled, split_rows
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
        (lambda dataset: Split("position", block_length=2), "block_length=2: only split='block' has blocks"),
        (lambda dataset: Split("sequence", gap=0), "gap=0: only split='block' has blocks"),
        (lambda dataset: Split("block", block_length=0), "block_length=0: give at least 1"),
        (lambda dataset: Split("block", gap=-1), "gap=-1: give at least 0"),
        (lambda dataset: Split("subtree", subtree_depth=0), "subtree_depth=0: give at least 1"),
        (lambda dataset: Split(n_folds=1), "n_folds=1: give a number from 2 .*two folds"),
        (lambda dataset: split_rows(dataset, Split("subtree", subtree_depth=5), "probability"), "give at most 4"),
    ],
)
def test_impossible_splits_are_refused(dataset, make, message):
    with pytest.raises(ValueError, match=message):
        make(dataset)


def places_of(dataset, rows):
    """The places of rows by word, and the group of each."""
    chosen = rows.is_row & position_mask(dataset.positions, dataset.tokens)
    words, positions = chosen.nonzero(as_tuple=True)
    return words.tolist(), positions.tolist(), rows.groups[chosen].tolist()


@pytest.mark.parametrize("positions", [None, slice(-25, None), slice(3, None, 2)], ids=str)
@pytest.mark.parametrize(("length", "gap"), [(6, 2), (3, 5), (4, 0), (1, 1)])
def test_rows_of_two_blocks_are_further_apart_than_the_gap(mess3, length, gap, positions):
    dataset = msp.words(mess3, n_ctx=40, n_words=5, positions=positions)
    rows = split_rows(dataset, Split("block", block_length=length, gap=gap), "probability")
    assert rows.group == f"block of {length} positions with gaps of {gap}"
    words, at, groups = places_of(dataset, rows)
    assert sorted(set(groups)) == list(range(rows.n_groups))
    for word, position, group in zip(words, at, groups, strict=True):
        for other_word, other, other_group in zip(words, at, groups, strict=True):
            if group == other_group:
                assert word == other_word
                assert abs(position - other) < length
            elif word == other_word:
                assert abs(position - other) > gap
    # No more is left out than the gaps, and not the same positions everywhere.
    choice = (dataset.is_first & position_mask(positions, dataset.tokens)).sum()
    assert len(words) == pytest.approx(float(choice) * length / (length + gap), rel=0.35)
    if positions is None:
        assert set(at) == set(range(40)) or gap > length
    # A prefix is one row.
    assert dataset.prefix_ids[words, at].unique().numel() == len(words)


@pytest.mark.parametrize(
    ("options", "n_words", "n_ctx", "positions", "expected"),
    [
        # At most 80 positions and a gap of 20, at least 40 blocks, and four in a word.
        ({}, 16, 640, None, (80, 20)),
        ({}, 1, 5_000, slice(-4_000, None), (80, 20)),
        ({}, 1, 640, None, (13, 4)),
        ({"n_folds": 2}, 1, 640, None, (32, 8)),
        ({}, 100, 66, None, (13, 4)),
        ({}, 100, 10, None, (4, 1)),
        ({"gap": 3}, 16, 640, None, (12, 3)),
        ({"gap": 0}, 16, 640, None, (80, 0)),
        ({"block_length": 10}, 16, 640, None, (10, 3)),
    ],
)
def test_blocks_fit_the_words(options, n_words, n_ctx, positions, expected):
    dataset = msp.words(msp.rrxor(0.5, 0.5), n_ctx=n_ctx, n_words=n_words, positions=positions)
    rows = split_rows(dataset, Split("block", **options), "probability")
    assert rows.group == "block of {} positions with gaps of {}".format(*expected)


def test_every_position_is_a_group_of_its_own(dataset):
    rows = split_rows(dataset, "position", "sequence")
    assert rows.is_row.all()
    assert rows.groups.flatten().tolist() == list(range(rows.n_groups)) == list(range(81 * 4))
    torch.testing.assert_close(rows.weights, torch.full((81, 4), 1 / 324, dtype=torch.float64))


def test_labelled_tokens_are_held_out_by_block_or_position():
    tokens = torch.randint(0, 5, (3, 30), generator=torch.Generator().manual_seed(0))
    targets = torch.arange(90).reshape(3, 30, 1).double()
    labelled = msp.LabelledTokens.from_tokens(tokens, {"a": targets, "b": -targets}, positions=slice(2, None))
    same, n_groups = split_labelled(labelled, Split("prefix"))
    assert same is labelled
    assert n_groups is None
    found, n_groups = split_labelled(labelled, Split("block", block_length=5, gap=2))
    assert found.groups.unique().tolist() == list(range(n_groups))
    assert n_groups == 14
    assert found.description["groups"] == "block of 5 positions with gaps of 2"
    assert found.description["rows"] == len(found) < len(labelled)
    # Rows keep what is theirs.
    assert found.targets["a"].flatten().tolist() == (30 * found.words + found.columns).tolist()
    assert torch.equal(found.targets["b"], -found.targets["a"])
    for group in range(n_groups):
        word, columns = found.words[found.groups == group], found.columns[found.groups == group]
        assert len(word.unique()) == 1
        assert (columns.diff() == 1).all()
        others = found.columns[(found.groups != group) & (found.words == word[0])]
        assert int((others.unsqueeze(1) - columns).abs().min()) == 3
    assert int(found.columns[found.words == 0].min()) == 2
    found, n_groups = split_labelled(labelled, Split("position"))
    assert torch.equal(found.groups, torch.arange(84))
    assert n_groups == len(found) == 84
    with pytest.raises(ValueError, match=r"leaves 1 group .*shorter blocks"):
        split_labelled(
            replace(labelled, words=labelled.words * 0, columns=torch.arange(84) % 84, tokens=tokens.reshape(1, 90)),
            Split("block", block_length=100),
        )


class Drifting(HookedRootModule):
    """Knows nothing of its tokens: smooth noise over positions, the same for every word."""

    def __init__(self, n_ctx, d_model, *, smooth):
        super().__init__()
        steps = torch.arange(-3 * smooth, 3 * smooth + 1)
        noise = torch.randn(d_model, 1, n_ctx + 6 * smooth, generator=torch.Generator().manual_seed(0))
        kernel = torch.exp(-0.5 * (steps / smooth) ** 2).reshape(1, 1, -1)
        self.drift = torch.nn.Parameter(torch.conv1d(noise, kernel)[:, 0].T)
        self.hook_drift = HookPoint()
        self.setup()

    def forward(self, tokens):
        return self.hook_drift(self.drift[: tokens.shape[1]].expand(len(tokens), -1, -1))


def test_a_random_split_takes_drift_for_belief_and_blocks_do_not():
    """A slowly moving belief in one context, and features that know nothing of it but move as slowly."""
    moves, emits = torch.tensor([[0.98, 0.02], [0.02, 0.98]]), torch.tensor([[0.8, 0.2], [0.2, 0.8]])
    process = msp.Process(torch.einsum("ix,ij->xij", emits, moves).double())
    words = msp.words(process, n_ctx=3_000, n_words=1, positions=slice(-2_500, None), seed=1)
    model, found = Drifting(3_000, 150, smooth=5), {}
    for split in ("prefix", "position", "block"):
        report = msp.probe(model, words, sites="hook_drift", split=split, solver="ridge", progress=False)
        found[split] = report["hook_drift"].scores.held_out
        assert {each.held_out.n for each in report.controls} == {found[split].n}
        assert found[split].n == {"block": 1_993}.get(split, 2_500)
        assert ("50 positions with gaps of 13" in " ".join(report.summary())) == (split == "block")
        assert ("split='block' holds them out together" in " ".join(report.summary())) == (split == "position")
    assert found["position"].r2 > 0.4
    assert found["prefix"].r2 > 0.4
    assert found["block"].r2 < 0.02, found
    # The same with the belief as a target of labelled tokens.
    labelled = msp.LabelledTokens.from_tokens(words.tokens, words.beliefs, positions=words.positions)
    for split, expected in found.items():
        report = msp.probe(
            model, labelled, sites="hook_drift", split=split, solver="ridge", controls=False, progress=False
        )
        score = report["hook_drift"].scores.held_out
        assert score.n == expected.n
        assert score.r2 == pytest.approx(expected.r2, abs=1e-9 if split == "block" else 0.05)


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
    report = probe_rows([rows_of()], ["a", "b"], solver="ols", concatenate=False)
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
