"""Arguments are read by their annotations, whatever container they come in, and refused by name before any work."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, Protocol, TypedDict

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from msp_lens._annotations import converted, register
from msp_lens._checks import Above, AtLeast, Below, Between, Count, Seed, Share, as_tokens, check_memory, checked


@pytest.mark.parametrize(
    "value", [3, np.int64(3), np.uint8(3), torch.tensor(3), np.array(3), 3.0, np.float32(3), Fraction(3)]
)
def test_whole_numbers_come_in_any_scalar(value):
    found = converted(value, int, "steps")
    assert found == 3
    assert type(found) is int


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("3", TypeError),
        (None, TypeError),
        (True, TypeError),
        ([3], TypeError),
        (np.array([3]), TypeError),
        (3j, TypeError),
        (2.5, ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        (10**30, ValueError),
        (np.float64(2.5), ValueError),
    ],
)
def test_what_is_no_whole_number_is_refused_by_name(value, error):
    with pytest.raises(error, match=r"^steps=.*: give a whole number.*\.$"):
        converted(value, int, "steps")


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), torch.tensor(0.5), Fraction(1, 2)])
def test_numbers_come_in_any_scalar(value):
    assert converted(value, float, "x") == 0.5
    assert type(converted(value, float, "x")) is float


@pytest.mark.parametrize(
    ("value", "error"),
    [("0.5", TypeError), (True, TypeError), (1j, TypeError), (math.nan, ValueError), (10**400, ValueError)],
)
def test_what_is_no_number_is_refused_by_name(value, error):
    with pytest.raises(error, match=r"^x=.*: give a number"):
        converted(value, float, "x")


@pytest.mark.parametrize("value", [True, np.True_, torch.tensor(True)])
def test_truth_values(value):
    assert converted(value, bool, "controls") is True


@pytest.mark.parametrize("value", [1, "True", None, 1.0])
def test_what_is_no_truth_value_is_refused(value):
    with pytest.raises(TypeError, match=r"controls=.*give True or False"):
        converted(value, bool, "controls")


def test_choices_and_ranges():
    assert converted(np.str_("ols"), Literal["ols", "ridge"], "solver") == "ols"
    with pytest.raises(ValueError, match=r"solver='lasso': choose one of 'ols', 'ridge'\."):
        converted("lasso", Literal["ols", "ridge"], "solver")
    with pytest.raises(TypeError, match="number=True: choose one of 1, 2"):
        converted(True, Literal[1, 2], "number")
    with pytest.raises(ValueError, match=r"n_folds=1: give at least 2 \(cross-validation needs two folds\)\."):
        converted(1, Annotated[int, AtLeast(2, "cross-validation needs two folds")], "n_folds")
    with pytest.raises(ValueError, match=r"p=1.5: give a number from 0 to 1 \(it is a probability\)"):
        converted(1.5, Annotated[float, Between(0, 1, "it is a probability")], "p")
    for value, rule in ((0, "above 0"), (-1, "above 0"), (1, "below 1")):
        with pytest.raises(ValueError, match=rf"^share={value}\.0: give a number {rule}\.$"):
            converted(value, Annotated[float, Above(0), Below(1)], "share")
    with pytest.raises(ValueError, match=r"^rate=inf: give a number that is not infinite\.$"):
        converted(math.inf, Annotated[float, Above(0), Below(math.inf)], "rate")
    with pytest.raises(ValueError, match=r"seed=-1: give a number from 0 to 2\*\*63 - 1"):
        converted(-1, Seed, "seed")
    assert converted(None, Count | None, "n_words") is None
    with pytest.raises(TypeError, match="n_words=None: give a whole number"):
        converted(None, Count, "n_words")


def test_a_union_takes_the_first_member_that_fits():
    either = int | Sequence[int] | None
    assert converted(np.int64(3), either, "positions") == 3
    assert converted(np.array([1, 2]), either, "positions") == [1, 2]
    with pytest.raises(TypeError, match=r"positions\[1\]='b': give a whole number"):
        converted([1, "b"], either, "positions")
    with pytest.raises(TypeError, match="positions='b': give a whole number or a list"):
        converted("b", either, "positions")
    with pytest.raises(ValueError, match=r"positions=2\.5: give a whole number"):
        converted(2.5, either, "positions")


def test_sequences_and_mappings_keep_what_fits_and_read_what_does_not():
    given_list = [1, 2]
    assert converted(given_list, Sequence[int], "seeds") is given_list
    assert converted(pd.Series([1, 2]), Sequence[int], "seeds") == [1, 2]
    assert converted(torch.tensor([1, 2]), tuple[int, ...], "seeds") == (1, 2)
    assert converted(np.array([0.5, 1]), tuple[float, float], "betas") == (0.5, 1.0)
    with pytest.raises(ValueError, match=r"betas=.*give 2 values"):
        converted([1.0], tuple[float, float], "betas")
    assert converted({"p": np.float64(0.5)}, Mapping[str, float], "parameters") == {"p": 0.5}
    with pytest.raises(TypeError, match=r"parameters\['p'\]='a': give a number"):
        converted({"p": "a"}, Mapping[str, float], "parameters")
    with pytest.raises(TypeError, match="seeds='12': give a list"):
        converted("12", Sequence[int], "seeds")


def test_paths_and_devices():
    assert converted("~/runs", str | Path | None, "out") == Path.home() / "runs"
    with pytest.raises(TypeError, match="out=3: give a path"):
        converted(3, str | Path | None, "out")
    with pytest.raises(ValueError, match="give a path: it is not empty"):
        converted("", str | Path, "out")

    @checked
    def place(*, device: str = "cpu", other: str | torch.device | None = None) -> Any:
        return device

    assert place(device="cpu", other=torch.device("cpu")) == "cpu"
    for bad in ("gpu", "cud", "cuda:99", "cpu:3", "meta"):
        with pytest.raises(ValueError, match=f"device='{bad}': give a device that this machine has"):
            place(device=bad)


WORDS = [[0, 1, 2], [2, 1, 0]]


@pytest.mark.parametrize(
    "value",
    [
        WORDS,
        tuple(map(tuple, WORDS)),
        np.array(WORDS),
        np.array(WORDS, dtype=np.uint16),
        np.array(WORDS, dtype=">i4"),
        np.array(WORDS)[::-1][::-1],
        np.array(WORDS, dtype=object),
        torch.tensor(WORDS),
        torch.tensor(WORDS, dtype=torch.uint8),
        torch.tensor(WORDS, dtype=torch.int32),
        torch.tensor(WORDS, dtype=torch.float32),
        [torch.tensor(word) for word in WORDS],
        [np.array(word) for word in WORDS],
        pd.DataFrame(WORDS),
        pd.Series(WORDS),
        Dataset.from_dict({"tokens": WORDS})["tokens"],
    ],
)
def test_tokens_come_in_any_container(value):
    found = converted(value, Int[Tensor, "word pos"], "tokens")
    assert found.dtype == torch.int64
    assert found.tolist() == WORDS
    assert as_tokens(value).tolist() == WORDS


def test_one_word_and_a_mask_of_bools():
    assert converted([0, 1, 2], Int[Tensor, "word pos"], "tokens").tolist() == [[0, 1, 2]]
    assert converted(torch.tensor([[True, False]]), Int[Tensor, "word pos"], "tokens").tolist() == [[1, 0]]
    assert converted([0, 1], Int[Tensor, "row"], "groups").tolist() == [0, 1]
    assert converted([True, False], Bool[Tensor, "row"], "mask").tolist() == [True, False]
    with pytest.raises(TypeError, match=r"mask=.*a mask of True and False"):
        converted([1.0, 0.0], Bool[Tensor, "row"], "mask")


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ([[0, 1], [0]], ValueError),
        ([[0.5]], ValueError),
        ([[math.nan]], ValueError),
        ([[1j]], ValueError),
        ("abc", TypeError),
        (None, TypeError),
        ({0: 1}, TypeError),
        ({0, 1}, TypeError),
        (object(), TypeError),
        ([["a"]], TypeError),
        ([torch.zeros(2), torch.zeros(3)], ValueError),
        (iter([0]), TypeError),
        ([[[0]]], ValueError),
        ([[2.0**70]], ValueError),
    ],
)
def test_what_are_no_tokens_is_refused_by_name(value, error):
    with pytest.raises(error, match=r"^tokens=.*: give "):
        converted(value, Int[Tensor, "word pos"], "tokens")


def test_beliefs_come_in_any_container():
    for value in ([[0.25, 0.75]], np.array([[0.25, 0.75]], dtype=np.float32), torch.tensor([[0.25, 0.75]])):
        found = converted(value, Float64[Tensor, "*batch state"], "beliefs")
        assert found.dtype == torch.float64
        assert found.tolist() == [[0.25, 0.75]]
    assert converted(torch.zeros(1, dtype=torch.float16), Float[Tensor, "row"], "x").dtype == torch.float16
    assert converted([1, 2], Float[Tensor, "row"], "x").dtype == torch.float64
    for bad in ([[math.nan, 1.0]], [[math.inf, 1.0]], [[1j, 0]], 0.5):
        with pytest.raises(ValueError, match=r"beliefs=.*: give"):
            converted(bad, Float64[Tensor, "*batch state"], "beliefs")


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_numbers_in_a_list_are_float64(values):
    assert converted(values, Float64[Tensor, "row"], "x").tolist() == values


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_integers_are_never_rounded(values):
    assert converted(values, Int[Tensor, "row"], "x").tolist() == values


def test_the_default_type_of_torch_changes_nothing():
    torch.set_default_dtype(torch.float16)
    try:
        assert converted([0.1], Float[Tensor, "row"], "x").item() == 0.1
    finally:
        torch.set_default_dtype(torch.float32)


class Entry(TypedDict):
    """A field of a file."""

    steps: Count
    name: NotRequired[str]


def test_schemas_of_files():
    assert converted({"steps": 3}, Entry, "file: $") == {"steps": 3}
    for bad, message in [
        ({}, r"file: \$\.steps='missing': this field is required"),
        ({"steps": 0}, r"file: \$\.steps=0: give at least 1"),
        ({"steps": 1, "nam": "x"}, r"file: \$\.nam='x': there is no such field; there are steps, name"),
        ([], r"file: \$=\[\]: give a mapping with steps"),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            converted(bad, Entry, "file: $")
    with pytest.raises(ValueError, match=r"\$\['a'\]\[1\]\.steps=0"):
        converted({"a": [{"steps": 1}, {"steps": 0}]}, dict[str, list[Entry]], "$")


@checked
@dataclass(frozen=True)
class Options:
    """A record of options."""

    steps: Count
    share: Share = 0.5
    betas: tuple[float, float] = (0.9, 0.99)


def test_dataclasses_are_checked_and_hold_plain_values():
    options = Options(np.int64(3), betas=[0, 1])
    assert options == Options(3, 0.5, (0.0, 1.0))
    assert type(options.steps) is int
    assert replace(options, steps=4).steps == 4
    with pytest.raises(ValueError, match=r"steps=2\.5"):
        replace(options, steps=2.5)
    with pytest.raises(
        TypeError, match=r"no parameter 'stebs': choose from steps, share, betas\. Did you mean steps\?"
    ):
        Options(stebs=1)


def test_functions_are_checked_before_they_run():
    ran = []

    @checked
    def work(
        name: str, n_words: Count = 1, *, options: Options | None = None, then: Callable[[], None] | None = None
    ) -> int:
        """Do it."""
        ran.append(name)
        return n_words

    assert work("a", np.int32(2), options=Options(1)) == 2
    assert work.__doc__ == "Do it."
    for arguments, keywords, error in [
        ((3,), {}, "name=3: give text"),
        (("a", 0), {}, "n_words=0: give at least 1"),
        (("a",), {"options": {"steps": 1}}, "options=.*: give an Options"),
        ((), {}, r"work\(\): missing a required argument: 'name'"),
        (("a",), {"n_word": 1}, "no parameter 'n_word'.*Did you mean n_words"),
    ]:
        with pytest.raises((TypeError, ValueError), match=error):
            work(*arguments, **keywords)
    assert ran == ["a"]


def test_marks_of_fields_hold_where_annotations_are_text():
    names = {"TypedDict": TypedDict, "NotRequired": NotRequired}
    exec("from __future__ import annotations\nclass Later(TypedDict):\n    a: int\n    b: NotRequired[int]", names)
    names["Later"].__module__ = __name__
    assert converted({"a": 1}, names["Later"], "$") == {"a": 1}
    with pytest.raises(ValueError, match=r"\$\.a='missing'"):
        converted({"b": 1}, names["Later"], "$")


def test_functions():
    assert converted(len, Callable[[str], int] | str, "sites") is len
    assert converted("embed", Callable[[str], int] | str, "sites") == "embed"
    with pytest.raises(TypeError, match=r"edits\['a'\]=3: give a function"):
        converted({"a": 3}, Mapping[str, Callable[..., Any]], "edits")


class Hooked(Protocol):
    """Whatever has hooks."""


def test_a_protocol_is_checked_once_it_is_told_what_it_accepts():
    register(Hooked, "give a network with hooks", lambda value: hasattr(value, "hooks"))
    with pytest.raises(TypeError, match=r"model=3: give a network with hooks\."):
        converted(3, Hooked, "model")
    with pytest.raises(TypeError, match="model=3: give a network with hooks or a list"):
        converted(3, Hooked | Sequence[Hooked] | None, "model")


def test_what_cannot_fit_is_refused():
    check_memory("n_words=3", 24, "Give fewer words.")
    with pytest.raises(ValueError, match=r"n_words=9 would take .* GB; this machine has .* Give fewer words\."):
        check_memory("n_words=9", 1e18, "Give fewer words.")
