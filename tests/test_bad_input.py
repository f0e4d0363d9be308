"""Bad input, generated from the signatures of everything public: each is refused by name, before any work is done."""

import collections.abc
import inspect
import math
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

import msp_lens as msp
from msp_lens._checks import _resolved, converted

ROOMS = (
    "processes",
    "beliefs",
    "data",
    "models",
    "training",
    "probing",
    "interventions",
    "representation",
    "inference",
    "formation",
    "experiments",
    "moments",
)

# What is public but takes no input of a user: steps of inner loops, what takes anything by design (loggers pass options
# on), and a divergence that takes minus infinity.
NOT_INPUT = {
    "bayes_children",
    "bayes_step",
    "kl_divergence",
    "label_rows",
    "wandb_logger",
}
CONSTRUCTORS = (
    "processes.Process",
    "processes.Factored",
    "processes.Mixture",
    "processes.WithBos",
    "data.BeliefDataset",
    "data.TokenMap",
    "models.ModelConfig",
    "models.RecurrentConfig",
    "moments.OLS",
    "moments.Ridge",
    "moments.ReducedRank",
    "moments.RandomProjection",
    "training.TrainingConfig",
    "probing.Split",
)
METHODS = (
    "processes.Process.sample",
    "processes.Process.word_probabilities",
    "processes.Process.word_log_probabilities",
    "processes.Process.from_dict",
    "processes.Process.from_json",
    "processes.Factored.filter_factors",
    "processes.Factored.factor_beliefs",
    "processes.Factored.factor_predictions",
    "processes.Factored.join_tokens",
    "processes.Factored.redraw",
    "processes.Factored.split_tokens",
    "processes.Factored.token_marginals",
    "data.BeliefDataset.prefix_weights",
    "data.BeliefDataset.prior_weight",
    "data.LabelledTokens.from_tokens",
    "data.LabelledTokens.from_beliefs",
    "data.LabelledTokens.from_text",
    "data.LabelledTokens.from_table",
    "data.TokenMap.encode",
    "data.TokenMap.identity",
    "probing.BeliefProbe.predict",
    "probing.BeliefProbe.decode",
    "probing.BeliefProbe.steer",
    "probing.BeliefProbe.patch",
    "probing.BeliefProbe.save",
    "probing.BeliefProbe.load",
    "probing.ProbeReport.save",
    "probing.ProbeReport.load",
    "probing.ProbeReport.distances",
    "probing.ProbeReport.geometry",
    "interventions.SteeringVector.hook",
    "interventions.SteeringVector.steer",
    "interventions.SteeringVector.to_neuronpedia",
    "interventions.SteeringVector.save",
    "interventions.SteeringVector.load",
    "formation.Emergence.load",
    "experiments.SweepResult.load",
    "training.TrainingConfig.from_dict",
)

BAD = {
    "text": "no such thing",
    "empty text": "",
    "a fraction": 2.5,
    "None": None,
    "NaN": math.nan,
    "a huge integer": 10**30,
    "a negative number": -7,
    "True": True,
    "an integer": 3,
    "an object": object(),
    "a complex number": 1j,
    "a list of an object": [object()],
    "a mapping": {"no such key": object()},
    "a set": {object()},
    "a ragged list": [[0, 1], [0]],
    "NaN in a list": [[math.nan, 1.0]],
    "complex tensor": torch.ones(2, 2, dtype=torch.complex64),
    "text in a list": [["no such thing"]],
    "fractions in a list": [[0.5, 0.5]],
    "a network without hooks": torch.nn.Linear(2, 2),
}
EVERYTHING = frozenset(BAD)
CONTAINERS = {
    "a list of an object",
    "a mapping",
    "a set",
    "a ragged list",
    "NaN in a list",
    "complex tensor",
    "text in a list",
}
CONTAINERS |= {"fractions in a list"}
NO_NUMBER = {"text", "empty text", "None", "an object", "a complex number", "a network without hooks"} | CONTAINERS


def refuses(annotation: Any, number: float) -> bool:
    """Whether a range in the annotation leaves the number out."""
    try:
        converted(number, annotation, "number")
    except ValueError:
        return True
    return False


def bad_for(annotation: Any, name: str) -> frozenset[str]:
    """Which of the bad values are bad for an annotation; nothing is claimed where anything might be meant."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return bad_for(arguments[0], name) | (
            {"a negative number"} if refuses(annotation, BAD["a negative number"]) else set()
        )
    if origin in (Union, types.UnionType):
        return frozenset.intersection(*(bad_for(each, name) for each in arguments))
    if annotation in (None, type(None)):
        return EVERYTHING - {"None"}
    if annotation is int:
        return frozenset(NO_NUMBER | {"a fraction", "NaN", "a huge integer", "True"})
    if annotation is float:
        return frozenset(NO_NUMBER | {"NaN", "True"})
    if annotation is bool:
        return EVERYTHING - {"True"}
    if origin is Literal:
        return EVERYTHING - ({"True"} if any(choice is True for choice in arguments) else set())
    if annotation is str:
        return EVERYTHING - {"text", "empty text"} if name != "device" else EVERYTHING
    if annotation is torch.device:
        return EVERYTHING
    if annotation is Path:
        return EVERYTHING - {"text"}
    if hasattr(annotation, "dim_str") or annotation is Tensor:
        bad = {"text", "empty text", "None", "an object", "a mapping", "a set", "a ragged list", "text in a list"}
        bad |= {"a list of an object", "a network without hooks"}
        if annotation is Tensor:
            return frozenset(bad)
        bad |= {"complex tensor", "NaN in a list"}
        return frozenset(bad | ({"fractions in a list"} if annotation.dtypes[0].startswith("int") else set()))
    origin = origin or annotation
    if origin in (collections.abc.Sequence, list, tuple):
        inside = bad_for(arguments[0], name) if arguments else frozenset()
        bad = EVERYTHING - CONTAINERS | {"a mapping", "a set"}
        return bad | ({"a list of an object"} if "an object" in inside else frozenset())
    if origin in (collections.abc.Mapping, dict):
        return EVERYTHING - {"a mapping"} | ({"a mapping"} if arguments and arguments[1] is not Any else frozenset())
    if origin is collections.abc.Callable:
        return EVERYTHING - {"a network without hooks"}
    if annotation is msp.models.HookedModel:
        return EVERYTHING
    if isinstance(annotation, type) and annotation.__module__.startswith(("msp_lens", "torch")):
        return EVERYTHING if not getattr(annotation, "_is_protocol", False) else frozenset()
    return frozenset()


@cache
def good(name: str) -> Any:
    """A value that every function with such a parameter accepts."""
    return GOOD[name]()


def network() -> Any:
    """A small untrained network."""
    return msp.build_model(msp.ModelConfig(d_vocab=2, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=4), seed=1)


def moments() -> msp.moments.Moments:
    """Moments of three features and two targets."""
    found = msp.moments.Moments({"features": 3, "targets": 2})
    generator = torch.Generator().manual_seed(0)
    found.update(torch.randn(9, 5, generator=generator), torch.ones(9))
    return found


def distributions() -> Tensor:
    """Two distributions over two outcomes."""
    return torch.full((2, 2), 0.5, dtype=torch.float64)


SITE = "blocks.0.hook_resid_post"
GOOD: dict[str, Callable[[], Any]] = {
    "process": msp.processes.z1r,
    "world": lambda: msp.processes.product([msp.processes.z1r()]),
    "two factors": lambda: msp.processes.product([msp.processes.coin(p=0.5), msp.processes.z1r()]),
    "network of two factors": lambda: msp.build_model(
        msp.ModelConfig(d_vocab=4, n_layers=1, d_model=8, n_ctx=4), seed=1
    ),
    "report of two factors": lambda: msp.probe(
        good("network of two factors"), good("two factors"), controls=False, progress=False
    ),
    "factors": lambda: [good("process"), good("process")],
    "factor": lambda: 0,
    "mixture": lambda: msp.processes.mixture([good("process")], [1.0]),
    "n": lambda: 2,
    "model": network,
    "report": lambda: msp.probe(good("model"), good("process"), controls=False, progress=False),
    "data": lambda: good("dataset"),
    "dataset": lambda: msp.words(good("process"), n_ctx=4),
    "probe": lambda: good("report")[SITE],
    "probes": lambda: [good("probe")],
    "edit": lambda: msp.interventions.steer(good("probe")),
    "steering vector": lambda: msp.interventions.steering_vector(good("probe"), good("belief")),
    "beginning": lambda: torch.tensor([[0, 1]]),
    "edits": lambda: good("edit"),
    "changes": dict,
    "cache": lambda: {SITE: torch.zeros(1, 2, 8)},
    "rows": lambda: msp.probing.model_rows(good("model"), good("dataset")),
    "moments": moments,
    "cells": lambda: msp.moments.folds.Cells(tuple(moments() for _ in range(3)), 3),
    "linear_map": lambda: msp.moments.least_squares(moments(), "features", "targets"),
    "batches": list,
    "features": lambda: "features",
    "solver": msp.Ridge,
    "targets": lambda: "targets",
    "classes": lambda: torch.tensor([[0, 1]]),
    "n_classes": lambda: 2,
    "word_weights": lambda: torch.ones(1, dtype=torch.float64),
    "is_population": lambda: True,
    "tokens": lambda: torch.tensor([[0, 1]]),
    "words": lambda: torch.tensor([[0, 1]]),
    "belief": lambda: [1.0, 0.0, 0.0],
    "beliefs": lambda: msp.filter_beliefs(good("process"), torch.tensor([[0, 1]]))[0],
    "read": lambda: good("beliefs"),
    "points": lambda: good("beliefs"),
    "generator": lambda: torch.Generator().manual_seed(0),
    "activations": lambda: torch.zeros(1, 8),
    "activation": lambda: torch.zeros(1, 8),
    "transitions": lambda: good("process").transitions,
    "processes": lambda: [good("process"), good("process")],
    "weights": lambda: [0.5, 0.5],
    "source": msp.processes.z1r,
    "predictor": lambda: msp.inference.network_predictor(good("model")),
    "first": msp.processes.z1r,
    "second": msp.processes.z1r,
    "dimension": lambda: 1,
    "tolerance": lambda: 0.01,
    "config": lambda: msp.ModelConfig(d_vocab=2),
    "state": dict,
    "definition": lambda: good("process").to_dict(),
    "text": lambda: good("process").to_json(),
    "fields": lambda: {"steps": 1},
    "epsilon": lambda: 0.1,
    "distribution": distributions,
    "probabilities": distributions,
    "optimal": distributions,
    "log_predicted": lambda: distributions().log(),
    "symbols": lambda: (0, 1),
    **{name: lambda: "nowhere" for name in ("path", "name_or_path", "folder", "out", "run", "what")},
    **{
        name: lambda: 2 for name in ("length", "depth", "position", "width", "n_words", "n_ctx", "n_tokens", "n_states")
    },
    **{name: lambda: 1 for name in ("rank", "steps", "seed")},
    **{name: lambda: 2 for name in ("d_vocab", "n_symbols")},
    "n_points": lambda: 300,
    **{name: lambda: 0 for name in ("layer", "lag")},
    "site": lambda: SITE,
    "sites": lambda: SITE,
    "weighting": lambda: "probability",
    "name": lambda: "z1r",
    "preset": lambda: "quick",
    "kind": lambda: "gru",
    "repository": lambda: "someone/name",
    "model_id": lambda: "tiny",
}
OVERRIDES: dict[str, dict[str, Callable[[], Any]]] = {
    "BeliefDataset": {"beliefs": lambda: good("beliefs")[None]},
    "factor_predictions": {"beliefs": lambda: {"z1r": good("beliefs")}},
    "follow": {"tokens": lambda: torch.tensor([[0], [1]])},
    "filter_from": {"tokens": lambda: torch.tensor([[0], [1]])},
    "from_tokens": {"targets": lambda: torch.zeros(1, 2, 3)},
    "from_text": {"texts": lambda: [[0, 1]], "targets": lambda: [[0.5, 1.0]]},
    "from_table": {"table": lambda: {"text": [[0, 1]], "label": [[0.5, 1.0]]}},
    "encode": {"words": lambda: torch.tensor([[0, 1]])},
    "emergence": {"run": lambda: []},
    "editing": {"edits": dict},
    "crosstalk": {
        "world": lambda: good("two factors"),
        "model": lambda: good("network of two factors"),
        "probes": lambda: good("report of two factors"),
    },
    "reading_symbols": {"token_map": lambda: msp.TokenMap(symbols=(0, 1))},
    **{
        name: {"words": lambda: msp.inference.process_words(good("process"), 4)}
        for name in ("fit_machine", "predictive_rank", "spectral_operators", "stationarity_gap")
    },
    "side_by_side": {"subjects": lambda: [good("process")]},
    "similarity": {
        "models": lambda: {"one": good("model"), "other": good("model")},
        "sites": lambda: {"one": SITE},
    },
    "cache_rows": {"data": lambda: msp.LabelledTokens.from_beliefs(good("dataset"))},
}
# Parameters whose annotation allows more than the value may be, or that mean something else for a value in BAD.
ALLOWED: set[tuple[str, str, str]] = set()


@dataclass(frozen=True)
class Case:
    """One bad value for one parameter of one public function."""

    function: str
    parameter: str
    bad: str

    def __str__(self):
        return f"{self.function}({self.parameter}={self.bad})"


def named(path: str) -> Any:
    """`processes.Process.sample` as a callable; a method comes unbound, with its instance as first parameter."""
    found: Any = msp
    for part in path.split("."):
        found = getattr(found, part)
    return found


def functions() -> list[str]:
    """Everything public that takes input: the functions of all rooms, constructors and methods."""
    found = []
    for room in ROOMS:
        package = getattr(msp, room)
        names = getattr(package, "__all__", [name for name in vars(package) if not name.startswith("_")])
        found += [
            f"{room}.{each}" for each in names if inspect.isfunction(getattr(package, each)) and each not in NOT_INPUT
        ]
    return [*found, *CONSTRUCTORS, *METHODS]


def instance_of(path: str) -> Any:
    """The instance whose method is tried."""
    owner = path.split(".")[1]
    names = {
        "Process": "process",
        "Factored": "world",
        "BeliefDataset": "dataset",
        "BeliefProbe": "probe",
        "ProbeReport": "report",
        "SteeringVector": "steering vector",
    }
    return msp.TokenMap((0, 1)) if owner == "TokenMap" else good(names[owner])


def parameters(path: str) -> dict[str, inspect.Parameter]:
    """The parameters of a function, without `self` and `*others`."""
    function = named(path)
    target = function.__init__ if isinstance(function, type) else function
    found = inspect.signature(target).parameters.items()
    return {name: each for name, each in found if name not in ("self", "cls") and each.kind is not each.VAR_POSITIONAL}


def cases() -> list[Case]:
    """Every bad value for every parameter."""
    found = []
    for path in functions():
        function = named(path)
        target = function.__init__ if isinstance(function, type) else function
        annotations = _resolved(getattr(target, "__func__", target))
        for name, parameter in parameters(path).items():
            if name in annotations:
                for bad in sorted(bad_for(annotations[name], name)):
                    if (path, name, bad) not in ALLOWED and parameter.kind is not parameter.VAR_KEYWORD:
                        found.append(Case(path, name, bad))
    return found


CASES = cases()


def test_there_are_many_cases():
    assert len(CASES) >= 400


def arguments_of(case: Case) -> tuple[list[Any], dict[str, Any]]:
    """Good values for what must be given, and the bad one."""
    function = named(case.function)
    own = OVERRIDES.get(case.function.split(".")[-1], {})
    values = {case.parameter: BAD[case.bad]}
    for name, parameter in parameters(case.function).items():
        if name != case.parameter and parameter.default is parameter.empty:
            values[name] = own[name]() if name in own else good(name)
    if "generator" in parameters(case.function) and case.parameter not in ("seed", "generator"):
        # Randomness comes from one of the two.
        values = {"generator": good("generator")} | values
    is_method = case.function in METHODS and not inspect.ismethod(function)
    takes_self = is_method and "self" in inspect.signature(function).parameters
    return [instance_of(case.function)] if takes_self else [], values


def refusal(case: Case) -> str | None:
    """What is wrong with how the case is refused; `None` if nothing is."""
    instance, values = arguments_of(case)
    passes = []
    handle = register_module_forward_pre_hook(lambda *_: passes.append(1))
    try:
        named(case.function)(*instance, **values)
    except (ValueError, TypeError, KeyError) as error:
        message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        if passes:
            return f"{len(passes)} forward passes before {message!r}"
        if case.parameter not in message or not message.endswith((".", "?")) or len(message) > 600:
            return f"unclear: {message[:200]!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    else:
        return "accepted"
    finally:
        handle.remove()
    return None


@pytest.mark.parametrize("function", sorted({case.function for case in CASES}))
def test_bad_input_is_refused_by_name_before_any_work(function, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong = {str(case): refusal(case) for case in CASES if case.function == function}
    assert {case: how for case, how in wrong.items() if how} == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "ask",
    [
        lambda: good("process").sample(10**12, 10, seed=0),
        lambda: msp.data.sampled_words(good("process"), 10**12, 10, seed=0),
        lambda: msp.words(good("process"), n_ctx=10, n_words=10**12),
        lambda: msp.words(good("process"), n_ctx=10**12),
        lambda: msp.data.all_words(good("process"), 60),
        lambda: msp.beliefs.attractor(good("process"), 10**12, seed=0),
        lambda: msp.processes.random_process(10**6, 10**6, seed=0),
        lambda: msp.build_model(msp.ModelConfig(d_vocab=2, d_model=10**9)),
        lambda: msp.build_model(msp.ModelConfig(d_vocab=10**12)),
        lambda: msp.build_model(msp.ModelConfig(d_vocab=2, n_layers=10**9)),
        lambda: msp.train(good("process"), msp.ModelConfig(d_vocab=2, n_ctx=10**9), progress=False),
        lambda: msp.intervene(good("model"), good("process"), probes=good("probe"), n_words=10**12),
    ],
    ids=range(12),
)
def test_what_cannot_fit_is_refused_before_it_is_allocated(ask):
    with pytest.raises(ValueError, match=r"1,?0{3}|60|\d GB|too many|at most"):
        ask()
