# SPDX-License-Identifier: Apache-2.0
"""The life of an id under AutoAssign+: known, promoted to a row of its own, evicted, forgotten.

Whatever is known of an id is in a *place*, and a place may have a row of the table. There are more
places than rows, and places are assigned by LFU (`deltarec_kernels.assign`); rows by the agent:

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
from deltarec.embeddings.agent import HAS_ROW, Agent, with_rows_only
from deltarec.embeddings.policies import AutoAssign
from deltarec.embeddings.tables import TableSpec
from deltarec_kernels import Change, IdMap, buckets_of, deduplicate
from deltarec_kernels.splitmix import mix64

OUTCOMES_KEPT = 0.9
"""Of the moving averages of an id's loss and error, at each of its samples."""
RECENT_KEPT = 0.5
"""Of the count of recent sightings, at the end of each partition."""
FIRST, ROW = 0, 1
RECENT, LOSS, ERROR, NORM, RETENTION = 0, 1, 2, 3, 4
NEXT, GIVEN, TAKEN, REVIEWED = 0, 1, 2, 3
NOBODY, NEVER = -1, -2
"""In the place of a row's holder: the row is free; it is not to be given."""
LOOK_AHEAD = 4
"""By how many times more of the queue is looked at, while it has too few rows to give."""


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
        marks: int32 `[places here, 2]`: the step of the first sighting, and the row, counted from
            the bucket's first, or -1.
        traces: float32 `[places here, 5]`: recent sightings; the moving averages of loss and error;
            the norm of the row when the last partition ended; the moving average of retention.
        queue: int32 `[buckets here, rows of one]`: the rows of each bucket, counted likewise, in
            the order in which they are given.
        holders: int32 of that shape: the places that had them when the last partition ended,
            counted from the bucket's first.
        counts: int64 `[buckets here, 4]`: where the queue goes on; rows given and taken so far; the
            step when the last partition ended.
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
        self.marks = torch.full((self.buckets_here * places, 2), -1, dtype=torch.int32)
        self.traces = torch.zeros(self.buckets_here * places, 5)
        self.counts = torch.zeros(self.buckets_here, 4, dtype=torch.int64)
        self.queue = torch.zeros(self.buckets_here, self.capacity, dtype=torch.int32)
        self.holders = torch.zeros_like(self.queue)
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
        states = self._states(self.map.find(ids))
        done = self.map.assign(ids, counts)
        known = (done.rows >= 0).nonzero()[:, 0]
        places = done.rows[known]
        before, counts_before = self._known_of(places), self.counts.clone()
        self._begin(done.fresh)
        self.traces[places, RECENT] += counts[known]
        wants = self.marks[places, ROW] < 0
        wants &= self.map.uses[places, 0] >= self.policy.admit_after
        known = known[wants]
        actions = self.agent.act(self.table.name, states)
        keeps = known[actions[known, -1] >= self.policy.promote_at]
        hashes = mix64(ids)
        promoted, evicted = self._promote(hashes[keeps], done.rows[keeps])
        changed = _Known(*map(torch.cat, zip(before, evicted, strict=True)))
        back = Step(done.undo, *changed, counts_before)
        new = keeps[promoted]
        states[new, HAS_ROW] = 1
        self.traces[done.rows[new], RETENTION] = actions[new, -1]
        fresh = Fresh(self.rows(done.rows[new]), ids[new]) if len(new) else None
        step = self.map.summaries[0, 0]
        self.agent.explore(self.table.name, actions, mix64(hashes + step))
        return self._answer(done.rows, states, actions)[inverse], fresh, back

    def find(self, ids: Tensor) -> Tensor:
        """What stands for ids that belong here, int64 `[n]`; nothing changes.

        Returns:
            Float32 `[n, 1 + 8 + K + 1]`: the bits of the row, int32, or -1; state; action.
        """
        places = self.map.find(ids)
        states = self._states(places)
        return self._answer(places, states, self.agent.act(self.table.name, states))

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
        before = self.traces[places, LOSS : ERROR + 1]
        kept = OUTCOMES_KEPT ** counts[known, None]
        # A loss of 0 is for those of whom nothing was known.
        found = torch.where(before[:, :1] == 0, means, torch.lerp(means, before, kept))
        self.traces[places, LOSS : ERROR + 1] = found

    def review(self, norms: Callable[[Tensor], Tensor]) -> None:
        """Evict after a partition, and see to what is only known then.

        Args:
            norms: of rows int64 `[n]` of this rank, float32 `[n]`.
        """
        places = (self.marks[:, ROW] >= 0).nonzero()[:, 0]
        rows = self.rows(places)
        self.traces[places, NORM] = norms(rows)
        retention = self.agent.act(self.table.name, self._states(places))[:, -1]
        average = torch.lerp(retention, self.traces[places, RETENTION], self.policy.average)
        self.traces[places, RETENTION] = average
        kept = average >= self.policy.evict_below
        self._evict(places[~kept])
        self.traces[:, RECENT] *= RECENT_KEPT
        self._line_up(places[kept])

    def rows(self, places: Tensor) -> Tensor:
        """The rows of places int64 `[n]` that have some, counted from this rank's first."""
        return places // self.places * self.capacity + self.marks[places, ROW]

    def exchange(self, step: Step) -> Step:
        """Put back what was before a batch, or after it again; returns the way back."""
        known = self._known_of(step.places)
        before = Step(self.map.exchange(step.map), *known, self.counts.clone())
        self.marks[step.places] = step.marks
        self.traces[step.places] = step.traces
        self.counts.copy_(step.counts)
        return before

    def tensors(self) -> dict[str, Tensor]:
        """The state on this rank, by name: `[places, rows or buckets here, columns]`."""
        return {
            "keys": self.map.keys[:, None],
            "uses": self.map.uses,
            "summaries": self.map.summaries,
            "marks": self.marks,
            "traces": self.traces,
            "queue": self.queue,
            "holders": self.holders,
            "counts": self.counts,
        }

    def used_and_given(self, before: Step | None) -> Tensor:
        """Rows in use and rows given so far, int64 `[2]`, now or before a batch."""
        given, taken = (before.counts if before else self.counts)[:, GIVEN : TAKEN + 1].sum(0)
        return torch.stack([given - taken, given])

    @property
    def num_bytes(self) -> int:
        """Of all that is kept of ids on this rank."""
        own = (self.marks, self.traces, self.queue, self.holders, self.counts)
        return self.map.num_bytes + sum(tensor.nbytes for tensor in own)

    def _states(self, places: Tensor) -> Tensor:
        """What the agent sees of ids, float32 `[n, 8]`; zeros for places of -1."""
        known, at = places >= 0, places.clamp(min=0)
        uses, marks, traces = self.map.uses[at], self.marks[at], self.traces[at]
        ages = self.map.summaries[0, 0] - torch.stack([uses[:, 2], marks[:, FIRST]], 1)
        counts = [uses[:, :1].float(), traces[:, : RECENT + 1], ages.float()]
        has_row = (marks[:, ROW:] >= 0).float()
        states = torch.cat([torch.cat(counts, 1).log1p_(), traces[:, LOSS : NORM + 1], has_row], 1)
        return states.masked_fill_(~known[:, None], 0)

    def _begin(self, places: Tensor) -> None:
        """Places that have other ids than before; rows they had are given in their turn."""
        self._evict(places[self.marks[places, ROW] >= 0])
        self.marks[places, FIRST] = self.map.summaries[0, 0].int()
        self.traces[places] = 0

    def _promote(self, hashes: Tensor, places: Tensor) -> tuple[Tensor, "_Known"]:
        """Give rows to ids, while there are some.

        Args:
            hashes: of the ids, int64 `[n]`; in their unsigned order rows are given.
            places: int64 `[n]`.

        Returns:
            Which got one, int64 `[new]`; what those were who lost theirs.
        """
        if not len(places):
            return places, self._known_of(places)
        order = (hashes ^ -(2**63)).argsort()
        bucket = places[order] // self.places
        wanted = torch.bincount(bucket, minlength=self.buckets_here)
        rows, holders, given = self._take(wanted)
        number = torch.arange(len(order)) - (wanted.cumsum(0) - wanted)[bucket]
        order = order[number < given[bucket]]
        holders = holders[self._holds(holders, rows)]
        evicted = self._known_of(holders)
        self._evict(holders)
        self.marks[places[order], ROW] = rows.int()
        self.counts[:, GIVEN] += given
        return order, evicted

    def _take(self, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The next rows of the queues, without those of ids that were seen in this partition.

        Args:
            wanted: of each bucket, int64 `[buckets here]`; not all 0.

        Returns:
            Rows and their holders, int64 `[given]`, one bucket's after the other's; how many there
            are of each bucket.
        """
        width = int(wanted.max())
        first = self.counts[:, NEXT, None]
        starts = torch.arange(self.buckets_here).unsqueeze(1) * self.places
        while True:
            at = first + torch.arange(width)
            inside, at = at < self.capacity, at.clamp(max=self.capacity - 1)
            rows, holders = self.queue.gather(1, at).long(), self.holders.gather(1, at).long()
            holders = torch.where(holders < 0, holders, holders + starts)
            seen = self.map.uses[holders.clamp(min=0), 2] > self.counts[:, REVIEWED, None]
            may = inside & (holders != NEVER) & ~(self._holds(holders, rows) & seen)
            number = may.cumsum(1)
            if ((number[:, -1] >= wanted) | ~inside[:, -1]).all():
                break
            width *= LOOK_AHEAD
        taken = may & (number <= wanted[:, None])
        given = taken.sum(1)
        passed = (inside & (number < wanted[:, None])).sum(1) + (given == wanted) * (wanted > 0)
        self.counts[:, NEXT] += passed
        return rows[taken], holders[taken], given

    def _holds(self, holders: Tensor, rows: Tensor) -> Tensor:
        """Whether those who had these rows after the last partition still have them."""
        return (holders >= 0) & (self.marks[holders.clamp(min=0), ROW] == rows)

    def _known_of(self, places: Tensor) -> "_Known":
        return _Known(places, self.marks[places], self.traces[places])

    def _evict(self, places: Tensor) -> None:
        bucket = places // self.places
        self.counts[:, TAKEN] += torch.bincount(bucket, minlength=self.buckets_here)
        self.marks[places, ROW] = -1
        self.traces[places, NORM] = 0

    def _answer(self, places: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        at = places.clamp(min=0)
        has_row = (places >= 0) & (self.marks[at, ROW] >= 0)
        rows = torch.where(has_row, self.rows(at), -1).int()[:, None]
        return torch.cat([rows.view(torch.float32), states, with_rows_only(actions, states)], 1)

    def _line_up(self, places: Tensor) -> None:
        """Queue the rows after a partition: free ones, then those of the ids that have some.

        Args:
            places: of these ids, int64 `[n]`.
        """
        places = places[self.rows(places).argsort()]
        uses = self.map.uses[places]
        score = {"agent": self.traces[places, RETENTION], "lru": uses[:, 2], "lfu": uses[:, 0]}
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
        self.queue.copy_(queue)
        self.holders.copy_(holders.view(shape).gather(1, queue))
        self.counts[:, NEXT] = 0
        self.counts[:, REVIEWED] = self.map.summaries[0, 0]


class _Known(NamedTuple):
    """A copy of what places are."""

    places: Tensor
    marks: Tensor
    traces: Tensor
