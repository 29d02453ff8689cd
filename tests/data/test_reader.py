# SPDX-License-Identifier: Apache-2.0
import threading
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltarec.config import Config, validate
from deltarec.data.batch import Position
from deltarec.data.files import find
from deltarec.data.reader import Reader, ReaderConfig
from deltarec.data.schema import (
    DenseFeature,
    IdFeature,
    IdListFeature,
    Schema,
    SequenceFeature,
    Task,
)


def make(config_type: type[Config], **values) -> Config:
    return validate(config_type, values, "test")


SCHEMA = Schema(
    features={
        "id": make(IdFeature, kind="id"),
        "list": make(IdListFeature, kind="ids", column="list", table="id"),
        "weighted": make(IdListFeature, kind="ids", column="list", weights="w", pooling="sum"),
        "sequence": make(SequenceFeature, kind="sequence", column="list", max_length=3),
        "dense": make(DenseFeature, kind="dense"),
    },
    tasks={"label": make(Task)},
    scenario=None,
    table_rows={"id": 100_000, "weighted": 100, "sequence": 100},
)


def rows(start: int, stop: int) -> pa.Table:
    """Row i: id i, a list of i % 4 ids, dense i, label i % 2."""
    lists = [[(i + k) % 100 for k in range(i % 4)] for i in range(start, stop)]
    return pa.table(
        {
            "id": pa.array(range(start, stop), pa.int32()),
            "list": pa.array(lists, pa.list_(pa.int64())),
            "w": pa.array([[v / 2 for v in row] for row in lists], pa.list_(pa.float32())),
            "dense": pa.array(range(start, stop), pa.float32()),
            "label": pa.array([i % 2 for i in range(start, stop)], pa.int8()),
        }
    )


def write(folder: Path, file_rows: list[int], row_group: int) -> list[int]:
    folder.mkdir(exist_ok=True)
    start = 0
    for i, count in enumerate(file_rows):
        table = rows(start, start + count)
        path = folder / f"{i}.parquet"
        pq.write_table(table, path, row_group, write_page_checksum=True)
        start += count
    return list(range(start))


def reader(folder: Path, batch_size: int, rank=0, num_ranks=1, **options) -> Reader:
    seed = options.pop("seed", 0)
    config = make(ReaderConfig, **{"streams": 12, "shuffle_window": 5, **options})
    return Reader(find(str(folder), ["."]), SCHEMA, config, batch_size, seed, rank, num_ranks)


def check_rows(batch) -> list[int]:
    """Every column of a batch belongs to its sample; returns the samples' rows."""
    index = batch.index[batch.index >= 0].tolist()
    kept = len(index)
    assert (batch.index[kept:] == -1).all() and not batch.mask[kept:].any()
    assert batch.dense[:kept, 0].tolist() == index
    assert batch.labels[:kept, 0].tolist() == [i % 2 for i in index]
    pooled, weighted = batch.pooled.to_dict(), batch.weighted.to_dict()
    sequence = batch.unpooled.to_dict()["sequence"]
    assert pooled["id"].values().tolist() == index
    for position, i in enumerate(index):
        ids = [(i + k) % 100 for k in range(i % 4)]
        for jagged, wanted in ((pooled["list"], ids), (weighted["weighted"], ids)):
            low, high = jagged.offsets()[position], jagged.offsets()[position + 1]
            assert jagged.values()[low:high].tolist() == wanted
        weights = weighted["weighted"].weights()[low:high].tolist()
        assert weights == [v / 2 for v in ids]
        low, high = sequence.offsets()[position], sequence.offsets()[position + 1]
        assert sequence.values()[low:high].tolist() == ids[-3:]
    assert all(len(jagged.lengths()) == len(batch.index) for jagged in pooled.values())
    return index


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_every_sample_exactly_once_on_any_number_of_ranks(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    file_rows = data.draw(st.lists(st.integers(0, 45), min_size=1, max_size=4).filter(sum))
    everything = write(folder, file_rows, row_group=data.draw(st.sampled_from([1, 7, 15, 1000])))
    batch_size = data.draw(st.integers(1, 60))
    seed = data.draw(st.sampled_from([None, 0, 1]))
    window = data.draw(st.sampled_from([1, 3, 1000]))

    def epoch(num_ranks, start):
        ranks = [
            list(reader(folder, batch_size, r, num_ranks, seed=seed, shuffle_window=window)
                 .read(start, epochs=2))
            for r in range(num_ranks)
        ]  # fmt: skip
        steps = []
        for shares in zip(*ranks, strict=True):
            assert len({len(share.index) for share in shares}) == 1, "ranks differ in batch size"
            samples = [row for share in shares for row in check_rows(share)]
            assert len(samples) == shares[0].num_samples
            steps.append((frozenset(samples), samples, shares[0].next))
        return steps

    alone = epoch(1, Position(0, 0))
    num_ranks = data.draw(st.sampled_from([2, 3, 4, 6]))
    shared = epoch(num_ranks, Position(0, 0))
    assert [step[0] for step in shared] == [step[0] for step in alone], "global batches differ"
    seen = [sample for step in alone for sample in step[1]]
    assert sorted(seen) == sorted(everything * 2)

    resume = data.draw(st.integers(0, len(alone) - 1))
    rest = epoch(num_ranks, alone[resume][2])
    assert [step[1] for step in rest] == [step[1] for step in shared[resume + 1 :]]


def test_shuffle_depends_on_seed_and_epoch_only(tmp_path):
    write(tmp_path, [500], row_group=20)

    def order(seed, epoch):
        batches = reader(tmp_path, 64, seed=seed).read(Position(epoch, 0), epoch + 1)
        return torch.cat([batch.index for batch in batches]).tolist()

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_one_row_group_becomes_one_lane_and_many_become_many(tmp_path):
    write(tmp_path, [480], row_group=1000)
    assert reader(tmp_path, 8).order.num_lanes == 1
    write(tmp_path, [480], row_group=10)
    assert reader(tmp_path, 8).order.num_lanes == 12


def test_streams_must_be_divisible(tmp_path):
    write(tmp_path, [10], row_group=10)
    with pytest.raises(ValueError, match=r"data.reader.streams is 12, which 5 processes .* 25"):
        reader(tmp_path, 8, 0, 5)


def test_a_damaged_file_is_named(tmp_path):
    write(tmp_path, [5000], row_group=100)
    path = tmp_path / "0.parquet"
    content = bytearray(path.read_bytes())
    content[1000:3000] = np.random.default_rng(0).bytes(2000)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"0.parquet: row group \d+ cannot be read"):
        list(reader(tmp_path, 64).read(Position(0, 0), 1))


def test_a_message_names_the_file_and_the_row_in_it(tmp_path):
    write(tmp_path, [30, 50], row_group=20)
    table = rows(30, 80).set_column(0, "id", pa.array([*range(30, 79), -1], pa.int32()))
    pq.write_table(table, tmp_path / "1.parquet", 20)
    with pytest.raises(ValueError, match=r"1.parquet: column 'id': id -1, .* at row 49 "):
        list(reader(tmp_path, 64).read(Position(0, 0), 1))


def test_files_may_differ_in_types(tmp_path):
    """Types, dictionaries and the order of columns: what files written at different times have."""
    write(tmp_path, [30, 30, 30], row_group=10)
    other = rows(30, 60)
    wide = {"id": pa.int64(), "dense": pa.float64(), "label": pa.bool_()}
    for name, arrow_type in wide.items():
        column = other[name].cast(arrow_type)
        other = other.set_column(other.column_names.index(name), name, column)
    pq.write_table(other.select(other.column_names[::-1]), tmp_path / "1.parquet", 10)
    last = rows(60, 90)
    last = last.set_column(0, "id", last["id"].dictionary_encode())
    pq.write_table(last, tmp_path / "2.parquet", 10)
    batches = reader(tmp_path, 16, shuffle_window=1000).read(Position(0, 0), 1)
    assert sorted(row for batch in batches for row in check_rows(batch)) == list(range(90))


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("shuffle_window", [4, 8192])
def test_what_was_mended_is_counted_once_an_epoch(tmp_path, ranks: int, shuffle_window: int):
    """Also by readers that begin where others have ended."""
    write(tmp_path, [50], row_group=10)
    features = {"id": make(IdFeature, kind="id", on_invalid="clip")}
    config = make(ReaderConfig, streams=6, shuffle_window=shuffle_window)
    schema = Schema(features, SCHEMA.tasks, None, {"id": 40})
    files = find(str(tmp_path), ["."])

    def counts(start: Position, steps: int | None = None) -> Counter[str]:
        found: Counter[str] = Counter()
        for rank in range(ranks):
            whole = Reader(files, schema, config, 8, 0, rank, ranks).read(start, 2)
            found += sum((batch.invalid for batch in islice(whole, steps)), Counter())
        return found

    assert counts(Position(0, 0)) == {"id.clip": 20}
    for steps in range(1, 14):
        end = Position(*divmod(steps, 7)) if steps % 7 == 0 else Position(steps // 7, steps % 7 * 8)
        assert counts(Position(0, 0), steps) + counts(end) == {"id.clip": 20}, steps


def test_more_ranks_than_rows(tmp_path):
    write(tmp_path, [2], row_group=10)
    shares = [next(reader(tmp_path, 8, rank, 6).read(Position(0, 0), 1)) for rank in range(6)]
    assert [len(check_rows(share)) for share in shares] == [2, 0, 0, 0, 0, 0]
    assert {len(share.index) for share in shares} == {2}, "ranks differ in batch size"


def test_closing_early_ends_the_threads(tmp_path):
    write(tmp_path, [5000], row_group=100)
    batches = reader(tmp_path, 8).read(Position(0, 0), 100)
    next(batches)
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert not [thread for thread in threading.enumerate() if "prefetch" in thread.name]
