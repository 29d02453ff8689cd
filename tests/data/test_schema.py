# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pyarrow as pa
import pytest

from deltarec.config import validate
from deltarec.data.schema import FEATURES, Feature, Scenario, Schema, Task


def feature(kind: str, **options: Any) -> Feature:
    return validate(FEATURES[kind], {"kind": kind, **options}, "test")


FILE = {
    "id": pa.int64(),
    "flag": pa.bool_(),
    "word": pa.string(),
    "category": pa.dictionary(pa.int8(), pa.string()),
    "number": pa.float64(),
    "money": pa.decimal128(10, 2),
    "day": pa.date32(),
    "list": pa.list_(pa.int64()),
    "words": pa.large_list(pa.string()),
    "vector": pa.list_(pa.float32(), 4),
    "y": pa.int8(),
}


def check(features: dict[str, Feature] | None = None, **schema: Any) -> None:
    tasks = schema.pop("tasks", {"y": validate(Task, {}, "test")})
    scenario = schema.pop("scenario", None)
    full = Schema(features or {}, tasks, scenario, dict.fromkeys(features or {}, 10), **schema)
    full.check(pa.schema(FILE), "part.parquet")


def chain(*names: str) -> dict[str, Any]:
    options: dict[str, dict] = {
        "hash": {"buckets": 10},
        "vocabulary": {"values": [1, 2]},
        "bucketise": {"boundaries": [0.0]},
        "log": {},
        "standardise": {"mean": 0.0, "std": 1.0},
    }
    return {"transforms": [{"name": name, **options[name]} for name in names]}


@pytest.mark.parametrize(
    ("kind", "column", "transforms"),
    [
        ("id", "id", ()),
        ("id", "flag", ()),
        ("id", "word", ("hash",)),
        ("id", "category", ("vocabulary",)),
        ("id", "number", ("bucketise",)),
        ("id", "money", ("bucketise",)),
        ("id", "number", ("log", "bucketise", "hash")),
        ("id", "number", ("vocabulary",)),
        ("ids", "list", ()),
        ("ids", "words", ("hash",)),
        ("sequence", "vector", ("bucketise",)),
        ("dense", "number", ()),
        ("dense", "flag", ()),
        ("dense", "money", ("log", "standardise")),
        ("dense", "id", ("bucketise", "standardise")),
    ],
)
def test_what_fits(kind: str, column: str, transforms: tuple[str, ...]):
    check({"x": feature(kind, column=column, **chain(*transforms))})


NEEDS_ID = (
    "features.x needs an integer, or a transform that makes ids (hash, vocabulary, bucketise)"
)


@pytest.mark.parametrize(
    ("kind", "column", "transforms", "message"),
    [
        ("id", "word", (), f"column 'word' is string; {NEEDS_ID}"),
        (
            "id",
            "category",
            (),
            f"column 'category' is dictionary<values=string, indices=int8, ordered=0>; {NEEDS_ID}",
        ),
        ("id", "number", (), f"column 'number' is double; {NEEDS_ID}"),
        ("id", "day", (), f"column 'day' is date32[day]; {NEEDS_ID}"),
        ("id", "list", (), f"column 'list' is list<item: int64>; {NEEDS_ID}"),
        ("id", "id", ("log",), f"column 'id' is a number after log; {NEEDS_ID}"),
        (
            "id",
            "number",
            ("hash",),
            "column 'number' is double; features.x, transform hash needs a string or an integer",
        ),
        (
            "id",
            "id",
            ("log", "hash"),
            "column 'id' is a number after log; features.x, transform hash needs a string or an "
            "integer",
        ),
        (
            "id",
            "word",
            ("bucketise",),
            "column 'word' is string; features.x, transform bucketise needs a number",
        ),
        (
            "id",
            "day",
            ("hash",),
            "column 'day' is date32[day]; features.x, transform hash needs a string or an integer",
        ),
        ("ids", "id", (), "column 'id' is int64; features.x needs a list"),
        ("ids", "words", (), f"column 'words' is string; {NEEDS_ID}"),
        ("sequence", "word", (), "column 'word' is string; features.x needs a list"),
        ("dense", "word", (), "column 'word' is string; features.x needs a number"),
        ("dense", "vector", (), "column 'vector' is fixed_size_list<item: float>[4]; features.x"),
        (
            "dense",
            "word",
            ("log",),
            "column 'word' is string; features.x, transform log needs a number",
        ),
    ],
)
def test_a_wrong_type(kind: str, column: str, transforms: tuple[str, ...], message: str):
    with pytest.raises(ValueError) as caught:
        check({"x": feature(kind, column=column, **chain(*transforms))})
    assert str(caught.value).startswith(f"part.parquet: {message}")
    assert "\n" not in str(caught.value)


def test_a_vocabulary_that_does_not_fit(tmp_path):
    words = [{"name": "vocabulary", "values": ["a"]}]
    with pytest.raises(ValueError) as caught:
        check({"x": feature("id", column="id", transforms=words)})
    assert str(caught.value) == (
        "part.parquet: column 'id' is int64; features.x, transform vocabulary: "
        "Failed to parse string: 'a' as a scalar of type int64"
    )
    missing = [{"name": "vocabulary", "file": str(tmp_path / "words.txt")}]
    with pytest.raises(ValueError, match=r"transform vocabulary: the vocabulary cannot be read: "):
        check({"x": feature("id", column="word", transforms=missing)})


WEIGHTED = {"kind": "ids", "column": "list", "pooling": "sum"}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (
            {"tasks": {"t": validate(Task, {"label": "word"}, "test")}},
            "column 'word' is string; tasks.t needs a number",
        ),
        (
            {"tasks": {"t": validate(Task, {"label": "y", "mask": "day"}, "test")}},
            "column 'day' is date32[day]; tasks.t.mask needs a number",
        ),
        ({"weight": "word"}, "column 'word' is string; data.weight needs a number"),
        ({"user": "number"}, "column 'number' is double; data.user needs an integer or a string"),
        ({"user": "list"}, "column 'list' is list<item: int64>; data.user needs an integer or"),
        (
            {"features": {"x": feature(**WEIGHTED, weights="number")}},
            "column 'number' is double; features.x.weights needs a list",
        ),
        (
            {"features": {"x": feature(**WEIGHTED, weights="words")}},
            "column 'words' is string; features.x.weights needs a number",
        ),
        (
            {"scenario": validate(Scenario, {"column": "id", "values": ["a"]}, "test")},
            "column 'id' is int64; scenario needs the type of scenario.values, ['a']",
        ),
        (
            {"scenario": validate(Scenario, {"column": "list", "values": [1]}, "test")},
            "column 'list' is list<item: int64>; scenario needs the type of scenario.values, [1]",
        ),
    ],
)
def test_other_columns_of_a_wrong_type(schema: dict, message: str):
    with pytest.raises(ValueError) as caught:
        check(schema.pop("features", None), **schema)
    assert str(caught.value).startswith(f"part.parquet: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "schema",
    [
        {"features": {"x": feature("id", column="none")}},
        {"features": {"none": feature("dense")}},
        {"features": {"x": feature(**WEIGHTED, weights="none")}},
        {"tasks": {"none": validate(Task, {}, "test")}},
        {"tasks": {"y": validate(Task, {"mask": "none"}, "test")}},
        {"scenario": validate(Scenario, {"column": "none", "values": [1]}, "test")},
        {"user": "none"},
        {"weight": "none"},
    ],
)
def test_a_missing_column(schema: dict):
    with pytest.raises(ValueError) as caught:
        check(schema.pop("features", None), **schema)
    assert str(caught.value) == (
        f"part.parquet: column 'none' is missing; the file has {', '.join(FILE)}"
    )


def test_a_file_of_many_columns_is_not_listed_whole():
    schema = Schema({"x": feature("id")}, {}, None, {"x": 10})
    wide = pa.schema([(f"c{i}", pa.int64()) for i in range(100)])
    with pytest.raises(ValueError, match=r"'x' is missing; the file has c0, .*, c19 and 80 more$"):
        schema.check(wide, "part.parquet")


def test_a_column_that_is_there_twice():
    schema = Schema({"x": feature("id")}, {}, None, {"x": 10})
    with pytest.raises(ValueError, match=r"column 'x' is there twice; the file has x, x$"):
        schema.check(pa.schema([("x", pa.int64()), ("x", pa.int64())]), "part.parquet")


def test_every_column_is_read_once():
    weighted = feature(**WEIGHTED, weights="w")
    features = {"a": feature("id"), "b": feature("id", column="a"), "c": weighted}
    tasks = {"t": validate(Task, {"label": "y", "mask": "m"}, "test")}
    scenario = validate(Scenario, {"column": "a", "values": [1]}, "test")
    schema = Schema(features, tasks, scenario, {}, user="a", weight="sample_weight")
    assert schema.columns() == ["a", "list", "w", "y", "m", "sample_weight"]


def test_features_are_sorted_by_how_torchrec_pools_them():
    features = {
        "plain": feature("id"),
        "seen": feature("sequence", table="item"),
        "item": feature("id"),
        "weighted": feature(**WEIGHTED, weights="w"),
        "tags": feature("ids"),
        "price": feature("dense"),
    }
    schema = Schema(features, {}, None, {})
    assert schema.unpooled == ["seen", "item"]
    assert schema.weighted == ["weighted"]
    assert schema.pooled == ["plain", "tags"]
    assert list(schema.dense) == ["price"]
