# SPDX-License-Identifier: Apache-2.0
"""The update in Triton: one program for each distinct row and column block.

Runs of more than `BLOCK` occurrences are first summed block by block, a program for each, so that a
row hit by every id of the batch does not leave the machine to one program.
"""

# The options of a launch (num_warps) are no parameters of the kernel.
# pyright: reportCallIssue=false
import torch
import triton
import triton.language as tl
from torch import Tensor

from deltarec_kernels.triton_rows import (
    BLOCK,
    CODE_OFFSET,
    COLUMN_OFFSET,
    DIM,
    ELEMENT_OFFSET,
    FIRST_ROW,
    KEY,
    ROW_OFFSET,
    STEP_OFFSET,
    field,
    load_codes,
    quantise,
    step_slope,
    store_codes,
    sum_of_products,
    uniform,
)
from deltarec_kernels.update.reference import BLOCK as SUM_BLOCK


@triton.jit
def _sum_occurrences(places, weights, gradient, first, last, columns, mask, WEIGHTED: tl.constexpr):
    """The gradients of the occurrences [first, last), in order."""
    total = tl.zeros(columns.shape, dtype=tl.float32)
    for at in range(first, last):
        part = tl.load(gradient + tl.load(places + at) + columns, mask=mask, other=0.0)
        part = part.to(tl.float32)
        if WEIGHTED:
            part = part * tl.load(weights + at)
        total = total + part
    return total


@triton.jit
def _sum_blocks_kernel(
    blocks,  # int64 [sum blocks, 3]: first occurrence, last, columns
    places,  # int64 [ids], by row: where the occurrence's gradient starts
    weights,  # float32 [ids], by row
    gradient,  # flat
    sums,  # float32 [sum blocks, COLUMNS]
    WEIGHTED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, COLUMNS)
    mask = columns < tl.load(blocks + at * 3 + 2)
    first, last = tl.load(blocks + at * 3), tl.load(blocks + at * 3 + 1)
    total = _sum_occurrences(places, weights, gradient, first, last, columns, mask, WEIGHTED)
    tl.store(sums + at * COLUMNS + columns, total)


@triton.jit
def _mean_square(g, block):
    total = tl.sum(g.to(tl.float64) * g.to(tl.float64), 0)
    return (total / block.to(tl.float64)).to(tl.float32)


@triton.jit
def _optimise(
    weight, g, moment1, moment2, row_wise, elements, block, mask, rates, KIND: tl.constexpr
):
    """The weights after the optimiser's step; writes its state."""
    rate = tl.load(rates)
    eps = tl.load(rates + 1)
    if KIND == "sgd":
        weight = weight - rate * g
    elif KIND == "rowwise_adagrad":
        state = tl.load(moment1 + row_wise) + _mean_square(g, block)
        tl.store(moment1 + row_wise, state)
        weight = weight - tl.div_rn(rate, tl.sqrt_rn(state) + eps) * g
    elif KIND == "adagrad":
        state = tl.load(moment1 + elements, mask=mask, other=0.0) + g * g
        tl.store(moment1 + elements, state, mask=mask)
        weight = weight - tl.div_rn(rate * g, tl.sqrt_rn(state) + eps)
    else:
        first = tl.load(moment1 + elements, mask=mask, other=0.0)
        first = tl.load(rates + 2) * first + tl.load(rates + 3) * g
        tl.store(moment1 + elements, first, mask=mask)
        beta2, rest2 = tl.load(rates + 4), tl.load(rates + 5)
        if KIND == "adam":
            second = beta2 * tl.load(moment2 + elements, mask=mask, other=0.0) + rest2 * (g * g)
            tl.store(moment2 + elements, second, mask=mask)
        else:
            second = beta2 * tl.load(moment2 + row_wise) + rest2 * _mean_square(g, block)
            tl.store(moment2 + row_wise, second)
        root = tl.sqrt_rn(tl.div_rn(second, tl.load(rates + 7))) + eps
        weight = weight - tl.div_rn(rate * tl.div_rn(first, tl.load(rates + 6)), root)
    return weight


@triton.jit
def _learn_step(step, g, moment1, moment2, row_wise, rates, KIND: tl.constexpr):
    """The step after its own optimiser's step, at least 1e-8 also after a NaN."""
    rate = tl.load(rates)
    eps = tl.load(rates + 1)
    move = rate * g
    if KIND == "adagrad":
        state = tl.load(moment1 + row_wise) + g * g
        tl.store(moment1 + row_wise, state)
        move = tl.div_rn(move, tl.sqrt_rn(state) + eps)
    elif KIND == "adam":
        first = tl.load(rates + 2) * tl.load(moment1 + row_wise) + tl.load(rates + 3) * g
        second = tl.load(rates + 4) * tl.load(moment2 + row_wise) + tl.load(rates + 5) * (g * g)
        tl.store(moment1 + row_wise, first)
        tl.store(moment2 + row_wise, second)
        root = tl.sqrt_rn(tl.div_rn(second, tl.load(rates + 7))) + eps
        move = tl.div_rn(rate * tl.div_rn(first, tl.load(rates + 6)), root)
    learned = step - move
    return tl.where(learned > 1e-8, learned, 1e-8)


@triton.jit
def _update_kernel(
    codes,  # uint8, flat
    step,  # float32, flat
    moment1,  # float32, flat, by element or by row
    moment2,
    step_moment1,  # float32, flat, by row
    step_moment2,
    tables,  # int64 [tables, FIELDS]
    gradient_scale,  # float32 [tables]
    runs,  # int64 [distinct + 1]
    rows,  # int64 [distinct]
    run_tables,  # int64 [distinct]
    places,  # int64 [ids], by row
    weights,  # float32 [ids], by row
    gradient,  # flat
    first_sums,  # int64 [distinct + 1], where a run's block sums start
    sums,  # float32 [sum blocks, SUM_COLUMNS]
    updated,  # float32 [distinct, width]
    width,
    rates,  # float32 [8]
    step_rates,  # float32 [9], the last one the factor of the gradient
    seed,
    number,
    BITS: tl.constexpr,
    PHASE: tl.constexpr,  # whole, rows or step
    OPTIMIZER: tl.constexpr,
    STEP_OPTIMIZER: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    WEIGHTED: tl.constexpr,
    COLUMNS: tl.constexpr,
    SUM_COLUMNS: tl.constexpr,
):
    run = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1).to(tl.int64)
    table = tl.load(run_tables + run)
    dim = field(tables, table, DIM)
    block = field(tables, table, BLOCK)
    if part * block < dim:
        local = tl.load(rows + run) - field(tables, table, FIRST_ROW)
        start = part * block
        columns = tl.arange(0, COLUMNS).to(tl.int64)
        mask = columns < block
        inside_row = start + columns

        first_sum, last_sum = tl.load(first_sums + run), tl.load(first_sums + run + 1)
        if first_sum == last_sum:  # short: no block sums were made
            first, last = tl.load(runs + run), tl.load(runs + run + 1)
            g = _sum_occurrences(places, weights, gradient, first, last, inside_row, mask, WEIGHTED)
        else:
            g = tl.zeros([COLUMNS], dtype=tl.float32)
            for at in range(first_sum, last_sum):
                g = g + tl.load(sums + at * SUM_COLUMNS + inside_row, mask=mask, other=0.0)

        row_wise = field(tables, table, STEP_OFFSET) + local * (dim // block) + part
        row_codes = codes + field(tables, table, CODE_OFFSET) + local * ((dim * BITS + 7) // 8)
        own_step = tl.load(step + row_wise)
        if PHASE == "step":
            weight = tl.load(updated + run * width + inside_row, mask=mask, other=0.0)
        else:
            weight = load_codes(row_codes, inside_row, mask, BITS) * own_step
            elements = field(tables, table, ELEMENT_OFFSET) + local * dim + inside_row
            weight = _optimise(
                weight, g, moment1, moment2, row_wise, elements, block, mask, rates, OPTIMIZER
            )
        if PHASE == "rows":
            tl.store(updated + run * width + inside_row, weight, mask=mask)
        elif STEP_OPTIMIZER != "none":
            scaled = tl.div_rn(weight, own_step)
            scale = tl.load(step_rates + 8) * tl.load(gradient_scale + table)
            step_gradient = scale * sum_of_products(g, step_slope(scaled, BITS))
            own_step = _learn_step(
                own_step,
                step_gradient,
                step_moment1,
                step_moment2,
                row_wise,
                step_rates,
                STEP_OPTIMIZER,
            )
            tl.store(step + row_wise, own_step)
        noise = 0.0
        if STOCHASTIC:
            noise = uniform(
                seed,
                number,
                field(tables, table, KEY),
                local + field(tables, table, ROW_OFFSET),
                field(tables, table, COLUMN_OFFSET) + start,
                COLUMNS,
            )
        values = tl.where(mask, quantise(weight, own_step, noise, BITS, STOCHASTIC), 0.0)
        store_codes(row_codes + start * BITS // 8, values, block * BITS, BITS, COLUMNS)


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
    """`torch.ops.deltarec.update` on CUDA."""
    _launch(
        "whole", codes, step, (moment1, moment2), (step_moment1, step_moment2), tables, features,
        gradient_scale, order, runs, rows, offsets, weights, gradient, step, bits, pooling,
        optimizer, rates, step_optimizer, [*step_rates, step_factor], stochastic, seed, number,
    )  # fmt: skip


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
    """`torch.ops.deltarec.update_rows` on CUDA."""
    updated = step.new_empty(len(rows), width)
    _launch(
        "rows", codes, step, (moment1, moment2), (None, None), tables, features, step, order, runs,
        rows, offsets, weights, gradient, updated, bits, pooling, optimizer, rates, "none",
        [0.0] * 9, False, 0, 0,
    )  # fmt: skip
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
    """`torch.ops.deltarec.update_step` on CUDA."""
    _launch(
        "step", codes, step, (None, None), (step_moment1, step_moment2), tables, features,
        gradient_scale, order, runs, rows, offsets, weights, gradient, updated, bits, pooling,
        "none", [0.0] * 8, step_optimizer, [*step_rates, step_factor], stochastic, seed, number,
    )  # fmt: skip


def _launch(
    phase: str,
    codes: Tensor,
    step: Tensor,
    moments: tuple[Tensor | None, Tensor | None],
    step_moments: tuple[Tensor | None, Tensor | None],
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
    optimizer: str,
    rates: list[float],
    step_optimizer: str,
    step_rates: list[float],
    stochastic: bool,
    seed: int,
    number: int,
) -> None:
    if not len(rows):
        return
    gradient, places = _places(tables, features, order, offsets, gradient.contiguous(), pooling)
    by_row = weights[order.long()] if weights is not None else step
    run_tables = torch.searchsorted(tables[:, 6].contiguous(), rows, right=True) - 1
    widths = tables[:, 1:3].tolist()
    sum_columns = triton.next_power_of_2(max(dim for dim, _ in widths))
    first_sums, sums = _sum_blocks(
        runs, tables[run_tables, 1], places, by_row, gradient, weights is not None, sum_columns
    )
    absent = step
    _update_kernel[(len(rows), max(dim // block for dim, block in widths))](
        codes,
        step,
        *(absent if moment is None else moment for moment in moments + step_moments),
        tables,
        gradient_scale,
        runs,
        rows,
        run_tables,
        places,
        by_row,
        gradient,
        first_sums,
        sums,
        updated,
        updated.shape[-1],
        torch.tensor(rates, dtype=torch.float32, device=step.device),
        torch.tensor(step_rates, dtype=torch.float32, device=step.device),
        seed,
        number,
        BITS=bits,
        PHASE=phase,
        OPTIMIZER=optimizer,
        STEP_OPTIMIZER=step_optimizer,
        STOCHASTIC=stochastic,
        WEIGHTED=weights is not None,
        COLUMNS=max(8, triton.next_power_of_2(max(block for _, block in widths))),
        SUM_COLUMNS=sum_columns,
        num_warps=1,
        enable_fp_fusion=False,
    )


def _places(
    tables: Tensor,
    features: Tensor,
    order: Tensor,
    offsets: Tensor,
    gradient: Tensor,
    pooling: str,
) -> tuple[Tensor, Tensor]:
    """The gradient, divided once by the lengths for the mean, and each occurrence's start in it."""
    if pooling == "none":
        return gradient, order.long() * gradient.shape[1]
    starts = offsets.long()
    batch = (len(offsets) - 1) // len(features)
    bag = torch.searchsorted(starts, order.long(), right=True) - 1
    if pooling == "mean":
        scale = starts.diff().clamp(min=1).to(torch.float32).reciprocal().view(-1, batch).T
        gradient = gradient * scale.repeat_interleave(tables[features[:, 0], 1], 1)
    return gradient, bag % batch * gradient.shape[1] + features[bag // batch, 1]


def _sum_blocks(
    runs: Tensor,
    dims: Tensor,
    places: Tensor,
    weights: Tensor,
    gradient: Tensor,
    weighted: bool,
    columns: int,
) -> tuple[Tensor, Tensor]:
    """Block sums of the long runs `[sum blocks, columns]`, and where each run's start."""
    lengths = runs.diff()
    counts = torch.where(lengths > SUM_BLOCK, (lengths + SUM_BLOCK - 1) // SUM_BLOCK, 0)
    first_sums = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    run = torch.repeat_interleave(counts)
    within = torch.arange(len(run), device=runs.device) - first_sums[run]
    first = runs[run] + within * SUM_BLOCK
    last = torch.minimum(first + SUM_BLOCK, runs[run + 1])
    blocks = torch.stack((first, last, dims[run]), 1)
    sums = torch.empty(len(run), columns, dtype=torch.float32, device=runs.device)
    if len(run):
        _sum_blocks_kernel[(len(run),)](
            blocks,
            places,
            weights,
            gradient,
            sums,
            WEIGHTED=weighted,
            COLUMNS=columns,
            num_warps=1,
            enable_fp_fusion=False,
        )
    return first_sums, sums
