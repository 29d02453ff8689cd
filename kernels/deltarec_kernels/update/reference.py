# SPDX-License-Identifier: Apache-2.0
"""The update in plain PyTorch, equation by equation, table by table."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from deltarec_kernels import rounding
from deltarec_kernels.fake_quantise.reference import step_slope
from deltarec_kernels.packing import pack, unpack
from deltarec_kernels.tables import Layout, codes_view, element_view, read_layout, row_view

BLOCK = 256
MIN_STEP = 1e-8


def group_rows(
    tables: Tensor, features: Tensor, ids: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Positions by row, int32 `[ids]`; runs of equal rows, int64 `[distinct + 1]`; the rows."""
    batch = (len(offsets) - 1) // len(features)
    lengths = offsets.long()[::batch].diff() if batch else offsets.new_zeros(len(features)).long()
    table = features[:, 0].repeat_interleave(lengths)
    wrong = ids[(ids < 0) | (ids >= tables[table, 0])]
    if len(wrong):
        raise IndexError(f"id {int(wrong[0])} is outside its table")
    rows, order = torch.sort(tables[table, 6] + ids, stable=True)
    distinct, counts = torch.unique_consecutive(rows, return_counts=True)
    runs = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return order.to(torch.int32), runs, distinct


def update(
    codes: Tensor,
    step: Tensor,
    moment1: Tensor | None,
    moment2: Tensor | None,
    step_moment1: Tensor | None,
    step_moment2: Tensor | None,
    tables: Tensor,
    features: Tensor,
    gradient_scale: Tensor,
    order: Tensor,
    runs: Tensor,
    rows: Tensor,
    offsets: Tensor,
    weights: Tensor | None,
    gradient: Tensor,
    bits: int,
    pooling: str,
    optimizer: str,
    rates: list[float],
    step_optimizer: str,
    step_rates: list[float],
    step_factor: float,
    stochastic: bool,
    seed: int,
    number: int,
) -> None:
    """Optimiser, learned step and rounding of every row of the batch, in place."""
    for part in _parts(tables, features, order, runs, rows, offsets, weights, gradient, pooling):
        layout, local, total = part.layout, part.rows, part.gradient
        weight = _dequantise(codes, step, layout, local, bits)
        weight = _optimise(moment1, moment2, layout, local, total, weight, optimizer, rates)
        if step_optimizer != "none":
            scale = step_factor * gradient_scale[part.table]
            step_gradient = scale * _step_gradient(step, layout, local, total, weight, bits)
            _learn_step(
                step, step_moment1, step_moment2, layout, local, step_gradient, step_optimizer,
                step_rates,
            )  # fmt: skip
        uniform = rounding.uniform(seed, number, layout, local) if stochastic else None
        _write(codes, step, layout, local, weight, bits, uniform)


def update_rows(
    codes: Tensor,
    step: Tensor,
    moment1: Tensor | None,
    moment2: Tensor | None,
    tables: Tensor,
    features: Tensor,
    order: Tensor,
    runs: Tensor,
    rows: Tensor,
    offsets: Tensor,
    weights: Tensor | None,
    gradient: Tensor,
    width: int,
    bits: int,
    pooling: str,
    optimizer: str,
    rates: list[float],
) -> Tensor:
    """First phase of two: the rows after the optimiser, float32 `[distinct, width]`.

    The table is left with their deterministic codes at the old steps.
    """
    updated = step.new_zeros(len(rows), width)
    for part in _parts(tables, features, order, runs, rows, offsets, weights, gradient, pooling):
        layout, local = part.layout, part.rows
        weight = _dequantise(codes, step, layout, local, bits)
        weight = _optimise(moment1, moment2, layout, local, part.gradient, weight, optimizer, rates)
        updated[part.runs, : layout.dim] = weight
        _write(codes, step, layout, local, weight, bits, None)
    return updated


def update_step(
    codes: Tensor,
    step: Tensor,
    step_moment1: Tensor | None,
    step_moment2: Tensor | None,
    tables: Tensor,
    features: Tensor,
    gradient_scale: Tensor,
    order: Tensor,
    runs: Tensor,
    rows: Tensor,
    offsets: Tensor,
    weights: Tensor | None,
    gradient: Tensor,
    updated: Tensor,
    bits: int,
    pooling: str,
    step_optimizer: str,
    step_rates: list[float],
    step_factor: float,
    stochastic: bool,
    seed: int,
    number: int,
) -> None:
    """Second phase: the steps by the second pass's gradient, then the codes by the new steps."""
    for part in _parts(tables, features, order, runs, rows, offsets, weights, gradient, pooling):
        layout, local = part.layout, part.rows
        weight = updated[part.runs, : layout.dim]
        scale = step_factor * gradient_scale[part.table]
        step_gradient = scale * _step_gradient(step, layout, local, part.gradient, weight, bits)
        _learn_step(
            step, step_moment1, step_moment2, layout, local, step_gradient, step_optimizer,
            step_rates,
        )  # fmt: skip
        uniform = rounding.uniform(seed, number, layout, local) if stochastic else None
        _write(codes, step, layout, local, weight, bits, uniform)


@dataclass(frozen=True)
class _Part:
    """The distinct rows of one table, and the sum of each row's gradients `[rows, dim]`."""

    table: int
    layout: Layout
    runs: slice
    rows: Tensor
    gradient: Tensor


def _parts(
    tables: Tensor,
    features: Tensor,
    order: Tensor,
    runs: Tensor,
    rows: Tensor,
    offsets: Tensor,
    weights: Tensor | None,
    gradient: Tensor,
    pooling: str,
) -> Iterator[_Part]:
    gradient = gradient.to(torch.float32)
    for table, layout in enumerate(read_layout(tables)):
        first = int((rows < layout.first_row).sum())
        last = int((rows < layout.first_row + layout.rows).sum())
        positions = order[int(runs[first]) : int(runs[last])].long()
        each = _gradient_of(positions, features, offsets, gradient, layout.dim, pooling)
        if weights is not None:
            each = each * weights[positions, None]
        lengths = runs[first : last + 1].diff()
        span = slice(first, last)
        yield _Part(table, layout, span, rows[span] - layout.first_row, _sum_by_run(each, lengths))


def _gradient_of(
    positions: Tensor, features: Tensor, offsets: Tensor, gradient: Tensor, dim: int, pooling: str
) -> Tensor:
    """The gradient that each occurrence of an id receives, `[positions, dim]`."""
    if pooling == "none":
        return gradient[positions]
    batch = (len(offsets) - 1) // len(features)
    starts = offsets.long()
    bag = torch.searchsorted(starts, positions, right=True) - 1
    columns = features[bag // batch, 1, None] + torch.arange(dim, device=gradient.device)
    each = gradient[(bag % batch)[:, None], columns]
    if pooling == "mean":
        each = each * starts.diff()[bag].to(torch.float32).reciprocal()[:, None]
    return each


def _sum_by_run(each: Tensor, lengths: Tensor) -> Tensor:
    """Sums of consecutive runs, in order: within blocks of `BLOCK`, then over the blocks."""
    run = torch.repeat_interleave(lengths)
    within = torch.arange(len(each), device=each.device) - (lengths.cumsum(0) - lengths)[run]
    blocks = (lengths + BLOCK - 1) // BLOCK
    block = (blocks.cumsum(0) - blocks)[run] + within // BLOCK
    sums = each.new_zeros(int(blocks.sum()), each.shape[1]).index_add_(0, block, each)
    totals = each.new_zeros(len(lengths), each.shape[1])
    return totals.index_add_(0, torch.repeat_interleave(blocks), sums)


def _dequantise(codes: Tensor, step: Tensor, layout: Layout, rows: Tensor, bits: int) -> Tensor:
    row_codes = unpack(codes_view(codes, layout, bits)[rows], bits, layout.dim)
    return row_codes * row_view(step, layout)[rows].repeat_interleave(layout.block, 1)


def _by_block(values: Tensor, layout: Layout) -> Tensor:
    """Sum over the columns of each block, in double precision so that no order of it matters."""
    return values.unflatten(1, (layout.blocks, layout.block)).sum(2)


def _optimise(
    moment1: Tensor | None,
    moment2: Tensor | None,
    layout: Layout,
    rows: Tensor,
    gradient: Tensor,
    weight: Tensor,
    optimizer: str,
    rates: list[float],
) -> Tensor:
    """The rows after the optimiser's step; writes its state."""
    rate, eps, beta1, rest1, beta2, rest2, correction1, correction2 = rates
    if optimizer == "sgd":
        return weight - rate * gradient
    assert moment1 is not None
    mean_square = (_by_block(gradient.double() ** 2, layout) / layout.block).to(torch.float32)
    if optimizer == "rowwise_adagrad":
        state = row_view(moment1, layout)[rows] + mean_square
        row_view(moment1, layout)[rows] = state
        row_rate = torch.full_like(state, rate) / (state.sqrt() + eps)
        return weight - row_rate.repeat_interleave(layout.block, 1) * gradient
    if optimizer == "adagrad":
        state = element_view(moment1, layout)[rows] + gradient * gradient
        element_view(moment1, layout)[rows] = state
        return weight - (rate * gradient) / (state.sqrt() + eps)
    assert moment2 is not None
    first = beta1 * element_view(moment1, layout)[rows] + rest1 * gradient
    element_view(moment1, layout)[rows] = first
    row_wise = optimizer == "rowwise_adam"
    view = row_view if row_wise else element_view
    square = mean_square if row_wise else gradient * gradient
    second = beta2 * view(moment2, layout)[rows] + rest2 * square
    view(moment2, layout)[rows] = second
    root = (second / second.new_tensor(correction2)).sqrt() + eps
    if row_wise:
        root = root.repeat_interleave(layout.block, 1)
    return weight - (rate * (first / first.new_tensor(correction1))) / root


def _step_gradient(
    step: Tensor, layout: Layout, rows: Tensor, gradient: Tensor, weight: Tensor, bits: int
) -> Tensor:
    """LSQ: the loss's derivative to the step of each row and block, unscaled, `[rows, blocks]`."""
    scaled = weight / row_view(step, layout)[rows].repeat_interleave(layout.block, 1)
    products = gradient.double() * step_slope(scaled, bits).double()
    return _by_block(products, layout).to(torch.float32)


def _learn_step(
    step: Tensor,
    moment1: Tensor | None,
    moment2: Tensor | None,
    layout: Layout,
    rows: Tensor,
    gradient: Tensor,
    optimizer: str,
    rates: list[float],
) -> None:
    rate, eps, beta1, rest1, beta2, rest2, correction1, correction2 = rates
    move = rate * gradient
    if optimizer == "adagrad":
        assert moment1 is not None
        state = row_view(moment1, layout)[rows] + gradient * gradient
        row_view(moment1, layout)[rows] = state
        move = move / (state.sqrt() + eps)
    elif optimizer == "adam":
        assert moment1 is not None and moment2 is not None
        first = beta1 * row_view(moment1, layout)[rows] + rest1 * gradient
        second = beta2 * row_view(moment2, layout)[rows] + rest2 * (gradient * gradient)
        row_view(moment1, layout)[rows] = first
        row_view(moment2, layout)[rows] = second
        root = (second / second.new_tensor(correction2)).sqrt() + eps
        move = (rate * (first / first.new_tensor(correction1))) / root
    learned = row_view(step, layout)[rows] - move
    row_view(step, layout)[rows] = torch.where(learned > MIN_STEP, learned, MIN_STEP)


def _write(
    codes: Tensor,
    step: Tensor,
    layout: Layout,
    rows: Tensor,
    weight: Tensor,
    bits: int,
    uniform: Tensor | None,
) -> None:
    steps = row_view(step, layout)[rows].repeat_interleave(layout.block, 1)
    codes_view(codes, layout, bits)[rows] = pack(
        rounding.quantise(weight, steps, bits, uniform), bits
    )
