"""The columns of a table in any container: a pandas frame, a Hugging Face dataset, a mapping of columns, or rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from msp_lens._names import meant


@dataclass(frozen=True)
class TextTable:
    """Texts with their targets, from a table.

    Attributes:
        texts: Texts, lists of words, or lists of token ids.
        targets: By name, an entry for each text.
        class_names: By target, the names of its classes, where the table has their numbers.
        groups: The group of each text, if there are any.
        weighting: How much each text counts, if it was given.
    """

    texts: list[Any]
    targets: dict[str, list[Any]]
    class_names: dict[str, tuple[str, ...]]
    groups: Any
    weighting: Any


def read_table(table: Any, text: str, targets: str | Sequence[str], *, groups: Any, weighting: Any) -> TextTable:
    """The texts of a table and their targets; where the rows have an `attention_mask`, padded ids are taken out.

    Raises:
        KeyError: if there is no such column.
        ValueError: if this is no table, or one of several parts.
    """
    columns, features = _columns(table)
    names = [targets] if isinstance(targets, str) else list(targets)
    texts = list(_column(columns, text, "text"))
    found = {name: list(_column(columns, name, "targets")) for name in names}
    if "attention_mask" in columns and texts and all(_is_ids(each) for each in texts):
        masks = [np.asarray(each, dtype=bool) for each in columns["attention_mask"]]
        found = {name: [_read(*pair) for pair in zip(each, masks, strict=True)] for name, each in found.items()}
        texts = [_read(*pair) for pair in zip(texts, masks, strict=True)]
    groups = list(_column(columns, groups, "groups")) if isinstance(groups, str) else groups
    weighting = list(_column(columns, weighting, "weighting")) if isinstance(weighting, str) else weighting
    class_names = {name: of for name in names if (of := _class_names(features.get(name)))}
    return TextTable(texts, found, class_names, groups, weighting)


def _columns(table: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The columns of a table by name, and what its features say of them, if it has any."""
    if isinstance(table, pd.DataFrame):
        return {str(name): table[name] for name in table.columns}, {}
    features = getattr(table, "features", None) or {}
    if isinstance(getattr(table, "column_names", None), list) and hasattr(table, "__len__"):
        return {name: table[name] for name in table.column_names}, features
    if isinstance(table, Mapping):
        parts = [str(name) for name, part in table.items() if hasattr(part, "column_names") or hasattr(part, "columns")]
        if parts:
            raise ValueError(f"table has the parts {', '.join(parts)}: give one of them, such as table[{parts[0]!r}].")
        return table, {}
    rows = list(table) if isinstance(table, Iterable) and not isinstance(table, str) else []
    if not rows or not all(isinstance(row, Mapping) for row in rows):
        raise ValueError(
            f"table is a {type(table).__name__}: give a pandas frame, a Hugging Face dataset, a mapping of columns, or "
            "rows that are mappings. (Words of a process are read by LabelledTokens.from_beliefs.)"
        )
    return {name: [row.get(name) for row in rows] for name in rows[0]}, features


def _column(columns: Mapping[str, Any], name: str, option: str) -> Any:
    if name not in columns:
        there_are = ", ".join(map(str, columns))
        raise KeyError(f"{option}={name!r} is no column of the table: choose from {there_are}.{meant(name, columns)}")
    return columns[name]


def _is_ids(text: Any) -> bool:
    values = np.asarray(text) if not isinstance(text, str) else np.empty(0, dtype=object)
    return values.ndim == 1 and values.dtype.kind in "iu"


def _read(values: Any, mask: np.ndarray) -> Any:
    """What is not masked out of something that has a value for each token; anything else as it is."""
    is_one_each = not isinstance(values, str | Mapping) and hasattr(values, "__len__") and len(values) == len(mask)
    return [value for value, is_read in zip(values, mask, strict=True) if is_read] if is_one_each else values


def _class_names(feature: Any) -> tuple[str, ...] | None:
    """The names of the classes whose numbers a column holds, alone, in lists, or as labels of spans."""
    if isinstance(feature, Mapping):
        return _class_names(feature.get("label"))
    if isinstance(feature, list):
        return _class_names(feature[0]) if feature else None
    names = getattr(feature, "names", None)
    return tuple(names) if names else _class_names(feature.feature) if hasattr(feature, "feature") else None
