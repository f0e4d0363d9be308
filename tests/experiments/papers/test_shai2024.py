"""Shai et al. 2024: on small networks every number is what it says; on the paper's own, what is published."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression

import msp_lens as msp
from msp_lens.experiments import reproduce
from msp_lens.experiments.papers.shai2024 import MESS3_ERRORS, SHAI2024, fractal, over_training
from msp_lens.experiments.reproduction import Trained
from msp_lens.training import regret_by_position
from tests.conftest import ORACLE


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The whole reproduction, of networks that are small and hardly trained."""

    def networks(small):
        size = {"n_layers": 4, "d_model": 16, "n_heads": 1, "d_head": 4, "d_mlp": 16, "n_ctx": 5}
        return {
            name: dataclasses.replace(
                network,
                model=dataclasses.replace(network.model, **size),
                training=dataclasses.replace(network.training, steps=20, batch_size=32, n_checkpoints=3),
            )
            for name, network in SHAI2024.networks(small).items()
        }

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(msp.experiments.papers.PAPERS, "shai2024", dataclasses.replace(SHAI2024, networks=networks))
        return reproduce("shai2024", small=True, out=tmp_path_factory.mktemp("out"), n_jobs=1, progress=False)


def claim(found, says):
    return next(claim for claim in found.claims if claim.says == says)


def test_the_paper_is_measured_by_its_own_conventions(found):
    """Every row of every word alike, least squares with an intercept, in-sample, averaged over coordinates."""
    trained = found.networks["mess3"]
    tokens = torch.cartesian_prod(*[torch.arange(3)] * 5)
    _, cache = trained.model.run_with_cache(tokens)
    features = cache["blocks.3.hook_resid_post"].detach().double().flatten(0, 1).numpy()
    beliefs = msp.filter_beliefs(trained.process, tokens).flatten(0, 1).numpy()
    read = LinearRegression().fit(features, beliefs).predict(features)
    measured = claim(found, "Squared error of the beliefs read at layer 4").measured
    assert measured == pytest.approx(np.mean((read - beliefs) ** 2), rel=1e-4)
    shuffled = claim(found, "Squared error with shuffled beliefs: their variance").measured
    assert shuffled == pytest.approx(np.mean(beliefs.var(axis=0)), rel=0.05), "17 features on 1,215 rows explain little"


def test_a_network_that_was_hardly_trained_reproduces_little(found):
    failed = {claim.says for claim in found.claims if claim.verdict == "not reproduced"}
    assert "Squared error of the beliefs read at layer 4" in failed
    assert "The network predicts almost optimally: its loss over the least possible one" in failed
    assert "Squared error at layer 4 on rows that were not fitted" in failed


def test_every_section_has_a_picture_or_only_numbers(found):
    assert [section.picture is not None for section in found.sections] == [True, False, True, True, True]
    assert all(section.claims for section in found.sections)
    assert {claim.verdict for claim in found.claims} <= {"reproduced", "not reproduced"}


def test_without_a_training_how_beliefs_form_is_beyond_the_run(found):
    loaded = dataclasses.replace(found.networks["mess3"], training=None)
    section = over_training({"mess3": loaded}, True)
    assert [claim.verdict for claim in section.claims] == ["beyond what was run"] * 2


@pytest.mark.slow
def test_the_published_network_has_the_published_numbers(published_model, tmp_path):
    shutil.copytree(ORACLE, tmp_path / "shai2024_mess3")
    model = msp.load_model(tmp_path / "shai2024_mess3")
    process = msp.mess3(x=0.05, a=0.85)
    regret = regret_by_position(model, msp.words(process, n_ctx=10))
    section = fractal(
        {"mess3": Trained(name="mess3", model=model, process=process, regret=regret, origin="given")}, True
    )
    ratio, *errors = section.claims
    assert ratio.measured == "1.0001"
    assert [claim.measured for claim in errors] == pytest.approx(MESS3_ERRORS, rel=5e-3)
    assert {claim.verdict for claim in section.claims} == {"reproduced"}
