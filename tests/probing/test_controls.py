import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

import msp_lens as msp
from msp_lens.controls.control_scores import Controls, ControlScore, interval_text, r2_text
from msp_lens.controls.untrained_twins import untrained_twins
from msp_lens.data.splits import deal, labelled_rows, split_rows
from msp_lens.models.hooked import find_sites
from msp_lens.moments import HeldOutScore, Score
from msp_lens.probing import TokenWindows, probe_rows
from msp_lens.probing.parts import shuffled_values
from msp_lens.probing.rows import model_rows
from tests.hooked_models import TRANSFORMERS, build


@pytest.fixture(scope="module")
def model():
    return msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=2, d_model=16, d_head=8, d_mlp=32, n_ctx=5), seed=1)


@pytest.fixture(scope="module")
def report(model, mess3):
    return msp.probe(model, mess3, untrained=2, progress=False)


def one_hot_windows(dataset, length, kind):
    """Design matrices row by row, as one would write them: a row for each distinct prefix."""
    rows = []
    for word, position in dataset.is_first.nonzero().tolist():
        window = dataset.tokens[word, max(0, position - length + 1) : position + 1].tolist()
        padded = [-1] * (length - len(window)) + window
        if kind == "additive":
            rows.append([f"{lag}:{token}" for lag, token in enumerate(padded)] + [f"at {position}"])
        else:
            rows.append([(tuple(padded), position if kind == "pos" else None)])
    names = {name: column for column, name in enumerate({name: None for row in rows for name in row})}
    design = torch.zeros(len(rows), len(names), dtype=torch.float64)
    for index, row in enumerate(rows):
        design[index, [names[name] for name in row]] = 1.0
    return design


@pytest.mark.parametrize("length", [1, 2, 4])
@pytest.mark.parametrize(("kind", "suffix"), [("joint", ""), ("pos", " × pos"), ("additive", " additive")])
def test_windows_are_scikit_learns_on_one_hot_vectors(report, length, kind, suffix):
    dataset = report.dataset
    ids = dataset.prefix_ids[dataset.is_first]
    beliefs, weights = dataset.prefix_beliefs[ids], dataset.prefix_weights("probability")[ids]
    design = one_hot_windows(dataset, length, kind)
    fitted = LinearRegression().fit(design, beliefs, sample_weight=weights).predict(design)
    expected = r2_score(beliefs, fitted, sample_weight=weights, multioutput="variance_weighted")
    found = report.controls.select(f"window {length}{suffix}")
    assert found.in_sample.r2 == pytest.approx(expected, abs=1e-9)
    if kind == "additive":
        fold = deal(ids, 20, n_groups=dataset.n_prefixes, seed=0) % 5
        predicted = np.empty(beliefs.shape)
        for k in range(5):
            train = fold != k
            reference = LinearRegression().fit(design[train], beliefs[train], sample_weight=weights[train])
            predicted[~train] = reference.predict(design[~train])
        held_out = r2_score(beliefs, predicted, sample_weight=weights, multioutput="variance_weighted")
        assert found.held_out.r2 == pytest.approx(held_out, abs=0.02)


def test_held_out_windows_fall_back_to_the_longest_that_was_met(report):
    dataset = report.dataset
    ids = dataset.prefix_ids[dataset.is_first]
    beliefs, weights = dataset.prefix_beliefs[ids], dataset.prefix_weights("probability")[ids]
    words = [
        tuple(dataset.tokens[word, : position + 1].tolist()) for word, position in dataset.is_first.nonzero().tolist()
    ]
    fold = (deal(ids, 20, n_groups=dataset.n_prefixes, seed=0) % 5).tolist()
    errors = 0.0
    for row, word in enumerate(words):
        train = [other for other in range(len(words)) if fold[other] != fold[row]]
        like = train
        for length in (1, 2, 3):
            # A window that reaches the beginning is one of its own, told apart from the same tokens later on.
            window = ("start", *word)[-length:] if len(word) < length else word[-length:]
            met = [other for other in train if (("start", *words[other])[-length:] if len(words[other]) < length
                                                else words[other][-length:]) == window]  # fmt: skip
            like = met or like
        predicted = weights[like] @ beliefs[like] / weights[like].sum()
        errors += float(weights[row] * ((predicted - beliefs[row]) ** 2).mean())
    assert report.controls.select("window 3").held_out.mse == pytest.approx(errors / float(weights.sum()), rel=1e-9)


def test_untrained_twins_are_probed_on_the_same_rows_and_folds(report, mess3):
    for k in (1, 2):
        config = msp.ModelConfig(d_vocab=3, n_layers=2, d_model=16, d_head=8, d_mlp=32, n_ctx=5)
        alone = msp.probe(msp.build_model(config, seed=k), mess3, controls=False, by_position=False, progress=False)
        for label in report:
            found = report.controls.select(f"untrained {k}", label)
            assert found.held_out.r2 == pytest.approx(alone[label].scores.held_out.r2, abs=1e-9)
            assert found.in_sample.r2 == pytest.approx(alone[label].scores.in_sample.r2, abs=1e-9)
    assert "2 untrained networks" in " ".join(repr(report).split())


def test_twins_that_cannot_be_built_are_refused_before_any_work(model, mess3):
    class Bare(HookedRootModule):
        def __init__(self):
            super().__init__()
            self.hook_embed = HookPoint()
            self.embed = torch.nn.Embedding(3, 4)
            self.setup()

        def forward(self, tokens):
            return self.hook_embed(self.embed(tokens))

    with pytest.raises(ValueError, match=r"built from model\.cfg, which Bare lacks.*untrained=\[model"):
        msp.probe(Bare(), msp.words(mess3, n_ctx=5), sites="hook_embed", untrained=1, progress=False)
    with pytest.raises(ValueError, match="untrained=-1"):
        msp.probe(model, mess3, untrained=-1, progress=False)
    other = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=1, n_ctx=5), seed=1)
    with pytest.raises(KeyError, match="no site"):
        msp.probe(model, mess3, untrained=[other], progress=False)


def test_the_best_control_and_skill(report):
    for label in report:
        best = report.controls.best(label)
        candidates = [c.held_out.r2 for c in report.controls if c.site in (None, label) and not c.is_rival]
        assert best.held_out.r2 == max(candidates)
        network = report[label].scores.held_out
        share = (network.r2 - best.held_out.r2) / (1 - best.held_out.r2)
        assert report.skill(label) == pytest.approx(share, abs=1e-9)


def test_a_hidden_rival_is_caught_by_the_windows(model, mess3):
    """Targets that are a function of the last token only: the probe reads them perfectly and gets no credit."""
    dataset = msp.data.all_words(mess3, 5)
    rows = split_rows(dataset, "prefix", "probability")
    ids = dataset.prefix_ids[dataset.is_first]
    by_token = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]], dtype=torch.float64)
    targets = torch.empty(dataset.n_prefixes, 3, dtype=torch.float64)
    targets[ids] = by_token[dataset.tokens[dataset.is_first]]
    sites = find_sites(model, None)
    found = probe_rows(
        model_rows(model, labelled_rows(dataset, rows, {"belief": targets}, {}), sites),
        sites,
        n_groups=rows.n_groups,
        windows=TokenWindows(dataset.tokens, 3, n_targets=3),
    )
    assert found["0_pre"].scores.held_out.r2 > 0.999
    assert found.controls.best("0_post").held_out.r2 == pytest.approx(1, abs=1e-12)
    assert all(found.skill(label) < 0.01 for label in found)
    assert found.skill("0_pre") == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(("weighting", "expected"), [("sequence", 0.256), ("probability", 0.246)])
def test_next_token_probabilities_explain_a_quarter_of_rrxors_beliefs(weighting, expected):
    process = msp.rrxor(0.5, 0.5)
    model = msp.build_model(msp.ModelConfig(d_vocab=2, n_layers=1, d_model=8, d_head=4, d_mlp=8), seed=0)
    report = msp.probe(model, process, weighting=weighting, by_position=False, progress=False)
    found = report.controls.select("next token")
    assert round(found.in_sample.r2, 3) == expected
    assert found.is_rival
    joint = report["0_post"].scores.rival("next token").beside
    left = 1 - (1 - joint.r2) / (1 - found.held_out.r2)
    assert report.beyond_next_token("0_post") == pytest.approx(left, abs=1e-9)


def test_where_beliefs_follow_from_next_tokens_there_is_nothing_beyond(report):
    assert report.controls.select("next token").held_out.r2 == pytest.approx(1, abs=1e-9)
    assert math.isnan(report.beyond_next_token("0_post"))


def test_what_the_network_adds_to_next_tokens_is_a_joint_regression():
    process = msp.rrxor(0.5, 0.5)
    model = msp.build_model(msp.ModelConfig(d_vocab=2, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=6), seed=0)
    report = msp.probe(model, process, solver="ols", progress=False)
    probe, dataset = report["0_post"], report.dataset
    rows = labelled_rows(dataset, split_rows(dataset, "prefix", "probability"), {"belief": dataset.prefix_beliefs}, {})
    (batch,) = model_rows(model, rows, probe.sites)
    beliefs = dataset.prefix_beliefs[batch.groups]
    joint = torch.cat([batch.features[probe.sites[0]].double(), beliefs @ process.emissions], dim=1)
    fold = deal(batch.groups, 20, n_groups=dataset.n_prefixes, seed=0) % 5
    predicted = np.empty(beliefs.shape)
    for k in range(5):
        train = fold != k
        fitted = LinearRegression().fit(joint[train], beliefs[train], sample_weight=batch.weights[train])
        predicted[~train] = fitted.predict(joint[~train])
    expected = r2_score(beliefs, predicted, sample_weight=batch.weights, multioutput="variance_weighted")
    assert probe.scores.rival("next token").beside.r2 == pytest.approx(expected, abs=1e-4)


def test_controls_on_the_published_model(published_model, mess3):
    """The window of four tokens on all 88,572 prefixes, and a probe beside it; figures by scikit-learn."""
    report = msp.probe(published_model, mess3, weighting="prefix", by_position=False, progress=False)
    found = {name: report.controls.select(name).in_sample.r2 for name in ("window 4", "window 4 additive", "window 1")}
    in_sample = [0.68573, 0.98574, 0.99406, 0.99559, 0.99648, 0.99727, 0.99870]
    assert [probe.scores.in_sample.r2 for probe in report.probes] == pytest.approx(in_sample, abs=5.1e-6)
    assert found == pytest.approx({"window 4": 0.9808, "window 4 additive": 0.9314, "window 1": 0.6857}, abs=5.1e-5)
    assert report.controls.best("3_post").name == "window 4"
    assert 0.8 < report.skill("3_post") < 0.83
    assert report.skill("0_post") < 0.3
    increments = report.increments()
    assert increments.iloc[-1, 1] == report["concatenated"].scores.held_out.r2
    assert increments["increment held out"].sum() == pytest.approx(increments.iloc[-1, 1])


def test_long_contexts_have_long_windows_and_skill_is_measured_against_them():
    """In words of 65 symbols of RRXOR six symbols say more than four, and a window of four would be a false control."""
    process = msp.rrxor(0.5, 0.5)
    model = msp.build_model(msp.ModelConfig(d_vocab=2, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=65), seed=0)
    words = msp.words(process, n_ctx=65, n_words=60)
    report = msp.probe(model, words, sites="0_post", split="sequence", by_position=False, progress=False)
    windows = [each for each in report.controls if each.kind == "window"]
    assert [each.length for each in windows] == [1, 2, 3, 4, 6, 8, 10, 12, 16, 20]
    by_length = {each.length: each for each in windows}
    best = report.controls.best("0_post")
    assert best is max(windows, key=lambda each: each.held_out.r2)
    assert best.length > 6
    assert by_length[8].held_out.r2 > by_length[4].held_out.r2 + 0.2
    # The same rows and cells: the probe's skill has an interval.
    assert all(map(math.isfinite, report.skill_interval("0_post")))
    assert {each.held_out.n for each in windows} == {report["0_post"].scores.held_out.n}


class Embedding(HookedRootModule):
    """Reads tokens of a large vocabulary, and predicts nothing."""

    def __init__(self, d_vocab):
        super().__init__()
        self.embed, self.hook_embed = torch.nn.Embedding(d_vocab, 3), HookPoint()
        self.setup()

    def forward(self, tokens):
        return self.hook_embed(self.embed(tokens))


@pytest.mark.parametrize(("n_ctx", "lengths"), [(8, [1, 2, 3, 4]), (66, [1, 2, 3, 4, 6, 8, 10, 12, 16, 20])])
def test_labelled_text_of_a_large_vocabulary_has_windows(n_ctx, lengths):
    """A hundred of 50,000 tokens occur, ten of them often; the label says whether the last two are of one kind."""
    generator = torch.Generator().manual_seed(0)
    shape = (1_600 // n_ctx, n_ctx)
    common, rare = (torch.randint(low, high, shape, generator=generator) for low, high in ((0, 10), (10, 100)))
    numbers = torch.where(torch.rand(shape, generator=generator) < 0.9, common, rare)
    labels = (numbers + numbers.roll(1, dims=1)) % 2
    labels[:, 0] = -100
    data = msp.LabelledTokens.from_tokens(49_999 - 400 * numbers, labels, groups=torch.arange(len(numbers)))
    report = msp.probe(Embedding(50_000), data, sites="hook_embed", progress=False)
    found = {each.length: each.held_out.r2 for each in report.controls if each.kind == "window"}
    assert list(found) == lengths
    assert found[1] < 0.05
    assert found[2] > 0.7
    assert "readings of the last tokens" in " ".join(report.summary())


def test_controls_can_be_left_out_and_the_report_says_so(model, mess3):
    report = msp.probe(model, mess3, controls=False, by_position=False, progress=False)
    assert len(report.controls) == 0
    assert report["0_post"].scores.shuffled is None
    assert math.isnan(report.skill("0_post"))
    assert "No controls were measured" in repr(report)
    with pytest.raises(KeyError, match="No control 'window 1'"):
        report.controls.select("window 1")


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((0.5, 0.91234), "0.5000 to 0.9123"),
        ((-0.25, 0.0), "-0.2500 to 0.0000"),
        ((-3.14159, 1.0), "-3.14 to 1.0000"),
        ((-1.0, -0.5), "-1.0000 to -0.5000"),
        ((-1.5, 0.5), "-1.50 to 0.5000"),
        ((10.0, 20.5), "10.00 to 20.50"),
        ((math.nan, math.nan), "–"),
    ],
)
def test_intervals_in_few_characters(ends, expected):
    assert interval_text(*ends) == expected


@pytest.mark.parametrize(
    ("r2", "expected"),
    [(0.98765432, "0.98765"), (math.nan, "–"), (-7.0, "-7.00000"), (-9.985, "-9.98500"), (-10.0, "< -10")],
)
def test_r2_in_tables(r2, expected):
    assert r2_text(r2) == expected
    assert r2_text(0.98765432, 3) == "0.988"


@pytest.fixture
def controls():
    def score(r2):
        # Numbers that tell the columns apart.
        return Score(r2 + 0.01, 0.125, 9), HeldOutScore(r2, 0.25, 9, r2_interval=(r2 - 0.1, r2 + 0.1))

    rows = [
        ("window 1", "window", None, 0.5),
        ("next token", "next token", None, 0.9),
        ("untrained 1", "untrained", "0_post", math.nan),
        ("untrained 1", "untrained", "1_post", 0.7),
    ]
    return Controls(tuple(ControlScore(name, kind, site, *score(r2)) for name, kind, site, r2 in rows))


def test_controls_are_found_by_name_and_site(controls):
    assert controls.names == ("window 1", "next token", "untrained 1")
    assert controls.select("untrained 1", "1_post") is controls[3]
    assert controls.select("window 1", "1_post") is controls.select("window 1") is controls[0]
    with pytest.raises(
        KeyError, match="No control 'untrained 1' for site 'embed'; there are window 1, next token, untr"
    ):
        controls.select("untrained 1", "embed")
    with pytest.raises(KeyError, match="there are none"):
        Controls().select("window 1")
    assert controls.rival is controls[1]
    assert Controls(controls[:1]).rival is None
    # A control without a score is no rival to one with a score, and another site's does not count.
    assert controls.best("0_post") is controls[0]
    assert controls.best("1_post") is controls[3]
    assert Controls(controls[1:3]).best("0_post") is None


def test_controls_as_a_table(controls):
    table = controls.to_dataframe()
    assert table.index.tolist() == ["window 1", "next token", "untrained 1", "untrained 1"]
    assert table.index.name == "control"
    assert table["site"].tolist() == ["any", "any", "0_post", "1_post"]
    last = {
        "R² held out": 0.7,
        "low": 0.6,
        "high": 0.8,
        "R² in-sample": 0.71,
        "MSE held out": 0.25,
        "MSE in-sample": 0.125,
    }
    assert table[list(last)].iloc[3].tolist() == pytest.approx(list(last.values()))
    assert table["is rival"].tolist() == [False, True, False, False]
    shown = [line.split() for line in repr(controls).splitlines()]
    assert shown[0] == ["Controls"]
    assert ["untrained", "1", "1_post", "0.70000", "0.6000", "to", "0.8000", "0.71000", "0.250000"] in shown
    assert ["untrained", "1", "0_post", "–", "–", "–", "0.250000"] in shown
    assert ["next", "token", "any", "0.90000", "0.8000", "to", "1.0000", "0.91000", "0.250000", "rival"] in shown
    html = controls._repr_html_()
    for name in ("control", "site", "R² held out", "95 %", "R² in-sample", "MSE held out", "rival"):
        assert f">{name}</th>" in html


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_twins_are_of_the_models_class_and_seeded_one_by_one(kind):
    model = build(kind)
    twins = dict(untrained_twins(model, 2, ["blocks.0.hook_resid_post"], seed=5))
    assert list(twins) == ["untrained 1", "untrained 2"]
    for seed, twin in enumerate(twins.values(), start=6):
        assert type(twin) is type(model)
        again = dict(untrained_twins(model, 1, [], seed=seed - 1))["untrained 1"]
        ours, theirs, trained = (each.state_dict() for each in (twin, again, model))
        assert ours.keys() == theirs.keys() == trained.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert any(not torch.equal(ours[name], trained[name]) for name in ours)
    own = list(untrained_twins(model, [model, *twins.values()], ["blocks.0.hook_resid_post"], seed=0))
    assert [name for name, _ in own] == ["untrained 1", "untrained 2", "untrained 3"]
    assert own[0][1] is model
    assert list(untrained_twins(model, 0, [], seed=0)) == []
    with pytest.raises(KeyError, match="no site 'nowhere'"):
        untrained_twins(model, [model], ["nowhere"], seed=0)


def test_a_config_that_does_not_give_the_model_is_refused():
    model = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=4), seed=0)
    model.cfg.d_mlp = 16
    with pytest.raises(ValueError, match=r"differs in blocks\.0\.mlp\.\S+, blocks\.0\.mlp\.\S+, \S+\. Pass twins that"):
        untrained_twins(model, 1, [], seed=0)
    model.cfg.d_mlp, model.cfg.n_layers = 8, 2
    with pytest.raises(ValueError, match=r"differs in blocks\.1\."):
        untrained_twins(model, 1, [], seed=0)
    model.cfg.act_fn = "no such function"
    with pytest.raises(ValueError, match=r"No untrained twin could be built.*untrained=\[model"):
        untrained_twins(model, 1, [], seed=0)


def test_shuffled_beliefs_are_the_beliefs_in_another_order(report):
    dataset = report.dataset
    found = shuffled_values(dataset.prefix_beliefs, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(found, dataset.prefix_beliefs)
    assert torch.equal(found, shuffled_values(dataset.prefix_beliefs, generator=torch.Generator().manual_seed(0)))
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, dataset.prefix_beliefs.tolist()))
