"""Persistence, necessity and the two consistencies against computations by hand; their tables and pictures."""

import dataclasses
import json

import pandas as pd
import pytest
import torch

import msp_lens as msp
from msp_lens import interventions as edits
from msp_lens._tables import nats_text
from msp_lens.beliefs import continuations, filter_from, nearest_distribution
from msp_lens.interventions import InterventionReport
from tests.hooked_models import Observer


@pytest.fixture(scope="module")
def dataset(mess3):
    return msp.data.all_words(mess3, 5)


def activations(model, dataset, probe):
    (batch,) = msp.models.activations.stream_activations(model, dataset.tokens, probe.sites, batch_size=len(dataset))
    return batch.activations[probe.sites[0]], batch.output


def test_persistence_by_hand(random_model, random_report, mess3):
    probe = random_report["0_post"]
    found = msp.persistence(
        random_model,
        mess3,
        probes=probe,
        position=2,
        edits=["steer", "patch"],
        target={"mine": [0.1, 0.2, 0.7]},
        n_words=20,
    )
    # The same draws again, in the same order.
    generator = torch.Generator().manual_seed(0)
    words = mess3.sample(20, 3, generator=generator)
    target = torch.tensor([[0.1, 0.2, 0.7]], dtype=torch.float64).expand(20, -1)
    mess3.sample(20, 3, generator=generator)
    following = continuations(mess3, target, 2, generator=generator)
    fed, beliefs = torch.cat([words, following], dim=1), filter_from(mess3, target, following)
    actual = msp.filter_beliefs(mess3, fed)[:, 2:]
    ways = {"one position": (2, beliefs[:, :1]), "trajectory": (slice(2, None), beliefs)}
    for name, make in (("steer", edits.steer), ("patch", edits.patch)):
        for edited, (position, written) in ways.items():
            with torch.no_grad(), msp.applying(random_model, make(probe), written, position=position):
                log_predicted = random_model(fed)[:, 2:].double().log_softmax(-1)
            for column, held in (("kl_to_target", beliefs), ("kl_to_actual", actual)):
                optimal = held @ mess3.emissions
                expected = (optimal * (optimal.log() - log_predicted)).sum(-1).mean(dim=0)
                for after in range(3):
                    row = found.select(site="0_post", edit=name, edited=edited, after=after)
                    assert row[column] == pytest.approx(float(expected[after]), rel=1e-5)


def test_persistence_where_tokens_rule_the_actual_belief_out():
    """After the target's own tokens the actual belief may be impossible: then it has no optimum."""
    process = msp.processes.z1r()
    model = msp.build_model(msp.ModelConfig(d_vocab=2, n_layers=1, d_model=16, d_head=8, d_mlp=32, n_ctx=5))
    report = msp.probe(model, process, progress=False)
    found = msp.persistence(
        model, process, probes=report, position=2, n_words=50, edits=list(edits.EDITS)
    ).to_dataframe()
    assert found[["kl_to_target", "kl_to_actual"]].notna().all().all()


def test_necessity_by_hand(random_model, random_report, mess3, dataset):
    found = msp.necessity(random_model, dataset, probes=random_report, n_random=2, seed=3)
    probes = [probe for probe in random_report.values() if len(probe.sites) == 1]
    for name, ablate in (("erase", edits.erase), ("project out", edits.project_out), ("keep only", edits.keep_only)):
        for label, group in (("0_post", [random_report["0_post"]]), ("all sites", probes)):
            with msp.applying(random_model, [ablate(probe) for probe in group]):
                regret = float(msp.training.regret_by_position(random_model, dataset).mean())
            assert found.select(site=label, edit=name)["regret"] == pytest.approx(regret, rel=1e-6)
    untouched = float(msp.training.regret_by_position(random_model, dataset).mean())
    assert set(found.to_dataframe().query("edit == 'none'")["regret"]) == {untouched}
    # What context is worth: the entropy of a token less its mean entropy given the words before it.
    optimal = msp.next_token_probabilities(mess3, dataset.beliefs)
    entropies = -(optimal * optimal.log()).sum(-1)
    worth = torch.tensor(3.0).log() - float((dataset.word_weights @ entropies).mean())
    row = found.select(site="1_post", edit="erase")
    assert row["share_lost"] == pytest.approx(row["regret"] / float(worth), rel=1e-5)
    assert found.select(site="1_post", edit="erase random")["spread"] > 0


def test_bayes_consistency_by_hand(random_model, random_report, mess3, dataset):
    found = msp.interventions.bayes_consistency(random_model, dataset, probes=random_report)
    probe = random_report["1_post"]
    read = nearest_distribution(probe.predict(activations(random_model, dataset, probe)[0]).double())
    update = copy = reading = total = 0.0
    for word, tokens in enumerate(dataset.tokens.tolist()):
        weight = float(dataset.word_weights[word])
        for position in range(4):
            if tokens[position + 1] != 1:
                continue
            joint = read[word, position] @ mess3.transitions[1]
            after = read[word, position + 1]
            update += weight * float((joint / joint.sum() - after).square().mean())
            copy += weight * float((read[word, position] - after).square().mean())
            reading += weight * float((after - dataset.beliefs[word, position + 1]).square().mean())
            total += weight
    row = found.select(site="1_post", token="B")
    assert row["update"] == pytest.approx(update / total, rel=1e-6)
    assert row["copy"] == pytest.approx(copy / total, rel=1e-6)
    assert row["read"] == pytest.approx(reading / total, rel=1e-6)
    assert row["skill"] == pytest.approx(1 - update / copy, rel=1e-6)
    assert row["weight"] == pytest.approx(total / 4, rel=1e-6)
    assert found.select(site="1_post", token="all")["weight"] == pytest.approx(1)


def test_the_true_beliefs_commute(mess3, dataset):
    """A model whose activations are the beliefs: no error at all, and its predictions are those implied."""

    model = Observer(mess3)
    report = msp.probe(model, dataset, sites="hook_beliefs", progress=False)
    row = msp.interventions.bayes_consistency(model, dataset, probes=report).select(token="all")
    assert row["update"] < 1e-12
    assert row["skill"] == pytest.approx(1, abs=1e-9)
    row = msp.interventions.prediction_consistency(model, dataset, probes=report).select(site="hook_beliefs")
    assert row["implied_to_model"] < 1e-9
    assert row["optimal_to_model"] < 1e-9
    # It acts on what is written, whichever way: there is nothing in it but the belief.
    results = msp.intervene(model, mess3, probes=report["hook_beliefs"], positions=3, n_words=50)
    for edit in ("steer", "patch", "pseudo-inverse", "donor"):
        assert results.select(site="hook_beliefs", edit=edit).recovery == pytest.approx(1, abs=1e-6)
    assert results.select(site="hook_beliefs", edit="steer").above_placebo == pytest.approx(1, abs=1e-6)


def test_generalized_beliefs_commute_too_and_cannot_be_written():
    """Their update divides by π T[x] w, and they are left where they are read: on no simplex."""
    process = msp.processes.bloch_walk()
    model = msp.build_model(msp.ModelConfig(d_vocab=4, n_layers=1, d_model=16, d_head=8, d_mlp=32, n_ctx=4), seed=1)
    dataset = msp.data.all_words(process, 4)
    beliefs = dataset.beliefs
    onward = filter_from(process, beliefs[:, 0], dataset.tokens[:, 1:])
    torch.testing.assert_close(onward, beliefs)

    report = msp.probe(model, dataset, progress=False)
    probe = report["0_post"]
    values, logits = activations(model, dataset, probe)
    read = probe.predict(values).double()
    before, after = read[:, :-1], read[:, 1:]
    joint = torch.einsum("wpi,wpij->wpj", before, process.transitions[dataset.tokens[:, 1:]])
    updated = joint / (joint @ process.right_eigenvector).unsqueeze(-1)
    error = float(dataset.word_weights @ (updated - after).square().mean(dim=(1, 2)))
    row = msp.interventions.bayes_consistency(model, dataset, probes=report).select(site="0_post", token="all")
    assert row["undefined"] == 0
    assert row["update"] == pytest.approx(error, rel=1e-5)

    implied = read @ process.emissions
    assert implied.min() > 0
    log_predicted = logits.double().log_softmax(-1)
    expected = float(dataset.word_weights @ (implied * (implied.log() - log_predicted)).sum(-1).mean(dim=1))
    row = msp.interventions.prediction_consistency(model, dataset, probes=report).select(site="0_post")
    assert row["implied_to_model"] == pytest.approx(expected, rel=1e-5)

    # Erasing needs no distribution: no trace is left, and the regret moves.
    found = msp.necessity(model, dataset, probes=report, n_random=1)
    assert found.select(site="0_post", edit="erase")["regret"] != found.select(site="0_post", edit="none")["regret"]
    with msp.applying(model, edits.erase(probe)):
        fresh = msp.probe(model, dataset, sites="0_post", progress=False)["0_post"]
    assert fresh.scores.in_sample.r2 < 1e-6
    for experiment in (msp.intervene, msp.persistence):
        with pytest.raises(ValueError, match="beliefs of a generalized process are no distributions"):
            experiment(model, process, probes=report)


def test_a_belief_that_never_changes_cannot_be_erased():
    process = msp.processes.coin()
    model = msp.build_model(msp.ModelConfig(d_vocab=2, n_layers=1, d_model=16, d_head=8, d_mlp=32, n_ctx=3))
    report = msp.probe(model, process, progress=False)
    with pytest.raises(ValueError, match="nothing can be erased"):
        msp.necessity(model, process, probes=report)
    found = msp.interventions.bayes_consistency(model, process, probes=report)
    assert found.to_dataframe()["skill"].isna().all()
    assert "No belief read moves" in found.summary()[0]


def test_prediction_consistency_by_hand(random_model, random_report, mess3, dataset):
    probe = random_report["0_post"]
    values, logits = activations(random_model, dataset, probe)
    log_predicted = logits.double().log_softmax(-1)
    implied = nearest_distribution(probe.predict(values).double()) @ mess3.emissions
    optimal = dataset.beliefs @ mess3.emissions

    def mean_kl(first, log_second):
        return float((dataset.word_weights @ (first * (first.log() - log_second)).sum(-1)).mean())

    row = msp.interventions.prediction_consistency(random_model, dataset, probes=random_report).select(site="0_post")
    assert row["implied_to_model"] == pytest.approx(mean_kl(implied, log_predicted), rel=1e-5)
    assert row["optimal_to_implied"] == pytest.approx(mean_kl(optimal, implied.log()), rel=1e-5)
    assert row["optimal_to_model"] == pytest.approx(mean_kl(optimal, log_predicted), rel=1e-5)
    third = torch.full_like(optimal, 1 / 3)
    assert row["average_to_model"] == pytest.approx(mean_kl(third, log_predicted), rel=1e-5)


@pytest.fixture(scope="module")
def forgetful():
    """z1r, in which most tokens are impossible for some belief, a model of a larger vocabulary, and probes of it."""
    process = msp.processes.z1r()
    config = msp.ModelConfig(d_vocab=5, n_layers=1, d_model=16, d_head=8, d_mlp=32, n_ctx=4)
    model = msp.build_model(config, seed=1)
    return process, model, msp.probe(model, process, progress=False)


def test_steps_without_an_update_are_left_out_and_counted(forgetful):
    """Word by word: where the belief read rules the token out, there is nothing to compare."""
    process, model, report = forgetful
    dataset, plain = msp.data.all_words(process, 4), report["0_post"]
    # So sure of what it reads that most reads are corners of the simplex.
    sure = dataclasses.replace(
        plain.read_map, weights=20 * plain.read_map.weights, bias=20 * (plain.read_map.bias - 1 / 3) + 1 / 3
    )
    probe = dataclasses.replace(plain, read_map=sure)
    read = nearest_distribution(probe.predict(activations(model, dataset, probe)[0]).double())
    sums = {token: dict.fromkeys(("update", "copy", "read", "defined", "weight"), 0.0) for token in ("0", "1", "all")}
    for word, tokens in enumerate(dataset.tokens.tolist()):
        weight = float(dataset.word_weights[word]) / 3
        for position, token in enumerate(tokens[1:]):
            before, after = read[word, position], read[word, position + 1]
            joint = before @ process.transitions[token]
            for each in (sums[str(token)], sums["all"]):
                each["weight"] += weight
                if joint.sum() > 0:
                    each["defined"] += weight
                    each["update"] += weight * float((joint / joint.sum() - after).square().mean())
                    each["copy"] += weight * float((before - after).square().mean())
                    each["read"] += weight * float((after - dataset.beliefs[word, position + 1]).square().mean())
    found = edits.bayes_consistency(model, dataset, probes=probe)
    assert found.keys == ("site", "token")
    assert found.values("token") == ["all", "0", "1"]
    assert 0 < sums["all"]["defined"] < 0.99
    for token, expected in sums.items():
        row = found.select(site="0_post", token=token)
        for column in ("update", "copy", "read"):
            assert row[column] == pytest.approx(expected[column] / expected["defined"], rel=1e-6), (token, column)
        assert row["weight"] == pytest.approx(expected["weight"], rel=1e-9)
        assert row["undefined"] == pytest.approx(1 - expected["defined"] / expected["weight"], abs=1e-9)


def test_predictions_are_compared_over_the_models_whole_vocabulary(forgetful):
    """Probability on tokens that the process never emits is lost; the average is that of the words' tokens."""
    process, model, report = forgetful
    dataset, probe = msp.words(process, n_ctx=4, max_words=5, seed=3), report["0_post"]
    values, logits = activations(model, dataset, probe)
    log_predicted = logits.double().log_softmax(-1)[..., :2]
    optimal = dataset.beliefs @ process.emissions
    average = sum(dataset.word_weights[:, None] * optimal[:, position] for position in range(4)).sum(0) / 4
    assert float(average.sum()) == pytest.approx(1)
    implied = nearest_distribution(probe.predict(values).double()) @ process.emissions

    def mean_kl(first, log_second):
        terms = torch.where(first > 0, first * (first.clamp(min=1e-300).log() - log_second), 0.0)
        return float((dataset.word_weights @ terms.sum(-1)).mean())

    found = edits.prediction_consistency(model, dataset, probes=report)
    row = found.select(site="0_post")
    assert row["implied_to_model"] == pytest.approx(mean_kl(implied, log_predicted), rel=1e-5)
    assert row["optimal_to_implied"] == pytest.approx(mean_kl(optimal, implied.clamp(min=1e-6).log()), rel=1e-5)
    assert row["optimal_to_model"] == pytest.approx(mean_kl(optimal, log_predicted), rel=1e-5)
    expected = mean_kl(average.expand_as(optimal), log_predicted)
    assert found.table["average_to_model"].tolist() == pytest.approx([expected] * 3, rel=1e-5)
    table = found.to_dataframe()
    nearest = table.loc[table["implied_to_model"].idxmin()]
    assert found.keys == ("site",)
    assert found.summary()[0].startswith(f"At {nearest['site']} the belief read implies what the model says to within ")
    assert f"{nats_text(nearest['implied_to_model'])} nats" in found.summary()[0]


def test_what_a_wild_read_implies_is_made_a_prediction():
    """Read off the cone of a generalized process, negative probabilities count as 0 and the rest add up to 1."""
    process = msp.processes.bloch_walk()
    dataset, model = msp.data.all_words(process, 3), Observer(process)
    report = msp.probe(model, dataset, sites="hook_beliefs", controls=False, progress=False)
    plain = report["hook_beliefs"]
    wild = dataclasses.replace(plain, read_map=dataclasses.replace(plain.read_map, weights=8 * plain.read_map.weights))
    implied = wild.predict(dataset.beliefs) @ process.emissions
    assert (implied < 0).any()
    implied = torch.where(implied > 0, implied, 0.0)
    implied = implied / implied.sum(-1, keepdim=True)
    # The network's own predictions are the optimal ones.
    optimal = dataset.beliefs @ process.emissions
    apart = torch.where(implied > 0, implied * (implied / optimal).log(), 0.0).sum(-1)
    regret = (optimal * (optimal / implied.clamp(min=1e-6)).log()).sum(-1)
    average = (dataset.word_weights[:, None, None] * optimal).sum(0).mean(0)
    null = (average * (average / optimal).log()).sum(-1)
    row = edits.prediction_consistency(model, dataset, probes=wild).select(site="hook_beliefs")
    for column, each in (("implied_to_model", apart), ("optimal_to_implied", regret), ("average_to_model", null)):
        assert row[column] == pytest.approx(float((dataset.word_weights @ each).mean()), rel=1e-10)


def test_words_of_two_tokens_have_one_step(random_model, random_report, mess3):
    words = msp.data.all_words(mess3, 2)
    found = msp.interventions.bayes_consistency(random_model, words, probes=random_report["0_post"])
    assert found.select(token="all")["weight"] == pytest.approx(1)
    assert found.select(token="A")["weight"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("experiment", [edits.bayes_consistency, edits.prediction_consistency])
def test_a_consistency_says_which_words_it_used(experiment, random_model, random_report, mess3):
    shown = experiment(random_model, mess3, probes=random_report, n_words=20)
    sampled = msp.words(mess3, n_ctx=5, max_words=20)
    assert shown == experiment(random_model, mess3, probes=random_report, n_words=20, seed=0)
    assert shown.table.equals(experiment(random_model, sampled, probes=random_report).table)
    assert shown.table["site"].unique().tolist() == ["0_pre", "0_post", "1_post", "ln_final"]
    backward = [random_report[label] for label in ("ln_final", "1_post", "0_pre")]
    assert experiment(random_model, sampled, probes=backward).values("site") == ["0_pre", "1_post", "ln_final"]
    provenance = {"process": mess3.to_dict(), "words": len(sampled), "is_population": False, "seed": 0}
    assert shown.provenance == provenance
    assert f"{mess3!r}; {len(sampled)} distinct sampled words of 5 tokens" in " ".join(shown.summary())
    every = experiment(random_model, mess3, probes=random_report, seed=4)
    assert every.provenance == {**provenance, "words": 243, "is_population": True, "seed": 4}
    assert f"{mess3!r}; every possible word of 5 tokens" in " ".join(every.summary())


def test_reports_show_what_they_hold(random_model, random_report, mess3, untouched, global_state):
    options = {"probes": random_report["0_post"]}
    reports = [
        msp.persistence(random_model, mess3, n_words=10, **options),
        msp.necessity(random_model, mess3, n_words=50, **options),
        msp.interventions.bayes_consistency(random_model, mess3, n_words=50, **options),
        msp.interventions.prediction_consistency(random_model, mess3, n_words=50, **options),
    ]
    for found, choice in zip(reports, ({"edited": "trajectory"}, {}, {"token": "all"}, {}), strict=True):
        assert isinstance(found.to_dataframe(), pd.DataFrame)
        assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["title"] == found.title
        for text in (repr(found), found._repr_html_()):
            assert found.title.split(",")[0].split("'")[0] in text
            assert "0_post" in text
        assert any(" not " in note for note in found.summary())
        # First of all comes what was found, in numbers.
        assert any(character.isdigit() for character in found.summary()[0])
        assert found.plot(**choice).axes
    assert len(repr(reports[0]).splitlines()) < len(reports[0].table)
    assert "background: rgba" in reports[0]._repr_html_()
    assert "background: rgba" in reports[1]._repr_html_()
    persisted = reports[0].select(site="0_post", edit="steer", edited="trajectory", after=1)
    untouched = reports[0].select(site="0_post", edit="none", edited="trajectory", after=1)
    assert persisted["recovery"] == pytest.approx(1 - persisted["kl_to_target"] / untouched["kl_to_target"])
    # A picture of how long edits last has a panel for each way of editing.
    assert [axis.get_title() for axis in reports[0].plot().axes] == ["one position", "trajectory"]
    choices = r"choose by after, edited, edit; there are site 0_post; after 0, 1; edited one position, "
    with pytest.raises(KeyError, match=choices):
        reports[0].select(site="0_post")
    with pytest.raises(KeyError, match="value='skill' is no measure of this table; choose one of kl_to_target, "):
        reports[0].plot(value="skill")
    with pytest.raises(KeyError, match=r"0 results for .*; there are site 0_post"):
        reports[1].select(site="9_post")
    with pytest.raises(KeyError, match="No column 'layer'; there are site"):
        reports[1].select(layer=3)
    assert isinstance(reports[0], InterventionReport)


@pytest.mark.parametrize(
    "experiment", ["intervene", "persistence", "necessity", "bayes_consistency", "prediction_consistency"]
)
def test_numbers_too_small_are_refused_before_any_work(experiment, random_model, random_report, mess3, monkeypatch):
    def work(*arguments, **options):
        raise AssertionError("the model was run")

    run, words = getattr(edits, experiment), msp.data.all_words(mess3, 5)
    monkeypatch.setattr(random_model, "forward", work)
    with pytest.raises(ValueError, match="batch_size=0: give at least 1"):
        run(random_model, words, probes=random_report, batch_size=0)
    with pytest.raises(ValueError, match="n_words=0: give at least"):
        run(random_model, words, probes=random_report, n_words=0)


def test_bad_requests_are_refused(random_model, random_report, mess3):
    with pytest.raises(ValueError, match="position=4 is the last of 5"):
        msp.persistence(random_model, mess3, probes=random_report, position=4)
    with pytest.raises(ValueError, match="give one target"):
        msp.persistence(random_model, mess3, probes=random_report, target={"a": [1, 0, 0], "b": [0, 1, 0]})
    with pytest.raises(ValueError, match="n_random=0"):
        msp.necessity(random_model, mess3, probes=random_report, n_random=0)
    with pytest.raises(ValueError, match="at least 2 tokens"):
        msp.interventions.bayes_consistency(random_model, msp.data.all_words(mess3, 1), probes=random_report)
