"""Many moments from one pass: groups of blocks, each beside the same targets, in cells such as folds.

Probing a model site by site needs each site's columns with the targets' and never one site's with another's:
Σ d² numbers, where the joint matrix of all sites has (Σ d)². Only a concatenation needs its sites side by side.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from msp_lens.moments.exact_products import Accumulation, has_float64
from msp_lens.moments.moments import Moments, merge_all

# All moments of a pass together; a laptop holds the model and its activations beside them, and decomposes them in
# minutes at the most.
MAX_BYTES = 2 * 2**30


class TooWideError(ValueError):
    """The moments asked for would not fit in memory."""


class MomentsGrid:
    """Moments of several groups of blocks in several cells, accumulated in one pass.

    Args:
        groups: Blocks wanted together: a site, or the sites of a concatenation. A group within another is taken
            from it.
        targets: Blocks that stand beside every group.
        n_cells: How many cells the rows are dealt into.
        max_bytes: Refuse to hold more than this.
        accumulation: As for `Moments.update`; by default what the blocks' device does fast.

    Attributes:
        n_batches: Batches taken in.

    Example:
        >>> grid = MomentsGrid([("0_post",), ("1_post",)], targets=("belief",), n_cells=2)
        >>> rows = {"0_post": torch.eye(4), "1_post": torch.ones(4, 2), "belief": torch.eye(4)[:, :2]}
        >>> grid.update(rows, torch.ones(4), torch.tensor([0, 1, 0, 1])).whole(("0_post", "belief"))
        Moments(4 rows of {'0_post': 4, 'belief': 2}, weight 4)
    """

    def __init__(
        self,
        groups: Sequence[Sequence[str]],
        *,
        targets: Sequence[str],
        n_cells: int = 1,
        max_bytes: int = MAX_BYTES,
        accumulation: Accumulation | None = None,
    ) -> None:
        if n_cells < 1 or not groups or not all(groups):
            raise ValueError(
                f"n_cells={n_cells}, groups={list(groups)}: give at least one cell, and groups of at least one site."
            )
        self.groups = _outermost(groups)
        self.targets = tuple(targets)
        self.n_cells = n_cells
        self.max_bytes = max_bytes
        self.accumulation: Accumulation | None = accumulation
        self.n_batches = 0
        # By group and cell; built when the first batch says how wide its blocks are.
        self.moments: list[list[Moments]] = []

    def update(
        self,
        blocks: Mapping[str, Float[Tensor, "_ _"]],
        weights: Float[Tensor, "row"],
        cells: Int[Tensor, "row"] | None = None,
    ) -> MomentsGrid:
        """Take in a batch of rows; returns itself.

        Args:
            blocks: The groups' blocks, each on any device, and the targets. Others are ignored.
            weights: How much each row counts.
            cells: Which cell each row belongs to, 0 … n_cells - 1; all to cell 0 by default.

        Raises:
            KeyError: if a block is missing.
            ValueError: if a number is not finite, naming the block and the batch; if a weight is negative or a cell
                out of range; if a block's width changed.
            TooWideError: at the first batch, if the moments would take more than `max_bytes`.
        """
        self._check(blocks, weights, cells)
        if not self.moments:
            self._build(blocks)
        order, sizes = self._order(cells, len(weights))
        weights = weights.to("cpu", torch.float64)
        parts = (weights if order is None else weights[order]).split(sizes)
        for group, row_of_cells in zip(self.groups, self.moments, strict=True):
            device = blocks[group[0]].device
            joined = self._joined(blocks, group, device, order)
            for moments, rows, share in zip(row_of_cells, joined.split(sizes), parts, strict=True):
                if len(rows):
                    moments.absorb_rows(rows, share, accumulation=self.accumulation)
        self.n_batches += 1
        return self

    def cells(self, names: Sequence[str]) -> list[Moments]:
        """The moments of these blocks in each cell, on the CPU.

        Raises:
            KeyError: if no group holds them all side by side.
            ValueError: if no rows were taken in.
        """
        if not self.moments:
            raise ValueError("No rows yet: update the grid with a batch first.")
        wanted = set(names) - set(self.targets)
        holding = [index for index, group in enumerate(self.groups) if wanted <= set(group)]
        if not holding:
            groups = "; ".join(", ".join(group) for group in self.groups)
            raise KeyError(f"No group holds {', '.join(names)} side by side; the groups are: {groups}.")
        narrowest = min(holding, key=lambda index: sum(self.moments[index][0].blocks.values()))
        return [moments.select(names).cpu() for moments in self.moments[narrowest]]

    def whole(self, names: Sequence[str]) -> Moments:
        """The moments of these blocks over all cells; errors as for `cells`."""
        return merge_all(self.cells(names))

    def parts(self) -> dict[str, Moments]:
        """All moments by a name of their group and cell, `"0/3"`: to be saved or reduced."""
        return {f"{g}/{c}": moments for g, row in enumerate(self.moments) for c, moments in enumerate(row)}

    def restore(self, parts: Mapping[str, Moments], *, n_batches: int | None = None) -> MomentsGrid:
        """Take on all moments that `parts` gave, here or in another run; returns itself.

        Raises:
            ValueError: if they are not those of a grid with these groups, targets and cells.
        """
        expected = [f"{g}/{c}" for g in range(len(self.groups)) for c in range(self.n_cells)]
        fits = list(parts) == expected and all(
            tuple(parts[f"{g}/0"].blocks) == (*group, *self.targets) for g, group in enumerate(self.groups)
        )
        if parts and not fits:
            raise ValueError("These moments are of other groups, targets or cells: they belong to another pass.")
        self.moments = [
            [parts[f"{g}/{c}"] for c in range(self.n_cells)] for g in range(len(self.groups) if parts else 0)
        ]
        self.n_batches = self.n_batches if n_batches is None else n_batches
        return self

    def _check(
        self, blocks: Mapping[str, Tensor], weights: Float[Tensor, "row"], cells: Int[Tensor, "row"] | None
    ) -> None:
        for name in {name for group in self.groups for name in group} | set(self.targets):
            if name not in blocks:
                raise KeyError(f"The rows lack the block {name!r}; they have {', '.join(blocks)}.")
            if len(blocks[name]) != len(weights):
                raise ValueError(f"{name!r} has {len(blocks[name])} rows, the weights {len(weights)}: give one a row.")
            if self.moments:
                known = next(row[0].blocks[name] for row in self.moments if name in row[0].blocks)
                if blocks[name].shape[1] != known:
                    raise ValueError(
                        f"{name!r} has {blocks[name].shape[1]} columns; in earlier batches it had {known}."
                    )
            # Before any moments change. A sum is finite only if all its terms are; the second look excuses overflow.
            if not torch.isfinite(blocks[name].sum()) and not torch.isfinite(blocks[name]).all():
                raise ValueError(
                    f"Batch {self.n_batches}: rows must be finite: {name} holds NaN or infinity. Has the model "
                    "diverged, or does it overflow in its dtype?"
                )
        if not torch.isfinite(weights).all() or (weights < 0).any():
            raise ValueError(f"Batch {self.n_batches}: weights must be finite and ≥ 0: see how they were computed.")
        if cells is not None and len(cells) and not 0 <= int(cells.min()) <= int(cells.max()) < self.n_cells:
            raise ValueError(
                f"cells lie in {int(cells.min())} … {int(cells.max())}; this grid has 0 … {self.n_cells - 1}."
            )

    def _build(self, blocks: Mapping[str, Tensor]) -> None:
        widths = {name: block.shape[1] for name, block in blocks.items()}
        check_memory(self.groups, widths, targets=self.targets, n_cells=self.n_cells, max_bytes=self.max_bytes)
        self.moments = [
            [
                Moments({name: widths[name] for name in (*group, *self.targets)}, device=blocks[group[0]].device)
                for _ in range(self.n_cells)
            ]
            for group in self.groups
        ]

    def _order(self, cells: Int[Tensor, "row"] | None, n_rows: int) -> tuple[Int[Tensor, "row"] | None, list[int]]:
        """The rows sorted by cell (`None`: as they are), and how many each cell gets."""
        if cells is None or self.n_cells == 1:
            return None, [n_rows] + [0] * (self.n_cells - 1)
        cells = cells.cpu()
        return cells.argsort(stable=True), torch.bincount(cells, minlength=self.n_cells).tolist()

    def _joined(
        self, blocks: Mapping[str, Tensor], group: Sequence[str], device: torch.device, order: Tensor | None
    ) -> Float[Tensor, "row column"]:
        """The group's blocks and the targets side by side, sorted, in memory of their own."""
        precise = torch.float64 if has_float64(device) else torch.float32
        where = None if order is None else order.to(device)
        columns = [blocks[name].to(device) for name in (*group, *self.targets)]
        if where is not None:
            columns = [column.index_select(0, where) for column in columns]
        width = sum(column.shape[1] for column in columns)
        joined = torch.empty(len(columns[0]), width, dtype=precise, device=device)
        return torch.cat([column.to(precise) for column in columns], dim=1, out=joined)

    def __repr__(self) -> str:
        return f"MomentsGrid({len(self.groups)} groups × {self.n_cells} cells, {self.n_batches} batches)"


def check_memory(
    groups: Sequence[Sequence[str]],
    widths: Mapping[str, int],
    *,
    targets: Sequence[str] = (),
    n_cells: int = 1,
    max_bytes: int = MAX_BYTES,
) -> int:
    """Bytes that the moments of these groups take.

    Raises:
        TooWideError: a `ValueError`, if they are more than `max_bytes`.
    """
    groups = _outermost(groups)
    joint = [sum(widths[name] for name in (*group, *targets)) for group in groups]
    needed = 8 * n_cells * sum(width**2 for width in joint)
    if needed > max_bytes:
        widest = max(range(len(groups)), key=lambda index: joint[index])
        features = sum(widths[name] for name in groups[widest])
        raise TooWideError(
            f"{len(groups)} groups, the widest {len(groups[widest])} sites of {features:,} features together, need "
            f"{_size(needed)} of moments ({joint[widest]:,}² numbers a cell, {n_cells} cells); the limit is "
            f"{_size(max_bytes)}. Probe fewer sites together, or none (concatenate=False); or reduce each site first, "
            "with RandomProjection(width, seed=...) or PrincipalComponents.from_moments(...); or raise max_bytes."
        )
    return needed


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.1f} MiB"


def _outermost(groups: Collection[Sequence[str]]) -> list[tuple[str, ...]]:
    """The groups that no other one holds, in their order."""
    distinct = list({frozenset(group): tuple(group) for group in reversed(list(groups))}.values())[::-1]
    return [group for group in distinct if not any(set(group) < set(other) for other in distinct)]
