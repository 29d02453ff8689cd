# SPDX-License-Identifier: Apache-2.0
"""The life of ids under AutoAssign+: against plain Python, and what must always hold."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deltarec.distributed import process_group
from deltarec.embeddings.identities import Identities
from deltarec.embeddings.policies import AutoAssign
from deltarec.embeddings.tables import EmbeddingConfig, Table
from deltarec_kernels.assign import reference

BUCKETS, ROWS, SHARED = 3, 12, 2
ID = st.one_of(st.integers(0, 25), st.sampled_from([-(2**63), 2**63 - 1, -1]))
BATCH = st.lists(ID, max_size=14)
STREAM = st.lists(st.lists(BATCH, max_size=4), min_size=1, max_size=4)
"""Partitions of batches of ids."""


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    with process_group(threads=1):
        yield


class Oracle:
    """In place of an agent: p rises with the sightings and the error, and falls with the loss."""

    def act(self, table: str, states: Tensor) -> Tensor:
        weights = torch.tensor([2.0, 0, -1, 0, -3, 2, 1, 0])
        p = torch.sigmoid(states @ weights)[:, None]
        alpha = torch.softmax(states[:, :SHARED], 1)
        return torch.cat([alpha, p], 1)

    def explore(self, table: str, actions: Tensor, bits: Tensor) -> None:
        assert len(bits) == len(actions)


def identities(candidates: int = 90, **options: Any) -> Identities:
    policy = AutoAssign(
        policy="autoassign", buckets=BUCKETS, shared=SHARED, candidates=candidates, **options
    )
    table = Table(rows=ROWS, assignment=policy)
    spec = EmbeddingConfig(tables={"item": table}).resolved()["item"]
    return Identities(spec, Oracle())  # pyright: ignore[reportArgumentType]


def norms(rows: Tensor) -> Tensor:
    return (rows % 5) / 4


def loss_of(key: int) -> float:
    return (key % 7) / 7


def error_of(key: int) -> float:
    return (key % 5) / 5 - 0.4


class Plain:
    """The same by dictionaries, with room to know every id."""

    def __init__(self, policy: AutoAssign) -> None:
        self.policy = policy
        self.known: dict[int, dict[str, float]] = {}
        self.rows: dict[int, int] = {}
        """Of ids."""
        self.retention: dict[int, float] = {}
        self.capacity = ROWS // BUCKETS
        self.step = self.reviewed = 0
        self._line_up()

    def state(self, key: int) -> Tensor:
        if key not in self.known:
            return torch.zeros(8)
        k = self.known[key]
        ages = [self.step - k["last"], self.step - k["first"]]
        logs = torch.tensor([k["count"], k["recent"], *ages]).float().log1p()
        has_row = float(key in self.rows)
        return torch.cat([logs, torch.tensor([k["loss"], k["error"], k["norm"], has_row])])

    def p(self, state: Tensor) -> float:
        return float(Oracle().act("item", state[None])[0, -1])

    def assign(self, batch: list[int]) -> dict[int, int]:
        before = {key: self.state(key) for key in batch}
        self.step += 1
        for key in set(batch):
            new = dict.fromkeys(("count", "recent", "loss", "error", "norm"), 0.0)
            known = self.known.setdefault(key, new | {"first": self.step})
            known["last"] = self.step
            known["count"] += batch.count(key)
            known["recent"] += batch.count(key)
        for key in sorted(set(batch), key=reference.mix):
            if key in self.rows or self.known[key]["count"] < self.policy.admit_after:
                continue
            bucket = reference.bucket(key, BUCKETS)
            if self.p(before[key]) < self.policy.promote_at:
                continue
            row = self.next_row(bucket)
            if row is not None:
                self.rows[key] = row
                self.retention[key] = self.p(before[key])
        return {key: self.rows.get(key, -1) for key in batch}

    def next_row(self, bucket: int) -> int | None:
        while self.queue[bucket]:
            row, holder = self.queue[bucket].pop(0)
            if holder is None or self.rows.get(holder) != row:
                return row
            if self.known[holder]["last"] <= self.reviewed:
                self.evict(holder)
                return row
        return None

    def evict(self, key: int) -> None:
        del self.rows[key], self.retention[key]
        self.known[key]["norm"] = 0.0

    def tell(self, keys: list[int]) -> None:
        for key in set(keys):
            known, kept = self.known[key], 0.9 ** keys.count(key)
            if known["loss"] == 0:
                kept = 0.0
            known["loss"] = kept * known["loss"] + (1 - kept) * loss_of(key)
            known["error"] = kept * known["error"] + (1 - kept) * error_of(key)

    def review(self) -> None:
        average = self.policy.average
        for key, row in self.rows.items():
            self.known[key]["norm"] = (row % 5) / 4
        for key in self.rows:
            new = self.p(self.state(key))
            self.retention[key] = average * self.retention[key] + (1 - average) * new
        for key in [k for k in self.rows if self.retention[k] < self.policy.evict_below]:
            self.evict(key)
        for known in self.known.values():
            known["recent"] /= 2
        self.reviewed = self.step
        self._line_up()

    def _line_up(self) -> None:
        score = {
            "agent": lambda k: self.retention[k],
            "lru": lambda k: self.known[k]["last"],
            "lfu": lambda k: self.known[k]["count"],
        }[self.policy.evict]
        ids = sorted(self.rows, key=lambda k: (score(k), self.known[k]["last"], self.rows[k]))
        self.queue: dict[int, list[tuple[int, int | None]]] = {}
        for b in range(BUCKETS):
            rows = range(b * self.capacity, (b + 1) * self.capacity)
            free = [r for r in rows if r not in {0, *self.rows.values()}]
            held = [(self.rows[k], k) for k in ids if self.rows[k] in rows]
            self.queue[b] = [*((r, None) for r in free), *held]


def assign(mine: Identities, batch: list[int]) -> tuple[Tensor, Any, Any]:
    ids = torch.tensor(batch, dtype=torch.int64)
    found, fresh, back = mine.assign(ids, torch.ones_like(ids))
    return found, fresh, back


def rows_of(found: Tensor) -> list[int]:
    return found[:, 0].contiguous().view(torch.int32).tolist()


def end_partition(mine: Identities, told: list[int]) -> None:
    ids = torch.tensor(told, dtype=torch.int64)
    outcomes = [(loss_of(key), error_of(key)) for key in told]
    mine.tell(ids, torch.tensor(outcomes).view(-1, 2))
    mine.review(norms)


def copied(mine: Identities) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in mine.tensors().items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@settings(max_examples=60, deadline=None)
@given(
    stream=STREAM,
    admit_after=st.integers(1, 3),
    evict=st.sampled_from(["agent", "lru", "lfu"]),
)
def test_lives_are_those_of_plain_dictionaries(
    stream: list[list[list[int]]], admit_after: int, evict: str
):
    mine = identities(admit_after=admit_after, evict=evict, evict_below=0.45, average=0.5)
    plain = Plain(mine.policy)
    for partition in stream:
        for batch in partition:
            found, fresh, _ = assign(mine, batch)
            before = dict(plain.rows)
            wanted = plain.assign(batch)
            assert rows_of(found) == [wanted[key] for key in batch]
            new = {row: key for key, row in plain.rows.items() if before.get(key) != row}
            given = {} if fresh is None else dict(zip(*map(Tensor.tolist, fresh), strict=True))
            assert given == new
        told = [key for batch in partition for key in batch]
        end_partition(mine, told)
        plain.tell(told)
        plain.review()
        known = [*plain.known, 10**6]
        found = mine.find(torch.tensor(known))
        assert rows_of(found) == [plain.rows.get(key, -1) for key in known]
        states = torch.stack([plain.state(key) for key in known])
        torch.testing.assert_close(found[:, 1:9], states, rtol=1e-6, atol=1e-6)
        p = Oracle().act("item", states)[:, -1] * states[:, -1]
        torch.testing.assert_close(found[:, -1], p, rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(stream=STREAM, candidates=st.integers(1, 9), evict=st.sampled_from(["agent", "lru", "lfu"]))
def test_with_few_places_nothing_is_shared_or_exceeded(
    stream: list[list[list[int]]], candidates: int, evict: str
):
    mine = identities(candidates, evict=evict, admit_after=1)
    for partition in stream:
        for batch in partition:
            before = copied(mine)
            found, fresh, back = assign(mine, batch)
            after = copied(mine)
            again = mine.exchange(back)
            mine.map.build()
            assert_equal(copied(mine), before)
            mine.exchange(again)
            mine.map.build()
            assert_equal(copied(mine), after)
            by_row = {row: key for key, row in zip(batch, rows_of(found), strict=True) if row >= 0}
            by_key = {key: row for row, key in by_row.items()}
            assert len(by_row) == len(by_key)
            rows = mine.rows((mine.lives.marks[:, 1] >= 0).nonzero()[:, 0]).tolist()
            assert len(set(rows)) == len(rows)
            assert 0 not in rows
            used, _ = mine.used_and_given(None).tolist()
            assert used == len(rows) < ROWS
            if fresh is not None:
                assert {by_row[row] for row in fresh.rows.tolist()} == set(fresh.ids.tolist())
        end_partition(mine, [key for batch in partition for key in batch])


def test_an_evicted_id_is_still_known():
    """It falls back to what the shared vectors make of its state."""
    mine = identities(admit_after=2, evict_below=0.99, average=0.0)
    ids = torch.tensor([5])
    assert rows_of(assign(mine, [5])[0]) == [-1]
    assert rows_of(assign(mine, [5])[0])[0] > 0
    mine.review(norms)
    found = mine.find(ids)
    assert rows_of(found) == [-1]
    assert found[0, 1] == torch.tensor(2.0).log1p()
    assert found[0, -1] == 0
