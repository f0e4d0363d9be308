"""Parts of the belief and rivals, read in the pass that reads the whole."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LinearRegression
from torch import nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

import msp_lens as msp
from msp_lens.data import all_words
from msp_lens.models.build import weights
from msp_lens.probing import batch_rows, probe_rows
from msp_lens.probing.parts import constrained_parts, cost_of_not_knowing, differs, process_parts, shuffled_values

N_CTX = 4


class Carrier(HookedRootModule):
    """Its three sites carry what `parts` says of the optimal belief, by site: rotated, so that no column is a state."""

    def __init__(self, process, carried):
        super().__init__()
        self.process, self.carried = process, carried
        self.scale = nn.Parameter(torch.ones(1))
        self.hook_sites = nn.ModuleDict({name: HookPoint() for name in carried})
        self.setup()

    def forward(self, tokens):
        beliefs = msp.filter_beliefs(self.process, tokens)
        generator = torch.Generator().manual_seed(0)
        for name, carries in self.carried.items():
            values = carries(self.process, beliefs, tokens)
            turned = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64)).Q
            self.hook_sites[name](values @ turned[: values.shape[-1]] * self.scale)
        return (beliefs @ self.process.emissions).clamp(min=1e-12).log()


def part(name):
    return lambda process, beliefs, tokens: process.parts(beliefs)[name]


def constrained(process, beliefs, tokens):
    return msp.beliefs.constrained_beliefs(process, tokens)


@pytest.fixture(scope="module")
def pair():
    """A product whose factors have the same name, and different parameters."""
    return msp.processes.product([msp.mess3(x=0.05, a=0.85), msp.mess3(x=0.15, a=0.6)])


@pytest.fixture(scope="module")
def report(pair):
    """A network whose sites carry one factor each, and both."""

    def both(process, beliefs, tokens):
        return torch.cat(list(process.parts(beliefs).values()), dim=-1)

    model = Carrier(pair, {"first": part("mess3_0"), "second": part("mess3_1"), "both": both})
    words = msp.words(pair, n_ctx=N_CTX, n_words=400, seed=0)
    return msp.probe(model, words, sites=list(model.hook_dict), progress=False)


def test_a_site_that_carries_one_factor_reads_that_factor_alone(report):
    first, second, both = report.probes[:3]
    for site, expected in ((first, (1, 0)), (second, (0, 1)), (both, (1, 1))):
        for name, r2 in zip(("mess3_0", "mess3_1"), expected, strict=True):
            found = report.parts[name][site.label]
            assert found.scores.held_out.r2 == pytest.approx(r2, abs=0.15 * (1 - r2) + 1e-6)
            skill = report.parts[name].skill(site.label)
            assert skill > 0.99 if r2 else skill < 0
    # Each factor's belief says nothing of the other's.
    for name, other in (("mess3_0", "mess3_1"), ("mess3_1", "mess3_0")):
        rival = report.parts[name].controls.select(f"belief about {other}")
        assert rival.is_rival
        assert abs(rival.in_sample.r2) < 0.05
        assert rival.held_out.r2 < 0.05
        assert report.parts[name].probes[0].scores.shuffled_held_out.r2 < 0.05


def test_a_part_is_what_a_pass_over_it_alone_gives(report, pair):
    """The same rows and folds with the factor's belief in the place of the whole one."""
    words = report.dataset
    values = pair.parts(words.prefix_beliefs)["mess3_1"]
    rows = msp.data.splits.split_rows(words, "prefix", "probability")
    labelled = msp.data.splits.labelled_rows(words, rows, {"belief": values}, {})
    sites = [probe.sites[0] for probe in report.probes[:3]]
    alone = probe_rows(msp.probing.model_rows(report.model, labelled, sites), n_groups=rows.n_groups, n_positions=N_CTX)
    for label, probe in report.parts["mess3_1"].items():
        assert probe.scores.held_out.r2 == pytest.approx(alone[label].scores.held_out.r2, abs=1e-9)
        assert probe.scores.held_out.r2_interval == pytest.approx(alone[label].scores.held_out.r2_interval, abs=1e-9)
        torch.testing.assert_close(probe.read_map.weights, alone[label].read_map.weights)
        torch.testing.assert_close(probe.decoder, alone[label].decoder)
        assert [each.r2 for each in probe.scores.by_position] == pytest.approx(
            [each.r2 for each in alone[label].scores.by_position], abs=1e-9
        )
    columns = ["R² held out, with those before", "R² in-sample, with those before"]
    pd.testing.assert_frame_equal(report.parts["mess3_1"].increments()[columns], alone.increments()[columns])


def test_a_part_has_a_decoder_of_its_own(report, pair):
    model, probe = report.model, report.parts["mess3_0"].probes[0]
    tokens = torch.tensor([[0, 4, 8, 2]])
    held = []
    hook = (probe.sites[0], lambda activation, hook: held.append(activation.detach()))
    with probe.steer(model, belief=[1, 0, 0], position=2), model.hooks(fwd_hooks=[hook]):
        model(tokens)
    read = probe.predict(held[0])[0]
    torch.testing.assert_close(read[2], torch.tensor([1.0, 0, 0], dtype=torch.float64), atol=1e-6, rtol=0)
    true = pair.parts(msp.filter_beliefs(pair, tokens))["mess3_0"][0]
    torch.testing.assert_close(read[[0, 1, 3]], true[[0, 1, 3]], atol=1e-6, rtol=0)
    found = msp.probing.transfer(model, probe, all_words(pair, 2), controls=False, progress=False)
    assert found.best.score.r2 == pytest.approx(1, abs=1e-6)


def test_experiments_that_write_whole_beliefs_refuse_the_probes_of_a_part(report, pair):
    with pytest.raises(ValueError, match="reads 'mess3_0', a part of the belief, and experiments write whole beliefs"):
        msp.intervene(report.model, pair, probes=report.parts["mess3_0"].probes[0])


def test_the_table_of_parts(report):
    table = report.by_part()
    assert table.index.names == ["site", "part"]
    assert list(table.index[:3]) == [(report.probes[0].label, name) for name in ("belief", "mess3_0", "mess3_1")]
    for (site, name), row in table.iterrows():
        own = report if name == "belief" else report.parts[name]
        scores = own[site].scores
        expected = [scores.held_out.r2, scores.in_sample.r2, scores.held_out.mse, scores.shuffled.r2]
        columns = ["R² held out", "R² in-sample", "MSE held out", "R² shuffled"]
        assert row[columns].tolist() == pytest.approx(expected)
        assert row["R² best control"] == own.controls.best(site).held_out.r2
        assert row["R² best rival"] == max(each.held_out.r2 for each in own.controls if each.is_rival)
    assert any("mess3_0 R² 1.000" in line for line in report.summary())
    assert "a part of the belief" in str(report.parts["mess3_0"])
    assert list(report.parts["mess3_1"].by_state().columns) == ["A", "B", "C"]


def test_a_report_is_saved_with_its_parts(report, tmp_path):
    path = report.save(tmp_path / "report.safetensors")
    loaded = msp.ProbeReport.load(path, model=report.model, process=report.process)
    assert loaded == report
    assert list(loaded.parts) == ["mess3_0", "mess3_1"]
    assert loaded.parts["mess3_0"].model is report.model
    changed = replace(report, parts={"mess3_0": report.parts["mess3_0"]})
    assert changed != report
    assert report.to_dict()["parts"]["mess3_0"]["sites"][0]["R² held out"] > 0.999


def erasing_second(trained, model):
    """The trained network of three tokens as one of nine that reads token 3 x + y as x."""
    first = torch.arange(9) // 3
    loaded = {}
    for name, tensor in weights(trained).items():
        for axis, size in enumerate(weights(model)[name].shape):
            tensor = tensor if tensor.shape[axis] == size else tensor.index_select(axis, first)
        loaded[name] = tensor
    msp.models.load_weights(model, loaded)
    return model


def test_networks_that_read_one_factor_or_learned_nothing_do_not_pass(pair):
    """Tokens of the second factor erased: whatever a network learns from what is left, it knows the first alone."""
    config = msp.ModelConfig(d_vocab=3, n_layers=1, d_model=32, d_head=16, d_mlp=64, n_ctx=8)
    training = msp.TrainingConfig(steps=300, batch_size=64, learning_rate=1e-2)
    trained = msp.train(pair.factors[0], config, config=training, seed=0, progress=False).model
    random = msp.build_model(replace(config, d_vocab=9), seed=0)
    words = msp.words(pair, n_ctx=8, n_words=1_000, seed=1)
    options = {"sites": ["0_pre", "0_post"], "by_position": False, "progress": False}
    # A network with random weights reads neither factor beyond its controls.
    found = msp.probe(random, words, untrained=1, **options)
    for each in found.parts.values():
        assert {control.name for control in each.controls if control.kind == "untrained"} == {"untrained 1"}
        assert max(each.skill(label) for label in each) < 0
    untrained = {name: each["0_post"].scores.held_out.r2 for name, each in found.parts.items()}
    found = msp.probe(erasing_second(trained, random), words, **options | {"sites": "0_post"})
    first, second = found.parts["mess3_0"], found.parts["mess3_1"]
    assert first["0_post"].scores.held_out.r2 > 0.98 > first.controls.select("window 2").held_out.r2
    assert first["0_post"].scores.held_out.r2 > untrained["mess3_0"] + 0.1
    assert second["0_post"].scores.held_out.r2 < 0.05 < untrained["mess3_1"]
    assert second.skill("0_post") < 0


@pytest.fixture(scope="module")
def blend():
    """A mixture whose components rule each other out."""
    return msp.processes.mixture([msp.processes.z1r(), msp.processes.golden_mean(p=0.3), msp.mess3()], [0.5, 0.3, 0.2])


@pytest.fixture(scope="module")
def blended(blend):
    def all_parts(process, beliefs, tokens):
        return torch.cat([process.parts(beliefs)[name] for name in ("component", "z1r", "mess3")], dim=-1)

    model = Carrier(blend, {"component": part("component"), "within": part("z1r"), "all": all_parts})
    words = all_words(blend, N_CTX)
    return msp.probe(model, words, sites=list(model.hook_dict), solver="ols", progress=False)


def test_a_ruled_out_component_has_no_belief_to_read(blended, blend):
    """Those prefixes do not count for the belief within it: scikit-learn on the others agrees."""
    words = blended.dataset
    values = words.prefix_parts["z1r"]
    known = (values != 0).any(dim=1)
    assert 0 < int(known.sum()) < len(known)
    for site, r2 in zip(blended.probes[:3], (None, 1, 1), strict=True):
        found = blended.parts["z1r"][site.label].scores
        assert found.in_sample.n == int(known.sum())
        if r2 is not None:
            assert found.held_out.r2 == pytest.approx(1, abs=1e-6)
    features, weights = words.prefix_parts["component"][known].numpy(), words.prefix_weights("probability")[known]
    fitted = LinearRegression().fit(features, values[known].numpy(), sample_weight=weights.numpy())
    expected = fitted.score(features, values[known].numpy(), sample_weight=weights.numpy())
    (index,) = (k for k, probe in enumerate(blended.probes) if "component" in probe.sites[0] and len(probe.sites) == 1)
    by_target = np.array(blended.parts["z1r"].probes[index].scores.in_sample.r2_by_target)
    assert np.nanmean(by_target) == pytest.approx(expected, abs=1e-6)
    assert blended.parts["component"].probes[0].scores.in_sample.n == len(known)
    shuffled = shuffled_values(values, generator=torch.Generator().manual_seed(0))
    assert torch.equal(shuffled == 0, (values == 0)) or bool((shuffled[~known] == 0).all())
    assert sorted(map(tuple, shuffled[known].tolist())) == sorted(map(tuple, values[known].tolist()))
    window = blended.parts["z1r"].controls.select("window 4 × pos")
    assert window.in_sample.r2 == pytest.approx(1, abs=1e-9)
    assert window.in_sample.n == int(known.sum())


def test_only_parts_that_are_linear_in_the_belief_have_constrained_beliefs(blend, pair):
    words = all_words(blend, 3)
    found = constrained_parts(blend, words.prefix_beliefs, words.prefix_beliefs)
    assert list(found) == ["component"]
    words = all_words(pair, 2)
    seen = msp.beliefs.constrained_beliefs(pair, words.tokens)
    found = constrained_parts(pair, words.prefix_beliefs, seen)
    # A factor's marginal of the pair's constrained beliefs is what the factor alone would have.
    second = msp.beliefs.constrained_beliefs(pair.factors[1], pair.split_tokens(words.tokens)[..., 1])
    torch.testing.assert_close(found["mess3_1"], second)


def test_regret_to_the_oracle_who_knows_the_component(blended, blend):
    """An optimal observer has no regret, and pays for not knowing: by enumeration of words."""
    assert float(blended.regret.abs().max()) < 1e-9
    words = all_words(blend, N_CTX + 1)
    joint = torch.zeros(N_CTX + 2, dtype=torch.float64)
    known = torch.zeros(N_CTX + 2, dtype=torch.float64)
    for length in range(1, N_CTX + 2):
        chances = blend.word_probabilities(words.tokens[:, :length].unique(dim=0))
        joint[length] = -(chances * chances.log()).sum()
        for weight, component in zip(blend.weights.tolist(), blend.components, strict=True):
            of_component = all_words(component, length).word_weights
            known[length] -= weight * (of_component * of_component.log()).sum()
    expected = (joint.diff() - known.diff())[1:]
    torch.testing.assert_close(blended.regret_to_oracle, expected, atol=1e-8, rtol=0)
    assert any("oracle who knows the component" in line for line in blended.summary())


def test_pictures_and_geometry_of_a_part(blended, report):
    part, known = blended.parts["z1r"], int((blended.dataset.prefix_parts["z1r"] != 0).any(dim=1).sum())
    assert part.plot().axes[0].get_title() == f"True beliefs: {known} prefixes"
    # The word leaves golden mean and Mess3 behind, then rules z1r out.
    assert len(part.plot(word=[0, 0]).axes) == 2
    assert part.plot.positions().axes
    assert part.plot.explore().data
    assert part.plot.word([0, 1, 1])
    assert part.plot.readouts([0, 1])
    assert part.plot.parts_read == {}
    with pytest.raises(ValueError, match="This report has no parts"):
        part.plot.parts()
    (axis,) = blended.plot.parts().axes
    heights = {line.get_label(): list(line.get_ydata()) for line in axis.lines}
    expected = [probe.scores.held_out.r2 for probe in part.probes]
    assert heights["z1r"] == pytest.approx(expected)
    assert set(heights) == {"belief", *blended.parts}
    within = part.geometry().sites[1]
    assert (within.simplex.mean, within.belief_dimension) == pytest.approx((0, 2), abs=0.5)
    assert part.distances(part.probes[1].label).r2_true == pytest.approx(1, abs=1e-6)
    (axis, *_) = report.plot.scores().axes
    assert any("constrained belief" in str(each.get_label()) for each in axis.lines)


def test_processes_that_are_no_mixture_have_no_oracle(report):
    assert report.regret is not None
    assert report.regret_to_oracle is None


@pytest.mark.parametrize(
    ("process", "n_ctx", "expected"),
    [(msp.mess3(x=0.05, a=0.85), 9, 0.798), (msp.mess3(x=0.15, a=0.6), 9, 0.979), (msp.rrxor(0.5, 0.5), 10, 0.149)],
    ids=["mess3", "mess3 (.15, .6)", "rrxor"],
)
def test_what_constrained_beliefs_explain(process, n_ctx, expected):
    """All words of nine or ten tokens, weighted by probability."""
    config = msp.ModelConfig(d_vocab=process.n_tokens, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=n_ctx)
    report = msp.probe(msp.build_model(config), process, sites="0_pre", by_position=False, progress=False)
    found = report.controls.select("constrained belief")
    assert round(found.in_sample.r2, 3) == expected
    assert found.held_out.r2 == pytest.approx(expected, abs=0.05)
    assert found.is_rival
    assert report.controls.best("0_pre").kind != "constrained belief"


def test_a_first_layer_follows_the_rival_and_a_later_one_the_belief():
    process = msp.mess3(x=0.05, a=0.85)

    def belief(process, beliefs, tokens):
        return beliefs

    model = Carrier(process, {"first": constrained, "later": belief})
    report = msp.probe(model, all_words(process, 5), sites=list(model.hook_dict), progress=False)
    table = report.rivals().xs("constrained belief", level="rival")
    first, later = (probe.label for probe in report.probes[:2])
    assert table.loc[first, "follows"] == "rival"
    assert table.loc[first, "R² of the rival"] == pytest.approx(1, abs=1e-6)
    assert table.loc[first, "R² of the belief"] == pytest.approx(table.loc[first, "R² of the belief from the rival"])
    assert table.loc[first, "beyond the rival"] == pytest.approx(0, abs=1e-6)
    assert table.loc[later, "follows"] == "belief"
    assert table.loc[later, "R² of the belief"] == pytest.approx(1, abs=1e-6)
    assert table.loc[later, "beyond the rival"] == pytest.approx(1, abs=1e-6)
    assert any(f"Read better than the belief at {first}" in line for line in report.summary())


def test_where_attention_alone_gives_the_belief_there_is_no_such_rival():
    """Golden mean: after each token the belief follows from that token."""
    process = msp.processes.golden_mean(p=0.5)
    words = all_words(process, 4)
    rival = torch.empty_like(words.prefix_beliefs)
    of_words = msp.beliefs.constrained_beliefs(process, words.tokens)
    rival[words.prefix_ids[words.is_first]] = of_words[words.is_first]
    weights = words.prefix_weights("probability")
    assert not differs(words.prefix_beliefs, words.prefix_beliefs * 2 - 1, weights)
    coin = msp.processes.product([msp.processes.coin(p=0.3), msp.processes.golden_mean(p=0.5)])
    model = msp.build_model(msp.ModelConfig(d_vocab=4, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=4))
    report = msp.probe(model, coin, sites="0_pre", progress=False)
    # A coin has one state: there is no belief about it to read.
    assert list(report.parts) == ["golden_mean"]
    has_rival = differs(words.prefix_beliefs, rival, weights)
    assert ("constrained belief" in report.parts["golden_mean"].controls.names) == has_rival


def test_bos_takes_nothing_from_the_parts():
    coins = msp.processes.mixture([msp.processes.coin(p=0.1), msp.processes.coin(p=0.8)], [0.5, 0.5])
    begun = msp.processes.with_bos(coins)
    assert [(each.name, each.states) for each in process_parts(begun)] == [("component", coins.labels)]
    before, after = cost_of_not_knowing(coins, 3), cost_of_not_knowing(begun, 4)
    assert before is not None
    assert after is not None
    torch.testing.assert_close(after[1:], before)
    assert float(after[0]) == pytest.approx(
        float(
            (
                msp.beliefs.myopic_entropies(coins, 1)
                - coins.weights @ torch.stack([msp.beliefs.myopic_entropies(each, 1)[0] for each in coins.components])
            )[0]
        )
    )


def test_parts_and_rivals_under_a_token_map(pair):
    """A model that reads every symbol as two tokens after a start, and the prior, reads the same parts."""
    token_map = msp.TokenMap([(k, 9) for k in range(9)], bos=10, include_prior=True)
    words = replace(msp.words(pair, n_ctx=3, n_words=300, seed=0), token_map=token_map)
    model = msp.build_model(msp.ModelConfig(d_vocab=11, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=7), seed=0)
    report = msp.probe(model, words, sites="0_post", progress=False)
    assert list(report.parts) == ["mess3_0", "mess3_1"]
    assert report.parts["mess3_0"].probes[0].scores.in_sample.n == report.probes[0].scores.in_sample.n
    assert report.probes[0].scores.in_sample.n == words.n_prefixes + 1
    assert {each.name for each in report["0_post"].scores.rivals} == {"next token", "constrained belief"}
    assert report.parts["mess3_1"].controls.select("constrained belief").in_sample.r2 > 0.9


def test_further_targets_of_given_tokens_are_parts():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 3, (80, 4), generator=generator)
    first, parity = (tokens == 0).double(), tokens.cumsum(dim=1) % 2
    data = msp.LabelledTokens.from_tokens(tokens, {"belief": first, "parity": parity})
    model = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=4), seed=0)
    report = msp.probe(model, data, sites="0_pre", solver="ols", progress=False)
    assert report["0_pre"].scores.held_out.r2 > 0.99
    assert list(report.parts) == ["parity"]
    assert report.parts["parity"]["0_pre"].n_states == 2
    assert list(report.parts["parity"].by_state().columns) == ["0", "1"]
    assert "parity" not in report.controls.names
    assert "Other targets (report.parts" in repr(report)
    assert set(report.by_part().index.get_level_values("part")) == {"target", "parity"}


def test_own_rows_with_parts():
    """Activations that carry one of two targets."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 400, 2, generator=generator, dtype=torch.float64)
    h = a @ torch.randn(2, 6, generator=generator, dtype=torch.float64)
    rows = batch_rows([({"h": h}, {"belief": torch.cat([a, b], dim=1), "a": a, "b": b})])
    report = probe_rows(rows, parts=["a", "b"])
    assert report.parts["a"]["h"].scores.held_out.r2 == pytest.approx(1, abs=1e-6)
    assert report.parts["b"]["h"].scores.held_out.r2 < 0.05
    assert math.isclose(report["h"].scores.held_out.r2, 0.5, abs_tol=0.1)
    assert report.parts["a"].controls.select("b").held_out.r2 < 0.05
    assert "elief" not in repr(report.parts["a"]) + repr(report.parts["a"].controls)


def test_a_bos_token_keeps_the_parts_and_is_named_in_a_note():
    process = msp.processes.with_bos(msp.processes.mixture([msp.mess3(), msp.processes.z1r()], [0.5, 0.5]))
    config = msp.ModelConfig(d_vocab=process.n_tokens, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=5)
    model = msp.build_model(config, seed=0)
    options = {"sites": "0_post", "controls": False, "by_position": False, "progress": False}
    report = msp.probe(model, process, **options)
    assert list(report.parts) == ["component", "mess3", "z1r"]
    assert list(report.parts["component"].by_state().columns) == ["mess3", "z1r"]
    assert any("All words begin with BOS" in line and "positions=slice(1, None)" in line for line in report.summary())
    # Every token but the first is predicted by the components, each behind a BOS of its own.
    inner = msp.beliefs.optimal_losses
    mixed, apart = inner(process, 5), [inner(msp.processes.with_bos(each), 5) for each in process.process.components]
    torch.testing.assert_close(report.regret_to_oracle, report.regret + mixed - 0.5 * (apart[0] + apart[1]))
    words = msp.words(process, n_ctx=5, positions=slice(1, None))
    later = msp.probe(model, words, **options)
    assert not any("All words begin with" in line for line in later.summary())
    # Read through a token map of its own, also before the BOS token, where no part has a belief.
    mapped = replace(words, positions=None, token_map=msp.TokenMap(range(6), prompt=(6,), include_prior=True))
    model = msp.build_model(replace(config, d_vocab=7, n_ctx=6), seed=0)
    found = msp.probe(model, mapped, **options)
    assert found["0_post"].scores.in_sample.n == mapped.n_prefixes + 1
    assert found.parts["component"]["0_post"].scores.in_sample.n == mapped.n_prefixes


def test_windows_of_a_factor_are_of_the_tokens_that_its_belief_depends_on():
    """Of a chain: the first factor's own tokens; of the second, both factors'."""
    calm, wild = msp.mess3(x=0.05, a=0.85), msp.mess3(x=0.3, a=0.6)
    coin = msp.processes.golden_mean(p=0.5)
    chain = msp.processes.Factored([coin, [calm, wild]], parents="chain")
    model = msp.build_model(msp.ModelConfig(d_vocab=6, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=3), seed=0)
    words = all_words(chain, 3)
    report = msp.probe(model, words, sites="0_post", progress=False)
    first = chain.split_tokens(words.tokens)[..., 0]
    shares = words.prefix_weights("probability")
    for name, tokens in (("golden_mean", first), ("mess3", words.tokens)):
        found = report.parts[name].controls.select("window 2").in_sample.r2
        seen = torch.stack([tokens, tokens.roll(1, dims=1)], dim=-1)
        seen[:, 0, 1] = -1
        category = torch.empty(words.n_prefixes, 2, dtype=torch.int64)
        category[words.prefix_ids[words.is_first]] = seen[words.is_first]
        _, category = category.unique(dim=0, return_inverse=True)
        values = words.prefix_parts[name]
        sums = torch.zeros(int(category.max()) + 1, values.shape[1], dtype=torch.float64)
        weight = torch.zeros(len(sums), dtype=torch.float64).index_add_(0, category, shares)
        means = sums.index_add_(0, category, values * shares[:, None]) / weight[:, None]
        spread = shares @ (values - shares @ values) ** 2
        assert found == pytest.approx(1 - float((shares @ (values - means[category]) ** 2).sum() / spread.sum()))
    # The child's own tokens alone would say less.
    assert report.parts["mess3"].controls.select("window 3").in_sample.r2 == pytest.approx(1)
