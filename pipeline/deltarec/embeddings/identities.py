# SPDX-License-Identifier: Apache-2.0
"""The life of an id under AutoAssign+: known, promoted to a row of its own, evicted, forgotten.

Whatever is known of an id is in a *place*, and a place may have a row of the table. There are more
places than rows, and places are assigned by LFU (`deltarec_kernels.assign`); rows by the agent
(`deltarec_kernels.identities`):

    absent     -> known      first sighting: the id is what the shared vectors make of its state
    known      -> promoted   seen `admit_after` times, p >= `promote_at`, and there is a row for it:
                             the row and its optimiser start from nothing, so that the id is still
                             αᵀS
    promoted   -> known      after a partition: the moving average of p is below `evict_below`; in
                             one: another id needs the row, and this one was not seen in it
    any        -> absent     the place is needed for another id

After a partition the rows are queued in the order in which the next one gives them away: free ones,
then those of ids, the first by `evict` first. Agent, losses and queue stand still in a partition,
so what a batch gets depends only on the batches before it, not on how many of them the pipeline has
trained.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from deltarec.data.batch import Fresh
from deltarec.distributed import rank, world_size
from deltarec.embeddings.agent import HAS_ROW, Agent
from deltarec.embeddings.policies import AutoAssign
from deltarec.embeddings.tables import TableSpec
from deltarec_kernels import Change, IdMap, buckets_of, deduplicate
from deltarec_kernels.identities import Lives
from deltarec_kernels.identities.columns import (
    ERROR,
    GIVEN,
    LOSS,
    NEVER,
    NEXT,
    NOBODY,
    NORM,
    RECENT,
    RETENTION,
    REVIEWED,
    ROW,
    TAKEN,
)
from deltarec_kernels.splitmix import mix64

OUTCOMES_KEPT = 0.9
"""Of the moving averages of an id's loss and error, at each of its samples."""
RECENT_KEPT = 0.5
"""Of the count of recent sightings, at the end of each partition."""


class Step(NamedTuple):
    """What places were before a batch; as `Change`, it leads back and forth."""

    map: Change
    places: Tensor
    """Int64 `[n]`."""
    marks: Tensor
    traces: Tensor
    counts: Tensor


class Identities:
    """The ids of a table, of which this rank has its share.

    Args:
        table: with policy autoassign.
        agent: who decides.

    Attributes:
        map: the places of ids.
        lives: what is known of those in them.
    """

    def __init__(self, table: TableSpec, agent: Agent) -> None:
        assert isinstance(table.assignment, AutoAssign)
        self.policy = table.assignment
        buckets, ranks = self.policy.buckets, world_size()
        self.policy.check(table.name, ranks)
        self.table = table
        self.agent = agent
        self.buckets_here = buckets // ranks
        self.first_row = rank() * (table.rows // ranks)
        self.capacity = table.rows // buckets
        candidates = self.policy.candidates or table.rows
        self.places = places = self.capacity + -(-candidates // buckets)
        """Of a bucket."""
        first = rank() * self.buckets_here
        kernel_policy = self.policy.for_kernels()
        self.map = IdMap(buckets, first, self.buckets_here, places, 0, kernel_policy)
        rows = (self.buckets_here, self.capacity)
        self.lives = Lives(
            uses=self.map.uses,
            marks=torch.full((self.buckets_here * places, 2), -1, dtype=torch.int32),
            traces=torch.zeros(self.buckets_here * places, 5),
            counts=torch.zeros(self.buckets_here, 4, dtype=torch.int64),
            queue=torch.zeros(rows, dtype=torch.int32),
            holders=torch.zeros(rows, dtype=torch.int32),
        )
        self._line_up(torch.empty(0, dtype=torch.int64))

    def assign(self, ids: Tensor, counts: Tensor) -> tuple[Tensor, Fresh | None, Step]:
        """Sight the ids of a training batch that belong here.

        Args:
            ids: int64 `[n]`; one may be there several times.
            counts: int64 `[n]`, how often each was seen.

        Returns:
            What `find` returns, with noise; rows that have another id than before; the way back.
        """
        ids, inverse, _ = deduplicate(ids)
        counts = torch.zeros_like(ids).index_add_(0, inverse, counts)
        states, counts_before = self._states(self.map.find(ids)), self.lives.counts.clone()
        actions = self.agent.act(self.table.name, states)
        done, now = self.map.assign(ids, counts), self._now()
        sighted = self.lives.sight(
            ids,
            done.rows,
            done.fresh,
            counts,
            actions[:, -1].contiguous(),
            now,
            self.policy.admit_after,
            self.policy.promote_at,
        )
        new = sighted.promoted
        states[new, HAS_ROW] = 1
        fresh = Fresh(self.rows(done.rows[new]), ids[new]) if len(new) else None
        self.agent.explore(self.table.name, actions, mix64(mix64(ids) + now))
        answers = self.lives.answers(done.rows, states, actions)[inverse]
        return answers, fresh, Step(done.undo, *sighted[1:], counts_before)

    def find(self, ids: Tensor) -> Tensor:
        """What stands for ids that belong here, int64 `[n]`; nothing changes.

        Returns:
            Float32 `[n, 1 + 8 + K + 1]`: the bits of the row, int32, or -1; state; action.
        """
        places = self.map.find(ids)
        states = self._states(places)
        return self.lives.answers(places, states, self.agent.act(self.table.name, states))

    def tell(self, ids: Tensor, outcomes: Tensor) -> None:
        """Let the ids know the losses and errors of a partition's samples.

        Args:
            ids: int64 `[n]`, of all ranks.
            outcomes: float32 `[n, 2]`.
        """
        bucket = buckets_of(ids, self.policy.buckets) - self.map.first_bucket
        here = (bucket >= 0) & (bucket < self.buckets_here)
        distinct, inverse, counts = deduplicate(ids[here])
        sums = torch.zeros(len(distinct), 2).index_add_(0, inverse, outcomes[here])
        places = self.map.find(distinct)
        known = places >= 0
        places, means = places[known], (sums / counts[:, None])[known]
        before = self.lives.traces[places, LOSS : ERROR + 1]
        kept = OUTCOMES_KEPT ** counts[known, None]
        # A loss of 0 is for those of whom nothing was known.
        found = torch.where(before[:, :1] == 0, means, torch.lerp(means, before, kept))
        self.lives.traces[places, LOSS : ERROR + 1] = found

    def review(self, norms: Callable[[Tensor], Tensor]) -> None:
        """Evict after a partition, and see to what is only known then.

        Args:
            norms: of rows int64 `[n]` of this rank, float32 `[n]`.
        """
        places = (self.lives.marks[:, ROW] >= 0).nonzero()[:, 0]
        rows = self.rows(places)
        self.lives.traces[places, NORM] = norms(rows)
        retention = self.agent.act(self.table.name, self._states(places))[:, -1]
        average = torch.lerp(retention, self.lives.traces[places, RETENTION], self.policy.average)
        self.lives.traces[places, RETENTION] = average
        kept = average >= self.policy.evict_below
        self._evict(places[~kept])
        self.lives.traces[:, RECENT] *= RECENT_KEPT
        self._line_up(places[kept])

    def rows(self, places: Tensor) -> Tensor:
        """The rows of places int64 `[n]` that have some, counted from this rank's first."""
        return places // self.places * self.capacity + self.lives.marks[places, ROW]

    def exchange(self, step: Step) -> Step:
        """Put back what was before a batch, or after it again; returns the way back."""
        places, lives = step.places, self.lives
        now = (places, lives.marks[places], lives.traces[places], lives.counts.clone())
        before = Step(self.map.exchange(step.map), *now)
        lives.marks[places] = step.marks
        lives.traces[places] = step.traces
        lives.counts.copy_(step.counts)
        return before

    def tensors(self) -> dict[str, Tensor]:
        """The state on this rank, by name: `[places, rows or buckets here, columns]`."""
        ids = {"keys": self.map.keys[:, None], "summaries": self.map.summaries}
        return ids | self.lives._asdict()

    def used_and_given(self, before: Step | None) -> Tensor:
        """Rows in use and rows given so far, int64 `[2]`, now or before a batch."""
        given, taken = (before if before else self.lives).counts[:, GIVEN : TAKEN + 1].sum(0)
        return torch.stack([given - taken, given])

    @property
    def num_bytes(self) -> int:
        """Of all that is kept of ids on this rank."""
        return self.map.num_bytes + sum(tensor.nbytes for tensor in self.lives[1:])

    def _states(self, places: Tensor) -> Tensor:
        """What the agent sees of ids, float32 `[n, 8]`; zeros for places of -1."""
        return self.lives.states(places, self._now())

    def _now(self) -> int:
        return int(self.map.summaries[0, 0])

    def _evict(self, places: Tensor) -> None:
        bucket = places // self.places
        self.lives.counts[:, TAKEN] += torch.bincount(bucket, minlength=self.buckets_here)
        self.lives.marks[places, ROW] = -1
        self.lives.traces[places, NORM] = 0

    def _line_up(self, places: Tensor) -> None:
        """Queue the rows after a partition: free ones, then those of the ids that have some.

        Args:
            places: of these ids, int64 `[n]`.
        """
        places = places[self.rows(places).argsort()]
        uses = self.map.uses[places]
        score = {
            "agent": self.lives.traces[places, RETENTION],
            "lru": uses[:, 2],
            "lfu": uses[:, 0],
        }
        order = uses[:, 2].argsort(stable=True)  # ties: the longest unseen, the first row
        order = order[score[self.policy.evict][order].argsort(stable=True)]
        rows = self.rows(places[order])
        holders = torch.full((self.buckets_here * self.capacity,), NOBODY)
        holders[rows] = places[order] % self.places
        turns = torch.zeros_like(holders)
        turns[rows] = torch.arange(1, len(rows) + 1)
        if self.map.first_bucket == 0:
            holders[0], turns[0] = NEVER, len(rows) + 1  # of ids without a row
        shape = (self.buckets_here, self.capacity)
        queue = turns.view(shape).argsort(dim=1, stable=True)
        self.lives.queue.copy_(queue)
        self.lives.holders.copy_(holders.view(shape).gather(1, queue))
        self.lives.counts[:, NEXT] = 0
        self.lives.counts[:, REVIEWED] = self.map.summaries[0, 0]
