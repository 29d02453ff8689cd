# SPDX-License-Identifier: Apache-2.0
"""Ids to rows: the compiled operators are the reference's, and what must always hold does."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deltarec_kernels import IdMap, Policy, deduplicate
from deltarec_kernels.assign import buckets_of, reference
from deltarec_kernels.splitmix import mix64
from tests.kernels.test_lookup import compiled

POLICIES = [
    Policy("none"),
    Policy("none", admit_after=3),
    Policy("lru"),
    Policy("lru", admit_after=2),
    Policy("lfu"),
    Policy("lfu", ageing=True),
    Policy("timed", horizon=2),
    Policy("timed", horizon=1, admit_after=2),
]
EDGES = [-(2**63), 2**63 - 1, -1, 0]
ID = st.one_of(st.integers(0, 30), st.sampled_from(EDGES))
STREAM = st.lists(st.lists(ID, max_size=12), min_size=1, max_size=12)
"""Batches of ids: few enough that they meet again, more than the rows of any map here."""


def tensors(batch: list[int]) -> tuple[Tensor, Tensor]:
    ids = torch.tensor(batch, dtype=torch.int64)
    return ids, torch.arange(len(ids)) % 2 + 1


def id_map(policy: Policy, buckets: int = 3, capacity: int = 4, candidates: int = 2) -> IdMap:
    return IdMap(buckets, 0, buckets, capacity, candidates, policy)


def state(ids: IdMap) -> list[Tensor]:
    tensors = [ids.keys, ids.uses, ids.candidate_keys, ids.candidate_uses, ids.summaries]
    return [tensor.clone() for tensor in tensors]


def assert_same(mine: list[Tensor], theirs: list[Tensor]) -> None:
    for one, other in zip(mine, theirs, strict=True):
        assert torch.equal(one, other)


def load(into: IdMap, values: list[Tensor]) -> IdMap:
    own = [into.keys, into.uses, into.candidate_keys, into.candidate_uses, into.summaries]
    for tensor, value in zip(own, values, strict=True):
        tensor.copy_(value)
    into.build()
    return into


@compiled
@pytest.mark.parametrize("policy", POLICIES, ids=str)
@settings(max_examples=40, deadline=None)
@given(stream=STREAM)
def test_compiled_assignment_is_the_reference(policy: Policy, stream: list[list[int]]):
    mine, theirs = id_map(policy), state(id_map(policy))
    for batch in stream:
        ids, counts = tensors(batch)
        found = mine.assign(ids, counts)
        rows, fresh, log, candidate_log = reference.assign(
            theirs[:2], theirs[2:4], theirs[4], 0, 3, ids, counts,
            policy.evict, policy.horizon, policy.ageing, policy.admit_after,
        )  # fmt: skip
        assert_same(state(mine), theirs)
        assert torch.equal(found.rows, rows)
        assert torch.equal(found.fresh, fresh)
        assert sorted(found.undo.log.tolist()) == sorted(log.tolist())
        assert {e[0] for e in found.undo.candidate_log.tolist()} == set(
            candidate_log[:, 0].tolist()
        )
        known = torch.arange(-2, 31)
        there = reference.find_assigned(theirs[:2], theirs[4], 0, 3, known, policy.horizon)
        assert torch.equal(mine.find(known), there)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@settings(max_examples=25, deadline=None)
@given(stream=STREAM)
def test_one_live_id_one_row_within_the_budget(policy: Policy, stream: list[list[int]]):
    ids = id_map(policy)
    for batch in stream:
        distinct = list(dict.fromkeys(batch))
        before = dict(zip(ids.keys.tolist(), ids.uses[:, 0].tolist(), strict=True))
        found = ids.assign(*tensors(batch))
        rows = dict(zip(batch, found.rows.tolist(), strict=True))
        taken = [rows[key] for key in distinct if rows[key] >= 0]
        assert len(set(taken)) == len(taken)
        assert 0 not in taken
        for row in taken:
            bucket = reference.bucket(int(ids.keys[row]), 3)
            assert bucket * 4 <= row < (bucket + 1) * 4
        used = ids.uses[:, 0] > 0
        assert len(set(ids.keys[used].tolist())) == int(used.sum()) <= 11
        assert int(ids.summaries[:, 2].sum()) == int(used.sum())
        assert torch.equal(
            ids.find(torch.tensor(distinct, dtype=torch.int64)),
            torch.tensor([rows[key] for key in distinct], dtype=torch.int64),
        )
        fresh = set(ids.keys[found.fresh].tolist())
        assert fresh <= set(distinct)
        if policy.evict != "timed":
            assert not any(before.get(key, 0) > 0 for key in fresh)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@settings(max_examples=15, deadline=None)
@given(stream=STREAM, cut=st.integers(0, 11))
def test_undone_and_done_again_and_resumed(policy: Policy, stream: list[list[int]], cut: int):
    whole, resumed = id_map(policy), id_map(policy)
    cut = min(cut, len(stream))
    for batch in stream[:cut]:
        whole.assign(*tensors(batch))
    saved = state(whole)
    load(resumed, saved)
    ahead = [whole.assign(*tensors(batch)).undo for batch in stream[cut:]]
    end = state(whole)
    redo = [whole.exchange(change) for change in reversed(ahead)]
    assert_same(state(whole), saved)
    for change in reversed(redo):
        whole.exchange(change)
    assert_same(state(whole), end)
    for batch in stream[cut:]:
        resumed.assign(*tensors(batch))
    assert_same(state(resumed), end)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@settings(max_examples=15, deadline=None)
@given(stream=STREAM)
def test_any_cut_into_ranks_and_any_order_give_the_same(policy: Policy, stream: list[list[int]]):
    whole = id_map(policy)
    parts = [IdMap(3, first, count, 4, 2, policy) for first, count in ((0, 1), (1, 2))]
    for batch in stream:
        ids, counts = tensors(batch)
        found = whole.assign(ids, counts).rows
        order = torch.arange(len(ids)).flip(0)
        owner = buckets_of(ids, 3)
        for part, (first, last) in zip(parts, ((0, 1), (1, 3)), strict=True):
            mine = order[(owner[order] >= first) & (owner[order] < last)]
            rows = part.assign(ids[mine], counts[mine]).rows
            assert torch.equal(torch.where(rows < 0, rows, rows + 4 * first), found[mine])
    together = [torch.cat(column) for column in zip(*map(state, parts), strict=True)]
    assert_same(together, state(whole))


def test_a_row_that_is_new_to_an_id_is_evicted_by_age_or_by_count():
    lru, lfu = (IdMap(1, 0, 1, 4, 0, Policy(name)) for name in ("lru", "lfu"))
    for batch in ([1, 1, 1, 2, 3], [2], [3], [4]):
        ids = torch.tensor(batch)
        for each in (lru, lfu):
            each.assign(ids, torch.ones_like(ids))
    assert set(lru.keys[1:].tolist()) == {2, 3, 4}
    assert set(lfu.keys[1:].tolist()) == {1, 3, 4}


def test_ageing_lets_go_of_what_was_frequent_once():
    for ageing in (False, True):
        ids = IdMap(1, 0, 1, 3, 0, Policy("lfu", ageing=ageing))
        ids.assign(torch.tensor([1]), torch.tensor([5]))
        for key in range(10, 30):
            ids.assign(torch.tensor([key]), torch.tensor([1]))
        assert (1 in ids.keys.tolist()) is not ageing


def test_hashes_are_the_reference():
    ids = torch.cat([torch.tensor(EDGES), torch.randint(-(2**62), 2**62, (100,))])
    wanted = [reference.mix(key) for key in ids.tolist()]
    assert [value % 2**64 for value in mix64(ids).tolist()] == wanted
    assert buckets_of(ids, 24).tolist() == [reference.bucket(key, 24) for key in ids.tolist()]


@settings(max_examples=50, deadline=None)
@given(batch=st.lists(ID, max_size=40))
def test_distinct_ids(batch: list[int]):
    ids = torch.tensor(batch, dtype=torch.int64)
    distinct, inverse, counts = deduplicate(ids)
    assert torch.equal(distinct[inverse], ids)
    assert len(distinct) == len(set(batch))
    assert counts.tolist() == [batch.count(key) for key in distinct.tolist()]
    for mine, theirs in zip((distinct, inverse, counts), reference.deduplicate(ids), strict=True):
        assert torch.equal(mine, theirs)


@compiled
def test_ids_of_another_rank_are_refused():
    ids = IdMap(2, 1, 1, 4, 0, Policy("lru"))
    foreign = torch.arange(20)[buckets_of(torch.arange(20), 2) == 0]
    with pytest.raises(IndexError, match="another rank"):
        ids.assign(foreign, torch.ones_like(foreign))


@compiled
def test_operators_as_torch_sees_them():
    ids = id_map(Policy("lru", admit_after=2))
    batch = tensors([1, 2, 3, 1])
    arguments = (ids._main, ids._candidates, ids.summaries, 0, 3, *batch, "lru", -1, False, 2)
    for name, values in (
        ("assign", arguments),
        ("find_assigned", (ids._main, ids.summaries, 0, 3, batch[0], -1)),
        ("build_assignment", (ids._main, 3)),
        ("deduplicate", batch[:1]),
    ):
        torch.library.opcheck(getattr(torch.ops.deltarec, name).default, values)
