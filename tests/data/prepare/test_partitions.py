# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from deltarec.data.prepare import partitions
from deltarec.data.prepare.partitions import partition_by_user, read_partition


@pytest.mark.parametrize("arrow_type", [pa.int64(), pa.uint16(), pa.string()])
def test_every_user_is_whole_and_in_order_in_one_partition(tmp_path: Path, arrow_type: pa.DataType):
    users = np.random.default_rng(0).integers(0, 40, 500)
    table = pa.table({"user": pa.array(users).cast(arrow_type), "place": np.arange(500)})
    stream = [table[:7], table[7:400], table[400:400], table[400:]]
    parts = [read_partition(p) for p in partition_by_user(stream, "user", 6, tmp_path)]
    assert len(parts) == 6
    seen = [set(part["user"].to_pylist()) for part in parts]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 40
    assert sum(len(users) > 0 for users in seen) > 3
    assert sorted(p for part in parts for p in part["place"].to_pylist()) == list(range(500))
    for part in parts:
        rows = part.to_pylist()
        for user in {row["user"] for row in rows}:
            places = [row["place"] for row in rows if row["user"] == user]
            assert places == sorted(places)


def test_nothing_makes_no_files(tmp_path: Path):
    assert partition_by_user([], "user", 3, tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_more_files_than_may_be_open_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A soft limit is raised; where that does not do, nothing is begun."""
    limits = {"now": (1024, 4096)}
    monkeypatch.setattr(partitions.resource, "getrlimit", lambda _: limits["now"])
    monkeypatch.setattr(
        partitions.resource, "setrlimit", lambda _, wanted: limits.update(now=wanted)
    )
    partition_by_user([], "user", 2000, tmp_path)
    assert limits["now"] == (2256, 4096)
    with pytest.raises(ValueError, match="cut into 5000 files, and a process may open 4096"):
        partition_by_user([], "user", 5000, tmp_path)
