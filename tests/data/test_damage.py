# SPDX-License-Identifier: Apache-2.0
"""Damaged files: what the reader refuses, what it leaves out, and that ranks agree on it."""

from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deltarec.data import reader as reading
from deltarec.data.batch import Position
from deltarec.data.files import Damage, find
from deltarec.data.reader import Reader, ReaderConfig
from tests.data.damage import damage_row_group, truncate
from tests.data.test_reader import SCHEMA, check_rows, make, rows, write

SKIPPING = replace(SCHEMA, on_bad_file="skip")


def reader(folder: Path, rank: int = 0, num_ranks: int = 1, schema=SKIPPING, **options) -> Reader:
    damage: Damage = {}
    files = find(str(folder), ["."], damage if schema.on_bad_file == "skip" else None)
    config = make(ReaderConfig, **{"streams": 12, "shuffle_window": 5, **options})
    return Reader(files, schema, config, 16, 0, rank, num_ranks, damage=damage)


def epoch(
    folder: Path, num_ranks: int, start: Position
) -> list[tuple[set[int], Counter, Position]]:
    """For each step: the samples of all ranks, what is lost, the position after it."""
    ranks = [list(reader(folder, r, num_ranks).read(start, 2)) for r in range(num_ranks)]
    steps = []
    for shares in zip(*ranks, strict=True):
        assert len({len(share.index) for share in shares}) == 1, "ranks differ in batch size"
        samples = [row for share in shares for row in check_rows(share)]
        lost = sum((share.lost for share in shares), Counter())
        assert len(samples) + lost.total() == shares[0].num_samples
        steps.append((set(samples), lost, shares[0].next))
    return steps


@pytest.mark.parametrize("whole_row_group", [reading.WHOLE_ROW_GROUP, 8])
@pytest.mark.parametrize("row_group", [10, 100])
def test_lost_rows_are_the_same_on_any_number_of_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_row_group: int, row_group: int
):
    """Whole row groups, and pieces of such: those before the damage are kept."""
    monkeypatch.setattr(reading, "WHOLE_ROW_GROUP", whole_row_group)
    folder = tmp_path / "data"
    everything = write(folder, [100, 90, 30], row_group)
    damage_row_group(folder / "1.parquet", 0, "dense")
    alone = epoch(folder, 1, Position())
    for num_ranks in (2, 3):
        assert epoch(folder, num_ranks, Position()) == alone
    for middle in (3, len(alone) // 2 + 2):
        assert epoch(folder, 2, alone[middle][2]) == alone[middle + 1 :]
    first, second = (alone[: len(alone) // 2], alone[len(alone) // 2 :])
    for half in (first, second):
        kept = {row for samples, _, _ in half for row in samples}
        lost = set(everything) - kept
        assert lost and lost <= set(range(100, 100 + min(row_group, 90)))
        counted = sum((lost for _, lost, _ in half), Counter())
        assert counted == {str(folder / "1.parquet"): len(lost)}


def test_files_without_a_footer_are_left_out(tmp_path: Path):
    everything = write(tmp_path, [30, 20, 30], row_group=10)
    truncate(tmp_path / "1.parquet", 0.5)
    (tmp_path / "2b.parquet").write_text("a,b\n1,2\n")
    found = reader(tmp_path)
    wrong = {"1.parquet", "2b.parquet"}
    assert {Path(path).name for path in found.damage} == wrong
    assert all(what.startswith("not a readable Parquet file: ") for what in found.damage.values())
    assert found.num_samples == 60
    dense = [batch.dense[batch.index >= 0, 0].tolist() for batch in found.read(Position(), 1)]
    assert sorted(chain(*dense)) == everything[:30] + everything[50:]


def test_nothing_but_damage_is_an_empty_dataset(tmp_path: Path):
    write(tmp_path, [10, 10], row_group=10)
    for name in ("0.parquet", "1.parquet"):
        truncate(tmp_path / name, 0.9)
    with pytest.raises(ValueError, match=r"the dataset is empty: .*; 2 damaged files are skipped"):
        reader(tmp_path)


@pytest.mark.parametrize("column", ["id", "list", "w", "dense", "label"])
def test_damage_in_any_column_stops_with_file_and_row_group(tmp_path: Path, column: str):
    write(tmp_path, [40, 40], row_group=10)
    damage_row_group(tmp_path / "1.parquet", 2, column)
    with pytest.raises(ValueError, match=r"1\.parquet: row group 2 cannot be read, the file is da"):
        list(reader(tmp_path, schema=SCHEMA).read(Position(), 1))


@pytest.mark.parametrize("on_bad_file", ["stop", "skip"])
def test_a_missing_column_always_stops(tmp_path: Path, on_bad_file: str):
    write(tmp_path, [10, 10], row_group=10)
    pq.write_table(rows(10, 20).drop_columns(["dense"]), tmp_path / "1.parquet")
    with pytest.raises(ValueError, match=r"1\.parquet: column 'dense' is missing; the file has id"):
        reader(tmp_path, schema=replace(SCHEMA, on_bad_file=on_bad_file))


@pytest.mark.parametrize("on_bad_file", ["stop", "skip"])
def test_a_wrong_type_always_stops(tmp_path: Path, on_bad_file: str):
    write(tmp_path, [10, 10], row_group=10)
    wrong = rows(10, 20).set_column(3, "dense", pa.array(["x"] * 10))
    pq.write_table(wrong, tmp_path / "1.parquet")
    with pytest.raises(ValueError, match=r"1\.parquet: column 'dense' is string; features\.dense "):
        reader(tmp_path, schema=replace(SCHEMA, on_bad_file=on_bad_file))


@pytest.mark.parametrize("on_bad_file", ["stop", "skip"])
@pytest.mark.parametrize("change", ["shorter", "gone"])
def test_a_file_that_changes_while_it_is_read_always_stops(
    tmp_path: Path, on_bad_file: str, change: str
):
    write(tmp_path, [100], row_group=10)
    found = reader(tmp_path, schema=replace(SCHEMA, on_bad_file=on_bad_file))
    path = tmp_path / "0.parquet"
    truncate(path, 0.5) if change == "shorter" else path.unlink()
    what = "it has changed since the job began, from" if change == "shorter" else "cannot be read"
    with pytest.raises(ValueError, match=rf"0\.parquet: {what}"):
        list(found.read(Position(), 1))


def test_other_data_are_told_apart(tmp_path: Path):
    write(tmp_path / "a", [40, 20], row_group=10)
    write(tmp_path / "moved", [40, 20], row_group=10)
    write(tmp_path / "less", [40, 10], row_group=10)
    write(tmp_path / "cut", [40, 20], row_group=20)
    write(tmp_path / "other", [40], row_group=10)
    pq.write_table(rows(100, 120), tmp_path / "other" / "1.parquet", 10)
    identity = reader(tmp_path / "a").identity
    reader(tmp_path / "moved").require(identity, "the checkpoint", "mend it")
    for name, options, message in (
        ("less", {}, "the data are not those of the checkpoint: rows: 60 there, 50 here; mend it"),
        ("cut", {}, "row groups: 6 there, 3 here"),
        ("other", {}, "digest of the row groups' sizes: "),
        ("a", {"streams": 24}, r"data\.reader\.streams: 12 there, 24 here"),
        ("a", {"shuffle_window": 9}, r"data\.reader\.shuffle_window: 5 there, 9 here"),
    ):
        with pytest.raises(ValueError, match=message):
            reader(tmp_path / name, **options).require(identity, "the checkpoint", "mend it")
