"""Fixtures shared by all tests."""

import functools
import io
import json
import os
import threading
from contextlib import contextmanager
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

import msp_lens as msp
from msp_lens._files import locked
from tests import calls

# Models here are small, and two jobs with thread pools on the same cores stall each other for minutes.
torch.set_num_threads(1)

settings.register_profile("default", deadline=None, max_examples=20, derandomize=True)
settings.load_profile("default")

# Tables are as wide as they need to be, whatever terminal the tests run in. Readline tells child processes of 80
# columns, behind Python's back.
os.environ.pop("COLUMNS", None)
os.unsetenv("COLUMNS")

# The published Mess3 model of Shai et al. 2024, where it is at hand.
ORACLE = Path(os.environ.get("MSP_LENS_ORACLES", Path(__file__).parents[2] / "shared" / "oracles")) / "shai2024_mess3"


ROOT = Path(__file__).parents[1]
# Where annotated calls are not checked, which takes twice the time: whole experiments, and what is generated, killed or
# shown. What they call is checked in its own room.
UNCHECKED = (
    "tests/test_completion.py",
    "msp_lens/beliefs/description.py",
    "msp_lens/experiments/",
    "msp_lens/formation/",
    "msp_lens/inference/",
    "tests/docs/",
    "tests/experiments/",
    "tests/figures/test_any_input.py",
    "tests/formation/",
    "tests/inference/",
    "tests/interventions/test_beginnings.py",
    "tests/interventions/test_experiments.py",
    "tests/interventions/test_given_words.py",
    "tests/interventions/test_intervene.py",
    "tests/interventions/test_requests.py",
    "tests/interventions/test_rrxor.py",
    "tests/interventions/test_token_maps.py",
    "tests/models/test_limits.py",
    "tests/models/test_precisions.py",
    "tests/models/test_prefixes.py",
    "tests/models/test_sharded.py",
    "tests/models/test_threads.py",
    "tests/models/test_untrusted_files.py",
    "tests/models/test_wrappers.py",
    "tests/page/",
    "tests/probing/test_fit.py",
    "tests/probing/test_transfer.py",
    "tests/representation/test_attention_by_lag.py",
    "tests/test_bad_input.py",
    "tests/test_cli.py",
    "tests/test_damaged_files.py",
    "tests/test_demos.py",
    "tests/test_distribution.py",
    "tests/test_readme.py",
    "tests/test_refusals.py",
    "tests/training/test_resume.py",
    "tests/training/test_workers.py",
)
# The files that take longest are the first, so that no core waits for another at the end.
FIRST = (
    "tests/test_pyright.py",
    "tests/test_distribution.py",
    "tests/test_demos.py",
    "tests/docs/",
    "tests/experiments/test_study.py",
    "tests/test_cli.py",
    "tests/inference/",
    "tests/experiments/",
    "tests/probing/test_fit.py",
    "tests/figures/test_any_input.py",
    "tests/test_damaged_files.py",
)


def place_in(files, item):
    """The number of the entry that an item's file belongs to, or how many there are if it belongs to none."""
    path = item.path.relative_to(ROOT).as_posix()
    return next((place for place, start in enumerate(files) if path.startswith(start)), len(files))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Check annotated calls in this test, if they are checked at all (`--jaxtyping-packages`), or do not."""
    jaxtyping.config.update("jaxtyping_disable", place_in(UNCHECKED, item) < len(UNCHECKED))
    calls.clear()
    return (yield)


def pytest_collection_modifyitems(items):
    """Slow: what runs the published model on all of its 59,049 words, and files that train or start processes."""
    items.sort(key=functools.partial(place_in, FIRST))
    whole_files = (
        "test_demos",
        "test_page",
        "test_pyright",
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


def blank_picture():
    """In both themes, and as files."""
    from msp_lens.page import pictures

    white, black = (Image.new("RGB", (60, 40), color) for color in ("white", "black"))
    white.save(drawn := io.BytesIO(), format="PNG")
    return pictures.ThemedPicture(white, black, files={"png": drawn.getvalue(), "svg": b"<?xml", "pdf": b"%PDF-"})


def laid_out(draw, *_, **__):
    """A blank picture in place of this one, of which everything is placed but no pixel drawn."""
    draw("light").draw_without_rendering()
    return blank_picture()


def blank_movie(_, __, captions, *, title, **___):
    """A movie in both themes of as many frames of a few pixels: a square that moves."""
    from msp_lens.figures.movie import Movie

    frames = np.zeros((len(captions), 40, 60, 3), dtype=np.uint8)
    for index, frame in enumerate(frames):
        frame[10:30, 5 * index :][:, :10] = 255
    return Movie(255 - frames, tuple(captions), title, dark_frames=frames)


@pytest.fixture(scope="module")
def small_reports():
    """Reports with few words in each experiment, few checkpoints and blank pictures: a fraction of the time.

    Tests that want to see that pictures can be laid out put `laid_out` in the place of `pictures.themed`.
    """
    from msp_lens.experiments import study
    from msp_lens.figures import movie
    from msp_lens.page import pictures

    few = {name: functools.partial(experiment, n_words=50) for name, experiment in study.EXPERIMENTS.items()}
    blank = blank_picture()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(study, "EXPERIMENTS", few)
        patched.setattr(study, "CHECKPOINTS", 4)
        patched.setattr(pictures, "themed", lambda *_, **__: blank)
        patched.setattr(
            pictures, "attractor", lambda process, _, **options: msp.beliefs.attractor(process, 100, **options)
        )
        patched.setattr(movie, "beliefs_movie", blank_movie)
        for dots in ("VECTOR_DOTS", "PRINT_DOTS"):
            patched.setattr(pictures, dots, 30)
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
