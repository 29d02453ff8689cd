# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from deltarec_kernels import (
    Batch,
    Optimizer,
    Rounding,
    Tables,
    TableShard,
    describe,
    group,
    lookup,
    row_bytes,
    update,
)
from tests.kernels.test_lookup import compiled

SGD = Optimizer("sgd", 0.1)


@pytest.mark.parametrize(
    ("shard", "bits", "message"),
    [
        (TableShard(4, 8, 0), 7, "bits: got 7"),
        (TableShard(0, 8, 0), 8, "holds nothing"),
        (TableShard(4, 24, 0, 16), 8, "column_block: got 16"),
        (TableShard(4, 24, 0, 12), 8, "multiple of 8"),
        (TableShard(4, 8, 0, column_offset=4), 8, "column_offset: got 4"),
    ],
)
def test_refused_tables(shard: TableShard, bits: int, message: str):
    with pytest.raises(ValueError, match=message):
        Tables([shard], [0], bits, SGD)


def test_refused_optimizers():
    with pytest.raises(ValueError, match="step_optimizer: got rowwise_adam"):
        Tables([TableShard(4, 8, 0)], [0], 8, SGD, Optimizer("rowwise_adam", 0.1))


def test_views_and_bytes():
    shards = [TableShard(5, 10, 0), TableShard(3, 32, 1, 8)]
    tables = Tables(shards, [1, 0, 1], 2, Optimizer("rowwise_adam", 0.1), Optimizer("adam", 1e-5))
    assert tables.columns == 74
    assert tables.features.tolist() == [[1, 0], [0, 32], [1, 42]]
    assert tables.codes_of(0).shape == (5, row_bytes(10, 2)) == (5, 3)
    assert tables.codes_of(1).shape == (3, 8)
    assert tables.step_of(1).shape == (3, 4)
    shapes = {name: tuple(view.shape) for name, view in tables.state_of(1).items()}
    assert shapes == {
        "moment1": (3, 32),
        "moment2": (3, 4),
        "step_moment1": (3, 4),
        "step_moment2": (3, 4),
    }
    tables.step_of(0).fill_(7)
    assert tables.step[:5].tolist() == [7] * 5
    assert tables.step[5:].tolist() == [1] * 12


@compiled
def test_says_what_serves():
    assert describe().startswith("CPU kernels: compiled C++")


@compiled
@pytest.mark.slow
def test_more_than_two_billion_elements():
    """2-bit tables of 2.3e9 elements together: offsets beyond 32 bits, in 0.6 GB."""
    rows = 9_000_000
    tables = Tables([TableShard(rows, 128, key) for key in (0, 1)], [0, 1], 2, SGD)
    ids = torch.tensor([0, rows - 1, rows - 1, 0])
    offsets = torch.tensor([0, 2, 4])
    before = lookup(tables, ids, offsets)
    assert not before.any()
    batch = Batch(group(tables, ids, offsets), offsets)
    update(tables, batch, torch.full((1, 256), -10.0), 0, Rounding(stochastic=False))
    for table in (0, 1):
        assert tables.values(table, slice(rows - 1, None)).tolist() == [[1.0] * 128]
        assert tables.values(table, slice(2)).sum(1).tolist() == [128.0, 0.0]
    assert lookup(tables, ids, offsets).eq(2).all()
