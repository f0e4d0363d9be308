"""Fixtures shared by all tests."""

import functools
import json
import os
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import msp_lens as msp
from msp_lens._files import locked

# Models here are small, and two jobs with thread pools on the same cores stall each other for minutes.
torch.set_num_threads(1)

settings.register_profile("default", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("default")

# Tables are as wide as they need to be, whatever terminal the tests run in. Readline tells child processes of 80
# columns, behind Python's back.
os.environ.pop("COLUMNS", None)
os.unsetenv("COLUMNS")

# The published Mess3 model of Shai et al. 2024, where it is at hand.
ORACLE = Path(os.environ.get("MSP_LENS_ORACLES", Path(__file__).parents[2] / "shared" / "oracles")) / "shai2024_mess3"


def pytest_collection_modifyitems(items):
    """Slow: what runs the published model on all of its 59,049 words, and files that train or start processes."""
    whole_files = (
        "test_demos",
        "test_page",
        "test_reproduce",
        "test_reproduction_page",
        "test_readme",
        "test_rrxor",
        "test_study",
        "test_workers",
        "test_reduce",
        "test_killed",
    )
    for item in items:
        if "published_model" in getattr(item, "fixturenames", ()) or item.path.stem in whole_files:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def mess3():
    return msp.mess3(x=0.05, a=0.85)


@pytest.fixture(scope="session")
def device():
    """Where tests of devices and precisions run: on an accelerator, if this machine has one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def published_model():
    """The published weights in the model class of the installed TransformerLens."""
    if not (ORACLE / "model.safetensors").is_file():
        pytest.skip(f"the published weights are not at {ORACLE}")
    from safetensors.torch import load_file

    model = msp.build_model(json.loads((ORACLE / "config.json").read_text())["model"])
    msp.models.load_weights(model, load_file(ORACLE / "model.safetensors"))
    return model


@pytest.fixture
def small_model():
    """An untrained model with a short context: 2 layers, 3 tokens, 5 positions."""
    return msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=2, d_model=16, d_head=8, d_mlp=32, n_ctx=5), seed=1)


@pytest.fixture
def global_state():
    """Asserts that the test left the process-wide random state alone."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), "the global random state was touched"


@pytest.fixture(scope="module")
def small_reports():
    """Reports with few words in each experiment, few checkpoints and small pictures: a fraction of the time."""
    from msp_lens.experiments import study
    from msp_lens.page import pictures

    few = {name: functools.partial(experiment, n_words=50) for name, experiment in study.EXPERIMENTS.items()}
    themed = pictures.themed
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(study, "EXPERIMENTS", few)
        patched.setattr(study, "CHECKPOINTS", 4)
        patched.setattr(pictures, "themed", lambda draw, dots_per_inch=0: themed(draw, 30))
        yield


@pytest.fixture(scope="session")
def in_use():
    """A context in which another thread holds a folder's lock, as another process would."""

    @contextmanager
    def held(folder):
        is_held, may_end = threading.Event(), threading.Event()

        def hold():
            with locked(folder):
                is_held.set()
                may_end.wait(60)

        other = threading.Thread(target=hold)
        other.start()
        try:
            assert is_held.wait(60)
            yield
        finally:
            may_end.set()
            other.join()

    return held
