# SPDX-License-Identifier: Apache-2.0
"""From the raw ids of a batch to rows of tables that stay small: between reader and TorchRec.

A table's rows are cut into buckets, a rank owns as many whole ones as the others, and it owns just
the rows that TorchRec's row-wise sharding gives it. A rank asks the owners of its ids for their
rows in one exchange, each id once; what an owner does depends on what the ranks ask together, and
not on who asks (`deltarec_kernels.assign`). So the rows are the same on any number of ranks.

TorchRec's pipeline holds batches ahead of the one in training, and rows are assigned when a batch
is made. A row that is new to an id is therefore made fresh only when its batch is trained: the rows
travel with the batch. What was assigned for batches not yet trained is not part of a checkpoint,
and an evaluation does not see it: it is undone and done again around them.

Not chosen: TorchRec's `MCHManagedCollisionModule`; `docs/methods/assignment.md` says why.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor.metadata import TensorProperties
from torchrec.distributed.types import Shard, ShardedTensor, ShardedTensorMetadata, ShardMetadata
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from deltarec.data.batch import Batch, Fresh
from deltarec.data.schema import Schema
from deltarec.distributed import all_sum, ask, rank, world_size
from deltarec.embeddings.policies import HashedRows, OwnRows
from deltarec.embeddings.tables import TableSpec
from deltarec_kernels import Assigned, Change, IdMap, buckets_of, deduplicate
from deltarec_kernels.splitmix import mix64

SHARED_ROW = 0
"""The row of ids that have none."""


class OwnedRows:
    """A table that gives rows to ids, of which this rank has its share.

    Args:
        table: with its policy.
    """

    def __init__(self, table: TableSpec) -> None:
        policy = table.assignment
        assert isinstance(policy, OwnRows)
        buckets, ranks = policy.buckets, world_size()
        policy.check(table.name, ranks)
        self.table = table
        self.buckets_here = buckets // ranks
        self.first_row = rank() * (table.rows // ranks)
        self.map = IdMap(
            buckets,
            rank() * self.buckets_here,
            self.buckets_here,
            table.rows // buckets,
            -(-(policy.candidates or table.rows) // buckets),
            policy.for_kernels(),
        )

    def assign(self, ids: Tensor) -> tuple[Tensor, Assigned]:
        """The rows of a training batch's ids, int64 `[ids]`; a collective.

        Also what it did on this rank, with the rows that other ranks' ids have got.
        """
        done: list[Assigned] = []

        def answer(asked: Tensor) -> Tensor:
            done.append(self.map.assign(asked[:, 0].contiguous(), asked[:, 1].contiguous()))
            return done[0].rows

        return self._asked(ids, answer), done[0]

    def find(self, ids: Tensor) -> Tensor:
        """The rows that ids have, int64 `[ids]`; a collective."""
        return self._asked(ids, lambda asked: self.map.find(asked[:, 0].contiguous()))

    def _asked(self, ids: Tensor, answer: Any) -> Tensor:
        distinct, inverse, counts = deduplicate(ids)
        owners = buckets_of(distinct, self.map.num_buckets) // self.buckets_here

        def whole(asked: Tensor) -> Tensor:
            rows = answer(asked)
            return torch.where(rows < 0, SHARED_ROW, rows + self.first_row)

        return ask(torch.stack([distinct, counts], 1), owners, whole)[inverse]

    def tensors(self) -> dict[str, Tensor]:
        """The state on this rank, by name: `[rows or buckets here, columns]`."""
        ids = self.map
        state = {"keys": ids.keys[:, None], "uses": ids.uses}
        if len(ids.candidate_keys):
            state["candidate_keys"] = ids.candidate_keys[:, None]
            state["candidate_uses"] = ids.candidate_uses
        return state | {"summaries": ids.summaries}


class Assignments(nn.Module):
    """What gives the ids of a batch their rows, for all tables of a job.

    Its state is part of the model's, so that whoever loads the model knows the ids.

    Args:
        schema: the features and their tables.
        tables: every table.
    """

    def __init__(self, schema: Schema, tables: Mapping[str, TableSpec]) -> None:
        super().__init__()
        self.features: dict[str, list[str]] = {}
        for feature in schema.sparse:
            self.features.setdefault(schema.table(feature), []).append(feature)
        self.hashed = {
            name: table.rows
            for name, table in tables.items()
            if isinstance(table.assignment, HashedRows)
        }
        self.owned = {
            name: OwnedRows(table)
            for name, table in tables.items()
            if isinstance(table.assignment, OwnRows)
        }
        self._ahead: deque[dict[str, Change]] = deque()
        """What leads back from each batch that is not yet trained, by table."""

    def assign(self, batch: Batch) -> Batch:
        """Rows for the ids of the next training batch; a collective.

        `trained` must be called when it is.
        """
        fresh: dict[str, Fresh] = {}
        undo: dict[str, Change] = {}

        def rows_of(name: str, ids: Tensor) -> Tensor:
            if name in self.hashed:
                return self._hashed(name, ids)
            rows, done = self.owned[name].assign(ids)
            undo[name] = done.undo
            if len(done.fresh):
                fresh[name] = Fresh(done.fresh, self.owned[name].map.keys[done.fresh])
            return rows

        batch = self._with_rows(batch, rows_of)
        self._ahead.append(undo)
        return replace(batch, fresh=fresh)

    def find(self, batch: Batch) -> Batch:
        """Rows for the ids of a batch that is not trained; a collective. Nothing is assigned."""

        def rows_of(name: str, ids: Tensor) -> Tensor:
            return self._hashed(name, ids) if name in self.hashed else self.owned[name].find(ids)

        return self._with_rows(batch, rows_of)

    def trained(self) -> None:
        """The first of the batches that were assigned and not trained now is."""
        self._ahead.popleft()

    @contextmanager
    def as_trained(self) -> Iterator[None]:
        """As if the batches that are not yet trained had not been assigned."""
        again = [self._exchange(change) for change in reversed(self._ahead)]
        self._build(again)
        yield
        for change in reversed(again):
            self._exchange(change)
        self._build(again)

    def logged(self) -> dict[str, float]:
        """Rows in use, given and taken so far, and the bytes of those in use; a collective."""
        values: dict[str, float] = {}
        for name, owned in self.owned.items():
            summaries = self._ahead[0][name].summaries if self._ahead else owned.map.summaries
            used, given = all_sum(summaries[:, 2:].sum(0)).tolist()
            table = owned.table
            row_bytes = table.weight_bytes(1, table.dim) + table.state_bytes(1, table.dim)
            values |= {
                f"rows_in_use/{name}": used,
                f"promotions/{name}": given,
                f"evictions/{name}": given - used,
                f"bytes_in_use/{name}": used * row_bytes,
            }
        return values

    @property
    def num_bytes(self) -> int:
        """Of all maps on this rank."""
        return sum(owned.map.num_bytes for owned in self.owned.values())

    def _hashed(self, name: str, ids: Tensor) -> Tensor:
        return (mix64(ids) & (2**63 - 1)) % self.hashed[name]

    def _with_rows(self, batch: Batch, rows_of: Any) -> Batch:
        """A batch whose ids are replaced by what a function of table and ids gives."""
        jagged = {key: getattr(batch, key) for key in ("pooled", "weighted", "unpooled")}
        jagged = {key: features for key, features in jagged.items() if features is not None}
        values = {key: features.values().clone() for key, features in jagged.items()}
        for name in (*self.hashed, *self.owned):
            parts = [
                values[key][features.offset_per_key()[place] : features.offset_per_key()[place + 1]]
                for key, features in jagged.items()
                for place, feature in enumerate(features.keys())
                if feature in self.features[name]
            ]
            rows = rows_of(name, torch.cat(parts))
            for part, found in zip(parts, rows.split([len(p) for p in parts]), strict=True):
                part.copy_(found)
        return replace(
            batch,
            **{
                key: KeyedJaggedTensor(
                    keys=features.keys(),
                    values=values[key],
                    lengths=features.lengths(),
                    weights=features.weights_or_none(),
                )
                for key, features in jagged.items()
            },
        )

    def _exchange(self, changes: dict[str, Change]) -> dict[str, Change]:
        return {name: self.owned[name].map.exchange(change) for name, change in changes.items()}

    def _build(self, changes: list[dict[str, Change]]) -> None:
        for name in {name for change in changes for name in change}:
            self.owned[name].map.build()

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        """The state as the batches that are trained have left it."""
        again = [self._exchange(change) for change in reversed(self._ahead)]
        for name, owned in self.owned.items():
            for key, tensor in owned.tensors().items():
                value = tensor.clone() if again else tensor
                destination[f"{prefix}{name}.{key}"] = _of_all_ranks(value)
        for change in reversed(again):
            self._exchange(change)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        self._ahead.clear()
        for name, owned in self.owned.items():
            for key, tensor in owned.tensors().items():
                given = state_dict.get(f"{prefix}{name}.{key}")
                if given is None:
                    missing_keys.append(f"{prefix}{name}.{key}")
                    continue
                tensor.copy_(given.local_shards()[0].tensor)
            owned.map.build()


def _of_all_ranks(local: Tensor) -> ShardedTensor:
    """A tensor of which every rank has as many rows as the others, one rank after the other."""
    rows, columns = local.shape
    shards = [
        ShardMetadata([rows * r, 0], [rows, columns], f"rank:{r}/cpu") for r in range(world_size())
    ]
    return ShardedTensor._init_from_local_shards_and_global_metadata(
        [Shard(local, shards[rank()])],
        ShardedTensorMetadata(
            shards_metadata=shards,
            size=torch.Size([rows * world_size(), columns]),
            tensor_properties=TensorProperties(dtype=local.dtype),
        ),
        process_group=dist.group.WORLD,
    )
