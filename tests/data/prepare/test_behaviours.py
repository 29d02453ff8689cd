# SPDX-License-Identifier: Apache-2.0
"""Behaviours by file; validation in neither train nor test; held-out views and carts nowhere."""

import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from deltarec.data.prepare import Dataset, MBRetailRocket, MBTaobao
from deltarec.data.prepare.dataset import prepare

EVENTS = {
    # one user after the other: train, then what is held out of each behaviour
    "user": [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1],
    "item": [0, 1, 2, 1, 2, 3, 4, 0, 3, 2, 1],
    "behavior": [0, 0, 1, 2, 2, 0, 2, 0, 2, 1, 2],
    "split": [0, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1],
    "timestamp": [1, 2, 3, 9, 4, 0, 0, 5, 6, 0, 0],
}


def pairs(path: Path, behaviour: str) -> list[tuple[int, int]]:
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        there = {name for name, value in row.items() if value is not None}
        assert there == {"user", behaviour}, row
    return sorted((row["user"], row[behaviour]) for row in rows)


@pytest.mark.parametrize(
    ("dataset", "valid", "views"),
    [
        (MBTaobao(), [(0, 1), (1, 3)], [(0, 0), (0, 1), (1, 0)]),
        (MBRetailRocket(), [(0, 1)], [(0, 0), (1, 0)]),
    ],
)
def test_splits(
    tmp_path: Path,
    dataset: Dataset,
    valid: list[tuple[int, int]],
    views: list[tuple[int, int]],
):
    pd.DataFrame(EVENTS).to_parquet(tmp_path / "interactions.parquet")
    pd.DataFrame({"user": [0, 1], "item": [1, 3]}).to_parquet(tmp_path / "valid_mule.parquet")
    prepare(dataset, tmp_path, tmp_path / "out")
    train = tmp_path / "out/train"
    assert pairs(train / "view.parquet", "view") == views
    assert pairs(train / "cart.parquet", "cart") == [(0, 2)]
    bought = {(0, 1), (0, 2), (1, 3)}
    assert pairs(train / "buy.parquet", "buy") == sorted(bought - set(valid))
    assert pairs(tmp_path / "out/valid", "buy") == valid
    assert pairs(tmp_path / "out/test", "buy") == [(0, 4), (1, 1)]
    facts = json.loads((tmp_path / "out/dataset.json").read_text())
    assert facts["table_sizes"] == {"user": 2, "item": 5}
    assert facts["rows"] == {"train": 4 + len(views) - len(valid), "valid": len(valid), "test": 2}


@pytest.mark.parametrize(
    ("dataset", "rows"),
    [(MBTaobao(), (1_115_263, 15_449, 15_449)), (MBRetailRocket(), (94_977, 885, 2_174))],
)
def test_real_data(data_root: Path, tmp_path: Path, dataset: Dataset, rows: tuple[int, ...]):
    source = data_root / dataset.dataset.removesuffix("-behaviours")
    if not source.is_dir():
        pytest.skip(f"the data are not at {source}; give their parent by --data-root")
    prepare(dataset, source, tmp_path / "out")
    counts = json.loads((tmp_path / "out/dataset.json").read_text())["rows"]
    assert tuple(counts.values()) == rows
