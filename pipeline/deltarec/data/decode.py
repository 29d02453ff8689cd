# SPDX-License-Identifier: Apache-2.0
"""Arrow tables to `Block`s: transforms, checks and policies, column by column."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from deltarec.data.block import Block, Ragged
from deltarec.data.schema import (
    DenseFeature,
    Feature,
    IdListFeature,
    Schema,
    SequenceFeature,
    SparseFeature,
)
from deltarec.data.transforms import hash_ids


def decode(schema: Schema, table: pa.Table, index: np.ndarray, path: str) -> Block:
    """Decode rows of one file.

    Args:
        schema: what to decode.
        table: the rows.
        index: int64 `[rows]`, the rows' numbers in the dataset; they appear in messages.
        path: the file, for messages.

    Raises:
        ValueError: a value is not valid and its policy is `error`.
    """
    return _Decoder(schema, table, index, path).block()


class _Decoder:
    def __init__(self, schema: Schema, table: pa.Table, index: np.ndarray, path: str) -> None:
        self.schema = schema
        self.table = table
        self.index = index
        self.path = path
        self.invalid: Counter[str] = Counter()

    def block(self) -> Block:
        schema, rows = self.schema, len(self.index)
        flat: dict[str, np.ndarray] = {"index": self.index}
        ragged: dict[str, Ragged] = {}
        for name, feature in schema.sparse.items():
            if isinstance(feature, (IdListFeature, SequenceFeature)):
                ragged[name] = self._list(name, feature)
            else:
                flat[name] = self._ids(name, feature, self._array(name), self.index)
        flat["dense"] = np.empty((rows, len(schema.dense)), dtype=np.float32)
        for i, (name, feature) in enumerate(schema.dense.items()):
            flat["dense"][:, i] = self._dense(name, feature)
        flat["labels"], flat["mask"] = self._labels()
        flat["scenario"] = self._scenario()
        if schema.user:
            flat["user"] = hash_ids(_fill_null(self._column(schema.user)))
        if schema.weight:
            flat["weight"] = self._numbers(schema.weight, "data.weight").astype(np.float32)
        return Block(flat, ragged, self.invalid)

    def _column(self, column: str) -> pa.Array:
        chunks = self.table.column(column)
        array = chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()
        return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array

    def _array(self, name: str) -> pa.Array:
        return self._column(self.schema.column(name))

    def _ids(
        self, name: str, feature: SparseFeature, array: pa.Array, rows: np.ndarray
    ) -> np.ndarray:
        """One id for each value of the array, inside the table; `rows` says where each stands."""
        nulls = None
        if array.null_count:
            nulls = array.is_null().to_numpy(zero_copy_only=False)
            self._mend(name, feature, nulls, rows, "a null id")
            array = _fill_null(array)
        ids = _transform(feature, array).cast(pa.int64(), safe=False).to_numpy()
        table_rows = self.schema.table_rows[self.schema.table(name)]
        if len(ids) and not (ids.min() >= 0 and ids.max() < table_rows):
            outside = (ids < 0) | (ids >= table_rows)
            what = f"id {ids[outside.argmax()]}, outside the {table_rows} rows of its table,"
            self._mend(name, feature, outside, rows, what)
            if feature.on_invalid == "clip":
                ids = np.clip(ids, 0, table_rows - 1)
            elif feature.on_invalid == "hash":
                ids = np.where(outside, ids % table_rows, ids)
            else:
                ids = np.where(outside, feature.default, ids)
        if nulls is not None:
            ids = np.where(nulls, feature.default, ids)
        return ids

    def _list(self, name: str, feature: IdListFeature | SequenceFeature) -> Ragged:
        values, lengths = _flatten(self._array(name))
        ids = self._ids(name, feature, values, np.repeat(self.index, lengths))
        if isinstance(feature, SequenceFeature):
            return _keep_last(Ragged(ids, lengths), feature.max_length)
        if feature.weights is None:
            return Ragged(ids, lengths)
        weights, weight_lengths = _flatten(self._column(feature.weights))
        if not np.array_equal(lengths, weight_lengths):
            row = self.index[(lengths != weight_lengths).argmax()]
            raise ValueError(
                f"{self.path}: row {row}: the lists of '{self.schema.column(name)}' and of its "
                f"weights '{feature.weights}' differ in length"
            )
        return Ragged(ids, lengths, _to_float(weights).astype(np.float32))

    def _dense(self, name: str, feature: DenseFeature) -> np.ndarray:
        array = self._array(name)
        if not feature.transforms and pa.types.is_floating(array.type) and not array.null_count:
            numbers = array.to_numpy()
        else:
            numbers = _to_float(_transform(feature, array))
        bad = ~np.isfinite(numbers)
        if bad.any():
            self._mend(name, feature, bad, self.index, "a null, NaN or infinite value")
            numbers = np.where(bad, feature.default, numbers)
        return numbers

    def _labels(self) -> tuple[np.ndarray, np.ndarray]:
        """Labels float32 and mask bool, both `[rows, T]`."""
        tasks = self.schema.tasks
        labels = np.zeros((len(self.index), len(tasks)), dtype=np.float32)
        mask = np.ones(labels.shape, dtype=bool)
        for t, (name, task) in enumerate(tasks.items()):
            numbers = _to_float(self._array(name))
            bad = ~np.isfinite(numbers)
            if task.kind == "binary":
                bad |= (numbers != 0) & (numbers != 1)
            if task.mask:
                mask[:, t] = self._numbers(task.mask, f"tasks.{name}.mask") != 0
            if task.given:
                parent = list(tasks).index(task.given)
                mask[:, t] &= mask[:, parent] & (labels[:, parent] == 1)
            bad &= mask[:, t]
            if bad.any():
                wanted = "0 or 1" if task.kind == "binary" else "a finite number"
                if task.on_invalid == "error":
                    self._fail(
                        self.schema.column(name),
                        bad,
                        self.index,
                        f"label {numbers[bad.argmax()]} (expected {wanted})",
                        f"tasks.{name}.on_invalid to mask",
                    )
                self.invalid[f"{name}.mask"] += int(bad.sum())
                mask[:, t] &= ~bad
            labels[:, t] = np.where(np.isfinite(numbers), numbers, 0)
        return labels, mask

    def _scenario(self) -> np.ndarray:
        scenario = self.schema.scenario
        if scenario is None:
            return np.zeros(len(self.index), dtype=np.int64)
        array = self._column(scenario.column)
        try:
            value_set = pa.array(scenario.values).cast(array.type)
        except pa.ArrowException:
            raise ValueError(
                f"{self.path}: column '{scenario.column}' is {array.type}; scenario.values are "
                f"{scenario.values}: write values of that type"
            ) from None
        ids = pc.fill_null(pc.index_in(array, value_set), -1).to_numpy(zero_copy_only=False)
        ids = ids.astype(np.int64)
        unknown = ids < 0
        if unknown.any():
            first = array[int(unknown.argmax())].as_py()
            if scenario.on_invalid == "error":
                self._fail(
                    scenario.column,
                    unknown,
                    self.index,
                    f"unknown scenario {first!r} (expected one of {scenario.values})",
                    "scenario.on_invalid to default",
                )
            self.invalid["scenario.default"] += int(unknown.sum())
            values: list[int | str] = list(scenario.values)
            ids[unknown] = 0 if scenario.default is None else values.index(scenario.default)
        return ids

    def _numbers(self, column: str, key: str) -> np.ndarray:
        numbers = _to_float(self._column(column))
        bad = ~np.isfinite(numbers)
        if bad.any():
            row = self.index[bad.argmax()]
            raise ValueError(f"{self.path}: column '{column}' ({key}): null or NaN at row {row}")
        return numbers

    def _mend(
        self, name: str, feature: Feature, bad: np.ndarray, rows: np.ndarray, what: str
    ) -> None:
        policy: str = feature.on_invalid  # pyright: ignore[reportAttributeAccessIssue]
        if policy == "error":
            choices = "default" if isinstance(feature, DenseFeature) else "clip, hash or default"
            mend = f"features.{name}.on_invalid to {choices}"
            self._fail(self.schema.column(name), bad, rows, what, mend)
        self.invalid[f"{name}.{policy}"] += int(bad.sum())

    def _fail(self, column: str, bad: np.ndarray, rows: np.ndarray, what: str, mend: str) -> None:
        raise ValueError(
            f"{self.path}: column '{column}': {what} at row {rows[bad.argmax()]} "
            f"({int(bad.sum())} such among {len(bad)} values); mend the data or set {mend}"
        )


def _transform(feature: Feature, array: pa.Array) -> pa.Array:
    for transform in feature.transforms:
        array = transform(array)
    return array


def _fill_null(array: pa.Array) -> pa.Array:
    if not array.null_count:
        return array
    is_text = pa.types.is_string(array.type) or pa.types.is_large_string(array.type)
    return pc.fill_null(array, "" if is_text else 0)


def _to_float(array: pa.Array) -> np.ndarray:
    """Float64 values, NaN for nulls."""
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.int8())
    return array.cast(pa.float64()).to_numpy(zero_copy_only=False)


def _flatten(lists: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """The values of a list column and the int64 length of each list; null lists are empty."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return lists.flatten(), lengths.astype(np.int64)


def _keep_last(ragged: Ragged, most: int) -> Ragged:
    if not len(ragged.lengths) or ragged.lengths.max() <= most:
        return ragged
    lengths = np.minimum(ragged.lengths, most)
    ends = np.cumsum(ragged.lengths)
    target_starts = np.cumsum(lengths) - lengths
    index = np.arange(lengths.sum()) + np.repeat(ends - lengths - target_starts, lengths)
    return Ragged(ragged.values[index], lengths)
