# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from deltarec.config import validate
from deltarec.data.prepare import OwnEvents, own_events
from deltarec.data.prepare.dataset import prepare, prepare_once
from deltarec.job import DataConfig
from tests.data.prepare.test_event_log import (
    CLICK,
    SHOWN,
    Event,
    slow_aligned,
    slow_history,
)

HISTORIES: dict[str, Any] = {
    "clicks": {"column": "kind", "value": CLICK, "last": 4},
    "shown": {"column": "kind", "value": SHOWN, "around": "clicks", "each_side": 2, "max_gap": 9},
    "likes": {"column": "liked", "last": 3},
}


def options(**changes: Any) -> OwnEvents:
    plain = {"item": "thing", "valid_from": 30, "test_from": 40, "histories": HISTORIES}
    return validate(OwnEvents, {**plain, **changes}, "test")


def write_log(folder: Path, num_events: int = 400) -> list[Event]:
    """Two files; the second file's events come later in the log."""
    rng = np.random.default_rng(0)
    users, times, kinds = (rng.integers(0, high, num_events).tolist() for high in (17, 50, 3))
    log = [Event(*e) for e in zip(users, times, kinds, range(num_events), strict=True)]
    table = pa.table(
        {
            "user": [f"user {event.user}" for event in log],
            "time": pa.array([event.time for event in log], pa.uint32()),
            "kind": pa.array([event.kind for event in log], pa.int8()),
            "liked": [event.item % 5 == 0 for event in log],
            "thing": [f"thing {event.item}" for event in log],
            "price": rng.random(num_events),
        }
    )
    folder.mkdir(exist_ok=True)
    pq.write_table(table[:150], folder / "2026-01-01.parquet")
    pq.write_table(table[150:], folder / "2026-01-02.parquet")
    return log


@pytest.mark.parametrize("partition", [1_000_000, 60])
def test_rows_have_the_histories_of_the_slow_routine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partition: int
):
    monkeypatch.setattr(own_events, "EVENTS_PER_PARTITION", partition)
    log = write_log(tmp_path / "log")
    prepare(options(), tmp_path / "log", tmp_path / "out")
    seen = []
    for split, low, high in [("train", 0, 30), ("valid", 30, 40), ("test", 40, 50)]:
        for row in pq.read_table(tmp_path / "out" / split).to_pylist():
            target = log[int(row["thing"].removeprefix("thing "))]
            assert low <= row["time"] == target.time < high
            assert row["user"] == f"user {target.user}" and 0 <= row["price"] < 1
            clicks = [f"thing {event.item}" for event in slow_history(log, target, 4)]
            shown = [[f"thing {i}" for i in x] for x in slow_aligned(log, target, 4, 2, 9)]
            assert (row["clicks"], row["shown"]) == (clicks, shown)
            liked = [e for e in log if e.user == target.user and e.item % 5 == 0]
            past = sorted((e for e in liked if e.time < target.time), key=lambda e: e.time)
            assert row["likes"] == [f"thing {event.item}" for event in past[-3:]]
            seen.append(target.item)
    assert sorted(seen) == list(range(400)) and seen != sorted(seen)
    about = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert about["notes"] == ["shown has a list for each of clicks"]
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"valid_from": 40}, "test_from 40: not after valid_from 40"),
        (
            {"histories": {**HISTORIES, "more": {"column": "liked", "around": "shown"}}},
            "histories.more.around: got 'shown', expected one of clicks, likes",
        ),
        ({"user": "member"}, "column 'member' is missing; the file has user, time, kind, liked"),
        ({"time": "price"}, "column 'price' is double; it needs to be integers"),
        (
            {"histories": {"price": HISTORIES["clicks"]}},
            "already has a column 'price'; choose another name in histories",
        ),
        (
            {"histories": {"clicks": {"column": "kind", "each_side": 2}}},
            "histories.clicks.each_side: does nothing without 'around'; leave it out",
        ),
        (
            {"histories": {**HISTORIES, "shown": {**HISTORIES["shown"], "last": 5}}},
            "histories.shown.last: does nothing beside 'around'; leave it out",
        ),
        (
            {"histories": {"likes": {"column": "liked", "value": 7}}},
            "histories.likes: no event has 7 in column 'liked'",
        ),
        ({"user": "price"}, "column 'price' is double; users need to be integers or strings"),
        (
            {"histories": {"clicks": {"column": "kind", "value": "click"}}},
            "histories.clicks.value: got 'click', but column 'kind' is int8",
        ),
        (
            {"histories": {}, "behaviours": {"views": {"column": "thing"}}},
            "behaviours.views.value: got 1, but column 'thing' is string",
        ),
        (
            {"valid_from": "2026-01-01", "test_from": "2026-02-01"},
            "column 'time' is uint32; valid_from and test_from need to be a number",
        ),
        ({"test_from": 900}, "no event of the test data; mend valid_from 30 and test_from 900"),
    ],
)
def test_messages(tmp_path: Path, changes: dict[str, Any], what: str):
    write_log(tmp_path / "log")
    with pytest.raises(ValueError) as caught:
        prepare(options(**changes), tmp_path / "log", tmp_path / "out")
    assert what in str(caught.value) and "\n" not in str(caught.value)


def test_a_user_of_no_name_is_refused(tmp_path: Path):
    write_log(tmp_path)
    file = min(tmp_path.glob("*.parquet"))
    table = pq.read_table(file)
    users = [None, *table["user"].to_pylist()[1:]]
    pq.write_table(table.set_column(0, "user", pa.array(users)), file)
    with pytest.raises(
        ValueError, match="column 'user' has 1 nulls among 150 rows: every event needs a user"
    ):
        prepare(options(), tmp_path, tmp_path / "out")


def test_categories_are_strings(tmp_path: Path):
    write_log(tmp_path / "log")
    write_log(tmp_path / "categories")
    for file in (tmp_path / "categories").glob("*.parquet"):
        table = pq.read_table(file)
        coded = [(name, table[name].dictionary_encode()) for name in ("user", "thing")]
        for name, column in coded:
            table = table.set_column(table.schema.get_field_index(name), name, column)
        pq.write_table(table, file)
    rows = []
    for name in ("log", "categories"):
        prepare(options(), tmp_path / name, tmp_path / f"{name}_out")
        rows.append(pq.read_table(tmp_path / f"{name}_out/train").to_pylist())
    assert rows[0] == rows[1]


def test_a_folder_without_files(tmp_path: Path):
    with pytest.raises(ValueError, match=r"there are no \.parquet files"):
        prepare(options(), tmp_path, tmp_path / "out")


def test_files_that_are_not_alike_are_named(tmp_path: Path):
    write_log(tmp_path)
    first, second = sorted(tmp_path.glob("*.parquet"))
    table = pq.read_table(second)
    floats = table.set_column(2, "kind", table["kind"].cast(pa.float32()))
    for odd, message in [
        (table.drop_columns("kind"), f"{second}: has no column 'kind', which {first} has"),
        (table.append_column("more", table["kind"]), f"{first}: has no column 'more'"),
        (floats, f"{second}: column 'kind' is float, and int8 in {first}"),
    ]:
        pq.write_table(odd, second)
        with pytest.raises(ValueError, match=f"^{message}"):
            prepare(options(), tmp_path, tmp_path / "out")


def test_columns_may_stand_in_another_order(tmp_path: Path):
    write_log(tmp_path / "log")
    prepare(options(), tmp_path / "log", tmp_path / "out")
    second = sorted((tmp_path / "log").glob("*.parquet"))[1]
    table = pq.read_table(second)
    pq.write_table(table.select(table.column_names[::-1]), second)
    prepare(options(), tmp_path / "log", tmp_path / "other")
    for split in ("train", "valid", "test"):
        assert pq.read_table(tmp_path / "other" / split).equals(
            pq.read_table(tmp_path / "out" / split)
        )


def test_an_event_without_a_time(tmp_path: Path):
    table = pa.table({"user": [1, 2], "time": [1, None], "thing": [1, 2], "kind": [0, 0]})
    pq.write_table(table.append_column("liked", pa.array([True, False])), tmp_path / "a.parquet")
    with pytest.raises(
        ValueError, match="column 'time' has 1 nulls among 2 rows: every event needs a time"
    ):
        prepare(options(), tmp_path, tmp_path / "out")


def write_dated_log(folder: Path) -> None:
    """The same log with timestamps, names of kinds, and whole numbers for items."""
    write_log(folder)
    for file in folder.glob("*.parquet"):
        table = pq.read_table(file)
        seconds = pa.array(
            table["time"].to_numpy().astype("datetime64[s]").astype("datetime64[ns]")
        )
        seconds = pc.add(seconds, pa.scalar(999, pa.duration("ns")))
        kinds = pa.array([["view", "buy", None][kind] for kind in table["kind"].to_pylist()])
        things = pa.array([int(name.split()[1]) for name in table["thing"].to_pylist()])
        for name, column in (("time", seconds), ("kind", kinds), ("thing", things)):
            table = table.set_column(table.schema.get_field_index(name), name, column)
        pq.write_table(table, file)


def test_timestamps_and_names_of_types(tmp_path: Path):
    write_log(tmp_path / "log")
    write_dated_log(tmp_path / "dated")
    around = {"around": "buys", "each_side": 2, "max_gap": 9}
    both: list[dict[str, Any]] = [
        {"buys": {"column": "kind", "value": 1}, "views": {"column": "kind", "value": 0, **around}},
        {
            "buys": {"column": "kind", "value": "buy"},
            "views": {"column": "kind", "value": "view", **around},
        },
    ]
    bounds = {"valid_from": "1970-01-01T00:00:30", "test_from": "1970-01-01T00:00:40+00:00"}
    prepare(options(histories=both[0]), tmp_path / "log", tmp_path / "out")
    prepare(options(histories=both[1], **bounds), tmp_path / "dated", tmp_path / "dated_out")
    for split in ("train", "valid", "test"):
        plain = pq.read_table(tmp_path / "out" / split)
        dated = pq.read_table(tmp_path / "dated_out" / split)
        for name in ("buys", "views"):
            number = lambda names: [int(n.split()[1]) for n in names]  # noqa: E731
            wanted = plain[name].to_pylist()
            nested = [[number(x) if isinstance(x, list) else x for x in row] for row in wanted]
            flat = [number(row) if name == "buys" else row for row in nested]
            assert dated[name].to_pylist() == flat
    summary = json.loads((tmp_path / "dated_out" / "dataset.json").read_text())
    assert summary["table_sizes"] == {"thing": 400}


def test_a_column_for_each_behaviour(tmp_path: Path):
    write_dated_log(tmp_path / "log")
    behaviours = {name: {"column": "kind", "value": name} for name in ("view", "buy")}
    bounds = {"valid_from": "1970-01-01T00:00:30", "test_from": "1970-01-01T00:00:40"}
    made = options(histories={}, behaviours=behaviours, **bounds)
    prepare(made, tmp_path / "log", tmp_path / "out")
    rows = [
        r
        for s in ("train", "valid", "test")
        for r in pq.read_table(tmp_path / "out" / s).to_pylist()
    ]
    assert len(rows) == 400 and {row["kind"] for row in rows} == {"view", "buy", None}
    for row in rows:
        for name in ("view", "buy"):
            assert row[name] == (row["thing"] if row["kind"] == name else None)


def test_one_file_and_files_that_are_none(tmp_path: Path):
    write_log(tmp_path / "log")
    first = min((tmp_path / "log").glob("*.parquet"))
    prepare(options(), first, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["rows"]["train"] < 150
    (tmp_path / "log" / "2026-01-03.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2026-01-03\.parquet: not a readable Parquet file"):
        prepare(options(), tmp_path / "log", tmp_path / "other")
    with pytest.raises(ValueError, match="nowhere: there is no such file or folder"):
        prepare(options(), tmp_path / "nowhere", tmp_path / "other")
    empty = pq.read_table(first).slice(0, 0)
    (tmp_path / "empty").mkdir()
    pq.write_table(empty, tmp_path / "empty" / "0.parquet")
    with pytest.raises(ValueError, match="empty: the log has no rows"):
        prepare(options(), tmp_path / "empty", tmp_path / "other")


def test_a_log_that_has_grown_is_prepared_anew(tmp_path: Path):
    write_log(tmp_path / "log")
    once = prepare_once(options(), tmp_path / "log", tmp_path / "root")
    assert prepare_once(options(), tmp_path / "log", tmp_path / "root") == once
    more = pq.read_table(min((tmp_path / "log").glob("*.parquet")))
    pq.write_table(more, tmp_path / "log" / "2026-01-03.parquet")
    again = prepare_once(options(), tmp_path / "log", tmp_path / "root")
    rows = [json.loads((f / "dataset.json").read_text())["rows"]["train"] for f in (once, again)]
    assert rows[0] < rows[1]
    with pytest.raises(ValueError, match="already there; remove it or give another folder"):
        prepare(options(), tmp_path / "log", once)


def test_the_splits_of_a_job_are_of_one_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Though the log grows while it trains; the next job has all of it."""
    monkeypatch.chdir(tmp_path)
    write_log(tmp_path / "log")
    first, second = (
        validate(DataConfig, {"source": str(tmp_path / "log"), "prepare": plain}, "test")
        for plain in [{"dataset": "own-events", **options().model_dump(exclude_unset=True)}] * 2
    )
    root = first.root()
    more = pq.read_table(min((tmp_path / "log").glob("*.parquet")))
    pq.write_table(more, tmp_path / "log" / "2026-01-03.parquet")
    assert first.root() == root != second.root()
    assert first == second
