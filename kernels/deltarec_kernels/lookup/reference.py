# SPDX-License-Identifier: Apache-2.0
"""The lookup in plain PyTorch; `lookup` and `lookup_weights_gradient` as the operators' schemas."""

from collections.abc import Iterator

import torch
from torch import Tensor

from deltarec_kernels.packing import unpack
from deltarec_kernels.tables import Layout, codes_view, read_layout, row_view


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
    """Pooled rows `[batch, columns]`, or without pooling one row for each id `[ids, columns]`."""
    outputs = []
    for layout, _, span, bags in _by_feature(tables, features, offsets):
        row_codes, row_steps = _rows(codes, step, layout, bits, ids[span])
        if weights is not None:
            row_steps = weights[span, None] * row_steps
        rows = row_steps * row_codes
        if pooling == "none":
            outputs.append(rows)
            continue
        lengths = bags.diff()
        bag = torch.repeat_interleave(lengths)
        pooled = rows.new_zeros(len(lengths), layout.dim).index_add_(0, bag, rows)
        if pooling == "mean":
            pooled = pooled * lengths.clamp(min=1).to(torch.float32).reciprocal()[:, None]
        outputs.append(pooled)
    return torch.cat(outputs, 0 if pooling == "none" else 1).to(dtype)


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
    """The gradient to the weight of each id, float32 `[ids]`: its row times its bag's gradient."""
    outputs = []
    for layout, column, span, bags in _by_feature(tables, features, offsets):
        row_codes, row_steps = _rows(codes, step, layout, bits, ids[span])
        rows = row_steps * row_codes
        bag = torch.repeat_interleave(bags.diff())
        part = gradient[:, column : column + layout.dim].to(torch.float32)[bag]
        outputs.append((rows.double() * part.double()).sum(1).to(torch.float32))
    return torch.cat(outputs)


def _by_feature(
    tables: Tensor, features: Tensor, offsets: Tensor
) -> Iterator[tuple[Layout, int, slice, Tensor]]:
    """For each feature: its table, its first output column, its ids, its bags' offsets."""
    layouts = read_layout(tables)
    batch = (len(offsets) - 1) // len(features)
    for feature, (table, column) in enumerate(features.tolist()):
        bags = offsets[feature * batch : (feature + 1) * batch + 1].long()
        yield layouts[table], column, slice(int(bags[0]), int(bags[-1])), bags


def _rows(
    codes: Tensor, step: Tensor, layout: Layout, bits: int, ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Codes and steps of the rows, float32 `[ids, dim]` each."""
    wrong = ids[(ids < 0) | (ids >= layout.rows)]
    if len(wrong):
        raise IndexError(f"id {int(wrong[0])} is outside its table of {layout.rows} rows")
    row_codes = unpack(codes_view(codes, layout, bits)[ids.long()], bits, layout.dim)
    row_steps = row_view(step, layout)[ids.long()].repeat_interleave(layout.block, 1)
    return row_codes, row_steps
