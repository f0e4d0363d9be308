"""The experiments on constrained beliefs, with tiny networks that are hardly trained: they must not reproduce much."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression

import msp_lens as msp
from msp_lens.beliefs import constrained_beliefs
from msp_lens.data import all_words
from msp_lens.experiments.papers.constrained2025 import (
    CONSTRAINED2025,
    RATES,
    decay,
    networks,
    outputs,
    principal_components,
    two_heads,
    two_kinds_of_belief,
)
from msp_lens.experiments.reproduction import Trained
from msp_lens.representation import attention_by_lag

N_CTX = 5


@pytest.fixture(scope="module")
def tiny():
    """Every network of the small size, shorter, narrower and trained for a moment."""
    found = {}
    for name, network in networks(True).items():
        model = dataclasses.replace(network.model, d_model=16, d_head=4, d_mlp=16, n_ctx=N_CTX)
        training = dataclasses.replace(network.training, steps=3, batch_size=32, warmup_steps=1)
        run = msp.train(network.process, model, config=training, progress=False)
        found[name] = Trained(name=name, model=run.model, process=run.process, regret=run.regret, origin="a test")
    return found


def test_the_networks_are_what_the_paper_asks_for():
    assert {name: (network.model.n_layers, network.model.n_heads) for name, network in networks(True).items()} == {
        "slow": (1, 1),
        "middle": (1, 1),
        "fast": (1, 1),
        "negative_one_head": (1, 1),
        "negative_two_heads": (1, 2),
        "positive_one_head": (1, 1),
        "positive_two_heads": (1, 2),
    }
    rates = [float(msp.beliefs.decay_rates(network.process)[0].real) for network in networks(True).values()]
    assert rates == pytest.approx([0.85, 0.55, 0.25, -0.5, -0.5, 0.5, 0.5])
    small, full = networks(True)["middle"], networks(False)["middle"]
    assert full.training.steps > small.training.steps
    assert full.model == small.model


def test_decay_is_that_of_the_heads_and_needs_training(tiny):
    section = decay(tiny, True)
    for claim, name in zip(section.claims, RATES, strict=False):
        found = attention_by_lag(tiny[name].model, tiny[name].process)
        assert claim.measured == found.trained.head("L0H0").decay
        assert claim.control == found.untrained[0].head("L0H0").decay
        assert claim.published == pytest.approx(1 - 3 * RATES[name])
    # An untrained network's attention falls as a slow rate asks for, and no slower or faster for another.
    assert {claim.verdict for claim in section.claims[1:]} == {"not reproduced"}
    slope = np.polyfit([0.85, 0.55, 0.25], [claim.measured for claim in section.claims[:3]], 1)[0]
    assert section.claims[3].measured == pytest.approx(slope)
    assert len(section.plot().axes) >= 3


def test_outputs_are_compared_in_direction_and_size(tiny):
    section = outputs(tiny, True)
    found = attention_by_lag(tiny["fast"].model, tiny["fast"].process)
    head = found.trained.head("L0H0")
    assert [claim.measured for claim in section.claims[-2:]] == [head.alignment, float(head.effective[1])]
    sizes = section.claims[1::2]
    assert "not reproduced" in {claim.verdict for claim in sizes}
    assert len(section.tables) == len(RATES)


def test_principal_components_are_those_of_the_activations(tiny):
    section = principal_components(tiny, True)
    dataset = all_words(tiny["middle"].process, N_CTX)
    weights = np.repeat(dataset.word_weights.numpy(), N_CTX)
    for claim, hook in zip(section.claims, ("hook_resid_mid", "hook_resid_post"), strict=True):
        with torch.no_grad():
            _, cache = tiny["middle"].model.run_with_cache(dataset.tokens)
        rows = cache[f"blocks.0.{hook}"].flatten(0, 1).double().numpy()
        variances = np.linalg.eigvalsh(np.cov(rows.T, aweights=weights))[::-1]
        shares = (variances.cumsum() / variances.sum())[:3]
        assert claim.measured == " ".join(f"{share:.3f}" for share in shares)
        assert claim.verdict == "not reproduced"
        own = cache[f"blocks.0.{hook}"].double().numpy()
        own = (own - np.einsum("w,wpf->pf", dataset.word_weights.numpy(), own)).reshape(len(rows), -1)
        variances = np.linalg.eigvalsh((own.T * weights) @ own)[::-1]
        shares = (variances.cumsum() / variances.sum())[:3]
        assert " ".join(f"{share:.3f}" for share in shares) in section.remark
    assert section.plot(theme="dark").axes


def test_kinds_of_belief_are_compared_by_error(tiny):
    section = two_kinds_of_belief(tiny, True)
    after = attention_by_lag(tiny["middle"].model, tiny["middle"].process).trained.site("0_mid")
    assert section.claims[0].measured == (1 - after.constrained) / (1 - after.belief)
    assert section.claims[0].verdict == section.claims[1].verdict == "not reproduced"
    assert section.plot().axes
    # What needs no network holds all the same.
    assert [claim.measured for claim in section.claims[3:]] == pytest.approx([0.798, 0.979, 0.149], abs=1e-3)
    process = msp.rrxor()
    dataset = all_words(process, 10)
    additive = constrained_beliefs(process, dataset.tokens).flatten(0, 1).numpy()
    true, weights = dataset.beliefs.flatten(0, 1).numpy(), np.repeat(dataset.word_weights.numpy(), 10)
    fitted = LinearRegression().fit(additive, true, weights).predict(additive)
    spread = (weights[:, None] * (true - np.average(true, axis=0, weights=weights)) ** 2).sum()
    expected = 1 - (weights[:, None] * (true - fitted) ** 2).sum() / spread
    assert section.claims[-1].measured == pytest.approx(expected, abs=1e-9)


def test_a_second_head_must_help_where_the_rate_is_negative_alone(tiny):
    section = two_heads(tiny, True)
    needed, helps, alternates = section.claims
    assert (needed.measured, needed.control, needed.verdict) == (2.0, 1.0, "reproduced")
    ratio = tiny["negative_one_head"].regret.mean() / tiny["negative_two_heads"].regret.mean()
    assert helps.measured == pytest.approx(float(ratio))
    assert helps.verdict == alternates.verdict == "not reproduced"
    better = tiny | {
        "negative_two_heads": dataclasses.replace(tiny["negative_two_heads"], regret=torch.full((5,), 1e-6).double())
    }
    assert two_heads(better, True).claims[1].verdict == "reproduced"
    equally = better | {
        "positive_two_heads": dataclasses.replace(tiny["positive_two_heads"], regret=torch.full((5,), 1e-6).double())
    }
    assert two_heads(equally, True).claims[1].verdict == "not reproduced", "if it helps everywhere, ζ is not why"


def test_the_paper_says_what_differs():
    assert "3,000" in CONSTRAINED2025.differences(True)[0]
    assert "30,000" in CONSTRAINED2025.differences(False)[0]
    assert CONSTRAINED2025.url == "https://arxiv.org/abs/2502.01954"
