# SPDX-License-Identifier: Apache-2.0
"""TorchRec collections from the schema, on the meta device, and their outputs by feature name.

Tables whose single rows are wanted (by a sequence, by LSQ) live in EmbeddingCollections (one for
each dimension: a collection has only one) and other features of those tables are pooled here; all
other tables live in at most two EmbeddingBagCollections, one without and one with weights. Frozen
tables have collections of their own.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    PoolingType,
)

from deltarec.data.batch import Batch
from deltarec.data.schema import IdListFeature, Schema, SequenceFeature
from deltarec.embeddings.policies import autoassigned
from deltarec.embeddings.tables import TableSpec
from deltarec.layers.jagged import jagged_sum
from deltarec.layers.lsq import LSQ
from deltarec.layers.shared_rows import SharedRows

FROZEN = "tables.frozen_"
"""How the names of frozen tables begin in a model."""


def without_frozen(state: Mapping[str, Any]) -> dict[str, Any]:
    """A model's state without its frozen tables: what comes from a checkpoint, not from files."""
    return {name: value for name, value in state.items() if not name.startswith(FROZEN)}


@dataclass(frozen=True)
class JaggedSequence:
    """Sequences of vectors, one after the other."""

    values: Tensor
    """`[sum of lengths, D]`"""
    lengths: Tensor
    """Int64 `[B]`"""
    inner: Tensor | None = None
    """Of a sequence aligned with another, how many of the values belong to each of its vectors:
    int64 `[sum of the other's lengths]`"""


@dataclass(frozen=True)
class Embedded:
    """The looked-up vectors of a batch."""

    pooled: dict[str, Tensor]
    """One vector `[B, D]` for each id and id-list feature, in the order of the configuration."""
    sequences: dict[str, JaggedSequence]
    nodes: dict[str, Tensor]
    """This rank's slices of the tables of a graph's nodes, `[slice, D]` each, by feature."""


class EmbeddingTables(nn.Module):
    """All collections of a job. Sharded by `sharding.py`; everything after it is dense.

    Args:
        schema: the features and their tables.
        tables: every table that a feature uses.
    """

    def __init__(self, schema: Schema, tables: Mapping[str, TableSpec]) -> None:
        super().__init__()
        self.schema = schema
        pooled, weighted, frozen_pooled, frozen_weighted = _bags(schema)
        self.pooled = _bag_collection(schema, tables, pooled, weighted=False)
        self.weighted = _bag_collection(schema, tables, weighted, weighted=True)
        self.frozen_pooled = _bag_collection(schema, tables, frozen_pooled, weighted=False)
        self.frozen_weighted = _bag_collection(schema, tables, frozen_weighted, weighted=True)
        self.unpooled = _collections(schema, tables, frozen=False)
        self.frozen_unpooled = _collections(schema, tables, frozen=True)
        self.nodes = _bag_collection(schema, tables, schema.nodes, weighted=False)

    def forward(self, batch: Batch) -> list:
        """The outputs of all collections; `embedded` sorts them out.

        Only look-ups of the batch's own attributes stand here: that is what TorchRec's pipeline can
        start ahead.
        """
        outputs = []
        if self.pooled is not None:
            outputs.append(self.pooled(batch.pooled))
        if self.weighted is not None:
            outputs.append(self.weighted(batch.weighted))
        if self.frozen_pooled is not None:
            outputs.append(self.frozen_pooled(batch.pooled))
        if self.frozen_weighted is not None:
            outputs.append(self.frozen_weighted(batch.weighted))
        for collection in self.unpooled:
            outputs.append(collection(batch.unpooled))
        for collection in self.frozen_unpooled:
            outputs.append(collection(batch.unpooled))
        if self.nodes is not None and batch.nodes is not None:
            outputs.append(self.nodes(batch.nodes))
        return outputs

    def frozen(self) -> list[nn.Module]:
        """The collections of frozen tables."""
        bags = [self.frozen_pooled, self.frozen_weighted]
        return [bag for bag in bags if bag is not None] + list(self.frozen_unpooled)


def embedded(
    schema: Schema,
    outputs: list,
    batch: Batch,
    seen: nn.ModuleDict | None = None,
    mixed: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
) -> Embedded:
    """Collection outputs of a batch by feature name.

    `seen` has a module for some of `schema.row_tables`, which makes of their rows what is seen;
    `mixed` has a function for some features, which does likewise.
    By name always: the order of a sharded collection's output depends on the sharding plan.
    """
    mixed = mixed or {}
    vectors: dict[str, Tensor] = {}
    sequences: dict[str, JaggedSequence] = {}
    inner = batch.inner.to_dict() if batch.inner is not None else {}
    outputs = list(outputs)
    nodes = outputs.pop().to_dict() if batch.nodes is not None else {}
    for names in _bags(schema):
        if names:
            found = outputs.pop(0).to_dict()
            frozen = schema.table(names[0]) in schema.frozen_tables
            vectors.update({n: v.detach() for n, v in found.items()} if frozen else found)
            for name in mixed.keys() & found.keys():  # one id a sample: a bag is its row
                vectors[name] = mixed[name](found[name])
    for collection in outputs:
        for name, jagged in collection.items():
            feature, table = schema.sparse[name], schema.table(name)
            rows = jagged.values()
            if table in schema.frozen_tables:
                rows = rows.detach()
            if seen is not None and table in seen:
                rows = seen[table](rows)
            if name in mixed:
                rows = mixed[name](rows)
            if isinstance(feature, SequenceFeature):
                lists = inner[name].values() if name in inner else None
                sequences[name] = JaggedSequence(rows, jagged.lengths().long(), lists)
            elif isinstance(feature, IdListFeature):
                vectors[name] = pool(rows, jagged.lengths().long(), feature.pooling)
            elif name in schema.optional:
                vectors[name] = pool(rows, jagged.lengths().long(), "sum")
            else:  # one id a sample, but none for padding, which stands at the end
                vectors[name] = F.pad(rows, (0, 0, 0, len(batch.index) - rows.shape[0]))
    pooled = {name: vectors[name] for name in schema.sparse if name in vectors}
    return Embedded(pooled, {name: sequences[name] for name in schema.sequences}, nodes)


def fake_quantisers(tables: Mapping[str, TableSpec]) -> nn.ModuleDict:
    """What is seen of the rows of tables that are trained to be quantised, by table."""
    return nn.ModuleDict(
        {
            name: LSQ(fake.bits, fake.initial_step)
            for name, table in tables.items()
            if (fake := table.fake_quantised)
        }
    )


def shared_rows(tables: Mapping[str, TableSpec]) -> nn.ModuleDict:
    """The vectors that ids without a row share, by table."""
    return nn.ModuleDict(
        {
            name: SharedRows(policy.shared, tables[name].dim, tables[name].init_std, policy.hard)
            for name, policy in autoassigned(tables).items()
        }
    )


def pool(values: Tensor, lengths: Tensor, pooling: str) -> Tensor:
    """Sum or mean over each list: `[sum of lengths, D]` to `[B, D]`; an empty list gives zeros."""
    sums = jagged_sum(values, lengths)
    return sums if pooling == "sum" else sums / lengths.clamp(min=1).unsqueeze(1)


def _bags(schema: Schema) -> list[list[str]]:
    """Features of each EmbeddingBagCollection: pooled, weighted; the same of frozen tables."""
    kinds = (schema.pooled, schema.weighted)
    return [
        [name for name in names if (schema.table(name) in schema.frozen_tables) == frozen]
        for frozen in (False, True)
        for names in kinds
    ]


def _collections(schema: Schema, tables: Mapping[str, TableSpec], frozen: bool) -> nn.ModuleList:
    """One EmbeddingCollection for each dimension, of frozen tables or of the others."""
    by_dim: dict[int, list[str]] = {}
    for name in schema.unpooled:
        if (schema.table(name) in schema.frozen_tables) == frozen:
            by_dim.setdefault(tables[schema.table(name)].dim, []).append(name)
    return nn.ModuleList(_collection(schema, tables, names) for _, names in sorted(by_dim.items()))


def _features_by_table(schema: Schema, names: Iterable[str]) -> dict[str, list[str]]:
    by_table: dict[str, list[str]] = {}
    for name in names:
        by_table.setdefault(schema.table(name), []).append(name)
    return by_table


def _bag_collection(
    schema: Schema, tables: Mapping[str, TableSpec], names: list[str], weighted: bool
) -> EmbeddingBagCollection | None:
    if not names:
        return None
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=table,
                embedding_dim=tables[table].dim,
                num_embeddings=tables[table].rows,
                feature_names=features,
                data_type=tables[table].data_type,
                pooling=_pooling(schema, features),
            )
            for table, features in _features_by_table(schema, names).items()
        ],
        is_weighted=weighted,
        device=torch.device("meta"),
    )


def _pooling(schema: Schema, features: list[str]) -> PoolingType:
    """How a table's features are pooled: TorchRec has one pooling a table (`Job` checks it)."""
    lists = [f for name in features if isinstance(f := schema.sparse[name], IdListFeature)]
    return PoolingType.MEAN if lists and lists[0].pooling == "mean" else PoolingType.SUM


def _collection(
    schema: Schema, tables: Mapping[str, TableSpec], names: Iterable[str]
) -> EmbeddingCollection:
    return EmbeddingCollection(
        tables=[
            EmbeddingConfig(
                name=table,
                embedding_dim=tables[table].dim,
                num_embeddings=tables[table].rows,
                feature_names=features,
                data_type=tables[table].data_type,
            )
            for table, features in _features_by_table(schema, names).items()
        ],
        device=torch.device("meta"),
    )
