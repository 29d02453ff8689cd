# SPDX-License-Identifier: Apache-2.0
"""The operators as torch sees them: schema, fake tensors, autograd, compilation."""

from typing import Any

import pytest
import torch

from deltarec_kernels import Batch, Tables, TableShard, group
from tests.kernels.cases import Case
from tests.kernels.test_lookup import compiled

CASE = Case(
    [TableShard(9, 16, 0, 8), TableShard(5, 16, 1)], [0, 1, 0], 4, 4, torch.int64, "sum", True, 1
)
RATES = [0.1, 1e-8, 0.9, 0.1, 0.999, 0.001, 0.1, 0.001]

pytestmark = compiled


def made() -> tuple[Tables, torch.Tensor, torch.Tensor, torch.Tensor, Batch]:
    tables = CASE.tables("adam", "adam")
    ids, offsets, weights = CASE.jagged()
    assert weights is not None
    return tables, ids, offsets, weights, Batch(group(tables, ids, offsets), offsets, weights)


def check(name: str, *arguments: Any) -> None:
    torch.library.opcheck(getattr(torch.ops.deltarec, name).default, arguments)


@pytest.mark.parametrize("pooling", ["sum", "mean", "none"])
def test_lookup(pooling: str):
    tables, ids, offsets, weights, _ = made()
    own = weights.requires_grad_() if pooling == "sum" else None
    columns = 16 if pooling == "none" else 48
    check(
        "lookup", tables.codes, tables.step, tables.layout, tables.features, ids, offsets, own, 4,
        pooling, columns, torch.float32,
    )  # fmt: skip


def test_lookup_weights_gradient():
    tables, ids, offsets, _, _ = made()
    check(
        "lookup_weights_gradient", tables.codes, tables.step, tables.layout, tables.features, ids,
        offsets, torch.randn(4, 48), 4,
    )  # fmt: skip


def test_group_rows():
    tables, ids, offsets, _, _ = made()
    check("group_rows", tables.layout, tables.features, ids, offsets)


def test_update():
    tables, _, offsets, weights, batch = made()
    check(
        "update", tables.codes, tables.step, *tables.moments, *tables.step_moments, tables.layout,
        tables.features, tables.gradient_scale, *batch.groups, offsets, weights,
        torch.randn(4, 48), 4, "sum", "adam", RATES, "adam", RATES, 1.0, True, 1, 2,
    )  # fmt: skip


def test_two_passes():
    tables, _, offsets, weights, batch = made()
    gradient = torch.randn(4, 48)
    check(
        "update_rows", tables.codes, tables.step, *tables.moments, tables.layout, tables.features,
        *batch.groups, offsets, weights, gradient, 16, 4, "sum", "adam", RATES,
    )  # fmt: skip
    rows = torch.randn(len(batch.groups.rows), 16)
    check(
        "update_step", tables.codes, tables.step, *tables.step_moments, tables.layout,
        tables.features, tables.gradient_scale, *batch.groups, offsets, weights, gradient, rows, 4,
        "sum", "adam", RATES, 1.0, True, 1, 2,
    )  # fmt: skip


def test_fake_quantise():
    weight = torch.randn(5, 16, requires_grad=True)
    step = torch.rand(5, 2).add(0.1).requires_grad_()
    check("fake_quantise", weight, step, 4, 0.5)
    check("fake_quantise_backward", torch.randn(5, 16), weight.detach(), step.detach(), 4, 0.5)


def test_mix64():
    check("mix64", torch.arange(12).view(3, 4))


def test_dropout():
    check("dropout", torch.randn(4, 3, 2, requires_grad=True), torch.arange(4), 1, 0.3)
