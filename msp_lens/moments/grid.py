"""Many moments from one pass: groups of blocks, each joined with the same targets, in cells such as folds.

Fitting site by site needs the products of each site's columns with the targets, never of one site's with another's:
Σ d² numbers, where the joint matrix of all sites has (Σ d)². Only a concatenation needs its sites jointly.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from msp_lens._arrays import moved
from msp_lens._checks import Count, check_all_finite, checked
from msp_lens._names import meant
from msp_lens.moments.exact_products import Accumulation, has_float64
from msp_lens.moments.moments import Moments, absorb, check_weights, merge_all, rounding_of

# For all moments of a pass: a laptop can hold these as well as a model, and decompose them within minutes.
MAX_BYTES = 2 * 2**30
# Rows that are multiplied are held in float64, so many at a time.
ROWS_AT_A_TIME = 2_048


class TooWideError(ValueError):
    """The moments would take more memory than allowed."""


class MomentsGrid:
    """Moments of several groups of blocks in several cells, accumulated in one pass.

    Args:
        groups: Blocks wanted jointly. A group contained in another is read from that one.
        targets: Blocks joined with every group.
        n_cells: Number of cells that rows are dealt into; several numbers if the same rows are dealt in several ways,
            such as by fold and by position.
        max_bytes: Largest memory that the moments may take.
        accumulation: As for `Moments.update`; by default whichever is fast on the blocks' device.

    Attributes:
        n_batches: Number of batches added.

    Example:
        >>> grid = MomentsGrid([("0_post",), ("1_post",)], targets=("belief",), n_cells=2)
        >>> rows = {"0_post": torch.eye(4), "1_post": torch.ones(4, 2), "belief": torch.eye(4)[:, :2]}
        >>> grid.update(rows, torch.ones(4), torch.tensor([0, 1, 0, 1])).whole(("0_post", "belief"))
        Moments(4 rows of {'0_post': 4, 'belief': 2}, weight 4)
    """

    @checked
    def __init__(
        self,
        groups: Sequence[Sequence[str]],
        *,
        targets: Sequence[str],
        n_cells: Count | tuple[Count, ...] = 1,
        max_bytes: Count = MAX_BYTES,
        accumulation: Accumulation | None = None,
    ) -> None:
        if not groups or not all(groups):
            raise ValueError(f"groups={list(groups)}: give at least one group, each of at least one block.")
        self.groups, self.targets = _outermost(groups), tuple(targets)
        self.n_cells = (n_cells,) if isinstance(n_cells, int) else n_cells
        self.max_bytes = max_bytes
        self.accumulation: Accumulation | None = accumulation
        self.n_batches = 0
        # By group and cell, the cells of each way after those of the way before; built at the first batch, which shows
        # how wide its blocks are.
        self.moments: list[list[Moments]] = []

    def update(
        self,
        blocks: Mapping[str, Float[Tensor, "row _"]],
        weights: Float[Tensor, "row"],
        cells: Int[Tensor, "row"] | Int[Tensor, "row way"] | None = None,
        *,
        are_finite: bool = False,
    ) -> MomentsGrid:
        """Add a batch of rows, all of it or (on an error) none; returns the grid.

        Args:
            blocks: The groups' blocks, each on any device, and the targets. Other blocks are ignored.
            weights: How much each row counts.
            cells: The cell of each row, 0 … n_cells - 1, with a column for each way; cell 0 for all by default.
            are_finite: Whether the blocks' numbers are known to be finite, which is then not checked again.

        Raises:
            KeyError: if a block is missing.
            ValueError: if a number is not finite, a weight is negative, a cell is out of range, or a width changed.
            TooWideError: at the first batch, if the moments would take more than `max_bytes`.
        """
        cells = torch.zeros(len(weights), len(self.n_cells), dtype=torch.int64) if cells is None else cells.cpu()
        cells = cells.unsqueeze(1) if cells.ndim == 1 else cells
        self._check(blocks, weights, cells, are_finite=are_finite)
        joint = [(*group, *self.targets) for group in self.groups]
        if not self.moments:
            widths = {name: block.shape[1] for name, block in blocks.items()}
            n_cells = sum(self.n_cells)
            check_memory(self.groups, widths, targets=self.targets, n_cells=n_cells, max_bytes=self.max_bytes)
            for names in joint:
                own, device = {name: widths[name] for name in names}, blocks[names[0]].device
                self.moments.append([Moments(own, device=device) for _ in range(n_cells)])
        # A number for the cells of each row in all ways, and where in `moments` the cells of each way begin.
        shared, order = torch.from_numpy(np.ravel_multi_index(tuple(cells.numpy().T), self.n_cells)).sort(stable=True)
        first = np.cumsum([0, *self.n_cells[:-1]])
        weights = weights.to("cpu", torch.float64)[order]

        @cache
        def on(device: torch.device) -> tuple[dict[str, Tensor], Tensor, Tensor]:
            # The targets, the order and the weights of all groups come to a device once.
            precise = torch.float64 if has_float64(device) else torch.float32
            targets = {name: moved(blocks[name].to(precise), device) for name in self.targets}
            return targets, moved(order, device), moved(weights.to(precise), device)

        for names, row_of_cells in zip(joint, self.moments, strict=True):
            targets, rows, beside = on(blocks[names[0]].device)
            of_group = [targets.get(name, blocks[name]) for name in names]
            rounding = max(rounding_of(blocks[name].dtype) for name in names)
            for start in range(0, len(rows), ROWS_AT_A_TIME):
                here = slice(start, start + ROWS_AT_A_TIME)
                # Rows that share their cells in all ways are multiplied together.
                sets, counts = shared[here].unique_consecutive(return_counts=True)
                taken = np.stack(np.unravel_index(sets.numpy(), self.n_cells), axis=1) + first
                joined, sizes = _joined(of_group, rows[here]), counts.tolist()
                by_set = (values.split(sizes) for values in (joined, weights[here], beside[here]))
                for cells_of_set, *of_set in zip(taken.tolist(), *by_set, strict=True):
                    into = [row_of_cells[cell] for cell in cells_of_set]
                    absorb(into, *of_set, rounding=rounding, accumulation=self.accumulation)
        self.n_batches += 1
        return self

    def cells(self, names: Sequence[str]) -> list[Moments]:
        """The moments of these blocks in each cell of the first way, on the CPU.

        Raises:
            KeyError: if no group holds all of them.
            ValueError: if there were no rows yet.
        """
        if not self.moments:
            raise ValueError("The grid has no rows yet: update it with a batch first.")
        wanted = set(names) - set(self.targets)
        holding = [row for row, group in zip(self.moments, self.groups, strict=True) if wanted <= set(group)]
        if not holding:
            groups = "; ".join(", ".join(group) for group in self.groups)
            raise KeyError(f"No group holds {', '.join(names)} jointly; the groups are: {groups}.")
        narrowest = min(holding, key=lambda row: len(row[0].mean))
        return [moments.select(names).cpu() for moments in narrowest[: self.n_cells[0]]]

    def whole(self, names: Sequence[str]) -> Moments:
        """The moments of these blocks over all cells; errors as for `cells`."""
        return merge_all(self.cells(names))

    def parts(self) -> dict[str, Moments]:
        """All moments by group and cell (`"0/3"`), to save or to sum over processes."""
        return {f"{g}/{c}": moments for g, row in enumerate(self.moments) for c, moments in enumerate(row)}

    def restore(self, parts: Mapping[str, Moments], *, n_batches: int | None = None) -> MomentsGrid:
        """Replace all moments by those that `parts` returned, here or in another run; returns the grid.

        Raises:
            ValueError: if they have other groups, targets or cells.
        """
        n_cells = sum(self.n_cells)
        expected = [f"{g}/{c}" for g in range(len(self.groups)) for c in range(n_cells)]
        fits = list(parts) == expected and all(
            tuple(parts[f"{g}/0"].blocks) == (*group, *self.targets) for g, group in enumerate(self.groups)
        )
        if parts and not fits:
            raise ValueError("These moments have other groups, targets or cells: they belong to another pass.")
        n_groups = len(self.groups) if parts else 0
        self.moments = [[parts[f"{g}/{c}"] for c in range(n_cells)] for g in range(n_groups)]
        self.n_batches = self.n_batches if n_batches is None else n_batches
        return self

    def _check(
        self,
        blocks: Mapping[str, Tensor],
        weights: Tensor,
        cells: Int[Tensor, "row way"],
        *,
        are_finite: bool,
    ) -> None:
        names = dict.fromkeys([name for group in self.groups for name in group] + list(self.targets))
        for name in names:
            if name not in blocks:
                raise KeyError(f"The rows have no block {name!r}; they have {', '.join(blocks)}.{meant(name, blocks)}")
            n_rows, width = blocks[name].shape
            if n_rows != len(weights):
                raise ValueError(f"{name!r} has {n_rows} rows, the weights {len(weights)}: give one weight per row.")
            known = next((row[0].blocks[name] for row in self.moments if name in row[0].blocks), width)
            if width != known:
                raise ValueError(f"{name!r} has {width} columns; in earlier batches it had {known}.")
        if not are_finite:
            numbers = [(f"{name} in batch {self.n_batches}", blocks[name]) for name in names]
            check_all_finite(numbers, "Check where the rows come from.")
        check_weights(weights, f"Weights of batch {self.n_batches}")
        if cells.shape != (len(weights), len(self.n_cells)):
            ways = f"{len(weights)} rows in {len(self.n_cells)} ways"
            raise ValueError(f"cells have the shape {tuple(cells.shape)}: give a cell for each of {ways}.")
        for of_way, n_cells in zip(cells.T if len(cells) else (), self.n_cells, strict=False):
            low, high = int(of_way.min()), int(of_way.max())
            if low < 0 or high >= n_cells:
                raise ValueError(f"cells run from {low} to {high}; this grid has 0 … {n_cells - 1}.")

    def __repr__(self) -> str:
        n_cells = " + ".join(map(str, self.n_cells))
        return f"MomentsGrid({len(self.groups)} groups × {n_cells} cells, {self.n_batches} batches)"


def _joined(blocks: Sequence[Tensor], rows: Int[Tensor, "row"]) -> Float[Tensor, "row column"]:
    """Some rows of blocks, side by side in new memory, in the widest type of the device that `rows` is on."""
    precise = torch.float64 if has_float64(rows.device) else torch.float32
    widths = [block.shape[1] for block in blocks]
    joined = torch.empty(len(rows), sum(widths), dtype=precise, device=rows.device)
    for columns, block in zip(joined.split(widths, dim=1), blocks, strict=True):
        columns.copy_(block[rows.to(block.device)])
    return joined


def check_memory(
    groups: Sequence[Sequence[str]],
    widths: Mapping[str, int],
    *,
    targets: Sequence[str] = (),
    n_cells: int = 1,
    max_bytes: int = MAX_BYTES,
) -> int:
    """The number of bytes that the moments of these groups take; `TooWideError` if it exceeds `max_bytes`."""
    needed = moments_bytes(groups, widths, targets=targets, n_cells=n_cells)
    if needed > max_bytes:
        groups = _outermost(groups)
        joint = [sum(widths[name] for name in (*group, *targets)) for group in groups]
        widest = groups[joint.index(max(joint))]
        features = sum(widths[name] for name in widest)
        raise TooWideError(
            f"{len(groups)} groups, the widest of {len(widest)} sites of {features:,} features together, need "
            f"{bytes_text(needed)} of moments ({max(joint):,}² numbers per cell, {n_cells} cells); the limit is "
            f"{bytes_text(max_bytes)}. Concatenate fewer sites, or none (concatenate=False); or reduce each site first "
            "with RandomProjection(width, seed=...) or PrincipalComponents.from_moments(...); or raise max_bytes."
        )
    return needed


def moments_bytes(
    groups: Sequence[Sequence[str]], widths: Mapping[str, int], *, targets: Sequence[str] = (), n_cells: int = 1
) -> int:
    """The number of bytes that the moments of these groups take."""
    joint = [sum(widths[name] for name in (*group, *targets)) for group in _outermost(groups)]
    return 8 * n_cells * sum(width**2 for width in joint)


def bytes_text(n_bytes: float) -> str:
    """A number of bytes as messages show it."""
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.1f} MiB"


def _outermost(groups: Collection[Sequence[str]]) -> list[tuple[str, ...]]:
    """The groups that no other group contains, in their order."""
    distinct = list({frozenset(group): tuple(group) for group in reversed(list(groups))}.values())[::-1]
    return [group for group in distinct if not any(set(group) < set(other) for other in distinct)]
