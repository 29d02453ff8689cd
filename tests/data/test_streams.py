# SPDX-License-Identifier: Apache-2.0
"""The order of an epoch by itself, without files."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltarec.data.streams import MAX_WASTE, NEAR, EpochOrder

orders = st.builds(
    EpochOrder,
    row_groups=st.lists(st.integers(0, 200), min_size=1, max_size=30).filter(sum),
    num_streams=st.sampled_from([1, 6, 12, 24]),
    window=st.integers(1, 50),
    seed=st.sampled_from([None, 0, 7]),
)


@settings(max_examples=100, deadline=None)
@given(order=orders)
def test_streams_share_all_rows_evenly(order: EpochOrder):
    assert order.lengths.sum() == order.num_rows
    assert order.lengths.max() - order.lengths.min() <= 2 + 2 * NEAR * order.lengths.mean()
    assert order.num_lanes * order.streams_per_lane == order.num_streams == len(order.lengths)
    assert order.lane_starts[0] == 0 and order.lane_starts[-1] == order.num_rows
    by_lane = order.lengths.reshape(order.num_lanes, -1).sum(axis=1)
    assert (by_lane == np.diff(order.lane_starts)).all()


@settings(max_examples=100, deadline=None)
@given(order=orders, data=st.data())
def test_taken_grows_by_one_stream_a_sample(order: EpochOrder, data: st.DataObject):
    start = data.draw(st.integers(0, order.num_rows))
    before = order.taken(start)
    for samples in range(start, min(start + 30, order.num_rows) + 1):
        taken = order.taken(samples)
        assert taken.sum() == samples and (taken <= order.lengths).all()
        assert (taken >= before).all() and (taken - before).sum() <= 1
        before = taken
    assert (order.taken(order.num_rows) == order.lengths).all()


def test_taken_is_the_streams_in_turn():
    order = EpochOrder([10], num_streams=4, window=2, seed=0)
    assert order.lengths.tolist() == [3, 3, 2, 2]
    assert [order.taken(samples).tolist() for samples in (0, 1, 5, 8, 9, 10)] == [
        [0, 0, 0, 0],
        [1, 0, 0, 0],
        [2, 1, 1, 1],
        [2, 2, 2, 2],
        [3, 2, 2, 2],
        [3, 3, 2, 2],
    ]


@settings(max_examples=50, deadline=None)
@given(order=orders, epoch=st.integers(0, 3))
def test_lanes_cover_every_row_once_within_its_row_group(order: EpochOrder, epoch: int):
    rows = []
    for lane in range(order.num_lanes):
        for segment in order.segments(lane, epoch):
            first = order.bounds[segment.row_group] + segment.skip
            assert first == segment.first_row
            assert first + segment.num_rows <= order.bounds[segment.row_group + 1]
            rows += range(segment.first_row, segment.first_row + segment.num_rows)
    assert sorted(rows) == list(range(order.num_rows))


@settings(max_examples=50, deadline=None)
@given(order=orders)
def test_lanes_lose_little_to_cuts_inside_row_groups(order: EpochOrder):
    """Every segment decodes its whole row group."""
    sizes = np.diff(order.bounds)
    segments = [s for lane in range(order.num_lanes) for s in order.segments(lane, 0)]
    decoded = sum(int(sizes[segment.row_group]) for segment in segments)
    assert decoded - order.num_rows <= MAX_WASTE * order.num_rows


@pytest.mark.parametrize(
    ("row_groups", "lanes"),
    [
        ([1000], 1),
        ([500, 500], 2),
        ([250] * 4, 4),
        ([100] * 24, 24),
        ([1] * 24, 24),
        ([100] * 1000, 24),
        ([1, 0, 0, 1], 24),  # most of them empty
        ([990, 10], 1),
        ([1000] * 95 + [990], 24),  # cuts move by a few rows
        ([100] * 97, 12),
    ],
)
def test_as_many_lanes_as_row_groups_admit(row_groups: list[int], lanes: int):
    assert EpochOrder(row_groups, 24, 10, 0).num_lanes == lanes


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 6, 8, 12, 24])
def test_ranks_divide_the_streams(num_ranks: int):
    order = EpochOrder([100] * 30, 24, 10, 0)
    owned = [order.rank_streams(rank, num_ranks) for rank in range(num_ranks)]
    assert list(itertools.chain(*owned)) == list(range(24))
    for samples in (0, 1, 100, 2999, 3000):
        counts = order.rank_counts(samples, num_ranks)
        assert counts.sum() == samples
        assert counts.max() - counts.min() <= 24 // num_ranks
        assert counts.tolist() == [order.taken(samples)[list(streams)].sum() for streams in owned]


def test_windows_are_permutations_that_depend_on_every_part_of_the_key():
    def first(seed: int, epoch: int, stream: int, window: int) -> tuple[int, ...]:
        order = EpochOrder([100] * 24, 24, 25, seed)
        return tuple(order.window_order(stream, window, epoch).tolist())

    keys = list(itertools.product((0, 1), (0, 1), (0, 5), (0, 1)))
    found = {first(*key) for key in keys}
    assert len(found) == len(keys) and all(sorted(order) == list(range(25)) for order in found)
    assert first(0, 0, 0, 0) == first(0, 0, 0, 0)


def test_the_last_window_is_what_is_left():
    order = EpochOrder([100], num_streams=2, window=30, seed=0)
    assert [len(order.window_order(0, window, 0)) for window in (0, 1)] == [30, 20]


def test_without_a_seed_rows_stay_in_file_order():
    order = EpochOrder([10] * 24, 12, 5, None)
    rows = [segment.first_row for lane in range(12) for segment in order.segments(lane, 1)]
    assert rows == sorted(rows)
    assert order.window_order(3, 1, 1).tolist() == [0, 1, 2, 3, 4]


def test_row_groups_of_a_lane_are_shuffled():
    order = EpochOrder([10] * 240, 12, 5, seed=0)
    first, second = ([s.row_group for s in order.segments(0, epoch)] for epoch in (0, 1))
    assert first != second != sorted(second) and sorted(first) == sorted(second) == list(range(20))
