"""The whole path of `probe`: any model, any sites, any data, and the ways a long pass is cut and joined."""

import json
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_squared_error, r2_score
from sklearn.model_selection import GroupKFold, cross_val_predict

import msp_lens as msp
from msp_lens.data import LabelledTokens, TokenMap, one_hot
from msp_lens.data.splits import Split
from msp_lens.models.activations import stream_activations
from msp_lens.moments import RandomProjection, ReducedRank, TooWideError
from msp_lens.moments.pass_progress import PassCheckpoint
from msp_lens.probing import batch_rows, cache_rows, probe_rows, sampled_rows
from msp_lens.probing import fit as fitting
from tests import hooked_models
from tests.two_processes import run_two


@pytest.fixture(scope="module")
def model():
    return msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=2, d_model=16, d_head=8, d_mlp=32, n_ctx=5), seed=1)


@pytest.fixture(scope="module")
def report(model, mess3):
    return msp.probe(model, mess3, progress=False)


@pytest.mark.parametrize("kind", hooked_models.KINDS)
def test_any_hooked_model_is_probed_as_scikit_learn_would(kind, mess3):
    network = hooked_models.build(kind)
    sites = ["hook_embed", "hook_state.1"] if kind == "own" else ["0_mid", "1_mlp_out", "L1H1"]
    found = msp.probe(network, msp.words(mess3, n_ctx=4), sites=sites, solver="ols", progress=False)
    dataset = found.dataset
    for probe in found.probes:
        (batch,) = stream_activations(network, dataset.tokens, probe.sites, batch_size=len(dataset))
        rows = torch.cat([batch.activations[site] for site in probe.sites], dim=-1)[dataset.is_first].double()
        ids = dataset.prefix_ids[dataset.is_first]
        weights = dataset.prefix_weights("probability")[ids]
        beliefs = dataset.prefix_beliefs[ids]
        reference = LinearRegression().fit(rows, beliefs, sample_weight=weights).predict(rows)
        # Scikit-learn fits float32's last digits too, where a site has directions of nothing else.
        expected = mean_squared_error(beliefs, reference, sample_weight=weights)
        assert probe.scores.in_sample.mse == pytest.approx(expected, abs=3e-5)
        found_again = mean_squared_error(beliefs, probe.predict(rows), sample_weight=weights)
        assert found_again == pytest.approx(probe.scores.in_sample.mse, abs=1e-9)


def test_groups_are_concatenated_under_their_names(model, mess3, report):
    found = msp.probe(
        model, mess3, sites={"late": ["1_mid", "1_post"], "0_post": "0_post"}, concatenate=False, progress=False
    )
    assert list(found) == ["late", "0_post"]
    assert found["late"].sites == ("blocks.1.hook_resid_mid", "blocks.1.hook_resid_post")
    assert found["0_post"].scores.held_out.r2 == pytest.approx(report["0_post"].scores.held_out.r2, abs=1e-9)


def test_given_tokens_with_given_targets(model):
    """Next tokens as classes: a probe of the embedding reads the token that is there, not the one to come."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 3, (300, 5), generator=generator)
    here, following = one_hot(tokens, 3), one_hot(tokens[:, 1:], 3)
    data = LabelledTokens.from_tokens(tokens, {"this token": here, "next token": following}, positions=slice(-1))
    read = msp.probe(model, data.only("this token"), progress=False)
    assert read["0_pre"].scores.held_out.r2 > 0.999
    # What a window of one token tells is no merit of the network.
    assert read.controls.best("0_pre").held_out.r2 > 0.999
    assert abs(read.skill("0_pre")) < 0.1 or read.skill("0_pre") <= 0
    unread = msp.probe(model, data.only("next token"), controls=False, by_position=False, progress=False)
    assert all(probe.scores.held_out.r2 < 0.02 for probe in unread.probes)
    with pytest.raises(ValueError, match=r"targets 'this token', 'next token': choose one, data\.only\('this token'\)"):
        msp.probe(model, data, progress=False)
    beliefs = LabelledTokens.from_tokens(tokens, {"this token": here, "belief": here}, positions=slice(-1))
    assert msp.probe(model, beliefs, progress=False).provenance["target"] == "belief"


def test_a_cache_and_own_batches_give_the_same_probes(model, mess3):
    report = msp.probe(model, mess3, solver="ols", controls=False, by_position=False, progress=False)
    dataset = report.dataset
    data = LabelledTokens.from_beliefs(dataset)
    _, cache = model.run_with_cache(dataset.tokens)
    sites = [probe.sites[0] for probe in report.probes[:-1]]
    from_cache = probe_rows(cache_rows(cache, data, sites), solver="ols")
    batches = [
        (batch.activations, dataset.beliefs[batch.words], dataset.word_weights[batch.words, None].expand(-1, 5))
        for batch in stream_activations(model, dataset.tokens, sites, batch_size=50)
    ]
    from_batches = probe_rows(batch_rows(iter(batches), sites), solver="ols")
    for label in report:
        expected = report[label].scores.in_sample
        assert from_cache[label].scores.in_sample.mse == pytest.approx(expected.mse, rel=1e-4)
        assert from_batches[label].scores.in_sample.mse == pytest.approx(expected.mse, rel=1e-4)
    assert "No controls were measured" in repr(from_cache)


def test_a_larger_vocabulary_is_read_by_its_token_map(mess3):
    """The same words in other ids, with separators, after a start: beliefs are probed where their symbol was read."""
    network = msp.build_model(msp.ModelConfig(d_vocab=9, n_layers=2, d_model=24, d_head=8, d_mlp=32, n_ctx=8), seed=1)
    token_map = TokenMap([5, 3, 7], bos=0, separator=[8])
    dataset = msp.words(mess3, n_ctx=token_map.longest_word(8), token_map=token_map)
    assert dataset.n_ctx == 4
    found = msp.probe(network, dataset, sites="1_post", solver="ols", progress=False)
    tokens, columns = token_map.encode(dataset.tokens)
    (batch,) = stream_activations(network, tokens, "1_post", batch_size=len(tokens))
    (activations,) = batch.activations.values()
    rows = activations.gather(1, columns.unsqueeze(2).expand(-1, -1, 24))[dataset.is_first].double()
    ids = dataset.prefix_ids[dataset.is_first]
    weights = dataset.prefix_weights("probability")[ids]
    score = LinearRegression().fit(rows, dataset.prefix_beliefs[ids], weights)
    residual = torch.from_numpy(score.predict(rows)) - dataset.prefix_beliefs[ids]
    assert found["1_post"].scores.in_sample.mse == pytest.approx(
        float(weights @ residual**2 @ torch.ones(3).double() / 3)
    )
    assert found.provenance["token_map"]["symbols"] == token_map.to_dict()["symbols"]

    with_prior = TokenMap([5, 3, 7], bos=0, include_prior=True)
    prior = msp.probe(network, msp.words(mess3, n_ctx=4, token_map=with_prior), sites="1_post", progress=False)
    assert prior["1_post"].scores.in_sample.n == 3 + 9 + 27 + 81 + 1
    assert found.regret is None


def test_a_report_through_a_token_map_can_be_looked_at_and_loaded(mess3, tmp_path):
    network = msp.build_model(msp.ModelConfig(d_vocab=9, n_layers=1, d_model=16, d_head=8, d_mlp=32, n_ctx=5), seed=1)
    token_map = TokenMap([5, 3, 7], bos=0)
    found = msp.probe(network, msp.words(mess3, n_ctx=4, token_map=token_map), progress=False)
    read = msp.probing.read_beliefs(network, found.dataset, [found["0_post"]])[0]
    weights = found.dataset.prefix_weights("probability")
    mse = float((weights @ (read - found.dataset.prefix_beliefs) ** 2).mean())
    assert mse == pytest.approx(found["0_post"].scores.in_sample.mse, rel=1e-4)
    loaded = msp.ProbeReport.load(found.save(tmp_path / "report.safetensors"), model=network)
    assert loaded.dataset.token_map == token_map
    assert loaded.geometry().to_dataframe().equals(found.geometry().to_dataframe())
    assert loaded.plot("0_post").axes

    tokens, _ = token_map.encode(found.dataset.tokens)
    predicted = network(tokens)[:, 1:].double().log_softmax(dim=-1)[..., [5, 3, 7]]
    optimal = msp.next_token_probabilities(mess3, found.dataset.beliefs)
    divergence = (optimal * (optimal.log() - predicted)).sum(dim=-1)
    assert torch.allclose(found.regret, found.dataset.word_weights @ divergence, atol=1e-6)
    assert found.geometry().to_dataframe()["unembedding"].notna().any()


def test_whatever_holds_a_number_is_a_number(model, mess3, report):
    options = {"seed": np.int64(0), "batch_size": np.int64(40), "max_bytes": 2.0**31, "progress": np.bool_(False)}
    split = Split("prefix", n_folds=np.int64(5))
    found = msp.probe(model, mess3, split=split, untrained=torch.tensor(0), **options)
    assert found["0_post"].scores.held_out.r2 == pytest.approx(report["0_post"].scores.held_out.r2, abs=1e-9)
    assert json.loads(json.dumps(found.provenance))["n_folds"] == 5
    for n_folds in (1, 2.5, 10**6):
        with pytest.raises(ValueError, match=f"n_folds={n_folds}: give a"):
            Split(n_folds=n_folds)
    with pytest.raises(TypeError, match="n_folds='5': give a whole number"):
        Split(n_folds="5")


def test_there_are_no_more_folds_than_groups(model, mess3):
    options = {"sites": "0_post", "controls": False, "by_position": False, "progress": False}
    found = msp.probe(model, msp.words(mess3, n_ctx=2), split=Split(n_folds=10_000), **options)
    assert found.provenance["n_folds"] == 3 + 9


def test_positions_choose_rows(model, mess3):
    found = msp.probe(model, msp.words(mess3, n_ctx=5, positions=slice(2, None)), controls=False, progress=False)
    assert found["0_post"].scores.in_sample.n == 27 + 81 + 243


def test_words_are_sampled_until_the_interval_is_narrow(model, mess3, monkeypatch, tmp_path):
    monkeypatch.setattr(fitting, "MAX_WORDS", 100)
    monkeypatch.setattr(fitting, "FIRST_WORDS", 50)
    monkeypatch.setattr(fitting, "MAX_TOKENS", 8_000)
    options = {"sites": ["0_post", "1_post"], "controls": False, "by_position": False, "progress": False}
    wide = msp.probe(model, msp.words(mess3, n_ctx=5, n_words=50), **options)
    assert max(probe.scores.held_out.width for probe in wide.probes) > 0.01
    found = msp.probe(model, mess3, **options)
    assert not found.provenance["is_population"]
    assert found.provenance["draws"] > 100
    assert f"{found.provenance['draws']:,} sampled words ({found.provenance['words']:,} distinct)" in repr(found)
    loaded = msp.ProbeReport.load(found.save(tmp_path / "report.safetensors"), model=model)
    assert torch.equal(loaded.dataset.tokens, found.dataset.tokens)
    assert torch.equal(loaded.dataset.word_weights, found.dataset.word_weights)
    # Where more words do not narrow the intervals, no more are drawn.
    monkeypatch.setattr("msp_lens.moments.scores.HeldOutScore.width", 0.5)
    assert msp.probe(model, mess3, **options).provenance["draws"] == 200


def test_drawn_rows_stream(model, mess3, report):
    rows = sampled_rows(model, mess3, 4_000, seed=0, chunk_size=500)
    found = probe_rows(rows)
    for label in report:
        assert found[label].scores.in_sample.r2 == pytest.approx(report[label].scores.in_sample.r2, abs=0.02)


def words_read(model):
    """A context that counts the words that a model reads; a look at one token is none."""
    read = []

    def count(tokens, hook):
        read.extend([tokens.shape[1]] * len(tokens) if tokens.shape[1] > 1 else [])

    return read, model.hooks(fwd_hooks=[("hook_embed", count)])


def test_a_concatenation_too_wide_is_refused_and_can_be_reduced(model, mess3, report):
    read, counting = words_read(model)
    with counting:
        for wide in ({"concatenate": True}, {"sites": {"both": ["0_post", "1_post"]}}):
            with pytest.raises(TooWideError, match=r"limit is .*RandomProjection"):
                msp.probe(model, mess3, max_bytes=50_000, progress=False, **wide)
    assert read == []
    reduced = msp.probe(model, mess3, concatenate=RandomProjection(12, seed=0), progress=False)
    assert reduced["0_post"].scores.held_out == report["0_post"].scores.held_out
    whole, fewer = report["concatenated"], reduced["concatenated"]
    assert fewer.widths == whole.widths
    assert 0 < whole.scores.in_sample.r2 - fewer.scores.in_sample.r2 < 0.05
    # Folded back, it reads whole activations, and scores there what it scored on the reduced ones.
    dataset = report.dataset
    (batch,) = stream_activations(model, dataset.tokens, fewer.sites, batch_size=len(dataset))
    read = fewer.predict(batch.activations)[dataset.is_first].double()
    ids = dataset.prefix_ids[dataset.is_first]
    errors = ((read - dataset.prefix_beliefs[ids]) ** 2).mean(dim=1)
    expected = float(dataset.prefix_weights("probability")[ids] @ errors)
    assert fewer.scores.in_sample.mse == pytest.approx(expected, rel=1e-4)


def test_a_concatenation_that_nobody_asked_for_is_left_out_with_a_note(model, mess3, report):
    """One cell a fold of four sites of 16 and 9 columns of targets; together it is 64 + 9 columns."""
    alone, together = 8 * 5 * 4 * (16 + 12) ** 2, 8 * 5 * (64 + 12) ** 2
    options = {"controls": False, "by_position": False, "progress": False}
    whole = msp.probe(model, mess3, max_bytes=4 * together, **options)
    assert "concatenated" in whole
    assert "concatenation_left_out" not in whole.provenance
    fewer = msp.probe(model, mess3, max_bytes=2 * alone, **options)
    assert list(fewer) == ["0_pre", "0_post", "1_post", "ln_final"]
    assert fewer.provenance["concatenation_left_out"]["features"] == 64
    for label in fewer:
        assert fewer[label].scores.in_sample.r2 == pytest.approx(report[label].scores.in_sample.r2, abs=1e-9)
    said = " ".join(fewer.summary())
    assert "4 sites of 64 features together were not probed: that takes 0.2 MiB of moments" in said
    assert "concatenate=msp.moments.RandomProjection(64, seed=0)" in said
    by_position = msp.probe(model, mess3, max_bytes=2 * alone, controls=False, progress=False)
    with pytest.raises(ValueError, match=r"every position take 0\.\d MiB, more .* of max_bytes\. Probe fewer"):
        by_position.plot.by_position()
    assert "Not scored by position: the moments of every position take" in " ".join(by_position.summary())
    # From rows, the first batch shows how wide the sites are.
    rows = msp.probing.model_rows(model, msp.words(mess3, n_ctx=5))
    assert list(probe_rows(rows, max_bytes=2 * alone)) == list(fewer)
    assert "concatenated" in probe_rows(rows)


def test_words_that_nobody_chose_may_not_take_hours(mess3, monkeypatch):
    model = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=1, d_model=16, n_ctx=64), seed=0)
    read, counting = words_read(model)
    monkeypatch.setattr(msp.probing.fit, "MAX_WORK", 10**6)
    with (
        counting,
        pytest.raises(ValueError, match=r"context is 64 tokens, and 5,000 words .* 320,000 tokens .*n_ctx="),
    ):
        msp.probe(model, mess3, progress=False)
    assert read == []
    # Chosen words are read, however long it takes.
    chosen = msp.words(mess3, n_ctx=64, n_words=40)
    assert "0_post" in msp.probe(model, chosen, sites="0_post", controls=False, by_position=False, progress=False)


def test_few_long_contexts_are_few_rows():
    """Sixteen contexts of 300 positions, each nearly one row: least squares memorizes them, and reads none held out."""
    generator = torch.Generator().manual_seed(0)
    noise = 1e-2 * torch.randn(16, 300, 12, generator=generator)
    activations = torch.randn(16, 1, 12, generator=generator) + noise
    target = (activations[..., :1] + torch.randn(16, 1, 1, generator=generator)).double()
    rows = [({"h": activations[:10]}, target[:10]), ({"h": activations[10:]}, target[10:])]
    found = {solver: probe_rows(batch_rows(rows), solver=solver)["h"].scores for solver in ("ols", "auto")}
    of_word = np.arange(16).repeat(300)
    flat = activations.flatten(0, 1).numpy(), target.flatten().numpy()
    oracle = cross_val_predict(LinearRegression(), *flat, groups=of_word, cv=GroupKFold(5))
    assert r2_score(flat[1], oracle) < 0
    assert found["ols"].in_sample.r2 > 0.8
    assert found["ols"].held_out.r2 < 0 < found["auto"].held_out.r2
    assert (found["auto"].solver, found["auto"].in_sample.n) == ("ridge", 4_800)


def test_groups_are_counted_without_being_kept(mess3, model):
    rows = msp.probing.model_rows(model, msp.words(mess3, n_ctx=5), "0_post")
    assert probe_rows(rows).provenance["n_groups"] == pytest.approx(363, rel=0.01)
    tokens, targets = torch.randint(0, 3, (40, 5)), torch.rand(40, 5, 2).double()
    labelled = LabelledTokens.from_tokens(tokens, targets, groups=torch.arange(40))
    assert msp.probe(model, labelled, sites="0_post", controls=False, progress=False).provenance["n_groups"] == 40


class StoppedError(Exception):
    """Stands for a job that was killed."""


def test_an_interrupted_pass_goes_on_where_it_was(model, mess3, report, tmp_path, monkeypatch):
    path = tmp_path / "pass.safetensors"
    monkeypatch.setattr("msp_lens.moments.pass_progress.PassCheckpoint.is_due", property(lambda self: True))
    seen = []

    def dying(activation, hook):
        # A look at one token, or at a few, is no part of the pass.
        seen.extend([20] if len(activation) == 20 else [])
        if len(seen) == 7:
            raise StoppedError

    with pytest.raises(StoppedError), model.hooks(fwd_hooks=[("hook_embed", dying)]):
        msp.probe(model, mess3, resume=path, batch_size=20, progress=False)
    assert path.is_file()
    seen.clear()
    with pytest.raises(ValueError, match=r"another pass .*seed"):
        msp.probe(model, mess3, resume=path, batch_size=20, seed=5, progress=False)
    with model.hooks(fwd_hooks=[("hook_embed", dying)]):
        found = msp.probe(model, mess3, resume=path, batch_size=20, progress=False)
    # The last batch is of 3 words.
    assert len(seen) == 12 - 6
    assert not path.exists()
    for label in report:
        assert found[label].scores.held_out.r2 == pytest.approx(report[label].scores.held_out.r2, abs=1e-9)
    assert found.controls.best("0_post").held_out.r2 == pytest.approx(report.controls.best("0_post").held_out.r2)
    torch.testing.assert_close(found.regret, report.regret)


@pytest.mark.parametrize("last", [12, 13])
def test_a_pass_killed_after_its_last_batch_goes_on(model, mess3, report, tmp_path, monkeypatch, last):
    """Twelve batches of 20 words and one of 3: killed in the last one, or once all of them were saved."""
    path = tmp_path / "pass.safetensors"
    monkeypatch.setattr("msp_lens.moments.pass_progress.PassCheckpoint.is_due", property(lambda self: True))
    saved = []
    original = PassCheckpoint.save

    def dying(self, *arguments, **options):
        original(self, *arguments, **options)
        saved.append(options["n_done"])
        if len(saved) == last:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(PassCheckpoint, "save", dying)
        with pytest.raises(StoppedError):
            msp.probe(model, mess3, resume=path, batch_size=20, progress=False)
    assert saved[-1] == min(20 * last, 243)
    found = msp.probe(model, mess3, resume=path, batch_size=20, progress=False)
    for label in report:
        assert found[label].scores.held_out.r2 == pytest.approx(report[label].scores.held_out.r2, abs=1e-9)
    assert not path.exists()


def test_a_saved_pass_adds_up_no_other_data(model, tmp_path, monkeypatch):
    """Whatever differs in the tokens, their targets, weights, groups or places, the rest of a pass is refused."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 3, (60, 5), generator=generator)
    targets = torch.randn(60, 5, 2, generator=generator, dtype=torch.float64)
    options = {"resume": tmp_path / "pass.safetensors", "batch_size": 20, "progress": False}
    monkeypatch.setattr("msp_lens.moments.pass_progress.PassCheckpoint.is_due", property(lambda self: True))

    def dying(*_, **__):
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr("msp_lens.probing.fit_rows.evaluate_all", dying)
        with pytest.raises(StoppedError):
            msp.probe(model, LabelledTokens.from_tokens(tokens, targets), **options)
    flipped, order = targets.clone(), torch.randperm(60, generator=generator)
    flipped[30, 2, 1] += 1e-12
    weighting = torch.ones(60)
    weighting[7] = 2
    for changed in (
        LabelledTokens.from_tokens(tokens, flipped),
        LabelledTokens.from_tokens(tokens[order], targets[order]),
        LabelledTokens.from_tokens(torch.randint(0, 3, (60, 5), generator=generator), targets),
        LabelledTokens.from_tokens(tokens, targets, weighting=weighting),
        LabelledTokens.from_tokens(tokens, targets, groups=torch.arange(60)),
    ):
        with pytest.raises(ValueError, match=r"belongs to another pass .*data_fingerprint"):
            msp.probe(model, changed, **options)
    for other in ({"concatenate": RandomProjection(3, seed=0)}, {"by_position": False}, {"sites": "0_post"}):
        with pytest.raises(ValueError, match="belongs to another pass"):
            msp.probe(model, LabelledTokens.from_tokens(tokens, targets), **options | other)
    assert "0_post" in msp.probe(model, LabelledTokens.from_tokens(tokens, targets), **options)


def test_a_pass_goes_on_where_it_cannot_be_saved(model, mess3, report, tmp_path, monkeypatch):
    monkeypatch.setattr("msp_lens.moments.pass_progress.PassCheckpoint.is_due", property(lambda self: True))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("msp_lens.moments.pass_progress.save_all", full)
    with pytest.warns(UserWarning, match=r"could not be saved to .*No space left.*the pass goes on"):
        found = msp.probe(model, mess3, resume=tmp_path / "pass", progress=False)
    assert found["0_post"].scores.held_out == report["0_post"].scores.held_out
    with pytest.raises(OSError, match="cannot be written"):
        msp.probe(model, mess3, resume=tmp_path, progress=False)


def worker(index, folder):
    """What each of two processes runs: the user's script, nothing more."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=index, world_size=2)
    network = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=2, d_model=16, d_head=8, d_mlp=32, n_ctx=5), seed=1)
    msp.probe(network, msp.mess3(x=0.05, a=0.85), progress=False).save(Path(folder) / f"report-{index}")
    dist.destroy_process_group()


def test_two_processes_give_the_report_of_one(model, mess3, report, tmp_path):
    run_two(__name__, tmp_path, timeout=240)
    for index in range(2):
        found = msp.ProbeReport.load(tmp_path / f"report-{index}", model=model, process=mess3)
        for label in report:
            # Batches are cut elsewhere, so activations differ in float32's last place.
            assert found[label].scores.held_out.r2 == pytest.approx(report[label].scores.held_out.r2, abs=1e-7)
        for mine, theirs in zip(found.controls, report.controls, strict=True):
            assert mine.held_out.r2 == pytest.approx(theirs.held_out.r2, abs=1e-10)
        torch.testing.assert_close(found.regret, report.regret)


def test_bad_requests_are_refused_before_the_model_runs(model, mess3):
    def never(activation, hook):
        raise AssertionError("the model was run")

    with model.hooks(fwd_hooks=[("hook_embed", never)]):
        for options, message in [
            ({"sites": "2_post"}, "2_post"),
            ({"split": "halves"}, "split='halves': choose one of 'prefix'"),
            ({"solver": "lasso"}, "solver='lasso': choose 'auto', 'ols'"),
            ({"by_position": "each"}, "by_position='each': choose one of True, False, 'own'"),
            ({"data": msp.words(mess3, n_ctx=9)}, "n_ctx=9 is longer"),
            ({"data": msp.words(mess3, n_ctx=4, token_map=TokenMap([5, 3, 7]))}, "vocabulary"),
            ({"split": Split("subtree", subtree_depth=6)}, "subtree_depth=6: give at most 5"),
            ({"untrained": -1}, "untrained=-1"),
            ({"untrained": 1.5}, "untrained=1.5"),
            ({"solver": ReducedRank(1000)}, "rank=1000: a map to 3 targets has a rank of at most 3"),
            ({"seed": -1}, "seed=-1"),
            ({"seed": 2**70}, "seed="),
            ({"batch_size": 0}, "batch_size=0: give at least 1"),
            ({"max_bytes": 2.5}, "max_bytes=2.5: give a whole number"),
            ({"weighting": "words"}, "weighting='words': choose one of 'probability'"),
        ]:
            with pytest.raises((ValueError, KeyError), match=message):
                msp.probe(model, **({"data": mess3} | options), progress=False)
        # Past the checks of annotated calls, as a user would meet it.
        for wrong, message in [
            ((torch.nn.Linear(2, 2), mess3), "model=Linear.*: give a HookedTransformer"),
            ((model, "mess3"), "data='mess3': give a Process"),
            ((model, mess3, {"solver": 3}), "solver=3: "),
            ((model, mess3, {"concatenate": "yes"}), "concatenate='yes': give True, False, or a reduction"),
            ((model, mess3, {"seed": "0"}), "seed='0': give a whole number"),
            ((model, mess3, {"weighing": "prefix"}), r"no parameter 'weighing'.*Did you mean weighting\?"),
        ]:
            with pytest.raises((TypeError, jaxtyping.TypeCheckError), match=f"{message}|Type-check"):
                msp.probe(*wrong[:2], progress=False, **dict(*wrong[2:]))
