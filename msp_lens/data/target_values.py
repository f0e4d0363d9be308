"""What users give as targets: numbers, or the labels of classes, which become one-hot vectors.

Integers, booleans and strings are labels; floating-point numbers are numbers. Where a label is missing (None, NaN among
strings, or -100 among integers, as PyTorch's losses and Hugging Face's collators have it) there is no row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor
from torch.nn.functional import one_hot as torch_one_hot

from msp_lens._checks import Count, check_memory, checked, is_finite
from msp_lens._names import meant

# Numbers, or labels in an array of integers, or of strings (as objects, where None is a missing one).
Values: TypeAlias = Tensor | np.ndarray

BELIEF = "belief"
LABEL = "label"
NO_LABEL = -100  # `ignore_index` of PyTorch's cross-entropy.


def target_values(name: str, values: Any) -> Values:
    """A target in any container; errors call it `name`.

    Raises:
        ValueError: if it is ragged or complex, or holds things that are neither numbers nor labels.
    """
    if isinstance(values, Tensor) and values.is_floating_point():
        return values.detach().cpu().double()
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else _array(name, values)
    if array.dtype.kind == "f":
        return torch.from_numpy(array.astype(np.float64))
    if array.dtype.kind in "iub":
        return array
    if array.dtype.kind in "OU":
        labels = array.astype(object)
        missing = pd.isna(labels)
        labels[missing] = None
        kinds = {type(label) for label in labels[~missing]}
        if all(issubclass(kind, str) for kind in kinds):
            return labels
        if all(issubclass(kind, bool | int | np.bool_ | np.integer) for kind in kinds):
            return np.where(missing, NO_LABEL, labels).astype(np.int64)
        if all(issubclass(kind, int | float | np.number) and not issubclass(kind, complex) for kind in kinds):
            return torch.from_numpy(np.where(missing, np.nan, labels).astype(np.float64))
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
    else:
        found = str(array.dtype)
    raise ValueError(f"{name} holds {found}: give numbers, or labels that are all integers or all strings.")


def _array(name: str, values: Any) -> np.ndarray:
    if not isinstance(values, np.ndarray):
        try:
            values = list(values)
            if values and all(isinstance(each, Tensor) for each in values):
                return torch.stack(values).detach().cpu().numpy()
        except (TypeError, RuntimeError) as error:
            raise ValueError(
                f"{name} is a {type(values).__name__}: give an array, with a value for each word."
            ) from error
    try:
        array = np.asarray(values)
        # Numbers beside strings would become strings.
        return np.asarray(values, dtype=object) if array.dtype.kind == "U" and isinstance(values, list) else array
    except ValueError as error:
        raise ValueError(
            f"{name} is ragged: give as many values for each word, and leave out padding by attention_mask=."
        ) from error


def is_one_a_word(values: Values, tokens: Int[Tensor, "word pos"]) -> bool:
    """Whether a target has one value for each word; for a single word, one for each token if their numbers agree."""
    return values.ndim == 1 and not (len(tokens) == 1 and len(values) == tokens.shape[1])


def placed_values(name: str, values: Values, tokens: Int[Tensor, "word pos"], last: int) -> Values:
    """A target as numbers `[word, pos, target]` or labels `[word, pos]`, with at least the columns up to `last`.

    Shifted targets may lack the last columns, if none of these is a row.
    """
    n_words, n_ctx = tokens.shape
    wide = values
    if values.ndim == 1:
        wide = values[None]
        if is_one_a_word(values, tokens):
            wide = torch.stack([values] * n_ctx, dim=1) if isinstance(values, Tensor) else np.stack([values] * n_ctx, 1)
    if isinstance(values, Tensor) and wide.ndim == 2:
        wide = wide[:, :, None]
    n_axes = 3 if isinstance(values, Tensor) else 2
    if wide.ndim == n_axes and len(wide) == n_words and last < wide.shape[1] <= n_ctx:
        return wide
    if isinstance(values, Tensor):
        fitting = f"[word, pos, target], here ({n_words}, {n_ctx}, …), or [word, pos] or [word] for one number each"
    else:
        fitting = f"[word, pos], here ({n_words}, {n_ctx}), or [word]. (For several labels at a place use one_hot.)"
    raise ValueError(f"Target {name!r} has shape {tuple(values.shape)}; it needs {fitting}.")


def has_label(values: Values, n_ctx: int) -> Bool[Tensor, "word pos"]:
    """Where a placed target is not missing; numbers never are."""
    has = torch.zeros(len(values), n_ctx, dtype=torch.bool)
    if isinstance(values, Tensor):
        has[:, : values.shape[1]] = True
    else:
        found = ~pd.isna(values) if values.dtype == object else values != NO_LABEL
        has[:, : values.shape[1]] = torch.from_numpy(found)
    return has


def group_numbers(groups: Any) -> Int[Tensor, "word *pos"]:
    """Groups as integers: strings are numbered."""
    values = target_values("groups", groups)
    if isinstance(values, Tensor):
        raise ValueError("groups holds floating-point numbers: give integers or strings.")
    if values.dtype.kind in "iub":
        return torch.from_numpy(values.astype(np.int64))
    return torch.from_numpy(np.unique(values.astype(str), return_inverse=True)[1].reshape(values.shape))


def class_numbers(
    name: str, labels: np.ndarray, classes: Sequence[Any] | None
) -> tuple[Int[Tensor, "row"], tuple[str, ...]]:
    """The number of each label's class, and the names of the classes: those given, or those that occur, sorted.

    Raises:
        ValueError: if a label is none of the classes, or only one class occurs and none are given.
    """
    if classes is None:
        distinct, numbers = np.unique(labels.astype(str) if labels.dtype == object else labels, return_inverse=True)
        names = tuple(str(label) for label in distinct)
        if len(names) == 1:
            raise ValueError(f"{name} is {names[0]!r} in every row: there is no other class to tell it from.")
        return torch.from_numpy(numbers.reshape(-1)), names
    names = tuple(str(label) for label in classes)
    if len(set(names)) < len(names):
        raise ValueError(f"classes of {name}: {names} holds a class twice.")
    number_of = {class_name: number for number, class_name in enumerate(names)}
    distinct, inverse = np.unique(labels.astype(str), return_inverse=True)
    if unknown := [str(label) for label in distinct if str(label) not in number_of]:
        near = meant(unknown[0], names)
        raise ValueError(f"{name} holds {unknown[0]!r}, which is none of its classes {', '.join(names)}.{near}")
    numbers = np.array([number_of[str(label)] for label in distinct], dtype=np.int64)
    return torch.from_numpy(numbers[inverse.reshape(-1)]), names


def named_targets(targets: Any) -> Mapping[str, Any]:
    """Targets by name: a data frame's are its columns, and a single one is named by what it is."""
    if isinstance(targets, Mapping):
        return targets
    if isinstance(targets, pd.DataFrame):
        return {str(name): targets[name] for name in targets.columns}
    values = target_values("targets", targets)
    return {LABEL if isinstance(values, np.ndarray) else BELIEF: targets}


@dataclass(frozen=True)
class TargetWords:
    """What a probe reads, in words.

    Attributes:
        kind: `"belief"`, `"label"` for classes of your own, or `"target"` for numbers of your own.
        name: The kind with a name, if there is one: "belief about 'left'", "label 'parity'", "target 'mean'".
        classes: The names of its entries, if they are known.
    """

    kind: str
    name: str
    classes: tuple[str, ...] = ()

    @property
    def is_belief(self) -> bool:
        """Whether it is the belief, or a part of it."""
        return self.kind == BELIEF

    @classmethod
    def of(cls, given: Mapping[str, Any], *, is_distribution: bool) -> TargetWords:
        """What a probe of this provenance reads. Numbers without a name are beliefs of a process, or distributions."""
        part = given.get("part")
        classes = tuple(given.get("classes" if part is None else "part_states") or ())
        if part is not None and "process" in given and "source" not in given:
            return cls(BELIEF, f"belief about {part!r}", classes)
        name = given.get("target", BELIEF) if part is None else part
        if name == BELIEF and not classes:
            kind = BELIEF if "process" in given or is_distribution else "target"
            return cls(kind, kind)
        kind = LABEL if classes else "target"
        return cls(kind, kind if name == kind else f"{kind} {name!r}", classes)


def target_rows(
    values: Mapping[str, Values],
    tokens: Int[Tensor, "word pos"],
    mask: Bool[Tensor, "word pos"],
    classes: Mapping[str, Sequence[Any]] | None = None,
) -> tuple[dict[str, Float64[Tensor, "row target"]], dict[str, tuple[str, ...]], Bool[Tensor, "word pos"]]:
    """The targets of each row, the names of their classes, and which places are rows: those that have every label."""
    if strangers := sorted((classes or {}).keys() - values.keys()):
        raise ValueError(f"classes names {strangers}, and the targets are {sorted(values)}: name targets.")
    placed = {name: placed_values(name, each, tokens, int(mask.nonzero()[:, 1].max())) for name, each in values.items()}
    for name, each in placed.items():
        mask = mask & has_label(each, tokens.shape[1])
        if not mask.any():
            raise ValueError(f"Target {name!r} has no label at any row: None and -100 mean that it is missing.")
    words, columns = mask.nonzero(as_tuple=True)
    at_rows = {
        name: each[words, columns] if isinstance(each, Tensor) else each[words.numpy(), columns.numpy()]
        for name, each in placed.items()
    }
    remedy = "exclude such rows by positions=, a mask [word, pos]"
    return *as_targets(at_rows, words, columns, classes, remedy), mask


def as_targets(
    values: Mapping[str, Values],
    words: Int[Tensor, "row"],
    columns: Int[Tensor, "row"],
    classes: Mapping[str, Sequence[Any]] | None,
    remedy: str,
) -> tuple[dict[str, Float64[Tensor, "row target"]], dict[str, tuple[str, ...]]]:
    """Values at rows as targets, labels one-hot, with the names of their classes; `remedy` is for numbers like NaN."""
    if strangers := sorted((classes or {}).keys() - values.keys()):
        raise ValueError(f"classes names {strangers}, and the targets are {sorted(values)}: name targets.")
    rows, names = {}, {}
    for name, each in values.items():
        if isinstance(each, Tensor):
            rows[name] = each if each.ndim == 2 else each.unsqueeze(1)
            if rows[name].ndim != 2:
                raise ValueError(f"Target {name!r} has shape {tuple(each.shape)} at rows: give a vector at each.")
            if not is_finite(rows[name]):
                row = int((~torch.isfinite(rows[name])).any(dim=1).nonzero()[0])
                place = f"word {int(words[row])}, column {int(columns[row])}"
                raise ValueError(f"Target {name!r} is not finite at {place}: {remedy}.")
        else:
            numbers, names[name] = class_numbers(f"Target {name!r}", each, (classes or {}).get(name))
            what = f"Target {name!r} with {len(names[name])} classes in {len(numbers)} rows"
            check_memory(what, 8 * len(numbers) * len(names[name]), "Give numbers as floats, or choose positions=.")
            rows[name] = torch_one_hot(numbers, len(names[name])).double()
    return rows, names


def per_position(name: str, values: Tensor, tokens: Int[Tensor, "word pos"]) -> Tensor:
    """`[word]` or `[word, pos]` as the latter."""
    values = values.unsqueeze(0) if len(tokens) == 1 and tuple(values.shape) == (tokens.shape[1],) else values
    if tuple(values.shape) not in ((len(tokens),), tuple(tokens.shape)):
        fitting = f"[word] or [word, pos], here ({len(tokens)},) or {tuple(tokens.shape)}"
        raise ValueError(f"{name} has shape {tuple(values.shape)}; it needs {fitting}.")
    return (values.unsqueeze(1) if values.ndim == 1 else values).expand(tokens.shape)


@checked
def one_hot(classes: Int[Tensor, "word pos *more"], n_classes: Count) -> Float64[Tensor, "word pos target"]:
    """Classes as targets: 1 for the true class, 0 for the others; several classes at a position stand side by side.

    Args:
        classes: Class numbers from 0: the next tokens `[word, pos]`, or the squares of a board `[word, pos, square]`.
        n_classes: Number of classes; `ValueError` if a number is not one of them.

    Example:
        >>> one_hot(torch.tensor([[1, 0]]), 3)
        tensor([[[0., 1., 0.],
                 [1., 0., 0.]]], dtype=torch.float64)
    """
    if classes.numel() and (int(classes.min()) < 0 or int(classes.max()) >= n_classes):
        held = f"{int(classes.min())} to {int(classes.max())}; the {n_classes} classes are 0 to {n_classes - 1}"
        raise ValueError(f"classes holds {held}. Give unknown ones any class and exclude their rows with positions=.")
    return torch_one_hot(classes, n_classes).double().flatten(2)
