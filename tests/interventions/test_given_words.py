"""What probes know of the words that they were fitted on: their length, and whether they have beliefs at all."""

import dataclasses

import numpy as np
import pytest
import torch
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

import msp_lens as msp
from msp_lens.data import LabelledTokens
from msp_lens.interventions import preparation
from msp_lens.probing import BeliefProbe, ProbeReport
from tests.interventions.experiments import EXPERIMENTS


class Recurrent(HookedRootModule):
    """A network without a config, which reads words of any length."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.embed, self.cell = torch.nn.Embedding(3, 8), torch.nn.RNN(8, 8, batch_first=True)
            self.unembed = torch.nn.Linear(8, 3)
        self.hook_embed, self.hook_state = HookPoint(), HookPoint()
        self.setup()

    def forward(self, tokens):
        return self.unembed(self.hook_state(self.cell(self.hook_embed(self.embed(tokens)))[0]))


@pytest.fixture(scope="module")
def model():
    return Recurrent()


@pytest.fixture(scope="module")
def words(mess3):
    return msp.words(mess3, n_ctx=4)


@pytest.fixture(scope="module")
def report(model, words):
    return msp.probe(model, words, sites=["hook_embed", "hook_state"], progress=False)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_model_without_a_config_is_asked_for_its_context_once(experiment, model, words, report, mess3, tmp_path):
    """Words are as long as those that the probes were fitted on: a report, one probe, or loaded ones."""
    run, options = EXPERIMENTS[experiment], {"n_words": 100, "seed": 3}
    found = run(model, mess3, probes=report, **options)
    assert found == run(model, words, probes=report, **options)
    one = report["hook_state"]
    loaded = BeliefProbe.load(one.save(tmp_path / "probe.safetensors"))
    assert run(model, mess3, probes=loaded, **options) == run(model, mess3, probes=[one], **options)
    again = ProbeReport.load(report.save(tmp_path / "report.safetensors"), model=model)
    assert run(model, mess3, probes=again, **options) == found


# Experiments over whole words, and how many of them they draw by default.
OVER_WORDS = {"necessity": 2_000, "bayes_consistency": 20_000, "prediction_consistency": 20_000}


@pytest.mark.parametrize("experiment", OVER_WORDS)
def test_words_are_drawn_from_the_seed(experiment, model, report, mess3):
    def table(data, seed):
        return EXPERIMENTS[experiment](model, data, probes=report["hook_state"], n_words=10, seed=seed).table

    drawn = {seed: msp.words(mess3, n_ctx=4, max_words=10, seed=seed) for seed in (3, 4)}
    assert not torch.equal(drawn[3].word_weights, drawn[4].word_weights) or not drawn[3].tokens.equal(drawn[4].tokens)
    for seed, dataset in drawn.items():
        assert table(mess3, seed).equals(table(dataset, seed))


@pytest.mark.parametrize(("experiment", "n_words"), OVER_WORDS.items())
def test_how_many_words_are_drawn_by_default(experiment, n_words, model, report, mess3, monkeypatch):
    class EnoughError(Exception):
        pass

    def words(process, *, n_ctx, max_words, seed):
        raise EnoughError(f"{max_words} of {n_ctx} from {seed}")

    monkeypatch.setattr(preparation, "words", words)
    with pytest.raises(EnoughError, match=f"^{n_words} of 4 from 0$"):
        EXPERIMENTS[experiment](model, mess3, probes=report)


def test_the_length_of_the_words_is_the_probes(model, report, mess3):
    assert msp.intervene(model, mess3, probes=report, n_words=10).provenance["positions"] == [3]
    assert msp.intervene(model, mess3, probes=report, positions=-1, n_words=10).provenance["positions"] == [3]
    with pytest.raises(ValueError, match="position=4 is outside"):
        msp.intervene(model, mess3, probes=report, positions=4, n_words=10)
    lasting = msp.persistence(model, mess3, probes=report, n_words=10)
    assert lasting.values("after") == [0, 1]
    shorter = msp.probe(model, msp.words(mess3, n_ctx=3), sites="hook_state", progress=False)["hook_state"]
    both = [shorter, report["hook_embed"]]
    assert msp.intervene(model, mess3, probes=both, positions=-1, n_words=10).provenance["positions"] == [2]


@pytest.mark.parametrize("name", ["necessity", "bayes_consistency", "prediction_consistency"])
def test_words_whose_length_nothing_states_are_asked_for(name, model, report, words, mess3):
    """A probe without a record of its words says nothing, whatever the others record."""
    silent = dataclasses.replace(report["hook_embed"], provenance={})
    with pytest.raises(ValueError, match=r"does not say how long its context is .*: give a dataset\.$"):
        EXPERIMENTS[name](model, mess3, probes=silent)
    both = [silent, report["hook_state"]]
    assert EXPERIMENTS[name](model, mess3, probes=both) == EXPERIMENTS[name](model, words, probes=both)


def test_words_are_as_long_as_those_of_the_probes(random_model, random_report, mess3):
    shorter = msp.probe(random_model, msp.words(mess3, n_ctx=2), progress=False)
    for probes, last in ((shorter, 1), (random_report, 4)):
        found = msp.intervene(random_model, mess3, probes=probes, positions=-1, n_words=10)
        assert found.provenance["positions"] == [last]


def test_a_report_knows_its_words(model, report, words, mess3, tmp_path):
    loaded = ProbeReport.load(report.save(tmp_path / "report.safetensors"), model=model)
    for each in (report, loaded):
        assert [site.site for site in each.geometry().sites] == ["embed", "hook_state"]
        assert each.distances() == report.distances()
        each.plot.word("AB")
    formed = msp.emergence({0: model}, words, sites="hook_state", interventions=True, n_words=10, progress=False)
    assert formed.snapshots[0].interventions is not None


def test_labelled_data_has_no_beliefs_to_write(model, mess3, monkeypatch):
    tokens = mess3.sample(40, 4, seed=0)
    labels = np.where(tokens[:, 0] == 0, "spam", "ham")
    three = torch.nn.functional.one_hot(tokens, 3).double()
    reports = [
        msp.probe(model, LabelledTokens.from_tokens(tokens, target), sites="hook_state", progress=False)
        for target in (labels, {"token": tokens}, {"three numbers": three}, tokens.double())
    ]
    monkeypatch.setattr(model, "forward", lambda tokens: pytest.fail("The model was run."))
    called = (("label", "'ham'"), ("label 'token'", "'0'"), ("target 'three numbers'", r"\["), ("target", r"\["))
    for report, (name, value) in zip(reports, called, strict=True):
        for experiment in EXPERIMENTS.values():
            for probes in (report, report["hook_state"]):
                write = rf"report\['hook_state'\]\.steer\(model, {value}.*, position=-1\)"
                with pytest.raises(ValueError, match=rf"the {name} of labelled tokens.*Write the value.*{write}"):
                    experiment(model, mess3, probes=probes)


def test_labelled_tokens_are_no_words_of_a_process(model, mess3):
    data = LabelledTokens.from_tokens(mess3.sample(40, 4, seed=0), ["spam", "ham"] * 20)
    report = msp.probe(model, data, sites="hook_state", progress=False)
    for experiment in EXPERIMENTS.values():
        with pytest.raises(TypeError, match=r"data=LabelledTokens.*have no process.*steer\(model, label\)"):
            experiment(model, data, probes=report)


def test_beliefs_of_ones_own_are_written(model, words, mess3):
    """Labelled tokens may hold beliefs of the process."""
    own = LabelledTokens.from_tokens(words.tokens, words.beliefs)
    report = msp.probe(model, own, sites="hook_state", progress=False)
    assert msp.intervene(model, mess3, probes=report, n_words=10).provenance["positions"] == [3]
