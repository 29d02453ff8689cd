# SPDX-License-Identifier: Apache-2.0
"""Embedding tables held in 8, 4 or 2 bits: the layout every kernel agrees on.

The value of a row is `step * code`, the step being one fp32 number for each row and column block. A
group of tables lies in flat buffers, one for the codes, one for the steps, one for each moment of
the optimisers, so that one call serves all tables and the addresses of 10^11 elements are plain
64-bit offsets. A table's part of a buffer is a view: `Tables.codes_of(t)` and the like are what a
checkpoint saves.

Codes are signed. Eight columns are `bits` bytes, the first column in the lowest bits; a row has
`ceil(dim * bits / 8)` bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from deltarec_kernels import rounding
from deltarec_kernels.optimizer import ROW_OPTIMIZERS, STEP_OPTIMIZERS, Optimizer
from deltarec_kernels.packing import pack, row_bytes, unpack
from deltarec_kernels.registration import COMPILED

_LINE_BYTES = 64


@dataclass(frozen=True)
class TableShard:
    """The part of a table that one process holds.

    Args:
        rows: rows held here.
        dim: columns held here.
        key: names the table to the random numbers; the same on every process, below 2^32.
        column_block: columns that share a step; by default all.
        row_offset: where this part starts in the whole table; likewise `column_offset`.
    """

    rows: int
    dim: int
    key: int
    column_block: int | None = None
    row_offset: int = 0
    column_offset: int = 0

    @property
    def block(self) -> int:
        return self.dim if self.column_block is None else self.column_block


class Layout(NamedTuple):
    """One row of `Tables.layout`; `arguments.h` has the same fields in the same order."""

    rows: int
    dim: int
    block: int
    code_offset: int
    step_offset: int
    element_offset: int
    first_row: int
    key: int
    row_offset: int
    column_offset: int

    @property
    def blocks(self) -> int:
        return self.dim // self.block


def read_layout(tables: Tensor) -> list[Layout]:
    """The layouts that a `tables` tensor holds: int64 `[tables, 10]`."""
    return [Layout(*row) for row in tables.tolist()]


def codes_view(codes: Tensor, layout: Layout, bits: int) -> Tensor:
    """A table's codes as uint8 `[rows, bytes]`, in place."""
    size = row_bytes(layout.dim, bits)
    return codes.narrow(0, layout.code_offset, layout.rows * size).view(layout.rows, size)


def row_view(buffer: Tensor, layout: Layout) -> Tensor:
    """A table's steps, or row-wise state, as `[rows, blocks]`, in place."""
    start, count = layout.step_offset, layout.rows * layout.blocks
    return buffer.narrow(0, start, count).view(layout.rows, layout.blocks)


def element_view(buffer: Tensor, layout: Layout) -> Tensor:
    """A table's element-wise state as `[rows, dim]`, in place."""
    start, count = layout.element_offset, layout.rows * layout.dim
    return buffer.narrow(0, start, count).view(layout.rows, layout.dim)


class Tables:
    """Several tables of one bit width, their steps and the state of their optimisers.

    Args:
        shards: the tables.
        features: for each feature of the batches to come, its table.
        bits: 8, 4 or 2.
        optimizer: of the rows. Its learning rate may be replaced at any time, its name not.
        step_optimizer: of the steps (ALPT); without it they stay as they are (LPT).

    Attributes:
        codes: uint8, flat.
        step: float32, flat; all 1 at first.
        moments, step_moments: two float32 buffers each, or None where there is no such moment.
        layout: int64 `[tables, 10]`, see `Layout`.
        features: int64 `[features, 2]`: the table, and the first column in pooled output.
        gradient_scale: float32 `[tables]`: 1 / sqrt(columns that share a step * largest code).
        columns: width of the pooled output.
    """

    def __init__(
        self,
        shards: Sequence[TableShard],
        features: Sequence[int],
        bits: int,
        optimizer: Optimizer,
        step_optimizer: Optimizer | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if bits not in (8, 4, 2):
            raise ValueError(f"bits: got {bits}, expected 8, 4 or 2")
        if optimizer.name not in ROW_OPTIMIZERS:
            raise ValueError(f"optimizer: got {optimizer.name}, expected one of {ROW_OPTIMIZERS}")
        if step_optimizer and step_optimizer.name not in STEP_OPTIMIZERS:
            raise ValueError(
                f"step_optimizer: got {step_optimizer.name}, expected one of {STEP_OPTIMIZERS}"
            )
        self.bits = bits
        self.optimizer = optimizer
        self.step_optimizer = step_optimizer
        self.layouts = _lay_out(shards, bits)
        self.width = max(layout.dim for layout in self.layouts)
        self.layout = torch.tensor(self.layouts, device=device)
        widths = [self.layouts[table].dim for table in features]
        starts = [sum(widths[:index]) for index in range(len(widths))]
        self.columns = sum(widths)
        self.features = torch.tensor(
            list(zip(features, starts, strict=True)), dtype=torch.int64, device=device
        )
        largest = 2 ** (bits - 1) - 1
        self.gradient_scale = torch.tensor(
            [(layout.block * largest) ** -0.5 for layout in self.layouts],
            dtype=torch.float32,
            device=device,
        )
        last = self.layouts[-1]
        num_bytes = last.code_offset + last.rows * row_bytes(last.dim, bits)
        rows = last.step_offset + last.rows * last.blocks
        sizes = {None: 0, "row": rows, "element": last.element_offset + last.rows * last.dim}
        self.codes = buffer(num_bytes, torch.uint8, device)
        self.step = buffer(rows, torch.float32, device).fill_(1)
        self.moments = [
            buffer(sizes[kind], torch.float32, device) if kind else None
            for kind in optimizer.moments
        ]
        self.step_moments = [
            buffer(rows, torch.float32, device) if kind else None
            for kind in (step_optimizer.moments if step_optimizer else (None, None))
        ]

    def codes_of(self, table: int) -> Tensor:
        """Packed codes, uint8 `[rows, bytes]`: a view."""
        return codes_view(self.codes, self.layouts[table], self.bits)

    def step_of(self, table: int) -> Tensor:
        """Steps, float32 `[rows, blocks]`: a view."""
        return row_view(self.step, self.layouts[table])

    def state_of(self, table: int) -> dict[str, Tensor]:
        """Optimiser state by name: views `[rows, dim]` or `[rows, blocks]`."""
        layout = self.layouts[table]
        state = {}
        for index, kind in enumerate(self.optimizer.moments):
            buffer = self.moments[index]
            if buffer is not None:
                view = row_view if kind == "row" else element_view
                state[f"moment{index + 1}"] = view(buffer, layout)
        for index, buffer in enumerate(self.step_moments):
            if buffer is not None:
                state[f"step_moment{index + 1}"] = row_view(buffer, layout)
        return state

    def values(self, table: int, rows: slice | Tensor) -> Tensor:
        """The values of some rows, int64 `[rows]` if not a slice, as float32 `[rows, dim]`."""
        layout = self.layouts[table]
        codes = unpack(self.codes_of(table)[rows], self.bits, layout.dim)
        return codes * self.step_of(table)[rows].repeat_interleave(layout.block, 1)

    def assign(
        self, table: int, rows: int | Tensor, weights: Tensor, seed: int | None = None
    ) -> None:
        """Quantise fp32 rows into the table, by the steps it has.

        Args:
            table: which.
            rows: the first row written, the others following it; or int64 `[rows]`, each one.
            weights: float32 `[rows, dim]`.
            seed: rounds stochastically, apart from every update; without it to the nearest code.
        """
        layout = self.layouts[table]
        if isinstance(rows, int):
            rows = torch.arange(rows, rows + len(weights), device=weights.device)
        step = self.step_of(table)[rows].repeat_interleave(layout.block, 1)
        uniform = None
        if seed is not None:
            uniform = rounding.uniform(seed, rounding.ASSIGNMENT, layout, rows)
        codes = rounding.quantise(weights, step, self.bits, uniform)
        self.codes_of(table)[rows] = pack(codes, self.bits)

    def fit(self, table: int, rows: Tensor, weights: Tensor) -> None:
        """Quantise fp32 rows to the nearest codes, by the smallest steps that hold their values.

        Args:
            table: which.
            rows: int64 `[n]`, where they go.
            weights: float32 `[n, dim]`.
        """
        block = self.layouts[table].block
        largest = weights.view(len(weights), -1, block).abs().amax(2)
        step = (largest / (2 ** (self.bits - 1) - 1)).clamp(min=torch.finfo(torch.float32).tiny)
        self.step_of(table)[rows] = step
        codes = rounding.quantise(weights, step.repeat_interleave(block, 1), self.bits, None)
        self.codes_of(table)[rows] = pack(codes, self.bits)


def _lay_out(shards: Sequence[TableShard], bits: int) -> list[Layout]:
    layouts = []
    code_offset = step_offset = element_offset = first_row = 0
    for shard in shards:
        block = shard.block
        if shard.rows < 1 or shard.dim < 1:
            raise ValueError(f"a table of {shard.rows} rows and {shard.dim} columns holds nothing")
        if shard.dim % block or (block != shard.dim and block % 8):
            raise ValueError(
                f"column_block: got {block}, expected a divisor of {shard.dim} columns "
                "that is a multiple of 8"
            )
        if shard.column_offset % 8:
            raise ValueError(
                f"column_offset: got {shard.column_offset}, expected a multiple of 8: "
                "cut the table at other columns"
            )
        layouts.append(
            Layout(
                shard.rows,
                shard.dim,
                block,
                code_offset,
                step_offset,
                element_offset,
                first_row,
                shard.key,
                shard.row_offset,
                shard.column_offset,
            )
        )
        num_bytes = shard.rows * row_bytes(shard.dim, bits)
        code_offset += -(-num_bytes // _LINE_BYTES) * _LINE_BYTES
        step_offset += shard.rows * (shard.dim // block)
        element_offset += shard.rows * shard.dim
        first_row += shard.rows
    return layouts


def buffer(
    size: int | tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Tensor:
    """Zeros; on CPU in huge pages, which must be asked for before the first write."""
    tensor = torch.empty(size, dtype=dtype, device=device)
    if COMPILED and tensor.device.type == "cpu":
        torch.ops.deltarec_native.advise_huge_pages(tensor)
    return tensor.zero_()
