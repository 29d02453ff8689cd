# SPDX-License-Identifier: Apache-2.0
"""Lookup: ids to rows, pooled by bag or one for each id.

A row is `step * code`. A bag is summed in the order of its ids in fp32, a weight multiplying the
step first; the mean multiplies the sum by 1 / length. Empty bags are zeros. The codes have no
gradient: `deltarec_kernels.update` is what trains them.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from deltarec_kernels.lookup import reference
from deltarec_kernels.registration import register
from deltarec_kernels.tables import Tables

Pooling = Literal["sum", "mean", "none"]
_TYPES = (torch.float32, torch.float16, torch.bfloat16)


def lookup(
    tables: Tables,
    ids: Tensor,
    offsets: Tensor,
    weights: Tensor | None = None,
    pooling: Pooling = "sum",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Read the rows of a jagged batch from several tables in one call.

    Args:
        tables: the tables and the features.
        ids: int32 or int64 `[ids]`, feature by feature, bag by bag. On CUDA they are not checked.
        offsets: int32 or int64 `[features * batch + 1]`, the bags' starts in `ids`.
        weights: float32 `[ids]`, for a weighted sum; differentiable.
        pooling: `sum`, `mean`, or `none` for one row an id, where all features have equal width.
        dtype: float32, float16 or bfloat16.

    Returns:
        `[batch, tables.columns]`, or without pooling `[ids, dim]`.

    Raises:
        ValueError: the arguments do not fit each other.
        IndexError: an id is outside its table (CPU).
    """
    if dtype not in _TYPES:
        raise ValueError(f"dtype: got {dtype}, expected one of {_TYPES}")
    if weights is not None and pooling != "sum":
        raise ValueError(f"pooling: got {pooling}, expected sum: weights go with no other")
    columns = tables.columns
    if pooling == "none":
        columns = tables.width
        if columns * len(tables.features) != tables.columns:
            raise ValueError("pooling: none needs features of equal width in one group")
    if (len(offsets) - 1) % len(tables.features):
        raise ValueError(
            f"offsets: {len(offsets) - 1} bags are no multiple of {len(tables.features)} features"
        )
    return _lookup(
        tables.codes,
        tables.step,
        tables.layout,
        tables.features,
        ids,
        offsets,
        weights,
        tables.bits,
        pooling,
        columns,
        dtype,
    )


def _fake(
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
    rows = len(ids) if pooling == "none" else (len(offsets) - 1) // len(features)
    return codes.new_empty(rows, columns, dtype=dtype)


def _fake_weights_gradient(
    codes: Tensor,
    step: Tensor,
    tables: Tensor,
    features: Tensor,
    ids: Tensor,
    offsets: Tensor,
    gradient: Tensor,
    bits: int,
) -> Tensor:
    return codes.new_empty(len(ids), dtype=torch.float32)


_lookup = register(
    "lookup(Tensor codes, Tensor step, Tensor tables, Tensor features, Tensor ids, Tensor offsets, "
    "Tensor? weights, int bits, str pooling, int columns, ScalarType dtype) -> Tensor",
    reference.lookup,
    _fake,
    "deltarec_kernels.lookup.triton",
)
_weights_gradient = register(
    "lookup_weights_gradient(Tensor codes, Tensor step, Tensor tables, Tensor features, "
    "Tensor ids, Tensor offsets, Tensor gradient, int bits) -> Tensor",
    reference.lookup_weights_gradient,
    _fake_weights_gradient,
    "deltarec_kernels.lookup.triton",
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.bits = inputs[7]


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    weights = None
    if ctx.needs_input_grad[6]:
        weights = _weights_gradient(*ctx.saved_tensors, gradient, ctx.bits)
    return (None,) * 6 + (weights,) + (None,) * 4


torch.library.register_autograd("deltarec::lookup", _backward, setup_context=_save)
