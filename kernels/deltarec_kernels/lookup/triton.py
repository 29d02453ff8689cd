# SPDX-License-Identifier: Apache-2.0
"""The lookup in Triton: one program for each bag, a tile of ids at a time."""

# The options of a launch (num_warps) are no parameters of the kernel.
# pyright: reportCallIssue=false
import torch
import triton
import triton.language as tl
from torch import Tensor

from deltarec_kernels.triton_rows import (
    BLOCK,
    CODE_OFFSET,
    DIM,
    STEP_OFFSET,
    field,
    load_codes,
)

_TILE = 8


@triton.jit
def _load_rows(codes, step, tables, table, ids, mask, columns, scale, BITS: tl.constexpr):
    """Rows `[TILE, COLUMNS]`, dequantised; `scale` `[TILE]` multiplies the steps first."""
    dim = field(tables, table, DIM)
    block = field(tables, table, BLOCK)
    both = mask[:, None] & (columns < dim)[None, :]
    stride = (dim * BITS + 7) // 8
    rows = codes + field(tables, table, CODE_OFFSET) + ids * stride
    values = load_codes(rows[:, None], columns[None, :], both, BITS)
    at = field(tables, table, STEP_OFFSET) + ids * (dim // block)
    steps = tl.load(step + at[:, None] + (columns // block)[None, :], mask=both, other=0.0)
    return (scale[:, None] * steps) * values


@triton.jit
def _lookup_kernel(
    codes,  # uint8, flat
    step,  # float32, flat
    tables,  # int64 [tables, FIELDS]
    features,  # int64 [features, 2]
    ids,  # [ids]
    offsets,  # [features * batch + 1]
    weights,  # float32 [ids]
    output,  # [batch, width], or [ids, width]
    batch,
    width,
    BITS: tl.constexpr,
    POOLING: tl.constexpr,
    WEIGHTED: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
):
    bag = tl.program_id(0).to(tl.int64)
    feature = bag // batch
    table = tl.load(features + feature * 2)
    columns = tl.arange(0, COLUMNS).to(tl.int64)
    valid = columns < field(tables, table, DIM)
    first = tl.load(offsets + bag).to(tl.int64)
    last = tl.load(offsets + bag + 1).to(tl.int64)
    total = tl.zeros([COLUMNS], dtype=tl.float32)
    for start in range(first, last, TILE):
        at = start + tl.arange(0, TILE).to(tl.int64)
        mask = at < last
        rows = tl.load(ids + at, mask=mask, other=0).to(tl.int64)
        scale = tl.full([TILE], 1.0, dtype=tl.float32)
        if WEIGHTED:
            scale = tl.load(weights + at, mask=mask, other=0.0)
        values = _load_rows(codes, step, tables, table, rows, mask, columns, scale, BITS)
        if POOLING == "none":
            to = output + at[:, None] * width + columns[None, :]
            tl.store(to, values.to(output.dtype.element_ty), mask=mask[:, None] & valid[None, :])
        else:
            total += tl.sum(values, 0)
    if POOLING != "none":
        if POOLING == "mean":
            total = total * tl.div_rn(1.0, tl.maximum(last - first, 1).to(tl.float32))
        to = output + bag % batch * width + tl.load(features + feature * 2 + 1) + columns
        tl.store(to, total.to(output.dtype.element_ty), mask=valid)


@triton.jit
def _weights_gradient_kernel(
    codes,  # uint8, flat
    step,  # float32, flat
    tables,  # int64 [tables, FIELDS]
    features,  # int64 [features, 2]
    ids,  # [ids]
    offsets,  # [features * batch + 1]
    gradient,  # [batch, width]
    output,  # float32 [ids]
    batch,
    width,
    BITS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
):
    bag = tl.program_id(0).to(tl.int64)
    feature = bag // batch
    table = tl.load(features + feature * 2)
    columns = tl.arange(0, COLUMNS).to(tl.int64)
    valid = columns < field(tables, table, DIM)
    place = bag % batch * width + tl.load(features + feature * 2 + 1)
    part = tl.load(gradient + place + columns, mask=valid, other=0.0).to(tl.float64)
    first = tl.load(offsets + bag).to(tl.int64)
    last = tl.load(offsets + bag + 1).to(tl.int64)
    for start in range(first, last, TILE):
        at = start + tl.arange(0, TILE).to(tl.int64)
        mask = at < last
        rows = tl.load(ids + at, mask=mask, other=0).to(tl.int64)
        one = tl.full([TILE], 1.0, dtype=tl.float32)
        values = _load_rows(codes, step, tables, table, rows, mask, columns, one, BITS)
        products = tl.sum(values.to(tl.float64) * part[None, :], 1)
        tl.store(output + at, products.to(tl.float32), mask=mask)


def lookup(
    codes: Tensor,
    step: Tensor,
    tables: Tensor,
    features: Tensor,
    ids: Tensor,
    offsets: Tensor,
    weights: Tensor | None,
    bits: int,
    pooling: str,
    columns: int,
    dtype: torch.dtype,
) -> Tensor:
    """`torch.ops.deltarec.lookup` on CUDA."""
    bags = len(offsets) - 1
    batch = bags // len(features)
    output = codes.new_empty(len(ids) if pooling == "none" else batch, columns, dtype=dtype)
    if bags:
        _lookup_kernel[(bags,)](
            codes,
            step,
            tables,
            features,
            ids,
            offsets,
            weights if weights is not None else step,
            output,
            batch,
            columns,
            BITS=bits,
            POOLING=pooling,
            WEIGHTED=weights is not None,
            COLUMNS=triton.next_power_of_2(int(tables[:, 1].max())),
            TILE=_TILE,
            num_warps=1,
        )
    return output


def lookup_weights_gradient(
    codes: Tensor,
    step: Tensor,
    tables: Tensor,
    features: Tensor,
    ids: Tensor,
    offsets: Tensor,
    gradient: Tensor,
    bits: int,
) -> Tensor:
    """`torch.ops.deltarec.lookup_weights_gradient` on CUDA."""
    bags = len(offsets) - 1
    output = codes.new_empty(len(ids), dtype=torch.float32)
    if bags:
        _weights_gradient_kernel[(bags,)](
            codes,
            step,
            tables,
            features,
            ids,
            offsets,
            gradient.contiguous(),
            output,
            bags // len(features),
            gradient.shape[1],
            BITS=bits,
            COLUMNS=triton.next_power_of_2(int(tables[:, 1].max())),
            TILE=_TILE,
            num_warps=1,
        )
    return output
