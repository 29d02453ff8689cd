# SPDX-License-Identifier: Apache-2.0
"""The lives of ids: the compiled operators are the reference's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deltarec_kernels.identities import Lives, act, explore, reference
from deltarec_kernels.splitmix import mix64
from tests.kernels.test_lookup import compiled

BUCKETS, PLACES, ROWS = 3, 7, 4
"""Of a bucket, the latter two."""


def drawn(seed: int) -> tuple[Lives, tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """Lives of any kind in the middle of a partition, and a batch: no place twice, some of -1."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    def order(size: int) -> Tensor:
        return torch.randperm(size, generator=generator)

    places = BUCKETS * PLACES
    uses = torch.stack([integers(0, 5, places), integers(0, 9, places), integers(0, 9, places)], 1)
    marks = torch.stack([integers(0, 9, places), torch.full((places,), -1)], 1)
    queue = torch.stack([order(ROWS) for _ in range(BUCKETS)])
    holders = torch.stack([order(PLACES)[:ROWS] for _ in range(BUCKETS)])
    for b in range(BUCKETS):
        marks[b * PLACES + holders[b], 1] = queue[b]
    # Some rows are free, and some have gone to others since.
    free = integers(0, 3, BUCKETS, ROWS) == 0
    for b in range(BUCKETS):
        marks[b * PLACES + holders[b, free[b]], 1] = -1
    holders[free & (integers(0, 2, BUCKETS, ROWS) == 0)] = -1
    holders[0, 0] = -2
    counts = torch.stack([integers(0, ROWS, BUCKETS), *integers(0, 9, 3, BUCKETS)], 1)
    lives = Lives(
        uses.int(),
        marks.int(),
        torch.rand(places, 5, generator=generator),
        counts,
        queue.int(),
        holders.int(),
    )
    seen = order(places)[: int(integers(0, places, 1))]
    seen = torch.where(integers(0, 5, len(seen)) == 0, -1, seen)
    fresh = seen[(seen >= 0) & (integers(0, 3, len(seen)) == 0)]
    lives.uses[seen[seen >= 0], 2] = 9
    ids = integers(-(2**62), 2**62, len(seen))
    retention = torch.rand(len(seen), generator=generator)
    return lives, (ids, seen, fresh, integers(1, 4, len(seen)), retention)


@compiled
@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_a_sight_is_the_reference(seed: int):
    mine, batch = drawn(seed)
    theirs = [tensor.clone() for tensor in mine]
    found = mine.sight(*batch, step=9, admit_after=2, promote_at=0.3)
    wanted = reference.sight(theirs, *batch, 9, 2, 0.3)
    for one, other in zip([*mine, *found], [*theirs, *wanted], strict=True):
        assert torch.equal(one, other)


@compiled
@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_states_are_the_reference(seed: int):
    lives, (_, places, *_) = drawn(seed)
    mine, wanted = lives.states(places, 9), reference.identity_states(list(lives), places, 9)
    torch.testing.assert_close(mine, wanted)


def actor() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = [(8,), (64, 15), (64,), (32, 64), (32,), (4, 32), (4,)]
    return [torch.randn(shape, generator=generator) / 4 for shape in shapes]


@compiled
@pytest.mark.parametrize("size", [0, 1, 50])
def test_actions_are_the_reference_and_each_id_s_own(size: int):
    states = torch.rand(size, 8) * 3
    found = act(states, actor())
    torch.testing.assert_close(found, reference.identity_actions(states, actor()))
    for state, action in zip(states, found, strict=True):
        assert torch.equal(act(state[None], actor())[0], action)


@compiled
@pytest.mark.parametrize("retention", [True, False])
def test_exploring_is_the_reference(retention: bool):
    actions = torch.cat([torch.rand(300, 3).softmax(1), torch.rand(300, 1)], 1)
    bits = torch.randint(-(2**63), 2**63 - 1, (300,))
    wanted, found = actions.clone(), actions.clone()
    reference.explore(wanted, bits, 0.1, retention)
    explore(found, bits, 0.1, retention)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(found[:, :3].sum(1), torch.ones(300))
    assert torch.equal(found[:, 3], actions[:, 3]) is not retention
    assert (found[:, 3] - actions[:, 3]).abs().max() <= 0.1001


@compiled
@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_answers_are_the_reference(seed: int):
    lives, (_, places, *_) = drawn(seed)
    states, actions = torch.rand(len(places), 8), torch.rand(len(places), 4)
    found = lives.answers(places, states, actions)
    wanted = reference.identity_answers(list(lives), places, states, actions)
    assert torch.equal(found.view(torch.int32), wanted.view(torch.int32))


def test_a_row_goes_to_the_first_hash():
    lives = Lives(
        uses=torch.tensor([[1, 1, 5]] * 3, dtype=torch.int32),
        marks=torch.tensor([[0, -1]] * 3, dtype=torch.int32),
        traces=torch.zeros(3, 5),
        counts=torch.zeros(1, 4, dtype=torch.int64),
        queue=torch.tensor([[1, 0]], dtype=torch.int32),
        holders=torch.tensor([[-1, -2]], dtype=torch.int32),
    )
    ids, ones = torch.tensor([10, 11, 12]), torch.ones(3, dtype=torch.int64)
    first = int((mix64(ids) ^ -(2**63)).argmin())
    found = lives.sight(
        ids, torch.arange(3), ids[:0], ones, torch.ones(3), step=5, admit_after=1, promote_at=0.5
    )
    assert found.promoted.tolist() == [first]
    assert lives.marks[:, 1].tolist() == [1 if i == first else -1 for i in range(3)]
    assert lives.counts.tolist() == [[2, 1, 0, 0]]


@compiled
def test_a_place_outside_is_named():
    lives, (ids, *_) = drawn(1)
    one = torch.ones(1, dtype=torch.int64)
    with pytest.raises(IndexError, match="place 21 of 21"):
        lives.sight(one, 21 * one, ids[:0], one, torch.ones(1), 9, 1, 0.5)


@compiled
def test_torch_sees_the_operators():
    lives, batch = drawn(3)
    places = (lives.marks[:, 1] >= 0).nonzero()[:, 0]  # the bits of no row, -1, are no number
    states, actions = torch.rand(len(places), 8), torch.rand(len(places), 4)
    for name, arguments in {
        "identity_states": (list(lives), places, 9),
        "identity_actions": (states, actor()),
        "explore": (actions.clone(), places, 0.1, True),
        "identity_answers": (list(lives), places, states, actions),
        "sight": (list(lives), *batch, 9, 2, 0.3),
    }.items():
        torch.library.opcheck(getattr(torch.ops.deltarec, name).default, arguments)
