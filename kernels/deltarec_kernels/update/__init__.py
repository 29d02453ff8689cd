# SPDX-License-Identifier: Apache-2.0
"""The fused update of quantised tables: LPT, and ALPT in one pass or two (Li et al., 2023).

`group` sorts a batch's ids by row, once for all that follows. Then, of every distinct row and with
G the sum of its occurrences' gradients:

    w     = step * code - Update(G)                       the optimiser, fp32, not stored
    step' = step - StepUpdate(factor * scale * sum_k G_k * d(w)_k)      LSQ, see `fake_quantise`
    code' = clip(floor(w / step' + u)), or to the nearest               see `rounding`

`update` does all three and reads and writes each row once: with no step optimiser it is LPT, with
one it is ALPT in one pass, which takes the first pass's G for the step's gradient (an approximation
of ours). The paper's two passes are `update_rows`, a second `lookup` and backward, `update_step`.
In between, the table holds the deterministic codes of w at the old steps: that *is* the fake
quantisation of the updated rows, so the second forward is the ordinary lookup, as fast as the
first, and only w waits in a buffer of the batch's distinct rows.

The arithmetic is fixed so that every implementation makes equal codes: each operation is rounded to
fp32 by itself; occurrences are summed in the batch's order in blocks of 256, then the blocks; sums
over the columns of a row are taken in double precision and rounded once; a step is at least 1e-8.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from deltarec_kernels.lookup import Pooling
from deltarec_kernels.registration import register
from deltarec_kernels.tables import Tables
from deltarec_kernels.update import reference

_NO_RATES = [0.0] * 8


class Groups(NamedTuple):
    """A batch's ids by row.

    Attributes:
        order: int32 `[ids]`, the positions of the ids, sorted by table and row, stable.
        runs: int64 `[distinct + 1]`, where each row's positions start in `order`.
        rows: int64 `[distinct]`, ascending, numbered through all tables.
    """

    order: Tensor
    runs: Tensor
    rows: Tensor


class Batch(NamedTuple):
    """What the update needs of the batch that was looked up; `lookup` says the shapes."""

    groups: Groups
    offsets: Tensor
    weights: Tensor | None = None
    pooling: Pooling = "sum"


class Rounding(NamedTuple):
    """How codes are rounded: at random, keyed by `seed`, or to the nearest."""

    seed: int = 0
    stochastic: bool = True


def group(tables: Tables, ids: Tensor, offsets: Tensor) -> Groups:
    """Sort a jagged batch by row; arguments as those of `lookup`.

    Raises:
        IndexError: an id is outside its table.
    """
    return Groups(*_group_rows(tables.layout, tables.features, ids, offsets))


def update(
    tables: Tables,
    batch: Batch,
    gradient: Tensor,
    number: int,
    rounding: Rounding,
    step_factor: float = 1.0,
) -> None:
    """Train the rows of a batch in place: LPT, or with a step optimiser ALPT in one pass.

    Args:
        tables: changed in place.
        batch: the batch that was looked up.
        gradient: to the lookup's output, of its shape; float32, float16 or bfloat16.
        number: how many updates came before this one; keys the rounding and corrects Adam's bias.
        rounding: of the codes.
        step_factor: multiplies the step's gradient, besides `tables.gradient_scale`: ALPT's
            scale is complete with 1 / sqrt(global batch size).
    """
    _update(
        tables.codes,
        tables.step,
        *tables.moments,
        *tables.step_moments,
        tables.layout,
        tables.features,
        tables.gradient_scale,
        *batch.groups,
        batch.offsets,
        batch.weights,
        gradient,
        tables.bits,
        batch.pooling,
        tables.optimizer.name,
        tables.optimizer.rates(number),
        tables.step_optimizer.name if tables.step_optimizer else "none",
        tables.step_optimizer.rates(number) if tables.step_optimizer else _NO_RATES,
        step_factor,
        rounding.stochastic,
        rounding.seed,
        number,
    )


def update_rows(tables: Tables, batch: Batch, gradient: Tensor, number: int) -> Tensor:
    """First of two passes: the optimiser; arguments as those of `update`.

    Returns:
        The updated rows before rounding, float32 `[distinct, tables.width]`, for `update_step`;
        the table has their deterministic codes, which the second lookup reads.
    """
    return _update_rows(
        tables.codes,
        tables.step,
        *tables.moments,
        tables.layout,
        tables.features,
        *batch.groups,
        batch.offsets,
        batch.weights,
        gradient,
        tables.width,
        tables.bits,
        batch.pooling,
        tables.optimizer.name,
        tables.optimizer.rates(number),
    )


def update_step(
    tables: Tables,
    batch: Batch,
    gradient: Tensor,
    updated: Tensor,
    number: int,
    rounding: Rounding,
    step_factor: float = 1.0,
) -> None:
    """Second of two passes: the steps by the second gradient, then the codes by the new steps.

    Args:
        tables: changed in place.
        batch: the batch that was looked up.
        gradient: to the second lookup's output.
        updated: what `update_rows` returned.
        number: as in `update`; the same in both passes.
        rounding: of the codes.
        step_factor: as in `update`.

    Raises:
        ValueError: the tables have no step optimiser.
    """
    if tables.step_optimizer is None:
        raise ValueError("step_optimizer: these tables have none; a second pass needs one")
    _update_step(
        tables.codes,
        tables.step,
        *tables.step_moments,
        tables.layout,
        tables.features,
        tables.gradient_scale,
        *batch.groups,
        batch.offsets,
        batch.weights,
        gradient,
        updated,
        tables.bits,
        batch.pooling,
        tables.step_optimizer.name,
        tables.step_optimizer.rates(number),
        step_factor,
        rounding.stochastic,
        rounding.seed,
        number,
    )


def _fake_group(
    tables: Tensor, features: Tensor, ids: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    distinct = torch.library.get_ctx().new_dynamic_size()
    return (
        ids.new_empty(len(ids), dtype=torch.int32),
        ids.new_empty(distinct + 1, dtype=torch.int64),
        ids.new_empty(distinct, dtype=torch.int64),
    )


def _fake_update(*arguments: object) -> None:
    return None


def _fake_update_rows(*arguments: object) -> Tensor:
    step, rows, width = arguments[1], arguments[8], arguments[12]
    assert isinstance(step, Tensor) and isinstance(rows, Tensor) and isinstance(width, int)
    return step.new_empty(len(rows), width)


_TRITON = "deltarec_kernels.update.triton"
_BATCH = (
    "Tensor order, Tensor runs, Tensor rows, Tensor offsets, Tensor? weights, Tensor gradient, "
)
_ROUNDING = "float step_factor, bool stochastic, int seed, int number"
_group_rows = register(
    "group_rows(Tensor tables, Tensor features, Tensor ids, Tensor offsets) "
    "-> (Tensor, Tensor, Tensor)",
    reference.group_rows,
    _fake_group,
    # torch's stable sort is a GPU's radix sort already.
    "deltarec_kernels.update.reference",
)
_update = register(
    "update(Tensor(a!) codes, Tensor(b!) step, Tensor(c!)? moment1, Tensor(d!)? moment2, "
    "Tensor(e!)? step_moment1, Tensor(f!)? step_moment2, Tensor tables, Tensor features, "
    f"Tensor gradient_scale, {_BATCH} int bits, str pooling, str optimizer, float[] rates, "
    f"str step_optimizer, float[] step_rates, {_ROUNDING}) -> ()",
    reference.update,
    _fake_update,
    _TRITON,
)
_update_rows = register(
    "update_rows(Tensor(a!) codes, Tensor step, Tensor(b!)? moment1, Tensor(c!)? moment2, "
    f"Tensor tables, Tensor features, {_BATCH} int width, int bits, str pooling, str optimizer, "
    "float[] rates) -> Tensor",
    reference.update_rows,
    _fake_update_rows,
    _TRITON,
)
_update_step = register(
    "update_step(Tensor(a!) codes, Tensor(b!) step, Tensor(c!)? step_moment1, "
    "Tensor(d!)? step_moment2, Tensor tables, Tensor features, Tensor gradient_scale, "
    f"{_BATCH} Tensor updated, int bits, str pooling, str step_optimizer, float[] step_rates, "
    f"{_ROUNDING}) -> ()",
    reference.update_step,
    _fake_update,
    _TRITON,
)
