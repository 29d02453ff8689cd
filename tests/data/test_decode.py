# SPDX-License-Identifier: Apache-2.0
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from deltarec.config import validate
from deltarec.data.block import Block
from deltarec.data.decode import decode
from deltarec.data.schema import FEATURES, Feature, Scenario, Schema, Task

ROWS = 10
"""Rows of every table here."""


def feature(kind: str, **options: Any) -> Feature:
    return validate(FEATURES[kind], {"kind": kind, **options}, "test")


def task(**options: Any) -> Task:
    return validate(Task, options, "test")


def scenario(values: list, **options: Any) -> Scenario:
    return validate(Scenario, {"column": "s", "values": values, **options}, "test")


def decoded(
    columns: dict[str, Any], features: dict[str, Feature] | None = None, **schema: Any
) -> Block:
    """Checks and decodes a table that begins at row 100 of its dataset and row 7 of its file."""
    columns = {n: c if isinstance(c, pa.Array) else pa.array(c) for n, c in columns.items()}
    num_rows = len(next(iter(columns.values())))
    tasks = schema.pop("tasks", {})
    table = pa.table({**columns, "label": pa.array([0] * num_rows, pa.int8())})
    full = Schema(
        features=features or {},
        tasks=tasks or {"label": task()},
        scenario=schema.pop("scenario", None),
        table_rows=dict.fromkeys(features or {}, ROWS),
        **schema,
    )
    full.check(table.schema, "part.parquet")
    index = np.arange(100, 100 + num_rows)
    return decode(full, table, index, lambda row: ("part.parquet", int(row) - 93))


def one(kind: str, values: Any, **options: Any) -> Block:
    return decoded({"x": values}, {"x": feature(kind, **options)})


def message(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(ValueError) as caught:
        decoded(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


INVALID_IDS = pa.array([3, -1, None, 10, 25])


@pytest.mark.parametrize(
    ("policy", "ids", "counts"),
    [
        ("clip", [3, 0, 7, 9, 9], {"x.clip": 4}),
        ("hash", [3, 9, 7, 0, 5], {"x.hash": 4}),
        ("default", [3, 7, 7, 7, 7], {"x.default": 4}),
    ],
)
@pytest.mark.parametrize("arrow_type", [pa.int64(), pa.int32(), pa.int8()])
def test_policies_for_ids(policy: str, ids: list, counts: dict, arrow_type: pa.DataType):
    block = one("id", INVALID_IDS.cast(arrow_type), on_invalid=policy, default=7)
    assert block.ids["x"].tolist() == ids and block.ids["x"].dtype == np.int64
    assert block.invalid == counts


@pytest.mark.parametrize("kind", ["ids", "sequence"])
def test_policies_reach_into_lists(kind: str):
    lists = [[3, -1], None, [], [None, 25]]
    block = one(kind, lists, on_invalid="default", default=7)
    assert block.ragged["x"].values.tolist() == [3, 7, 7, 7]
    assert block.ragged["x"].lengths.tolist() == [2, 0, 0, 2]
    assert block.invalid == {"x.default": 3}


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ([1, 2, -1, -1], "id -1, outside the 10 rows of its table, at row 9 (2 such among 4"),
        ([1, 2, 3, 10], "id 10, outside the 10 rows of its table, at row 10 (1 such among 4"),
        ([None, 1, 2, 3], "a null id at row 7 (1 such among 4"),
    ],
)
def test_messages_for_ids(values: list, what: str):
    found = message({"c": values}, {"x": feature("id", column="c")})
    assert found == (
        f"part.parquet: column 'c': {what} values); mend the data or set "
        "features.x.on_invalid to clip, hash or default"
    )


def test_messages_for_lists_name_the_row_not_the_value():
    found = message({"x": [[1, 2, 3], [4], [5, 11]]}, {"x": feature("ids")})
    assert "column 'x': id 11, outside the 10 rows of its table, at row 9 (1 such among 6" in found


def test_unsigned_ids_beyond_int64():
    values = pa.array([2**63 + 5, 1], pa.uint64())
    assert one("id", values, on_invalid="clip").ids["x"].tolist() == [9, 1]
    assert one("id", values, on_invalid="hash").ids["x"].tolist() == [(2**63 + 5) % 10, 1]
    assert f"id {2**63 + 5}, outside" in message({"x": values}, {"x": feature("id")})


@pytest.mark.parametrize("arrow_type", [pa.float64(), pa.float32(), pa.decimal128(20, 0)])
def test_nan_is_no_id_either(arrow_type: pa.DataType):
    bucketise = [{"name": "bucketise", "boundaries": [1.0, 2.0]}]
    missing = None if pa.types.is_decimal(arrow_type) else float("nan")
    values = pa.array([0, 2, missing, None], from_pandas=False).cast(arrow_type)  # NaN stays NaN
    options = {"transforms": bucketise, "on_invalid": "default", "default": 7}
    block = one("id", values, **options)
    assert block.ids["x"].tolist() == [0, 2, 7, 7] and block.invalid == {"x.default": 2}
    with pytest.raises(ValueError, match="a null id at row 9"):
        one("id", values, transforms=bucketise)


@pytest.mark.parametrize(
    "transform", [{"name": "hash", "buckets": 10}, {"name": "vocabulary", "values": ["", "a"]}]
)
def test_null_is_not_the_empty_string(transform: dict):
    options = {"transforms": [transform], "on_invalid": "default", "default": 7}
    nulls, words = one("id", ["", None, "a"], **options), one("id", ["", "", "a"], **options)
    assert nulls.ids["x"][[0, 2]].tolist() == words.ids["x"][[0, 2]].tolist()
    assert nulls.ids["x"][1] == 7 and nulls.invalid == {"x.default": 1} and not words.invalid


def test_an_id_made_by_a_transform_is_checked_too():
    values = [{"name": "hash", "buckets": 1000}]
    with pytest.raises(ValueError, match=r"column 'x': id \d+, outside the 10 rows of its table"):
        one("id", list("abcdefghij"), transforms=values)


def test_transforms_run_in_order():
    chain = [{"name": "log"}, {"name": "bucketise", "boundaries": [1.0, 3.0]}]
    assert one("id", [0, 5, 100], transforms=chain).ids["x"].tolist() == [0, 1, 2]


WORDS = ["b", "a", None, "b"]
VOCABULARY = {"transforms": [{"name": "vocabulary", "values": ["a", "b"]}], "on_invalid": "default"}


@pytest.mark.parametrize(
    "values",
    [
        pa.array(WORDS),
        pa.array(WORDS, pa.large_string()),
        pa.array(WORDS).dictionary_encode(),
        pa.array(WORDS, pa.large_string()).dictionary_encode(),
        pa.array(["x", *WORDS, "x"]).slice(1, 4),
        pa.array(["x", *WORDS]).dictionary_encode().slice(1),
    ],
    ids=lambda values: str(values.type).split("<")[0],
)
def test_strings_in_every_encoding(values: pa.Array):
    assert one("id", values, **VOCABULARY).ids["x"].tolist() == [2, 1, 0, 2]


LISTS = [[1, 2], None, [], [3, 4]]
PAIRS = [[1, 2], None, [3, 4]]


@pytest.mark.parametrize(
    ("values", "lengths"),
    [
        (pa.array(LISTS), [2, 0, 0, 2]),
        (pa.array(LISTS, pa.large_list(pa.uint8())), [2, 0, 0, 2]),
        (pa.array(LISTS, pa.list_(pa.dictionary(pa.int8(), pa.int64()))), [2, 0, 0, 2]),
        (pa.array([[9], *LISTS, [9]]).slice(1, 4), [2, 0, 0, 2]),
        (pa.array([[9], *LISTS, [9]], pa.large_list(pa.int32())).slice(1, 4), [2, 0, 0, 2]),
        (pa.array(PAIRS, pa.list_(pa.int64(), 2)), [2, 0, 2]),
        (pa.array([[9, 9], *PAIRS, None], pa.list_(pa.int64(), 2)).slice(1, 3), [2, 0, 2]),
    ],
)
def test_lists_in_every_encoding(values: pa.Array, lengths: list[int]):
    for kind in ("ids", "sequence"):
        ragged = one(kind, values).ragged["x"]
        assert ragged.values.tolist() == [1, 2, 3, 4]
        assert ragged.lengths.tolist() == lengths


def test_lists_of_strings():
    values = pa.array([["a", "b"], [], ["c"]], pa.list_(pa.dictionary(pa.int8(), pa.string())))
    assert one("ids", values, **VOCABULARY).ragged["x"].values.tolist() == [1, 2, 0]


def test_a_sequence_keeps_its_end():
    ragged = one("sequence", [[1, 2, 3], [], [4], [5, 6, 7, 8]], max_length=2).ragged["x"]
    assert ragged.values.tolist() == [2, 3, 4, 7, 8] and ragged.lengths.tolist() == [2, 0, 1, 2]


def test_only_ids_that_are_kept_are_counted_by_row():
    """What the cut throws away was checked before: data that are wrong are wrong."""
    with pytest.raises(ValueError, match="id 99, outside"):
        one("sequence", [[99, 1, 2]], max_length=2)


WEIGHTED = {"x": feature("ids", weights="w", pooling="sum")}


@pytest.mark.parametrize(
    "weights",
    [
        pa.array([[0.5, 1.0], [], None, [2.0]]),
        pa.array([[9.0], [0.5, 1.0], [], None, [2.0]], pa.large_list(pa.float32())).slice(1),
    ],
)
def test_weights_of_lists(weights: pa.Array):
    ragged = decoded({"x": [[1, 2], None, [], [3]], "w": weights}, WEIGHTED).ragged["x"]
    assert ragged.weights is not None and ragged.weights.dtype == np.float32
    assert ragged.weights.tolist() == [0.5, 1.0, 2.0]


def test_weights_of_another_length():
    found = message({"x": [[1], [1, 2], [1]], "w": [[1.0], [1.0], [1.0, 2.0]]}, WEIGHTED)
    assert found == "part.parquet: row 8: the lists of 'x' and of its weights 'w' differ in length"


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf")])
def test_weights_must_be_finite(bad: float | None):
    found = message({"x": [[1], [1, 2]], "w": [[1.0], [1.0, bad]]}, WEIGHTED)
    assert found == (
        "part.parquet: column 'w' (features.x.weights): a null, NaN or infinite value at row 8; "
        "mend the data"
    )


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("values", "numbers", "mended"),
    [
        (pa.array([1.5, None, NAN, INF, -INF]), [1.5, 7, 7, 7, 7], 4),
        (pa.array([1.5, None], pa.float32()), [1.5, 7], 1),
        (pa.array(np.array([1.5, NAN], np.float16)), [1.5, 7], 1),
        (pa.array([1e39, -1e39, 1e38]), [7, 7, np.float32(1e38)], 2),
        (pa.array([1, None], pa.int8()), [1, 7], 1),
        (pa.array([2**64 - 1, 0], pa.uint64()), [2.0**64, 0], 0),
        (pa.array([2**53 + 1, 0], pa.int64()), [2.0**53, 0], 0),
        (pa.array([True, False, None]), [1, 0, 7], 1),
        (pa.array([Decimal("1.5"), None]), [1.5, 7], 1),
        (pa.array([1.5, None, 1.5]).dictionary_encode(), [1.5, 7, 1.5], 1),
        (pa.array([9, 1, None]).slice(1), [1, 7], 1),
    ],
)
def test_dense_values_of_every_type(values: pa.Array, numbers: list[float], mended: int):
    block = one("dense", values, on_invalid="default", default=7.0)
    assert block.flat["dense"].dtype == np.float32
    assert block.flat["dense"][:, 0].tolist() == numbers
    assert block.invalid == ({"x.default": mended} if mended else {})
    if mended:
        with pytest.raises(ValueError, match="column 'x': a null, NaN or infinite value at row"):
            one("dense", values)


def test_the_message_for_dense_values():
    found = message({"c": [1.0, 2.0, NAN, None]}, {"x": feature("dense", column="c")})
    assert found == (
        "part.parquet: column 'c': a null, NaN or infinite value at row 9 (2 such among 4 values); "
        "mend the data or set features.x.on_invalid to default"
    )


def test_dense_features_stand_in_the_order_of_the_configuration():
    features = {"b": feature("dense"), "a": feature("dense", transforms=[{"name": "log"}])}
    block = decoded({"a": [0.0, 0.0], "b": [1, 2]}, features)
    assert block.flat["dense"].tolist() == [[1, 0], [2, 0]]


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_transform_may_make_what_is_not_finite():
    transforms = [{"name": "standardise", "mean": 0.0, "std": 1e-300}]
    with pytest.raises(ValueError, match="infinite value at row 8"):
        one("dense", [0.0, 1e300], transforms=transforms)


@pytest.mark.parametrize(
    ("values", "kind", "what"),
    [
        ([0, None, 1], "binary", "label nan (expected 0 or 1) at row 8 (1 such among 3 values)"),
        ([0.0, 0.5, NAN], "binary", "label 0.5 (expected 0 or 1) at row 8 (2 such among 3 values)"),
        ([0, 1, -1], "binary", "label -1.0 (expected 0 or 1) at row 9 (1 such among 3 values)"),
        ([0.5, INF], "regression", "label inf (expected a finite number) at row 8"),
        ([0.5, 1e39], "regression", "label inf (expected a finite number) at row 8"),
    ],
)
def test_labels(values: list, kind: str, what: str):
    found = message({"y": values}, tasks={"t": task(kind=kind, label="y")})
    assert found.startswith(f"part.parquet: column 'y': {what}")
    assert found.endswith("mend the data or set tasks.t.on_invalid to mask")
    block = decoded({"y": values}, tasks={"t": task(kind=kind, label="y", on_invalid="mask")})
    numbers = np.array([NAN if value is None else value for value in values])
    good = (abs(numbers) < 1e38) & ((kind != "binary") | np.isin(numbers, (0, 1)))
    assert block.flat["mask"][:, 0].tolist() == good.tolist()
    assert block.flat["labels"][good, 0].tolist() == numbers[good].tolist()
    assert np.isfinite(block.flat["labels"]).all()
    assert block.invalid == {"t.mask": (~good).sum()}


def test_a_column_that_is_no_label():
    """To leave all samples out is no advice."""
    found = message({"y": [37, 21, 55]}, tasks={"t": task(kind="binary", label="y")})
    assert found.endswith("set tasks.t.label to the column that is this task's")


@pytest.mark.parametrize("values", [[True, False], pa.array([1, 0], pa.uint8()), [1.0, 0.0]])
def test_labels_of_every_type(values: Any):
    block = decoded({"y": values}, tasks={"y": task()})
    assert block.flat["labels"].tolist() == [[1], [0]] and block.flat["mask"].all()


def test_masks_and_chains():
    tasks = {
        "click": task(mask="seen"),
        "buy": task(given="click"),
        "pay": task(given="buy", kind="regression"),
    }
    columns = {
        "seen": [True, True, True, True, False],
        "click": [0, 1, 1, 1, None],
        "buy": [None, 0, 1, 1, 1],
        "pay": [NAN, NAN, 2.5, 3.5, NAN],
    }
    block = decoded(columns, tasks=tasks)
    assert block.flat["mask"].tolist() == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
        [True, True, True],
        [False, False, False],
    ]
    assert block.flat["labels"][2:4].tolist() == [[1, 1, 2.5], [1, 1, 3.5]]
    columns["pay"][2] = NAN
    assert "column 'pay': label nan (expected a finite number) at row 9 (1 such" in message(
        columns, tasks=tasks
    )


def test_a_masked_parent_masks_its_children():
    tasks = {"click": task(on_invalid="mask"), "buy": task(given="click")}
    block = decoded({"click": [None, 1], "buy": [1, 1]}, tasks=tasks)
    assert block.flat["mask"].tolist() == [[False, False], [True, True]]
    assert block.invalid == {"click.mask": 1}


@pytest.mark.parametrize(
    ("column", "key", "values"),
    [
        ("m", "tasks.t.mask", [True, None]),
        ("m", "data.weight", [1.0, NAN]),
    ],
)
def test_masks_and_sample_weights_must_be_there(column: str, key: str, values: list):
    schema: dict = {"tasks": {"t": task(label="label", mask="m")}}
    if key == "data.weight":
        schema = {"weight": "m"}
    found = message({column: values}, **schema)
    assert found == (
        f"part.parquet: column 'm' ({key}): a null, NaN or infinite value at row 8; mend the data"
    )


def test_sample_weights():
    weight = decoded({"w": pa.array([2, 0], pa.int8())}, weight="w").flat["weight"]
    assert weight.tolist() == [2, 0] and weight.dtype == np.float32


@pytest.mark.parametrize(
    ("values", "column"),
    [
        (["b", "a"], ["a", "b", "a"]),
        (["b", "a"], pa.array(["a", "b", "a"], pa.large_string())),
        (["b", "a"], pa.array(["a", "b", "a"]).dictionary_encode()),
        (["300", "7"], pa.array([7, 300, 7], pa.int16())),
        ([300, 7], pa.array([7, 300, 7])),
        ([300, 7], pa.array([7.0, 300.0, 7.0])),
        ([300, 7], pa.array(["7", "300", "7"])),
        ([0, 1], pa.array([True, False, True])),
    ],
)
def test_scenarios_of_every_type(values: list, column: Any):
    block = decoded({"s": column}, scenario=scenario(values))
    assert block.flat["scenario"].tolist() == [1, 0, 1]
    assert block.flat["scenario"].dtype == np.int64


def test_a_scenario_may_be_one_that_the_column_cannot_hold():
    block = decoded({"s": pa.array([7, 7], pa.int8())}, scenario=scenario([300, 7]))
    assert block.flat["scenario"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("options", "ids"),
    [({}, [0, 1, 0, 0]), ({"default": "b"}, [0, 1, 1, 1])],
)
def test_unknown_scenarios(options: dict, ids: list):
    columns = {"s": ["a", "b", "z", None]}
    block = decoded(columns, scenario=scenario(["a", "b"], on_invalid="default", **options))
    assert block.flat["scenario"].tolist() == ids and block.invalid == {"scenario.default": 2}
    assert message(columns, scenario=scenario(["a", "b"], **options)) == (
        "part.parquet: column 's': unknown scenario 'z' (expected one of ['a', 'b']) at row 9 "
        "(2 such among 4 values); mend the data or set scenario.on_invalid to default"
    )


def test_without_scenario_and_user():
    block = decoded({"x": [1]}, {"x": feature("id")})
    assert block.flat["scenario"].tolist() == [0]
    assert "user" not in block.flat and "weight" not in block.flat


@pytest.mark.parametrize("name", ["scenario", "user", "weight", "index", "mask", "dense", "label"])
def test_a_feature_may_have_any_name(name: str):
    """Also that of something else which a block carries."""
    hashed = {"transforms": [{"name": "hash", "buckets": 10}]}
    columns = {"x": [1, 2], "s": ["b", "a"], "u": [50, 60], "w": [1.0, 2.0]}
    features = {name: feature("id", column="x"), "y": feature("id", column="u", **hashed)}
    block = decoded(columns, features, scenario=scenario(["a", "b"]), user="u", weight="w")
    assert block.ids[name].tolist() == [1, 2] and block.ids["y"].max() < ROWS
    assert block.flat["scenario"].tolist() == [1, 0]
    assert block.flat["user"].tolist() == [50, 60]
    assert block.flat["weight"].tolist() == [1, 2]
    assert block.flat["index"].tolist() == [100, 101]
    assert block.flat["labels"].tolist() == [[0], [0]]


def test_a_feature_and_a_task_of_one_name_have_their_own_columns():
    columns = {"clicked_id": [3, 4], "click": [1, 0]}
    block = decoded(columns, {"click": feature("id", column="clicked_id")}, tasks={"click": task()})
    assert block.ids["click"].tolist() == [3, 4]
    assert block.flat["labels"].tolist() == [[1], [0]]


def test_counts_add_up_where_blocks_are_joined():
    options = {"on_invalid": "clip"}
    first, second = one("id", [1, 99], **options), one("id", [99, None], **options)
    joined = Block.concat([first, second])
    assert joined.invalid == {"x.clip": 3}
    assert joined.ids["x"].tolist() == [1, 9, 9, 0]
    assert joined.take(np.array([3, 0])).ids["x"].tolist() == [0, 1]
    assert joined.slice(1, 3).ids["x"].tolist() == [9, 9]


def test_no_rows():
    features = {
        "id": feature("id"),
        "text": feature("id", transforms=[{"name": "hash", "buckets": 10}]),
        "list": feature("ids", weights="w", pooling="sum"),
        "sequence": feature("sequence"),
        "dense": feature("dense"),
    }
    numbers = pa.array([], pa.int64())
    columns = {
        "id": numbers,
        "text": pa.array([], pa.string()),
        "list": pa.array([], pa.list_(pa.int64())),
        "w": pa.array([], pa.list_(pa.float32())),
        "sequence": pa.array([], pa.large_list(pa.int64())),
        "dense": pa.array([], pa.float64()),
        "s": pa.array([], pa.string()),
        "u": pa.array([], pa.string()),
    }
    block = decoded(columns, features, scenario=scenario(["a"]), user="u")
    assert block.num_rows == 0 and block.flat["dense"].shape == (0, 1)
    assert len(block.ragged["list"].lengths) == len(block.ragged["sequence"].values) == 0


def nested(lists: list, ids: list, most: int = 50, each: int = 50) -> Block:
    features = {
        "ids": feature("sequence", table="x", max_length=most),
        "x": feature("sequence", aligned_with="ids", max_length=each),
    }
    return decoded({"x": pa.array(lists, pa.list_(pa.list_(pa.int8()))), "ids": ids}, features)


def test_lists_of_lists_go_with_the_ids_that_are_kept():
    lists = [[[1, 2, 3], [], [4]], [], [None, [5, 6]], None]
    block = nested(lists, [[7, 8, 9], [], [7, 7], []])
    found = block.ragged["x"]
    assert found.values.tolist() == [1, 2, 3, 4, 5, 6] and found.lengths.tolist() == [4, 0, 2, 0]
    assert found.inner is not None
    assert found.inner.values.tolist() == [3, 0, 1, 0, 2]
    assert found.inner.lengths.tolist() == [3, 0, 2, 0]
    for kept in (
        block.take(np.array([2, 0])),
        Block.concat([block.slice(2, 3), block.slice(0, 1)]),
    ):
        assert kept.ragged["x"].values.tolist() == [5, 6, 1, 2, 3, 4]
        assert kept.ragged["x"].inner is not None
        assert kept.ragged["x"].inner.values.tolist() == [0, 2, 3, 0, 1]
    cut = nested(lists, [[7, 8, 9], [], [7, 7], []], most=2, each=1)
    assert cut.ragged["ids"].values.tolist() == [8, 9, 7, 7]
    assert cut.ragged["x"].values.tolist() == [4, 6] and cut.ragged["x"].inner is not None
    assert cut.ragged["x"].inner.values.tolist() == [0, 1, 0, 1]
    assert cut.ragged["x"].lengths.tolist() == [1, 0, 1, 0]
    blank = cut.blank(np.arange(2)).ragged["x"]
    assert blank.inner is not None and blank.inner.lengths.tolist() == [0, 0]


def test_messages_for_lists_of_lists():
    with pytest.raises(ValueError) as caught:
        nested([[[1]], [[2]]], [[3], [4, 5]])
    assert str(caught.value) == (
        "part.parquet: row 8: 'x' has 1 lists for the 2 ids of 'ids'; aligned_with needs one for "
        "each"
    )
    with pytest.raises(ValueError, match=r"id 11, outside the 10 rows of its table, at row 8"):
        nested([[[1]], [[2], [3, 11]]], [[3], [4, 5]])
    features = {"i": feature("sequence"), "x": feature("sequence", aligned_with="i")}
    assert message({"x": [[1]], "i": [[1]]}, features) == (
        "part.parquet: column 'x' is list<item: int64>; features.x.aligned_with needs a list of "
        "lists"
    )
