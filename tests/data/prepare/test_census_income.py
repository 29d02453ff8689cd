# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deltarec.data.prepare.census_income import IDS, LEAKS, NUMBERS, RAW_COLUMNS, CensusIncome
from deltarec.data.prepare.dataset import prepare

COLUMNS = {*IDS, *NUMBERS, "income", "never_married"}


def test_original_file(tmp_path: Path) -> None:
    """Its text without a header: ids in the order of the values, labels by their words."""
    person = {name: f"{name} value" for name in RAW_COLUMNS}
    lines = [
        person
        | {name: str(number) for name in (*NUMBERS, "instance_weight")}
        | {
            "age": str(20 + number),
            "race": "White" if number % 2 else "Black",
            "marital_stat": "Never married" if number % 3 == 0 else "Divorced",
            "income_50k": "50000+." if number % 5 == 0 else "- 50000.",
        }
        for number in range(30)
    ]
    text = "\n".join(", ".join(line[name] for name in RAW_COLUMNS) for line in lines)
    (tmp_path / "census-income.test").write_text(text + "\n")
    prepare(CensusIncome(), tmp_path, tmp_path / "out")
    parts = [pq.read_table(tmp_path / "out" / s) for s in ("train", "valid", "test")]
    assert [len(part) for part in parts] == [24, 3, 3]
    rows = pa.concat_tables(parts).to_pylist()
    assert sorted(row["age"] for row in rows) == list(range(30))
    for row in rows:
        number = row["age"]
        assert row.keys() == COLUMNS and not COLUMNS & set(LEAKS)
        assert row["wage_per_hour"] == number and row["race"] == number % 2
        assert (row["never_married"], row["income"]) == (number % 3 == 0, number % 5 == 0)


def test_real_data(data_root: Path, tmp_path: Path) -> None:
    source = data_root / "census-income-test"
    if not source.is_dir():
        pytest.skip(f"Census-Income is not at {source}; give its parent by --data-root")
    prepare(CensusIncome(), source, tmp_path / "out")
    parts = [pq.read_table(tmp_path / "out" / s) for s in ("train", "valid", "test")]
    assert [len(part) for part in parts] == [79_809, 9_976, 9_977]
    people = pa.concat_tables(parts).to_pandas()
    assert set(people) == COLUMNS
    assert people["income"].sum() == 6_186
    assert people["age"].max() == 90
