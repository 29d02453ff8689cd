# SPDX-License-Identifier: Apache-2.0
"""What the method must do: the toy problems with known answers.

512 rows of 16 columns start at zero and are drawn to targets of standard deviation 0.05 by a
quadratic loss, for 3,000 steps of plain SGD.
"""

from collections.abc import Sequence

import pytest
import torch

from deltarec_kernels import (
    Batch,
    Optimizer,
    Rounding,
    Tables,
    TableShard,
    group,
    lookup,
    update,
    update_rows,
    update_step,
)
from tests.kernels.test_lookup import compiled

ROWS, DIM, STEPS = 512, 16, 3000


def fit(
    bits: int,
    first_steps: Sequence[float],
    rate: float,
    stochastic: bool = True,
    step_optimizer: Optimizer | None = None,
    passes: int = 1,
    steps: int = STEPS,
) -> list[tuple[float, float]]:
    """Root mean square error at the end, and the mean step, of one table for each first step."""
    numbers = range(len(first_steps))
    target = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(0)) * 0.05
    targets = target.repeat(1, len(first_steps))
    shards = [TableShard(ROWS, DIM, key) for key in numbers]
    tables = Tables(shards, list(numbers), bits, Optimizer("sgd", rate), step_optimizer)
    for number, step in enumerate(first_steps):
        tables.step_of(number).fill_(step)
    ids, offsets = torch.arange(ROWS).repeat(len(shards)), torch.arange(ROWS * len(shards) + 1)
    batch = Batch(group(tables, ids, offsets), offsets)
    rounding = Rounding(seed=1, stochastic=stochastic)

    def values() -> torch.Tensor:
        return lookup(tables, ids, offsets)

    for number in range(steps):
        gradient = values() - targets
        if passes == 1:
            update(tables, batch, gradient, number, rounding)
        else:
            rows = update_rows(tables, batch, gradient, number)
            update_step(tables, batch, values() - targets, rows, number, rounding)
    errors = (values() - targets).unflatten(1, (-1, DIM)).square().mean((0, 2)).sqrt()
    return [(float(errors[number]), float(tables.step_of(number).mean())) for number in numbers]


@compiled
@pytest.mark.parametrize(
    ("bits", "step", "rate", "deterministic", "factor"),
    [
        (8, 0.01, 0.1, 0.0337, 1.4),
        (8, 0.01, 0.01, 0.0498, 1.4),
        (8, 0.002, 0.01, 0.0476, 1.4),
        (4, 0.02, 0.01, 0.0498, 1.4),
        (2, 0.05, 0.01, 0.0498, 1.6),
    ],
)
def test_nearest_rounding_stalls_and_random_rounding_does_not(
    bits: int, step: float, rate: float, deterministic: float, factor: float
):
    ((error, _),) = fit(bits, [step], rate, stochastic=False)
    assert error == pytest.approx(deterministic, rel=0.05)
    ((error, _),) = fit(bits, [step], rate)
    assert error == pytest.approx(factor * step / 12**0.5, rel=0.08)


@compiled
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize(
    ("bits", "starts", "fixed_errors", "steps", "learned"),
    [
        # From 0.01 the step is 0.0013 after 3,000 steps, and still falling to where it ends.
        (8, (0.01, 0.0005), (0.0041, 0.0070), 9000, 0.00091),
        (4, (0.002, 0.08), (0.0387, 0.0330), STEPS, 0.0140),
        (2, (0.002, 0.2), (0.0475, 0.0737), STEPS, 0.0745),
    ],
)
def test_learned_step_is_the_same_from_any_start(
    bits: int,
    starts: tuple[float, float],
    fixed_errors: tuple[float, float],
    steps: int,
    learned: float,
    passes: int,
):
    optimizer = Optimizer("sgd", 0.1)
    ends = fit(bits, starts, 0.1, True, optimizer, passes, steps)
    assert ends[0][1] == pytest.approx(ends[1][1], rel=0.02)
    for (error, step), fixed_error in zip(ends, fixed_errors, strict=True):
        assert step == pytest.approx(learned, rel=0.2)
        assert error < fixed_error


@compiled
@pytest.mark.parametrize("passes", [1, 2])
def test_learned_step_of_eight_bits_after_3000_steps(passes: int):
    ((_, step),) = fit(8, [0.01], 0.1, True, Optimizer("sgd", 0.1), passes)
    assert step == pytest.approx(0.0013, rel=0.2)
