"""Second moments of rows, from which everything else is solved.

For rows z (features and targets side by side) with weights w, accumulate in float64

    W = Σ w,    μ = Σ w z / W,    S = Σ w (z - μ)(z - μ)ᵀ,

batch by batch, each batch centered on its own mean before it is multiplied. Two sets of moments merge by

    S = S₁ + S₂ + (W₁ W₂ / W)(μ₁ - μ₂)(μ₁ - μ₂)ᵀ        (Chan, Golub & LeVeque 1983).

Memory is that of one matrix, however many rows there are.
"""

from __future__ import annotations

import functools
import itertools
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from msp_lens._arrays import moved
from msp_lens._checks import AtLeast, Between, Count, Share, check_finite, checked
from msp_lens._files import check_tensors, read_entry, read_tensors, write_tensors
from msp_lens._names import meant
from msp_lens._values import same_values
from msp_lens.moments.exact_products import Accumulation, accumulation_for, has_float64, split_scatters

# What a file of moments calls its header.
KIND = "msp_lens_moments"


class _SavedMoments(TypedDict):
    blocks: list[tuple[str, Count]]
    n: Annotated[int, AtLeast(0)]
    weight: Annotated[float, Between(0, sys.float_info.max)]
    rounding: Share


class _Header(TypedDict):
    parts: dict[str, _SavedMoments]
    provenance: dict[str, Any]


class Moments:
    """Weighted mean and centered second moments of rows made of named blocks of columns.

    Args:
        blocks: Width of each block by name, in the order of the columns.
        device: Where the moments are held; on the CPU if the device has no float64.

    Attributes:
        n: Number of rows seen.
        weight: Their total weight.
        mean: Weighted mean of each column.
        scatter: Centered sum of weighted outer products; divided by `weight` it is the covariance.
        rounding: A column whose deviation is below this fraction of its mean varies by the rounding of the rows alone.

    Example:
        >>> moments = Moments({"h": 2, "b": 1})
        >>> rows = torch.tensor([[0.0, 0.0, 1.0], [2.0, 0.0, 3.0]])
        >>> moments.update(rows, torch.ones(2)).covariance("h", "b")
        tensor([[1.],
                [0.]], dtype=torch.float64)
    """

    @checked
    def __init__(self, blocks: Mapping[str, int], *, device: str | torch.device = "cpu") -> None:
        self.blocks, self.n, self.weight, self.rounding = dict(blocks), 0, 0.0, 0.0
        width = sum(self.blocks.values())
        held = device if has_float64(torch.device(device)) else "cpu"
        self.mean: Float64[Tensor, "column"] = torch.zeros(width, dtype=torch.float64, device=held)
        self.scatter: Float64[Tensor, "column column"] = torch.zeros(width, width, dtype=torch.float64, device=held)

    @classmethod
    def of(
        cls,
        blocks: Mapping[str, int],
        *,
        n: int,
        weight: float,
        mean: Float64[Tensor, "column"],
        scatter: Float64[Tensor, "column column"],
        rounding: float,
    ) -> Moments:
        """Moments with these attributes, which were computed elsewhere."""
        moments = cls({})
        moments.blocks, moments.n, moments.weight = dict(blocks), n, weight
        moments.mean, moments.scatter, moments.rounding = mean, scatter, rounding
        return moments

    def update(
        self,
        rows: Float[Tensor, "row column"],
        weights: Float[Tensor, "row"],
        *,
        accumulation: Accumulation | None = None,
    ) -> Moments:
        """Add a batch of rows, multiplied on their own device; returns the moments.

        Args:
            rows: The blocks' columns side by side.
            weights: How much each row counts.
            accumulation: `"float64"`, or `"split"` for exact products in float32 of rows rounded to 2⁻³² of their
                column's largest (see `exact_products`); by default whichever is fast on the device.

        Raises:
            ValueError: if a weight is negative or a number is not finite.
        """
        for name in self.blocks:
            check_finite(rows[:, self.columns(name)], f"{name} after {self.n} rows", "Check where the rows come from.")
        check_weights(weights)
        precise = torch.float64 if has_float64(rows.device) else torch.float32
        rounding, weights = rounding_of(rows.dtype), weights.to("cpu", torch.float64)
        absorb((self,), rows.to(precise, copy=True), weights, rounding=rounding, accumulation=accumulation)
        return self

    def _shift(self, weight: float, mean: Float64[Tensor, "column"]) -> None:
        """Take in the weight and the mean of rows whose own scatter has been added."""
        total = self.weight + weight
        shift = mean.to(self.mean.device) - self.mean
        if self.weight > 0:
            self.scatter.addr_(shift, shift, alpha=self.weight * weight / total)
        self.mean += shift * (weight / total)
        self.weight = total

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of rows, as a new object; `ValueError` if their blocks differ."""
        return merge_all((self, other))

    def columns(self, names: str | Sequence[str]) -> Int[Tensor, "column"]:
        """The indices of the columns of one or several blocks, in the order given; `KeyError` if there is none."""
        found = self._place(names)
        return torch.arange(found.start, found.stop) if isinstance(found, slice) else found.clone()

    def _place(self, names: str | Sequence[str]) -> slice | Int[Tensor, "column"]:
        """Where the columns of blocks are: a slice, which is not copied, if the blocks are neighbors in this order."""
        return _place((names,) if isinstance(names, str) else tuple(names), tuple(self.blocks.items()))

    def select(self, names: Sequence[str]) -> Moments:
        """The moments of these blocks alone, in the order given; `KeyError` if there is no such block."""
        columns, blocks = self.columns(names), {name: self.blocks[name] for name in names}
        mean, scatter = self.mean[columns], self.scatter[columns][:, columns]
        return self._like(blocks, mean, scatter)

    def renamed(self, names: Mapping[str, str]) -> Moments:
        """The same moments with some blocks under other names."""
        return self._like(
            {names.get(name, name): width for name, width in self.blocks.items()}, self.mean, self.scatter
        )

    def cpu(self) -> Moments:
        """The moments on the CPU; the same object if they are there already."""
        if self.mean.device.type == "cpu":
            return self
        return self._like(self.blocks, self.mean.cpu(), self.scatter.cpu())

    def _like(self, blocks: Mapping[str, int], mean: Tensor, scatter: Tensor) -> Moments:
        """Moments of the same rows with these columns."""
        rows = {"n": self.n, "weight": self.weight, "rounding": self.rounding}
        return Moments.of(blocks, mean=mean, scatter=scatter, **rows)

    def block_mean(self, names: str | Sequence[str]) -> Float64[Tensor, "column"]:
        """The weighted mean of the blocks' columns."""
        return self.mean[self._place(names)]

    def covariance(self, rows: str | Sequence[str], columns: str | Sequence[str]) -> Float64[Tensor, "row column"]:
        """The weighted population covariance between two groups of blocks, Σ = S / W."""
        return self.scatter_of(rows, columns) / self.weight

    def scatter_of(self, rows: str | Sequence[str], columns: str | Sequence[str]) -> Float64[Tensor, "row column"]:
        """The centered sum of weighted products between two groups of blocks; a view where blocks are neighbors."""
        return self.scatter[self._place(rows)][:, self._place(columns)]

    def block_scatter(self, names: str | Sequence[str]) -> Float64[Tensor, "column"]:
        """The centered sum of weighted squares of each of the blocks' columns."""
        return self.scatter.diagonal()[self._place(names)]

    @checked
    def save(self, path: str | Path, *, provenance: Mapping[str, Any] | None = None) -> Path:
        """Write the moments, and what they are of (JSON-ready), to one safetensors file, atomically."""
        save_all(path, {"moments": self}, provenance=provenance)
        return Path(path)

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Moments:
        """Load moments saved by `save`; errors as for `load_all`."""
        parts, _, _ = load_all(path)
        if list(parts) != ["moments"]:
            raise ValueError(f"{path} holds {len(parts)} moments, not one: load it with load_all(path).")
        return parts["moments"]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Moments) and same_values(vars(self), vars(other))

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        return f"Moments({self.n} rows of {self.blocks}, weight {self.weight:g})"


@functools.lru_cache(maxsize=4096)
def _place(names: tuple[str, ...], blocks: tuple[tuple[str, int], ...]) -> slice | Int[Tensor, "column"]:
    """Where the columns of some blocks are among those of all, which are given with their widths; `Moments.columns`.

    Solving asks for the same few blocks thousands of times.
    """
    widths = dict(blocks)
    starts = dict(zip(widths, itertools.accumulate(widths.values(), initial=0), strict=False))
    for name in names:
        if name not in widths:
            near = meant(name, widths)
            raise KeyError(f"No block {name!r} in these moments; they have {', '.join(widths)}.{near}")
    ends = [starts[name] + widths[name] for name in names]
    if names and [starts[name] for name in names[1:]] == ends[:-1]:
        return slice(starts[names[0]], ends[-1])
    ranges = [torch.arange(starts[name], end) for name, end in zip(names, ends, strict=True)]
    return torch.cat(ranges) if ranges else torch.zeros(0, dtype=torch.int64)


def absorb(
    into: Sequence[Moments],
    rows: Float[Tensor, "row column"],
    weights: Float64[Tensor, "row"],
    beside: Float[Tensor, "row"] | None = None,
    *,
    rounding: float,
    accumulation: Accumulation | None = None,
) -> None:
    """Add the same rows to one or several moments by one product, unchecked: the rows' memory is overwritten.

    Rows are float64, or float32 on a device that has nothing better; weights are on the CPU, and may be given a second
    time `beside` the rows, on their device. `rounding` is that of the type which the rows had.
    """
    for moments in into:
        moments.n += len(rows)
        moments.rounding = max(moments.rounding, rounding)
    total = float(weights.sum())
    if total == 0:
        return
    if (accumulation or accumulation_for(rows.device)) == "split":
        for weight, mean, scatter in split_scatters(rows, weights):
            for moments in into:
                moments.scatter += scatter.to(moments.scatter.device)
                moments._shift(weight, mean)
        return
    weights = moved(weights, rows.device) if beside is None else beside
    mean = weights @ rows / total
    rows.sub_(mean).mul_(weights.sqrt().unsqueeze(1))
    if len(into) == 1 and rows.device == into[0].scatter.device:
        # A wide matrix is not held twice.
        into[0].scatter.addmm_(rows.T, rows)
    else:
        product = rows.T @ rows
        for moments in into:
            moments.scatter += product.to(moments.scatter.device)
    for moments in into:
        moments._shift(total, mean)


def merge_all(parts: Iterable[Moments]) -> Moments:
    """The moments of all the parts' rows together, as a new object on the device of the first part.

    Raises:
        ValueError: if the parts' blocks differ or there are no parts.
    """
    parts = list(parts)
    if not parts:
        raise ValueError("There are no moments to merge: give at least one.")
    first = parts[0]
    for part in parts:
        if part.blocks != first.blocks:
            raise ValueError(f"Blocks {first.blocks} and {part.blocks} differ: merge moments of the same blocks.")
    merged = Moments(first.blocks, device=first.mean.device)
    merged.n, merged.rounding = sum(part.n for part in parts), max(part.rounding for part in parts)
    filled = [part for part in parts if part.weight > 0]
    if not filled:
        return merged
    weights = torch.tensor([part.weight for part in filled], dtype=torch.float64).to(first.mean)
    means = torch.stack([part.mean.to(first.mean) for part in filled])
    merged.weight = float(weights.sum())
    merged.mean = pooled_mean(means, weights)
    shifts = means - merged.mean
    merged.scatter.addmm_((shifts * weights.unsqueeze(1)).T, shifts)
    for part in filled:
        merged.scatter += part.scatter.to(merged.scatter)
    return merged


def pooled_mean(means: Float64[Tensor, "part column"], weights: Float64[Tensor, "part"]) -> Float64[Tensor, "column"]:
    """The mean of all rows from the parts' means, taken about the heaviest part's so that an offset costs no digits."""
    reference = means[weights.argmax()]
    return reference + (weights / weights.sum()) @ (means - reference)


def rounding_of(dtype: torch.dtype) -> float:
    """The least relative deviation of a column of numbers of this type that is more than their rounding."""
    return 1e-14 if dtype == torch.float64 else 1e-7


def check_weights(weights: Float[Tensor, "row"], where: str = "Weights") -> None:
    """Raise `ValueError` unless all weights are finite and at least 0."""
    if not torch.isfinite(weights).all() or (weights < 0).any():
        raise ValueError(f"{where} must be finite and ≥ 0: check how they were computed.")


def save_all(
    path: str | Path,
    parts: Mapping[str, Moments],
    *,
    provenance: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Write named moments, what they are of (JSON-ready) and any other sums to one safetensors file, atomically."""
    described = {}
    content = {f"tensors/{name}": tensor for name, tensor in (tensors or {}).items()}
    for name, part in parts.items():
        described[name] = {"blocks": list(part.blocks.items()), "n": part.n, "weight": part.weight}
        described[name]["rounding"] = part.rounding
        content |= {f"mean/{name}": part.mean, f"scatter/{name}": part.scatter}
    header = json.dumps({"parts": described, "provenance": dict(provenance or {})})
    # New memory: safetensors refuses two views of the same.
    copies = {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in content.items()}
    write_tensors(path, copies, {KIND: header})


def load_all(path: str | Path) -> tuple[dict[str, Moments], dict[str, Any], dict[str, Tensor]]:
    """The moments, the provenance and the other tensors in a file that `save_all` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or holds no moments.
    """
    content, metadata = read_tensors(Path(path))
    if KIND not in metadata:
        raise ValueError(f"{path} holds no moments of msp_lens: give a file that moments.save(path) wrote.")
    header = read_entry(metadata, KIND, _Header, path)
    parts = {name: _loaded(path, name, part, content) for name, part in header["parts"].items()}
    others = {name.removeprefix("tensors/"): t for name, t in content.items() if name.startswith("tensors/")}
    check_tensors(others, {name: tensor.shape for name, tensor in others.items()}, path)
    return parts, header["provenance"], others


def _loaded(path: str | Path, name: str, part: _SavedMoments, content: Mapping[str, Tensor]) -> Moments:
    """One of a file's moments, once its numbers are seen to be those of some rows."""
    blocks = dict(part["blocks"])
    width = sum(blocks.values())
    check_tensors(content, {f"mean/{name}": (width,)}, path, dtype=torch.float64)
    check_scatter(content, f"scatter/{name}", width, path)
    n, weight, rounding = part["n"], part["weight"], part["rounding"]
    mean, scatter = content[f"mean/{name}"], content[f"scatter/{name}"]
    return Moments.of(blocks, n=n, weight=weight, mean=mean, scatter=scatter, rounding=rounding)


def check_scatter(tensors: Mapping[str, Tensor], name: str, width: int, path: str | Path) -> None:
    """Raise `ValueError` unless a tensor in a file is a sum of outer products of rows of this width."""
    check_tensors(tensors, {name: (width, width)}, path, dtype=torch.float64)
    scatter, variances = tensors[name], tensors[name].diagonal()
    # The inequality of Cauchy and Schwarz, with room for rounding.
    most = variances.outer(variances).clamp(min=0).sqrt() + 1e-9 * (variances.max() if width else 0.0)
    if bool((variances < 0).any()) or bool((scatter.abs() > most).any()):
        problem = f"{name!r} holds no second moments of any rows"
        raise ValueError(f"{path}: {problem}. The file is damaged or was edited: copy or create it again.")
