# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
from tests.kernels.cases import OPTIMIZERS, Case, cases, device_of, implementation
from tests.kernels.test_lookup import compiled

STEP_OPTIMIZERS = st.sampled_from([None, "sgd", "adagrad", "adam"])


def assert_equal_state(tables: Tables, expected: Tables) -> None:
    assert torch.equal(tables.codes.cpu(), expected.codes)
    torch.testing.assert_close(tables.step.cpu(), expected.step, rtol=1e-5, atol=0)
    for own, other in zip(
        tables.moments + tables.step_moments, expected.moments + expected.step_moments, strict=True
    ):
        assert (own is None) == (other is None)
        if own is not None and other is not None:
            torch.testing.assert_close(own.cpu(), other, rtol=1e-5, atol=1e-7)
    assert (tables.step > 0).all()


def train(
    kind: str,
    case: Case,
    optimizer: str,
    step_optimizer: str | None,
    rounding: Rounding,
    passes: int,
) -> tuple[Tables, list[torch.Tensor]]:
    device = device_of(kind)
    tables = case.tables(optimizer, step_optimizer, device)
    ids, offsets, weights = case.jagged(device)
    outputs = []
    with implementation(kind):
        batch = Batch(group(tables, ids, offsets), offsets, weights, case.pooling)  # type: ignore[arg-type]
        for number in range(2):
            output = lookup(tables, ids, offsets, weights, case.pooling)  # type: ignore[arg-type]
            outputs.append(output)
            gradient = case.gradient(output)
            if passes == 1:
                update(tables, batch, gradient, number, rounding, 0.5)
                continue
            rows = update_rows(tables, batch, gradient, number)
            outputs.append(torch.cat([row[:1] for row in rows] or [rows.flatten()]))
            second = lookup(tables, ids, offsets, weights, case.pooling)  # type: ignore[arg-type]
            outputs.append(second)
            update_step(tables, batch, case.gradient(second) * 2, rows, number, rounding, 0.5)
    return tables, outputs


def check_update(
    kind: str,
    case: Case,
    optimizer: str,
    step_optimizer: str | None,
    stochastic: bool,
    passes: int = 1,
) -> None:
    rounding = Rounding(case.seed << 33 | 5, stochastic)
    arguments = (case, optimizer, step_optimizer, rounding, passes)
    expected, expected_outputs = train("reference", *arguments)
    tables, outputs = train(kind, *arguments)
    assert_equal_state(tables, expected)
    for output, other in zip(outputs, expected_outputs, strict=True):
        torch.testing.assert_close(output.cpu(), other, rtol=1e-5, atol=1e-6)


@compiled
@settings(max_examples=80, deadline=None)
@given(cases(), st.sampled_from(OPTIMIZERS), STEP_OPTIMIZERS, st.booleans())
def test_compiled_update_is_the_reference(
    case: Case, optimizer: str, step_optimizer: str | None, stochastic: bool
):
    check_update("compiled", case, optimizer, step_optimizer, stochastic)


@compiled
@settings(max_examples=40, deadline=None)
@given(cases(), st.sampled_from(OPTIMIZERS), st.sampled_from(["sgd", "adam"]), st.booleans())
def test_compiled_two_passes_are_the_reference(
    case: Case, optimizer: str, step_optimizer: str, stochastic: bool
):
    check_update("compiled", case, optimizer, step_optimizer, stochastic, passes=2)


def one_table(
    rows: int, dim: int, optimizer: Optimizer, step: float = 0.01, **shard: int
) -> Tables:
    tables = Tables([TableShard(rows, dim, 3, **shard)], [0], 8, optimizer)
    tables.step.fill_(step)
    return tables


@compiled
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_many_rows_and_a_row_of_many_ids(optimizer: str):
    """Enough ids for all threads, 2,000 of them on one row: sums of several blocks."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 5000, (20_000,), generator=generator)
    ids[torch.randperm(20_000, generator=generator)[:2000]] = 77
    offsets = torch.arange(0, 20_001, 4)
    gradient = torch.randn(5000, 16, generator=generator)
    made = []
    for kind in ("reference", "compiled"):
        tables = one_table(5000, 16, Optimizer(optimizer, 0.05))  # type: ignore[arg-type]
        tables.step_optimizer = Optimizer("sgd", 1e-4)
        with implementation(kind):
            batch = Batch(group(tables, ids, offsets), offsets, None, "mean")
            update(tables, batch, gradient, 0, Rounding(1))
        made.append(tables)
    assert_equal_state(made[1], made[0])


@pytest.mark.parametrize("kind", ["reference", pytest.param("compiled", marks=compiled)])
def test_groups(kind: str):
    shards = [TableShard(10, 8, 0), TableShard(300, 8, 1)]
    tables = Tables(shards, [1, 0, 1], 8, Optimizer("sgd", 0.1))
    ids = torch.tensor([299, 5, 5, 9, 0, 9, 5, 299])
    offsets = torch.tensor([0, 3, 6, 8])
    with implementation(kind):
        groups = group(tables, ids, offsets)
        assert groups.order.tolist() == [4, 3, 5, 1, 2, 6, 0, 7]
        assert groups.runs.tolist() == [0, 1, 3, 6, 8]
        assert groups.rows.tolist() == [0, 9, 15, 309]
        with pytest.raises(IndexError, match="outside its table"):
            group(tables, torch.tensor([0, 10, 0]), torch.tensor([0, 1, 2, 3]))
        empty = group(tables, ids[:0], torch.zeros(4, dtype=torch.int64))
    assert [len(part) for part in empty] == [0, 1, 0]


@pytest.mark.parametrize("stochastic", [True, False])
def test_zero_gradient_changes_nothing(stochastic: bool):
    tables = one_table(256, 64, Optimizer("sgd", 0.1), step=0.0123)
    tables.codes.copy_(torch.arange(256).repeat_interleave(64))
    before = tables.codes.clone()
    ids, offsets = torch.arange(256), torch.arange(257)
    batch = Batch(group(tables, ids, offsets), offsets)
    for number in range(20):
        update(tables, batch, torch.zeros(256, 64), number, Rounding(0, stochastic))
    if stochastic:  # step * code / step may be 2^-17 of a code away, and u has sixteen bits
        assert (tables.codes != before).float().mean() < 20 * 2**-16
    else:
        assert torch.equal(tables.codes, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("step_optimizer", ["sgd", "adagrad", "adam"])
def test_step_stays_positive(bad: float, step_optimizer: str):
    tables = one_table(4, 8, Optimizer("sgd", 0.1))
    tables = Tables(
        [TableShard(4, 8, 3)],
        [0],
        8,
        tables.optimizer,
        Optimizer(step_optimizer, 1.0),  # type: ignore[arg-type]
    )
    ids, offsets = torch.arange(4), torch.arange(5)
    batch = Batch(group(tables, ids, offsets), offsets)
    for number in range(3):
        update(tables, batch, torch.full((4, 8), bad), number, Rounding())
        assert (tables.step > 0).all()


def test_cuts_of_a_table_make_the_same_codes():
    """Row-wise and column-wise parts, at equal column blocks, are the whole table bit for bit."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 30, (80,), generator=generator)  # two for each of 40 bags
    gradient = torch.randn(40, 32, generator=generator)
    start = torch.randn(30, 32, generator=generator) * 0.3
    optimizer, step_optimizer = Optimizer("rowwise_adagrad", 0.05), Optimizer("sgd", 1e-3)

    def run(rows: slice, columns: slice) -> Tables:
        shard = TableShard(
            rows.stop - rows.start, columns.stop - columns.start, 9, 16, rows.start, columns.start
        )
        tables = Tables([shard], [0], 4, optimizer, step_optimizer)
        tables.step.fill_(0.1)
        tables.assign(0, 0, start[rows, columns], seed=4)
        here = (ids >= rows.start) & (ids < rows.stop)
        bags = torch.cat([torch.zeros(1, dtype=torch.int64), here.view(40, 2).sum(1).cumsum(0)])
        own = ids[here] - rows.start
        batch = Batch(group(tables, own, bags), bags)
        for number in range(3):
            update(tables, batch, gradient[:, columns].contiguous(), number, Rounding(8))
        return tables

    whole = run(slice(0, 30), slice(0, 32))
    for rows in (slice(0, 13), slice(13, 30)):
        for columns in (slice(0, 16), slice(16, 32)):
            part = run(rows, columns)
            assert torch.equal(part.values(0, slice(None)), whole.values(0, rows)[:, columns])
            blocks = slice(columns.start // 16, columns.stop // 16)
            assert torch.equal(part.step_of(0), whole.step_of(0)[rows, blocks])


def test_second_forward_reads_fake_quantised_rows():
    from deltarec_kernels import fake_quantise

    case = Case([TableShard(9, 24, 0, 8)], [0], 4, 5, torch.int64, "sum", False, 3)
    tables = case.tables("adam", "sgd")
    ids, offsets, _ = case.jagged()
    batch = Batch(group(tables, ids, offsets), offsets)
    rows = update_rows(tables, batch, case.gradient(lookup(tables, ids, offsets)), 0)
    hit = batch.groups.rows
    step = tables.step_of(0)[hit].requires_grad_()
    expected = fake_quantise(rows, step, 4)
    assert torch.equal(tables.values(0, hit), expected)

    # The gradient to the step is that of LSQ, summed over a row's occurrences.
    inverse = torch.searchsorted(hit, ids)
    second = lookup(tables, ids, offsets)
    gradient = case.gradient(second)
    bag = torch.repeat_interleave(offsets.diff())
    expected.backward(torch.zeros_like(expected).index_add_(0, inverse, gradient[bag]))
    assert step.grad is not None
    tables.step_optimizer = Optimizer("sgd", 0.01)
    wanted = step.detach() - 0.01 * tables.gradient_scale * step.grad
    update_step(tables, batch, gradient, rows, 0, Rounding())
    torch.testing.assert_close(tables.step_of(0)[hit], wanted.clamp(min=1e-8))


def test_low_precision_gradients():
    made = []
    for dtype in (torch.float32, torch.bfloat16):
        tables = one_table(16, 8, Optimizer("sgd", 0.1))
        ids, offsets = torch.arange(16), torch.arange(17)
        gradient = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
        batch = Batch(group(tables, ids, offsets), offsets)
        update(tables, batch, gradient.to(dtype), 0, Rounding())
        made.append(tables.codes)
    assert torch.equal(*made)


def test_two_passes_need_a_step_optimizer():
    tables = one_table(2, 8, Optimizer("sgd", 0.1))
    offsets = torch.tensor([0, 1])
    batch = Batch(group(tables, torch.tensor([0]), offsets), offsets)
    with pytest.raises(ValueError, match="step_optimizer"):
        update_step(tables, batch, torch.zeros(1, 8), torch.zeros(1, 8), 0, Rounding())


def test_learning_rate_may_change():
    tables = one_table(2, 8, Optimizer("sgd", 0.1))
    tables.optimizer = replace(tables.optimizer, learning_rate=0.0)
    offsets = torch.tensor([0, 1])
    batch = Batch(group(tables, torch.tensor([0]), offsets), offsets)
    update(tables, batch, torch.ones(1, 8), 0, Rounding())
    assert not tables.codes.any()
