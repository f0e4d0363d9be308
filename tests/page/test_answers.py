"""What a page says of what was found: its headline, its caveats, and names as text. Nothing is trained here."""

import dataclasses
import html
import re

import pytest
import torch

import msp_lens as msp
from msp_lens.page.caveats import caveats
from msp_lens.page.inference_section import inference_section, renewed
from msp_lens.page.render import answer, rate_text, render_page
from tests.interventions.test_findings import HARDLY_TRAINED, TRAINED, made

SCRIPT = '<script>alert("x")</script>'


def untrained(process, n_ctx=4, seed=0):
    """A network with random weights, as if it had just been trained, with its probes."""
    model = msp.build_model(
        msp.ModelConfig(d_vocab=process.n_tokens, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=n_ctx), seed=seed
    )
    dataset = msp.data.all_words(process, n_ctx)
    regret = msp.training.regret_by_position(model, dataset)
    optimum = msp.beliefs.optimal_losses(process, n_ctx)
    training = msp.TrainingRun(model, process, msp.TrainingConfig(steps=1), (), regret, optimum, 0, 1.0, 1)
    return training, msp.probe(model, dataset, progress=False)


@pytest.fixture(scope="module")
def random_network(mess3):
    return untrained(mess3)


def with_r2(report, r2):
    """The report with this held-out R² at every site."""

    def scored(probe):
        held_out = dataclasses.replace(probe.scores.held_out, r2=r2, mse=1 - r2)
        return dataclasses.replace(probe, scores=dataclasses.replace(probe.scores, held_out=held_out))

    return dataclasses.replace(report, probes=tuple(map(scored, report.probes)))


def at_best(report, kl, **options):
    return made(kl, site=report.best_site.label, **options)


def page_of(training, report, found=None, **options):
    config = {"model": {}, "training": {}, "preset": None, "weighting": "probability", "seed": 0, "started": None}
    config |= {"versions": {"msp_lens": "0"}} | options.pop("config", {})
    experiments = {"interventions": found} if found is not None else {}
    names = ("interventions", "persistence", "necessity", "bayes_consistency", "prediction_consistency")
    skipped = {name: "It was not asked for." for name in names if name not in experiments}
    return render_page(training, report, experiments, skipped, {}, config, model_file="model.safetensors", **options)


def headline(page):
    return " ".join(re.search(r'<p class="lead"><strong>(.*?)</strong>', page, re.DOTALL)[1].split())


@pytest.mark.parametrize(
    ("kl", "regret", "r2", "expected", "said"),
    [
        (TRAINED, 0.002, 1.0, "yes", "Yes. The belief can be read"),
        (TRAINED, 0.002, -1.0, "used only", "In part. The network acts on a belief written"),
        # A network for z1r after thirty steps beats the donor, and does not use the belief.
        (HARDLY_TRAINED, 0.23, 1.0, "read, use unknown", "Whether the network uses it remains unknown"),
        (HARDLY_TRAINED, 0.23, -1.0, "no", "These results do not show that it does"),
        (HARDLY_TRAINED, 0.001, 1.0, "read, used in part", "follow it less than half of the way"),
        (HARDLY_TRAINED, 0.001, -1.0, "used in part only", "These results do not show that it does"),
        (TRAINED | {"steer": 0.62}, 0.002, 1.0, "read only", "does not change the network’s predictions accordingly"),
        (TRAINED | {"steer": 0.62}, 0.002, -1.0, "no", "These results do not show that it does"),
        (None, None, 1.0, "read, use unknown", "Whether the network uses it remains unknown"),
        (None, None, -1.0, "no", "These results do not show that it does"),
    ],
)
def test_the_headline(random_network, kl, regret, r2, expected, said):
    training, report = random_network
    report = with_r2(report, r2)
    found = at_best(report, kl, regret=regret, above=2.4) if kl else None
    assert answer(training, report, found) == expected
    page = page_of(training, report, found)
    assert said in headline(page)
    assert ("acts on the belief written" in page) == (expected in ("yes", "used only"))
    if kl is HARDLY_TRAINED:
        assert "18.5 % of the way" in page


def with_skill(report, low, high):
    """The report with these skills at every site, each on half of the groups of rows."""

    def scored(probe):
        held_out, control = probe.scores.held_out, report.controls.best(probe.label).held_out
        half = len(control.mse_by_cell) // 2
        shares = [1 - high] * half + [1 - low] * (len(control.mse_by_cell) - half)
        cells = tuple(share * mse for share, mse in zip(shares, control.mse_by_cell, strict=True))
        mse = sum(cells) / sum(control.mse_by_cell) * control.mse
        held_out = dataclasses.replace(held_out, mse=mse, r2=1 - mse / held_out.variance, mse_by_cell=cells)
        return dataclasses.replace(probe, scores=dataclasses.replace(probe.scores, held_out=held_out))

    return dataclasses.replace(report, probes=tuple(map(scored, report.probes)))


@pytest.mark.parametrize(("low", "high", "is_certain"), [(0.2, 0.4, True), (-0.6, 0.9, False)])
def test_the_answer_says_what_it_leaves_open(random_network, low, high, is_certain):
    training, report = random_network
    report = with_skill(report, low, high)
    best = report.best_site.label
    ends = report.skill_interval(best)
    assert report.skill(best) > 0
    assert (ends[0] > 0) == is_certain
    page = " ".join(page_of(training, report).split())
    assert ("It is not certain that the probe reads the belief better than a control" in page) == (not is_certain)
    shown = " to ".join(f"{100 * end:.0f} %" for end in ends)
    assert f"of what the best control leaves unexplained (95 % interval {shown})" in page
    assert "only its own next prediction would give the same result" in page


def test_beliefs_that_predictions_do_not_determine_are_said_to_be_told_apart():
    training, report = untrained(msp.processes.z1r())
    page = " ".join(page_of(training, with_r2(report, 1.0)).split())
    assert "its probabilities show only 1 of the 2 dimensions of the beliefs" in page
    assert "only its own next prediction would give the same result" not in page


@pytest.mark.parametrize("away", [1.0, 12.4])
def test_an_edit_far_from_all_real_activations_is_a_caveat(random_network, away):
    training, report = random_network
    found = at_best(report, TRAINED, regret=0.002, away=away)
    said = [each for each in caveats(training, report, found, None, {}) if "nearest real one" in each]
    assert len(said) == (away > 3)
    assert all("12.4 times as far" in each for each in said)


def test_a_network_that_has_learned_nothing_is_said_to(random_network):
    training, report = random_network
    page = page_of(dataclasses.replace(training, regret=torch.full((4,), 0.9, dtype=torch.float64)), report)
    assert "The network predicts worse than one that knows only how often each token comes" in page
    learned = dataclasses.replace(training, regret=torch.full((4,), 1e-3, dtype=torch.float64))
    assert not any("learned" in caveat for caveat in caveats(learned, report, None, None, {}))
    half = dataclasses.replace(training, regret=torch.full((4,), 0.1, dtype=torch.float64))
    assert any("has not learned to predict well" in caveat for caveat in caveats(half, report, None, None, {}))


def test_a_last_position_that_was_never_trained_is_named(random_network):
    training, report = random_network
    regret = torch.tensor([1e-3, 2e-3, 1e-3, 1.4], dtype=torch.float64)
    page = page_of(dataclasses.replace(training, regret=regret), report)
    assert "The last position, 3, was probably never trained: regret there is 1.4" in page
    assert "msp.words(process, n_ctx=3)" in page


def test_an_edit_that_is_worse_than_its_placebo_is_named(random_network):
    training, report = random_network
    found = at_best(report, TRAINED | {"steer": 0.6}, regret=0.002, marked=["steer"])
    page = page_of(training, report, found)
    assert f"Worse than the placebo by more than two standard errors: steer at {report.best_site.label}." in page
    assert "0.6000*" in page


def test_scores_below_nothing_are_explained(random_network):
    training, report = random_network
    page = page_of(training, with_r2(report, -7.0))
    assert "R² 0 or less at" in page
    assert "Held-out R² is below 0 at" in page
    assert "worse than the mean belief would" in page


def test_a_process_with_one_belief_gets_a_sentence_and_no_number():
    training, report = untrained(msp.processes.coin())
    page = page_of(training, report)
    assert headline(page) == "There is nothing to represent: coin has a single reachable belief."
    assert "No score below means anything" in page
    numbers = re.search(r'<div class="numbers">.*?</div>', page, re.DOTALL)[0]
    assert "there is only one" in numbers
    assert "nan" not in numbers
    assert len(caveats(training, report, None, None, {})) >= 1
    assert not any("Skill" in caveat or "R²" in caveat for caveat in caveats(training, report, None, None, {}))


def test_symbols_and_states_of_which_nothing_is_learned_are_named():
    never = torch.cat([msp.processes.golden_mean().transitions, torch.zeros(1, 2, 2, dtype=torch.float64)])
    training, report = untrained(msp.Process(never, name="golden", tokens=("A", "B", "C")))
    said = caveats(training, report, None, None, {})
    assert "Token C never occurs in these words, so no belief after it was read or written." in said
    assert not any("the same in every belief" in caveat for caveat in said)
    # A state that is left at once: no belief after a token gives it any probability.
    moore = msp.processes.from_moore([[0.9, 0.1], [0.2, 0.8]], [[0.9, 0.1], [0.3, 0.7]], startprob=[1.0, 0.0])
    training, report = untrained(moore)
    said = caveats(training, report, None, None, {})
    assert any(caveat.startswith("The probability of START is the same in every belief") for caveat in said)
    assert not any("never occur" in caveat for caveat in said)


def test_names_are_text_everywhere_on_the_page():
    golden = msp.processes.golden_mean()
    process = msp.Process(
        golden.transitions,
        name=SCRIPT,
        tokens=(f"0{SCRIPT}", "<img src=x onerror=alert(1)>"),
        states=(f"a{SCRIPT}", "<b>&amp;"),
    )
    training, report = untrained(process)
    probes = [probe for probe in report.probes if len(probe.sites) == 1]
    own = {f"{SCRIPT}": msp.interventions.EDITS["steer"]}
    options = {"probes": probes, "n_words": 10}
    experiments = {
        "interventions": msp.intervene(
            training.model, process, edits={"steer": msp.interventions.EDITS["steer"], **own}, **options
        ),
        "persistence": msp.persistence(training.model, process, target={SCRIPT: [1.0, 0]}, **options),
        "necessity": msp.necessity(training.model, process, n_random=1, **options),
        "bayes_consistency": msp.interventions.bayes_consistency(training.model, process, **options),
    }
    config = {
        "model": {"act_fn": SCRIPT},
        "training": {"note": SCRIPT},
        "preset": SCRIPT,
        "weighting": SCRIPT,
        "seed": 0,
        "started": SCRIPT,
        "versions": {"msp_lens": SCRIPT, SCRIPT: SCRIPT},
    }
    skipped = {"prediction_consistency": SCRIPT}
    page = render_page(training, report, experiments, skipped, {}, config, model_file=f"{SCRIPT}.safetensors")
    assert page.count("<script>") == page.count("</script>") == 1, "the page's own"
    assert "<img src=x" not in page
    assert "<b>&amp;" not in page
    assert page.count("&lt;script&gt;alert(") > 10


def test_the_parts_of_a_mixture_have_a_section_of_their_own(random_network):
    named = msp.Process(msp.processes.golden_mean().transitions, name=SCRIPT, tokens=("0", "1"), states=("A", SCRIPT))
    training, report = untrained(msp.processes.mixture([named, msp.processes.z1r()], [0.5, 0.5]))
    page = page_of(training, report)
    assert "The parts of the belief" in page
    assert all(f"<td>{html.escape(name)}</td>" in page for name in ("component", SCRIPT, "z1r"))
    assert f"{report.parts['z1r']['0_post'].scores.held_out.r2:.5f}" in page
    excess = float(report.regret_to_oracle.mean())
    assert excess > float(report.regret.mean())
    assert f"the network’s loss exceeds the oracle’s by\n{excess:.4f} nats" in page
    assert page.count("<script>") == 1
    training, report = random_network
    page = page_of(training, report)
    assert "The parts of the belief" not in page
    assert "oracle" not in page
    assert "Does a site follow the belief or a rival?" in page
    row = report.rivals().xs("constrained belief", level="rival").loc["0_post"]
    assert f"<td>{row['R² of the rival']:.4f}</td>" in page


def test_bounds_of_an_entropy_rate_are_quoted_where_they_differ():
    measure = msp.beliefs.Measure(0.9354, 0.9226, 0.9455, "made up")
    assert rate_text(measure) == "between 0.9226 and 0.9455"
    assert rate_text(dataclasses.replace(measure, value=0.5, lower=0.50001, upper=0.50002)) == "0.5000"


def test_several_seeds_have_a_table_of_their_own(random_network):
    training, report = random_network
    page = page_of(training, report, over_seeds=made(TRAINED, regret=0.002))
    assert "How much depends on the seed" in page
    assert "All but the scores over seeds is of one network (seed 0)." in page
    assert "How much depends on the seed" not in page_of(training, report)
    assert "Skill in particular can change severalfold" in page_of(training, report)


def test_a_world_that_was_inferred_stands_beside_the_known_one():
    """With its doubts, if there are any; and the section without it says how to get it."""
    process = msp.processes.golden_mean(p=0.5)
    found = msp.infer(process, n_ctx=5, n_states=[1, 2, 3], n_starts=2, progress=False)
    assert found.is_trusted
    text = " ".join(inference_section(found, process, None).split())
    assert "The network predicts as an observer of a machine with 2 states would" in text
    assert "No process can be named" not in text
    assert found._repr_html_() in inference_section(found, process)
    assert found.compare(process)._repr_html_() in inference_section(found, process)
    other = dataclasses.replace(found, process=msp.processes.bloch_walk())
    assert "of a generalized process of 3 dimensions would" in " ".join(inference_section(other).split())
    # In doubt nothing is claimed.
    doubted = dataclasses.replace(found, stationarity_gap=1.0, memory=1e-9)
    assert len(doubted.doubts) == 2
    text = inference_section(doubted, process)
    assert "The network predicts as an observer" not in text
    assert "No process can be named with confidence" in text
    assert re.findall("<li>(.*?)</li>", text) == [html.escape(each, quote=False) for each in doubted.doubts]
    # Another alphabet can't be compared, and an unknown process is not.
    assert "Not compared: " in inference_section(found, msp.mess3())
    assert "Compared with" not in inference_section(found)
    missing = inference_section(None)
    assert "msp-lens infer" in missing
    assert renewed(f"a {missing} b", "c") == "a c b"
    assert renewed("a b", "c") is None


def test_names_in_the_section_are_text():
    process = msp.Process.from_dict(msp.processes.golden_mean(p=0.5).to_dict() | {"name": SCRIPT})
    found = msp.infer(process, n_ctx=4, n_states=[1, 2], n_starts=2, progress=False)
    assert "<script" not in inference_section(found, process)
    assert html.escape(SCRIPT) in inference_section(found, process)
