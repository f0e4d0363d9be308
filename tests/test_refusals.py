"""What an experiment cannot do is refused at once: before the model has run, and before a word is drawn."""

import functools
import sys
from dataclasses import replace

import pytest
import torch

import msp_lens as msp
from msp_lens import interventions, representation
from msp_lens.data import belief_dataset
from msp_lens.processes.process import Process
from tests.interventions.experiments import EXPERIMENTS

SIZES = {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_head": 8, "d_mlp": 16}


@functools.cache
def model(n_ctx=4, d_vocab=3, seed=1):
    return msp.build_model(msp.ModelConfig(d_vocab=d_vocab, n_ctx=n_ctx, **SIZES), seed=seed)


@functools.cache
def saying(**fields):
    """A model with a config that says other things than it is."""
    changed = model.__wrapped__()
    for name, value in fields.items():
        setattr(changed.cfg, name, value)
    return changed


@functools.cache
def report(n_ctx=4, process=None):
    process = MESS3 if process is None else process
    return msp.probe(model(n_ctx, process.n_tokens), process, controls=False, progress=False)


MESS3 = msp.mess3(x=0.05, a=0.85)
COIN = msp.Process([[[0.5]], [[0.3]], [[0.2]]], name="coin")
TWO = msp.processes.product([msp.processes.z1r(), msp.processes.golden_mean(p=0.5)])
NOISY = msp.processes.Factored([msp.processes.z1r(), msp.processes.golden_mean(p=0.5)], noise=0.1)


def bare(probes):
    """Probes that do not say what they were fitted on, nor have moments."""
    return [replace(each, provenance={}, moments=None) for each in probes.values() if len(each.sites) == 1]


# A name, the call that is refused, and what the error says.
REFUSED = {
    **{
        f"{name}: a probe of other weights": (
            functools.partial(lambda run: run(model(seed=2), MESS3, probes=report()), run),
            "was fitted on a model with other weights",
        )
        for name, run in EXPERIMENTS.items()
    },
    **{
        f"{name}: no logit for a token": (
            functools.partial(
                lambda run: run(saying(d_vocab_out=2), MESS3, probes=bare(report())),
                run,
            ),
            "The model predicts 2 tokens",
        )
        for name, run in EXPERIMENTS.items()
        if name != "bayes_consistency"
    },
    "bayes_consistency: one token": (
        lambda: interventions.bayes_consistency(model(1), MESS3, probes=report(1)),
        "n_ctx=1: a step from one belief",
    ),
    "necessity: no moments": (
        lambda: msp.necessity(model(), MESS3, probes=bare(report())),
        "has no moments",
    ),
    "necessity: one belief": (
        lambda: msp.necessity(model(), COIN, probes=report(process=COIN)),
        "nothing can be erased",
    ),
    "crosstalk: a noisy world": (
        lambda: representation.crosstalk(model(d_vocab=4), NOISY, probes=report(process=TWO)),
        "has noise=0.1",
    ),
    "crosstalk: another report": (
        lambda: representation.crosstalk(model(d_vocab=4), TWO, probes=report()),
        "probes has no part",
    ),
    "factor_geometry: too long": (
        lambda: representation.factor_geometry(model(d_vocab=4), TWO, n_ctx=5),
        "n_ctx=5 is longer",
    ),
    "attention_by_lag: too short": (
        lambda: representation.attention_by_lag(model(3), MESS3),
        "Words have 3 tokens",
    ),
    "curved_beliefs: too few rows": (
        lambda: representation.curved_beliefs(model(), MESS3, n_rows=60, n_folds=10),
        "n_rows=60: too few",
    ),
    "beyond_belief: too long a lag": (
        lambda: representation.beyond_belief(model(), MESS3, longest=4),
        "longest=4: words have 4 tokens",
    ),
    **{
        f"{run.__name__}: too large an alphabet": (
            functools.partial(lambda run: run(model(), msp.processes.random_process(2, 5, seed=0)), run),
            "vocabulary has 3 tokens",
        )
        for run in (representation.attention_by_lag, representation.curved_beliefs, representation.beyond_belief)
    },
    "infer: no number of states": (lambda: msp.infer(model(), n_states=[], progress=False), "n_states="),
    "infer: a short context": (lambda: msp.infer(model(1), progress=False), "contexts of two at least"),
    "infer: no distribution": (lambda: msp.infer(model(), first=[1.0, 1.0, 0.0], progress=False), "first"),
    "infer: a whole language": (
        lambda: msp.infer(saying(d_vocab=2_000_000), progress=False),
        "Give token_map=",
    ),
    "site_ranks: a short context": (lambda: msp.inference.site_ranks(model(), n_ctx=1), "n_ctx=1"),
    "site_ranks: no distribution": (lambda: msp.inference.site_ranks(model(), first=[2.0, -1.0, 0.0]), "first"),
}


@pytest.fixture
def work(monkeypatch):
    """What was done, as it is: words that are drawn or enumerated, and forward passes of any model."""
    done = []

    def noted(owner, name, what):
        original = getattr(owner, name)

        def noting(*arguments, **options):
            done.append(what)
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, noting)

    noted(Process, "sample", "words were drawn")
    noted(belief_dataset, "walk_levels", "words were enumerated")
    noted(type(model()), "forward", "a model ran")
    return done


def prepared(call):
    """Call it once for the models and probes that it builds, which are kept."""
    with pytest.raises(ValueError, match=r"."):
        call()


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_any_work(name, work):
    call, match = REFUSED[name]
    prepared(call)
    work.clear()
    with pytest.raises(ValueError, match=match):
        call()
    assert work == []


def test_work_is_seen(work):
    """What the test above relies on."""
    interventions.bayes_consistency(model(), MESS3, probes=report(), n_words=5)
    assert set(work) == {"words were drawn", "words were enumerated", "a model ran"}


def test_too_few_contexts_are_refused_before_sites_are_read(monkeypatch):
    read, module = [], sys.modules[msp.inference.SiteRanks.__module__]
    stream = module.stream_activations

    def streamed(model, words, sites, **options):
        read.append(sites)
        return stream(model, words, sites, **options)

    monkeypatch.setattr(module, "stream_activations", streamed)
    with pytest.raises(ValueError, match="n_folds=500: there are only"):
        msp.inference.site_ranks(model(), n_folds=500)
    assert read == []
    msp.inference.site_ranks(model(), n_folds=2)
    assert read


def test_by_default_long_words_are_few():
    assert belief_dataset.default_count(10, 20_000) == 20_000
    assert belief_dataset.default_count(640, 20_000) == 312
    assert belief_dataset.default_count(10**6, 2000) == 20
    assert belief_dataset.default_count(10**6, 5) == 5


@pytest.mark.parametrize("target", ["reachable", "vertex"])
def test_donors_are_sought_among_so_many_words_as_fit(target, monkeypatch):
    drawn, sample = [], Process.sample

    def noting(process, n_words, length, **options):
        drawn.append(n_words * length)
        return sample(process, n_words, length, **options)

    monkeypatch.setattr(Process, "sample", noting)
    words = torch.zeros(2, 4_000, dtype=torch.int64)
    made = interventions.TARGETS[target](MESS3, words, torch.Generator().manual_seed(0))
    assert made.donors.shape == (2, 4_000)
    assert drawn == [2_000_000]


def test_words_are_by_default_as_long_as_those_of_the_probes():
    probes = msp.probe(model(), msp.words(MESS3, n_ctx=3), controls=False, progress=False)
    found = interventions.prediction_consistency(model(), MESS3, probes=probes)
    assert "every possible word of 3 tokens" in " ".join(found.summary())
