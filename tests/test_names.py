"""Names that are not there: the message ends with the one that was meant."""

import pytest

import msp_lens as msp
from msp_lens._names import from_menu, meant, nearest, spelled
from msp_lens.experiments import reproduce, sweep
from msp_lens.interventions import EDITS, TARGETS
from msp_lens.processes.registry import build_process
from msp_lens.training import PRESETS


@pytest.mark.parametrize(
    ("name", "choices", "expected"),
    [
        ("mess4", ["z1r", "mess3"], "mess3"),
        ("Z1R", ["mess3", "z1r"], "z1r"),
        ("golden-mean", ["golden_mean", "mess3"], "golden_mean"),
        ("keep_only", ["keep only", "erase"], "keep only"),
        # The beginning of a long name, though most of it is missing; of several the first.
        ("re", ["ols", "reduced_rank", "reduced_rank_too"], "reduced_rank"),
        ("lasso", ["auto", "ols", "ridge"], None),
        ("x", ["a", "b"], None),
        ("", ["a", "b"], None),
        (3, ["a", 31, 4], None),
    ],
)
def test_the_nearest_name_is_found(name, choices, expected):
    assert nearest(name, choices) == expected


def test_what_is_meant_is_asked():
    assert meant("mess4", ["z1r", "mess3"]) == " Did you mean mess3?"
    assert meant("keep-only", ["keep only"]) == " Did you mean 'keep only'?"
    assert meant("zap", ["keep only"]) == meant("mess3", []) == ""


def test_what_is_meant_stands_at_the_end_of_every_message(mess3):
    model = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=3), seed=0)
    report = msp.probe(model, mess3, controls=False, progress=False)
    written = {"probes": report, "n_words": 5, "progress": False}
    found = msp.intervene(model, mess3, edits="steer", **written)
    asked = {
        "mess3": lambda: build_process("mes3"),
        "golden_mean": lambda: build_process("golden-mean"),
        "p": lambda: build_process("z1r", {"P": 1}),
        "quick": lambda: msp.train(mess3, preset="quik"),
        "shai2024": lambda: reproduce("shai2023"),
        "n_layers": lambda: sweep(mess3, {"n_layer": 2}, out="nowhere"),
        "pseudo-inverse": lambda: msp.intervene(model, mess3, edits="pseudoinverse", **written),
        "'another word'": lambda: msp.intervene(model, mess3, targets="another-word", **written),
        "ridge": lambda: msp.probe(model, mess3, solver="rigde"),
        "prefix": lambda: msp.probe(model, mess3, split="pre"),
        "probability": lambda: msp.probe(model, mess3, weighting="probabilities"),
        "ln_final": lambda: report["ln_fnal"],
        "kl_to_target": lambda: found.select(kl_to_targt=0.0),
        "progress": lambda: msp.probe(model, mess3, progres=False),
    }
    for name, call in asked.items():
        with pytest.raises((KeyError, ValueError, TypeError)) as caught:
            call()
        assert str(caught.value.args[0]).endswith(f" Did you mean {name}?"), caught.value


def test_names_of_two_words_can_be_written_as_one():
    for menu in (EDITS, TARGETS, PRESETS):
        assert [from_menu(spelled(name), menu) for name in menu] == list(menu)
        assert all(" " not in spelled(name) for name in menu)
    assert from_menu("zap", EDITS) == "zap"
