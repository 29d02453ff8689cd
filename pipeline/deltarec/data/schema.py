# SPDX-License-Identifier: Apache-2.0
"""What the columns of a dataset mean: features, labels, scenario, user and weight."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Literal, Self

import pyarrow as pa
from pydantic import Field, PositiveInt, model_validator

from deltarec.config import Config, OneOf
from deltarec.data.transforms import TRANSFORMS, Kind, Transform, as_kind, kind_of


class Feature(Config):
    """An input of the model, read from one column."""

    column: str | None = None
    """Column of the files; the feature's own name if not given."""
    transforms: list[Annotated[Transform, OneOf(TRANSFORMS)]] = Field(default=[])
    """Applied in order to the column's values."""


class SparseFeature(Feature):
    """A feature of ids, looked up in an embedding table."""

    table: str | None = None
    """The embedding table; features may share one. The feature's own name if not given."""
    on_invalid: Literal["error", "clip", "hash", "default"] = "error"
    """What to do with an id outside the table (and, except under `error`, a null, which becomes the
    default): stop, take the nearest row, hash it into the table, or take `default`."""
    default: int = 0
    """The id that stands for an invalid one under `default`."""


class IdFeature(SparseFeature):
    """One id a sample."""

    kind: Literal["id"]
    optional: bool = False
    """Whether a null means that there is no id: nothing is looked up, and pairwise tasks of the
    feature leave the sample out. Otherwise `on_invalid` says what a null is."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the samples that are trained as if they had no id, with zeros for its vector. So the
    model learns to do without the ids of new users and items, whose rows are still near zero
    (DropoutNet, Volkovs et al., NeurIPS 2017)."""


class IdListFeature(SparseFeature):
    """A list of ids a sample, pooled into one vector; a null list is empty."""

    kind: Literal["ids"]
    pooling: Literal["sum", "mean"] = "mean"
    weights: str | None = None
    """Column with a list of weights beside the ids; pooling must then be `sum`."""


class SequenceFeature(SparseFeature):
    """A list of ids in the order of time, kept whole for a sequence encoder."""

    kind: Literal["sequence"]
    max_length: int = Field(default=50, gt=0)
    """Only the last so many ids are kept; of an aligned sequence, of each of its lists."""
    target: str | None = None
    """The id feature of the same table that the encoder compares the sequence with."""
    aligned_with: str | None = None
    """Another sequence of the same table. The column then has a list of lists: for each id of that
    sequence what belongs to it, such as what was shown around a click. The two share an encoder and
    its target."""


class NegativeFeature(SparseFeature):
    """Ids that the reader draws for a pairwise task; made by `negative_features`."""

    kind: Literal["negative"] = "negative"
    task: str
    number: int
    """Of a sample's negatives."""


class NodeFeature(SparseFeature):
    """All rows of a table, which are nodes of a graph; made by `node_features`."""

    kind: Literal["nodes"] = "nodes"


class DenseFeature(Feature):
    """One number a sample."""

    kind: Literal["dense"]
    on_invalid: Literal["error", "default"] = "error"
    """What to do with a null, a NaN or an infinite value: stop, or take `default`."""
    default: float = 0.0


FEATURES: dict[str, type[Feature]] = {
    "id": IdFeature,
    "ids": IdListFeature,
    "sequence": SequenceFeature,
    "dense": DenseFeature,
}


OWN = ("own_", "popular_")


class Ranking(Config):
    """How pairwise tasks are evaluated: by ranks of held-out items among a query's candidates."""

    at: list[PositiveInt] = Field(default=[10, 20], min_length=1)
    """The K of recall@K, hr@K and ndcg@K."""
    all: bool = True
    """Rank each held-out item among all items: hr@10 and so on. `false` where that takes too long,
    for very many items or where heads score each pair; then `against` or `own` is needed."""
    against: int | None = Field(default=None, gt=0)
    """Also rank each held-out item among so many items drawn at random, each by itself, which the
    query has nowhere in `exclude` nor in the evaluated data: sampled_hr@10 and so on."""
    own: list[str] = []  # noqa: RUF012
    """Also re-rank what the query is known for: the items that it has under these id features in
    `data.events`, and not in `exclude`: own_hr@10 and so on. Beside it stands the list without
    learning, popular_hr@10: the same items by the number of queries that have them in `exclude`."""
    exclude: list[Literal["train", "valid"]] = ["train"]  # noqa: RUF012
    """Data whose items of the same query are no candidates."""
    chunk: int = Field(default=8192, gt=0, le=1 << 24)
    """Items that are looked up and scored at a time."""

    @property
    def kinds(self) -> list[str]:
        """The prefixes of what is reported: among all, drawn, and own candidates."""
        wanted = {("",): self.all, ("sampled_",): self.against, OWN: self.own}
        return [kind for kinds, there in wanted.items() if there for kind in kinds]

    @model_validator(mode="after")
    def _something_to_rank(self) -> Self:
        if not self.kinds:
            raise ValueError("with all: false nothing is ranked; give against or own")
        return self

    def metrics(self, names: Iterable[str]) -> list[str]:
        """All that is reported of metrics of such names."""
        names = list(names)
        return [f"{kind}{name}@{k}" for kind in self.kinds for k in self.at for name in names]


class Task(Config):
    """A label to predict, or with kind `pairwise` an order of items to learn."""

    kind: Literal["binary", "regression", "pairwise"] = "binary"
    """`binary`: logistic loss on a 0/1 label; `regression`: squared error; `pairwise`: each sample
    is a query with an item that belongs to it, which is to score above items drawn at random (BPR);
    there is no label."""
    query: list[str] = []  # noqa: RUF012
    """Of a pairwise task: the features of the query, its id first."""
    item: list[str] = []  # noqa: RUF012
    """Of a pairwise task: the id feature of the item. Ids are rows of its table."""
    negatives: int = Field(default=1, gt=0)
    """Of a pairwise task: items drawn for each sample, any but the sample's own."""
    negative_power: float = Field(default=0.0, ge=0)
    """Of a pairwise task: items are drawn in proportion to this power of the number of samples that
    have them in `train`; 0 draws all alike, the rare ones as often as the frequent."""
    num_items: int | None = Field(default=None, gt=1)
    """Of a pairwise task: its items are the ids below this; all rows of the table if not given."""
    ranking: Ranking = Ranking()
    """Of a pairwise task: how it is evaluated."""
    label: str | None = None
    """Column of the label; the task's own name if not given."""
    mask: str | None = None
    """Boolean column: the samples that the task lives on. All if not given."""
    given: str | None = None
    """Another binary task, declared before: this one lives only on its positive samples. Evaluation
    also reports both together, over all samples, as PARENT*TASK."""
    positive_weight: float = Field(default=1.0, gt=0)
    """Factor on the loss of positive samples."""
    on_invalid: Literal["error", "mask"] = "error"
    """What to do with a label that is null, NaN, or, of a binary task, neither 0 nor 1: stop, or
    leave the sample out of the task and count it as `invalid`."""


class Scenario(Config):
    """The column that says which scenario a sample belongs to."""

    column: str
    values: list[int] | list[str] = Field(min_length=1)
    """The admissible values; a scenario's id is its position here."""
    on_invalid: Literal["error", "default"] = "error"
    """What to do with a null or any other value: stop, or count it to scenario `default`."""
    default: int | str | None = None
    """The value that stands for unknown ones; the first one if not given."""

    @property
    def names(self) -> list[str]:
        return [str(value) for value in self.values]


def negative_features(
    tasks: Mapping[str, Task], features: Mapping[str, Feature]
) -> dict[str, NegativeFeature]:
    """One for each negative of each pairwise task, in the table of the task's items."""
    found: dict[str, NegativeFeature] = {}
    for name, task in tasks.items():
        for number in range(task.negatives if task.kind == "pairwise" else 0):
            item = features[task.item[0]]
            table = getattr(item, "table", None) or task.item[0]
            found[f"{name}/negative{number}"] = NegativeFeature(
                table=table, task=name, number=number
            )
    return found


def node_features(tables: Iterable[str]) -> dict[str, NodeFeature]:
    """One for each table whose rows are nodes."""
    return {f"{table}/nodes": NodeFeature(table=table) for table in tables}


@dataclass(frozen=True)
class Schema:
    """Everything that is read from the files, resolved: names, columns, table sizes."""

    features: Mapping[str, Feature]
    tasks: Mapping[str, Task]
    scenario: Scenario | None
    table_rows: Mapping[str, int]
    user: str | None = None
    weight: str | None = None
    on_bad_file: Literal["stop", "skip"] = "stop"
    slices: Mapping[str, list[int]] = field(default_factory=dict)
    """Columns by whose values evaluations are split, and the lower bounds of their buckets."""
    row_tables: Set[str] = frozenset()
    """Tables whose rows the model wants one by one, also those of id lists."""
    raw_tables: Set[str] = frozenset()
    """Tables whose ids are any 64-bit integers, which get rows later."""
    frozen_tables: Set[str] = frozenset()
    """Tables that are not trained."""

    def column(self, feature: str) -> str:
        return self.features[feature].column or feature

    def label(self, task: str) -> str:
        """The column of a task's label."""
        return self.tasks[task].label or task

    def table(self, feature: str) -> str:
        return self.sparse[feature].table or feature

    @cached_property
    def sparse(self) -> dict[str, SparseFeature]:
        return {n: f for n, f in self.features.items() if isinstance(f, SparseFeature)}

    @cached_property
    def dropout(self) -> dict[str, float]:
        """Of the features that have one."""
        ids = {n: f for n, f in self.sparse.items() if isinstance(f, IdFeature)}
        return {name: feature.dropout for name, feature in ids.items() if feature.dropout}

    @cached_property
    def drawn(self) -> dict[str, NegativeFeature]:
        """Features that are drawn by the reader."""
        return {n: f for n, f in self.features.items() if isinstance(f, NegativeFeature)}

    @cached_property
    def nodes(self) -> list[str]:
        """Features that are all rows of a table, and the order of a graph's nodes."""
        return [n for n, f in self.features.items() if isinstance(f, NodeFeature)]

    @cached_property
    def node_sizes(self) -> tuple[int, ...]:
        """How many nodes each of those tables has."""
        return tuple(self.table_rows[self.table(name)] for name in self.nodes)

    def first_node(self, feature: str) -> int:
        """The place among all nodes of row 0 of the table of a feature that names one."""
        tables = [self.table(name) for name in self.nodes]
        return sum(self.node_sizes[: tables.index(self.table(feature))])

    @cached_property
    def in_files(self) -> dict[str, Feature]:
        """Features that are read."""
        made = {*self.drawn, *self.nodes}
        return {n: f for n, f in self.features.items() if n not in made}

    @cached_property
    def placed(self) -> list[str]:
        """Features that name a node: not looked up, but taken from what becomes of all nodes."""
        tables = {self.table(name) for name in self.nodes}
        return [n for n in self.sparse if self.table(n) in tables and n not in self.nodes]

    @cached_property
    def looked_up(self) -> list[str]:
        """Sparse features with vectors from tables."""
        return [n for n in self.sparse if n not in self.placed]

    @cached_property
    def optional(self) -> set[str]:
        """Features of one id that a sample may lack."""
        found = {n for n, f in self.sparse.items() if isinstance(f, IdFeature) and f.optional}
        return found | self.drawn.keys()

    def num_items(self, task: str) -> int:
        """How many items a pairwise task has."""
        known = self.tasks[task]
        return known.num_items or self.table_rows[self.table(known.item[0])]

    @cached_property
    def dense(self) -> dict[str, DenseFeature]:
        return {n: f for n, f in self.features.items() if isinstance(f, DenseFeature)}

    @cached_property
    def sequences(self) -> dict[str, SequenceFeature]:
        return {n: f for n, f in self.features.items() if isinstance(f, SequenceFeature)}

    @cached_property
    def aligned(self) -> dict[str, str]:
        """Sequences of lists, and the sequence that each is aligned with."""
        return {n: f.aligned_with for n, f in self.sequences.items() if f.aligned_with}

    @cached_property
    def sequence_groups(self) -> dict[str, list[str]]:
        """Sequences that share an encoder, by the first: it, and those aligned with it."""
        return {
            name: [name, *(other for other, first in self.aligned.items() if first == name)]
            for name in self.sequences
            if name not in self.aligned
        }

    @cached_property
    def unpooled_tables(self) -> set[str]:
        """Tables that a sequence uses, and `row_tables`.

        TorchRec keeps those apart, in an EmbeddingCollection.
        """
        return {self.table(name) for name in self.sequences} | self.row_tables

    @cached_property
    def unpooled(self) -> list[str]:
        """Features of such tables, in the order of their KeyedJaggedTensor."""
        return [name for name in self.sparse if self.table(name) in self.unpooled_tables]

    @cached_property
    def weighted(self) -> list[str]:
        """Features pooled by TorchRec with weights."""
        return [n for n in self._pooled_by_torchrec if getattr(self.sparse[n], "weights", None)]

    @cached_property
    def pooled(self) -> list[str]:
        """Features pooled by TorchRec without weights."""
        return [n for n in self._pooled_by_torchrec if n not in self.weighted]

    @cached_property
    def trained(self) -> list[str]:
        """Features with vectors from tables that are trained."""
        return [name for name in self.looked_up if self.table(name) not in self.frozen_tables]

    @cached_property
    def frozen(self) -> list[str]:
        """Features with vectors from tables that are not."""
        return [name for name in self.looked_up if self.table(name) in self.frozen_tables]

    @property
    def _pooled_by_torchrec(self) -> list[str]:
        others = {*self.unpooled, *self.placed, *self.nodes}
        return [name for name in self.sparse if name not in others]

    def columns(self) -> list[str]:
        """Every column that is read, once."""
        names = [self.column(name) for name in self.in_files]
        names += [
            f.weights for f in self.features.values() if isinstance(f, IdListFeature) and f.weights
        ]
        names += [self.label(name) for name, task in self.tasks.items() if task.kind != "pairwise"]
        names += [task.mask for task in self.tasks.values() if task.mask]
        if self.scenario:
            names.append(self.scenario.column)
        names += [name for name in (self.user, self.weight) if name]
        names += self.slices
        return list(dict.fromkeys(names))

    def check(self, files_schema: pa.Schema, path: str) -> None:
        """Compare with the Arrow schema of a file.

        Raises:
            ValueError: a column is missing or of a type that its use does not admit.
        """
        for column in self.columns():
            count = files_schema.names.count(column)
            if count != 1:
                known = _listing(files_schema.names)
                found = "is there twice" if count else "is missing"
                raise ValueError(f"{path}: column '{column}' {found}; the file has {known}")
        for name, feature in self.in_files.items():
            column = self.column(name)
            arrow_type = files_schema.field(column).type
            if isinstance(feature, (IdListFeature, SequenceFeature)):
                if not _is_list(arrow_type):
                    raise _wrong_type(path, column, arrow_type, f"features.{name}", "a list")
                arrow_type = arrow_type.value_type
            if name in self.aligned:
                if not _is_list(arrow_type):
                    key = f"features.{name}.aligned_with"
                    found = files_schema.field(column).type
                    raise _wrong_type(path, column, found, key, "a list of lists")
                arrow_type = arrow_type.value_type
            _check_chain(path, column, arrow_type, name, feature)
        for column, key, kinds in self._plain_columns():
            arrow_type = files_schema.field(column).type
            if key.endswith(".weights"):
                if not _is_list(arrow_type):
                    raise _wrong_type(path, column, arrow_type, key, "a list")
                arrow_type = arrow_type.value_type
            if kind_of(arrow_type) not in kinds:
                raise _wrong_type(path, column, arrow_type, key, _a(kinds))
        if self.scenario:
            self._check_scenario(files_schema, path, self.scenario)

    def _plain_columns(self) -> Iterable[tuple[str, str, tuple[Kind, ...]]]:
        """Columns that are read as they are: name, key in the configuration, admissible kinds."""
        number: tuple[Kind, ...] = ("integer", "fraction")
        for name, feature in self.sparse.items():
            if isinstance(feature, IdListFeature) and feature.weights:
                yield feature.weights, f"features.{name}.weights", number
        for name, task in self.tasks.items():
            if task.kind != "pairwise":
                yield self.label(name), f"tasks.{name}", number
            if task.mask:
                yield task.mask, f"tasks.{name}.mask", number
        if self.weight:
            yield self.weight, "data.weight", number
        if self.user:
            yield self.user, "data.user", ("integer", "string")
        for column in self.slices:
            yield column, f"data.slices.{column}", ("integer",)

    def _check_scenario(self, files_schema: pa.Schema, path: str, scenario: Scenario) -> None:
        arrow_type = files_schema.field(scenario.column).type
        kind = kind_of(arrow_type)
        try:
            if kind is None:
                raise ValueError
            as_kind(pa.array(scenario.values), kind)
        except ValueError:
            needed = f"the type of scenario.values, {scenario.values}"
            raise _wrong_type(path, scenario.column, arrow_type, "scenario", needed) from None


def _check_chain(
    path: str, column: str, arrow_type: pa.DataType, name: str, feature: Feature
) -> None:
    """Follow the column's values through the transforms to what the feature needs."""
    key = f"features.{name}"
    kind, found = kind_of(arrow_type), str(arrow_type)
    for transform in feature.transforms:
        name = transform.name  # pyright: ignore[reportAttributeAccessIssue]
        step = f"{key}, transform {name}"
        if kind not in transform.takes:
            raise _wrong_type(path, column, found, step, _a(transform.takes))
        try:
            transform.check(kind)
        except ValueError as error:
            raise ValueError(f"{path}: column '{column}' is {found}; {step}: {error}") from None
        kind, found = transform.produces, f"{_a((transform.produces,))} after {name}"
    if isinstance(feature, SparseFeature) and kind != "integer":
        needed = "an integer, or a transform that makes ids (hash, vocabulary, bucketise)"
        raise _wrong_type(path, column, found, key, needed)
    if isinstance(feature, DenseFeature) and kind not in ("integer", "fraction"):
        raise _wrong_type(path, column, found, key, "a number")


def _wrong_type(
    path: str, column: str, found: pa.DataType | str, key: str, needed: str
) -> ValueError:
    return ValueError(f"{path}: column '{column}' is {found}; {key} needs {needed}")


def _is_list(arrow_type: pa.DataType) -> bool:
    return (
        pa.types.is_list(arrow_type)
        or pa.types.is_large_list(arrow_type)
        or pa.types.is_fixed_size_list(arrow_type)
    )


def _a(kinds: tuple[Kind, ...]) -> str:
    names = {"string": "a string", "integer": "an integer", "fraction": "a number"}
    wanted = [names[kind] for kind in kinds if kind != "integer" or "fraction" not in kinds]
    return " or ".join(wanted)


def _listing(names: list[str], most: int = 20) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
