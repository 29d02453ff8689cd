# SPDX-License-Identifier: Apache-2.0
"""Arrow tables to `Block`s: transforms, checks and policies, column by column."""

from collections import Counter
from collections.abc import Callable

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
from deltarec.data.transforms import hash_ids, kind_of, positions, to_float

Place = Callable[[int], tuple[str, int]]
"""Where a row of the dataset stands: its file, and its number there."""


def decode(schema: Schema, table: pa.Table, index: np.ndarray, place: Place) -> Block:
    """Decode rows of a dataset.

    Args:
        schema: what to decode.
        table: the rows.
        index: int64 `[rows]`, the rows' numbers in the dataset.
        place: where to find a row, for messages.

    Raises:
        ValueError: a value is not valid and its policy is `error`.
    """
    return _Decoder(schema, table, index, place).block()


class _Decoder:
    def __init__(self, schema: Schema, table: pa.Table, index: np.ndarray, place: Place) -> None:
        self.schema = schema
        self.table = table
        self.index = index
        self.place = place
        self.invalid: Counter[str] = Counter()

    def block(self) -> Block:
        schema, rows = self.schema, len(self.index)
        flat: dict[str, np.ndarray] = {"index": self.index}
        ids: dict[str, np.ndarray] = {}
        ragged: dict[str, Ragged] = {}
        for name, feature in schema.sparse.items():
            if name not in schema.in_files:
                continue
            if name in schema.aligned:
                ragged[name] = self._lists(name, schema.sequences[name])
            elif isinstance(feature, (IdListFeature, SequenceFeature)):
                ragged[name] = self._list(name, feature)
            elif name in schema.optional:
                ragged[name] = self._optional(name, feature)
            else:
                ids[name] = self._ids(name, feature, self._array(name), self.index)
        flat["dense"] = np.empty((rows, len(schema.dense)), dtype=np.float32)
        for i, (name, feature) in enumerate(schema.dense.items()):
            flat["dense"][:, i] = self._dense(name, feature)
        flat["labels"], flat["mask"] = self._labels(ids, ragged)
        flat["scenario"] = self._scenario()
        if schema.user:
            flat["user"] = hash_ids(self._column(schema.user))
        if schema.weight:
            flat["weight"] = self._numbers(schema.weight, "data.weight")
        if schema.slices:
            buckets = [self._buckets(column, bounds) for column, bounds in schema.slices.items()]
            flat["slices"] = np.stack(buckets, axis=1)
        return Block(flat, ids, ragged, self.invalid)

    def _column(self, column: str) -> pa.Array:
        chunks = self.table.column(column)
        array = chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()
        return _plain(array)

    def _array(self, name: str) -> pa.Array:
        return self._column(self.schema.column(name))

    def _ids(
        self, name: str, feature: SparseFeature, array: pa.Array, rows: np.ndarray
    ) -> np.ndarray:
        """One id for each value of the array, inside the table; `rows` says where each stands."""
        nulls = None
        if array.null_count or pa.types.is_floating(array.type):
            nulls = array.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
            if nulls.any():
                self._mend(name, feature, nulls, rows, "a null id")
                array = _fill_null(array, nulls)
        array = _transform(feature, array)
        is_uint64 = array.type == pa.uint64()  # the one type that int64 does not hold
        ids = (array if is_uint64 else array.cast(pa.int64())).to_numpy()
        if self.schema.table(name) in self.schema.raw_tables:
            ids = ids.view(np.int64)
            return ids if nulls is None else np.where(nulls, feature.default, ids)
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
        return ids.astype(np.int64, copy=False)

    def _list(self, name: str, feature: IdListFeature | SequenceFeature) -> Ragged:
        values, lengths = _flatten(self._array(name))
        ids = self._ids(name, feature, values, np.repeat(self.index, lengths))
        if isinstance(feature, SequenceFeature):
            return _keep_last(Ragged(ids, lengths), feature.max_length)
        if feature.weights is None:
            return Ragged(ids, lengths)
        weights, weight_lengths = _flatten(self._column(feature.weights))
        if not np.array_equal(lengths, weight_lengths):
            path, row = self.place(int(self.index[(lengths != weight_lengths).argmax()]))
            raise ValueError(
                f"{path}: row {row}: the lists of '{self.schema.column(name)}' and of its "
                f"weights '{feature.weights}' differ in length"
            )
        rows = np.repeat(self.index, lengths)
        key = f"features.{name}.weights"
        return Ragged(ids, lengths, self._finite(weights, rows, feature.weights, key))

    def _lists(self, name: str, feature: SequenceFeature) -> Ragged:
        """A list of lists for each row, one for each id that is kept of another sequence."""
        first = self.schema.aligned[name]
        lists, num_lists = _flatten(self._array(name))
        values, lengths = _flatten(lists)
        _, wanted = _flatten(self._array(first))
        if not np.array_equal(num_lists, wanted):
            bad = int((num_lists != wanted).argmax())
            path, row = self.place(int(self.index[bad]))
            raise ValueError(
                f"{path}: row {row}: '{self.schema.column(name)}' has {num_lists[bad]} lists for "
                f"the {wanted[bad]} ids of '{self.schema.column(first)}'; aligned_with needs one "
                "for each"
            )
        ids = self._ids(name, feature, values, np.repeat(np.repeat(self.index, num_lists), lengths))
        kept = _keep_last(
            Ragged(np.arange(len(lengths)), num_lists), self.schema.sequences[first].max_length
        )
        by_list = _keep_last(Ragged(ids, lengths).take(kept.values), feature.max_length)
        ends = np.append(0, np.cumsum(by_list.lengths))[np.append(0, np.cumsum(kept.lengths))]
        inner = Ragged(by_list.lengths, kept.lengths)
        return Ragged(by_list.values, np.diff(ends), inner=inner)

    def _optional(self, name: str, feature: SparseFeature) -> Ragged:
        """Lists of one id, or of none for a null."""
        array = self._array(name)
        there = array.is_valid().to_numpy(zero_copy_only=False)
        ids = self._ids(name, feature, array.drop_null(), self.index[there])
        return Ragged(ids, there.astype(np.int64))

    def _dense(self, name: str, feature: DenseFeature) -> np.ndarray:
        array = self._array(name)
        numbers = _to_float32(_transform(feature, array))
        bad = ~np.isfinite(numbers)
        if bad.any():
            self._mend(name, feature, bad, self.index, "a null, NaN or infinite value")
            numbers = np.where(bad, feature.default, numbers)
        return numbers

    def _labels(
        self, ids: dict[str, np.ndarray], ragged: dict[str, Ragged]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Labels float32 and mask bool, both `[rows, T]`, beside features of ids and of lists."""
        tasks = self.schema.tasks
        labels = np.zeros((len(self.index), len(tasks)), dtype=np.float32)
        mask = np.ones(labels.shape, dtype=bool)
        for t, (name, task) in enumerate(tasks.items()):
            if task.mask:
                mask[:, t] = self._numbers(task.mask, f"tasks.{name}.mask") != 0
            if task.kind == "pairwise":
                for feature in self.schema.optional.intersection([*task.query, *task.item]):
                    mask[:, t] &= ragged[feature].lengths > 0
                if task.num_items is not None:
                    self._check_items(name, ids, ragged, mask[:, t])
                labels[:, t] = 1
                continue
            numbers = _to_float32(self._column(self.schema.label(name)))
            bad = ~np.isfinite(numbers)
            if task.kind == "binary":
                bad |= (numbers != 0) & (numbers != 1)
            if task.given:
                parent = list(tasks).index(task.given)
                mask[:, t] &= mask[:, parent] & (labels[:, parent] == 1)
            bad &= mask[:, t]
            if bad.any():
                wanted = "0 or 1" if task.kind == "binary" else "a finite number"
                if task.on_invalid == "error":
                    self._fail(
                        self.schema.label(name),
                        bad,
                        self.index,
                        f"label {numbers[bad.argmax()]} (expected {wanted})",
                        f"tasks.{name}.on_invalid to mask"
                        if 10 * bad.sum() < 9 * len(bad)
                        else f"tasks.{name}.label to the column that is this task's",
                    )
                self.invalid[f"{name}.mask"] += int(bad.sum())
                mask[:, t] &= ~bad
            labels[:, t] = np.where(np.isfinite(numbers), numbers, 0)
        return labels, mask

    def _check_items(
        self, name: str, ids: dict[str, np.ndarray], ragged: dict[str, Ragged], lives: np.ndarray
    ) -> None:
        """The items of a pairwise task, of the samples it lives on, are below its `num_items`."""
        feature, bound = self.schema.tasks[name].item[0], self.schema.num_items(name)
        if feature in ids:
            items = ids[feature]
        else:  # at most one a sample
            items = np.zeros(len(lives), dtype=np.int64)
            items[ragged[feature].lengths > 0] = ragged[feature].values
        bad = lives & (items >= bound)
        if bad.any():
            self._fail(
                self.schema.column(feature),
                bad,
                self.index,
                f"id {items[bad.argmax()]}, not below the num_items {bound} of task '{name}',",
                f"tasks.{name}.num_items higher",
            )

    def _scenario(self) -> np.ndarray:
        scenario = self.schema.scenario
        if scenario is None:
            return np.zeros(len(self.index), dtype=np.int64)
        array = self._column(scenario.column)
        ids = positions(array, pa.array(scenario.values))
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

    def _buckets(self, column: str, bounds: list[int]) -> np.ndarray:
        array = self._column(column)
        if array.null_count:
            nulls = array.is_null().to_numpy(zero_copy_only=False)
            path, row = self.place(int(self.index[nulls.argmax()]))
            raise ValueError(
                f"{path}: column '{column}' (data.slices.{column}): a null at row {row}; "
                "mend the data"
            )
        return np.searchsorted(bounds, array.to_numpy(), side="right")

    def _numbers(self, column: str, key: str) -> np.ndarray:
        return self._finite(self._column(column), self.index, column, key)

    def _finite(self, array: pa.Array, rows: np.ndarray, column: str, key: str) -> np.ndarray:
        """Float32 numbers, for which there is no policy; `rows` says where each stands."""
        numbers = _to_float32(array)
        bad = ~np.isfinite(numbers)
        if bad.any():
            path, row = self.place(int(rows[bad.argmax()]))
            raise ValueError(
                f"{path}: column '{column}' ({key}): a null, NaN or infinite value at row {row}; "
                "mend the data"
            )
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
        path, row = self.place(int(rows[bad.argmax()]))
        raise ValueError(
            f"{path}: column '{column}': {what} at row {row} "
            f"({int(bad.sum())} such among {len(bad)} values); mend the data or set {mend}"
        )


def _transform(feature: Feature, array: pa.Array) -> pa.Array:
    for transform in feature.transforms:
        array = transform(array)
    return array


def _plain(array: pa.Array) -> pa.Array:
    """Without dictionary, and integers for booleans."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array.cast(pa.int8()) if pa.types.is_boolean(array.type) else array


def _fill_null(array: pa.Array, nulls: np.ndarray) -> pa.Array:
    kind = kind_of(array.type)
    if kind == "fraction":
        array = pa.array(to_float(array))
    filler = pa.scalar("" if kind == "string" else 0).cast(array.type)
    return pc.call_function("if_else", [pa.array(nulls), filler, array])


def _to_float32(array: pa.Array) -> np.ndarray:
    """Float32 values, NaN for nulls, infinite for what is too large."""
    if array.type == pa.float32() and not array.null_count:
        return array.to_numpy()
    with np.errstate(over="ignore"):
        return to_float(array).astype(np.float32)


def _flatten(lists: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """The values of a list column and the int64 length of each list; null lists are empty."""
    lengths = pc.call_function("list_value_length", [lists])
    lengths = pc.fill_null(lengths, 0).to_numpy(zero_copy_only=False)
    return _plain(lists.flatten()), lengths.astype(np.int64)


def _keep_last(ragged: Ragged, most: int) -> Ragged:
    if not len(ragged.lengths) or ragged.lengths.max() <= most:
        return ragged
    lengths = np.minimum(ragged.lengths, most)
    ends = np.cumsum(ragged.lengths)
    target_starts = np.cumsum(lengths) - lengths
    index = np.arange(lengths.sum()) + np.repeat(ends - lengths - target_starts, lengths)
    return Ragged(ragged.values[index], lengths)
