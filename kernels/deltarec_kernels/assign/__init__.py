# SPDX-License-Identifier: Apache-2.0
"""Assignment: ids of any 64 bits to the rows of a table that stays small.

A map's rows are cut into *buckets*, of which every rank owns some whole ones; a hash names the
bucket of an id. What happens in a bucket depends on the ids that the whole batch has for it, and on
nothing else. In the first part of a step ids that have rows are counted; in the second one those
that have none take rows, in the order of their hashes, from ids that are not in this step. So no
two ids of a step share a row, and an id is never evicted by another one of the same batch.

Which row is given away next: a free one; else the one of the lowest score, then the longest unseen
one, then the first. The score is, by `Policy.evict`,

    lru, timed   the step in which the id was seen last
    lfu          how often it was seen, plus, with ageing, the score of the last one that was
                 evicted when it was seen (LFU with dynamic ageing: Arlitt et al., 2000)

and `timed` gives away only rows whose ids were not seen for `horizon` steps, `none` only free ones.
With `admit_after` above 1 an id waits among the candidates, an LRU of its own, until it was seen so
often.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from deltarec_kernels.assign import reference
from deltarec_kernels.registration import COMPILED, register
from deltarec_kernels.splitmix import mix64, shifted
from deltarec_kernels.tables import buffer

Evict = Literal["none", "lru", "lfu", "timed"]


@dataclass(frozen=True)
class Policy:
    """Who gets a row, and who loses it."""

    evict: Evict = "none"
    horizon: int = -1
    """Of `timed`: steps; -1 for the others."""
    ageing: bool = False
    """Of `lfu`."""
    admit_after: int = 1
    """Sightings before an id gets a row."""


class Assigned(NamedTuple):
    """What one step did to a map."""

    rows: Tensor
    """Int64 `[ids]`: the row of each id, counted from this rank's first; -1 for none."""
    fresh: Tensor
    """Int64 `[new]`: the rows that have another id than before."""
    undo: "Change"
    """What leads back to the state before."""


class Change(NamedTuple):
    """Rows of a map and of its candidates, with other contents than they have now."""

    log: Tensor
    """Int64 `[rows, 5]`: row, key, and the three numbers of its use."""
    candidate_log: Tensor
    """Likewise."""
    summaries: Tensor
    """All of them, `[buckets, 4]`."""


class IdMap:
    """The buckets of a map that one rank has.

    Args:
        num_buckets: of the whole map.
        first_bucket: the first one here; they follow each other.
        buckets_here: how many are here.
        capacity: rows of a bucket.
        candidates: ids of a bucket that can wait for a row.
        policy: who gets a row.

    Attributes:
        keys: int64 `[rows here]`.
        uses: int32 `[rows here, 3]`: count, score, step of the last sighting. The count is 0 of a
            free row, and -1 of the first row of the whole map, which is for ids without a row.
        candidate_keys, candidate_uses: the same of the ids that wait.
        summaries: int64 `[buckets here, 4]`: steps so far, LFU's floor, rows in use, rows given so
            far.
    """

    def __init__(
        self,
        num_buckets: int,
        first_bucket: int,
        buckets_here: int,
        capacity: int,
        candidates: int,
        policy: Policy,
    ) -> None:
        self.num_buckets = num_buckets
        self.first_bucket = first_bucket
        self.policy = policy
        waiting = candidates if policy.admit_after > 1 else 0
        self.keys, self.uses = _empty(buckets_here * capacity)
        self.candidate_keys, self.candidate_uses = _empty(buckets_here * waiting)
        self.summaries = torch.zeros(buckets_here, 4, dtype=torch.int64)
        if first_bucket == 0:
            self.uses[0, 0] = -1
        self._main = [self.keys, self.uses, *_derived(buckets_here, capacity)]
        self._candidates = [
            self.candidate_keys,
            self.candidate_uses,
            *_derived(buckets_here, waiting),
        ]
        self.build()

    def build(self) -> None:
        """Make what follows from the state, after it was written to from outside."""
        for tensors in (self._main, self._candidates):
            _build(tensors, len(self.summaries))

    def assign(self, ids: Tensor, counts: Tensor) -> Assigned:
        """Make one step.

        Args:
            ids: int64 `[ids]`, of buckets that are here; an id may be there several times.
            counts: int64 `[ids]`, how often each was seen.
        """
        policy, before = self.policy, self.summaries.clone()
        rows, fresh, log, candidate_log = _assign(
            self._main,
            self._candidates,
            self.summaries,
            self.first_bucket,
            self.num_buckets,
            ids,
            counts,
            policy.evict,
            policy.horizon,
            policy.ageing,
            policy.admit_after,
        )
        return Assigned(rows, fresh, Change(log, candidate_log, before))

    def find(self, ids: Tensor) -> Tensor:
        """The rows that ids have, int64 `[ids]`, and -1 for none; changes nothing."""
        where = (self.first_bucket, self.num_buckets)
        return _find(self._main, self.summaries, *where, ids, self.policy.horizon)

    def exchange(self, change: Change) -> Change:
        """Put the contents of a change into the rows; returns what was there.

        What follows from the state is not made again: see `build`.
        """
        return Change(
            _exchange(self.keys, self.uses, change.log),
            _exchange(self.candidate_keys, self.candidate_uses, change.candidate_log),
            _swap(self.summaries, change.summaries),
        )

    @property
    def num_bytes(self) -> int:
        """Of the state and of what follows from it."""
        tensors = [*self._main, *self._candidates, self.summaries]
        return sum(tensor.nbytes for tensor in tensors)


def deduplicate(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct ids in order of appearance, each id's number among them, and their counts.

    Args:
        ids: int64 `[ids]`.

    Returns:
        int64 `[distinct]`, `[ids]`, `[distinct]`.
    """
    return _deduplicate(ids)


def buckets_of(ids: Tensor, num_buckets: int) -> Tensor:
    """The bucket of each id, int64 of its shape."""
    return shifted(mix64(ids), 32) * num_buckets >> 32


def _empty(rows: int) -> tuple[Tensor, Tensor]:
    uses = buffer((rows, 3), torch.int32)
    uses[:, 1] = -1
    return buffer((rows,), torch.int64), uses


def _derived(buckets: int, capacity: int) -> tuple[Tensor, Tensor]:
    """Index and heap of the C++ operators; the index gets a quarter to half full."""
    rows = buckets * capacity if COMPILED else 0
    slots = 2 ** (2 * capacity - 1).bit_length() if rows else 0
    entries = rows + 2 * buckets if rows else 0
    return buffer((buckets * slots,), torch.int64), buffer((entries, 2), torch.int64)


def _exchange(keys: Tensor, uses: Tensor, log: Tensor) -> Tensor:
    rows, inverse = log[:, 0].unique(return_inverse=True)
    # Of a row that changed twice, what it was before the first change.
    first = torch.full_like(rows, len(log))
    first.scatter_reduce_(0, inverse, torch.arange(len(log)), "amin")
    kept = log[first]
    before = torch.cat([rows[:, None], keys[rows, None], uses[rows].long()], 1)
    keys[rows] = kept[:, 1]
    uses[rows] = kept[:, 2:].int()
    return before


def _swap(tensor: Tensor, other: Tensor) -> Tensor:
    before = tensor.clone()
    tensor.copy_(other)
    return before


def _fake_assign(main: Any, candidates: Any, summaries: Any, *arguments: Any) -> Any:
    ids = arguments[2]
    context = torch.library.get_ctx()
    sizes = [context.new_dynamic_size() for _ in range(3)]
    return (
        torch.empty_like(ids),
        ids.new_empty(sizes[0]),
        ids.new_empty(sizes[1], 5),
        ids.new_empty(sizes[2], 5),
    )


def _fake_deduplicate(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    size = torch.library.get_ctx().new_dynamic_size()
    return ids.new_empty(size), torch.empty_like(ids), ids.new_empty(size)


_assign = register(
    "assign(Tensor(a!)[] main, Tensor(b!)[] candidates, Tensor(c!) summaries, int first_bucket, "
    "int num_buckets, Tensor ids, Tensor counts, str evict, int horizon, bool ageing, "
    "int admit_after) -> (Tensor, Tensor, Tensor, Tensor)",
    reference.assign,
    _fake_assign,
    None,
)
_find = register(
    "find_assigned(Tensor[] map, Tensor summaries, int first_bucket, int num_buckets, Tensor ids, "
    "int horizon) -> Tensor",
    reference.find_assigned,
    lambda map, summaries, first_bucket, num_buckets, ids, horizon: torch.empty_like(ids),
    None,
)
_build = register(
    "build_assignment(Tensor(a!)[] map, int buckets) -> ()",
    reference.build_assignment,
    lambda map, buckets: None,
    None,
)
_deduplicate = register(
    "deduplicate(Tensor ids) -> (Tensor, Tensor, Tensor)",
    reference.deduplicate,
    _fake_deduplicate,
    None,
)
