# SPDX-License-Identifier: Apache-2.0
"""Histories from an event log: a user's last events of a type, and what was shown around each.

With the events of one type in the order of user and time, everything wanted is a *range* of that
list, and its ends are counts: how many events of the type stand before a place in the log. So

    the last N clicks before an event    [clicks before it - N, clicks before it)
    R exposures around a click           [exposures before it - R, exposures before it + R)

cut to the user's own, are found for all events at once with a few sums over the log, O(events), and
become lists only at the end, for as many rows at a time as memory allows.

**Causal.** The past of an event is what has a *smaller time*: one at the same time is not in it,
wherever it stands in the log. An exposure that followed a click but not yet the event in question
is outside of the event's past, and its range ends before it.

**Aligned by rank**, as in TEM4CTR: the R un-clicked exposures right before a click in the user's
log and the R right after it, whatever time lies between; `max_gap` is a cap on that time. Other
clicks between are not counted. One exposure may belong to several clicks. Within one time the log's
own order counts: two events of one past.

Not chosen: a window of the clock alone (in a slow hour it is empty, in a fast one it holds
hundreds), joins of a dataframe engine (they make the pairs that ranges only describe).
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Positions = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Ranges(NamedTuple):
    """Parts `[begin, end)` of a list, n of them."""

    begin: Positions
    end: Positions

    @property
    def lengths(self) -> Positions:
        return self.end - self.begin

    def take(self, which: Positions) -> "Ranges":
        return Ranges(self.begin[which], self.end[which])

    def positions(self) -> Positions:
        """All of them, one range after the other: `[sum of lengths]`."""
        lengths = self.lengths
        starts = np.cumsum(lengths) - lengths
        return np.arange(lengths.sum()) + np.repeat(self.begin - starts, lengths)

    def lists(self, values: NDArray | pa.Array) -> pa.ListArray:
        """The parts of `values`, as n lists."""
        return as_lists(self.lengths, pa.array(values).take(pa.array(self.positions())))


class EventLog:
    """The events of some users, by user and then by time.

    Args:
        user: `[events]`, equal ones stand together.
        time: integers `[events]` of any unit, ascending within a user.

    Raises:
        ValueError: a user's times do not ascend.
    """

    def __init__(self, user: NDArray, time: NDArray) -> None:
        num_events = len(user)
        new_user = np.ones(num_events, dtype=bool)
        new_user[1:] = user[1:] != user[:-1]
        new_time = new_user.copy()
        new_time[1:] |= time[1:] != time[:-1]
        if (~new_user[1:] & (time[1:] < time[:-1])).any():
            raise ValueError("a user's events are not in the order of time; use by_user_and_time")
        self.num_events = num_events
        self.time = time.astype(np.int64, copy=False)  # unsigned ones have no differences
        self.user_begin = _last_true(new_user)
        """Of each event, the first event of its user."""
        self.past_end = _last_true(new_time)
        """Of each event, the first event of its user with its time: where its past ends."""
        starts = np.append(np.flatnonzero(new_user), num_events)
        self.user_end = np.repeat(starts[1:], np.diff(starts))
        """Of each event, one behind the last event of its user."""


class Feedback:
    """The events of one type (click, un-clicked exposure, like, …) as a list.

    Args:
        log: all events.
        of_type: bool `[events]`, which of them.
    """

    def __init__(self, log: EventLog, of_type: Mask) -> None:
        self.log = log
        self.events = np.flatnonzero(of_type)
        """Where the list's elements stand in the log."""
        self.count = np.zeros(log.num_events + 1, dtype=np.int64)
        """How many of the type stand before each place of the log."""
        np.cumsum(of_type, out=self.count[1:])

    def before(self, rows: Positions) -> Positions:
        """Where the past of each of these events ends in the list."""
        return self.count[self.log.past_end[rows]]

    def last(self, rows: Positions, most: int) -> Ranges:
        """The last `most` of the type in the past of each of these events, oldest first."""
        end = self.before(rows)
        return Ranges(np.maximum(end - most, self.count[self.log.user_begin[rows]]), end)

    def around(self, anchors: "Feedback", each_side: int, max_gap: int | None = None) -> Ranges:
        """What stands around each event of another type, in this list.

        Args:
            anchors: say, the clicks. One that is of this type, too, is in its own range.
            each_side: at most so many before, and after, in the order of the log.
            max_gap: and none further in time than this, in the log's unit.

        Returns:
            One range for each anchor. They reach into the anchor's future: `aligned` cuts them.
        """
        rows = anchors.events
        rank, after = self.count[rows], self.count[rows + 1]
        first = self.count[self.log.user_begin[rows]]
        last = self.count[self.log.user_end[rows]]
        if max_gap is None:
            return Ranges(np.maximum(rank - each_side, first), np.minimum(after + each_side, last))
        begin, end, time = rank.copy(), after.copy(), self.log.time[rows]
        times = self.log.time[self.events]
        for _ in range(each_side):  # each step only where the one before was near enough
            for place, bound, step in ((begin, first, -1), (end, last, 1)):
                inside = np.flatnonzero(place > bound if step < 0 else place < bound)
                nearest = place[inside] - (step < 0)
                near = np.abs(times[nearest] - time[inside]) <= max_gap
                place[inside[near]] += step
        return Ranges(begin, end)


def aligned(
    clicks: Ranges,
    windows: Ranges,
    exposures: Feedback,
    rows: Positions,
    values: NDArray | pa.Array,
) -> pa.ListArray:
    """What stood around each click of each row's history, and before the row's own time.

    Args:
        clicks: of each row, its part of the list of clicks: `clicks.last(rows, …)`.
        windows: of each click, its part of the list of exposures: `exposures.around(…)`.
        exposures: the list itself.
        rows: the events that the histories are for.
        values: of each exposure, what goes into the lists.

    Returns:
        A list of lists of values for each row: one for each of its clicks, which may be empty.
    """
    found = windows.take(clicks.positions())
    known = np.repeat(exposures.before(rows), clicks.lengths)
    return as_lists(clicks.lengths, Ranges(found.begin, np.minimum(found.end, known)).lists(values))


def by_user_and_time(user: NDArray, time: NDArray) -> Positions:
    """The order of integers user and time; events of one user and time keep theirs."""
    if (time[1:] >= time[:-1]).all():  # as logs are written
        return stable_order(user)
    order = stable_order(time)
    return order[stable_order(user[order])]


def stable_order(values: NDArray) -> Positions:
    """`argsort(values, kind="stable")` of integers.

    NumPy sorts plain integers five times as fast as it argsorts them, so each value is packed with
    its position into one, where both fit into 64 bits.
    """
    if not len(values):
        return np.zeros(0, dtype=np.int64)
    low, bits = int(values.min()), len(values).bit_length()
    if (int(values.max()) - low).bit_length() + bits > 64:
        return np.argsort(values, kind="stable")
    packed = (values.astype(np.int64) - low).view(np.uint64)  # wraps, and is right all the same
    packed <<= np.uint64(bits)
    packed |= np.arange(len(values), dtype=np.uint64)
    packed.sort()
    packed &= np.uint64((1 << bits) - 1)
    return packed.view(np.int64)


def as_lists(lengths: Positions, values: pa.Array) -> pa.ListArray:
    """Consecutive values as lists of these lengths.

    Raises:
        ValueError: there are too many for one Arrow array; make fewer rows at a time.
    """
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if offsets[-1] > np.iinfo(np.int32).max:
        raise ValueError(f"{offsets[-1]} values in one list array; build fewer rows at a time")
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)


def _last_true(mask: Mask) -> Positions:
    """Of each place, the last one not behind it where the mask is true; the first one is."""
    return np.maximum.accumulate(np.where(mask, np.arange(len(mask)), 0))
