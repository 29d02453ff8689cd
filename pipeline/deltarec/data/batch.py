# SPDX-License-Identifier: Apache-2.0
"""One rank's share of a global batch, as tensors."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from deltarec.data.block import Block
from deltarec.data.schema import Schema


@dataclass(frozen=True)
class Position:
    """Where in the training data a job stands: the first sample not yet trained."""

    epoch: int = 0
    samples: int = 0
    """Samples of the epoch before it, over all ranks."""


class Fresh(NamedTuple):
    """Rows of a table that have other ids from a batch on, on the rank that owns them."""

    rows: Tensor
    """Int64 `[new]`, counted from the rank's first."""
    ids: Tensor
    """Int64 `[new]`, the raw ids."""


class Identities(NamedTuple):
    """What the identity agent (`embeddings/agent.py`) makes of the ids of a feature."""

    ids: Tensor
    """Int64 `[n]`, the raw ids."""
    states: Tensor
    """Float32 `[n, 7]`."""
    actions: Tensor
    """Float32 `[n, K + 1]`: weights of the shared vectors, and how much the id's own row counts."""


@dataclass
class Batch(Pipelineable):
    """B samples; every rank has the same B.

    Where a rank has fewer samples of the global batch, it is padded: empty id lists (which look up
    nothing and get no gradient), zeros, mask false, index -1.
    """

    pooled: KeyedJaggedTensor | None
    """Features that TorchRec pools without weights."""
    weighted: KeyedJaggedTensor | None
    """Features that TorchRec pools with weights."""
    unpooled: KeyedJaggedTensor | None
    """Features of the tables that sequences use."""
    inner: KeyedJaggedTensor | None
    """Of each aligned sequence, the lengths of its lists: as many as the other sequence has ids."""
    dense: Tensor
    """Float32 `[B, N]`."""
    labels: Tensor
    """Float32 `[B, T]`."""
    mask: Tensor
    """Bool `[B, T]`: whether the sample belongs to the task."""
    scenario: Tensor
    """Int64 `[B]`, positions in `scenario.values`."""
    weight: Tensor
    """Float32 `[B]`."""
    index: Tensor
    """Int64 `[B]`, the sample's row in the dataset; -1 for padding."""
    user: Tensor
    """Int64 `[B]`, or `[0]` where no user column is configured."""
    num_samples: int
    """Samples of the global batch, over all ranks; lost ones too."""
    epoch: int
    next: Position
    """The position after this batch."""
    lost: Counter[str] = field(default_factory=Counter)
    """How many of this rank's samples lie in damaged parts of files, by path: they are padding."""
    invalid: Counter[str] = field(default_factory=Counter)
    """How many values each policy mended in the windows of rows that begin in this rank's share."""
    slices: Tensor | None = None
    """Int64 `[B, S]`, the bucket of each column of `data.slices`, where there are any."""
    fresh: dict[str, Fresh] = field(default_factory=dict)
    """Of tables whose rows are assigned, what to make fresh before the batch is trained."""
    identities: dict[str, Identities] = field(default_factory=dict)
    """By feature, of tables that the identity agent looks after."""
    placed: KeyedJaggedTensor | None = None
    """Features that name nodes of a graph."""
    nodes: KeyedJaggedTensor | None = None
    """In training: this rank's slice of each table whose rows are nodes, by `node_slices`."""
    subgraph: Tensor | None = None
    """Int64 `[n]`, ascending nodes of a graph, if not all are there: `nodes` are slices of them."""

    def rows(self, feature: str) -> Tensor:
        """The ids of a feature whose rows are looked up one by one, int64 `[sum of lengths]`."""
        assert self.unpooled is not None
        return self.unpooled[feature].values()

    def ids(self, feature: str) -> Tensor:
        """The ids of a feature of one id a sample (or a node), int64 `[B]`; -1 for none."""
        for features in (self.pooled, self.unpooled, self.placed, self.nodes):
            if features is not None and feature in features.keys():  # noqa: SIM118  # no mapping
                padded = features[feature].to_padded_dense(1, -1)
                return padded[:, 0].long()
        raise KeyError(feature)

    def node(self, feature: str, schema: Schema) -> Tensor:
        """The node that a feature of `schema.placed` names, int64 `[B]`; -1 for none."""
        ids = self.ids(feature)
        return torch.where(ids < 0, -1, ids + schema.first_node(feature))

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        return self._map(lambda value: value.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        return self._map(lambda value: value.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        self._map(lambda value: value.record_stream(stream) or value)

    def _map(self, function) -> "Batch":
        changed = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, (Tensor, KeyedJaggedTensor)):
                changed[item.name] = function(value)
        changed["identities"] = {
            name: found._replace(actions=function(found.actions))
            for name, found in self.identities.items()
        }
        return replace(self, **changed)


def make_batch(
    block: Block,
    schema: Schema,
    size: int,
    num_samples: int,
    epoch: int,
    after: Position,
    nodes: KeyedJaggedTensor | None = None,
) -> Batch:
    """A batch of `size` samples from a block of at most so many rows."""
    padding = size - block.num_rows

    def padded(name: str, fill: float = 0) -> Tensor:
        column = block.flat[name]
        if padding:
            tail = np.full((padding, *column.shape[1:]), fill, dtype=column.dtype)
            column = np.concatenate([column, tail])
        return torch.from_numpy(np.ascontiguousarray(column))

    return Batch(
        pooled=_jagged(block, schema.pooled, padding),
        weighted=_jagged(block, schema.weighted, padding),
        unpooled=_jagged(block, schema.unpooled, padding),
        inner=_inner(block, list(schema.aligned), padding),
        dense=padded("dense"),
        labels=padded("labels"),
        mask=padded("mask"),
        scenario=padded("scenario"),
        weight=padded("weight") if schema.weight else torch.ones(size),
        index=padded("index", fill=-1),
        user=padded("user") if schema.user else torch.empty(0, dtype=torch.int64),
        num_samples=num_samples,
        epoch=epoch,
        next=after,
        invalid=block.invalid,
        slices=padded("slices") if schema.slices else None,
        placed=_jagged(block, schema.placed, padding),
        nodes=nodes,
    )


def node_slices(
    schema: Schema, rank: int, num_ranks: int, subgraph: Tensor | None = None
) -> KeyedJaggedTensor | None:
    """A rank's slice of the rows of each table of nodes, one id a bag; None without a graph.

    Slices are of equal length, the longest table's: what lies past a table's end is an empty bag.

    Args:
        schema: of the job.
        rank: whose slice.
        num_ranks: how many there are.
        subgraph: int64 `[n]`, ascending, the nodes to slice; all, if not given.
    """
    if not schema.nodes:
        return None
    rows = [torch.arange(size) for size in schema.node_sizes]
    if subgraph is not None:
        users = schema.node_sizes[0]
        is_user = subgraph < users
        rows = [subgraph[is_user], subgraph[~is_user] - users]
    longest = max(-(-len(ids) // num_ranks) for ids in rows)
    values, lengths = [], torch.zeros(len(rows), longest, dtype=torch.int32)
    for i, ids in enumerate(rows):
        share = -(-len(ids) // num_ranks)
        values.append(ids[rank * share : (rank + 1) * share])
        lengths[i, : len(values[i])] = 1
    return KeyedJaggedTensor(keys=schema.nodes, values=torch.cat(values), lengths=lengths.flatten())


def _jagged(block: Block, keys: Sequence[str], padding: int) -> KeyedJaggedTensor | None:
    """Columns side by side as a KeyedJaggedTensor: key after key, sample after sample."""
    if not keys:
        return None
    rows = block.num_rows
    lengths = np.zeros((len(keys), rows + padding), dtype=np.int32)
    values, weights = [np.empty(0, dtype=np.int64)], []
    for i, key in enumerate(keys):
        ragged = block.ragged.get(key)
        if ragged is None and key not in block.ids:  # negatives, where nobody draws any
            continue
        if ragged is None:
            values.append(block.ids[key])
            lengths[i, :rows] = 1
        else:
            values.append(ragged.values)
            lengths[i, :rows] = ragged.lengths
            if ragged.weights is not None:
                weights.append(ragged.weights)
    return KeyedJaggedTensor(
        keys=list(keys),
        values=torch.from_numpy(np.concatenate(values)),
        lengths=torch.from_numpy(lengths.reshape(-1)),
        weights=torch.from_numpy(np.concatenate(weights)) if weights else None,
    )


def _inner(block: Block, keys: Sequence[str], padding: int) -> KeyedJaggedTensor | None:
    lists = {key: inner for key in keys if (inner := block.ragged[key].inner) is not None}
    return _jagged(Block(block.flat, {}, lists), keys, padding)
