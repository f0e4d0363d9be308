"""Reports of labels of your own speak of these, not of beliefs."""

import re

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.text import Text

import msp_lens as msp
from msp_lens.interventions import steering_vector

# Words that belong to the beliefs of a process.
FOREIGN = re.compile(r"belief|simplex|hidden state|optimal|process", re.IGNORECASE)
TOKENS = torch.randint(0, 10, (60, 6), generator=torch.Generator().manual_seed(0))
PARITY = [["odd" if word[: t + 1].count(3) % 2 else "even" for t in range(6)] for word in TOKENS.tolist()]
MEAN = TOKENS.cumsum(dim=1) / torch.arange(1, 7)
# Each target, and what it is called.
TARGETS = {
    "named numbers": ({"mean": MEAN}, "target 'mean'"),
    "numbers": (MEAN, "target"),
    "named classes": ({"parity": PARITY}, "label 'parity'"),
    "classes": (PARITY, "label"),
}


@pytest.fixture(scope="module")
def model():
    return msp.build_model(msp.ModelConfig(d_vocab=10, n_layers=1, d_model=16, d_head=8, d_mlp=32, n_ctx=6), seed=0)


@pytest.fixture(scope="module", params=TARGETS)
def labelled(request, model):
    """A report, its data, and what its target is called."""
    target, name = TARGETS[request.param]
    data = msp.LabelledTokens.from_tokens(TOKENS, target)
    return msp.probe(model, data, untrained=1, by_position="own", progress=False), data, name


def drawn_texts(figure):
    found = [text.get_text() for text in figure.findobj(Text)]
    plt.close(figure)
    return found


def _other(probe):
    """Another value than the mean: a class for sure, or 1."""
    return torch.tensor([1.0, 0.0][: probe.n_states])


def test_no_text_speaks_of_beliefs(model, labelled, tmp_path):
    report, data, name = labelled
    kind = name.split()[0]
    moved = msp.probing.transfer(model, report, data, progress=False)
    loaded = msp.ProbeReport.load(report.save(tmp_path / "report.safetensors"))
    tables = [report, loaded, report.controls, moved, msp.compare(report, report)]
    tables += [report.classes] if report.classes is not None else []
    said = [text for each in tables for text in (repr(each), each._repr_html_(), *each.summary())]
    said += [str(each) for each in (report.by_part(), report.by_state(), report.increments(), report.by_rank())]
    # The name of the class is the library's.
    said += [repr(probe).removeprefix("BeliefProbe") for probe in report.values()]
    for draw in (report.plot, report.plot.scores, report.plot.by_rank, report.plot.by_position, report.plot.crossover):
        texts = drawn_texts(draw())
        assert any(text.startswith(f"R² of {kind}s") for text in texts)
        said += texts
    said += [*drawn_texts(moved.plot()), *drawn_texts(moved.plot.matrix())]
    said += drawn_texts(msp.representation.side_by_side([report], show="scores"))
    vector = steering_vector(report["0_post"], report["0_post"].belief_mean, current=_other(report["0_post"]))
    said += [repr(vector), vector.to_neuronpedia("mine")["vectorLabel"]]
    said += drawn_texts(report.plot.classes()) if report.classes is not None else []
    assert [text for text in said if FOREIGN.search(text)] == []
    assert report._title() == f"Probes of the {name}"
    assert f"; the {name}." in " ".join(repr(report).split())
    assert f"features → {name} [" in repr(report["0_post"])
    assert list(report.by_part().index.get_level_values("part").unique()) == [name]
    assert f"permuted {kind}s." in " ".join(repr(report).split())


def test_what_cannot_be_written_is_refused_in_words_of_the_target(model, labelled):
    report, _, name = labelled
    kind, probe = name.split()[0], report["0_post"]
    wrong = [[0.1] * 5, 8.0, [float("nan")] * probe.n_states, object(), "nowhere", [[0.5, 0.9]]]
    for value in wrong:
        with pytest.raises((ValueError, KeyError, TypeError)) as refused:
            probe.steer(model, value)
        assert not FOREIGN.search(str(refused.value))
    with pytest.raises(ValueError, match=rf"{kind} has shape \(5,\); this probe's {kind}s are vectors of length"):
        probe.decode([0.1] * 5)
    if kind == "label":
        with pytest.raises(ValueError, match=r"label=\[0\.5, 0\.9\] sums to 1\.4: .* over the classes even, odd"):
            probe.steer(model, [0.5, 0.9])


def test_the_remedy_runs_as_written(model, labelled):
    report, _, name = labelled
    with pytest.raises(ValueError, match=f"This report is of the {name} of labelled tokens") as refused:
        report.plot.positions()
    call = re.search(r"`with (.*):`", str(refused.value))[1]
    with eval(call, {"report": report, "model": model}):
        edited = model(TOKENS)
    changed = (edited - model(TOKENS)).abs().amax(dim=(0, 2)) > 1e-6
    assert changed.tolist() == [False] * 5 + [True]


def test_beliefs_of_ones_own_are_beliefs(model, mess3):
    """Numbers without a name that are distributions keep the word."""
    tokens = mess3.sample(60, 6, seed=0)
    report = msp.probe(model, msp.LabelledTokens.from_tokens(tokens, msp.filter_beliefs(mess3, tokens)), progress=False)
    assert report._title() == "Belief probes"
    assert report.plot.scores().axes[0].get_ylabel().startswith("R² of beliefs")
    plt.close("all")


def test_other_targets_of_the_words_of_a_process(model, mess3):
    """A process is known, and yet the target is no belief of it."""
    words = msp.words(mess3, n_ctx=4)
    count = (words.tokens == 0).cumsum(dim=1).double()
    data = msp.LabelledTokens.from_beliefs(words, targets={"count": count})
    both, alone = (msp.probe(model, each, progress=False) for each in (data, data.only("count")))
    assert both._title() == "Belief probes"
    for report in (both.parts["count"], alone):
        assert report._title() == "Probes of the target 'count'"
        assert not FOREIGN.search(" ".join(report.summary()).replace(repr(mess3), ""))
        # A number, which sums to itself.
        report["0_post"].steer(model, [2.0])
    assert drawn_texts(alone.plot())
