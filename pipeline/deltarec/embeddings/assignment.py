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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from deltarec.data import batch as data
from deltarec.data.batch import Batch, Fresh
from deltarec.data.schema import Schema
from deltarec.distributed import all_sum, ask, rank, world_size
from deltarec.embeddings.agent import Agent
from deltarec.embeddings.identities import Identities, Step
from deltarec.embeddings.policies import AutoAssign, HashedRows, OwnRows
from deltarec.embeddings.rows_of_ranks import rows_of_all_ranks
from deltarec.embeddings.tables import TableSpec
from deltarec_kernels import Change, IdMap, buckets_of, deduplicate
from deltarec_kernels.identities import STATE
from deltarec_kernels.splitmix import mix64

SHARED_ROW = 0
"""The row of ids that have none."""
AGENT = "the agent"
"""Begins the names of its state; no table has such a name."""


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

    def assign(self, ids: Tensor, counts: Tensor) -> tuple[Tensor, Fresh | None, Change]:
        """Assign rows to the ids of a training batch that belong here.

        Args:
            ids: int64 `[n]`; one may be there several times.
            counts: int64 `[n]`, how often each was seen.

        Returns:
            What `find` returns; rows that have another id than before; the way back.
        """
        done = self.map.assign(ids, counts)
        fresh = Fresh(done.fresh, self.map.keys[done.fresh]) if len(done.fresh) else None
        return done.rows, fresh, done.undo

    def find(self, ids: Tensor) -> Tensor:
        """The rows of ids that belong here, counted from this rank's first, or -1: int64 `[n]`."""
        return self.map.find(ids)

    def exchange(self, change: Change) -> Change:
        """Put back what was before a batch, or after it again; returns the way back."""
        return self.map.exchange(change)

    def tensors(self) -> dict[str, Tensor]:
        """The state on this rank, by name: `[rows or buckets here, columns]`."""
        ids = self.map
        state = {"keys": ids.keys[:, None], "uses": ids.uses}
        if len(ids.candidate_keys):
            state["candidate_keys"] = ids.candidate_keys[:, None]
            state["candidate_uses"] = ids.candidate_uses
        return state | {"summaries": ids.summaries}

    def used_and_given(self, before: Change | None) -> Tensor:
        """Rows in use and rows given so far, int64 `[2]`, now or before a batch."""
        return (before.summaries if before else self.map.summaries)[:, 2:].sum(0)

    @property
    def num_bytes(self) -> int:
        """Of the map on this rank."""
        return self.map.num_bytes


Owned = OwnedRows | Identities


def hashed_rows(ids: Tensor, rows: int) -> Tensor:
    """The rows, of so many, that the ids' hashes name: int64 `[n]`."""
    return (mix64(ids) & (2**63 - 1)) % rows


class Assignments(nn.Module):
    """What gives the ids of a batch their rows, for all tables of a job.

    Its state is part of the model's, so that whoever loads the model knows the ids.

    Args:
        schema: the features and their tables.
        tables: every table.
        agent: of the tables with policy autoassign, if there are any.
    """

    def __init__(
        self, schema: Schema, tables: Mapping[str, TableSpec], agent: Agent | None
    ) -> None:
        super().__init__()
        self.agent = agent
        self.features: dict[str, list[str]] = {}
        for feature in schema.sparse:
            self.features.setdefault(schema.table(feature), []).append(feature)
        self.hashed = {
            name: table.rows
            for name, table in tables.items()
            if isinstance(table.assignment, HashedRows)
        }
        self.owned: dict[str, Owned] = {}
        for name, table in tables.items():
            if isinstance(table.assignment, AutoAssign):
                assert agent is not None
                self.owned[name] = Identities(table, agent)
            elif isinstance(table.assignment, OwnRows):
                self.owned[name] = OwnedRows(table)
        self._ahead: deque[dict[str, Change | Step]] = deque()
        """What leads back from each batch that is not yet trained, by table."""

    def assign(self, batch: Batch) -> Batch:
        """Rows for the ids of the next training batch; a collective.

        `trained` must be called when it is.
        """
        fresh: dict[str, Fresh] = {}
        undo: dict[str, Change | Step] = {}

        def answer(name: str, asked: Tensor) -> Tensor:
            ids, counts = asked[:, 0].contiguous(), asked[:, 1].contiguous()
            answers, new, undo[name] = self.owned[name].assign(ids, counts)
            if new is not None:
                fresh[name] = new
            return answers

        batch = self._with_rows(batch, answer)
        self._ahead.append(undo)
        return replace(batch, fresh=fresh)

    def find(self, batch: Batch) -> Batch:
        """Rows for the ids of a batch that is not trained; a collective. Nothing is assigned."""

        def answer(name: str, asked: Tensor) -> Tensor:
            return self.owned[name].find(asked[:, 0].contiguous())

        return self._with_rows(batch, answer)

    def trained(self) -> None:
        """The first of the batches that were assigned and not trained now is."""
        self._ahead.popleft()

    def after_partition(self, norms: Callable[[str, Tensor], Tensor]) -> None:
        """Let the agent learn, and rows be given up, after a partition; a collective.

        Args:
            norms: of a table's rows int64 `[n]` on this rank, float32 `[n]`.
        """
        if self.agent is None:
            return
        assert not self._ahead
        ids, outcomes = self.agent.outcomes()
        self.agent.learn()
        for name, owned in self.owned.items():
            if isinstance(owned, Identities):
                for feature in (f for f in self.features[name] if f in ids):
                    owned.tell(ids[feature], outcomes)
                owned.review(lambda rows, name=name: norms(name, rows))

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
            before: Any = self._ahead[0][name] if self._ahead else None
            used, given = all_sum(owned.used_and_given(before)).tolist()
            table = owned.table
            row_bytes = table.weight_bytes(1, table.dim) + table.state_bytes(1, table.dim)
            values |= {
                f"rows_in_use/{name}": used,
                f"promotions/{name}": given,
                f"evictions/{name}": given - used,
                f"bytes_in_use/{name}": used * row_bytes,
            }
        return values | (self.agent.logged() if self.agent else {})

    @property
    def num_bytes(self) -> int:
        """Of all maps on this rank, and of the agent."""
        agent = self.agent.tensors().values() if self.agent else ()
        maps = sum(owned.num_bytes for owned in self.owned.values())
        return maps + sum(tensor.nbytes for tensor in agent)

    def _asked(
        self, name: str, ids: Tensor, answer: Callable[[str, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """The rows of ids by their owners' answers; under the agent also states and actions."""
        owned = self.owned[name]
        distinct, inverse, counts = deduplicate(ids)
        owners = buckets_of(distinct, owned.map.num_buckets) // owned.buckets_here

        def whole(asked: Tensor) -> Tensor:
            answers = answer(name, asked)
            if isinstance(owned, Identities):
                rows = answers[:, 0].view(torch.int32)
                rows.copy_(torch.where(rows < 0, SHARED_ROW, rows + owned.first_row))
                return answers
            return torch.where(answers < 0, SHARED_ROW, answers + owned.first_row)

        answers = ask(torch.stack([distinct, counts], 1), owners, whole)[inverse]
        if isinstance(owned, Identities):
            return answers[:, 0].view(torch.int32).long(), answers[:, 1:]
        return answers, None

    def _with_rows(self, batch: Batch, answer: Callable[[str, Tensor], Tensor]) -> Batch:
        """A batch whose ids are replaced by rows; a function of table and ids answers for owned."""
        jagged = {key: getattr(batch, key) for key in ("pooled", "weighted", "unpooled")}
        jagged = {key: features for key, features in jagged.items() if features is not None}
        values = {key: features.values().clone() for key, features in jagged.items()}
        identities: dict[str, data.Identities] = {}
        for name in (*self.hashed, *self.owned):
            parts = {
                feature: values[key][slice(*features.offset_per_key()[place : place + 2])]
                for key, features in jagged.items()
                for place, feature in enumerate(features.keys())
                if feature in self.features[name]
            }
            lengths = [len(part) for part in parts.values()]
            ids, seen = torch.cat(list(parts.values())), None
            if name in self.hashed:
                rows = hashed_rows(ids, self.hashed[name])
            else:
                rows, seen = self._asked(name, ids, answer)
            if seen is not None:
                own = (ids, seen[:, :STATE].contiguous(), seen[:, STATE:].contiguous())
                by_feature = zip(*(tensor.split(lengths) for tensor in own), strict=True)
                identities |= dict(zip(parts, map(data.Identities._make, by_feature), strict=True))
            for part, found in zip(parts.values(), rows.split(lengths), strict=True):
                part.copy_(found)
        return replace(
            batch,
            identities=identities,
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

    def _exchange(self, changes: Mapping[str, Any]) -> dict[str, Change | Step]:
        return {name: self.owned[name].exchange(change) for name, change in changes.items()}

    def _build(self, changes: list[dict[str, Change | Step]]) -> None:
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
                num_rows = len(value) * world_size()
                destination[f"{prefix}{name}.{key}"] = rows_of_all_ranks(value, num_rows)
        if self.agent is not None:
            for key, tensor in self.agent.tensors().items():
                destination[f"{prefix}{AGENT}.{key}"] = tensor
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
        for key, tensor in self.agent.tensors().items() if self.agent else ():
            given = state_dict.get(f"{prefix}{AGENT}.{key}")
            if given is None:
                missing_keys.append(f"{prefix}{AGENT}.{key}")
            else:
                tensor.copy_(given)
